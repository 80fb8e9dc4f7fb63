//! TLS on listeners: rustls with ring; ALPN offers h2 and http/1.1.

use std::path::Path;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::Error;

/// A server's configuration from a certificate chain and its key, both PEM.
pub fn server_config(chain: &Path, key: &Path) -> Result<Arc<ServerConfig>, Error> {
    let unreadable =
        |what: &'static str, path: &Path, reason: String| Error::Tls { what, path: path.to_owned(), reason };
    let certs: Vec<_> = CertificateDer::pem_file_iter(chain)
        .and_then(Iterator::collect)
        .map_err(|e| unreadable("certificate chain", chain, e.to_string()))?;
    if certs.is_empty() {
        return Err(unreadable("certificate chain", chain, "it holds no certificate".into()));
    }
    let secret = PrivateKeyDer::from_pem_file(key).map_err(|e| unreadable("private key", key, e.to_string()))?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| unreadable("protocol versions", chain, e.to_string()))?
        .with_no_client_auth()
        .with_single_cert(certs, secret)
        .map_err(|e| unreadable("private key", key, e.to_string()))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
