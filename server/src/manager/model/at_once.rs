//! How many tasks of a type, and of a key, run at once.

use super::{World, put_type};
use crate::schedule::Concurrency;
use crate::task::{Hold, Status, Task};

impl World {
    pub(super) fn most_at_once(&self) -> Concurrency {
        self.registry.concurrency("default", "t")
    }

    /// Somebody says that one of the type runs at once, or as many as there is room for.
    pub(super) fn bound_at_once(&mut self) {
        let running = self.most_at_once().running.is_none().then_some(1);
        put_type(&self.registry, self.is_paused(), Concurrency { running, per_key: None });
        self.core.as_mut().unwrap().at_once.look_again(&"default".into(), "t");
        self.step(Vec::new());
    }

    /// No task waits for others where there are none, and no key has two that run.
    pub(super) fn check_at_once(&self, all: &[Task]) {
        // What will make room for those that are held back: it runs, or is to run before them.
        let is_before = |task: &&Task, why: Hold| match task.status {
            Status::Running => true,
            Status::Pending => task.due_at.is_none() && task.held != Some(why) && task.held != Some(Hold::Key),
            _ => false,
        };
        for key in ["0", "1"] {
            let of_key: Vec<_> = all.iter().filter(|task| task.concurrency_key.as_deref() == Some(key)).collect();
            assert!(of_key.iter().filter(|task| task.status == Status::Running).count() <= 1, "two of {key} run");
            let waits = of_key.iter().any(|task| task.held == Some(Hold::Key));
            assert!(
                !waits || of_key.iter().any(|task| is_before(task, Hold::Key)),
                "{key} waits for ever: {of_key:#?}"
            );
        }
        let waits = all.iter().any(|task| task.held == Some(Hold::Type));
        assert!(!waits || all.iter().any(|task| is_before(&task, Hold::Type)), "all wait for ever: {all:#?}");
        let is_bounded = self.most_at_once().running.is_some();
        assert!(!waits || is_bounded, "they wait for a bound that is none: {all:#?}");
    }
}
