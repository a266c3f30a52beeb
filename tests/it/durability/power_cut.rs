//! A disk that loses power, fills up and fails: what `shim/disk.c` does to the server, from the
//! test's side.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use tempfile::TempDir;

use crate::support::server::Setup;
use crate::support::temp_dir;

/// What a disk keeps or loses as a whole.
const SECTOR: u64 = 512;

/// Size of `struct control` in `disk.c`.
const CONTROL_BYTES: u64 = 32;

/// What can be wrong with the disk; its number is its byte of the control file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// 1: no write succeeds; 2: no file grows, and a write that would lets only a piece through.
    NoSpace = 0,
    /// 1: syncs fail; 2: one fails, and those after it succeed without doing anything.
    SyncFails = 1,
    /// Syncs succeed without doing anything.
    SyncIgnored = 2,
    /// Milliseconds that each sync takes.
    SyncMillis = 3,
    /// Writes fail.
    WriteFails = 4,
    /// Syncs do not come back before this is over.
    SyncHeld = 5,
}

/// What becomes of the writes that were not synced. A disk may keep any of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unsynced {
    /// All are lost.
    Lost,
    /// In each file the first few are kept, the last of them in part.
    Torn,
    /// Any sectors of any of them are kept.
    Scattered,
}

/// A disk under a server's data directory.
#[derive(Debug)]
pub(super) struct Disk {
    files: TempDir,
    control: File,
}

impl Disk {
    /// A disk without faults.
    pub(super) fn new() -> Disk {
        let files = temp_dir();
        fs::create_dir(files.path().join("undo")).unwrap();
        let path = files.path().join("control");
        fs::write(&path, [0; CONTROL_BYTES as usize]).unwrap();
        let control = File::options().read(true).write(true).open(path).unwrap();
        Disk { files, control }
    }

    /// The same server on this disk.
    pub(super) fn under(&self, setup: Setup) -> Setup {
        let data_dir = setup.data_dir().to_owned();
        setup
            .with_env("LD_PRELOAD", library())
            .with_env("DISK_SHIM_DIR", data_dir)
            .with_env("DISK_SHIM_UNDO", self.undo_dir())
            .with_env("DISK_SHIM_CONTROL", self.files.path().join("control"))
    }

    /// The disk has this fault until what is returned is dropped.
    #[must_use]
    pub(super) fn with(&self, fault: Fault, value: u8) -> Faulty<'_> {
        self.set(fault, value);
        Faulty(self, fault)
    }

    /// The disk has this fault from now on, until it lost power.
    pub(super) fn set(&self, fault: Fault, value: u8) {
        self.control.write_all_at(&[value], fault as u64).unwrap();
    }

    /// Kills the server at that many writes, truncates and syncs from now.
    pub(super) fn cut_after(&self, calls: u32) {
        self.control.write_all_at(&calls.to_ne_bytes(), 8).unwrap();
    }

    /// How many syncs are held at the moment.
    pub(super) fn held(&self) -> u32 {
        let mut bytes = [0; 4];
        self.control.read_exact_at(&mut bytes, 12).unwrap();
        u32::from_ne_bytes(bytes)
    }

    /// How many syncs succeeded so far.
    pub(super) fn syncs(&self) -> u64 {
        let mut bytes = [0; 8];
        self.control.read_exact_at(&mut bytes, 16).unwrap();
        u64::from_ne_bytes(bytes)
    }

    fn undo_dir(&self) -> PathBuf {
        self.files.path().join("undo")
    }

    /// Makes the data directory what it is after a power cut. The server must be dead. Returns what
    /// happened, for messages.
    pub(super) fn lose_power(&self, data_dir: &Path, unsynced: Unsynced, random: &mut Random) -> String {
        let mut undo: HashMap<u64, Vec<u8>> = HashMap::new();
        let mut nameless: HashSet<u64> = HashSet::new();
        for entry in fs::read_dir(self.undo_dir()).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            if let Ok(inode) = name.parse() {
                undo.insert(inode, fs::read(entry.path()).unwrap());
            } else if name.starts_with("new-") {
                let markers = fs::read_dir(entry.path()).unwrap();
                nameless.extend(markers.filter_map(|marker| marker.unwrap().file_name().to_str()?.parse::<u64>().ok()));
            }
        }
        let mut happened = format!("{unsynced:?}:");
        for (path, inode) in files_below(data_dir) {
            let name = path.strip_prefix(data_dir).unwrap().display();
            if let Some(undo) = undo.get(&inode) {
                let changes = undone(&path, undo);
                if !changes.is_empty() {
                    let kept = keep(&path, &changes, unsynced, random);
                    write!(happened, " {name} kept {kept} of {} unsynced writes;", changes.len()).unwrap();
                }
            }
            if nameless.contains(&inode) && (unsynced == Unsynced::Lost || random.chance(50)) {
                write!(happened, " {name} is gone;").unwrap();
                fs::remove_file(path).unwrap();
            }
        }
        fs::remove_dir_all(self.undo_dir()).unwrap();
        fs::create_dir(self.undo_dir()).unwrap();
        // All faults, the count to the next cut, and the number of syncs that are held.
        self.control.write_all_at(&[0; 16], 0).unwrap();
        happened
    }
}

/// A fault of a disk, which ends when this is dropped.
#[derive(Debug)]
pub(super) struct Faulty<'a>(&'a Disk, Fault);

impl Drop for Faulty<'_> {
    fn drop(&mut self) {
        self.0.set(self.1, 0);
    }
}

/// The compiled `disk.c`.
fn library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/shim/disk.c");
        let built = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("disk-{}.so", std::process::id()));
        let library = Path::new(concat!(env!("CARGO_TARGET_TMPDIR"), "/disk.so"));
        let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
        let mut command = Command::new(compiler);
        command.args(["-shared", "-fPIC", "-O2", "-Wall", "-pthread", source, "-o"]).arg(&built);
        let done = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        assert!(done.status.success(), "{command:?}: {}", String::from_utf8_lossy(&done.stderr));
        // Whole under its name, also where two runs share the directory.
        fs::rename(built, library).unwrap();
        library.to_owned()
    })
}

/// All regular files below a directory, with their inodes.
fn files_below(dir: &Path) -> BTreeMap<PathBuf, u64> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let metadata = entry.metadata().unwrap();
        if metadata.is_dir() {
            found.extend(files_below(&entry.path()));
        } else if metadata.is_file() {
            found.insert(entry.path(), metadata.ino());
        }
    }
    found
}

/// A change of a file that was not synced.
struct Change {
    offset: u64,
    /// What was written; nothing for a truncate.
    bytes: Vec<u8>,
    /// How long the file was afterwards.
    length: u64,
}

/// Takes back what an undo file of `disk.c` has, and returns it in the order in which it was done.
fn undone(path: &Path, undo: &[u8]) -> Vec<Change> {
    const HEAD: usize = 32;
    let mut entries: Vec<([u64; 3], &[u8])> = Vec::new();
    let mut rest = undo;
    while let Some((head, after)) = rest.split_at_checked(HEAD) {
        let [offset, length, written, kept] =
            std::array::from_fn(|at| u64::from_ne_bytes(head[8 * at..8 * at + 8].try_into().unwrap()));
        // A piece at the end: the process was killed before it made the write itself.
        let Some((bytes, after)) = after.split_at_checked(kept as usize) else { break };
        entries.push(([offset, length, written], bytes));
        rest = after;
    }
    if entries.is_empty() {
        return Vec::new();
    }
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut changes = Vec::new();
    for ([offset, old_length, written], old) in entries.into_iter().rev() {
        let length = file.metadata().unwrap().len();
        let mut bytes = vec![0; written.min(length.saturating_sub(offset)) as usize];
        file.read_exact_at(&mut bytes, offset).unwrap();
        changes.push(Change { offset, bytes, length });
        file.set_len(old_length).unwrap();
        file.write_all_at(old, offset).unwrap();
    }
    changes.reverse();
    changes
}

/// Makes some of the changes after all, and returns of how many something was kept.
fn keep(path: &Path, changes: &[Change], unsynced: Unsynced, random: &mut Random) -> usize {
    let file = File::options().write(true).open(path).unwrap();
    let kept = match unsynced {
        Unsynced::Lost => 0,
        Unsynced::Torn => random.below(changes.len() as u64 + 1) as usize,
        Unsynced::Scattered => changes.len(),
    };
    for (at, change) in changes[..kept].iter().enumerate() {
        if change.bytes.is_empty() {
            if unsynced == Unsynced::Torn || random.chance(50) {
                file.set_len(change.length).unwrap();
            }
            continue;
        }
        let tears = unsynced == Unsynced::Torn && at + 1 == kept;
        let mut offset = change.offset;
        let mut left = &change.bytes[..];
        while !left.is_empty() {
            let (sector, rest) = left.split_at(left.len().min((SECTOR - offset % SECTOR) as usize));
            if tears && random.chance(20) {
                break;
            }
            if unsynced == Unsynced::Torn || random.chance(50) {
                file.write_all_at(sector, offset).unwrap();
            }
            offset += sector.len() as u64;
            left = rest;
        }
    }
    kept
}

/// Numbers from a seed (SplitMix64): the same seed, the same numbers.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    /// From the variable `SEED`, or from the clock; printed, so that a failure can be repeated.
    pub(crate) fn new() -> Random {
        let given = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = given.unwrap_or_else(|| SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64);
        eprintln!("SEED={seed}");
        Random(seed)
    }

    /// Others, which follow from these.
    pub(crate) fn fork(&mut self) -> Random {
        Random(self.next())
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `bound`.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// Yes in so many of a hundred cases.
    pub(crate) fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}
