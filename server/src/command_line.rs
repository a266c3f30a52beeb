//! What the command line administers: tenants and keys of a data directory, whether or not a server runs on it.
//!
//! While one runs, it is asked through a socket in the directory, which only its own user can open, with the very
//! requests that a key of the operator would send. While none runs, the change is made here.

use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::{UnixListener, UnixStream};

use crate::audit::Actor;
use crate::clock;
use crate::config::{CreateKeyArgs, KeyCommand, TenantCommand};
use crate::keys::OPERATOR;
use crate::manager::{Change, Changed, NewKey, Refused, administer};
use crate::names::{self, is_name};
use crate::store::{self, DataDir};

/// The socket in the data directory.
const SOCKET: &str = "control.sock";

/// How long a server that starts is waited for.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(5);

/// The largest answer that is read.
const ANSWER_BYTES: usize = 1 << 20;

/// A path to the socket that is short, as the system takes no long ones, for as long as the directory is held.
fn short_path(data_dir: &Path) -> anyhow::Result<(std::fs::File, PathBuf)> {
    let dir = std::fs::File::open(data_dir).with_context(|| format!("cannot open {}", data_dir.display()))?;
    let path = PathBuf::from(format!("/proc/self/fd/{}/{SOCKET}", dir.as_raw_fd()));
    Ok((dir, path))
}

/// The socket for a server that holds the data directory.
pub(crate) fn listen(data_dir: &Path) -> anyhow::Result<UnixListener> {
    // One that a server left which was killed.
    match std::fs::remove_file(data_dir.join(SOCKET)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot remove {}", data_dir.join(SOCKET).display()));
        }
        _ => {}
    }
    let (_dir, path) = short_path(data_dir)?;
    let listener = UnixListener::bind(&path)
        .with_context(|| format!("cannot make the socket {}", data_dir.join(SOCKET).display()))?;
    // The directory is for its own user alone where this program made it, but it may have been there before.
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    Ok(listener)
}

pub(crate) fn tenant(command: TenantCommand) -> anyhow::Result<()> {
    let TenantCommand::Create { name, data_dir } = command;
    ensure!(is_name(&name), "a tenant's name {}", names::RULE);
    match Server::of(&data_dir)? {
        Server::Runs => {
            ask(&data_dir, Method::PUT, &format!("/tenants/{name}"), None)?;
        }
        Server::Not(dir) => {
            // Whoever may write in the directory may have as many as they like.
            change(&dir, Change::CreateTenant { name: name.as_str().into(), most: u64::MAX })?;
        }
    }
    Ok(())
}

pub(crate) fn key(command: KeyCommand) -> anyhow::Result<()> {
    match command {
        KeyCommand::Create(args) => {
            let key = create_key(args)?;
            writeln!(std::io::stdout(), "{key}")?;
        }
        KeyCommand::Revoke { tenant, id, data_dir } => match Server::of(&data_dir)? {
            Server::Runs => {
                ask(&data_dir, Method::DELETE, &format!("/tenants/{}/keys/{id}", named(&tenant)?), None)?;
            }
            Server::Not(dir) => {
                change(&dir, Change::RevokeKey { tenant: tenant.into(), id })?;
            }
        },
    }
    Ok(())
}

fn create_key(args: CreateKeyArgs) -> anyhow::Result<String> {
    let CreateKeyArgs { tenant, role, task_types, label, expires_in_days, data_dir } = args;
    let now = clock::now();
    let expires_at = expires_in_days.map(|days| now.plus_millis(u64::from(days) * 24 * 60 * 60 * 1000));
    let task_types = (!task_types.is_empty()).then_some(task_types);
    let new = NewKey { tenant: named(&tenant)?.into(), role, task_types, label, expires_at };
    if let Some(fault) = new.faults(now).first() {
        bail!("{}: {}", fault.pointer.trim_start_matches("#/"), fault.detail);
    }
    match Server::of(&data_dir)? {
        Server::Runs => {
            let body = json!({
                "role": new.role,
                "task_types": new.task_types,
                "label": new.label,
                "expires_at": new.expires_at.and_then(|at| chrono::DateTime::from_timestamp_millis(at.0)),
            });
            let answer = ask(&data_dir, Method::POST, &format!("/tenants/{}/keys", new.tenant), Some(&body))?;
            let key = answer.get("key").and_then(Value::as_str);
            key.map(str::to_owned).context("the server answered without a key")
        }
        Server::Not(dir) => {
            let (token, key) = new.make(now)?;
            change(&dir, Change::CreateKey(key))?;
            Ok(token.reveal().to_owned())
        }
    }
}

/// A tenant's name, which is also a part of a path.
fn named(tenant: &str) -> anyhow::Result<&str> {
    ensure!(is_name(tenant), "{tenant:?} is no name of a tenant");
    Ok(tenant)
}

/// The command that makes a tenant.
fn create_tenant(name: &str, data_dir: &Path) -> String {
    format!("`taskcell tenant create {name} --data-dir {}`", data_dir.display())
}

/// Whether a server runs on a data directory.
enum Server {
    Runs,
    /// None does, as the directory is held here.
    Not(DataDir),
}

impl Server {
    fn of(data_dir: &Path) -> anyhow::Result<Server> {
        let started = std::time::Instant::now();
        loop {
            if let Some(dir) = DataDir::try_open(data_dir)? {
                return Ok(Server::Not(dir));
            }
            // Another command may hold it for a moment, or a server that has no socket yet.
            let (_dir, socket) = short_path(data_dir)?;
            let nobody = [std::io::ErrorKind::NotFound, std::io::ErrorKind::ConnectionRefused];
            match std::os::unix::net::UnixStream::connect(socket) {
                Err(error) if nobody.contains(&error.kind()) && started.elapsed() < PATIENCE => {
                    std::thread::sleep(PATIENCE / 500);
                }
                _ => return Ok(Server::Runs),
            }
        }
    }
}

/// Makes a change where no server runs.
fn change(dir: &DataDir, change: Change) -> anyhow::Result<Changed> {
    let (mut writer, _) = store::open(&dir.path, 1)?;
    let by = Actor { tenant: OPERATOR.into(), key: None, peer: Arc::from("command line") };
    writer.begin()?;
    let changed = administer(&mut writer, &change, &by, clock::now())?;
    writer.commit()?;
    writer.checkpoint_all()?;
    match changed {
        Ok(changed) => Ok(changed),
        Err(Refused::NotFound) => match change {
            Change::CreateKey(key) => {
                bail!("there is no tenant {:?}: {}", key.tenant, create_tenant(&key.tenant, &dir.path))
            }
            _ => bail!("there is no such key"),
        },
        Err(refused) => bail!("{refused}"),
    }
}

/// Asks the server that runs on the data directory.
fn ask(data_dir: &Path, method: Method, path: &str, body: Option<&Value>) -> anyhow::Result<Value> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (_dir, socket) = short_path(data_dir)?;
        let started = std::time::Instant::now();
        let stream = loop {
            match UnixStream::connect(&socket).await {
                Ok(stream) => break stream,
                // It may just be starting.
                Err(_) if started.elapsed() < PATIENCE => tokio::time::sleep(PATIENCE / 100).await,
                Err(error) => {
                    let dir = data_dir.display();
                    return Err(error).context(format!("cannot reach the server that runs on {dir}: is it yours?"));
                }
            }
        };
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let text = body.map(Value::to_string).unwrap_or_default();
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "taskcell")
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(text)))?;
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = http_body_util::Limited::new(response.into_body(), ANSWER_BYTES).collect().await;
        let body = body.map_err(|error| anyhow::anyhow!("{error}"))?.to_bytes();
        let answer: Value = serde_json::from_slice(&body)?;
        if status.is_success() {
            return Ok(answer);
        }
        if status == StatusCode::NOT_FOUND {
            bail!("there is no such tenant or key: {} makes a tenant", create_tenant("NAME", data_dir));
        }
        bail!("{}", answer.get("detail").and_then(Value::as_str).unwrap_or("the server refused it"))
    })
}
