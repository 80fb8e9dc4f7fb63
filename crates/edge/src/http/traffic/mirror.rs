//! Copies of requests to another service. The answer to a copy is read, compared and thrown away; nothing waits for it. A
//! request's body is copied while it streams to the service it is for, up to a limit; longer ones are not mirrored.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as Task, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::request::Parts;
use http::{HeaderValue, Request, Response, header};
use http_body::{Body as HttpBody, Frame, SizeHint};
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};
use weft_core::{Context, Deadline, Name, limits};
use weft_mesh::{BoxError, Mesh};
use weft_policy::spec::Bulkhead;
use weft_policy::{Instance, Policy};
use weft_telemetry::metrics::Counter;
use weft_telemetry::{Telemetry, names};

use super::fault::picks;
use crate::gateway::Core;
use crate::http::body::Body;
use crate::http::headers::MIRRORED;
use crate::spec;

/// The mirror of one route.
#[derive(Debug)]
pub(super) struct Mirror {
    service: Name,
    share: f64,
    bodies: bool,
    policy: Instance,
    counts: Option<Counts>,
}

#[derive(Debug)]
struct Counts {
    same: Counter,
    different: Counter,
    failed: Counter,
    skipped: Counter,
}

impl Mirror {
    pub(super) fn new(m: &spec::Mirror, route: &str, telemetry: Option<&Telemetry>) -> Self {
        let policy = Policy {
            deadline: Some(limits::MIRROR_TIME),
            bulkhead: Some(Bulkhead { limit: limits::MIRRORS, queue: 0, wait: Duration::ZERO, adaptive: None }),
            ..Policy::default()
        };
        let counts = telemetry.map(|t| {
            let of = |result| t.metrics().counter(&names::MIRRORED, &[("route", route), ("result", result)]);
            Counts { same: of("same"), different: of("different"), failed: of("failed"), skipped: of("skipped") }
        });
        Self { service: m.service.clone(), share: m.share, bodies: m.bodies, policy: Instance::new(&policy), counts }
    }

    pub(super) fn picks(&self) -> bool {
        picks(self.share)
    }

    fn count(&self, pick: impl Fn(&Counts) -> &Counter) {
        if let Some(c) = &self.counts {
            pick(c).inc();
        }
    }

    /// Copies a request while it is sent.
    pub(super) fn copy(
        self: &Arc<Self>,
        core: &Core,
        ctx: &Context,
        head: &Parts,
        body: weft_mesh::Body,
    ) -> (weft_mesh::Body, Option<Answered>) {
        let said = head.headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<usize>().ok());
        // A copy of an upgrade would be a connection that nobody uses.
        let upgrades = head.headers.contains_key(header::UPGRADE);
        if upgrades || said.is_some_and(|n| n > limits::MIRROR_BODY_BYTES) {
            self.count(|c| &c.skipped);
            return (body, None);
        }
        let mut request = Request::new(());
        *request.method_mut() = head.method.clone();
        *request.uri_mut() = head.uri.clone();
        request.headers_mut().clone_from(&head.headers);
        request.headers_mut().remove(header::CONTENT_LENGTH);
        request.headers_mut().insert(MIRRORED, HeaderValue::from_static("true"));
        let ctx = Context { deadline: Deadline::NONE, trace: ctx.trace.child(), ..ctx.clone() };
        let pair = Arc::new(Pair { mirror: self.clone(), first: Mutex::new(None) });
        let copy = Copy { mesh: core.deps.mesh.clone(), ctx, request: Some(request), pair: pair.clone() };
        let body = match body {
            weft_mesh::Body::Empty => {
                copy.send(Bytes::new());
                weft_mesh::Body::Empty
            }
            weft_mesh::Body::Bytes(b) if b.len() <= limits::MIRROR_BODY_BYTES => {
                copy.send(b.clone());
                weft_mesh::Body::Bytes(b)
            }
            weft_mesh::Body::Bytes(b) => {
                self.count(|c| &c.skipped);
                return (weft_mesh::Body::Bytes(b), None);
            }
            streaming => weft_mesh::Body::stream(Tee { body: streaming, held: BytesMut::new(), copy: Some(copy) }),
        };
        (body, Some(Answered(pair)))
    }
}

/// A copy that is not sent yet.
struct Copy {
    mesh: Mesh,
    ctx: Context,
    request: Option<Request<()>>,
    pair: Arc<Pair>,
}

impl Copy {
    fn send(mut self, body: Bytes) {
        let Some(request) = self.request.take() else { return };
        tokio::spawn(async move {
            let mirror = &self.pair.mirror;
            let request = request.map(|()| body);
            match self.mesh.call(&self.ctx, mirror.service.as_str(), request, &mirror.policy).await {
                Ok(a) => {
                    let hash = mirror.bodies.then(|| Sha256::digest(&a.body).into());
                    self.pair.seen(Seen { status: a.status.as_u16(), hash });
                }
                // A full bulkhead is Weft's own doing; the rest is the service's.
                Err(e) if e.attempts == 0 => mirror.count(|c| &c.skipped),
                Err(_) => mirror.count(|c| &c.failed),
            }
        });
    }
}

/// Copies a body while it is read.
struct Tee {
    body: weft_mesh::Body,
    held: BytesMut,
    copy: Option<Copy>,
}

impl HttpBody for Tee {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Task<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        let polled = Pin::new(&mut this.body).poll_frame(cx);
        match &polled {
            Poll::Ready(Some(Ok(f))) => {
                if let (Some(d), Some(copy)) = (f.data_ref(), &this.copy) {
                    if this.held.len() + d.len() > limits::MIRROR_BODY_BYTES {
                        copy.pair.mirror.count(|c| &c.skipped);
                        this.copy = None;
                        this.held = BytesMut::new();
                    } else {
                        this.held.extend_from_slice(d);
                    }
                }
            }
            // A body that broke off is not one to copy.
            Poll::Ready(Some(Err(_))) => this.copy = None,
            _ => {}
        }
        let ended = matches!(polled, Poll::Ready(None)) || (polled.is_ready() && this.body.is_end_stream());
        if ended && let Some(copy) = this.copy.take() {
            copy.send(std::mem::take(&mut this.held).freeze());
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// What was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    status: u16,
    hash: Option<[u8; 32]>,
}

/// Two answers to one request; the second to come is compared with the first.
struct Pair {
    mirror: Arc<Mirror>,
    first: Mutex<Option<Seen>>,
}

impl std::fmt::Debug for Pair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pair").finish_non_exhaustive()
    }
}

impl Pair {
    fn seen(&self, seen: Seen) {
        let first = self.first.lock().replace(seen);
        match first {
            None => {}
            Some(other) if other == seen => self.mirror.count(|c| &c.same),
            Some(_) => self.mirror.count(|c| &c.different),
        }
    }
}

/// The answer that the caller gets, seen on its way.
#[derive(Debug)]
pub(super) struct Answered(Arc<Pair>);

impl Answered {
    pub(super) fn answered(self, r: Response<Body>) -> Response<Body> {
        let status = r.status().as_u16();
        if !self.0.mirror.bodies {
            self.0.seen(Seen { status, hash: None });
            return r;
        }
        if r.body().is_end_stream() {
            self.0.seen(Seen { status, hash: Some(Sha256::digest(b"").into()) });
            return r;
        }
        r.map(|body| Body::layered(Hashed { body, hash: Some(Sha256::new()), status, pair: self.0 }))
    }
}

/// Hashes an answer while it is read.
struct Hashed {
    body: Body,
    hash: Option<Sha256>,
    status: u16,
    pair: Arc<Pair>,
}

impl HttpBody for Hashed {
    type Data = Bytes;
    type Error = weft_mesh::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Task<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = &mut *self;
        let polled = Pin::new(&mut this.body).poll_frame(cx);
        if let (Poll::Ready(Some(Ok(f))), Some(h)) = (&polled, &mut this.hash)
            && let Some(d) = f.data_ref()
        {
            h.update(d);
        }
        let ended = matches!(polled, Poll::Ready(None))
            || (matches!(polled, Poll::Ready(Some(Ok(_)))) && this.body.is_end_stream());
        if ended && let Some(h) = this.hash.take() {
            this.pair.seen(Seen { status: this.status, hash: Some(h.finalize().into()) });
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
