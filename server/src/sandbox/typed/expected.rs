//! What should have been where something else is, in words.

use super::signature::{Names, Type};

/// What is read.
#[derive(Clone, Copy)]
pub(super) enum What<'t> {
    Value(&'t Type),
    /// `{"some": …}`, where a null inside would mean the same as one outside.
    Some(&'t Type),
    Flag(&'t Names),
}

/// What should have been there.
pub(super) fn expected(what: What<'_>) -> String {
    let ty = match what {
        What::Some(_) => return r#"must be null or {"some": …}"#.to_owned(),
        What::Flag(names) => return format!("must be one of: {}", names.joined()),
        What::Value(ty) => ty,
    };
    match ty {
        Type::Bool => "must be true or false".to_owned(),
        Type::Integer(kind) => {
            let (least, most) = kind.range();
            let or = if kind.is_wide() { ", or its digits as a string" } else { "" };
            format!("must be a whole number between {least} and {most}{or}")
        }
        Type::F32 => "must be a number that 32 bits can hold".to_owned(),
        Type::F64 => "must be a number".to_owned(),
        Type::Char => "must be a string of one character".to_owned(),
        Type::String => "must be a string".to_owned(),
        Type::Bytes => "must be bytes as a string in base64".to_owned(),
        Type::List(_) => "must be an array".to_owned(),
        Type::Tuple(types) => format!("must be an array of {} items", types.len()),
        Type::Record(..) => "must be an object".to_owned(),
        Type::Variant(names, _) => {
            format!("must be the name of a case or an object with one as its only member: {}", names.joined())
        }
        Type::Enum(names) => format!("must be one of: {}", names.joined()),
        Type::Flags(names) => format!("must be an array of some of: {}", names.joined()),
        Type::Option(_) => r#"must be null or {"some": …}"#.to_owned(),
        Type::Result(..) => r#"must be {"ok": …} or {"err": …}"#.to_owned(),
    }
}
