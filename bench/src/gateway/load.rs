//! The service behind the proxies and the clients before them. HTTP/1.1 is written by hand on both sides, so that the
//! core they share is free enough to keep a proxy busy.

use std::cell::Cell;
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr, TcpListener as StdListener};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;

use super::{Case, Result, Wire};

/// The services: one HTTP/1.1, one h2c; and the certificate that the proxies show.
pub struct Services {
    /// Port of the first.
    pub http1: u16,
    /// Port of the second.
    pub h2c: u16,
    /// What a client trusts.
    pub ca: Arc<rustls::RootCertStore>,
    /// Certificate and key as PEM.
    pub certificate: (String, String),
}

fn pin(core: usize) -> Result<()> {
    let mut set = rustix::thread::CpuSet::new();
    set.set(core);
    Ok(rustix::thread::sched_setaffinity(None, &set)?)
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

fn listen() -> std::io::Result<(StdListener, u16)> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
    // A thousand connections may come at once.
    socket.listen(4096)?;
    let l = StdListener::from(socket);
    l.set_nonblocking(true)?;
    let port = l.local_addr()?.port();
    Ok((l, port))
}

impl Services {
    /// Starts both on a thread of their own.
    pub fn start(core: usize) -> Result<Self> {
        let ((one, http1), (two, h2c)) = (listen()?, listen()?);
        let runtime = runtime()?;
        std::thread::Builder::new().name("service".into()).spawn(move || {
            if let Err(e) = pin(core) {
                eprintln!("weft-bench: the service is not pinned: {e}");
            }
            runtime.block_on(async move {
                tokio::spawn(serve_h2c(two));
                serve_http1(one).await;
            });
        })?;
        let made = rcgen::generate_simple_self_signed([HOST.to_owned()])?;
        let mut ca = rustls::RootCertStore::empty();
        ca.add(made.cert.der().clone())?;
        let certificate = (made.cert.pem(), made.signing_key.serialize_pem());
        Ok(Self { http1, h2c, ca: Arc::new(ca), certificate })
    }
}

/// The size that a path ends with: `/v1/products/128`.
fn size(path: &str) -> usize {
    path.rsplit('/').next().and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// The largest body; every answer is a part of it.
static ANSWER: [u8; 1 << 20] = [b'x'; 1 << 20];

async fn serve_http1(l: StdListener) {
    let l = TcpListener::from_std(l).expect("a listener in a runtime");
    let local = tokio::task::LocalSet::new();
    let serve = async {
        while let Ok((s, _)) = l.accept().await {
            tokio::task::spawn_local(answer_http1(s));
        }
    };
    local.run_until(serve).await;
}

/// Answers each request head; the answers are made once per size and connection.
async fn answer_http1(mut s: TcpStream) {
    let _ = s.set_nodelay(true);
    let (mut buf, mut have) = (vec![0; 16 << 10], 0);
    let mut answer = Vec::new();
    let mut made_for = usize::MAX;
    while let Ok(n) = s.read(&mut buf[have..]).await {
        if n == 0 {
            return;
        }
        have += n;
        while let Some(end) = buf[..have].windows(4).position(|w| w == b"\r\n\r\n") {
            let path = std::str::from_utf8(&buf[..end]).ok().and_then(|h| h.split(' ').nth(1)).unwrap_or("");
            let size = size(path).min(ANSWER.len());
            if size != made_for {
                answer =
                    format!("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {size}\r\n\r\n").into();
                answer.extend_from_slice(&ANSWER[..size]);
                made_for = size;
            }
            if s.write_all(&answer).await.is_err() {
                return;
            }
            buf.copy_within(end + 4..have, 0);
            have -= end + 4;
        }
    }
}

async fn serve_h2c(l: StdListener) {
    let l = TcpListener::from_std(l).expect("a listener in a runtime");
    while let Ok((s, _)) = l.accept().await {
        let _ = s.set_nodelay(true);
        tokio::spawn(async move {
            let service = hyper::service::service_fn(|request: Request<_>| async move {
                let size = size(request.uri().path()).min(ANSWER.len());
                let mut response = Response::new(Full::new(Bytes::from_static(&ANSWER[..size])));
                if request.method() == http::Method::POST {
                    // A collector of traces: all is well, in a head alone.
                    response.headers_mut().insert("content-type", http::HeaderValue::from_static("application/grpc"));
                    response.headers_mut().insert("grpc-status", http::HeaderValue::from_static("0"));
                }
                Ok::<_, Infallible>(response)
            });
            let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            let _ = server.serve_connection(TokioIo::new(s), service).await;
        });
    }
}

/// One kind of load.
pub struct Client {
    /// Port of the proxy.
    pub to: u16,
    /// What is asked.
    pub case: Case,
    /// Whom to trust.
    pub ca: Arc<rustls::RootCertStore>,
    /// At once.
    pub connections: usize,
    /// Connections of the HTTP/2 case.
    pub h2_connections: usize,
    /// Where it runs.
    pub core: usize,
}

impl Client {
    /// Asks for so long; how many answers came. Any wrong answer is an error.
    pub fn run(&self, took: Duration) -> Result<u64> {
        pin(self.core)?;
        let until = Instant::now() + took;
        let runtime = runtime()?;
        let local = tokio::task::LocalSet::new();
        let count = Rc::new(Cell::new(0));
        local.block_on(&runtime, async {
            let mut tasks = Vec::new();
            let (to, body, count) = (self.address(), self.case.body, &count);
            match self.case.wire {
                Wire::Http1 => {
                    for _ in 0..self.connections {
                        let count = count.clone();
                        tasks.push(tokio::task::spawn_local(async move {
                            ask(&mut Buffered::new(connect(to).await?), body, until, &count).await
                        }));
                    }
                }
                Wire::Tls => {
                    let connector = TlsConnector::from(Arc::new(tls(&self.ca)?));
                    for _ in 0..self.connections {
                        let (count, connector) = (count.clone(), connector.clone());
                        tasks.push(tokio::task::spawn_local(async move {
                            let name = rustls::pki_types::ServerName::try_from(HOST)?;
                            let s = connector.connect(name, connect(to).await?).await?;
                            ask(&mut Buffered::new(s), body, until, &count).await
                        }));
                    }
                }
                Wire::H2c => {
                    for c in 0..self.h2_connections {
                        let streams = (self.connections + c) / self.h2_connections;
                        tasks.push(tokio::task::spawn_local(h2c(to, body, streams, until, count.clone())));
                    }
                }
            }
            for t in tasks {
                t.await?.map_err(|e| -> Box<dyn std::error::Error> { e })?;
            }
            Ok(count.get())
        })
    }

    /// Asks once on each connection and keeps all of them open while `look` looks.
    pub fn hold<T>(&self, look: impl FnOnce() -> Result<T>) -> Result<T> {
        runtime()?.block_on(async {
            let mut open = Vec::new();
            for _ in 0..self.connections {
                let mut s = Buffered::new(connect(self.address()).await?);
                let once = Instant::now();
                ask(&mut s, self.case.body, once, &Rc::default()).await.map_err(|e| e.to_string())?;
                open.push(s);
            }
            look()
        })
    }

    fn address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.to))
    }
}

/// The name in the certificate, and in requests.
pub const HOST: &str = "shop.test";

/// One suite, so that every proxy does the same work.
fn tls(ca: &Arc<rustls::RootCertStore>) -> Result<rustls::ClientConfig> {
    let mut provider = rustls::crypto::ring::default_provider();
    provider.cipher_suites = vec![rustls::crypto::ring::cipher_suite::TLS13_AES_128_GCM_SHA256];
    let builder = rustls::ClientConfig::builder_with_provider(Arc::new(provider));
    let builder = builder.with_protocol_versions(&[&rustls::version::TLS13])?;
    Ok(builder.with_root_certificates(ca.clone()).with_no_client_auth())
}

async fn connect(to: SocketAddr) -> std::io::Result<TcpStream> {
    let s = TcpStream::connect(to).await?;
    s.set_nodelay(true)?;
    Ok(s)
}

/// A connection and what was read of it.
struct Buffered<S> {
    io: S,
    buf: Vec<u8>,
    have: usize,
}

impl<S> Buffered<S> {
    fn new(io: S) -> Self {
        Self { io, buf: vec![0; 4 << 10], have: 0 }
    }
}

type Sent<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Asks again and again, at least once, and checks every answer.
async fn ask<S>(s: &mut Buffered<S>, body: usize, until: Instant, count: &Rc<Cell<u64>>) -> Sent<()>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let request =
        format!("GET /v1/products/{body} HTTP/1.1\r\nhost: {HOST}\r\nuser-agent: bench\r\naccept: */*\r\n\r\n");
    loop {
        s.io.write_all(request.as_bytes()).await?;
        let mut left = loop {
            if let Some(end) = s.buf[..s.have].windows(4).position(|w| w == b"\r\n\r\n") {
                let head = std::str::from_utf8(&s.buf[..end])?.to_ascii_lowercase();
                if !head.starts_with("http/1.1 200") {
                    return Err(format!("answered {head:?}").into());
                }
                let length = head.lines().find_map(|l| l.strip_prefix("content-length: "));
                if length.and_then(|l| l.parse().ok()) != Some(body) {
                    return Err(format!("the body's length is {length:?}").into());
                }
                let got = &s.buf[end + 4..s.have];
                if got.len() > body || got.iter().any(|b| *b != b'x') {
                    return Err("the body is not the one sent".into());
                }
                break body - got.len();
            }
            let n = s.io.read(&mut s.buf[s.have..]).await?;
            if n == 0 {
                return Err("the connection was closed".into());
            }
            s.have += n;
        };
        s.have = 0;
        if left > s.buf.len() {
            s.buf.resize(64 << 10, 0);
        }
        while left > 0 {
            let most = left.min(s.buf.len());
            let n = s.io.read(&mut s.buf[..most]).await?;
            // All of a small body, the ends of each piece of a large one: the client must not be what is measured.
            if n == 0 || s.buf[0] != b'x' || s.buf[n - 1] != b'x' {
                return Err("the body broke off or is not the one sent".into());
            }
            left -= n;
        }
        count.set(count.get() + 1);
        if Instant::now() >= until {
            return Ok(());
        }
    }
}

async fn h2c(to: SocketAddr, body: usize, streams: usize, until: Instant, count: Rc<Cell<u64>>) -> Sent<()> {
    let s = connect(to).await?;
    let (sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(s)).await?;
    tokio::spawn(connection);
    let mut tasks = Vec::new();
    for _ in 0..streams {
        let (mut sender, count) = (sender.clone(), count.clone());
        tasks.push(tokio::task::spawn_local(async move {
            while Instant::now() < until {
                let uri = format!("http://h2.test/v1/products/{body}");
                let request = Request::get(uri).body(Full::<Bytes>::default())?;
                let answer = sender.send_request(request).await?;
                if answer.status() != 200 {
                    return Err(format!("answered {}", answer.status()).into());
                }
                let got = answer.into_body().collect().await?.to_bytes().len();
                if got != body {
                    return Err(format!("the body has {got} bytes").into());
                }
                count.set(count.get() + 1);
            }
            Sent::Ok(())
        }));
    }
    for t in tasks {
        t.await??;
    }
    Ok(())
}
