use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use http::{Request, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use tokio::sync::{Semaphore, mpsc};
use weft_core::limits;
use weft_mesh::Protocol;
use weft_policy::spec::{Breaker, Bulkhead, Rate, Retry};

use crate::support::*;

fn counting(fail_first: usize, status: u16) -> (Arc<AtomicUsize>, impl Future<Output = std::net::SocketAddr>) {
    let seen = Arc::new(AtomicUsize::new(0));
    let counted = seen.clone();
    let address = service(move |r| {
        let n = counted.fetch_add(1, Ordering::SeqCst);
        async move {
            let body = r.into_body().collect().await.map(|b| b.to_bytes()).unwrap_or_default();
            if n < fail_first { answer(status, "no") } else { answer(200, body) }
        }
    });
    (seen, address)
}

fn quick(attempts: u32) -> Option<Retry> {
    let ms = Duration::from_millis(1);
    Some(Retry { attempts, backoff_min: ms, backoff_max: ms, jitter: false, budget: 1.0, budget_min: 100 })
}

#[tokio::test]
async fn a_get_is_tried_again_and_a_post_is_not() {
    let (seen, address) = counting(2, 503);
    let w = one(address.await, |r| r.policy.retry = quick(3)).await;
    assert_eq!(w.get("/x").await.0, 200);
    assert_eq!(seen.load(Ordering::SeqCst), 3);

    let (seen, address) = counting(2, 503);
    let w = one(address.await, |r| r.policy.retry = quick(3)).await;
    let post = |key: bool| {
        let r = Request::post("/x").header("host", "h");
        let r = if key { r.header("idempotency-key", "k") } else { r };
        w.send(r.body(Full::default()).unwrap())
    };
    assert_eq!(post(false).await.status(), 503);
    assert_eq!(seen.load(Ordering::SeqCst), 1);
    assert_eq!(post(true).await.status(), 200, "a key makes it safe");
    assert_eq!(seen.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn a_streaming_body_that_was_sent_is_not_sent_again() {
    let (seen, address) = counting(2, 503);
    let w = one(address.await, |r| r.policy.retry = quick(3)).await;
    let r = Request::put("/x").header("host", "h").body(Full::new(Bytes::from_static(b"data"))).unwrap();
    assert_eq!(w.send(r).await.status(), 503);
    assert_eq!(seen.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_refused_connection_is_tried_elsewhere_with_its_body() {
    let (seen, address) = counting(0, 200);
    let dead = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let mut r = route("all", "/**", "s");
    r.policy.retry = quick(3);
    let s = spec_of("s", weft_mesh::Protocol::Http, &[dead, address.await]);
    let w = World::start(gateway(vec![r]), &[s]).await;
    for _ in 0..8 {
        let r = Request::post("/x").header("host", "h").body(Full::new(Bytes::from_static(b"data"))).unwrap();
        let r = w.send(r).await;
        assert_eq!(r.status(), 200);
        assert_eq!(r.into_body().collect().await.unwrap().to_bytes(), "data");
    }
    assert_eq!(seen.load(Ordering::SeqCst), 8);
}

#[tokio::test]
async fn a_service_that_cannot_be_reached_is_502() {
    let dead = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let w = one(dead, |r| r.policy.retry = None).await;
    let (status, body) = w.get("/x").await;
    assert_eq!((status, json(&body)["code"].as_str()), (StatusCode::BAD_GATEWAY, Some("upstream-unreachable")));
}

#[tokio::test]
async fn an_open_breaker_fails_fast_with_retry_after() {
    let (seen, address) = counting(usize::MAX, 503);
    let w = one(address.await, |r| {
        r.policy.retry = None;
        r.policy.breaker =
            Some(Breaker { min_calls: 4, window: 8, open_for: Duration::from_secs(60), ..Default::default() });
    })
    .await;
    for _ in 0..4 {
        assert_eq!(w.get("/x").await.1, "no");
    }
    let r = w.send(get("/x")).await;
    assert_eq!((r.status(), &r.headers()["retry-after"]), (StatusCode::SERVICE_UNAVAILABLE, &"60".parse().unwrap()));
    assert_eq!(json(&r.into_body().collect().await.unwrap().to_bytes())["code"], "breaker-open");
    assert_eq!(seen.load(Ordering::SeqCst), 4);
}

#[tokio::test]
async fn a_service_that_is_too_slow_is_504() {
    let address = service(|_| std::future::pending()).await;
    let short = Some(Duration::from_millis(50));
    for (deadline, attempt, code) in
        [(short, None, "deadline-exceeded"), (Some(Duration::from_secs(60)), short, "upstream-timeout")]
    {
        let w = one(address, |r| {
            r.policy.retry = None;
            (r.policy.deadline, r.policy.attempt_timeout) = (deadline, attempt);
        })
        .await;
        let (status, body) = w.get("/x").await;
        assert_eq!((status, json(&body)["code"].as_str()), (StatusCode::GATEWAY_TIMEOUT, Some(code)));
    }
}

#[tokio::test]
async fn a_place_in_the_bulkhead_is_held_until_the_answer_ends() {
    let (chunk, chunks) = mpsc::unbounded_channel::<Bytes>();
    let chunks = Arc::new(tokio::sync::Mutex::new(Some(chunks)));
    let address = service(move |_| {
        let chunks = chunks.clone();
        async move {
            let Some(chunks) = chunks.lock().await.take() else { return answer(200, "short") };
            let stream = futures_util::stream::unfold(chunks, |mut c| async move {
                c.recv().await.map(|b| (Ok::<_, BoxError>(Frame::data(b)), c))
            });
            http::Response::new(BodyExt::boxed_unsync(StreamBody::new(stream)))
        }
    })
    .await;
    let w = one(address, |r| r.policy.bulkhead = Some(Bulkhead { limit: 1, ..Default::default() })).await;
    chunk.send(Bytes::from_static(b"a")).unwrap();
    let mut streaming = w.send(get("/stream")).await.into_body();
    assert_eq!(streaming.frame().await.unwrap().unwrap().into_data().unwrap(), "a");
    let full = w.send(get("/x")).await;
    assert_eq!((full.status(), full.headers().contains_key("retry-after")), (StatusCode::SERVICE_UNAVAILABLE, true));
    assert_eq!(json(&full.into_body().collect().await.unwrap().to_bytes())["code"], "bulkhead-full");
    drop(chunk);
    assert!(streaming.frame().await.is_none());
    // The place is free when the gateway has written the end, which the client sees at about the same time.
    let mut last = StatusCode::OK;
    for _ in 0..200 {
        last = w.get("/x").await.0;
        if last == 200 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("{last}");
}

#[tokio::test]
async fn over_the_rate_is_429_with_retry_after() {
    let (_, address) = counting(0, 200);
    let w = one(address.await, |r| {
        r.policy.rate = vec![Rate { period: Duration::from_secs(3600), burst: 1, ..Rate::default() }];
    })
    .await;
    let mut statuses = Vec::new();
    for _ in 0..4 {
        let r = w.send(get("/x")).await;
        if r.status() == 429 {
            assert!(r.headers()["retry-after"].to_str().unwrap().parse::<u64>().unwrap() > 1);
        }
        statuses.push(r.status().as_u16());
    }
    assert_eq!((statuses[0], statuses[3]), (200, 429), "{statuses:?}");
}

#[tokio::test]
async fn a_client_that_goes_away_is_counted_and_frees_its_place() {
    let started = Arc::new(Semaphore::new(0));
    let signal = started.clone();
    let address = service(move |_| {
        signal.add_permits(1);
        std::future::pending()
    })
    .await;
    let w = one(address, |r| r.policy.bulkhead = Some(Bulkhead { limit: 1, ..Default::default() })).await;
    let stream = tokio::net::TcpStream::connect(w.address()).await.unwrap();
    stream.writable().await.unwrap();
    stream.try_write(b"GET /x HTTP/1.1\r\nhost: h\r\n\r\n").unwrap();
    started.acquire().await.unwrap().forget();
    assert_eq!(w.gateway.policy("all").unwrap().stats().under_way, 1);
    drop(stream);
    for _ in 0..400 {
        if w.gateway.policy("all").unwrap().stats().under_way == 0 {
            let text = w.telemetry.metrics().render_prometheus();
            assert!(text.contains(r#"weft_http_requests_total{route="all",code="499"} 1"#), "{text}");
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("the place was not given back");
}

#[tokio::test]
async fn a_drain_lets_requests_finish_closes_idle_connections_and_takes_no_new_ones() {
    let gate = Arc::new(Semaphore::new(0));
    let started = Arc::new(Semaphore::new(0));
    let (g, s) = (gate.clone(), started.clone());
    let address = service(move |_| {
        let g = g.clone();
        s.add_permits(1);
        async move {
            g.acquire().await.unwrap().forget();
            answer(200, "done")
        }
    })
    .await;
    let w = one(address, |_| {}).await;
    let to = w.address();
    let mut idle = tokio::net::TcpStream::connect(to).await.unwrap();
    let under_way = tokio::spawn(async move { send(to, get("/x")).await });
    started.acquire().await.unwrap().forget();
    let World { gateway, .. } = w;
    let down = tokio::spawn(gateway.shutdown());
    assert_eq!(read_all(&mut idle).await, "", "the idle connection is closed");
    for _ in 0..200 {
        if tokio::net::TcpStream::connect(to).await.is_err() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(tokio::net::TcpStream::connect(to).await.is_err(), "no new connections are taken");
    assert!(!down.is_finished());
    gate.add_permits(1);
    let r = under_way.await.unwrap();
    assert_eq!((r.status(), &r.headers()["connection"]), (StatusCode::OK, &"close".parse().unwrap()));
    assert_eq!(r.into_body().collect().await.unwrap().to_bytes(), "done");
    tokio::time::timeout(limits::DRAIN / 2, down).await.expect("it ends when the last request ends").unwrap();
}

fn written(status: u16) -> Option<weft_edge::spec::Fallback> {
    let mut headers = http::HeaderMap::new();
    headers.insert("content-type", "application/json".parse().unwrap());
    Some(weft_edge::spec::Fallback::Respond { status: status.try_into().unwrap(), headers, body: "[]".into() })
}

#[tokio::test]
async fn a_fallback_answers_instead_of_a_failure_and_never_instead_of_a_refusal() {
    let status = Arc::new(AtomicUsize::new(500));
    let says = status.clone();
    let address = service(move |_| {
        let status = says.load(Ordering::SeqCst) as u16;
        async move { answer(status, "own") }
    })
    .await;
    let w = one(address, |r| {
        r.policy.retry = None;
        r.policy.breaker = Some(Breaker { min_calls: 2, window: 4, ..Default::default() });
        r.fallback = written(200);
    })
    .await;
    for (own, answered) in [(404, "own"), (429, "own"), (200, "own"), (500, "[]"), (500, "[]"), (200, "[]")] {
        status.store(own, Ordering::SeqCst);
        let r = w.send(get("/x")).await;
        let (head, body) = r.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        assert_eq!(
            (&*body, head.headers.contains_key("weft-fallback")),
            (answered.as_bytes(), answered == "[]"),
            "{own}"
        );
        if answered == "[]" {
            assert_eq!(head.status, 200);
            assert_eq!(head.headers["content-type"], "application/json");
            assert_eq!(head.headers["weft-fallback"], "respond");
        }
    }
    let metrics = w.telemetry.metrics().render_prometheus();
    assert!(metrics.contains("weft_fallbacks_total{route=\"all\"} 3"), "the last was the open breaker's: {metrics}");
}

#[tokio::test]
async fn another_service_is_asked_instead_where_that_is_safe() {
    let (first, spare) = (service(|_| async { answer(503, "first") }).await, echo().await);
    let mut r = route("all", "/**", "s");
    r.policy.retry = None;
    r.fallback = Some(weft_edge::spec::Fallback::Service(name("spare")));
    let http = weft_mesh::Protocol::Http;
    let w = World::start(gateway(vec![r]), &[spec_of("s", http, &[first]), spec_of("spare", http, &[spare])]).await;
    let r = w.send(get("/x?y=1")).await;
    assert_eq!((r.status().as_u16(), &r.headers()["weft-fallback"]), (200, &"service".parse().unwrap()));
    let body = r.into_body().collect().await.unwrap().to_bytes();
    assert!(body.starts_with(b"GET /x?y=1\n"), "{body:?}");
    let post = Request::post("/x").header("host", "h").body(Full::new(Bytes::from_static(b"data"))).unwrap();
    let r = w.send(post).await;
    assert_eq!((r.status().as_u16(), r.headers().get("weft-fallback")), (503, None), "it may have been done already");
}

#[tokio::test]
async fn a_full_bulkhead_and_an_unreachable_service_fall_back_too() {
    let dead = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let w = one(dead, |r| {
        r.policy.retry = None;
        r.fallback = written(203);
    })
    .await;
    assert_eq!(w.get("/x").await, (StatusCode::NON_AUTHORITATIVE_INFORMATION, Bytes::from_static(b"[]")));
    let release = Arc::new(Semaphore::new(0));
    let held = release.clone();
    let address = service(move |_| {
        let held = held.clone();
        async move {
            let _ = held.acquire().await;
            answer(200, "own")
        }
    })
    .await;
    let w = Arc::new(
        one(address, |r| {
            r.policy.bulkhead = Some(Bulkhead { limit: 1, ..Default::default() });
            r.fallback = written(203);
        })
        .await,
    );
    let (to, first) = (w.address(), get("/x"));
    let first = tokio::spawn(async move { send(to, first).await.status() });
    while w.gateway.policy("all").unwrap().bulkhead().load().0 == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(w.get("/x").await.0, 203);
    release.add_permits(1);
    assert_eq!(first.await.unwrap(), 200);
}

#[tokio::test]
async fn a_hedge_goes_to_another_instance_and_the_slow_one_is_let_go() {
    let slow = service(|_| std::future::pending()).await;
    let fast = service(|_| async { answer(200, "fast") }).await;
    let mut r = route("all", "/**", "s");
    let hedge = weft_policy::spec::HedgeAfter::Time(Duration::from_millis(10));
    r.policy.hedge = Some(weft_policy::spec::Hedge { after: hedge, max: 1 });
    let mut s = spec_of("s", weft_mesh::Protocol::Http, &[slow, fast]);
    s.balance = weft_mesh::Balance::RoundRobin;
    let w = World::start(gateway(vec![r]), &[s]).await;
    for _ in 0..6 {
        assert_eq!(w.get("/x").await, (StatusCode::OK, Bytes::from_static(b"fast")));
    }
    let stats = w.gateway.policy("all").unwrap().stats();
    assert_eq!((stats.hedges, stats.hedges_won, stats.retries), (6, 6, 0), "in turn: each began at the slow one");
}

/// A breaker that two bad calls open.
fn touchy() -> Option<Breaker> {
    Some(Breaker { min_calls: 2, failure_rate: 0.5, open_for: Duration::from_secs(3600), ..Breaker::default() })
}

#[tokio::test]
async fn a_caller_who_sends_too_slowly_is_told_so_and_nobody_else_pays() {
    let (_, address) = counting(0, 503);
    let w = one(address.await, |r| {
        (r.policy.breaker, r.policy.attempt_timeout) = (touchy(), Some(Duration::from_millis(50)));
    })
    .await;
    for _ in 0..4 {
        let some = futures_util::stream::iter([Ok::<_, BoxError>(Frame::data(Bytes::from_static(b"some")))]);
        let body = StreamBody::new(some.chain(futures_util::stream::pending()));
        let r = Request::post("/x").header("host", "h").body(body).unwrap();
        let answer = send(w.address(), r).await;
        assert_eq!(answer.status(), 408);
        assert_eq!(json(&answer.into_body().collect().await.unwrap().to_bytes())["code"], "request-timeout");
    }
    assert_eq!(w.get("/x").await.0, 200, "the breaker did not open");
}

#[tokio::test]
async fn a_body_that_breaks_off_is_the_callers_fault_in_both_protocols_of_the_service() {
    for protocol in [Protocol::Http, Protocol::H2] {
        let (_, address) = counting(0, 503);
        let mut r = route("r", "/x", "s");
        r.policy.breaker = touchy();
        let w = World::start(gateway(vec![r]), &[spec_of("s", protocol, &[address.await])]).await;
        for _ in 0..4 {
            let bad = b"POST /x HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\nnot a size\r\n";
            let said = raw(w.address(), bad).await;
            assert!(!said.contains(" 200 "), "{said}");
        }
        assert_eq!(w.get("/x").await.0, 200, "{protocol:?}: the breaker did not open");
    }
}
