//! Guests that take all the processor they can get, and the others meanwhile.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{Client, alone, guest, server};

/// Spinning guests for each core.
const SPINNERS_PER_CORE: usize = 4;

const ROUNDS: usize = 20;

/// How long anything else may take meanwhile. Generous: this is about being served at all.
const BOUND: Duration = Duration::from_secs(2);

/// Starts guests that keep every core busy.
fn pin_every_core(client: &Client) -> Vec<String> {
    let cores = std::thread::available_parallelism().unwrap().get();
    let spinners = [guest("spin"), guest("spin-blocking"), guest("bulk")];
    let ids: Vec<String> = (0..cores * SPINNERS_PER_CORE)
        .map(|number| client.create(&json!({"task_type": spinners[number % spinners.len()]})))
        .collect();
    for id in &ids {
        client.wait_for_status(id, "Running");
    }
    ids
}

/// Measures some calls and says how long they took.
fn measure(what: &str, mut call: impl FnMut()) {
    let mut took: Vec<Duration> = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            call();
            start.elapsed()
        })
        .collect();
    took.sort();
    let (median, longest) = (took[ROUNDS / 2], took[ROUNDS - 1]);
    eprintln!("{what} meanwhile: median {median:.1?}, longest {longest:.1?}");
    assert!(longest < BOUND, "{what}: {longest:?}");
}

#[test]
fn a_guest_that_spins_delays_nobody() {
    let _alone = alone();
    // They would be ended by their CPU limit otherwise.
    let server = server(&["--default-cpu-ms", "600000", "--default-fuel", "10000000000000"]);
    let client = &server.client;
    let spinners = pin_every_core(client);

    measure("GET /healthz", || {
        client.get("/healthz").expect(200);
    });
    measure("an echo, waited for", || {
        assert_eq!(client.output(&json!({"task_type": "echo", "input": [1]})), json!([1]));
    });
    measure("a sleep of 50 ms", || {
        let task = client.run(&json!({"task_type": guest("sleep"), "input": {"ms": 50}}));
        assert_eq!(task["status"], "Completed", "{task:#}");
    });
    measure("an object, written and read", || {
        let written = client.send("PUT", "/objects/busy", &[], Some(b"x"));
        assert!(matches!(written.status, 200 | 201), "{written:?}");
        assert_eq!(client.get("/objects/busy").expect(200).body, b"x");
    });
    measure("a timeout of 100 ms", || {
        let task = client.run(&json!({"task_type": guest("sleep-forever"), "limits": {"timeout_ms": 100}}));
        assert_eq!(task["error"]["kind"], "timeout", "{task:#}");
    });

    // They were at it all the time, and share the processor fairly.
    let canceled: Vec<Value> =
        spinners.iter().map(|id| client.post(&format!("/task/{id}/cancel")).expect(202).json()).collect();
    let cpu: Vec<f64> = canceled.iter().map(|task| task["usage"]["cpu_ms"].as_f64().unwrap()).collect();
    eprintln!("CPU time of the guests that spin, ms: {cpu:.0?}");
    assert!(cpu.iter().all(|cpu| *cpu > 20.0), "one got nothing: {cpu:?}");
}

/// Guests that do nothing but call the host burn hardly any fuel. They yield all the same, and end in time.
#[test]
fn guests_that_only_call_the_host_delay_nobody() {
    const AT_ONCE: usize = 12;
    const BIG: usize = 48 << 20;

    let _alone = alone();
    let server = server(&["--default-cpu-ms", "600000"]);
    let client = &server.client;
    let calls = [
        json!({"call": "id"}),
        json!({"call": "attempt"}),
        json!({"call": "random"}),
        json!({"call": "log", "bytes": 100}),
        json!({"call": "progress", "bytes": BIG}),
        json!({"call": "log", "bytes": BIG}),
    ];
    for input in calls {
        // All of them go on for as long as it is measured.
        let calls = |timeout_ms: u64| {
            let task = json!({"task_type": guest("host-calls"), "input": input, "limits": {"timeout_ms": timeout_ms}});
            client.create(&task)
        };
        let ids: Vec<String> = (0..AT_ONCE).map(|_| calls(300_000)).collect();
        for id in &ids {
            client.wait_for_status(id, "Running");
        }
        measure(&format!("an echo under {input}"), || {
            assert_eq!(client.output(&json!({"task_type": "echo", "input": [1]})), json!([1]));
        });
        let ended = client.wait_for_end(&calls(1000));
        assert_eq!(ended["error"]["kind"], "timeout", "{ended:#}");
        let (duration, wall) = (ended["duration_ms"].as_f64().unwrap(), ended["usage"]["wall_ms"].as_f64().unwrap());
        assert!((1000.0..1000.0 + BOUND.as_millis() as f64).contains(&duration), "{ended:#}");
        // The receipt is of all the time since it started, also where it waited for its first turn.
        assert!((duration - wall).abs() < 100.0, "{ended:#}");
        for id in ids {
            let task = client.post(&format!("/task/{id}/cancel")).expect(202).json();
            assert_eq!(task["error"]["kind"], "canceled", "{task:#}");
        }
    }
}

/// Thousands of calls that wait for the store are the guest's own trouble.
#[test]
fn a_guest_that_floods_the_store_delays_nobody() {
    let _alone = alone();
    let server = server(&["--default-cpu-ms", "600000"]);
    let client = &server.client;
    for number in 0..200 {
        client.send("PUT", &format!("/objects/flood/{number}"), &[], Some(b"x")).expect(201);
    }
    let flood = |op: &str| {
        let input =
            json!({"op": op, "prefix": "flood", "limit": 200, "name": "w", "at_once": 2000, "rounds": 1_000_000});
        json!({"task_type": guest("objects"), "input": input})
    };
    for op in ["list", "write"] {
        let ids: Vec<String> = (0..8).map(|_| client.create(&flood(op))).collect();
        for id in &ids {
            client.wait_for_status(id, "Running");
        }
        // Until all calls of the first rounds wait.
        std::thread::sleep(Duration::from_secs(1));
        measure(&format!("GET /task/{{id}} under a flood of {op}"), || {
            client.get(&format!("/task/{}", ids[0])).expect(200);
        });
        measure(&format!("GET /readyz under a flood of {op}"), || {
            client.get("/readyz").expect(200);
        });
        measure(&format!("PUT /objects under a flood of {op}"), || {
            client.send("PUT", "/objects/flood/1", &[], Some(b"y")).expect(200);
        });
        for id in ids {
            assert_eq!(client.status(&id), "Running", "it floods nothing any more: {:#}", client.task(&id));
            client.delete(&format!("/task/{id}")).expect(200);
        }
    }
}

/// Bulk instructions do much work for little fuel, and are stopped in time all the same.
#[test]
fn bulk_memory_is_stopped_in_time() {
    let _alone = alone();
    let server = server(&[]);
    for (limit, kind, figure) in [("timeout_ms", "timeout", "wall_ms"), ("cpu_ms", "cpu_exceeded", "cpu_ms")] {
        let task = server.client.failure(&json!({"task_type": guest("bulk"), "limits": {limit: 300}}));
        assert_eq!(task["error"]["kind"], kind, "{task:#}");
        let used = task["usage"][figure].as_f64().unwrap();
        assert!((300.0..400.0).contains(&used), "{limit} 300: {used}");
    }
    let task = server.client.failure(&json!({"task_type": guest("bulk"), "limits": {"fuel": 1_000_000_000}}));
    assert_eq!(task["error"]["kind"], "fuel_exhausted", "{task:#}");
}

/// On a machine that is not starved the limits of time hold to within 100 ms.
#[test]
fn limits_of_time_hold_to_a_tenth_of_a_second() {
    let _alone = alone();
    let server = server(&[]);
    for task_type in [guest("spin"), guest("spin-blocking"), guest("sleep-forever")] {
        let task = server.client.failure(&json!({"task_type": task_type, "limits": {"timeout_ms": 250}}));
        assert_eq!(task["error"]["kind"], "timeout", "{task:#}");
        let wall = task["usage"]["wall_ms"].as_f64().unwrap();
        assert!((250.0..350.0).contains(&wall), "{task_type}: {wall} ms");
    }
}
