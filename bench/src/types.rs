//! The server's start with many uploaded types: from its process to its taking tasks of each.

use std::fs::File;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::fs::{Advice, fadvise};

use crate::Setup;
use crate::hostile;
use crate::http::{self, Reader};
use crate::in_process::guest;
use crate::report::{Spread, Table, millis_of};
use crate::rounds::{self, Point, Row};
use crate::server::Server;

/// How many types, and the bytes of each.
const TYPES: usize = 100;
const BYTES: usize = 200_000;

/// Starts of each kind in a round.
const STARTS: usize = 3;

/// All of them are compiled by then.
const COMPILE_LIMIT: Duration = Duration::from_secs(600);

struct Starts {
    /// Compiled code, in bytes.
    code: u64,
    /// With everything in the kernel's page cache.
    warm: Vec<Duration>,
    /// With neither the database nor compiled code there.
    cold: Vec<Duration>,
}

impl Point for Starts {
    /// Any fault ends the round.
    fn faults(&self) -> (u64, &[String]) {
        (0, &[])
    }

    fn times(&self) -> Vec<(&'static str, f64)> {
        let median = |times: &[Duration]| Spread::of(times.iter().map(Duration::as_secs_f64)).median();
        vec![("ready, warm", median(&self.warm)), ("ready, cold", median(&self.cold))]
    }
}

/// Runs all rounds and prints their table. `true`: no fault was found.
pub(crate) fn run(setup: &Setup) -> Result<bool> {
    let about = format!(
        "types: {TYPES} uploaded types of {} KB; from the start of the process until it takes tasks, after a clean \
         end; median of all",
        BYTES / 1000
    );
    rounds::run(setup, &about, &[1], |server, _| measure(setup, server), table)
}

fn measure(setup: &Setup, server: &mut Server) -> Result<Starts> {
    // It has about so many.
    let good = guest("objects")?;
    let mut reader = Reader::open(server.address)?;
    for number in 0..TYPES {
        let component = hostile::with_module(
            hostile::large(good, BYTES),
            &hostile::wat(&format!("(module (func (export \"n\") (result i32) i32.const {number}))")),
        );
        let path = format!("/task-types/type-{number}");
        let (status, answer) = reader.send("PUT", &path, "Content-Type: application/wasm\r\n", &component)?;
        ensure!(status == 201, "PUT {path}: {status}: {}", String::from_utf8_lossy(&answer));
    }
    let deadline = Instant::now() + COMPILE_LIMIT;
    while !all_ready(server)? {
        ensure!(Instant::now() < deadline, "not all types are compiled");
        std::thread::sleep(Duration::from_millis(100));
    }
    let before = code(server)?;
    let mut starts = Starts { code: before.iter().map(|(_, bytes)| bytes).sum(), warm: Vec::new(), cold: Vec::new() };
    let data = server.data.clone();
    for _ in 0..STARTS {
        server.end()?;
        starts.warm.push(server.start_again(&setup.program, &setup.task_type, &[])?);
        ensure!(all_ready(server)?, "not all types are ready at the start");
        server.end()?;
        let compiled = std::fs::read_dir(data.join("compiled"))?.map(|entry| Ok(entry?.path()));
        for path in compiled.chain([Ok(data.join("taskcell.db"))]) {
            let path: std::path::PathBuf = path.map_err(|error: std::io::Error| error)?;
            // All of it is on the disk, so the kernel can let go of it.
            let file = File::open(path)?;
            file.sync_all()?;
            fadvise(&file, 0, None, Advice::DontNeed)?;
        }
        starts.cold.push(server.start_again(&setup.program, &setup.task_type, &[])?);
        ensure!(all_ready(server)?, "not all types are ready at the start");
    }
    ensure!(code(server)? == before, "something was compiled again");
    Ok(starts)
}

/// The files of compiled code, and their bytes.
fn code(server: &Server) -> Result<Vec<(std::ffi::OsString, u64)>> {
    let entries = std::fs::read_dir(server.data.join("compiled"))?;
    let files = entries.map(|entry| entry.and_then(|entry| Ok((entry.file_name(), entry.metadata()?.len()))));
    let mut files = files.collect::<std::io::Result<Vec<_>>>()?;
    files.sort();
    Ok(files)
}

fn all_ready(server: &Server) -> Result<bool> {
    let (_, body) = http::get(server.address, "/task-types")?;
    let types: serde_json::Value = serde_json::from_slice(&body)?;
    let types = types["task_types"].as_array().context("no task types")?;
    ensure!(types.len() > TYPES, "of {TYPES} types there are {}", types.len());
    ensure!(types.iter().all(|found| found["state"] != "failed"), "a type cannot be compiled");
    Ok(types.iter().all(|found| found["state"] == "ready"))
}

fn table(rows: &[Row<Starts>]) -> Table {
    let mut table =
        Table::new(&["starts", "MB of code", "ready ms", "min–max", "ready ms, nothing in memory", "min–max"]);
    for Row { rounds, .. } in rows {
        let spread = |of: fn(&Starts) -> &[Duration]| {
            Spread::of(rounds.iter().flat_map(of).map(|time| time.as_secs_f64() * 1e3))
        };
        let (warm, cold) = (spread(|starts| &starts.warm), spread(|starts| &starts.cold));
        table.row(vec![
            (rounds.len() * STARTS * 2).to_string(),
            format!("{:.0}", Spread::of(rounds.iter().map(|starts| starts.code as f64 / 1e6)).median()),
            millis_of(warm.median() / 1e3),
            warm.range(),
            millis_of(cold.median() / 1e3),
            cold.range(),
        ]);
    }
    table
}
