//! `taskcell:task/timer` and its blocking twin. A task that sleeps holds no thread.

use std::time::Duration;

use tokio::runtime::Handle;
use wasmtime::component::Accessor;

use super::blocking_world::taskcell::task::blocking_timer;
use super::repeatable::Time;
use super::task_world::taskcell::task::timer;
use super::{HasHost, Host};

impl timer::Host for &mut Host {}

impl<T: Send> timer::HostWithStore<T> for HasHost {
    async fn sleep(accessor: &Accessor<T, Self>, duration_ms: u32) -> wasmtime::Result<()> {
        let (timers, time, held) = accessor.with(|mut access| {
            let host = access.get();
            host.calls += 1;
            Ok::<_, wasmtime::Error>((host.services.timers.clone(), host.time.clone(), host.host_memory.take_call()?))
        })?;
        sleep(&timers, time, duration_ms).await;
        drop(held);
        Ok(())
    }
}

impl blocking_timer::Host for Host {
    async fn sleep(&mut self, duration_ms: u32) -> wasmtime::Result<()> {
        self.calls += 1;
        sleep(&self.services.timers, self.time.clone(), duration_ms).await;
        Ok(())
    }
}

async fn sleep(timers: &Handle, time: Option<Time>, duration_ms: u32) {
    let duration = Duration::from_millis(duration_ms.into());
    let moment = time.map(|time| (time.after(duration), time));
    let sleep = {
        let _on = timers.enter();
        tokio::time::sleep(duration)
    };
    sleep.await;
    if let Some((moment, time)) = moment {
        time.passed(moment);
    }
}
