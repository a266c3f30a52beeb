//! taskcell from outside: the real binary, a real client, and guests that mean no good.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod architecture;
mod bad_input;
mod bulk;
mod config;
mod durability;
mod durable;
mod lifecycle;
mod objects;
mod outcomes;
mod readme;
mod sandbox;
mod slow_clients;
mod support;
mod task_types;
