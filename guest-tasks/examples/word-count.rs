//! `word-count` counts the lines, words, characters and bytes of a text, and says which words it
//! has most often.
//!
//! Input: `{"text": "…"}`, or `{"object": "name"}` for an object that holds the text as UTF-8; with
//! either, `"top": n` says how many of the most frequent words to give: 10 by default, at most 1000.
//!
//! Output: `{"lines", "words", "chars", "bytes", "top": [{"word", "count"}, …]}`, the most frequent
//! first, equals in order of their letters. Words are what white space separates; for `top` they
//! are in lower case and without punctuation around them.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use guest_tasks::{in_range, object_failure, output, parse, permanent};
use serde::{Deserialize, Serialize};

use crate::taskcell::task::objects;

wit_bindgen::generate!({
    path: "../wit",
    world: "task",
    with: {
        "taskcell:task/types@0.1.0": guest_tasks::types,
        "taskcell:task/context@0.1.0": guest_tasks::context,
    },
});

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Input {
    text: Option<String>,
    object: Option<String>,
    #[serde(default = "default_top")]
    top: u32,
}

fn default_top() -> u32 {
    10
}

#[derive(Serialize)]
struct Output {
    lines: usize,
    words: usize,
    chars: usize,
    bytes: usize,
    top: Vec<Word>,
}

#[derive(Serialize)]
struct Word {
    word: String,
    count: usize,
}

struct WordCount;

impl Guest for WordCount {
    async fn run(input: String) -> Result<String, Failure> {
        let Input { text, object, top } = parse(&input)?;
        in_range("top", top, 0..=1000)?;
        let text = match (text, object) {
            (Some(text), None) => text,
            (None, Some(object)) => read(object).await?,
            _ => return Err(permanent("the input must have either text or object")),
        };
        output(&count(&text, top as usize))
    }
}

async fn read(object: String) -> Result<String, Failure> {
    let bytes = objects::read(object.clone()).await.map_err(|error| object_failure(&object, error))?;
    String::from_utf8(bytes).map_err(|error| permanent(format!("object {object} is not text: {error}")))
}

fn count(text: &str, top: usize) -> Output {
    let mut counts = BTreeMap::new();
    for word in text.split_whitespace() {
        let word = word.trim_matches(|c: char| !c.is_alphanumeric()).to_lowercase();
        if !word.is_empty() {
            *counts.entry(word).or_insert(0) += 1;
        }
    }
    let mut most: Vec<Word> = counts.into_iter().map(|(word, count)| Word { word, count }).collect();
    // Stable, so that equals stay in the map's order.
    most.sort_by_key(|word| Reverse(word.count));
    most.truncate(top);
    Output {
        lines: text.lines().count(),
        words: text.split_whitespace().count(),
        chars: text.chars().count(),
        bytes: text.len(),
        top: most,
    }
}

export!(WordCount);
