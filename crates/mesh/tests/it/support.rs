//! A store in a directory of its own, servers that count their connections, and short ways to say things.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use weft_core::{Context, Deadline, Name};
use weft_mesh::spec::{HealthCheck, UpstreamTls};
use weft_mesh::{Address, Balance, Body, Dns, Error, Mesh, Outbound, Protocol, Registration, Reply, ServiceSpec};
use weft_policy::Policy;
use weft_policy::attempt::Attempt;
use weft_store::{Config, Embedded};
use weft_telemetry::Telemetry;

pub struct World {
    pub mesh: Mesh,
    pub telemetry: Telemetry,
    pub store: Arc<Embedded>,
    pub dir: tempfile::TempDir,
}

pub fn world() -> World {
    world_in(tempfile::tempdir().unwrap(), Dns::system())
}

pub fn world_in(dir: tempfile::TempDir, dns: Dns) -> World {
    let telemetry = Telemetry::new();
    let store = Arc::new(Embedded::open(Config::new(dir.path())).unwrap());
    let mesh = Mesh::with_dns(store.clone(), telemetry.clone(), dns);
    World { mesh, telemetry, store, dir }
}

/// Keeps a paused clock from running ahead while the store's own thread works: only `advance` moves it.
pub struct Held(#[allow(dead_code)] std::sync::mpsc::Sender<()>);

pub fn hold_the_clock() -> Held {
    let (tx, rx) = std::sync::mpsc::channel::<()>();
    tokio::task::spawn_blocking(move || rx.recv());
    Held(tx)
}

pub fn name(s: &str) -> Name {
    Name::new(s).unwrap()
}

pub fn service(name: &str, protocol: Protocol, addresses: &[&str]) -> ServiceSpec {
    ServiceSpec {
        name: Name::new(name).unwrap(),
        protocol,
        addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
        balance: Balance::RoundRobin,
        picking: Default::default(),
        health: None,
        tls: None,
        protos: Vec::new(),
        policy: Policy::builtin(),
    }
}

pub fn checked(spec: ServiceSpec, health: HealthCheck) -> ServiceSpec {
    ServiceSpec { health: Some(health), ..spec }
}

pub fn with_tls(spec: ServiceSpec, tls: UpstreamTls) -> ServiceSpec {
    ServiceSpec { tls: Some(tls), ..spec }
}

pub fn registration(address: impl ToString, ttl: Duration) -> Registration {
    let address: Address = address.to_string().parse().unwrap();
    Registration { address, protocol: None, ttl, weight: 1, metadata: Default::default(), health: None }
}

/// An address where nothing listens.
pub fn closed_port() -> SocketAddr {
    // Bound and let go: the system hands out other ephemeral ports before this one comes round again.
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

pub fn first() -> Attempt {
    Attempt { number: 1, deadline: Deadline::NONE }
}

pub fn get(path: &str) -> Outbound {
    Outbound::new(Request::get(path).body(Body::Empty).unwrap())
}

pub async fn send(mesh: &Mesh, service: &str, out: &Outbound) -> Result<Reply, Error> {
    mesh.send(&Context::root(), service, out, first()).await
}

/// Sends a GET and reads the answer to its end.
pub async fn text(mesh: &Mesh, service: &str) -> Result<String, Error> {
    read(send(mesh, service, &get("/")).await?).await
}

pub async fn read(reply: Reply) -> Result<String, Error> {
    let bytes = reply.response.into_body().collect().await?.to_bytes();
    Ok(String::from_utf8(bytes.to_vec()).unwrap())
}

pub type Answer = Response<Body>;
type Handler = Arc<dyn Fn(Request<Incoming>) -> Pin<Box<dyn Future<Output = Answer> + Send>> + Send + Sync>;

/// An HTTP server that counts.
pub struct Server {
    pub address: SocketAddr,
    pub connections: Arc<AtomicUsize>,
    pub requests: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Server {
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }

    pub fn at(&self) -> String {
        self.address.to_string()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Clone, Copy, PartialEq)]
pub enum Speaks {
    H1,
    H1Close,
    H2,
}

pub async fn serve<F, R>(speaks: Speaks, handler: F) -> Server
where
    F: Fn(Request<Incoming>) -> R + Send + Sync + 'static,
    R: Future<Output = Answer> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let handler: Handler = Arc::new(move |r| Box::pin(handler(r)));
    let (connections, requests) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (c, r) = (connections.clone(), requests.clone());
    let task = tokio::spawn(async move {
        // Dropped with the task, so that aborting it closes all connections.
        let mut open = tokio::task::JoinSet::new();
        loop {
            let (io, _) = listener.accept().await.unwrap();
            c.fetch_add(1, Ordering::SeqCst);
            open.spawn(drive(io, speaks, handler.clone(), r.clone()));
        }
    });
    Server { address, connections, requests, task }
}

/// Speaks HTTP on one connection.
pub async fn drive<T>(io: T, speaks: Speaks, handler: Handler, requests: Arc<AtomicUsize>)
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |req| {
        requests.fetch_add(1, Ordering::SeqCst);
        let answer = handler(req);
        async move { Ok::<_, std::convert::Infallible>(answer.await) }
    });
    let io = TokioIo::new(io);
    let _ = match speaks {
        Speaks::H1 | Speaks::H1Close => {
            hyper::server::conn::http1::Builder::new()
                .keep_alive(speaks == Speaks::H1)
                .serve_connection(io, service)
                .await
        }
        Speaks::H2 => {
            hyper::server::conn::http2::Builder::new(TokioExecutor::new()).serve_connection(io, service).await
        }
    };
}

pub fn handler<F, R>(f: F) -> Handler
where
    F: Fn(Request<Incoming>) -> R + Send + Sync + 'static,
    R: Future<Output = Answer> + Send + 'static,
{
    Arc::new(move |r| Box::pin(f(r)))
}

pub fn answer(text: impl Into<Bytes>) -> Answer {
    Response::new(Body::from(text.into()))
}

pub fn status(code: u16) -> Answer {
    let mut r = answer("");
    *r.status_mut() = http::StatusCode::from_u16(code).unwrap();
    r
}

/// Polls until it holds; the harness's own time limit ends a test where it never does.
pub async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..2_000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("never: {what}");
}
