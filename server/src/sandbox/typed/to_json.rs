//! What a function gave, as JSON text.

use std::io::{self, Write};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::ser::{Error, Serialize, SerializeMap, SerializeSeq, Serializer};
use wasmtime::component::Val;

use super::signature::{Integer, Names, Type};

/// Why there is no text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Unwritable {
    /// It would have more bytes than allowed.
    TooLarge,
    /// JSON has nothing for it; what.
    NoJson(String),
}

/// The JSON of a value, of at most `most` bytes.
pub(super) fn write(ty: &Type, value: &Val, most: u64) -> Result<String, Unwritable> {
    let mut text = Limited { text: Vec::new(), most };
    match serde_json::to_writer(&mut text, &Json(ty, value)) {
        Ok(()) => String::from_utf8(text.text).map_err(|_| Unwritable::NoJson("it is no text".to_owned())),
        Err(error) if error.is_io() => Err(Unwritable::TooLarge),
        Err(error) => Err(Unwritable::NoJson(error.to_string())),
    }
}

/// Text that stops growing at its limit.
struct Limited {
    text: Vec<u8>,
    most: u64,
}

impl Write for Limited {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        if self.text.len() as u64 + piece.len() as u64 > self.most {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.text.extend_from_slice(piece);
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A value of a type.
struct Json<'a>(&'a Type, &'a Val);

impl Serialize for Json<'_> {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        let Json(ty, value) = *self;
        match (ty, value) {
            (Type::Bool, Val::Bool(value)) => out.serialize_bool(*value),
            (Type::Integer(Integer::S8), Val::S8(value)) => out.serialize_i8(*value),
            (Type::Integer(Integer::U8), Val::U8(value)) => out.serialize_u8(*value),
            (Type::Integer(Integer::S16), Val::S16(value)) => out.serialize_i16(*value),
            (Type::Integer(Integer::U16), Val::U16(value)) => out.serialize_u16(*value),
            (Type::Integer(Integer::S32), Val::S32(value)) => out.serialize_i32(*value),
            (Type::Integer(Integer::U32), Val::U32(value)) => out.serialize_u32(*value),
            (Type::Integer(Integer::S64), Val::S64(value)) => out.serialize_i64(*value),
            (Type::Integer(Integer::U64), Val::U64(value)) => out.serialize_u64(*value),
            (Type::F32, Val::Float32(value)) if value.is_finite() => out.serialize_f32(*value),
            (Type::F64, Val::Float64(value)) if value.is_finite() => out.serialize_f64(*value),
            (Type::F32, Val::Float32(_)) | (Type::F64, Val::Float64(_)) => {
                Err(S::Error::custom("it has a number that is infinite or none (NaN)"))
            }
            (Type::Char, Val::Char(value)) => out.serialize_char(*value),
            (Type::String, Val::String(value)) => out.serialize_str(value),
            (Type::Bytes, Val::List(items)) => {
                let bytes: Vec<u8> =
                    items.iter().filter_map(|item| if let Val::U8(byte) = item { Some(*byte) } else { None }).collect();
                out.serialize_str(&STANDARD.encode(bytes))
            }
            (Type::List(ty), Val::List(items)) => out.collect_seq(items.iter().map(|item| Json(ty, item))),
            (Type::Tuple(types), Val::Tuple(items)) => {
                out.collect_seq(types.iter().zip(items).map(|(ty, item)| Json(ty, item)))
            }
            (Type::Record(_, types), Val::Record(fields)) => {
                out.collect_map(types.iter().zip(fields).map(|(ty, (name, value))| (name, Json(ty, value))))
            }
            (Type::Variant(names, types), Val::Variant(name, value)) => match (payload(names, types, name), value) {
                (Some(ty), Some(value)) => case(out, name, Some(&Json(ty, value))),
                _ => out.serialize_str(name),
            },
            (Type::Enum(_), Val::Enum(name)) => out.serialize_str(name),
            (Type::Flags(_), Val::Flags(set)) => {
                let mut flags = out.serialize_seq(Some(set.len()))?;
                set.iter().try_for_each(|flag| flags.serialize_element(flag))?;
                flags.end()
            }
            (Type::Option(_), Val::Option(None)) => out.serialize_unit(),
            (Type::Option(ty), Val::Option(Some(value))) => match **ty {
                Type::Option(_) => case(out, "some", Some(&Json(ty, value))),
                _ => Json(ty, value).serialize(out),
            },
            (Type::Result(ok, err), Val::Result(result)) => {
                let (name, ty, value) = match result {
                    Ok(value) => ("ok", ok, value),
                    Err(value) => ("err", err, value),
                };
                let value = ty.as_deref().zip(value.as_deref()).map(|(ty, value)| Json(ty, value));
                case(out, name, value.as_ref())
            }
            // The engine checks types.
            _ => Err(S::Error::custom("it is of another type than its function says")),
        }
    }
}

fn payload<'a>(names: &Names, types: &'a [Option<Type>], name: &str) -> Option<&'a Type> {
    types.get(names.place(name)?)?.as_ref()
}

fn case<S: Serializer>(out: S, name: &str, value: Option<&Json<'_>>) -> Result<S::Ok, S::Error> {
    let mut map = out.serialize_map(Some(1))?;
    map.serialize_entry(name, &value)?;
    map.end()
}
