//! Bad requests, each with the answer it must get.

/// A bad request and its answer.
pub(super) struct Bad {
    pub(super) method: &'static str,
    pub(super) path: String,
    pub(super) headers: Vec<(&'static str, &'static str)>,
    pub(super) body: Vec<u8>,
    pub(super) status: u16,
    /// The one field that is at fault.
    pub(super) pointer: Option<&'static str>,
}

const JSON: (&str, &str) = ("content-type", "application/json");
const NO_TASK: &str = "01890000-0000-7000-8000-000000000000";

fn request(method: &'static str, path: &str, status: u16) -> Bad {
    Bad { method, path: path.to_owned(), headers: Vec::new(), body: Vec::new(), status, pointer: None }
}

fn create(body: impl Into<Vec<u8>>, status: u16, pointer: Option<&'static str>) -> Bad {
    Bad { headers: vec![JSON], body: body.into(), pointer, ..request("POST", "/task", status) }
}

/// All of them; `ended` is the id of a task that has ended.
pub(super) fn bad_requests(ended: &str) -> Vec<Bad> {
    let mut bad = no_json();
    bad.extend(not_acceptable());
    bad.extend(media_types());
    bad.extend(too_large());
    bad.extend(paths_and_queries(ended));
    bad
}

fn no_json() -> Vec<Bad> {
    let bodies: [&[u8]; 13] = [
        b"",
        b" ",
        b"{",
        b"nonsense",
        b"{\"task_type\":\"io\"",
        b"{\"task_type\":\"io\"}}",
        b"{\"task_type\":\"io\",}",
        b"{'task_type':'io'}",
        b"{\"task_type\":\"io\",\"input\":nul}",
        b"{\"task_type\":\"io\",\"input\":01}",
        b"{\"task_type\":\"io\",\"input\":\"\xff\"}",
        b"{\"task_type\":\"io\",\"input\":\"\x01\"}",
        b"\xef\xbb\xbf{\"task_type\":\"io\"}",
    ];
    bodies.into_iter().map(|body| create(body, 400, None)).collect()
}

fn not_acceptable() -> Vec<Bad> {
    let bodies = [
        ("{}", "#/task_type"),
        ("[]", "#"),
        (r#"["echo"]"#, "#"),
        (r#"["echo",null,0,{}]"#, "#"),
        ("\"io\"", "#"),
        (r#"{"task_type":null}"#, "#/task_type"),
        (r#"{"task_type":1}"#, "#/task_type"),
        (r#"{"task_type":"nonesuch"}"#, "#/task_type"),
        (r#"{"task_type":"ECHO"}"#, "#/task_type"),
        (r#"{"task_type":""}"#, "#/task_type"),
        (r#"{"task_type":"../echo"}"#, "#/task_type"),
        (r#"{"task_type":"echo","unknown":1}"#, "#/unknown"),
        (r#"{"task_type":"echo","status":"Completed"}"#, "#/status"),
        (r#"{"task_type":"echo","id":"x"}"#, "#/id"),
        (r#"{"task_type":"echo","a/b~c":1}"#, "#/a~1b~0c"),
        (r#"{"task_type":"echo","task_type":"echo"}"#, "#/task_type"),
        (r#"{"task_type":"echo","priority":101}"#, "#/priority"),
        (r#"{"task_type":"echo","priority":-101}"#, "#/priority"),
        (r#"{"task_type":"echo","priority":9999999999999999999999}"#, "#/priority"),
        (r#"{"task_type":"echo","priority":0.5}"#, "#/priority"),
        (r#"{"task_type":"echo","priority":"0"}"#, "#/priority"),
        (r#"{"task_type":"echo","limits":[]}"#, "#/limits"),
        (r#"{"task_type":"echo","limits":[1000000]}"#, "#/limits"),
        (r#"{"task_type":"echo","limits":null}"#, "#/limits"),
        (r#"{"task_type":"echo","limits":{"unknown":1}}"#, "#/limits/unknown"),
        (r#"{"task_type":"echo","limits":{"fuel":0}}"#, "#/limits/fuel"),
        (r#"{"task_type":"echo","limits":{"fuel":-1}}"#, "#/limits/fuel"),
        (r#"{"task_type":"echo","limits":{"fuel":1.5}}"#, "#/limits/fuel"),
        (r#"{"task_type":"echo","limits":{"fuel":"1"}}"#, "#/limits/fuel"),
        (r#"{"task_type":"echo","limits":{"fuel":18446744073709551615}}"#, "#/limits/fuel"),
        (r#"{"task_type":"echo","limits":{"fuel":18446744073709551616}}"#, "#/limits/fuel"),
        (r#"{"task_type":"echo","limits":{"cpu_ms":10001}}"#, "#/limits/cpu_ms"),
        (r#"{"task_type":"echo","limits":{"timeout_ms":300001}}"#, "#/limits/timeout_ms"),
        (r#"{"task_type":"echo","limits":{"memory_bytes":67108865}}"#, "#/limits/memory_bytes"),
        (r#"{"task_type":"echo","limits":{"host_memory_bytes":16777217}}"#, "#/limits/host_memory_bytes"),
        (r#"{"task_type":"echo","limits":{"output_bytes":1048577}}"#, "#/limits/output_bytes"),
        (r#"{"task_type":"echo","limits":{"log_bytes":262145}}"#, "#/limits/log_bytes"),
        (r#"{"task_type":"echo","limits":{"input_bytes":100001}}"#, "#/limits/input_bytes"),
    ];
    bodies.into_iter().map(|(body, pointer)| create(body, 422, Some(pointer))).collect()
}

fn media_types() -> Vec<Bad> {
    let good = r#"{"task_type":"echo"}"#;
    let types = ["text/plain", "application/x-www-form-urlencoded", "application/jsonx", "application/xml", "json", ""];
    let mut bad: Vec<Bad> = types
        .into_iter()
        .map(|media| Bad { headers: vec![("content-type", media)], ..create(good, 415, None) })
        .collect();
    // A page of any origin could send a body without a type.
    bad.push(Bad { headers: vec![], ..create(good, 415, None) });
    // Nothing is unpacked.
    for encoding in ["gzip", "identity, br"] {
        let headers = vec![("content-type", "application/json"), ("content-encoding", encoding)];
        bad.push(Bad { headers, ..create(good, 415, None) });
    }
    bad
}

fn too_large() -> Vec<Bad> {
    let sized = |bytes: usize| format!("{{\"task_type\":\"echo\",\"input\":\"{}\"}}", "x".repeat(bytes));
    let with = |headers: &[(&'static str, &'static str)], bad: Bad| Bad {
        headers: bad.headers.iter().chain(headers).copied().collect(),
        ..bad
    };
    let chunked = [("transfer-encoding", "chunked")];
    let put = |bytes: usize| Bad { body: vec![b'x'; bytes], ..request("PUT", "/objects/large", 413) };
    vec![
        // An input over the limit in a body that is not.
        create(sized(100_000), 413, None),
        // A body over every limit, announced and not.
        create(sized(500_000), 413, None),
        with(&chunked, create(sized(500_000), 413, None)),
        // White space counts as well.
        create(" ".repeat(500_000) + &sized(1), 413, None),
        create(r#"{"task_type":"echo","input":"123456789","limits":{"input_bytes":10}}"#, 413, None),
        put(200_001),
        with(&chunked, put(200_001)),
    ]
}

fn paths_and_queries(ended: &str) -> Vec<Bad> {
    let mut bad = Vec::new();
    let ids = [NO_TASK, "x", "0", "%00", "01890000", "01890000-0000-7000-8000-00000000000g"];
    let upper = NO_TASK.replace('-', "");
    for id in ids.into_iter().chain([upper.as_str()]) {
        for path in ["", "/status", "/result", "/logs"] {
            bad.push(request("GET", &format!("/task/{id}{path}"), 404));
        }
        bad.push(request("DELETE", &format!("/task/{id}"), 404));
        bad.push(request("POST", &format!("/task/{id}/cancel"), 404));
    }
    bad.push(request("POST", &format!("/task/{ended}/cancel"), 409));
    for path in ["/", "/nowhere", "/task/", "/tasks/", "/task/x/y/z", "/TASKS", "/objects/none", "/task-types/none"] {
        bad.push(request("GET", path, 404));
    }
    for (method, path) in [
        ("GET", "/task".to_owned()),
        ("PUT", "/task".to_owned()),
        ("DELETE", "/tasks".to_owned()),
        ("PATCH", format!("/task/{ended}")),
        ("POST", format!("/task/{ended}/result")),
        ("GET", format!("/task/{ended}/cancel")),
        ("DELETE", "/objects".to_owned()),
        ("POST", "/healthz".to_owned()),
        ("TRACE", "/tasks".to_owned()),
        ("FOO", "/tasks".to_owned()),
    ] {
        bad.push(request(method, &path, 405));
    }
    for query in [
        "unknown=1",
        "limit=0",
        "limit=-1",
        "limit=x",
        "limit=",
        "limit=1.5",
        "limit=1&limit=2",
        "status=pending",
        "status=",
        "status=Done",
        "error_kind=nonesuch",
        "created_after=yesterday",
        "created_after=2026-01-01",
        "created_before=1700000000",
        "cursor=x",
        "cursor=",
        "cursor=%FF",
        "cursor=000000000000000000000000000000000000000000000000",
    ] {
        bad.push(request("GET", &format!("/tasks?{query}"), 400));
    }
    for query in ["limit=0", "unknown=1", "after=x", "after=-1"] {
        bad.push(request("GET", &format!("/task/{ended}/logs?{query}"), 400));
    }
    for query in ["limit=0", "limit=x", "unknown=1"] {
        bad.push(request("GET", &format!("/objects?{query}"), 400));
    }
    bad
}
