//! What a component is refused for before it is compiled.

use anyhow::bail;
use wasmparser::{CanonicalFunction, Parser, Payload};

/// Refuses a component that uses what no task needs and what is not safe in this engine. Components
/// inside of it are looked at, too.
pub(super) fn check(bytes: &[u8]) -> anyhow::Result<()> {
    for payload in Parser::new(0).parse_all(bytes) {
        if let Payload::ComponentCanonicalSection(functions) = payload? {
            for function in functions {
                if let Some(name) = refused(&function?) {
                    bail!("the component uses the built-in {name}, which tasks may not use");
                }
            }
        }
    }
    Ok(())
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
