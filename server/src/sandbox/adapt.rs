//! A WASI 0.1 module becomes a component: with the standard adapter around it, which makes the calls of
//! WASI 0.2 out of those of 0.1, it is a command.

use std::borrow::Cow;
use std::collections::HashMap;

use anyhow::{Context, bail};
use wasi_preview1_component_adapter_provider::{
    WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME as WASI, WASI_SNAPSHOT_PREVIEW1_COMMAND_ADAPTER as ADAPTER,
};
use wasm_encoder::{EntityType, ImportSection, Module, RawSection};
use wasmparser::types::TypesRef;
use wasmparser::{
    CustomSectionReader, ExternalKind, FuncType, KnownCustom, Name, NameMap, Parser, Payload, TypeRef, Validator,
    WasmFeatures,
};
use wit_component::{ComponentEncoder, StringEncoding};
use wit_parser::Resolve;

use super::precheck;

/// What a module may be made of. Compilers put out no more by default, and the encoder sees no types that
/// it may not know.
pub(super) const FEATURES: WasmFeatures = WasmFeatures::WASM2.union(WasmFeatures::EXTENDED_CONST);

/// What a module gets in place of `proc_exit`: the adapter's passes on only whether the code is 0.
const EXIT: (&str, &str) = ("wasi:cli/exit@0.2.12", "exit-with-code");

/// The world of modules, for the encoder.
const WORLD: &str = "
    package taskcell:adapt;
    world module { import wasi:cli/exit@0.2.12; }
    package wasi:cli@0.2.12 {
        interface exit {
            exit: func(status: result);
            exit-with-code: func(status-code: u8);
        }
    }
";

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
    // First of all: the encoder is made for what compilers put out, and need not stand anything else.
    precheck::check(bytes, precheck::Bounds::NONE)?;
    let component = encode(prepared(bytes)?).context("the module cannot be made a component")?;
    Ok(Cow::Owned(component))
}

/// What the adapter is: another makes another component of the same module.
pub(super) fn adapter() -> &'static [u8] {
    ADAPTER
}

/// Everything that is wrong with a module of these types: that it is not a command, or wants more than the adapter
/// has.
pub(super) fn faults(bytes: &[u8], types: TypesRef<'_>) -> anyhow::Result<Vec<String>> {
    let offered = functions_of_adapter()?;
    let mut faults = Vec::new();
    let mut refused: usize = 0;
    let (mut start, mut has_memory) = (None, false);
    for payload in Parser::new(0).parse_all(bytes) {
        match payload? {
            Payload::ImportSection(imports) => {
                for import in imports.into_imports() {
                    let import = import?;
                    let offered = offered.get(import.name).filter(|_| import.module == WASI);
                    // Also of the very type: the encoder panics where one function is imported with two.
                    let fits = match (offered, import.ty) {
                        (Some(offered), TypeRef::Func(ty)) => {
                            types[types.core_type_at_in_module(ty)].unwrap_func() == offered
                        }
                        _ => false,
                    };
                    refused += usize::from(!fits);
                    if !fits && refused <= NAMED {
                        let (module, name) = (shown(import.module), shown(import.name));
                        let why = if offered.is_some() { " (of that type)" } else { "" };
                        faults.push(format!("it imports {module}.{name}{why}, which is not in WASI 0.1"));
                    }
                }
            }
            Payload::ExportSection(exports) => {
                for export in exports {
                    let export = export?;
                    if export.name == "_start" && export.kind == ExternalKind::Func {
                        start = Some(types[types.core_function_at(export.index)].unwrap_func());
                    }
                    has_memory |= export.name == "memory" && export.kind == ExternalKind::Memory;
                }
            }
            // Types of a component: it is more than a command, and whoever has the types can make it one.
            Payload::CustomSection(section) if section.name().starts_with("component-type") => {
                return Ok(vec!["the module is one half of a component: make the whole of it first".to_owned()]);
            }
            _ => {}
        }
    }
    if refused > NAMED {
        faults.push(format!("and {} more", refused - NAMED));
    }
    match start {
        Some(ty) if ty.params().is_empty() && ty.results().is_empty() => {}
        Some(_) => faults.push("the module is no command: its function _start takes or returns something".to_owned()),
        None => faults.push("the module is no command: it exports no function _start".to_owned()),
    }
    if !has_memory {
        faults.push("the module is no command: it exports no memory of the name memory".to_owned());
    }
    Ok(faults)
}

/// What the adapter offers: the functions of WASI 0.1, and some of its own that harm nobody but their caller.
fn functions_of_adapter() -> anyhow::Result<HashMap<&'static str, FuncType>> {
    let types = Validator::new_with_features(FEATURES).validate_all(ADAPTER)?;
    let types = types.as_ref();
    let mut functions = HashMap::new();
    for payload in Parser::new(0).parse_all(ADAPTER) {
        if let Payload::ExportSection(exports) = payload? {
            for export in exports {
                let export = export?;
                if export.kind == ExternalKind::Func {
                    let ty = types[types.core_function_at(export.index)].unwrap_func();
                    functions.insert(export.name, ty.clone());
                }
            }
        }
    }
    Ok(functions)
}

/// The module as the encoder gets it: with [`EXIT`], and of its custom sections only the names for
/// backtraces.
fn prepared(bytes: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut module = Module::new();
    for payload in Parser::new(0).parse_all(bytes) {
        match payload? {
            Payload::ImportSection(imports) => {
                let mut section = ImportSection::new();
                for import in imports.into_imports() {
                    let import = import?;
                    let TypeRef::Func(ty) = import.ty else { bail!("the module imports what is no function") };
                    let (from, name) = if import.name == "proc_exit" { EXIT } else { (import.module, import.name) };
                    section.import(from, name, EntityType::Function(ty));
                }
                module.section(&section);
            }
            Payload::CustomSection(section) if !has_sound_names(&section) => {}
            payload => {
                if let Some((id, range)) = payload.as_section() {
                    module.section(&RawSection { id, data: &bytes[range] });
                }
            }
        }
    }
    Ok(module.finish())
}

/// Whether it is the custom section with names, and can be read. It may be broken in a module that is valid
/// (WebAssembly core specification, appendix A.4.1).
fn has_sound_names(section: &CustomSectionReader<'_>) -> bool {
    let KnownCustom::Name(mut names) = section.as_known() else { return false };
    fn all(names: NameMap<'_>) -> bool {
        names.into_iter().all(|name| name.is_ok())
    }
    names.all(|names| match names {
        Err(_) => false,
        Ok(Name::Local(inside) | Name::Label(inside) | Name::Field(inside)) => {
            inside.into_iter().all(|inside| inside.is_ok_and(|inside| all(inside.names)))
        }
        Ok(
            Name::Function(names)
            | Name::Type(names)
            | Name::Table(names)
            | Name::Memory(names)
            | Name::Global(names)
            | Name::Element(names)
            | Name::Data(names)
            | Name::Tag(names),
        ) => all(names),
        Ok(Name::Module { .. } | Name::Unknown { .. }) => true,
    })
}

fn encode(mut module: Vec<u8>) -> anyhow::Result<Vec<u8>> {
    let mut resolve = Resolve::default();
    let package = resolve.push_str("module.wit", WORLD)?;
    let world = resolve.select_world(&[package], None)?;
    wit_component::embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8)?;
    ComponentEncoder::default().module(&module)?.adapter(WASI, ADAPTER)?.encode()
}

fn shown(name: &str) -> String {
    let cut: String = name.chars().take(NAME_CHARS).collect();
    cut.escape_debug().to_string()
}
