//! Creates that wait for the end of their task, and are held back where there is no place.

use tokio::sync::oneshot;

use super::super::held::LONGEST_HELD;
use super::super::{Answer, Command, NewItem, Refused};
use super::{MAX_PENDING, Random, SLOTS, World, reply};
use crate::limits::Limits;
use crate::sandbox::RunEnd;
use crate::task::{AttemptEnd, Status, Task, TaskId, Timestamp};

/// A create that waits for the end of its task.
pub(super) struct Waited {
    pub(super) task: Task,
    pub(super) answered: oneshot::Receiver<Result<Task, Refused>>,
}

impl World {
    /// A client waits no longer, and asks whether its task is stored.
    pub(super) fn give_up(&mut self, random: &mut Random) {
        if self.waited.is_empty() {
            return;
        }
        let Waited { task, answered } = self.waited.swap_remove(random.below(self.waited.len() as u64) as usize);
        let known = self.told.tasks.contains_key(&task.id) || self.told.deleted.contains(&task.id);
        let refused = self.count(Status::Pending) as u64 >= MAX_PENDING || task.unique_key.is_some();
        drop(answered);
        let (flush, mut flushed) = reply();
        self.step(vec![Command::Flush { reply: flush }]);
        flushed.try_recv().unwrap().unwrap();
        self.note_created();
        let refused = refused || self.has_created_enough();
        match self.stored(task.id) {
            Some(stored) => drop(self.told.tasks.insert(task.id, stored)),
            None => assert!(known || refused, "it is neither stored nor refused: {task:?}"),
        }
    }

    /// Whether those who wait are answered when, and as, they have to be.
    pub(super) fn check_waited(&mut self) {
        for mut waited in std::mem::take(&mut self.waited) {
            let id = waited.task.id;
            let stored = self.stored(id);
            match waited.answered.try_recv() {
                Ok(Ok(task)) => {
                    assert!(task.status.is_ended() && stored.is_none_or(|stored| stored == task), "{task:?}");
                    self.told.tasks.insert(id, task);
                }
                Ok(Err(Refused::NotFound)) => assert!(self.told.deleted.contains(&id)),
                Ok(Err(Refused::UniqueKey { .. })) => assert!(waited.task.unique_key.is_some() && stored.is_none()),
                Ok(Err(Refused::TooManyPending { .. } | Refused::TooManySubmitted { .. })) => {
                    assert!(stored.is_none());
                }
                Ok(Err(refused)) => panic!("{refused}"),
                Err(oneshot::error::TryRecvError::Empty) => {
                    if let Some(stored) = stored {
                        assert!(!stored.status.is_ended(), "it ended and is not told");
                        self.told.tasks.insert(id, stored);
                    } else {
                        let held_for = self.now.millis_since(waited.task.created_at);
                        assert!(u128::from(held_for) < LONGEST_HELD.as_millis(), "held back for {held_for} ms");
                        assert!(self.running.len() == SLOTS || self.is_held(), "held back, and there is room");
                        // What its type holds is not in the queue: it may have been paused since this one came.
                        assert!(!self.all().iter().any(Task::is_ready), "held back beside a queue");
                    }
                    self.waited.push(waited);
                }
                // The server went down.
                Err(oneshot::error::TryRecvError::Closed) => {}
            }
        }
    }
}

/// A place goes to the one that the queue would have given it to.
#[test]
fn those_held_back_keep_the_order_of_the_queue() {
    let mut random = Random(1);
    let mut world = World::new();
    let mut create = |world: &mut World, priority| {
        let plain = Task {
            due_at: None,
            ready_at: world.now,
            expires_at: None,
            unique_key: None,
            concurrency_key: None,
            ..world.new_task(&mut random)
        };
        let task = Task { priority, ..plain };
        let item = Box::new(NewItem { task: task.clone(), limits: Limits::DEFAULT, idempotency: None });
        let (answer, answered) = reply();
        world.step(vec![Command::Create { item, reply: Answer::Ended(answer) }]);
        world.waited.push(Waited { task: task.clone(), answered });
        task.id
    };
    let running: Vec<TaskId> = (0..SLOTS).map(|_| create(&mut world, 0)).collect();
    let [low, high, middle] = [-1, 1, 0].map(|priority| create(&mut world, priority));
    world.check();
    assert!([low, high, middle].iter().all(|id| world.stored(*id).is_none()), "stored, though they could wait");
    for (ended, next) in running.into_iter().zip([high, middle, low]) {
        let job = world.running.remove(&ended).unwrap();
        job.control.leave();
        world.report(ended, 1, RunEnd::Ended(AttemptEnd::host_failure("over")));
        assert!(world.running.contains_key(&next));
        world.check();
    }
    let late = create(&mut world, 0);
    assert!(world.stored(late).is_none());
    world.now = Timestamp(world.now.0 - 1_000);
    world.step(Vec::new());
    assert_eq!(world.stored(late).unwrap().status, Status::Pending, "held back by a clock that was put back");
    // Beside a queue nobody is held back, and who was takes a place in it.
    let after = create(&mut world, -1);
    assert_eq!(world.stored(after).unwrap().status, Status::Pending);
    world.check();
}
