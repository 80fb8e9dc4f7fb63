//! What is sent: nothing, bytes that can be sent again, or a stream that passes through once.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt as _;
use http_body_util::combinators::UnsyncBoxBody;

/// Whatever a body fails with.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A request's body. Streams are passed on frame by frame and never collected.
///
/// Trailers of a client are discarded (RFC 9110 6.5.1): a service that merges them with the head's fields would read
/// there what was taken out of the head, or checked in it. gRPC's requests have none.
#[derive(Debug, Default)]
pub enum Body {
    /// None.
    #[default]
    Empty,
    /// Bytes; each attempt sends them again.
    Bytes(Bytes),
    /// The body of a request that came over HTTP, as it arrives, without trailers; sent once.
    Incoming(hyper::body::Incoming),
    /// Any other stream; sent once.
    Stream(UnsyncBoxBody<Bytes, BoxError>),
    /// One that tells how far it is.
    Watched(Box<(Body, Arc<Upload>)>),
    /// A frame that was taken off a body and not sent, and the body.
    Resumed(Bytes, Box<Body>),
}

impl Body {
    /// A body of any kind.
    pub fn stream<B>(body: B) -> Self
    where
        B: HttpBody<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        if body.is_end_stream() {
            return Body::Empty;
        }
        Body::Stream(body.map_err(Into::into).boxed_unsync())
    }

    /// Tells from now on how far it is.
    pub(crate) fn watched(self) -> (Self, Arc<Upload>) {
        let upload = Arc::<Upload>::default();
        (Body::Watched(Box::new((self, upload.clone()))), upload)
    }

    /// A body again whole, of which a frame was taken.
    pub(crate) fn resumed(frame: Bytes, rest: Body) -> Self {
        Body::Resumed(frame, Box::new(rest))
    }

    /// Whether it can be sent more than once.
    pub fn is_repeatable(&self) -> bool {
        matches!(self, Body::Empty | Body::Bytes(_))
    }

    /// The same again, where that is possible.
    pub(crate) fn again(&self) -> Option<Body> {
        match self {
            Body::Empty => Some(Body::Empty),
            Body::Bytes(b) => Some(Body::Bytes(b.clone())),
            Body::Incoming(_) | Body::Stream(_) | Body::Watched(_) | Body::Resumed(..) => None,
        }
    }
}

/// How far a streamed request's body is: a service that still waits for it is not to blame for its silence, nor for a
/// body that breaks off.
#[derive(Debug, Default)]
pub struct Upload(AtomicU8);

impl Upload {
    const COMPLETE: u8 = 1;
    const FAILED: u8 = 2;

    fn to(&self, state: u8) {
        self.0.store(state, Ordering::Relaxed);
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.0.load(Ordering::Relaxed) == Self::COMPLETE
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.0.load(Ordering::Relaxed) == Self::FAILED
    }
}

impl From<Bytes> for Body {
    fn from(b: Bytes) -> Self {
        if b.is_empty() { Body::Empty } else { Body::Bytes(b) }
    }
}

impl From<hyper::body::Incoming> for Body {
    fn from(b: hyper::body::Incoming) -> Self {
        if b.is_end_stream() { Body::Empty } else { Body::Incoming(b) }
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match &mut *self {
            Body::Empty => Poll::Ready(None),
            Body::Bytes(b) => {
                let b = std::mem::take(b);
                *self = Body::Empty;
                Poll::Ready(Some(Ok(Frame::data(b))))
            }
            Body::Incoming(b) => match ready!(Pin::new(b).poll_frame(cx)) {
                Some(Ok(frame)) if frame.is_trailers() => Poll::Ready(None),
                other => Poll::Ready(other.map(|f| f.map_err(Into::into))),
            },
            Body::Stream(b) => Pin::new(b).poll_frame(cx),
            Body::Watched(both) => {
                let (body, upload) = &mut **both;
                let polled = Pin::new(&mut *body).poll_frame(cx);
                match &polled {
                    Poll::Ready(Some(Err(_))) => upload.to(Upload::FAILED),
                    Poll::Ready(None) => upload.to(Upload::COMPLETE),
                    Poll::Ready(Some(Ok(_))) if body.is_end_stream() => upload.to(Upload::COMPLETE),
                    _ => {}
                }
                polled
            }
            Body::Resumed(frame, _) if !frame.is_empty() => Poll::Ready(Some(Ok(Frame::data(std::mem::take(frame))))),
            Body::Resumed(_, rest) => Pin::new(&mut **rest).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Body::Empty => true,
            Body::Bytes(_) => false,
            Body::Incoming(b) => b.is_end_stream(),
            Body::Stream(b) => b.is_end_stream(),
            Body::Watched(both) => both.0.is_end_stream(),
            Body::Resumed(frame, rest) => frame.is_empty() && rest.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Body::Empty => SizeHint::with_exact(0),
            Body::Bytes(b) => SizeHint::with_exact(b.len() as u64),
            Body::Incoming(b) => b.size_hint(),
            Body::Stream(b) => b.size_hint(),
            Body::Watched(both) => both.0.size_hint(),
            Body::Resumed(frame, rest) => {
                let (n, mut hint) = (frame.len() as u64, rest.size_hint());
                if let Some(upper) = hint.upper() {
                    hint.set_upper(upper + n);
                }
                hint.set_lower(hint.lower() + n);
                hint
            }
        }
    }
}
