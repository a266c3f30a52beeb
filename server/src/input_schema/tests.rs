//! Schemas that are taken and not, and what is wrong with inputs.

use serde_json::json;

use super::*;

fn schema(schema: &Value) -> InputSchema {
    InputSchema::new(schema.to_string().into())
}

fn refused(value: &Value) -> (String, String) {
    let fault = schema(value).fault().unwrap_or_else(|| panic!("{value} is taken"));
    (fault.pointer, fault.detail)
}

#[test]
fn inputs_are_checked() {
    let schema = schema(&json!({
        "$schema": DRAFT,
        "$id": "https://example.com/a",
        "type": "object",
        "properties": {
            "width": {"$ref": "#/$defs/size"},
            "tags": {"type": "array", "items": {"type": "string", "pattern": r"^\w+$"}, "uniqueItems": true},
            "a/b": {"const": null},
        },
        "required": ["width"],
        "additionalProperties": false,
        "$defs": {"size": {"type": "integer", "minimum": 1, "maximum": 100}},
    }));
    assert_eq!(schema.fault(), None);
    let places = |input: Value| match schema.check(&input.to_string()) {
        Ok(()) => Vec::new(),
        Err(faults) => faults.into_iter().map(|fault| fault.pointer).collect(),
    };
    assert_eq!(places(json!({"width": 1, "tags": ["a"], "a/b": null})), [""; 0]);
    assert_eq!(places(json!({})), ["/width"]);
    assert_eq!(places(json!({"width": 0})), ["/width"]);
    assert_eq!(places(json!({"width": 1, "tags": ["a", "b c"]})), ["/tags/1"]);
    assert_eq!(places(json!({"width": 1, "a/b": 0})), ["/a~1b"]);
    assert_eq!(places(json!({"width": 1, "other": 0})), ["/other"]);
    for (of, input, expected) in [
        (json!({"additionalProperties": false}), json!({"a": 1, "b": {}}), vec!["/a", "/b"]),
        (json!({"properties": {"x": {"additionalProperties": false}}}), json!({"x": {"a": 1}}), vec!["/x/a"]),
        (json!({"propertyNames": {"maxLength": 2}}), json!({"long": 1, "ok": 2}), vec!["/long"]),
        (json!({"properties": {"a": false}}), json!({"a": 1}), vec!["/a"]),
        (
            json!({"properties": {"additionalProperties": false}}),
            json!({"additionalProperties": {"b": 1}}),
            vec!["/additionalProperties"],
        ),
    ] {
        let faults = super::tests::schema(&of).check(&input.to_string()).unwrap_err();
        assert_eq!(faults.iter().map(|fault| &*fault.pointer).collect::<Vec<_>>(), expected, "{of}");
    }
    assert_eq!(places(json!(null)), [""]);
    let many: Vec<Value> = (0..1000).map(Value::from).collect();
    assert_eq!(places(json!({"width": 1, "tags": many})).len(), MOST_FAULTS);
    let more: Vec<Value> = (0..20_000).map(Value::from).collect();
    assert_eq!(places(json!({"width": 1, "tags": more})), [""]);
    let secret = schema.check(&json!({"width": "a long text"}).to_string()).unwrap_err();
    assert!(!secret[0].detail.contains("long"), "{secret:?}");
    assert_eq!(schema.check("1e999").unwrap_err()[0].pointer, "", "JSON that this cannot hold");
    assert_eq!(schema.check(&"[".repeat(100_000)).unwrap_err().len(), 1);
}

#[test]
fn schemas_that_are_none() {
    for (value, pointer) in [
        (json!(1), ""),
        (json!([]), ""),
        (json!({"type": "no such"}), "/type"),
        (json!({"minimum": "1"}), "/minimum"),
        (json!({"pattern": "("}), ""),
        // Only the engine that backtracks has it.
        (json!({"pattern": r"(a)\1"}), ""),
        (json!({"pattern": "(?=a)"}), ""),
        (json!({"$schema": "http://json-schema.org/draft-07/schema#"}), "/$schema"),
        (json!({"properties": {"a": {"$schema": DRAFT}}}), "/properties/a/$schema"),
        (json!({"properties": {"a": {"$id": "b"}}}), "/properties/a/$id"),
        (json!({"unevaluatedProperties": false}), "/unevaluatedProperties"),
        (json!({"items": {"$dynamicRef": "#a"}}), "/items/$dynamicRef"),
        (json!({"$ref": "https://example.com/schema.json"}), "/$ref"),
        (json!({"items": {"$ref": "file:///etc/passwd"}}), "/items/$ref"),
        (json!({"items": {"$ref": "other.json"}}), "/items/$ref"),
        (json!({"items": {"$ref": "#name"}}), "/items/$ref"),
        (json!({"items": {"$ref": "#/$defs/none"}}), "/items/$ref"),
        (json!({"items": {"$ref": "#"}}), "/items/$ref"),
        (json!({"$ref": DRAFT}), "/$ref"),
        // What is wrong behind a reference is told where it is.
        (json!({"$ref": "#/$defs/a", "$defs": {"a": {"items": {"$ref": "#/$defs/a"}}}}), "/$defs/a/items/$ref"),
        (json!({"properties": {"x": {"$ref": "#/$defs/a~1b"}}, "$defs": {"a/b": {"$id": "x"}}}), "/$defs/a~1b/$id"),
    ] {
        let pointer = pointer.replace('$', "%24");
        let (found, detail) = refused(&value);
        assert!(!detail.is_empty());
        if pointer.is_empty() {
            continue;
        }
        assert_eq!(found, pointer, "{value}: {detail}");
    }
    assert!(InputSchema::new("{".into()).fault().is_some());
    let deep = format!("{}{}", r#"{"not":"#.repeat(300), "}".repeat(300));
    assert!(InputSchema::new(deep.into()).fault().is_some());
    for taken in [json!({}), json!(true), json!({"const": {"a": null}}), json!({"format": "email"})] {
        assert_eq!(schema(&taken).fault(), None, "{taken}");
    }
}

/// Small schemas that would take for ever, or all memory.
#[test]
fn schemas_that_mean_harm() {
    // Each refers to the next twice.
    let chain = |length: usize, of: &dyn Fn(String) -> Value| {
        let mut defs = serde_json::Map::new();
        for at in 0..length {
            defs.insert(format!("d{at}"), of(format!("#/$defs/d{}", at + 1)));
        }
        defs.insert(format!("d{length}"), json!({"type": "string"}));
        json!({"$ref": "#/$defs/d0", "$defs": defs})
    };
    let (_, detail) = refused(&chain(13, &|next| json!({"allOf": [{"$ref": next}, {"$ref": next}]})));
    assert!(detail.contains("values"), "{detail}");
    let (_, detail) = refused(&chain(1000, &|next| json!({"$ref": next})));
    assert!(detail.contains("deep"), "{detail}");
    let (_, detail) = refused(&json!({"$defs": {"a": {"items": {"$ref": "#/$defs/a"}}}, "$ref": "#/$defs/a"}));
    assert!(detail.contains("recursion"), "{detail}");
    let (_, detail) = refused(&json!({"pattern": "((a{100}){100}){100}"}));
    assert!(detail.contains("65536 bytes"), "{detail}");
    let patterns: Vec<Value> = (0..100).map(|at| json!({"pattern": format!("a{at}")})).collect();
    let (_, detail) = refused(&json!({"anyOf": patterns}));
    assert!(detail.contains("patterns"), "{detail}");

    // The deepest that is taken fits on a small stack, to be compiled and to be used.
    let deepest =
        (1..60).rev().map(|depth| (1..depth).fold(json!({"type": "string"}), |inner, _| json!({"not": inner})));
    let deepest: Vec<Value> = deepest
        .chain(
            (1..60).rev().map(|depth| (1..depth).fold(json!({"type": "string"}), |inner, _| json!({"allOf": [inner]}))),
        )
        .collect();
    let checked = std::thread::Builder::new().stack_size(1 << 20).spawn(move || {
        for value in deepest {
            let schema = schema(&value);
            if schema.fault().is_none() {
                let _ = schema.check("1");
            }
        }
    });
    checked.unwrap().join().unwrap();
}

#[test]
fn inputs_that_mean_harm() {
    let schema = schema(&json!({"items": {"anyOf": (0..400).map(|at| json!({"const": at})).collect::<Vec<_>>()}}));
    assert_eq!(schema.fault(), None);
    let input = |length: usize| format!("[{}0]", "0,".repeat(length));
    assert!(schema.check(&input(1000)).is_ok());
    let faults = schema.check(&input(500_000)).unwrap_err();
    assert!(faults[0].detail.contains("too much"), "{faults:?}");
    // Every object takes hundreds of bytes.
    let any = super::tests::schema(&json!({}));
    assert!(any.check(&format!("[{}0]", r#"{"a":0},"#.repeat(1000))).is_ok());
    assert!(any.check(&format!("[{}0]", r#"{"a":0},"#.repeat(200_000))).is_err());
}

/// Each bound takes what is at it, and nothing more.
#[test]
fn bounds() {
    let is_taken = |value: &Value| schema(value).fault().is_none();
    let items = |count: u64| json!({"enum": (0..count).collect::<Vec<_>>()});
    assert!(is_taken(&items(MOST_PARTS - 2)) && !is_taken(&items(MOST_PARTS - 1)));
    let patterns = |count: u64| json!({"anyOf": (0..count).map(|_| json!({"pattern": "a"})).collect::<Vec<_>>()});
    assert!(is_taken(&patterns(MOST_PATTERNS)) && !is_taken(&patterns(MOST_PATTERNS + 1)));
    let named = |count: u64| {
        let patterns = (0..count).map(|at| (format!("a{at}"), json!({}))).collect::<serde_json::Map<_, _>>();
        json!({"patternProperties": patterns})
    };
    assert!(is_taken(&named(MOST_PATTERNS)) && !is_taken(&named(MOST_PATTERNS + 1)));
    let deep = |depth: u64| (0..depth).fold(json!(true), |inner, _| json!({"not": inner}));
    assert!(is_taken(&deep(MOST_DEPTH)) && !is_taken(&deep(MOST_DEPTH + 1)));
    assert!(is_taken(&json!({"pattern": "a{100}"})) && !is_taken(&json!({"pattern": "(a{100}){100}"})));
    assert!(!is_taken(&json!({"patternProperties": {"(a{100}){100}": {}}})));
    let fractions = |count: usize| json!({"anyOf": vec![json!({"multipleOf": 0.7}); count]});
    assert!(is_taken(&fractions(40)) && !is_taken(&fractions(50)), "each is work");
    // What a pattern costs grows with the text.
    let pattern = schema(&json!({"pattern": "a"}));
    let text = |bytes: u64| format!("\"{}\"", "a".repeat(usize::try_from(bytes).unwrap()));
    let most = MOST_WORK / PATTERN_WORK;
    assert_eq!(pattern.check(&text(most - 10)), Ok(()));
    assert!(pattern.check(&text(most)).unwrap_err()[0].detail.contains("too much"));
    // Where every fault is told, and where only that there is one.
    let numbers = schema(&json!({"items": {"type": "string"}}));
    let input = |values: u64| format!("[{}0]", "0,".repeat(usize::try_from(values - 2).unwrap()));
    let most = MOST_WORK_FOR_FAULTS / numbers.compiled().as_ref().unwrap().parts;
    assert_eq!(numbers.check(&input(most)).unwrap_err().len(), MOST_FAULTS);
    assert_eq!(numbers.check(&input(most + 1)).unwrap_err().len(), 1);
}
