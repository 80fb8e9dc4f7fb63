//! TLS and mutual TLS towards instances, from files.

use std::path::PathBuf;
use std::sync::Arc;

use http_body_util::BodyExt as _;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpListener;
use weft_mesh::spec::UpstreamTls;
use weft_mesh::{Error, Outbound, Protocol};

use crate::support::*;

struct Authority {
    dir: tempfile::TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ca.pem"), issuer.pem()).unwrap();
        Self { dir, issuer }
    }

    fn path(&self, file: &str) -> PathBuf {
        self.dir.path().join(file)
    }

    /// Certificate and key files for a name.
    fn issue(&self, name: &str) -> (PathBuf, PathBuf) {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        let files = (self.path(&format!("{name}.pem")), self.path(&format!("{name}.key")));
        std::fs::write(&files.0, cert.pem()).unwrap();
        std::fs::write(&files.1, key.serialize_pem()).unwrap();
        files
    }

    /// A server with a certificate for `order.internal`, that asks for a client certificate when told to.
    async fn serve(&self, speaks: Speaks, alpn: &[&str], mutual: bool) -> String {
        let (cert, key) = self.issue("order.internal");
        let certs = CertificateDer::pem_file_iter(cert).unwrap().map(Result::unwrap).collect();
        let key = PrivateKeyDer::from_pem_file(key).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .unwrap();
        let builder = if mutual {
            let mut roots = rustls::RootCertStore::empty();
            roots.add(self.issuer.der().clone()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider).build().unwrap();
            builder.with_client_cert_verifier(verifier)
        } else {
            builder.with_no_client_auth()
        };
        let mut config = builder.with_single_cert(certs, key).unwrap();
        config.alpn_protocols = alpn.iter().map(|a| a.as_bytes().to_vec()).collect();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            let hello = handler(async |r| {
                // So slowly that every buffer on the way is full when the client writes its last byte.
                let (mut body, mut n) = (r.into_body(), 0);
                while let Some(frame) = body.frame().await {
                    n += frame.unwrap().into_data().map_or(0, |d| d.len());
                    tokio::time::sleep(std::time::Duration::from_millis(1)).await;
                }
                if n == 0 { answer("secret") } else { answer(n.to_string()) }
            });
            loop {
                let (io, _) = listener.accept().await.unwrap();
                let (acceptor, hello) = (acceptor.clone(), hello.clone());
                tokio::spawn(async move {
                    if let Ok(io) = acceptor.accept(io).await {
                        drive(io, speaks, hello, Arc::default()).await;
                    }
                });
            }
        });
        address
    }

    fn client(&self, identity: Option<(PathBuf, PathBuf)>) -> UpstreamTls {
        UpstreamTls { ca: Some(self.path("ca.pem")), server_name: Some("order.internal".into()), identity }
    }
}

#[tokio::test]
async fn both_protocols_run_over_tls_and_over_mutual_tls() {
    let ca = Authority::new();
    let identity = ca.issue("weft.internal");
    for mutual in [false, true] {
        let h1 = ca.serve(Speaks::H1, &["http/1.1"], mutual).await;
        let h2 = ca.serve(Speaks::H2, &["h2"], mutual).await;
        let w = world();
        let tls = || ca.client(mutual.then(|| identity.clone()));
        w.mesh
            .apply(&[
                with_tls(service("one", Protocol::Http, &[&h1]), tls()),
                with_tls(service("two", Protocol::H2, &[&h2]), tls()),
            ])
            .unwrap();
        for s in ["one", "two", "one", "two"] {
            assert_eq!(text(&w.mesh, s).await.unwrap(), "secret", "{s}, mutual: {mutual}");
        }
    }
}

#[tokio::test]
async fn a_wrong_name_a_strange_authority_a_missing_certificate_and_no_alpn_are_refused() {
    let (ca, stranger) = (Authority::new(), Authority::new());
    let plain = ca.serve(Speaks::H1, &["http/1.1"], false).await;
    let mutual = ca.serve(Speaks::H1, &["http/1.1"], true).await;
    let no_alpn = ca.serve(Speaks::H2, &[], false).await;
    let w = world();
    let other_name = UpstreamTls { server_name: Some("other.internal".into()), ..ca.client(None) };
    w.mesh
        .apply(&[
            with_tls(service("name", Protocol::Http, &[&plain]), other_name),
            with_tls(service("strange", Protocol::Http, &[&plain]), stranger.client(None)),
            with_tls(service("anonymous", Protocol::Http, &[&mutual]), ca.client(None)),
            with_tls(service("alpn", Protocol::H2, &[&no_alpn]), ca.client(None)),
        ])
        .unwrap();
    for (s, said) in [("name", "not valid for name"), ("strange", "invalid peer certificate"), ("alpn", "ALPN")] {
        let e = text(&w.mesh, s).await.unwrap_err();
        assert!(matches!(e, Error::Connect { .. }) && e.to_string().contains(said), "{s}: {e}");
    }
    // With TLS 1.3 the server refuses after the client's handshake is done, so it may show on the first exchange.
    let e = text(&w.mesh, "anonymous").await.unwrap_err();
    assert!(matches!(e, Error::Connect { .. } | Error::ResetBeforeBytes { .. } | Error::Unsent { .. }), "{e}");
}

#[tokio::test]
async fn a_file_that_cannot_be_used_is_named_and_nothing_changes() {
    let ca = Authority::new();
    let at = ca.serve(Speaks::H1, &[], false).await;
    let w = world();
    let good = with_tls(service("a", Protocol::Http, &[&at]), ca.client(None));
    w.mesh.apply(std::slice::from_ref(&good)).unwrap();
    std::fs::write(ca.path("junk.pem"), "junk").unwrap();
    let with_ca = |ca| Some(UpstreamTls { ca, ..Default::default() });
    for (tls, said) in [
        (with_ca(Some(ca.path("missing.pem"))), "missing.pem"),
        (with_ca(Some(ca.path("junk.pem"))), "junk.pem: holds no PEM certificate"),
        (with_ca(None), "name a `ca` file"),
    ] {
        let bad = weft_mesh::ServiceSpec { tls, ..service("b", Protocol::Http, &[&at]) };
        let e = w.mesh.apply(&[bad]).unwrap_err();
        assert!(e.to_string().contains(said), "{e}");
        assert_eq!(text(&w.mesh, "a").await.unwrap(), "secret", "what ran before runs on");
    }
}

#[tokio::test]
async fn a_large_upload_reaches_a_slow_server_to_its_last_byte() {
    let ca = Authority::new();
    let at = ca.serve(Speaks::H1, &["http/1.1"], false).await;
    let w = world();
    w.mesh.apply(&[with_tls(service("a", Protocol::Http, &[&at]), ca.client(None))]).unwrap();
    for n in [8 << 20, (8 << 20) + 1, (9 << 20) + 12_345] {
        let put = Outbound::new(http::Request::put("/").body(bytes::Bytes::from(vec![b'x'; n])).unwrap());
        let sent = send(&w.mesh, "a", &put);
        let reply =
            tokio::time::timeout(std::time::Duration::from_secs(20), sent).await.expect("it is flushed").unwrap();
        assert_eq!(read(reply).await.unwrap(), n.to_string());
    }
}
