//! `primes` counts prime numbers with a sieve: a task that only computes.
//!
//! Input: `{"up_to": n}`, at most 100000000; the default takes about a tenth of a second.
//!
//! Output: `{"up_to", "count", "largest"}`; `largest` is `null` where there is none.

use guest_tasks::{in_range, output, parse};
use serde::{Deserialize, Serialize};

wit_bindgen::generate!({
    path: "../wit",
    world: "task",
    with: {
        "taskcell:task/types@0.1.0": guest_tasks::types,
        "taskcell:task/context@0.1.0": guest_tasks::context,
    },
});

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Input {
    up_to: u32,
}

impl Default for Input {
    fn default() -> Self {
        Self { up_to: 20_000_000 }
    }
}

#[derive(Serialize)]
struct Output {
    up_to: u32,
    count: u32,
    largest: Option<u32>,
}

struct Primes;

impl Guest for Primes {
    async fn run(input: String) -> Result<String, Failure> {
        let Input { up_to } = parse(&input)?;
        // The sieve has a bit for every second number: 6 MB at the most.
        in_range("up_to", up_to, 0..=100_000_000)?;
        let (count, largest) = sieve(up_to as usize);
        output(&Output { up_to, count, largest })
    }
}

/// How many primes there are up to `limit`, and the largest.
fn sieve(limit: usize) -> (u32, Option<u32>) {
    if limit < 2 {
        return (0, None);
    }
    // Bit i stands for the odd number 2i + 1 and says that it is composite. 2 is counted apart.
    let odd = limit.div_ceil(2);
    let mut composite = vec![0u64; odd.div_ceil(64)];
    let (mut count, mut largest) = (1, 2);
    for i in 1..odd {
        if composite[i / 64] >> (i % 64) & 1 == 1 {
            continue;
        }
        let prime = 2 * i + 1;
        count += 1;
        largest = prime as u32;
        // Smaller multiples have a smaller factor. Only up to the root is there any to mark.
        if prime <= limit / prime {
            for multiple in (prime * prime / 2..odd).step_by(prime) {
                composite[multiple / 64] |= 1 << (multiple % 64);
            }
        }
    }
    (count, Some(largest))
}

export!(Primes);
