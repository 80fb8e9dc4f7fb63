//! `gateway:`

use std::collections::HashSet;

use weft_core::Name;
use weft_edge::spec::{GatewaySpec, ListenSpec, Reply, RouteMatch, RouteSpec, Target};

use super::Lower;
use crate::config::keys::gateway::{self as keys, Match, Route, To};
use crate::config::layer::{self, Use};
use crate::config::report::{Mistake, nearest, suggest};
use crate::config::source::{At, Span};

const METHODS: [&str; 9] = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "CONNECT", "TRACE"];

/// Methods as people say them: `any method` when none is named.
fn said(methods: &[String]) -> String {
    if methods.is_empty() { "any method".to_owned() } else { methods.join(",") }
}

impl Lower<'_, '_, '_> {
    pub(super) fn gateway(&mut self) -> GatewaySpec {
        let Some(gateway) = self.root.gateway.as_ref().map(|g| &g.value) else { return GatewaySpec::default() };
        let mut spec = GatewaySpec { routes: Vec::new(), ..GatewaySpec::default() };
        if let Some(listen) = &gateway.listen {
            spec.listen = listen.value.0.iter().map(|l| self.listener(&l.value, gateway.insecure.value)).collect();
        }
        let mut seen: Vec<(Span, RouteSpec)> = Vec::new();
        for (at, route) in gateway.routes.iter().flat_map(|r| &r.value.0) {
            let Some(route) = route else { continue };
            if let Some(spec) = self.route(route, *at, &seen) {
                self.equal(&spec, *at, &seen);
                seen.push((*at, spec));
            }
        }
        spec.routes = seen.into_iter().map(|(_, r)| r).collect();
        spec
    }

    fn listener(&mut self, l: &keys::Listen, insecure: bool) -> ListenSpec {
        self.open(l.address.value, insecure, l.tls.is_some(), l.address.span, "gateway");
        let tls = l.tls.as_ref().map(|t| {
            for file in [&t.value.cert, &t.value.key] {
                self.must_exist(&file.value, file.span);
            }
            (t.value.cert.value.clone(), t.value.key.value.clone())
        });
        ListenSpec { address: l.address.value, tls }
    }

    fn route(&mut self, r: &Route, at: Span, before: &[(Span, RouteSpec)]) -> Option<RouteSpec> {
        let matches = self.matches(&r.matches.value);
        let name = self.route_name(r, &matches, before);
        let (to, on) = self.target(r, &matches)?;
        let service = match &to {
            Target::Service { service, .. } => Some(service.clone()),
            _ => None,
        };
        let mut layers = self.base(service.as_ref());
        layers.extend(layer::written(r.policy.as_ref(), self.policies, on, self.cx));
        self.check_inline(r.policy.as_ref());
        let (policy, values) = layer::resolve(&layers, on, self.cx.sources);
        if let Some(i) = policy.idempotency.filter(|i| !i.public) {
            let block = layers.iter().rev().find_map(|(_, p)| p.idempotency.as_ref());
            let required = if i.required { "required: true, " } else { "" };
            self.say(
                Mistake::new(
                    block.and_then(|b| b.span),
                    format!("callers of route '{name}' are anonymous: whose keys are they?"),
                )
                .help(format!("write 'idempotency: {{ {required}scope: public }}' to let all callers share one scope")),
            );
        }
        let summary = format!("{} {} -> {}", said(&matches.methods), matches.path, target_text(&to));
        let at = r.name.as_ref().and_then(|n| n.span).unwrap_or(at);
        self.explain("route", name.to_string(), at, summary, values);
        Some(RouteSpec { name, matches, priority: r.priority.value, to, policy })
    }

    fn route_name(&mut self, r: &Route, matches: &RouteMatch, before: &[(Span, RouteSpec)]) -> Name {
        let taken = |name: &str| before.iter().find(|(_, b)| b.name.as_str() == name).map(|(at, _)| *at);
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
        if let Some(host) = &m.host {
            let name = host.value.strip_prefix("*.").unwrap_or(&host.value);
            let label =
                |l: &str| !l.is_empty() && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
            if !name.split('.').all(label) {
                let help = "write it like api.example.com or *.example.com, without scheme, port or path";
                self.say(Mistake::new(host.span, format!("'{}' is not a host", host.value)).help(help));
            }
        }
        self.pattern(&m.path);
        let mut headers = Vec::new();
        for (name, value) in m.headers.iter().flat_map(|h| &h.value.0) {
            if http::HeaderName::from_bytes(name.value.as_bytes()).is_err() {
                let mistake = Mistake::new(name.span, format!("'{}' is not the name of a header", name.value));
                self.say(mistake.help("use letters, digits and '-'"));
            }
            headers.push((name.value.to_ascii_lowercase(), value.clone()));
        }
        let query = m.query.iter().flat_map(|q| &q.value.0).map(|(n, v)| (n.value.clone(), v.clone())).collect();
        let host = m.host.as_ref().map(|h| h.value.to_ascii_lowercase());
        RouteMatch { host, path: m.path.value.clone(), methods, headers, query }
    }

    /// Checks a path pattern.
    fn pattern(&mut self, path: &At<String>) {
        let mistake = match captures(&path.value) {
            Ok(_) => return,
            Err((message, help)) => Mistake::new(path.span, message).help(help),
        };
        self.say(mistake);
    }

    fn target(&mut self, r: &Route, matches: &RouteMatch) -> Option<(Target, Use)> {
        let to = &r.to.value;
        let given: Vec<_> = [("service", &to.service), ("saga", &to.saga), ("queue", &to.queue), ("topic", &to.topic)]
            .into_iter()
            .filter_map(|(kind, name)| name.as_ref().map(|n| (kind, n)))
            .collect();
        let [(kind, name)] = given[..] else {
            let message = match given.len() {
                0 => "a route needs a target".to_owned(),
                _ => format!(
                    "a route has one target, found {}",
                    given.iter().map(|g| g.0).collect::<Vec<_>>().join(" and ")
                ),
            };
            self.say(Mistake::new(Some(to.at), message).help("write one of service, saga, queue and topic"));
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
                self.rewrite(to, matches);
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

    /// Checks that what a target path fills in is captured by the match.
    fn rewrite(&mut self, to: &To, matches: &RouteMatch) {
        let Some(path) = &to.path else { return };
        if !path.value.starts_with('/') {
            let help = format!("write '/{}'", path.value);
            self.say(Mistake::new(path.span, "a path starts with '/'").help(help));
        }
        let Ok(known) = captures(&matches.path) else { return };
        let mut rest = path.value.as_str();
        while let Some(open) = rest.find('{') {
            let Some(len) = rest[open..].find('}') else {
                self.say(Mistake::new(path.span, "'{' without '}'").help("write {name} or {**}"));
                return;
            };
            let name = &rest[open + 1..open + len];
            if !known.iter().any(|k| k == name) {
                let help = match (name, known.is_empty()) {
                    ("**", _) => "end the match's path with '/**'".to_owned(),
                    (_, true) => "the match's path captures nothing".to_owned(),
                    _ => suggest(name, "capture", known.iter().map(String::as_str)),
                };
                self.say(Mistake::new(path.span, format!("the match captures no '{{{name}}}'")).help(help));
            }
            rest = &rest[open + len + 1..];
        }
    }

    /// Two routes that take the same requests and are equally specific: which one is meant?
    fn equal(&mut self, spec: &RouteSpec, at: Span, before: &[(Span, RouteSpec)]) {
        let key = |r: &RouteSpec| {
            let m = &r.matches;
            let set = |v: &[String]| v.iter().cloned().collect::<std::collections::BTreeSet<_>>();
            let pairs = |v: &[(String, Option<String>)]| v.iter().cloned().collect::<std::collections::BTreeSet<_>>();
            (m.host.clone(), shape(&m.path), set(&m.methods), pairs(&m.headers), pairs(&m.query), r.priority)
        };
        let own = key(spec);
        if let Some((first, other)) = before.iter().find(|(_, b)| key(b) == own) {
            let message = format!("route '{}' takes the same requests as '{}'", spec.name, other.name);
            self.say(
                Mistake::new(Some(at), message)
                    .help("change the match, or give one of them a 'priority'")
                    .also(Some(*first), "the other one"),
            );
        }
    }
}

/// A pattern with its captures' names removed.
fn shape(path: &str) -> String {
    if path.starts_with('~') {
        return path.to_owned();
    }
    let segment = |s: &str| if s.starts_with('{') { "{}".to_owned() } else { s.to_owned() };
    path.split('/').map(segment).collect::<Vec<_>>().join("/")
}

/// The names a pattern captures (`**` for the rest), or what is wrong with it and what to write.
fn captures(path: &str) -> Result<Vec<String>, (String, String)> {
    let err = |wrong: String, instead: &str| Err((wrong, instead.to_owned()));
    if let Some(regex) = path.strip_prefix('~') {
        return match regex::Regex::new(regex) {
            Ok(r) => Ok(r.capture_names().flatten().map(str::to_owned).collect()),
            Err(e) => {
                let text = e.to_string();
                let why = text.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
                err(format!("'{regex}' is not a regular expression"), &why)
            }
        };
    }
    let Some(rest) = path.strip_prefix('/') else {
        return err(format!("path '{path}' starts with neither '/' nor '~'"), &format!("write '/{path}'"));
    };
    let mut names = Vec::new();
    let mut seen = HashSet::new();
    let segments: Vec<&str> = rest.split('/').collect();
    for (i, s) in segments.iter().enumerate() {
        if *s == "**" {
            if i + 1 < segments.len() {
                return err(
                    "'/**' stands for the rest, so nothing can follow it".to_owned(),
                    "end the path with '/**'",
                );
            }
            names.push("**".to_owned());
        } else if let Some(name) = s.strip_prefix('{').and_then(|s| s.strip_suffix('}')) {
            let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
            if name.is_empty() || !name.bytes().all(word) {
                return err(format!("'{s}' is not a capture"), "write {name}, with letters, digits, '_' and '-'");
            }
            if !seen.insert(name) {
                return err(format!("'{s}' is captured twice"), "rename one of the two");
            }
            names.push(name.to_owned());
        } else if s.contains(['{', '}', '*']) {
            return err(
                format!("'{s}' mixes a literal with a pattern"),
                "a capture '{name}' takes a whole segment, '/**' the rest; '~regex' takes anything",
            );
        } else if s.contains(['?', '#', ' ']) {
            return err(format!("'{s}' cannot stand in a path"), "put query parameters under 'query'");
        }
    }
    Ok(names)
}

fn target_text(to: &Target) -> String {
    match to {
        Target::Service { service, path: None } => format!("service {service}"),
        Target::Service { service, path: Some(p) } => format!("service {service}{p}"),
        Target::Saga { saga, .. } => format!("saga {saga}"),
        Target::Topic(t) => format!("topic {t}"),
        Target::Queue(q) => format!("queue {q}"),
    }
}
