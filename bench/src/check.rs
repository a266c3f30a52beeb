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

/// Compares an answer with what this input must get: byte for byte, because that is what the server
/// promises for inputs and outputs.
pub(crate) fn check(kind: Kind, input: &[u8], response: &Response<'_>) -> Result<()> {
    let shown = || start_of(response.body);
    let expected = match kind {
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
    fn an_accepted_task_needs_no_output() {
        let good = r#"{"status":"Pending","input":"a\n","output":null}"#;
        verdict(Kind::Enqueued, 202, good).expect("good");
        verdict(Kind::Enqueued, 200, good).expect_err("a finished task was not asked for");
    }
}
