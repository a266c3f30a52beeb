//! taskcell from outside: the real binary, a real client, and guests that mean no good.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod architecture;
mod bad_input;
mod config;
mod durability;
mod durable;
mod keys;
mod labels;
mod lifecycle;
mod many;
mod objects;
mod outcomes;
mod overload;
mod readme;
mod retention;
mod retries;
mod sandbox;
mod slow_clients;
mod support;
mod times;
