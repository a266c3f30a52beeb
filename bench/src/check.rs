//! Whether an answer is the one that a request must get.

use std::borrow::Cow;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::http::Response;
use crate::request::Kind;

/// The parts of a task that are looked at; the rest is only read past.
#[derive(Deserialize)]
struct Task<'a> {
    #[serde(borrow)]
    status: Cow<'a, str>,
    #[serde(borrow)]
    input: &'a RawValue,
    #[serde(borrow)]
    output: Option<&'a RawValue>,
}

/// What became of the tasks of one `POST /tasks`.
#[derive(Deserialize)]
struct Batch<'a> {
    #[serde(borrow)]
    results: Vec<Item<'a>>,
}

#[derive(Deserialize)]
struct Item<'a> {
    status: u16,
    #[serde(borrow)]
    task: Option<Task<'a>>,
}

/// A task as it was sent.
#[derive(Deserialize)]
struct Sent<'a> {
    #[serde(borrow)]
    input: &'a RawValue,
}

/// Every task that was sent must be accepted, in its place.
fn check_batch(body: &[u8], response: &Response<'_>) -> Result<()> {
    let shown = || start_of(response.body);
    ensure!(response.status == 200, "status {} and not 200: {}", response.status, shown());
    let sent: Vec<Sent<'_>> = serde_json::from_slice(body).context("a batch that is no JSON was sent")?;
    let batch: Batch<'_> =
        serde_json::from_slice(response.body).with_context(|| format!("an answer that is no batch: {}", shown()))?;
    ensure!(batch.results.len() == sent.len(), "{} results for {} tasks", batch.results.len(), sent.len());
    for (number, (item, sent)) in batch.results.iter().zip(&sent).enumerate() {
        ensure!(matches!(item.status, 200 | 202), "task {number} of a batch got the status {}", item.status);
        let task = item.task.as_ref().with_context(|| format!("no task {number} in the answer to a batch"))?;
        let (sent, found) = (sent.input.get(), task.input.get());
        ensure!(sent == found, "task {number} of a batch: sent the input {sent}, got {found}");
    }
    Ok(())
}

/// Compares an answer with what this input must get: byte for byte, because that is what the server
/// promises for inputs and outputs.
pub(crate) fn check(kind: Kind, input: &[u8], response: &Response<'_>) -> Result<()> {
    let shown = || start_of(response.body);
    let expected = match kind {
        Kind::Batch => return check_batch(input, response),
        Kind::Waited => 200,
        Kind::Enqueued => 202,
    };
    ensure!(response.status == expected, "status {} and not {expected}: {}", response.status, shown());
    let task: Task<'_> =
        serde_json::from_slice(response.body).with_context(|| format!("an answer that is no task: {}", shown()))?;
    let same = |what: &str, found: Option<&RawValue>| {
        let found = found.map_or("null", RawValue::get);
        ensure!(
            found.as_bytes() == input,
            "sent the input {}, got the {what} {}",
            start_of(input),
            start_of(found.as_bytes())
        );
        Ok(())
    };
    same("input", Some(task.input))?;
    if kind == Kind::Waited {
        ensure!(task.status == "Completed", "not Completed: {}", shown());
        same("output", task.output)?;
    }
    Ok(())
}

/// Enough of a text for an error message.
fn start_of(text: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(&text[..text.len().min(300)])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(kind: Kind, status: u16, body: &str) -> Result<()> {
        let response = Response { status, body: body.as_bytes(), close: false };
        check(kind, b"\"a\\n\"", &response)
    }

    #[test]
    fn only_the_very_input_passes_as_output() {
        let good = r#"{"id":"x","status":"Completed","labels":{"output":"no"},"input":"a\n","output":"a\n"}"#;
        verdict(Kind::Waited, 200, good).expect("good");
        for (status, body, reason) in [
            (202, good, "status 202"),
            (200, &good.replace("Completed", "Failed"), "not Completed"),
            (200, &good.replace(r#""output":"a\n""#, r#""output":"a\r""#), "got the output"),
            (200, &good.replace(r#""output":"a\n""#, r#""output":null"#), "got the output"),
            (200, &good.replace(r#""input":"a\n""#, r#""input":"b""#), "got the input"),
            (200, &good[..good.len() - 1], "no task"),
        ] {
            let error = format!("{:#}", verdict(Kind::Waited, status, body).expect_err(reason));
            assert!(error.contains(reason), "`{error}` should name `{reason}`");
        }
    }

    #[test]
    fn every_task_of_a_batch_must_be_accepted_in_its_place() {
        let sent = br#"[{"task_type":"echo","input":1},{"task_type":"echo","input":2}]"#;
        let item = |status: u16, input: u8| {
            format!(r#"{{"status":{status},"task":{{"status":"Pending","input":{input},"output":null}}}}"#)
        };
        let verdict = |items: &[String]| {
            let body = format!(r#"{{"results":[{}]}}"#, items.join(","));
            check(Kind::Batch, sent, &Response { status: 200, body: body.as_bytes(), close: false })
        };
        verdict(&[item(202, 1), item(200, 2)]).expect("good");
        verdict(&[item(202, 1)]).expect_err("one is missing");
        verdict(&[item(202, 1), item(429, 2)]).expect_err("one was refused");
        verdict(&[item(202, 2), item(202, 1)]).expect_err("in the wrong places");
        verdict(&[item(202, 1), r#"{"status":202}"#.into()]).expect_err("one is not told");
    }

    #[test]
    fn an_accepted_task_needs_no_output() {
        let good = r#"{"status":"Pending","input":"a\n","output":null}"#;
        verdict(Kind::Enqueued, 202, good).expect("good");
        verdict(Kind::Enqueued, 200, good).expect_err("a finished task was not asked for");
    }
}
