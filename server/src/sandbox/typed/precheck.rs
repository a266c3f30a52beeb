//! What is told of a component's own function before it is compiled.

use std::collections::HashSet;

use wasmparser::PrimitiveValType;
use wasmparser::component_types::{
    ComponentDefinedType, ComponentDefinedTypeId, ComponentEntityType, ComponentFuncTypeId, ComponentValType,
};
use wasmparser::types::TypesRef;

/// Everything that keeps a component from being called by a function of its own.
pub(in crate::sandbox) fn faults(types: TypesRef<'_>, exports: &[String]) -> Vec<String> {
    let (mut functions, mut inside) = (Vec::new(), Vec::new());
    for name in exports {
        match types.component_item_for_export(name).map(|item| item.ty) {
            Some(ComponentEntityType::Func(id)) => functions.push((full_name(None, name), id)),
            Some(ComponentEntityType::Instance(id)) if is_own(name) => {
                for (function, item) in &types[id].exports {
                    if let ComponentEntityType::Func(id) = item.ty {
                        inside.push((full_name(Some(name), function), id));
                    }
                }
            }
            _ => {}
        }
    }
    let found = if functions.is_empty() { inside } else { functions };
    match found.as_slice() {
        [(name, id)] => {
            let cannot = unmapped(types, *id).into_iter();
            cannot.map(|what| format!("its function {name} has {what}, which JSON cannot say")).collect()
        }
        // Whether that is the one of a world is known when it is linked.
        _ if found.iter().any(|(name, _)| name == "run") => Vec::new(),
        _ => vec![not_one(&found.into_iter().map(|(name, _)| name).collect::<Vec<_>>())],
    }
}

/// Whether functions of an interface are a component's own, and not what WASI wants of it.
pub(super) fn is_own(interface: &str) -> bool {
    !interface.starts_with("wasi:")
}

/// The name of a function with that of its interface.
pub(super) fn full_name(interface: Option<&str>, name: &str) -> String {
    interface.map_or_else(|| name.to_owned(), |interface| format!("{name} of {interface}"))
}

/// What to say where there is not exactly one function.
pub(super) fn not_one(names: &[String]) -> String {
    match names.len() {
        0 => "it exports no function: neither `run` of a task nor one of its own".to_owned(),
        _ => {
            format!("it exports neither `run` of a task nor exactly one function of its own, but {}", names.join(", "))
        }
    }
}

/// The kinds of types that a function takes or gives and that have no JSON.
fn unmapped(types: TypesRef<'_>, function: ComponentFuncTypeId) -> Vec<&'static str> {
    let function = &types[function];
    let mut walk = Walk { types, seen: HashSet::new(), found: Vec::new() };
    function.params.iter().for_each(|(_, ty)| walk.look_at(ty));
    function.result.iter().for_each(|ty| walk.look_at(ty));
    walk.found
}

struct Walk<'t> {
    types: TypesRef<'t>,
    seen: HashSet<ComponentDefinedTypeId>,
    found: Vec<&'static str>,
}

impl Walk<'_> {
    /// The validator bounds how deep types lie inside of each other.
    fn look_at(&mut self, ty: &ComponentValType) {
        use ComponentDefinedType as T;
        let id = match ty {
            ComponentValType::Primitive(ty) => return self.primitive(*ty),
            ComponentValType::Type(id) => *id,
        };
        if !self.seen.insert(id) {
            return;
        }
        let types = self.types;
        match &types[id] {
            T::Primitive(ty) => self.primitive(*ty),
            T::Record(record) => record.fields.values().for_each(|ty| self.look_at(ty)),
            T::Variant(variant) => {
                variant.cases.values().for_each(|case| case.ty.iter().for_each(|ty| self.look_at(ty)));
            }
            T::Tuple(tuple) => tuple.types.iter().for_each(|ty| self.look_at(ty)),
            T::List { element, .. } => self.look_at(element),
            T::Option { ty, .. } => self.look_at(ty),
            T::Result { ok, err, .. } => ok.iter().chain(err).for_each(|ty| self.look_at(ty)),
            T::Flags(_) | T::Enum(_) => {}
            T::Own(_) | T::Borrow(_) => self.found("a resource"),
            T::Stream { .. } => self.found("a stream"),
            T::Future { .. } => self.found("a future"),
            T::Map { .. } => self.found("a map"),
            T::FixedLengthList { .. } => self.found("a list of fixed length"),
        }
    }

    fn primitive(&mut self, ty: PrimitiveValType) {
        if ty == PrimitiveValType::ErrorContext {
            self.found("an error context");
        }
    }

    fn found(&mut self, what: &'static str) {
        if !self.found.contains(&what) {
            self.found.push(what);
        }
    }
}
