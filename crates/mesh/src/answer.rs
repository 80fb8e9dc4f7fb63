//! What comes back: the head at once, the body as it arrives. When the body ends, its connection is free again.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode, header};
use http_body::{Body as HttpBody, Frame, SizeHint};
use weft_policy::outcome::{self, Judged, Outcome};

use crate::connect::H1;
use crate::endpoint::Endpoint;
use crate::error::Error;
use crate::observe::Attempted;
use crate::pool;
use crate::upgraded::Upgraded;

/// An answer, good or bad, from the instance that was picked.
#[derive(Debug)]
pub struct Reply {
    /// Head and streaming body.
    pub response: Response<Incoming>,
    outcome: Outcome,
    endpoint: Arc<Endpoint>,
}

impl Reply {
    pub(crate) fn new(response: Response<Source>, mut attempted: Attempted, grpc: bool) -> Self {
        let outcome = judge(response.status(), response.headers(), grpc);
        attempted.answered(response.status().as_u16(), outcome);
        let endpoint = attempted.endpoint().clone();
        let switched = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        let response = response.map(|source| {
            let source = match source {
                Source::H1(conn) if switched => Source::Switched(conn),
                other => other,
            };
            let mut body = Incoming { source, attempted: Some(attempted), trailers: None, grpc };
            body.finish_if_ended();
            body
        });
        Self { response, outcome, endpoint }
    }

    /// The error of an answer whose body is silent for too long.
    pub fn silent(&self, limit: std::time::Duration) -> Error {
        Error::ResetAfterBytes {
            service: self.endpoint.service.clone(),
            instance: self.endpoint.address.clone(),
            reason: format!("nothing came for {limit:?}").into(),
        }
    }

    /// Who answered.
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }
}

impl Judged for Reply {
    fn outcome(&self) -> Outcome {
        self.outcome
    }
}

/// What a head says; for gRPC the status may be in it (a trailers-only answer) or come later.
pub(crate) fn judge(status: StatusCode, headers: &HeaderMap, grpc: bool) -> Outcome {
    let outcome = match grpc.then(|| grpc_status(headers)).flatten() {
        Some(code) => outcome::classify_grpc(code),
        None => outcome::classify_http(status.as_u16()),
    };
    if outcome.is_success() {
        return outcome;
    }
    if grpc && let Some(pushback) = pushback(headers) {
        return outcome.with_retry_after(Some(pushback));
    }
    let asked = headers.get(header::RETRY_AFTER).and_then(|v| v.to_str().ok());
    outcome.with_retry_after(asked.and_then(outcome::parse_retry_after))
}

pub(crate) fn grpc_status(headers: &HeaderMap) -> Option<u32> {
    headers.get("grpc-status")?.to_str().ok()?.parse().ok()
}

/// When, or whether, a gRPC server wants to be called again (gRFC A6).
pub(crate) fn pushback(headers: &HeaderMap) -> Option<std::time::Duration> {
    let said = headers.get("grpc-retry-pushback-ms")?;
    Some(outcome::parse_retry_pushback(said.to_str().unwrap_or_default()))
}

/// An answer's body, as it arrives.
#[derive(Debug)]
pub struct Incoming {
    source: Source,
    attempted: Option<Attempted>,
    trailers: Option<Outcome>,
    grpc: bool,
}

/// The connection a body comes from.
#[derive(Debug)]
pub(crate) enum Source {
    /// To be given back.
    H1(H1),
    /// No longer HTTP/1.1 (101).
    Switched(H1),
    /// One stream on a shared connection, counted there.
    H2(hyper::body::Incoming, #[allow(dead_code, reason = "held for its drop")] Stream),
    /// Given back, or broken.
    Ended,
}

/// Counts a stream on its connection.
#[derive(Debug)]
pub(crate) struct Stream(Arc<AtomicUsize>);

impl Stream {
    pub(crate) fn open(active: &Arc<AtomicUsize>) -> Self {
        active.fetch_add(1, Ordering::Relaxed);
        Self(active.clone())
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Incoming {
    /// The connection itself, after an answer of 101 to a request that asked for an upgrade; `None` after any other.
    pub fn upgraded(mut self) -> Option<Upgraded> {
        match std::mem::replace(&mut self.source, Source::Ended) {
            Source::Switched(conn) => self.attempted.take().map(|a| Upgraded::new(conn.into_parts(), a)),
            _ => None,
        }
    }

    fn finish(&mut self) {
        let source = std::mem::replace(&mut self.source, Source::Ended);
        if let Some(attempted) = self.attempted.take() {
            if let Source::H1(conn) = source {
                pool::give_h1(attempted.endpoint(), conn);
            }
            attempted.ended(self.trailers);
        }
    }

    fn finish_if_ended(&mut self) {
        if self.source.has_ended() && !matches!(self.source, Source::Switched(_)) {
            self.finish();
        }
    }

    fn broke_off(&mut self, reason: Arc<str>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        self.source = Source::Ended;
        let Some(attempted) = self.attempted.take() else { return Poll::Ready(None) };
        let endpoint = attempted.endpoint();
        let (service, instance) = (endpoint.service.clone(), endpoint.address.clone());
        let error = Error::ResetAfterBytes { service, instance, reason };
        attempted.broke_off(&error);
        Poll::Ready(Some(Err(error)))
    }
}

impl Source {
    fn has_ended(&self) -> bool {
        match self {
            Source::H1(conn) => conn.has_ended(),
            Source::Switched(_) => true,
            Source::H2(body, _) => body.is_end_stream(),
            Source::Ended => true,
        }
    }
}

impl HttpBody for Incoming {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = &mut *self;
        let polled = match &mut this.source {
            Source::H1(conn) => ready!(conn.poll_frame(cx)).map(|f| f.map_err(|e| e.reason())),
            Source::H2(body, _) => ready!(Pin::new(body).poll_frame(cx)).map(|f| f.map_err(|e| reason(&e))),
            Source::Switched(_) | Source::Ended => None,
        };
        match polled {
            None => {
                this.finish();
                Poll::Ready(None)
            }
            Some(Ok(frame)) => {
                if let Some(trailers) = frame.trailers_ref()
                    && this.grpc
                {
                    this.trailers = grpc_status(trailers).map(outcome::classify_grpc);
                }
                // A server that writes this on need not poll again after the last byte.
                this.finish_if_ended();
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(reason)) => this.broke_off(reason),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.source.has_ended()
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::H1(conn) => conn.size_hint(),
            Source::H2(body, _) => body.size_hint(),
            Source::Switched(_) | Source::Ended => SizeHint::with_exact(0),
        }
    }
}

/// An error with what caused it.
pub(crate) fn reason(e: &dyn std::error::Error) -> Arc<str> {
    let mut text = e.to_string();
    let mut cause = e.source();
    while let Some(c) = cause {
        let more = c.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = c.source();
    }
    text.into()
}
