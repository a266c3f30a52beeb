//! Whether what a component imports has the types that are offered, before it is compiled: of its imports alone a
//! component without code is made, which is compiled in no time and linked like the whole.

use anyhow::Context;
use wasm_encoder::RawSection;
use wasmparser::{Parser, Payload};
use wasmtime::component::types::ComponentItem;
use wasmtime::component::{Component, Linker, LinkerInstance, ResourceType};

use super::{engine, offered};
use crate::host::{self, Host};

/// Everything that a component imports with other types than are offered. What is not offered at all is not
/// among it.
pub(super) fn faults(bytes: &[u8]) -> anyhow::Result<Vec<String>> {
    let Some(imports) = imports_of(bytes)? else { return Ok(Vec::new()) };
    let engine = engine::compiler()?;
    let component = Component::new(&engine, imports).map_err(anyhow::Error::from).context("its imports")?;
    let mut linker = Linker::new(&engine);
    host::add_to_linker(&mut linker)?;
    linker.allow_shadowing(true);
    let check = Check { linker, component, functions: Vec::new() };
    check.with_functions()?.faults()
}

/// The imports of a component with the types that they need; `None`: something else comes before the last of them,
/// which compilers do not put out.
fn imports_of(bytes: &[u8]) -> anyhow::Result<Option<Vec<u8>>> {
    let mut component = wasm_encoder::Component::new();
    // What only a later import may need.
    let mut before = Vec::new();
    let (mut depth, mut others) = (0_u32, false);
    for payload in Parser::new(0).parse_all(bytes) {
        let payload = payload?;
        match &payload {
            Payload::Version { .. } => {
                depth += 1;
                continue;
            }
            Payload::End(_) => {
                depth = depth.saturating_sub(1);
                continue;
            }
            _ if depth != 1 => continue,
            Payload::CustomSection(_) => continue,
            Payload::ComponentImportSection(_) if others => return Ok(None),
            Payload::ComponentImportSection(_)
            | Payload::ComponentTypeSection(_)
            | Payload::ComponentAliasSection(_) => {}
            _ => {
                others = true;
                continue;
            }
        }
        let (id, range) = payload.as_section().context("a section without a place")?;
        before.push(RawSection { id, data: bytes.get(range).context("a section that is not there")? });
        if matches!(payload, Payload::ComponentImportSection(_)) {
            for section in before.drain(..) {
                component.section(&section);
            }
        }
    }
    Ok(Some(component.finish()))
}

/// A function that a component imports and that is offered, by its name.
struct Imported {
    /// As the component names it.
    interface: String,
    /// As it is offered.
    offered: &'static str,
    function: String,
    is_async: bool,
}

struct Check {
    linker: Linker<Host>,
    component: Component,
    functions: Vec<Imported>,
}

impl Check {
    /// Goes through what is imported. What is not offered at all is put into the linker: it is told of elsewhere.
    fn with_functions(mut self) -> anyhow::Result<Check> {
        let engine = self.linker.engine().clone();
        for (interface, item) in self.component.component_type().imports(&engine) {
            let instance = match item.ty {
                ComponentItem::ComponentInstance(instance) => instance,
                ComponentItem::ComponentFunc(ty) => {
                    define(&mut self.linker.root(), interface, ty.async_())?;
                    continue;
                }
                _ => continue,
            };
            let known = offered::interface(interface);
            for (name, item) in instance.exports(&engine) {
                match (item.ty, known) {
                    (ComponentItem::ComponentFunc(ty), Some((offered, names))) if names.contains(&name) => {
                        let (interface, function) = (interface.to_owned(), name.to_owned());
                        self.functions.push(Imported { interface, offered, function, is_async: ty.async_() });
                    }
                    (ComponentItem::ComponentFunc(ty), _) => {
                        let offered = known.map_or(interface, |(offered, _)| offered);
                        define(&mut self.linker.instance(offered)?, name, ty.async_())?;
                    }
                    (ComponentItem::Resource(_), None) => {
                        let mut instance = self.linker.instance(interface)?;
                        instance.resource(name, ResourceType::host::<()>(), |_, _| Ok(()))?;
                    }
                    _ => {}
                }
            }
        }
        Ok(self)
    }

    /// By and by, as the linker tells of the first that does not fit alone.
    fn faults(&self) -> anyhow::Result<Vec<String>> {
        let mut faults = Vec::new();
        if self.fits(|_| true)? {
            return Ok(faults);
        }
        let mut interfaces: Vec<&str> = self.functions.iter().map(|of| of.interface.as_str()).collect();
        interfaces.dedup();
        for interface in interfaces {
            if self.fits(|of| of.interface == interface)? {
                continue;
            }
            for of in self.functions.iter().filter(|of| of.interface == interface) {
                if !self.fits(|other| std::ptr::eq(of, other))? {
                    let Imported { function, offered, .. } = of;
                    faults.push(format!("it imports {function} of {interface} with other types than {offered} has"));
                }
            }
        }
        // Not for a function alone: another type, or one interface that is imported twice with other types. The
        // linker names the first.
        if faults.is_empty()
            && let Err(error) = self.linker.instantiate_pre(&self.component)
        {
            faults.push(format!("it imports types that are not those that are offered here: {error:#}"));
        }
        Ok(faults)
    }

    /// Whether the imports link where only these functions are what is offered, and all else is what is wanted.
    fn fits(&self, is_offered: impl Fn(&Imported) -> bool) -> anyhow::Result<bool> {
        let mut linker = self.linker.clone();
        for of in self.functions.iter().filter(|of| !is_offered(of)) {
            define(&mut linker.instance(of.offered)?, &of.function, of.is_async)?;
        }
        Ok(linker.instantiate_pre(&self.component).is_ok())
    }
}

/// Puts a function of any type into an instance.
fn define(instance: &mut LinkerInstance<'_, Host>, name: &str, is_async: bool) -> anyhow::Result<()> {
    match is_async {
        true => instance.func_new_concurrent(name, |_, _, _, _| Box::pin(async { Ok(()) }))?,
        false => instance.func_new(name, |_, _, _, _| Ok(()))?,
    }
    Ok(())
}
