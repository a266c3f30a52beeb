//! Clients that are slow, silent, many or too much: cut off, while others are served.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::server::Setup;
use crate::support::{Client, Server, guest, server, wait_for, wait_within};

/// How long the server waits for a client here.
const TIMEOUT_MS: &str = "500";

/// Within this it must have noticed.
const CUT_OFF: Duration = Duration::from_secs(10);

fn connect(server: &Server) -> TcpStream {
    let stream = TcpStream::connect(&server.address).unwrap();
    stream.set_read_timeout(Some(CUT_OFF)).unwrap();
    stream
}

/// Everything the server sends until it closes the connection, which it must do in time.
#[track_caller]
fn read_to_close(stream: &mut TcpStream) -> String {
    let mut text = Vec::new();
    let mut piece = [0; 4096];
    let start = Instant::now();
    loop {
        match stream.read(&mut piece) {
            Ok(0) => break,
            Ok(length) => text.extend_from_slice(&piece[..length]),
            Err(error) if matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => break,
            Err(error) => panic!("still open after {CUT_OFF:?}: {error}"),
        }
        assert!(start.elapsed() < CUT_OFF, "it goes on and on");
    }
    String::from_utf8_lossy(&text).into_owned()
}

#[track_caller]
fn status(answer: &str) -> u16 {
    let line = answer.lines().next().unwrap_or_default();
    line.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("no status in {answer:?}"))
}

/// Others are served meanwhile.
#[track_caller]
fn is_alive(server: &Server) {
    let client = Client::new(&format!("http://{}", server.address));
    client.get("/healthz").expect(200);
    assert_eq!(client.output(&json!({"task_type": "echo", "input": 1})), 1);
}

#[test]
fn half_a_request_is_cut_off() {
    let server = server(&["--client-timeout", TIMEOUT_MS]);
    let halves = [
        "",
        "G",
        "GET /healthz HTTP/1.1\r\nhost: x\r\nx-part:",
        "POST /task HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n",
        "POST /task HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{\"task_type\":",
        "POST /task HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n5\r\n{\"tas\r\n",
        "PUT /objects/half HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\nhalf",
    ];
    let mut streams: Vec<(&str, TcpStream)> = Vec::new();
    for half in halves {
        let mut stream = connect(&server);
        stream.write_all(half.as_bytes()).unwrap();
        streams.push((half, stream));
    }
    is_alive(&server);
    for (half, mut stream) in streams {
        let answer = read_to_close(&mut stream);
        // Told, where there was a head to answer.
        if half.contains("\r\n\r\n") {
            assert_eq!(status(&answer), 408, "{half}: {answer}");
            assert!(answer.contains("application/problem+json"), "{half}: {answer}");
        }
    }
    server.client.get("/objects/half").problem(404);
    assert_eq!(server.client.get("/tasks").expect(200).json()["tasks"].as_array().unwrap().len(), 1);
}

/// A client that sends a byte now and then is no quicker than one that sends none.
#[test]
fn dripping_is_no_way_around() {
    let server = server(&["--client-timeout", TIMEOUT_MS]);
    let beginnings = [
        "GET /healthz HTTP/1.1\r\nx-drip: ",
        "POST /task HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 100000\r\n\r\n\"",
        "POST /tasks HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 100000\r\n\r\n[\"",
    ];
    for beginning in beginnings {
        let mut stream = connect(&server);
        stream.write_all(beginning.as_bytes()).unwrap();
        let start = Instant::now();
        // The write fails, or the read finds the end, once the server has closed.
        stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let mut piece = [0; 4096];
        loop {
            let closed = match stream.read(&mut piece) {
                Ok(length) => length == 0,
                Err(error) => !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
            };
            if closed || stream.write_all(b"x").is_err() {
                break;
            }
            assert!(start.elapsed() < CUT_OFF, "it is still listened to: {beginning}");
        }
    }
    is_alive(&server);
}

/// Large bodies that do not arrive take all the room that a tenant may have for such, and small ones need none.
#[test]
fn large_bodies_that_hang_hold_up_no_small_ones() {
    let server = server(&["--client-timeout", "60000"]);
    let item = |n: usize| json!({"task_type": "echo", "labels": {"of": n.to_string()}}).to_string();
    let hanging: Vec<TcpStream> = (0..3)
        .map(|n| {
            let mut stream = connect(&server);
            // As many as are stored before the rest has arrived: then its room is taken.
            let body = format!("[{},", vec![item(n); 256].join(","));
            let head = "content-type: application/json\r\ntransfer-encoding: chunked";
            let length = body.len();
            let request = format!("POST /tasks HTTP/1.1\r\nhost: x\r\n{head}\r\n\r\n{length:x}\r\n{body}\r\n");
            stream.write_all(request.as_bytes()).unwrap();
            stream
        })
        .collect();
    for n in 0..hanging.len() {
        wait_for("its beginning to be stored", || {
            let tasks = server.client.get(&format!("/tasks?limit=1&label=of:{n}")).expect(200).json();
            (!tasks["tasks"].as_array().unwrap().is_empty()).then_some(())
        });
    }
    let small = format!("[{}]", item(4));
    let answer = server.client.send("POST", "/tasks", &[("content-type", "application/json")], Some(small.as_bytes()));
    assert_eq!(answer.expect(200).json()["results"][0]["status"], 202);
    // And not because one of them was given up in the meantime.
    for mut stream in hanging {
        stream.set_nonblocking(true).unwrap();
        let answered = stream.read(&mut [0]);
        assert!(answered.as_ref().is_err_and(|error| error.kind() == ErrorKind::WouldBlock), "{answered:?}");
    }
}

/// However slowly large bodies come, one tenant's leave room to the others.
#[test]
fn one_tenants_slow_bodies_hold_up_no_other() {
    let setup = Setup::new(&["--client-timeout", "60000"]);
    let [a, b] = ["a", "b"].map(|tenant| {
        setup.make_tenant(tenant);
        setup.make_key(tenant, "submit", &[])
    });
    let server = setup.start();
    // Each is asked for its body once there is room for all of it: 256 MiB, of which one tenant has 192 at most.
    let hanging = (0..20).map(|n| {
        let mut stream = connect(&server);
        let head = format!("authorization: Bearer {a}\r\nexpect: 100-continue\r\ncontent-length: {}", 16 << 20);
        stream.write_all(format!("PUT /objects/o{n} HTTP/1.1\r\nhost: x\r\n{head}\r\n\r\n").as_bytes()).unwrap();
        stream.set_nonblocking(true).unwrap();
        (stream, false)
    });
    let mut hanging: Vec<(TcpStream, bool)> = hanging.collect();
    let mut asked = || {
        for (stream, asked) in &mut hanging {
            *asked |= stream.read(&mut [0; 64]).is_ok_and(|length| length > 0);
        }
        hanging.iter().filter(|(_, asked)| *asked).count()
    };
    wait_for("as much room to be taken as may", || (asked() >= 12).then_some(()));
    let b = server.client.with_key(&b);
    for name in ["one", "two", "three"] {
        b.send("PUT", &format!("/objects/{name}"), &[], Some(&vec![1; 8 << 20])).expect(201);
    }
    assert_eq!(asked(), 12);
}

/// Between two requests of a connection nobody waits for ever, and a wait is no idle time.
#[test]
fn idle_connections_end_and_waits_do_not() {
    let server = server(&["--client-timeout", TIMEOUT_MS]);
    let mut stream = connect(&server);
    stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    let answer = read_to_close(&mut stream);
    assert_eq!(status(&answer), 200);

    let body = json!({"task_type": guest("sleep"), "input": {"ms": 2_000}}).to_string();
    let answer = server.client.post_task_and_wait(&body, "wait=30").expect(200);
    assert_eq!(answer.json()["status"], "Completed");
}

/// Who takes no answers does not keep them in the server's memory for ever.
#[test]
fn a_client_that_does_not_read_is_cut_off() {
    let server = server(&["--client-timeout", TIMEOUT_MS]);
    server.client.send("PUT", "/objects/large", &[], Some(&vec![7; 16 << 20])).expect(201);
    let open = || {
        let metrics = server.client.get("/metrics").expect(200).text();
        let line = metrics.lines().find_map(|line| line.strip_prefix("taskcell_http_connections ")).unwrap();
        line.parse::<usize>().unwrap()
    };
    let before = open();
    let mut stream = connect(&server);
    for _ in 0..4 {
        stream.write_all(b"GET /objects/large HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    }
    wait_for("the connection to be open", || (open() > before).then_some(()));
    wait_within(CUT_OFF, "the connection to be closed", || (open() <= before).then_some(()));
    is_alive(&server);
    drop(stream);
}

/// No more connections than allowed are served; the next is served when one of them ends.
#[test]
fn connections_are_bounded() {
    let server = server(&["--max-connections", "3"]);
    let request = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n";
    let served = |stream: &mut TcpStream, patience: Duration| {
        stream.set_read_timeout(Some(patience)).unwrap();
        let mut piece = [0; 4096];
        stream.read(&mut piece).is_ok_and(|length| piece[..length].starts_with(b"HTTP/1.1 200"))
    };
    let mut held: Vec<TcpStream> = (0..3)
        .map(|_| {
            let mut stream = connect(&server);
            stream.write_all(request).unwrap();
            assert!(served(&mut stream, CUT_OFF));
            stream
        })
        .collect();
    let mut next = connect(&server);
    next.write_all(request).unwrap();
    assert!(!served(&mut next, Duration::from_millis(500)), "a fourth connection is served");
    held.pop();
    assert!(served(&mut next, CUT_OFF), "there is room, and it is not served");
}

/// However many of them wait, one tenant's clients leave connections to the others.
#[test]
fn one_tenants_clients_do_not_hold_all_connections() {
    let setup = Setup::new(&["--max-connections", "24"]);
    let [a, b] = ["a", "b"].map(|tenant| {
        setup.make_tenant(tenant);
        setup.make_key(tenant, "deploy", &[])
    });
    let server = setup.start();
    let a_key = a;
    let (a, b) = (server.client.with_key(&a_key), Client::new(&format!("http://{}", server.address)).with_key(&b));
    let forever = json!({"task_type": guest("sleep-forever")});
    let id = a.create(&forever);
    let waiting: Vec<_> = (0..9)
        .map(|_| {
            let (client, path) = (a.clone(), format!("/task/{id}/result"));
            std::thread::spawn(move || client.get_with(&path, &[("prefer", "wait=60")]))
        })
        .collect();
    // Eighteen in all, once all of those wait.
    let stream = |client: &Client| client.stream("/events", &[]);
    let mut streams: Vec<_> = (0..9).map(|_| stream(&a)).collect();
    assert!(streams.iter().all(|(status, ..)| *status == 200));
    let headers = wait_for("no room for one more", || {
        let (status, headers, _) = stream(&a);
        (status == 429).then_some(headers)
    });
    assert_eq!(headers["ratelimit-policy"], "\"held-connections\";q=18;qu=\"concurrent-requests\"");
    let answer = a.post_task_and_wait(&forever.to_string(), "wait=60").expect(202);
    assert_eq!(answer.header("preference-applied"), None);
    let test = format!("/task-types/{}/test", guest("sleep-forever"));
    let refused = a.send("POST", &test, &[("content-type", "application/json")], Some(b"{}")).problem(429);
    assert_eq!(refused["type"], "/problems/too-many-waiting");
    // Nor does what waits to be looked at.
    for (method, media_type) in [("PUT", "application/wasm"), ("PATCH", "application/merge-patch+json")] {
        let refused = a.send(method, "/task-types/mine", &[("content-type", media_type)], Some(b"{}")).problem(429);
        assert_eq!(refused["type"], "/problems/too-many-waiting", "{method}");
    }
    // Bodies that do not come count as well, and those that are there do not.
    for path in ["/task", "/tasks"] {
        let mut stream = connect(&server);
        let head = format!("authorization: Bearer {a_key}\r\ncontent-type: application/json\r\ncontent-length: 100");
        stream.write_all(format!("POST {path} HTTP/1.1\r\nhost: x\r\n{head}\r\n\r\n[").as_bytes()).unwrap();
        let answer = read_to_close(&mut stream);
        assert_eq!(status(&answer), 429, "{answer}");
        assert!(answer.contains("connection: close") && answer.contains("/problems/too-many-waiting"), "{answer}");
    }
    a.create(&json!({"task_type": "echo"}));
    assert_eq!(b.output(&json!({"task_type": "echo", "input": 1})), 1);
    assert_eq!(stream(&b).0, 200);
    // What ends makes room.
    a.post(&format!("/task/{id}/cancel")).expect(202);
    for waiting in waiting {
        assert_eq!(waiting.join().unwrap().status, 409);
    }
    streams.push(stream(&a));
    assert_eq!(streams.last().unwrap().0, 200);
}

/// What is left of a body that nobody looks at is no request: the answer says that the connection ends.
#[test]
fn an_answer_to_a_body_that_is_not_read_ends_the_connection() {
    let server = server(&[]);
    let mut stream = connect(&server);
    let body = "GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n".repeat(10_000);
    let head = format!("content-type: text/plain\r\ncontent-length: {}", body.len());
    stream.write_all(format!("POST /task HTTP/1.1\r\nhost: x\r\n{head}\r\n\r\n").as_bytes()).unwrap();
    // It may be cut off in the middle of it.
    let _ = stream.write_all(body.as_bytes());
    let answer = read_to_close(&mut stream);
    assert_eq!(status(&answer), 415);
    assert!(answer.contains("connection: close"), "{answer}");
    assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
}

/// A connection is counted once: where its request waits already, its body need not come at once.
#[test]
fn a_slow_body_of_a_request_that_waits() {
    let server = server(&["--max-connections", "2"]);
    let mut stream = connect(&server);
    let body = json!({"task_type": "echo", "input": 1}).to_string();
    let head = format!("content-type: application/json\r\nprefer: wait=60\r\ncontent-length: {}", body.len());
    stream.write_all(format!("POST /task HTTP/1.1\r\nhost: x\r\n{head}\r\n\r\n").as_bytes()).unwrap();
    // Longer than a body may take without being counted.
    std::thread::sleep(Duration::from_millis(1_500));
    stream.write_all(body.as_bytes()).unwrap();
    let mut piece = [0; 4096];
    let length = stream.read(&mut piece).unwrap();
    assert_eq!(status(&String::from_utf8_lossy(&piece[..length])), 200);
}

/// Who may not do what is asked for is answered, and holds no more connections than others.
#[test]
fn slow_bodies_of_requests_that_are_refused_are_counted() {
    let setup = Setup::new(&["--max-connections", "24"]);
    for tenant in ["a", "b"] {
        setup.make_tenant(tenant);
    }
    let (read, b) = (setup.make_key("a", "read", &[]), setup.make_key("b", "submit", &[]));
    let server = setup.start();
    for (key, expected) in [(read.as_str(), 403), ("none", 401)] {
        // Eighteen may be read on for some seconds; the others are answered when they have taken one.
        let request = format!(
            "POST /task HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ncontent-type: application/json\r\n\
             content-length: 100\r\n\r\n["
        );
        let started = Instant::now();
        let mut hanging: Vec<TcpStream> = (0..23)
            .map(|_| {
                let mut stream = connect(&server);
                stream.write_all(request.as_bytes()).unwrap();
                stream.set_nonblocking(true).unwrap();
                stream
            })
            .collect();
        let mut answered = Vec::new();
        wait_for("all to be answered", || {
            hanging.retain_mut(|stream| {
                let mut piece = [0; 4096];
                let Ok(length) = stream.read(&mut piece) else { return true };
                assert_eq!(status(&String::from_utf8_lossy(&piece[..length])), expected);
                answered.push(started.elapsed());
                false
            });
            hanging.is_empty().then_some(())
        });
        // The last of those for which there is no room is answered seconds before the first of the others.
        let (last, first) = (answered[4], answered[5]);
        assert!(first - last > Duration::from_secs(1), "{answered:?}");
    }
    let b = Client::new(&format!("http://{}", server.address)).with_key(&b);
    assert_eq!(b.output(&json!({"task_type": "echo", "input": 1})), 1);
}

/// Bodies for which there is no room yet are counted like those that do not come.
#[test]
fn bodies_that_wait_for_room_hold_connections() {
    let setup = Setup::new(&["--max-connections", "24", "--client-timeout", "60000"]);
    let [a, b] = ["a", "b"].map(|tenant| {
        setup.make_tenant(tenant);
        setup.make_key(tenant, "submit", &[])
    });
    let server = setup.start();
    let b = Client::new(&format!("http://{}", server.address)).with_key(&b);
    // Three of them take all the room that a tenant may have, and the others wait for it.
    let mut hanging: Vec<TcpStream> = (0..23)
        .map(|_| {
            let mut stream = connect(&server);
            let head =
                format!("authorization: Bearer {a}\r\ncontent-type: application/json\r\ntransfer-encoding: chunked");
            stream.write_all(format!("POST /tasks HTTP/1.1\r\nhost: x\r\n{head}\r\n\r\n").as_bytes()).unwrap();
            stream.set_nonblocking(true).unwrap();
            stream
        })
        .collect();
    let mut refused = 0;
    wait_for("those that are too many to be refused", || {
        hanging.retain_mut(|stream| {
            let mut piece = [0; 4096];
            let Ok(length) = stream.read(&mut piece) else { return true };
            refused += 1;
            assert_eq!(status(&String::from_utf8_lossy(&piece[..length])), 429);
            false
        });
        (refused == 5).then_some(())
    });
    assert_eq!(b.output(&json!({"task_type": "echo", "input": 1})), 1);
}

#[test]
fn huge_heads_are_refused() {
    let server = server(&["--client-timeout", "5000"]);
    let large = "x".repeat(1 << 20);
    let many: String = (0..20_000).map(|number| format!("x-{number}: {number}\r\n")).collect();
    for head in [
        format!("GET /{large} HTTP/1.1\r\nhost: x\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nhost: x\r\nx-large: {large}\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nhost: x\r\n{many}\r\n"),
        format!("{large} / HTTP/1.1\r\n\r\n"),
    ] {
        let mut stream = connect(&server);
        // The server need not read all of it.
        let _ = stream.write_all(head.as_bytes());
        let answer = read_to_close(&mut stream);
        if !answer.is_empty() {
            assert!((400..500).contains(&status(&answer)), "{answer}");
        }
        is_alive(&server);
    }
}

#[test]
fn what_is_no_http_is_refused() {
    let server = server(&["--client-timeout", TIMEOUT_MS]);
    for bytes in [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 hello, TLS here".as_slice(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nconnection: close\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nhost: a\r\nhost: b\r\nconnection: close\r\n\r\n",
        b"\0\0\0\0\r\n\r\n",
        b"POST /task HTTP/1.1\r\nhost: x\r\ncontent-length: -5\r\n\r\n",
        b"POST /task HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello!",
        b"POST /task HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\ncontent-type: application/json\r\n\r\nzz\r\n",
    ] {
        let mut stream = connect(&server);
        stream.write_all(bytes).unwrap();
        let answer = read_to_close(&mut stream);
        if !answer.is_empty() {
            assert!((400..600).contains(&status(&answer)) && status(&answer) != 500, "{answer}");
        }
    }
    is_alive(&server);
    assert!(!server.log().contains("panicked"), "{}", server.log());
}
