//! The audit log: a line for everything that is administered, and for nothing else.

use rusqlite::Connection;
use serde_json::{Value, json};

use crate::access::calls;
use crate::support::guests::component;
use crate::support::server::{Setup, said, taskcell};
use crate::support::{Client, Server, guest, server, temp_dir, time, wait_for};

const JSON: (&str, &str) = ("content-type", "application/json");
const MERGE: (&str, &str) = ("content-type", "application/merge-patch+json");
const WASM: (&str, &str) = ("content-type", "application/wasm");

/// Calls that change something and are no administration: tasks one by one, and objects.
const OTHERS: &[&str] = &[
    "POST /task",
    "POST /tasks",
    "DELETE /task/{id}",
    "POST /task/{id}/cancel",
    "POST /task/{id}/retry",
    "PUT /objects/{name}",
    "DELETE /objects/{name}",
    "POST /task-types/{name}/test",
];

/// Which key sends it.
#[derive(Clone, Copy, Debug, PartialEq)]
enum By {
    TenantA,
    Operator,
}

/// What is sent, and the line that it leaves.
struct Case {
    /// The call of the OpenAPI document.
    call: &'static str,
    by: By,
    path: &'static str,
    kind: &'static str,
    body: &'static [u8],
    status: u16,
    action: &'static str,
    /// Whose thing; null: one that all tenants share.
    of: Option<&'static str>,
    /// Which thing; empty: the id that is answered.
    target: &'static str,
    detail: &'static str,
}

/// Every administrative call, in an order in which each does something.
#[rustfmt::skip]
fn cases() -> Vec<Case> {
    use By::{Operator, TenantA};
    let case = |call, by, path, kind: (&str, &'static str), body, status, action, of, target, detail| Case {
        call, by, path, kind: kind.1, body, status, action, of, target, detail,
    };
    let (a, new, shared, nothing) = (Some("a"), Some("new"), None, &b""[..]);
    let echo = component(guest("echo-blocking"));
    let schedule = br#"{"cron":"0 0 1 1 *","task":{"task_type":"echo","input":"hidden"}}"#;
    let settings = br#"{"paused":true,"limits":{"fuel":5},"concurrency":{"running":3},"grants":{"env":{"A":"hidden"}},"input_schema":true}"#;
    let told = r#"limits {"fuel":5}; paused true; concurrency {"running":3}; grants; input_schema"#;
    vec![
        case("PUT /tenants/{tenant}", Operator, "/tenants/new", JSON, nothing,
            201, "tenant.create", new, "new", ""),
        case("PATCH /tenants/{tenant}", Operator, "/tenants/new", MERGE, br#"{"weight":7}"#,
            200, "tenant.change", new, "new", "weight 7"),
        case("POST /tenants/{tenant}/keys", Operator, "/tenants/new/keys", JSON, br#"{"role":"deploy"}"#,
            201, "key.create", new, "", "role deploy"),
        case("DELETE /tenants/{tenant}/keys/{id}", Operator, "/tenants/new/keys/ID", JSON, nothing,
            200, "key.revoke", new, "", ""),
        case("POST /keys", TenantA, "/keys", JSON,
            br#"{"role":"read","task_types":["echo","io"],"expires_at":"2099-01-01T00:00:00Z"}"#,
            201, "key.create", a, "", "role read, task types echo io, expires 2099-01-01T00:00:00Z"),
        case("DELETE /keys/{id}", TenantA, "/keys/ID", JSON, nothing, 200, "key.revoke", a, "", ""),
        case("PUT /task-types/{name}", TenantA, "/task-types/mine", WASM, echo,
            201, "task_type.put", a, "mine", "sha256:"),
        case("PATCH /task-types/{name}", TenantA, "/task-types/mine", MERGE, settings,
            200, "task_type.change", a, "mine", told),
        case("PUT /schedules/{name}", TenantA, "/schedules/s", JSON, schedule,
            201, "schedule.put", a, "s", "echo; 0 0 1 1 *; UTC"),
        case("DELETE /schedules/{name}", TenantA, "/schedules/s", JSON, nothing, 200, "schedule.delete", a, "s", ""),
        case("POST /tasks/cancel", TenantA, "/tasks/cancel", JSON, br#"{"task_type":"x"}"#,
            202, "tasks.cancel", a, "", r#"{"task_type":"x"}"#),
        case("POST /tasks/retry", TenantA, "/tasks/retry", JSON, br#"{"labels":{"k":"v"}}"#,
            202, "tasks.retry", a, "", r#"{"labels":1}"#),
        case("POST /tasks/delete", TenantA, "/tasks/delete", JSON, br#"{"task_type":"x"}"#,
            202, "tasks.delete", a, "", r#"{"task_type":"x"}"#),
        case("PUT /secrets/{name}", TenantA, "/secrets/token", JSON, b"a hidden value", 201, "secret.put", a, "token", ""),
        case("DELETE /secrets/{name}", TenantA, "/secrets/token", JSON, nothing, 200, "secret.delete", a, "token", ""),
        case("DELETE /task-types/{name}", TenantA, "/task-types/mine", JSON, nothing,
            200, "task_type.delete", a, "mine", ""),
        case("PATCH /task-types/{name}", Operator, "/task-types/echo", MERGE, br#"{"paused":true}"#,
            200, "task_type.change", shared, "echo", "paused true"),
        case("PUT /task-types/{name}", Operator, "/task-types/all", WASM, echo,
            201, "task_type.put", shared, "all", "sha256:"),
    ]
}

/// The page of the newest lines.
fn lines(operator: &Client) -> Vec<Value> {
    operator.get("/audit?limit=1000").expect(200).json()["lines"].as_array().unwrap().clone()
}

/// A server, and a key of the tenant `a` and of the operator that may do everything.
fn with_keys(flags: &[&str]) -> (Server, String, String) {
    let setup = Setup::new(flags);
    setup.make_tenant("a");
    let (a, operator) = (setup.make_key("a", "admin", &[]), setup.make_key("operator", "admin", &[]));
    (setup.start(), a, operator)
}

fn id_of(key: &str) -> &str {
    &key[9..25]
}

#[test]
fn every_administrative_call_leaves_one_line() {
    let directory = temp_dir();
    let file = directory.path().join("key");
    std::fs::write(&file, "5a".repeat(32)).unwrap();
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let (server, a, operator_key) = with_keys(&["--secret-key-file", file.to_str().unwrap()]);
    let (operator, tenant) = (server.client.with_key(&operator_key), server.client.with_key(&a));
    let cases = cases();
    for call in calls(&server.client) {
        let name = format!("{} {}", call.method, call.path);
        let changes = !matches!(&*call.method, "GET" | "HEAD");
        let known = cases.iter().any(|case| case.call == name) || OTHERS.contains(&&*name);
        assert_eq!(known, changes, "{name} changes something: is it audited?");
    }
    let mut id = String::new();
    let mut number = lines(&operator)[0]["number"].as_u64().unwrap();
    for case in &cases {
        let Case { call, by, action, target, detail, .. } = case;
        let method = call.split(' ').next().unwrap();
        let (client, key) = if *by == By::Operator { (&operator, &operator_key) } else { (&tenant, &a) };
        let path = case.path.replace("ID", &id);
        let before = time::in_millis(-1);
        let answer = client.send(method, &path, &[("content-type", case.kind)], Some(case.body)).expect(case.status);
        id = answer.json()["id"].as_str().unwrap_or_default().to_owned();
        let target = if target.is_empty() { &id } else { *target };
        let new: Vec<Value> =
            lines(&operator).into_iter().take_while(|line| line["number"].as_u64().unwrap() > number).collect();
        let [line] = &new[..] else { panic!("{call}: {new:#?}") };
        let by = json!({
            "tenant": if *by == By::Operator { "operator" } else { "a" }, "key": id_of(key), "address": "127.0.0.1",
        });
        assert_eq!(
            (&line["by"], &line["action"], &line["tenant"], &line["target"]),
            (&by, &json!(action), &json!(case.of), &json!(target)),
            "{call}: {line:#}"
        );
        match line["detail"].as_str() {
            // The digest follows.
            Some(text) if *detail == "sha256:" => assert!(text.starts_with(detail) && text.len() == 71, "{text}"),
            text => assert_eq!(text.unwrap_or_default(), *detail, "{call}"),
        }
        let at = time::millis(line["at"].as_str().unwrap());
        assert!(at >= time::millis(&before) && at <= time::millis(&time::in_millis(1)), "{line:#}");
        number = line["number"].as_u64().unwrap();
    }
    // What changes nothing leaves none.
    for nothing in [&br#"{"weight":7}"#[..], br#"{"quotas":{"objects":null}}"#] {
        operator.send("PATCH", "/tenants/new", &[MERGE], Some(nothing)).expect(200);
    }
    assert_eq!(lines(&operator)[0]["number"], number);
    // Nothing secret is in it.
    let text = operator.get("/audit?limit=1000").expect(200).text();
    assert!(!text.contains("hidden") && !text.contains(&a[26..]) && !text.contains(&operator_key[26..]), "{text}");
    // It lasts.
    let told = lines(&operator);
    assert!(told.len() > cases.len());
    let server = server.crash().start();
    assert_eq!(lines(&server.client.with_key(&operator_key)), told);
}

#[test]
fn what_is_refused_or_changes_nothing_leaves_no_line() {
    let (server, a, operator_key) = with_keys(&["--max-schedules", "1", "--max-task-types", "1", "--max-tenants", "3"]);
    let low = ["a", "operator"].map(|tenant| server.setup().make_key(tenant, "submit", &[]));
    let (operator, tenant) = (server.client.with_key(&operator_key), server.client.with_key(&a));
    let echo = component(guest("echo-blocking"));
    let schedule = br#"{"cron":"0 0 1 1 *","task":{"task_type":"echo"}}"#;
    tenant.send("PUT", "/task-types/mine", &[WASM, ("prefer", "wait=60")], Some(echo)).expect(201);
    tenant.send("PUT", "/schedules/s", &[JSON], Some(schedule)).expect(201);
    let key = tenant.send("POST", "/keys", &[JSON], Some(br#"{"role":"read"}"#)).expect(201).json();
    let key = key["id"].as_str().unwrap().to_owned();
    tenant.delete(&format!("/keys/{key}")).expect(200);
    let before = lines(&operator);

    // Every call with a key that may not, without one, and with what cannot be.
    for call in calls(&server.client).iter().filter(|call| !matches!(&*call.method, "GET" | "HEAD")) {
        for client in
            [&server.client, &server.client.with_key(&low[0]), &server.client.with_key(&low[1]), &tenant, &operator]
        {
            // The one call that is in order without a body.
            if call.path == "/tenants/{tenant}" && call.method == "PUT" {
                continue;
            }
            let (name, status) = (format!("{} {}", call.method, call.path), call.send(client, "a"));
            assert!((400..500).contains(&status) || OTHERS.contains(&&*name), "{name}: {status}");
        }
    }
    for (client, method, path, headers, body, status) in [
        (&server.client.with_key(&low[1]), "PUT", "/tenants/new", JSON, &b""[..], 403),
        (&operator, "PUT", "/tenants/new", JSON, b"", 429),
        (&operator, "PUT", "/tenants/-", JSON, b"", 422),
        (&operator, "PATCH", "/tenants/a", MERGE, br#"{"weight":0}"#, 422),
        (&operator, "POST", "/tenants/nobody/keys", JSON, br#"{"role":"read"}"#, 404),
        (&tenant, "PUT", "/schedules/other", JSON, schedule, 429),
        (&tenant, "PUT", "/task-types/other", WASM, echo, 429),
        (&tenant, "PUT", "/task-types/mine", WASM, b"no component", 422),
        (&tenant, "PATCH", "/task-types/mine", MERGE, br#"{"version":"sha256:x"}"#, 422),
        (&tenant, "PATCH", "/task-types/mine", MERGE, br#"{"limits":{"fuel":0}}"#, 422),
        (&tenant, "PATCH", "/task-types/echo", MERGE, br#"{"paused":true}"#, 409),
        (&tenant, "DELETE", "/task-types/echo", JSON, b"", 409),
        (&tenant, "DELETE", "/schedules/other", JSON, b"", 404),
        // In order, and nothing to do.
        (&operator, "PUT", "/tenants/a", JSON, b"", 200),
        (&operator, "PATCH", "/tenants/a", MERGE, b"{}", 200),
        (&tenant, "DELETE", &format!("/keys/{key}"), JSON, b"", 200),
        (&tenant, "PATCH", "/task-types/mine", MERGE, b"{}", 200),
        (&tenant, "PATCH", "/task-types/mine", MERGE, br#"{"paused":false,"limits":null}"#, 200),
        (&tenant, "PUT", "/task-types/mine", WASM, echo, 200),
    ] {
        client.send(method, path, &[headers], Some(body)).expect(status);
    }
    for (method, path, header, body) in [
        ("PATCH", "/task-types/mine", MERGE, &br#"{"paused":true}"#[..]),
        ("PUT", "/task-types/mine", WASM, echo),
        ("DELETE", "/task-types/mine", JSON, b""),
        ("PUT", "/schedules/s", JSON, schedule),
        ("DELETE", "/schedules/s", JSON, b""),
    ] {
        tenant.send(method, path, &[header, ("if-match", "\"x\"")], Some(body)).expect(412);
    }
    // While tasks of it wait it is not removed.
    let waiting = tenant.create(&json!({"task_type": "mine", "delay_ms": 600_000}));
    tenant.delete("/task-types/mine").expect(409);
    assert_eq!(lines(&operator), before);

    // With `cancel` it is, and the operation that cancels is told as well.
    tenant.delete("/task-types/mine?cancel=true").expect(200);
    assert_eq!(tenant.status(&waiting), "Failed");
    let all = lines(&operator);
    let new = &all[..all.len() - before.len()];
    let actions: Vec<&str> = new.iter().map(|line| line["action"].as_str().unwrap()).collect();
    assert_eq!(actions, ["task_type.delete", "tasks.cancel"]);
}

#[test]
fn the_command_line_is_told_apart() {
    let setup = Setup::new(&[]);
    setup.make_tenant("a");
    let first = setup.make_key("operator", "read", &[]);
    let server = setup.start();
    server.setup().make_tenant("b");
    let second = server.setup().make_key("b", "admin", &[]);
    let mut revoke = taskcell();
    revoke.args(["key", "revoke", "--tenant", "b", id_of(&second), "--data-dir"]).arg(server.setup().data_dir());
    said(&mut revoke);
    let told: Vec<_> = lines(&server.client.with_key(&first))
        .iter()
        .rev()
        .map(|line| {
            assert_eq!((&line["by"]["tenant"], &line["by"]["key"]), (&json!("operator"), &Value::Null));
            ["action", "target"].map(|name| line[name].as_str().unwrap().to_owned()).join(" ")
                + " by "
                + line["by"]["address"].as_str().unwrap()
        })
        .collect();
    assert_eq!(
        told,
        [
            "tenant.create a by command line".to_owned(),
            format!("key.create {} by command line", id_of(&first)),
            "tenant.create b by private socket".to_owned(),
            format!("key.create {} by private socket", id_of(&second)),
            format!("key.revoke {} by private socket", id_of(&second)),
        ]
    );
}

#[test]
fn it_is_read_in_pages_and_by_filters() {
    // As long as there are no keys.
    let server = server(&[]);
    let client = &server.client;
    for weight in 1..=5 {
        let body = format!("{{\"weight\":{weight}}}");
        client.send("PATCH", "/tenants/default", &[MERGE], Some(body.as_bytes())).expect(200);
    }
    client.send("PUT", "/tenants/a", &[], None).expect(201);
    client.send("PATCH", "/task-types/echo", &[MERGE], Some(br#"{"paused":true}"#)).expect(200);
    let all = lines(client);
    assert_eq!(all.len(), 7);
    assert!(all.iter().all(|line| line["by"] == json!({"tenant": "default", "key": null, "address": "127.0.0.1"})));
    let page = client.get("/audit").expect(200);
    assert_eq!(page.header("cache-control"), Some("no-store"));
    assert_eq!(page.json(), json!({"lines": all, "next_before": null}));
    let (mut found, mut before) = (Vec::new(), String::new());
    loop {
        let page = client.get(&format!("/audit?limit=3{before}")).expect(200).json();
        found.extend(page["lines"].as_array().unwrap().clone());
        match page["next_before"].as_u64() {
            Some(next) => before = format!("&before={next}"),
            None => break,
        }
    }
    assert_eq!(found, all);
    for (query, count) in [
        ("tenant=default", 5),
        ("tenant=a", 1),
        ("tenant=", 1),
        ("tenant=nobody", 0),
        ("action=tenant.change", 5),
        ("action=task_type.change", 1),
        ("tenant=a&action=tenant.change", 0),
        ("before=1", 0),
        ("before=18446744073709551615", 7),
    ] {
        let page = client.get(&format!("/audit?{query}")).expect(200).json();
        assert_eq!(page["lines"].as_array().unwrap().len(), count, "{query}");
    }
    for bad in ["before=x", "before=-1", "limit=0", "tenants=a"] {
        client.get(&format!("/audit?{bad}")).problem(400);
    }
}

#[test]
fn lines_go_with_their_age_alone() {
    let (server, a, operator_key) = with_keys(&["--retention", "1"]);
    let tenant = server.client.with_key(&a);
    // What they tell of goes, and they stay.
    let echo = component(guest("echo-blocking"));
    tenant.send("PUT", "/task-types/mine", &[WASM, ("prefer", "wait=60")], Some(echo)).expect(201);
    let id = tenant.create(&json!({"task_type": "mine"}));
    tenant.send("POST", "/tasks/cancel", &[JSON], Some(b"{}")).expect(202);
    wait_for("the task to go", || (tenant.get(&format!("/task/{id}")).status == 404).then_some(()));
    tenant.delete("/task-types/mine").expect(200);
    let told = lines(&server.client.with_key(&operator_key));
    let actions: Vec<&str> = told.iter().rev().map(|line| line["action"].as_str().unwrap()).collect();
    assert_eq!(
        actions,
        ["tenant.create", "key.create", "key.create", "task_type.put", "tasks.cancel", "task_type.delete"]
    );

    // Whoever can write in the database cannot change what was written by a slip.
    let setup = server.stop();
    let database = Connection::open(setup.database()).unwrap();
    for statement in ["UPDATE audit SET detail = 'x'", "UPDATE audit SET at = 0", "DELETE FROM audit"] {
        let error = database.execute(statement, []).unwrap_err().to_string();
        assert!(error.contains("the audit log is"), "{statement}: {error}");
    }
    let now = time::millis(&time::in_millis(0));
    for days in [5, 2] {
        let sql = "INSERT INTO audit (at, tenant, peer, action, of, target) VALUES (?1, 'a', 'x', 'old', 'a', ?2)";
        database.execute(sql, rusqlite::params![now - days * 86_400_000, days.to_string()]).unwrap();
    }
    drop(database);
    let old = |client: &Client| client.get("/audit?action=old").expect(200).json()["lines"].as_array().unwrap().len();
    // By default they are kept for longer than that.
    let server = setup.start();
    let operator = server.client.with_key(&operator_key);
    // What comes after this was looked at has been looked at after the start.
    let id = server.client.with_key(&a).create(&json!({"task_type": "echo"}));
    wait_for("the removal of what ended", || {
        (server.client.with_key(&a).get(&format!("/task/{id}")).status == 404).then_some(())
    });
    assert_eq!(old(&operator), 2);
    let setup = server.stop();
    let server = setup.with_flags(&["--audit-retention", "3"]).start();
    let operator = server.client.with_key(&operator_key);
    wait_for("the oldest line to go", || (old(&operator) == 1).then_some(()));
    let left: Vec<Value> = lines(&operator).into_iter().filter(|line| line["action"] != "old").collect();
    assert_eq!(left, told);
}
