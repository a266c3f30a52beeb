//! Components that export one function of their own: its parameters are the members of a JSON object, its result
//! is JSON. The mapping is in README.md, type by type.

mod expected;
mod from_json;
pub(super) mod precheck;
mod schema;
mod signature;
#[cfg(test)]
mod tests;
mod to_json;

use anyhow::Context;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use wasmtime::component::types::{ComponentFunc, ComponentItem};
use wasmtime::component::{Component, ComponentExportIndex, InstancePre, Val};
use wasmtime::{Engine, Store};

use super::outcome::Failure;
use crate::host::Host;
use crate::host::task_world::taskcell::task::types::Retry;
use crate::limits::Limits;
use crate::pointer::Fault;
use crate::task::ErrorKind;
use signature::{Returns, Signature, Type};
use to_json::Unwritable;

/// An error of a function is told of with at most so many bytes.
const MESSAGE_BYTES: u64 = 64 << 10;

/// What the function gave is no output.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub(super) struct BadOutput {
    /// What kind of failure that is.
    pub(super) kind: ErrorKind,
    /// Why.
    pub(super) message: String,
}

/// The function that a component is called by: what it takes and gives.
#[derive(Debug, Serialize, Deserialize)]
pub struct Function {
    signature: Signature,
    /// JSON Schema of the input.
    pub input_schema: Box<RawValue>,
    /// JSON Schema of the output.
    pub output_schema: Box<RawValue>,
}

/// Where that function is in a component, which is linked.
pub(super) struct FunctionPre {
    pre: InstancePre<Host>,
    index: ComponentExportIndex,
}

impl Function {
    /// The one function that a component exports.
    pub(super) fn of(
        engine: &Engine,
        component: &Component,
        pre: InstancePre<Host>,
    ) -> anyhow::Result<(Function, FunctionPre)> {
        let (name, function, index) = only_function(engine, component)?;
        let signature = Signature::of(&function).with_context(|| format!("its function {name}"))?;
        let schema = |schema| serde_json::value::to_raw_value(&schema);
        let function = Function {
            input_schema: schema(schema::of_input(&signature))?,
            output_schema: schema(schema::of_output(&signature))?,
            signature,
        };
        Ok((function, FunctionPre { pre, index }))
    }

    /// What is wrong with an input. As arguments it may take `memory` bytes.
    pub fn check(&self, input: &str, memory: u64) -> Result<(), Vec<Fault>> {
        from_json::read(&self.signature.params, input, memory).map(|_| ())
    }

    /// Calls the function in a store of its own.
    pub(super) async fn call(
        &self,
        FunctionPre { pre, index }: &FunctionPre,
        store: &mut Store<Host>,
        input: &str,
        limits: &Limits,
    ) -> wasmtime::Result<Result<String, Failure>> {
        // It was checked when the task was created, but limits can change, and schedules' types.
        let arguments = match from_json::read(&self.signature.params, input, store.data().memory_left()) {
            Ok(arguments) => arguments,
            Err(faults) => {
                let faults = faults.iter().map(|fault| format!("#{}: {}", fault.pointer, fault.detail));
                let faults = faults.collect::<Vec<_>>().join("; ");
                return Ok(Err(Failure::Permanent(format!("the input does not fit: {faults}"))));
            }
        };
        let _held = store.data().hold(arguments.bytes)?;
        let instance = pre.instantiate_async(&mut *store).await?;
        let function = instance.get_func(&mut *store, index);
        let function = function.ok_or_else(|| wasmtime::format_err!("the function is gone"))?;
        let mut results = match self.signature.returns {
            Returns::Nothing => Vec::new(),
            Returns::Value(_) | Returns::Result(..) => vec![Val::Bool(false)],
        };
        function.call_async(&mut *store, &arguments.values, &mut results).await?;
        drop(arguments);
        Ok(output(&self.signature.returns, results.first(), limits)?)
    }
}

/// The function that a component exports: by itself, or as the only one of the only interface that has any.
fn only_function(
    engine: &Engine,
    component: &Component,
) -> anyhow::Result<(String, ComponentFunc, ComponentExportIndex)> {
    let (mut functions, mut inside) = (Vec::new(), Vec::new());
    for (name, item) in component.component_type().exports(engine) {
        match item.ty {
            ComponentItem::ComponentFunc(function) => functions.push((None, name.to_owned(), function)),
            ComponentItem::ComponentInstance(interface) if precheck::is_own(name) => {
                for (function, item) in interface.exports(engine) {
                    if let ComponentItem::ComponentFunc(ty) = item.ty {
                        inside.push((Some(name.to_owned()), function.to_owned(), ty));
                    }
                }
            }
            _ => {}
        }
    }
    let mut found = if functions.is_empty() { inside } else { functions };
    let names = found.iter().map(|(interface, name, _)| precheck::full_name(interface.as_deref(), name));
    let names: Vec<String> = names.collect();
    let (Some((interface, name, function)), true) = (found.pop(), found.is_empty()) else {
        anyhow::bail!("{}", precheck::not_one(&names));
    };
    let interface =
        interface.map(|name| component.get_export_index(None, &*name).context("it has gone")).transpose()?;
    let index = component.get_export_index(interface.as_ref(), &*name).context("it has gone")?;
    Ok((name, function, index))
}

/// What came of a function that returned.
fn output(returns: &Returns, result: Option<&Val>, limits: &Limits) -> Result<Result<String, Failure>, BadOutput> {
    let json = |ty: Option<&Type>, value: Option<&Val>| match ty.zip(value) {
        None => Ok("null".to_owned()),
        Some((ty, value)) => to_json::write(ty, value, limits.output_bytes).map_err(|why| bad_output(why, limits)),
    };
    match (returns, result) {
        (Returns::Value(ty), value) => Ok(Ok(json(Some(ty), value)?)),
        (Returns::Result(ok, _), Some(Val::Result(Ok(value)))) => Ok(Ok(json(ok.as_ref(), value.as_deref())?)),
        (Returns::Result(_, err), Some(Val::Result(Err(value)))) => {
            Ok(Err(failure(err.as_ref().zip(value.as_deref()))))
        }
        (Returns::Nothing | Returns::Result(..), _) => Ok(Ok("null".to_owned())),
    }
}

fn bad_output(why: Unwritable, limits: &Limits) -> BadOutput {
    match why {
        Unwritable::TooLarge => BadOutput {
            kind: ErrorKind::OutputTooLarge,
            message: format!("the output has more bytes than the limit of {}", limits.output_bytes),
        },
        Unwritable::NoJson(why) => {
            BadOutput { kind: ErrorKind::InvalidOutput, message: format!("the output cannot be JSON: {why}") }
        }
    }
}

/// What an error means: permanent, where its type is not that of `taskcell:task/types.failure`.
fn failure(error: Option<(&Type, &Val)>) -> Failure {
    let Some((ty, value)) = error else { return Failure::Permanent("it returned an error".to_owned()) };
    match value {
        Val::String(message) => Failure::Permanent(message.clone()),
        Val::Variant(_, Some(value)) if ty.is_failure() => match &**value {
            Val::Record(fields) => {
                let after_ms = fields.iter().find_map(|(_, value)| match value {
                    Val::Option(Some(after)) => {
                        if let Val::U32(ms) = **after {
                            Some(ms)
                        } else {
                            None
                        }
                    }
                    _ => None,
                });
                let message = fields.iter().find_map(|(_, value)| match value {
                    Val::String(message) => Some(message.clone()),
                    _ => None,
                });
                Failure::Transient(Retry { message: message.unwrap_or_default(), after_ms })
            }
            Val::String(message) => Failure::Permanent(message.clone()),
            _ => Failure::Permanent(String::new()),
        },
        _ => Failure::Permanent(match to_json::write(ty, value, MESSAGE_BYTES) {
            Ok(text) => text,
            Err(Unwritable::TooLarge) => "an error too large to be told".to_owned(),
            Err(Unwritable::NoJson(why)) => format!("an error that cannot be told: {why}"),
        }),
    }
}
