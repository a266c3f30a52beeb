//! Clients that remember what the server told them, and ask later whether it is still true.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Value, json};

use super::model::{End, Task, Was};
use super::power_cut::Random;
use super::schedules::Schedules;
use crate::support::{Answer, Client, guest};

const JSON: (&str, &str) = ("content-type", "application/json");

/// How many names a client's objects have, so that some are replaced.
const NAMES: u64 = 40;

/// Tasks of one `POST /tasks` at most.
const TOGETHER: u64 = 30;

/// What one client was told.
#[derive(Debug)]
pub(super) struct Told {
    client: u64,
    random: Random,
    tasks: BTreeMap<String, Task>,
    objects: BTreeMap<String, Object>,
    /// Requests under an idempotency key that are repeated until all of them is acknowledged.
    open: Vec<Keyed>,
    /// Those that were, until it was checked that each task is there once.
    settled: Vec<Keyed>,
    keys: u64,
    schedules: Schedules,
    /// Answers that no disk excuses.
    wrong: Vec<String>,
}

/// A request under an idempotency key, and the tasks that it was said to have led to.
#[derive(Debug)]
struct Keyed {
    key: String,
    path: &'static str,
    body: String,
    tasks: Vec<(Task, Option<String>)>,
}

/// What an object may be: what was acknowledged last, and what was asked for since. `None`: absent.
#[derive(Debug)]
struct Object(Vec<Option<Vec<u8>>>);

/// The connection failed.
#[derive(Debug)]
struct Gone;

impl Told {
    /// Nothing yet. The number tells this client's objects from the others'.
    pub(super) fn new(client: u64, random: Random) -> Told {
        let (tasks, objects) = (BTreeMap::new(), BTreeMap::new());
        let (open, settled, wrong, schedules) = (Vec::new(), Vec::new(), Vec::new(), Schedules::new(client));
        Told { client, random, tasks, objects, open, settled, keys: 0, schedules, wrong }
    }

    /// Uses the server until it is gone; counts the acknowledged changes.
    pub(super) fn use_until_gone(&mut self, client: &Client, acknowledged: &AtomicU64) {
        while let Ok(changed) = self.step(client) {
            acknowledged.fetch_add(u64::from(changed), Ordering::Relaxed);
        }
    }

    fn step(&mut self, client: &Client) -> Result<bool, Gone> {
        if let Some(keyed) = self.open.pop() {
            return self.repeat(client, keyed);
        }
        match self.random.below(100) {
            0..15 => self.create(client, Some("wait=30")),
            15..35 => self.create(client, None),
            35..45 => self.create_keyed(client, true),
            45..55 => self.create_keyed(client, false),
            55..70 => self.put(client),
            70..75 => self.remove(client),
            75..80 => self.delete(client),
            80..85 => self.cancel(client),
            85..90 => self.retry(client),
            90..93 => self.schedule(client),
            _ => self.look(client),
        }
    }

    /// Any task, with its body.
    fn any_task(&mut self, label: Option<&str>) -> (Task, String) {
        let mut rest = label.map_or_else(String::new, |label| format!(r#","labels":{{"request":"{label}"}}"#));
        let after_ms = self.random.below(60);
        let mut fails = |until: u64, task: Task| {
            rest.push_str(r#","retry":{"max_attempts":3,"initial_backoff_ms":50}"#);
            let input = format!(r#"{{"transient":"x","until":{until},"after_ms":{after_ms}}}"#);
            (guest("fail"), Task { input, max_attempts: 3, ..task })
        };
        let (task_type, mut task) = match self.random.below(100) {
            0..10 => fails(3, Task::new(String::new(), End::FailsUntil(3))),
            10..20 => fails(1_000_000, Task::new(String::new(), End::Fails)),
            20..30 => {
                // Some run for so long that several crashes cut them off.
                let most = if self.random.chance(20) { 3_000 } else { 300 };
                let input = json!({"ms": self.random.below(most)}).to_string();
                (guest("sleep"), Task::new(input, End::Completes))
            }
            _ => {
                let length = if self.random.chance(10) { 5000 } else { self.random.below(60) };
                let text: String = (0..length).map(|_| char::from(b'a' + self.random.below(26) as u8)).collect();
                // A number that JSON libraries would write otherwise, and blanks: the input comes back as it is.
                let input = format!(r#"{{ "n": {}.0e0, "text": "{text}" }}"#, self.random.below(1 << 40));
                ("echo", Task::new(input, End::Echo))
            }
        };
        if self.random.chance(15) {
            task.delay_ms = 100 + self.random.below(900) as i64;
            rest.push_str(&format!(r#","delay_ms":{}"#, task.delay_ms));
        }
        let body = format!(r#"{{"task_type":"{task_type}","input":{}{rest}}}"#, task.input);
        (task, body)
    }

    fn create(&mut self, client: &Client, prefer: Option<&str>) -> Result<bool, Gone> {
        let (mut task, body) = self.any_task(None);
        let mut headers = vec![JSON];
        headers.extend(prefer.map(|prefer| ("prefer", prefer)));
        let answer = client.try_send("POST", "/task", &headers, Some(body.as_bytes())).map_err(|_| Gone)?;
        if !matches!(answer.status, 200 | 202) {
            return self.not_done(&answer);
        }
        let told = answer.json();
        if answer.status == 200 {
            if task.end == End::Echo && (told["status"] != "Completed" || answer.raw("output") != task.input) {
                self.wrong.push(format!("{body} was answered with {told}"));
            }
            task.ended = Some(told.clone());
        }
        self.tasks.insert(told["id"].as_str().unwrap_or_default().to_owned(), task);
        Ok(true)
    }

    /// One task or many under an idempotency key.
    fn create_keyed(&mut self, client: &Client, many: bool) -> Result<bool, Gone> {
        let key = format!("{}-{}", self.client, self.keys);
        self.keys += 1;
        let count = if many { 1 + self.random.below(TOGETHER) } else { 1 };
        let (tasks, bodies): (Vec<_>, Vec<_>) = (0..count)
            .map(|_| {
                let (task, body) = self.any_task(Some(&key));
                ((task, None), body)
            })
            .unzip();
        let (path, body) =
            if many { ("/tasks", format!("[{}]", bodies.join(","))) } else { ("/task", bodies.concat()) };
        self.repeat(client, Keyed { key, path, body, tasks })
    }

    /// Sends the request, for the first time or again.
    fn repeat(&mut self, client: &Client, mut keyed: Keyed) -> Result<bool, Gone> {
        let headers = [JSON, ("idempotency-key", keyed.key.as_str())];
        let Ok(answer) = client.try_send("POST", keyed.path, &headers, Some(keyed.body.as_bytes())) else {
            self.open.push(keyed);
            return Err(Gone);
        };
        let results: Vec<Value> = match answer.status {
            202 | 200 if keyed.path == "/task" => vec![json!({"status": answer.status, "task": answer.json()})],
            200 => answer.json()["results"].as_array().cloned().unwrap_or_default(),
            _ => {
                self.open.push(keyed);
                return self.not_done(&answer);
            }
        };
        if results.len() != keyed.tasks.len() {
            self.wrong.push(format!("{} tasks were answered with {} results", keyed.tasks.len(), results.len()));
        }
        let mut all = true;
        for (result, (_, known)) in results.iter().zip(&mut keyed.tasks) {
            match (result["task"]["id"].as_str(), &known) {
                (Some(id), Some(before)) if id != before => {
                    self.wrong.push(format!("under the key {} task {before} became {id}", keyed.key));
                }
                (Some(id), _) => *known = Some(id.to_owned()),
                (None, _) => {
                    all = false;
                    if !matches!(result["status"].as_u64(), Some(429 | 503)) {
                        self.wrong.push(format!("a task under the key {} was answered with {result}", keyed.key));
                    }
                }
            }
        }
        if all {
            let tasks = keyed.tasks.iter().filter_map(|(task, id)| Some((id.clone()?, task.clone())));
            self.tasks.extend(tasks);
            self.settled.push(keyed);
        } else {
            self.open.push(keyed);
        }
        Ok(true)
    }

    fn cancel(&mut self, client: &Client) -> Result<bool, Gone> {
        // One that may well not have ended yet.
        let slow = |task: &Task| task.end != End::Echo && task.ended.is_none() && task.deleted == Was::No;
        let found = self.tasks.iter_mut().rev().find(|(_, task)| slow(task));
        let Some((id, task)) = found.map(|(id, task)| (id.clone(), task)) else { return Ok(false) };
        let before = std::mem::replace(&mut task.canceled, Was::Perhaps);
        let answer = client.try_send("POST", &format!("/task/{id}/cancel"), &[], Some(b"")).map_err(|_| Gone)?;
        match answer.status {
            202 => {
                task.canceled = Was::Yes;
                task.ended = Some(answer.json());
            }
            409 => task.canceled = before,
            404 if task.deleted != Was::No => {}
            404 => self.wrong.push(format!("task {id} is not there to be canceled")),
            _ => return self.not_done(&answer),
        }
        Ok(answer.status == 202)
    }

    fn retry(&mut self, client: &Client) -> Result<bool, Gone> {
        let Some((id, task)) = self.one_of_the_tasks() else { return Ok(false) };
        let before = task.clone();
        task.retries += 1;
        task.ended = None;
        task.canceled = if before.canceled == Was::No { Was::No } else { Was::Perhaps };
        let answer = client.try_send("POST", &format!("/task/{id}/retry"), &[], Some(b"")).map_err(|_| Gone)?;
        match answer.status {
            202 => task.canceled = Was::No,
            409 if before.ended.is_some() => self.wrong.push(format!("task {id} had ended and is not retried")),
            409 => *task = before,
            404 if task.deleted != Was::No => {}
            404 => self.wrong.push(format!("task {id} is not there to be retried")),
            _ => return self.not_done(&answer),
        }
        Ok(answer.status == 202)
    }

    fn put(&mut self, client: &Client) -> Result<bool, Gone> {
        let name = self.object_name();
        // Some are large, so that the write-ahead log is moved into the database now and then.
        let length = if self.random.chance(25) { 1_500_000 } else { self.random.below(9000) };
        let mut bytes = Vec::with_capacity(length as usize + 8);
        while (bytes.len() as u64) < length {
            bytes.extend(self.random.next().to_ne_bytes());
        }
        let object = self.objects.entry(name.clone()).or_insert_with(|| Object(vec![None]));
        object.0.push(Some(bytes.clone()));
        let path = format!("/objects/{name}");
        let answer = client.try_send("PUT", &path, &[], Some(&bytes)).map_err(|_| Gone)?;
        if !matches!(answer.status, 200..300) {
            return self.not_done(&answer);
        }
        object.0 = vec![Some(bytes)];
        Ok(true)
    }

    fn remove(&mut self, client: &Client) -> Result<bool, Gone> {
        let name = self.object_name();
        let object = self.objects.entry(name.clone()).or_insert_with(|| Object(vec![None]));
        object.0.push(None);
        let answer = client.try_send("DELETE", &format!("/objects/{name}"), &[], None).map_err(|_| Gone)?;
        if !matches!(answer.status, 200..300 | 404) {
            return self.not_done(&answer);
        }
        if answer.status == 404 && !object.0.contains(&None) {
            self.wrong.push(format!("{name} is not there to be removed"));
        }
        object.0 = vec![None];
        Ok(true)
    }

    fn delete(&mut self, client: &Client) -> Result<bool, Gone> {
        let Some((id, task)) = self.one_of_the_tasks() else { return Ok(false) };
        let before = std::mem::replace(&mut task.deleted, Was::Perhaps);
        let answer = client.try_send("DELETE", &format!("/task/{id}"), &[], None).map_err(|_| Gone)?;
        match answer.status {
            200 => task.deleted = Was::Yes,
            404 if before != Was::No => task.deleted = Was::Yes,
            404 => self.wrong.push(format!("task {id} is not there to be deleted")),
            _ => return self.not_done(&answer),
        }
        Ok(true)
    }

    fn schedule(&mut self, client: &Client) -> Result<bool, Gone> {
        let answer = self.schedules.step(client, &mut self.random, &mut self.wrong).map_err(|_| Gone)?;
        if matches!(answer.status, 200 | 201 | 404) { Ok(true) } else { self.not_done(&answer) }
    }

    fn look(&mut self, client: &Client) -> Result<bool, Gone> {
        let Some((id, task)) = self.one_of_the_tasks() else { return Ok(false) };
        let answer = client.try_send("GET", &format!("/task/{id}"), &[], None).map_err(|_| Gone)?;
        if answer.status == 200 {
            let now = answer.json();
            if task.ended.as_ref().is_some_and(|ended| *ended != now) {
                self.wrong.push(format!("task {id} had ended and is now {now}"));
            }
        } else if answer.status != 404 || task.deleted == Was::No {
            self.wrong.push(format!("GET of task {id} is answered with {}", answer.status));
        }
        Ok(false)
    }

    /// A refusal: what was asked for may be done or not.
    fn not_done(&mut self, answer: &Answer) -> Result<bool, Gone> {
        if answer.status != 503 {
            self.wrong.push(format!("{} is answered with {}: {:?}", answer.of, answer.status, answer.body));
        }
        Ok(false)
    }

    fn object_name(&mut self) -> String {
        format!("{}/{}", self.client, self.random.below(NAMES))
    }

    fn one_of_the_tasks(&mut self) -> Option<(String, &mut Task)> {
        let count = self.tasks.len() as u64;
        // Often one of the last, which may not have ended yet.
        let first = if self.random.chance(50) { count.saturating_sub(5) } else { 0 };
        let at = first + self.random.below((count - first).max(1));
        self.tasks.iter_mut().nth(at as usize).map(|(id, task)| (id.clone(), task))
    }

    /// Compares what the server says now with what it said. Returns what is not true any more.
    /// Whatever was left open is settled by the answers.
    pub(super) fn losses(&mut self, client: &Client, database: &Path) -> Vec<String> {
        while let Some(keyed) = self.open.pop() {
            if self.repeat(client, keyed).is_err() {
                self.wrong.push("the server is gone".into());
                break;
            }
        }
        let mut losses = std::mem::take(&mut self.wrong);
        self.tasks.retain(|id, task| match task.check(client, id) {
            Ok(kept) => kept,
            Err(loss) => {
                losses.push(loss);
                false
            }
        });
        for keyed in std::mem::take(&mut self.settled) {
            losses.extend(self.once_each(client, &keyed));
        }
        for (name, object) in &mut self.objects {
            let answer = client.get(&format!("/objects/{name}"));
            let now = (answer.status == 200).then_some(answer.body);
            if !object.0.contains(&now) || !matches!(answer.status, 200 | 404) {
                let status = answer.status;
                losses.push(format!("object {name} is none of what was acknowledged or asked for ({status})"));
            }
            object.0 = vec![now];
        }
        losses.extend(self.schedules.losses(client, database));
        losses
    }

    /// Whether a request led to one task for each that it had, however often it was made.
    fn once_each(&self, client: &Client, keyed: &Keyed) -> Option<String> {
        let page = client.get(&format!("/tasks?limit=1000&label=request:{}", keyed.key)).expect(200).json();
        let listed = page["tasks"].as_array().cloned().unwrap_or_default();
        let listed: BTreeSet<&str> = listed.iter().filter_map(|task| task["id"].as_str()).collect();
        let told: BTreeSet<&str> = keyed.tasks.iter().filter_map(|(_, id)| id.as_deref()).collect();
        // Those that were deleted, or reported already, are not there.
        let there = |id: &&str| self.tasks.get(*id).is_some_and(|task| task.deleted == Was::No);
        let missing = told.iter().find(|id| there(id) && !listed.contains(**id));
        let too_many = listed.iter().find(|id| !told.contains(**id));
        let same = told.len() != keyed.tasks.len();
        (same || missing.is_some() || too_many.is_some()).then(|| {
            let (key, count) = (&keyed.key, keyed.tasks.len());
            format!("{count} tasks under the key {key} are {listed:?} where {told:?} was told")
        })
    }

    /// How many tasks its schedules were seen to have made.
    pub(super) fn scheduled(&self) -> i64 {
        self.schedules.made()
    }

    /// How many tasks and objects there are to be checked.
    pub(super) fn count(&self) -> usize {
        self.tasks.len() + self.objects.len()
    }

    /// Forgets all but about so many tasks, so that checking does not take longer and longer.
    pub(super) fn forget(&mut self, but: usize) {
        let percent = 100 * but as u64 / (self.tasks.len().max(1) as u64);
        let random = &mut self.random;
        self.tasks.retain(|_, _| random.chance(percent));
    }
}
