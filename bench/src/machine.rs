//! What the figures depend on: the machine, and the time its disk takes for a durable append.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::report::millis;

const APPENDS: usize = 200;
const APPEND: [u8; 4096] = [0xA5; 4096];

/// Times of a 4 KiB append with its fdatasync.
pub(crate) struct SyncTime {
    p50: Duration,
    p99: Duration,
}

impl SyncTime {
    /// Measures in `dir`, with a file that is removed again.
    pub(crate) fn measure(dir: &Path) -> Result<Self> {
        let path = dir.join(format!("taskcell-bench-{}.sync", std::process::id()));
        let times = append_and_sync(&path);
        let _ = fs::remove_file(&path);
        let mut times = times.with_context(|| format!("measuring with {}", path.display()))?;
        times.sort_unstable();
        Ok(Self { p50: times[APPENDS / 2], p99: times[APPENDS * 99 / 100] })
    }
}

impl std::fmt::Display for SyncTime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "p50 {} ms, p99 {} ms", millis(self.p50), millis(self.p99))
    }
}

fn append_and_sync(path: &Path) -> std::io::Result<Vec<Duration>> {
    let mut file = File::create_new(path)?;
    let mut times = Vec::with_capacity(APPENDS);
    for _ in 0..APPENDS {
        let start = Instant::now();
        file.write_all(&APPEND)?;
        file.sync_data()?;
        times.push(start.elapsed());
    }
    Ok(times)
}

/// One line on processor, cores and kernel.
pub(crate) fn describe() -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{}, {cores} cores, Linux {}", processor(), kernel.trim())
}

fn processor() -> String {
    fs::read_to_string("/proc/cpuinfo")
        .unwrap_or_default()
        .lines()
        .find_map(|line| Some(line.strip_prefix("model name")?.split_once(':')?.1.trim().to_owned()))
        // Some architectures do not name their processor there.
        .unwrap_or_else(|| format!("unnamed {} processor", std::env::consts::ARCH))
}

/// The type of the file system that holds `dir`, an absolute path.
pub(crate) fn file_system(dir: &Path) -> String {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    mounted_type(&mounts, dir).unwrap_or_else(|| "unknown file system".to_owned())
}

fn mounted_type(mounts: &str, dir: &Path) -> Option<String> {
    let mut best = None;
    let mut best_depth = 0;
    for line in mounts.lines() {
        let mut fields = line.split(' ').skip(1);
        let (Some(point), Some(kind)) = (fields.next(), fields.next()) else {
            continue;
        };
        // A space in a mount point is written as \040.
        let point = point.replace("\\040", " ");
        let depth = Path::new(&point).components().count();
        // Of two on the same point the later one hides the earlier.
        if dir.starts_with(&point) && depth >= best_depth {
            best = Some(kind.to_owned());
            best_depth = depth;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_innermost_mount_decides() {
        let mounts = "/dev/a / ext4 rw 0 0\ntmpfs /tmp tmpfs rw 0 0\n/dev/b /tmp/my\\040disk xfs rw 0 0\n";
        let kind = |dir: &str| mounted_type(mounts, Path::new(dir));
        assert_eq!(kind("/home/x").as_deref(), Some("ext4"));
        assert_eq!(kind("/tmp/x").as_deref(), Some("tmpfs"));
        assert_eq!(kind("/tmpx").as_deref(), Some("ext4"));
        assert_eq!(kind("/tmp/my disk/x").as_deref(), Some("xfs"));
    }
}
