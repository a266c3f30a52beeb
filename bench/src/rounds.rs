//! Rounds: every point once, then every point again, so that a slow minute of the machine falls
//! on all of them and shows in the spread.

use anyhow::Result;

use crate::Setup;
use crate::cpu;
use crate::machine::SyncTime;
use crate::report::{Faults, Spread, Table, millis_of};
use crate::server::Server;

/// What was found at one point in one round.
pub(crate) trait Point {
    /// How many faults, and the text of the first few.
    fn faults(&self) -> (u64, &[String]);

    /// The times, in seconds, by which two databases are compared, each with its name.
    fn times(&self) -> Vec<(&'static str, f64)>;
}

/// One row of a table: what was found at one point in all rounds.
pub(crate) struct Row<P> {
    /// Which database, by its place in [`Setup::databases`].
    database: usize,
    /// How many connections.
    pub(crate) connections: usize,
    /// One for each round.
    pub(crate) rounds: Vec<P>,
    /// The most memory of the server's process at the end of it, in bytes.
    peak: u64,
}

/// Measures every number of connections in every round, each round with a server of its own for each
/// database, and prints the table. `true`: no fault was found.
///
/// A fault that ends a run ends the rounds; what was measured until then is printed all the same.
#[expect(clippy::print_stdout, reason = "the report is what this program is for")]
pub(crate) fn run<P: Point>(
    setup: &Setup,
    about: &str,
    connections: &[usize],
    mut measure: impl FnMut(&mut Server, usize) -> Result<P>,
    table: impl Fn(&[Row<P>]) -> Table,
) -> Result<bool> {
    let databases = 0..setup.databases.len();
    let row = |connections, database| Row { database, connections, rounds: Vec::new(), peak: 0 };
    let mut rows: Vec<Row<P>> =
        connections.iter().flat_map(|&count| databases.clone().map(move |database| row(count, database))).collect();
    let mut faults = Faults::default();
    let before = SyncTime::measure(&setup.program.dir)?;
    'rounds: for round in 1..=setup.rounds {
        for database in databases.clone() {
            if let Err(error) = one_round(setup, round, database, &mut rows, &mut measure, &mut faults) {
                faults.add_error(&format!("round {round}"), &error);
                break 'rounds;
            }
        }
    }
    let after = SyncTime::measure(&setup.program.dir)?;
    rows.retain(|row| !row.rounds.is_empty());
    println!("\n{about}; rounds: {}", setup.rounds);
    println!("fdatasync of 4 KiB: before {before}; after {after}\n");
    if rows.is_empty() {
        println!("Nothing was measured.");
        return Ok(faults.print());
    }
    let peaks = rows.iter().map(|row| format!("{:.0}", row.peak as f64 / f64::from(1 << 20))).collect();
    let mut table = table(&rows).with_column("server peak MiB", peaks);
    if databases.len() > 1 {
        let names = rows.iter().map(|row| setup.databases[row.database].name().to_owned()).collect();
        table = table.with_column("database", names);
    }
    print!("{table}");
    if databases.len() > 1 {
        println!("\nthe large database against the empty one of the same round, by times: below 1 is faster\n");
        print!("{}", comparison(&rows));
    }
    Ok(faults.print())
}

fn one_round<P: Point>(
    setup: &Setup,
    round: u32,
    database: usize,
    rows: &mut [Row<P>],
    measure: &mut impl FnMut(&mut Server, usize) -> Result<P>,
    faults: &mut Faults,
) -> Result<()> {
    let chosen = &setup.databases[database];
    let mut server = Server::start(&setup.program, &setup.task_type, chosen)?;
    for Row { connections, rounds, peak, .. } in rows.iter_mut().filter(|row| row.database == database) {
        let part = format!("round {round}, {} database, {connections} connections", chosen.name());
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
                let error = anyhow::anyhow!("{} database, {connections} connections: {error:#}", chosen.name());
                return Err(server.explain(&error));
            }
        }
    }
    server.stop()
}

/// The rows of one point stand together: the empty database's, then the large one's.
fn comparison<P: Point>(rows: &[Row<P>]) -> Table {
    let mut table = Table::new(&["connections", "time", "empty ms", "large ms", "large/empty", "min–max"]);
    for pair in rows.chunk_by(|one, next| one.connections == next.connections) {
        let [empty, large] = pair else { continue };
        let times = |row: &Row<P>| row.rounds.iter().map(Point::times).collect::<Vec<_>>();
        let (empty, large) = (times(empty), times(large));
        for (at, (name, _)) in empty[0].iter().enumerate() {
            let of = |rounds: &[Vec<(&str, f64)>]| Spread::of(rounds.iter().map(|times| times[at].1)).median();
            let ratios = Spread::of(empty.iter().zip(&large).map(|(empty, large)| large[at].1 / empty[at].1));
            table.row(vec![
                pair[0].connections.to_string(),
                (*name).to_owned(),
                millis_of(of(&empty)),
                millis_of(of(&large)),
                format!("{:.2}", ratios.median()),
                ratios.range_to_hundredths(),
            ]);
        }
    }
    table
}
