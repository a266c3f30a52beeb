//! The server's sandbox inside this process, without HTTP and without a store on the way.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest as _, Sha256};
use taskcell_server::host::http::{HttpSettings, Outbound};
use taskcell_server::host::live::LiveAttempts;
use taskcell_server::host::log::LogBuffer;
use taskcell_server::host::{AttemptOf, Services};
use taskcell_server::key_value::KeyValues;
use taskcell_server::limits::Limits;
use taskcell_server::manager::Manager;
use taskcell_server::objects::Objects;
use taskcell_server::registry::Registry;
use taskcell_server::room::{Claim, Memory, Room};
use taskcell_server::sandbox::{Attempt, CodeCache, Control, Cores, EngineSettings, Program, RunEnd, Sandbox};
use taskcell_server::secrets::Secrets;
use taskcell_server::storage::Storage;
use taskcell_server::store;
use taskcell_server::task::{Digest, Outcome, TaskId};
use tokio::runtime::Handle;

const GUESTS: &[(&str, &[u8])] = include!(concat!(env!("OUT_DIR"), "/guests.rs"));

/// The component of that name.
pub(crate) fn guest(name: &str) -> Result<&'static [u8]> {
    let found = GUESTS.iter().find(|(known, _)| *known == name);
    found.map(|(_, bytes)| *bytes).with_context(|| format!("there is no guest {name}"))
}

/// A sandbox as the server sets it up.
pub(crate) struct InProcess {
    sandbox: Sandbox,
    room: Arc<Room>,
    cores: Arc<Cores>,
    services: Services,
}

impl InProcess {
    pub(crate) fn new(dir: &Path, timers: Handle) -> Result<InProcess> {
        std::fs::create_dir_all(dir)?;
        let (_writer, readers) = store::open(dir, 1)?;
        let room = Arc::new(Room::new(1000, 1000, Memory::new(0)));
        let live = Arc::new(LiveAttempts::default());
        let registry = Arc::new(Registry::default());
        // Nothing that is measured here calls the manager.
        let (manager, _inbox) =
            Manager::new(readers.clone(), registry, live.clone(), Arc::default(), Limits::DEFAULT, Limits::CEILING);
        let secrets = Secrets::new(readers.clone(), None);
        let storage = Storage::new(manager, readers);
        let objects = Objects::new(storage.clone(), 0);
        let key_values = KeyValues::new(storage, 0);
        let outbound = Arc::new(Outbound::new(HttpSettings::default(), Arc::default(), timers.clone())?);
        let services = Services { objects, secrets, key_values, timers, outbound, live };
        let threads = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
        let cores = Arc::new(Cores::new(threads));
        let settings = EngineSettings { slots: 1000, max_memory_bytes: Limits::CEILING.memory_bytes };
        let cache = CodeCache::open(dir.join("compiled"))?;
        let sandbox = Sandbox::new(&settings, cache, room.clone(), cores.clone(), services.clone())?;
        Ok(InProcess { sandbox, room, cores, services })
    }

    pub(crate) fn services(&self) -> Services {
        self.services.clone()
    }

    pub(crate) fn room(&self) -> Arc<Room> {
        self.room.clone()
    }

    pub(crate) fn load(&self, name: &str) -> Result<Program> {
        let bytes = guest(name)?;
        self.sandbox.compile(Digest(Sha256::digest(bytes).into()), bytes)
    }

    /// Runs one attempt in a store of its own with all limits on, and returns its output.
    pub(crate) async fn run(&self, program: &Program, input: &str) -> Result<Arc<str>> {
        let tenant = "bench".into();
        let claim = Claim { part: 0, no_more: false, kept: 0 };
        let Ok(place) = self.room.take(&tenant, claim) else { bail!("there is no room for an attempt") };
        let control = Control::new(place, &self.cores, &tenant, 100, None, true);
        let id = TaskId(uuid::Uuid::nil());
        let attempt = Attempt {
            of: AttemptOf { id, attempt: 1, tenant: "bench".into() },
            input,
            limits: Limits { cpu_ms: 600_000, ..Limits::DEFAULT },
            grants: Arc::default(),
            log: LogBuffer::new(id, 1, 1024, Arc::new(|_| ())),
            control: &control,
            started: Instant::now(),
            queue: Duration::ZERO,
        };
        match self.sandbox.run(program, attempt).await {
            RunEnd::Ended(end) => match end.outcome {
                Outcome::Completed(output) => {
                    ensure!(end.usage.fuel > 0, "an attempt used no fuel: its limits were off");
                    Ok(output)
                }
                Outcome::Failed(error) => bail!("an attempt failed: {}", error.message),
            },
            RunEnd::GiveBack(_) => bail!("there was no room for an attempt"),
        }
    }
}
