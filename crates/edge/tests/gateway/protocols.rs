use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Version};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use weft_edge::spec::{ListenSpec, TlsSpec};
use weft_mesh::Protocol;

use crate::support::*;

#[tokio::test]
async fn http2_with_prior_knowledge_and_http1_share_a_listener() {
    let w = one(echo().await, |_| {}).await;
    let mut client = h2(w.address()).await;
    for i in 0..3 {
        let r = Request::get(format!("http://shop.test/{i}")).body(Full::<Bytes>::default()).unwrap();
        let r = client.send_request(r).await.unwrap();
        assert_eq!(
            (r.status().as_u16(), r.version(), &r.headers()["via"]),
            (200, Version::HTTP_2, &"1.1 weft".parse().unwrap())
        );
        let text = r.into_body().collect().await.unwrap().to_bytes();
        let text = String::from_utf8(text.to_vec()).unwrap();
        for line in
            [format!("GET /{i}"), "host: shop.test".into(), "x-forwarded-host: shop.test".into(), "via: 2 weft".into()]
        {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
    }
    assert_eq!(w.get("/x").await.0, 200);
}

#[tokio::test]
async fn tls_agrees_on_a_protocol_by_alpn() {
    let dir = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["shop.test".into()]).unwrap();
    let (chain, key) = (dir.path().join("c.pem"), dir.path().join("k.pem"));
    std::fs::write(&chain, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let mut spec = gateway(vec![route("all", "/**", "s")]);
    spec.listen =
        vec![ListenSpec { tls: Some(TlsSpec { certificates: vec![(chain, key)], client: None }), ..listen() }];
    let w = World::start(spec, &[spec_of("s", Protocol::Http, &[echo().await])]).await;

    let mut roots = rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    for alpn in ["h2", "http/1.1"] {
        let mut config =
            rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(roots.clone())
                .with_no_client_auth();
        config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
        let tcp = TcpStream::connect(w.address()).await.unwrap();
        let name = "shop.test".try_into().unwrap();
        let io = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap();
        assert_eq!(io.get_ref().1.alpn_protocol(), Some(alpn.as_bytes()));
        let io = TokioIo::new(io);
        let r = |uri: &str| Request::get(uri).header("host", "shop.test").body(Full::<Bytes>::default()).unwrap();
        let answer = if alpn == "h2" {
            let (mut s, c) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
            tokio::spawn(c);
            s.send_request(r("https://shop.test/x")).await.unwrap()
        } else {
            let (mut s, c) = hyper::client::conn::http1::handshake(io).await.unwrap();
            tokio::spawn(c);
            s.send_request(r("/x")).await.unwrap()
        };
        assert_eq!(answer.status(), 200);
        let text = answer.into_body().collect().await.unwrap().to_bytes();
        assert!(String::from_utf8_lossy(&text).contains("x-forwarded-proto: https"));
    }
}
