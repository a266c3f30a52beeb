//! What is offered to components, by name, and what a component has to be.
//!
//! The names are compared here, so that every mismatch can be told at once and before anything is compiled.
//! Whether the types of what it imports fit is looked at in `linking.rs`.

use std::collections::HashMap;
use std::sync::LazyLock;

use wasmparser::component_types::{
    ComponentAnyTypeId, ComponentDefinedType, ComponentEntityType, ComponentFuncTypeId, ComponentInstanceType,
    ComponentValType,
};
use wasmparser::types::{Types, TypesRef};

use super::typed;

/// Every interface that can be imported, each with its functions on the lines after it.
const OFFERED: &str = include_str!("offered.txt");

/// An interface that can be imported: its whole name, and its functions.
type Interface = (&'static str, Vec<&'static str>);

/// By package and name, without the last part of the version: 0.2.12 offers all that 0.2.0 has.
static INTERFACES: LazyLock<HashMap<&str, Interface>> = LazyLock::new(|| {
    let mut interfaces = HashMap::new();
    let mut functions = Vec::new();
    for line in OFFERED.lines().rev() {
        match line.strip_prefix("  ") {
            Some(function) => functions.push(function),
            None => {
                interfaces.insert(compatible(line), (line, std::mem::take(&mut functions)));
            }
        }
    }
    interfaces
});

/// A name as far as versions of it are compatible (Semantic Versioning 2.0.0, sections 4, 7 and 8).
fn compatible(name: &str) -> &str {
    let Some((_, version)) = name.split_once('@') else { return name };
    let same = match version.strip_prefix("0.") {
        Some(rest) => 2 + rest.find(['.', '-', '+']).unwrap_or(rest.len()),
        None => version.find(['.', '-', '+']).unwrap_or(version.len()),
    };
    // What comes before a release is compatible with nothing else.
    if version.contains('-') { name } else { &name[..name.len() - version.len() + same] }
}

fn has_plain_types_only(instance: &ComponentInstanceType) -> bool {
    let is_plain = |ty: &ComponentEntityType| matches!(ty, ComponentEntityType::Type { created, .. } if !matches!(created, ComponentAnyTypeId::Resource(_)));
    !instance.exports.is_empty() && instance.exports.values().all(|item| is_plain(&item.ty))
}

/// What is offered of an interface that is imported by that name.
pub(super) fn interface(name: &str) -> Option<(&'static str, &'static [&'static str])> {
    INTERFACES.get(compatible(name)).map(|(name, functions)| (*name, functions.as_slice()))
}

/// The interface that a command exports.
const RUN: &str = "wasi:cli/run@0.2";

/// How many faults are told.
pub(super) const MOST_FAULTS: usize = 100;

/// Whether what is exported by that name is `wasi:cli/run`.
fn is_command(types: TypesRef<'_>, export: &str) -> bool {
    let Some(ComponentEntityType::Instance(id)) = types.component_item_for_export(export).map(|item| item.ty) else {
        return false;
    };
    types[id].exports.get("run").is_some_and(|item| match item.ty {
        ComponentEntityType::Func(id) => takes_nothing_and_tells_whether_it_worked(types, id),
        _ => false,
    })
}

fn takes_nothing_and_tells_whether_it_worked(types: TypesRef<'_>, function: ComponentFuncTypeId) -> bool {
    let function = &types[function];
    let Some(ComponentValType::Type(result)) = function.result else { return false };
    let is_plain = matches!(types[result], ComponentDefinedType::Result { ok: None, err: None, .. });
    is_plain && !function.async_ && function.params.is_empty()
}

/// Everything that a component imports and is not offered, and what it lacks to be a task.
pub(super) fn faults(types: &Types, imports: &[String], exports: &[String]) -> Vec<String> {
    let types = types.as_ref();
    let mut faults = Vec::new();
    for name in imports {
        let Some(item) = types.component_item_for_import(name) else { continue };
        match item.ty {
            ComponentEntityType::Instance(id) => match INTERFACES.get(compatible(name)) {
                // Where there are only types in it, as of what it exports, nothing has to be offered.
                None if has_plain_types_only(&types[id]) => {}
                None => faults.push(format!("it imports {name}, which is not offered here")),
                Some((_, offered)) => {
                    for (function, item) in &types[id].exports {
                        if matches!(item.ty, ComponentEntityType::Func(_)) && !offered.contains(&function.as_str()) {
                            faults.push(format!("it imports {function} of {name}, which is not offered here"));
                        }
                    }
                }
            },
            // Types of what it exports may be imported by themselves.
            ComponentEntityType::Type { .. } => {}
            _ => faults.push(format!("it imports {name}, which is not offered here")),
        }
    }
    for name in exports {
        if let Some(ComponentEntityType::Component(_)) = types.component_item_for_export(name).map(|item| item.ty) {
            faults.push(format!("it exports {name}, which is a component"));
        }
    }
    // Where there is `run` of a world as well, the component is called by that.
    let is_task = typed::precheck::is_run_of_a_world(types);
    let mut commands = exports.iter().filter(|name| !is_task && compatible(name) == RUN).peekable();
    match commands.peek() {
        None => faults.extend(typed::precheck::faults(types, exports)),
        Some(_) => faults.extend(commands.filter(|name| !is_command(types, name)).map(|name| {
            format!("it exports {name}, but not as a command does: with a function run that takes nothing and returns a result without values")
        })),
    }
    faults.truncate(MOST_FAULTS);
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        for (name, expected) in [
            ("wasi:io/poll@0.2.0", "wasi:io/poll@0.2"),
            ("wasi:io/poll@0.2.12", "wasi:io/poll@0.2"),
            ("wasi:io/poll@0.3.0", "wasi:io/poll@0.3"),
            ("a:b/c@1.2.3", "a:b/c@1"),
            ("a:b/c@0.2.0-rc.1", "a:b/c@0.2.0-rc.1"),
            ("a:b/c", "a:b/c"),
        ] {
            assert_eq!(compatible(name), expected);
        }
    }

    /// Whatever is listed is in the linker: there it cannot be put a second time.
    #[test]
    fn what_is_listed_is_offered() {
        let engine = wasmtime::Engine::new(wasmtime::Config::new().wasm_component_model_async(true)).unwrap();
        let mut linker = wasmtime::component::Linker::new(&engine);
        crate::host::add_to_linker(&mut linker).unwrap();
        let mut interface = "";
        let mut functions = 0;
        for line in OFFERED.lines() {
            match line.strip_prefix("  ") {
                None => interface = line,
                Some(function) => {
                    functions += 1;
                    let mut instance = linker.instance(interface).unwrap();
                    let put = instance.func_new(function, |_, _, _, _| Ok(()));
                    assert!(put.is_err(), "{function} of {interface} is not offered");
                }
            }
        }
        assert!(functions > 100);
    }
}
