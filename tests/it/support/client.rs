//! A client: plain requests, and the few calls that most tests make.

use std::time::Duration;

use serde_json::Value;
use serde_json::value::RawValue;
use ureq::http::{HeaderMap, Request};

use super::wait_for;

/// Sends requests to one server over connections that it keeps.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    agent: ureq::Agent,
    base: String,
    /// What it authenticates with.
    key: Option<String>,
}

/// What came back.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    /// The request, for messages.
    pub(crate) of: String,
    /// The status code.
    pub(crate) status: u16,
    /// The headers.
    pub(crate) headers: HeaderMap,
    /// The body.
    pub(crate) body: Vec<u8>,
}

/// A request's headers.
pub(crate) type Headers<'a> = &'a [(&'a str, &'a str)];

const JSON: Headers<'static> = &[("content-type", "application/json")];

impl Client {
    /// A client of the server at `base`, as `http://127.0.0.1:1234`.
    pub(crate) fn new(base: &str) -> Client {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .allow_non_standard_methods(true)
            .max_redirects(0)
            .proxy(None)
            .timeout_global(Some(Duration::from_secs(150)))
            .build();
        Client { agent: config.new_agent(), base: base.to_owned(), key: None }
    }

    /// The same with a key.
    pub(crate) fn with_key(&self, key: &str) -> Client {
        Client { key: Some(key.to_owned()), ..self.clone() }
    }

    /// Sends any request.
    #[track_caller]
    pub(crate) fn send(&self, method: &str, path: &str, headers: Headers<'_>, body: Option<&[u8]>) -> Answer {
        let send = || self.try_send(method, path, headers, body);
        let answer = match send() {
            // The server closes a connection after an answer that it gave without reading the whole body, and may do so
            // while the next request is on its way (RFC 9112, 9.5). What may be repeated is (RFC 9110, 9.2.2).
            Err(ureq::Error::Io(_)) if method == "PUT" => send(),
            answer => answer,
        };
        answer.unwrap_or_else(|error| panic!("{method} {path}: {error}"))
    }

    /// Sends any request; the connection may fail.
    pub(crate) fn try_send(
        &self,
        method: &str,
        path: &str,
        headers: Headers<'_>,
        body: Option<&[u8]>,
    ) -> Result<Answer, ureq::Error> {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.base));
        if let Some(key) = &self.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut response = match body {
            Some(body) => self.agent.run(request.body(body)?)?,
            None => self.agent.run(request.body(())?)?,
        };
        let body = response.body_mut().with_config().limit(256 << 20).read_to_vec()?;
        let of = format!("{method} {path}");
        Ok(Answer { of, status: response.status().as_u16(), headers: response.headers().clone(), body })
    }

    /// `GET` of a body that comes bit by bit: status, headers, and a reader of the body.
    #[track_caller]
    pub(crate) fn stream(&self, path: &str, headers: Headers<'_>) -> (u16, HeaderMap, impl std::io::Read + use<>) {
        let mut request = self.agent.get(format!("{}{path}", self.base));
        if let Some(key) = &self.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = request.call().unwrap_or_else(|error| panic!("GET {path}: {error}"));
        let (head, body) = response.into_parts();
        (head.status.as_u16(), head.headers, body.into_reader())
    }

    /// `GET`.
    #[track_caller]
    pub(crate) fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], None)
    }

    /// `GET` with headers.
    #[track_caller]
    pub(crate) fn get_with(&self, path: &str, headers: Headers<'_>) -> Answer {
        self.send("GET", path, headers, None)
    }

    /// `DELETE`.
    #[track_caller]
    pub(crate) fn delete(&self, path: &str) -> Answer {
        self.send("DELETE", path, &[], None)
    }

    /// `POST` without a body.
    #[track_caller]
    pub(crate) fn post(&self, path: &str) -> Answer {
        self.send("POST", path, &[], Some(b""))
    }

    /// `POST /task` with that body, byte for byte.
    #[track_caller]
    pub(crate) fn post_task(&self, body: &str) -> Answer {
        self.send("POST", "/task", JSON, Some(body.as_bytes()))
    }

    /// `POST /task` that waits for the task's end.
    #[track_caller]
    pub(crate) fn post_task_and_wait(&self, body: &str, prefer: &str) -> Answer {
        self.send("POST", "/task", &[JSON[0], ("prefer", prefer)], Some(body.as_bytes()))
    }

    /// Creates a task and returns its id.
    #[track_caller]
    pub(crate) fn create(&self, body: &Value) -> String {
        let task = self.post_task(&body.to_string()).expect(202).json();
        task["id"].as_str().unwrap_or_else(|| panic!("no id in {task}")).to_owned()
    }

    /// The task now.
    #[track_caller]
    pub(crate) fn task(&self, id: &str) -> Value {
        self.get(&format!("/task/{id}")).expect(200).json()
    }

    /// The task's status now.
    #[track_caller]
    pub(crate) fn status(&self, id: &str) -> String {
        let status = self.get(&format!("/task/{id}/status")).expect(200).json();
        status["status"].as_str().unwrap_or_else(|| panic!("no status in {status}")).to_owned()
    }

    /// Waits until the task has that status.
    #[track_caller]
    pub(crate) fn wait_for_status(&self, id: &str, status: &str) {
        wait_for(format!("task {id} to be {status}"), || (self.status(id) == status).then_some(()));
    }

    /// Waits until the task has ended, and returns it.
    #[track_caller]
    pub(crate) fn wait_for_end(&self, id: &str) -> Value {
        wait_for(format!("the end of task {id}"), || {
            let task = self.task(id);
            matches!(task["status"].as_str(), Some("Completed" | "Failed")).then_some(task)
        })
    }

    /// Runs a task to its end and returns it.
    #[track_caller]
    pub(crate) fn run(&self, body: &Value) -> Value {
        let answer = self.post_task_and_wait(&body.to_string(), "wait=60");
        match answer.status {
            200 => answer.json(),
            // It is not the client's patience that a test is about.
            _ => self.wait_for_end(answer.expect(202).json()["id"].as_str().unwrap()),
        }
    }

    /// Runs a task that must complete and returns its output.
    #[track_caller]
    pub(crate) fn output(&self, body: &Value) -> Value {
        let task = self.run(body);
        assert_eq!(task["status"], "Completed", "{task:#}");
        task["output"].clone()
    }

    /// Runs a task that must fail, and returns it.
    #[track_caller]
    pub(crate) fn failure(&self, body: &Value) -> Value {
        let task = self.run(body);
        assert_eq!(task["status"], "Failed", "{task:#}");
        task
    }
}

impl Answer {
    /// This answer, which must have that status.
    #[track_caller]
    pub(crate) fn expect(self, status: u16) -> Answer {
        assert_eq!(self.status, status, "{}: {:?} {}", self.of, self.headers, self.shown());
        self
    }

    /// The body as JSON.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{}: {error}: {}", self.of, self.shown()))
    }

    /// A member of the JSON body, byte for byte.
    #[track_caller]
    pub(crate) fn raw(&self, member: &str) -> String {
        let body: std::collections::HashMap<String, Box<RawValue>> =
            serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{}: {error}: {}", self.of, self.shown()));
        body.get(member).unwrap_or_else(|| panic!("{}: no {member}", self.of)).get().to_owned()
    }

    /// The body as text.
    #[track_caller]
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    /// A header.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// This answer, which must be a problem with that status (RFC 9457).
    #[track_caller]
    pub(crate) fn problem(self, status: u16) -> Value {
        let answer = self.expect(status);
        assert_eq!(
            answer.header("content-type"),
            Some("application/problem+json"),
            "{}: {}",
            answer.of,
            answer.shown()
        );
        let problem = answer.json();
        let of_type = problem["type"].as_str().unwrap_or_default();
        assert!(of_type.starts_with("/problems/"), "{}: {problem}", answer.of);
        assert_eq!(problem["status"], status, "{}: {problem}", answer.of);
        assert!(problem["title"].as_str().is_some_and(|text| !text.is_empty()), "{}: {problem}", answer.of);
        problem
    }

    fn shown(&self) -> String {
        let text = String::from_utf8_lossy(&self.body);
        text.chars().take(2000).collect()
    }
}
