//! `taskcell:task/timer` and its blocking twin. A task that sleeps holds no thread.

use std::time::Duration;

use tokio::runtime::Handle;
use wasmtime::component::Accessor;

use super::blocking_world::taskcell::task::blocking_timer;
use super::task_world::taskcell::task::timer;
use super::{HasHost, Host};

impl timer::Host for &mut Host {}

impl<T: Send> timer::HostWithStore<T> for HasHost {
    async fn sleep(accessor: &Accessor<T, Self>, duration_ms: u32) -> wasmtime::Result<()> {
        let (timers, held) = accessor.with(|mut access| {
            let host = access.get();
            host.calls += 1;
            Ok::<_, wasmtime::Error>((host.services.timers.clone(), host.host_memory.take_call()?))
        })?;
        sleep(&timers, duration_ms).await;
        drop(held);
        Ok(())
    }
}

impl blocking_timer::Host for Host {
    async fn sleep(&mut self, duration_ms: u32) -> wasmtime::Result<()> {
        self.calls += 1;
        sleep(&self.services.timers, duration_ms).await;
        Ok(())
    }
}

async fn sleep(timers: &Handle, duration_ms: u32) {
    let sleep = {
        let _on = timers.enter();
        tokio::time::sleep(Duration::from_millis(duration_ms.into()))
    };
    sleep.await;
}
