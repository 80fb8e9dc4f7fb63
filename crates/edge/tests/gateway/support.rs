//! A gateway in this process, services behind it, and clients in front of it; everything on loopback, ports ephemeral.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use weft_broker::Broker;
use weft_core::Name;
use weft_edge::auth::ApiKeys;
use weft_edge::gateway::{Deps, Gateway};
use weft_edge::spec::{GatewaySpec, ListenSpec, RouteMatch, RouteSpec, Target};
use weft_flow::Flow;
use weft_mesh::{Address, Balance, Mesh, Protocol, ServiceSpec};
use weft_policy::Policy;
use weft_store::{Config, Embedded, Store};
use weft_telemetry::Telemetry;

pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
pub type AnyBody = UnsyncBoxBody<Bytes, BoxError>;

pub struct World {
    pub gateway: Gateway,
    pub telemetry: Telemetry,
    pub mesh: Mesh,
    pub broker: Broker,
    pub flow: Flow,
    pub api_keys: ApiKeys,
    pub store: Arc<dyn Store>,
    pub dir: tempfile::TempDir,
}

impl World {
    pub async fn start(spec: GatewaySpec, services: &[ServiceSpec]) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), spec, services).await
    }

    pub async fn start_in(dir: tempfile::TempDir, spec: GatewaySpec, services: &[ServiceSpec]) -> Self {
        let store: Arc<dyn Store> = Arc::new(Embedded::open(Config::new(dir.path())).unwrap());
        let telemetry = Telemetry::new();
        let mesh = Mesh::new(store.clone(), telemetry.clone());
        mesh.apply(services).unwrap();
        let broker = Broker::open(store.clone(), telemetry.clone(), mesh.clone()).await.unwrap();
        let (b, t, m) = (broker.clone(), telemetry.clone(), mesh.clone());
        let flow = Flow::open(store.clone(), b.clone(), m.clone(), t.clone()).await.unwrap();
        let api_keys = ApiKeys::open(store.clone()).await.unwrap();
        let keys = api_keys.clone();
        let deps = Deps { store: store.clone(), telemetry: t, mesh: m, broker: b, flow: flow.clone(), api_keys: keys };
        let gateway = Gateway::start(1, &spec, deps).unwrap();
        Self { gateway, telemetry, mesh, broker, flow, api_keys, store, dir }
    }

    pub fn address(&self) -> SocketAddr {
        self.gateway.addresses()[0]
    }

    /// One request on a connection of its own.
    pub async fn send(&self, request: Request<Full<Bytes>>) -> Response<Incoming> {
        send(self.address(), request).await
    }

    /// Waits until something that takes a moment holds.
    pub async fn until<F: Future<Output = bool>>(&self, holds: impl Fn() -> F) {
        for _ in 0..1_000 {
            if holds().await {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("it does not come to hold");
    }

    pub async fn get(&self, path: &str) -> (StatusCode, Bytes) {
        let (head, body) = self.send(get(path)).await.into_parts();
        (head.status, body.collect().await.unwrap().to_bytes())
    }
}

pub fn get(path: &str) -> Request<Full<Bytes>> {
    Request::get(path).header("host", "shop.test").body(Full::default()).unwrap()
}

/// HTTP/1.1 on a connection of its own.
pub async fn send<B>(to: SocketAddr, request: Request<B>) -> Response<Incoming>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let io = TokioIo::new(TcpStream::connect(to).await.unwrap());
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
    tokio::spawn(connection);
    sender.send_request(request).await.unwrap()
}

/// An HTTP/2 connection with prior knowledge.
pub async fn h2(to: SocketAddr) -> hyper::client::conn::http2::SendRequest<Full<Bytes>> {
    let io = TokioIo::new(TcpStream::connect(to).await.unwrap());
    let (sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    sender
}

/// Writes bytes, reads what comes until the other side closes, or nothing came for a second: an answer on a connection that is
/// kept alive.
pub async fn raw(to: SocketAddr, bytes: &[u8]) -> String {
    let mut s = TcpStream::connect(to).await.unwrap();
    s.write_all(bytes).await.unwrap();
    read_all(&mut s).await
}

pub async fn read_all(s: &mut TcpStream) -> String {
    let mut out = Vec::new();
    let mut buf = [0; 4096];
    while let Ok(Ok(n)) = tokio::time::timeout(Duration::from_secs(1), s.read(&mut buf)).await {
        if n == 0 {
            break;
        }
        out.extend_from_slice(&buf[..n]);
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// A service that answers with a function; HTTP/1.1 and h2c.
pub async fn service<F, Fut>(answer: F) -> SocketAddr
where
    F: Fn(Request<Incoming>) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = Response<AnyBody>> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let answer = answer.clone();
            tokio::spawn(async move {
                let service = hyper::service::service_fn(move |r| {
                    let answer = answer(r);
                    async move { Ok::<_, Infallible>(answer.await) }
                });
                let mut server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                // The gateway adds fields; its limit is what is tested.
                server.http1().max_headers(200);
                let _ = server.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    address
}

/// Answers with the request's head in the body, one line each.
pub async fn echo() -> SocketAddr {
    service(|r: Request<Incoming>| async move {
        let (head, body) = r.into_parts();
        let body = body.collect().await.map(|b| b.to_bytes()).unwrap_or_default();
        let mut text = format!("{} {}\n", head.method, head.uri);
        for (k, v) in &head.headers {
            text.push_str(&format!("{k}: {}\n", String::from_utf8_lossy(v.as_bytes())));
        }
        text.push_str(&format!("\n{}", String::from_utf8_lossy(&body)));
        answer(200, text)
    })
    .await
}

pub fn answer(status: u16, body: impl Into<Bytes>) -> Response<AnyBody> {
    let body = Full::new(body.into()).map_err(|e| match e {}).boxed_unsync();
    Response::builder().status(status).body(body).unwrap()
}

pub fn name(s: &str) -> Name {
    Name::new(s).unwrap()
}

pub fn spec_of(service: &str, protocol: Protocol, addresses: &[SocketAddr]) -> ServiceSpec {
    ServiceSpec {
        name: name(service),
        protocol,
        addresses: addresses.iter().map(|a| Address::Ip(*a)).collect(),
        balance: Balance::default(),
        picking: Default::default(),
        health: None,
        tls: None,
        protos: vec![],
        policy: Policy::builtin(),
    }
}

pub fn listen() -> ListenSpec {
    ListenSpec::at("127.0.0.1:0".parse().unwrap())
}

pub fn gateway(routes: Vec<RouteSpec>) -> GatewaySpec {
    GatewaySpec { listen: vec![listen()], routes, ..GatewaySpec::default() }
}

pub fn route(route: &str, path: &str, service: &str) -> RouteSpec {
    RouteSpec {
        name: name(route),
        matches: RouteMatch { path: path.into(), ..RouteMatch::default() },
        priority: 0,
        to: Target::Service { service: name(service), path: None },
        policy: Policy::builtin(),
        protocols: Default::default(),
        fallback: None,
        versions: None,
        traffic: Default::default(),
    }
}

/// A gateway with one route `/**` to one service.
pub async fn one(service: SocketAddr, change: impl FnOnce(&mut RouteSpec)) -> World {
    let mut r = route("all", "/**", "s");
    change(&mut r);
    World::start(gateway(vec![r]), &[spec_of("s", Protocol::Http, &[service])]).await
}

pub fn json(body: &[u8]) -> serde_json::Value {
    serde_json::from_slice(body).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(body)))
}
