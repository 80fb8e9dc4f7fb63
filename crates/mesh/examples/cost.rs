//! What a call through the mesh costs its thread, beside hyper's bare connection: CPU time of the calling thread for each
//! small GET, from the scheduler's own books. `cargo run --release -p weft-mesh --example cost`
//!
//! One thread serves, one calls with 64 requests at once. Rounds alternate, and the bare client runs twice in each: the
//! difference between its two columns is the noise.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures_util::future::join_all;
use http::{Request, Response, Version};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};
use weft_core::{Context, Deadline, Name};
use weft_mesh::{Balance, Body, Mesh, Outbound, Protocol, ServiceSpec};
use weft_policy::Policy;
use weft_policy::attempt::Attempt;
use weft_telemetry::Telemetry;

const AT_ONCE: usize = 64;
const REQUESTS: usize = 1_000;
const ROUNDS: usize = 8;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// Nanoseconds this thread has run.
fn cpu() -> u64 {
    let books = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux keeps the books");
    books.split(' ').next().and_then(|n| n.parse().ok()).expect("the first number is time run")
}

fn serve(h2: bool) -> String {
    let (tx, rx) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        runtime().block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
            tx.send(listener.local_addr().expect("bound").to_string()).expect("somebody asked");
            loop {
                let (io, _) = listener.accept().await.expect("connections come");
                io.set_nodelay(true).expect("TCP");
                let io = TokioIo::new(io);
                let hello =
                    service_fn(async |_| Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"hello")))));
                tokio::spawn(async move {
                    if h2 {
                        let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                            .serve_connection(io, hello)
                            .await;
                    } else {
                        let _ = hyper::server::conn::http1::Builder::new().serve_connection(io, hello).await;
                    }
                });
            }
        });
    });
    rx.recv().expect("the server starts")
}

/// A head like one that came through a gateway.
fn request<B>(uri: &str, body: B) -> Request<B> {
    let mut r = Request::get(uri).body(body).expect("a good request");
    let h = r.headers_mut();
    for (name, value) in [
        ("host", "shop.example"),
        ("user-agent", "bench/1"),
        ("accept", "*/*"),
        ("x-forwarded-for", "127.0.0.1"),
        ("x-forwarded-proto", "http"),
        ("x-request-id", "0192f8a0-7d3e-7cc0-98c4-dc0c0c07398f"),
    ] {
        h.insert(name, value.parse().expect("a good value"));
    }
    r
}

async fn connect(at: &str) -> TokioIo<TcpStream> {
    let io = TcpStream::connect(at).await.expect("the server listens");
    io.set_nodelay(true).expect("TCP");
    TokioIo::new(io)
}

/// Microseconds of this thread's CPU for each request.
async fn measured<F: Future<Output = ()>>(one: impl Fn(usize) -> F) -> f64 {
    let before = cpu();
    join_all((0..AT_ONCE).map(&one)).await;
    (cpu() - before) as f64 / 1_000.0 / (AT_ONCE * REQUESTS) as f64
}

async fn bare_h1(at: &str) -> f64 {
    measured(|_| async {
        let (mut sender, connection) = http1::handshake(connect(at).await).await.expect("HTTP/1.1");
        tokio::spawn(connection);
        for _ in 0..REQUESTS {
            sender.ready().await.expect("open");
            let r = sender.send_request(request("/", Body::Empty)).await.expect("an answer");
            assert_eq!(r.into_body().collect().await.expect("a body").to_bytes().len(), 5);
        }
    })
    .await
}

async fn bare_h2(at: &str) -> f64 {
    let mut senders = Vec::new();
    for _ in 0..4 {
        let (sender, connection) = http2::handshake(TokioExecutor::new(), connect(at).await).await.expect("HTTP/2");
        tokio::spawn(connection);
        senders.push(sender);
    }
    measured(|i| {
        let mut sender = senders[i % 4].clone();
        async move {
            for _ in 0..REQUESTS {
                let mut r = request("http://shop.example/", Body::Empty);
                *r.version_mut() = Version::HTTP_2;
                r.headers_mut().remove("host");
                let r = sender.send_request(r).await.expect("an answer");
                assert_eq!(r.into_body().collect().await.expect("a body").to_bytes().len(), 5);
            }
        }
    })
    .await
}

async fn through(mesh: &Mesh, service: &str) -> f64 {
    measured(|_| async {
        for _ in 0..REQUESTS {
            let ctx = Context::root();
            let out = Outbound::new(request("/", Body::Empty));
            let attempt = Attempt { number: 1, deadline: Deadline::NONE };
            let r = mesh.send(&ctx, service, &out, attempt).await.expect("an answer");
            let body = r.response.into_body().collect().await.expect("a body");
            assert_eq!(body.to_bytes().len(), 5);
        }
    })
    .await
}

fn spec(name: &str, protocol: Protocol, at: &str) -> ServiceSpec {
    ServiceSpec {
        name: Name::new(name).expect("a name"),
        protocol,
        addresses: vec![at.parse().expect("an address")],
        balance: Balance::default(),
        picking: Default::default(),
        health: None,
        tls: None,
        protos: Vec::new(),
        policy: Policy::builtin(),
    }
}

fn main() {
    let (h1, h2) = (serve(false), serve(true));
    let dir = tempfile::tempdir().expect("a directory");
    runtime().block_on(async {
        let store = weft_store::Embedded::open(weft_store::Config::new(dir.path())).expect("a store");
        let mesh = Mesh::new(Arc::new(store), Telemetry::new());
        mesh.apply(&[spec("one", Protocol::Http, &h1), spec("two", Protocol::H2, &h2)]).expect("good services");
        println!("CPU us of the calling thread for each request, {AT_ONCE} at once");
        println!(
            "{:>6} {:>9} {:>9} {:>9}   {:>9} {:>9} {:>9}",
            "round", "h1 bare", "h1 mesh", "h1 bare", "h2 bare", "h2 mesh", "h2 bare"
        );
        let began = Instant::now();
        for round in 0..=ROUNDS {
            let row = [
                bare_h1(&h1).await,
                through(&mesh, "one").await,
                bare_h1(&h1).await,
                bare_h2(&h2).await,
                through(&mesh, "two").await,
                bare_h2(&h2).await,
            ];
            // The first round warms up.
            if round > 0 {
                println!(
                    "{round:>6} {:>9.2} {:>9.2} {:>9.2}   {:>9.2} {:>9.2} {:>9.2}",
                    row[0], row[1], row[2], row[3], row[4], row[5]
                );
            }
        }
        println!("{:.1} s", began.elapsed().as_secs_f64());
    });
}
