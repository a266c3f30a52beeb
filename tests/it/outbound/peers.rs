//! Servers on loopback for tasks to talk to. Each does as it is told, with the bytes it is told.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use tempfile::TempDir;

/// A stream with TLS or without.
pub(crate) trait Stream: Read + Write + Send {}
impl<S: Read + Write + Send> Stream for S {}

/// What a server got: the head's lines, and the body as far as it has a length or is chunked.
#[derive(Clone, Debug, Default)]
pub(crate) struct Got {
    pub(crate) line: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Got {
    pub(crate) fn header(&self, name: &str) -> Vec<&str> {
        self.headers.iter().filter(|(found, _)| found == name).map(|(_, value)| value.as_str()).collect()
    }
}

/// A server until the test ends.
pub(crate) struct Peer {
    pub(crate) address: SocketAddr,
    connections: Arc<AtomicUsize>,
    got: Arc<Mutex<Vec<Got>>>,
}

impl Peer {
    /// Serves HTTP on loopback: `respond` writes the whole response.
    pub(crate) fn http(respond: impl Fn(&Got, &mut dyn Stream) + Send + Sync + 'static) -> Peer {
        Peer::at([127, 0, 0, 1].into(), None, respond)
    }

    /// The same over TLS.
    pub(crate) fn https(
        config: Arc<ServerConfig>,
        respond: impl Fn(&Got, &mut dyn Stream) + Send + Sync + 'static,
    ) -> Peer {
        Peer::at([127, 0, 0, 1].into(), Some(config), respond)
    }

    /// The same at some address.
    pub(crate) fn at(
        ip: IpAddr,
        tls: Option<Arc<ServerConfig>>,
        respond: impl Fn(&Got, &mut dyn Stream) + Send + Sync + 'static,
    ) -> Peer {
        Peer::on(TcpListener::bind((ip, 0)).unwrap(), tls, respond)
    }

    /// Takes whatever comes, and never says anything.
    pub(crate) fn silent() -> Peer {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                std::thread::spawn(move || std::io::copy(&mut stream, &mut std::io::sink()));
            }
        });
        Peer { address, connections: Arc::default(), got: Arc::default() }
    }

    /// The same on a listener.
    pub(crate) fn on(
        listener: TcpListener,
        tls: Option<Arc<ServerConfig>>,
        respond: impl Fn(&Got, &mut dyn Stream) + Send + Sync + 'static,
    ) -> Peer {
        let address = listener.local_addr().unwrap();
        let (connections, got) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(Vec::new())));
        let (counted, kept, respond) = (connections.clone(), got.clone(), Arc::new(respond));
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                counted.fetch_add(1, Ordering::SeqCst);
                let (kept, respond, tls) = (kept.clone(), respond.clone(), tls.clone());
                std::thread::spawn(move || serve(stream, tls, &kept, &*respond));
            }
        });
        Peer { address, connections, got }
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    /// As an authority, with the address.
    pub(crate) fn authority(&self) -> String {
        self.address.to_string()
    }

    /// How many connections came.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// The requests that came.
    pub(crate) fn got(&self) -> Vec<Got> {
        self.got.lock().unwrap().clone()
    }
}

fn serve(
    stream: TcpStream,
    tls: Option<Arc<ServerConfig>>,
    kept: &Mutex<Vec<Got>>,
    respond: &dyn Fn(&Got, &mut dyn Stream),
) {
    // Longer than any test takes; a thread that a test forgot ends all the same.
    stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
    stream.set_nodelay(true).unwrap();
    let stream: Box<dyn Stream> = match tls {
        Some(config) => Box::new(StreamOwned::new(ServerConnection::new(config).unwrap(), stream)),
        None => Box::new(stream),
    };
    let mut stream = BufReader::new(stream);
    let Some(got) = read(&mut stream) else { return };
    kept.lock().unwrap().push(got.clone());
    respond(&got, stream.get_mut());
    let _ = stream.get_mut().flush();
}

/// The request, unless the other side has gone, or speaks no HTTP.
fn read(stream: &mut BufReader<Box<dyn Stream>>) -> Option<Got> {
    let mut got = Got { line: line(stream)?, ..Got::default() };
    loop {
        let line = line(stream)?;
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':')?;
        got.headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let length = got.header("content-length").first().map(|length| length.parse::<usize>().unwrap());
    if let Some(length) = length {
        got.body.resize(length, 0);
        stream.read_exact(&mut got.body).ok()?;
    } else if got.header("transfer-encoding") == ["chunked"] {
        loop {
            let size = usize::from_str_radix(&line(stream)?, 16).ok()?;
            let at = got.body.len();
            got.body.resize(at + size, 0);
            stream.read_exact(&mut got.body[at..]).ok()?;
            line(stream)?;
            if size == 0 {
                break;
            }
        }
    }
    Some(got)
}

fn line(stream: &mut BufReader<Box<dyn Stream>>) -> Option<String> {
    let mut line = Vec::new();
    let read = stream.by_ref().take(64 << 10).read_until(b'\n', &mut line).ok()?;
    let line = String::from_utf8(line).ok()?;
    (read > 0).then(|| line.trim_end().to_owned())
}

/// Answers `200` with that body.
pub(crate) fn ok(body: &'static str) -> impl Fn(&Got, &mut dyn Stream) + Send + Sync {
    move |_, stream| {
        let _ = write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    }
}

/// Answers with those bytes.
pub(crate) fn bytes(bytes: impl Into<Vec<u8>>) -> impl Fn(&Got, &mut dyn Stream) + Send + Sync {
    let bytes = bytes.into();
    move |_, stream| {
        let _ = stream.write_all(&bytes);
    }
}

/// An authority made for a test, and certificates of it.
pub(crate) struct Authority {
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    directory: TempDir,
}

impl Authority {
    pub(crate) fn new() -> Authority {
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().unwrap();
        let directory = crate::support::temp_dir();
        std::fs::write(directory.path().join("ca.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
        Authority { issuer: rcgen::Issuer::new(params, key), directory }
    }

    /// Its certificate in a PEM file.
    pub(crate) fn file(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }

    /// A server that has a certificate for that name or address.
    pub(crate) fn server(&self, name: &str) -> Arc<ServerConfig> {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let certificates = vec![CertificateDer::from(certificate.der().to_vec())];
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        Arc::new(config.with_no_client_auth().with_single_cert(certificates, key).unwrap())
    }
}
