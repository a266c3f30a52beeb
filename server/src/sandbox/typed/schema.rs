//! JSON Schema (draft 2020-12) of what a function takes and gives.

use serde_json::{Map, Value, json};

use super::signature::{Names, Returns, Signature, Type};

/// Which draft it is.
const DRAFT: &str = "https://json-schema.org/draft/2020-12/schema";

/// The schema of a function's parameters.
pub(super) fn of_input(signature: &Signature) -> Value {
    root(of(&signature.params, Way::In))
}

/// The schema of the output of a task that completes.
pub(super) fn of_output(signature: &Signature) -> Value {
    root(match &signature.returns {
        Returns::Nothing | Returns::Result(None, _) => json!({"type": "null"}),
        Returns::Value(ty) | Returns::Result(Some(ty), _) => of(ty, Way::Out),
    })
}

fn root(mut schema: Value) -> Value {
    if let Some(members) = schema.as_object_mut() {
        members.insert("$schema".into(), DRAFT.into());
    }
    schema
}

/// What is read may be written in more ways than what is written.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    In,
    Out,
}

fn of(ty: &Type, way: Way) -> Value {
    let null = || json!({"type": "null"});
    match ty {
        Type::Bool => json!({"type": "boolean"}),
        Type::Integer(kind) => {
            let (least, most) = kind.range();
            // Both are numbers of 64 bits, one signed and one not.
            let bound = |number: i128| u64::try_from(number).map_or_else(|_| json!(number as i64), |it| json!(it));
            let number = json!({"type": "integer", "minimum": bound(least), "maximum": bound(most)});
            match way {
                Way::In if kind.is_wide() => {
                    let digits = if least < 0 { "^-?[0-9]+$" } else { "^[0-9]+$" };
                    json!({"anyOf": [number, {"type": "string", "pattern": digits}]})
                }
                _ => number,
            }
        }
        Type::F32 | Type::F64 => json!({"type": "number"}),
        Type::Char => json!({"type": "string", "minLength": 1, "maxLength": 1}),
        Type::String => json!({"type": "string"}),
        Type::Bytes => json!({"type": "string", "contentEncoding": "base64"}),
        Type::List(ty) => json!({"type": "array", "items": of(ty, way)}),
        Type::Tuple(types) => {
            let items: Vec<Value> = types.iter().map(|ty| of(ty, way)).collect();
            let length = items.len();
            json!({"type": "array", "prefixItems": items, "items": false, "minItems": length, "maxItems": length})
        }
        Type::Record(names, types) => {
            let fields = || names.iter().zip(types);
            let required = fields().filter(|(_, ty)| way == Way::Out || !matches!(ty, Type::Option(_)));
            let required: Vec<&str> = required.map(|(name, _)| name).collect();
            let properties: Map<String, Value> = fields().map(|(name, ty)| (name.to_owned(), of(ty, way))).collect();
            object(properties, required)
        }
        Type::Variant(names, types) => {
            let bare = names.iter().zip(types).filter(|(_, ty)| ty.is_none());
            let bare: Vec<&str> = bare.map(|(name, _)| name).collect();
            let cases = names.iter().zip(types);
            let mut any: Vec<Value> = cases.filter_map(|(name, ty)| Some(case(name, of(ty.as_ref()?, way)))).collect();
            if !bare.is_empty() {
                any.insert(0, json!({"enum": bare}));
            }
            json!({"oneOf": any})
        }
        Type::Enum(names) => json!({"enum": list(names)}),
        Type::Flags(names) => json!({"type": "array", "items": {"enum": list(names)}, "uniqueItems": true}),
        Type::Option(ty) => {
            let inner = match **ty {
                Type::Option(_) => case("some", of(ty, way)),
                _ => of(ty, way),
            };
            json!({"anyOf": [inner, {"type": "null"}]})
        }
        Type::Result(ok, err) => {
            let side = |ty: &Option<Box<Type>>| ty.as_deref().map_or_else(null, |ty| of(ty, way));
            json!({"oneOf": [case("ok", side(ok)), case("err", side(err))]})
        }
    }
}

fn list(names: &Names) -> Vec<&str> {
    names.iter().collect()
}

/// An object with that one member.
fn case(name: &str, value: Value) -> Value {
    object(Map::from_iter([(name.to_owned(), value)]), vec![name])
}

fn object(properties: Map<String, Value>, required: Vec<&str>) -> Value {
    json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false})
}
