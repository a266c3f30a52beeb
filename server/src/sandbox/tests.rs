//! A sandbox for tests, and what only shows inside of it.

use std::future::poll_fn;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::{Handle, Runtime};

use super::{Attempt, CodeCache, Control, Cores, EngineSettings, RunEnd, Sandbox};
use crate::host::http::{HttpSettings, Outbound};
use crate::host::live::LiveAttempts;
use crate::host::log::LogBuffer;
use crate::host::{AttemptOf, Services};
use crate::key_value::KeyValues;
use crate::limits::Limits;
use crate::manager::Manager;
use crate::objects::Objects;
use crate::room::{Claim, Memory, Room};
use crate::secrets::Secrets;
use crate::storage::Storage;
use crate::store;
use crate::task::{Digest, ErrorKind, Outcome, TaskId};

/// One with room for one attempt, whose guests keep nothing.
pub(crate) fn sandbox(directory: &Path, room: &Arc<Room>, cores: &Arc<Cores>, timers: &Handle) -> Sandbox {
    let database = directory.join("of-guests");
    std::fs::create_dir_all(&database).unwrap();
    let (_writer, readers) = store::open(&database, 1).unwrap();
    let live = Arc::new(LiveAttempts::default());
    let (manager, _) =
        Manager::new(readers.clone(), Arc::default(), live.clone(), Arc::default(), Limits::DEFAULT, Limits::CEILING);
    let secrets = Secrets::new(readers.clone(), None);
    let storage = Storage::new(manager, readers);
    let objects = Objects::new(storage.clone(), 0);
    let key_values = KeyValues::new(storage, 0);
    let timers = timers.clone();
    let outbound = Arc::new(Outbound::new(HttpSettings::default(), Arc::default(), timers.clone()).unwrap());
    let services = Services { objects, secrets, key_values, timers, outbound, live };
    let cache = CodeCache::open(directory.join("compiled")).unwrap();
    let settings = EngineSettings { slots: 1, max_memory_bytes: 1 << 20 };
    Sandbox::new(&settings, cache, room.clone(), cores.clone(), services).unwrap()
}

/// A guest that does nothing but call the host burns hardly any fuel. It yields all the same, long before a tick of
/// the epoch.
#[test]
fn a_guest_that_only_calls_the_host_yields_often() {
    const CALLS_FOR_EVER: &str = r#"(component
        (import "taskcell:task/context@0.1.0" (instance $context (export "attempt" (func (result u32)))))
        (core func $attempt (canon lower (func $context "attempt")))
        (core module $module
            (import "host" "attempt" (func $attempt (result i32)))
            (func (export "calls") (result i32) (loop (drop (call $attempt)) (br 0)) (unreachable)))
        (core instance $instance
            (instantiate $module (with "host" (instance (export "attempt" (func $attempt))))))
        (func (export "calls") (result u32) (canon lift (core func $instance "calls"))))"#;
    const CPU_MS: u64 = 100;

    let directory = tempfile::tempdir().unwrap();
    let runtime = Runtime::new().unwrap();
    let (room, cores) = (Arc::new(Room::new(1, 1, Memory::new(0))), Arc::new(Cores::new(1)));
    let sandbox = sandbox(directory.path(), &room, &cores, runtime.handle());
    let program = sandbox.compile(Digest([1; 32]), &wat::parse_str(CALLS_FOR_EVER).unwrap()).unwrap();

    let (id, tenant): (_, Arc<str>) = (TaskId(uuid::Uuid::nil()), "a".into());
    let place = room.take(&tenant, Claim { part: 0, no_more: false, kept: 0 }).ok().unwrap();
    let attempt = Attempt {
        of: AttemptOf { id, attempt: 1, tenant: tenant.clone() },
        input: "{}",
        limits: Limits { cpu_ms: CPU_MS, ..Limits::DEFAULT },
        grants: Arc::default(),
        log: LogBuffer::new(id, 1, 1024, Arc::new(|_| ())),
        control: &Control::new(place, &cores, &tenant, 100, None, true),
        started: Instant::now(),
        queue: Duration::ZERO,
    };
    let mut polls = 0;
    let mut running = pin!(sandbox.run(&program, attempt));
    let end = runtime.block_on(poll_fn(|cx| {
        polls += 1;
        running.as_mut().poll(cx)
    }));
    let RunEnd::Ended(end) = end else { panic!("{end:?}") };
    let Outcome::Failed(error) = end.outcome else { panic!("{:?}", end.outcome) };
    assert_eq!(error.kind, ErrorKind::CpuExceeded, "{}", error.message);
    // By ticks alone it would be one in 5 ms.
    assert!(polls > CPU_MS, "{polls} times in {CPU_MS} ms");
}
