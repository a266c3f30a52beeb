//! The mapping, type by type.

use serde_json::{Value, json};
use wasmtime::Engine;
use wasmtime::component::{Component, Val};

use super::signature::{Integer, Names, Returns, Signature, Type};
use super::to_json::Unwritable;
use super::{failure, from_json, only_function, output, schema, to_json};
use crate::host::task_world::taskcell::task::types::{Failure, Retry};
use crate::input_schema::InputSchema;
use crate::limits::Limits;
use crate::pointer::MOST_FAULTS;
use crate::task::ErrorKind;

const ENOUGH: u64 = 1 << 20;

fn names(names: &[&str]) -> Names {
    Names::new(names.iter().map(|name| (*name).to_owned()).collect())
}

fn option(ty: Type) -> Type {
    Type::Option(Box::new(ty))
}

fn list(ty: Type) -> Type {
    Type::List(Box::new(ty))
}

fn point() -> Type {
    Type::Record(names(&["x", "y"]), vec![Type::Integer(Integer::S32), option(Type::Integer(Integer::S32))])
}

/// Reads a value as the parameter `p`, and writes it again.
fn through(ty: Type, json: &str) -> Result<String, Vec<(String, String)>> {
    let params = Type::Record(names(&["p"]), vec![ty]);
    let Type::Record(_, types) = &params else { unreachable!() };
    match from_json::read(&params, &format!(r#"{{"p":{json}}}"#), ENOUGH) {
        Ok(arguments) => Ok(to_json::write(&types[0], &arguments.values[0], ENOUGH).unwrap()),
        Err(faults) => Err(faults.into_iter().map(|fault| (fault.pointer, fault.detail)).collect()),
    }
}

/// Each type with what is read as it and how that is written, and with what is refused and where.
type Row = (fn() -> Type, &'static [(&'static str, &'static str)], &'static [(&'static str, &'static str)]);

const TABLE: &[Row] = &[
    (|| Type::Bool, &[("true", "true"), ("false", "false")], &[("0", ""), ("null", ""), ("\"true\"", "")]),
    (
        || Type::Integer(Integer::U8),
        &[("0", "0"), ("255", "255"), ("1.0", "1"), ("-0", "0")],
        &[("-1", ""), ("256", ""), ("1.5", ""), ("\"1\"", ""), ("1e3", "")],
    ),
    (|| Type::Integer(Integer::S8), &[("-128", "-128"), ("127", "127")], &[("128", ""), ("-129", "")]),
    (|| Type::Integer(Integer::S16), &[("-32768", "-32768")], &[("32768", "")]),
    (|| Type::Integer(Integer::U16), &[("65535", "65535")], &[("65536", "")]),
    (|| Type::Integer(Integer::S32), &[("-2147483648", "-2147483648")], &[("2147483648", "")]),
    (|| Type::Integer(Integer::U32), &[("4294967295", "4294967295"), ("1e3", "1000")], &[("4294967296", "")]),
    (
        || Type::Integer(Integer::S64),
        &[
            ("-9223372036854775808", "-9223372036854775808"),
            ("9007199254740993", "9007199254740993"),
            ("\"-9223372036854775808\"", "-9223372036854775808"),
            ("\"7\"", "7"),
        ],
        &[
            ("9223372036854775808", ""),
            ("\"9223372036854775808\"", ""),
            ("\"+1\"", ""),
            ("\"\"", ""),
            ("\"1.0\"", ""),
            // It cannot be told from its neighbour.
            ("9007199254740993.0", ""),
        ],
    ),
    (
        || Type::Integer(Integer::U64),
        &[("18446744073709551615", "18446744073709551615"), ("\"18446744073709551615\"", "18446744073709551615")],
        &[("18446744073709551616", ""), ("\"-1\"", ""), ("-1", ""), ("1e17", "")],
    ),
    (|| Type::F32, &[("1.5", "1.5"), ("3", "3.0"), ("-0.0", "-0.0"), ("0.1", "0.1")], &[("1e39", ""), ("\"1\"", "")]),
    (
        || Type::F64,
        &[("0.1", "0.1"), ("1", "1.0"), ("1.7976931348623157e308", "1.7976931348623157e+308")],
        &[("null", ""), ("\"NaN\"", ""), ("1e999", "")],
    ),
    (|| Type::Char, &[("\"é\"", "\"é\""), ("\"\\u0000\"", "\"\\u0000\"")], &[("\"\"", ""), ("\"ab\"", ""), ("97", "")]),
    (
        || Type::String,
        &[("\"a\\n\\u20ac\"", "\"a\\n€\""), ("\"\"", "\"\"")],
        &[("1", ""), ("null", ""), ("[]", ""), ("\"\\ud800\"", "")],
    ),
    (
        || Type::Bytes,
        &[("\"\"", "\"\""), ("\"AP8=\"", "\"AP8=\"")],
        &[("\"AP8\"", ""), ("\"AP9=\"", ""), ("[0,255]", ""), ("\"__8=\"", "")],
    ),
    (
        || list(Type::Integer(Integer::S8)),
        &[("[]", "[]"), ("[1,-1]", "[1,-1]")],
        &[("{}", ""), ("[1,\"a\",2]", "/1"), ("\"\"", "")],
    ),
    (|| list(list(Type::Bool)), &[("[[],[true]]", "[[],[true]]")], &[("[[],[true,0]]", "/1/1"), ("[[],true]", "/1")]),
    (
        || Type::Tuple(vec![Type::Bool, Type::String]),
        &[("[true,\"a\"]", "[true,\"a\"]")],
        &[("[true]", ""), ("[true,\"a\",1]", ""), ("[1,\"a\"]", "/0"), ("{}", "")],
    ),
    (
        point,
        &[
            ("{\"x\":1,\"y\":2}", "{\"x\":1,\"y\":2}"),
            ("{\"y\":null,\"x\":1}", "{\"x\":1,\"y\":null}"),
            ("{\"x\":1}", "{\"x\":1,\"y\":null}"),
        ],
        &[
            ("{}", "/x"),
            ("{\"x\":null}", "/x"),
            ("{\"x\":1,\"z\":[{}]}", "/z"),
            ("{\"x\":1,\"a/b~c d\":1}", "/a~1b~0c%20d"),
            ("[1]", ""),
        ],
    ),
    (
        || Type::Variant(names(&["none", "at", "maybe"]), vec![None, Some(point()), Some(option(Type::Bool))]),
        &[
            ("\"none\"", "\"none\""),
            ("{\"at\":{\"x\":1}}", "{\"at\":{\"x\":1,\"y\":null}}"),
            ("{\"maybe\":null}", "{\"maybe\":null}"),
        ],
        &[
            ("\"at\"", ""),
            ("\"other\"", ""),
            ("{}", ""),
            ("{\"none\":null}", ""),
            ("{\"at\":{}}", "/at/x"),
            ("{\"at\":{\"x\":1},\"maybe\":null}", ""),
            ("{\"other\":{\"x\":[1]}}", ""),
            ("null", ""),
        ],
    ),
    (
        || Type::Enum(names(&["red", "dark-blue"])),
        &[("\"dark-blue\"", "\"dark-blue\"")],
        &[("\"blue\"", ""), ("0", "")],
    ),
    (
        || Type::Flags(names(&["read", "write", "run"])),
        &[("[]", "[]"), ("[\"run\",\"read\"]", "[\"read\",\"run\"]")],
        &[("[\"read\",\"read\"]", "/1"), ("[\"no\"]", "/0"), ("\"read\"", ""), ("[1]", "/0"), ("{\"read\":true}", "")],
    ),
    (|| option(Type::String), &[("null", "null"), ("\"a\"", "\"a\"")], &[("1", ""), ("{\"some\":\"a\"}", "")]),
    (
        || option(option(option(Type::Bool))),
        &[
            ("null", "null"),
            ("{\"some\":null}", "{\"some\":null}"),
            ("{\"some\":{\"some\":null}}", "{\"some\":{\"some\":null}}"),
            ("{\"some\":{\"some\":true}}", "{\"some\":{\"some\":true}}"),
        ],
        &[("true", ""), ("{}", ""), ("{\"some\":true}", "/some"), ("{\"some\":null,\"a\":1}", ""), ("[]", "")],
    ),
    (
        || Type::Result(Some(Box::new(Type::Bool)), None),
        &[("{\"ok\":true}", "{\"ok\":true}"), ("{\"err\":null}", "{\"err\":null}")],
        &[("true", ""), ("{\"ok\":1}", "/ok"), ("{\"err\":1}", "/err"), ("{}", ""), ("{\"ok\":true,\"err\":null}", "")],
    ),
];

#[test]
fn every_type_there_and_back() {
    for (ty, good, bad) in TABLE {
        for (json, expected) in *good {
            assert_eq!(through(ty(), json).as_deref(), Ok(*expected), "{json} as {:?}", ty());
        }
        for (json, place) in *bad {
            let faults = through(ty(), json).expect_err(json);
            assert_eq!(faults.len(), 1, "{json} as {:?}: {faults:?}", ty());
            assert_eq!(faults[0].0, format!("/p{place}"), "{json} as {:?}: {faults:?}", ty());
        }
    }
}

/// The schemas say the same as the code.
#[test]
fn the_schemas_are_true() {
    // What JSON Schema cannot say, or says with a format that is not checked.
    let beyond = [
        "\"9223372036854775808\"",
        "\"AP8\"",
        "\"AP9=\"",
        "\"__8=\"",
        "1e39",
        "1e999",
        "1e17",
        "9007199254740993.0",
        "\"\\ud800\"",
    ];
    for (ty, good, bad) in TABLE {
        let signature = Signature {
            params: Type::Record(names(&["p"]), vec![ty()]),
            returns: Returns::Result(Some(ty()), Some(Type::String)),
        };
        let validator = |schema: Value| {
            assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
            let schema = InputSchema::new(schema.to_string().into());
            assert_eq!(schema.fault(), None);
            schema
        };
        let (input, output) = (validator(schema::of_input(&signature)), validator(schema::of_output(&signature)));
        let wrapped = |text: &str| format!(r#"{{"p":{text}}}"#);
        for (json, written) in *good {
            assert_eq!(input.check(&wrapped(json)), Ok(()), "{json} as {:?}", ty());
            assert_eq!(output.check(written), Ok(()), "{written} as {:?}", ty());
        }
        for (json, _) in bad.iter().filter(|(json, _)| !beyond.contains(json)) {
            assert!(input.check(&wrapped(json)).is_err(), "{json} as {:?}", ty());
        }
    }
    let nothing = Signature { params: Type::Record(names(&[]), vec![]), returns: Returns::Nothing };
    assert_eq!(schema::of_output(&nothing)["type"], "null");
    assert_eq!(schema::of_input(&nothing)["properties"], json!({}));
}

#[test]
fn every_fault_has_its_place() {
    let params = Type::Record(names(&["a", "b", "c"]), vec![point(), list(point()), Type::Bool]);
    let faults = |text: &str| -> Vec<String> {
        from_json::read(&params, text, ENOUGH).unwrap_err().into_iter().map(|fault| fault.pointer).collect()
    };
    assert_eq!(
        faults(r#"{"a":{"x":"1","w":0},"b":[{"x":1},{"y":[]}],"d":{}}"#),
        ["/a/x", "/a/w", "/b/1/y", "/b/1/x", "/d", "/c"]
    );
    assert_eq!(faults("null"), ["/a", "/b", "/c"]);
    assert_eq!(faults("[]"), [""]);
    assert_eq!(faults(r#"{"a":{"x":1},"a":{"x":1},"b":[],"c":true}"#), ["/a"]);
    assert_eq!(faults(&format!(r#"{{"b":[{}0]}}"#, "0,".repeat(1000))).len(), MOST_FAULTS);
    let deep = format!(r#"{{"a":{{"x":1}},"b":[],"c":{}{}}}"#, "[".repeat(200), "]".repeat(200));
    assert_eq!(faults(&deep), ["/c"], "what is passed over may be as deep as it likes");
    let none = Type::Record(names(&["a"]), vec![option(Type::Bool)]);
    for text in ["null", " null ", "{}", r#"{"a":null}"#] {
        assert_eq!(from_json::read(&none, text, ENOUGH).unwrap().values, [Val::Option(None)]);
    }
}

/// What the arguments take is bounded, whatever the text is.
#[test]
fn memory() {
    let size = |params: Type, text: &str| from_json::read(&params, text, u64::MAX).unwrap().bytes;
    let one = |ty: Type| Type::Record(names(&["p"]), vec![ty]);
    let wide = || {
        let fields: Vec<String> = (0..500).map(|at| format!("field-{at}")).collect();
        Type::Record(Names::new(fields), (0..500).map(|_| option(Type::Bool)).collect())
    };
    let val = size_of::<Val>() as u64;
    for (ty, item, least) in [
        (list(Type::Bool), "true".to_owned(), val),
        (list(Type::String), "\"\"".to_owned(), val),
        (list(Type::String), format!("\"{}\"", "a".repeat(1000)), val + 1000),
        (list(wide()), "{}".to_owned(), 500 * (val + 24 + 7)),
        (list(option(Type::Bool)), "true".to_owned(), 2 * val),
        (list(Type::Enum(names(&["a"]))), "\"a\"".to_owned(), val + 1),
    ] {
        let text = format!(r#"{{"p":[{}]}}"#, vec![item.as_str(); 1000].join(","));
        let bytes = size(one(ty), &text);
        assert!(bytes >= 2 * 1000 * least && bytes < 6 * 1000 * (least + 100), "{item}: {bytes} for {least}");
    }
    let text = format!(r#"{{"p":"{}"}}"#, "AAAA".repeat(1000));
    assert!(size(one(Type::Bytes), &text) >= 2 * 3000 * val);
    let faults = from_json::read(&one(Type::Bytes), &text, 3000 * val).unwrap_err();
    assert_eq!((faults.len(), &*faults[0].pointer), (1, ""));
    assert!(faults[0].detail.contains("host_memory_bytes"), "{faults:?}");
}

#[test]
fn outputs() {
    let limits = Limits { output_bytes: 10, ..Limits::DEFAULT };
    let of = |returns: &Returns, value: Val| match output(returns, Some(&value), &limits) {
        Ok(Ok(text)) => Ok(text),
        Ok(Err(failure)) => Err((format!("{failure:?}"), None)),
        Err(bad) => Err((bad.message, Some(bad.kind))),
    };
    let text = Returns::Value(Type::String);
    assert_eq!(of(&text, Val::String("12345678".into())).as_deref(), Ok("\"12345678\""));
    assert_eq!(of(&text, Val::String("123456789".into())).unwrap_err().1, Some(ErrorKind::OutputTooLarge));
    let bytes = Returns::Value(Type::Bytes);
    assert_eq!(of(&bytes, Val::List(vec![Val::U8(0); 6])).as_deref(), Ok("\"AAAAAAAA\""));
    assert_eq!(of(&bytes, Val::List(vec![Val::U8(0); 7])).unwrap_err().1, Some(ErrorKind::OutputTooLarge));
    for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let floats = Returns::Value(list(Type::F64));
        let value = Val::List(vec![Val::Float64(1.0), Val::Float64(bad)]);
        assert_eq!(of(&floats, value).unwrap_err().1, Some(ErrorKind::InvalidOutput), "{bad}");
        let float = Returns::Value(Type::F32);
        assert_eq!(of(&float, Val::Float32(bad as f32)).unwrap_err().1, Some(ErrorKind::InvalidOutput), "{bad}");
    }
    let result = Returns::Result(None, Some(Type::String));
    assert_eq!(of(&result, Val::Result(Ok(None))).as_deref(), Ok("null"));
    let error = Val::Result(Err(Some(Box::new(Val::String("why".into())))));
    assert_eq!(of(&result, error).unwrap_err(), (format!("{:?}", Failure::Permanent("why".into())), None));
    assert_eq!(output(&Returns::Nothing, None, &limits).unwrap().unwrap(), "null");
    // A text that grows beyond its limit is never there as a whole.
    let lists = list(Type::Bool);
    let long = Val::List(vec![Val::Bool(true); 1000]);
    assert_eq!(to_json::write(&lists, &long, 4999), Err(Unwritable::TooLarge));
}

#[test]
fn errors_of_functions() {
    let retry = Type::Record(names(&["message", "after-ms"]), vec![Type::String, option(Type::Integer(Integer::U32))]);
    let contract = Type::Variant(names(&["permanent", "transient"]), vec![Some(Type::String), Some(retry)]);
    assert!(contract.is_failure());
    let boxed = |value: Val| Some(Box::new(value));
    let record = |after: Option<Val>| {
        Val::Record(vec![
            ("message".into(), Val::String("later".into())),
            ("after-ms".into(), Val::Option(after.map(Box::new))),
        ])
    };
    let told = |ty: &Type, value: Val| match failure(Some((ty, &value))) {
        Failure::Permanent(message) => (message, None),
        Failure::Transient(Retry { message, after_ms }) => (message, Some(after_ms)),
    };
    let transient = |after| Val::Variant("transient".into(), boxed(record(after)));
    assert_eq!(told(&contract, transient(None)), ("later".into(), Some(None)));
    assert_eq!(told(&contract, transient(Some(Val::U32(7)))), ("later".into(), Some(Some(7))));
    let permanent = Val::Variant("permanent".into(), boxed(Val::String("no".into())));
    assert_eq!(told(&contract, permanent), ("no".into(), None));
    // Another variant that has a case of that name is none of the contract's.
    let other = Type::Variant(names(&["transient"]), vec![Some(Type::String)]);
    assert!(!other.is_failure());
    let value = Val::Variant("transient".into(), boxed(Val::String("a".into())));
    assert_eq!(told(&other, value), (r#"{"transient":"a"}"#.into(), None));
    assert_eq!(told(&Type::F64, Val::Float64(f64::NAN)).1, None);
    assert!(matches!(failure(None), Failure::Permanent(_)));
}

fn signature(wat: &str) -> anyhow::Result<(String, Signature)> {
    let engine = Engine::new(wasmtime::Config::new().wasm_component_model_async(true)).unwrap();
    let component = Component::new(&engine, wat::parse_str(wat)?)?;
    let (name, function, _) = only_function(&engine, &component)?;
    Ok((name, Signature::of(&function)?))
}

/// A component with such a function, which traps.
fn with_function(types: &str, params: &str, result: &str, core: &str) -> String {
    format!(
        r#"(component
            {types}
            (core module $m (memory (export "m") 1)
                (func (export "f") {core} unreachable)
                (func (export "r") (param i32 i32 i32 i32) (result i32) unreachable))
            (core instance $i (instantiate $m))
            (func (export "do-it") {params} {result}
                (canon lift (core func $i "f") (memory (core memory $i "m")) (realloc (core func $i "r")))))"#
    )
}

#[test]
fn signatures() {
    let core = "(param i32 i32 i32)";
    let (name, signature_) =
        signature(&with_function("", r#"(param "url" string) (param "width" u32)"#, "", core)).unwrap();
    assert_eq!(name, "do-it");
    let params = Type::Record(names(&["url", "width"]), vec![Type::String, Type::Integer(Integer::U32)]);
    assert_eq!(signature_.params, params);
    assert!(matches!(signature_.returns, Returns::Nothing));

    let why = |wat: &str| format!("{:#}", signature(wat).map(|_| ()).unwrap_err());
    // Types that refer to each other twice: 2^12 of them, in some hundred bytes.
    let mut doubled = String::from("(type $t0 (tuple u8 u8))");
    for at in 1..12 {
        doubled += &format!("(type $t{at} (tuple $t{} $t{}))", at - 1, at - 1);
    }
    let wide = why(&with_function(&doubled, r#"(param "p" $t11)"#, "", "(param i32)"));
    assert!(wide.contains("its parameter p") && wide.contains("more than 2000"), "{wide}");
    let mut nested = String::from("(type $t0 (option u8))");
    for at in 1..40 {
        nested += &format!("(type $t{at} (list $t{}))", at - 1);
    }
    let deep = why(&with_function(&nested, r#"(param "p" $t39)"#, "", "(param i32 i32)"));
    assert!(deep.contains("deep"), "{deep}");
    // 2,000 parts at the most, and so long that it comes to more than all names may.
    let cases = |count: usize| {
        let name = "n".repeat(100);
        let cases: String = (0..count).map(|at| format!("\"{name}{at}\" ")).collect();
        with_function(
            &format!("(type $e' (enum {cases}))(export $e \"e\" (type $e'))"),
            r#"(param "p" $e)"#,
            "",
            "(param i32)",
        )
    };
    assert!(signature(&cases(600)).is_ok());
    let long = why(&cases(650));
    assert!(long.contains("names of more than 65536 bytes"), "{long}");
    assert!(why("(component)").contains("exports no function"));
}
