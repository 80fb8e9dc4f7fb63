//! TLS at the listener: certificates by SNI, swapped under load, client certificates, resumption.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, SanType,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, HandshakeKind, RootCertStore, SupportedProtocolVersion};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use weft_edge::spec::{ClientCertificates, GatewaySpec, ListenSpec, TlsSpec};
use weft_mesh::Protocol;

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

    fn ca(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// Writes a certificate and key under a file name.
    fn issue(&self, file: &str, names: &[&str]) -> (PathBuf, PathBuf) {
        self.issue_with(file, CertificateParams::new(names.iter().map(|n| n.to_string()).collect::<Vec<_>>()).unwrap())
    }

    fn issue_with(&self, file: &str, mut params: CertificateParams) -> (PathBuf, PathBuf) {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        let files = (self.dir.path().join(format!("{file}.pem")), self.dir.path().join(format!("{file}.key")));
        std::fs::write(&files.0, cert.pem()).unwrap();
        std::fs::write(&files.1, key.serialize_pem()).unwrap();
        files
    }

    fn client(&self, identity: Option<&(PathBuf, PathBuf)>) -> ClientConfig {
        self.client_of(identity, rustls::DEFAULT_VERSIONS)
    }

    fn client_of(
        &self,
        identity: Option<&(PathBuf, PathBuf)>,
        versions: &[&'static SupportedProtocolVersion],
    ) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots);
        match identity {
            None => builder.with_no_client_auth(),
            Some((chain, key)) => {
                let chain = CertificateDer::pem_file_iter(chain).unwrap().map(Result::unwrap).collect();
                builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_file(key).unwrap()).unwrap()
            }
        }
    }
}

fn spec(certificates: Vec<(PathBuf, PathBuf)>, client: Option<ClientCertificates>) -> GatewaySpec {
    let mut spec = gateway(vec![route("all", "/**", "s")]);
    spec.listen = vec![ListenSpec { tls: Some(TlsSpec { certificates, client }), ..listen() }];
    spec
}

async fn world(spec: GatewaySpec) -> World {
    World::start(spec, &[spec_of("s", Protocol::Http, &[echo().await])]).await
}

async fn connect(w: &World, config: ClientConfig, name: &str) -> std::io::Result<TlsStream<TcpStream>> {
    connect_with(w.address(), &Arc::new(config), name).await
}

async fn connect_with(
    to: std::net::SocketAddr,
    config: &Arc<ClientConfig>,
    name: &str,
) -> std::io::Result<TlsStream<TcpStream>> {
    let tcp = TcpStream::connect(to).await?;
    tokio_rustls::TlsConnector::from(config.clone()).connect(name.to_owned().try_into().unwrap(), tcp).await
}

/// The answer to one request, read to the end of the connection.
async fn ask(io: &mut TlsStream<TcpStream>, path: &str) -> std::io::Result<String> {
    use tokio::io::AsyncReadExt as _;
    io.write_all(format!("GET {path} HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n").as_bytes()).await?;
    let mut all = Vec::new();
    io.read_to_end(&mut all).await?;
    Ok(String::from_utf8_lossy(&all).into_owned())
}

fn served(io: &TlsStream<TcpStream>) -> CertificateDer<'static> {
    io.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned()
}

fn leaf(files: &(PathBuf, PathBuf)) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(&files.0).unwrap()
}

#[tokio::test]
async fn the_certificate_is_chosen_by_the_name_the_client_asks_for() {
    let ca = Authority::new();
    let (shop, wild, other) = (
        ca.issue("shop", &["shop.test", "www.shop.test"]),
        ca.issue("wild", &["*.shop.test"]),
        ca.issue("other", &["other.test"]),
    );
    let w = world(spec(vec![other.clone(), shop.clone(), wild.clone()], None)).await;
    for (name, expected) in [
        ("shop.test", &shop),
        ("www.shop.test", &shop),
        ("api.shop.test", &wild),
        ("API.Shop.Test", &wild),
        ("other.test", &other),
    ] {
        let mut io = connect(&w, ca.client(None), name).await.unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(served(&io), leaf(expected), "{name}");
        assert!(ask(&mut io, "/x").await.unwrap().starts_with("HTTP/1.1 200"));
    }
    // One label for the star; and a name that no certificate has gets the first, which it does not fit.
    for name in ["a.b.shop.test", "strange.test"] {
        let e = connect(&w, ca.client(None), name).await.unwrap_err();
        assert!(e.to_string().contains("not valid for name"), "{name}: {e}");
    }
}

#[tokio::test]
async fn certificates_are_swapped_under_load_without_one_failed_handshake() {
    let ca = Authority::new();
    let files = ca.issue("shop", &["shop.test"]);
    let first = leaf(&files);
    let spec = spec(vec![files.clone()], None);
    let w = world(spec.clone()).await;
    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let mut clients = Vec::new();
    for _ in 0..4 {
        let (address, stop, done) = (w.address(), stop.clone(), done.clone());
        let config = Arc::new(ca.client(None));
        clients.push(tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                let mut io = connect_with(address, &config, "shop.test").await.expect("no handshake fails");
                let answer = ask(&mut io, "/x").await.expect("no request fails");
                assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
                done.fetch_add(1, Ordering::Relaxed);
            }
        }));
    }
    let mut last = first.clone();
    for _ in 0..20 {
        let before = done.load(Ordering::Relaxed);
        ca.issue("shop", &["shop.test"]);
        last = leaf(&files);
        w.gateway.swap(&spec).unwrap();
        while done.load(Ordering::Relaxed) < before + 5 {
            tokio::task::yield_now().await;
        }
        let io = connect(&w, ca.client(None), "shop.test").await.unwrap();
        assert_eq!(served(&io), last, "a new connection is served the new certificate");
    }
    assert_ne!(first, last);
    // A bad pair changes nothing.
    let other = ca.issue("other", &["shop.test"]);
    std::fs::copy(&other.1, &files.1).unwrap();
    let e = w.gateway.swap(&spec).unwrap_err().to_string();
    assert!(e.contains("shop.key"), "{e}");
    let io = connect(&w, ca.client(None), "shop.test").await.unwrap();
    assert_eq!(served(&io), last);
    stop.store(true, Ordering::Relaxed);
    for c in clients {
        c.await.unwrap();
    }
}

#[tokio::test]
async fn a_session_is_resumed_with_both_versions_also_after_a_reload_and_not_when_clients_are_asked_for_something_else()
{
    let ca = Authority::new();
    let files = ca.issue("shop", &["shop.test"]);
    let plain = spec(vec![files.clone()], None);
    let w = world(plain.clone()).await;
    for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
        let config = Arc::new(ca.client_of(None, &[version]));
        let kind = async || {
            let mut io = connect_with(w.address(), &config, "shop.test").await.unwrap();
            ask(&mut io, "/x").await.unwrap();
            assert_eq!(io.get_ref().1.protocol_version(), Some(version.version));
            io.get_ref().1.handshake_kind().unwrap()
        };
        assert_eq!(kind().await, HandshakeKind::Full);
        assert_eq!(kind().await, HandshakeKind::Resumed);
        w.gateway.swap(&plain).unwrap();
        assert_eq!(kind().await, HandshakeKind::Resumed, "{version:?}");
        w.gateway.swap(&spec(vec![files.clone()], Some(ClientCertificates { ca: ca.ca(), required: false }))).unwrap();
        assert_eq!(kind().await, HandshakeKind::Full, "{version:?}");
        w.gateway.swap(&plain).unwrap();
    }
}

#[tokio::test]
async fn a_client_certificate_is_required_by_the_listener_or_by_the_route() {
    let (ca, stranger) = (Authority::new(), Authority::new());
    let files = ca.issue("shop", &["shop.test"]);
    let mine = ca.issue("ada", &["ada.clients.test"]);
    let strange = stranger.issue("eve", &["ada.clients.test"]);
    let asks = |required| Some(ClientCertificates { ca: ca.ca(), required });

    let w = world(spec(vec![files.clone()], asks(true))).await;
    let mut io = connect(&w, ca.client(Some(&mine)), "shop.test").await.unwrap();
    assert!(ask(&mut io, "/x").await.unwrap().starts_with("HTTP/1.1 200"));
    for client in [ca.client(None), ca.client(Some(&strange))] {
        // With TLS 1.3 the client is done before the server has looked at its certificate.
        let refused = match connect(&w, client, "shop.test").await {
            Ok(mut io) => ask(&mut io, "/x").await,
            Err(e) => Err(e),
        };
        assert!(refused.is_err(), "{refused:?}");
    }

    let mut optional = spec(vec![files], asks(false));
    let mut guarded = route("guarded", "/guarded", "s");
    guarded.protocols.client_certificate = true;
    optional.routes.push(guarded);
    let w = world(optional).await;
    for (path, status) in [("/x", "200"), ("/guarded", "403")] {
        let mut io = connect(&w, ca.client(None), "shop.test").await.unwrap();
        let answer = ask(&mut io, path).await.unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{answer}");
        assert_eq!(answer.contains("client-certificate-required"), status == "403");
        let mut io = connect(&w, ca.client(Some(&mine)), "shop.test").await.unwrap();
        assert!(ask(&mut io, path).await.unwrap().starts_with("HTTP/1.1 200"));
    }
}

#[tokio::test]
async fn a_verified_certificate_names_the_principal() {
    let ca = Authority::new();
    let files = ca.issue("shop", &["shop.test"]);
    let with = |uri: Option<&str>, names: &[&str], common: &str| {
        let mut p = CertificateParams::new(names.iter().map(|n| n.to_string()).collect::<Vec<_>>()).unwrap();
        p.distinguished_name.push(DnType::CommonName, common);
        if let Some(u) = uri {
            p.subject_alt_names.push(SanType::URI(u.try_into().unwrap()));
        }
        p
    };
    let people = [
        ca.issue_with("a", with(Some("spiffe://shop.test/billing"), &["billing.test"], "billing")),
        ca.issue_with("b", with(None, &["billing.test"], "billing")),
        ca.issue_with("c", with(None, &[], "billing")),
    ];
    // One request a day each: the second of the same principal is refused, the others' are their own.
    let mut spec = spec(vec![files], Some(ClientCertificates { ca: ca.ca(), required: true }));
    spec.routes[0].policy.rate = vec![weft_policy::spec::Rate {
        limit: 1,
        period: std::time::Duration::from_secs(86_400),
        per: weft_policy::spec::RatePer::Principal,
        ..Default::default()
    }];
    let w = world(spec).await;
    for expected in ["200", "429"] {
        for person in &people {
            let mut io = connect(&w, ca.client(Some(person)), "shop.test").await.unwrap();
            let answer = ask(&mut io, "/x").await.unwrap();
            assert!(answer.starts_with(&format!("HTTP/1.1 {expected}")), "{answer}");
        }
    }
}
