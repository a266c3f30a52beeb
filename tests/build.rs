//! Builds the guests of `guests/`, which the tests give to the server as its `--components`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use guest_build::{Component, Error};

fn main() -> ExitCode {
    guest_build::finish(table())
}

fn table() -> Result<(), Error> {
    let used = ["../wit", "../server/wit", "../guest-tasks/Cargo.toml", "../guest-tasks/src", "guests/kernels"];
    let mut components = guest_build::build(Path::new("guests"), &used.map(Path::new))?;
    components.extend(guest_build::build_modules(Path::new("guests"), &["cat", "program"])?);
    components.extend(text_components(Path::new("guests/wat"))?);
    guest_build::write_table(&components)
}

/// The components that are written in WebAssembly's text format.
fn text_components(directory: &Path) -> Result<Vec<Component>, Error> {
    guest_build::rerun_if_changed(directory);
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    let mut components = Vec::new();
    for entry in fs::read_dir(directory).map_err(|error| format!("{}: {error}", directory.display()))? {
        let source = entry.map_err(|error| error.to_string())?.path();
        if source.extension().is_none_or(|extension| extension != "wat") {
            continue;
        }
        let name = source.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let bytes = wat::parse_file(&source).map_err(|error| error.to_string())?;
        let file = out.join(format!("{name}.wasm"));
        fs::write(&file, bytes).map_err(|error| format!("{}: {error}", file.display()))?;
        components.push((name, file));
    }
    components.sort();
    Ok(components)
}
