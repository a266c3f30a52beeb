//! Secrets in requests: put in for the hosts that are listed, and taken out of what comes back.

use std::cell::RefCell;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::peers::{Authority, Got, Peer, Stream, ok};
use super::{ask, ask_one, error, grant};
use crate::secrets::{key_file, put};
use crate::support::server::{Setup, taskcell};
use crate::support::{Client, Server, guest, temp_dir};

/// A value that is in no file, log or answer by chance.
const VALUE: &str = "Zk7-s3cr3t+Value/0f=a~Test.";
const MASKED: &str = "***************************";

/// What a test with secrets needs: an authority for its peers, and a directory outside of the data's.
struct World {
    authority: Authority,
    directory: TempDir,
}

impl World {
    fn new() -> World {
        World { authority: Authority::new(), directory: temp_dir() }
    }

    /// The flags of a server, with that key or without one.
    fn flags(&self, key: Option<u8>) -> Vec<String> {
        let ca = self.authority.file();
        let mut flags: Vec<String> =
            ["--allow-network", "127.0.0.1", "--resolve", "a.test=127.0.0.1,b.test=127.0.0.1", "--http-ca"]
                .map(str::to_owned)
                .to_vec();
        flags.push(ca.to_str().unwrap().to_owned());
        if let Some(key) = key {
            flags.push("--secret-key-file".into());
            flags.push(key_file(self.directory.path(), key).to_str().unwrap().to_owned());
        }
        flags
    }

    fn setup(&self) -> Setup {
        with(&Setup::new(&[]), &self.flags(Some(1)))
    }

    fn server(&self) -> Server {
        self.setup().start()
    }

    fn peer(&self, respond: impl Fn(&Got, &mut dyn Stream) + Send + Sync + 'static) -> Peer {
        Peer::https(self.authority.server("a.test"), respond)
    }
}

fn with(setup: &Setup, flags: &[String]) -> Setup {
    setup.clone().with_flags(&flags.iter().map(String::as_str).collect::<Vec<_>>())
}

/// The destination `a.test`, with these secrets.
fn listed(peer: &Peer, secrets: &[&str]) -> Value {
    json!({"host": "a.test", "port": peer.port(), "secrets": secrets})
}

/// A request there with these headers.
fn request(peer: &Peer, headers: Value) -> Value {
    json!({"authority": format!("a.test:{}", peer.port()), "headers": headers})
}

fn bearer(peer: &Peer, name: &str) -> Value {
    request(peer, json!({"authorization": format!("Bearer {{{{secret:{name}}}}}")}))
}

/// Runs the guest with these requests, and returns the task and its log.
fn run(client: &Client, input: Value) -> (Value, String) {
    let task = client.run(&json!({"task_type": guest("http"), "input": input}));
    let log = client.get(&format!("/task/{}/logs", task["id"].as_str().unwrap())).expect(200).text();
    (task, log)
}

/// Says what it got: in a field, and in a body that comes byte by byte.
fn echo(got: &Got, stream: &mut dyn Stream) {
    let said = got.header("authorization").join(",");
    let _ =
        write!(stream, "HTTP/1.1 401 Unauthorized\r\nx-said: you said {said}\r\ntransfer-encoding: chunked\r\n\r\n");
    for byte in format!("no such token: {said}; {said}").bytes() {
        let _ = write!(stream, "1\r\n{}\r\n", char::from(byte));
        let _ = stream.flush();
    }
    let _ = write!(stream, "0\r\n\r\n");
}

#[test]
fn it_is_put_in_for_the_listed_host_only() {
    let world = World::new();
    let server = world.server();
    let client = &server.client;
    let (listing, other) = (world.peer(ok("a")), Peer::https(world.authority.server("b.test"), ok("b")));
    let plain = Peer::http(ok("c"));
    put(client, "api-token", VALUE).expect(201);
    put(client, "user", "another value").expect(201);
    grant(
        client,
        &json!([
            listed(&listing, &["api-token", "user"]),
            {"host": "b.test", "port": other.port()},
            {"host": "a.test", "port": plain.port(), "scheme": "http"},
        ]),
    );
    let mut posted = request(
        &listing,
        json!({
            "authorization": "Bearer {{secret:api-token}}",
            "x-both": "{{secret:user}}:{{secret:api-token}}:{{secret:user}}",
            "x-none": "secret:user}}",
            "accept-encoding": "gzip",
        }),
    );
    posted["method"] = "POST".into();
    posted["path"] = "/{{secret:user}}".into();
    posted["body"] = "{{secret:user}}".into();
    assert_eq!(ask_one(client, &posted)["body"], "a");
    let got = listing.got().remove(0);
    assert_eq!(got.header("authorization"), [format!("Bearer {VALUE}")]);
    assert_eq!(got.header("x-both"), [format!("another value:{VALUE}:another value")]);
    assert_eq!(got.header("x-none"), ["secret:user}}"]);
    assert_eq!(got.header("accept-encoding"), ["identity"], "so that what comes back can be looked through");
    // Headers alone are looked at.
    assert_eq!((got.line.as_str(), got.body.as_slice()), ("POST /{{secret:user}} HTTP/1.1", &b"{{secret:user}}"[..]));

    let mut elsewhere = bearer(&other, "api-token");
    elsewhere["authority"] = format!("b.test:{}", other.port()).into();
    let mut unsafely = bearer(&plain, "api-token");
    unsafely["scheme"] = "http".into();
    let (task, log) = run(client, json!({"requests": [elsewhere, unsafely]}));
    assert_eq!(task["output"], json!([error("HttpRequestDenied"), error("HttpRequestDenied")]), "{task:#}");
    for at in [format!("https://b.test:{}", other.port()), format!("http://a.test:{}", plain.port())] {
        let line = format!("refused GET {at}: the secret api-token is not granted there");
        assert!(log.contains(&line), "{line} is not in {log}");
    }
    assert_eq!((other.connections(), plain.connections()), (0, 0));

    // A request without a secret is as ever.
    assert_eq!(ask_one(client, &request(&listing, json!({"accept-encoding": "gzip"})))["body"], "a");
    assert_eq!(listing.got()[1].header("accept-encoding"), ["gzip"]);
}

#[test]
fn what_a_peer_says_of_it_is_masked() {
    let world = World::new();
    let server = world.server();
    let client = &server.client;
    let peer = world.peer(echo);
    put(client, "api-token", VALUE).expect(201);
    grant(client, &json!([listed(&peer, &["api-token"])]));
    let expected = json!([{
        "status": 401,
        "headers": {"x-said": format!("you said Bearer {MASKED}")},
        "body": format!("no such token: Bearer {MASKED}; Bearer {MASKED}"),
    }]);
    let requests = json!([bearer(&peer, "api-token")]);
    let (task, _) = run(client, json!({"requests": requests}));
    assert_eq!(task["output"], expected, "{task:#}");
    let (task, log) = run(client, json!({"requests": requests, "fail": true}));
    let message = task["error"]["message"].as_str().unwrap_or_else(|| panic!("{task:#}"));
    assert_eq!(serde_json::from_str::<Value>(message).unwrap(), expected);
    assert!(log.contains(MASKED), "{log}");
    assert_eq!(peer.got().len(), 2);
    assert!(peer.got().iter().all(|got| got.header("authorization") == [format!("Bearer {VALUE}")]));

    // A body with a length has that length.
    let whole = world.peer(|got, stream| {
        let said = got.header("authorization").join(",");
        let _ = write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{said}", said.len());
    });
    grant(client, &json!([listed(&whole, &["api-token"])]));
    let answer = ask_one(client, &bearer(&whole, "api-token"));
    assert_eq!(
        (&answer["body"], &answer["headers"]["content-length"]),
        (&json!(format!("Bearer {MASKED}")), &json!("34"))
    );
}

#[test]
fn what_cannot_be_put_in_is_not_sent() {
    let world = World::new();
    let server = world.server();
    let client = &server.client;
    let peer = world.peer(ok("a"));
    let many: Vec<String> = (0..17).map(|number| format!("s{number}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    put(client, "gone", VALUE).expect(201);
    put(client, "large", &"x".repeat(8192)).expect(201);
    for name in &many {
        put(client, name, VALUE).expect(201);
    }
    // A destination lists no more than 16.
    let two =
        json!([listed(&peer, &["gone", "unknown", "large"]), listed(&peer, &many[..16]), listed(&peer, &many[16..])]);
    grant(client, &two);
    client.delete("/secrets/gone").expect(200);
    let all = |names: &[&str]| names.iter().map(|name| format!("{{{{secret:{name}}}}}")).collect::<String>();
    for (value, told, why) in [
        (all(&["other"]), "HttpRequestDenied", "the secret other is not granted there"),
        (all(&["s1", "other"]), "HttpRequestDenied", "the secret other is not granted there"),
        (all(&["unknown"]), "HttpRequestDenied", "there is no secret unknown"),
        (all(&["gone"]), "HttpRequestDenied", "there is no secret gone"),
        (all(&many), "HttpRequestDenied", "only 16 secrets are allowed in a request"),
        ("{{secret:".into(), "HttpRequestDenied", "without a secret's name"),
        ("{{secret:S1}}".into(), "HttpRequestDenied", "without a secret's name"),
        (all(&["large", "large"]), "HttpRequestHeaderSectionSize", "its fields have more than 16384 bytes"),
    ] {
        let (task, log) = run(client, json!({"requests": [request(&peer, json!({"x": value}))]}));
        assert_eq!(task["output"], json!([error(told)]), "{value}: {task:#}");
        assert!(log.contains(why) && log.contains("refused GET https://a.test:"), "{value}: {log}");
        assert!(log.contains("\"warn\""), "{log}");
    }
    assert_eq!(peer.connections(), 0);
    let good = [all(&many[..16]), all(&["large"])];
    for value in &good {
        assert_eq!(ask_one(client, &request(&peer, json!({"x": value})))["body"], "a");
    }
    assert_eq!(peer.got()[0].header("x"), [VALUE.repeat(16)]);
    // The next request has what was written meanwhile.
    put(client, "s1", "a new value").expect(200);
    assert_eq!(ask_one(client, &request(&peer, json!({"x": all(&["s1"])})))["body"], "a");
    assert_eq!(peer.got()[2].header("x"), ["a new value"]);
}

/// What is copied and held back for the sake of secrets is held for the attempt.
#[test]
fn the_attempts_memory_holds_for_it() {
    let world = World::new();
    let server = world.server();
    let client = &server.client;
    let peer = world.peer(ok("a"));
    put(client, "api-token", VALUE).expect(201);
    grant(client, &json!([listed(&peer, &["api-token"])]));
    let of = |request: Value, bytes: u64| {
        client.output(&json!({
            "task_type": guest("http"), "input": {"requests": [request]}, "limits": {"host_memory_bytes": bytes}
        }))
    };
    assert_eq!(of(request(&peer, json!({})), 250_000)[0]["body"], "a");
    assert_eq!(of(bearer(&peer, "api-token"), 250_000)[0], error("InternalError"));
    assert_eq!(of(bearer(&peer, "api-token"), 400_000)[0]["body"], "a");
}

#[test]
fn the_key_decides_after_a_restart() {
    let world = World::new();
    let peer = world.peer(ok("a"));
    let server = world.server();
    put(&server.client, "api-token", VALUE).expect(201);
    grant(&server.client, &json!([listed(&peer, &["api-token"])]));
    let mut setup = server.stop();
    for (key, why) in [
        (Some(1), None),
        (Some(2), Some("the secret api-token cannot be opened: it was sealed with another key")),
        (None, Some("the server has no key for secrets")),
        (Some(1), None),
    ] {
        let server = with(&setup, &world.flags(key)).start();
        let before = peer.got().len();
        let (task, log) = run(&server.client, json!({"requests": [bearer(&peer, "api-token")]}));
        match why {
            None => assert_eq!(task["output"][0]["body"], "a", "{task:#}"),
            Some(why) => {
                assert_eq!(task["output"][0], error("HttpRequestDenied"), "{task:#}");
                assert!(log.contains(why), "{log}");
            }
        }
        assert_eq!(peer.got().len() - before, usize::from(why.is_none()));
        setup = server.crash();
    }
}

/// Whoever can write to the database, and has no key, cannot have a secret sent as another.
#[test]
fn a_row_under_another_name_does_not_open() {
    let world = World::new();
    let peer = world.peer(ok("a"));
    let server = world.server();
    put(&server.client, "public", "not so secret").expect(201);
    put(&server.client, "private", VALUE).expect(201);
    grant(&server.client, &json!([listed(&peer, &["public"])]));
    let setup = server.stop();
    let database = rusqlite::Connection::open(setup.database()).unwrap();
    let moved = "UPDATE secret SET sealed = (SELECT sealed FROM secret WHERE name = 'private') WHERE name = 'public'";
    assert_eq!(database.execute(moved, []).unwrap(), 1);
    drop(database);
    let server = setup.start();
    let list = server.client.get("/secrets").expect(200).json();
    let usable: Vec<&Value> = list["secrets"].as_array().unwrap().iter().map(|secret| &secret["usable"]).collect();
    assert_eq!(usable, [true, false], "{list}");
    let (task, log) = run(&server.client, json!({"requests": [bearer(&peer, "public")]}));
    assert_eq!(task["output"][0], error("HttpRequestDenied"), "{task:#}");
    assert!(log.contains("the secret public cannot be opened"), "{log}");
    assert_eq!(peer.connections(), 0);
}

/// All files under a directory that have these bytes in them; and how many there are.
fn files_with(directory: &Path, bytes: &[u8]) -> (Vec<PathBuf>, usize) {
    let (mut with, mut all, mut open) = (Vec::new(), 0, vec![directory.to_owned()]);
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else if path.is_file() && path.extension().is_none_or(|extension| extension != "cwasm") {
                all += 1;
                if has(&fs::read(&path).unwrap(), bytes) {
                    with.push(path);
                }
            }
        }
    }
    (with, all)
}

fn has(text: &[u8], bytes: &[u8]) -> bool {
    text.windows(bytes.len()).any(|window| window == bytes)
}

/// The value is nowhere but where it was sent to, and in a backup no more than in the database.
#[test]
fn the_value_is_nowhere() {
    let world = World::new();
    let peer = world.peer(echo);
    let server = world.setup().with_env("RUST_LOG", "trace").start();
    let client = &server.client;
    let answers = RefCell::new(Vec::new());
    let keep = |answer: crate::support::Answer| {
        let mut kept = answers.borrow_mut();
        kept.extend_from_slice(format!("{:?}", answer.headers).as_bytes());
        kept.extend_from_slice(&answer.body);
        answer
    };
    keep(put(client, "api-token", VALUE)).expect(201);
    keep(put(client, "api-token", VALUE)).expect(200);
    keep(put(client, "api-token", &format!("{VALUE}\n"))).problem(422);
    keep(put(client, "API-TOKEN", VALUE)).problem(422);
    grant(client, &json!([listed(&peer, &["api-token"])]));
    let requests = json!([bearer(&peer, "api-token"), bearer(&peer, "other")]);
    let (done, _) = run(client, json!({"requests": requests}));
    let (failed, _) = run(client, json!({"requests": requests, "fail": true}));
    let test = json!({"input": {"requests": requests}}).to_string();
    let headers = [("content-type", "application/json")];
    keep(client.send("POST", "/task-types/http/test", &headers, Some(test.as_bytes()))).expect(200);
    assert_eq!(peer.got().len(), 3);
    assert!(peer.got().iter().all(|got| has(got.header("authorization")[0].as_bytes(), VALUE.as_bytes())));
    let mut paths: Vec<String> =
        ["/secrets", "/tasks", "/task-types", "/task-types/http", "/metrics", "/openapi.json", "/problems"]
            .map(str::to_owned)
            .to_vec();
    for task in [&done, &failed] {
        let id = task["id"].as_str().unwrap();
        paths.extend(["", "/status", "/logs", "/attempts"].map(|part| format!("/task/{id}{part}")));
    }
    paths.push(format!("/task/{}/result", done["id"].as_str().unwrap()));
    for path in paths {
        keep(client.get(&path)).expect(200);
    }
    let value = VALUE.as_bytes();
    assert!(!has(&answers.borrow(), value));
    assert!(has(&answers.borrow(), MASKED.as_bytes()), "the answers do tell what came back");

    let backup = world.directory.path().join("backup");
    let mut command: Command = taskcell();
    command.arg("backup").arg(&backup).arg("--data-dir").arg(server.setup().data_dir());
    assert!(command.output().unwrap().status.success());
    assert!(!has(&fs::read(&backup).unwrap(), value));
    let (found, files) = files_with(server.setup().data_dir(), value);
    assert!(found.is_empty() && files >= 3, "{found:?} of {files}");
    let log = server.log();
    assert!(!has(log.as_bytes(), value) && log.contains("TRACE"), "the log is one with all in it");
    let setup = server.stop();
    assert!(files_with(setup.data_dir(), value).0.is_empty());

    // With the key a restored server has it.
    let restored = with(&Setup::new(&[]), &world.flags(Some(1)));
    let mut command = taskcell();
    command.arg("restore").arg(&backup).arg("--data-dir").arg(restored.data_dir());
    assert!(command.output().unwrap().status.success());
    let server = restored.start();
    let answers = ask(&server.client, &json!([bearer(&peer, "api-token")]));
    assert_eq!(answers[0]["headers"]["x-said"], format!("you said Bearer {MASKED}"));
    assert_eq!(peer.got()[3].header("authorization"), [format!("Bearer {VALUE}")]);
}
