//! The body of an answer through the gateway. When it ends, however it ends, the exchange is recorded and its place in
//! the bulkhead given back.

use std::collections::VecDeque;
use std::future::Future as _;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;
use tokio::time::{Instant, Sleep};
use weft_mesh::Incoming;

use super::grpc_web;
use super::record::Exchange;
use super::tunnel::Tunnel;

/// An answer's body.
#[derive(Debug)]
pub struct Body {
    kind: Kind,
    exchange: Option<Box<Exchange>>,
}

#[derive(Debug)]
enum Kind {
    /// Made here.
    Bytes(Bytes),
    /// As it arrives from a service.
    Upstream(Incoming),
    /// Made here or collected, with trailers.
    Collected(Bytes, Option<HeaderMap>),
    /// As gRPC-Web writes it; the flag is for base64.
    Web(Box<Body>, bool),
    /// As it arrives from a service, which may not be silent for too long.
    Watched(Box<Watched>),
    /// None: the connection goes on as something else.
    Tunnel(Box<Tunnel>),
    /// Begun to be collected, found too long, and passed on.
    Resumed(VecDeque<Bytes>, Box<Body>),
    /// Counted, hashed or compressed on its way.
    Layered(UnsyncBoxBody<Bytes, weft_mesh::Error>),
}

impl From<Bytes> for Body {
    fn from(b: Bytes) -> Self {
        Self { kind: Kind::Bytes(b), exchange: None }
    }
}

impl From<Incoming> for Body {
    fn from(b: Incoming) -> Self {
        Self { kind: Kind::Upstream(b), exchange: None }
    }
}

impl Body {
    /// Bytes and the trailers that follow them.
    pub fn with_trailers(data: Bytes, trailers: Option<HeaderMap>) -> Self {
        Self { kind: Kind::Collected(data, trailers), exchange: None }
    }

    /// A service's body that breaks off after a time of silence.
    pub(super) fn watched(body: Incoming, limit: Duration, silent: weft_mesh::Error) -> Self {
        let sleep = Box::pin(tokio::time::sleep(limit));
        Self { kind: Kind::Watched(Box::new(Watched { body, sleep, limit, silent: Some(silent) })), exchange: None }
    }

    /// The same as gRPC-Web writes it.
    pub(super) fn for_web(self, text: bool) -> Self {
        Self { kind: Kind::Web(Box::new(self), text), exchange: None }
    }

    /// No body, and the connection becomes something else after the head.
    pub(super) fn tunnel(tunnel: Tunnel) -> Self {
        Self { kind: Kind::Tunnel(Box::new(tunnel)), exchange: None }
    }

    /// A body that another one is made of.
    pub(super) fn layered<B>(body: B) -> Self
    where
        B: HttpBody<Data = Bytes, Error = weft_mesh::Error> + Send + 'static,
    {
        Self { kind: Kind::Layered(UnsyncBoxBody::new(body)), exchange: None }
    }

    /// What was read of a body already, and the body.
    pub(super) fn resumed(read: VecDeque<Bytes>, rest: Body) -> Self {
        Self { kind: Kind::Resumed(read, Box::new(rest)), exchange: None }
    }

    /// Ends this exchange when the body ends, or what the connection becomes.
    pub(super) fn ends(mut self, exchange: Box<Exchange>) -> Self {
        if matches!(self.kind, Kind::Tunnel(_))
            && let Kind::Tunnel(tunnel) = std::mem::replace(&mut self.kind, Kind::Bytes(Bytes::new()))
        {
            tunnel.start(exchange);
            return self;
        }
        self.exchange = Some(exchange);
        self
    }
}

/// A service's body and the time it may be silent. While the client does not take what came, no time runs.
#[derive(Debug)]
struct Watched {
    body: Incoming,
    sleep: Pin<Box<Sleep>>,
    limit: Duration,
    silent: Option<weft_mesh::Error>,
}

impl Watched {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, weft_mesh::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if polled.is_ready() {
            self.sleep.as_mut().reset(Instant::now() + self.limit);
            return polled;
        }
        std::task::ready!(self.sleep.as_mut().poll(cx));
        Poll::Ready(self.silent.take().map(Err))
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = weft_mesh::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = &mut *self;
        let polled = match &mut this.kind {
            Kind::Tunnel(_) => Poll::Ready(None),
            Kind::Watched(b) => b.poll_frame(cx),
            Kind::Web(b, text) => Pin::new(&mut **b).poll_frame(cx).map_ok(|f| {
                if let (Some(exchange), Some(t)) = (&mut this.exchange, f.trailers_ref()) {
                    exchange.trailers(t);
                }
                grpc_web::frame(f, *text)
            }),
            Kind::Bytes(b) if b.is_empty() => Poll::Ready(None),
            Kind::Bytes(b) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(b))))),
            Kind::Upstream(b) => Pin::new(b).poll_frame(cx),
            Kind::Layered(b) => Pin::new(b).poll_frame(cx),
            Kind::Collected(b, trailers) => Poll::Ready(match (b.is_empty(), trailers.take()) {
                (false, t) => {
                    *trailers = t;
                    Some(Ok(Frame::data(std::mem::take(b))))
                }
                (true, t) => t.map(|t| Ok(Frame::trailers(t))),
            }),
            Kind::Resumed(read, rest) => match read.pop_front() {
                Some(b) => Poll::Ready(Some(Ok(Frame::data(b)))),
                None => Pin::new(&mut **rest).poll_frame(cx),
            },
        };
        if let Some(exchange) = &mut this.exchange {
            match &polled {
                Poll::Pending => {}
                Poll::Ready(Some(Ok(f))) => {
                    exchange.sent(f.data_ref().map_or(0, Bytes::len));
                    if let Some(t) = f.trailers_ref() {
                        exchange.trailers(t);
                    }
                }
                Poll::Ready(Some(Err(e))) => exchange.broke_off(e),
                Poll::Ready(None) => {}
            }
            if matches!(polled, Poll::Ready(None | Some(Err(_)))) || (polled.is_ready() && this.kind.has_ended()) {
                // Dropped here, so that a client that is slow to close does not hold the place.
                this.finish();
            }
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.kind.has_ended()
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Bytes(b) | Kind::Collected(b, None) => SizeHint::with_exact(b.len() as u64),
            Kind::Collected(..) | Kind::Resumed(..) => SizeHint::default(),
            Kind::Upstream(b) => b.size_hint(),
            Kind::Tunnel(_) => SizeHint::with_exact(0),
            Kind::Watched(b) => b.body.size_hint(),
            Kind::Web(..) => SizeHint::default(),
            Kind::Layered(b) => b.size_hint(),
        }
    }
}

impl Kind {
    fn has_ended(&self) -> bool {
        match self {
            Kind::Bytes(b) => b.is_empty(),
            Kind::Tunnel(_) => true,
            Kind::Watched(b) => b.body.is_end_stream(),
            Kind::Web(b, _) => b.is_end_stream(),
            Kind::Upstream(b) => b.is_end_stream(),
            Kind::Layered(b) => b.is_end_stream(),
            Kind::Collected(b, t) => b.is_empty() && t.is_none(),
            Kind::Resumed(read, rest) => read.is_empty() && rest.is_end_stream(),
        }
    }
}

impl Body {
    fn finish(&mut self) {
        if let Some(mut e) = self.exchange.take() {
            e.finished();
        }
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        // A body that ended before it was polled (HEAD, 204) is complete; any other drop is a client that went away.
        if self.kind.has_ended() {
            self.finish();
        }
    }
}
