//! A WASI 0.1 module becomes a component: with the standard adapter around it, which makes the calls of
//! WASI 0.2 out of those of 0.1, it is a command.

use std::borrow::Cow;
use std::collections::HashSet;

use anyhow::{Context, bail, ensure};
use wasi_preview1_component_adapter_provider::{
    WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME as WASI, WASI_SNAPSHOT_PREVIEW1_COMMAND_ADAPTER as ADAPTER,
};
use wasmparser::{ExternalKind, Parser, Payload, TypeRef, Validator, WasmFeatures};
use wit_component::ComponentEncoder;

/// What a module may be made of. Compilers put out no more by default, and the encoder sees no types that
/// it may not know.
const FEATURES: WasmFeatures = WasmFeatures::WASM2.union(WasmFeatures::EXTENDED_CONST);

/// Imports that are named when they are refused; of more only the number is.
const NAMED: usize = 100;

/// A longer name is cut at so many characters.
const NAME_CHARS: usize = 100;

/// Makes a component of a core module; what is none stays as it is. A module that is no WASI 0.1 command is
/// refused.
pub(super) fn adapt(bytes: &[u8]) -> anyhow::Result<Cow<'_, [u8]>> {
    if !Parser::is_core_wasm(bytes) {
        return Ok(Cow::Borrowed(bytes));
    }
    check(bytes)?;
    let component = ComponentEncoder::default()
        .module(bytes)
        .and_then(|encoder| encoder.adapter(WASI, ADAPTER))
        .and_then(|mut encoder| encoder.encode())
        .context("the module cannot be made a component")?;
    Ok(Cow::Owned(component))
}

/// Refuses a module that is not a command, or wants more than the adapter has.
pub(super) fn check(bytes: &[u8]) -> anyhow::Result<()> {
    // First of all: the encoder is made for what compilers put out, and need not stand anything else.
    Validator::new_with_features(FEATURES)
        .validate_all(bytes)
        .context("it is no valid WebAssembly that is taken here")?;
    let offered = functions_of_adapter()?;
    let mut refused = Vec::new();
    let mut has_start = false;
    for payload in Parser::new(0).parse_all(bytes) {
        match payload? {
            Payload::ImportSection(imports) => {
                for import in imports.into_imports() {
                    let import = import?;
                    let is_function = matches!(import.ty, TypeRef::Func(_));
                    if !(is_function && import.module == WASI && offered.contains(import.name)) {
                        refused.push((import.module, import.name));
                    }
                }
            }
            Payload::ExportSection(exports) => {
                for export in exports {
                    let export = export?;
                    has_start |= export.name == "_start" && export.kind == ExternalKind::Func;
                }
            }
            // Types of a component, for the encoder: whoever has them can encode it.
            Payload::CustomSection(section) if section.name().starts_with("component-type") => {
                bail!("the module is one half of a component: make the whole of it first");
            }
            _ => {}
        }
    }
    if !refused.is_empty() {
        let names = refused.iter().take(NAMED).map(|(module, name)| format!("{}.{}", shown(module), shown(name)));
        let names = names.collect::<Vec<_>>().join(", ");
        let more = refused.len().saturating_sub(NAMED);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        bail!("the module imports what is not in WASI 0.1 ({WASI}): {names}{more}");
    }
    ensure!(has_start, "the module is no command: it has no function _start");
    Ok(())
}

/// The functions of WASI 0.1.
fn functions_of_adapter() -> anyhow::Result<HashSet<&'static str>> {
    let mut functions = HashSet::new();
    for payload in Parser::new(0).parse_all(ADAPTER) {
        if let Payload::ExportSection(exports) = payload? {
            for export in exports {
                functions.insert(export?.name);
            }
        }
    }
    Ok(functions)
}

fn shown(name: &str) -> String {
    let cut: String = name.chars().take(NAME_CHARS).collect();
    cut.escape_debug().to_string()
}
