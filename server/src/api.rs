//! stub
use crate::manager::Manager;
use crate::objects::Objects;
use std::time::Duration;
/// What the API needs.
#[derive(Clone)]
pub struct App { /// m
 pub manager: Manager, /// o
 pub objects: Objects, /// i
 pub max_input_bytes: u64 }
/// s
pub struct ServerSettings { /// c
 pub max_connections: usize, /// t
 pub client_timeout: Duration }
/// serve
pub async fn serve(_l: tokio::net::TcpListener, _s: ServerSettings, _a: App, _stop: tokio::sync::watch::Receiver<bool>) { std::future::pending().await }
