//! What is said after a transaction: the answers of one that was committed, and the refusals of one that
//! was not.

use super::apply::is_canceled;
use super::bulk::BulkCommand;
use super::core::{Core, Created, Done, Start};
use super::{Answer, Command, Refused, Stored, answer};
use crate::audit::Actor;
use crate::sandbox::Stop;
use crate::store::StoreError;
use crate::task::{TaskId, Timestamp};

impl Core {
    /// Answers what a committed transaction did. What has to be done again goes to `again`.
    pub(super) fn tell(&mut self, commands: Vec<Command>, done: Vec<Done>, now: Timestamp, again: &mut Vec<Command>) {
        for (command, done) in commands.into_iter().zip(done) {
            match (command, done) {
                (Command::Create { item, reply: Answer::Ended(reply) }, Done::Held) => self.held.add(item, reply),
                (Command::Create { reply, .. }, Done::Created(created)) => self.tell_created(created, reply),
                (Command::CreateMany { reply, .. }, Done::CreatedMany(all)) => {
                    let stored = all.into_iter().map(|created| Ok(self.begin(created?))).collect();
                    answer(reply, Ok(stored));
                }
                (Command::Report(report), Done::Task(task)) => {
                    let mut then = self.running.remove(&report.id).map(|running| running.then).unwrap_or_default();
                    if task.status.is_ended() {
                        if is_canceled(&task) {
                            // They were counted with it.
                            then.retain(|then| !matches!(then, Command::Bulk(command) if command.cancels()));
                        }
                        self.ended.tell(task);
                    }
                    again.extend(then);
                }
                (Command::Report(report), Done::Removed(id)) => {
                    self.ended.gone(id);
                    let mut then = self.running.remove(&report.id).map(|running| running.then).unwrap_or_default();
                    // Who came first has removed it. For the others there is no such task any more.
                    if let Command::Delete { reply, .. } = then.remove(0) {
                        answer(reply, Ok(()));
                    }
                    again.extend(then);
                }
                (Command::Cancel { reply, .. }, Done::Task(task)) => {
                    self.ended.tell(task.clone());
                    answer(reply, Ok(task));
                }
                (command @ (Command::Cancel { id, .. } | Command::Delete { id, .. }), Done::Stopping) => {
                    self.stop(id, command);
                }
                (Command::Retry { reply, .. }, Done::Task(task)) => answer(reply, Ok(task)),
                (Command::Delete { reply, .. }, Done::Removed(id)) => {
                    self.ended.gone(id);
                    answer(reply, Ok(()));
                }
                (Command::Delete { reply, .. }, Done::Refused(why)) => answer(reply, Err(why)),
                (Command::AwaitEnd { reply, .. }, Done::Task(task)) => answer(reply, Ok(task)),
                (Command::AwaitEnd { id, reply, .. }, Done::Waiting) => self.ended.add(id, reply),
                (
                    Command::Cancel { reply, .. } | Command::Retry { reply, .. } | Command::AwaitEnd { reply, .. },
                    Done::Refused(why),
                ) => answer(reply, Err(why)),
                (Command::PutObject { reply, .. } | Command::RemoveObject { reply, .. }, Done::Object(write)) => {
                    answer(reply, Ok(write));
                }
                (Command::KeyValue(command), Done::KeyValue(write)) => answer(command.reply, Ok(write)),
                (Command::PutSchedule { reply, .. }, Done::Schedule(put)) => answer(reply, Ok(*put)),
                (Command::PutSchedule { reply, .. }, Done::Refused(why)) => answer(reply, Err(why)),
                (Command::DeleteSchedule { reply, .. } | Command::IsStored { reply, .. }, Done::Nothing) => {
                    answer(reply, Ok(()));
                }
                (Command::DeleteSchedule { reply, .. } | Command::IsStored { reply, .. }, Done::Refused(why)) => {
                    answer(reply, Err(why));
                }
                (Command::Secret(command), Done::Secret(done)) => command.answer(done),
                (Command::Secret(command), Done::Refused(why)) => command.answer(Err(why)),
                (Command::Bulk(command), Done::Bulk(done)) => self.tell_bulk(command, done),
                (Command::Bulk(command), Done::Refused(why)) => drop(command.refuse(why)),
                (Command::Settings(command), Done::Settings(done)) => self.tell_settings(*command, done),
                (Command::Settings(command), Done::Refused(why)) => command.refuse(why),
                (Command::Trial(command), Done::Trial(place)) => self.tell_trial(*command, place, now),
                (Command::Trial(command), Done::Refused(why)) => command.refuse(why),
                (Command::Tried(tried), Done::Nothing) => self.tell_tried(*tried, now),
                (Command::Tenant(command), Done::Tenant(done)) => self.tell_tenant(*command, *done),
                (Command::Tenant(command), Done::Refused(why)) => command.refuse(why),
                (Command::Type(command), Done::Type(done)) => self.tell_type(*command, *done),
                (Command::Type(command), Done::Refused(why)) => drop(command.refuse(why)),
                (Command::Flush { reply }, Done::Nothing) => answer(reply, Ok(())),
                // The others have nobody to answer to.
                _ => {}
            }
        }
    }

    /// Tells whoever waits for a task that it has ended. It is read again for that, whole, and only where
    /// somebody waits.
    pub(super) fn tell_ended(&mut self, id: TaskId) {
        if self.ended.has(id)
            && let Ok(Some(task)) = self.store.task(id)
        {
            self.ended.tell(task);
        }
    }

    fn tell_created(&mut self, created: Result<Created, Refused>, reply: Answer) {
        match (reply, created) {
            (Answer::Stored(reply), created) => answer(reply, created.map(|created| self.begin(created))),
            (Answer::Ended(reply), Ok(Created { task, start, .. })) => {
                self.ended.add(task.id, reply);
                if let Some((place, program, limits)) = start {
                    self.start(Start { task, place, program, limits });
                }
            }
            (Answer::Ended(reply), Err(refused)) => answer(reply, Err(refused)),
        }
    }

    /// A task is stored: its attempt begins, where it starts at once.
    fn begin(&mut self, Created { task, replayed, start }: Created) -> Stored {
        if let Some((place, program, limits)) = start {
            self.start(Start { task: task.clone(), place, program, limits });
        }
        Stored { task, replayed }
    }

    /// Whether the attempt that runs of a task was stopped so that the task can be removed, and for nothing before that.
    pub(super) fn is_to_be_removed(&self, id: TaskId) -> bool {
        self.running.get(&id).and_then(|running| running.then.first()).is_some_and(Command::removes)
    }

    /// Stops the attempt that runs of a task, and does `then` when it has ended.
    pub(super) fn stop(&mut self, id: TaskId, mut then: Command) {
        if let Command::Cancel { stopped, .. } = &mut then {
            *stopped = true;
        }
        if let Some(running) = self.running.get_mut(&id) {
            running.control.stop(Stop::Cancel);
            running.then.push(then);
        }
    }

    /// Tells everybody who asked that nothing was done, and keeps what nobody would ask for again.
    pub(super) fn refuse(&mut self, commands: Vec<Command>, error: &StoreError) -> Vec<Command> {
        let refusal = || match error {
            StoreError::NoRoom(_) | StoreError::TooSlow => Refused::NoRoom,
            StoreError::SyncFailed(_) | StoreError::Failed(_) => Refused::Internal(anyhow::anyhow!("{error}")),
        };
        let mut kept = Vec::new();
        for command in commands {
            match command {
                Command::Create { reply: Answer::Stored(reply), .. } => answer(reply, Err(refusal())),
                Command::Create { reply: Answer::Ended(reply), .. }
                | Command::Cancel { reply, .. }
                | Command::Retry { reply, .. } => answer(reply, Err(refusal())),
                Command::CreateMany { reply, .. } => answer(reply, Err(refusal())),
                // A read, which only looks in turn with the writes: it goes on waiting.
                Command::AwaitEnd { ref reply, .. } if reply.is_closed() => {}
                Command::AwaitEnd { .. } => kept.push(command),
                Command::Delete { reply, .. } => answer(reply, Err(refusal())),
                Command::IsStored { tenant, id, reply } => {
                    // Its create may have been in a transaction before this one.
                    let stored = matches!(self.store.task_head(&tenant, id), Ok(Some(_)));
                    answer(reply, if stored { Ok(()) } else { Err(refusal()) });
                }
                Command::PutSchedule { reply, .. } => answer(reply, Err(refusal())),
                Command::Flush { reply } | Command::DeleteSchedule { reply, .. } => answer(reply, Err(refusal())),
                Command::Bulk(command) => kept.extend(command.refuse(refusal()).map(Command::Bulk)),
                Command::Secret(command) => command.answer(Err(refusal())),
                Command::Settings(command) => command.refuse(refusal()),
                Command::Trial(command) => command.refuse(refusal()),
                Command::Tenant(command) => command.refuse(refusal()),
                Command::Type(command) => {
                    kept.extend(command.refuse(refusal()).map(|kept| Command::Type(Box::new(kept))))
                }
                Command::PutObject { reply, .. } | Command::RemoveObject { reply, .. } => answer(reply, Err(refusal())),
                Command::KeyValue(command) => answer(command.reply, Err(refusal())),
                Command::Report(ref report) => {
                    // Who waits for this end hears that it cannot be stored now; it is stopped all the same. An
                    // operation goes on waiting.
                    let is_asked = |then: &mut Command| !matches!(then, Command::Bulk(_));
                    let running = self.running.get_mut(&report.id);
                    let asked = running.map(|running| running.then.extract_if(.., is_asked).collect::<Vec<_>>());
                    kept.push(command);
                    for then in asked.unwrap_or_default() {
                        match (then, error) {
                            (Command::Cancel { reply, .. }, StoreError::NoRoom(_) | StoreError::TooSlow) => {
                                answer(reply, Err(Refused::StoppedOnly));
                            }
                            (Command::Delete { reply, .. }, StoreError::NoRoom(_) | StoreError::TooSlow) => {
                                answer(reply, Err(Refused::StoppedOnly));
                            }
                            (then, error) => kept.extend(self.refuse(vec![then], error)),
                        }
                    }
                }
                Command::Log { .. } | Command::Drain { .. } | Command::Tried(_) => kept.push(command),
                Command::Room => {}
            }
        }
        kept
    }
}

impl Command {
    /// How many tasks or keys it is about.
    pub(super) fn things(&self) -> usize {
        match self {
            Command::CreateMany { items, .. } => items.len(),
            Command::Bulk(command) => command.tasks(),
            Command::KeyValue(command) => command.keys(),
            Command::Type(command) => command.things(),
            _ => 1,
        }
    }

    /// Who asks for it, where the audit log tells that.
    pub(super) fn by(&self) -> Option<&Actor> {
        match self {
            Command::PutSchedule { put, .. } => Some(&put.by),
            Command::DeleteSchedule { by, .. } | Command::Bulk(BulkCommand::Create { by, .. }) => Some(by),
            Command::Secret(command) => Some(&command.by),
            Command::Settings(command) => Some(&command.by),
            Command::Type(command) => command.by(),
            Command::Tenant(command) => command.by(),
            Command::Create { .. }
            | Command::CreateMany { .. }
            | Command::Report(_)
            | Command::Log { .. }
            | Command::Cancel { .. }
            | Command::Retry { .. }
            | Command::Delete { .. }
            | Command::AwaitEnd { .. }
            | Command::PutObject { .. }
            | Command::RemoveObject { .. }
            | Command::KeyValue(_)
            | Command::Bulk(BulkCommand::Step { .. } | BulkCommand::Stopped { .. })
            | Command::Trial(_)
            | Command::Tried(_)
            | Command::Flush { .. }
            | Command::IsStored { .. }
            | Command::Room
            | Command::Drain { .. } => None,
        }
    }

    /// Whether it removes the one task that it is about.
    pub(super) fn removes(&self) -> bool {
        match self {
            Command::Bulk(command) => command.removes(),
            command => matches!(command, Command::Delete { .. }),
        }
    }

    /// Whether somebody waits for an answer, and was counted for it.
    pub(super) fn is_asked(&self) -> bool {
        match self {
            Command::Bulk(command) => return command.is_asked(),
            Command::Type(command) => return command.is_asked(),
            _ => {}
        }
        !matches!(
            self,
            Command::IsStored { .. }
                | Command::Report(_)
                | Command::Log { .. }
                | Command::Tried(_)
                | Command::Room
                | Command::Drain { .. }
        )
    }
}
