//! JSON to the values that a function takes. What is read is made a value at once: a document in between could be
//! a hundred times as large as the text.

use std::fmt;
use std::marker::PhantomData;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::{DeserializeSeed, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use wasmtime::component::Val;

use super::expected::{What, expected};
use super::signature::{Integer, Names, Type};
use crate::pointer::{Fault, MOST_FAULTS, add_segment};

/// The engine makes a copy of what it is given.
const COPIES: u64 = 2;

/// What an allocation costs beside its bytes.
const ALLOCATION: usize = 16;

/// A whole number below this is the double that it is read as, however it is written. This one may have been another.
const EXACT: f64 = 9_007_199_254_740_992.0;

/// Stands where a value could not be read.
const NOTHING: Val = Val::Bool(false);

/// Arguments of a function.
#[derive(Debug)]
pub(super) struct Arguments {
    /// In the order of the parameters.
    pub(super) values: Vec<Val>,
    /// Bytes of memory that they take, with the engine's copy.
    pub(super) bytes: u64,
}

/// Reads arguments from a JSON object with a member for each parameter; nothing and `null` are an empty one. They
/// take at most `memory` bytes.
pub(super) fn read(params: &Type, text: &str, memory: u64) -> Result<Arguments, Vec<Fault>> {
    let mut reader = Reader { path: Vec::new(), faults: Vec::new(), used: 0, most: memory / COPIES, stopped: false };
    let text = if text.trim_ascii() == "null" { "{}" } else { text };
    let mut json = serde_json::Deserializer::from_str(text);
    let read = Of { what: What::Value(params), reader: &mut reader }.deserialize(&mut json);
    let read = read.and_then(|value| json.end().map(|()| value));
    match read {
        Ok(Val::Record(fields)) if reader.faults.is_empty() => Ok(Arguments {
            values: fields.into_iter().map(|(_, value)| value).collect(),
            bytes: reader.used as u64 * COPIES,
        }),
        Ok(_) => Err(reader.faults),
        Err(error) => {
            // What JSON allows and this cannot hold: a number of a thousand digits, half of a surrogate pair.
            if !reader.stopped {
                reader.fault(format!("cannot be read: {error}"));
            }
            Err(reader.faults)
        }
    }
}

/// What is known while it is read.
struct Reader<'t> {
    /// Where it is.
    path: Vec<Step<'t>>,
    faults: Vec<Fault>,
    /// Bytes of the values so far, and how many they may be.
    used: usize,
    most: u64,
    /// The rest is not looked at.
    stopped: bool,
}

enum Step<'t> {
    Member(&'t str),
    Item(usize),
}

impl Reader<'_> {
    fn fault(&mut self, detail: String) {
        self.fault_at(None, detail);
    }

    fn fault_at(&mut self, member: Option<&str>, detail: String) {
        let mut pointer = String::new();
        for step in &self.path {
            match step {
                Step::Member(name) => add_segment(&mut pointer, name),
                Step::Item(at) => add_segment(&mut pointer, &at.to_string()),
            }
        }
        if let Some(member) = member {
            add_segment(&mut pointer, member);
        }
        self.faults.push(Fault { pointer, detail });
    }

    /// Notes what is wrong; an error where that is enough of it.
    fn wrong<E: Error>(&mut self, detail: String) -> Result<Val, E> {
        self.wrong_at(None, detail)
    }

    fn wrong_at<E: Error>(&mut self, member: Option<&str>, detail: String) -> Result<Val, E> {
        self.fault_at(member, detail);
        if self.faults.len() < MOST_FAULTS { Ok(NOTHING) } else { Err(self.stop()) }
    }

    fn stop<E: Error>(&mut self) -> E {
        self.stopped = true;
        E::custom("no more of it is read")
    }

    /// Takes memory, before it is used.
    fn take<E: Error>(&mut self, bytes: usize) -> Result<(), E> {
        self.used = self.used.saturating_add(bytes);
        if self.used as u64 > self.most {
            let most = self.most.saturating_mul(COPIES);
            self.path.clear();
            self.fault(format!("takes more than {most} bytes of memory as arguments (host_memory_bytes)"));
            return Err(self.stop());
        }
        Ok(())
    }
}

/// Reads one value.
struct Of<'r, 't> {
    what: What<'t>,
    reader: &'r mut Reader<'t>,
}

impl<'de> DeserializeSeed<'de> for Of<'_, '_> {
    type Value = Val;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Val, D::Error> {
        self.reader.take(size_of::<Val>())?;
        match self.what {
            What::Value(Type::Option(_)) => deserializer.deserialize_option(self),
            _ => deserializer.deserialize_any(self),
        }
    }
}

impl<'t> Of<'_, 't> {
    fn mismatch<E: Error>(self) -> Result<Val, E> {
        let detail = expected(self.what);
        self.reader.wrong(detail)
    }

    fn number<E: Error>(self, number: i128) -> Result<Val, E> {
        let What::Value(Type::Integer(kind)) = self.what else { return self.mismatch() };
        match integer(*kind, number) {
            Some(value) => Ok(value),
            None => self.mismatch(),
        }
    }

    /// The one member of an object that names a case: which case, and its value. `None`: there is no such one
    /// member.
    fn case<'de, A: MapAccess<'de>>(
        &mut self,
        map: &mut A,
        find: impl Fn(&str) -> Option<(&'t str, Option<&'t Type>)>,
    ) -> Result<Option<(&'t str, Option<Val>)>, A::Error> {
        let mut case = None;
        let mut members = 0;
        while let Some(found) = map.next_key_seed(Key(&find, PhantomData))? {
            members += 1;
            let Some((name, ty)) = found.filter(|_| members == 1) else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            self.reader.path.push(Step::Member(name));
            let value = match ty {
                Some(ty) => {
                    self.reader.take(ALLOCATION)?;
                    Some(map.next_value_seed(Of { what: What::Value(ty), reader: self.reader })?)
                }
                None => {
                    if map.next_value::<Option<IgnoredAny>>()?.is_some() {
                        self.reader.wrong("must be null".to_owned())?;
                    }
                    None
                }
            };
            self.reader.path.pop();
            case = Some((name, value));
        }
        Ok(case.filter(|_| members == 1))
    }

    fn record<'de, A: MapAccess<'de>>(self, mut map: A, names: &'t Names, types: &'t [Type]) -> Result<Val, A::Error> {
        let reader = self.reader;
        reader.take(names.len() * (size_of::<String>() + ALLOCATION) + names.bytes())?;
        let mut values: Vec<Option<Val>> = vec![None; names.len()];
        let find = |name: &str| names.place(name).ok_or_else(|| name.to_owned());
        while let Some(found) = map.next_key_seed(Key(find, PhantomData))? {
            let known = found.as_ref().ok().and_then(|at| Some((*at, types.get(*at)?, values.get_mut(*at)?)));
            let Some((at, ty, value)) = known else {
                let unknown = found.err().unwrap_or_default();
                reader.wrong_at(Some(&unknown), format!("is unknown; there are: {}", names.joined()))?;
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            reader.path.push(Step::Member(names.get(at)));
            if value.is_some() {
                reader.wrong("is there twice".to_owned())?;
                map.next_value::<IgnoredAny>()?;
            } else {
                *value = Some(map.next_value_seed(Of { what: What::Value(ty), reader })?);
            }
            reader.path.pop();
        }
        let mut fields = Vec::with_capacity(names.len());
        for ((name, ty), value) in names.iter().zip(types).zip(values) {
            let value = match (value, ty) {
                (Some(value), _) => value,
                (None, Type::Option(_)) => {
                    reader.take(size_of::<Val>())?;
                    Val::Option(None)
                }
                (None, _) => reader.wrong_at(Some(name), "is missing".to_owned())?,
            };
            fields.push((name.to_owned(), value));
        }
        Ok(Val::Record(fields))
    }

    fn list<'de, A: SeqAccess<'de>>(self, mut seq: A, ty: &'t Type) -> Result<Val, A::Error> {
        let reader = self.reader;
        let mut items = Vec::new();
        reader.path.push(Step::Item(0));
        while let Some(item) = seq.next_element_seed(Of { what: What::Value(ty), reader })? {
            items.push(item);
            if let Some(last) = reader.path.last_mut() {
                *last = Step::Item(items.len());
            }
        }
        reader.path.pop();
        items.shrink_to_fit();
        Ok(Val::List(items))
    }

    fn tuple<'de, A: SeqAccess<'de>>(self, mut seq: A, types: &'t [Type]) -> Result<Val, A::Error> {
        let Of { what, reader } = self;
        let mut items = Vec::with_capacity(types.len());
        for (at, ty) in types.iter().enumerate() {
            reader.path.push(Step::Item(at));
            let item = seq.next_element_seed(Of { what: What::Value(ty), reader })?;
            reader.path.pop();
            match item {
                Some(item) => items.push(item),
                None => return reader.wrong(expected(what)),
            }
        }
        if seq.next_element::<IgnoredAny>()?.is_some() {
            while seq.next_element::<IgnoredAny>()?.is_some() {}
            return reader.wrong(expected(what));
        }
        Ok(Val::Tuple(items))
    }

    fn flags<'de, A: SeqAccess<'de>>(self, mut seq: A, names: &'t Names) -> Result<Val, A::Error> {
        let reader = self.reader;
        let mut set = vec![false; names.len()];
        let mut at = 0;
        reader.path.push(Step::Item(0));
        while let Some(flag) = seq.next_element_seed(Of { what: What::Flag(names), reader })? {
            if let Val::Enum(name) = flag
                && let Some(is_set) = names.place(&name).and_then(|place| set.get_mut(place))
                && std::mem::replace(is_set, true)
            {
                reader.wrong(format!("{name} is there twice"))?;
            }
            at += 1;
            if let Some(last) = reader.path.last_mut() {
                *last = Step::Item(at);
            }
        }
        reader.path.pop();
        let set = names.iter().zip(set).filter(|(_, is_set)| *is_set);
        Ok(Val::Flags(set.map(|(name, _)| name.to_owned()).collect()))
    }
}

impl<'de> Visitor<'de> for Of<'_, '_> {
    type Value = Val;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&expected(self.what))
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Val, E> {
        if let What::Value(Type::Bool) = self.what { Ok(Val::Bool(value)) } else { self.mismatch() }
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Val, E> {
        match self.what {
            What::Value(Type::F32 | Type::F64) => self.visit_f64(value as f64),
            _ => self.number(value.into()),
        }
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Val, E> {
        match self.what {
            What::Value(Type::F32 | Type::F64) => self.visit_f64(value as f64),
            _ => self.number(value.into()),
        }
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Val, E> {
        match self.what {
            What::Value(Type::F64) => Ok(Val::Float64(value)),
            What::Value(Type::F32) if (value as f32).is_finite() => Ok(Val::Float32(value as f32)),
            // As in JSON Schema: 1.0 is a whole number.
            What::Value(Type::Integer(_)) if value.fract() == 0.0 && value.abs() < EXACT => self.number(value as i128),
            _ => self.mismatch(),
        }
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Val, E> {
        let named = |names: &Names| names.place(text).map(|at| names.get(at).to_owned());
        let value = match self.what {
            What::Value(Type::String) => {
                self.reader.take(text.len() + ALLOCATION)?;
                Some(Val::String(text.to_owned()))
            }
            What::Value(Type::Char) => {
                let mut chars = text.chars();
                chars.next().filter(|_| chars.next().is_none()).map(Val::Char)
            }
            What::Value(Type::Integer(kind)) if kind.is_wide() => {
                let digits = text.strip_prefix('-').unwrap_or(text);
                let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
                text.parse().ok().filter(|_| is_number).and_then(|number| integer(*kind, number))
            }
            What::Value(Type::Bytes) => {
                self.reader.take((text.len() / 4 * 3).saturating_mul(size_of::<Val>()))?;
                let bytes = STANDARD.decode(text).ok();
                bytes.map(|bytes| Val::List(bytes.into_iter().map(Val::U8).collect()))
            }
            What::Value(Type::Enum(names)) => {
                self.reader.take(ALLOCATION + text.len())?;
                named(names).map(Val::Enum)
            }
            What::Flag(names) => {
                self.reader.take(ALLOCATION + text.len())?;
                named(names).map(Val::Enum)
            }
            What::Value(Type::Variant(names, types)) => {
                self.reader.take(ALLOCATION + text.len())?;
                let bare = names.place(text).is_some_and(|at| matches!(types.get(at), Some(None)));
                named(names).filter(|_| bare).map(|name| Val::Variant(name, None))
            }
            _ => None,
        };
        match value {
            Some(value) => Ok(value),
            None => self.mismatch(),
        }
    }

    fn visit_unit<E: Error>(self) -> Result<Val, E> {
        if let What::Value(Type::Option(_)) = self.what { Ok(Val::Option(None)) } else { self.mismatch() }
    }

    fn visit_none<E: Error>(self) -> Result<Val, E> {
        self.visit_unit()
    }

    fn visit_some<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Val, D::Error> {
        let What::Value(Type::Option(inner)) = self.what else { return deserializer.deserialize_any(self) };
        self.reader.take(ALLOCATION)?;
        let what = if let Type::Option(_) = **inner { What::Some(inner) } else { What::Value(inner) };
        let value = Of { what, reader: self.reader }.deserialize(deserializer)?;
        Ok(Val::Option(Some(Box::new(value))))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Val, A::Error> {
        match self.what {
            What::Value(Type::List(ty)) => self.list(seq, ty),
            What::Value(Type::Tuple(types)) => self.tuple(seq, types),
            What::Value(Type::Flags(names)) => self.flags(seq, names),
            _ => {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                self.mismatch()
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<Val, A::Error> {
        let boxed = |value: Option<Val>| value.map(Box::new);
        let case = match self.what {
            What::Value(Type::Record(names, types)) => return self.record(map, names, types),
            What::Value(Type::Variant(names, types)) => {
                self.reader.take(names.bytes().min(64) + ALLOCATION)?;
                let find = |name: &str| {
                    let at = names.place(name)?;
                    // A case without a value is written as its name alone.
                    Some((names.get(at), Some(types.get(at)?.as_ref()?)))
                };
                let case = self.case(&mut map, find)?;
                case.map(|(name, value)| Val::Variant(name.to_owned(), boxed(value)))
            }
            What::Value(Type::Result(ok, err)) => {
                let find = |name: &str| match name {
                    "ok" => Some(("ok", ok.as_deref())),
                    "err" => Some(("err", err.as_deref())),
                    _ => None,
                };
                let case = self.case(&mut map, find)?;
                case.map(|(name, value)| Val::Result(if name == "ok" { Ok(boxed(value)) } else { Err(boxed(value)) }))
            }
            What::Some(ty) => {
                let case = self.case(&mut map, |name| (name == "some").then_some(("some", Some(ty))))?;
                case.and_then(|(_, value)| value)
            }
            _ => {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                None
            }
        };
        match case {
            Some(value) => Ok(value),
            None => self.mismatch(),
        }
    }
}

/// Reads a member's name without keeping it.
struct Key<F, T>(F, PhantomData<T>);

impl<'de, F: Fn(&str) -> T, T> DeserializeSeed<'de> for Key<F, T> {
    type Value = T;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<T, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<F: Fn(&str) -> T, T> Visitor<'_> for Key<F, T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<T, E> {
        Ok(self.0(name))
    }
}

fn integer(kind: Integer, number: i128) -> Option<Val> {
    Some(match kind {
        Integer::S8 => Val::S8(number.try_into().ok()?),
        Integer::U8 => Val::U8(number.try_into().ok()?),
        Integer::S16 => Val::S16(number.try_into().ok()?),
        Integer::U16 => Val::U16(number.try_into().ok()?),
        Integer::S32 => Val::S32(number.try_into().ok()?),
        Integer::U32 => Val::U32(number.try_into().ok()?),
        Integer::S64 => Val::S64(number.try_into().ok()?),
        Integer::U64 => Val::U64(number.try_into().ok()?),
    })
}
