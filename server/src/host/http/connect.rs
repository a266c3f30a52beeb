//! Connections to where requests go: the name is resolved once, every address is looked at, and what is
//! connected to is an address that was looked at.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use wasmtime_wasi_http::Error;

use super::addresses::{self, Network};
use crate::grants::Scheme;
use crate::tenants::Tenants;
use crate::turns::Places;

/// How long a name may take to be resolved.
const LOOKUP: Duration = Duration::from_secs(5);

/// Names that are resolved at once. One that hangs keeps its place, and a thread, until it is given up.
const LOOKUPS_AT_ONCE: usize = 64;

/// Most addresses of one name that are tried.
const MOST_ADDRESSES: usize = 8;

/// What the operator decides of requests that guests make. By default none can be made.
#[derive(Clone, Debug, Default)]
pub struct HttpSettings {
    /// Networks that are allowed beside the public internet.
    pub allowed: Vec<Network>,
    /// Addresses of names that are not asked for.
    pub resolve: HashMap<String, Vec<IpAddr>>,
    /// A PEM file of authorities that are trusted beside the public ones.
    pub authorities: Option<PathBuf>,
    /// Connections of all attempts at once.
    pub max_connections: usize,
    /// What one attempt may have.
    pub limits: HttpLimits,
}

/// What one attempt may have of HTTP.
#[derive(Clone, Copy, Debug, Default)]
pub struct HttpLimits {
    /// Requests in all.
    pub requests: u64,
    /// Connections at once; more wait for their turn, tenants one after the other, as long as connecting may take.
    pub connections: usize,
    /// Bytes of the body of a request, and of a response.
    pub body_bytes: u64,
    /// How long connecting may take, the response's head, and each pause in its body.
    pub timeout: Duration,
}

/// Makes the connections of all attempts.
pub struct Outbound {
    allowed: Vec<Network>,
    resolve: HashMap<String, Vec<IpAddr>>,
    tls: TlsConnector,
    lookups: Places,
    pub(super) connections: Places,
    pub(super) limits: HttpLimits,
    /// Who may still send requests.
    pub(super) tenants: Arc<Tenants>,
    /// Where sockets and timers are: not on the guests' threads, which have none.
    pub(super) runtime: Handle,
}

/// Where a request goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) scheme: Scheme,
    /// A name, or an address without brackets.
    pub(super) host: String,
    pub(super) port: u16,
}

/// A connection, with TLS or without.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

impl Outbound {
    /// Reads the authorities' file.
    pub fn new(settings: HttpSettings, tenants: Arc<Tenants>, runtime: Handle) -> anyhow::Result<Outbound> {
        let HttpSettings { allowed, resolve, authorities, max_connections, limits } = settings;
        Ok(Outbound {
            allowed,
            resolve,
            tls: TlsConnector::from(Arc::new(tls(authorities.as_deref())?)),
            lookups: Places::new(LOOKUPS_AT_ONCE),
            connections: Places::new(max_connections),
            limits,
            tenants,
            runtime,
        })
    }

    /// Connects, and speaks TLS where the target does. The caller bounds how long that may take.
    pub(super) async fn connect(&self, tenant: &Arc<str>, target: &Target) -> Result<Box<dyn Stream>, Error> {
        let stream = dial(self.lookup(tenant, &target.host), target.port, &self.allowed, self.limits.timeout).await?;
        match target.scheme {
            Scheme::Http => Ok(Box::new(stream)),
            Scheme::Https => {
                // The certificate is to be that of the name that was granted, whatever it resolves to.
                let name = ServerName::try_from(target.host.clone()).map_err(|_| Error::HttpRequestUriInvalid)?;
                Ok(Box::new(self.tls.connect(name, stream).await.map_err(|error| of_tls(&error))?))
            }
        }
    }

    async fn lookup(&self, tenant: &Arc<str>, host: &str) -> Result<Vec<IpAddr>, Error> {
        if let Ok(address) = host.parse() {
            return Ok(vec![address]);
        }
        if let Some(addresses) = self.resolve.get(&host.to_ascii_lowercase()) {
            return Ok(addresses.clone());
        }
        let name = host.to_owned();
        let found = async {
            let turn = self.lookups.take(tenant).await;
            let looked_up = tokio::task::spawn_blocking(move || {
                let _turn = turn;
                (name.as_str(), 0).to_socket_addrs().map(|found| found.map(|address| address.ip()).collect())
            });
            looked_up.await.unwrap_or_else(|error| Err(io::Error::other(error)))
        };
        match timeout(LOOKUP, found).await {
            Ok(Ok(found)) => Ok(found),
            Ok(Err(_)) => Err(no_address()),
            Err(_) => Err(Error::DnsTimeout),
        }
    }
}

/// Connects to the first of the addresses that is allowed and answers. That they come as one future is why
/// there is one look-up for one connection, and none after the check.
async fn dial(
    lookup: impl Future<Output = Result<Vec<IpAddr>, Error>>,
    port: u16,
    allowed: &[Network],
    most: Duration,
) -> Result<TcpStream, Error> {
    let mut found = lookup.await?;
    if found.is_empty() {
        return Err(no_address());
    }
    found.retain(|address| addresses::is_allowed(*address, allowed));
    found.truncate(MOST_ADDRESSES);
    let each = most / u32::try_from(found.len().max(1)).unwrap_or(1);
    let mut failed = Error::DestinationIpProhibited;
    for address in found {
        match timeout(each, TcpStream::connect(SocketAddr::new(address, port))).await {
            Ok(Ok(stream)) => {
                // A request is written in few pieces, and waits for its answer.
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            Ok(Err(error)) => failed = of_connect(&error),
            Err(_) => failed = Error::ConnectionTimeout,
        }
    }
    Err(failed)
}

fn no_address() -> Error {
    Error::DnsError { rcode: Some("the name has no address".into()), info_code: None }
}

fn of_connect(error: &io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Error::ConnectionRefused,
        io::ErrorKind::TimedOut => Error::ConnectionTimeout,
        _ => Error::DestinationUnavailable,
    }
}

fn of_tls(error: &io::Error) -> Error {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match tls {
        Some(rustls::Error::InvalidCertificate(_)) => Error::TlsCertificateError,
        Some(rustls::Error::AlertReceived(alert)) => {
            Error::TlsAlertReceived { alert_id: Some(u8::from(*alert)), alert_message: None }
        }
        _ => Error::TlsProtocolError,
    }
}

/// TLS as a client: the public authorities, which are compiled in, and those of the file.
fn tls(authorities: Option<&Path>) -> anyhow::Result<ClientConfig> {
    let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.into() };
    if let Some(path) = authorities {
        let cannot = || format!("cannot read the certificates of --http-ca {}", path.display());
        let mut found = 0;
        for certificate in CertificateDer::pem_file_iter(path).with_context(cannot)? {
            roots.add(certificate.with_context(cannot)?).with_context(cannot)?;
            found += 1;
        }
        anyhow::ensure!(found > 0, "there is no certificate in --http-ca {}", path.display());
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .context("cannot set TLS up")?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // Nothing of one task's connections is there for another's.
    config.resumption = Resumption::disabled();
    Ok(config)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    const MOST: Duration = Duration::from_secs(5);

    /// A name that has another address whenever it is asked for.
    struct Changing<'a> {
        answers: &'a [&'a [&'a str]],
        asked: Cell<usize>,
    }

    impl Changing<'_> {
        async fn lookup(&self) -> Result<Vec<IpAddr>, Error> {
            let answer = self.answers[self.asked.get()];
            self.asked.set(self.asked.get() + 1);
            Ok(answer.iter().map(|address| address.parse().unwrap()).collect())
        }
    }

    fn allowed(networks: &[&str]) -> Vec<Network> {
        networks.iter().map(|network| network.parse().unwrap()).collect()
    }

    #[tokio::test]
    async fn what_is_connected_to_is_what_was_checked() {
        let first = tokio::net::TcpListener::bind("127.0.0.2:0").await.unwrap();
        let port = first.local_addr().unwrap().port();
        let _second = tokio::net::TcpListener::bind(("127.0.0.3", port)).await.unwrap();
        let name = Changing { answers: &[&["127.0.0.2"], &["127.0.0.3"], &["127.0.0.3"]], asked: Cell::new(0) };
        let stream = dial(name.lookup(), port, &allowed(&["127.0.0.2"]), MOST).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), first.local_addr().unwrap());
        assert_eq!(name.asked.get(), 1, "asked for once");
        // Now it has the address that is not allowed, where somebody listens as well.
        let refused = dial(name.lookup(), port, &allowed(&["127.0.0.2"]), MOST).await.unwrap_err();
        assert!(matches!(refused, Error::DestinationIpProhibited), "{refused}");
        assert_eq!(name.asked.get(), 2);
    }

    #[tokio::test]
    async fn every_address_of_a_name_is_looked_at() {
        let forbidden = tokio::net::TcpListener::bind("127.0.0.3:0").await.unwrap();
        let port = forbidden.local_addr().unwrap().port();
        let open = tokio::net::TcpListener::bind(("127.0.0.2", port)).await.unwrap();
        let answer = ["127.0.0.3", "10.0.0.1", "127.0.0.4", "127.0.0.2"];
        let name = Changing { answers: &[&answer], asked: Cell::new(0) };
        // The third is allowed, and nobody listens there.
        let stream = dial(name.lookup(), port, &allowed(&["127.0.0.2", "127.0.0.4"]), MOST).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), open.local_addr().unwrap());
    }

    #[tokio::test]
    async fn a_name_without_an_address() {
        let failed = dial(async { Ok(Vec::new()) }, 1, &[], MOST).await.unwrap_err();
        assert!(matches!(failed, Error::DnsError { .. }), "{failed}");
    }
}
