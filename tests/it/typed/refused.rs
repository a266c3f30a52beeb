//! What is refused: inputs before there is a task, and components that are called by no one function.

use std::fs;

use serde_json::{Value, json};

use super::{count, everything, faults, with};
use crate::support::server::Setup;
use crate::support::{guest, server, temp_dir};

const JSON: (&str, &str) = ("content-type", "application/json");
const WASM: (&str, &str) = ("content-type", "application/wasm");

#[test]
fn a_wrong_input_is_refused_where_it_is_wrong_and_makes_no_task() {
    let server = server(&[]);
    let client = &server.client;
    let name = guest("typed-echo");
    let post = |input: &Value| faults(client.post_task(&with(name, input).to_string()));
    for (field, value, place) in [
        ("a-bool", json!(1), ""),
        ("an-s8", json!(128), ""),
        ("a-u8", json!(-1), ""),
        ("a-u16", json!(1.5), ""),
        ("an-s64", json!("9223372036854775808"), ""),
        ("a-u64", json!(1e30), ""),
        ("an-f32", json!(1e300), ""),
        ("an-f64", json!("1"), ""),
        ("a-char", json!("ab"), ""),
        ("a-string", json!(null), ""),
        ("bytes", json!("?"), ""),
        ("strings", json!(["a", 1]), "/1"),
        ("a-tuple", json!([1]), ""),
        ("a-shape", json!({"line": [{"x": 1}, {"x": "a"}]}), "/line/1/x"),
        ("a-shape", json!("circle"), ""),
        ("a-color", json!("blue"), ""),
        ("some-rights", json!(["read", "read"]), "/1"),
        ("an-option", json!(1), ""),
        ("options", json!([null, 1]), "/1"),
        ("results", json!([{"ok": 1}, {"ok": "a"}]), "/1/ok"),
        ("bare", json!({}), ""),
    ] {
        let mut input = json!({"everything": everything()});
        input["everything"][field] = value.clone();
        assert_eq!(post(&input), [format!("#/input/everything/{field}{place}")], "{field}: {value}");
    }
    let mut missing = everything();
    missing.as_object_mut().unwrap().remove("a-char");
    missing["more"] = json!([]);
    assert_eq!(post(&json!({"everything": missing})), ["#/input/everything/more", "#/input/everything/a-char"]);
    assert_eq!(post(&Value::Null), ["#/input/everything"]);
    assert_eq!(post(&json!([1])), ["#/input"]);
    assert_eq!(faults(client.post_task(&json!({"task_type": name}).to_string())), ["#/input/everything"]);
    // JSON that nothing can hold, or hold as arguments.
    let huge = r#"{"task_type":"typed-resize","input":{"url":"a","width":1e999}}"#;
    assert_eq!(faults(client.post_task(huge)), ["#/input/width"]);
    let mut large = with(name, &json!({"everything": everything()}));
    large["input"]["everything"]["bytes"] = json!("AAAA".repeat(10_000));
    large["limits"] = json!({"host_memory_bytes": 100_000});
    assert_eq!(faults(client.post_task(&large.to_string())), ["#/input"]);
    assert_eq!(count(client, name) + count(client, "typed-resize"), 0);
    large["limits"] = json!({});
    assert_eq!(client.run(&large)["status"], "Completed");
}

#[test]
fn each_of_many_is_checked_and_so_are_schedules_and_trials() {
    let server = server(&[]);
    let client = &server.client;
    let name = guest("typed-resize");
    let (good, bad) = (with(name, &json!({"url": "a", "width": 1})), with(name, &json!({"url": 1, "width": -1})));
    let many = json!([good, bad, good]).to_string();
    let results = client.send("POST", "/tasks", &[JSON], Some(many.as_bytes())).expect(200).json();
    let statuses: Vec<_> = results["results"].as_array().unwrap().iter().map(|result| &result["status"]).collect();
    assert_eq!(statuses, [202, 422, 202]);
    let errors = &results["results"][1]["problem"]["errors"];
    assert_eq!((&errors[0]["pointer"], &errors[1]["pointer"]), (&json!("#/input/url"), &json!("#/input/width")));
    assert_eq!(count(client, name), 2);

    let put = |task: &Value| {
        let body = json!({"cron": "0 0 1 1 *", "time_zone": "UTC", "task": task}).to_string();
        client.send("PUT", "/schedules/resize", &[JSON], Some(body.as_bytes()))
    };
    assert_eq!(faults(put(&bad)), ["#/task/input/url", "#/task/input/width"]);
    client.get("/schedules/resize").problem(404);
    put(&good).expect(201);

    let test = |input: Value| {
        let body = json!({"input": input}).to_string();
        client.send("POST", &format!("/task-types/{name}/test"), &[JSON], Some(body.as_bytes()))
    };
    assert_eq!(faults(test(json!({"url": "a"}))), ["#/input/width"]);
    assert_eq!(test(json!({"url": "a", "width": 2})).expect(200).json()["output"], "a?w=2");
}

/// A component whose functions trap, each with a parameter of a type.
fn component(types: &str, functions: &[(&str, &str)]) -> Vec<u8> {
    let lifted: String = functions
        .iter()
        .map(|(name, ty)| {
            format!(
                r#"(func (export "{name}") (param "p" {ty})
                    (canon lift (core func $i "f") (memory (core memory $i "m")) (realloc (core func $i "r"))))"#
            )
        })
        .collect();
    wat::parse_str(format!(
        r#"(component {types}
            (core module $m (memory (export "m") 1) (func (export "f") (param i32) unreachable)
                (func (export "r") (param i32 i32 i32 i32) (result i32) (i32.const 64)))
            (core instance $i (instantiate $m))
            {lifted})"#
    ))
    .unwrap()
}

#[test]
fn components_that_no_one_function_calls() {
    let resource = r#"(type $r' (resource (rep i32))) (export $r "r" (type $r'))"#;
    let mut many = String::from("(type $t0 (tuple u8 u8))");
    for at in 1..12 {
        many += &format!("(type $t{at} (tuple $t{} $t{}))", at - 1, at - 1);
    }
    let mut deep = String::from("(type $t0 (tuple u8))");
    for at in 1..33 {
        deep += &format!("(type $t{at} (tuple $t{}))", at - 1);
    }
    let cases: String = (0..2000).map(|at| format!(r#""c{at}" "#)).collect();
    let wide = format!(r#"(type $e' (enum {cases})) (export $e "e" (type $e'))"#);
    let kinds = |last: &str| {
        (0..650).map(|at| format!("\"{}{at}\" ", "n".repeat(100))).collect::<String>() + &format!("{last:?}")
    };
    let long = format!(r#"(type $e' (enum {})) (export $e "e" (type $e'))"#, kinds("last"));
    let refused = [
        ("none", wat::parse_str("(component)").unwrap(), vec!["exports no function"]),
        ("two", component("", &[("one", "u32"), ("other", "u32")]), vec!["exactly one", "one, other"]),
        (
            "resources",
            component(&format!("{resource} (type $o (own $r))"), &[("make", "$o")]),
            vec!["make", "a resource"],
        ),
        (
            "borrowed",
            component(&format!("{resource} (type $b (borrow $r))"), &[("make", "$b")]),
            vec!["make", "a resource"],
        ),
        ("streams", component("(type $s (stream u8))", &[("make", "$s")]), vec!["make", "a stream"]),
        ("futures", component("(type $f (future u8))", &[("make", "$f")]), vec!["make", "a future"]),
        ("large", component(&many, &[("make", "$t11")]), vec!["make", "more than 2000"]),
        ("deep", component(&deep, &[("make", "$t32")]), vec!["make", "32 deep"]),
        ("wide", component(&wide, &[("make", "$e")]), vec!["make", "more than 2000"]),
        ("long", component(&long, &[("make", "$e")]), vec!["make", "names of more than 65536 bytes"]),
        ("no-run", component("", &[("run", "u32"), ("other", "u32")]), vec!["exactly one", "run, other"]),
    ];
    let directory = temp_dir();
    for (name, bytes, _) in &refused {
        fs::write(directory.path().join(format!("{name}.wasm")), bytes).unwrap();
    }
    fs::write(directory.path().join("bool.wasm"), component("", &[("make", "bool")])).unwrap();
    let server = Setup::new(&[]).with_components(Some(directory.path())).start();
    let client = &server.client;
    let read = |name: &str| client.get(&format!("/task-types/{name}")).expect(200).json();
    for (name, bytes, reasons) in &refused {
        let told = read(name);
        assert_eq!((&told["state"], &told["input_schema"]), (&json!("failed"), &Value::Null), "{name}");
        let upload = client.send("PUT", "/task-types/upload", &[WASM], Some(bytes)).problem(422);
        for reason in reasons {
            assert!(told["reason"].as_str().unwrap().contains(reason), "{name}: {} has no {reason}", told["reason"]);
            assert!(upload["errors"].to_string().contains(reason), "{name}: {upload} has no {reason}");
        }
    }
    client.get("/task-types/upload").problem(404);
    assert_eq!(client.failure(&with("bool", &json!({"p": true})))["error"]["kind"], "trap");
}
