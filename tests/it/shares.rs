//! Tenants beside each other: nobody's tasks keep another's out.

use serde_json::{Value, json};

use crate::support::server::Setup;
use crate::support::{Client, Server, guest, wait_for};

/// A server with two tenants.
fn two(flags: &[&str]) -> (Server, Client, Client) {
    let setup = Setup::new(flags);
    let keys = ["a", "b"].map(|tenant| {
        setup.make_tenant(tenant);
        setup.make_key(tenant, "operate", &[])
    });
    let server = setup.start();
    let [a, b] = keys.map(|key| server.client.with_key(&key));
    (server, a, b)
}

fn with_status(client: &Client, status: &str) -> usize {
    let list = client.get(&format!("/tasks?status={status}&limit=1000")).expect(200).json();
    list["tasks"].as_array().unwrap().len()
}

fn create(client: &Client, count: usize, body: &Value) {
    (0..count).for_each(|_| drop(client.create(body)));
}

/// Each tenant finds a slot: `default` is one, too.
#[test]
fn a_slot_is_kept_for_each_tenant_that_has_none() {
    let (_server, a, b) = two(&["--max-running", "6"]);
    create(&a, 8, &json!({"task_type": guest("sleep-forever")}));
    wait_for("four of six to sleep", || (with_status(&a, "Running") == 4).then_some(()));
    b.output(&json!({"task_type": "echo", "input": 1}));
    create(&b, 3, &json!({"task_type": guest("sleep-forever")}));
    wait_for("one more", || (with_status(&b, "Running") == 1).then_some(()));
    assert_eq!((with_status(&a, "Running"), with_status(&a, "Pending"), with_status(&b, "Pending")), (4, 4, 2));
}

/// A tenant's part of what may work at once is its own, also where others have taken all.
#[test]
fn tasks_that_compute_keep_no_other_tenant_waiting() {
    let (_server, a, b) = two(&["--max-working", "2"]);
    create(&a, 6, &json!({"task_type": guest("spin")}));
    wait_for("two to spin", || (with_status(&a, "Running") == 2).then_some(()));
    for input in 0..5 {
        b.output(&json!({"task_type": "echo", "input": input}));
    }
    assert_eq!((with_status(&a, "Running"), with_status(&a, "Pending")), (2, 4), "none of them had to end for it");
}

/// The processors go by tenant, and not by task: one task of the one gets as much of them as eight of the other.
#[test]
fn turns_on_the_processors_go_by_tenant() {
    let (_server, a, b) = two(&["--guest-threads", "1"]);
    let work = json!({"task_type": "primes", "input": {"up_to": 100_000_000}});
    create(&a, 8, &work);
    wait_for("all of them to run", || (with_status(&a, "Running") == 8).then_some(()));
    b.output(&work);
    // They began before it, and each has as much to do.
    assert_eq!(with_status(&a, "Completed"), 0);
}
