//! A house (store, broker, mesh, flow) in a directory, and participants that keep the contract, or are told to fail.

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use axum::extract::{Path as UrlPath, State};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use futures_util::future::BoxFuture;
use http::{HeaderMap, StatusCode};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio_stream::wrappers::TcpListenerStream;
use weft_broker::Broker;
use weft_core::{Context, Deadline, Id, Name};
use weft_flow::spec::{Action, Call, Channel, Idempotent, SagaSpec, Step, StepKind};
use weft_flow::{Flow, View};
use weft_mesh::{Address, Balance, Mesh, Protocol, ServiceSpec};
use weft_policy::Policy;
use weft_policy::spec::Retry;
use weft_store::{Config, Embedded, Store};
use weft_telemetry::Telemetry;

/// What a participant does with the next request for a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Do {
    /// As it should.
    Well,
    /// A business decline.
    Decline,
    /// 503 / UNAVAILABLE without doing it.
    Away,
    /// 429 / RESOURCE_EXHAUSTED.
    Busy,
    /// Does it and then fails with 500 / INTERNAL.
    DoneThenFault,
    /// Does it and answers too late.
    DoneThenHang(Duration),
    /// Hangs and never does it.
    Hang(Duration),
    /// Does it and answers more than fits.
    Large(usize),
}

/// One request as it came.
#[derive(Clone, Debug)]
pub struct Seen {
    pub step: String,
    pub key: Option<String>,
    pub trace: String,
    pub body: Value,
}

/// Participants' shared book: who did what, by saga.
#[derive(Default)]
pub struct Book {
    pub seen: Mutex<Vec<Seen>>,
    /// (step, saga) to times it took effect and whether it was undone.
    pub effects: Mutex<HashMap<(String, String), (u32, bool)>>,
    pub orders: Mutex<HashMap<String, VecDeque<Do>>>,
    pub always: Mutex<HashMap<String, Do>>,
}

impl Book {
    /// The next requests for a step are treated so.
    pub fn order(&self, step: &str, what: &[Do]) {
        self.orders.lock().entry(step.into()).or_default().extend(what);
    }

    /// All further requests for a step are treated so.
    pub fn always(&self, step: &str, what: Do) {
        self.always.lock().insert(step.into(), what);
    }

    fn next(&self, step: &str) -> Do {
        let ordered = self.orders.lock().get_mut(step).and_then(VecDeque::pop_front);
        ordered.or_else(|| self.always.lock().get(step).copied()).unwrap_or(Do::Well)
    }

    pub fn count(&self, step: &str) -> usize {
        self.seen.lock().iter().filter(|s| s.step == step).count()
    }

    /// Steps that are in effect for a saga, sorted; panics when one took effect twice.
    pub fn in_effect(&self, saga: Id) -> Vec<String> {
        let effects = self.effects.lock();
        let mine = effects.iter().filter(|((_, s), _)| *s == saga.to_string());
        let mut out = Vec::new();
        for ((step, _), (times, undone)) in mine {
            assert!(*times <= 1, "step {step} took effect {times} times");
            if *times == 1 && !undone {
                out.push(step.clone());
            }
        }
        out.sort();
        out
    }

    /// The participant's contract: idempotent by saga and step, and an undone step stays undone.
    fn perform(&self, step: &str, saga: &str) {
        let (name, undo) = step.strip_suffix("/undo").map_or((step, false), |s| (s, true));
        let mut effects = self.effects.lock();
        let e = effects.entry((name.to_owned(), saga.to_owned())).or_default();
        match undo {
            true => e.1 = true,
            false if !e.1 && e.0 == 0 => e.0 = 1,
            false => {}
        }
    }

    /// Handles a request; the answer as an HTTP status, and how large to make it.
    async fn handle(&self, seen: Seen) -> (u16, usize) {
        let (step, key) = (seen.step.clone(), seen.key.clone().unwrap_or_default());
        let saga = match key.split_once(':') {
            Some((saga, _)) => saga.to_owned(),
            None => seen.body["saga"].as_str().unwrap_or_default().to_owned(),
        };
        let what = self.next(&step);
        self.seen.lock().push(seen);
        match what {
            Do::Well => self.perform(&step, &saga),
            Do::Decline => return (422, 0),
            Do::Away => return (503, 0),
            Do::Busy => return (429, 0),
            Do::DoneThenFault => {
                self.perform(&step, &saga);
                return (500, 0);
            }
            Do::DoneThenHang(d) => {
                self.perform(&step, &saga);
                tokio::time::sleep(d).await;
            }
            Do::Hang(d) => {
                tokio::time::sleep(d).await;
                return (503, 0);
            }
            Do::Large(n) => {
                self.perform(&step, &saga);
                return (200, n);
            }
        }
        (200, 0)
    }
}

/// Participants on a thread of their own, so that they outlive a crash.
pub struct Parties {
    pub book: Arc<Book>,
    pub http: SocketAddr,
    pub grpc: SocketAddr,
    _stop: tokio::sync::oneshot::Sender<()>,
}

/// How the gRPC participant describes itself.
#[derive(Clone, Copy, PartialEq)]
pub enum Reflects {
    No,
    V1,
    V1Alpha,
}

impl Parties {
    pub fn start(reflects: Reflects) -> Self {
        let book = Arc::new(Book::default());
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let (tx, rx) = std::sync::mpsc::channel();
        let shared = book.clone();
        std::thread::spawn(move || {
            let rt = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            rt.block_on(async move {
                let http = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
                let grpc = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
                tx.send((http.local_addr().unwrap(), grpc.local_addr().unwrap())).unwrap();
                let app = Router::new().route("/{*step}", post(answer)).with_state(shared.clone());
                tokio::spawn(async move { axum::serve(http, app).await.unwrap() });
                let server = tonic::transport::Server::builder().add_service(Inventory(shared));
                let described = || {
                    let set = protox::compile([proto_file()], [proto_dir()]).unwrap();
                    tonic_reflection::server::Builder::configure().register_file_descriptor_set(set)
                };
                let server = match reflects {
                    Reflects::No => server,
                    Reflects::V1 => server.add_service(described().build_v1().unwrap()),
                    Reflects::V1Alpha => server.add_service(described().build_v1alpha().unwrap()),
                };
                tokio::spawn(async move { server.serve_with_incoming(TcpListenerStream::new(grpc)).await.unwrap() });
                let _ = stopped.await;
            });
        });
        let (http, grpc) = rx.recv().unwrap();
        Self { book, http, grpc, _stop: stop }
    }

    pub fn services(&self, protos: bool) -> Vec<ServiceSpec> {
        let spec = |n: &str, protocol, at: SocketAddr, protos: Vec<PathBuf>| ServiceSpec {
            name: name(n),
            protocol,
            addresses: vec![Address::Ip(at)],
            balance: Balance::default(),
            picking: Default::default(),
            health: None,
            tls: None,
            protos,
            policy: Policy::builtin(),
        };
        let protos = if protos { vec![proto_file()] } else { Vec::new() };
        vec![spec("shop", Protocol::Http, self.http, Vec::new()), spec("inventory", Protocol::Grpc, self.grpc, protos)]
    }
}

async fn answer(
    State(book): State<Arc<Book>>,
    UrlPath(step): UrlPath<String>,
    headers: HeaderMap,
    body: axum::body::Bytes,
) -> Response {
    let text = |h: &str| headers.get(h).and_then(|v| v.to_str().ok()).map(str::to_owned);
    let body = serde_json::from_slice(&body).unwrap_or_default();
    let seen = Seen { step, key: text("idempotency-key"), trace: text("traceparent").unwrap_or_default(), body };
    let echo = seen.clone();
    match book.handle(seen).await {
        (200, 0) => {
            Json(json!({"id": format!("{}-1", echo.step), "total_cents": 4200, "echo": echo.body})).into_response()
        }
        (200, n) => Json(json!({"id": "x".repeat(n)})).into_response(),
        (422, _) => (StatusCode::UNPROCESSABLE_ENTITY, Json(json!({"detail": "the card is declined"}))).into_response(),
        (status, _) => StatusCode::from_u16(status).unwrap().into_response(),
    }
}

pub fn proto_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/proto")
}

pub fn proto_file() -> PathBuf {
    proto_dir().join("inventory.proto")
}

/// The gRPC participant, as generated code would be.
#[derive(Clone)]
struct Inventory(Arc<Book>);

#[derive(Clone, PartialEq, prost::Message)]
struct Request {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(message, repeated, tag = "2")]
    items: Vec<Item>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Item {
    #[prost(string, tag = "1")]
    sku: String,
    #[prost(int64, tag = "2")]
    count: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Reply {
    #[prost(string, tag = "1")]
    reservation: String,
    #[prost(int64, tag = "2")]
    left_count: i64,
}

impl tonic::server::NamedService for Inventory {
    const NAME: &'static str = "shop.Inventory";
}

struct Unary(Arc<Book>, &'static str);

impl tonic::server::UnaryService<Request> for Unary {
    type Response = Reply;
    type Future = BoxFuture<'static, Result<tonic::Response<Reply>, tonic::Status>>;
    fn call(&mut self, r: tonic::Request<Request>) -> Self::Future {
        let (book, step) = (self.0.clone(), self.1);
        Box::pin(async move {
            let text = |h: &str| r.metadata().get(h).and_then(|v| v.to_str().ok()).map(str::to_owned);
            let trace = text("traceparent").unwrap_or_default();
            let items: Vec<Value> = r.get_ref().items.iter().map(|i| json!({"sku": i.sku, "count": i.count})).collect();
            let body = json!({"saga": r.get_ref().key, "items": items});
            let seen = Seen { step: step.into(), key: text("idempotency-key"), trace, body };
            match book.handle(seen).await.0 {
                200 => Ok(tonic::Response::new(Reply { reservation: "r-1".into(), left_count: 7 })),
                422 => Err(tonic::Status::failed_precondition("out of stock: 100 % sold")),
                429 => Err(tonic::Status::resource_exhausted("slow down")),
                503 => Err(tonic::Status::unavailable("away")),
                _ => Err(tonic::Status::internal("broken")),
            }
        })
    }
}

impl tower_service::Service<http::Request<tonic::body::Body>> for Inventory {
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;
    fn poll_ready(&mut self, _: &mut TaskContext<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }
    fn call(&mut self, r: http::Request<tonic::body::Body>) -> Self::Future {
        let step = match r.uri().path() {
            "/shop.Inventory/Reserve" => "reserve",
            "/shop.Inventory/Release" => "reserve/undo",
            _ => return Box::pin(async { Ok(tonic::Status::unimplemented("").into_http()) }),
        };
        let unary = Unary(self.0.clone(), step);
        Box::pin(async move {
            let codec = tonic_prost::ProstCodec::<Reply, Request>::default();
            Ok(tonic::server::Grpc::new(codec).unary(unary, r).await)
        })
    }
}

/// Store, broker, mesh and flow in a directory.
pub struct House {
    pub store: Arc<dyn Store>,
    pub telemetry: Telemetry,
    pub broker: Broker,
    pub mesh: Mesh,
    pub flow: Flow,
}

impl House {
    pub async fn open(dir: &Path) -> Self {
        Self::on(Arc::new(Embedded::open(Config::new(dir)).unwrap())).await
    }

    pub async fn on(store: Arc<dyn Store>) -> Self {
        let telemetry = Telemetry::new();
        let mesh = Mesh::new(store.clone(), telemetry.clone());
        let broker = Broker::open(store.clone(), telemetry.clone(), mesh.clone()).await.unwrap();
        let flow = Flow::open(store.clone(), broker.clone(), mesh.clone(), telemetry.clone()).await.unwrap();
        Self { store, telemetry, broker, mesh, flow }
    }

    pub async fn apply(&self, sagas: &[SagaSpec], services: &[ServiceSpec]) {
        self.mesh.apply(services).unwrap();
        self.flow.apply(sagas, services).await.unwrap();
    }

    pub async fn run(&self, saga: &str, input: Value) -> View {
        let started = self.flow.start(&Context::root(), saga, None, input).await.unwrap();
        self.end(started.id).await
    }

    pub async fn end(&self, id: Id) -> View {
        let view = self.flow.wait(id, Deadline::after(Duration::from_secs(30))).await.unwrap();
        assert!(!["running", "compensating"].contains(&view.status), "it did not end: {view:#?}");
        view
    }
}

pub fn name(s: &str) -> Name {
    Name::new(s).unwrap()
}

pub fn id(view: &View) -> Id {
    view.id.parse().unwrap()
}

/// Two attempts; patient, so that a busy machine changes nothing.
pub fn policy() -> Policy {
    Policy {
        deadline: Some(Duration::from_secs(20)),
        attempt_timeout: Some(Duration::from_secs(10)),
        retry: Some(Retry {
            attempts: 2,
            backoff_min: Duration::from_millis(5),
            backoff_max: Duration::from_millis(20),
            budget: 1.0,
            budget_min: 1_000,
            ..Retry::default()
        }),
        hedge: None,
        breaker: None,
        bulkhead: None,
        rate: Vec::new(),
        quota: Vec::new(),
        idempotency: None,
        auth: None,
    }
}

/// The same saga with short patience, for services that hang.
pub fn impatient(mut s: SagaSpec) -> SagaSpec {
    fn hurry(steps: &mut [Step]) {
        for s in steps {
            match &mut s.kind {
                StepKind::Action { action, compensate } => {
                    for a in std::iter::once(action).chain(compensate) {
                        a.policy.attempt_timeout = Some(Duration::from_millis(200));
                    }
                }
                StepKind::Parallel(inner) => hurry(inner),
            }
        }
    }
    hurry(&mut s.steps);
    s
}

pub fn action(call: Call) -> Action {
    Action { call, policy: policy(), idempotent: Idempotent::Key }
}

pub fn http(path: &str, with: Value) -> Action {
    action(Call::Http {
        method: "POST".into(),
        service: name("shop"),
        path: path.into(),
        with: Some(with).filter(|w| !w.is_null()),
    })
}

pub fn grpc(method: &str, with: Value) -> Action {
    action(Call::Grpc { service: name("inventory"), method: method.into(), with: Some(with) })
}

pub fn publish(queue: &str, with: Value) -> Action {
    action(Call::Publish {
        channel: Channel::Queue(name(queue)),
        ty: "OrderCompleted".into(),
        subject: Some("saga.id".into()),
        with: Some(with),
    })
}

pub fn step(n: &str, action: Action, compensate: Option<Action>) -> Step {
    Step { name: name(n), when: None, kind: StepKind::Action { action, compensate } }
}

/// A step of the HTTP participant with its compensation.
pub fn simple(n: &str) -> Step {
    step(n, http(&format!("/{n}"), Value::Null), Some(http(&format!("/{n}/undo"), Value::Null)))
}

pub fn saga(n: &str, steps: Vec<Step>) -> SagaSpec {
    SagaSpec { name: name(n), deadline: Some(Duration::from_secs(20)), steps, result: None }
}

/// create (HTTP), reserve (gRPC), two at once (HTTP), announce (publish).
pub fn order() -> SagaSpec {
    let both =
        Step { name: name("both"), when: None, kind: StepKind::Parallel(vec![simple("charge"), simple("ship")]) };
    let reserve = step(
        "reserve",
        grpc("Reserve", json!({"key": "saga.id", "items": "input.items"})),
        Some(grpc("Release", json!({"key": "saga.id"}))),
    );
    let create = step(
        "create",
        http("/create", json!({"id": "saga.id", "who": "input.customer"})),
        Some(http("/create/undo", Value::Null)),
    );
    let announce = step("announce", publish("done", json!({"order": "saga.id", "left": "reserve.left_count"})), None);
    let result = json!({"id": "saga.id", "total": "create.total_cents + reserve.left_count", "status": "'completed'"});
    SagaSpec { result: Some(result), ..saga("order", vec![create, reserve, both, announce]) }
}

pub fn input() -> Value {
    json!({"customer": "ada", "items": [{"sku": "tea", "count": 2}]})
}
