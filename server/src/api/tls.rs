//! TLS of the server itself: a certificate and its key, read again when the server is told so.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use anyhow::{Context, ensure};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

/// What the server proves who it is with.
pub struct Tls {
    certificates: PathBuf,
    key: PathBuf,
    current: RwLock<Arc<ServerConfig>>,
}

impl Tls {
    /// Reads the certificates, the server's own first, and its private key, both in PEM.
    pub fn open(certificates: &Path, key: &Path) -> anyhow::Result<Tls> {
        let current = RwLock::new(Arc::new(read(certificates, key)?));
        Ok(Tls { certificates: certificates.to_owned(), key: key.to_owned(), current })
    }

    /// Reads both again. New connections get what is there now; where it cannot be used, what there was.
    pub fn reload(&self) {
        match read(&self.certificates, &self.key) {
            Ok(config) => {
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(config);
                tracing::info!("the certificate was read again");
            }
            Err(error) => {
                let error = format!("{error:#}");
                tracing::error!(error, "the certificate cannot be used; the one from before stays");
            }
        }
    }

    /// For the next connection.
    pub(super) fn acceptor(&self) -> TlsAcceptor {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone().into()
    }
}

fn read(certificates: &Path, key: &Path) -> anyhow::Result<ServerConfig> {
    let of = |path: &Path| format!("cannot read {} as PEM", path.display());
    let chain: Vec<CertificateDer<'static>> =
        CertificateDer::pem_file_iter(certificates).and_then(Iterator::collect).with_context(|| of(certificates))?;
    ensure!(!chain.is_empty(), "there is no certificate in {}", certificates.display());
    // Nobody is there to be asked for a passphrase.
    let text = std::fs::read(key).with_context(|| of(key))?;
    let is_encrypted = |line: &[u8]| {
        line.starts_with(b"-----BEGIN ENCRYPTED PRIVATE KEY-----") || line.starts_with(b"Proc-Type: 4,ENCRYPTED")
    };
    ensure!(
        !text.split(|byte| *byte == b'\n').any(is_encrypted),
        "the key in {0} is encrypted: decrypt it with `openssl pkey -in {0} -out FILE`, let nobody else read FILE, and \
         give that to --tls-key",
        key.display()
    );
    let private = PrivateKeyDer::from_pem_slice(&text).with_context(|| of(key))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, private)
        .with_context(|| format!("{} and {} do not fit together", certificates.display(), key.display()))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}
