//! TLS towards instances: roots, client certificate and names from files.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use weft_core::Name;

use crate::error::Error;
use crate::spec::UpstreamTls;

/// A ready client configuration. Equal when made from the same bytes, so that an unchanged reload keeps connections.
#[derive(Clone)]
pub(crate) struct ClientTls {
    /// With ALPN `http/1.1`.
    h1: Arc<rustls::ClientConfig>,
    /// With ALPN `h2`.
    h2: Arc<rustls::ClientConfig>,
    server_name: Option<ServerName<'static>>,
    made_from: Arc<MadeFrom>,
}

#[derive(PartialEq)]
struct MadeFrom {
    spec: UpstreamTls,
    files: Vec<Vec<u8>>,
}

impl PartialEq for ClientTls {
    fn eq(&self, other: &Self) -> bool {
        self.made_from == other.made_from
    }
}

// The material holds a private key.
impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientTls").field("server_name", &self.server_name).finish_non_exhaustive()
    }
}

impl ClientTls {
    /// Reads the files and builds both configurations.
    pub(crate) fn load(service: &Name, spec: &UpstreamTls) -> Result<Self, Error> {
        let tls = |reason: String| Error::Tls { service: service.clone(), reason: reason.into() };
        let file = |path: &Path, reason: String| Error::TlsFile {
            service: service.clone(),
            path: path.to_owned(),
            reason: reason.into(),
        };
        let read = |path: &Path| std::fs::read(path).map_err(|e| file(path, e.to_string()));
        let certs = |path: &Path, pem: &[u8]| -> Result<Vec<CertificateDer<'static>>, Error> {
            let certs: Vec<_> =
                CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(|e| file(path, e.to_string()))?;
            if certs.is_empty() { Err(file(path, "holds no PEM certificate".into())) } else { Ok(certs) }
        };
        let Some(ca) = &spec.ca else {
            return Err(tls("name a `ca` file: the system's roots are not used towards services".into()));
        };
        let ca_pem = read(ca)?;
        let mut roots = RootCertStore::empty();
        for cert in certs(ca, &ca_pem)? {
            roots.add(cert).map_err(|e| file(ca, e.to_string()))?;
        }
        let mut files = vec![ca_pem];
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| tls(e.to_string()))?
            .with_root_certificates(roots);
        let mut config = match &spec.identity {
            None => builder.with_no_client_auth(),
            Some((chain, key)) => {
                let (chain_pem, key_pem) = (read(chain)?, read(key)?);
                let private = PrivateKeyDer::from_pem_slice(&key_pem).map_err(|e| file(key, e.to_string()))?;
                let config = builder
                    .with_client_auth_cert(certs(chain, &chain_pem)?, private)
                    .map_err(|e| file(key, e.to_string()))?;
                files.extend([chain_pem, key_pem]);
                config
            }
        };
        let server_name = match &spec.server_name {
            None => None,
            Some(n) => Some(ServerName::try_from(n.clone()).map_err(|e| tls(format!("server name '{n}': {e}")))?),
        };
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let h1 = Arc::new(config.clone());
        config.alpn_protocols = vec![b"h2".to_vec()];
        let h2 = Arc::new(config);
        Ok(Self { h1, h2, server_name, made_from: Arc::new(MadeFrom { spec: spec.clone(), files }) })
    }

    pub(crate) fn config(&self, h2: bool) -> Arc<rustls::ClientConfig> {
        if h2 { self.h2.clone() } else { self.h1.clone() }
    }

    /// The name to verify: the configured one, else the host that is called.
    pub(crate) fn name_for(&self, host: &str) -> Result<ServerName<'static>, String> {
        match &self.server_name {
            Some(n) => Ok(n.clone()),
            None => {
                let host = host.trim_start_matches('[').trim_end_matches(']');
                ServerName::try_from(host.to_owned()).map_err(|e| format!("'{host}' cannot be verified: {e}"))
            }
        }
    }
}
