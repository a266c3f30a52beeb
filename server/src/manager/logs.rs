//! Log lines on their way to the store, at a pace that holds up nothing else.

use std::collections::VecDeque;
use std::time::Duration;

use super::{Command, Manager};
use crate::host::log::LogBuffer;

/// How long a full log buffer waits for more lines before it is stored.
const LOG_DELAY: Duration = Duration::from_millis(100);

/// Log text that is stored at once, and how many times as long as that took is then waited.
const LOG_BYTES_AT_ONCE: usize = 1 << 20;
const LOG_PAUSE: u32 = 9;
const LONGEST_LOG_PAUSE: Duration = Duration::from_secs(1);

impl Manager {
    /// Stores what attempts say some time after they said it, so that much goes into one transaction. It
    /// takes its time: a flood of lines fills its writers' buffers, up to their limit, and holds up
    /// nothing else. Each attempt gets its turn, so that who says little does not wait for who says much.
    pub async fn store_logs(self, mut full: tokio::sync::mpsc::UnboundedReceiver<LogBuffer>) {
        // At most one for each attempt.
        let mut buffers = VecDeque::new();
        loop {
            if buffers.is_empty() {
                let Some(first) = full.recv().await else { return };
                buffers.push_back(first);
                tokio::time::sleep(LOG_DELAY).await;
            }
            while let Ok(buffer) = full.try_recv() {
                buffers.push_back(buffer);
            }
            let mut bytes = 0;
            while bytes < LOG_BYTES_AT_ONCE
                && let Some(buffer) = buffers.pop_front()
            {
                let (id, attempt) = buffer.of();
                // Sent while the buffer is held: the attempt's end, which takes the rest, comes after.
                let more = buffer.drain_some(|news| {
                    bytes += news.bytes();
                    if !news.is_empty() {
                        self.send(Command::Log { id, attempt, news });
                    }
                });
                if more {
                    buffers.push_back(buffer);
                }
            }
            if bytes >= LOG_BYTES_AT_ONCE {
                let started = tokio::time::Instant::now();
                let pause = match self.ask(|reply| Command::Flush { reply }).await {
                    Ok(()) => started.elapsed() * LOG_PAUSE,
                    Err(_) => LONGEST_LOG_PAUSE,
                };
                tokio::time::sleep(pause.min(LONGEST_LOG_PAUSE)).await;
            }
        }
    }
}
