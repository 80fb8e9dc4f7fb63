//! Listeners: where connections come in. Permit (connection limit), TLS, protocol, then hyper's connection with every
//! limit set; a [`Handler`] answers the requests.
//!
//! Plain listeners speak HTTP/1.1 and HTTP/2 with prior knowledge, TLS ones what ALPN agrees on. One socket per core
//! with SO_REUSEPORT, so cores share no accept queue.

mod drain;
mod sniff;
pub mod tls;

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener as StdListener};
use std::path::PathBuf;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{HeaderValue, Request, Response};
use hyper::body::{Body, Incoming};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use weft_core::{Class, Classify, Origin, Principal, limits};
use weft_policy::net::Nets;

use crate::spec::ListenSpec;
pub use drain::{Drain, Drained};
use tls::Tls;

/// Why a listener does not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Bind {
        /// Where.
        address: SocketAddr,
        /// The operating system's word.
        source: io::Error,
    },
    /// A certificate or key cannot be used.
    #[error("the {what} in '{}' cannot be used: {reason}", path.display())]
    Tls {
        /// What of it.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

impl Classify for Error {
    fn class(&self) -> Class {
        Class::Rejected
    }
    fn origin(&self) -> Origin {
        Origin::Internal
    }
}

/// The other end of a connection.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its address.
    pub address: SocketAddr,
    /// Whether what it says of trace, deadline and forwarding is believed: loopback peers.
    pub trusted: bool,
    /// Whether it speaks TLS.
    pub tls: bool,
    /// Its IP address as a field value.
    pub forwarded_for: HeaderValue,
    /// Whom its certificate speaks for, if it showed one that was verified.
    pub principal: Principal,
    /// Its place among the listener's connections, held for as long as anything works for it.
    _permit: Option<Arc<OwnedSemaphorePermit>>,
}

impl Peer {
    /// The same peer, believed or not.
    pub(crate) fn as_trusted(&self, trusted: bool) -> Self {
        Self { trusted, ..self.clone() }
    }

    /// A peer at an address.
    pub fn new(address: SocketAddr, tls: bool) -> Self {
        let ip = match address.ip() {
            // A v4 client on a dual-stack socket is a v4 client.
            IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(IpAddr::V6(v6), IpAddr::V4),
            v4 => v4,
        };
        let forwarded_for = HeaderValue::try_from(ip.to_string()).expect("an IP address prints as ASCII");
        Self { address, trusted: ip.is_loopback(), tls, forwarded_for, principal: Principal::Anonymous, _permit: None }
    }
}

/// A listener's door, shared by its sockets on all cores. What it does with new connections is swapped whole.
#[derive(Debug)]
pub struct Door {
    settings: ArcSwap<Settings>,
    /// The connection limit: above it connections wait in the kernel's queue.
    permits: Arc<Semaphore>,
    handshakes: Semaphore,
}

impl Door {
    /// A door that lets in up to `connections` at once.
    pub fn new(settings: Settings, connections: usize) -> Arc<Self> {
        Arc::new(Self {
            settings: ArcSwap::from_pointee(settings),
            permits: Arc::new(Semaphore::new(connections)),
            handshakes: Semaphore::new(limits::TLS_HANDSHAKES),
        })
    }

    /// What is in force.
    pub fn settings(&self) -> Arc<Settings> {
        self.settings.load_full()
    }

    /// Puts other settings in force, for connections from now on.
    pub fn put(&self, settings: Settings) {
        self.settings.store(Arc::new(settings));
    }
}

/// What a listener does with a new connection.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    tls: Option<Tls>,
    nets: Nets,
}

impl Settings {
    /// Makes everything ready; `old` is what was in force before.
    pub fn load(spec: &ListenSpec, old: Option<&Settings>) -> Result<Self, Error> {
        let before = old.and_then(|o| o.tls.as_ref());
        let tls = spec.tls.as_ref().map(|t| Tls::load(t, before)).transpose()?;
        Ok(Self { tls, nets: spec.nets.clone() })
    }
}

/// Answers requests.
pub trait Handler: Clone + Send + Sync + 'static {
    /// The body of its answers.
    type Body: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send + 'static;

    /// Answers one request.
    fn handle(self, peer: Arc<Peer>, request: Request<Incoming>) -> impl Future<Output = Response<Self::Body>> + Send;
}

/// Binds `count` sockets to one address (port 0: all to the one port that was free).
pub fn bind(address: SocketAddr, count: usize) -> Result<Vec<StdListener>, Error> {
    let failed = |source| Error::Bind { address, source };
    let shared = count > 1;
    if shared && address.port() != 0 {
        // SO_REUSEPORT would let a second process of the same user share the port in silence; without it the bind fails.
        drop(bind_one(address, false).map_err(failed)?);
    }
    let mut sockets = vec![bind_one(address, shared).map_err(failed)?];
    let bound = sockets[0].local_addr().map_err(failed)?;
    for _ in 1..count {
        sockets.push(bind_one(bound, shared).map_err(failed)?);
    }
    Ok(sockets)
}

fn bind_one(address: SocketAddr, shared: bool) -> io::Result<StdListener> {
    use socket2::{Domain, Protocol, Socket, Type};
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if shared {
        socket.set_reuse_port(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(ACCEPT_BACKLOG)?;
    Ok(socket.into())
}

const ACCEPT_BACKLOG: i32 = 4096;

/// Accepts connections until the drain starts. Those from where the listener lets nobody in are closed unread.
pub async fn accept<H: Handler>(listener: StdListener, door: Arc<Door>, drain: Drain, handler: H) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    loop {
        let next = async {
            let permit = door.permits.clone().acquire_owned().await.expect("never closed");
            (permit, listener.accept().await)
        };
        let (permit, accepted) = tokio::select! {
            a = next => a,
            () = drain.started() => return Ok(()),
        };
        let (stream, address) = match accepted {
            Ok(a) => a,
            Err(e) if is_of_one_connection(&e) => continue,
            Err(e) => {
                // Out of descriptors or memory: others must end first.
                tracing::warn!(error = %e, "accepting a connection failed");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        if !door.settings.load().nets.admit(address.ip()) {
            tracing::debug!(peer = %address, "a connection from an address that is not let in");
            continue;
        }
        let (door, drain, handler) = (door.clone(), drain.clone(), handler.clone());
        tokio::spawn(async move {
            if let Err(e) = connection(stream, address, permit, door, drain, handler).await {
                tracing::debug!(peer = %address, error = %e, "connection ended");
            }
        });
    }
}

fn is_of_one_connection(e: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(e.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

async fn connection<H: Handler>(
    stream: TcpStream,
    address: SocketAddr,
    permit: OwnedSemaphorePermit,
    door: Arc<Door>,
    drain: Drain,
    handler: H,
) -> Result<(), BoxError> {
    stream.set_nodelay(true)?;
    let settings = door.settings();
    let mut peer = Peer::new(address, settings.tls.is_some());
    peer._permit = Some(Arc::new(permit));
    let Some(tls) = &settings.tls else {
        drop(settings);
        let Some((h2, io)) = early(&drain, limits::HEADER_READ, sniff::is_h2(stream)).await? else { return Ok(()) };
        let peer = Arc::new(peer);
        return if h2 { serve_h2(io, peer, drain, handler).await } else { serve_h1(io, peer, drain, handler).await };
    };
    let shaking = async {
        // A client that says nothing takes nobody's turn.
        stream.readable().await?;
        let _turn = door.handshakes.acquire().await;
        TlsAcceptor::from(tls.config()).accept(stream).await
    };
    let Some(io) = early(&drain, limits::TLS_HANDSHAKE, shaking).await? else { return Ok(()) };
    drop(settings);
    let session = io.get_ref().1;
    peer.principal = tls::principal(session.peer_certificates());
    let (h2, peer) = (session.alpn_protocol() == Some(b"h2"), Arc::new(peer));
    if h2 { serve_h2(io, peer, drain, handler).await } else { serve_h1(io, peer, drain, handler).await }
}

/// What comes before the first request: under a time limit, and of no worth once the drain started.
async fn early<T>(
    drain: &Drain,
    limit: Duration,
    work: impl Future<Output = io::Result<T>>,
) -> Result<Option<T>, BoxError> {
    tokio::select! {
        done = tokio::time::timeout(limit, work) => Ok(Some(done??)),
        () = drain.started() => Ok(None),
    }
}

async fn serve_h1<H: Handler, I: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    io: I,
    peer: Arc<Peer>,
    drain: Drain,
    handler: H,
) -> Result<(), BoxError> {
    let service = service_fn(move |req| {
        let answer = handler.clone().handle(peer.clone(), req);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    // `limits::HEADER_COUNT` is hyper's own default: any other count makes it allocate for every request.
    let conn = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits::HEADER_READ)
        .max_buf_size(limits::HEADER_BYTES)
        .serve_connection(TokioIo::new(io), service)
        .with_upgrades();
    drive(conn, drain, |c| c.graceful_shutdown()).await.map_err(Into::into)
}

async fn serve_h2<H: Handler, I: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    io: I,
    peer: Arc<Peer>,
    drain: Drain,
    handler: H,
) -> Result<(), BoxError> {
    let service = service_fn(move |req| {
        let answer = handler.clone().handle(peer.clone(), req);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let conn = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        // RFC 8441: WebSocket over HTTP/2.
        .enable_connect_protocol()
        .max_concurrent_streams(limits::H2_STREAMS)
        .max_pending_accept_reset_streams(limits::H2_PENDING_RESETS)
        .max_local_error_reset_streams(limits::H2_PENDING_RESETS)
        .max_header_list_size(limits::HEADER_BYTES as u32)
        .initial_stream_window_size(limits::H2_STREAM_WINDOW)
        .initial_connection_window_size(limits::H2_CONNECTION_WINDOW)
        .max_send_buf_size(limits::H2_SEND_BUFFER)
        .keep_alive_interval(limits::H2_PING)
        .keep_alive_timeout(limits::H2_PING_ANSWER)
        .serve_connection(TokioIo::new(io), service);
    drive(conn, drain, |c| c.graceful_shutdown()).await.map_err(Into::into)
}

/// Polls a connection to its end; when the drain starts, tells it once to finish what it is doing.
async fn drive<C: Future>(conn: C, drain: Drain, graceful: impl Fn(Pin<&mut C>)) -> C::Output {
    let mut watch = drain.watch();
    drop(drain);
    let mut conn = pin!(conn);
    let mut told = false;
    poll_fn(move |cx| {
        if !told && watch.poll(cx) {
            told = true;
            graceful(conn.as_mut());
        }
        conn.as_mut().poll(cx)
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::Full;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::time::Instant;

    #[derive(Clone)]
    struct Hello;

    impl Handler for Hello {
        type Body = Full<Bytes>;
        async fn handle(self, _: Arc<Peer>, _: Request<Incoming>) -> Response<Full<Bytes>> {
            Response::new(Full::new(Bytes::from_static(b"hello")))
        }
    }

    fn start(permits: usize) -> (SocketAddr, Drain) {
        let socket = bind(([127, 0, 0, 1], 0).into(), 1).unwrap().remove(0);
        let address = socket.local_addr().unwrap();
        let (drain, _) = Drain::new();
        tokio::spawn(accept(socket, Door::new(Settings::default(), permits), drain.clone(), Hello));
        (address, drain)
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_sends_its_head_too_slowly_is_let_go() {
        let (address, _drain) = start(8);
        for begun in [&b""[..], b"GET / HT", b"PRI * HTTP/2.0\r\n", b"GET / HTTP/1.1\r\nhost: h\r\nx: "] {
            let mut s = TcpStream::connect(address).await.unwrap();
            let at = Instant::now();
            s.write_all(begun).await.unwrap();
            let mut got = Vec::new();
            s.read_to_end(&mut got).await.unwrap();
            assert!(!got.starts_with(b"HTTP/1.1 200"), "{:?}", String::from_utf8_lossy(&got));
            let took = at.elapsed();
            assert!(took >= limits::HEADER_READ && took < limits::HEADER_READ * 3, "{took:?} after {begun:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn above_the_connection_limit_connections_wait_their_turn() {
        let (address, _drain) = start(1);
        let mut first = TcpStream::connect(address).await.unwrap();
        let request = b"GET / HTTP/1.1\r\nhost: h\r\n\r\n";
        let mut buf = [0; 256];
        first.write_all(request).await.unwrap();
        assert!(first.read(&mut buf).await.unwrap() > 0);
        let mut second = TcpStream::connect(address).await.unwrap();
        second.write_all(request).await.unwrap();
        let early = tokio::time::timeout(Duration::from_secs(1), second.read(&mut buf)).await;
        assert!(early.is_err(), "it is not served beside the first");
        drop(first);
        assert!(second.read(&mut buf).await.unwrap() > 0);
    }

    #[test]
    fn a_port_that_is_taken_is_refused_even_to_shared_sockets() {
        let taken = bind(([127, 0, 0, 1], 0).into(), 2).unwrap();
        let address = taken[0].local_addr().unwrap();
        assert_eq!(taken[1].local_addr().unwrap(), address);
        assert!(matches!(bind(address, 2), Err(Error::Bind { .. })));
        assert!(matches!(bind(address, 1), Err(Error::Bind { .. })));
    }
}
