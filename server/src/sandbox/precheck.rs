//! What a component is refused for before it is compiled. All of it is told from the bytes, in one pass.
//!
//! The pass costs more than the bytes let expect: types refer to each other, so that in two kilobytes of them are
//! millions. So it is made in a process apart (`apart.rs`).

use std::fmt;
use std::time::Duration;

use wasmparser::types::Types;
use wasmparser::{
    CanonicalFunction, ElementItems, FuncToValidate, FuncValidatorAllocations, FunctionBody, MemorySectionReader,
    MemoryType, Parser, Payload, ValidPayload, Validator, ValidatorResources, WasmFeatures,
};

use super::{adapt, apart, linking, offered, one_line};

/// The largest function, in bytes of code. Compilers take more than linear time and memory for one; the largest
/// seen in real programs has 427 KB (CPython's).
const MOST_BODY: u64 = 512 << 10;

/// Most locals of a function. Real programs have some hundreds.
const MOST_LOCALS: u64 = 2_000;

/// Most of the product of both, which is what compiling costs grow with.
const MOST_BODY_TIMES_LOCALS: u64 = 160 << 20;

/// Most functions, core modules and components inside, in all.
const MOST_FUNCTIONS: u64 = 200_000;
const MOST_MODULES: u64 = 200;
const MOST_COMPONENTS: u64 = 200;

/// Most sections of all of them, and most types in those. CPython's component has some hundreds of sections, and some
/// thousands of types.
const MOST_SECTIONS: u64 = 100_000;
const MOST_TYPES: u64 = 100_000;

/// Most functions that the tables of all of them are filled with. Compilers take two kilobytes of memory for each;
/// CPython's component has some thousands.
const MOST_ELEMENTS: u64 = 200_000;

/// How deep components may lie inside of each other.
const MOST_DEPTH: u64 = 16;

/// Most things that a component imports, and exports, and the most bytes of all their names.
const MOST_NAMES: usize = 1_000;
const MOST_NAME_BYTES: usize = 64 << 10;

/// The size of a page of memory, as a power of two.
const PAGE_LOG2: u32 = 16;

/// How many instructions are looked at between two looks at the clock.
const CLOCK_EVERY: u32 = 1_000;

/// How far a component is looked at, and for what server.
#[derive(Clone, Copy)]
pub(super) struct Bounds {
    /// Functions are looked into until this process has used so much CPU time; `None`: all are.
    pub(super) bodies_until: Option<Duration>,
    /// The most memory that a task can have.
    pub(super) task_memory_bytes: u64,
}

impl Bounds {
    /// There are none.
    pub(super) const NONE: Bounds = Bounds { bodies_until: None, task_memory_bytes: u64::MAX };
}

/// Everything that is wrong with a component.
#[derive(Debug)]
pub struct Faults(pub Vec<String>);

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("; "))
    }
}

impl std::error::Error for Faults {}

impl From<wasmparser::BinaryReaderError> for Faults {
    fn from(error: wasmparser::BinaryReaderError) -> Faults {
        Faults(vec![format!("it is no valid WebAssembly that is taken here: {error}")])
    }
}

fn fault(what: impl Into<String>) -> Faults {
    Faults(vec![what.into()])
}

/// What the engine takes: `engine.rs` switches off the same.
fn features() -> WasmFeatures {
    WasmFeatures::default()
        .difference(WasmFeatures::THREADS)
        .difference(WasmFeatures::GC)
        .difference(WasmFeatures::FUNCTION_REFERENCES)
        .difference(WasmFeatures::EXCEPTIONS)
        .difference(WasmFeatures::LEGACY_EXCEPTIONS)
        .difference(WasmFeatures::RELAXED_SIMD)
        .difference(WasmFeatures::MEMORY64)
        .difference(WasmFeatures::TAIL_CALL)
}

/// Refuses bytes that are neither a component nor a WASI 0.1 program, one that uses what no task needs or what
/// costs a compiler too much, one that imports what is not offered here, and one that is no task.
pub(super) fn check(bytes: &[u8], bounds: Bounds) -> Result<(), Faults> {
    check_all(bytes, bounds).map_err(|Faults(faults)| Faults(faults.iter().map(|fault| one_line(fault)).collect()))
}

fn check_all(bytes: &[u8], bounds: Bounds) -> Result<(), Faults> {
    // The parser's own words for it take sixteen lines.
    if !bytes.starts_with(b"\0asm") {
        return Err(fault("it is no valid WebAssembly: it does not begin with the bytes 00 61 73 6d"));
    }
    let faults = if Parser::is_core_wasm(bytes) {
        let (types, Names { mut faults, .. }) = look(bytes, adapt::FEATURES, bounds)?;
        faults.extend(adapt::faults(bytes, types.as_ref()).map_err(|error| fault(format!("{error:#}")))?);
        faults
    } else {
        let (types, names) = look(bytes, features(), bounds)?;
        let mut faults = offered::faults(&types, &names.imports, &names.exports);
        faults.extend(names.faults);
        match linking::faults(bytes) {
            Ok(more) => faults.extend(more),
            Err(error) if faults.is_empty() => return Err(fault(format!("{error:#}"))),
            // It cannot be linked for something that is told of already.
            Err(_) => {}
        }
        faults.truncate(offered::MOST_FAULTS);
        faults
    };
    if faults.is_empty() { Ok(()) } else { Err(Faults(faults)) }
}

/// The pass over the bytes: the types of what is in them, and what it imports and exports.
fn look(bytes: &[u8], features: WasmFeatures, bounds: Bounds) -> Result<(Types, Names), Faults> {
    let mut validator = Validator::new_with_features(features);
    let mut bodies =
        Bodies { allocations: FuncValidatorAllocations::default(), until: bounds.bodies_until, instructions: 0 };
    let mut names = Names::default();
    let mut counts = Counts::default();
    for payload in Parser::new(0).parse_all(bytes) {
        let payload = payload?;
        counts.add(&payload)?;
        names.add(&payload, counts.depth)?;
        if let Payload::MemorySection(memories) = &payload {
            names.faults.extend(faults_of_memories(memories, bounds.task_memory_bytes)?);
        }
        if let Payload::ComponentCanonicalSection(functions) = &payload {
            for function in functions.clone() {
                if let Some(name) = refused(&function?) {
                    return Err(fault(format!("it uses the built-in {name}, which tasks may not use")));
                }
            }
        }
        match validator.payload(&payload)? {
            ValidPayload::Func(function, body) => {
                check_body(&body)?;
                bodies.look_into(function, &body)?;
            }
            ValidPayload::End(types) if counts.ended => return Ok((types, names)),
            ValidPayload::Ok | ValidPayload::Parser(_) | ValidPayload::End(_) => {}
        }
    }
    Err(fault("it ends too early"))
}

/// How much of everything there is.
#[derive(Default)]
struct Counts {
    functions: u64,
    modules: u64,
    components: u64,
    sections: u64,
    types: u64,
    elements: u64,
    /// Components and modules that are open.
    depth: u64,
    /// The last of them has ended.
    ended: bool,
}

impl Counts {
    fn add(&mut self, payload: &Payload<'_>) -> Result<(), Faults> {
        match payload {
            Payload::Version { .. } => self.depth += 1,
            Payload::End(_) => {
                self.depth = self.depth.saturating_sub(1);
                self.ended = self.depth == 0;
            }
            Payload::ModuleSection { .. } => self.modules += 1,
            Payload::ComponentSection { .. } => self.components += 1,
            Payload::CodeSectionStart { count, .. } => self.functions += u64::from(*count),
            Payload::TypeSection(types) => self.types += u64::from(types.count()),
            Payload::CoreTypeSection(types) => self.types += u64::from(types.count()),
            Payload::ComponentTypeSection(types) => self.types += u64::from(types.count()),
            Payload::ElementSection(segments) => {
                for segment in segments.clone() {
                    self.elements += u64::from(match segment?.items {
                        ElementItems::Functions(items) => items.count(),
                        ElementItems::Expressions(_, items) => items.count(),
                    });
                }
            }
            _ => {}
        }
        self.sections += u64::from(payload.as_section().is_some());
        let bounds = [
            ("functions", self.functions, MOST_FUNCTIONS),
            ("core modules", self.modules, MOST_MODULES),
            ("components", self.components, MOST_COMPONENTS),
            ("components inside of each other", self.depth, MOST_DEPTH),
            ("sections", self.sections, MOST_SECTIONS),
            ("types", self.types, MOST_TYPES),
            ("elements of tables", self.elements, MOST_ELEMENTS),
        ];
        match bounds.into_iter().find(|(_, found, most)| found > most) {
            Some((what, _, most)) => Err(fault(format!("it has more than {most} {what}"))),
            None => Ok(()),
        }
    }
}

/// What the outermost component imports and exports, and what is wrong that the parser does not mind.
#[derive(Default)]
struct Names {
    imports: Vec<String>,
    exports: Vec<String>,
    bytes: usize,
    faults: Vec<String>,
}

impl Names {
    fn add(&mut self, payload: &Payload<'_>, depth: u64) -> Result<(), Faults> {
        if depth != 1 {
            return Ok(());
        }
        match payload {
            Payload::ComponentImportSection(imports) => {
                for import in imports.clone() {
                    let name = self.room_for(import?.name.name)?;
                    self.imports.push(name);
                }
            }
            Payload::ComponentExportSection(exports) => {
                for export in exports.clone() {
                    let name = self.room_for(export?.name.name)?;
                    self.exports.push(name);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// A name more, where there is room for it.
    fn room_for(&mut self, name: &str) -> Result<String, Faults> {
        self.bytes += name.len();
        if self.bytes > MOST_NAME_BYTES {
            return Err(fault(format!("what it imports and exports has names of more than {MOST_NAME_BYTES} bytes")));
        }
        if self.imports.len().max(self.exports.len()) >= MOST_NAMES {
            return Err(fault(format!("it imports or exports more than {MOST_NAMES} things")));
        }
        Ok(name.to_owned())
    }
}

fn faults_of_memories(memories: &MemorySectionReader<'_>, most: u64) -> Result<Vec<String>, Faults> {
    let mut faults = Vec::new();
    for memory in memories.clone() {
        let MemoryType { initial, page_size_log2, .. } = memory?;
        let bytes = initial.saturating_mul(1 << page_size_log2.unwrap_or(PAGE_LOG2).min(PAGE_LOG2));
        if bytes > most {
            faults.push(format!("a memory of it has at least {bytes} bytes, and no task has more than {most} here"));
        }
    }
    Ok(faults)
}

fn check_body(body: &FunctionBody<'_>) -> Result<(), Faults> {
    let size = body.range().len() as u64;
    if size > MOST_BODY {
        return Err(fault(format!("a function has {size} bytes of code, more than {MOST_BODY}")));
    }
    let mut locals: u64 = 0;
    for group in body.get_locals_reader()? {
        locals += u64::from(group?.0);
    }
    if locals > MOST_LOCALS {
        return Err(fault(format!("a function has {locals} locals, more than {MOST_LOCALS}")));
    }
    if size * locals > MOST_BODY_TIMES_LOCALS {
        return Err(fault(format!("a function has {size} bytes of code and {locals} locals, too much of both")));
    }
    Ok(())
}

/// Looks into functions, for as long as it may.
struct Bodies {
    allocations: FuncValidatorAllocations,
    /// When, by the CPU time of this process, it is enough; `None`: never.
    until: Option<Duration>,
    instructions: u32,
}

impl Bodies {
    fn look_into(
        &mut self,
        function: FuncToValidate<ValidatorResources>,
        body: &FunctionBody<'_>,
    ) -> Result<(), Faults> {
        if self.until == Some(Duration::ZERO) {
            return Ok(());
        }
        let mut function = function.into_validator(std::mem::take(&mut self.allocations));
        let mut reader = body.get_binary_reader();
        function.read_locals(&mut reader)?;
        reader.set_features(*function.features());
        while !reader.eof() {
            self.instructions = self.instructions.wrapping_add(1);
            if self.instructions.is_multiple_of(CLOCK_EVERY)
                && self.until.is_some_and(|until| apart::cpu_time() >= until)
            {
                self.until = Some(Duration::ZERO);
                return Ok(());
            }
            reader.visit_operator(&mut function.visitor(reader.original_position()))??;
        }
        reader.finish_expression(&function.visitor(reader.original_position()))?;
        self.allocations = function.into_allocations();
        Ok(())
    }
}

/// The name of a built-in that is refused. Streams, futures and the like are open to
/// GHSA-xrvr-8678-5wp8 in 48.0.8, and nothing in `wit/` has any. All are written out, so that one that a
/// later version adds is decided upon before this compiles again.
fn refused(function: &CanonicalFunction) -> Option<&'static str> {
    use CanonicalFunction as F;
    Some(match function {
        F::Lift { .. }
        | F::Lower { .. }
        | F::ResourceNew { .. }
        | F::ResourceDrop { .. }
        | F::ResourceRep { .. }
        | F::TaskReturn { .. }
        | F::TaskCancel
        | F::ContextGet { .. }
        | F::ContextSet { .. }
        | F::SubtaskDrop
        | F::SubtaskCancel { .. }
        | F::WaitableSetNew
        | F::WaitableSetWait { .. }
        | F::WaitableSetPoll { .. }
        | F::WaitableSetDrop
        | F::WaitableJoin => return None,
        F::StreamNew { .. } => "stream.new",
        F::StreamRead { .. } => "stream.read",
        F::StreamWrite { .. } => "stream.write",
        F::StreamCancelRead { .. } => "stream.cancel-read",
        F::StreamCancelWrite { .. } => "stream.cancel-write",
        F::StreamDropReadable { .. } => "stream.drop-readable",
        F::StreamDropWritable { .. } => "stream.drop-writable",
        F::FutureNew { .. } => "future.new",
        F::FutureRead { .. } => "future.read",
        F::FutureWrite { .. } => "future.write",
        F::FutureCancelRead { .. } => "future.cancel-read",
        F::FutureCancelWrite { .. } => "future.cancel-write",
        F::FutureDropReadable { .. } => "future.drop-readable",
        F::FutureDropWritable { .. } => "future.drop-writable",
        F::ErrorContextNew { .. } => "error-context.new",
        F::ErrorContextDebugMessage { .. } => "error-context.debug-message",
        F::ErrorContextDrop => "error-context.drop",
        F::BackpressureInc => "backpressure.inc",
        F::BackpressureDec => "backpressure.dec",
        F::ThreadSpawnRef { .. } => "thread.spawn-ref",
        F::ThreadSpawnIndirect { .. } => "thread.spawn-indirect",
        F::ThreadAvailableParallelism => "thread.available-parallelism",
        F::ThreadIndex => "thread.index",
        F::ThreadNewIndirect { .. } => "thread.new-indirect",
        F::ThreadResumeLater => "thread.resume-later",
        F::ThreadSuspend { .. } => "thread.suspend",
        F::ThreadSuspendThenResume { .. } => "thread.suspend-then-resume",
        F::ThreadSuspendThenPromote { .. } => "thread.suspend-then-promote",
        F::ThreadYield { .. } => "thread.yield",
        F::ThreadYieldThenResume { .. } => "thread.yield-then-resume",
        F::ThreadYieldThenPromote { .. } => "thread.yield-then-promote",
    })
}
