//! Compiles what clients upload: one component at a time, tenants in turn, on a thread of its own that
//! mostly waits for another process.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context;
use tokio::runtime::Handle;

use crate::sandbox::{CompileLimits, NotCompiled, Program, Sandbox, one_line};
use crate::store::Readers;
use crate::task::Digest;

/// How long to wait before a component is tried again that only the server's own trouble kept from being
/// compiled.
const TRY_AGAIN: Duration = Duration::from_secs(5);

/// What came of compiling a component: the program, or why it cannot be one.
pub type Compiled = Result<Arc<Program>, Arc<str>>;

/// Takes components to be compiled; clones are the same compiler.
#[derive(Clone, Default)]
pub struct Compiler(Arc<Shared>);

#[derive(Default)]
struct Shared {
    turns: Mutex<Turns>,
    came: Condvar,
}

impl Compiler {
    /// Has a component compiled, after what came before of the same tenant.
    pub fn compile(&self, tenant: Arc<str>, digest: Digest) {
        self.turns().add(tenant, digest);
        self.0.came.notify_one();
    }

    /// Removes the code of a component that is gone.
    pub fn forget(&self, digest: Digest) {
        self.turns().gone.push(digest);
        self.0.came.notify_one();
    }

    /// Compiles what comes, for as long as the process lives. `done` is told of each.
    pub fn start(
        &self,
        sandbox: Arc<Sandbox>,
        readers: Readers,
        runtime: Handle,
        limits: CompileLimits,
        done: impl Fn(Digest, Compiled) + Send + 'static,
    ) -> anyhow::Result<()> {
        let compiler = self.clone();
        let run = move || {
            loop {
                let (gone, next) = compiler.next();
                gone.into_iter().for_each(|digest| sandbox.forget(digest));
                let Some((tenant, digest)) = next else { continue };
                match compile(&sandbox, &readers, &runtime, digest, limits) {
                    Ok(compiled) => done(digest, compiled),
                    Err(error) => {
                        tracing::error!(%digest, error = format!("{error:#}"), "cannot compile at the moment");
                        std::thread::sleep(TRY_AGAIN);
                        compiler.compile(tenant, digest);
                    }
                }
            }
        };
        std::thread::Builder::new().name("compiler".into()).spawn(run).context("cannot start the compiler's thread")?;
        Ok(())
    }

    /// Waits for something to do: code to remove first, then a component to compile.
    fn next(&self) -> (Vec<Digest>, Option<(Arc<str>, Digest)>) {
        let mut turns = self.turns();
        loop {
            let next = (std::mem::take(&mut turns.gone), turns.next());
            if !next.0.is_empty() || next.1.is_some() {
                return next;
            }
            turns = self.0.came.wait(turns).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn turns(&self) -> MutexGuard<'_, Turns> {
        self.0.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An error is the server's own trouble, which may pass.
fn compile(
    sandbox: &Sandbox,
    readers: &Readers,
    runtime: &Handle,
    digest: Digest,
    limits: CompileLimits,
) -> anyhow::Result<Compiled> {
    // Under another name it may have been compiled already.
    if let Some(loaded) = sandbox.load(digest) {
        return Ok(loaded.map(Arc::new).map_err(|error| one_line(&format!("{error:#}")).into()));
    }
    let Some(bytes) = runtime.block_on(readers.component(digest))? else {
        return Ok(Err("it was removed".into()));
    };
    match sandbox.compile_apart(digest, &bytes, limits) {
        Ok(program) => Ok(Ok(Arc::new(program))),
        Err(NotCompiled::Refused(why)) => Ok(Err(one_line(&why).into())),
        Err(NotCompiled::Failed(error)) => Err(error),
    }
}

/// Whose turn it is. One entry for each component, of which the store has a bounded number.
#[derive(Default)]
struct Turns {
    tenants: BTreeMap<Arc<str>, VecDeque<Digest>>,
    waiting: HashSet<Digest>,
    last: Option<Arc<str>>,
    /// Components whose code is to be removed.
    gone: Vec<Digest>,
}

impl Turns {
    fn add(&mut self, tenant: Arc<str>, digest: Digest) {
        if self.waiting.insert(digest) {
            self.tenants.entry(tenant).or_default().push_back(digest);
        }
    }

    fn next(&mut self) -> Option<(Arc<str>, Digest)> {
        let after = self.last.as_ref().and_then(|last| {
            let range = (std::ops::Bound::Excluded(last.clone()), std::ops::Bound::Unbounded);
            self.tenants.range(range).next()
        });
        let tenant = after.or_else(|| self.tenants.iter().next()).map(|(tenant, _)| tenant.clone())?;
        let waiting = self.tenants.get_mut(&tenant)?;
        let digest = waiting.pop_front()?;
        if waiting.is_empty() {
            self.tenants.remove(&tenant);
        }
        self.waiting.remove(&digest);
        self.last = Some(tenant.clone());
        Some((tenant, digest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tenants_take_turns() {
        let mut turns = Turns::default();
        for (tenant, number) in [("a", 1), ("a", 2), ("a", 3), ("b", 4), ("c", 5), ("a", 1)] {
            turns.add(tenant.into(), Digest([number; 32]));
        }
        let mut order = Vec::new();
        while let Some((tenant, digest)) = turns.next() {
            order.push((tenant.to_string(), digest.0[0]));
            if order.len() == 2 {
                turns.add("b".into(), Digest([6; 32]));
            }
        }
        let expected = [("a", 1), ("b", 4), ("c", 5), ("a", 2), ("b", 6), ("a", 3)];
        assert_eq!(order, expected.map(|(tenant, number)| (tenant.to_owned(), number)));
    }
}
