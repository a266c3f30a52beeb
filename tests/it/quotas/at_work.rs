//! Quotas of what is at work: past them tasks wait.

use std::collections::HashSet;

use super::*;

const MIB: u64 = 1 << 20;

fn status(client: &Client, status: &str) -> HashSet<String> {
    ids(client, status).into_iter().collect()
}

#[track_caller]
fn wait_for_running(client: &Client, count: usize) -> HashSet<String> {
    wait_for(format!("{count} tasks to run"), || Some(status(client, "Running")).filter(|ids| ids.len() == count))
}

/// Each task that is Pending waits for a quota.
#[track_caller]
fn wait_for_quota(client: &Client, count: usize) {
    let pending = client.get("/tasks?status=Pending&limit=1000").expect(200).json();
    let pending = pending["tasks"].as_array().unwrap();
    assert_eq!(pending.len(), count);
    for task in pending {
        assert_eq!(task["waiting_for"], json!({"reason": "quota", "until": null}), "{task:#}");
    }
}

fn cancel(client: &Client, id: &str) {
    client.post(&format!("/task/{id}/cancel")).expect(202);
}

#[test]
fn running_tasks() {
    let two = Two::new(&[]);
    let sleeps = json!({"task_type": guest("sleep-forever")});
    let created = two.set(&json!({"running_tasks": 3}));
    assert_eq!(created["quotas"]["running_tasks"], json!({"limit": 3, "used": 0}));
    all_at_once(|_| two.a.create(&sleeps));
    let first = wait_for_running(&two.a, 3);
    wait_for_quota(&two.a, 61);
    assert_eq!(quota(&two.a, "running_tasks"), (Some(3), Some(3)));
    // Nor is a test of a type run, which would wait for nothing.
    let test = || two.a.send("POST", "/task-types/echo/test", &[JSON], Some(b"{}"));
    refusal(&test(), "running-tasks");
    // For others that is nothing.
    (0..5).for_each(|_| drop(two.b.create(&sleeps)));
    wait_for_running(&two.b, 5);
    two.b.output(&json!({"task_type": "echo", "input": 1}));
    // What ends makes room for one, and so does a higher quota.
    let ended = first.iter().next().unwrap();
    cancel(&two.a, ended);
    let next = wait_for("another to run", || {
        Some(status(&two.a, "Running")).filter(|running| running.len() == 3 && !running.contains(ended))
    });
    assert_eq!(next.intersection(&first).count(), 2);
    two.set(&json!({"running_tasks": 5}));
    wait_for_running(&two.a, 5);
    // A lower one stops nothing.
    two.set(&json!({"running_tasks": 1}));
    assert_eq!(quota(&two.a, "running_tasks"), (Some(1), Some(5)));
    for (left, id) in (1..5).rev().zip(status(&two.a, "Running")) {
        cancel(&two.a, &id);
        assert_eq!(status(&two.a, "Running").len(), left);
    }
    wait_for_quota(&two.a, 58);
    // It is counted again after a crash.
    let server = two.server.crash().start();
    let a = server.client.with_key(&server.setup().make_key("a", "admin", &[]));
    wait_for_running(&a, 1);
    wait_for_quota(&a, 58);
}

/// However many clients create them, never one more than may.
#[test]
fn never_one_more_runs() {
    let two = Two::new(&[]);
    two.set(&json!({"running_tasks": 3}));
    let body = json!({"task_type": guest("sleep"), "input": {"ms": 5}});
    let created = all_at_once(|_| (0..5).map(|_| two.a.create(&body)).collect::<Vec<_>>());
    let spans: Vec<_> = created
        .iter()
        .flatten()
        .map(|id| {
            let task = two.a.wait_for_end(id);
            assert_eq!(task["status"], "Completed", "{task:#}");
            let at = |name: &str| crate::support::time::millis(task[name].as_str().unwrap());
            (at("started_at"), at("finished_at"))
        })
        .collect();
    // An end and the start that it made room for may be in one millisecond.
    for (start, _) in &spans {
        let at_once = spans.iter().filter(|(from, to)| from <= start && start < to).count();
        assert!(at_once <= 3, "{at_once} at once");
    }
    assert_eq!(quota(&two.a, "running_tasks"), (Some(3), Some(0)));
}

#[test]
fn running_memory() {
    let two = Two::new(&[]);
    let sleeps = |memory: u64| json!({"task_type": guest("sleep-forever"), "limits": {"memory_bytes": memory}});
    two.set(&json!({"running_memory_bytes": 100 * MIB}));
    all_at_once(|_| two.a.create(&sleeps(30 * MIB)));
    let first = wait_for_running(&two.a, 3);
    wait_for_quota(&two.a, 61);
    assert_eq!(quota(&two.a, "running_memory_bytes"), (Some(100 * MIB), Some(90 * MIB)));
    // One that needs little does not go before those that wait.
    two.a.create(&sleeps(10 * MIB));
    wait_for_quota(&two.a, 62);
    two.b.create(&sleeps(30 * MIB));
    wait_for_running(&two.b, 1);
    let ended = first.iter().next().unwrap();
    cancel(&two.a, ended);
    wait_for("another to run", || {
        Some(status(&two.a, "Running")).filter(|running| running.len() == 3 && !running.contains(ended))
    });
    two.set(&json!({"running_memory_bytes": 150 * MIB}));
    wait_for_running(&two.a, 5);
    assert_eq!(quota(&two.a, "running_memory_bytes"), (Some(150 * MIB), Some(150 * MIB)));
    // What waits for more than a lowered quota is all of waits for no more than that.
    two.set(&json!({"running_memory_bytes": 20 * MIB}));
    for id in status(&two.a, "Running") {
        cancel(&two.a, &id);
    }
    wait_for_running(&two.a, 1);
    assert_eq!(quota(&two.a, "running_memory_bytes"), (Some(20 * MIB), Some(20 * MIB)));
}

/// One that could have more than all that its tenant may have has that, and no more.
#[test]
fn a_task_has_no_more_memory_than_its_tenant() {
    let two = Two::new(&[]);
    let grows =
        |client: &Client, bytes: u64| client.run(&json!({"task_type": guest("memory"), "input": {"bytes": bytes}}));
    assert_eq!(grows(&two.a, 20 * MIB)["status"], "Completed");
    two.set(&json!({"running_memory_bytes": 16 * MIB}));
    let task = grows(&two.a, 20 * MIB);
    assert_eq!((&task["status"], &task["error"]["kind"]), (&json!("Failed"), &json!("memory_exceeded")), "{task:#}");
    assert_eq!(grows(&two.a, 8 * MIB)["status"], "Completed");
    assert_eq!(grows(&two.b, 20 * MIB)["status"], "Completed");
    assert_eq!(quota(&two.a, "running_memory_bytes"), (Some(16 * MIB), Some(0)));
}

/// Somebody waits for it on a connection.
#[test]
fn a_test_does_not_wait_for_the_next_hour() {
    let two = Two::new(&[]);
    two.set(&json!({"cpu_ms_per_hour": 50}));
    let test = format!("/task-types/{}/test", guest("spin"));
    let refused = two.a.send("POST", &test, &[JSON], Some(b"{}"));
    refused_for(&refused, "cpu-ms-per-hour", 3_600);
    // What it used is in the ledger, and it holds nothing any more.
    let tests = &two.a.get("/tenant/usage").expect(200).json()["days"][0]["tests"];
    assert_eq!(tests["attempts"], 1, "{tests:#}");
    assert!(tests["cpu_ms"].as_f64().unwrap() >= 50.0, "{tests:#}");
    assert_eq!(quota(&two.a, "running_tasks").1, Some(0));
}

#[test]
fn cpu_time_of_an_hour() {
    let two = Two::new(&[]);
    assert_eq!(quota(&two.a, "cpu_ms_per_hour"), (None, None));
    two.set(&json!({"cpu_ms_per_hour": 50}));
    assert_eq!(quota(&two.a, "cpu_ms_per_hour"), (Some(50), Some(0)));
    let computes = json!({"task_type": "primes", "input": {"up_to": 20_000_000}});
    let ids: Vec<_> = (0..2).map(|_| two.a.create(&computes)).collect();
    let used = wait_for("the hour to be used up", || quota(&two.a, "cpu_ms_per_hour").1.filter(|used| *used >= 50));
    // From here on nothing of it runs: not those that were at it, and no other.
    let waits = two.a.create(&json!({"task_type": "echo"}));
    let sum =
        (0..20).map(|input| two.b.output(&json!({"task_type": "echo", "input": input})).as_u64().unwrap()).sum::<u64>();
    assert_eq!(sum, 190);
    two.b.run(&json!({"task_type": "primes", "input": {"up_to": 2_000_000}}));
    wait_for_quota(&two.a, 1);
    assert_eq!(status(&two.a, "Running").len(), 2);
    let now = quota(&two.a, "cpu_ms_per_hour").1.unwrap();
    // What had its turn when it was used up went on to the end of that.
    assert!(now < used + 1_000, "{used} and then {now}");
    let refused = two.a.send("POST", "/task-types/echo/test", &[JSON], Some(b"{}"));
    refused_for(&refused, "cpu-ms-per-hour", 3_600);
    assert_eq!(refused.header("ratelimit-policy"), Some("\"cpu-ms-per-hour\";q=50;w=3600"));
    let again: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((3_000..=3_600).contains(&again), "{again}");
    assert_eq!(refused.header("ratelimit"), Some(&*format!("\"cpu-ms-per-hour\";r=0;t={again}")));
    assert_eq!(quota(&two.a, "cpu_ms_per_hour").1, Some(now));
    // One that is canceled needs no turn to end.
    cancel(&two.a, &ids[0]);
    // More that it may have is there at once.
    two.set(&json!({"cpu_ms_per_hour": 60_000}));
    for id in [&ids[1], &waits] {
        assert_eq!(two.a.wait_for_end(id)["status"], "Completed");
    }
    let (_, used) = quota(&two.a, "cpu_ms_per_hour");
    assert!(used > Some(now), "{used:?}");
}
