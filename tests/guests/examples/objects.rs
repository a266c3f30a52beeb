//! Calls one function of `objects` and says what came of it.
//!
//! Input: `{"op": "write" | "read" | "remove" | "list", "name", "data", "bytes", "prefix", "after",
//! "limit", "at_once", "rounds"}`. `write` takes the text `data`, or `bytes` bytes of zeros. `at_once` does the
//! same so many times at once; and with `rounds` that again and again, of which nothing is said: the
//! output is `null`.
//!
//! Output: `{"ok": …}`, or `{"error": "…", "detail": …}` with the name of the error's case; with
//! `at_once` an array of these. What is ok is `null`, the names that `list` found, or
//! `{"bytes": n, "data": "…"}` for `read`, where `data` is `null` if it is not text or over 1 KiB.

use futures::future::join_all;
use guest_tasks::parse;
use guest_tasks::types::ObjectError;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::taskcell::task::objects;

wit_bindgen::generate!({
    path: "../../wit",
    world: "task",
    with: {
        "taskcell:task/types@0.1.0": guest_tasks::types,
        "taskcell:task/context@0.1.0": guest_tasks::context,
    },
});

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Input {
    op: Op,
    #[serde(default)]
    name: String,
    data: Option<String>,
    #[serde(default)]
    bytes: usize,
    #[serde(default)]
    prefix: String,
    after: Option<String>,
    #[serde(default = "most")]
    limit: u32,
    at_once: Option<u32>,
    rounds: Option<u32>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Op {
    Write,
    Read,
    Remove,
    List,
}

fn most() -> u32 {
    1000
}

struct Objects;

impl Guest for Objects {
    async fn run(input: String) -> Result<String, Failure> {
        let input: Input = parse(&input)?;
        if let Some(rounds) = input.rounds {
            for _ in 0..rounds {
                join_all((0..input.at_once.unwrap_or(1)).map(|_| async { act(&input).await.is_ok() })).await;
            }
            return Ok("null".to_owned());
        }
        let once = || async {
            match act(&input).await {
                Ok(value) => json!({ "ok": value }),
                Err(error) => described(error),
            }
        };
        let outcome = match input.at_once {
            None => once().await,
            Some(times) => join_all((0..times).map(|_| once())).await.into(),
        };
        Ok(outcome.to_string())
    }
}

async fn act(input: &Input) -> Result<Value, ObjectError> {
    let name = input.name.clone();
    match input.op {
        Op::Write => {
            let data = match &input.data {
                Some(data) => data.clone().into_bytes(),
                None => vec![0; input.bytes],
            };
            objects::write(name, data).await?;
            Ok(Value::Null)
        }
        Op::Read => {
            let bytes = objects::read(name).await?;
            let data = std::str::from_utf8(&bytes).ok().filter(|text| text.len() <= 1024);
            Ok(json!({ "bytes": bytes.len(), "data": data }))
        }
        Op::Remove => {
            objects::remove(name).await?;
            Ok(Value::Null)
        }
        Op::List => {
            let (prefix, after) = (input.prefix.clone(), input.after.clone());
            Ok(objects::list(prefix, after, input.limit).await?.into())
        }
    }
}

fn described(error: ObjectError) -> Value {
    let (case, detail) = match error {
        ObjectError::NotFound => ("not-found", Value::Null),
        ObjectError::Denied(why) => ("denied", why.into()),
        ObjectError::QuotaExceeded(why) => ("quota-exceeded", why.into()),
        ObjectError::InvalidName(why) => ("invalid-name", why.into()),
        ObjectError::TooLarge(limit) => ("too-large", limit.into()),
        ObjectError::Unavailable(why) => ("unavailable", why.into()),
        ObjectError::Other(why) => ("other", why.into()),
    };
    json!({ "error": case, "detail": detail })
}

export!(Objects);
