use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use weft_broker::{ReceiveOptions, Source};
use weft_core::{Trace, limits};
use weft_edge::spec::Target;

use crate::support::*;

async fn queue_world() -> World {
    let mut r = route("mail", "/mail", "s");
    r.to = Target::Queue(name("emails"));
    World::start(gateway(vec![r]), &[]).await
}

#[tokio::test]
async fn a_route_to_a_queue_publishes_and_answers_with_receipts() {
    let w = queue_world().await;
    let caller = Trace::root();
    let r = Request::post("/mail")
        .header("host", "h")
        .header("content-type", "application/json")
        .header("traceparent", caller.to_traceparent())
        .body(Full::new(Bytes::from_static(b"{\"to\":\"ann\"}")))
        .unwrap();
    let r = w.send(r).await;
    assert_eq!(r.status(), StatusCode::ACCEPTED);
    let receipts = json(&r.into_body().collect().await.unwrap().to_bytes());
    let wait = ReceiveOptions { max: 10, wait: Duration::from_secs(5), lease: None };
    let got = w.broker.receive(Source::Queue(name("emails")), wait).await.unwrap();
    assert_eq!((got.len(), &got[0].event.data), (1, &Bytes::from_static(b"{\"to\":\"ann\"}")));
    assert_eq!(receipts["receipts"][0]["id"], got[0].event.id);
    let trace = got[0].event.traceparent().and_then(Trace::parse).unwrap();
    assert_eq!(trace.trace_id, caller.trace_id, "the message is in the trace of the request");
}

#[tokio::test]
async fn a_bad_event_is_400_and_nothing_is_published() {
    let w = queue_world().await;
    let send = |headers: &[(&str, &str)], body: Vec<u8>| {
        let mut r = Request::post("/mail").header("host", "h");
        for (k, v) in headers {
            r = r.header(*k, *v);
        }
        send(w.address(), r.body(Full::new(Bytes::from(body))).unwrap())
    };
    for (headers, body, status, code) in [
        (&[("ce-id", "1"), ("ce-specversion", "1.0")][..], b"x".to_vec(), 400, "invalid-event"),
        (&[("content-type", "application/cloudevents+json")], b"{\"id\":".to_vec(), 400, "invalid-json"),
        (&[("content-type", "application/cloudevents-batch+json")], b"[{}]".to_vec(), 400, "invalid-event"),
        (&[("content-type", "application/cloudevents+xml")], b"<e/>".to_vec(), 415, "unsupported-media-type"),
        (&[("weft-delay", "soon")], b"x".to_vec(), 400, "invalid-header"),
        (&[], vec![0; limits::COLLECTED_BODY_BYTES + 1], 413, "too-large"),
    ] {
        let r = send(headers, body).await;
        assert_eq!(r.status(), status, "{headers:?}");
        assert_eq!(json(&r.into_body().collect().await.unwrap().to_bytes())["code"], code);
    }
    let peeked = w.broker.receive(Source::Queue(name("emails")), ReceiveOptions::default()).await;
    assert!(peeked.is_err() || peeked.unwrap().is_empty());
}
