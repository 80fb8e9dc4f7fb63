//! TLS on listeners: rustls with ring, TLS 1.2 and 1.3; ALPN offers h2 and http/1.1; the certificate is chosen by SNI.
//!
//! A [`Tls`] is made whole from its files and swapped whole, so a handshake sees the old certificates or the new ones.
//! Session tickets are sealed by keys that all cores share and that a reload keeps, as long as it asks the same of
//! clients: a resumed session is not verified again.

use std::path::Path;
use std::sync::Arc;

use hashbrown::HashMap;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ProducesTickets, ResolvesServerCert, StoresServerSessions, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig};
use weft_core::Principal;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::Error;
use crate::spec::TlsSpec;

/// TLS made ready.
#[derive(Clone, Debug)]
pub struct Tls {
    config: Arc<ServerConfig>,
    /// What clients are asked for: the CA file's bytes, and whether they must.
    asks: Option<(Vec<u8>, bool)>,
}

impl Tls {
    /// Reads the files. `old` is what served before: its sessions go on where they may.
    pub fn load(spec: &TlsSpec, old: Option<&Tls>) -> Result<Self, Error> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let of = |what, path: &Path, e: &dyn std::fmt::Display| Error::Tls {
            what,
            path: path.to_owned(),
            reason: e.to_string(),
        };
        let mut by_name = ByName::default();
        for (chain, key) in &spec.certificates {
            let certs = certificates(chain)?;
            let secret = PrivateKeyDer::from_pem_file(key).map_err(|e| of("private key", key, &e))?;
            let names = names(&certs[0]).map_err(|e| of("certificate chain", chain, &e))?;
            // Also checks that the key is the certificate's.
            let ready = CertifiedKey::from_der(certs, secret, &provider).map_err(|e| of("private key", key, &e))?;
            by_name.add(names, Arc::new(ready));
        }
        let first = spec.certificates.first().map_or(Path::new(""), |(chain, _)| chain.as_path());
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|e| of("protocol versions", first, &e))?;
        let (builder, asks) = match &spec.client {
            None => (builder.with_no_client_auth(), None),
            Some(client) => {
                let mut roots = RootCertStore::empty();
                for cert in certificates(&client.ca)? {
                    roots.add(cert).map_err(|e| of("client CA", &client.ca, &e))?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
                let verifier = if client.required { verifier } else { verifier.allow_unauthenticated() };
                let verifier = verifier.build().map_err(|e| of("client CA", &client.ca, &e))?;
                let bytes = std::fs::read(&client.ca).map_err(|e| of("client CA", &client.ca, &e))?;
                (builder.with_client_cert_verifier(verifier), Some((bytes, client.required)))
            }
        };
        let mut config = builder.with_cert_resolver(Arc::new(by_name));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        (config.ticketer, config.session_storage) = match old {
            Some(o) if o.asks == asks => (o.config.ticketer.clone(), o.config.session_storage.clone()),
            _ => (tickets().map_err(|e| of("ticket keys", first, &e))?, sessions()),
        };
        Ok(Self { config: Arc::new(config), asks })
    }

    /// What a handshake is done with.
    pub fn config(&self) -> Arc<ServerConfig> {
        self.config.clone()
    }
}

fn tickets() -> Result<Arc<dyn ProducesTickets>, rustls::Error> {
    rustls::crypto::ring::Ticketer::new()
}

/// For clients of TLS 1.2 that take no tickets.
fn sessions() -> Arc<dyn StoresServerSessions> {
    rustls::server::ServerSessionMemoryCache::new(weft_core::limits::TLS_SESSIONS)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let unusable = |reason: String| Error::Tls { what: "certificate chain", path: path.to_owned(), reason };
    let certs: Vec<_> =
        CertificateDer::pem_file_iter(path).and_then(Iterator::collect).map_err(|e| unusable(e.to_string()))?;
    if certs.is_empty() { Err(unusable("it holds no certificate".into())) } else { Ok(certs) }
}

/// The DNS names of a certificate, in lower case.
fn names(cert: &CertificateDer<'_>) -> Result<Vec<String>, String> {
    let (_, cert) = X509Certificate::from_der(cert).map_err(|e| e.to_string())?;
    let alternative = cert.subject_alternative_name().map_err(|e| e.to_string())?;
    let all = alternative.iter().flat_map(|a| &a.value.general_names);
    let dns = all.filter_map(|n| match n {
        GeneralName::DNSName(n) => Some(n.to_ascii_lowercase()),
        _ => None,
    });
    Ok(dns.collect())
}

/// Whom a verified certificate speaks for: the first URI (SPIFFE) among its alternative names, else the first DNS name,
/// else the first mail address, else its subject.
pub(super) fn principal(chain: Option<&[CertificateDer<'_>]>) -> Principal {
    let Some((_, cert)) = chain.and_then(|c| c.first()).and_then(|c| X509Certificate::from_der(c).ok()) else {
        return Principal::Anonymous;
    };
    let names = cert.subject_alternative_name().ok().flatten();
    let names = names.map(|n| n.value.general_names.as_slice()).unwrap_or_default();
    let pick = |which: fn(&GeneralName<'_>) -> Option<String>| names.iter().find_map(which);
    let uri = pick(|n| if let GeneralName::URI(u) = n { Some((*u).to_owned()) } else { None });
    let dns = || pick(|n| if let GeneralName::DNSName(d) = n { Some((*d).to_owned()) } else { None });
    let mail = || pick(|n| if let GeneralName::RFC822Name(m) = n { Some((*m).to_owned()) } else { None });
    let name = uri.or_else(dns).or_else(mail).unwrap_or_else(|| cert.subject().to_string());
    Principal::Named(name.into())
}

/// Certificates by the name a client asks for.
#[derive(Debug, Default)]
struct ByName {
    /// The first of the file serves who asks for no name, or for one that no certificate has.
    all: Vec<Arc<CertifiedKey>>,
    exact: HashMap<String, Vec<Arc<CertifiedKey>>>,
    /// `*.example.com` under `example.com`.
    wild: HashMap<String, Vec<Arc<CertifiedKey>>>,
}

impl ByName {
    fn add(&mut self, names: Vec<String>, key: Arc<CertifiedKey>) {
        for name in names {
            let (map, name) = match name.strip_prefix("*.") {
                Some(parent) => (&mut self.wild, parent.to_owned()),
                None => (&mut self.exact, name),
            };
            map.entry(name).or_default().push(key.clone());
        }
        self.all.push(key);
    }

    fn of(&self, name: Option<&str>) -> &[Arc<CertifiedKey>] {
        let found = name.and_then(|n| {
            let n = n.trim_end_matches('.');
            let lower = n.bytes().any(|b| b.is_ascii_uppercase()).then(|| n.to_ascii_lowercase());
            let n = lower.as_deref().unwrap_or(n);
            // RFC 6125 6.4.3: the wildcard is one label.
            self.exact.get(n).or_else(|| self.wild.get(n.split_once('.')?.1))
        });
        found.map_or(&self.all[..1], Vec::as_slice)
    }
}

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let found = self.of(hello.server_name());
        // A name may have certificates of several kinds of keys: the first that the client can verify.
        let fits = found.iter().find(|c| c.key.choose_scheme(hello.signature_schemes()).is_some());
        fits.or(found.first()).cloned()
    }
}
