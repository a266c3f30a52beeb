//! The requests of the closed loop: random inputs, and the bytes of one `POST /task`.

use std::io::Write;
use std::net::SocketAddr;
use std::time::Duration;

/// xorshift64*: cheap, and its raw states do not repeat before 2^64 draws.
pub(crate) struct Random(u64);

impl Random {
    /// A row of numbers that follows from `seed` alone.
    pub(crate) fn new(seed: u64) -> Self {
        // Zero is the one state that xorshift cannot leave.
        Self(if seed == 0 { 0x9E37_79B9_7F4A_7C15 } else { seed })
    }

    /// The next number.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// A time that is exponentially distributed around `mean`: the gap between two arrivals that know
    /// nothing of each other.
    pub(crate) fn gap(&mut self, mean: Duration) -> Duration {
        // From above 0 to 1: the logarithm of 0 has no end.
        let share = ((self.next() >> 11) + 1) as f64 / (1_u64 << 53) as f64;
        mean.mul_f64(-share.ln())
    }
}

/// Puts a random JSON value into `input`: an integer, a fraction, or a string.
///
/// Each holds 64 random bits, so no input comes twice. Integers use all 64 bits and fractions
/// more digits than a double has: what passes such a value through floating point is caught.
/// Some strings hold escapes and characters outside of ASCII.
pub(crate) fn random_input(random: &mut Random, input: &mut Vec<u8>) {
    input.clear();
    let value = random.next();
    let shape = random.next();
    let written = match shape % 8 {
        0 | 1 => write!(input, "{value}"),
        2 => write!(input, "-{}.{}5", value >> 32, value & 0xFFFF_FFFF),
        3 => write!(input, "\"{value:016x} \\\"quoted\\\" \\\\ \\n \u{e9}\u{4e16}\u{1f30d}\""),
        _ => write!(
            input,
            "\"{value:016x}{:.*}\"",
            (shape >> 32) as usize % 49,
            "-abcdefghijklmnopqrstuvwxyz-0123456789-ABCDEFGHI"
        ),
    };
    written.expect("writing to a Vec does not fail");
}

/// Tasks in one `POST /tasks`.
pub(crate) const BATCH: usize = 1000;

/// Whether the server is asked to answer at once or when the task has ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kind {
    /// `Prefer: wait=60`: the answer is the finished task.
    Waited,
    /// No `Prefer`: the answer is the accepted task.
    Enqueued,
    /// `POST /tasks`: the answer tells of each of [`BATCH`] tasks.
    Batch,
}

/// All of a `POST /task` that stays the same from one request to the next.
pub(crate) struct Template {
    head: String,
    body_start: String,
    kind: Kind,
}

impl Template {
    /// The requests for one task type. Their tasks are due `delay` after their creation.
    pub(crate) fn new(address: SocketAddr, task_type: &str, kind: Kind, key: Option<&str>, delay: Duration) -> Self {
        let prefer = match kind {
            Kind::Waited => "Prefer: wait=60\r\n",
            Kind::Enqueued | Kind::Batch => "",
        };
        let key = key.map(|key| format!("Authorization: Bearer {key}\r\n")).unwrap_or_default();
        let path = if kind == Kind::Batch { "/tasks" } else { "/task" };
        let name = serde_json::Value::from(task_type);
        let delay = if delay.is_zero() { String::new() } else { format!("\"delay_ms\":{},", delay.as_millis()) };
        Self {
            head: format!(
                "POST {path} HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n{prefer}{key}Content-Length: "
            ),
            body_start: format!("{{\"task_type\":{name},{delay}\"input\":"),
            kind,
        }
    }

    /// Puts what a request is to send into `input`: one random value, or an array of tasks with one each.
    pub(crate) fn random(&self, random: &mut Random, input: &mut Vec<u8>) {
        if self.kind != Kind::Batch {
            return random_input(random, input);
        }
        input.clear();
        let mut value = Vec::new();
        for number in 0..BATCH {
            input.push(if number == 0 { b'[' } else { b',' });
            random_input(random, &mut value);
            input.extend_from_slice(self.body_start.as_bytes());
            input.extend_from_slice(&value);
            input.push(b'}');
        }
        input.push(b']');
    }

    /// Puts the whole request for `input` into `out`.
    pub(crate) fn write(&self, input: &[u8], out: &mut Vec<u8>) {
        let (start, end) = if self.kind == Kind::Batch { ("", "") } else { (self.body_start.as_str(), "}") };
        let length = start.len() + input.len() + end.len();
        out.clear();
        out.extend_from_slice(self.head.as_bytes());
        write!(out, "{length}\r\n\r\n").expect("writing to a Vec does not fail");
        out.extend_from_slice(start.as_bytes());
        out.extend_from_slice(input);
        out.extend_from_slice(end.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_are_json_and_never_the_same() {
        let mut random = Random::new(7);
        let mut seen = std::collections::HashSet::new();
        let mut input = Vec::new();
        for _ in 0..20_000 {
            random_input(&mut random, &mut input);
            serde_json::from_slice::<serde_json::Value>(&input).expect("valid JSON");
            assert!(seen.insert(input.clone()), "an input came twice");
        }
    }

    #[test]
    fn a_seed_decides_the_row() {
        let row = |seed| {
            let mut random = Random::new(seed);
            [random.next(), random.next(), random.next()]
        };
        assert_eq!(row(1), row(1));
        assert_ne!(row(1), row(2));
        assert_ne!(row(0), [0; 3]);
    }

    #[test]
    fn gaps_have_their_mean_and_are_not_even() {
        let mut random = Random::new(7);
        let gaps: Vec<f64> = (0..100_000).map(|_| random.gap(Duration::from_millis(1)).as_secs_f64() * 1e3).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        assert!((mean - 1.0).abs() < 0.02, "{mean}");
        // A third, and not half, of the gaps is longer than the mean.
        let longer = gaps.iter().filter(|gap| **gap > 1.0).count();
        assert!((36_000..37_600).contains(&longer), "{longer}");
    }

    #[test]
    fn a_request_is_whole_and_says_its_length() {
        let address = SocketAddr::from(([127, 0, 0, 1], 80));
        let mut out = b"left over".to_vec();
        Template::new(address, "echo", Kind::Waited, None, Duration::ZERO).write(b"\"x\"", &mut out);
        assert_eq!(
            String::from_utf8(out).expect("UTF-8"),
            "POST /task HTTP/1.1\r\nHost: 127.0.0.1:80\r\nContent-Type: application/json\r\n\
             Prefer: wait=60\r\nContent-Length: 32\r\n\r\n{\"task_type\":\"echo\",\"input\":\"x\"}"
        );
    }
}
