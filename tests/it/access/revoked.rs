//! A key that is revoked: what was not sent whole before is not done, and nobody waits on.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use super::*;
use crate::support::hostile;
use crate::support::time::in_millis;

/// Sends the head of a request, and waits until the server asks for its body.
fn begin(server: &Server, key: &str, method: &str, path: &str, media: &str, body: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(&server.address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ncontent-type: {media}\r\n\
         content-length: {}\r\nexpect: 100-continue\r\n\r\n",
        body.len()
    )
    .unwrap();
    let mut asked = [0; 25];
    stream.read_exact(&mut asked).unwrap();
    assert_eq!(&asked, b"HTTP/1.1 100 Continue\r\n\r\n", "{method} {path}");
    stream
}

fn revoke(server: &Server, operator: &Client, key: &str) {
    let id = key.split('_').nth(1).unwrap();
    operator.delete(&format!("/tenants/a/keys/{id}")).expect(200);
    server.client.with_key(key).get("/tenant").expect(401);
}

const CALLS: [(&str, &str, &str, &[u8]); 8] = [
    ("POST", "/task", "application/json", br#"{"task_type":"echo"}"#),
    ("POST", "/tasks", "application/json", br#"[{"task_type":"echo"}]"#),
    ("POST", "/tasks/cancel", "application/json", b"{}"),
    ("POST", "/keys", "application/json", br#"{"role":"admin"}"#),
    ("POST", "/task-types/echo/test", "application/json", b"{}"),
    ("PUT", "/objects/o", "application/octet-stream", b"bytes"),
    ("PUT", "/schedules/s", "application/json", br#"{"cron":"0 0 1 1 *","task":{"task_type":"echo"}}"#),
    ("PATCH", "/task-types/mine", "application/merge-patch+json", br#"{"retention_ms":5}"#),
];

#[test]
fn what_is_still_being_sent_is_not_done() {
    let (server, keys) = with_keys();
    let operator = server.client.with_key(&keys[&("operator", 4)]);
    let other = server.client.with_key(&keys[&("a", 4)]);
    let wasm = [("content-type", "application/wasm"), ("prefer", "wait=60")];
    other.send("PUT", "/task-types/mine", &wasm, Some(component(guest("echo-blocking")))).expect(201);
    for whole in [false, true] {
        let key = server.setup().make_key("a", "admin", &[]);
        let mut open: Vec<_> = CALLS
            .iter()
            .map(|(method, path, media, body)| {
                let mut stream = begin(&server, &key, method, path, media, body);
                // All but the last byte, or nothing.
                let sent = if whole { body.len() - 1 } else { 0 };
                stream.write_all(&body[..sent]).unwrap();
                (stream, &body[sent..], path)
            })
            .collect();
        revoke(&server, &operator, &key);
        for (stream, rest, path) in &mut open {
            // The server may have closed the connection.
            let _ = stream.write_all(rest);
            let mut answer = [0; 12];
            stream.read_exact(&mut answer).unwrap_or_else(|error| panic!("{path}: {error}"));
            assert_eq!(&answer, b"HTTP/1.1 401", "{path}");
        }
    }
    assert_eq!(other.get("/tasks").expect(200).json()["tasks"], json!([]));
    assert_eq!(other.get("/objects").expect(200).json()["objects"], json!([]));
    assert_eq!(other.get("/schedules").expect(200).json()["schedules"], json!([]));
    assert_eq!(other.get("/task-types/mine").expect(200).json()["retention_ms"], Value::Null);
    // Those that were made for the test, and none that a revoked one made.
    let good = other.get("/keys").expect(200).json()["keys"].as_array().unwrap().len();
    assert_eq!(good, ROLES.len() + 2);
}

/// Of many tasks in one request those stay that were stored before.
#[test]
fn nothing_is_stored_any_more_of_many_tasks() {
    let (server, keys) = with_keys();
    let operator = server.client.with_key(&keys[&("operator", 4)]);
    let other = server.client.with_key(&keys[&("a", 4)]);
    let key = server.setup().make_key("a", "submit", &[]);
    let line = b"{\"task_type\":\"echo\",\"delay_ms\":3600000}\n";
    let body = line.repeat(1000);
    let mut stream = begin(&server, &key, "POST", "/tasks", "application/x-ndjson", &body);
    let (sent, rest) = body.split_at(600 * line.len() + 7);
    stream.write_all(sent).unwrap();
    let pending = || other.get("/tenant").expect(200).json()["quotas"]["pending_tasks"]["used"].as_u64().unwrap();
    // They are stored some at a time.
    let before = wait_for("the first to be stored", || Some(pending()).filter(|pending| *pending >= 512));
    revoke(&server, &operator, &key);
    let _ = stream.write_all(rest);
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 401");
    other.create(&json!({"task_type": "echo", "delay_ms": 3_600_000}));
    assert_eq!(pending(), before + 1);
}

/// What is still on its way to a client ends with the key, whatever ends that.
#[test]
fn a_download_is_cut_off() {
    // More than the system takes of it for a client that does not read.
    const BYTES: usize = 64 << 20;
    let setup = Setup::new(&["--max-object-bytes", "67108864"]).with_components(None);
    let admin = setup.make_key("default", "admin", &[]);
    let server = setup.start();
    let admin = server.client.with_key(&admin);
    admin.send("PUT", "/objects/large", &[], Some(&vec![7; BYTES])).expect(201);
    let begin = |body: Value| {
        let made = admin.send("POST", "/keys", &[JSON], Some(body.to_string().as_bytes())).expect(201).json();
        let mut stream = TcpStream::connect(&server.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let key = made["key"].as_str().unwrap();
        let head = format!("GET /objects/large HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        let mut status = [0; 12];
        let begun = stream.read_exact(&mut status).is_ok() && &status == b"HTTP/1.1 200";
        (made, begun.then_some(stream))
    };
    let cut = |made: Value, mut stream: TcpStream| {
        let client = server.client.with_key(made["key"].as_str().unwrap());
        wait_for("the end of the key", || (client.get("/tenant").status == 401).then_some(()));
        let mut rest = Vec::new();
        // A reset is an end as well.
        let _ = stream.read_to_end(&mut rest);
        assert!(rest.len() < BYTES, "all of it came");
    };
    let (made, stream) = begin(json!({"role": "read"}));
    admin.delete(&format!("/keys/{}", made["id"].as_str().unwrap())).expect(200);
    cut(made, stream.unwrap());
    // One that expires: it has to be good until the download has begun.
    let mut times = [1_000, 3_000, 9_000, 27_000].into_iter();
    let (made, stream) = loop {
        let made = begin(json!({"role": "read", "expires_at": in_millis(times.next().unwrap())}));
        if let (made, Some(stream)) = made {
            break (made, stream);
        }
    };
    cut(made, stream);
}

#[test]
fn nobody_waits_on() {
    let (server, keys) = with_keys();
    let operator = server.client.with_key(&keys[&("operator", 4)]);
    let other = server.client.with_key(&keys[&("a", 4)]);
    let key = server.setup().make_key("a", "admin", &[]);
    let sleeps = json!({"task_type": guest("sleep-forever")}).to_string().into_bytes();
    let trial = format!("/task-types/{}/test", guest("sleep-forever"));
    let slow = hostile::slow(component(guest("echo-blocking")), 400);
    let waiting = [
        ("POST", "/task".to_owned(), JSON, sleeps),
        ("POST", trial, JSON, b"{}".to_vec()),
        ("PUT", "/task-types/slow".to_owned(), ("content-type", "application/wasm"), slow),
    ];
    let waiting = waiting.map(|(method, path, content_type, body)| {
        let client = server.client.with_key(&key);
        std::thread::spawn(move || {
            let headers = [content_type, ("prefer", "wait=50")];
            client.send(method, &path, &headers, Some(&body)).status
        })
    });
    let running = || other.get("/tenant").expect(200).json()["quotas"]["running_tasks"]["used"] == 2;
    wait_for("the task and the test to run", || running().then_some(()));
    let is_compiled = || other.get("/task-types/slow").json()["state"] == "compiling";
    wait_for("the upload to be compiled", || is_compiled().then_some(()));
    revoke(&server, &operator, &key);
    for waiting in waiting {
        assert_eq!(waiting.join().unwrap(), 401);
    }
    // The task is the tenant's, and goes on; the test ends with who wanted it.
    let one = || other.get("/tenant").expect(200).json()["quotas"]["running_tasks"]["used"] == 1;
    wait_for("the test to end", || one().then_some(()));
    assert_eq!(other.get("/tasks?status=Running").expect(200).json()["tasks"].as_array().unwrap().len(), 1);
}

/// What was sent whole and has to wait for its turn is not done any more.
#[test]
fn what_waits_for_its_turn_is_not_done() {
    let (server, keys) = with_keys();
    let operator = server.client.with_key(&keys[&("operator", 4)]);
    let other = server.client.with_key(&keys[&("a", 4)]);
    let wasm = ("content-type", "application/wasm");
    // Each takes the one who looks at uploads tens of milliseconds.
    let long = hostile::long_and_broken(component(guest("echo-blocking")));
    let stored = || {
        let types = other.get("/task-types").expect(200).json();
        let named = |found: &&Value| found["name"].as_str().unwrap().starts_with("mine-");
        types["task_types"].as_array().unwrap().iter().filter(named).count()
    };
    let is_cut_off = |round| {
        let key = server.setup().make_key("a", "admin", &[]);
        let client = server.client.with_key(&key);
        let at_first = stored();
        let (before, statuses): (usize, Vec<u16>) = std::thread::scope(|scope| {
            let uploads: Vec<_> = (0..10)
                .map(|at| {
                    let (client, long, name) = (&client, &long, format!("/task-types/mine-{round}-{at}"));
                    scope.spawn(move || client.send("PUT", &name, &[wasm], Some(long)).status)
                })
                .collect();
            wait_for("the first to be stored", || (stored() > at_first).then_some(()));
            revoke(&server, &operator, &key);
            (stored(), uploads.into_iter().map(|upload| upload.join().unwrap()).collect())
        });
        assert_eq!(stored(), before, "more are stored than when it was revoked");
        assert_eq!(statuses.iter().filter(|status| **status == 201).count(), before - at_first, "{statuses:?}");
        assert!(statuses.iter().all(|status| matches!(status, 201 | 401)), "{statuses:?}");
        statuses.contains(&401)
    };
    // All of that may be quicker than the revocation.
    assert!((0..5).any(is_cut_off));
    // A type whose many tasks have to be canceled first, which may be quicker as well.
    let many = Value::from(vec![json!({"task_type": "own", "delay_ms": 600_000}); 10_000]).to_string();
    let is_kept = |_| {
        let key = server.setup().make_key("a", "admin", &[]);
        let client = server.client.with_key(&key);
        let put = [wasm, ("prefer", "wait=60")];
        other.send("PUT", "/task-types/own", &put, Some(component(guest("echo-blocking"))));
        for _ in 0..2 {
            other.send("POST", "/tasks", &[JSON], Some(many.as_bytes())).expect(200);
        }
        let pending = || other.get("/tenant").expect(200).json()["quotas"]["pending_tasks"]["used"].as_u64();
        let before = pending();
        std::thread::scope(|scope| {
            let removal = scope.spawn(|| client.delete("/task-types/own?cancel=true").status);
            wait_for("them to be canceled", || (pending() < before).then_some(()));
            revoke(&server, &operator, &key);
            removal.join().unwrap() == 401 && other.get("/task-types/own").status == 200
        })
    };
    assert!((0..10).any(is_kept));
}

#[test]
fn a_key_can_take_itself_back() {
    let (server, _) = with_keys();
    let key = server.setup().make_key("a", "admin", &[]);
    let client = server.client.with_key(&key);
    let path = format!("/keys/{}", key.split('_').nth(1).unwrap());
    client.delete(&path).expect(200);
    client.delete(&path).expect(401);
}

#[test]
fn when_it_was_used_last_is_kept_by_a_server_that_stops() {
    let (server, keys) = with_keys();
    let key = server.setup().make_key("a", "read", &[]);
    server.client.with_key(&key).get("/tasks").expect(200);
    let server = server.stop().start();
    let admin = server.client.with_key(&keys[&("a", 4)]);
    let listed = admin.get("/keys").expect(200).json();
    let id = key.split('_').nth(1).unwrap();
    let this = listed["keys"].as_array().unwrap().iter().find(|key| key["id"] == id).unwrap();
    assert!(this["last_used_at"].is_string(), "{this:#}");
}

/// A key for some types revokes none that it could not make, writes no secrets, and is none of the operator's.
#[test]
fn a_key_for_some_types_takes_nothing_from_others() {
    let (server, keys) = with_keys();
    let make = |listed: &[&str]| server.setup().make_key("a", "admin", listed);
    let id = |key: &str| key.split('_').nth(1).unwrap().to_owned();
    let client = server.client.with_key(&make(&["--task-type", "echo"]));
    for other in [&keys[&("a", 4)], &make(&["--task-type", "echo", "--task-type", "primes"])] {
        client.delete(&format!("/keys/{}", id(other))).expect(403);
        server.client.with_key(other).get("/tenant").expect(200);
    }
    client.delete(&format!("/keys/{}", id(&make(&["--task-type", "echo"])))).expect(200);
    client.send("PUT", "/secrets/s", &[], Some(b"value")).expect(403);
    client.delete("/secrets/s").expect(403);
    let mut command = taskcell();
    command
        .args(["key", "create", "--tenant", "operator", "--role", "admin", "--task-type", "echo", "--data-dir"])
        .arg(server.setup().data_dir());
    assert!(refused(&mut command).contains("for all task types"));
}

/// What comes with the server is there for all, whoever wants to remove it.
#[test]
fn types_that_come_with_the_server_stay() {
    let (server, keys) = with_keys();
    let operator = server.client.with_key(&keys[&("operator", 4)]);
    for name in ["echo", guest("sleep")] {
        let refused = operator.delete(&format!("/task-types/{name}")).expect(409).json();
        assert_eq!(refused["type"], "/problems/shared-task-type");
    }
    server.client.with_key(&keys[&("a", 4)]).output(&json!({"task_type": "echo", "input": 1}));
}
