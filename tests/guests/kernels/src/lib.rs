//! Work to time: the guest `compute` and the benchmarks' native comparison run the same functions.
//! Each returns a checksum, so that nothing is optimised away and both can be compared.

use std::fmt::Write as _;
use std::hint::black_box;

use serde_json::Value;
use sha2::{Digest, Sha256};

/// Parses a JSON document of `n` records, about 100 bytes each, and writes it again.
pub fn json(n: u32) -> u64 {
    let mut text = "[".to_owned();
    for i in 0..n {
        let comma = if i == 0 { "" } else { "," };
        let half = f64::from(i) / 2.0;
        _ = write!(
            text,
            r#"{comma}{{"id":{i},"name":"record {i}","tags":["a","b\n","ü"],"half":{half},"none":null,"more":{{"even":{}}}}}"#,
            i % 2 == 0
        );
    }
    text.push(']');
    let value: Value = serde_json::from_str(black_box(&text)).unwrap_or_default();
    checksum(value.to_string().bytes().map(u64::from))
}

/// Sorts `n` pseudo-random numbers.
pub fn sort(n: u32) -> u64 {
    let mut state = u64::from(black_box(n));
    let mut numbers: Vec<u64> = (0..n)
        .map(|_| {
            // Knuth's MMIX generator; its high bits are the random ones.
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state >> 16
        })
        .collect();
    numbers.sort_unstable();
    checksum(numbers)
}

/// The `n`th Fibonacci number, by two calls of itself: nothing but calls.
pub fn fib(n: u32) -> u64 {
    if black_box(n) < 2 {
        return u64::from(n);
    }
    fib(n - 1) + fib(n - 2)
}

/// Hashes `n` KiB.
pub fn sha256(n: u32) -> u64 {
    let block = [0x5a; 1024];
    let mut hash = Sha256::new();
    for _ in 0..n {
        hash.update(black_box(&block));
    }
    checksum(hash.finalize().into_iter().map(u64::from))
}

/// Depends on the order, too.
fn checksum(values: impl IntoIterator<Item = u64>) -> u64 {
    values.into_iter().fold(0, |sum, value| sum.wrapping_mul(31).wrapping_add(value))
}
