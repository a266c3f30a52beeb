//! Named objects: over HTTP and for tasks the same.

use std::io::{Read, Write};
use std::net::TcpStream;

use serde_json::{Value, json};

use crate::support::{Answer, Client, Server, guest, server};

fn put(client: &Client, name: &str, data: &[u8]) -> Answer {
    client.send("PUT", &format!("/objects/{name}"), &[], Some(data))
}

fn put_if(client: &Client, name: &str, data: &[u8], condition: (&str, &str)) -> Answer {
    client.send("PUT", &format!("/objects/{name}"), &[condition], Some(data))
}

/// What the guest says came of one call.
fn by_guest(client: &Client, input: Value) -> Value {
    client.output(&json!({"task_type": guest("objects"), "input": input}))
}

fn names(client: &Client, query: &str) -> Vec<String> {
    let page = client.get(&format!("/objects?{query}")).expect(200).json();
    page["objects"].as_array().unwrap().iter().map(|object| object["name"].as_str().unwrap().to_owned()).collect()
}

fn encoded(name: &str) -> String {
    name.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'0'..=b'9' | b'/' | b'-' => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

#[test]
fn clients_and_tasks_see_the_same() {
    let server = server(&[]);
    let client = &server.client;
    put(client, "from/client", "grüße".as_bytes()).expect(201);
    assert_eq!(
        by_guest(client, json!({"op": "read", "name": "from/client"})),
        json!({"ok": {"bytes": 7, "data": "grüße"}})
    );
    assert_eq!(by_guest(client, json!({"op": "write", "name": "from/task", "data": "é"})), json!({"ok": null}));
    let read = client.get("/objects/from/task").expect(200);
    assert_eq!((read.body.as_slice(), read.header("content-type")), ("é".as_bytes(), Some("application/octet-stream")));
    assert_eq!(by_guest(client, json!({"op": "list", "prefix": "from/"})), json!({"ok": ["from/client", "from/task"]}));
    assert_eq!(names(client, "prefix=from/"), ["from/client", "from/task"]);

    assert_eq!(by_guest(client, json!({"op": "remove", "name": "from/client"})), json!({"ok": null}));
    client.get("/objects/from/client").problem(404);
    client.delete("/objects/from/task").expect(200);
    for op in ["read", "remove"] {
        assert_eq!(by_guest(client, json!({"op": op, "name": "from/task"}))["error"], "not-found");
    }
    client.delete("/objects/from/task").problem(404);
    assert_eq!(names(client, ""), [""; 0]);

    // What goes over the wire is on the receipt.
    let task =
        client.run(&json!({"task_type": guest("objects"), "input": {"op": "write", "name": "x", "bytes": 5000}}));
    assert_eq!((&task["usage"]["io_bytes"], &task["usage"]["host_calls"]), (&json!(5000), &json!(1)), "{task:#}");
}

#[test]
fn any_bytes() {
    let server = server(&[]);
    let client = &server.client;
    let all: Vec<u8> = (0..=255).cycle().take(3 << 20).collect();
    for (name, data) in [("empty", [].as_slice()), ("all", &all), ("zero", &[0; 100])] {
        put(client, name, data).expect(201);
        let read = client.get(&format!("/objects/{name}")).expect(200);
        assert!(read.body == data, "{name}");
        let head = client.send("HEAD", &format!("/objects/{name}"), &[], None).expect(200);
        assert_eq!(head.header("content-length"), Some(data.len().to_string().as_str()), "{name}");
        assert_eq!(head.header("etag"), read.header("etag"), "{name}");
        assert!(head.body.is_empty());
    }
    client.send("HEAD", "/objects/nonesuch", &[], None).expect(404);
}

#[test]
fn names_that_are_allowed() {
    let server = server(&[]);
    let client = &server.client;
    let long = "x".repeat(512);
    let good = ["a", "a/b/c.txt", "…", "é", "😀", "..a", "a..", " ", "%2F", "a?b#c&d=e+f", "\\", "~", "con", &long];
    for name in good {
        put(client, &encoded(name), name.as_bytes()).expect(201);
        assert_eq!(client.get(&format!("/objects/{}", encoded(name))).expect(200).body, name.as_bytes(), "{name:?}");
        let read = by_guest(client, json!({"op": "read", "name": name}));
        assert_eq!(read["ok"]["data"], name, "{name:?}: {read}");
    }
    let mut sorted = good.map(str::to_owned);
    sorted.sort();
    assert_eq!(names(client, ""), sorted);
}

#[test]
fn names_that_are_not() {
    let server = server(&[]);
    let client = &server.client;
    let long = "x".repeat(513);
    for name in ["/", "a/", "/a", "a//b", ".", "..", "a/../b", "a/.", "a\nb", "a\0b", "\u{7f}", "e\u{301}", &long] {
        let path = encoded(name);
        // An HTTP client resolves dots itself, unless they are hidden.
        let path = path.replace('.', "%2E");
        put(client, &path, b"x").problem(422);
        for method in ["GET", "DELETE"] {
            client.send(method, &format!("/objects/{path}"), &[], None).problem(422);
        }
        for op in ["write", "read", "remove"] {
            let told = by_guest(client, json!({"op": op, "name": name, "data": "x"}));
            assert_eq!(told["error"], "invalid-name", "{op} {name:?}: {told}");
        }
    }
    assert_eq!(by_guest(client, json!({"op": "write", "name": "", "data": "x"}))["error"], "invalid-name");
    assert!((400..500).contains(&put(client, "%FF%FE", b"x").status), "no UTF-8");
    assert_eq!(names(client, ""), [""; 0]);
}

#[test]
fn conditions() {
    let server = server(&[]);
    let client = &server.client;
    let first = put_if(client, "a", b"1", ("if-none-match", "*")).expect(201).header("etag").unwrap().to_owned();
    assert!(first.starts_with('"') && first.ends_with('"'), "a strong tag: {first}");
    put_if(client, "a", b"2", ("if-none-match", "*")).problem(412);
    assert_eq!(client.get("/objects/a").expect(200).body, b"1", "a refused write writes nothing");

    let second = put_if(client, "a", b"2", ("if-match", &first)).expect(200).header("etag").unwrap().to_owned();
    assert_ne!(first, second);
    put_if(client, "a", b"3", ("if-match", &first)).problem(412);
    put_if(client, "a", b"3", ("if-match", &format!("W/{second}"))).problem(412);
    put_if(client, "a", b"2", ("if-match", &format!("{first}, {second}"))).expect(200);
    put_if(client, "a", b"2", ("if-match", "*")).expect(200);
    put_if(client, "absent", b"1", ("if-match", "*")).problem(412);
    put_if(client, "absent", b"1", ("if-match", &first)).problem(412);
    client.get("/objects/absent").problem(404);

    let read = client.get_with("/objects/a", &[("if-none-match", &second)]).expect(304);
    assert!(read.body.is_empty());
    assert_eq!(read.header("etag"), Some(second.as_str()));
    client.get_with("/objects/a", &[("if-none-match", &first)]).expect(200);
    client.get_with("/objects/a", &[("if-match", &first)]).problem(412);
    client.get_with("/objects/a", &[("if-match", &second)]).expect(200);

    client.send("DELETE", "/objects/a", &[("if-match", &first)], None).problem(412);
    client.send("DELETE", "/objects/a", &[("if-match", &second)], None).expect(200);
    client.get("/objects/a").problem(404);
}

/// What would not be the object, or not all of it.
#[test]
fn a_part_of_an_object_or_a_packed_one_is_not_taken() {
    let server = server(&[]);
    let put = |headers: &[(&str, &str)]| server.client.send("PUT", "/objects/a", headers, Some(b"abc"));
    put(&[("content-encoding", "gzip")]).problem(415);
    put(&[("content-range", "bytes 0-2/9")]).problem(400);
    let mut stream = TcpStream::connect(&server.address).unwrap();
    let head = "PUT /objects/a HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: gzip, chunked\r\nconnection: close";
    stream.write_all(format!("{head}\r\n\r\n3\r\nabc\r\n0\r\n\r\n").as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    server.client.get("/objects/a").problem(404);
    put(&[("content-encoding", "identity")]).expect(201);
}

/// Of many who create the same object at once, one does.
#[test]
fn one_of_many_creates() {
    let server = server(&[]);
    let created: Vec<u16> = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..16_u8)
            .map(|writer| {
                let client = Client::new(&format!("http://{}", server.address));
                scope.spawn(move || put_if(&client, "contended", &[writer], ("if-none-match", "*")).status)
            })
            .collect();
        writers.into_iter().map(|writer| writer.join().unwrap()).collect()
    });
    assert_eq!(created.iter().filter(|status| **status == 201).count(), 1, "{created:?}");
    assert_eq!(created.iter().filter(|status| **status == 412).count(), 15, "{created:?}");
}

#[track_caller]
fn over_quota(answer: Answer) {
    for header in ["retry-after", "ratelimit", "ratelimit-policy"] {
        assert!(answer.header(header).is_some(), "no {header}: {answer:?}");
    }
    answer.problem(429);
}

#[test]
fn a_quota_of_bytes() {
    let server = server(&["--object-quota-bytes", "1000"]);
    let client = &server.client;
    put(client, "a", &[1; 600]).expect(201);
    over_quota(put(client, "b", &[1; 401]));
    client.get("/objects/b").problem(404);
    let told = by_guest(client, json!({"op": "write", "name": "b", "bytes": 401}));
    assert_eq!(told["error"], "quota-exceeded", "{told}");
    put(client, "b", &[1; 400]).expect(201);
    over_quota(put(client, "b", &[1; 401]));
    assert_eq!(client.get("/objects/b").expect(200).body.len(), 400, "a refused write writes nothing");
    put(client, "a", &[1; 100]).expect(200);
    assert_eq!(by_guest(client, json!({"op": "write", "name": "c", "bytes": 500})), json!({"ok": null}));
    client.delete("/objects/c").expect(200);
    put(client, "c", &[1; 500]).expect(201);
}

#[test]
fn a_quota_of_objects() {
    let server = server(&["--object-quota-count", "2"]);
    let client = &server.client;
    put(client, "a", b"").expect(201);
    put(client, "b", b"").expect(201);
    over_quota(put(client, "c", b""));
    assert_eq!(by_guest(client, json!({"op": "write", "name": "c", "data": ""}))["error"], "quota-exceeded");
    put(client, "b", b"again").expect(200);
    client.delete("/objects/a").expect(200);
    put(client, "c", b"").expect(201);
    // What is used is known after a crash as well.
    let server = server.crash().start();
    over_quota(put(&server.client, "d", b""));
}

#[test]
fn too_large() {
    let server = server(&["--max-object-bytes", "1000"]);
    let client = &server.client;
    put(client, "a", &[1; 1000]).expect(201);
    put(client, "b", &[1; 1001]).problem(413);
    client.get("/objects/b").problem(404);
    let told = by_guest(client, json!({"op": "write", "name": "b", "bytes": 1001}));
    assert_eq!(told, json!({"error": "too-large", "detail": 1000}));
}

/// By prefix, in the order of bytes, page by page, for clients and for tasks.
#[test]
fn lists() {
    let server = server(&[]);
    let client = &server.client;
    let mut all: Vec<String> = ["b", "a/1", "a/2", "a/10", "a", "A", "aa", "a0", "é", "z/é", "z/z", "😀", "\u{ffff}"]
        .map(str::to_owned)
        .into();
    all.extend((0..25).map(|number| format!("many/{number:02}")));
    for name in &all {
        put(client, &encoded(name), b"x").expect(201);
    }
    all.sort();
    assert_eq!(names(client, "limit=1000"), all, "the order of bytes");
    let with = |prefix: &str| all.iter().filter(|name| name.starts_with(prefix)).cloned().collect::<Vec<_>>();
    for prefix in ["a", "a/", "many/", "z/", "é", "none", "\u{ffff}"] {
        assert_eq!(names(client, &format!("prefix={}", encoded(prefix))), with(prefix), "{prefix}");
        assert_eq!(by_guest(client, json!({"op": "list", "prefix": prefix})), json!({"ok": with(prefix)}), "{prefix}");
    }
    assert_eq!(names(client, "prefix=a/&after=a/10"), ["a/2"]);
    assert_eq!(names(client, "after=many/24&limit=2"), ["z/z", "z/é"]);
    let paged = by_guest(client, json!({"op": "list", "prefix": "many/", "after": "many/03", "limit": 2}));
    assert_eq!(paged, json!({"ok": ["many/04", "many/05"]}));
    assert_eq!(by_guest(client, json!({"op": "list", "limit": 0})), json!({"ok": []}));

    let mut read = Vec::new();
    let mut path = "/objects?prefix=many/&limit=7".to_owned();
    loop {
        let page = client.get(&path).expect(200).json();
        let objects = page["objects"].as_array().unwrap();
        for object in objects {
            assert_eq!((&object["size"], object["etag"].is_string()), (&json!(1), true), "{object}");
            read.push(object["name"].as_str().unwrap().to_owned());
        }
        let Some(after) = page["next_after"].as_str() else { break };
        assert_eq!(objects.len(), 7);
        path = format!("/objects?prefix=many/&limit=7&after={}", encoded(after));
    }
    assert_eq!(read, with("many/"));
    client.get("/objects?limit=0").problem(400);
    client.get("/objects?perfix=a").problem(400);
    client.get("/objects?limit=99999").expect(200);
}

/// Objects outlive the tasks that wrote them, failed ones too.
#[test]
fn objects_outlive_their_tasks() {
    let server: Server = server(&[]);
    let client = &server.client;
    let body = json!({"task_type": "io", "input": {"object": "kept", "keep": true, "sleep_ms": 1, "bytes": 9}});
    let task = client.run(&body);
    assert_eq!(task["output"]["kept"], true, "{task:#}");
    client.delete(&format!("/task/{}", task["id"].as_str().unwrap())).expect(200);
    assert_eq!(client.get("/objects/kept").expect(200).body.len(), 9);
    let counted = json!({"task_type": "word-count", "input": {"object": "none"}});
    assert_eq!(client.failure(&counted)["error"]["kind"], "permanent");
}
