//! The service behind the proxies and the clients before them. HTTP/1.1 is written by hand on both sides, so that the
//! core they share is free enough to keep a proxy busy.

use std::cell::Cell;
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr, TcpListener as StdListener};
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::{BODY, Case, Result};

/// The services: one HTTP/1.1, one h2c.
pub struct Services {
    /// Port of the first.
    pub http1: u16,
    /// Port of the second.
    pub h2c: u16,
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
    let l = StdListener::bind((Ipv4Addr::LOCALHOST, 0))?;
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
        Ok(Self { http1, h2c })
    }
}

async fn serve_http1(l: StdListener) {
    let l = TcpListener::from_std(l).expect("a listener in a runtime");
    let answer: Rc<[u8]> = {
        let mut a =
            format!("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {BODY}\r\n\r\n").into_bytes();
        a.extend_from_slice(&[b'x'; BODY]);
        a.into()
    };
    let local = tokio::task::LocalSet::new();
    let serve = async {
        while let Ok((mut s, _)) = l.accept().await {
            let answer = answer.clone();
            tokio::task::spawn_local(async move {
                let _ = s.set_nodelay(true);
                let (mut buf, mut have) = (vec![0; 16 << 10], 0);
                while let Ok(n) = s.read(&mut buf[have..]).await {
                    if n == 0 {
                        return;
                    }
                    have += n;
                    while let Some(end) = buf[..have].windows(4).position(|w| w == b"\r\n\r\n") {
                        if s.write_all(&answer).await.is_err() {
                            return;
                        }
                        buf.copy_within(end + 4..have, 0);
                        have -= end + 4;
                    }
                }
            });
        }
    };
    local.run_until(serve).await;
}

async fn serve_h2c(l: StdListener) {
    let l = TcpListener::from_std(l).expect("a listener in a runtime");
    while let Ok((s, _)) = l.accept().await {
        let _ = s.set_nodelay(true);
        tokio::spawn(async move {
            let service = hyper::service::service_fn(|_| async {
                static ANSWER: [u8; BODY] = [b'x'; BODY];
                Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(&ANSWER))))
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
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, self.to));
        let until = Instant::now() + took;
        let runtime = runtime()?;
        let local = tokio::task::LocalSet::new();
        let count = Rc::new(Cell::new(0));
        local.block_on(&runtime, async {
            let mut tasks = Vec::new();
            match self.case {
                Case::Http1 => {
                    for _ in 0..self.connections {
                        tasks.push(tokio::task::spawn_local(http1(to, until, count.clone())));
                    }
                }
                Case::H2c => {
                    for c in 0..self.h2_connections {
                        let streams = (self.connections + c) / self.h2_connections;
                        tasks.push(tokio::task::spawn_local(h2c(to, streams, until, count.clone())));
                    }
                }
            }
            for t in tasks {
                t.await?.map_err(|e| -> Box<dyn std::error::Error> { e })?;
            }
            Ok(count.get())
        })
    }
}

type Sent<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

async fn http1(to: SocketAddr, until: Instant, count: Rc<Cell<u64>>) -> Sent<()> {
    let mut s = TcpStream::connect(to).await?;
    s.set_nodelay(true)?;
    let request = b"GET /v1/products/7 HTTP/1.1\r\nhost: shop.test\r\nuser-agent: bench\r\naccept: */*\r\n\r\n";
    let (mut buf, mut have) = (vec![0; 16 << 10], 0);
    while Instant::now() < until {
        s.write_all(request).await?;
        let total = loop {
            if let Some(end) = buf[..have].windows(4).position(|w| w == b"\r\n\r\n") {
                let head = std::str::from_utf8(&buf[..end])?.to_ascii_lowercase();
                if !head.starts_with("http/1.1 200") {
                    return Err(format!("answered {head:?}").into());
                }
                let length = head.lines().find_map(|l| l.strip_prefix("content-length: "));
                if length.and_then(|l| l.parse().ok()) != Some(BODY) {
                    return Err(format!("the body's length is {length:?}").into());
                }
                break end + 4 + BODY;
            }
            let n = s.read(&mut buf[have..]).await?;
            if n == 0 {
                return Err("the connection was closed".into());
            }
            have += n;
        };
        while have < total {
            let n = s.read(&mut buf[have..]).await?;
            if n == 0 {
                return Err("the body broke off".into());
            }
            have += n;
        }
        if have != total || buf[total - BODY..total] != [b'x'; BODY] {
            return Err("the body is not the one sent".into());
        }
        have = 0;
        count.set(count.get() + 1);
    }
    Ok(())
}

async fn h2c(to: SocketAddr, streams: usize, until: Instant, count: Rc<Cell<u64>>) -> Sent<()> {
    let s = TcpStream::connect(to).await?;
    s.set_nodelay(true)?;
    let (sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(s)).await?;
    tokio::spawn(connection);
    let mut tasks = Vec::new();
    for _ in 0..streams {
        let (mut sender, count) = (sender.clone(), count.clone());
        tasks.push(tokio::task::spawn_local(async move {
            while Instant::now() < until {
                let request = Request::get("http://h2.test/v1/products/7").body(Full::<Bytes>::default())?;
                let answer = sender.send_request(request).await?;
                if answer.status() != 200 {
                    return Err(format!("answered {}", answer.status()).into());
                }
                let got = answer.into_body().collect().await?.to_bytes().len();
                if got != BODY {
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
