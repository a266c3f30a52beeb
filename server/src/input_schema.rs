//! JSON Schemas that inputs of a type have to meet. The only place that knows jsonschema.
//!
//! Who writes a schema may mean harm: references that refer to each other can make a small one take years to
//! check. So it is measured before it is compiled, and an input before it is checked.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, OnceLock};

use jsonschema::error::ValidationErrorKind;
use jsonschema::{Draft, PatternOptions, ValidationError, Validator};
use serde::de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use crate::pointer::{Fault, MOST_FAULTS, add_segment, push_encoded};

/// The one draft that is taken.
const DRAFT: &str = "https://json-schema.org/draft/2020-12/schema";

/// Most values in a schema, each counted as often as something refers to it.
const MOST_PARTS: u64 = 5_000;

/// Most patterns, counted in the same way.
const MOST_PATTERNS: u64 = 50;

/// How deep a schema may be, with what it refers to in place.
const MOST_DEPTH: u64 = 100;

/// The most that one pattern may compile to, in bytes.
const PATTERN_BYTES: usize = 64 << 10;

/// The most that checking an input may cost: parts of the schema times values of the input, about.
const MOST_WORK: u64 = 10_000_000;

/// What matching a byte against a pattern costs of it.
const PATTERN_WORK: u64 = 20;

/// What a `multipleOf` that is no whole number costs, in parts: it is looked at in fractions of any size.
const FRACTION_PARTS: u64 = 100;

/// Memory that an input may take while it is checked, in bytes: reckoned, a little more than was measured.
const MOST_MEMORY: u64 = 64 << 20;

/// Where checking costs no more than this, every fault is told with its place. The faults of all that was tried
/// are gathered first, each of which takes hundreds of bytes and more than a microsecond.
const MOST_WORK_FOR_FAULTS: u64 = 200_000;

const NO_MEMBER: &str = "is no member that is allowed";

/// Keywords that can make a check take time out of all proportion.
const REFUSED: [&str; 4] = ["$dynamicRef", "$recursiveRef", "unevaluatedProperties", "unevaluatedItems"];

/// A JSON Schema.
pub struct InputSchema {
    text: Arc<str>,
    compiled: OnceLock<Result<Compiled, Fault>>,
}

struct Compiled {
    validator: Validator,
    parts: u64,
    patterns: u64,
}

impl Compiled {
    /// What it costs to check so many values in so many bytes.
    fn work(&self, values: u64, bytes: usize) -> u64 {
        let patterns = self.patterns.saturating_mul(bytes as u64).saturating_mul(PATTERN_WORK);
        self.parts.saturating_mul(values).saturating_add(patterns)
    }
}

impl InputSchema {
    /// The schema of that text, which is compiled when it is needed first.
    pub fn new(text: Arc<str>) -> InputSchema {
        InputSchema { text, compiled: OnceLock::new() }
    }

    /// The text.
    pub fn text(&self) -> &Arc<str> {
        &self.text
    }

    /// What is wrong with the schema itself. Compiles it, which may take some tenths of a second.
    pub fn fault(&self) -> Option<Fault> {
        self.compiled().as_ref().err().cloned()
    }

    /// Whether checking an input takes less than a millisecond or so. The schema may have to be compiled first.
    pub fn is_cheap(&self, input: &str) -> bool {
        let work = |compiled: &Compiled| compiled.work(input.len() as u64, input.len());
        matches!(self.compiled.get(), Some(Ok(compiled)) if work(compiled) <= MOST_WORK_FOR_FAULTS)
    }

    /// What is wrong with an input.
    pub fn check(&self, input: &str) -> Result<(), Vec<Fault>> {
        let whole = |detail: &str| vec![Fault { pointer: String::new(), detail: detail.to_owned() }];
        let Ok(compiled) = self.compiled() else {
            return Err(whole("cannot be checked: the input_schema of its type is none that this server takes"));
        };
        let mut size = Size::default();
        let mut json = serde_json::Deserializer::from_str(input);
        size.deserialize(&mut json).map_err(|error| whole(&format!("cannot be read: {error}")))?;
        let work = compiled.work(size.values, input.len());
        if work > MOST_WORK || size.memory > MOST_MEMORY {
            return Err(whole("has too much in it to be checked against the input_schema of its type"));
        }
        let input: Value = serde_json::from_str(input).map_err(|error| whole(&format!("cannot be read: {error}")))?;
        if compiled.validator.is_valid(&input) {
            return Ok(());
        }
        let mut faults = Vec::new();
        if work <= MOST_WORK_FOR_FAULTS {
            let found = compiled.validator.iter_errors(&input).flat_map(|error| faults_of(&error, &input));
            faults.extend(found.take(MOST_FAULTS));
        }
        if faults.is_empty() {
            faults = whole("does not meet the input_schema of its type");
        }
        Err(faults)
    }

    fn compiled(&self) -> &Result<Compiled, Fault> {
        self.compiled.get_or_init(|| compile(&self.text))
    }
}

impl PartialEq for InputSchema {
    fn eq(&self, other: &InputSchema) -> bool {
        self.text == other.text
    }
}

impl Eq for InputSchema {}

impl fmt::Debug for InputSchema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn compile(text: &str) -> Result<Compiled, Fault> {
    let whole = |detail: String| Fault { pointer: String::new(), detail };
    let schema: Value = serde_json::from_str(text).map_err(|error| whole(format!("cannot be read: {error}")))?;
    if !schema.is_object() && !schema.is_boolean() {
        return Err(whole("must be a JSON Schema: an object".to_owned()));
    }
    let measured = Measure { root: &schema, path: Vec::new(), depth: 0, known: HashMap::new() }.measure(&schema)?;
    let validator = jsonschema::options()
        .with_draft(Draft::Draft202012)
        .offline()
        .should_validate_formats(false)
        // In linear time, without what needs backtracking.
        .with_pattern_options(PatternOptions::regex().size_limit(PATTERN_BYTES))
        .build(&schema)
        .map_err(|error| {
            faults_of(&error, &schema).into_iter().next().unwrap_or_else(|| whole("is refused".to_owned()))
        })?;
    Ok(Compiled { validator, parts: measured.parts, patterns: measured.patterns })
}

/// What the crate says of a value, which is an input or a schema. What is there is not repeated: it may be large.
fn faults_of(error: &ValidationError<'_>, value: &Value) -> Vec<Fault> {
    let mut pointer = String::new();
    for segment in error.instance_path().as_str().split('/').skip(1) {
        // `~` and `/` are escaped already.
        pointer.push('/');
        push_encoded(&mut pointer, segment.get(..segment.floor_char_boundary(100)).unwrap_or_default());
    }
    let member = |name: &str, detail: &str| {
        let mut pointer = pointer.clone();
        add_segment(&mut pointer, name);
        Fault { pointer, detail: detail.to_owned() }
    };
    match error.kind() {
        ValidationErrorKind::Required { property } => vec![member(property.as_str().unwrap_or_default(), "is missing")],
        ValidationErrorKind::AdditionalProperties { unexpected } => {
            unexpected.iter().take(MOST_FAULTS).map(|name| member(name, NO_MEMBER)).collect()
        }
        // Where no members are allowed the crate says of an object what one of them is.
        ValidationErrorKind::FalseSchema
            if let Some(object) = value.pointer(error.instance_path().as_str())
                && let Value::Object(members) = object
                && object != &**error.instance() =>
        {
            members.keys().take(MOST_FAULTS).map(|name| member(name, NO_MEMBER)).collect()
        }
        ValidationErrorKind::PropertyNames { error } => {
            vec![member(error.instance().as_str().unwrap_or_default(), "has a name that is not allowed")]
        }
        ValidationErrorKind::Format { format } if format == "regex" => {
            let detail = format!(
                "is no regular expression that is taken: it may come to {PATTERN_BYTES} bytes, and has neither \
                 look-around nor back references"
            );
            vec![Fault { pointer, detail }]
        }
        _ => vec![Fault { detail: error.masked().to_string(), pointer }],
    }
}

/// How large a schema is with everything that it refers to in its place.
#[derive(Clone, Copy)]
struct Measured {
    parts: u64,
    patterns: u64,
    depth: u64,
}

struct Measure<'s> {
    root: &'s Value,
    /// Where it is.
    path: Vec<String>,
    /// How deep that is, with what it was referred from.
    depth: u64,
    /// What was referred to, by its pointer; `None`: it is being measured.
    known: HashMap<String, Option<Measured>>,
}

impl<'s> Measure<'s> {
    fn wrong<T>(&self, detail: impl Into<String>) -> Result<T, Fault> {
        let mut pointer = String::new();
        self.path.iter().for_each(|segment| add_segment(&mut pointer, segment));
        Err(Fault { pointer, detail: detail.into() })
    }

    /// Every object is taken for a schema, also where it is none, as in `enum`: rather too strict than too lax.
    fn measure(&mut self, value: &'s Value) -> Result<Measured, Fault> {
        if self.depth > MOST_DEPTH {
            return self.wrong(format!("is more than {MOST_DEPTH} deep"));
        }
        let mut sum = Measured { parts: 1, patterns: 0, depth: 1 };
        match value {
            Value::Array(items) => {
                for (at, item) in items.iter().enumerate() {
                    self.add(&mut sum, &at.to_string(), item)?;
                }
            }
            Value::Object(members) => {
                for (name, member) in members {
                    self.add(&mut sum, name, member)?;
                    self.path.push(name.clone());
                    self.keyword(&mut sum, name, member)?;
                    self.path.pop();
                }
            }
            _ => {}
        }
        Ok(sum)
    }

    fn add(&mut self, sum: &mut Measured, name: &str, value: &'s Value) -> Result<(), Fault> {
        self.path.push(name.to_owned());
        self.depth += 1;
        let part = self.measure(value)?;
        self.sum(sum, part)?;
        self.depth -= 1;
        self.path.pop();
        Ok(())
    }

    fn sum(&self, sum: &mut Measured, part: Measured) -> Result<(), Fault> {
        sum.parts = sum.parts.saturating_add(part.parts);
        sum.patterns = sum.patterns.saturating_add(part.patterns);
        sum.depth = sum.depth.max(part.depth + 1);
        match sum {
            _ if sum.parts > MOST_PARTS => {
                self.wrong(format!("has more than {MOST_PARTS} values, with what it refers to in place"))
            }
            _ if sum.patterns > MOST_PATTERNS => {
                self.wrong(format!("has more than {MOST_PATTERNS} patterns, with what it refers to in place"))
            }
            _ if self.depth + sum.depth > MOST_DEPTH + 2 => {
                self.wrong(format!("is more than {MOST_DEPTH} deep, with what it refers to in place"))
            }
            _ => Ok(()),
        }
    }

    fn keyword(&mut self, sum: &mut Measured, name: &str, value: &'s Value) -> Result<(), Fault> {
        let at_root = self.path.len() == 1;
        match (name, value) {
            ("pattern", Value::String(_)) => sum.patterns += 1,
            ("multipleOf", Value::Number(number)) if !number.is_u64() => {
                self.sum(sum, Measured { parts: FRACTION_PARTS, patterns: 0, depth: 0 })?;
            }
            ("patternProperties", Value::Object(patterns)) => {
                self.sum(sum, Measured { parts: 0, patterns: patterns.len() as u64, depth: 0 })?;
            }
            ("$schema", Value::String(draft)) if !at_root || draft.trim_end_matches('#') != DRAFT => {
                return self.wrong(format!("only {DRAFT} is taken, and for the whole schema"));
            }
            ("$id", Value::String(_)) if !at_root => return self.wrong("may be given to the whole schema only"),
            ("$ref", Value::String(target)) => {
                let part = self.referred(target)?;
                self.sum(sum, part)?;
            }
            _ if REFUSED.contains(&name) => return self.wrong("this keyword is not taken here"),
            _ => {}
        }
        Ok(())
    }

    fn referred(&mut self, target: &str) -> Result<Measured, Fault> {
        match self.known.get(target) {
            Some(Some(known)) => return Ok(*known),
            Some(None) => return self.wrong("refers to what it is in: recursion is not taken here"),
            None => {}
        }
        if target == "#" {
            return self.wrong("refers to what it is in: recursion is not taken here");
        }
        let found = target.strip_prefix('#').filter(|pointer| pointer.starts_with('/') && !pointer.contains('%'));
        let Some((found, pointer)) = found.and_then(|pointer| Some((self.root.pointer(pointer)?, pointer))) else {
            return self.wrong("only what is in the schema itself can be referred to, as '#/$defs/name'");
        };
        self.known.insert(target.to_owned(), None);
        // What is wrong in there is told where it is.
        let there = pointer.split('/').skip(1).map(|segment| segment.replace("~1", "/").replace("~0", "~")).collect();
        let from = std::mem::replace(&mut self.path, there);
        self.depth += 1;
        let measured = self.measure(found)?;
        self.depth -= 1;
        self.path = from;
        self.known.insert(target.to_owned(), Some(measured));
        Ok(measured)
    }
}

/// What an input comes to as a [`Value`].
#[derive(Default)]
struct Size {
    values: u64,
    memory: u64,
}

impl Size {
    fn count(&mut self, memory: usize) {
        self.values += 1;
        // In an array that grew.
        self.memory += 2 * size_of::<Value>() as u64 + memory as u64;
    }
}

impl<'de> DeserializeSeed<'de> for &mut Size {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for &mut Size {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<(), E> {
        self.count(0);
        Ok(())
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<(), E> {
        self.count(0);
        Ok(())
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<(), E> {
        self.count(0);
        Ok(())
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<(), E> {
        self.count(0);
        Ok(())
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        self.count(text.len() + 16);
        Ok(())
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        self.count(0);
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        self.count(0);
        while seq.next_element_seed(&mut *self)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        // The first node of a map has room for eleven members.
        self.count(800);
        while map.next_key_seed(&mut *self)?.is_some() {
            map.next_value_seed(&mut *self)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
