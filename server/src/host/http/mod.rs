//! `wasi:http` for guests: requests to what their type is granted, and to nothing else.
//!
//! Without a grant a guest finds the interface and gets every request refused. All sockets, names and timers
//! are on the API's threads; the guest waits for them like for any call of the host.

mod addresses;
mod connect;
mod exchange;
mod hooks;

use std::sync::Arc;

use wasmtime::StoreContextMut;
use wasmtime::component::{Linker, Resource};
use wasmtime_wasi_http::p2::bindings::http::types::{Host as _, HostOutgoingRequest as _, IoError, Method, Scheme};
use wasmtime_wasi_http::p2::types::HostOutgoingRequest;
use wasmtime_wasi_http::{Error, WasiHttpCtx, WasiHttpCtxView, WasiHttpView};

pub use addresses::{Network, NotANetwork};
pub use connect::{HttpLimits, HttpSettings, Outbound};

use super::Host;
use super::log::LogBuffer;
use super::memory::HostMemory;
use crate::grants::Grants;

/// Most bytes of a request's fields, of a response's, and of trailers.
const FIELD_BYTES: usize = 16 << 10;

/// Most bytes of a request's path, and of what else names its target.
const PATH_BYTES: usize = 8 << 10;
const NAME_BYTES: usize = 512;

/// What a body that is written keeps before it is sent: one chunk more than this many.
const BODY_CHUNKS: usize = 1;
const BODY_CHUNK_BYTES: usize = 16 << 10;

/// What one handle may cost the host where some are of `wasi:http`: fields, a head, or a body's chunks.
pub(super) const HANDLE_BYTES: u64 = 32 << 10;

/// One attempt's part of it.
pub(super) struct Http {
    ctx: WasiHttpCtx,
    hooks: hooks::Hooks,
}

impl Http {
    pub(super) fn new(
        outbound: Arc<Outbound>,
        tenant: Arc<str>,
        grants: Arc<Grants>,
        memory: HostMemory,
        log: LogBuffer,
    ) -> Http {
        let mut ctx = WasiHttpCtx::new();
        ctx.set_field_size_limit(FIELD_BYTES);
        Http { ctx, hooks: hooks::Hooks::new(outbound, tenant, grants, memory, log) }
    }

    /// Requests so far, refused ones as well.
    pub(super) fn requests(&self) -> u64 {
        self.hooks.requests()
    }

    /// Bytes of requests and responses so far, their heads as well, without what TLS adds.
    pub(super) fn bytes(&self) -> u64 {
        self.hooks.bytes()
    }
}

impl WasiHttpView for Host {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView { hooks: &mut self.http.hooks, table: &mut self.table, ctx: &mut self.http.ctx }
    }
}

/// Whether a component that imports this may hold what `wasi:http` keeps.
pub fn is_used(imports: &[String]) -> bool {
    imports.iter().any(|import| import.starts_with("wasi:http/"))
}

/// Puts `wasi:http` into a linker.
pub(super) fn add_to_linker(linker: &mut Linker<Host>) -> wasmtime::Result<()> {
    wasmtime_wasi_http::p2::add_only_http_to_linker_async(linker)?;
    // The engine's own takes these texts at any length and keeps them.
    linker.allow_shadowing(true);
    let mut types = linker.instance("wasi:http/types@0.2.12")?;
    types.func_wrap(
        "[method]outgoing-request.set-method",
        |mut store: StoreContextMut<'_, Host>, (of, method): (Resource<HostOutgoingRequest>, Method)| {
            let short = !matches!(&method, Method::Other(other) if other.len() > NAME_BYTES);
            let set = if short { store.data_mut().http().set_method(of, method)? } else { Err(()) };
            Ok((set,))
        },
    )?;
    types.func_wrap(
        "[method]outgoing-request.set-scheme",
        |mut store: StoreContextMut<'_, Host>, (of, scheme): (Resource<HostOutgoingRequest>, Option<Scheme>)| {
            let short = !matches!(&scheme, Some(Scheme::Other(other)) if other.len() > NAME_BYTES);
            let set = if short { store.data_mut().http().set_scheme(of, scheme)? } else { Err(()) };
            Ok((set,))
        },
    )?;
    types.func_wrap(
        "[method]outgoing-request.set-authority",
        |mut store: StoreContextMut<'_, Host>, (of, authority): (Resource<HostOutgoingRequest>, Option<String>)| {
            let short = authority.as_ref().is_none_or(|text| text.len() <= NAME_BYTES);
            let set = if short { store.data_mut().http().set_authority(of, authority)? } else { Err(()) };
            Ok((set,))
        },
    )?;
    types.func_wrap(
        "[method]outgoing-request.set-path-with-query",
        |mut store: StoreContextMut<'_, Host>, (of, path): (Resource<HostOutgoingRequest>, Option<String>)| {
            let short = path.as_ref().is_none_or(|text| text.len() <= PATH_BYTES);
            let set = if short { store.data_mut().http().set_path_with_query(of, path)? } else { Err(()) };
            Ok((set,))
        },
    )?;
    // The engine's own does not know the errors of a body again.
    types.func_wrap("http-error-code", |mut store: StoreContextMut<'_, Host>, (of,): (Resource<IoError>,)| {
        let host = store.data_mut();
        let code = match host.table.get(&of)?.downcast_ref::<Error>() {
            Some(error) => Some(exchange::code_of_body(error)),
            None => host.http().http_error_code(of)?,
        };
        Ok((code,))
    })?;
    linker.allow_shadowing(false);
    Ok(())
}
