//! What is told of a component's own function before it is compiled.

use wasmparser::PrimitiveValType;
use wasmparser::component_types::{
    ComponentDefinedType, ComponentDefinedTypeId, ComponentEntityType, ComponentFuncTypeId, ComponentValType,
};
use wasmparser::types::TypesRef;

use super::signature::{MOST_DEPTH, MOST_NAME_BYTES, MOST_PARTS};

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
            unmapped(types, *id).into_iter().map(|what| format!("its function {name} has {what}")).collect()
        }
        _ if found.iter().any(|(name, id)| name == "run" && is_of_a_world(types, *id)) => Vec::new(),
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

/// Whether a component exports `run` of a world.
pub(in crate::sandbox) fn is_run_of_a_world(types: TypesRef<'_>) -> bool {
    match types.component_item_for_export("run").map(|item| item.ty) {
        Some(ComponentEntityType::Func(id)) => is_of_a_world(types, id),
        _ => false,
    }
}

/// Whether a function takes and gives what `run` of both worlds does.
fn is_of_a_world(types: TypesRef<'_>, function: ComponentFuncTypeId) -> bool {
    use ComponentDefinedType as T;
    let is_text = |ty: &Option<ComponentValType>| match ty {
        Some(ComponentValType::Primitive(ty)) => *ty == PrimitiveValType::String,
        Some(ComponentValType::Type(id)) => matches!(types[*id], T::Primitive(PrimitiveValType::String)),
        None => false,
    };
    let function = &types[function];
    let [(_, input)] = &*function.params else { return false };
    let Some(ComponentValType::Type(result)) = function.result else { return false };
    let T::Result { ok, err: Some(ComponentValType::Type(failure)), .. } = &types[result] else { return false };
    let T::Variant(failure) = &types[*failure] else { return false };
    is_text(&Some(*input))
        && is_text(ok)
        && failure.cases.keys().map(|name| name.as_str()).eq(["permanent", "transient"])
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

/// What keeps a function from being called with JSON.
fn unmapped(types: TypesRef<'_>, function: ComponentFuncTypeId) -> Vec<String> {
    let function = &types[function];
    let mut walk = Walk { types, parts: 0, name_bytes: 0, is_over: false, found: Vec::new() };
    function.params.iter().for_each(|(_, ty)| walk.look_at(ty, 1));
    walk.names(function.params.iter().map(|(name, _)| name.as_str()));
    match function.result {
        Some(ComponentValType::Type(id)) if matches!(types[id], ComponentDefinedType::Result { .. }) => {
            walk.look_inside(id, 1);
        }
        result => result.iter().for_each(|ty| walk.look_at(ty, 1)),
    }
    walk.found
}

/// Counts as `signature.rs` does, which reads what the engine makes of the same types.
struct Walk<'t> {
    types: TypesRef<'t>,
    parts: usize,
    name_bytes: usize,
    /// There is too much of something: no more is looked at.
    is_over: bool,
    found: Vec<String>,
}

impl Walk<'_> {
    fn look_at(&mut self, ty: &ComponentValType, depth: usize) {
        self.count(1);
        if depth > MOST_DEPTH {
            self.over(format!("types more than {MOST_DEPTH} deep inside of each other"));
        }
        match ty {
            ComponentValType::Primitive(ty) => self.primitive(*ty),
            ComponentValType::Type(id) => self.look_inside(*id, depth + 1),
        }
    }

    /// What lies inside of a type, so deep.
    fn look_inside(&mut self, id: ComponentDefinedTypeId, depth: usize) {
        use ComponentDefinedType as T;
        if self.is_over {
            return;
        }
        let types = self.types;
        match &types[id] {
            T::Primitive(ty) => self.primitive(*ty),
            T::Record(record) => {
                record.fields.values().for_each(|ty| self.look_at(ty, depth));
                self.names(record.fields.keys().map(|name| name.as_str()));
            }
            T::Variant(variant) => {
                variant.cases.values().for_each(|case| case.ty.iter().for_each(|ty| self.look_at(ty, depth)));
                self.names(variant.cases.keys().map(|name| name.as_str()));
            }
            T::Tuple(tuple) => tuple.types.iter().for_each(|ty| self.look_at(ty, depth)),
            T::List { element, .. } => self.look_at(element, depth),
            T::Option { ty, .. } => self.look_at(ty, depth),
            T::Result { ok, err, .. } => ok.iter().chain(err).for_each(|ty| self.look_at(ty, depth)),
            T::Flags(names) | T::Enum(names) => self.names(names.iter().map(|name| name.as_str())),
            T::Own(_) | T::Borrow(_) => self.no_json("a resource"),
            T::Stream { .. } => self.no_json("a stream"),
            T::Future { .. } => self.no_json("a future"),
            T::Map { .. } => self.no_json("a map"),
            T::FixedLengthList { .. } => self.no_json("a list of fixed length"),
        }
    }

    fn primitive(&mut self, ty: PrimitiveValType) {
        if ty == PrimitiveValType::ErrorContext {
            self.no_json("an error context");
        }
    }

    fn names<'n>(&mut self, names: impl Iterator<Item = &'n str>) {
        for name in names {
            self.count(1);
            self.name_bytes += name.len();
            if self.name_bytes > MOST_NAME_BYTES {
                return self.over(format!("names of more than {MOST_NAME_BYTES} bytes"));
            }
        }
    }

    fn count(&mut self, parts: usize) {
        self.parts += parts;
        if self.parts > MOST_PARTS {
            self.over(format!("more than {MOST_PARTS} types, fields and cases"));
        }
    }

    fn over(&mut self, what: String) {
        if !self.is_over {
            self.is_over = true;
            self.found.push(what);
        }
    }

    fn no_json(&mut self, what: &str) {
        let what = format!("{what}, which JSON cannot say");
        if !self.found.contains(&what) {
            self.found.push(what);
        }
    }
}
