//! Routes change under load: nobody notices but those who ask for what changed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use weft_edge::spec::GatewaySpec;

use crate::support::*;

#[tokio::test]
async fn a_thousand_changes_of_routes_under_load_lose_no_request_and_each_is_in_force_at_once() {
    let w = one(echo().await, |_| {}).await;
    let stop = Arc::new(AtomicBool::new(false));
    let answered = Arc::new(AtomicUsize::new(0));
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let (stop, answered, to) = (stop.clone(), answered.clone(), w.address());
            tokio::spawn(async move {
                let io = TokioIo::new(TcpStream::connect(to).await.unwrap());
                let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
                tokio::spawn(connection);
                while !stop.load(Ordering::Relaxed) {
                    sender.ready().await.expect("the connection is kept");
                    let r: http::Response<hyper::body::Incoming> =
                        sender.send_request(get("/load")).await.expect("no request fails");
                    assert_eq!(r.status(), 200);
                    r.into_body().collect().await.expect("no answer breaks off");
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    let io = TokioIo::new(TcpStream::connect(w.address()).await.unwrap());
    let (mut sender, connection) = hyper::client::conn::http1::handshake::<_, Full<Bytes>>(io).await.unwrap();
    tokio::spawn(connection);
    let listen = w.gateway.listen().to_vec();
    for n in 0..1_000 {
        let all = route("all", "/**", "s");
        // A new route each time, which takes what the last one took away again.
        let mut changed = route(&format!("changed-{n}"), "/changed", "s");
        changed.to = weft_edge::spec::Target::Service { service: name("s"), path: Some(format!("/version/{n}")) };
        let spec = GatewaySpec { listen: listen.clone(), ..gateway(vec![all, changed]) };
        w.gateway.swap(&spec).unwrap();
        sender.ready().await.unwrap();
        let body = sender.send_request(get("/changed")).await.unwrap().into_body().collect().await.unwrap().to_bytes();
        assert!(body.starts_with(format!("GET /version/{n}\n").as_bytes()), "change {n}: {body:?}");
    }
    stop.store(true, Ordering::Relaxed);
    for c in clients {
        c.await.expect("no client met an error");
    }
    assert!(answered.load(Ordering::Relaxed) > 1_000, "there was load: {answered:?}");
}
