//! Schedules that clients put, pause and remove, and whether each due time made one task.

use std::collections::BTreeMap;
use std::path::Path;

use rusqlite::{Connection, OpenFlags};
use serde_json::{Value, json};

use super::model::Was;
use super::power_cut::{Disk, Random, Unsynced};
use super::{cut_while_starting, on_disk};
use crate::support::server::Setup;
use crate::support::time::{in_millis, millis};
use crate::support::{Answer, Client, temp_dir, wait_for};

/// Due every second.
const SECONDS: &str = "* * * * * *";
const SECOND_MS: i64 = 1000;

/// Schedules of a client that may make tasks at once.
const AT_ONCE: usize = 2;

/// The schedules of one client.
#[derive(Debug)]
pub(super) struct Schedules {
    client: u64,
    names: u64,
    all: BTreeMap<String, Schedule>,
}

/// A schedule that a client put. Its name is never used again, so that its tasks are its own.
#[derive(Debug)]
struct Schedule {
    catch_up: &'static str,
    /// Milliseconds; not known before a put was answered.
    created_at: Option<i64>,
    /// What it may be: what was acknowledged last, and what was asked for since.
    paused: Vec<bool>,
    /// When the last answer to a pause had come, or it was clear that none would.
    paused_by: i64,
    removed: Was,
    /// The same of the removal.
    removed_by: i64,
    /// How many tasks it had made when it was looked at last.
    made: i64,
    /// It was seen to be gone.
    gone: bool,
}

fn now() -> i64 {
    millis(&in_millis(0))
}

/// How many due times there are after `created_at` up to `until`.
fn due_times(created_at: i64, until: i64) -> i64 {
    until.div_euclid(SECOND_MS) - created_at.div_euclid(SECOND_MS)
}

impl Schedules {
    pub(super) fn new(client: u64) -> Schedules {
        Schedules { client, names: 0, all: BTreeMap::new() }
    }

    /// How many tasks they were seen to have made.
    pub(super) fn made(&self) -> i64 {
        self.all.values().map(|schedule| schedule.made).sum()
    }

    /// Puts, pauses, resumes or removes one. What is answered and cannot be goes to `wrong`.
    pub(super) fn step(
        &mut self,
        client: &Client,
        random: &mut Random,
        wrong: &mut Vec<String>,
    ) -> Result<Answer, ureq::Error> {
        let open: Vec<String> =
            self.all.iter().filter(|(_, one)| one.removed == Was::No).map(|(name, _)| name.clone()).collect();
        if open.len() < AT_ONCE {
            let name = format!("{}-{}", self.client, self.names);
            self.names += 1;
            let catch_up = ["all", "all", "one", "none"][random.below(4) as usize];
            self.all.insert(name.clone(), Schedule::new(catch_up));
            return self.put(client, &name, false, wrong);
        }
        let name = &open[random.below(open.len() as u64) as usize];
        if random.chance(20) {
            return self.remove(client, name, wrong);
        }
        let paused = self.all[name].paused.last() == Some(&false);
        self.put(client, name, paused, wrong)
    }

    fn put(
        &mut self,
        client: &Client,
        name: &str,
        paused: bool,
        wrong: &mut Vec<String>,
    ) -> Result<Answer, ureq::Error> {
        let Some(schedule) = self.all.get_mut(name) else { unreachable!("{name} was just there") };
        schedule.paused.push(paused);
        let task = json!({"task_type": "echo", "input": name});
        let body = json!({"cron": SECONDS, "task": task, "catch_up": schedule.catch_up, "paused": paused}).to_string();
        let headers = [("content-type", "application/json")];
        let answer = client.try_send("PUT", &format!("/schedules/{name}"), &headers, Some(body.as_bytes()));
        if paused {
            schedule.paused_by = now();
        }
        let answer = answer?;
        match answer.status {
            // It is there already if the put before was done, of which nothing was heard.
            200 if schedule.paused.len() > 1 => {}
            201 if schedule.created_at.is_none() => {}
            503 => return Ok(answer),
            status => wrong.push(format!("a put of the schedule {name} is answered with {status}: {schedule:?}")),
        }
        if matches!(answer.status, 200 | 201) {
            let told = answer.json();
            if let Err(why) = schedule.created(&told) {
                wrong.push(format!("the schedule {name}: {why}"));
            }
            schedule.paused = vec![paused];
        }
        Ok(answer)
    }

    fn remove(&mut self, client: &Client, name: &str, wrong: &mut Vec<String>) -> Result<Answer, ureq::Error> {
        let Some(schedule) = self.all.get_mut(name) else { unreachable!("{name} was just there") };
        schedule.removed = Was::Perhaps;
        let answer = client.try_send("DELETE", &format!("/schedules/{name}"), &[], None);
        schedule.removed_by = now();
        let answer = answer?;
        match answer.status {
            200 => schedule.removed = Was::Yes,
            404 if schedule.created_at.is_none() => schedule.removed = Was::Yes,
            503 => {}
            status => wrong.push(format!("the removal of the schedule {name} is answered with {status}")),
        }
        Ok(answer)
    }

    /// Compares them with what the server says and has. Returns what is not as it was told or should be.
    pub(super) fn losses(&mut self, client: &Client, database: &Path) -> Vec<String> {
        let mut losses = Vec::new();
        let conn = Connection::open_with_flags(database, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
        self.all.retain(|name, schedule| {
            let was_gone = schedule.gone;
            let checked = schedule.check(client, &conn, name);
            let right = checked.is_ok();
            losses.extend(checked.err().map(|why| format!("the schedule {name}: {why}: {schedule:?}")));
            // A removed one is looked at twice: it makes no task any more.
            right && !(was_gone && schedule.gone)
        });
        losses
    }
}

impl Schedule {
    fn new(catch_up: &'static str) -> Schedule {
        let (removed, paused_by, removed_by) = (Was::No, 0, 0);
        let paused = Vec::new();
        Schedule { catch_up, created_at: None, paused, paused_by, removed, removed_by, made: 0, gone: false }
    }

    /// The server says when it was created.
    fn created(&mut self, told: &Value) -> Result<(), String> {
        let at = millis(told["created_at"].as_str().unwrap_or_default());
        // It was not there yet where it was looked for between a put of which nothing was heard and this one.
        self.gone = false;
        match self.created_at.replace(at) {
            Some(before) if before != at => Err(format!("it was created at {before} and is now {told}")),
            _ => Ok(()),
        }
    }

    fn check(&mut self, client: &Client, conn: &Connection, name: &str) -> Result<(), String> {
        let began = now();
        let answer = client.get(&format!("/schedules/{name}"));
        let before = self.made;
        match answer.status {
            200 if self.removed == Was::Yes => return Err("it was removed and is back".into()),
            200 => self.removed = Was::No,
            404 if self.removed == Was::No && self.created_at.is_some() => return Err("it is gone".into()),
            404 => return self.check_gone(look(conn, name), before),
            status => return Err(format!("GET is answered with {status}")),
        }
        let told = answer.json();
        self.created(&told)?;
        let created_at = self.created_at.unwrap_or_default();
        let Some(paused) = told["paused"].as_bool().filter(|paused| self.paused.contains(paused)) else {
            return Err(format!("it is {told}"));
        };
        self.paused = vec![paused];
        let (next_at, made) = wait_for(format!("all due times of {name}"), || {
            let (next_at, made) = look(conn, name);
            next_at.filter(|next_at| paused || *next_at > began).map(|next_at| (next_at, made))
        });
        self.made = made;
        // In its own row it is noted how far it is: so many tasks it has made, one for each due time.
        let due = due_times(created_at, next_at - 1);
        if made > due || made < before || (made < due && self.catch_up == "all") {
            return Err(format!("it made {made} tasks, {before} of them before, for {due} due times"));
        }
        let latest = if paused { self.paused_by } else { now() };
        if next_at > latest + SECOND_MS {
            return Err(format!("it is at {next_at} and could not be further than {latest}"));
        }
        Ok(())
    }

    /// What a schedule that was removed has made.
    fn check_gone(&mut self, (next_at, made): (Option<i64>, i64), before: i64) -> Result<(), String> {
        let was_gone = std::mem::replace(&mut self.gone, true);
        self.made = made;
        // Where nothing was ever heard of it, there is nothing to count from.
        let most = self.created_at.map_or(i64::MAX, |created_at| due_times(created_at, self.removed_by));
        let never = self.removed == Was::No;
        if next_at.is_some() || made < before || made > most || (was_gone && made != before) || (never && made > 0) {
            return Err(format!("it is gone and made {made} tasks, {before} of them before, and {most} at most"));
        }
        Ok(())
    }
}

/// How far a schedule is, and how many tasks it has made, at one moment.
fn look(conn: &Connection, name: &str) -> (Option<i64>, i64) {
    let sql = "SELECT (SELECT next_at FROM schedule WHERE tenant = 'default' AND name = ?1),
                      (SELECT count(*) FROM task WHERE tenant = 'default' AND schedule = ?1)";
    conn.query_row(sql, [name], |row| Ok((row.get(0)?, row.get(1)?))).unwrap()
}

/// What is in the database now, seen in a copy: opening it would repair what the crash left.
fn look_at_copy(setup: &Setup, name: &str) -> (i64, i64) {
    let copy = temp_dir();
    for file in ["taskcell.db", "taskcell.db-wal"] {
        let from = setup.data_dir().join(file);
        if from.exists() {
            std::fs::copy(from, copy.path().join(file)).unwrap();
        }
    }
    let (next_at, made) = look(&Connection::open(copy.path().join("taskcell.db")).unwrap(), name);
    (next_at.unwrap(), made)
}

/// Wherever the power fails while missed due times are caught up: each makes one task, so many in one
/// transaction.
#[test]
fn catching_up_goes_on_after_power_cuts() {
    const DAY_MS: i64 = 24 * 60 * 60 * 1000;
    /// As many as are caught up.
    const MISSED: i64 = 1000;
    /// Tasks that schedules make in one transaction.
    const TOGETHER: i64 = 128;
    let mut random = Random::new();
    let disk = Disk::new();
    let server = on_disk(&disk);
    // Once a day, about twelve hours from now.
    let hour = (now() / 3_600_000 + 12) % 24;
    let body = json!({"cron": format!("0 {hour} * * *"), "task": {"task_type": "echo"}, "catch_up": "all"}).to_string();
    let headers = [("content-type", "application/json")];
    server.client.send("PUT", "/schedules/missed", &headers, Some(body.as_bytes())).expect(201);
    let setup = server.stop();
    let conn = Connection::open(setup.database()).unwrap();
    let next = look(&conn, "missed").0.unwrap();
    let first = next - MISSED * DAY_MS;
    assert_eq!(conn.execute("UPDATE schedule SET next_at = ?1", [first]).unwrap(), 1);
    drop(conn);

    let mut between = 0;
    for cut in 0.. {
        let unsynced = [Unsynced::Lost, Unsynced::Torn, Unsynced::Scattered][cut % 3];
        let calls = 10 + random.below(300) as u32;
        cut_while_starting(&disk, &setup, calls);
        disk.lose_power(setup.data_dir(), unsynced, &mut random);
        let (next_at, made) = look_at_copy(&setup, "missed");
        eprintln!("after {calls} calls: {made}");
        assert_eq!(made, (next_at - first) / DAY_MS, "each due time makes one task in one transaction");
        assert!(made % TOGETHER == 0 || made == MISSED, "{made} were made in parts of {TOGETHER}");
        if made == MISSED {
            break;
        }
        between += usize::from(made > 0);
    }
    assert!(between > 0, "the power never failed in between");
    let server = setup.start();
    // Some may have been interrupted too often.
    let with = |status: &str| {
        let page = server.client.get(&format!("/tasks?limit=1000&status={status}")).expect(200).json();
        page["tasks"].as_array().unwrap().len() as i64
    };
    wait_for("all to end", || (with("Completed") + with("Failed&error_kind=interrupted") == MISSED).then_some(()));
    let setup = server.stop();
    assert_eq!(look_at_copy(&setup, "missed"), (next, MISSED));
}
