use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use weft_core::Trace;
use weft_edge::spec::Target;
use weft_mesh::Protocol;
use weft_telemetry::{SpanKind, SpanStatus};

use crate::support::*;

#[tokio::test]
async fn a_request_passes_through_with_the_fields_a_proxy_adds() {
    let w = one(echo().await, |_| {}).await;
    let mut r = get("/a/b?x=1");
    r.headers_mut().insert("connection", "keep-alive, x-hop".parse().unwrap());
    r.headers_mut().insert("x-hop", "1".parse().unwrap());
    r.headers_mut().insert("x-end", "2".parse().unwrap());
    let (head, body) = w.send(r).await.into_parts();
    let text = String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap();
    assert_eq!(head.status, 200);
    assert_eq!(head.headers["via"], "1.1 weft");
    for line in [
        "GET /a/b?x=1",
        "host: shop.test",
        "x-end: 2",
        "x-forwarded-for: 127.0.0.1",
        "x-forwarded-proto: http",
        "x-forwarded-host: shop.test",
        "via: 1.1 weft",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
    }
    assert!(!text.contains("x-hop"), "{text}");
}

#[tokio::test]
async fn paths_are_rewritten_and_the_query_stays() {
    let w = one(echo().await, |r| {
        r.matches.path = "/v1/orders/**".into();
        r.to = Target::Service { service: name("s"), path: Some("/orders/{**}".into()) };
    })
    .await;
    let (_, body) = w.get("/v1/orders/7/lines?x=a%20b").await;
    assert!(body.starts_with(b"GET /orders/7/lines?x=a%20b\n"), "{body:?}");
    let (_, body) = w.get("/v1/orders").await;
    assert!(body.starts_with(b"GET /orders\n"), "{body:?}");
}

#[tokio::test]
async fn the_trace_of_a_trusted_caller_goes_on_through_the_gateway() {
    let w = one(echo().await, |_| {}).await;
    let caller = Trace::root();
    let mut r = get("/x");
    r.headers_mut().insert("traceparent", caller.to_traceparent().parse().unwrap());
    let body = w.send(r).await.into_body().collect().await.unwrap().to_bytes();
    let text = String::from_utf8(body.to_vec()).unwrap();
    let sent = text.lines().find_map(|l| l.strip_prefix("traceparent: ")).and_then(Trace::parse).unwrap();
    let spans = spans(&w, caller, 2).await;
    let server = spans.iter().find(|s| s.kind == SpanKind::Server).unwrap();
    let client = spans.iter().find(|s| s.kind == SpanKind::Client).unwrap();
    assert_eq!(server.trace.parent, Some(caller.span_id));
    assert_eq!(client.trace.parent, Some(server.trace.span_id));
    assert_eq!((sent.trace_id, sent.span_id), (caller.trace_id, client.trace.span_id));
    assert_eq!((server.status, server.name.as_str()), (SpanStatus::Ok, "GET /**"));
}

/// Spans are recorded when the answer's body was written, which a client can see a moment earlier.
async fn spans(w: &World, trace: Trace, n: usize) -> Vec<weft_telemetry::SpanRecord> {
    for _ in 0..200 {
        let spans = w.telemetry.trace(trace.trace_id);
        if spans.len() >= n {
            return spans;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("{:?}", w.telemetry.trace(trace.trace_id));
}

#[tokio::test]
async fn requests_are_counted_by_route_and_status() {
    let w = one(echo().await, |_| {}).await;
    for _ in 0..3 {
        w.get("/x").await;
    }
    let text = || w.telemetry.metrics().render_prometheus();
    for _ in 0..200 {
        if text().contains(r#"weft_http_requests_total{route="all",code="200"} 3"#) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("{}", text());
}

#[tokio::test]
async fn no_route_is_404_and_another_method_is_405_with_allow() {
    let w = one(echo().await, |r| {
        r.matches.path = "/a".into();
        r.matches.methods = vec!["PUT".into()];
    })
    .await;
    let (status, body) = w.get("/b").await;
    assert_eq!((status, json(&body)["code"].as_str()), (StatusCode::NOT_FOUND, Some("route-not-found")));
    let r = w.send(get("/a")).await;
    assert_eq!(r.status(), StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(
        (&r.headers()["allow"], &r.headers()["content-type"]),
        (&"PUT".parse().unwrap(), &"application/problem+json".parse().unwrap())
    );
}

#[tokio::test]
async fn a_large_body_streams_both_ways_without_being_held() {
    // 256 MiB through a service that sends back what it gets, to a client that at first does not read.
    const CHUNK: usize = 64 << 10;
    const CHUNKS: usize = 4096;
    let address = service(|r| async move {
        let (_, body) = r.into_parts();
        http::Response::new(body.map_err(Into::into).boxed_unsync())
    })
    .await;
    let w = one(address, |_| {}).await;
    let made = Arc::new(AtomicUsize::new(0));
    let counted = made.clone();
    let data = Bytes::from(vec![7; CHUNK]);
    let stream = futures_util::stream::unfold(0usize, move |i| {
        counted.store(i, Ordering::SeqCst);
        let frame = Frame::data(data.clone());
        async move { (i < CHUNKS).then(|| (Ok::<_, BoxError>(frame), i + 1)) }
    });
    let body = BodyExt::boxed_unsync(StreamBody::new(stream));
    let r = Request::post("/x").header("host", "h").body(body).unwrap();
    let mut answer = send(w.address(), r).await.into_body();
    let mut before = usize::MAX;
    while before != made.load(Ordering::SeqCst) {
        before = made.load(Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    // What the kernel buffers on the way (four connections' buffers, each up to some MiB), and not much more.
    assert!(before * CHUNK < 96 << 20, "{} bytes were taken while nobody read", before * CHUNK);
    let mut got = 0;
    while let Some(frame) = answer.frame().await {
        got += frame.unwrap().into_data().unwrap().len();
    }
    assert_eq!(got, CHUNK * CHUNKS);
}

#[tokio::test]
async fn a_swap_changes_routes_and_a_bad_one_changes_nothing() {
    let w = one(echo().await, |r| r.matches.path = "/old".into()).await;
    assert_eq!(w.get("/old").await.0, 200);
    let mut spec = gateway(vec![route("all", "/new", "s")]);
    w.gateway.swap(&spec).unwrap();
    assert_eq!((w.get("/old").await.0, w.get("/new").await.0), (StatusCode::NOT_FOUND, StatusCode::OK));
    spec.routes.push(route("again", "/new", "s"));
    let e = w.gateway.swap(&spec).unwrap_err().to_string();
    assert!(e.contains("'again'") && e.contains("'all'"), "{e}");
    assert_eq!(w.get("/new").await.0, 200);
}

#[tokio::test]
async fn an_unknown_service_is_503_no_instance() {
    let w = World::start(gateway(vec![route("all", "/**", "nobody")]), &[spec_of("s", Protocol::Http, &[])]).await;
    let (status, body) = w.get("/x").await;
    assert_eq!((status, json(&body)["code"].as_str()), (StatusCode::SERVICE_UNAVAILABLE, Some("no-instance")));
}

#[tokio::test]
async fn a_head_request_has_no_body_and_keeps_its_connection() {
    let w = one(echo().await, |_| {}).await;
    let text = raw(
        w.address(),
        b"HEAD /x HTTP/1.1\r\nhost: h\r\n\r\nHEAD /y HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n",
    )
    .await;
    assert_eq!(text.matches("HTTP/1.1 200 OK").count(), 2, "{text}");
    assert!(!text.contains("HEAD /x"), "{text}");
    let _ = Full::<Bytes>::default();
}
