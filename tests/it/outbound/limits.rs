//! The limits of HTTP requests, each with a peer or a guest that runs into it.

use std::time::Duration;

use serde_json::{Value, json};

use super::peers::{Got, Peer, Stream, bytes, ok};
use super::{ask, ask_one, error, get, grant, http_to, with_loopback};
use crate::support::{Client, guest, wait_for};

/// Sends a head and the first half of a body, and waits until the other side has gone.
fn half(_: &Got, stream: &mut dyn Stream) {
    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello");
    let _ = stream.flush();
    let _ = stream.read(&mut [0]);
}

fn at_once(client: &Client, requests: &Value) -> Value {
    client.output(&json!({"task_type": guest("http"), "input": {"requests": requests, "at_once": true}}))
}

#[test]
fn requests_of_an_attempt() {
    let server = with_loopback(&["--http-requests", "3"]);
    let client = &server.client;
    let peer = Peer::http(ok("a"));
    grant(client, &http_to(&peer));
    let mut requests = vec![get(&peer); 3];
    requests.insert(1, json!({"scheme": "http", "authority": "elsewhere.test"}));
    let answers = ask(client, &json!(requests));
    assert_eq!(answers[1], error("HttpRequestDenied"), "one that is refused counts as well");
    assert_eq!((&answers[0]["body"], &answers[2]["body"]), (&json!("a"), &json!("a")));
    assert_eq!(answers[3], error("ConnectionLimitReached"));
    assert_eq!(peer.connections(), 2);
    assert_eq!(ask_one(client, &get(&peer))["body"], "a", "another attempt has its own");
}

/// By 64 tasks at once.
#[test]
fn requests_of_a_tenant_in_an_hour() {
    let server = with_loopback(&["--http-requests-per-hour", "10"]);
    let client = &server.client;
    let peer = Peer::http(ok("a"));
    grant(client, &http_to(&peer));
    let ask_all = || -> Vec<Value> {
        std::thread::scope(|scope| {
            let asking: Vec<_> = (0..64).map(|_| scope.spawn(|| ask_one(client, &get(&peer)))).collect();
            asking.into_iter().map(|asking| asking.join().unwrap()).collect()
        })
    };
    let used = || client.get("/tenant").expect(200).json()["quotas"]["http_requests_per_hour"].clone();
    // What is not granted does not go out, and is not counted.
    assert_eq!(ask_one(client, &json!({"scheme": "http", "authority": "elsewhere.test"})), error("HttpRequestDenied"));
    assert_eq!(used(), json!({"limit": 10, "used": 0}));
    let answers = ask_all();
    assert_eq!(answers.iter().filter(|answer| answer["body"] == "a").count(), 10);
    assert_eq!(answers.iter().filter(|answer| **answer == error("ConnectionLimitReached")).count(), 54);
    assert_eq!((peer.connections(), used()), (10, json!({"limit": 10, "used": 10})));
    // More, while it runs.
    let patch = |body: &str| {
        let headers = [("content-type", "application/merge-patch+json")];
        client.send("PATCH", "/tenants/default", &headers, Some(body.as_bytes())).expect(200)
    };
    patch(r#"{"quotas":{"http_requests_per_hour":13}}"#);
    assert_eq!(ask_all().iter().filter(|answer| answer["body"] == "a").count(), 3);
    patch(r#"{"quotas":{"http_requests_per_hour":1}}"#);
    let task = client.run(&json!({"task_type": guest("http"), "input": {"requests": [get(&peer)]}}));
    assert_eq!(task["output"], json!([error("ConnectionLimitReached")]));
    let logs = client.get(&format!("/task/{}/logs", task["id"].as_str().unwrap())).expect(200).text();
    assert!(logs.contains("only 1 are allowed in an hour"), "{logs}");
    assert_eq!(peer.connections(), 13);
}

#[test]
fn connections_of_an_attempt_at_once() {
    for (flags, refused) in [
        (["--http-connections", "2"], 1),
        (["--http-connections", "3"], 0),
        (["--max-http-connections", "2"], 1),
        (["--max-http-connections", "3"], 0),
    ] {
        let server = with_loopback(&flags);
        let client = &server.client;
        let peer = Peer::http(half);
        grant(client, &http_to(&peer));
        // The guest keeps each response until it has seen the last, and the peer keeps each open.
        let request = json!({"scheme": "http", "authority": peer.authority(), "heads": true, "connect_ms": if refused > 0 { 5000 } else { 30_000 }});
        let answers = at_once(client, &json!(vec![request; 3]));
        let answers = answers.as_array().unwrap();
        let count = |wanted: &dyn Fn(&Value) -> bool| answers.iter().filter(|answer| wanted(answer)).count();
        assert_eq!(count(&|answer| *answer == error("ConnectionLimitReached")), refused, "{flags:?}: {answers:?}");
        assert_eq!(count(&|answer| answer["status"] == 200), 3 - refused, "{flags:?}: {answers:?}");
        assert_eq!(peer.connections(), 3 - refused, "{flags:?}");
    }
}

#[test]
fn a_turn_comes_when_a_connection_is_closed() {
    let server = with_loopback(&["--http-connections", "1"]);
    let client = &server.client;
    let peer = Peer::http(ok("a"));
    grant(client, &http_to(&peer));
    let answers = ask(client, &json!(vec![get(&peer); 20]));
    assert!(answers.iter().all(|answer| answer["body"] == "a"), "{answers:?}");
}

#[test]
fn bytes_of_a_response() {
    let server = with_loopback(&["--http-body-bytes", "5000"]);
    let client = &server.client;
    let body = |length: usize| "x".repeat(length);
    let plain = |length: usize| format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{}", body(length));
    let chunked = |lengths: &[usize]| {
        let chunks: String = lengths.iter().map(|length| format!("{length:x}\r\n{}\r\n", body(*length))).collect();
        format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{chunks}0\r\n\r\n")
    };
    let until_closed = |length: usize| format!("HTTP/1.1 200 OK\r\n\r\n{}", body(length));
    for (response, expected) in [
        (plain(5000), json!(5000)),
        (plain(5001), json!("HttpResponseBodySize")),
        (chunked(&[4000, 1000]), json!(5000)),
        (chunked(&[4000, 1001]), json!("body: HttpResponseBodySize")),
        (until_closed(5000), json!(5000)),
        (until_closed(5001), json!("body: HttpResponseBodySize")),
    ] {
        let head = response[..60].to_owned();
        let peer = Peer::http(bytes(response));
        grant(client, &http_to(&peer));
        let answer = ask_one(client, &get(&peer));
        let told = if answer["error"].is_null() { &answer["body"] } else { &answer["error"] };
        assert_eq!(*told, expected, "{head}");
    }
}

#[test]
fn bytes_of_a_request() {
    let server = with_loopback(&["--http-body-bytes", "50000"]);
    let client = &server.client;
    let peer = Peer::http(ok("a"));
    grant(client, &http_to(&peer));
    let post =
        |bytes: usize| json!({"method": "POST", "scheme": "http", "authority": peer.authority(), "body_bytes": bytes});
    assert_eq!(ask_one(client, &post(50_000))["body"], "a");
    assert_eq!(peer.got()[0].body.len(), 50_000);
    assert_eq!(ask_one(client, &post(50_001)), error("HttpRequestBodySize"));
    assert_eq!(peer.got().len(), 1, "no whole request came");
}

#[test]
fn the_head_of_a_response() {
    let server = with_loopback(&[]);
    let client = &server.client;
    let field = |length: usize| format!("HTTP/1.1 200 OK\r\nx: {}\r\ncontent-length: 0\r\n\r\n", "x".repeat(length));
    let fields = |count: usize| {
        let fields: String = (0..count).map(|number| format!("x{number}: y\r\n")).collect();
        format!("HTTP/1.1 200 OK\r\n{fields}content-length: 0\r\n\r\n")
    };
    for (response, expected) in [
        (field(30_000), None),
        (field(70_000), Some("HttpResponseHeaderSectionSize")),
        (fields(90), None),
        (fields(110), Some("HttpResponseHeaderSectionSize")),
        ("HTTP/1.1 200 OK\r\nno field\r\n\r\n".into(), Some("HttpProtocolError")),
        ("HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab".into(), Some("HttpProtocolError")),
        ("HTTP/1.1 200 OK\r\ncontent-le".into(), Some("HttpResponseIncomplete")),
        (String::new(), Some("HttpResponseIncomplete")),
    ] {
        let start: String = response.chars().take(60).collect();
        let peer = Peer::http(bytes(response));
        grant(client, &http_to(&peer));
        let answer = ask_one(client, &get(&peer));
        match expected {
            None => assert_eq!(answer["status"], 200, "{start:?}: {answer}"),
            Some(name) => assert_eq!(answer, error(name), "{start:?}"),
        }
    }
}

#[test]
fn the_operators_time() {
    let server = with_loopback(&["--http-timeout", "2000"]);
    let client = &server.client;
    // Whatever longer time the guest asks for.
    let patient = |peer: &Peer, scheme: &str| {
        let ms = 3_600_000;
        json!({"scheme": scheme, "authority": peer.authority(), "connect_ms": ms, "first_byte_ms": ms, "between_bytes_ms": ms})
    };
    let peers = [Peer::silent(), Peer::http(half), Peer::silent()];
    grant(
        client,
        &json!([
            http_to(&peers[0])[0], http_to(&peers[1])[0], {"host": "127.0.0.1", "port": peers[2].port()},
        ]),
    );
    let answers =
        ask(client, &json!([patient(&peers[0], "http"), patient(&peers[1], "http"), patient(&peers[2], "https"),]));
    let expected = ["ConnectionReadTimeout", "body: ConnectionReadTimeout", "ConnectionTimeout"];
    assert_eq!(answers, expected.map(error));
}

#[test]
fn the_guests_own_time() {
    let server = with_loopback(&[]);
    let client = &server.client;
    let (never, half, silent) = (Peer::silent(), Peer::http(half), Peer::silent());
    grant(
        client,
        &json!([
            http_to(&never)[0], http_to(&half)[0], {"host": "127.0.0.1", "port": silent.port()},
        ]),
    );
    let answers = ask(
        client,
        &json!([
            {"scheme": "http", "authority": never.authority(), "first_byte_ms": 100},
            {"scheme": "http", "authority": never.authority(), "first_byte_ms": 0},
            {"scheme": "http", "authority": half.authority(), "between_bytes_ms": 100},
            {"scheme": "http", "authority": half.authority(), "between_bytes_ms": 0},
            {"scheme": "https", "authority": silent.authority(), "connect_ms": 100},
            {"scheme": "http", "authority": never.authority(), "connect_ms": 0},
        ]),
    );
    let (read, body) = ("ConnectionReadTimeout", "body: ConnectionReadTimeout");
    assert_eq!(answers[..3], [read, read, body].map(error));
    // Its body may be there as soon as its head, or not.
    assert!(answers[3]["error"] == body, "{answers:?}");
    assert_eq!(answers[4], error("ConnectionTimeout"));
    let at_all = answers[5]["error"].as_str().unwrap_or_default();
    assert!(["ConnectionTimeout", "ConnectionLimitReached", read].contains(&at_all), "{answers:?}");
}

/// A body that comes slowly is no body that does not come.
#[test]
fn pauses_are_counted_one_by_one() {
    let server = with_loopback(&["--http-timeout", "3000"]);
    let client = &server.client;
    let peer = Peer::http(|_, stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\n");
        for _ in 0..8 {
            std::thread::sleep(Duration::from_millis(500));
            let _ = stream.write_all(b"x");
            let _ = stream.flush();
        }
    });
    grant(client, &http_to(&peer));
    assert_eq!(ask_one(client, &get(&peer))["body"], "xxxxxxxx");
}

#[test]
fn the_attempts_own_limits_hold_for_its_requests() {
    let server = with_loopback(&[]);
    let client = &server.client;
    let (never, peer) = (Peer::silent(), Peer::http(ok("a")));
    grant(client, &json!([http_to(&never)[0], http_to(&peer)[0]]));
    let task = |peer: &Peer, limits: Value| json!({"task_type": guest("http"), "input": {"requests": [get(peer)]}, "limits": limits});
    assert_eq!(client.failure(&task(&never, json!({"timeout_ms": 300})))["error"]["kind"], "timeout");
    // A connection's buffers are what the host holds for it.
    assert_eq!(client.output(&task(&peer, json!({"host_memory_bytes": 300_000})))[0]["body"], "a");
    assert_eq!(client.output(&task(&peer, json!({"host_memory_bytes": 150_000})))[0], error("InternalError"));
    // And what the guest has made but not sent.
    let fields = |fields: usize| json!({"task_type": guest("http"), "input": {"fields": fields}, "limits": {"host_memory_bytes": 16 << 20}});
    assert_eq!(client.run(&fields(400))["status"], "Completed");
    assert_eq!(client.failure(&fields(600))["error"]["kind"], "memory_exceeded");
    let large = json!({"scheme": "http", "authority": peer.authority(), "headers": {"x": "x".repeat(17_000)}});
    let large = json!({"task_type": guest("http"), "input": {"requests": [large]}});
    assert_eq!(client.failure(&large)["error"]["kind"], "trap");
    wait_for("the peer to see one request", || (peer.got().len() == 1).then_some(()));
}

#[test]
fn a_response_that_breaks_off() {
    let server = with_loopback(&[]);
    let client = &server.client;
    for response in [
        "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nhello\r\n",
    ] {
        let peer = Peer::http(bytes(response));
        grant(client, &http_to(&peer));
        assert_eq!(ask_one(client, &get(&peer)), error("body: HttpResponseIncomplete"), "{response:?}");
    }
}
