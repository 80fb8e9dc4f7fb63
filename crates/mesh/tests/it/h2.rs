//! HTTP/2: a few shared connections, the peer's limits, going away.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use http::Request;
use http_body_util::BodyExt as _;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;
use tokio::sync::{Notify, Semaphore};
use weft_core::{Context, Deadline, limits};
use weft_mesh::{Body, Outbound, Protocol};
use weft_policy::attempt::Attempt;

use crate::support::*;

#[tokio::test]
async fn many_requests_at_once_use_few_connections() {
    let gate = Arc::new(Semaphore::new(0));
    let held = gate.clone();
    let server = serve(Speaks::H2, move |_| {
        let held = held.clone();
        async move {
            held.acquire().await.unwrap().forget();
            answer("ok")
        }
    })
    .await;
    let w = world();
    w.mesh.apply(&[service("a", Protocol::H2, &[&server.at()])]).unwrap();
    let all = join_all((0..150).map(|_| text(&w.mesh, "a")));
    let release = async {
        eventually("all 150 are under way at once", || server.requests() == 150).await;
        gate.add_permits(150);
    };
    let (all, ()) = tokio::join!(all, release);
    assert!(all.iter().all(|r| r.as_ref().is_ok_and(|t| t == "ok")));
    assert!(server.connections() <= limits::UPSTREAM_H2_CONNECTIONS, "{}", server.connections());
    assert!(server.connections() > 1, "load spreads");
}

#[tokio::test]
async fn the_peers_limit_of_streams_is_kept_and_nobody_is_refused() {
    const LIMIT: usize = 3;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    // By connection: streams open now, most at once.
    let streams: Arc<Mutex<HashMap<usize, (usize, usize)>>> = Arc::default();
    let seen = streams.clone();
    tokio::spawn(async move {
        for id in 0.. {
            let (io, _) = listener.accept().await.unwrap();
            let seen = seen.clone();
            let service = service_fn(move |_| {
                let seen = seen.clone();
                async move {
                    {
                        let mut all = seen.lock().unwrap();
                        let (now, most) = all.entry(id).or_default();
                        *now += 1;
                        *most = (*most).max(*now);
                    }
                    tokio::time::sleep(Duration::from_millis(2)).await;
                    seen.lock().unwrap().get_mut(&id).unwrap().0 -= 1;
                    Ok::<_, std::convert::Infallible>(answer("ok"))
                }
            });
            let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            builder.max_concurrent_streams(LIMIT as u32);
            tokio::spawn(builder.serve_connection(TokioIo::new(io), service));
        }
    });
    let w = world();
    w.mesh.apply(&[service("a", Protocol::H2, &[&address])]).unwrap();
    for _ in 0..3 {
        let all = join_all((0..60).map(|_| text(&w.mesh, "a"))).await;
        for r in all {
            assert_eq!(r.unwrap(), "ok");
        }
    }
    let streams = streams.lock().unwrap();
    assert!(streams.len() <= limits::UPSTREAM_H2_CONNECTIONS);
    assert!(streams.values().all(|(_, most)| *most <= LIMIT), "{streams:?}");
}

/// Closes each connection gracefully when told.
async fn going_away(go: Arc<Notify>) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = connections.clone();
    tokio::spawn(async move {
        loop {
            let (io, _) = listener.accept().await.unwrap();
            counted.fetch_add(1, Ordering::SeqCst);
            let go = go.clone();
            tokio::spawn(async move {
                let service = service_fn(async |req: Request<hyper::body::Incoming>| {
                    let body = req.into_body();
                    Ok::<_, std::convert::Infallible>(http::Response::new(body))
                });
                let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(io), service);
                let mut connection = std::pin::pin!(connection);
                tokio::select! {
                    _ = connection.as_mut() => return,
                    () = go.notified() => connection.as_mut().graceful_shutdown(),
                }
                let _ = connection.await;
            });
        }
    });
    (address, connections)
}

#[tokio::test]
async fn after_a_goaway_streams_finish_and_new_ones_take_a_new_connection() {
    let go = Arc::new(Notify::new());
    let (address, connections) = going_away(go.clone()).await;
    let w = world();
    w.mesh.apply(&[service("a", Protocol::H2, &[&address])]).unwrap();
    let (tx, rx) = tokio::sync::mpsc::channel::<Result<http_body::Frame<Bytes>, weft_mesh::BoxError>>(1);
    let body = Body::stream(http_body_util::StreamBody::new(tokio_stream::wrappers::ReceiverStream::new(rx)));
    let out = Outbound::new(Request::post("/").body(body).unwrap());
    let mut old = send(&w.mesh, "a", &out).await.unwrap().response.into_body();
    tx.send(Ok(http_body::Frame::data(Bytes::from_static(b"before ")))).await.unwrap();
    assert_eq!(old.frame().await.unwrap().unwrap().into_data().unwrap(), "before ");

    go.notify_waiters();
    for _ in 0..20 {
        let post = Outbound::new(Request::post("/").body(Bytes::from_static(b"new")).unwrap());
        assert_eq!(read(send(&w.mesh, "a", &post).await.unwrap()).await.unwrap(), "new");
        if connections.load(Ordering::SeqCst) == 2 {
            break;
        }
    }
    assert_eq!(connections.load(Ordering::SeqCst), 2);
    tx.send(Ok(http_body::Frame::data(Bytes::from_static(b"after")))).await.unwrap();
    drop(tx);
    assert_eq!(old.collect().await.unwrap().to_bytes(), "after", "the stream on the old connection went on");
}

#[tokio::test]
async fn a_stream_on_a_removed_instance_goes_on_after_its_connection_left_the_pool() {
    let (address, connections) = going_away(Arc::default()).await;
    let w = world();
    w.mesh.apply(&[service("a", Protocol::H2, &[&address])]).unwrap();
    let (tx, rx) = tokio::sync::mpsc::channel::<Result<http_body::Frame<Bytes>, weft_mesh::BoxError>>(1);
    let body = Body::stream(http_body_util::StreamBody::new(tokio_stream::wrappers::ReceiverStream::new(rx)));
    let out = Outbound::new(Request::post("/").body(body).unwrap());
    let mut stream = send(&w.mesh, "a", &out).await.unwrap().response.into_body();
    w.mesh.apply(&[]).unwrap();
    // Long enough for the pool to be looked through.
    tokio::time::pause();
    for _ in 0..4 {
        tokio::time::advance(Duration::from_secs(5)).await;
        tokio::task::yield_now().await;
    }
    tokio::time::resume();
    for part in ["one", "two"] {
        tx.send(Ok(http_body::Frame::data(Bytes::from_static(part.as_bytes())))).await.unwrap();
        assert_eq!(stream.frame().await.unwrap().unwrap().into_data().unwrap(), part);
    }
    drop(tx);
    assert!(stream.collect().await.unwrap().to_bytes().is_empty());
    assert_eq!(connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_request_keeps_its_authority_and_a_grpc_instance_is_told_the_time_left() {
    let server = serve(Speaks::H2, async |req| {
        let timeout = req.headers().get("grpc-timeout").map(|v| v.to_str().unwrap().to_owned());
        let te = req.headers().get("te").map(|v| v.to_str().unwrap().to_owned());
        answer(format!("{} {} {timeout:?} {te:?}", req.uri(), req.headers().contains_key("host")))
    })
    .await;
    let w = world();
    w.mesh
        .apply(&[service("g", Protocol::Grpc, &[&server.at()]), service("h", Protocol::H2, &[&server.at()])])
        .unwrap();
    let out = |host: Option<&str>| {
        let mut r = Request::get("/p?q=1");
        if let Some(h) = host {
            r = r.header("host", h);
        }
        Outbound::new(r.body(Body::Empty).unwrap())
    };
    let got = read(send(&w.mesh, "h", &out(Some("shop.example"))).await.unwrap()).await.unwrap();
    assert_eq!(got, "http://shop.example/p?q=1 false None None");
    let got = read(send(&w.mesh, "h", &out(None)).await.unwrap()).await.unwrap();
    assert_eq!(got, format!("http://{}/p?q=1 false None None", server.at()));
    let attempt = Attempt { number: 1, deadline: Deadline::after(Duration::from_secs(30)) };
    let got = w.mesh.send(&Context::root(), "g", &out(None), attempt).await.unwrap();
    let got = read(got).await.unwrap();
    assert!(got.contains("Some(\"29") && got.contains("u\") Some(\"trailers\")"), "{got}");
}
