//! THE one straight function: a request's whole way, from its head to the answer that its body streams from.
//!
//! route -> admit -> attempt -> send -> respond. What must last until the answer's last byte (the place in the bulkhead,
//! the span) moves into the answer's body.
//!
//! Admission asks in this order, and the first refusal is the answer: upgrade and client certificate; who calls and
//! whether it may; which version; the size that is said, and shedding; quotas and rates, which still see credentials,
//! and then those are taken out; the idempotency key, whose answer may be here already; the place in the bulkhead;
//! faults on purpose.

use std::sync::Arc;

use bytes::Bytes;
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use hyper::body::{Body as _, Incoming};
use tokio::time::Instant;
use weft_broker::Channel;
use weft_core::{Context, Deadline, Principal, Trace, limits};
use weft_mesh::Outbound;
use weft_policy::attempt::{self, Cause, Failure};
use weft_policy::idempotency;
use weft_policy::outcome::Judged as _;

use super::adapt::Adapt;
use super::body::Body;
use super::collect::collect;
use super::fallback::Fallback;
use super::limited::Asking;
use super::record::Exchange;
use super::traffic::{Chosen, Outgoing, is_service, preflight_asks};
use super::tunnel::Tunnel;
use super::upgrade::Upgrade;
use super::{grpc_web, headers, respond, upgrade};
use crate::api::problem::{Problem, code};
use crate::auth::{Caller, Guard};
use crate::gateway::{Core, Route, Running};
use crate::listener::Peer;
use crate::route::{Asked, Found, normal};
use crate::spec::{Idle, Target};

/// Answers one request.
pub(crate) async fn exchange(core: Arc<Core>, peer: Arc<Peer>, request: Request<Incoming>) -> Response<Body> {
    let began = Instant::now();
    let running = core.running.load_full();
    let peer = running.proxies.seen(peer);
    let (mut head, body) = request.into_parts();
    let mut grpc = respond::is_grpc(&head.headers);
    let mut web = None;
    let trace = trace(&peer, &head.headers);

    // Which route.
    let connect = if head.method == Method::CONNECT { upgrade::from_connect(&mut head) } else { Ok(()) };
    let located = connect.and_then(|()| locate(&running, &peer, &head));
    let route = match &located {
        Ok(at) => running.routes[at.route].clone(),
        Err(_) => running.unmatched.clone(),
    };
    let (method, uri) = (head.method.clone(), head.uri.clone());
    let mut record = Box::new(Exchange::new(&core.deps.telemetry, &route, trace, began, method, uri));
    if let Some(access) = &running.access {
        record.logs(access.line(&route, &peer, &head));
    }
    let mut hop = None;
    let answer = match located {
        Err(p) => Err(p),
        Ok(at) => {
            drop(running);
            if let Some(t) = &route.traffic {
                hop = Some((t, t.begin(&route, &peer, &trace, &mut head)));
            }
            if let Some(uri) = at.uri {
                head.uri = uri;
            }
            if at.share > 0 {
                head.extensions.insert(Chosen(at.share));
            }
            let mut body = weft_mesh::Body::from(body);
            if route.protocols.grpc_web
                && let Some(form) = grpc_web::form(&head.headers)
            {
                let (translated, wanted) = grpc_web::to_grpc(&mut head, body, form);
                (body, web, grpc) = (translated, Some(wanted), true);
            }
            match (&route.traffic, at.preflight) {
                (Some(t), true) => t.preflight(&head),
                _ => admitted(&core, &route, &peer, trace, head, body, grpc, &mut record).await,
            }
        }
    };

    // Respond.
    let response = answer.unwrap_or_else(|p| {
        record.failed(p.code().name, p.detail());
        respond::problem(&p, grpc)
    });
    let mut response = match web {
        Some(form) => grpc_web::to_web(response, form),
        None => response,
    };
    if let Some((t, hop)) = hop {
        response = hop.answer(t, response);
    }
    record.answered(response.status(), response.headers_mut());
    response.map(|b| b.ends(record))
}

/// Everything between the route and the answer.
#[allow(clippy::too_many_arguments, reason = "it is the second half of `exchange`, apart for its early returns")]
async fn admitted(
    core: &Arc<Core>,
    route: &Arc<Route>,
    peer: &Arc<Peer>,
    trace: Trace,
    mut head: Parts,
    body: weft_mesh::Body,
    grpc: bool,
    record: &mut Exchange,
) -> Result<Response<Body>, Problem> {
    let upgrade = match head.headers.contains_key(header::UPGRADE) {
        true => upgrade::asked(&mut head, route.upgrades())?,
        false => None,
    };
    if route.protocols.client_certificate && peer.principal == Principal::Anonymous {
        return Err(Problem::new(code::CLIENT_CERTIFICATE_REQUIRED, "this needs a client certificate"));
    }
    let caller = if grpc { respond::grpc_timeout(&head.headers) } else { None };
    let deadline = route.policy.deadline(caller.map_or(Deadline::NONE, Deadline::after));
    let who = match &route.guard {
        None => None,
        Some(guard) => {
            let from = Caller { peer, client: route.proxies.vouched(peer, &head.headers) };
            Box::pin(guard.admit(from, &mut head, record.asked(), deadline)).await?
        }
    };
    let mut ctx = Context {
        trace,
        principal: who.map_or_else(|| peer.principal.clone(), |w| Principal::Named(w.principal.clone())),
        deadline,
        idempotency_key: idempotency_key(&head.headers)?,
        version: None,
        baggage: baggage(peer, &head.headers),
    };

    // Which version: the rest is for its own route.
    let guard = &route.guard;
    let mut route = route;
    if let Some(versions) = &route.versions {
        let asked = record.asked().clone();
        let (own, version) = versions.choose(&asked, &ctx.principal, &mut head, record)?;
        (route, ctx.version) = (own, Some(version));
    }

    // Admit.
    if let Some(t) = &route.traffic {
        Box::pin(t.before(core, &head)).await?;
    }
    if let Some(limited) = &route.limited {
        let client = route.proxies.client(peer, &head.headers);
        let asking = Asking { ctx: &ctx, client, head: &head };
        let counted = match limited.has_quotas() {
            true => Some(Box::pin(limited.quotas(&core.quotas, &route.name, &route.policy, &asking, record)).await?),
            false => None,
        };
        limited.rates(counted, &core.quotas, &route.policy, &asking, record)?;
    }
    if let Some(guard) = guard {
        guard.strip(&mut head);
    }
    if let Some(spec) = &route.policy.policy().idempotency
        && upgrade.is_none()
        && let Some(key) = idempotency::key(spec, &ctx).map_err(|r| respond::refused(&r))?
    {
        let scope = idempotency::scope(&ctx.principal, &route.name, key);
        // Boxed, here and below: what is seldom taken would be a part of every exchange's future, which is moved.
        let limit = collects(route, limits::COLLECTED_BODY_BYTES);
        let bytes = Box::pin(collect(body, &head.headers, limit, ctx.deadline)).await?;
        let asked = asked_for(guard, record);
        let once = Box::pin(super::idempotency::once(core, route, peer, spec.keep, scope, ctx, asked, head, bytes));
        let (answer, slot) = once.await?;
        if let Some(slot) = slot {
            record.holds(slot);
        }
        return Ok(answer);
    }
    match route.policy.acquire(ctx.deadline).await {
        Ok(slot) => record.holds(slot),
        Err(refused) => {
            let instead = match &route.fallback {
                Some(f) if is_service(&route.to) => Box::pin(instead(core, route, peer, &ctx, head, body, f)).await?,
                _ => None,
            };
            return instead.ok_or_else(|| respond::refused(&refused));
        }
    }
    if let Some(fault) = route.traffic.as_ref().and_then(|t| t.fault()) {
        Box::pin(fault.strike(&head.headers, ctx.deadline)).await?;
    }

    // Send.
    match &route.to {
        Target::Redirect(_) | Target::Respond(_) => fixed(route, &head),
        to if is_service(to) && (upgrade.is_some() || route.buffers().is_none()) => match upgrade {
            Some(upgrade) => Box::pin(upgraded(core, route, peer, &ctx, head, body, upgrade)).await,
            None => proxied(core, route, peer, &ctx, head, body).await,
        },
        _ => {
            let limit = collects(route, route.buffers().unwrap_or(limits::COLLECTED_BODY_BYTES));
            let bytes = Box::pin(collect(body, &head.headers, limit, ctx.deadline)).await?;
            Box::pin(send(core, route, peer, &ctx, head, bytes)).await
        }
    }
}

/// What the client asked for, as it may be told of and kept.
fn asked_for(guard: &Option<Guard>, record: &Exchange) -> Uri {
    guard.as_ref().map_or_else(|| record.asked().clone(), |g| g.without_credentials(record.asked()))
}

/// How much of a body is collected: never more than the route takes.
fn collects(route: &Route, limit: usize) -> usize {
    let taken = route.traffic.as_ref().and_then(|t| t.request_limit());
    taken.map_or(limit, |t| limit.min(usize::try_from(t).unwrap_or(usize::MAX)))
}

/// What the fallback says to a request that found no place: another service is asked as the route's own would have been.
async fn instead(
    core: &Core,
    route: &Route,
    peer: &Peer,
    ctx: &Context,
    mut head: Parts,
    mut body: weft_mesh::Body,
    fallback: &Fallback,
) -> Result<Option<Response<Body>>, Problem> {
    if let (Some(adapt), true) = (&route.adapt, fallback.is_service()) {
        body = mapped(route, peer, ctx, &mut head, body, adapt).await?;
    }
    let (body, outgoing) = outgoing(route, peer, &mut head, body, None);
    let out = Outbound::new(Request::from_parts(head, body)).asked_by(peer.address.ip());
    match fallback.refused(core, ctx, &out).await {
        Some(instead) => Ok(Some(instead)),
        None => outgoing.and_then(|o| o.failed()).map_or(Ok(None), Err),
    }
}

/// Sends a request whose body was collected to whatever the route's target is.
pub(super) async fn send(
    core: &Arc<Core>,
    route: &Route,
    peer: &Peer,
    ctx: &Context,
    mut head: Parts,
    mut body: Bytes,
) -> Result<Response<Body>, Problem> {
    if let (Some(adapt), false) = (&route.adapt, is_service(&route.to)) {
        let client = route.proxies.client(peer, &head.headers);
        body = adapt.request(ctx, client, &mut head, body)?;
    }
    match &route.to {
        Target::Service { .. } | Target::Split(_) => proxied(core, route, peer, ctx, head, body.into()).await,
        Target::Redirect(_) | Target::Respond(_) => fixed(route, &head),
        Target::Topic(t) => super::publish::publish(core, ctx, Channel::Topic(t.clone()), &head, body).await,
        Target::Queue(q) => super::publish::publish(core, ctx, Channel::Queue(q.clone()), &head, body).await,
        Target::Saga { saga, reply } => super::saga::start(core, ctx, saga, *reply, &head, body).await,
    }
}

/// Passes a request on to a service.
async fn proxied(
    core: &Core,
    route: &Route,
    peer: &Peer,
    ctx: &Context,
    head: Parts,
    body: weft_mesh::Body,
) -> Result<Response<Body>, Problem> {
    match &route.adapt {
        None => attempts(core, route, peer, ctx, head, body, None).await?.answered(route),
        Some(adapt) => Box::pin(adapted(core, route, peer, ctx, head, body, adapt)).await,
    }
}

/// Passes a request on with its bodies made those of another version.
async fn adapted(
    core: &Core,
    route: &Route,
    peer: &Peer,
    ctx: &Context,
    mut head: Parts,
    body: weft_mesh::Body,
    adapt: &Adapt,
) -> Result<Response<Body>, Problem> {
    let client = route.proxies.client(peer, &head.headers);
    let body = mapped(route, peer, ctx, &mut head, body, adapt).await?;
    // Mappings of the answer look at the head after it was sent.
    let (mut asked, ()) = Request::new(()).into_parts();
    (asked.method, asked.uri, asked.headers) = (head.method.clone(), head.uri.clone(), head.headers.clone());
    match attempts(core, route, peer, ctx, head, body, None).await? {
        // A fallback is written, or chosen, for every version: there is nothing to map.
        Sent::Instead(response) => Ok(response),
        reply => adapt.response(ctx, client, &asked, reply.answered(route)?).await,
    }
}

/// A request's body, made the one of the version that the service speaks.
async fn mapped(
    route: &Route,
    peer: &Peer,
    ctx: &Context,
    head: &mut Parts,
    body: weft_mesh::Body,
    adapt: &Adapt,
) -> Result<weft_mesh::Body, Problem> {
    let client = route.proxies.client(peer, &head.headers);
    if !adapt.maps_requests() {
        adapt.request(ctx, client, head, Bytes::new())?;
        return Ok(body);
    }
    let limit = collects(route, limits::COLLECTED_BODY_BYTES);
    let whole = collect(body, &head.headers, limit, ctx.deadline).await?;
    Ok(adapt.request(ctx, client, head, whole)?.into())
}

/// Sends to the route's service, attempt by attempt, and to its fallback.
async fn attempts(
    core: &Core,
    route: &Route,
    peer: &Peer,
    ctx: &Context,
    mut head: Parts,
    body: weft_mesh::Body,
    upgrade: Option<&Upgrade>,
) -> Result<Sent, Problem> {
    let service = route.service(head.extensions.get::<Chosen>().map_or(0, |c| c.0));
    let (mut body, mut outgoing) = outgoing(route, peer, &mut head, body, upgrade);
    if let (Some(t), Some(o)) = (&route.traffic, &mut outgoing) {
        body = t.mirrored(core, ctx, &head, body, o);
    }
    let out = Outbound::new(Request::from_parts(head, body)).asked_by(peer.address.ip());
    let replay = out.replay();
    let send = |a| core.deps.mesh.send(ctx, service, &out, a);
    let done = attempt::run_for(&route.policy, ctx, replay, || out.is_uploading(), send).await;
    if let Some(fallback) = &route.fallback {
        let outcome = match &done {
            Ok(done) => done.outcome,
            Err(failure) => failure.outcome(),
        };
        if !outcome.is_success()
            && let Some(instead) = Box::pin(fallback.answer(core, ctx, &out, outcome)).await
        {
            return Ok(Sent::Instead(instead));
        }
    }
    match done {
        Ok(done) => Ok(Sent::Reply(done.answer, outgoing)),
        Err(failure) => Err(outgoing.and_then(|o| o.failed()).unwrap_or_else(|| failed(failure))),
    }
}

/// What came of sending.
enum Sent {
    /// A service's answer, and what is still to be done to it.
    Reply(weft_mesh::Reply, Option<Outgoing>),
    /// The route's fallback.
    Instead(Response<Body>),
}

impl Sent {
    /// The answer that goes to the client, from a service's.
    fn answered(self, route: &Route) -> Result<Response<Body>, Problem> {
        let (reply, outgoing) = match self {
            Sent::Reply(reply, outgoing) => (reply, outgoing),
            Sent::Instead(response) => return Ok(response),
        };
        let silent = match route.protocols.idle {
            Idle::After(limit) => Some((limit, reply.silent(limit))),
            Idle::BuiltIn | Idle::Off => None,
        };
        let (parts, body) = reply.response.into_parts();
        if parts.status == StatusCode::SWITCHING_PROTOCOLS {
            return Err(Problem::new(code::UPSTREAM_BROKEN, "the service switched protocols without being asked to"));
        }
        let mut response = Response::new(match silent {
            Some((limit, error)) if !body.is_end_stream() => Body::watched(body, limit, error),
            _ => Body::from(body),
        });
        *response.status_mut() = parts.status;
        *response.headers_mut() = parts.headers;
        headers::to_downstream(response.headers_mut(), parts.version);
        match outgoing {
            None => Ok(response),
            Some(out) => out.came(response),
        }
    }
}

/// Makes a request the one that goes on to a service.
fn outgoing(
    route: &Route,
    peer: &Peer,
    head: &mut Parts,
    body: weft_mesh::Body,
    upgrade: Option<&Upgrade>,
) -> (weft_mesh::Body, Option<Outgoing>) {
    prepare(route, peer, head, upgrade);
    let Some(t) = &route.traffic else { return (body, None) };
    let service = route.service(head.extensions.get::<Chosen>().map_or(0, |c| c.0));
    let (body, outgoing) = t.outgoing(service, head, body);
    (body, Some(outgoing))
}

/// Makes a request's head the one that goes on to a service.
fn prepare(route: &Route, peer: &Peer, head: &mut Parts, upgrade: Option<&Upgrade>) {
    let host = match head.uri.authority() {
        Some(a) => {
            // What the route was found by is what the service is told (RFC 9112 3.2.2, RFC 9113 8.3.1).
            head.headers.remove(header::HOST);
            HeaderValue::from_str(a.as_str()).ok()
        }
        None => head.headers.get(header::HOST).cloned(),
    };
    headers::to_upstream(&mut head.headers, peer, head.version, host.as_ref(), route.forwarded);
    if let Some(u) = upgrade {
        u.ask(&mut head.headers);
    }
}

/// Passes on a request to go on with another protocol. If the service agrees, both sides are joined.
async fn upgraded(
    core: &Arc<Core>,
    route: &Route,
    peer: &Arc<Peer>,
    ctx: &Context,
    head: Parts,
    body: weft_mesh::Body,
    upgrade: Upgrade,
) -> Result<Response<Body>, Problem> {
    let reply = match attempts(core, route, peer, ctx, head, body, Some(&upgrade)).await? {
        Sent::Reply(reply, _) if reply.response.status() == StatusCode::SWITCHING_PROTOCOLS => reply,
        other => return other.answered(route),
    };
    let (mut parts, service) = reply.response.into_parts();
    headers::to_downstream(&mut parts.headers, parts.version);
    let status = upgrade.agree(&mut parts.headers);
    let tunnel = Tunnel {
        client: upgrade.client,
        service,
        idle: route.tunnel_idle(),
        drain: core.drain.clone(),
        peer: peer.clone(),
    };
    let mut response = Response::new(Body::tunnel(tunnel));
    *response.status_mut() = status;
    *response.headers_mut() = parts.headers;
    Ok(response)
}

fn failed(f: Failure<weft_mesh::Error>) -> Problem {
    let p = match f.cause {
        Cause::Attempt(e) => respond::upstream(&e),
        Cause::Timeout(t) => {
            Problem::new(code::UPSTREAM_TIMEOUT, format!("no answer within the attempt timeout of {t:?}"))
        }
        Cause::SlowCaller => {
            Problem::new(code::REQUEST_TIMEOUT, "the request's body did not arrive within the time for an attempt")
        }
        Cause::Deadline => Problem::new(code::DEADLINE_EXCEEDED, "no answer before the deadline of the request"),
        Cause::Refused(r) => respond::refused(&r),
    };
    if f.attempts > 0 { p.with("attempts", f.attempts) } else { p }
}

fn fixed(route: &Route, head: &Parts) -> Result<Response<Body>, Problem> {
    route.traffic.as_ref().expect("a route that answers by itself was compiled with its answer").fixed(head)
}

/// Where a request goes.
struct Located {
    /// The route's index.
    route: usize,
    /// Which of several services.
    share: u16,
    /// What to ask it for, where that is not what was asked for.
    uri: Option<Uri>,
    /// It asks whether a page may call the route, and does not call it.
    preflight: bool,
}

/// Finds the route, the service and what to ask it for.
fn locate(running: &Running, peer: &Peer, head: &Parts) -> Result<Located, Problem> {
    let host = headers::host(&head.uri, &head.headers).map_err(|e| Problem::new(code::BAD_REQUEST, e))?;
    let given = head.uri.path();
    let path = normal(given).ok_or_else(|| {
        Problem::new(
            code::INVALID_PATH,
            format!("the path '{given}' has empty or dot segments, or broken percent-encoding"),
        )
    })?;
    let query = head.uri.query();
    let source = running.table.sees_source().then(|| running.proxies.client(peer, &head.headers));
    let asked = Asked { host, path: &path, query, method: &head.method, headers: &head.headers, source };
    if running.cors
        && let Some(method) = preflight_asks(head)
        && let Found::Route(route) = running.table.find(&Asked { method: &method, ..asked })
        && running.routes[route].traffic.as_ref().is_some_and(|t| t.cors().is_some())
    {
        return Ok(Located { route, share: 0, uri: None, preflight: true });
    }
    let route = match running.table.find(&asked) {
        Found::Route(i) => i,
        Found::Nothing => {
            let detail = format!("no route matches {} {given} for host '{host}'", head.method);
            return Err(Problem::new(code::ROUTE_NOT_FOUND, detail));
        }
        Found::OtherMethods(allowed) => {
            let allow = allowed.iter().map(Method::as_str).collect::<Vec<_>>().join(", ");
            let p = Problem::new(
                code::METHOD_NOT_ALLOWED,
                format!("{} is not allowed at {given}, {allow} is", head.method),
            );
            return Err(match HeaderValue::from_str(&allow) {
                Ok(v) => p.with_header(header::ALLOW, v),
                Err(_) => p,
            });
        }
    };
    let share = running.routes[route].split.as_ref().map_or(0, |s| s.choose(&head.headers));
    let rewritten = running.table.rewrite(route, share.into(), &path);
    let to_send = match (&rewritten, &path) {
        (Some(r), _) => r.as_str(),
        (None, std::borrow::Cow::Owned(p)) => p.as_str(),
        (None, std::borrow::Cow::Borrowed(_)) => {
            return Ok(Located { route, share, uri: None, preflight: false });
        }
    };
    let uri = Some(sent_to(&head.uri, to_send, query)?);
    Ok(Located { route, share, uri, preflight: false })
}

/// A target with another path, and the query that was asked for.
pub(super) fn sent_to(uri: &Uri, to_send: &str, query: Option<&str>) -> Result<Uri, Problem> {
    let target = match query {
        None => PathAndQuery::from_maybe_shared(Bytes::copy_from_slice(to_send.as_bytes())),
        Some(q) => {
            let joint = if to_send.contains('?') { '&' } else { '?' };
            PathAndQuery::from_maybe_shared(Bytes::from(format!("{to_send}{joint}{q}")))
        }
    };
    let target =
        target.map_err(|e| Problem::new(code::INVALID_PATH, format!("the rewritten path '{to_send}': {e}")))?;
    let mut parts = http::uri::Parts::default();
    parts.authority = uri.authority().cloned();
    parts.scheme = uri.scheme().cloned().or_else(|| parts.authority.as_ref().map(|_| http::uri::Scheme::HTTP));
    parts.path_and_query = Some(target);
    Uri::from_parts(parts).map_err(|e| Problem::new(code::INVALID_PATH, e.to_string()))
}

/// The span of this exchange: under the caller's when the caller is trusted, else the first of a trace.
fn trace(peer: &Peer, h: &HeaderMap) -> Trace {
    let said = if peer.trusted { h.get(headers::TRACEPARENT) } else { None };
    match said.and_then(|v| v.to_str().ok()).and_then(Trace::parse) {
        Some(t) => t.child(),
        None => Trace::root(),
    }
}

fn idempotency_key(h: &HeaderMap) -> Result<Option<Arc<str>>, Problem> {
    let mut all = h.get_all(headers::IDEMPOTENCY_KEY).iter();
    let Some(first) = all.next() else { return Ok(None) };
    let text = first.to_str().ok().filter(|_| all.next().is_none());
    let text = text.ok_or_else(|| {
        Problem::new(code::IDEMPOTENCY_KEY_INVALID, "there must be one Idempotency-Key, in visible ASCII")
    })?;
    // The draft's form is a structured-field string; bare values are what most clients send. Both mean the same key.
    let bare = text.trim();
    let bare = bare.strip_prefix('"').and_then(|t| t.strip_suffix('"')).unwrap_or(bare);
    Ok(Some(bare.into()))
}

fn baggage(peer: &Peer, h: &HeaderMap) -> Option<Arc<str>> {
    if !peer.trusted {
        return None;
    }
    let v = h.get(headers::BAGGAGE)?.to_str().ok()?;
    (v.len() <= limits::BAGGAGE_BYTES).then(|| v.into())
}
