//! The ledger: what tenants used is the sum of the receipts, and stays.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::TcpStream;

use serde_json::{Value, json};

use crate::support::server::Setup;
use crate::support::{Client, Server, alone, guest, server, time, wait_for};

const JSON: (&str, &str) = ("content-type", "application/json");

/// What there is of attempts: how many, and the sums of their receipts in whole numbers.
#[derive(Clone, Debug, Default, PartialEq)]
struct Sums {
    attempts: u64,
    micros: [u64; 3],
    memory_kib_ms: u64,
    whole: [u64; 4],
}

/// The members of receipts and of the ledger that both have.
const TIMES: [&str; 3] = ["cpu_ms", "wall_ms", "queue_ms"];
const WHOLE: [&str; 4] = ["fuel", "host_calls", "io_bytes", "log_bytes"];

fn micros(millis: &Value) -> u64 {
    (millis.as_f64().unwrap() * 1000.0).round() as u64
}

impl Sums {
    fn add_receipt(&mut self, usage: &Value) {
        self.attempts += 1;
        // There is none of an attempt that the server went down under.
        if usage.is_null() {
            return;
        }
        for (sum, name) in self.micros.iter_mut().zip(TIMES) {
            *sum += micros(&usage[name]);
        }
        for (sum, name) in self.whole.iter_mut().zip(WHOLE) {
            *sum += usage[name].as_u64().unwrap();
        }
        self.memory_kib_ms += usage["peak_memory_bytes"].as_u64().unwrap() * micros(&usage["wall_ms"]) / 1_024_000;
    }

    fn of_ledger(used: &Value) -> Sums {
        Sums {
            attempts: used["attempts"].as_u64().unwrap(),
            micros: TIMES.map(|name| micros(&used[name])),
            memory_kib_ms: (used["memory_mib_seconds"].as_f64().unwrap() * 1_024_000.0).round() as u64,
            whole: WHOLE.map(|name| used[name].as_u64().unwrap()),
        }
    }

    fn add(&mut self, other: &Sums) {
        self.attempts += other.attempts;
        self.memory_kib_ms += other.memory_kib_ms;
        self.micros.iter_mut().zip(other.micros).for_each(|(sum, more)| *sum += more);
        self.whole.iter_mut().zip(other.whole).for_each(|(sum, more)| *sum += more);
    }
}

/// By day and outcome.
type ByDay = BTreeMap<(String, String), Sums>;

fn days(client: &Client) -> Vec<Value> {
    client.get("/tenant/usage").expect(200).json()["days"].as_array().unwrap().clone()
}

/// What the ledger says of attempts, and of tasks by how they ended. Checks that its totals are the sums.
fn ledger(client: &Client) -> (ByDay, BTreeMap<String, u64>) {
    let (mut attempts, mut tasks) = (ByDay::new(), BTreeMap::new());
    for day in days(client) {
        let name = day["day"].as_str().unwrap();
        let mut total = Sums::default();
        let mut ended = 0;
        for (outcome, used) in day["outcomes"].as_object().unwrap() {
            let sums = Sums::of_ledger(used);
            total.add(&sums);
            let of_outcome = used["tasks"].as_u64().unwrap();
            ended += of_outcome;
            if of_outcome > 0 {
                *tasks.entry(outcome.clone()).or_default() += of_outcome;
            }
            if sums.attempts > 0 {
                attempts.insert((name.to_owned(), outcome.clone()), sums);
            }
        }
        assert_eq!((Sums::of_ledger(&day["total"]), &day["total"]["tasks"]), (total, &json!(ended)), "{day:#}");
    }
    (attempts, tasks)
}

/// The same from the tasks that there are, all of which have ended.
fn receipts(client: &Client) -> (ByDay, BTreeMap<String, u64>) {
    let (mut attempts, mut tasks) = (ByDay::new(), BTreeMap::new());
    let outcome = |of: &Value| of["error"]["kind"].as_str().unwrap_or("completed").to_owned();
    for task in client.get("/tasks?limit=1000").expect(200).json()["tasks"].as_array().unwrap() {
        *tasks.entry(outcome(task)).or_default() += 1;
        let path = format!("/task/{}/attempts", task["id"].as_str().unwrap());
        for attempt in client.get(&path).expect(200).json()["attempts"].as_array().unwrap() {
            let day = attempt["finished_at"].as_str().unwrap()[..10].to_owned();
            attempts.entry((day, outcome(attempt))).or_default().add_receipt(&attempt["usage"]);
        }
    }
    (attempts, tasks)
}

fn tests_and_given_back(client: &Client) -> [Sums; 2] {
    let mut found = [Sums::default(), Sums::default()];
    for day in days(client) {
        for (sums, name) in found.iter_mut().zip(["tests", "given_back"]) {
            assert_eq!(day[name]["tasks"], 0);
            sums.add(&Sums::of_ledger(&day[name]));
        }
    }
    found
}

/// Tasks that end in many ways.
fn run_many(client: &Client) {
    let spin = |limits: Value| json!({"task_type": guest("spin"), "limits": limits});
    let retry = json!({"max_attempts": 3, "initial_backoff_ms": 1, "max_backoff_ms": 2});
    for (body, outcome) in [
        (json!({"task_type": "echo"}), "completed"),
        (json!({"task_type": "primes", "input": {"up_to": 1_000_000}}), "completed"),
        (json!({"task_type": guest("log"), "input": {"lines": 100}}), "completed"),
        (json!({"task_type": guest("objects"), "input": {"op": "write", "name": "o", "bytes": 5_000}}), "completed"),
        (json!({"task_type": guest("fail"), "input": {"transient": "x"}, "retry": retry}), "transient"),
        (json!({"task_type": guest("fail"), "input": {"transient": "x", "until": 3}, "retry": retry}), "completed"),
        (json!({"task_type": guest("fail"), "input": {"permanent": "x"}}), "permanent"),
        (json!({"task_type": guest("trap")}), "trap"),
        (spin(json!({"fuel": 5_000_000})), "fuel_exhausted"),
        (spin(json!({"cpu_ms": 20})), "cpu_exceeded"),
        (json!({"task_type": guest("sleep-forever"), "limits": {"timeout_ms": 30}, "retry": retry}), "timeout"),
    ] {
        let task = client.run(&body);
        assert_eq!(task["error"]["kind"].as_str().unwrap_or("completed"), outcome, "{task:#}");
    }
    let many = Value::from_iter((0..200).map(|n| json!({"task_type": "echo", "input": n}))).to_string();
    client.send("POST", "/tasks", &[JSON], Some(many.as_bytes())).expect(200);
    // Waiting tasks that end without an attempt.
    let delayed = client.create(&json!({"task_type": "echo", "delay_ms": 600_000}));
    client.post(&format!("/task/{delayed}/cancel")).expect(202);
    let soon = time::in_millis(300);
    let expired = client.create(&json!({"task_type": "echo", "delay_ms": 600_000, "expires_at": soon}));
    assert_eq!(client.wait_for_end(&expired)["error"]["kind"], "expired");
    // One that runs.
    let running = client.create(&json!({"task_type": guest("spin")}));
    client.wait_for_status(&running, "Running");
    client.post(&format!("/task/{running}/cancel")).expect(202);
    wait_for_all(client);
}

fn wait_for_all(client: &Client) {
    for status in ["Pending", "Running"] {
        wait_for(format!("no task to be {status}"), || {
            let listed = client.get(&format!("/tasks?limit=1&status={status}")).expect(200).json();
            listed["tasks"].as_array().unwrap().is_empty().then_some(())
        });
    }
}

fn with_two_tenants(flags: &[&str]) -> (Server, [String; 3]) {
    let setup = Setup::new(flags);
    setup.make_tenant("a");
    setup.make_tenant("b");
    let keys = [("a", "deploy"), ("b", "deploy"), ("operator", "read")];
    let keys = keys.map(|(tenant, role)| setup.make_key(tenant, role, &[]));
    (setup.start(), keys)
}

#[test]
fn the_ledger_is_the_sum_of_the_receipts_and_outlives_the_tasks() {
    let (server, [a, b, operator]) = with_two_tenants(&["--drain-timeout", "50"]);
    let client = |server: &Server, key: &str| server.client.with_key(key);
    run_many(&client(&server, &a));
    for n in 0..3 {
        client(&server, &b).run(&json!({"task_type": "echo", "input": n}));
    }
    // One that is retried by hand ends twice.
    let again = client(&server, &a).run(&json!({"task_type": "echo", "input": "again"}));
    let again = again["id"].as_str().unwrap();
    client(&server, &a).post(&format!("/task/{again}/retry")).expect(202);
    wait_for_all(&client(&server, &a));

    // Two that a crash cuts off, which are attempted again, and given back by a server that stops then.
    let cut_off = [(); 2].map(|()| client(&server, &a).create(&json!({"task_type": guest("spin")})));
    for id in &cut_off {
        client(&server, &a).wait_for_status(id, "Running");
    }
    let server = server.crash().start();
    for id in &cut_off {
        client(&server, &a).wait_for_status(id, "Running");
    }
    wait_for("CPU time to be used", || (charged(&server) > 20_000_000).then_some(()));
    let server = server.stop().start();
    for id in &cut_off {
        client(&server, &a).wait_for_status(id, "Running");
        client(&server, &a).post(&format!("/task/{id}/cancel")).expect(202);
    }
    let (a_client, b_client) = (client(&server, &a), client(&server, &b));
    let given_back = &tests_and_given_back(&a_client)[1];
    assert_eq!(given_back.attempts, 2);
    assert!(given_back.micros[0] > 0 && given_back.whole[0] > 0, "they used something: {given_back:?}");

    let (attempts, mut tasks) = receipts(&a_client);
    *tasks.get_mut("completed").unwrap() += 1;
    let kinds: Vec<&str> = tasks.keys().map(String::as_str).collect();
    let all = "canceled completed cpu_exceeded expired fuel_exhausted permanent timeout transient trap";
    assert_eq!(kinds.join(" "), all);
    assert_eq!(
        attempts.iter().filter(|((_, kind), _)| kind == "interrupted").map(|(_, of)| of.attempts).sum::<u64>(),
        2
    );
    assert_eq!(ledger(&a_client), (attempts, tasks));
    let of_b = receipts(&b_client);
    assert_eq!((ledger(&b_client), of_b.1["completed"]), (of_b.clone(), 3), "of the other tenant");
    // The operator reads the very same.
    let read = server.client.with_key(&operator).get("/tenants/a/usage").expect(200);
    assert_eq!(read.json(), a_client.get("/tenant/usage").expect(200).json());

    // An attempt whose task is removed under it counts as well, though nobody sees its receipt.
    let before = ledger(&a_client).0.values().map(|of| of.attempts).sum::<u64>();
    let removed = a_client.create(&json!({"task_type": guest("spin")}));
    a_client.wait_for_status(&removed, "Running");
    a_client.delete(&format!("/task/{removed}")).expect(200);
    let of_a = ledger(&a_client);
    assert_eq!(of_a.0.values().map(|of| of.attempts).sum::<u64>(), before + 1);

    // The tasks of the one are deleted, those of the other kept no longer.
    a_client.send("POST", "/tasks/delete", &[JSON], Some(b"{}")).expect(202);
    let gone = |client: &Client| client.get("/tasks").expect(200).json()["tasks"].as_array().unwrap().is_empty();
    wait_for("the tasks to be deleted", || gone(&a_client).then_some(()));
    let server = server.stop().with_flags(&["--retention", "1"]).start();
    let (a_client, b_client) = (client(&server, &a), client(&server, &b));
    wait_for("the tasks to be removed", || gone(&b_client).then_some(()));
    assert_eq!((ledger(&a_client), ledger(&b_client)), (of_a, of_b));
}

#[test]
fn tests_of_a_type_are_in_the_ledger_apart() {
    let server = server(&[]);
    let client = &server.client;
    let body = br#"{"input":{"up_to":1000000}}"#;
    let tried = client.send("POST", "/task-types/primes/test", &[JSON], Some(body)).expect(200).json();
    let mut expected = Sums::default();
    expected.add_receipt(&tried["usage"]);
    assert_eq!(tests_and_given_back(client)[0], expected);
    assert_eq!(ledger(client), Default::default());
    // Also where whoever asked has gone away, which stops it.
    let (name, before) = (guest("spin"), charged(&server));
    let mut connection = TcpStream::connect(&server.address).unwrap();
    let head = format!("POST /task-types/{name}/test HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n");
    connection.write_all(format!("{head}content-length: 2\r\n\r\n{{}}").as_bytes()).unwrap();
    wait_for("CPU time to be used", || (charged(&server) > before + 20_000_000).then_some(()));
    drop(connection);
    let tests = wait_for("the test to be in the ledger", || {
        let tests = tests_and_given_back(client)[0].clone();
        (tests.attempts == 2).then_some(tests)
    });
    assert!(tests.whole[0] > expected.whole[0], "it used fuel: {tests:?}");
}

#[test]
fn days_are_asked_for() {
    let server = server(&[]);
    let client = &server.client;
    client.run(&json!({"task_type": "echo"}));
    let usage = client.get("/tenant/usage").expect(200);
    assert_eq!(usage.header("cache-control"), Some("no-store"));
    let usage = usage.json();
    let (from, to) = (usage["from"].as_str().unwrap(), usage["to"].as_str().unwrap());
    assert_eq!(client.get(&format!("/tenant/usage?from={from}&to={to}")).expect(200).json(), usage);
    // The days between are included, and those outside are not.
    let day = usage["days"][0]["day"].as_str().unwrap();
    let one = client.get(&format!("/tenant/usage?from={day}&to={day}")).expect(200).json();
    assert_eq!(one["days"].as_array().unwrap().len(), 1);
    for (query, days) in
        [("to=2020-03-01", ["2020-02-01", "2020-03-01"]), ("from=2020-02-29&to=2020-02-29", ["2020-02-29"; 2])]
    {
        let answer = client.get(&format!("/tenant/usage?{query}")).expect(200).json();
        assert_eq!(answer, json!({"from": days[0], "to": days[1], "days": []}));
    }
    client.get("/tenant/usage?from=2019-01-01&to=2020-02-04").expect(200);
    for bad in [
        "from=2020-01-02&to=2020-01-01",
        "from=x",
        "to=2020-02-30",
        "from=2020-01-01T00:00:00Z",
        "day=2020-01-01",
        "from=2019-01-01&to=2020-02-05",
    ] {
        client.get(&format!("/tenant/usage?{bad}")).problem(400);
    }
    client.get("/tenants/nobody/usage").problem(404);
    client.get("/tenants/default/usage").expect(200);
}

/// What was used is kept for its days, and no longer.
#[test]
fn days_are_forgotten_in_the_end() {
    let setup = server(&[]).stop();
    let database = rusqlite::Connection::open(setup.database()).unwrap();
    let today = time::millis(&time::in_millis(0)) / 86_400_000;
    for age in [5, 15, 399, 401] {
        database
            .execute(
                "INSERT INTO usage VALUES ('default', ?1, 'completed', 1, 1, 1, 1, 1, 1, 1, 1, 1, 1)",
                [today - age],
            )
            .unwrap();
    }
    let rows = || database.query_row("SELECT count(*) FROM usage", [], |row| row.get::<_, u64>(0)).unwrap();
    let server = setup.start();
    wait_for("the oldest day to go", || (rows() == 3).then_some(()));
    let setup = server.stop().with_flags(&["--usage-retention", "10"]);
    let _server = setup.start();
    wait_for("the older days to go", || (rows() == 1).then_some(()));
    let left: i64 = database.query_row("SELECT day FROM usage", [], |row| row.get(0)).unwrap();
    assert_eq!(left, today - 5);
}

/// CPU time in nanoseconds that the system charged the threads that run guests.
fn charged(server: &Server) -> u64 {
    let threads = std::fs::read_dir(format!("/proc/{}/task", server.pid())).unwrap();
    let of_guests = threads
        .map(|thread| thread.unwrap().path())
        .filter(|thread| std::fs::read_to_string(thread.join("comm")).is_ok_and(|name| name.trim_end() == "guest"));
    let nanoseconds = of_guests.map(|thread| {
        let stat = std::fs::read_to_string(thread.join("schedstat")).unwrap();
        stat.split(' ').next().unwrap().parse::<u64>().unwrap()
    });
    nanoseconds.sum()
}

/// What the receipts say is what the system says.
#[test]
fn the_cpu_time_is_what_the_system_charged() {
    let _alone = alone();
    let server = server(&[]);
    let client = &server.client;
    let before = charged(&server);
    let tasks: Vec<String> = (0..12)
        .map(|n| match n % 3 {
            0 => json!({"task_type": "primes", "input": {"up_to": 30_000_000}}),
            1 => json!({"task_type": guest("compute"), "input": {"work": "fib", "n": 34}}),
            _ => json!({"task_type": guest("spin"), "limits": {"cpu_ms": 500}}),
        })
        .map(|body| client.create(&body))
        .collect();
    for id in &tasks {
        client.wait_for_end(id);
    }
    let charged = (charged(&server) - before) as f64 / 1e6;
    let told: f64 = days(client).iter().map(|day| day["total"]["cpu_ms"].as_f64().unwrap()).sum();
    println!("the receipts say {told:.1} ms, the system {charged:.1} ms");
    assert!(told > 1_000.0, "{told} ms are too few to compare");
    assert!((told / charged - 1.0).abs() < 0.25, "the receipts say {told} ms, the system {charged} ms");
}
