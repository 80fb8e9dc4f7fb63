use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use http_body_util::BodyExt as _;
use weft_core::limits;
use weft_policy::spec::Idempotency;

use crate::support::*;

fn status_line(text: &str) -> &str {
    text.lines().next().unwrap_or("(nothing)")
}

#[tokio::test]
async fn malformed_requests_are_answered_400_and_do_not_disturb_others() {
    let w = one(echo().await, |_| {}).await;
    for bad in [
        &b"GET\r\n\r\n"[..],
        b"GET /a b HTTP/1.1\r\nhost: h\r\n\r\n",
        b"GET / HTTP/9.9\r\nhost: h\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/1.1\r\nhost: h\r\nbad header: 1\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: h\r\n folded: 1\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: h\r\nx: a\0b\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: h\r\ncontent-length: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
        b"POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: gzip\r\n\r\n",
        b"POST / HTTP/1.0\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    ] {
        let text = raw(w.address(), bad).await;
        assert!(status_line(&text).starts_with("HTTP/1.1 400"), "{:?} got {text:?}", String::from_utf8_lossy(bad));
    }
    assert_eq!(w.get("/x").await.0, 200);
}

#[tokio::test]
async fn a_request_needs_exactly_one_host_and_a_path_in_normal_form() {
    let w = one(echo().await, |_| {}).await;
    for (bad, code) in [
        ("GET / HTTP/1.1\r\n\r\n", "bad-request"),
        ("GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", "bad-request"),
        ("GET /a/../b HTTP/1.1\r\nhost: a\r\n\r\n", "invalid-path"),
        ("GET /a/%2e%2E/b HTTP/1.1\r\nhost: a\r\n\r\n", "invalid-path"),
        ("GET /a%zz HTTP/1.1\r\nhost: a\r\n\r\n", "invalid-path"),
    ] {
        let text = raw(w.address(), bad.as_bytes()).await;
        assert!(
            status_line(&text).starts_with("HTTP/1.1 400") && text.contains(&format!(r#""code":"{code}""#)),
            "{bad:?} {text}"
        );
    }
}

#[tokio::test]
async fn heads_over_the_limits_are_431() {
    let w = one(echo().await, |_| {}).await;
    let long = format!("GET / HTTP/1.1\r\nhost: h\r\nx: {}\r\n\r\n", "a".repeat(limits::HEADER_BYTES + 1));
    assert!(status_line(&raw(w.address(), long.as_bytes()).await).starts_with("HTTP/1.1 431"));
    let fields = |n: usize| {
        let many: String = (0..n - 1).map(|i| format!("x-{i}: 1\r\n")).collect();
        format!("GET / HTTP/1.1\r\nhost: h\r\n{many}\r\n")
    };
    assert!(
        status_line(&raw(w.address(), fields(limits::HEADER_COUNT + 1).as_bytes()).await).starts_with("HTTP/1.1 431")
    );
    assert!(status_line(&raw(w.address(), fields(limits::HEADER_COUNT).as_bytes()).await).starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn a_request_cannot_be_smuggled_behind_another() {
    let seen = Arc::new(AtomicUsize::new(0));
    let counted = seen.clone();
    let address = service(move |r| {
        let seen = counted.clone();
        async move {
            seen.fetch_add(1, Ordering::SeqCst);
            let path = r.uri().path().to_owned();
            let n = r.into_body().collect().await.map(|b| b.to_bytes().len()).unwrap_or(0);
            answer(200, format!("{path} {n}"))
        }
    })
    .await;
    let w = one(address, |_| {}).await;
    // CL.TE (RFC 9112 6.1): the chunked framing counts, and the connection is closed after the answer, so that what
    // follows is nobody's request.
    let text = raw(
        w.address(),
        b"POST /a HTTP/1.1\r\nhost: h\r\ncontent-length: 6\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nGET /b HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n",
    )
    .await;
    assert_eq!((text.matches("HTTP/1.1 ").count(), seen.load(Ordering::SeqCst)), (1, 1), "{text}");
    assert!(text.contains("/a 0") && text.contains("connection: close"), "{text}");
    // TE.TE with something that only looks like chunked.
    for te in ["xchunked", "chunked, identity", "chunked\x0b"] {
        let bad = format!("POST /c HTTP/1.1\r\nhost: h\r\ntransfer-encoding: {te}\r\n\r\n0\r\n\r\n");
        let text = raw(w.address(), bad.as_bytes()).await;
        assert!(status_line(&text).starts_with("HTTP/1.1 400"), "{te}: {text}");
    }
    assert_eq!(seen.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_broken_chunk_ends_the_request_and_not_the_gateway() {
    let w = one(echo().await, |_| {}).await;
    let text =
        raw(w.address(), b"POST /a HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\nZZ\r\nabc\r\n").await;
    assert!(!text.contains("200 OK"), "{text}");
    assert_eq!(w.get("/x").await.0, 200);
}

#[tokio::test]
async fn a_collected_body_over_the_limit_is_413_and_one_at_it_is_not() {
    let w = one(echo().await, |r| {
        r.policy.idempotency = Some(Idempotency { public: true, ..Default::default() });
    })
    .await;
    let send = |n: usize, key: &str| {
        let body = http_body_util::Full::new(bytes::Bytes::from(vec![b'a'; n]));
        let r = http::Request::put("/x").header("host", "h").header("idempotency-key", key).body(body).unwrap();
        w.send(r)
    };
    let over = send(limits::COLLECTED_BODY_BYTES + 1, "a").await;
    assert_eq!(over.status(), 413);
    let body = json(&over.into_body().collect().await.unwrap().to_bytes());
    assert_eq!(body["limit"], limits::COLLECTED_BODY_BYTES);
    assert_eq!(send(limits::COLLECTED_BODY_BYTES, "b").await.status(), 200);
    assert_eq!(send(limits::COLLECTED_BODY_BYTES, "b").await.status(), 409, "its answer is larger than what is kept");
}

#[tokio::test]
async fn an_upgrade_that_is_not_allowed_and_connect_are_refused_clearly() {
    let w = one(echo().await, |r| r.protocols.upgrade.clear()).await;
    let text =
        raw(w.address(), b"GET /ws HTTP/1.1\r\nhost: h\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n").await;
    assert!(status_line(&text).contains("501") && text.contains("not-implemented"), "{text}");
    let text = raw(w.address(), b"CONNECT a:1 HTTP/1.1\r\nhost: a:1\r\n\r\n").await;
    assert!(status_line(&text).contains("501"), "{text}");
    let text =
        raw(w.address(), b"GET /x HTTP/1.1\r\nhost: h\r\nconnection: upgrade, close\r\nupgrade: h2c\r\n\r\n").await;
    assert!(status_line(&text).contains("200"), "an h2c upgrade is an offer that may be ignored: {text}");
}
