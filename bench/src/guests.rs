//! What the limits cost a guest that computes: the same function native, as a guest without any
//! limit, and as a guest in the server's sandbox with all of them.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use taskcell_server::host::log::LogBuffer;
use taskcell_server::host::task_world::TaskPre;
use taskcell_server::host::{self, AttemptOf, Host, May};
use taskcell_server::limits::Limits;
use taskcell_server::task::TaskId;
use wasmtime::component::{Component, Linker};
use wasmtime::{Config, Engine, Store};

use crate::in_process::{InProcess, guest};
use crate::report::Table;
use crate::sandbox::sorted;

/// A kernel's native function.
type Native = fn(u32) -> u64;

/// A kernel, its size, and its native function. Sizes are for 10 to 100 ms.
const WORK: [(&str, u32, Native); 4] = [
    ("json", 10_000, kernels::json),
    ("sort", 1_000_000, kernels::sort),
    ("fib", 33, kernels::fib),
    ("sha256", 32_768, kernels::sha256),
];

/// A guest on an engine that counts nothing and stops nothing.
struct WithoutLimits {
    engine: Engine,
    pre: TaskPre<Host>,
}

impl WithoutLimits {
    fn new() -> Result<WithoutLimits> {
        let mut config = Config::new();
        config.max_wasm_stack(512 << 10).async_stack_size(1 << 20);
        let engine = Engine::new(&config)?;
        let mut linker = Linker::new(&engine);
        host::add_to_linker(&mut linker)?;
        let component = Component::new(&engine, guest("compute")?)?;
        Ok(WithoutLimits { pre: TaskPre::new(linker.instantiate_pre(&component)?)?, engine })
    }

    async fn run(&self, with: &InProcess, input: &str) -> Result<String> {
        let id = TaskId(uuid::Uuid::nil());
        let of = AttemptOf { id, attempt: 1, tenant: "bench".into() };
        let deadline = Instant::now() + Duration::from_secs(3600);
        let log = LogBuffer::new(id, 1, 1024, std::sync::Arc::new(|_| ()));
        let may = May { limits: &Limits::CEILING, grants: std::sync::Arc::default(), uses_http: false };
        let host = Host::new(with.services(), with.room(), of, may, deadline, log);
        let mut store = Store::new(&self.engine, host);
        let task = self.pre.instantiate_async(&mut store).await?;
        let input = input.to_owned();
        let returned = store.run_concurrent(async |accessor| task.call_run(accessor, input).await).await??;
        returned.map_err(|failure| anyhow::anyhow!("the guest failed: {failure:?}"))
    }
}

/// Measures the three in turn, `rounds` times five.
#[expect(clippy::print_stdout, reason = "the report is what this program is for")]
pub(crate) fn measure(dir: &Path, rounds: u32) -> Result<()> {
    println!("\n## Guests: native, without limits, with all limits (medians, ms)\n");
    let timers = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let guests = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let sandbox = std::sync::Arc::new(InProcess::new(dir, timers.handle().clone())?);
    let mut table = Table::new(&["work", "native", "no limits", "all limits", "limits cost", "from native"]);
    for (work, n, native) in WORK {
        let input = format!(r#"{{"work":"{work}","n":{n}}}"#);
        let sandbox = sandbox.clone();
        let times = guests.spawn(async move {
            let (free, limited) = (WithoutLimits::new()?, sandbox.load("compute")?);
            let mut times = [Vec::new(), Vec::new(), Vec::new()];
            for _ in 0..rounds * 5 {
                let started = Instant::now();
                let expected = native(n).to_string();
                times[0].push(started.elapsed());
                let started = Instant::now();
                let output = free.run(&sandbox, &input).await?;
                times[1].push(started.elapsed());
                ensure!(output == expected, "{work} without limits: {output} instead of {expected}");
                let started = Instant::now();
                let output = sandbox.run(&limited, &input).await?;
                times[2].push(started.elapsed());
                ensure!(*output == *expected, "{work} with limits: {output} instead of {expected}");
            }
            Ok(times)
        });
        let [native, free, limited] = timers.block_on(times)??.map(|times| {
            let times = sorted(times.iter().map(|time| time.as_secs_f64() * 1e3));
            times[times.len() / 2]
        });
        table.row(vec![
            format!("{work} {n}"),
            format!("{native:.1}"),
            format!("{free:.1}"),
            format!("{limited:.1}"),
            format!("{:.2}x", limited / free),
            format!("{:.2}x", limited / native),
        ]);
    }
    print!("{table}");
    Ok(())
}
