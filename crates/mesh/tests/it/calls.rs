//! The whole policy loop: retries elsewhere, breaker, collected answers, gRPC.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use http::Request;
use weft_core::{Class, Context, limits};
use weft_mesh::{CallError, Error, Protocol};
use weft_policy::attempt::{Cause, Stop};
use weft_policy::outcome::Judged as _;
use weft_policy::spec::{Breaker, Rate, Retry};
use weft_policy::{Instance, Policy};

use crate::support::*;

fn policy() -> Policy {
    let retry = Retry { attempts: 3, backoff_min: Duration::ZERO, backoff_max: Duration::ZERO, ..Retry::default() };
    Policy { retry: Some(retry), ..Policy::builtin() }
}

fn get_request() -> Request<Bytes> {
    Request::get("/").body(Bytes::new()).unwrap()
}

fn post_request() -> Request<Bytes> {
    Request::post("/").body(Bytes::from_static(b"{}")).unwrap()
}

#[tokio::test]
async fn a_retry_goes_to_an_instance_that_was_not_tried() {
    let bad = serve(Speaks::H1, async |_| status(503)).await;
    let good = serve(Speaks::H1, async |_| answer("good")).await;
    let w = world();
    w.mesh.apply(&[service("a", Protocol::Http, &[&bad.at(), &good.at()])]).unwrap();
    let p = Instance::new(&Policy { breaker: None, ..policy() });
    for _ in 0..10 {
        let a = w.mesh.call(&Context::root(), "a", get_request(), &p).await.unwrap();
        assert_eq!((a.status.as_u16(), &a.body[..]), (200, &b"good"[..]));
        assert!(a.attempts <= 2);
    }
    assert_eq!(good.requests(), 10);
    assert!(bad.requests() > 0);
}

#[tokio::test]
async fn a_post_is_repeated_only_when_unsent_or_keyed() {
    let seen = Arc::new(AtomicUsize::new(0));
    let counted = seen.clone();
    let server = serve(Speaks::H1, move |req| {
        let n = counted.fetch_add(1, Ordering::SeqCst);
        let keyed = req.headers().contains_key("idempotency-key");
        async move { if keyed && n % 2 == 1 { answer("done") } else { status(503) } }
    })
    .await;
    let closed = closed_port().to_string();
    let w = world();
    w.mesh
        .apply(&[
            service("a", Protocol::Http, &[&server.at()]),
            service("half", Protocol::Http, &[&closed, &server.at()]),
        ])
        .unwrap();
    let p = Instance::new(&Policy { breaker: None, ..policy() });
    let a = w.mesh.call(&Context::root(), "a", post_request(), &p).await.unwrap();
    assert_eq!((a.status.as_u16(), a.attempts), (503, 1));
    seen.store(0, Ordering::SeqCst);
    let mut ctx = Context::root();
    ctx.idempotency_key = Some("k".into());
    let a = w.mesh.call(&ctx, "a", post_request(), &p).await.unwrap();
    assert_eq!((a.status.as_u16(), a.attempts), (200, 2), "the context's key travels");
    // A refused connection did nothing, so even the bare POST goes on to the next instance.
    let a = w.mesh.call(&Context::root(), "half", post_request(), &p).await.unwrap();
    assert_eq!((a.status.as_u16(), a.attempts), (503, 2));
}

#[tokio::test]
async fn a_breaker_that_opens_fails_fast_and_shows_in_the_listing() {
    let bad = serve(Speaks::H1, async |_| status(500)).await;
    let w = world();
    let breaker = Breaker { min_calls: 4, window: 4, ..Breaker::default() };
    let mut spec = service("a", Protocol::Http, &[&bad.at()]);
    spec.policy = Policy { retry: None, breaker: Some(breaker), ..policy() };
    w.mesh.apply(std::slice::from_ref(&spec)).unwrap();
    let p = w.mesh.service("a").unwrap().policy().clone();
    for _ in 0..4 {
        assert_eq!(w.mesh.get("a").0.unwrap().breaker, Some("closed"));
        assert_eq!(w.mesh.call(&Context::root(), "a", get_request(), &p).await.unwrap().status.as_u16(), 500);
    }
    let e: CallError = w.mesh.call(&Context::root(), "a", get_request(), &p).await.unwrap_err();
    assert!(matches!(e.cause, Cause::Refused(_)) && e.stop == Stop::Breaker, "{e}");
    assert_eq!((w.mesh.get("a").0.unwrap().breaker, bad.requests()), (Some("open"), 4));
    // A reload with the same policy does not close it.
    w.mesh.apply(&[spec]).unwrap();
    assert_eq!(w.mesh.get("a").0.unwrap().breaker, Some("open"));
}

#[tokio::test]
async fn a_call_over_the_rate_is_refused_unsent_and_says_when_to_come_back() {
    let server = serve(Speaks::H1, async |_| status(200)).await;
    let w = world();
    w.mesh.apply(&[service("a", Protocol::Http, &[&server.at()])]).unwrap();
    let rate = Rate { period: Duration::from_secs(3_600), ..Rate::default() };
    let p = Instance::new(&Policy { rate: vec![rate], ..policy() });
    assert_eq!(w.mesh.call(&Context::root(), "a", get_request(), &p).await.unwrap().status.as_u16(), 200);
    let e: CallError = w.mesh.call(&Context::root(), "a", get_request(), &p).await.unwrap_err();
    assert_eq!((e.attempts, e.outcome().failure), (0, Some(Class::Overloaded)), "{e}");
    assert!(e.outcome().unsent && e.outcome().retry_after.is_some_and(|w| w > Duration::from_secs(3_000)));
    assert_eq!(server.requests(), 1);
}

#[tokio::test]
async fn a_collected_answer_is_bounded() {
    let size = Arc::new(AtomicUsize::new(limits::COLLECTED_BODY_BYTES));
    let asked = size.clone();
    let server = serve(Speaks::H1, move |_| {
        let n = asked.load(Ordering::SeqCst);
        async move {
            // In two frames and without a length, so that only counting tells.
            let half = move |n| Ok::<_, weft_mesh::BoxError>(http_body::Frame::data(Bytes::from(vec![1; n])));
            let frames = futures_util::stream::iter([half(n / 2), half(n - n / 2)]);
            http::Response::new(weft_mesh::Body::stream(http_body_util::StreamBody::new(frames)))
        }
    })
    .await;
    let w = world();
    w.mesh.apply(&[service("a", Protocol::Http, &[&server.at()])]).unwrap();
    let p = Instance::new(&policy());
    let a = w.mesh.call(&Context::root(), "a", get_request(), &p).await.unwrap();
    assert_eq!(a.body.len(), limits::COLLECTED_BODY_BYTES);
    size.fetch_add(1, Ordering::SeqCst);
    let e = w.mesh.call(&Context::root(), "a", get_request(), &p).await.unwrap_err();
    assert!(matches!(e.cause, Cause::Attempt(Error::AnswerTooLarge { .. })), "{e}");
    assert_eq!(e.attempts, 1, "it would be as large again");
}

#[tokio::test(start_paused = true)]
async fn a_service_that_registers_while_a_call_backs_off_is_met() {
    let w = world();
    let server = serve(Speaks::H1, async |_| answer("late")).await;
    let retry = Retry { backoff_min: Duration::from_millis(50), jitter: false, ..Retry::default() };
    let p = Instance::new(&Policy { retry: Some(retry), ..Policy::builtin() });
    let ctx = Context::root();
    let call = w.mesh.call(&ctx, "late", post_request(), &p);
    let register = async {
        tokio::time::sleep(Duration::from_millis(10)).await;
        let (s, i) = (name("late"), name("i"));
        w.mesh.register(&s, &i, registration(server.at(), Duration::from_secs(3_600))).await
    };
    let (answer, registered) = tokio::join!(call, register);
    registered.unwrap();
    assert_eq!(answer.unwrap().body, "late");
}

#[tokio::test]
async fn a_grpc_call_tells_its_status_from_trailers_and_from_a_trailers_only_answer() {
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_service_status("shop.Orders", tonic_health::ServingStatus::Serving).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap().to_string();
    tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(health)
            .serve_with_incoming(tokio_stream::wrappers::TcpListenerStream::new(listener)),
    );
    let w = world();
    w.mesh.apply(&[service("g", Protocol::Grpc, &[&at])]).unwrap();
    let p = Instance::new(&policy());
    let ask = |name: &str| {
        // HealthCheckRequest { service = 1 }, framed.
        let mut b = BytesMut::new();
        b.put_u8(0);
        b.put_u32(name.len() as u32 + 2);
        b.put_u8(0x0a);
        b.put_u8(name.len() as u8);
        b.put_slice(name.as_bytes());
        let r = Request::post("/grpc.health.v1.Health/Check").header("content-type", "application/grpc");
        r.body(b.freeze()).unwrap()
    };
    let a = w.mesh.call(&Context::root(), "g", ask("shop.Orders"), &p).await.unwrap();
    assert_eq!((a.grpc_status().unwrap().0, a.trailers.is_some()), (0, true));
    assert_eq!(a.body, &b"\0\0\0\0\x02\x08\x01"[..], "HealthCheckResponse {{ status = SERVING }}");
    let a = w.mesh.call(&Context::root(), "g", ask("shop.Nothing"), &p).await.unwrap();
    assert_eq!((a.grpc_status().unwrap().0, a.trailers.is_some()), (5, false));
    assert_eq!(a.outcome().failure, Some(Class::Rejected));
}
