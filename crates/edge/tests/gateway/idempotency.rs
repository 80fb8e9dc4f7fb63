use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use tokio::sync::Semaphore;
use weft_policy::spec::Idempotency;

use crate::support::*;

fn keyed(
    w: &World,
    key: &str,
    body: &'static str,
) -> impl Future<Output = http::Response<hyper::body::Incoming>> + use<> {
    let r = Request::post("/orders").header("host", "h").header("idempotency-key", key);
    send(w.address(), r.body(Full::new(Bytes::from_static(body.as_bytes()))).unwrap())
}

async fn text(r: http::Response<hyper::body::Incoming>) -> (u16, bool, String) {
    let replayed = r.headers().get("idempotency-replayed").is_some_and(|v| v == "true");
    let status = r.status().as_u16();
    (status, replayed, String::from_utf8(r.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap())
}

/// Counts its calls, says so in its answer, and answers with the status in the body.
async fn counter() -> (Arc<AtomicUsize>, std::net::SocketAddr) {
    let seen = Arc::new(AtomicUsize::new(0));
    let counted = seen.clone();
    let address = service(move |r| {
        let n = counted.fetch_add(1, Ordering::SeqCst) + 1;
        async move {
            let body = r.into_body().collect().await.unwrap().to_bytes();
            let status = std::str::from_utf8(&body).unwrap().parse().unwrap_or(201);
            let mut r = answer(status, format!("call {n}"));
            r.headers_mut().insert("x-order", "7".parse().unwrap());
            r
        }
    })
    .await;
    (seen, address)
}

fn required(r: &mut weft_edge::spec::RouteSpec) {
    r.policy.retry = None;
    r.policy.idempotency = Some(Idempotency { required: true, public: true, ..Default::default() });
}

#[tokio::test]
async fn the_same_key_gets_the_stored_answer_and_the_service_is_called_once() {
    let (seen, address) = counter().await;
    let w = one(address, required).await;
    assert_eq!(text(keyed(&w, "k", "{}").await).await, (201, false, "call 1".into()));
    let again = keyed(&w, "k", "{}").await;
    assert_eq!(again.headers()["x-order"], "7");
    assert_eq!(text(again).await, (201, true, "call 1".into()));
    let quoted = text(keyed(&w, "\"k\"", "{}").await).await;
    assert!(quoted.1, "quoted, as the draft writes it, it is the same key");
    assert_eq!(text(keyed(&w, "other", "{}").await).await, (201, false, "call 2".into()));
    assert_eq!(seen.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn another_payload_under_the_same_key_is_422_and_no_key_is_400() {
    let (seen, address) = counter().await;
    let w = one(address, required).await;
    keyed(&w, "k", "{}").await;
    let (status, _, body) = text(keyed(&w, "k", "{\"a\":1}").await).await;
    assert_eq!((status, json(body.as_bytes())["code"].as_str()), (422, Some("idempotency-key-reused")));
    let none = Request::post("/orders").header("host", "h").body(Full::default()).unwrap();
    let r = w.send(none).await;
    assert_eq!(r.status(), StatusCode::BAD_REQUEST);
    assert_eq!(json(&r.into_body().collect().await.unwrap().to_bytes())["code"], "idempotency-key-missing");
    let long = "x".repeat(weft_core::limits::IDEMPOTENCY_KEY_BYTES + 1);
    assert_eq!(keyed(&w, &long, "{}").await.status(), 400);
    assert_eq!(seen.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_refusal_is_kept_and_a_failure_releases_the_key() {
    let (seen, address) = counter().await;
    let w = one(address, required).await;
    assert_eq!(text(keyed(&w, "a", "402").await).await, (402, false, "call 1".into()));
    assert_eq!(text(keyed(&w, "a", "402").await).await, (402, true, "call 1".into()));
    assert_eq!(text(keyed(&w, "b", "503").await).await, (503, false, "call 2".into()));
    assert_eq!(text(keyed(&w, "b", "503").await).await, (503, false, "call 3".into()));
    assert_eq!(seen.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn a_duplicate_in_flight_is_409_and_the_work_goes_on_when_its_client_goes_away() {
    let gate = Arc::new(Semaphore::new(0));
    let started = Arc::new(Semaphore::new(0));
    let (g, s) = (gate.clone(), started.clone());
    let address = service(move |_| {
        let g = g.clone();
        s.add_permits(1);
        async move {
            g.acquire().await.unwrap().forget();
            answer(201, "made")
        }
    })
    .await;
    let w = one(address, required).await;
    let first = tokio::spawn(keyed(&w, "k", "{}"));
    started.acquire().await.unwrap().forget();
    let (status, _, body) = text(keyed(&w, "k", "{}").await).await;
    assert_eq!((status, json(body.as_bytes())["code"].as_str()), (409, Some("idempotency-key-in-flight")));
    first.abort();
    let _ = first.await;
    gate.add_permits(1);
    let mut last = (0, false, String::new());
    for _ in 0..400 {
        last = text(keyed(&w, "k", "{}").await).await;
        if last.0 == 201 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    assert_eq!(last, (201, true, "made".into()));
    assert_eq!(started.available_permits(), 0, "the service was called once");
}

#[tokio::test]
async fn stored_answers_survive_a_restart() {
    let (seen, address) = counter().await;
    let w = one(address, required).await;
    keyed(&w, "k", "{}").await;
    let World { gateway: g, store, dir, mesh, telemetry, broker, flow, api_keys } = w;
    g.shutdown().await;
    flow.close().await;
    broker.close().await;
    drop((mesh, telemetry, broker, flow, api_keys));
    store.close().await.unwrap();
    drop(store);
    let mut r = route("all", "/**", "s");
    required(&mut r);
    let w = World::start_in(dir, gateway(vec![r]), &[spec_of("s", weft_mesh::Protocol::Http, &[address])]).await;
    assert_eq!(text(keyed(&w, "k", "{}").await).await, (201, true, "call 1".into()));
    assert_eq!(seen.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn anonymous_callers_may_not_use_keys_unless_the_route_is_public() {
    let (_, address) = counter().await;
    let w = one(address, |r| r.policy.idempotency = Some(Idempotency::default())).await;
    let (status, _, body) = text(keyed(&w, "k", "{}").await).await;
    assert_eq!((status, json(body.as_bytes())["code"].as_str()), (400, Some("idempotency-key-anonymous")));
}

#[tokio::test]
async fn a_key_belongs_to_what_was_asked_for_and_not_to_where_it_was_sent() {
    use weft_edge::spec::{Share, Target, VersionFrom, VersionSpec, VersionsSpec};
    let (seen, address) = counter().await;
    let w = one(address, |r| {
        required(r);
        let share = |path: &str| Share { service: name("s"), path: Some(path.into()), weight: 1 };
        r.to = Target::Split(vec![share("/a"), share("/b")]);
    })
    .await;
    for n in 0..16 {
        assert_eq!(text(keyed(&w, "k", "{}").await).await, (201, n > 0, "call 1".into()), "whichever share is drawn");
    }
    assert_eq!(seen.load(Ordering::SeqCst), 1);

    let (_, address) = counter().await;
    let w = one(address, |r| {
        required(r);
        let known = |n: &str| VersionSpec {
            version: weft_policy::version::Version { name: n.into(), deprecated: None, sunset: None },
            ..VersionSpec::default()
        };
        let from = vec![VersionFrom::Header("x-version".into())];
        r.versions = Some(VersionsSpec { from, default: None, known: vec![known("1"), known("2")] });
    })
    .await;
    for (version, status) in [("1", 201), ("1", 201), ("2", 422)] {
        let r = Request::post("/orders").header("host", "h").header("idempotency-key", "k");
        let r = r.header("x-version", version).body(Full::new(Bytes::from_static(b"{}"))).unwrap();
        assert_eq!(w.send(r).await.status(), status, "version {version}");
    }
}

#[tokio::test]
async fn an_answer_too_long_to_keep_has_its_place_to_its_last_byte() {
    let (chunk, rx) = tokio::sync::mpsc::unbounded_channel::<Bytes>();
    let rx = Arc::new(std::sync::Mutex::new(Some(rx)));
    let address = service(move |_| {
        let mut rx = rx.lock().unwrap().take().expect("it is called once");
        let frames = futures_util::stream::poll_fn(move |cx| {
            rx.poll_recv(cx).map(|o| o.map(|b| Ok::<_, BoxError>(http_body::Frame::data(b))))
        });
        let mut r = http::Response::new(http_body_util::StreamBody::new(frames).boxed_unsync());
        *r.status_mut() = StatusCode::CREATED;
        async { r }
    })
    .await;
    let w = one(address, |r| {
        required(r);
        r.policy.bulkhead = Some(weft_policy::spec::Bulkhead { limit: 1, ..Default::default() });
    })
    .await;
    chunk.send(Bytes::from(vec![b'x'; (1 << 20) + 1])).unwrap();
    let first = keyed(&w, "k", "{}").await;
    assert_eq!(first.status(), 201);
    assert_eq!(w.gateway.policy("all").unwrap().stats().under_way, 1, "it still streams");
    let (status, _, body) = text(keyed(&w, "other", "{}").await).await;
    assert_eq!((status, json(body.as_bytes())["code"].as_str()), (503, Some("bulkhead-full")));
    drop(chunk);
    assert_eq!(first.into_body().collect().await.unwrap().to_bytes().len(), (1 << 20) + 1);
    w.until(|| async { w.gateway.policy("all").unwrap().stats().under_way == 0 }).await;
}
