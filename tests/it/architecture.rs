//! The rules that the parts of the server keep, read off its sources.

use std::path::{Path, PathBuf};

/// A file has fewer lines than this.
const MOST_LINES: usize = 600;

/// Crates that only one place knows, and that place.
const ONE_PLACE: &[(&[&str], &[&str])] = &[
    (&["axum", "tower", "utoipa_axum", "utoipa_swagger_ui"], &["api"]),
    (&["hyper", "hyper_util", "http_body_util"], &["api", "host", "command_line"]),
    (&["wasmtime", "wasmtime_wasi", "wasmtime_wasi_http", "wasmtime_wasi_config"], &["sandbox", "host"]),
    (&["rustls", "tokio_rustls"], &["api", "host"]),
    (&["webpki_roots"], &["host"]),
    (&["wasmparser", "wasm_encoder", "wit_component", "wit_parser"], &["sandbox"]),
    (&["rusqlite"], &["store"]),
    (&["clap", "toml"], &["config"]),
    (&["croner", "chrono_tz"], &["schedules"]),
    (&["jsonschema"], &["input_schema"]),
    (&["ring"], &["secrets"]),
];

/// Modules that compute and do nothing else.
const PURE: &[&str] =
    &["task", "grants", "ledger", "limits", "names", "pointer", "quotas", "schedule", "schedules", "share"];

/// What a pure module does not use: clocks, input and output, threads, async, and the rest of the server.
const IMPURE: &[&str] = &[
    "async ",
    ".await",
    "tokio",
    "futures",
    "rustix",
    "Utc::now",
    "Local::now",
    "tracing",
    "std::time",
    "Instant",
    "SystemTime",
    "now_v7",
    "std::fs",
    "std::io",
    "std::net",
    "std::env",
    "std::process",
    "std::thread",
    "std::sync::Mutex",
    "std::sync::mpsc",
    "thread_local",
    "static mut",
    "unsafe ",
    "println",
    "crate::clock",
    "crate::store",
    "crate::manager",
    "crate::api",
    "crate::host",
    "crate::sandbox",
    "crate::executor",
    "crate::room",
];

/// Which modules may know which of the server's own: the way of a task goes one way.
const KNOWN_BY: &[(&str, &[&str])] = &[("crate::api", &["serve", "api"]), ("crate::executor", &["manager", "serve"])];

struct Source {
    path: PathBuf,
    /// The top-level module it belongs to.
    module: String,
    text: String,
    /// Without comments.
    code: String,
}

fn sources() -> Vec<Source> {
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../server/src"));
    let mut found = Vec::new();
    read(root, root, &mut found);
    assert!(found.len() > 20, "the sources are elsewhere");
    found
}

fn read(root: &Path, directory: &Path, into: &mut Vec<Source>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            read(root, &path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            let path = path.strip_prefix(root).unwrap().to_owned();
            let module = path.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs").to_owned();
            let code =
                text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n");
            into.push(Source { path, module, text, code });
        }
    }
}

/// Whether code names a crate: as the start of a path, or in a `use`.
fn names_crate(code: &str, name: &str) -> bool {
    code.match_indices(name).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        let after = &code[at + name.len()..];
        let starts = before.is_none_or(|c| !c.is_alphanumeric() && c != '_' && c != ':' && c != '"' && c != '.');
        starts && (after.starts_with("::") || (code[..at].ends_with("use ") && after.starts_with(';')))
    })
}

#[test]
fn each_of_these_crates_is_known_in_one_place() {
    let mut known = Vec::new();
    for source in sources() {
        for (crates, places) in ONE_PLACE {
            for name in *crates {
                if names_crate(&source.code, name) {
                    known.push(*name);
                    assert!(
                        places.contains(&source.module.as_str()),
                        "{} knows {name}, which is for {places:?} alone",
                        source.path.display()
                    );
                }
            }
        }
    }
    for name in ["axum", "wasmtime", "wasmparser", "wit_component", "rusqlite", "croner", "ring"] {
        assert!(known.contains(&name), "nobody knows {name}: this test looks in the wrong way");
    }
}

#[test]
fn sql_is_in_the_store_alone() {
    let statements = ["SELECT ", "INSERT INTO", "DELETE FROM", "PRAGMA ", "CREATE TABLE"];
    for source in sources().iter().filter(|source| source.module != "store") {
        for statement in statements {
            assert!(!source.code.contains(statement), "{} has SQL: {statement}", source.path.display());
        }
    }
}

#[test]
fn the_pure_modules_are_pure() {
    let sources = sources();
    for module in PURE {
        let of_module: Vec<_> = sources.iter().filter(|source| source.module == *module).collect();
        assert!(!of_module.is_empty(), "there is no module {module}");
        for source in of_module {
            for impure in IMPURE {
                // Its tests may do what they like.
                let code = source.code.split("#[cfg(test)]").next().unwrap_or_default();
                assert!(!code.contains(impure), "{} uses {impure:?}", source.path.display());
            }
        }
    }
}

#[test]
fn the_way_of_a_task_goes_one_way() {
    for source in sources() {
        for (module, by) in KNOWN_BY {
            assert!(
                !source.code.contains(&format!("{module}::")) || by.contains(&source.module.as_str()),
                "{} knows {module}",
                source.path.display()
            );
        }
    }
}

#[test]
fn no_file_is_long() {
    for source in sources() {
        let lines = source.text.lines().count();
        assert!(lines < MOST_LINES, "{} has {lines} lines", source.path.display());
    }
}
