//! What must not be sent: the right problem, and nothing done.

mod components;
mod table;

use std::collections::HashSet;

use serde_json::{Value, json};

use crate::support::{Client, guest, server};
use table::{Bad, bad_requests};

/// Each bad request gets its problem, which the API's own document announces, and changes nothing.
#[test]
fn bad_requests_are_told_what_is_wrong() {
    let server =
        server(&["--default-input-bytes", "100000", "--max-input-bytes", "100000", "--max-object-bytes", "200000"]);
    let client = &server.client;
    let ended = client.run(&json!({"task_type": "echo"}))["id"].as_str().unwrap().to_owned();
    let document = client.get("/openapi.json").expect(200).json();
    let list = || client.get("/tasks?limit=1000").expect(200).text();
    let objects = || client.get("/objects").expect(200).text();
    let before = (list(), objects());
    let mut types = HashSet::new();
    let mut wrong = Vec::new();
    for Bad { method, path, headers, body, status, pointer } in bad_requests(&ended) {
        let shown = format!("{method} {path} {headers:?} {:.120}", String::from_utf8_lossy(&body));
        let sent = if body.is_empty() && method != "POST" { None } else { Some(body.as_slice()) };
        let answer = match client.try_send(method, &path, &headers, sent) {
            Ok(answer) => answer,
            // Also who sends too much is to get the answer, and not a connection that breaks.
            Err(error) => {
                wrong.push(format!("{shown}: {error} instead of {status}"));
                continue;
            }
        };
        if answer.status != status {
            wrong.push(format!(
                "{shown}: {} instead of {status}: {:.300}",
                answer.status,
                String::from_utf8_lossy(&answer.body)
            ));
            continue;
        }
        if status == 405 {
            assert!(answer.header("allow").is_some_and(|allow| !allow.is_empty()), "{shown}: {answer:?}");
        } else if (status != 404 || path.contains("0000-")) && !is_documented(&document, method, &path, status) {
            wrong.push(format!("{shown}: {status} is not in the document"));
        }
        let problem = answer.problem(status);
        match pointer {
            Some(pointer) => {
                let errors = problem["errors"].as_array().unwrap_or_else(|| panic!("{shown}: {problem}"));
                let pointers: Vec<_> = errors.iter().map(|error| error["pointer"].as_str().unwrap()).collect();
                if pointers != [pointer] {
                    wrong.push(format!("{shown}: {problem} instead of {pointer}"));
                    continue;
                }
                assert!(errors[0]["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{shown}: {problem}");
            }
            None => assert!(problem.get("errors").is_none_or(|errors| errors == &json!([])), "{shown}: {problem}"),
        }
        types.insert(problem["type"].as_str().unwrap().to_owned());
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!((list(), objects()), before, "nothing was created or changed");

    // Each type has a page that explains it.
    assert!(types.len() >= 7, "{types:?}");
    for of_type in types {
        let page = client.get(&of_type).expect(200);
        assert!(page.header("content-type").is_some_and(|media| media.starts_with("text/html")), "{of_type}");
        assert!(page.body.len() > 100, "{of_type}");
    }
    client.get("/problems/nonesuch").problem(404);
}

/// Whether the OpenAPI document names that answer.
fn is_documented(document: &Value, method: &str, path: &str, status: u16) -> bool {
    let path: Vec<&str> = path.split('?').next().unwrap().split('/').collect();
    let matches = |template: &str| {
        let template: Vec<&str> = template.split('/').collect();
        template.len() == path.len()
            && template.iter().zip(&path).all(|(part, found)| part.starts_with('{') || part == found)
    };
    let paths = document["paths"].as_object().unwrap();
    let operation = paths.iter().find(|(template, _)| matches(template)).map(|(_, item)| &item[method.to_lowercase()]);
    operation.is_some_and(|operation| operation["responses"].get(status.to_string()).is_some())
}

/// RFC 9457 and the contract: type, title, status and detail, whatever is wrong.
#[test]
fn every_problem_has_all_members() {
    let server = server(&[]);
    let client = &server.client;
    let task = client.failure(&json!({"task_type": guest("trap")}));
    let id = task["id"].as_str().unwrap();
    let problems = [
        client.get("/nowhere").problem(404),
        client.get("/task/01890000-0000-7000-8000-000000000000").problem(404),
        client.send("PUT", "/tasks", &[], Some(b"")).problem(405),
        client.post(&format!("/task/{id}/cancel")).problem(409),
        client.get(&format!("/task/{id}/result")).problem(409),
        client.get("/tasks?cursor=x").problem(400),
        client.post_task("{").problem(400),
        client.post_task(r#"{"task_type":"io","x":1}"#).problem(422),
    ];
    for problem in problems {
        assert!(problem["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{problem}");
    }
}

/// The document describes the paths there are, as OpenAPI 3.1, and there is a page to browse it.
#[test]
fn the_document() {
    let server = server(&[]);
    let client = &server.client;
    let document = client.get("/openapi.json").expect(200).json();
    assert!(document["openapi"].as_str().is_some_and(|version| version.starts_with("3.1")), "{}", document["openapi"]);
    for (path, methods) in [
        ("/task", &["post"] as &[&str]),
        ("/tasks", &["get"]),
        ("/task/{id}", &["get", "delete"]),
        ("/task/{id}/status", &["get"]),
        ("/task/{id}/result", &["get"]),
        ("/task/{id}/logs", &["get"]),
        ("/task/{id}/cancel", &["post"]),
        ("/objects", &["get"]),
        ("/objects/{name}", &["get", "head", "put", "delete"]),
        ("/task-types", &["get"]),
        ("/task-types/{name}", &["get"]),
        ("/healthz", &["get"]),
        ("/readyz", &["get"]),
        ("/metrics", &["get"]),
    ] {
        for method in methods {
            let operation = &document["paths"][path][method];
            assert!(operation["responses"].is_object(), "{method} {path} is not in the document");
        }
    }
    // Every reference leads somewhere.
    let text = document.to_string();
    for part in text.split("\"$ref\":\"#").skip(1) {
        let pointer = part.split('"').next().unwrap();
        assert!(document.pointer(pointer).is_some(), "{pointer} is not in the document");
    }
    let docs = client.get("/docs");
    let page = match docs.status {
        200 => docs,
        _ => client.get(docs.header("location").unwrap()).expect(200),
    };
    assert!(page.text().contains("<html"), "a page");
}

#[test]
fn operations() {
    let server = server(&[]);
    let client = &server.client;
    client.get("/healthz").expect(200);
    client.get("/readyz").expect(200);
    let metrics = client.get("/metrics").expect(200);
    assert!(metrics.header("content-type").is_some_and(|media| media.starts_with("text/plain")), "{metrics:?}");
    for line in metrics.text().lines().filter(|line| !line.starts_with('#')) {
        let value = line.rsplit(' ').next().unwrap();
        assert!(value.parse::<f64>().is_ok() && line.starts_with("taskcell_"), "{line}");
    }
}

/// What is left of a client's connection after a bad request serves a good one.
#[test]
fn a_bad_request_spoils_nothing() {
    let server = server(&[]);
    let client: &Client = &server.client;
    for _ in 0..50 {
        client.post_task("{").problem(400);
        client.post_task(r#"{"task_type":"nonesuch"}"#).problem(422);
        client.get("/task/x").problem(404);
    }
    assert_eq!(client.output(&json!({"task_type": "echo", "input": 1})), 1);
    let log = server.log();
    assert!(!log.contains("ERROR"), "a client's faults are none of the server's: {log}");
}
