//! Who listens to what happens to tasks.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::task::TaskId;

/// What somebody listens to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Topic {
    /// One task.
    Task(TaskId),
    /// All tasks of a tenant.
    Tenant(Arc<str>),
}

/// Tells listeners that there is something new in the store. It says not what: they read it there.
#[derive(Debug, Default)]
pub struct Changes {
    topics: Mutex<HashMap<Topic, watch::Sender<()>>>,
    /// How many topics there are, so that telling nobody costs nothing.
    count: AtomicUsize,
}

/// Somebody who listens; ends with its drop.
#[derive(Debug)]
pub struct Listener {
    changes: Arc<Changes>,
    topic: Topic,
    changed: Option<watch::Receiver<()>>,
}

impl Changes {
    /// Listens from now on.
    pub fn listen(self: &Arc<Self>, topic: Topic) -> Listener {
        let mut topics = self.lock();
        let changed = topics.entry(topic.clone()).or_insert_with(|| watch::channel(()).0).subscribe();
        self.count.store(topics.len(), Ordering::SeqCst);
        drop(topics);
        Listener { changes: self.clone(), topic, changed: Some(changed) }
    }

    /// Whether anybody listens to anything.
    pub(super) fn has_listeners(&self) -> bool {
        self.count.load(Ordering::SeqCst) > 0
    }

    /// Tells whoever listens to a task, or to its tenant.
    pub(super) fn tell(&self, tenant: &Arc<str>, id: TaskId) {
        let topics = self.lock();
        for topic in [Topic::Task(id), Topic::Tenant(tenant.clone())] {
            if let Some(listeners) = topics.get(&topic) {
                listeners.send_replace(());
            }
        }
    }

    /// Ends all listening: the server stops.
    pub(super) fn close(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Topic, watch::Sender<()>>> {
        self.topics.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Listener {
    /// Waits until something happened since the last time this returned. False: nothing will any more,
    /// because the server stops.
    pub async fn changed(&mut self) -> bool {
        match &mut self.changed {
            Some(changed) => changed.changed().await.is_ok(),
            None => false,
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let mut topics = self.changes.lock();
        self.changed = None;
        if topics.get(&self.topic).is_some_and(|listeners| listeners.receiver_count() == 0) {
            topics.remove(&self.topic);
        }
        self.changes.count.store(topics.len(), Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn who_listens_is_told_and_nobody_is_left_behind() {
        let changes = Arc::new(Changes::default());
        let (id, tenant) = (TaskId(uuid::Uuid::nil()), Arc::from("a"));
        assert!(!changes.has_listeners());
        let mut to_task = changes.listen(Topic::Task(id));
        let mut to_tenant = changes.listen(Topic::Tenant("a".into()));
        let mut to_other = changes.listen(Topic::Tenant("b".into()));
        changes.tell(&tenant, id);
        assert!(to_task.changed().now_or_never().is_some());
        assert!(to_task.changed().now_or_never().is_none(), "once for each");
        assert!(to_tenant.changed().now_or_never().is_some());
        assert!(to_other.changed().now_or_never().is_none());
        changes.close();
        assert_eq!(to_task.changed().now_or_never(), Some(false));
        drop((to_task, to_tenant, to_other));
        assert!(!changes.has_listeners() && changes.lock().is_empty());
    }
}
