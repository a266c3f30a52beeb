//! Looks at a database that is there before anything is done with it: whether it is one of ours, of a schema that is
//! known, and whole. Nothing of the database is changed by that. Where a log lies beside it SQLite may leave its index
//! there, too.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rusqlite::{Connection, OpenFlags};

use super::{APPLICATION_ID, MIGRATIONS};

/// Bytes of a database's header.
const HEADER: usize = 100;

/// Where SQLite has its locks in a file.
const LOCK_BYTE: u64 = 1 << 30;

/// Bytes of the write-ahead log's header, and of that before each page (see "WAL-mode File Format" of SQLite).
const LOG_HEADER: usize = 32;
const FRAME_HEADER: usize = 24;

/// Looks at a file, for damage no longer than `check`. One that is not there is sound, but for what is beside it.
pub(super) fn inspect(path: &Path, check: Option<Duration>) -> anyhow::Result<()> {
    let shown = path.display();
    let damaged = || {
        format!(
            "the database {shown} is damaged and was left as it is: restore a backup, or move the file away to start \
             with an empty one"
        )
    };
    let length = |path: &Path| std::fs::metadata(path).map(|about| about.len());
    let (is_there, bytes) = (path.exists(), length(path).unwrap_or(0));
    if bytes == 0 {
        // SQLite would begin a new log as well.
        if length(&beside(path, "-wal")).is_ok_and(|length| length > 0) {
            bail!("{}: it is empty, and its write-ahead log is not", damaged());
        }
        // The process ended in its very first start, or somebody emptied the file.
        if is_there {
            tracing::warn!(path = %shown, "the database is empty: the server begins with no tasks");
        }
        return Ok(());
    }
    // SQLite takes a file of one byte for an empty one.
    if bytes < HEADER as u64 {
        bail!("{}: it is shorter than it should be", damaged());
    }
    // What a crash left of a transaction outside of the write-ahead log, as the first start on a restored
    // backup may: it has to be rolled back before anything can be read.
    if beside(path, "-journal").exists() {
        Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX)
            .and_then(|conn| conn.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(())))
            .with_context(damaged)?;
    }
    let late = |started: Instant| move || check.is_some_and(|check| started.elapsed() > check);
    let log = beside(path, "-wal");
    if let Some(frame) = damage_in_log(&log, late(Instant::now())).with_context(damaged)? {
        bail!(
            "the write-ahead log {} is damaged (frame {frame}): what is in it from there on would be lost, and some of \
             that is whole. It and the database were left as they are: restore a backup, or move both away to start with \
             an empty one",
            log.display()
        );
    }
    let mut conn = open(path).with_context(|| format!("cannot read {shown}"))?;
    let number = |pragma: &str| -> anyhow::Result<i64> {
        conn.query_row(&format!("PRAGMA {pragma}"), [], |row| row.get(0)).with_context(damaged)
    };
    let (version, application) = (number("user_version")?, number("application_id")?);
    let tables = names(&conn).with_context(damaged)?;
    if tables.is_empty() && version == 0 {
        // Nothing was committed yet: the process ended in its very first start.
        return Ok(());
    }
    if application != i64::from(APPLICATION_ID) {
        bail!("{shown} is not a taskcell database; it was left as it is");
    }
    if version > MIGRATIONS.len() as i64 {
        bail!(
            "the database {shown} was written by a newer taskcell (schema {version}, this one knows {}); it was left \
             as it is: start the newer version",
            MIGRATIONS.len()
        );
    }
    let known = usize::try_from(version).ok().filter(|version| *version > 0);
    let Some(migrations) = known.and_then(|version| MIGRATIONS.get(..version)) else {
        bail!("{}: there is no schema {version}", damaged());
    };
    if let Some(missing) = expected(migrations)?.difference(&tables).min() {
        bail!("{}: it has no {missing}, which is in schema {version}", damaged());
    }
    if !is_long_enough(path).with_context(damaged)? {
        bail!("{}: it is shorter than it should be", damaged());
    }
    // It is asked between two pages, too, of which each may have to come from the disk.
    conn.progress_handler(500, Some(late(Instant::now())))?;
    let found: rusqlite::Result<String> = conn.query_row("PRAGMA quick_check(1)", [], |row| row.get(0));
    conn.progress_handler(0, None::<fn() -> bool>)?;
    match found {
        Ok(found) if found == "ok" => Ok(()),
        Ok(found) => bail!("{}: {found}", damaged()),
        Err(error) if error.sqlite_error_code() == Some(rusqlite::ErrorCode::OperationInterrupted) => Ok(()),
        Err(error) => Err(error).with_context(damaged),
    }
}

/// Syncs the log that a process has left which ended before it had done that: what follows a commit in it is to say that
/// this one is on the disk.
pub(super) fn sync_log(path: &Path) -> anyhow::Result<()> {
    let log = beside(path, "-wal");
    match File::open(&log) {
        Ok(file) => file.sync_data().with_context(|| format!("cannot sync {}", log.display())),
        Err(_) => Ok(()),
    }
}

/// A file that SQLite keeps beside a database.
fn beside(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(end);
    name.into()
}

fn open(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    match path.to_str() {
        // With a log there has to be an index of it. Without one SQLite would make both, if it were not told that
        // nobody changes the file.
        Some(name) if !beside(path, "-wal").exists() => {
            let name = name.replace('%', "%25").replace('?', "%3f").replace('#', "%23");
            // So that what begins with two slashes has no host in it (RFC 8089).
            let host = if name.starts_with('/') { "//" } else { "" };
            Connection::open_with_flags(format!("file:{host}{name}?immutable=1"), flags | OpenFlags::SQLITE_OPEN_URI)
        }
        _ => Connection::open_with_flags(path, flags),
    }
}

/// Tables, indexes and triggers, but those that SQLite makes for itself.
fn names(conn: &Connection) -> rusqlite::Result<HashSet<String>> {
    conn.prepare("SELECT type || ' ' || name FROM sqlite_schema WHERE name NOT LIKE 'sqlite_%'")?
        .query_map([], |row| row.get(0))?
        .collect()
}

fn expected(migrations: &[&str]) -> anyhow::Result<HashSet<String>> {
    let conn = Connection::open_in_memory()?;
    migrations.iter().try_for_each(|migration| conn.execute_batch(migration))?;
    Ok(names(&conn)?)
}

/// Whether all pages that the database's header tells of are there, or are still in the write-ahead log: moving them
/// out of it may have been interrupted.
fn is_long_enough(path: &Path) -> std::io::Result<bool> {
    let file = File::open(path)?;
    let mut header = [0; HEADER];
    file.read_exact_at(&mut header, 0)?;
    let page = match u16::from_be_bytes([header[16], header[17]]) {
        1 => 65_536,
        size => u64::from(size),
    };
    let pages = be32(&header, 28);
    let whole = file.metadata()?.len() / page.max(1);
    if whole >= u64::from(pages) {
        return Ok(true);
    }
    let in_log = pages_in_log(&beside(path, "-wal"), page)?;
    // Nothing is ever written to the page that SQLite has its locks in.
    let locks = LOCK_BYTE / page.max(1) + 1;
    Ok((whole + 1..=u64::from(pages)).all(|page| page == locks || in_log.contains(&page)))
}

/// The pages that a write-ahead log has; none where there is no log.
fn pages_in_log(path: &Path, page: u64) -> std::io::Result<HashSet<u64>> {
    let mut found = HashSet::new();
    let Ok(log) = File::open(path) else { return Ok(found) };
    let length = log.metadata()?.len();
    let (mut header, mut frame) = ([0; LOG_HEADER], [0; FRAME_HEADER]);
    if length < LOG_HEADER as u64 {
        return Ok(found);
    }
    log.read_exact_at(&mut header, 0)?;
    let mut at = LOG_HEADER as u64;
    while at + FRAME_HEADER as u64 + page <= length {
        log.read_exact_at(&mut frame, at)?;
        // What is behind the last frame is of the log that was there before.
        if frame[8..16] != header[16..24] {
            break;
        }
        found.insert(u64::from(be32(&frame, 0)));
        at += FRAME_HEADER as u64 + page;
    }
    Ok(found)
}

/// Looks for damage in a write-ahead log, of which SQLite takes what comes before it and says nothing (see "WAL-mode
/// File Format"). The first frame that is damaged, 0 for the log's header; `None` where there is no damage, or the look
/// takes too long.
///
/// A crash may leave frames of the last transaction that are not whole as well. But a frame that follows that of a
/// commit was written when all before it was synced: where there is such a pair behind a broken frame, that one was
/// whole before. Each frame's checksum begins with that of the frame before it, so pairs are found there, too.
fn damage_in_log(path: &Path, is_late: impl Fn() -> bool) -> std::io::Result<Option<u64>> {
    let Ok(log) = File::open(path) else { return Ok(None) };
    let frames = log.metadata()?.len().saturating_sub(LOG_HEADER as u64);
    let mut log = BufReader::with_capacity(1 << 20, log);
    let mut header = [0; LOG_HEADER];
    if frames == 0 || log.read_exact(&mut header).is_err() {
        return Ok(None);
    }
    if header == [0; LOG_HEADER] {
        // A new log whose name and size were all that got to the disk, where nothing else is in it.
        for byte in log.bytes() {
            if byte? != 0 {
                return Ok(Some(0));
            }
        }
        return Ok(None);
    }
    let page = be32(&header, 8);
    let word = match be32(&header, 0) {
        0x377f_0682 => u32::from_le_bytes,
        0x377f_0683 => u32::from_be_bytes,
        _ => return Ok(Some(0)),
    };
    let sum = |(mut first, mut second): (u32, u32), bytes: &[u8]| {
        for pair in bytes.as_chunks::<8>().0 {
            let [a, b, c, d, e, f, g, h] = *pair;
            first = first.wrapping_add(word([a, b, c, d])).wrapping_add(second);
            second = second.wrapping_add(word([e, f, g, h])).wrapping_add(first);
        }
        (first, second)
    };
    let told = |bytes: &[u8], at: usize| (be32(bytes, at), be32(bytes, at + 4));
    let mut before = told(&header, 24);
    // It is in one sector, and synced before there is any frame: no crash leaves half of it.
    if sum((0, 0), &header[..24]) != before || !(512..=65_536).contains(&page) {
        return Ok(Some(0));
    }
    let mut frame = vec![0; FRAME_HEADER + page as usize];
    let (mut broken, mut follows_commit) = (None, false);
    for number in 1..=frames / frame.len() as u64 {
        if number % 1024 == 0 && is_late() {
            break;
        }
        log.read_exact(&mut frame)?;
        // With other salts it is damaged, or of the log that was there before this one.
        let is_of_this = frame[8..16] == header[16..24];
        let is_whole = is_of_this && sum(sum(before, &frame[..8]), &frame[FRAME_HEADER..]) == told(&frame, 16);
        if is_whole && follows_commit && broken.is_some() {
            return Ok(broken);
        }
        if !is_whole && broken.is_none() {
            broken = Some(number);
        }
        follows_commit = is_of_this && be32(&frame, 4) != 0;
        before = told(&frame, 16);
    }
    Ok(None)
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    bytes[at..].first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A database of a hundred pages and more, of which some are in its log alone: as it was before and after they were
    /// moved into it.
    fn grown(dir: &Path) -> (PathBuf, Vec<u8>, Vec<u8>) {
        let path = dir.join("taskcell.db");
        let mut conn = Connection::open(&path).unwrap();
        super::super::configure_writer(&conn).unwrap();
        super::super::migrate(&mut conn).unwrap();
        let put = |name: &str| {
            conn.execute("INSERT INTO object (tenant, name, etag, size, updated_at, data) VALUES ('t', ?1, 'e', 1, 1, zeroblob(300000))", [name]).unwrap();
        };
        let moved = || conn.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(())).unwrap();
        put("a");
        moved();
        put("b");
        let before = std::fs::read(&path).unwrap();
        moved();
        let after = std::fs::read(&path).unwrap();
        let log = std::fs::read(beside(&path, "-wal")).unwrap();
        drop(conn);
        std::fs::write(beside(&path, "-wal"), log).unwrap();
        assert!(before.len() < after.len());
        (path, before, after)
    }

    /// As a crash leaves it in the middle of moving pages out of the log.
    #[test]
    fn pages_that_are_still_in_the_log_are_not_missing() {
        let dir = tempfile::tempdir().unwrap();
        let (path, before, after) = grown(dir.path());
        let told = |length: usize| {
            std::fs::write(&path, &after[..length]).unwrap();
            let told = inspect(&path, None).map_err(|error| error.to_string());
            let _ = std::fs::remove_file(beside(&path, "-shm"));
            told
        };
        for length in [before.len(), before.len() + 100, before.len() + 4096, after.len()] {
            told(length).unwrap();
        }
        assert!(told(before.len() / 2).unwrap_err().contains("shorter"));
        std::fs::remove_file(beside(&path, "-wal")).unwrap();
        assert!(told(before.len()).is_err());
        told(after.len()).unwrap();
    }

    #[test]
    fn an_empty_database_with_a_log_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let (path, ..) = grown(dir.path());
        std::fs::write(&path, "").unwrap();
        let told = || inspect(&path, None).map_err(|error| error.to_string());
        assert!(told().unwrap_err().contains("log is not"));
        std::fs::remove_file(&path).unwrap();
        assert!(told().unwrap_err().contains("log is not"));
        for bytes in ["x", "SQLite format 3\0"] {
            std::fs::write(&path, bytes).unwrap();
            assert!(told().unwrap_err().contains("shorter"));
        }
        std::fs::remove_file(beside(&path, "-wal")).unwrap();
        assert!(told().unwrap_err().contains("shorter"));
        std::fs::write(&path, "").unwrap();
        told().unwrap();
        std::fs::remove_file(&path).unwrap();
        told().unwrap();
    }

    /// Wherever a byte of the log is another one, but in what a crash may have left half written.
    #[test]
    fn damage_in_the_log_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("taskcell.db");
        let mut conn = Connection::open(&path).unwrap();
        super::super::configure_writer(&conn).unwrap();
        super::super::migrate(&mut conn).unwrap();
        for name in 0..6 {
            let sql = "INSERT INTO object (tenant, name, etag, size, updated_at, data) VALUES ('t', ?1, 'e', 1, 1, zeroblob(9000))";
            conn.execute(sql, [name.to_string()]).unwrap();
        }
        let log = std::fs::read(beside(&path, "-wal")).unwrap();
        drop(conn);
        let place = beside(&path, "-wal");
        let found = |log: &[u8]| {
            std::fs::write(&place, log).unwrap();
            damage_in_log(&place, || false).unwrap()
        };
        assert_eq!(found(&log), None);
        let frame = FRAME_HEADER + 4096;
        let commits: Vec<usize> = log[LOG_HEADER..]
            .chunks(frame)
            .enumerate()
            .filter(|(_, frame)| be32(frame, 4) != 0)
            .map(|(at, _)| at)
            .collect();
        let [.., before_last, last] = commits[..] else { panic!("{commits:?}") };
        assert_eq!(LOG_HEADER + (last + 1) * frame, log.len());
        let broken = |at: usize| {
            let mut log = log.clone();
            log[at] ^= 1;
            found(&log)
        };
        // The magic number, the size of a page, a salt, the checksum.
        assert_eq!([0, 11, 16, 24].map(broken), [Some(0); 4]);
        for at in 0..=last {
            let begin = LOG_HEADER + at * frame;
            // Its page number, its salts, its checksum, its page.
            let told = [0, 8, 16, FRAME_HEADER, frame - 1].map(|within| broken(begin + within));
            // A frame whose checksum is another one breaks the next as well.
            if at < before_last {
                assert_eq!(told, [Some(at as u64 + 1); 5], "frame {at} of {commits:?}");
            } else if at > before_last {
                assert_eq!(told, [None; 5], "frame {at} of {commits:?}");
            }
        }
        // As a crash leaves it: the rest of a transaction, and behind it that of an older one, or of an older log.
        for length in [LOG_HEADER, LOG_HEADER + 100, LOG_HEADER + last * frame + 700, log.len() - 1] {
            assert_eq!(found(&log[..length]), None, "{length} bytes");
        }
        let torn =
            |from: usize, to: usize| [&log[..LOG_HEADER + from * frame], &log[LOG_HEADER + to * frame..]].concat();
        assert_eq!(found(&torn(before_last + 1, last)), None, "what is there no more was never whole");
        let zeros = |from: usize| {
            let mut log = log.clone();
            log[from..].fill(0);
            log
        };
        assert_eq!(found(&zeros(0)), None);
        let mut lost = log.clone();
        lost[4096..8192].fill(0);
        assert_eq!(found(&lost), Some(1), "a block of the disk that cannot be read any more");
        for bytes in [LOG_HEADER, 4096] {
            let mut lost = log.clone();
            lost[..bytes].fill(0);
            assert_eq!(found(&lost), Some(0), "its first {bytes} bytes");
        }
        assert_eq!(found(&zeros(LOG_HEADER + before_last * frame + 30)), None);
        std::fs::write(&place, &log).unwrap();
        inspect(&path, None).unwrap();
        broken(LOG_HEADER + FRAME_HEADER);
        let told = inspect(&path, None).unwrap_err().to_string();
        assert!(told.contains("taskcell.db-wal is damaged (frame 1)"), "{told}");
    }

    #[test]
    fn names_that_a_uri_would_read_otherwise() {
        let dir = tempfile::tempdir().unwrap();
        let (path, _, after) = grown(dir.path());
        std::fs::remove_file(beside(&path, "-wal")).unwrap();
        for name in ["a?b#c%20.db", "ü.db", "file:x.db"] {
            let path = dir.path().join(name);
            std::fs::write(&path, &after).unwrap();
            inspect(&path, None).unwrap();
        }
        inspect(Path::new(&format!("/{}", path.display())), None).unwrap();
    }
}
