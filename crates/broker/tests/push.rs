//! Push subscriptions against a real HTTP server and the embedded store.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::routing::post;
use http::{HeaderMap, StatusCode};
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::mpsc;
use weft_broker::spec::{Dedup, Push, Redelivery, StartFrom};
use weft_broker::{
    Broker, Channel, Delivery, PublishOptions, ReceiveOptions, Source, SubscriptionMode, SubscriptionSpec, TopicSpec,
};
use weft_core::{Context, Envelope, Name, Trace};
use weft_mesh::Mesh;
use weft_mesh::spec::{Balance, Protocol, ServiceSpec};
use weft_policy::Policy;
use weft_policy::spec::Breaker;
use weft_store::{Config, Embedded, Store};
use weft_telemetry::{SpanKind, Telemetry};

fn name(s: &str) -> Name {
    Name::new(s).unwrap()
}

type Seen = (HeaderMap, bytes::Bytes);

/// What the service answers, in order; the last one for ever.
type Script = Arc<Mutex<Vec<StatusCode>>>;

struct World {
    broker: Broker,
    telemetry: Telemetry,
    store: Arc<dyn Store>,
    seen: mpsc::UnboundedReceiver<Seen>,
    server: tokio::task::JoinHandle<()>,
    _dir: tempfile::TempDir,
}

async fn answer(
    State((script, seen)): State<(Script, mpsc::UnboundedSender<Seen>)>,
    headers: HeaderMap,
    body: bytes::Bytes,
) -> StatusCode {
    let mut script = script.lock();
    let status = if script.len() > 1 { script.remove(0) } else { script[0] };
    let _ = seen.send((headers, body));
    status
}

fn subscription(policy: Policy) -> SubscriptionSpec {
    SubscriptionSpec {
        name: name("mailer"),
        topic: name("orders"),
        mode: SubscriptionMode::Shared,
        filter: None,
        from: StartFrom::Earliest,
        redelivery: Redelivery {
            attempts: 3,
            backoff_min: Duration::from_millis(5),
            backoff_max: Duration::from_millis(20),
        },
        dead_letter: None,
        lease: Duration::from_secs(30),
        push: Some(Push { service: name("mail"), path: "/events".into(), policy, concurrency: 4 }),
    }
}

async fn world(policy: Policy, answers: &[StatusCode]) -> World {
    let dir = tempfile::tempdir().unwrap();
    let store: Arc<dyn Store> = Arc::new(Embedded::open(Config::new(dir.path())).unwrap());
    let telemetry = Telemetry::new();
    let mesh = Mesh::new(store.clone(), telemetry.clone());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (tx, seen) = mpsc::unbounded_channel();
    let script: Script = Arc::new(Mutex::new(answers.to_vec()));
    let app = Router::new().route("/events", post(answer)).with_state((script, tx));
    let server = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    mesh.apply(&[ServiceSpec {
        name: name("mail"),
        protocol: Protocol::Http,
        addresses: vec![address.to_string().parse().unwrap()],
        balance: Balance::default(),
        picking: Default::default(),
        health: None,
        tls: None,
        protos: vec![],
        policy: Policy::builtin(),
    }])
    .unwrap();
    let broker = Broker::open(store.clone(), telemetry.clone(), mesh).await.unwrap();
    let topic = TopicSpec {
        name: name("orders"),
        partitions: 2,
        key: None,
        retention: None,
        dedup: Dedup::default(),
        relaxed: false,
    };
    broker.apply(&[], &[topic], &[subscription(policy)]).await.unwrap();
    World { broker, telemetry, store, seen, server, _dir: dir }
}

impl World {
    async fn publish(&self, ctx: &Context, n: u64) {
        let mut e = Envelope::json("/shop", "OrderCreated", &json!({ "n": n }));
        e.id = format!("e{n}");
        e.subject = Some(format!("order-{n}"));
        self.broker.publish(ctx, Channel::Topic(name("orders")), e, PublishOptions::default()).await.unwrap();
    }

    async fn dead(&self) -> Vec<Delivery> {
        let options = ReceiveOptions { max: 10, wait: Duration::from_secs(20), lease: None };
        self.broker.receive(Source::Queue(name("mailer.dead")), options).await.unwrap()
    }

    async fn idle(&self) {
        loop {
            let l = self.broker.subscriptions().await.unwrap().remove(0);
            if l.ready + l.in_flight + l.delayed == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    async fn end(self) {
        self.broker.close().await;
        self.server.abort();
        let _ = self.server.await;
        self.store.close().await.unwrap();
    }
}

#[tokio::test]
async fn a_pushed_message_is_acknowledged_by_success_and_its_trace_goes_on() {
    let mut w = world(Policy::builtin(), &[StatusCode::NO_CONTENT]).await;
    let ctx = Context::of(Trace::root().child());
    w.publish(&ctx, 1).await;
    let (headers, body) = w.seen.recv().await.unwrap();
    assert_eq!((headers["ce-id"].to_str().unwrap(), headers["ce-subject"].to_str().unwrap()), ("e1", "order-1"));
    assert_eq!((headers["weft-attempt"].to_str().unwrap(), body.as_ref()), ("1", b"{\"n\":1}".as_slice()));
    let sent = Trace::parse(headers["traceparent"].to_str().unwrap()).unwrap();
    assert_eq!(sent.trace_id, ctx.trace.trace_id);
    w.idle().await;
    let spans = w.telemetry.trace(ctx.trace.trace_id);
    let consumer = spans.iter().find(|s| s.kind == SpanKind::Consumer).unwrap();
    let producer = spans.iter().find(|s| s.kind == SpanKind::Producer).unwrap();
    assert_eq!(consumer.trace.parent, Some(producer.trace.span_id));
    assert_eq!(producer.trace.parent, Some(ctx.trace.span_id));
    w.end().await;
}

#[tokio::test]
async fn a_failed_push_is_tried_again_with_the_attempt_told() {
    let mut w =
        world(Policy::builtin(), &[StatusCode::SERVICE_UNAVAILABLE, StatusCode::INTERNAL_SERVER_ERROR, StatusCode::OK])
            .await;
    w.publish(&Context::root(), 1).await;
    for attempt in ["1", "2", "3"] {
        assert_eq!(w.seen.recv().await.unwrap().0["weft-attempt"].to_str().unwrap(), attempt);
    }
    w.idle().await;
    assert_eq!(w.broker.subscriptions().await.unwrap()[0].dead_letters, 0);
    w.end().await;
}

#[tokio::test]
async fn a_push_whose_attempts_are_used_up_ends_in_the_dead_letter_queue_with_the_answer_quoted() {
    let w = world(Policy::builtin(), &[StatusCode::INTERNAL_SERVER_ERROR]).await;
    w.publish(&Context::root(), 1).await;
    let dead = w.dead().await;
    let x = &dead[0].event.extensions;
    assert_eq!((x["weftdeadcount"].as_str(), x["weftdeadorigin"].as_str()), ("3", "subscription/mailer"));
    assert!(x["weftdeadreason"].contains("500"), "{}", x["weftdeadreason"]);
    w.end().await;
}

#[tokio::test]
async fn a_rejected_push_is_dead_at_once_and_comes_back_by_redrive() {
    let mut w = world(Policy::builtin(), &[StatusCode::UNPROCESSABLE_ENTITY, StatusCode::OK]).await;
    w.publish(&Context::root(), 1).await;
    let dead = w.dead().await;
    assert_eq!(dead[0].event.extensions["weftdeadcount"], "1");
    let now = weft_broker::NackOptions { delay: Some(Duration::ZERO), ..Default::default() };
    w.broker.nack(&[dead[0].token.clone()], now).await.unwrap();
    w.seen.recv().await.unwrap();
    assert_eq!(w.broker.redrive(&name("mailer.dead"), 10, None).await.unwrap(), 1);
    assert_eq!(w.seen.recv().await.unwrap().0["ce-id"].to_str().unwrap(), "e1");
    w.idle().await;
    w.end().await;
}

#[tokio::test]
async fn an_open_breaker_pauses_the_pushes_and_burns_no_attempts() {
    let breaker = Breaker {
        failure_rate: 0.5,
        slow_call: None,
        slow_rate: 1.0,
        window: 2,
        window_time: None,
        min_calls: 2,
        open_for: Duration::from_millis(300),
        half_open_calls: 1,
    };
    let policy = Policy { breaker: Some(breaker), ..Policy::builtin() };
    // Two failures open the breaker; every message would be dead by the time it closes if refusals counted.
    let mut w = world(policy, &[StatusCode::BAD_GATEWAY, StatusCode::BAD_GATEWAY, StatusCode::OK]).await;
    for n in 1..=2 {
        w.publish(&Context::root(), n).await;
    }
    let mut attempts = Vec::new();
    for _ in 0..4 {
        let (headers, _) = w.seen.recv().await.unwrap();
        attempts.push(headers["weft-attempt"].to_str().unwrap().to_owned());
    }
    w.idle().await;
    attempts.sort_unstable();
    assert_eq!(attempts, ["1", "1", "2", "2"]);
    assert_eq!(w.broker.subscriptions().await.unwrap()[0].dead_letters, 0);
    w.end().await;
}

#[tokio::test]
async fn a_service_without_instances_is_waited_for() {
    let mut w = world(Policy::builtin(), &[StatusCode::OK]).await;
    let nobody = SubscriptionSpec {
        push: Some(Push { service: name("absent"), path: "/events".into(), policy: Policy::builtin(), concurrency: 4 }),
        ..subscription(Policy::builtin())
    };
    w.broker.apply(&[], &[], &[]).await.unwrap();
    w.broker.declare_topic(name("orders"), &json!({})).await.unwrap();
    w.broker.apply(&[], &[], &[nobody]).await.unwrap();
    w.publish(&Context::root(), 1).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(w.seen.try_recv().is_err());
    w.broker.apply(&[], &[], &[subscription(Policy::builtin())]).await.unwrap();
    assert_eq!(w.seen.recv().await.unwrap().0["weft-attempt"].to_str().unwrap(), "1", "nothing had been attempted");
    w.idle().await;
    w.end().await;
}
