//! TLS of the server itself.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;

use rcgen::{CertificateParams, Issuer, KeyPair};
use rustix::process::Signal;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::support::server::{Setup, refused, taskcell};
use crate::support::{Server, temp_dir, wait_for};

/// An authority, and the certificates that it gives.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    roots: Arc<RootCertStore>,
}

impl Authority {
    fn new() -> Authority {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(certificate.der().clone()).unwrap();
        Authority { issuer: Issuer::new(params, key), roots: Arc::new(roots) }
    }

    /// Writes a certificate for `localhost`, and its key.
    fn write(&self, directory: &Path) {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec!["localhost".to_owned()]).unwrap().signed_by(&key, &self.issuer);
        fs::write(directory.join("cert.pem"), certificate.unwrap().pem()).unwrap();
        fs::write(directory.join("key.pem"), key.serialize_pem()).unwrap();
    }

    /// The head of the answer to a request, over TLS that trusts this authority.
    fn get(&self, server: &Server, path: &str) -> Result<String, std::io::Error> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let config = config.with_root_certificates(self.roots.clone()).with_no_client_auth();
        let name = ServerName::try_from("localhost").unwrap();
        let connection = ClientConnection::new(Arc::new(config), name).unwrap();
        let mut stream = StreamOwned::new(connection, TcpStream::connect(&server.address)?);
        write!(stream, "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }
}

fn flags(directory: &Path) -> [String; 4] {
    let of = |name: &str| directory.join(name).display().to_string();
    ["--tls-cert".into(), of("cert.pem"), "--tls-key".into(), of("key.pem")]
}

fn start(directory: &Path) -> Server {
    let flags = flags(directory);
    Setup::new(&flags.each_ref().map(String::as_str)).start()
}

#[test]
fn the_server_speaks_tls_and_reads_its_certificate_again() {
    let directory = temp_dir();
    let (first, second) = (Authority::new(), Authority::new());
    first.write(directory.path());
    let server = start(directory.path());
    assert!(first.get(&server, "/readyz").unwrap().starts_with("HTTP/1.1 200"), "it is ready");
    assert!(first.get(&server, "/tasks").unwrap().contains("\"tasks\":[]"));
    assert!(second.get(&server, "/readyz").is_err(), "nobody trusts it who does not know its authority");
    // One who does not speak TLS is not answered, and holds up nobody.
    let mut plain = TcpStream::connect(&server.address).unwrap();
    plain.write_all(b"GET /readyz HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer);
    assert!(!answer.starts_with(b"HTTP"), "{}", String::from_utf8_lossy(&answer));
    // A certificate that cannot be used leaves the one there was.
    fs::write(directory.path().join("cert.pem"), "nothing").unwrap();
    server.signal(Signal::HUP);
    wait_for("the log to say so", || server.log().contains("the one from before stays").then_some(()));
    assert!(first.get(&server, "/readyz").is_ok());
    second.write(directory.path());
    server.signal(Signal::HUP);
    wait_for("the new certificate", || second.get(&server, "/readyz").ok());
    assert!(first.get(&server, "/readyz").is_err());
}

#[test]
fn half_of_it_or_a_wrong_file_is_refused() {
    let directory = temp_dir();
    Authority::new().write(directory.path());
    let [cert, cert_file, key, key_file] = flags(directory.path());
    let serve = |flags: &[&str]| {
        let data = temp_dir();
        let mut command = taskcell();
        command.args(["serve", "--listen", "127.0.0.1:0", "--data-dir"]).arg(data.path()).args(flags);
        refused(&mut command)
    };
    assert!(serve(&[&cert, &cert_file]).contains("--tls-key"));
    assert!(serve(&[&key, &key_file]).contains("--tls-cert"));
    assert!(serve(&[&cert, "/not/there", &key, &key_file]).contains("/not/there"));
    assert!(serve(&[&cert, &key_file, &key, &key_file]).contains("key.pem"));
    let other = temp_dir();
    Authority::new().write(other.path());
    let [.., other_key] = flags(other.path());
    assert!(serve(&[&cert, &cert_file, &key, &other_key]).contains("do not fit together"));
    for encrypted in [
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIIB\n-----END ENCRYPTED PRIVATE KEY-----\n",
        "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\nMIIB\n-----END RSA PRIVATE KEY-----\n",
    ] {
        fs::write(&other_key, encrypted).unwrap();
        let message = serve(&[&cert, &cert_file, &key, &other_key]);
        assert!(message.contains(&format!("openssl pkey -in {other_key}")), "{message}");
    }
}
