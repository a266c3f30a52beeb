//! Rounds: every point once, then every point again, so that a slow minute of the machine falls
//! on all of them and shows in the spread.

use anyhow::Result;

use crate::Setup;
use crate::cpu;
use crate::machine::SyncTime;
use crate::report::{Faults, Table};
use crate::server::Server;

/// What was found at one point in one round.
pub(crate) trait Point {
    /// How many faults, and the text of the first few.
    fn faults(&self) -> (u64, &[String]);
}

/// Measures every number of connections in every round, each round with a server of its own on an
/// empty directory, and prints the table. `true`: no fault was found.
///
/// A fault that ends a run ends the rounds; what was measured until then is printed all the same.
#[expect(clippy::print_stdout, reason = "the report is what this program is for")]
pub(crate) fn run<P: Point>(
    setup: &Setup,
    about: &str,
    connections: &[usize],
    mut measure: impl FnMut(&mut Server, usize) -> Result<P>,
    table: impl Fn(&[(usize, Vec<P>)]) -> Table,
) -> Result<bool> {
    let chosen = if setup.connections.is_empty() { connections } else { &setup.connections };
    let mut points: Vec<(usize, Vec<P>)> = chosen.iter().map(|&count| (count, Vec::new())).collect();
    let mut faults = Faults::default();
    let mut peaks = vec![0; chosen.len()];
    let before = SyncTime::measure(&setup.program.dir)?;
    for round in 1..=setup.rounds {
        if let Err(error) = one_round(setup, round, &mut points, &mut peaks, &mut measure, &mut faults) {
            faults.add_error(&format!("round {round}"), &error);
            break;
        }
    }
    let after = SyncTime::measure(&setup.program.dir)?;
    let peaks = points.iter().zip(peaks).filter(|((_, rounds), _)| !rounds.is_empty());
    let peaks = peaks.map(|(_, bytes)| format!("{:.0}", bytes as f64 / f64::from(1 << 20))).collect();
    points.retain(|(_, rounds)| !rounds.is_empty());
    println!("\n{about}; rounds: {}", setup.rounds);
    println!("fdatasync of 4 KiB: before {before}; after {after}\n");
    if points.is_empty() {
        println!("Nothing was measured.");
    } else {
        print!("{}", table(&points).with_column("server peak MiB", peaks));
    }
    Ok(faults.print())
}

fn one_round<P: Point>(
    setup: &Setup,
    round: u32,
    points: &mut [(usize, Vec<P>)],
    peaks: &mut [u64],
    measure: &mut impl FnMut(&mut Server, usize) -> Result<P>,
    faults: &mut Faults,
) -> Result<()> {
    let mut server = Server::start(&setup.program, &setup.task_type)?;
    for ((connections, rounds), peak) in points.iter_mut().zip(peaks) {
        let part = format!("round {round}, {connections} connections");
        eprintln!("{part} ...");
        match measure(&mut server, *connections) {
            Ok(found) => {
                let (count, messages) = found.faults();
                faults.add(&part, count, messages);
                if count > 0 {
                    server.keep_log();
                }
                rounds.push(found);
                *peak = cpu::peak_memory(server.process())?.max(*peak);
            }
            Err(error) => {
                let error = anyhow::anyhow!("{connections} connections: {error:#}");
                return Err(server.explain(&error));
            }
        }
    }
    server.stop()
}
