//! One attempt: pools, replays, streams, failures.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use weft_core::Context;
use weft_mesh::{Body, BoxError, Error, Outbound, Protocol};
use weft_policy::outcome::Judged as _;

use crate::support::*;

/// A body fed by hand.
fn channel() -> (mpsc::Sender<Result<Frame<Bytes>, BoxError>>, Body) {
    let (tx, rx) = mpsc::channel(1);
    (tx, Body::stream(StreamBody::new(tokio_stream::wrappers::ReceiverStream::new(rx))))
}

#[tokio::test]
async fn requests_in_turn_share_one_connection_in_both_protocols() {
    for (speaks, protocol) in [(Speaks::H1, Protocol::Http), (Speaks::H2, Protocol::H2)] {
        let server = serve(speaks, async |_| answer("hello")).await;
        let w = world();
        w.mesh.apply(&[service("a", protocol, &[&server.at()])]).unwrap();
        for _ in 0..20 {
            assert_eq!(text(&w.mesh, "a").await.unwrap(), "hello");
        }
        assert_eq!((server.requests(), server.connections()), (20, 1));
    }
}

#[tokio::test]
async fn bodies_stream_in_both_directions_and_trailers_pass() {
    for (speaks, protocol) in [(Speaks::H1, Protocol::Http), (Speaks::H2, Protocol::H2)] {
        // Echoes each frame before it has seen the next.
        let server = serve(speaks, async |req| {
            let trailers = async {
                let mut t = HeaderMap::new();
                t.insert("x-end", HeaderValue::from_static("yes"));
                Some(Ok::<_, std::convert::Infallible>(t))
            };
            let frames = req.into_body().into_data_stream().map(|d| d.map(Frame::data));
            let body = StreamBody::new(frames).with_trailers(async { trailers.await.map(|t| Ok(t.unwrap())) });
            Response::builder().header("trailer", "x-end").body(Body::stream(body)).unwrap()
        })
        .await;
        let w = world();
        w.mesh.apply(&[service("a", protocol, &[&server.at()])]).unwrap();
        let (tx, body) = channel();
        // HTTP/1.1 sends trailers only to who says TE: trailers (RFC 9110 10.1.4).
        let request = Request::post("/").header("te", "trailers").body(body).unwrap();
        let out = Outbound::new(request);
        tx.send(Ok(Frame::data(Bytes::from_static(b"0")))).await.unwrap();
        let mut reply = send(&w.mesh, "a", &out).await.unwrap().response.into_body();
        for i in 0..50u8 {
            let got = reply.frame().await.unwrap().unwrap().into_data().unwrap();
            assert_eq!(got[..], i.to_string().into_bytes()[..], "each frame comes back before the next is sent");
            if i < 49 {
                tx.send(Ok(Frame::data((i + 1).to_string().into()))).await.unwrap();
            }
        }
        drop(tx);
        let mut end = None;
        while let Some(frame) = reply.frame().await {
            end = frame.unwrap().into_trailers().ok().or(end);
        }
        assert_eq!(end.unwrap()["x-end"], "yes");
    }
}

#[tokio::test]
async fn a_big_answer_is_passed_on_and_never_collected() {
    // More than any buffer on the way: the server can only get ahead of the reader by those buffers.
    let produced = Arc::new(AtomicUsize::new(0));
    let counted = produced.clone();
    let server = serve(Speaks::H1, move |_| {
        let counted = counted.clone();
        async move {
            let frames = futures_util::stream::iter(0..4_096).map(move |_| {
                counted.fetch_add(1, Ordering::SeqCst);
                Ok::<_, BoxError>(Frame::data(Bytes::from(vec![7; 64 << 10])))
            });
            Response::new(Body::stream(StreamBody::new(frames)))
        }
    })
    .await;
    let w = world();
    w.mesh.apply(&[service("a", Protocol::Http, &[&server.at()])]).unwrap();
    let mut body = send(&w.mesh, "a", &get("/")).await.unwrap().response.into_body();
    let mut bytes = body.frame().await.unwrap().unwrap().into_data().unwrap().len();
    // Let the server run as far as it can.
    let mut before = 0;
    loop {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let now = produced.load(Ordering::SeqCst);
        if now == before {
            break;
        }
        before = now;
    }
    assert!(before < 1_024, "{before} of 4096 chunks were produced while one was read");
    while let Some(frame) = body.frame().await {
        bytes += frame.unwrap().into_data().unwrap().len();
    }
    assert_eq!(bytes, 4_096 * (64 << 10));
}

/// Answers the first request of each connection and closes it when the second arrives, unanswered.
async fn one_answer_a_connection() -> (std::net::SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, seen) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let counted = seen.clone();
    tokio::spawn(async move {
        loop {
            let (mut io, _) = listener.accept().await.unwrap();
            let counted = counted.clone();
            tokio::spawn(async move {
                let mut buffer = [0; 4096];
                let _ = io.read(&mut buffer).await;
                counted.fetch_add(1, Ordering::SeqCst);
                let _ = io.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
                if io.read(&mut buffer).await.unwrap_or(0) > 0 {
                    counted.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
    });
    (address, seen)
}

#[tokio::test]
async fn a_keep_alive_race_is_settled_by_sending_again_on_a_fresh_connection() {
    let (address, seen) = one_answer_a_connection().await;
    let w = world();
    w.mesh.apply(&[service("a", Protocol::Http, &[&address.to_string()])]).unwrap();
    assert_eq!(text(&w.mesh, "a").await.unwrap(), "ok");
    assert_eq!(text(&w.mesh, "a").await.unwrap(), "ok");
    assert_eq!(seen.load(Ordering::SeqCst), 3, "the second request was sent twice");
    // A POST may have taken effect: that is not for the pool to judge.
    let post = || Outbound::new(Request::post("/").body(Bytes::from_static(b"x")).unwrap());
    let e = send(&w.mesh, "a", &post()).await.unwrap_err();
    assert!(matches!(e, Error::ResetBeforeBytes { .. }), "{e}");
    assert!(!e.outcome().unsent);
    assert_eq!(read(send(&w.mesh, "a", &post()).await.unwrap()).await.unwrap(), "ok");
}

#[tokio::test]
async fn a_server_that_closes_after_each_answer_serves_every_request() {
    let server = serve(Speaks::H1Close, async |_| answer("bye")).await;
    let w = world();
    w.mesh.apply(&[service("a", Protocol::Http, &[&server.at()])]).unwrap();
    for i in 0..20 {
        let out = if i % 2 == 0 {
            get("/")
        } else {
            Outbound::new(Request::post("/").body(Bytes::from_static(b"x")).unwrap())
        };
        assert_eq!(read(send(&w.mesh, "a", &out).await.unwrap()).await.unwrap(), "bye");
    }
    assert_eq!((server.requests(), server.connections()), (20, 20));
}

#[tokio::test]
async fn a_refused_connection_is_never_sent_and_the_next_attempt_goes_elsewhere_with_the_stream_intact() {
    let server = serve(Speaks::H1, async |req| answer(req.into_body().collect().await.unwrap().to_bytes())).await;
    let closed = closed_port();
    let w = world();
    w.mesh.apply(&[service("a", Protocol::Http, &[&closed.to_string(), &server.at()])]).unwrap();
    let mut failures = 0;
    for _ in 0..10 {
        let (tx, body) = channel();
        let out = Outbound::new(Request::post("/").body(body).unwrap());
        tokio::spawn(async move {
            let _ = tx.send(Ok(Frame::data(Bytes::from_static(b"streamed")))).await;
        });
        let reply = match send(&w.mesh, "a", &out).await {
            Ok(reply) => reply,
            Err(e) => {
                failures += 1;
                assert!(matches!(e, Error::Connect { .. }), "{e}");
                assert!(e.to_string().contains(&closed.to_string()), "{e}");
                assert!(e.outcome().unsent);
                send(&w.mesh, "a", &out).await.unwrap()
            }
        };
        assert_eq!(read(reply).await.unwrap(), "streamed");
    }
    assert_eq!(failures, 1, "after the first failure the instance is passed over for a while");
}

#[tokio::test]
async fn an_unknown_service_and_one_without_instances_are_named_in_the_error() {
    let w = world();
    w.mesh.apply(&[service("empty", Protocol::Http, &[])]).unwrap();
    let e = send(&w.mesh, "nobody", &get("/")).await.unwrap_err();
    assert!(matches!(&e, Error::NoInstances { known: false, .. }) && e.to_string().contains("'nobody'"), "{e}");
    let e = send(&w.mesh, "empty", &get("/")).await.unwrap_err();
    assert!(matches!(&e, Error::NoInstances { known: true, .. }) && e.to_string().contains("'empty'"), "{e}");
    assert_eq!((e.code(), e.outcome().unsent, e.outcome().breaker), ("no-instance", true, false));
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_told_from_one_that_never_came() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        for half in [true, false] {
            let (mut io, _) = listener.accept().await.unwrap();
            let mut buffer = [0; 4096];
            let _ = io.read(&mut buffer).await;
            if half {
                let _ = io.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf").await;
            }
        }
    });
    let w = world();
    w.mesh.apply(&[service("a", Protocol::Http, &[&address])]).unwrap();
    let e = text(&w.mesh, "a").await.unwrap_err();
    assert!(matches!(e, Error::ResetAfterBytes { .. }), "{e}");
    let e = text(&w.mesh, "a").await.unwrap_err();
    assert!(matches!(e, Error::ResetBeforeBytes { .. }), "{e}");
}

#[tokio::test]
async fn a_server_that_speaks_something_else_is_an_upstream_failure() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        let (mut io, _) = listener.accept().await.unwrap();
        let _ = io.write_all(b"220 mail.example ESMTP\r\n").await;
        let _ = io.read(&mut [0; 4096]).await;
    });
    let w = world();
    w.mesh.apply(&[service("a", Protocol::Http, &[&address])]).unwrap();
    let e = text(&w.mesh, "a").await.unwrap_err();
    assert!(!e.outcome().is_success() && e.outcome().breaker, "{e}");
}

#[tokio::test]
async fn a_body_that_fails_is_the_callers_fault() {
    let server = serve(Speaks::H1, async |req| {
        let _ = req.into_body().collect().await;
        answer("")
    })
    .await;
    let w = world();
    w.mesh.apply(&[service("a", Protocol::Http, &[&server.at()])]).unwrap();
    let (tx, body) = channel();
    tokio::spawn(async move {
        let _ = tx.send(Ok(Frame::data(Bytes::from_static(b"x")))).await;
        let _ = tx.send(Err("the client went away".into())).await;
    });
    let e = send(&w.mesh, "a", &Outbound::new(Request::post("/").body(body).unwrap())).await.unwrap_err();
    assert!(matches!(e, Error::RequestBody { .. }) && e.to_string().contains("the client went away"), "{e}");
    assert!(!e.outcome().breaker);
}

#[tokio::test]
async fn the_attempts_own_span_travels_in_traceparent_and_is_recorded() {
    let server = serve(Speaks::H1, async |req| answer(req.headers()["traceparent"].to_str().unwrap().to_owned())).await;
    let w = world();
    w.mesh.apply(&[service("a", Protocol::Http, &[&server.at()])]).unwrap();
    let ctx = Context::root();
    let reply = w.mesh.send(&ctx, "a", &get("/"), first()).await.unwrap();
    let seen = weft_core::Trace::parse(&read(reply).await.unwrap()).unwrap();
    assert_eq!(seen.trace_id, ctx.trace.trace_id);
    let spans = w.telemetry.trace(seen.trace_id);
    assert_eq!(spans.len(), 1);
    assert_eq!((spans[0].trace.span_id, spans[0].trace.parent), (seen.span_id, Some(ctx.trace.span_id)));
    assert_eq!(spans[0].get("server.address").unwrap().to_string(), server.at());
    assert_eq!(spans[0].get("weft.attempt").unwrap().to_string(), "1");
    let metrics = w.telemetry.metrics().render_prometheus();
    assert!(metrics.contains(r#"weft_upstream_requests_total{service="a",outcome="success"} 1"#), "{metrics}");
    assert!(metrics.contains(r#"weft_upstream_connects_total{service="a",result="ok"} 1"#), "{metrics}");
    assert!(metrics.contains(r#"weft_upstream_in_flight{service="a"} 0"#), "{metrics}");
}

#[tokio::test]
async fn an_attempt_given_up_frees_its_instance_and_is_recorded_as_failed() {
    let server = serve(Speaks::H1, async |_| std::future::pending().await).await;
    let w = world();
    w.mesh.apply(&[service("a", Protocol::Http, &[&server.at()])]).unwrap();
    let ctx = Context::root();
    let out = get("/");
    let sent = w.mesh.send(&ctx, "a", &out, first());
    assert!(tokio::time::timeout(Duration::from_millis(100), sent).await.is_err());
    assert_eq!(w.mesh.get("a").0.unwrap().instances[0].load, 0);
    let spans = w.telemetry.trace(ctx.trace.trace_id);
    assert_eq!(spans[0].get("error.type").unwrap().to_string(), "abandoned");
}

#[tokio::test]
async fn a_unix_socket_is_an_instance() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.sock");
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    tokio::spawn(async move {
        let hello = handler(async |_| answer("over unix"));
        loop {
            let (io, _) = listener.accept().await.unwrap();
            tokio::spawn(drive(io, Speaks::H1, hello.clone(), Arc::default()));
        }
    });
    let w = world();
    w.mesh.apply(&[service("a", Protocol::Http, &[&format!("unix:{}", path.display())])]).unwrap();
    assert_eq!(text(&w.mesh, "a").await.unwrap(), "over unix");
    assert_eq!(text(&w.mesh, "a").await.unwrap(), "over unix");
}
