//! `taskcell:task/objects` and its blocking twin.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use wasmtime::component::Accessor;

use super::blocking_world::taskcell::task::blocking_objects;
use super::memory::HostMemory;
use super::task_world::taskcell::task::objects;
use super::task_world::taskcell::task::types::ObjectError;
use super::{HasHost, Host};
use crate::manager;
use crate::objects::{Objects, Refused};

/// How often a fault of the storage is logged again.
const LOG_EVERY: Duration = Duration::from_secs(60);

/// What a call needs, taken out of the store so that the call can wait without it.
struct Call {
    objects: Objects,
    tenant: Arc<str>,
    memory: HostMemory,
}

impl Host {
    fn begin(&mut self) -> Call {
        self.calls += 1;
        Call { objects: self.services.objects.clone(), tenant: self.tenant.clone(), memory: self.host_memory.clone() }
    }
}

type Answer<T> = Result<T, ObjectError>;

impl Call {
    async fn read(&self, name: String) -> wasmtime::Result<Answer<Vec<u8>>> {
        let _call = self.memory.take_call()?;
        // The size is not known before the read: so what is left is what it may have, and it is
        // held while the read goes on.
        let largest = self.memory.left().min(self.objects.max_bytes());
        let size = match self.objects.size(&self.tenant, &name).await {
            Ok(size) => size,
            Err(refused) => return Ok(Err(answer(refused))),
        };
        let Ok(_held) = self.memory.take(size) else {
            return Ok(Err(ObjectError::TooLarge(u32::try_from(largest).unwrap_or(u32::MAX))));
        };
        match self.objects.get(&self.tenant, name, size).await {
            Ok((_, data)) => Ok(Ok(data)),
            Err(refused) => Ok(Err(answer(refused))),
        }
    }

    async fn write(&self, name: String, data: Vec<u8>) -> wasmtime::Result<Answer<()>> {
        let _call = self.memory.take_call()?;
        let left = self.memory.left();
        let Ok(_held) = self.memory.take(data.len() as u64) else {
            return Ok(Err(ObjectError::TooLarge(u32::try_from(left).unwrap_or(u32::MAX))));
        };
        Ok(self.objects.put(&self.tenant, name, data).await.map_err(answer))
    }

    async fn remove(&self, name: String) -> wasmtime::Result<Answer<()>> {
        let _call = self.memory.take_call()?;
        Ok(self.objects.remove(&self.tenant, name).await.map_err(answer))
    }

    async fn list(&self, prefix: String, after: Option<String>, limit: u32) -> wasmtime::Result<Answer<Vec<String>>> {
        let _call = self.memory.take_call()?;
        let listed = self.objects.list(&self.tenant, prefix, after, limit.min(1000) as usize).await;
        Ok(listed.map(|found| found.into_iter().map(|meta| meta.name).collect()).map_err(answer))
    }
}

/// What a guest is told of it. It may try again as often as it likes, so that only a fault of the host's
/// own is logged, and that now and then: the disk that is full says so elsewhere.
fn undone(why: manager::Refused) -> String {
    match why {
        manager::Refused::Internal(error) => {
            static LOGGED: Mutex<Option<Instant>> = Mutex::new(None);
            let mut logged = LOGGED.lock().unwrap_or_else(PoisonError::into_inner);
            if logged.is_none_or(|logged| logged.elapsed() >= LOG_EVERY) {
                *logged = Some(Instant::now());
                tracing::error!(error = format!("{error:#}"), "an object was not read or written for a task");
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
        Refused::TooLarge(limit) => ObjectError::TooLarge(u32::try_from(limit).unwrap_or(u32::MAX)),
        Refused::QuotaExceeded(quota) => ObjectError::QuotaExceeded(format!(
            "the tenant may keep {} objects with {} bytes together",
            quota.objects, quota.bytes
        )),
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
