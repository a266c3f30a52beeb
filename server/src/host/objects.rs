//! `taskcell:task/objects` and its blocking twin.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use wasmtime::component::Accessor;

use super::blocking_world::taskcell::task::blocking_objects;
use super::memory::HostMemory;
use super::task_world::taskcell::task::objects;
use super::task_world::taskcell::task::types::ObjectError;
use super::{HasHost, Host};
use crate::manager;
use crate::objects::{NAME_BYTES, Objects, Refused, check_name};

/// How often a fault of the storage is logged again.
const LOG_EVERY: Duration = Duration::from_secs(60);

/// Calls of one attempt that are under way at once. The others wait for their turn, as pending calls.
pub(super) const CALLS_AT_ONCE: usize = 8;

/// What an entry of a list costs the host: its name at its longest, and what comes with it.
const LISTED_BYTES: u64 = NAME_BYTES as u64 + 256;

/// Most names for one call.
const MOST_LISTED: u32 = 1000;

/// What a call needs, taken out of the store so that the call can wait without it.
struct Call {
    objects: Objects,
    tenant: Arc<str>,
    memory: HostMemory,
    turns: Arc<Semaphore>,
}

impl Host {
    fn begin(&mut self) -> Call {
        self.calls += 1;
        Call {
            objects: self.services.objects.clone(),
            tenant: self.tenant.clone(),
            memory: self.host_memory.clone(),
            turns: self.object_turns.clone(),
        }
    }
}

type Answer<T> = Result<T, ObjectError>;

// Names are looked at before anything waits: what is kept meanwhile is no longer than a name may be,
// and the call is counted with room for one.
impl Call {
    async fn read(&self, name: String) -> wasmtime::Result<Answer<Vec<u8>>> {
        let _call = self.memory.take_call()?;
        if let Err(refused) = check_name(&name) {
            return Ok(Err(answer(refused)));
        }
        let _turn = self.turns.acquire().await;
        // The size is not known before the read: so what is left is what it may have, and it is
        // held while the read goes on.
        let largest = self.memory.left().min(self.objects.max_bytes());
        let size = match self.objects.size(&self.tenant, &name).await {
            Ok(size) => size,
            Err(refused) => return Ok(Err(answer(refused))),
        };
        let Ok(_held) = self.memory.take(size) else { return Ok(Err(too_large(largest))) };
        match self.objects.get(&self.tenant, name, size).await {
            Ok((_, data)) => Ok(Ok(data)),
            Err(refused) => Ok(Err(answer(refused))),
        }
    }

    async fn write(&self, name: String, data: Vec<u8>) -> wasmtime::Result<Answer<()>> {
        let _call = self.memory.take_call()?;
        if let Err(refused) = check_name(&name) {
            return Ok(Err(answer(refused)));
        }
        let left = self.memory.left();
        let Ok(_held) = self.memory.take(data.len() as u64) else { return Ok(Err(too_large(left))) };
        let _turn = self.turns.acquire().await;
        Ok(self.objects.put(&self.tenant, name, data).await.map_err(answer))
    }

    async fn remove(&self, name: String) -> wasmtime::Result<Answer<()>> {
        let _call = self.memory.take_call()?;
        if let Err(refused) = check_name(&name) {
            return Ok(Err(answer(refused)));
        }
        let _turn = self.turns.acquire().await;
        Ok(self.objects.remove(&self.tenant, name).await.map_err(answer))
    }

    async fn list(&self, prefix: String, after: Option<String>, limit: u32) -> wasmtime::Result<Answer<Vec<String>>> {
        let _call = self.memory.take_call()?;
        if prefix.len() > NAME_BYTES {
            return Ok(Ok(Vec::new()));
        }
        let after = after.map(shortened);
        let _after = self.memory.take(after.as_ref().map_or(0, String::len) as u64)?;
        let _turn = self.turns.acquire().await;
        let limit = limit.min(MOST_LISTED);
        let left = self.memory.left();
        let Ok(_held) = self.memory.take(u64::from(limit) * LISTED_BYTES) else { return Ok(Err(too_large(left))) };
        let listed = self.objects.list(&self.tenant, prefix, after, limit as usize).await;
        Ok(listed.map(|found| found.into_iter().map(|meta| meta.name).collect()).map_err(answer))
    }
}

/// A text that the same names come after. Names end before it is cut, so that what is cut off decides
/// nothing; and a character may be as long as what is left over the longest name.
fn shortened(mut after: String) -> String {
    after.truncate(after.floor_char_boundary(NAME_BYTES + 4));
    after.shrink_to_fit();
    after
}

fn too_large(limit: u64) -> ObjectError {
    ObjectError::TooLarge(u32::try_from(limit).unwrap_or(u32::MAX))
}

/// What a guest is told of it. It may try again as often as it likes, so that only a fault of the host's
/// own is logged, and that now and then: the disk that is full says so elsewhere.
pub(super) fn undone(why: manager::Refused) -> String {
    match why {
        manager::Refused::Internal(error) => {
            static LOGGED: Mutex<Option<Instant>> = Mutex::new(None);
            let mut logged = LOGGED.lock().unwrap_or_else(PoisonError::into_inner);
            if logged.is_none_or(|logged| logged.elapsed() >= LOG_EVERY) {
                *logged = Some(Instant::now());
                tracing::error!(error = format!("{error:#}"), "what a task keeps was not read or written");
            }
            "the host's storage failed".into()
        }
        why => why.to_string(),
    }
}

fn answer(refused: Refused) -> ObjectError {
    match refused {
        Refused::NotFound => ObjectError::NotFound,
        Refused::InvalidName(why) => ObjectError::InvalidName(why.to_string()),
        Refused::TooLarge(limit) => too_large(limit),
        Refused::QuotaExceeded(used_up) => ObjectError::QuotaExceeded(format!("of the tenant: {used_up}")),
        Refused::PreconditionFailed => ObjectError::Other("the precondition does not hold".into()),
        Refused::Undone(why) => ObjectError::Unavailable(undone(why)),
    }
}

impl objects::Host for &mut Host {}

impl<T: Send> objects::HostWithStore<T> for HasHost {
    async fn read(accessor: &Accessor<T, Self>, name: String) -> wasmtime::Result<Answer<Vec<u8>>> {
        let read = accessor.with(|mut access| access.get().begin()).read(name).await?;
        if let Ok(data) = &read {
            accessor.with(|mut access| access.get().io_bytes += data.len() as u64);
        }
        Ok(read)
    }

    async fn write(accessor: &Accessor<T, Self>, name: String, data: Vec<u8>) -> wasmtime::Result<Answer<()>> {
        let bytes = data.len() as u64;
        let written = accessor.with(|mut access| access.get().begin()).write(name, data).await?;
        if written.is_ok() {
            accessor.with(|mut access| access.get().io_bytes += bytes);
        }
        Ok(written)
    }

    async fn remove(accessor: &Accessor<T, Self>, name: String) -> wasmtime::Result<Answer<()>> {
        accessor.with(|mut access| access.get().begin()).remove(name).await
    }

    async fn list(
        accessor: &Accessor<T, Self>,
        prefix: String,
        after: Option<String>,
        limit: u32,
    ) -> wasmtime::Result<Answer<Vec<String>>> {
        accessor.with(|mut access| access.get().begin()).list(prefix, after, limit).await
    }
}

impl blocking_objects::Host for Host {
    async fn read(&mut self, name: String) -> wasmtime::Result<Answer<Vec<u8>>> {
        let read = self.begin().read(name).await?;
        self.io_bytes += read.as_ref().map_or(0, |data| data.len() as u64);
        Ok(read)
    }

    async fn write(&mut self, name: String, data: Vec<u8>) -> wasmtime::Result<Answer<()>> {
        let bytes = data.len() as u64;
        let written = self.begin().write(name, data).await?;
        if written.is_ok() {
            self.io_bytes += bytes;
        }
        Ok(written)
    }

    async fn remove(&mut self, name: String) -> wasmtime::Result<Answer<()>> {
        self.begin().remove(name).await
    }

    async fn list(
        &mut self,
        prefix: String,
        after: Option<String>,
        limit: u32,
    ) -> wasmtime::Result<Answer<Vec<String>>> {
        self.begin().list(prefix, after, limit).await
    }
}

#[cfg(test)]
mod tests {
    use super::shortened;

    #[test]
    fn a_cut_text_has_the_same_names_after_it() {
        let names = ["x".repeat(512), "é".repeat(256), "x".repeat(511), "😀".repeat(128), "y".into()];
        for after in ["x".repeat(512), "x".repeat(100_000), "é".repeat(1000), "😀".repeat(1000), "x".into()] {
            let cut = shortened(after.clone());
            assert!(cut.len() <= 516 && cut.capacity() <= 1024);
            for name in &names {
                assert_eq!(*name > after, *name > cut, "{name} after {after}");
            }
        }
    }
}
