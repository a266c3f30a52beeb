//! Tests run side by side, but what measures must not have its machine taken away by the others.

use std::collections::HashMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};

#[derive(Default)]
struct State {
    /// Tests with a server, each by its thread, and how many servers it has.
    side_by_side: Option<HashMap<ThreadId, usize>>,
    /// Who has the machine for itself.
    alone: Option<ThreadId>,
    waiting_to_be_alone: usize,
}

static STATE: Mutex<State> = Mutex::new(State { side_by_side: None, alone: None, waiting_to_be_alone: 0 });
static CHANGED: Condvar = Condvar::new();

/// Held by every server: a test that has one runs beside others.
#[derive(Debug)]
pub(crate) struct Turn(ThreadId);

/// Held by a test that has the machine for itself.
#[derive(Debug)]
pub(crate) struct Alone(());

fn state() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits for the other tests' servers to be gone and keeps new ones from being started.
#[must_use]
pub(crate) fn alone() -> Alone {
    let mut state = state();
    state.waiting_to_be_alone += 1;
    while state.alone.is_some() || state.side_by_side.as_ref().is_some_and(|others| !others.is_empty()) {
        state = CHANGED.wait(state).unwrap_or_else(PoisonError::into_inner);
    }
    state.waiting_to_be_alone -= 1;
    state.alone = Some(thread::current().id());
    Alone(())
}

impl Turn {
    /// Waits while a test is, or wants to be, alone; unless it is this one, or this one runs already.
    pub(crate) fn take() -> Turn {
        let me = thread::current().id();
        let mut state = state();
        loop {
            let running = state.side_by_side.as_ref().is_some_and(|running| running.contains_key(&me));
            let free = match state.alone {
                Some(alone) => alone == me,
                None => state.waiting_to_be_alone == 0,
            };
            if running || free {
                break;
            }
            state = CHANGED.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        *state.side_by_side.get_or_insert_default().entry(me).or_default() += 1;
        Turn(me)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut state = state();
        let running = state.side_by_side.get_or_insert_default();
        if let Some(servers) = running.get_mut(&self.0) {
            *servers -= 1;
            if *servers == 0 {
                running.remove(&self.0);
            }
        }
        CHANGED.notify_all();
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        state().alone = None;
        CHANGED.notify_all();
    }
}
