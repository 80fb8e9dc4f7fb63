//! A GET of a small JSON document over HTTP/1.1, with TLS that is verified: key sets and discovery documents.
//!
//! No redirects: where an issuer's keys are is said by the configuration or by the issuer's own document.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Uri, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use weft_core::limits;

/// Trust for fetching: a file's authorities, or the system's.
pub(super) fn tls(ca: Option<&Path>) -> Result<Arc<ClientConfig>, String> {
    let mut roots = RootCertStore::empty();
    match ca {
        Some(file) => {
            let bad = |e: String| format!("the certificate authorities in '{}' cannot be used: {e}", file.display());
            let certs: Vec<_> =
                CertificateDer::pem_file_iter(file).and_then(Iterator::collect).map_err(|e| bad(e.to_string()))?;
            if certs.is_empty() {
                return Err(bad("it holds no certificate".into()));
            }
            for c in certs {
                roots.add(c).map_err(|e| bad(e.to_string()))?;
            }
        }
        None => {
            let (added, _) = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if added == 0 {
                return Err("the system has no certificate authorities: install ca-certificates, or name a 'ca'".into());
            }
        }
    }
    let mut config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// The document, and for how long its server says it is fresh.
pub(super) async fn get(url: &str, tls: Option<&Arc<ClientConfig>>) -> Result<(Bytes, Option<Duration>), String> {
    let uri: Uri = url.parse().map_err(|e| format!("'{url}' is no URL: {e}"))?;
    let authority = uri.authority().ok_or_else(|| format!("'{url}' names no host"))?;
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    let secure = uri.scheme_str() == Some("https");
    let port = authority.port_u16().unwrap_or(if secure { 443 } else { 80 });
    let tcp = TcpStream::connect((host, port)).await.map_err(|e| format!("no connection to {authority}: {e}"))?;
    let (head, body) = if secure {
        let tls = tls.ok_or("no certificate authorities to check it with")?;
        let name = ServerName::try_from(host.to_owned()).map_err(|e| format!("'{host}' cannot be verified: {e}"))?;
        let io = TlsConnector::from(tls.clone()).connect(name, tcp).await;
        ask(io.map_err(|e| format!("no TLS with {authority}: {e}"))?, &uri).await?
    } else {
        ask(tcp, &uri).await?
    };
    Ok((body, max_age(&head)))
}

async fn ask<I>(io: I, uri: &Uri) -> Result<(HeaderMap, Bytes), String>
where
    I: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let broke = |e: hyper::Error| format!("{uri} broke off: {e}");
    let (mut sender, connection) = http1::handshake(TokioIo::new(io)).await.map_err(broke)?;
    let driver = tokio::spawn(connection);
    let path = uri.path_and_query().map_or("/", |p| p.as_str());
    let request = Request::get(path)
        .header(header::HOST, uri.authority().map_or("", |a| a.as_str()))
        .header(header::ACCEPT, "application/json")
        .header(header::USER_AGENT, "weft")
        .body(Empty::<Bytes>::new())
        .map_err(|e| e.to_string())?;
    let answer = sender.send_request(request).await.map_err(broke)?;
    let (head, body) = answer.into_parts();
    let body = Limited::new(body, limits::JWKS_BYTES).collect().await;
    driver.abort();
    if !head.status.is_success() {
        return Err(format!("{uri} answered {}", head.status));
    }
    Ok((head.headers, body.map_err(|e| format!("{uri} broke off: {e}"))?.to_bytes()))
}

/// RFC 9111 5.2.2: what must not be stored is fresh for no time.
fn max_age(h: &HeaderMap) -> Option<Duration> {
    let values = h.get_all(header::CACHE_CONTROL).iter().filter_map(|v| v.to_str().ok());
    let mut age = None;
    for directive in values.flat_map(|v| v.split(',')).map(str::trim) {
        if directive.eq_ignore_ascii_case("no-store") || directive.eq_ignore_ascii_case("no-cache") {
            return Some(Duration::ZERO);
        }
        if let Some((name, seconds)) = directive.split_once('=')
            && name.eq_ignore_ascii_case("max-age")
        {
            age = seconds.trim_matches('"').parse().ok().map(Duration::from_secs);
        }
    }
    age
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn freshness_is_what_cache_control_says() {
        let age = |v: &str| max_age(&HeaderMap::from_iter([(header::CACHE_CONTROL, v.parse().unwrap())]));
        assert_eq!(age("public, max-age=600"), Some(Duration::from_secs(600)));
        assert_eq!(age("Max-Age=\"5\""), Some(Duration::from_secs(5)));
        assert_eq!(age("max-age=600, no-store"), Some(Duration::ZERO));
        assert_eq!((age("public"), age("max-age=x"), max_age(&HeaderMap::new())), (None, None, None));
    }
}
