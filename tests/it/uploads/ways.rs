//! Each way to be a task, uploaded: it runs, goes back to the version before, and goes.

use serde_json::{Value, json};

use super::{patch, task_type, upload};
use crate::support::guests::GUESTS;
use crate::support::{guest, server, shared_server};

#[test]
fn each_way_to_be_a_task_is_uploaded_run_rolled_back_and_deleted() {
    let server = server(&[]);
    let client = &server.client;
    let image = json!({"url": "a", "width": 3});
    let ways: [(&str, &str, Value, Value); 5] = [
        ("task", guest("output"), json!({"bytes": 5}), json!("xxx")),
        ("blocking-task", guest("echo-blocking"), json!([1]), json!([1])),
        ("command", guest("cat"), json!({"a": 1}), json!({"a": 1})),
        ("command", guest("cat-module"), json!({"a": 1}), json!({"a": 1})),
        ("typed", guest("typed-resize"), image, json!("a?w=3")),
    ];
    for (kind, program, input, output) in ways {
        let first = GUESTS.iter().find(|(name, _)| *name == program).unwrap().1.to_vec();
        // A section that nobody reads.
        let second = [&first[..], &[0, 3, 1, b'v', 2]].concat();
        let name = "uploaded";
        let one = upload(client, name, &first);
        let read = task_type(client, name);
        assert_eq!((&read["kind"], &read["state"]), (&json!(kind), &json!("ready")), "{program}: {read:#}");
        let body = json!({"task_type": name, "input": input});
        let run = || {
            let task = client.run(&body);
            assert_eq!((&task["status"], &task["output"]), (&json!("Completed"), &output), "{program}: {task:#}");
            task["component"].clone()
        };
        assert_eq!(run(), one);
        let two = upload(client, name, &second);
        assert_eq!(run(), two);
        patch(client, name, &json!({"version": one})).expect(200);
        assert_eq!(run(), one);
        let path = |version: &Value| format!("/task-types/{name}/versions/{}", version.as_str().unwrap());
        assert_eq!(client.get(&path(&two)).expect(200).body, second);
        client.delete("/task-types/uploaded").expect(200);
        client.get("/task-types/uploaded").problem(404);
        client.post_task(&body.to_string()).problem(422);
    }
}

/// Names are for backtraces alone: a module whose names cannot be read runs without them.
#[test]
fn a_module_with_names_that_cannot_be_read() {
    let server = shared_server();
    let mut module = GUESTS.iter().find(|(name, _)| *name == guest("cat-module")).unwrap().1.to_vec();
    // A custom section `name`: the names of functions (1), of which there are 127 in two bytes.
    module.extend([0, 8, 4]);
    module.extend(b"name");
    module.extend([1, 1, 127]);
    upload(&server.client, "bad-names", &module);
    assert_eq!(server.client.output(&json!({"task_type": "bad-names", "input": {"a": 1}})), json!({"a": 1}));
}
