//! What a function takes and gives.

use std::collections::HashMap;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use wasmtime::component::types;

/// How deep types may lie inside of each other.
pub(super) const MOST_DEPTH: usize = 32;

/// Most types, fields and cases of one function, each counted as often as it is met: types refer to each other,
/// so that a few bytes can stand for millions.
pub(super) const MOST_PARTS: usize = 2_000;

/// All their names together, in bytes.
pub(super) const MOST_NAME_BYTES: usize = 64 << 10;

/// Of names that could have been there, so many bytes are told at most.
const MOST_TOLD_BYTES: usize = 400;

/// What a function takes and gives.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Signature {
    /// Its parameters, as a record.
    pub(super) params: Type,
    /// Its result.
    pub(super) returns: Returns,
}

/// What a function gives.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum Returns {
    /// Nothing.
    Nothing,
    /// A value.
    Value(Type),
    /// A value, or one that says why there is none.
    Result(Option<Type>, Option<Type>),
}

/// The type of a value.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum Type {
    Bool,
    Integer(Integer),
    F32,
    F64,
    Char,
    String,
    /// `list<u8>`
    Bytes,
    List(Box<Type>),
    Tuple(Vec<Type>),
    Record(Names, Vec<Type>),
    Variant(Names, Vec<Option<Type>>),
    Enum(Names),
    Flags(Names),
    Option(Box<Type>),
    Result(Option<Box<Type>>, Option<Box<Type>>),
}

/// The type of a whole number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Integer {
    S8,
    U8,
    S16,
    U16,
    S32,
    U32,
    S64,
    U64,
}

impl Integer {
    /// The least and the greatest.
    pub(super) fn range(self) -> (i128, i128) {
        match self {
            Integer::S8 => (i8::MIN.into(), i8::MAX.into()),
            Integer::U8 => (u8::MIN.into(), u8::MAX.into()),
            Integer::S16 => (i16::MIN.into(), i16::MAX.into()),
            Integer::U16 => (u16::MIN.into(), u16::MAX.into()),
            Integer::S32 => (i32::MIN.into(), i32::MAX.into()),
            Integer::U32 => (u32::MIN.into(), u32::MAX.into()),
            Integer::S64 => (i64::MIN.into(), i64::MAX.into()),
            Integer::U64 => (u64::MIN.into(), u64::MAX.into()),
        }
    }

    /// Whether a number of it may be more than a double holds exactly.
    pub(super) fn is_wide(self) -> bool {
        matches!(self, Integer::S64 | Integer::U64)
    }
}

/// The names of fields or cases, in their order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "Vec<String>", into = "Vec<String>")]
pub(super) struct Names {
    list: Vec<String>,
    places: HashMap<String, usize>,
    bytes: usize,
}

impl Names {
    pub(super) fn new(list: Vec<String>) -> Names {
        let places = list.iter().enumerate().map(|(at, name)| (name.clone(), at)).collect();
        Names { bytes: list.iter().map(String::len).sum(), list, places }
    }

    /// Which it is.
    pub(super) fn place(&self, name: &str) -> Option<usize> {
        self.places.get(name).copied()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &str> {
        self.list.iter().map(String::as_str)
    }

    pub(super) fn get(&self, at: usize) -> &str {
        self.list.get(at).map_or("", String::as_str)
    }

    pub(super) fn len(&self) -> usize {
        self.list.len()
    }

    /// Bytes of all names together.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// All of them, to be told; of many, the first ones.
    pub(super) fn joined(&self) -> String {
        let mut joined = String::new();
        for name in &self.list {
            if joined.len() + name.len() > MOST_TOLD_BYTES {
                joined.push('…');
                break;
            }
            joined.push_str(name);
            joined.push_str(", ");
        }
        joined.trim_end_matches(", ").to_owned()
    }
}

impl From<Vec<String>> for Names {
    fn from(list: Vec<String>) -> Names {
        Names::new(list)
    }
}

impl From<Names> for Vec<String> {
    fn from(names: Names) -> Vec<String> {
        names.list
    }
}

impl Signature {
    /// What a function of a component takes and gives; an error where JSON cannot say it.
    pub(super) fn of(function: &types::ComponentFunc) -> anyhow::Result<Signature> {
        let mut reader = Reader { parts: 0, name_bytes: 0 };
        let mut fields = Vec::new();
        for (name, ty) in function.params() {
            fields.push((name.to_owned(), reader.read(&ty, 1).with_context(|| format!("its parameter {name}"))?));
        }
        let params = reader.record(fields)?;
        let returns = match function.results().next() {
            None => Returns::Nothing,
            Some(types::Type::Result(result)) => {
                let mut side = |ty: Option<types::Type>| ty.map(|ty| reader.read(&ty, 1)).transpose();
                Returns::Result(
                    side(result.ok()).context("its result")?,
                    side(result.err()).context("the error of its result")?,
                )
            }
            Some(ty) => Returns::Value(reader.read(&ty, 1).context("its result")?),
        };
        Ok(Signature { params, returns })
    }
}

struct Reader {
    parts: usize,
    name_bytes: usize,
}

impl Reader {
    fn read(&mut self, ty: &types::Type, depth: usize) -> anyhow::Result<Type> {
        self.count(1)?;
        if depth > MOST_DEPTH {
            bail!("has types more than {MOST_DEPTH} deep inside of each other");
        }
        let mut inner = |ty: &types::Type| self.read(ty, depth + 1);
        let mut boxed = |ty: Option<types::Type>| ty.map(|ty| inner(&ty).map(Box::new)).transpose();
        Ok(match ty {
            types::Type::Bool => Type::Bool,
            types::Type::S8 => Type::Integer(Integer::S8),
            types::Type::U8 => Type::Integer(Integer::U8),
            types::Type::S16 => Type::Integer(Integer::S16),
            types::Type::U16 => Type::Integer(Integer::U16),
            types::Type::S32 => Type::Integer(Integer::S32),
            types::Type::U32 => Type::Integer(Integer::U32),
            types::Type::S64 => Type::Integer(Integer::S64),
            types::Type::U64 => Type::Integer(Integer::U64),
            types::Type::Float32 => Type::F32,
            types::Type::Float64 => Type::F64,
            types::Type::Char => Type::Char,
            types::Type::String => Type::String,
            types::Type::List(list) => match inner(&list.ty())? {
                Type::Integer(Integer::U8) => Type::Bytes,
                ty => Type::List(Box::new(ty)),
            },
            types::Type::Tuple(tuple) => Type::Tuple(tuple.types().map(|ty| inner(&ty)).collect::<Result<_, _>>()?),
            types::Type::Option(option) => Type::Option(Box::new(inner(&option.ty())?)),
            types::Type::Result(result) => Type::Result(boxed(result.ok())?, boxed(result.err())?),
            types::Type::Record(record) => {
                let fields = record.fields().map(|field| Ok((field.name.to_owned(), inner(&field.ty)?)));
                let fields = fields.collect::<anyhow::Result<_>>()?;
                self.record(fields)?
            }
            types::Type::Variant(variant) => {
                let cases = variant
                    .cases()
                    .map(|case| Ok((case.name.to_owned(), case.ty.map(|ty| self.read(&ty, depth + 1)).transpose()?)));
                let (names, types) = cases.collect::<anyhow::Result<Vec<_>>>()?.into_iter().unzip();
                Type::Variant(self.names(names)?, types)
            }
            types::Type::Enum(ty) => Type::Enum(self.names(ty.names().map(str::to_owned).collect())?),
            types::Type::Flags(ty) => Type::Flags(self.names(ty.names().map(str::to_owned).collect())?),
            types::Type::Own(_) | types::Type::Borrow(_) => bail!("has a resource, which JSON cannot say"),
            types::Type::Stream(_) => bail!("has a stream, which JSON cannot say"),
            types::Type::Future(_) => bail!("has a future, which JSON cannot say"),
            types::Type::ErrorContext => bail!("has an error context, which JSON cannot say"),
            types::Type::Map(_) => bail!("has a map, which is not taken here"),
            types::Type::FixedLengthList(_) => bail!("has a list of fixed length, which is not taken here"),
        })
    }

    fn record(&mut self, fields: Vec<(String, Type)>) -> anyhow::Result<Type> {
        let (names, types) = fields.into_iter().unzip();
        Ok(Type::Record(self.names(names)?, types))
    }

    fn names(&mut self, list: Vec<String>) -> anyhow::Result<Names> {
        self.count(list.len())?;
        let names = Names::new(list);
        self.name_bytes += names.bytes();
        if self.name_bytes > MOST_NAME_BYTES {
            bail!("has names of more than {MOST_NAME_BYTES} bytes");
        }
        Ok(names)
    }

    fn count(&mut self, parts: usize) -> anyhow::Result<()> {
        self.parts += parts;
        if self.parts > MOST_PARTS {
            bail!("has more than {MOST_PARTS} types, fields and cases");
        }
        Ok(())
    }
}

impl Type {
    /// Whether it is `taskcell:task/types.failure`, by its shape.
    pub(super) fn is_failure(&self) -> bool {
        let Type::Variant(names, types) = self else { return false };
        if names.iter().ne(["permanent", "transient"]) {
            return false;
        }
        let [Some(Type::String), Some(Type::Record(fields, types))] = types.as_slice() else { return false };
        let after = Type::Option(Box::new(Type::Integer(Integer::U32)));
        fields.iter().eq(["message", "after-ms"]) && types.as_slice() == [Type::String, after]
    }
}
