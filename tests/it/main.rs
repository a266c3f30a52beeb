//! taskcell from outside: the real binary, a real client, and guests that mean no good.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod access;
mod architecture;
mod audit;
mod backup;
mod bad_input;
mod bulk;
mod concurrency;
mod config;
mod durability;
mod durable;
mod events;
mod granted;
mod keys;
mod keyvalue;
mod labels;
mod lifecycle;
mod many;
mod objects;
mod openapi;
mod outbound;
mod outcomes;
mod overload;
mod quotas;
mod readme;
mod retention;
mod retries;
mod sandbox;
mod schedules;
mod secrets;
mod shares;
mod slow_clients;
mod support;
mod task_types;
mod times;
mod tls;
mod typed;
mod uploads;
mod usage;
mod ways;
