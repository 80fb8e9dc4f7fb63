//! Makes connections: TCP or unix socket, TLS where the service asks for it, then HTTP/1.1 or HTTP/2 on top.
//!
//! An HTTP/2 connection is driven by a task of the thread that made it, an HTTP/1.1 one by whoever uses it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::future::Future;
use std::pin::{Pin, pin};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use weft_core::limits;

use crate::body::Body;
use crate::endpoint::{Endpoint, Target};
use crate::error::Error;
use crate::http1::{Conn, Io as H1Io};
use crate::observe::Meter;
use crate::pool;

/// Unacknowledged data for this long means that the other machine is gone; without it a dead peer would hold an HTTP/2
/// connection for a quarter of an hour.
const USER_TIMEOUT: Duration = Duration::from_secs(20);

/// An HTTP/1.1 connection.
pub(crate) type H1 = Box<Conn>;

/// An HTTP/2 connection's sending side, and the streams it may have open.
#[derive(Clone, Debug)]
pub(crate) struct H2 {
    pub sender: http2::SendRequest<Body>,
    /// What the peer's SETTINGS allow, as last seen.
    pub max_streams: Arc<AtomicUsize>,
    /// Streams this thread has open.
    pub active: Arc<AtomicUsize>,
}

trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

fn failed(e: &Endpoint, reason: impl std::fmt::Display) -> Error {
    Error::Connect { service: e.service.clone(), instance: e.address.clone(), reason: reason.to_string().into() }
}

/// Limits a connect to [`limits::CONNECT_TIMEOUT`], and marks the endpoint by how it went.
async fn in_time<T>(
    e: &Endpoint,
    meter: &Meter,
    connecting: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let done = match tokio::time::timeout(limits::CONNECT_TIMEOUT, connecting).await {
        Ok(done) => done,
        Err(_) => Err(failed(e, format_args!("no connection within {:?}", limits::CONNECT_TIMEOUT))),
    };
    meter.connected(done.is_ok());
    match &done {
        Ok(_) => e.reached(),
        Err(_) => e.eject(),
    }
    done
}

pub(crate) async fn tcp(e: &Endpoint, address: std::net::SocketAddr) -> Result<TcpStream, Error> {
    let stream = TcpStream::connect(address).await.map_err(|x| failed(e, x))?;
    stream.set_nodelay(true).map_err(|x| failed(e, x))?;
    #[cfg(target_os = "linux")]
    socket2::SockRef::from(&stream).set_tcp_user_timeout(Some(USER_TIMEOUT)).map_err(|x| failed(e, x))?;
    Ok(stream)
}

pub(crate) async fn unix(e: &Endpoint, path: &std::path::Path) -> Result<UnixStream, Error> {
    UnixStream::connect(path).await.map_err(|x| failed(e, x))
}

async fn tls<T: Io>(e: &Endpoint, io: T, h2: bool) -> Result<tokio_rustls::client::TlsStream<T>, Error> {
    let tls = e.wanted.tls.as_ref().expect("called for endpoints with TLS only");
    let name = tls.name_for(e.authority.host()).map_err(|x| failed(e, x))?;
    let stream = TlsConnector::from(tls.config(h2)).connect(name, io).await.map_err(|x| failed(e, x))?;
    // RFC 9113 3.2: HTTP/2 over TLS is chosen by ALPN.
    if h2 && stream.get_ref().1.alpn_protocol() != Some(b"h2") {
        return Err(failed(e, "the server does not offer HTTP/2 over TLS (no ALPN 'h2')"));
    }
    Ok(stream)
}

/// A connection being made. Boxed: it is large and seldom needed, and would be a part of every exchange's future.
pub(crate) type Connecting<'a, T> = Pin<Box<dyn Future<Output = Result<T, Error>> + Send + 'a>>;

/// A fresh HTTP/1.1 connection.
pub(crate) fn h1<'a>(e: &'a Endpoint, meter: &'a Meter) -> Connecting<'a, H1> {
    Box::pin(in_time(e, meter, async {
        let io = match (&e.wanted.target, e.wanted.tls.is_some()) {
            (Target::Ip(a), false) => H1Io::Tcp(tcp(e, *a).await?),
            (Target::Ip(a), true) => H1Io::TlsTcp(Box::new(tls(e, tcp(e, *a).await?, false).await?)),
            (Target::Unix(p), false) => H1Io::Unix(unix(e, p).await?),
            (Target::Unix(p), true) => H1Io::TlsUnix(Box::new(tls(e, unix(e, p).await?, false).await?)),
        };
        Ok(Box::new(Conn::new(io)))
    }))
}

/// A fresh HTTP/2 connection.
pub(crate) fn h2<'a>(e: &'a Endpoint, meter: &'a Meter) -> Connecting<'a, H2> {
    Box::pin(in_time(e, meter, async {
        match (&e.wanted.target, e.wanted.tls.is_some()) {
            (Target::Ip(a), false) => h2_on(e, tcp(e, *a).await?).await,
            (Target::Ip(a), true) => h2_on(e, tls(e, tcp(e, *a).await?, true).await?).await,
            (Target::Unix(p), false) => h2_on(e, unix(e, p).await?).await,
            (Target::Unix(p), true) => h2_on(e, tls(e, unix(e, p).await?, true).await?).await,
        }
    }))
}

/// A connection and nothing on it, for checks.
pub(crate) async fn probe(e: &Endpoint) -> Result<(), Error> {
    match &e.wanted.target {
        Target::Ip(a) => tcp(e, *a).await.map(drop),
        Target::Unix(p) => unix(e, p).await.map(drop),
    }
}

async fn h2_on<T: Io + 'static>(e: &Endpoint, io: T) -> Result<H2, Error> {
    let (sender, connection) = http2::Builder::new(TokioExecutor::new())
        .initial_max_send_streams(pool::H2_SPREAD)
        .handshake(TokioIo::new(io))
        .await
        .map_err(|x| failed(e, x))?;
    let max_streams = Arc::new(AtomicUsize::new(connection.current_max_send_streams()));
    let seen = max_streams.clone();
    tokio::spawn(async move {
        let mut connection = pin!(connection);
        // The peer's limit is only told by the connection, which this task owns; it is polled for every request.
        let done = std::future::poll_fn(|cx| {
            let poll = connection.as_mut().poll(cx);
            if poll.is_pending() {
                seen.store(connection.current_max_send_streams(), Ordering::Relaxed);
            }
            poll
        });
        if let Err(e) = done.await {
            tracing::trace!("upstream connection: {e}");
        }
    });
    Ok(H2 { sender, max_streams, active: Arc::default() })
}
