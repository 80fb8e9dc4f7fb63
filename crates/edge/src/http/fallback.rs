//! What a route answers when its service did not: something written in the configuration, or what another service says.
//!
//! It stands in for failures, never for refusals: a 404 is an answer. Another service is asked only where the work
//! cannot be done twice by that: when the request may be repeated, or certainly did not arrive.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use weft_core::{Class, Context, Name};
use weft_mesh::Outbound;
use weft_policy::attempt::{self, Replay};
use weft_policy::outcome::Outcome;
use weft_telemetry::metrics::Counter;

use super::body::Body;
use super::{headers, respond};
use crate::gateway::Core;
use crate::spec;

/// Says that an answer is a fallback's, and which kind: `respond` or `service`.
const WEFT_FALLBACK: HeaderName = HeaderName::from_static("weft-fallback");

/// A route's fallback in force.
#[derive(Debug)]
pub(crate) struct Fallback {
    what: What,
    answered: Counter,
}

#[derive(Debug)]
enum What {
    Respond { status: StatusCode, headers: HeaderMap, body: Bytes },
    Service(Name),
}

impl Fallback {
    pub(crate) fn new(spec: &spec::Fallback, answered: Counter) -> Self {
        let what = match spec {
            spec::Fallback::Service(name) => What::Service(name.clone()),
            spec::Fallback::Respond { status, headers, body } => What::Respond {
                status: *status,
                headers: headers.clone(),
                body: Bytes::copy_from_slice(body.as_bytes()),
            },
        };
        Self { what, answered }
    }

    /// Whether another service is asked.
    pub(super) fn is_service(&self) -> bool {
        matches!(self.what, What::Service(_))
    }

    /// The answer in place of a failed one, if there is one for it.
    pub(super) async fn answer(
        &self,
        core: &Core,
        ctx: &Context,
        out: &Outbound,
        failed: Outcome,
    ) -> Option<Response<Body>> {
        if !matches!(failed.failure, Some(Class::Retryable | Class::Fault)) {
            return None;
        }
        self.ask(core, ctx, out, failed.unsent).await
    }

    /// The answer to a request that policy refused to send.
    pub(super) async fn refused(&self, core: &Core, ctx: &Context, out: &Outbound) -> Option<Response<Body>> {
        self.ask(core, ctx, out, true).await
    }

    async fn ask(&self, core: &Core, ctx: &Context, out: &Outbound, unsent: bool) -> Option<Response<Body>> {
        let (mut response, kind) = match &self.what {
            // A gRPC call is answered in gRPC's own way, or by another service.
            What::Respond { .. } if respond::is_grpc(&out.head().headers) => return None,
            What::Respond { status, headers, body } => {
                let mut r = Response::new(Body::from(body.clone()));
                *r.status_mut() = *status;
                *r.headers_mut() = headers.clone();
                (r, "respond")
            }
            What::Service(name) => {
                if !unsent && out.replay() != Replay::Safe {
                    return None;
                }
                let service = core.deps.mesh.service(name).ok()?;
                let policy = service.policy().clone();
                let send = |a| core.deps.mesh.send(ctx, name, out, a);
                let done = attempt::run(&policy, ctx, out.replay(), send).await.ok()?;
                // Of two that failed, the first is the one to tell of.
                if !done.outcome.is_success() && done.outcome.failure != Some(Class::Rejected) {
                    return None;
                }
                let (parts, body) = done.answer.response.into_parts();
                // Only the route's own service is joined with the client: nobody would be behind this.
                if parts.status == StatusCode::SWITCHING_PROTOCOLS {
                    return None;
                }
                let mut r = Response::new(Body::from(body));
                *r.status_mut() = parts.status;
                *r.headers_mut() = parts.headers;
                headers::to_downstream(r.headers_mut(), parts.version);
                (r, "service")
            }
        };
        response.headers_mut().insert(WEFT_FALLBACK, HeaderValue::from_static(kind));
        self.answered.inc();
        Some(response)
    }
}
