//! What a route does with its traffic besides policy, compiled once for each configuration. A route that uses none of it
//! has no [`Traffic`], and its requests pay for one look at that.
//!
//! The exchange calls, in this order: [`Traffic::begin`] when the route is known, [`Traffic::before`] on admission,
//! [`fault::Fault::strike`] when a request has its place, [`Traffic::outgoing`] and [`Traffic::mirrored`] when it goes to
//! a service and [`Outgoing::came`] on its answer, [`Hop::answer`] on whatever is answered.

mod compress;
mod cors;
mod fault;
mod fields;
mod fixed;
mod mirror;
mod shed;
mod size;
mod split;

use std::sync::Arc;

use http::request::Parts;
use http::{HeaderValue, Response, header};
use weft_core::{Context, Name, Trace};
use weft_telemetry::Telemetry;

pub(crate) use cors::{Cors, asks as preflight_asks};
pub(crate) use fault::picks;
pub(crate) use fields::Facts;
pub(crate) use split::{Chosen, Split};

use super::body::Body;
use crate::api::problem::Problem;
use crate::gateway::Core;
use crate::listener::Peer;
use crate::route::Pattern;
use crate::spec::{Host, RouteSpec, Target};

/// A member, what was given, what is wrong with it.
pub(crate) type Bad = (&'static str, String, String);

/// Everything of one route.
#[derive(Debug)]
pub(crate) struct Traffic {
    facts: bool,
    pattern: Pattern,
    host: Option<Option<HeaderValue>>,
    request: Vec<fields::Rule>,
    response: Vec<fields::Rule>,
    fixed: Option<fixed::Fixed>,
    mirror: Option<Arc<mirror::Mirror>>,
    cors: Option<Cors>,
    compress: Option<compress::Compress>,
    request_limit: Option<u64>,
    response_limit: Option<u64>,
    fault: Option<fault::Fault>,
    shed: Option<shed::Shed>,
    /// Bytes of a request's body that is collected before it is sent on.
    pub(crate) buffer: Option<usize>,
}

impl Traffic {
    /// Compiles; `None` = the route uses nothing of it. All mistakes at once.
    pub(crate) fn compile(
        spec: &RouteSpec,
        pattern: &Pattern,
        telemetry: Option<&Telemetry>,
    ) -> Result<Option<Box<Self>>, Vec<Bad>> {
        let t = &spec.traffic;
        let mut bad = Vec::new();
        let host = match &t.host {
            Host::Preserve => None,
            Host::Service => Some(None),
            Host::Name(n) => match HeaderValue::from_str(n) {
                Ok(v) if n.parse::<http::uri::Authority>().is_ok() => Some(Some(v)),
                _ => {
                    bad.push((
                        "host rewrite",
                        n.clone(),
                        "is not a host: write preserve, service or a name".to_owned(),
                    ));
                    None
                }
            },
        };
        let request = fields::compile(&t.request, pattern, "request header", &mut bad);
        let response = fields::compile(&t.response, pattern, "response header", &mut bad);
        let fixed = fixed::compile(&spec.to, pattern, &mut bad);
        let cors = t.cors.as_ref().and_then(|c| Cors::compile(c, &spec.matches.methods, &mut bad));
        let fault = t.fault.as_ref().and_then(|f| fault::compile(f, &mut bad));
        if !bad.is_empty() {
            return Err(bad);
        }
        let used = t.host != Host::Preserve
            || !request.is_empty()
            || !response.is_empty()
            || fixed.is_some()
            || t.mirror.is_some()
            || cors.is_some()
            || t.compress.is_some()
            || t.request_limit.is_some()
            || t.response_limit.is_some()
            || fault.is_some()
            || t.buffer.is_some()
            || t.depends_on.is_some();
        if !used {
            return Ok(None);
        }
        Ok(Some(Box::new(Self {
            facts: fixed.as_ref().is_some_and(fixed::Fixed::sees_facts)
                || request.iter().chain(&response).any(fields::Rule::sees_facts),
            pattern: pattern.clone(),
            host,
            request,
            response,
            fixed,
            mirror: t.mirror.as_ref().map(|m| Arc::new(mirror::Mirror::new(m, spec.name.as_str(), telemetry))),
            cors,
            compress: t.compress.as_ref().map(compress::Compress::new),
            request_limit: t.request_limit,
            response_limit: t.response_limit,
            fault,
            shed: t.depends_on.as_ref().map(shed::Shed::new),
            buffer: t.buffer,
        })))
    }

    /// What must be remembered of the request until its answer; the path is not rewritten yet.
    pub(crate) fn begin(&self, route: &crate::gateway::Route, peer: &Peer, trace: &Trace, head: &mut Parts) -> Hop {
        let facts = self.facts.then(|| Arc::new(Facts::of(route, peer, trace, head)));
        if let Some(f) = &facts {
            head.extensions.insert(f.clone());
        }
        Hop {
            facts,
            origin: self.cors.as_ref().and_then(|_| head.headers.get(header::ORIGIN).cloned()),
            coding: self.compress.as_ref().and_then(|c| c.accepted(&head.method, &head.headers)),
        }
    }

    /// Sizes and shedding: what can end a request before it is begun.
    pub(crate) async fn before(&self, core: &Core, head: &Parts) -> Result<(), Problem> {
        if let Some(limit) = self.request_limit {
            size::declared(limit, &head.headers)?;
        }
        if let Some(shed) = &self.shed {
            shed.check(&core.deps.broker).await?;
        }
        Ok(())
    }

    /// What goes wrong on purpose, once a request has its place.
    pub(crate) fn fault(&self) -> Option<&fault::Fault> {
        self.fault.as_ref()
    }

    /// How many bytes of a request's body the route takes.
    pub(crate) fn request_limit(&self) -> Option<u64> {
        self.request_limit
    }

    /// The answer to a preflight.
    pub(crate) fn preflight(&self, head: &Parts) -> Result<Response<Body>, Problem> {
        self.cors.as_ref().expect("the route answers preflights: asked when it was found").preflight(head)
    }

    /// The answer of a route that has no service.
    pub(crate) fn fixed(&self, head: &Parts) -> Result<Response<Body>, Problem> {
        let fixed = self.fixed.as_ref().expect("the target is a fixed answer: compiled with it");
        fixed.answer(&self.pattern, head.extensions.get::<Arc<Facts>>().map(|f| &**f))
    }

    /// Makes a request into the one sent on.
    pub(crate) fn outgoing(
        &self,
        service: &Name,
        head: &mut Parts,
        body: weft_mesh::Body,
    ) -> (weft_mesh::Body, Outgoing) {
        if let Some(host) = &self.host {
            split::ask_for_host(head, host.as_ref());
        }
        let facts = head.extensions.get::<Arc<Facts>>().cloned();
        fields::apply(&self.request, &self.pattern, facts.as_deref(), &mut head.headers);
        let (body, over) = match self.request_limit {
            None => (body, None),
            Some(limit) => size::request(limit, body),
        };
        (body, Outgoing { service: service.clone(), over, pair: None, response_limit: self.response_limit })
    }

    /// Sends a copy to the mirror, if this one is to be copied.
    pub(crate) fn mirrored(
        &self,
        core: &Core,
        ctx: &Context,
        head: &Parts,
        body: weft_mesh::Body,
        outgoing: &mut Outgoing,
    ) -> weft_mesh::Body {
        let Some(m) = self.mirror.as_ref().filter(|m| m.picks()) else { return body };
        let (body, pair) = m.copy(core, ctx, head, body);
        outgoing.pair = pair;
        body
    }

    /// The rules for cross-origin requests.
    pub(crate) fn cors(&self) -> Option<&Cors> {
        self.cors.as_ref()
    }
}

/// A request that was sent on, until its answer came.
#[derive(Debug)]
pub(crate) struct Outgoing {
    service: Name,
    over: Option<Arc<size::Over>>,
    pair: Option<mirror::Answered>,
    response_limit: Option<u64>,
}

impl Outgoing {
    /// Looks at the answer of the service.
    pub(crate) fn came(self, mut r: Response<Body>) -> Result<Response<Body>, Problem> {
        if let Some(limit) = self.response_limit {
            r = size::response(limit, &self.service, r)?;
        }
        Ok(match self.pair {
            None => r,
            Some(pair) => pair.answered(r),
        })
    }

    /// What it failed with, when this module knows better than the one that sent it.
    pub(crate) fn failed(&self) -> Option<Problem> {
        self.over.as_ref()?.problem()
    }
}

/// What is remembered of a request until its answer.
#[derive(Debug)]
pub(crate) struct Hop {
    facts: Option<Arc<Facts>>,
    origin: Option<HeaderValue>,
    coding: Option<crate::spec::Coding>,
}

impl Hop {
    /// Finishes an answer, good or bad.
    pub(crate) fn answer(self, t: &Traffic, mut r: Response<Body>) -> Response<Body> {
        if let Some(cors) = &t.cors {
            cors.answer(self.origin.as_ref(), r.headers_mut());
        }
        fields::apply(&t.response, &t.pattern, self.facts.as_deref(), r.headers_mut());
        match &t.compress {
            None => r,
            Some(c) => c.answer(self.coding, r),
        }
    }
}

/// What is wrong with a route's traffic.
pub(crate) fn mistakes(spec: &RouteSpec, pattern: &Pattern) -> Vec<Bad> {
    Traffic::compile(spec, pattern, None).err().unwrap_or_default()
}

/// The services a target asks.
pub(crate) fn is_service(to: &Target) -> bool {
    matches!(to, Target::Service { .. } | Target::Split(_))
}
