//! Clients that remember what the server told them, and ask later whether it is still true.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::Value;

use super::power_cut::Random;
use crate::support::{Answer, Client};

/// How many names a client's objects have, so that some are replaced.
const NAMES: u64 = 40;

/// What one client was told.
#[derive(Debug)]
pub(super) struct Told {
    client: u64,
    random: Random,
    tasks: BTreeMap<String, Task>,
    objects: BTreeMap<String, Object>,
    /// Answers that no disk excuses.
    wrong: Vec<String>,
}

#[derive(Debug)]
struct Task {
    input: String,
    /// The task after its end, once it was seen.
    ended: Option<Value>,
    deleted: Deleted,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deleted {
    No,
    /// It was asked for and not answered.
    Perhaps,
    Yes,
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
        Told { client, random, tasks: BTreeMap::new(), objects: BTreeMap::new(), wrong: Vec::new() }
    }

    /// Uses the server until it is gone; counts the acknowledged changes.
    pub(super) fn use_until_gone(&mut self, client: &Client, acknowledged: &AtomicU64) {
        while let Ok(changed) = self.step(client) {
            acknowledged.fetch_add(u64::from(changed), Ordering::Relaxed);
        }
    }

    fn step(&mut self, client: &Client) -> Result<bool, Gone> {
        match self.random.below(100) {
            0..30 => self.create(client, Some("wait=30")),
            30..55 => self.create(client, None),
            55..75 => self.put(client),
            75..80 => self.remove(client),
            80..90 => self.delete(client),
            _ => self.look(client),
        }
    }

    fn create(&mut self, client: &Client, prefer: Option<&str>) -> Result<bool, Gone> {
        let length = if self.random.chance(10) { 5000 } else { self.random.below(60) };
        let text: String = (0..length).map(|_| char::from(b'a' + self.random.below(26) as u8)).collect();
        // A number that JSON libraries would write otherwise, and blanks: the input comes back as it is.
        let input = format!(r#"{{ "n": {}.0e0, "text": "{text}" }}"#, self.random.below(1 << 40));
        let body = format!(r#"{{"task_type":"echo","input":{input}}}"#);
        let mut headers = vec![("content-type", "application/json")];
        headers.extend(prefer.map(|prefer| ("prefer", prefer)));
        let answer = client.try_send("POST", "/task", &headers, Some(body.as_bytes())).map_err(|_| Gone)?;
        if !matches!(answer.status, 200 | 202) {
            return self.not_done(&answer);
        }
        let task = answer.json();
        let id = task["id"].as_str().unwrap_or_default().to_owned();
        let ended = (answer.status == 200).then(|| task.clone());
        if answer.status == 200 && (task["status"] != "Completed" || answer.raw("output") != input) {
            self.wrong.push(format!("{input} was answered with {task}"));
        }
        self.tasks.insert(id, Task { input, ended, deleted: Deleted::No });
        Ok(true)
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
        let before = std::mem::replace(&mut task.deleted, Deleted::Perhaps);
        let answer = client.try_send("DELETE", &format!("/task/{id}"), &[], None).map_err(|_| Gone)?;
        match answer.status {
            200 => task.deleted = Deleted::Yes,
            404 if before != Deleted::No => task.deleted = Deleted::Yes,
            404 => self.wrong.push(format!("task {id} is not there to be deleted")),
            _ => return self.not_done(&answer),
        }
        Ok(true)
    }

    fn look(&mut self, client: &Client) -> Result<bool, Gone> {
        let Some((id, task)) = self.one_of_the_tasks() else { return Ok(false) };
        let answer = client.try_send("GET", &format!("/task/{id}"), &[], None).map_err(|_| Gone)?;
        if answer.status == 200 {
            let now = answer.json();
            if now["status"] == "Completed" && task.ended.is_none() {
                task.ended = Some(now);
            }
        } else if answer.status != 404 || task.deleted == Deleted::No {
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
        let at = self.random.below(self.tasks.len().max(1) as u64) as usize;
        self.tasks.iter_mut().nth(at).map(|(id, task)| (id.clone(), task))
    }

    /// Compares what the server says now with what it said. Returns what is not true any more.
    /// Whatever was left open is settled by the answers.
    pub(super) fn losses(&mut self, client: &Client) -> Vec<String> {
        let mut losses = std::mem::take(&mut self.wrong);
        self.tasks.retain(|id, task| match check_task(client, id, task) {
            Ok(kept) => kept,
            Err(loss) => {
                losses.push(loss);
                false
            }
        });
        for (name, object) in &mut self.objects {
            let answer = client.get(&format!("/objects/{name}"));
            let now = (answer.status == 200).then_some(answer.body);
            if !object.0.contains(&now) || !matches!(answer.status, 200 | 404) {
                let status = answer.status;
                losses.push(format!("object {name} is none of what was acknowledged or asked for ({status})"));
            }
            object.0 = vec![now];
        }
        losses
    }

    /// How many tasks and objects there are to be checked.
    pub(super) fn count(&self) -> usize {
        self.tasks.len() + self.objects.len()
    }
}

/// Whether the task has to be looked at the next time, too.
fn check_task(client: &Client, id: &str, task: &mut Task) -> Result<bool, String> {
    let path = format!("/task/{id}");
    let answer = client.get(&path);
    if answer.status == 404 {
        let lost = || format!("task {id} was acknowledged and is gone");
        // Deleted tasks are looked at each time: none may come back.
        return if task.deleted == Deleted::No { Err(lost()) } else { Ok(task.deleted == Deleted::Yes) };
    }
    if answer.status != 200 {
        return Err(format!("task {id}: GET is answered with {}", answer.status));
    }
    if task.deleted == Deleted::Yes {
        return Err(format!("task {id} was deleted and is back"));
    }
    task.deleted = Deleted::No;
    if answer.raw("input") != task.input {
        return Err(format!("task {id} has another input: {} instead of {}", answer.raw("input"), task.input));
    }
    if let Some(before) = &task.ended {
        let now = answer.json();
        return if now == *before { Ok(true) } else { Err(format!("task {id} was {before} and is {now}")) };
    }
    let result = client.get_with(&format!("{path}/result"), &[("prefer", "wait=60")]);
    if result.status != 200 || result.body != task.input.as_bytes() {
        return Err(format!("task {id} does not end with its result: {} {}", result.status, client.task(id)));
    }
    task.ended = Some(client.task(id));
    Ok(true)
}
