//! Uploads: how long each refusal takes, and what refusals and bombs cost the tasks beside them and the server.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::Value;

use crate::Setup;
use crate::cpu;
use crate::database::Database;
use crate::histogram::Histogram;
use crate::hostile;
use crate::http::Reader;
use crate::in_process::guest;
use crate::report::{Spread, Table, millis, millis_of};
use crate::server::Server;

/// Uploads of each component.
const TIMES: usize = 5;

/// Waited tasks a second, of one client.
const RATE: u32 = 50;

/// How often it is looked at how much memory the compiler has.
const LOOK_EVERY: Duration = Duration::from_millis(10);

const WASM: &str = "Content-Type: application/wasm\r\n";

/// Measures and prints. `true`: every answer was as expected.
#[expect(clippy::print_stdout, reason = "the report is what this program is for")]
pub(crate) fn run(setup: &Setup) -> Result<bool> {
    let good = guest("echo-blocking")?;
    let server = Server::start(&setup.program, &setup.task_type, &Database::Empty)?;
    let own = |server: &Server| Ok::<_, anyhow::Error>(format!("{:.0}", mib(cpu::peak_memory(server.process())?)));
    let peak_at_start = own(&server)?;
    let mut components = hostile::refused(good);
    let half = hostile::Refused { what: "a component of 20 MB, cut off", bytes: cut_off(good), reasons: Vec::new() };
    components.push(half);
    println!("\nuploads: from the request to the answer, {TIMES} times each\n");
    print!("{}", refusals(server.address, &components)?);
    let peak_refused = own(&server)?;

    let mut table = Table::new(&[
        "beside",
        "uploads",
        "tasks",
        "p50 ms",
        "p99 ms",
        "max ms",
        "server peak MiB",
        "other process peak MiB",
    ]);
    let mut row = |beside: &str, upload: Option<&(dyn Fn(u64) -> Vec<u8> + Sync)>, refused: bool| -> Result<()> {
        let found = beside_uploads(setup, &server, upload, refused)?;
        table.row(vec![
            beside.to_owned(),
            found.uploads.to_string(),
            found.tasks.to_string(),
            millis(found.latency.quantile(0.5)),
            millis(found.latency.quantile(0.99)),
            millis(found.latency.max()),
            own(&server)?,
            format!("{:.0}", mib(found.child)),
        ]);
        Ok(())
    };
    row("nothing", None, false)?;
    let any = |number: u64| components[number as usize % components.len()].bytes.clone();
    row("refusals", Some(&any), true)?;
    let slow = hostile::slow(good, 400);
    let bomb = |number: u64| hostile::with_module(slow.clone(), &hostile::wat(&format!("(module (memory {number}))")));
    row("compile bombs", Some(&bomb), false)?;
    println!(
        "\nwaited tasks, {RATE} a second, {:.0} s each; the server had {peak_at_start} MiB at its start and \
         {peak_refused} MiB after the refusals\n",
        setup.measured.as_secs_f64()
    );
    print!("{table}");
    server.stop()?;
    Ok(true)
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn cut_off(good: &[u8]) -> Vec<u8> {
    let mut bytes = hostile::large(good, 20 << 20);
    bytes.truncate(bytes.len() - 100);
    bytes
}

fn put(reader: &mut Reader, name: &str, bytes: &[u8]) -> Result<(u16, Value)> {
    let (status, body) = reader.send("PUT", &format!("/task-types/{name}"), WASM, bytes)?;
    Ok((status, serde_json::from_slice(&body)?))
}

fn refusals(address: SocketAddr, components: &[hostile::Refused]) -> Result<Table> {
    let mut table = Table::new(&["ms", "max ms", "KB", "component"]);
    for hostile::Refused { what, bytes, .. } in components {
        let mut reader = Reader::open(address)?;
        let mut times = Vec::new();
        for _ in 0..TIMES {
            let began = Instant::now();
            let (status, problem) = put(&mut reader, "refused", bytes)?;
            times.push(began.elapsed());
            ensure!(status == 422, "{what}: status {status}: {problem}");
        }
        let seconds = || times.iter().map(Duration::as_secs_f64);
        table.row(vec![
            millis_of(Spread::of(seconds()).median()),
            millis_of(seconds().fold(0.0, f64::max)),
            (bytes.len() / 1000).to_string(),
            (*what).to_owned(),
        ]);
    }
    Ok(table)
}

/// What was found while components were uploaded again and again, or none was.
struct Beside {
    latency: Histogram,
    tasks: u64,
    uploads: u64,
    /// The most memory of a process that the server had started, in bytes.
    child: u64,
}

fn beside_uploads(
    setup: &Setup,
    server: &Server,
    upload: Option<&(dyn Fn(u64) -> Vec<u8> + Sync)>,
    refused: bool,
) -> Result<Beside> {
    let (address, process) = (server.address, server.process());
    let (over, uploads, child) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let go_on = || !over.load(Ordering::Relaxed);
    std::thread::scope(|scope| {
        let uploading = upload.map(|upload| {
            scope.spawn(|| -> Result<()> {
                let mut reader = Reader::open(address)?;
                let name = if refused { "refused" } else { "bomb" };
                while go_on() {
                    let (status, answer) = put(&mut reader, name, &upload(uploads.load(Ordering::Relaxed)))?;
                    ensure!((status == 422) == refused, "{status}: {answer}");
                    uploads.fetch_add(1, Ordering::Relaxed);
                    // Stored ones are compiled one after the other, and wait meanwhile.
                    if !refused {
                        std::thread::sleep(Duration::from_millis(500));
                    }
                }
                Ok(())
            })
        });
        scope.spawn(|| {
            while go_on() {
                child.fetch_max(children_peak(process), Ordering::Relaxed);
                std::thread::sleep(LOOK_EVERY);
            }
        });
        let waited = waited(address, &setup.task_type, setup.measured);
        over.store(true, Ordering::Relaxed);
        if let Some(uploading) = uploading {
            uploading.join().map_err(|_| anyhow::anyhow!("uploading panicked"))??;
        }
        let (latency, tasks) = waited?;
        Ok(Beside { latency, tasks, uploads: uploads.load(Ordering::Relaxed), child: child.load(Ordering::Relaxed) })
    })
}

fn waited(address: SocketAddr, task_type: &str, measured: Duration) -> Result<(Histogram, u64)> {
    let mut reader = Reader::open(address)?;
    let (mut latency, mut tasks) = (Histogram::new(), 0);
    let began = Instant::now();
    let mut due = began;
    while due < began + measured {
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let body = format!("{{\"task_type\":\"{task_type}\",\"input\":{tasks}}}");
        let head = "Content-Type: application/json\r\nPrefer: wait=60\r\n";
        let (status, answer) = reader.send("POST", "/task", head, body.as_bytes())?;
        // From when it was to be sent: what a stall holds up is charged to it.
        latency.record(due.elapsed());
        let answer: Value = serde_json::from_slice(&answer)?;
        ensure!(status == 200 && answer["output"] == tasks, "status {status}: {answer}");
        tasks += 1;
        due += Duration::from_secs(1) / RATE;
    }
    Ok((latency, tasks))
}

/// The most memory of a process that this one has started and that runs, in bytes.
fn children_peak(process: u32) -> u64 {
    let threads = std::fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().filter_map(Result::ok);
    let children = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok());
    let peaks = children.flat_map(|children| {
        let peaks = children.split_whitespace().filter_map(|child| cpu::peak_memory(child.parse().ok()?).ok());
        peaks.collect::<Vec<_>>()
    });
    peaks.max().unwrap_or(0)
}
