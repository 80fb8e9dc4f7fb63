//! The commit over HTTP, against real broker, saga engine and store.

use http_body_util::BodyExt as _;
use tower_service::Service as _;
use weft_core::Trace;
use weft_mesh::Mesh;
use weft_store::{Config, Embedded};
use weft_telemetry::Telemetry;

use super::*;

#[derive(Clone)]
struct Part {
    broker: Broker,
    flow: Flow,
    store: Arc<dyn Store>,
}

impl FromRef<Part> for Broker {
    fn from_ref(p: &Part) -> Broker {
        p.broker.clone()
    }
}
impl FromRef<Part> for Flow {
    fn from_ref(p: &Part) -> Flow {
        p.flow.clone()
    }
}
impl FromRef<Part> for Arc<dyn Store> {
    fn from_ref(p: &Part) -> Arc<dyn Store> {
        p.store.clone()
    }
}

struct World {
    api: Router,
    part: Part,
    _dir: tempfile::TempDir,
}

async fn world() -> World {
    let dir = tempfile::tempdir().unwrap();
    let store: Arc<dyn Store> = Arc::new(Embedded::open(Config::new(dir.path())).unwrap());
    let telemetry = Telemetry::new();
    let mesh = Mesh::new(store.clone(), telemetry.clone());
    let broker = Broker::open(store.clone(), telemetry.clone(), mesh.clone()).await.unwrap();
    let flow = Flow::open(store.clone(), broker.clone(), mesh, telemetry).await.unwrap();
    let announce = weft_flow::spec::Action {
        call: weft_flow::spec::Call::Publish {
            channel: weft_flow::spec::Channel::Queue(Name::new("announced").unwrap()),
            ty: "Announced".into(),
            subject: None,
            with: Some(json!({"n": "input.n"})),
        },
        policy: weft_policy::Policy::builtin(),
        idempotent: weft_flow::spec::Idempotent::Key,
    };
    let step = weft_flow::spec::Step {
        name: Name::new("announce").unwrap(),
        when: None,
        kind: weft_flow::spec::StepKind::Action { action: announce, compensate: None },
    };
    let saga = weft_flow::spec::SagaSpec {
        name: Name::new("announce").unwrap(),
        deadline: None,
        steps: vec![step],
        result: None,
    };
    flow.apply(&[saga], &[]).await.unwrap();
    let part = Part { broker, flow, store };
    World { api: table().with_state(part.clone()), part, _dir: dir }
}

impl World {
    async fn call(&self, r: http::Request<axum::body::Body>) -> (u16, HeaderMap, Value) {
        let answer = self.api.clone().call(r).await.unwrap();
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        let bytes = answer.into_body().collect().await.unwrap().to_bytes();
        (status, headers, serde_json::from_slice(&bytes).unwrap())
    }

    async fn commit(&self, body: Value) -> (u16, Value) {
        let r = http::Request::post("/v1/commit").header("content-type", "application/json");
        let (status, _, v) = self.call(r.body(body.to_string().into()).unwrap()).await;
        (status, v)
    }

    async fn get(&self, path: &str) -> (u16, HeaderMap, Value) {
        self.call(http::Request::get(path).body(axum::body::Body::empty()).unwrap()).await
    }

    async fn receive(&self, queue: &str) -> Option<weft_broker::Delivery> {
        let options = weft_broker::ReceiveOptions { wait: std::time::Duration::from_secs(5), ..Default::default() };
        let source = weft_broker::Source::Queue(Name::new(queue).unwrap());
        self.part.broker.receive(source, options).await.unwrap().pop()
    }

    async fn nothing_in(&self, queue: &str) -> bool {
        let source = weft_broker::Source::Queue(Name::new(queue).unwrap());
        self.part.broker.receive(source, Default::default()).await.unwrap().is_empty()
    }
}

fn event(id: &str) -> Value {
    json!({"specversion": "1.0", "id": id, "source": "/s", "type": "T", "data": {"n": 1}})
}

#[tokio::test]
async fn everything_in_a_commit_takes_effect_at_one_position() {
    let w = world().await;
    w.commit(json!({"publish": [{"queue": "in", "event": event("1")}]})).await;
    let d = w.receive("in").await.unwrap();
    let (status, v) = w
        .commit(json!({
            "expect": [{"stream": "order-17", "version": "absent"}, {"space": "carts", "key": "k", "version": 0}],
            "ack": [d.token],
            "publish": [{"queue": "out", "event": event("2")}, {"topic": "t", "event": event("3")}],
            "append": [{"stream": "order-17", "events": [event("a"), event("b")]}, {"stream": "x", "events": []}],
            "put": [{"space": "carts", "key": "k", "value": {"total": 12.50}}],
            "start_saga": [{"saga": "announce", "key": "s-1", "input": {"n": 7}}],
        }))
        .await;
    assert_eq!(status, 200, "{v}");
    let ids: Vec<&str> = v["publish"].as_array().unwrap().iter().map(|r| r["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["2", "3"]);
    assert_eq!(v["append"], json!([{"stream": "order-17", "version": 2}, {"stream": "x", "version": null}]));
    let position = v["position"].as_u64().unwrap();
    assert_eq!(w.receive("out").await.unwrap().position, position);
    let announced = w.receive("announced").await.unwrap();
    assert_eq!(announced.event.data_json().unwrap()["n"], 7);

    let (status, headers, v) = w.get("/v1/streams/order-17/events?limit=1").await;
    assert_eq!((status, headers["etag"].to_str().unwrap()), (200, "\"2\""));
    assert_eq!((&v["items"][0]["version"], &v["items"][0]["position"]), (&json!(1), &json!(position)));
    assert_eq!((&v["items"][0]["event"]["id"], &v["next"]), (&json!("a"), &json!("2")));
    let (_, _, v) = w.get("/v1/streams/order-17/events?cursor=2").await;
    assert_eq!((&v["items"][0]["event"]["id"], &v["next"]), (&json!("b"), &Value::Null));
    let (status, headers, v) = w.get("/v1/state/carts/k").await;
    assert_eq!((status, headers["etag"].to_str().unwrap()), (200, format!("\"{position}\"").as_str()));
    assert_eq!(v, json!({"total": 12.5}));
    let (_, v) = w.commit(json!({"put": [{"space": "carts", "key": "k", "value": null}]})).await;
    assert!(v["position"].as_u64().unwrap() > position);
    assert_eq!(w.get("/v1/state/carts/k").await.0, 404);
    assert_eq!(w.get("/v1/streams/none/events").await.0, 404);
}

#[tokio::test]
async fn what_fails_names_its_member_and_leaves_nothing_behind() {
    let w = world().await;
    w.commit(json!({"append": [{"stream": "s", "events": [event("1")]}]})).await;
    let effects =
        json!({"publish": [{"queue": "out", "event": event("2")}], "put": [{"space": "a", "key": "b", "value": 1}]});
    let with = |more: Value| {
        let mut body = effects.clone();
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    for (more, status, code, member) in [
        (
            json!({"expect": [{"stream": "s", "version": 1}, {"stream": "s", "version": 2}]}),
            409,
            "precondition-failed",
            "expect[1]",
        ),
        (json!({"expect": [{"stream": "s", "version": "absent"}]}), 409, "precondition-failed", "expect[0]"),
        (json!({"expect": [{"space": "a", "key": "b", "version": "exists"}]}), 409, "precondition-failed", "expect[0]"),
        (json!({"expect": [{"key": "b", "version": "exists"}]}), 400, "bad-request", "expect[0]"),
        (json!({"ack": ["nonsense"]}), 400, "lease-unknown", "ack[0]"),
        (json!({"append": [{"stream": "s", "events": [{"id": "1"}]}]}), 400, "invalid-event", "append[0]"),
        (json!({"append": [{"stream": "", "events": []}]}), 400, "invalid-name", "append[0]"),
        (json!({"start_saga": [{"saga": "unknown"}]}), 404, "not-found", "start_saga[0]"),
    ] {
        let (got, v) = w.commit(with(more.clone())).await;
        let said = (got, v["code"].as_str().unwrap_or_default(), v["member"].as_str().unwrap_or_default());
        assert_eq!(said, (status, code, member), "{more}: {v}");
    }
    let (status, v) = w.commit(json!({"publish": [{"event": event("1")}]})).await;
    assert_eq!((status, v["member"].as_str()), (400, Some("publish[0]")));
    let (status, v) = w.commit(json!({"pubish": []})).await;
    assert_eq!((status, v["code"].as_str()), (400, Some("invalid-json")));
    assert!(w.nothing_in("out").await);
    assert_eq!(w.get("/v1/state/a/b").await.0, 404);
}

#[tokio::test]
async fn a_stale_lease_is_409_and_names_the_token() {
    let w = world().await;
    w.commit(json!({"publish": [{"queue": "in", "event": event("1")}]})).await;
    let d = w.receive("in").await.unwrap();
    assert_eq!(w.commit(json!({"ack": [d.token]})).await.0, 200);
    let (status, v) = w.commit(json!({"ack": [d.token], "publish": [{"queue": "out", "event": event("2")}]})).await;
    assert_eq!((status, v["code"].as_str(), v["member"].as_str()), (409, Some("lease-stale"), Some("ack[0]")));
    assert!(w.nothing_in("out").await);
}

#[tokio::test]
async fn a_saga_key_that_started_before_starts_nothing_again() {
    let w = world().await;
    let start = json!({"start_saga": [{"saga": "announce", "key": "once", "input": {"n": 1}}]});
    let (_, first) = w.commit(start.clone()).await;
    w.receive("announced").await.unwrap();
    let (status, again) = w.commit(start).await;
    assert_eq!((status, &again["start_saga"]), (200, &first["start_saga"]));
    assert!(w.nothing_in("announced").await);
}

#[tokio::test]
async fn a_commit_continues_the_trace_of_its_message_or_of_its_caller() {
    let w = world().await;
    let cause = Trace::root();
    let mut e = event("1");
    e["traceparent"] = cause.to_traceparent().into();
    w.commit(json!({"publish": [{"queue": "in", "event": e}]})).await;
    let d = w.receive("in").await.unwrap();
    let body = json!({
        "ack": [d.token],
        "publish": [{"queue": "out", "event": event("2")}],
        "append": [{"stream": "s", "events": [event("3")]}],
    });
    w.commit(body).await;
    let trace = |e: &Envelope| Trace::parse(e.traceparent().unwrap()).unwrap().trace_id;
    assert_eq!(trace(&w.receive("out").await.unwrap().event), cause.trace_id);
    let (_, _, v) = w.get("/v1/streams/s/events").await;
    assert!(v["items"][0]["event"]["traceparent"].as_str().unwrap().contains(&cause.trace_id.to_string()));

    let caller = Trace::root();
    let r = http::Request::post("/v1/commit")
        .header("content-type", "application/json")
        .header("traceparent", caller.to_traceparent());
    let body = json!({"publish": [{"queue": "out", "event": event("4")}]}).to_string();
    assert_eq!(w.call(r.body(body.into()).unwrap()).await.0, 200);
    assert_eq!(trace(&w.receive("out").await.unwrap().event), caller.trace_id);
}
