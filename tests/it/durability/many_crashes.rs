//! Kill -9 at any moment, again and again, with clients that go on.

use std::process::Stdio;
use std::thread;
use std::time::Duration;

use super::model::FLAGS;
use super::power_cut::Random;
use super::told::Told;
use super::{clients, losses, use_until_gone};
use crate::support::guests;
use crate::support::server::Setup;

/// So many crashes where the variable `CRASHES` does not say otherwise.
const CRASHES: u64 = 12;

/// What was told is compared after so many crashes, so that tasks live through several.
const CHECK_EVERY: u64 = 4;

/// Tasks that a client goes on looking at.
const REMEMBERED: usize = 300;

/// Longest time from a start to the crash, and from the beginning of a start to a crash within it.
const SERVES_MS: u64 = 1_500;
const STARTS_MS: u64 = 700;

/// 0 lost, 0 changed, no result twice, no attempt beyond its bound.
#[test]
fn many_crashes() {
    let crashes = std::env::var("CRASHES").ok().and_then(|crashes| crashes.parse().ok()).unwrap_or(CRASHES);
    let mut random = Random::new();
    let mut told = clients(&mut random);
    let mut setup = Setup::new(FLAGS).with_components(Some(guests::few()));
    for crash in 1..=crashes {
        if random.chance(30) {
            kill_while_starting(&setup, random.below(STARTS_MS));
        }
        let serves = Duration::from_millis(random.below(SERVES_MS));
        setup = use_until_gone(setup.start(), &mut told, |_, server| {
            thread::sleep(serves);
            server.crash()
        });
        if crash % CHECK_EVERY == 0 || crash == crashes {
            let server = setup.start();
            let losses = losses(&server, &mut told);
            assert!(losses.is_empty(), "crash {crash}: {} losses: {losses:#?}", losses.len());
            let checked: usize = told.iter().map(Told::count).sum();
            let ended = |query: &str| {
                let page = server.client.get(&format!("/tasks?limit=1000&{query}")).expect(200).json();
                page["tasks"].as_array().unwrap().len()
            };
            let kinds = ["canceled", "transient", "interrupted"].map(|kind| ended(&format!("error_kind={kind}")));
            let scheduled: i64 = told.iter().map(Told::scheduled).sum();
            eprintln!(
                "crash {crash}: {checked} tasks and objects are as they were told; {kinds:?} were canceled, failed, \
                 were interrupted too often; {scheduled} were made by schedules"
            );
            told.iter_mut().for_each(|told| told.forget(REMEMBERED));
            setup = server.crash();
        }
    }
}

fn kill_while_starting(setup: &Setup, after_ms: u64) {
    let mut starting = setup.command().stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    thread::sleep(Duration::from_millis(after_ms));
    let _ = starting.kill();
    starting.wait().unwrap();
}
