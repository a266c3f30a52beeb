//! Keys: who may do what. The calls are those that the OpenAPI document lists.

mod revoked;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;

use serde_json::{Value, json};

use crate::support::guests::component;
use crate::support::server::{Setup, refused, taskcell};
use crate::support::{Client, Server, guest, server, shared_server, wait_for};

const JSON: (&str, &str) = ("content-type", "application/json");
const ROLES: [&str; 5] = ["read", "submit", "operate", "deploy", "admin"];

/// A call of the OpenAPI document.
pub(crate) struct Call {
    pub(crate) method: String,
    pub(crate) path: String,
    operation: Value,
}

impl Call {
    /// The role that it needs; `None`: no key.
    fn role(&self) -> Option<usize> {
        let needed = &self.operation["security"][0]["key"][0];
        needed.as_str().map(|name| ROLES.iter().position(|role| *role == name).unwrap())
    }

    /// The role that it needs where nothing but one member is in the body, and which member that is.
    fn role_of(&self) -> Option<(&str, usize)> {
        let (member, name) = self.operation["x-role-of"].as_object()?.iter().next().unwrap();
        Some((member, ROLES.iter().position(|role| *role == name).unwrap()))
    }

    /// Whether keys of that tenant may use it, whatever their role.
    pub(crate) fn is_for(&self, tenant: &str) -> bool {
        let whose = if tenant == "operator" { "operator" } else { "tenant" };
        self.operation["x-keys-of"].as_array().unwrap().iter().any(|of| of == whose)
    }

    /// Sends it, about things that there are not: nothing is done by it.
    pub(crate) fn send(&self, client: &Client, tenant: &str) -> u16 {
        let path = self.path.replace("{tenant}", tenant).replace("{id}", "0199e0f4-0000-7000-8000-000000000000");
        let path = path.replace("{name}", "not-there").replace("{version}", &format!("sha256:{}", "0".repeat(64)));
        let body = (!matches!(&*self.method, "GET" | "HEAD" | "DELETE")).then_some(&b"{"[..]);
        // A stream would go on.
        client.send(&self.method, &path, &[JSON, ("last-event-id", "x")], body).status
    }
}

pub(crate) fn calls(client: &Client) -> Vec<Call> {
    let document = client.get("/openapi.json").expect(200).json();
    let mut calls = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            if matches!(&**method, "get" | "put" | "post" | "delete" | "patch" | "head") {
                calls.push(Call { method: method.to_uppercase(), path: path.clone(), operation: operation.clone() });
            }
        }
    }
    assert!(calls.len() > 40, "{}", calls.len());
    calls
}

/// A server with two tenants and a key of each role of both, and of the operator.
fn with_keys() -> (Server, BTreeMap<(&'static str, usize), String>) {
    let setup = Setup::new(&[]);
    setup.make_tenant("a");
    setup.make_tenant("b");
    let mut keys = BTreeMap::new();
    for tenant in ["a", "b", "operator"] {
        for (number, role) in ROLES.into_iter().enumerate() {
            keys.insert((tenant, number), setup.make_key(tenant, role, &[]));
        }
    }
    (setup.start(), keys)
}

/// What is promised of a call, said once more apart from the server's own rules: the role, and whose keys.
fn promised(method: &str, path: &str) -> Option<(&'static str, &'static [&'static str])> {
    let first = path.split('/').nth(1).unwrap();
    let keys_of: &[&str] = match first {
        "tenants" | "audit" | "metrics" => &["operator"],
        "task-types" if !path.ends_with("/test") => &["tenant", "operator"],
        _ => &["tenant"],
    };
    let role = match (method, first) {
        (_, "healthz" | "readyz" | "openapi.json" | "docs" | "problems") => return None,
        (_, "keys") => "admin",
        (_, "tenants") if path.contains("/keys") => "admin",
        (_, "secrets") => "deploy",
        ("GET" | "HEAD", _) => "read",
        (_, "tenants") => "admin",
        ("POST", "task" | "tasks") if matches!(path, "/task" | "/tasks") => "submit",
        (_, "task" | "tasks" | "schedules") => "operate",
        ("PUT" | "DELETE", "objects") => "submit",
        ("POST", "task-types") if path.ends_with("/test") => "submit",
        ("PUT" | "PATCH" | "DELETE", "task-types") => "deploy",
        _ => panic!("say here who may {method} {path}"),
    };
    Some((role, keys_of))
}

#[test]
fn every_call_is_for_whom_it_was_promised_to() {
    for call in calls(&shared_server().client) {
        let name = format!("{} {}", call.method, call.path);
        let said = call.role().map(|role| (ROLES[role], &call.operation["x-keys-of"]));
        let promised = promised(&call.method, &call.path).map(|(role, keys_of)| (role, json!(keys_of)));
        assert_eq!(said, promised.as_ref().map(|(role, keys_of)| (*role, keys_of)), "{name}");
        let pausing = (name == "PATCH /task-types/{name}").then_some(("paused", 2));
        assert_eq!(call.role_of(), pausing, "{name}");
    }
}

/// Each member of the body for itself, where one needs a lower role than the others.
#[test]
fn every_setting_takes_the_role_that_it_says() {
    let (server, keys) = with_keys();
    let document = server.client.get("/openapi.json").expect(200).json();
    let calls = calls(&server.client);
    let mut calls = calls.iter().filter_map(|call| Some((call, call.role_of()?)));
    let (call, (eased, lower)) = calls.next().unwrap();
    assert!(calls.next().is_none());
    let (media, content) = call.operation["requestBody"]["content"].as_object().unwrap().iter().next().unwrap();
    let schema = document.pointer(&content["schema"]["$ref"].as_str().unwrap()[1..]).unwrap();
    let settings: Vec<&String> = schema["properties"].as_object().unwrap().keys().collect();
    assert!(settings.len() > 5 && settings.contains(&&eased.to_owned()), "{settings:?}");
    for ((tenant, role), key) in &keys {
        let client = server.client.with_key(key);
        for setting in &settings {
            let needed = if *setting == eased { lower } else { call.role().unwrap() };
            let headers = [("content-type", media.as_str())];
            let body = json!({ setting.as_str(): null }).to_string();
            let path = call.path.replace("{name}", "echo");
            let status = client.send(&call.method, &path, &headers, Some(body.as_bytes())).status;
            assert_eq!(status == 403, *role < needed, "{setting} by {tenant}/{}: {status}", ROLES[*role]);
        }
    }
}

/// Every call × every role × the tenant's own, another's, the operator's key × no, expired, revoked, malformed key.
#[test]
fn every_call_takes_the_keys_that_it_says_and_no_others() {
    let (server, keys) = with_keys();
    let setup = server.setup();
    let nobody = &server.client;
    let revoked = setup.make_key("a", "admin", &[]);
    let id = &revoked[9..25];
    nobody.with_key(&keys[&("a", 4)]).delete(&format!("/keys/{id}")).expect(200);
    let expired = setup.make_key("a", "admin", &["--expires-in-days", "1"]);
    let mut malformed = keys[&("a", 4)].clone();
    malformed.pop();
    let unknown = {
        let other = Setup::new(&[]);
        other.make_key("default", "admin", &[])
    };
    // The clock cannot be turned here, but what is stored can.
    let setup = server.stop();
    let database = rusqlite::Connection::open(setup.database()).unwrap();
    assert_eq!(database.execute("UPDATE api_key SET expires_at = 1 WHERE expires_at IS NOT NULL", []).unwrap(), 1);
    drop(database);
    let server = setup.start();
    let nobody = &server.client;

    for call in calls(nobody) {
        let name = format!("{} {}", call.method, call.path);
        // Nobody knows what is in a body that cannot be read.
        let Some(needed) = call.role_of().map(|(_, role)| role).or(call.role()) else {
            let status = call.send(nobody, "a");
            assert!(status != 401 && status != 403, "{name}: {status}");
            continue;
        };
        assert_eq!(call.send(nobody, "a"), 401, "{name} without a key");
        for bad in [&revoked, &expired, &malformed, &unknown] {
            assert_eq!(call.send(&nobody.with_key(bad), "a"), 401, "{name} with {bad}");
        }
        for ((tenant, role), key) in &keys {
            let allowed = call.is_for(tenant);
            let client = nobody.with_key(key);
            for about in ["a", "b", "never-there"] {
                let status = call.send(&client, about);
                if allowed && *role >= needed {
                    assert!(status != 401 && status != 403, "{name} of {about} by {tenant}/{}: {status}", ROLES[*role]);
                } else {
                    assert_eq!(status, 403, "{name} of {about} by {tenant}/{}", ROLES[*role]);
                }
            }
        }
    }
}

#[test]
fn a_refusal_says_how_to_authenticate() {
    let (server, keys) = with_keys();
    let nobody = &server.client;
    let answer = nobody.get("/tasks").expect(401);
    assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
    assert_eq!(answer.json()["type"], "/problems/unauthorized");
    for bad in ["x", "taskcell_1_2", "Bearer"] {
        let answer = nobody.with_key(bad).get("/tasks").expect(401);
        assert_eq!(answer.header("www-authenticate"), Some("Bearer error=\"invalid_token\""));
        assert_eq!(answer.json()["type"], "/problems/invalid-key");
    }
    let basic = nobody.get_with("/tasks", &[("authorization", "Basic YTpi")]).expect(401);
    assert_eq!(basic.header("www-authenticate"), Some("Bearer error=\"invalid_token\""));
    let answer = nobody.with_key(&keys[&("a", 0)]).post_task(r#"{"task_type":"echo"}"#).expect(403);
    assert_eq!(answer.header("www-authenticate"), Some("Bearer error=\"insufficient_scope\", scope=\"submit\""));
    assert_eq!(answer.json()["type"], "/problems/insufficient-scope");
    // It says whose key, where it is not the role that is missing.
    let said = |key: (&'static str, usize), path: &str| nobody.with_key(&keys[&key]).get(path).expect(403).json();
    assert!(
        said(("operator", 4), "/tasks")["detail"].as_str().unwrap().contains("of a tenant that is not the operator")
    );
    assert!(said(("a", 4), "/metrics")["detail"].as_str().unwrap().contains("of the operator"));
    // A path that is not there needs no key, and what methods one takes that is there is no secret.
    nobody.get("/nothing").expect(404);
    assert_eq!(nobody.send("PATCH", "/task", &[], None).expect(405).header("allow"), Some("POST"));
}

#[test]
fn nothing_of_another_tenant_is_there() {
    let (server, keys) = with_keys();
    let a = server.client.with_key(&keys[&("a", 4)]);
    let b = server.client.with_key(&keys[&("b", 4)]);
    let id = a.create(&json!({"task_type": "echo", "input": 1, "labels": {"team": "a"}, "unique_key": "one"}));
    a.wait_for_end(&id);
    a.send("PUT", "/objects/mine", &[], Some(b"bytes")).expect(201);
    let schedule = json!({"cron": "0 0 1 1 *", "task": {"task_type": "echo"}}).to_string();
    a.send("PUT", "/schedules/mine", &[JSON], Some(schedule.as_bytes())).expect(201);
    let never = "0199e0f4-0000-7000-8000-000000000000";
    for path in ["", "/status", "/result", "/logs", "/attempts", "/events"] {
        let of_a = b.get(&format!("/task/{id}{path}")).expect(404);
        let of_nobody = b.get(&format!("/task/{never}{path}")).expect(404);
        assert_eq!(of_a.body, of_nobody.body, "{path}");
    }
    for (method, path) in [("POST", "/cancel"), ("POST", "/retry"), ("DELETE", "")] {
        let of_a = b.send(method, &format!("/task/{id}{path}"), &[], None).expect(404);
        assert_eq!(of_a.body, b.send(method, &format!("/task/{never}{path}"), &[], None).expect(404).body);
    }
    for path in ["/objects/mine", "/schedules/mine"] {
        b.get(path).expect(404);
        b.delete(path).expect(404);
        a.get(path).expect(200);
    }
    assert_eq!(b.get("/tasks").expect(200).json()["tasks"], json!([]));
    assert_eq!(b.get("/objects").expect(200).json()["objects"], json!([]));
    assert_eq!(b.get("/schedules").expect(200).json()["schedules"], json!([]));
    // Names that are taken there are free here: a unique key, an idempotency key, a task type.
    let body = r#"{"task_type":"echo","unique_key":"one","delay_ms":600000}"#;
    a.post_task(body).expect(202);
    b.post_task(body).expect(202);
    let of_a = a.send("POST", "/task", &[JSON, ("idempotency-key", "k")], Some(br#"{"task_type":"echo","input":1}"#));
    let of_b = b.send("POST", "/task", &[JSON, ("idempotency-key", "k")], Some(br#"{"task_type":"echo","input":2}"#));
    assert_ne!(of_a.expect(202).json()["id"], of_b.expect(202).json()["id"]);
    let component = component(guest("echo-blocking"));
    let wasm = [("content-type", "application/wasm"), ("prefer", "wait=60")];
    a.send("PUT", "/task-types/only-here", &wasm, Some(component)).expect(201);
    b.get("/task-types/only-here").expect(404);
    b.post_task(r#"{"task_type":"only-here"}"#).expect(422);
    // A cursor of one is none of the other.
    let cursor = a.get("/tasks?limit=1").expect(200).json()["next_cursor"].as_str().unwrap().to_owned();
    b.get(&format!("/tasks?limit=1&cursor={cursor}")).expect(400);
    // What the operator shares is there for both, and changed by neither.
    for client in [&a, &b] {
        client.get("/task-types/echo").expect(200);
        let patch = client.send(
            "PATCH",
            "/task-types/echo",
            &[("content-type", "application/merge-patch+json")],
            Some(br#"{"paused":true}"#),
        );
        assert_eq!(patch.expect(409).json()["type"], "/problems/shared-task-type");
    }
    // The operator's keys change it, and see no tenant's data.
    let operator = server.client.with_key(&keys[&("operator", 4)]);
    let merge = [("content-type", "application/merge-patch+json")];
    operator.send("PATCH", "/task-types/echo", &merge, Some(br#"{"paused":true}"#)).expect(200);
    assert_eq!(a.get("/task-types/echo").expect(200).json()["state"], "paused");
    operator.send("PATCH", "/task-types/echo", &merge, Some(br#"{"paused":null}"#)).expect(200);
    operator.get("/task-types/only-here").expect(404);
    operator.get(&format!("/task/{id}")).expect(403);
}

/// The operator's type is in use where a tenant has a task of it, and not where its name means one of the tenant's own.
#[test]
fn a_shared_type_that_is_in_use_stays() {
    let (server, keys) = with_keys();
    let [operator, a, b] = ["operator", "a", "b"].map(|tenant| server.client.with_key(&keys[&(tenant, 4)]));
    let wasm = [("content-type", "application/wasm"), ("prefer", "wait=60")];
    for client in [&operator, &b] {
        client.send("PUT", "/task-types/shared", &wasm, Some(component(guest("echo-blocking")))).expect(201);
    }
    let delayed = json!({"task_type": "shared", "delay_ms": 3_600_000});
    let id = a.create(&delayed);
    b.create(&delayed);
    operator.delete("/task-types/shared").expect(409);
    a.delete(&format!("/task/{id}")).expect(200);
    operator.delete("/task-types/shared").expect(200);
    a.get("/task-types/shared").expect(404);
    assert_eq!(b.output(&json!({"task_type": "shared", "input": 7})), 7);
}

#[test]
fn the_first_key_ends_the_time_without_keys() {
    let server = Setup::new(&[]).start();
    let client = &server.client;
    client.get("/tasks").expect(200);
    let (_, _, mut events) = client.stream("/events", &[]);
    // A tenant that there is not, and then one of the two that there are.
    let mut command = taskcell();
    command
        .args(["key", "create", "--tenant", "nobody", "--role", "read", "--data-dir"])
        .arg(server.setup().data_dir());
    let message = refused(&mut command);
    let hint = format!("--data-dir {}", server.setup().data_dir().display());
    assert!(message.contains("no such tenant") && message.contains(&hint), "{message}");
    let key = server.setup().make_key("default", "operate", &[]);
    client.get("/tasks").expect(401);
    events.read_to_string(&mut String::new()).unwrap();
    client.with_key(&key).get("/tasks").expect(200);
    client.with_key(&key).get("/metrics").expect(403);
    // It lasts, also where it is made while no server runs.
    let setup = server.stop();
    let other = setup.make_key("default", "read", &[]);
    let server = setup.start();
    server.client.get("/tasks").expect(401);
    for key in [key, other] {
        server.client.with_key(&key).get("/tasks").expect(200);
    }
}

#[test]
fn a_revoked_key_stops_working_at_once_also_on_streams() {
    let (server, keys) = with_keys();
    let admin = server.client.with_key(&keys[&("a", 4)]);
    let made = admin.send("POST", "/keys", &[JSON], Some(br#"{"role":"read","label":"ci"}"#)).expect(201);
    assert_eq!(made.header("cache-control"), Some("no-store"));
    let key = made.json()["key"].as_str().unwrap().to_owned();
    let id = made.json()["id"].as_str().unwrap().to_owned();
    assert_eq!(made.header("location"), Some(format!("/keys/{id}").as_str()));
    let client = server.client.with_key(&key);
    let task = admin.create(&json!({"task_type": "echo", "delay_ms": 600_000}));
    let (status, _, mut all) = client.stream("/events", &[]);
    assert_eq!(status, 200);
    let (status, _, mut one) = client.stream(&format!("/task/{task}/events"), &[]);
    assert_eq!(status, 200);
    let tag = client.get(&format!("/task/{task}")).expect(200).header("etag").unwrap().to_owned();
    let waiting = {
        let client = client.clone();
        std::thread::spawn(move || {
            client.get_with(&format!("/task/{task}"), &[("prefer", "wait=60"), ("if-none-match", &tag)]).status
        })
    };
    // Used, which is told; and never is the key itself.
    let listed = wait_for("the use of the key", || {
        let listed = admin.get("/keys").expect(200);
        let keys = listed.json()["keys"].as_array().unwrap().clone();
        let this = keys.into_iter().find(|key| key["id"] == *id).unwrap();
        (!this["last_used_at"].is_null()).then_some((this, listed.text()))
    });
    assert_eq!((&listed.0["label"], &listed.0["role"]), (&json!("ci"), &json!("read")));
    assert!(!listed.1.contains(&key[26..]));
    // Another tenant's admin does not find it.
    server.client.with_key(&keys[&("b", 4)]).delete(&format!("/keys/{id}")).expect(404);
    let deleted = admin.delete(&format!("/keys/{id}")).expect(200).json();
    assert!(deleted["last_used_at"].is_string(), "{deleted:#}");
    client.get("/tasks").expect(401);
    all.read_to_string(&mut String::new()).unwrap();
    one.read_to_string(&mut String::new()).unwrap();
    assert_eq!(waiting.join().unwrap(), 401);
    // Taken back once more it stays taken back, also over a restart.
    admin.delete(&format!("/keys/{id}")).expect(200);
    let server = server.crash().start();
    server.client.with_key(&key).get("/tasks").expect(401);
}

#[test]
fn a_key_for_some_types_is_for_no_others() {
    let (server, keys) = with_keys();
    let key = server.setup().make_key("a", "deploy", &["--task-type", "echo", "--task-type", "mine"]);
    let client = server.client.with_key(&key);
    client.post_task(r#"{"task_type":"echo"}"#).expect(202);
    let refused = client.post_task(r#"{"task_type":"primes"}"#).expect(403);
    assert_eq!(refused.json()["type"], "/problems/insufficient-scope");
    let both = br#"[{"task_type":"echo"},{"task_type":"primes"}]"#;
    let results = client.send("POST", "/tasks", &[JSON], Some(both)).expect(200).json()["results"].clone();
    assert_eq!((&results[0]["status"], &results[1]["status"]), (&json!(202), &json!(403)), "{results:#}");
    for (task_type, status) in [("echo", 201), ("primes", 403)] {
        let schedule = json!({"cron": "0 0 1 1 *", "task": {"task_type": task_type}}).to_string();
        client.send("PUT", "/schedules/s", &[JSON], Some(schedule.as_bytes())).expect(status);
    }
    let test = |name: &str| client.send("POST", &format!("/task-types/{name}/test"), &[JSON], Some(b"{}"));
    test("echo").expect(200);
    test("primes").expect(403);
    let component = component(guest("echo-blocking"));
    let wasm = [("content-type", "application/wasm"), ("prefer", "wait=60")];
    client.send("PUT", "/task-types/mine", &wasm, Some(component)).expect(201);
    client.send("PUT", "/task-types/other", &wasm, Some(component)).expect(403);
    let merge = [("content-type", "application/merge-patch+json")];
    client.send("PATCH", "/task-types/mine", &merge, Some(br#"{"retention_ms":1000}"#)).expect(200);
    client.delete("/task-types/primes").expect(403);
    client.delete("/task-types/mine").expect(200);
    // Nor does it stop, repeat or remove what is of other types, or make a key that does.
    let all = server.client.with_key(&keys[&("a", 4)]);
    let theirs = all.create(&json!({"task_type": "primes", "input": {"up_to": 10}}));
    all.wait_for_end(&theirs);
    let own = all.create(&json!({"task_type": "echo"}));
    all.wait_for_end(&own);
    for (method, path) in [("POST", "/retry"), ("POST", "/cancel"), ("DELETE", "")] {
        client.send(method, &format!("/task/{theirs}{path}"), &[], Some(b"")).expect(403);
    }
    client.post(&format!("/task/{own}/retry")).expect(202);
    for action in ["cancel", "retry", "delete"] {
        let bulk = |filter: &[u8]| client.send("POST", &format!("/tasks/{action}"), &[JSON], Some(filter));
        bulk(b"{}").expect(403);
        bulk(br#"{"task_type":"primes"}"#).expect(403);
        bulk(br#"{"task_type":"mine"}"#).expect(202);
    }
    let schedule = json!({"cron": "0 0 1 1 *", "task": {"task_type": "primes"}}).to_string();
    all.send("PUT", "/schedules/theirs", &[JSON], Some(schedule.as_bytes())).expect(201);
    client.delete("/schedules/theirs").expect(403);
    let schedule = json!({"cron": "0 0 1 1 *", "task": {"task_type": "echo"}}).to_string();
    client.send("PUT", "/schedules/theirs", &[JSON], Some(schedule.as_bytes())).expect(403);
    client.delete("/schedules/s").expect(200);
    let admin = server.setup().make_key("a", "admin", &["--task-type", "echo"]);
    let make = |body: &[u8]| server.client.with_key(&admin).send("POST", "/keys", &[JSON], Some(body));
    make(br#"{"role":"read"}"#).expect(403);
    make(br#"{"role":"read","task_types":["echo","primes"]}"#).expect(403);
    make(br#"{"role":"read","task_types":["echo"]}"#).expect(201);
    // Who may operate may pause, and no more.
    server.client.with_key(&keys[&("a", 3)]).send("PUT", "/task-types/mine", &wasm, Some(component)).expect(201);
    let operate = server.client.with_key(&keys[&("a", 2)]);
    operate.send("PATCH", "/task-types/mine", &merge, Some(br#"{"paused":true}"#)).expect(200);
    operate.send("PATCH", "/task-types/mine", &merge, Some(br#"{"retention_ms":1}"#)).expect(403);
    operate.send("PATCH", "/task-types/mine", &merge, Some(br#"{"paused":false,"grants":{}}"#)).expect(403);
}

#[test]
fn bad_keys_are_not_made() {
    let (server, keys) = with_keys();
    let admin = server.client.with_key(&keys[&("a", 4)]);
    for (body, pointer) in [
        (json!({"role": "root"}), "#/role"),
        (json!({"role": "read", "expires_at": "2001-01-01T00:00:00Z"}), "#/expires_at"),
        (json!({"role": "read", "expires_at": "tomorrow"}), "#/expires_at"),
        (json!({"role": "read", "label": "x".repeat(201)}), "#/label"),
        (json!({"role": "read", "label": "a\nb"}), "#/label"),
        (json!({"role": "read", "task_types": ["a", "B"]}), "#/task_types/1"),
        (json!({"role": "read", "task_types": vec!["a"; 101]}), "#/task_types"),
        (json!({"role": "read", "more": 1}), "#/more"),
    ] {
        let answer = admin.send("POST", "/keys", &[JSON], Some(body.to_string().as_bytes())).expect(422);
        assert_eq!(answer.json()["errors"][0]["pointer"], pointer, "{body}");
        assert!(body["expires_at"] != "tomorrow" || answer.text().contains("RFC 3339"), "{}", answer.text());
    }
    // The command line keeps the same rules, whether or not a server runs.
    let none_runs = Setup::new(&[]);
    for setup in [server.setup(), &none_runs] {
        for flags in [["--label", "a\nb"], ["--task-type", "B"]] {
            let mut command = taskcell();
            command.args(["key", "create", "--tenant", "default", "--role", "read"]).args(flags);
            refused(command.arg("--data-dir").arg(setup.data_dir()));
        }
    }
    for name in ["A", "-a", "a_b", &"a".repeat(64)] {
        let mut command = taskcell();
        command.args(["tenant", "create", name, "--data-dir"]).arg(server.setup().data_dir());
        refused(&mut command);
    }
}

#[test]
fn a_tenant_has_so_many_keys_and_one_that_is_over_makes_place() {
    let setup = Setup::new(&[]);
    let key = setup.make_key("default", "admin", &[]);
    let server = setup.start();
    let admin = server.client.with_key(&key);
    let make = || admin.send("POST", "/keys", &[JSON], Some(br#"{"role":"read"}"#));
    let made: Vec<String> = (1..1000).map(|_| make().expect(201).json()["id"].as_str().unwrap().to_owned()).collect();
    let refused = make().expect(429);
    assert_eq!(
        (refused.json()["type"].clone(), refused.header("ratelimit-policy")),
        (json!("/problems/too-many-keys"), Some("\"keys\";q=1000"))
    );
    admin.delete(&format!("/keys/{}", made[7])).expect(200);
    make().expect(201);
    let listed = admin.get("/keys").expect(200).json();
    assert_eq!(listed["keys"].as_array().unwrap().len(), 1000);
    assert!(listed["keys"].as_array().unwrap().iter().all(|key| key["id"] != *made[7]));
    make().expect(429);
}

#[test]
fn tenants_are_bounded_and_weighed() {
    let setup = Setup::new(&["--max-tenants", "3"]);
    let key = setup.make_key("operator", "admin", &[]);
    let server = setup.start();
    let operator = server.client.with_key(&key);
    assert_eq!(operator.send("PUT", "/tenants/a", &[], None).expect(201).json()["weight"], 100);
    operator.send("PUT", "/tenants/a", &[], None).expect(200);
    let refused = operator.send("PUT", "/tenants/b", &[], None).expect(429);
    assert_eq!(refused.header("ratelimit-policy"), Some("\"tenants\";q=3"));
    // What it would be to be like is said by another call.
    for (body, status) in [("{}", 200), (r#"{"weight":300}"#, 422), ("weight=300", 400)] {
        operator.send("PUT", "/tenants/a", &[JSON], Some(body.as_bytes())).expect(status);
    }
    let names = operator.get("/tenants").expect(200).json();
    let names: Vec<_> = names["tenants"].as_array().unwrap().iter().map(|tenant| tenant["name"].clone()).collect();
    assert_eq!(names, ["a", "default", "operator"]);
    let merge = [("content-type", "application/merge-patch+json")];
    let patch = |body: &str| operator.send("PATCH", "/tenants/a", &merge, Some(body.as_bytes()));
    assert_eq!(patch(r#"{"weight":300}"#).expect(200).json()["weight"], 300);
    assert_eq!(patch("{}").expect(200).json()["weight"], 300);
    for bad in [r#"{"weight":0}"#, r#"{"weight":10001}"#, r#"{"weight":"1"}"#, r#"{"wait":1}"#] {
        patch(bad).expect(422);
    }
    assert_eq!(patch(r#"{"weight":null}"#).expect(200).json()["weight"], 100);
    operator.send("PATCH", "/tenants/b", &merge, Some(b"{}")).expect(404);
}

/// Pages of other sites, in a browser here, reach a loopback address under their own names (DNS rebinding).
#[test]
fn without_keys_nothing_is_answered_under_a_domain() {
    let server = server(&[]);
    let status = |target: &str, host: &str| {
        let mut stream = TcpStream::connect(&server.address).unwrap();
        stream
            .write_all(format!("GET {target} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n").as_bytes())
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer[9..12].parse::<u16>().unwrap()
    };
    for host in [
        "localhost",
        "LocalHost:1",
        "127.0.0.1:8080",
        "127.1.2.3",
        "[::1]:8080",
        "app.localhost",
        "localhost.",
        "taskcell",
        "a b",
        "",
    ] {
        assert_eq!(status("/tasks", host), 200, "{host}");
    }
    for host in ["evil.example", "evil.example:8080", "localhost.evil.example", "127.0.0.1.evil.example", "evil."] {
        assert_eq!(status("/tasks", host), 421, "{host}");
    }
    assert_eq!(status("http://evil.example/tasks", "localhost"), 421);
    // Whoever has a key may come by any name; and what is for all is for all.
    assert_eq!(status("/healthz", "evil.example"), 200);
    server.setup().make_key("default", "read", &[]);
    wait_for("the key", || (status("/tasks", "evil.example") == 401).then_some(()));
}

#[test]
fn without_keys_only_a_loopback_address_is_served() {
    let setup = Setup::new(&[]);
    let command = || {
        let mut command = taskcell();
        command.args(["serve", "--listen", "0.0.0.0:0", "--data-dir"]).arg(setup.data_dir());
        command
    };
    let message = refused(&mut command());
    assert!(message.contains("taskcell key create --tenant operator --role admin"), "{message}");
    let key = setup.make_key("default", "read", &[]);
    let server = setup.clone().start_command(command());
    let port = server.address.rsplit_once(':').unwrap().1;
    let client = Client::new(&format!("http://127.0.0.1:{port}"));
    client.get("/tasks").expect(401);
    client.with_key(&key).get("/tasks").expect(200);
}
