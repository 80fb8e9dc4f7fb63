//! A service that dies and comes back, called through a policy: retries, then a breaker that fails fast, then trials.
//!
//! `cargo run -p weft-policy --features tower --example resilient`

use std::future::{Ready, ready};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tower_layer::Layer as _;
use tower_service::Service;
use weft_policy::attempt::Replay;
use weft_policy::outcome::{Transport, classify_http, classify_transport};
use weft_policy::spec::{Breaker, Retry};
use weft_policy::tower::PolicyLayer;
use weft_policy::{Instance, Policy};

/// Answers 200 while it lives, and refuses connections while it does not.
#[derive(Clone, Default)]
struct Shop {
    dead: Arc<AtomicBool>,
    calls: Arc<AtomicU32>,
}

#[derive(Debug)]
struct ConnectionRefused;

impl Service<&'static str> for Shop {
    type Response = u16;
    type Error = ConnectionRefused;
    type Future = Ready<Result<u16, ConnectionRefused>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectionRefused>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: &'static str) -> Self::Future {
        self.calls.fetch_add(1, Ordering::Relaxed);
        ready(if self.dead.load(Ordering::Relaxed) { Err(ConnectionRefused) } else { Ok(200) })
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let policy = Policy {
        deadline: Some(Duration::from_secs(2)),
        retry: Some(Retry { attempts: 3, backoff_min: Duration::from_millis(5), ..Retry::default() }),
        breaker: Some(Breaker {
            window: 10,
            min_calls: 10,
            open_for: Duration::from_millis(200),
            half_open_calls: 1,
            ..Breaker::default()
        }),
        ..Policy::builtin()
    };
    let layer = PolicyLayer::new(Instance::new(&policy), |done: &Result<u16, ConnectionRefused>| match done {
        Ok(status) => classify_http(*status),
        Err(ConnectionRefused) => classify_transport(Transport::NeverSent),
    })
    .replay(|_: &&str| Replay::Safe);
    let shop = Shop::default();
    let mut service = layer.layer(shop.clone());

    assert_eq!(service.call("GET /tea").await.unwrap(), 200);
    shop.dead.store(true, Ordering::Relaxed);
    for _ in 0..10 {
        match service.call("GET /tea").await {
            Ok(status) => println!("answered {status}"),
            Err(e) => println!("failed: {e:?}"),
        }
    }
    println!("the shop was called {} times for 11 requests", shop.calls.load(Ordering::Relaxed));
    assert_eq!(layer.policy().stats().breaker_opened, 1);

    shop.dead.store(false, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_millis(250)).await;
    assert_eq!(service.call("GET /tea").await.unwrap(), 200);
    println!("and it is back: {:?}", layer.policy().breaker_status().map(|b| b.state));
}
