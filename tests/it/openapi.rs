//! What is sent and answered is as the OpenAPI document says.

use serde_json::{Value, json};

use crate::support::{Answer, guest, server};

/// Where a schema of the document is, and what has to meet it.
fn fits(document: &Value, schema: &Value, value: &Value, what: &str) {
    // So that what the document refers to is found.
    let whole = json!({"components": document["components"], "allOf": [schema]});
    let validator = jsonschema::draft202012::new(&whole).unwrap_or_else(|error| panic!("{what}: {error}"));
    let faults: Vec<String> =
        validator.iter_errors(value).map(|error| format!("{}: {error}", error.instance_path())).collect();
    assert!(faults.is_empty(), "{what}: {faults:#?}\nin {value:#}");
}

fn operation<'d>(document: &'d Value, method: &str, path: &str) -> &'d Value {
    let operation = &document["paths"][path][method];
    assert!(operation.is_object(), "{method} {path} is not in the document");
    operation
}

#[test]
fn answers_and_bodies_are_as_the_document_says() {
    let setup = crate::support::server::Setup::new(&[]);
    let operator = setup.make_key("operator", "admin", &[]);
    setup.make_tenant("a");
    let key = setup.make_key("a", "admin", &[]);
    let server = setup.start();
    let (client, operator) = (server.client.with_key(&key), server.client.with_key(&operator));
    let document = client.get("/openapi.json").expect(200).json();

    let answered = |method: &str, path: &str, answer: Answer, status: u16| {
        let schema =
            &operation(&document, method, path)["responses"][status.to_string()]["content"]["application/json"];
        assert!(schema["schema"].is_object(), "{method} {path} {status} has no schema");
        let value = answer.expect(status).json();
        fits(&document, &schema["schema"], &value, &format!("the {status} of {method} {path}"));
        value
    };
    let sent = |method: &str, path: &str, media_type: &str, body: &Value| {
        let schema = &operation(&document, method, path)["requestBody"]["content"][media_type]["schema"];
        fits(&document, schema, body, &format!("the body of {method} {path}"));
    };

    let task = json!({"task_type": "echo", "input": {"a": 1}, "labels": {"of": "x"}, "limits": {"cpu_ms": 500}});
    sent("post", "/task", "application/json", &task);
    let ended = answered("post", "/task", client.post_task_and_wait(&task.to_string(), "wait=30"), 200);
    let id = ended["id"].as_str().unwrap();
    answered("post", "/task", client.post_task(&task.to_string()), 202);
    let failing = client.run(&json!({"task_type": guest("trap")}));
    let failed = failing["id"].as_str().unwrap();
    for id in [id, failed] {
        answered("get", "/task/{id}", client.get(&format!("/task/{id}")), 200);
        answered("get", "/task/{id}/status", client.get(&format!("/task/{id}/status")), 200);
        answered("get", "/task/{id}/attempts", client.get(&format!("/task/{id}/attempts")), 200);
        answered("get", "/task/{id}/logs", client.get(&format!("/task/{id}/logs")), 200);
    }
    answered("get", "/tasks", client.get("/tasks"), 200);
    answered("post", "/task/{id}/retry", client.post(&format!("/task/{failed}/retry")), 202);
    client.wait_for_end(failed);
    answered("delete", "/task/{id}", client.delete(&format!("/task/{failed}")), 200);

    let json = [("content-type", "application/json")];
    let many = json!([task, {"task_type": "none"}]);
    answered("post", "/tasks", client.send("POST", "/tasks", &json, Some(many.to_string().as_bytes())), 200);
    let tried = json!({"input": 1});
    sent("post", "/task-types/{name}/test", "application/json", &tried);
    let tried = client.send("POST", "/task-types/echo/test", &json, Some(tried.to_string().as_bytes()));
    answered("post", "/task-types/{name}/test", tried, 200);
    answered("get", "/task-types", client.get("/task-types"), 200);
    answered("get", "/task-types/{name}", client.get("/task-types/echo"), 200);

    client.send("PUT", "/objects/a", &[], Some(b"bytes")).expect(201);
    let objects = answered("get", "/objects", client.get("/objects"), 200);
    let described = &document["components"]["schemas"]["ListedObject"]["properties"];
    assert!(objects["objects"][0].as_object().unwrap().keys().all(|name| described[name].is_object()), "{described:#}");

    let schedule = json!({"cron": "@daily", "task": {"task_type": "echo"}, "overlap": "skip", "catch_up": "one"});
    sent("put", "/schedules/{name}", "application/json", &schedule);
    let put = client.send("PUT", "/schedules/daily", &json, Some(schedule.to_string().as_bytes()));
    answered("put", "/schedules/{name}", put, 201);
    answered("get", "/schedules/{name}", client.get("/schedules/daily"), 200);
    answered("get", "/schedules", client.get("/schedules"), 200);

    answered("get", "/tenant", client.get("/tenant"), 200);
    let used = answered("get", "/tenant/usage", client.get("/tenant/usage"), 200);
    assert!(!used["days"].as_array().unwrap().is_empty());
    answered("get", "/keys", client.get("/keys"), 200);
    answered("get", "/tenants", operator.get("/tenants"), 200);
    answered("get", "/tenants/{tenant}/usage", operator.get("/tenants/a/usage"), 200);
    answered("get", "/audit", operator.get("/audit"), 200);
    let filter = json!({"status": "Completed"});
    let bulk = client.send("POST", "/tasks/delete", &json, Some(filter.to_string().as_bytes()));
    answered("post", "/tasks/delete", bulk, 202);
    answered("get", "/operations", client.get("/operations"), 200);
}

/// Each schema means one thing: what the task and the tenant used is not the same.
#[test]
fn receipts_are_described() {
    let server = server(&[]);
    let document = server.client.get("/openapi.json").expect(200).json();
    let receipt = server.client.run(&json!({"task_type": "echo"}))["usage"].clone();
    let described = &document["components"]["schemas"]["Usage"]["properties"];
    for name in receipt.as_object().unwrap().keys() {
        assert!(described[name].is_object(), "{name} is not described: {described:#}");
    }
}
