//! Grants of task types, and the HTTP requests of tasks: what goes out, where to, and what does not. Against
//! real servers on loopback.

mod addresses;
mod limits;
mod peers;
mod secrets;

use std::sync::mpsc;

use peers::{Authority, Peer, bytes, ok};
use serde_json::{Value, json};

use crate::support::{Answer, Client, Server, guest, server, shared_server, wait_for};

const MERGE_PATCH: (&str, &str) = ("content-type", "application/merge-patch+json");

fn patch(client: &Client, name: &str, grants: &Value) -> Answer {
    let patch = json!({ "grants": grants }).to_string();
    client.send("PATCH", &format!("/task-types/{name}"), &[MERGE_PATCH], Some(patch.as_bytes()))
}

/// Grants the guest those destinations.
#[track_caller]
fn grant(client: &Client, destinations: &Value) {
    patch(client, guest("http"), &json!({ "http": destinations })).expect(200);
}

/// Runs the guest with these requests, one after the other, and returns what came of each.
#[track_caller]
fn ask(client: &Client, requests: &Value) -> Vec<Value> {
    let output = client.output(&json!({"task_type": guest("http"), "input": {"requests": requests}}));
    output.as_array().unwrap().clone()
}

/// The same with one request.
#[track_caller]
fn ask_one(client: &Client, request: &Value) -> Value {
    ask(client, &json!([request])).remove(0)
}

fn error(name: &str) -> Value {
    json!({ "error": name })
}

/// A server whose tasks may be granted loopback, and no more of what is not public.
fn with_loopback(flags: &[&str]) -> Server {
    server(&[&["--allow-network", "127.0.0.1"], flags].concat())
}

fn http_to(peer: &Peer) -> Value {
    json!([{"host": "127.0.0.1", "port": peer.port(), "scheme": "http"}])
}

fn get(peer: &Peer) -> Value {
    json!({"scheme": "http", "authority": peer.authority()})
}

#[test]
fn nothing_goes_out_without_a_grant() {
    let server = with_loopback(&[]);
    let client = &server.client;
    let peer = Peer::http(ok("hello"));
    let of_type = |name: &str| client.get(&format!("/task-types/{name}")).expect(200).json();
    assert_eq!((&of_type("http")["grants"], &of_type("http")["grants_missing"]), (&json!({}), &json!(["http"])));
    assert_eq!(of_type("echo")["grants_missing"], json!([]));
    assert_eq!(of_type("http")["state"], "held");
    client.post_task(&json!({"task_type": guest("http")}).to_string()).problem(409);

    grant(client, &http_to(&peer));
    grant(client, &Value::Null);
    let task = client.run(&json!({"task_type": guest("http"), "input": {"requests": [get(&peer)]}}));
    assert_eq!(task["output"], json!([error("HttpRequestDenied")]), "{task:#}");
    let logs = client.get(&format!("/task/{}/logs", task["id"].as_str().unwrap())).expect(200).text();
    let expected = format!("refused GET http://{}: it is not granted", peer.authority());
    assert!(logs.contains(&expected), "its author is told why: {logs}");
    assert_eq!(peer.connections(), 0);

    grant(client, &http_to(&peer));
    assert_eq!((&of_type("http")["grants"]["http"], &of_type("http")["grants_missing"]), (&http_to(&peer), &json!([])));
    assert_eq!(ask_one(client, &get(&peer))["body"], "hello");
    grant(client, &Value::Null);
    assert_eq!(ask_one(client, &get(&peer)), error("HttpRequestDenied"), "what is taken back is not granted");
    assert_eq!(peer.connections(), 1);
}

#[test]
fn a_request_arrives_as_it_was_made() {
    let server = with_loopback(&[]);
    let client = &server.client;
    let peer = Peer::http(bytes(
        *b"HTTP/1.1 201 Created\r\nx-a: b\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    ));
    grant(client, &http_to(&peer));
    let task = client.run(&json!({"task_type": guest("http"), "input": {"requests": [{
        "method": "POST", "scheme": "http", "authority": peer.authority(), "path": "/a/b?c=d",
        "headers": {"x-mine": "yes", "content-length": "5"}, "body": "hello"
    }]}}));
    assert_eq!(task["output"], json!([{"status": 201, "headers": {"x-a": "b"}, "body": "abc"}]), "{task:#}");
    let got = peer.got().remove(0);
    assert_eq!((got.line.as_str(), got.body.as_slice()), ("POST /a/b?c=d HTTP/1.1", &b"hello"[..]));
    assert_eq!(got.header("host"), [peer.authority()]);
    assert_eq!((got.header("x-mine"), got.header("connection")), (vec!["yes"], vec!["close"]));
    // The response has 76 bytes, and the request more than its body.
    let (usage, calls) = (&task["usage"], 1);
    assert_eq!(usage["host_calls"], calls, "{usage}");
    assert!((76 + 30..500).contains(&usage["io_bytes"].as_u64().unwrap()), "{usage}");
}

#[test]
fn only_the_granted_destination_and_methods() {
    let server = with_loopback(&["--resolve", "a.test=127.0.0.1,b.test=127.0.0.1"]);
    let client = &server.client;
    let (peer, other) = (Peer::http(ok("a")), Peer::http(ok("b")));
    let port = peer.port();
    grant(client, &json!([{"host": "a.test", "port": port, "scheme": "http", "methods": ["GET", "PUT"]}]));
    let of = |method: &str, scheme: &str, authority: String| json!({"method": method, "scheme": scheme, "authority": authority});
    let denied = [
        of("GET", "http", format!("b.test:{port}")),
        of("GET", "http", format!("127.0.0.1:{port}")),
        of("GET", "http", format!("a.test:{}", other.port())),
        of("GET", "http", "a.test".into()),
        of("GET", "https", format!("a.test:{port}")),
        of("POST", "http", format!("a.test:{port}")),
        of("get", "http", format!("a.test:{port}")),
        of("TRACE", "http", format!("a.test:{port}")),
        of("CONNECT", "http", format!("a.test:{port}")),
        of("GET", "http", format!("x.a.test:{port}")),
        of("GET", "http", format!("a.test.:{port}")),
    ];
    for (request, answer) in denied.iter().zip(ask(client, &json!(denied))) {
        assert_eq!(answer, error("HttpRequestDenied"), "{request}");
    }
    assert_eq!((peer.connections(), other.connections()), (0, 0));
    let granted = [of("GET", "http", format!("a.test:{port}")), of("PUT", "http", format!("A.Test:{port}"))];
    for answer in ask(client, &json!(granted)) {
        assert_eq!(answer["body"], "a", "{answer}");
    }
    assert!(peer.got().iter().all(|got| got.header("host") == [format!("a.test:{port}")]));
}

/// What makes two parties read one request in two ways.
#[test]
fn requests_that_could_mean_another_host() {
    let server = with_loopback(&[]);
    let client = &server.client;
    let peer = Peer::http(ok("a"));
    grant(client, &http_to(&peer));
    let (at, port) = (peer.authority(), peer.port());
    let of = |authority: &str, path: &str| json!({"scheme": "http", "authority": authority, "path": path});
    let mut refused = vec![
        (of(&format!("user@{at}"), "/"), "HttpRequestUriInvalid"),
        (of(&format!("user:word@{at}"), "/"), "HttpRequestUriInvalid"),
        (of(&format!("{at}@elsewhere.test"), "/"), "HttpRequestUriInvalid"),
        (of("127.0.0.1:", "/"), "HttpRequestUriInvalid"),
        (of(&at, "http://elsewhere.test/"), "path"),
        (of(&at, "elsewhere.test"), "path"),
        (of(&at, "*"), "path"),
        (of(&at, "/ HTTP/1.1\r\nhost: elsewhere.test\r\n"), "path"),
        (of(&at, &format!("/{}", "a".repeat(8192))), "path"),
        (of(&format!("{at}/x"), "/"), "authority"),
        (of(&format!("{at}\r\nhost: elsewhere.test"), "/"), "authority"),
        (of(&"a".repeat(513), "/"), "authority"),
        (json!({"scheme": "ftp", "authority": at}), "HttpProtocolError"),
        (json!({"scheme": "a".repeat(513), "authority": at}), "scheme"),
        (json!({"method": "A".repeat(513), "scheme": "http", "authority": at}), "method"),
        (
            json!({"scheme": "http", "authority": at, "headers": {"x": "a\r\nhost: elsewhere.test"}}),
            "header x: HeaderError::InvalidSyntax",
        ),
    ];
    for name in ["host", "connection", "transfer-encoding", "upgrade", "te", "trailer", "expect", "proxy-authorization"]
    {
        let request = json!({"scheme": "http", "authority": at, "headers": {name: "elsewhere.test"}});
        refused.push((request, "header"));
    }
    let requests: Vec<&Value> = refused.iter().map(|(request, _)| request).collect();
    for ((request, expected), answer) in refused.iter().zip(ask(client, &json!(requests))) {
        let told = answer["error"].as_str().unwrap_or_else(|| panic!("{request}: {answer}"));
        assert!(told.starts_with(expected), "{request}: {answer}");
    }
    assert_eq!(peer.connections(), 0);
    // Two slashes are a path, however much they look like a host.
    assert_eq!(ask_one(client, &of(&format!("127.0.0.1:{port}"), "//elsewhere.test/x"))["status"], 200);
    assert_eq!(peer.got()[0].line, "GET //elsewhere.test/x HTTP/1.1");
    assert_eq!(ask_one(client, &of(&at, "?x"))["status"], 200);
    assert_eq!(peer.got()[1].line, "GET /?x HTTP/1.1");
}

#[test]
fn a_redirect_is_a_request_like_any_other() {
    let server = with_loopback(&["--resolve", "a.test=127.0.0.1,b.test=127.0.0.1"]);
    let client = &server.client;
    let elsewhere = Peer::http(ok("elsewhere"));
    let there = format!("http://b.test:{}/secret", elsewhere.port());
    let moved = format!("HTTP/1.1 302 Found\r\nlocation: {there}\r\ncontent-length: 0\r\n\r\n");
    let peer = Peer::http(bytes(moved));
    let of = |host: &str, peer: &Peer| json!({"host": host, "port": peer.port(), "scheme": "http"});
    grant(client, &json!([of("a.test", &peer)]));
    let request =
        |follow: bool| json!({"scheme": "http", "authority": format!("a.test:{}", peer.port()), "follow": follow});
    let answer = ask_one(client, &request(false));
    assert_eq!((&answer["status"], &answer["headers"]["location"]), (&json!(302), &json!(there)), "none is followed");
    assert_eq!(ask_one(client, &request(true)), error("HttpRequestDenied"));
    assert_eq!(elsewhere.connections(), 0);
    grant(client, &json!([of("a.test", &peer), of("b.test", &elsewhere)]));
    assert_eq!(ask_one(client, &request(true))["body"], "elsewhere");
}

#[test]
fn tls_is_checked_for_the_name_that_was_granted() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let file = authority.file();
    let server =
        with_loopback(&["--resolve", "a.test=127.0.0.1,b.test=127.0.0.1", "--http-ca", file.to_str().unwrap()]);
    let client = &server.client;
    let peer = Peer::https(authority.server("a.test"), ok("safe"));
    let by_address = Peer::https(authority.server("127.0.0.1"), ok("address"));
    let unknown = Peer::https(stranger.server("a.test"), ok("stranger"));
    let of = |host: &str, peer: &Peer| json!({"host": host, "port": peer.port()});
    grant(
        client,
        &json!([
            of("a.test", &peer),
            of("b.test", &peer),
            of("127.0.0.1", &peer),
            of("a.test", &unknown),
            of("127.0.0.1", &by_address),
            of("b.test", &by_address),
        ]),
    );
    let to = |host: &str, peer: &Peer| json!({"authority": format!("{host}:{}", peer.port())});
    let answers = ask(
        client,
        &json!([
            to("a.test", &peer),
            to("127.0.0.1", &by_address),
            to("b.test", &peer),
            to("127.0.0.1", &peer),
            to("a.test", &unknown),
            to("b.test", &by_address),
        ]),
    );
    assert_eq!((&answers[0]["body"], &answers[1]["body"]), (&json!("safe"), &json!("address")), "{answers:?}");
    for answer in &answers[2..] {
        assert_eq!(*answer, error("TlsCertificateError"), "{answers:?}");
    }
    assert!(unknown.got().is_empty(), "nothing was sent to a stranger");
}

#[test]
fn without_the_operators_file_its_authority_is_a_stranger() {
    let authority = Authority::new();
    let server = with_loopback(&["--resolve", "a.test=127.0.0.1"]);
    let peer = Peer::https(authority.server("a.test"), ok("safe"));
    grant(&server.client, &json!([{"host": "a.test", "port": peer.port()}]));
    let request = json!({"authority": format!("a.test:{}", peer.port())});
    assert_eq!(ask_one(&server.client, &request), error("TlsCertificateError"));
}

#[test]
fn http_where_tls_is_spoken_and_the_other_way_round() {
    let authority = Authority::new();
    let file = authority.file();
    let server = with_loopback(&["--http-ca", file.to_str().unwrap()]);
    let client = &server.client;
    let plain = Peer::http(ok("plain"));
    let tls = Peer::https(authority.server("127.0.0.1"), ok("tls"));
    let of = |peer: &Peer, scheme: &str| json!({"host": "127.0.0.1", "port": peer.port(), "scheme": scheme});
    grant(client, &json!([of(&plain, "https"), of(&tls, "http")]));
    let answers = ask(
        client,
        &json!([
            {"scheme": "https", "authority": plain.authority(), "connect_ms": 2000},
            {"scheme": "http", "authority": tls.authority()},
        ]),
    );
    // A server that waits for a line waits for more, and one that answers says nothing that is TLS.
    let with_plain = answers[0]["error"].as_str().unwrap_or_default();
    assert!(["TlsProtocolError", "ConnectionTimeout"].contains(&with_plain), "{answers:?}");
    // Its alert is no HTTP, and it hangs up.
    let with_tls = answers[1]["error"].as_str().unwrap_or_default();
    assert!(["HttpProtocolError", "HttpResponseIncomplete", "ConnectionTerminated"].contains(&with_tls), "{answers:?}");
    assert!(plain.got().is_empty() && tls.got().is_empty());
}

#[test]
fn a_task_that_waits_for_a_peer_is_in_nobodys_way_and_leaves_nothing() {
    // The connection would be closed in an hour.
    let flags = ["--max-working", "1", "--guest-threads", "1", "--http-timeout", "3600000"];
    let server = with_loopback(&flags);
    let client = &server.client;
    let (closed, closes) = mpsc::channel();
    let peer = Peer::http(move |_, stream| {
        // Never answers; sees when the other side has gone.
        let _ = closed.send(stream.read(&mut [0]).unwrap_or(0));
    });
    grant(client, &http_to(&peer));
    let id = client.create(&json!({"task_type": guest("http"), "input": {"requests": [get(&peer)]}}));
    wait_for("its request", || (peer.got().len() == 1).then_some(()));
    assert_eq!(
        client.output(&json!({"task_type": "echo", "input": 1})),
        1,
        "there is one thread and one place to work"
    );
    assert_eq!(client.status(&id), "Running");
    client.post(&format!("/task/{id}/cancel")).expect(202);
    assert_eq!(closes.recv_timeout(crate::support::PATIENCE), Ok(0), "the connection goes with the attempt");
}

#[test]
fn grants_that_cannot_be() {
    let server = shared_server();
    let client = &server.client;
    let before = client.get("/task-types/http").expect(200).json();
    for (grants, pointer) in [
        (json!({"files": true}), "#/grants/files"),
        (json!([]), "#/grants"),
        (json!({"http": [{"host": "A"}]}), "#/grants/http/0/host"),
        (json!({"http": [{"host": "a"}, {"host": "a", "port": 0}]}), "#/grants/http/1/port"),
        (json!({"http": {"host": "a"}}), "#/grants/http"),
        (json!({"http": [{"host": "a", "methods": ["CONNECT"]}]}), "#/grants/http/0/methods"),
        (json!({"http": [{"host": "a", "scheme": "http", "secrets": ["a"]}]}), "#/grants/http/0/secrets"),
        (json!({"http": [{"host": "a", "secrets": ["A"]}]}), "#/grants/http/0/secrets"),
        (json!({"http": [{"host": "a", "secrets": vec!["a"; 17]}]}), "#/grants/http/0/secrets"),
        (json!({"env": {"A=/": "b"}}), "#/grants/env/A%3D~1"),
        (json!({"config": {"a": 1}}), "#/grants/config/a"),
    ] {
        let problem = patch(client, "http", &grants).problem(422);
        assert_eq!(problem["errors"][0]["pointer"], pointer, "{grants}: {problem}");
    }
    assert_eq!(client.get("/task-types/http").expect(200).json(), before, "nothing changed");
}

#[test]
fn grants_are_merged_kept_and_taken_back() {
    let server = server(&[]);
    let client = &server.client;
    let of_type = |client: &Client| client.get("/task-types/http").expect(200).json()["grants"].clone();
    patch(client, "http", &json!({"http": [{"host": "a"}], "env": {"A": "1", "B": "2"}})).expect(200);
    let patched = patch(client, "http", &json!({"env": {"A": null, "C": "3"}})).expect(200).json();
    let expected = json!({"http": [{"host": "a", "scheme": "https"}], "env": {"B": "2", "C": "3"}});
    assert_eq!((&patched["grants"], of_type(client)), (&expected, expected.clone()));
    let server = server.stop().start();
    assert_eq!(of_type(&server.client), expected, "and over a restart");
    patch(&server.client, "http", &Value::Null).expect(200);
    assert_eq!(of_type(&server.client), json!({}));
}
