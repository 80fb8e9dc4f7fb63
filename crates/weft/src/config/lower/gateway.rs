//! `gateway:`

use weft_core::Name;
use weft_edge::route::{Pattern, RouteError, Segment, Table};
use weft_edge::spec::{Fallback, GatewaySpec, ListenSpec, Reply, RouteMatch, RouteSpec, Share, Target};
use weft_policy::net::{Net, Nets};

use super::Lower;
use crate::config::expr;
use crate::config::keys::gateway::{self as keys, Match, Route, Targets};
use crate::config::layer::{self, Use};

use crate::config::report::{Mistake, nearest, suggest};
use crate::config::source::{At, Span};
use crate::config::value::Many;

const METHODS: [&str; 9] = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "CONNECT", "TRACE"];

/// Methods as people say them: `any method` when none is named.
fn said(methods: &[String]) -> String {
    if methods.is_empty() { "any method".to_owned() } else { methods.join(",") }
}

impl Lower<'_, '_, '_> {
    pub(super) fn gateway(&mut self) -> GatewaySpec {
        let Some(gateway) = self.root.gateway.as_ref().map(|g| &g.value) else {
            return GatewaySpec { auth: self.providers(), ..GatewaySpec::default() };
        };
        let mut spec = GatewaySpec { auth: self.providers(), ..GatewaySpec::default() };
        if let Some(listen) = &gateway.listen {
            spec.listen = listen.value.0.iter().map(|l| self.listener(&l.value, gateway.insecure.value)).collect();
        }
        self.outside(gateway, &mut spec);
        let mut seen: Vec<(Span, &Route)> = Vec::new();
        for (at, route) in gateway.routes.iter().flat_map(|r| &r.value.0) {
            let Some(route) = route else { continue };
            if let Some(made) = self.route(route, *at, &spec.routes, &seen) {
                spec.routes.push(made);
                seen.push((*at, route));
            }
        }
        self.table(&spec.routes, &seen);
        spec
    }

    /// The gateway's own table says what is wrong with paths, hosts and headers, and which routes are equal.
    fn table(&mut self, specs: &[RouteSpec], written: &[(Span, &Route)]) {
        for e in Table::compile(specs).err().unwrap_or_default() {
            let (at, route) = written[e.route()];
            let (member, given, reason) = match &e {
                RouteError::Equal { other, name, other_name, .. } => {
                    let message = format!("route '{name}' takes the same requests as '{other_name}'");
                    let help = "change the match, or give one of them a 'priority'";
                    let first = Some(written[*other].0);
                    self.say(Mistake::new(Some(at), message).help(help).also(first, "the other one"));
                    continue;
                }
                RouteError::Member { member, given, reason, .. } => (*member, given.as_str(), reason.as_str()),
            };
            let m = &route.matches.value;
            let (what, span) = match member {
                "path" => ("path", m.path.span),
                "host" => ("host", m.host.as_ref().and_then(|h| h.span)),
                "to.path" => ("path", route_path(route, given)),
                // A method has been reported with a suggestion.
                "method" => continue,
                "when" => {
                    if let Some(At { value: cel, span: Some(span) }) = &m.when {
                        expr::complain(reason, &cel.text, *span, cel.verbatim, self.cx);
                    }
                    continue;
                }
                "content_type" => {
                    let types = m.content_type.iter().flat_map(|c| &c.value.0);
                    ("content type", types.clone().find(|t| t.value == given).and_then(|t| t.span))
                }
                "rewrite" | "request header" | "response header" | "host rewrite" | "cors" | "fault" | "redirect"
                | "respond" => (member, super::traffic::place(route, member, given)),
                member => {
                    let (what, of) =
                        if member == "query" { ("query parameter", &m.query) } else { ("header", &m.headers) };
                    let mut names = of.iter().flat_map(|h| &h.value.0);
                    (what, names.find(|(n, _)| n.value.eq_ignore_ascii_case(given)).and_then(|(n, _)| n.span))
                }
            };
            let (reason, instead) = match reason {
                // The host's reason is all advice.
                advice if advice.starts_with("must be a name") => ("is not a host", advice),
                other => other.split_once(": ").unwrap_or((other, "")),
            };
            let help = match what {
                "path" if !given.starts_with(['/', '~']) => format!("write '/{given}'"),
                "path" if reason.ends_with("does not capture") => captured(&m.path.value, given),
                "header" if instead.is_empty() => "use letters, digits and '-'".to_owned(),
                _ if reason.ends_with("twice") => "rename one of the two".to_owned(),
                _ if member != "path" && member != "to.path" => instead.trim_start_matches("error: ").to_owned(),
                _ if instead.is_empty() => "write {name} for a segment, /** for the rest".to_owned(),
                _ => instead.trim_start_matches("error: ").to_owned(),
            };
            self.say(Mistake::new(span.or(Some(at)), format!("{what} '{given}' {reason}")).help(help));
        }
    }

    fn listener(&mut self, l: &keys::Listen, insecure: bool) -> ListenSpec {
        self.open(l.address.value, insecure, l.tls.is_some(), l.address.span, "gateway");
        let tls = l.tls.as_ref().and_then(|t| self.listen_tls(&t.value.0));
        let nets = |many: &Option<At<Many<Net>>>| many.iter().flat_map(|m| &m.value.0).map(|n| n.value).collect();
        let nets = Nets { allow: nets(&l.allow), deny: nets(&l.deny) };
        ListenSpec { address: l.address.value, tls, nets }
    }

    fn route(&mut self, r: &Route, at: Span, made: &[RouteSpec], seen: &[(Span, &Route)]) -> Option<RouteSpec> {
        let matches = self.matches(&r.matches.value);
        let name = self.route_name(r, &matches, made, seen);
        let (to, on) = self.target(r)?;
        let service = match &to {
            Target::Service { service, .. } => Some(service.clone()),
            _ => None,
        };
        let mut layers = self.base(service.as_ref());
        layers.extend(layer::written(r.policy.as_ref(), self.policies, on, self.cx));
        let traffic = self.traffic(r, &to);
        self.check_inline(r.policy.as_ref());
        let (mut policy, values) = layer::resolve(&layers, on, self.cx.sources);
        if on != Use::Route
            && let Some(bulkhead) = &mut policy.bulkhead
            && let Some(adaptive) = bulkhead.adaptive.take()
        {
            // One that all routes have stays wide open where there are no attempts to go by.
            bulkhead.limit = adaptive.max;
            let strongest = layers.iter().rev().find_map(|(from, p)| p.bulkhead.as_ref().map(|b| (from.as_str(), b)));
            if let Some((from, block)) = strongest.filter(|(from, _)| *from != "policies.default") {
                let message = format!("{from}: an adaptive bulkhead goes by attempts, and {} makes none", on.spoken());
                self.say(Mistake::new(block.span, message).help("write a number for its limit"));
            }
        }
        let protocols = self.protocols(r);
        let known = protocols.client_certificate || policy.auth.as_ref().is_some_and(|a| !a.anonymous());
        if let Some(i) = policy.idempotency.filter(|i| !i.public && !known) {
            let block = layers.iter().rev().find_map(|(_, p)| p.idempotency.as_ref());
            let required = if i.required { "required: true, " } else { "" };
            self.say(
                Mistake::new(
                    block.and_then(|b| b.span),
                    format!("callers of route '{name}' are anonymous: whose keys are they?"),
                )
                .help(format!("write 'idempotency: {{ {required}scope: public }}' to let all callers share one scope, or ask who calls with 'auth'")),
            );
        }
        let summary = format!("{} {} -> {}", said(&matches.methods), matches.path, target_text(&to));
        let fallback = self.fallback(r, &to);
        let at = r.name.as_ref().and_then(|n| n.span).unwrap_or(at);
        self.explain("route", name.to_string(), at, summary, values);
        let versions = self.versions(r, &matches, &to);
        Some(RouteSpec {
            name,
            matches,
            priority: r.priority.value,
            to,
            policy,
            protocols,
            fallback,
            versions,
            traffic,
        })
    }

    fn fallback(&mut self, r: &Route, to: &Target) -> Option<Fallback> {
        let f = r.fallback.as_ref()?;
        if !matches!(to, Target::Service { .. }) {
            let message = "'fallback' has no meaning on a route that is not to a service";
            self.say(Mistake::new(f.span, message).help("leave it out"));
            return None;
        }
        match (&f.value.respond, &f.value.service) {
            (Some(r), None) => {
                let (r, span) = (&r.value, r.span);
                let status = u16::try_from(r.status.value).ok().filter(|s| (200..600).contains(s));
                if status.is_none() {
                    let message = format!("{} is not the status of an answer", r.status.value);
                    self.say(Mistake::new(r.status.span.or(span), message).help("write one from 200 to 599"));
                }
                let mut headers = http::HeaderMap::new();
                for (name, value) in r.headers.iter().flat_map(|h| &h.value.0) {
                    match (name.value.parse::<http::HeaderName>(), http::HeaderValue::from_str(value)) {
                        (Ok(name), Ok(value)) => drop(headers.append(name, value)),
                        _ => {
                            let message = format!("'{}: {value}' is not a header field", name.value);
                            let help = "names have letters, digits and '-', values visible characters";
                            self.say(Mistake::new(name.span, message).help(help));
                        }
                    }
                }
                let status = status.and_then(|s| http::StatusCode::from_u16(s).ok())?;
                let body = r.body.as_ref().map(|b| b.value.clone()).unwrap_or_default();
                Some(Fallback::Respond { status, headers, body })
            }
            (None, Some(name)) => {
                self.service(name);
                Some(Fallback::Service(name.value.clone()))
            }
            _ => {
                if !f.value.broken {
                    let message = "a fallback is one of respond and service";
                    self.say(
                        Mistake::new(f.span, message)
                            .help("write 'respond: { status: 200, body: ... }' or 'service: NAME'"),
                    );
                }
                None
            }
        }
    }

    fn route_name(&mut self, r: &Route, matches: &RouteMatch, made: &[RouteSpec], seen: &[(Span, &Route)]) -> Name {
        let taken = |name: &str| made.iter().position(|b| b.name.as_str() == name).map(|i| seen[i].0);
        if let Some(name) = &r.name {
            if let Some(first) = taken(&name.value) {
                self.say(
                    Mistake::new(name.span, format!("two routes are named '{}'", name.value))
                        .help("rename one of them")
                        .also(Some(first), "first here"),
                );
            }
            return name.value.clone();
        }
        let text = format!("{}{}", matches.methods.join("-").to_lowercase(), matches.path);
        let words: Vec<&str> = text.split(|c: char| !c.is_ascii_alphanumeric()).filter(|w| !w.is_empty()).collect();
        let mut base = words.join("-");
        base.truncate(weft_core::limits::NAME_BYTES - 8);
        if base.is_empty() {
            base = "any".to_owned();
        }
        let mut name = base.clone();
        let mut n = 1;
        while taken(&name).is_some() {
            n += 1;
            name = format!("{base}-{n}");
        }
        Name::new(&name).expect("words of letters and digits, joined and cut, are a name")
    }

    fn matches(&mut self, m: &Match) -> RouteMatch {
        let mut methods = Vec::new();
        for method in m.method.iter().flat_map(|m| &m.value.0) {
            let upper = method.value.to_ascii_uppercase();
            let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
            if !METHODS.contains(&method.value.as_str())
                && (METHODS.contains(&upper.as_str())
                    || nearest(&upper, METHODS).is_some()
                    || !method.value.bytes().all(token))
            {
                let help = suggest(&method.value, "method", METHODS);
                self.say(Mistake::new(method.span, format!("'{}' is not an HTTP method", method.value)).help(help));
            }
            methods.push(method.value.clone());
        }
        let headers = m.headers.iter().flat_map(|h| &h.value.0);
        let headers = headers.map(|(n, v)| (n.value.to_ascii_lowercase(), v.clone())).collect();
        let query = m.query.iter().flat_map(|q| &q.value.0).map(|(n, v)| (n.value.clone(), v.clone())).collect();
        let host = m.host.as_ref().map(|h| h.value.to_ascii_lowercase());
        let path = match &m.grpc {
            None => m.path.value.clone(),
            Some(g) => self.grpc_path(&g.value, m.path.span),
        };
        let content_types = m.content_type.iter().flat_map(|c| &c.value.0).map(|c| c.value.clone()).collect();
        let when = m.when.as_ref().map(|w| w.value.text.clone());
        RouteMatch { host, path, methods, headers, query, content_types, grpc: m.grpc.is_some(), when }
    }

    /// gRPC over HTTP/2, Requests: the path is `/package.Service/Method`.
    fn grpc_path(&mut self, g: &keys::GrpcMatch, path: Option<Span>) -> String {
        if path.is_some() {
            let help = "leave 'path' out: service and method say it";
            self.say(Mistake::new(path, "a match on gRPC has a path already").help(help));
        }
        let word = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if !g.service.value.split('.').all(word) {
            let message = format!("'{}' is not a gRPC service", g.service.value);
            self.say(Mistake::new(g.service.span, message).help("write it with its package, as shop.v1.Orders"));
            return "/**".to_owned();
        }
        match &g.method {
            Some(m) if !word(&m.value) => {
                let message = format!("'{}' is not a gRPC method", m.value);
                self.say(Mistake::new(m.span, message).help("write its name alone, as in the .proto file"));
                "/**".to_owned()
            }
            Some(m) => format!("/{}/{}", g.service.value, m.value),
            None => format!("/{}/**", g.service.value),
        }
    }

    fn target(&mut self, r: &Route) -> Option<(Target, Use)> {
        match &r.to.value {
            Targets::One(to) => self.one_target(r, to),
            Targets::Split(shares) => self.split(r, shares),
        }
    }

    fn one_target(&mut self, r: &Route, to: &keys::To) -> Option<(Target, Use)> {
        if let Some(answer) = self.answer_of(r, to) {
            return Some((answer, Use::AnswerRoute));
        }
        if let Some(weight) = &to.weight {
            let help = "write 'to' as a list of services with weights, or leave it out";
            self.say(Mistake::new(weight.span, "a single target has no weight").help(help));
        }
        let given: Vec<_> = [("service", &to.service), ("saga", &to.saga), ("queue", &to.queue), ("topic", &to.topic)]
            .into_iter()
            .filter_map(|(kind, name)| name.as_ref().map(|n| (kind, n)))
            .collect();
        let [(kind, name)] = given[..] else {
            if to.broken {
                return None;
            }
            let message = match given.len() {
                0 => "a route needs a target".to_owned(),
                _ => format!(
                    "a route has one target, found {}",
                    given.iter().map(|g| g.0).collect::<Vec<_>>().join(" and ")
                ),
            };
            self.say(
                Mistake::new(Some(to.at), message)
                    .help("write one of service, saga, queue, topic, redirect and respond"),
            );
            return None;
        };
        if kind != "saga"
            && let Some(reply) = &r.reply
        {
            let help = "leave it out: only a route to a saga chooses when to answer";
            self.say(Mistake::new(reply.span, format!("'reply' has no meaning on a route to a {kind}")).help(help));
        }
        if kind != "service"
            && let Some(path) = &to.path
        {
            let help = "leave it out: only a service is asked for a path";
            self.say(Mistake::new(path.span, format!("'path' has no meaning on a route to a {kind}")).help(help));
        }
        Some(match kind {
            "service" => {
                self.service(name);
                let path = to.path.as_ref().map(|p| p.value.clone());
                (Target::Service { service: name.value.clone(), path }, Use::Route)
            }
            "saga" => {
                let sagas = self.root.sagas.as_ref().map(|s| &s.value);
                if sagas.is_none_or(|s| s.get(&name.value).is_none()) {
                    self.unknown("saga", name, sagas.into_iter().flat_map(|s| s.names()));
                }
                let reply = match r.reply.as_ref().map(|r| r.value) {
                    Some(keys::Reply::Accepted) => Reply::Accepted,
                    Some(keys::Reply::Completed) | None => Reply::Completed,
                };
                (Target::Saga { saga: name.value.clone(), reply }, Use::SagaRoute)
            }
            "queue" => {
                self.queue(name);
                (Target::Queue(name.value.clone()), Use::PublishRoute)
            }
            _ => {
                self.topic(name);
                (Target::Topic(name.value.clone()), Use::PublishRoute)
            }
        })
    }
}

/// Where a target's path is written.
fn route_path(route: &Route, given: &str) -> Option<Span> {
    let of = |to: &keys::To| to.path.as_ref().filter(|p| p.value == given).and_then(|p| p.span);
    match &route.to.value {
        Targets::One(to) => of(to),
        Targets::Split(shares) => shares.iter().filter_map(|(_, s)| s.as_ref()).find_map(of),
    }
}

/// What a target path can use of what the match captures.
fn captured(pattern: &str, given: &str) -> String {
    let Ok(Pattern::Segments { segments, rest }) = Pattern::parse(pattern) else {
        return "a regular expression captures nothing for a path".to_owned();
    };
    let name = |s: &Segment| match s {
        Segment::Param(p) => Some(p.clone()),
        Segment::Literal(_) => None,
    };
    let mut known: Vec<String> = segments.iter().filter_map(name).collect();
    known.extend(rest.then(|| "**".to_owned()));
    let word = given.split(['{', '}']).skip(1).step_by(2).find(|w| !known.iter().any(|k| k == w));
    match word {
        _ if known.is_empty() => "the match's path captures nothing: capture with {name} or /**".to_owned(),
        Some(word) => suggest(word, "capture", known.iter().map(String::as_str)),
        None => "write {name} for what the match captures".to_owned(),
    }
}

fn target_text(to: &Target) -> String {
    match to {
        Target::Service { service, path: None } => format!("service {service}"),
        Target::Service { service, path: Some(p) } => format!("service {service}{p}"),
        Target::Saga { saga, .. } => format!("saga {saga}"),
        Target::Topic(t) => format!("topic {t}"),
        Target::Queue(q) => format!("queue {q}"),
        Target::Split(shares) => {
            let one = |s: &Share| format!("service {}{} ({})", s.service, s.path.as_deref().unwrap_or(""), s.weight);
            shares.iter().map(one).collect::<Vec<_>>().join(", ")
        }
        Target::Redirect(r) => format!("redirect {}", r.status),
        Target::Respond(r) => format!("answer {}", r.status.as_u16()),
    }
}
