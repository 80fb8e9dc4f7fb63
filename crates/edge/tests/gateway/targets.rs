use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use weft_broker::{ReceiveOptions, Source};
use weft_core::{Trace, limits};
use weft_edge::spec::{Reply, Target};
use weft_flow::spec::{Action, Call, Idempotent, SagaSpec, Step, StepKind};
use weft_mesh::Protocol;
use weft_policy::Policy;

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

/// A saga of two calls to one service; the second is refused when the input says so, hangs when it says so.
async fn saga_world(reply: Reply) -> World {
    let address = service(|r| async move {
        let path = r.uri().path().to_owned();
        let body = r.into_body().collect().await.unwrap().to_bytes();
        let told = serde_json::from_slice::<serde_json::Value>(&body).unwrap_or_default();
        match (path.as_str(), told["card"].as_str()) {
            ("/charge", Some("declined")) => answer(402, r#"{"detail":"the card is declined"}"#),
            ("/charge", Some("slow")) => std::future::pending().await,
            _ => {
                let mut r = answer(200, r#"{"id":"o1"}"#);
                r.headers_mut().insert("content-type", "application/json".parse().unwrap());
                r
            }
        }
    })
    .await;
    let action = |path: &str| Action {
        call: Call::Http {
            method: "POST".into(),
            service: name("s"),
            path: path.into(),
            with: Some(serde_json::json!({"card": "input.card"})),
        },
        policy: Policy { attempt_timeout: None, ..Policy::builtin() },
        idempotent: Idempotent::Key,
    };
    let step = |n: &str, path: &str, undo: Option<&str>| Step {
        name: name(n),
        when: None,
        kind: StepKind::Action { action: action(path), compensate: undo.map(action) },
    };
    let saga = SagaSpec {
        name: name("order"),
        deadline: Some(Duration::from_secs(60)),
        steps: vec![step("create", "/create", Some("/cancel")), step("charge", "/charge", None)],
        result: Some(serde_json::json!({"order": "create.id"})),
    };
    let mut r = route("orders", "/orders", "s");
    r.to = Target::Saga { saga: name("order"), reply };
    r.policy.deadline = Some(Duration::from_secs(5));
    let services = [spec_of("s", Protocol::Http, &[address])];
    let w = World::start(gateway(vec![r]), &services).await;
    w.flow.apply(&[saga], &services).await.unwrap();
    w
}

async fn order(w: &World, body: &str) -> (u16, http::HeaderMap, serde_json::Value) {
    let r = Request::post("/orders").header("host", "h").header("content-type", "application/json");
    let r = w.send(r.body(Full::new(Bytes::from(body.to_owned()))).unwrap()).await;
    let (head, body) = r.into_parts();
    (head.status.as_u16(), head.headers, json(&body.collect().await.unwrap().to_bytes()))
}

#[tokio::test]
async fn a_completed_saga_is_201_with_its_result_and_location() {
    let w = saga_world(Reply::Completed).await;
    let (status, headers, body) = order(&w, r#"{"card":"good"}"#).await;
    assert_eq!((status, body["order"].as_str()), (201, Some("o1")), "{body}");
    let id = headers["location"].to_str().unwrap().strip_prefix("/v1/sagas/").unwrap().parse().unwrap();
    assert_eq!(w.flow.get(id).await.unwrap().status, "completed");
}

#[tokio::test]
async fn a_compensated_saga_is_a_problem_that_names_the_step_and_its_error() {
    let w = saga_world(Reply::Completed).await;
    let (status, headers, body) = order(&w, r#"{"card":"declined"}"#).await;
    assert_eq!(
        (status, body["code"].as_str(), body["step"].as_str()),
        (422, Some("saga-rejected"), Some("charge")),
        "{body}"
    );
    assert!(body["detail"].as_str().unwrap().contains("declined"), "{body}");
    assert_eq!(headers["location"], format!("/v1/sagas/{}", body["saga"].as_str().unwrap()));
}

#[tokio::test]
async fn a_saga_is_202_when_it_is_not_to_be_waited_for_or_lasts_past_the_deadline() {
    let w = saga_world(Reply::Accepted).await;
    let (status, headers, body) = order(&w, r#"{"card":"good"}"#).await;
    assert_eq!(
        (status, headers["location"].to_str().unwrap().to_owned()),
        (202, format!("/v1/sagas/{}", body["id"].as_str().unwrap()))
    );

    let w = saga_world(Reply::Completed).await;
    let mut spec = gateway(vec![route("orders", "/orders", "s")]);
    spec.routes[0].to = Target::Saga { saga: name("order"), reply: Reply::Completed };
    spec.routes[0].policy.deadline = Some(Duration::from_millis(300));
    w.gateway.swap(&spec).unwrap();
    let (status, _, body) = order(&w, r#"{"card":"slow"}"#).await;
    assert_eq!((status, body["status"].as_str()), (202, Some("running")));
}

#[tokio::test]
async fn a_sagas_input_must_be_json() {
    let w = saga_world(Reply::Completed).await;
    let (status, _, body) = order(&w, "{\"card\":\n oops}").await;
    assert_eq!((status, body["code"].as_str(), body["line"].as_u64()), (400, Some("invalid-json"), Some(2)));
    let r = Request::post("/orders").header("host", "h").body(Full::new(Bytes::from_static(b"{}"))).unwrap();
    assert_eq!(w.send(r).await.status(), 415);
}
