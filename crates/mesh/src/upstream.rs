//! One attempt on one picked instance: balance, connection, exchange.

use std::error::Error as _;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use arc_swap::ArcSwap;
use http::uri::Scheme;
use http::{Request, Response};
use weft_core::{Context, Name};
use weft_policy::Instance;
use weft_policy::attempt::Attempt;

use crate::answer::{Reply, Source, Stream, reason};
use crate::balance::{Choice, Endpoints};
use crate::body::Body;
use crate::endpoint::Endpoint;
use crate::error::Error;
use crate::http1::Failed;
use crate::observe::{Attempted, Meter};
use crate::outbound::{Outbound, Overlay, grpc_timeout};
use crate::spec::Protocol;
use crate::{connect, pool};

/// A service that can be called: one of a running configuration, or one that exists because instances registered.
#[derive(Debug)]
pub struct Service {
    pub(crate) name: Name,
    pub(crate) choice: Choice,
    pub(crate) policy: Instance,
    pub(crate) endpoints: ArcSwap<Endpoints>,
    pub(crate) meter: Arc<Meter>,
    pub(crate) turn: AtomicUsize,
}

/// Idle connections that may turn out dead before a fresh one is made.
const STALE: usize = 2;

impl Service {
    /// Its name.
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// The policy that all calls share which name no other.
    pub fn policy(&self) -> &Instance {
        &self.policy
    }

    /// One attempt on one instance that this request has not met, if there is such. The answer's body streams.
    ///
    /// A failure that certainly did nothing leaves the body in `out`, so that another attempt can send it.
    pub async fn send(&self, ctx: &Context, out: &Outbound, attempt: Attempt) -> Result<Reply, Error> {
        let endpoint = {
            let endpoints = self.endpoints.load();
            let picked = endpoints.pick(&self.choice, &self.turn, out);
            picked.ok_or_else(|| Error::NoInstances { service: self.name.to_shared(), known: true })?.clone()
        };
        out.mark_tried(endpoint.id);
        let trace = ctx.trace.child();
        let attempted = Attempted::begin(&self.meter, &endpoint, trace, attempt, out);
        let protocol = endpoint.wanted.protocol;
        let overlay = Overlay {
            traceparent: Some(trace.traceparent()),
            baggage: ctx.baggage.as_deref(),
            grpc_timeout: match protocol {
                Protocol::Grpc => attempt.deadline.remaining().and_then(grpc_timeout),
                Protocol::Http | Protocol::H2 => None,
            },
        };
        let done = match protocol {
            Protocol::Http => self.over_h1(&endpoint, out, &overlay).await,
            Protocol::H2 | Protocol::Grpc => self.over_h2(&endpoint, out, &overlay).await,
        };
        match done {
            Ok(response) => Ok(Reply::new(response, attempted, protocol == Protocol::Grpc)),
            Err(e) => {
                attempted.failed(&e);
                Err(e)
            }
        }
    }

    async fn over_h1(
        &self,
        endpoint: &Arc<Endpoint>,
        out: &Outbound,
        overlay: &Overlay<'_>,
    ) -> Result<Response<Source>, Error> {
        let mut stale = 0;
        loop {
            let idle = if stale < STALE { pool::take_h1(endpoint) } else { None };
            let reused = idle.is_some();
            let mut conn = match idle {
                Some(conn) => {
                    self.meter.reused();
                    conn
                }
                None => connect::h1(endpoint, &self.meter).await?,
            };
            conn.begin(&out.head, overlay, &endpoint.host, out.take_body()?);
            match poll_fn(|cx| conn.poll_head(cx)).await {
                Ok(parts) => return Ok(Response::from_parts(parts, Source::H1(conn))),
                Err(e @ Failed::Body(_)) => return Err(Error::RequestBody { reason: e.reason() }),
                Err(e) => {
                    let unsent = conn.take_back().map(|body| out.put_back(body)).is_some();
                    let answered = conn.was_answered() || matches!(e, Failed::Malformed(_));
                    // The keep-alive race: the server closed an idle connection while the request was on its way.
                    let raced = !unsent && e.is_reset() && !answered && out.may_race();
                    if reused && (unsent || raced) {
                        stale += 1;
                        continue;
                    }
                    let (service, instance) = (endpoint.service.clone(), endpoint.address.clone());
                    let reason = e.reason();
                    return Err(if unsent {
                        Error::Unsent { service, instance, reason }
                    } else if answered {
                        Error::ResetAfterBytes { service, instance, reason }
                    } else {
                        Error::ResetBeforeBytes { service, instance, reason }
                    });
                }
            }
        }
    }

    async fn over_h2(
        &self,
        endpoint: &Arc<Endpoint>,
        out: &Outbound,
        overlay: &Overlay<'_>,
    ) -> Result<Response<Source>, Error> {
        let scheme = if endpoint.wanted.tls.is_some() { Scheme::HTTPS } else { Scheme::HTTP };
        let grpc = endpoint.wanted.protocol == Protocol::Grpc;
        let mut stale = 0;
        loop {
            let (mut connection, reused) = pool::take_h2(endpoint, &self.meter).await?;
            if reused {
                self.meter.reused();
            }
            let stream = Stream::open(&connection.active);
            let body = out.take_body()?;
            let request = overlay.h2(&out.head, body, &endpoint.authority, scheme.clone(), grpc)?;
            match connection.sender.try_send_request(request).await {
                Ok(response) => return Ok(response.map(|body| Source::H2(body, stream))),
                Err(mut e) => {
                    let unsent = recover(out, e.take_message());
                    let e = e.into_error();
                    let refused = is_refused(&e);
                    if unsent || is_going_away(&e) {
                        pool::drop_h2(endpoint, &connection);
                    }
                    // Certainly not processed, so any method may go out again: on a connection that was closing, or
                    // before the peer's limit of streams was known.
                    stale += 1;
                    let again = (reused && unsent) || (refused && out.is_repeatable());
                    if again && stale <= weft_core::limits::UPSTREAM_H2_CONNECTIONS {
                        continue;
                    }
                    if out.upload().is_some_and(|u| u.has_failed()) {
                        return Err(Error::RequestBody { reason: reason(&e) });
                    }
                    return Err(failure(endpoint, &e, unsent));
                }
            }
        }
    }
}

/// Puts back the body of a request that never left; whether it is one.
fn recover(out: &Outbound, message: Option<Request<Body>>) -> bool {
    match message {
        Some(request) => {
            out.put_back(request.into_body());
            true
        }
        None => false,
    }
}

fn h2_error(e: &hyper::Error) -> Option<&h2::Error> {
    e.source().and_then(|s| s.downcast_ref())
}

/// RFC 9113 8.7: REFUSED_STREAM, and streams above the last one a GOAWAY names, were not processed.
fn is_refused(e: &hyper::Error) -> bool {
    h2_error(e).is_some_and(|e| {
        (e.is_reset() && e.reason() == Some(h2::Reason::REFUSED_STREAM)) || (e.is_go_away() && e.is_remote())
    })
}

fn is_going_away(e: &hyper::Error) -> bool {
    h2_error(e).is_some_and(|e| e.is_go_away())
}

/// What a failed exchange means.
fn failure(endpoint: &Endpoint, e: &hyper::Error, unsent: bool) -> Error {
    let (service, instance) = (endpoint.service.clone(), endpoint.address.clone());
    let reason = reason(e);
    if unsent || is_refused(e) {
        Error::Unsent { service, instance, reason }
    } else if e.is_user() {
        Error::RequestBody { reason }
    } else if e.is_parse() {
        Error::ResetAfterBytes { service, instance, reason }
    } else {
        Error::ResetBeforeBytes { service, instance, reason }
    }
}
