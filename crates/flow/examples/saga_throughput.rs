//! Sagas a second on this machine: three HTTP steps and a publish each, with fsync, everything in one process.
//!
//! `cargo run --release -p weft-flow --example saga_throughput -- [sagas] [at once]`

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::{Router, routing::post};
use serde_json::json;
use weft_broker::Broker;
use weft_core::{Context, Deadline, Name};
use weft_flow::spec::{Action, Call, Channel, Idempotent, SagaSpec, Step, StepKind};
use weft_flow::{Filter, Flow};
use weft_mesh::{Address, Balance, Mesh, Protocol, ServiceSpec};
use weft_policy::Policy;
use weft_store::{Config, Embedded, Store};
use weft_telemetry::Telemetry;

fn name(s: &str) -> Name {
    Name::new(s).expect("a name")
}

fn action(call: Call) -> Action {
    let policy = Policy { bulkhead: None, ..Policy::builtin() };
    Action { call, policy, idempotent: Idempotent::Key }
}

fn http(path: &str) -> Action {
    let with = Some(json!({"id": "saga.id", "customer": "input.customer", "n": 1}));
    action(Call::Http { method: "POST".into(), service: name("shop"), path: path.into(), with })
}

fn step(n: &str, action: Action, compensate: Option<Action>) -> Step {
    Step { name: name(n), when: None, kind: StepKind::Action { action, compensate } }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1).map(|a| a.parse::<usize>());
    let sagas = args.next().transpose()?.unwrap_or(5_000);
    let at_once = args.next().transpose()?.unwrap_or(200);
    let (tx, rx) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let rt = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        rt.block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
            tx.send(listener.local_addr().expect("bound")).expect("somebody waits");
            let app =
                Router::new().route("/{*step}", post(|| async { axum::Json(json!({"id": "x", "total_cents": 4200})) }));
            axum::serve(listener, app).await.expect("it serves");
        });
    });
    let address = rx.recv()?;
    let rt = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    rt.block_on(async move {
        let dir = tempfile::tempdir()?;
        let store: Arc<dyn Store> = Arc::new(Embedded::open(Config::new(dir.path()))?);
        let telemetry = Telemetry::new();
        let mesh = Mesh::new(store.clone(), telemetry.clone());
        let broker = Broker::open(store.clone(), telemetry.clone(), mesh.clone()).await?;
        let flow = Flow::open(store.clone(), broker.clone(), mesh.clone(), telemetry.clone()).await?;
        let services = [ServiceSpec {
            name: name("shop"),
            protocol: Protocol::Http,
            addresses: vec![Address::Ip(address)],
            balance: Balance::default(),
            picking: Default::default(),
            health: None,
            tls: None,
            protos: Vec::new(),
            policy: Policy::builtin(),
        }];
        let done = action(Call::Publish {
            channel: Channel::Topic(name("orders")),
            ty: "OrderCompleted".into(),
            subject: Some("saga.id".into()),
            with: Some(json!({"order": "saga.id", "total": "create.total_cents"})),
        });
        let spec = SagaSpec {
            name: name("order"),
            deadline: Some(Duration::from_secs(60)),
            steps: vec![
                step("create", http("/create"), Some(http("/create/undo"))),
                step("charge", http("/charge"), Some(http("/charge/undo"))),
                step("ship", http("/ship"), None),
                step("announce", done, None),
            ],
            result: Some(json!({"id": "saga.id", "total": "create.total_cents"})),
        };
        mesh.apply(&services)?;
        flow.apply(&[spec], &services).await?;
        for round in 0..3 {
            let began = Instant::now();
            let gate = Arc::new(tokio::sync::Semaphore::new(at_once));
            let mut tasks = Vec::new();
            for _ in 0..sagas {
                let permit = gate.clone().acquire_owned().await?;
                let flow = flow.clone();
                tasks.push(tokio::spawn(async move {
                    let _permit = permit;
                    let began = Instant::now();
                    let input = json!({"customer": "ada", "items": [{"sku": "tea", "count": 2}]});
                    let started = flow.start(&Context::root(), "order", None, input).await.expect("it starts");
                    let view = flow.wait(started.id, Deadline::after(Duration::from_secs(60))).await.expect("it ends");
                    assert_eq!(view.status, "completed");
                    began.elapsed()
                }));
            }
            let mut took = Vec::new();
            for t in tasks {
                took.push(t.await?);
            }
            took.sort();
            let secs = began.elapsed().as_secs_f64();
            println!(
                "round {round}: {sagas} sagas, {at_once} at once: {:.0} sagas/s, p50 {:.1} ms, p99 {:.1} ms",
                sagas as f64 / secs,
                took[took.len() / 2].as_secs_f64() * 1e3,
                took[took.len() * 99 / 100].as_secs_f64() * 1e3,
            );
        }
        let running = flow.list(&Filter { status: Some("running".into()), ..Filter::default() }, 1, None).await?;
        assert!(running.items.is_empty());
        flow.close().await;
        broker.close().await;
        store.close().await?;
        Ok(())
    })
}
