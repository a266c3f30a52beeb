//! The guests of `tests/guests/`, as task types.

use std::path::Path;
use std::sync::OnceLock;

/// Every guest: its name and its component.
pub(crate) const GUESTS: &[(&str, &[u8])] = include!(concat!(env!("OUT_DIR"), "/guests.rs"));

/// The name of a guest's task type. The name is written at the call, so that it shows which guests
/// no test uses.
#[track_caller]
pub(crate) fn guest(name: &'static str) -> &'static str {
    assert!(GUESTS.iter().any(|(known, _)| *known == name), "there is no guest {name}");
    name
}

/// The component of a guest.
pub(crate) fn component(guest: &str) -> &'static [u8] {
    GUESTS.iter().find(|(name, _)| *name == guest).unwrap_or_else(|| panic!("there is no guest {guest}")).1
}

/// A directory of all guests, for `--components`.
pub(crate) fn directory() -> &'static Path {
    static WRITTEN: OnceLock<&'static Path> = OnceLock::new();
    WRITTEN.get_or_init(|| write(Path::new(concat!(env!("CARGO_TARGET_TMPDIR"), "/components")), |_| true))
}

/// A directory of the few that the clients of the crash tests use: with all of them a start takes longer.
pub(crate) fn few() -> &'static Path {
    static WRITTEN: OnceLock<&'static Path> = OnceLock::new();
    WRITTEN.get_or_init(|| {
        let few = [guest("fail"), guest("sleep")];
        write(Path::new(concat!(env!("CARGO_TARGET_TMPDIR"), "/components-few")), |name| few.contains(&name))
    })
}

/// One directory for all runs: nobody would remove it at the end of this one.
fn write(directory: &'static Path, wanted: impl Fn(&str) -> bool) -> &'static Path {
    if directory.exists() {
        std::fs::remove_dir_all(directory).unwrap();
    }
    std::fs::create_dir_all(directory).unwrap();
    for (name, bytes) in GUESTS.iter().filter(|(name, _)| wanted(name)) {
        std::fs::write(directory.join(format!("{name}.wasm")), bytes).unwrap();
    }
    directory
}

#[test]
fn every_guest_is_used() {
    let mut sources = String::new();
    read_all(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/it")), &mut sources);
    let unused: Vec<_> = GUESTS
        .iter()
        .filter(|(name, _)| !sources.contains(&format!("guest({name:?})")))
        .map(|(name, _)| name)
        .collect();
    assert!(unused.is_empty(), "no test uses these guests: {unused:?}");
}

fn read_all(directory: &Path, into: &mut String) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            read_all(&path, into);
        } else {
            into.push_str(&std::fs::read_to_string(path).unwrap());
        }
    }
}
