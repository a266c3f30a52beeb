//! Builds guests from source inside a build script, so that no compiled component is kept in the
//! repository and nobody has to remember a second build command.
//!
//! A guest package has one component per file in `examples/`. A build script calls [`build`] and
//! [`write_table`]; the crate then has the components as
//!
//! ```ignore
//! const GUESTS: &[(&str, &[u8])] = include!(concat!(env!("OUT_DIR"), "/guests.rs"));
//! ```

use std::env;
use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output};

/// What components are built for.
const TARGET: &str = "wasm32-wasip2";

/// What WASI 0.1 modules are built for.
const MODULE_TARGET: &str = "wasm32-wasip1";

/// A component, or a module: its name, and the file it is in.
pub type Component = (String, PathBuf);

/// Why there are no components, for a person to read.
pub type Error = String;

/// Ends a build script: cargo shows the error as one of its own.
pub fn finish(result: Result<(), Error>) -> ExitCode {
    let Err(error) = result else {
        return ExitCode::SUCCESS;
    };
    for line in error.lines() {
        tell_cargo("error", line);
    }
    ExitCode::FAILURE
}

/// Builds every example of the guest package in `package`, in order of their names. What the
/// package is built from outside of itself, such as WIT files, is in `others`.
pub fn build(package: &Path, others: &[&Path]) -> Result<Vec<Component>, Error> {
    for own in ["Cargo.toml", "Cargo.lock", "src", "examples"] {
        rerun_if_changed(&package.join(own));
    }
    others.iter().copied().for_each(rerun_if_changed);
    let built = build_examples(package, TARGET, &["--examples"])?;
    names(&package.join("examples"))?
        .into_iter()
        .map(|name| {
            // cargo names a library's file after its crate, a program's after itself.
            let files = [name.replace('-', "_"), name.clone()].map(|stem| built.join(format!("{stem}.wasm")));
            if let Some(file) = files.into_iter().find(|file| file.exists()) {
                return Ok((name, file));
            }
            Err(format!(
                "{}: add what makes a component of examples/{name}.rs:\n\
                 [[example]]\nname = \"{name}\"\ncrate-type = [\"cdylib\"]",
                package.join("Cargo.toml").display()
            ))
        })
        .collect()
}

/// Builds examples of the guest package that are programs once more, as WASI 0.1 modules. Each has the
/// name of its example with `-module` after it. For after [`build`].
pub fn build_modules(package: &Path, names: &[&str]) -> Result<Vec<Component>, Error> {
    let arguments: Vec<&str> = names.iter().flat_map(|name| ["--example", name]).collect();
    let built = build_examples(package, MODULE_TARGET, &arguments)?;
    Ok(names.iter().map(|name| (format!("{name}-module"), built.join(format!("{name}.wasm")))).collect())
}

/// Builds examples for that target, and returns the directory they are in.
fn build_examples(package: &Path, target: &str, which: &[&str]) -> Result<PathBuf, Error> {
    // Absolute, because cargo runs in the package.
    let package = package.canonicalize().map_err(|error| format!("{}: {error}", package.display()))?;
    let target_dir = out_dir()?.join("guests");

    ensure_target(&package, target)?;
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = run(command(&cargo, &package)
        .args(["build", "--release", "--locked", "--target", target, "--target-dir"])
        .arg(&target_dir)
        .args(which))?;
    if !output.status.success() {
        return Err(format!("building {} failed:\n{}", package.display(), text(&output.stderr)));
    }
    Ok(target_dir.join(target).join("release/examples"))
}

/// Writes `guests.rs` to the build script's output directory: an expression of the type
/// `&[(&str, &[u8])]`, each component's name with its bytes.
pub fn write_table(components: &[Component]) -> Result<(), Error> {
    let file = out_dir()?.join("guests.rs");
    fs::write(&file, table(components)).map_err(|error| format!("{}: {error}", file.display()))
}

/// Has cargo run the build script again when the file, or anything in the directory, changes.
pub fn rerun_if_changed(path: &Path) {
    tell_cargo("rerun-if-changed", &path.display().to_string());
}

fn tell_cargo(what: &str, value: &str) {
    // If cargo no longer listens, there is nobody to tell.
    _ = writeln!(io::stdout(), "cargo::{what}={value}");
}

fn out_dir() -> Result<PathBuf, Error> {
    env::var_os("OUT_DIR").map(PathBuf::from).ok_or_else(|| "OUT_DIR is not set: this is for build scripts".to_owned())
}

/// The names of the Rust files in `directory`, without `.rs`, in order.
fn names(directory: &Path) -> Result<Vec<String>, Error> {
    let failure = |error: io::Error| format!("{}: {error}", directory.display());
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).map_err(failure)? {
        let path = entry.map_err(failure)?.path();
        if path.extension() == Some(OsStr::new("rs")) {
            names.extend(path.file_stem().map(|name| name.to_string_lossy().into_owned()));
        }
    }
    names.sort();
    Ok(names)
}

fn table(components: &[Component]) -> String {
    let mut table = "&[\n".to_owned();
    for (name, file) in components {
        _ = writeln!(table, "    ({name:?}, include_bytes!({file:?}).as_slice()),");
    }
    table.push(']');
    table
}

/// Adds the target to the toolchain where it is missing. The toolchain file names it, but rustup
/// reads that only where it may install by itself.
fn ensure_target(package: &Path, target: &str) -> Result<(), Error> {
    if has_target(package, target)? {
        return Ok(());
    }
    let toolchain = env::var("RUSTUP_TOOLCHAIN").ok();
    let mut arguments = vec!["target", "add", target];
    if let Some(toolchain) = &toolchain {
        arguments.extend(["--toolchain", toolchain]);
    }
    let output = run(command(OsStr::new("rustup"), package).args(&arguments));
    // Asked again whatever rustup said: another build may have added it meanwhile.
    if has_target(package, target)? {
        return Ok(());
    }
    let why = output.map_or_else(|error| error, |output| text(&output.stderr));
    Err(format!(
        "the Rust toolchain lacks the target {target}, which the guests are built for. Add it with\n\
         rustup {}\n{why}",
        arguments.join(" ")
    ))
}

/// Whether the compiler that cargo takes for the guests has the target's standard library.
fn has_target(package: &Path, target: &str) -> Result<bool, Error> {
    let output = run(command(OsStr::new("rustc"), package).args(["--print", "sysroot"]))?;
    if !output.status.success() {
        return Err(format!("rustc --print sysroot failed:\n{}", text(&output.stderr)));
    }
    Ok(Path::new(text(&output.stdout).trim_end()).join("lib/rustlib").join(target).join("lib").exists())
}

/// A command in `package` whose environment is that of the outer build, less what would steer the
/// build of the guests.
fn command(program: &OsStr, package: &Path) -> Command {
    let mut command = Command::new(program);
    command.current_dir(package).env_clear();
    command.envs(env::vars_os().filter(|(name, _)| is_inherited(name)));
    // Set and empty, they win over a cargo configuration file as well.
    command.env("CARGO_ENCODED_RUSTFLAGS", "");
    command.env("RUSTC_WRAPPER", "").env("RUSTC_WORKSPACE_WRAPPER", "");
    command
}

/// Whether the guests' build sees the variable: not cargo's description of the package being
/// built, not flags, wrappers and settings for the outer build such as those of clippy or a
/// coverage tool.
fn is_inherited(name: &OsStr) -> bool {
    let Some(name) = name.to_str() else {
        return true;
    };
    // Where cargo finds its registry, how it reaches it, and how many jobs all cargos together run.
    let kept =
        ["CARGO_HOME", "CARGO_MAKEFLAGS", "CARGO_NET_", "CARGO_HTTP_", "CARGO_REGISTR", "CARGO_SOURCE_", "RUSTUP_"];
    let dropped = ["CARGO", "RUST", "__CARGO", "CLIPPY_", "MIRI", "LLVM_PROFILE_FILE"];
    kept.iter().any(|prefix| name.starts_with(prefix)) || !dropped.iter().any(|prefix| name.starts_with(prefix))
}

fn run(command: &mut Command) -> Result<Output, Error> {
    let program: OsString = command.get_program().to_owned();
    command.output().map_err(|error| format!("{}: {error}", program.display()))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_guests_build_does_not_see_the_outer_builds_settings() {
        for name in [
            "CARGO",
            "CARGO_ENCODED_RUSTFLAGS",
            "CARGO_BUILD_RUSTFLAGS",
            "CARGO_BUILD_TARGET",
            "CARGO_CFG_UNIX",
            "CARGO_MANIFEST_DIR",
            "CARGO_PKG_NAME",
            "CARGO_PROFILE_RELEASE_DEBUG",
            "CARGO_TARGET_DIR",
            "CARGO_TARGET_WASM32_WASIP2_LINKER",
            "CARGO_INCREMENTAL",
            "CARGO_LLVM_COV",
            "RUSTC",
            "RUSTC_WRAPPER",
            "RUSTC_WORKSPACE_WRAPPER",
            "RUSTC_BOOTSTRAP",
            "RUSTDOC",
            "RUSTDOCFLAGS",
            "RUSTFLAGS",
            "CLIPPY_ARGS",
            "CLIPPY_CONF_DIR",
            "LLVM_PROFILE_FILE",
            "__CARGO_TEST_CHANNEL_OVERRIDE_DO_NOT_USE_THIS",
        ] {
            assert!(!is_inherited(OsStr::new(name)), "{name}");
        }
    }

    #[test]
    fn the_guests_build_finds_its_tools_and_registry() {
        for name in [
            "PATH",
            "HOME",
            "TMPDIR",
            "HTTPS_PROXY",
            "CARGO_HOME",
            "CARGO_MAKEFLAGS",
            "CARGO_NET_OFFLINE",
            "CARGO_HTTP_PROXY",
            "CARGO_REGISTRIES_CRATES_IO_PROTOCOL",
            "CARGO_SOURCE_CRATES_IO_REPLACE_WITH",
            "RUSTUP_HOME",
            "RUSTUP_TOOLCHAIN",
        ] {
            assert!(is_inherited(OsStr::new(name)), "{name}");
        }
    }

    /// In a process of its own, as the tools are found by its `PATH`.
    #[test]
    fn a_missing_target_is_added_or_the_command_for_it_is_told() {
        const NAME: &str = "tests::a_missing_target_is_added_or_the_command_for_it_is_told";
        if env::var_os("WITHOUT_TARGET").is_some() {
            println!("told: {:?}", ensure_target(Path::new("."), "wasm32-wasip2"));
            return;
        }
        let dir = env::temp_dir().join(format!("guest-build-{}", std::process::id()));
        let script = |name: &str, text: String| {
            let path = dir.join(name);
            std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        };
        let told = |rustup: Option<&str>| {
            _ = std::fs::remove_dir_all(&dir);
            std::fs::create_dir_all(&dir).unwrap();
            script("rustc", format!("echo '{}'", dir.display()));
            if let Some(rustup) = rustup {
                script("rustup", rustup.replace("LIB", &dir.join("lib/rustlib").display().to_string()));
            }
            let mut child = Command::new(env::current_exe().unwrap());
            child.args(["--exact", NAME, "--nocapture"]).env("WITHOUT_TARGET", "1").env("PATH", &dir);
            text(&child.env_remove("RUSTUP_TOOLCHAIN").output().unwrap().stdout)
        };
        let added = told(Some("[ \"$1 $2\" = 'target add' ] && /bin/mkdir -p LIB/$3/lib"));
        assert!(added.contains("told: Ok"), "{added}");
        for (rustup, why) in [(Some("echo 'no network' >&2; exit 1"), "no network"), (None, "rustup: ")] {
            let told = told(rustup);
            assert!(told.contains("rustup target add wasm32-wasip2") && told.contains(why), "{told}");
        }
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn the_table_is_an_expression_whatever_the_path() {
        let components = [
            ("echo".to_owned(), PathBuf::from("/out/echo.wasm")),
            ("word-count".to_owned(), PathBuf::from("/a \"b\"/word_count.wasm")),
        ];
        assert_eq!(
            table(&components),
            "&[\n    (\"echo\", include_bytes!(\"/out/echo.wasm\").as_slice()),\n    \
             (\"word-count\", include_bytes!(\"/a \\\"b\\\"/word_count.wasm\").as_slice()),\n]"
        );
        assert_eq!(table(&[]), "&[\n]");
    }
}
