//! Allocates memory and writes to all of it: `{"bytes": n, "on_refusal": "trap" | "fail" | "ok"}`.
//! `on_refusal` says what to do when there is no more: trap (the default), fail for good, or return
//! what was had. Output: `{"allocated": bytes}`.

use std::hint::black_box;

use guest_tasks::{parse, permanent};
use serde::Deserialize;

wit_bindgen::generate!({
    path: "../../wit",
    world: "task",
    with: {
        "taskcell:task/types@0.1.0": guest_tasks::types,
        "taskcell:task/context@0.1.0": guest_tasks::context,
    },
});

const PIECE: usize = 1 << 20;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Input {
    bytes: usize,
    #[serde(default)]
    on_refusal: OnRefusal,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum OnRefusal {
    #[default]
    Trap,
    Fail,
    Ok,
}

struct Memory;

impl Guest for Memory {
    async fn run(input: String) -> Result<String, Failure> {
        let Input { bytes, on_refusal } = parse(&input)?;
        // In pieces, because a vector that grew would need its old and its new size at once.
        let mut pieces = Vec::new();
        let mut allocated = 0;
        while allocated < bytes {
            let size = PIECE.min(bytes - allocated);
            let mut piece = Vec::new();
            if piece.try_reserve_exact(size).is_err() {
                match on_refusal {
                    OnRefusal::Trap => panic!("no memory after {allocated} bytes"),
                    OnRefusal::Fail => {
                        return Err(permanent(format!("no memory after {allocated} bytes")));
                    }
                    OnRefusal::Ok => break,
                }
            }
            piece.resize(size, 0xa5_u8);
            pieces.push(black_box(piece));
            allocated += size;
        }
        drop(black_box(pieces));
        Ok(format!("{{\"allocated\":{allocated}}}"))
    }
}

export!(Memory);
