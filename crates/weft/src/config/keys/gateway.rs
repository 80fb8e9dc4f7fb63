//! `gateway:`

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value as Json, json};
use weft_core::Name;
use weft_edge::spec::Test;
use weft_policy::net::Net;

use super::policy::Policies;
use super::traffic::{
    AccessLog, BodyLimits, Buffer, Compress, Cors, DependsOn, Fault, Headers, Mirror, Network, Redirect, Respond,
    Rewrite, Sticky, Weight,
};
use crate::config::declare::{Declared, section, words};
use crate::config::expr::{Cel, Template};
use crate::config::node::{Data, Node};
use crate::config::report::Mistake;
use crate::config::source::{At, Span};
use crate::config::value::{Cx, Date, Many, Named, Switch, Value, scalar};

section! {
    /// Where requests come in and where they go.
    Gateway {
        /// Addresses to listen on (HTTP/1.1 and HTTP/2 without TLS by prior knowledge, or TLS). Port 0 takes a free one.
        "listen" listen: opt(Many<Listen>),
        /// Allows listening on addresses other than loopback without TLS.
        "insecure" insecure: def(bool, "false"),
        /// Peers that are believed when they say who their client was (`X-Forwarded-For`, `Forwarded`), and about trace and deadline; without it loopback, except where `auth` decides who may come in: there only peers that are written here are believed.
        "trusted_proxies" trusted_proxies: opt(Many<Network>),
        /// Whether services get `Forwarded` (RFC 7239) beside the `X-Forwarded` fields.
        "forwarded" forwarded: def(bool, "false"),
        /// A line for each exchange; off without it.
        "access_log" access_log: opt(AccessLog),
        /// What goes where. The most specific match wins; of equal ones, the first.
        "routes" routes: opt(Routes),
        /// Sets of versions that routes share by name.
        "versions" versions: opt(Named<Versions>),
    }
}

section! {
    /// A listener. An address alone listens without TLS.
    Listen short "address" {
        /// Where.
        "address" address: req(SocketAddr),
        /// Serves TLS 1.2 and 1.3; ALPN offers h2 and http/1.1. A list of certificates, or a map.
        "tls" tls: opt(Tls),
        /// Source networks whose connections are taken; without it, all.
        "allow" allow: opt(Many<Net>),
        /// Source networks whose connections are closed at once, whatever `allow` says.
        "deny" deny: opt(Many<Net>),
    }
}

section! {
    /// TLS on a listener: one certificate as `cert` and `key`, or several as `certificates`. The files are read again
    /// when they change.
    ListenTls {
        /// Certificate chain (PEM); needs `key`.
        "cert" cert: opt(PathBuf),
        /// Its key (PEM).
        "key" key: opt(PathBuf),
        /// Several: a client gets the one whose names have the name it asks for (SNI), else the first.
        "certificates" certificates: opt(Many<Certificate>),
        /// Asks clients for a certificate: without one the handshake fails (`required`), or the client is anonymous (`optional`).
        "client" client: opt(Asked),
        /// Who vouches for clients' certificates (PEM); needs `client`.
        "client_ca" client_ca: opt(PathBuf),
    }
}

section! {
    /// A certificate to serve, for the names in it (exact ones and wildcards).
    Certificate {
        /// Certificate chain (PEM).
        "cert" cert: req(PathBuf),
        /// Its key (PEM).
        "key" key: req(PathBuf),
    }
}

words! {
    /// Whether something must be shown.
    Asked { "required" Required, "optional" Optional }
}

words! {
    /// That something must be shown.
    Required { "required" Yes }
}

/// [`ListenTls`], or a list of certificates alone.
#[derive(Clone, Debug)]
pub(in crate::config) struct Tls(pub ListenTls);

impl Value for Tls {
    fn read(node: &Node, cx: &mut Cx<'_>) -> Option<Self> {
        let Data::List(_) = &node.data else { return ListenTls::read(node, cx).map(Tls) };
        let before = cx.mistakes.len();
        let all = Many::read(node, cx)?;
        Some(Tls(ListenTls {
            cert: None,
            key: None,
            certificates: Some(At::new(all, node.owner)),
            client: None,
            client_ca: None,
            at: node.owner,
            broken: cx.mistakes.len() > before,
        }))
    }
    fn schema(declared: &mut Declared) -> Json {
        let map = declared.section::<ListenTls>();
        json!({"anyOf": [map, {"type": "array", "items": declared.section::<Certificate>()}]})
    }
    fn kind() -> String {
        format!("{}, or a list of {}", ListenTls::kind(), Certificate::kind())
    }
}

words! {
    /// When a saga route answers.
    Reply { "completed" Completed, "accepted" Accepted }
}

section! {
    /// A match on incoming requests, the policy on it, and a target.
    Route {
        /// Its name; without it one is made from method and path.
        "name" name: opt(Name),
        /// When it applies.
        "match" matches: req(Match),
        /// Breaks ties between equally specific routes; higher wins.
        "priority" priority: def(i32, "0"),
        /// Where it sends; a list is several services by weight.
        "to" to: req(Targets),
        /// Which callers of a split stay with the service they got.
        "sticky" sticky: opt(Sticky),
        /// Rewrites the path, in place of `path` at the target.
        "rewrite" rewrite: opt(Rewrite),
        /// The `Host` that the service is asked for: `preserve` (as the client asked), `service` (the instance's address), or a name.
        "host" host: opt(String),
        /// Changes to header fields.
        "headers" headers: opt(Headers),
        /// Copies of requests to another service.
        "mirror" mirror: opt(Mirror),
        /// Cross-origin requests from web pages.
        "cors" cors: opt(Cors),
        /// Compression of answers.
        "compress" compress: opt(Compress),
        /// Bytes of bodies.
        "limits" limits: opt(BodyLimits),
        /// `request`: its body is collected (up to 1 MiB) before it is sent on, so that it can be sent again.
        "buffer" buffer: opt(Buffer),
        /// Faults on purpose.
        "fault" fault: opt(Fault),
        /// Refuses requests while a queue is too far behind.
        "depends_on" depends_on: opt(DependsOn),
        /// For a saga: `completed` answers when it ended (202 at the deadline), `accepted` answers 202 at once.
        "reply" reply: opt(Reply),
        /// Takes only clients that showed a certificate, which its listener verified; others get 403.
        "client_certificate" client_certificate: opt(Required),
        /// What a connection may be upgraded to (`Upgrade` over HTTP/1.1, `:protocol` over HTTP/2). Without it `websocket`.
        "upgrade" upgrade: opt(Switch<Many<String>>),
        /// How long an answer's stream or an upgraded connection may be silent. Without it an upgraded connection 5 minutes, a stream as long as it likes.
        "idle" idle: opt(Switch<Duration>),
        /// Versions of its API: the name of one of `gateway.versions`, or written here.
        "versions" versions: opt(VersionsUse),
        /// Policy, above the service's.
        "policy" policy: opt(Policies),
        /// What is answered when the service failed or was not asked (breaker open, bulkhead full); only on a route to a service.
        "fallback" fallback: opt(Fallback),
    }
}

section! {
    /// An answer instead of a failure: exactly one of `respond` and `service`. It carries the header `weft-fallback`.
    Fallback {
        /// This answer.
        "respond" respond: opt(Respond),
        /// What another service answers to the same request, where asking twice is safe.
        "service" service: opt(Name),
    }
}

section! {
    /// Conditions, all of which must hold.
    Match {
        /// `api.example.com` or `*.example.com`; any without it.
        "host" host: opt(String),
        /// Literal, `{name}` for one segment, `/**` for the rest, `~regex` for anything.
        "path" path: def(String, "/**"),
        /// Methods; any without it.
        "method" method: opt(Many<String>),
        /// Header names with the exact value, nothing for 'present', or a condition.
        "headers" headers: opt(Conditions),
        /// Query parameters with the exact value, nothing for 'present', or a condition.
        "query" query: opt(Conditions),
        /// Media types of the body, without parameters: `application/json`, `image/*`.
        "content_type" content_type: opt(Many<String>),
        /// gRPC calls of a service, or of one method; in place of `path`.
        "grpc" grpc: opt(GrpcMatch),
        /// CEL over `request` (`method`, `path`, `host`, `headers`, `query`) and `source` (`address`). One that fails does not hold.
        "when" when: opt(Cel),
    }
}

section! {
    /// gRPC calls. A name alone is the service.
    GrpcMatch short "service" {
        /// The service with its package: `shop.v1.Orders`.
        "service" service: req(String),
        /// One of its methods; all without it.
        "method" method: opt(String),
    }
}

section! {
    /// What a value must be: exactly one of these.
    Condition {
        /// This.
        "exact" exact: opt(String),
        /// It begins with this.
        "prefix" prefix: opt(String),
        /// All of it matches this regular expression.
        "regex" regex: opt(String),
        /// `true`: it is there; `false`: it is not.
        "present" present: opt(bool),
    }
}

section! {
    /// A target: exactly one of `service`, `saga`, `queue`, `topic`, `redirect` and `respond`.
    To {
        /// A service; the request is passed on.
        "service" service: opt(Name),
        /// The path to ask the service for: `{name}` is a captured segment, `{**}` the rest. Without it, as it came.
        "path" path: opt(String),
        /// In a list: its part of the sum of all weights.
        "weight" weight: opt(Weight),
        /// A saga; the JSON body is its input.
        "saga" saga: opt(Name),
        /// A queue; the body is published.
        "queue" queue: opt(Name),
        /// A topic; the body is published.
        "topic" topic: opt(Name),
        /// Sends the client elsewhere.
        "redirect" redirect: opt(Redirect),
        /// Answers always the same.
        "respond" respond: opt(Respond),
    }
}

/// One target, or several services.
#[derive(Clone, Debug)]
pub(in crate::config) enum Targets {
    /// One.
    One(Box<To>),
    /// Several; where a share stands, and the share if it could be read.
    Split(Vec<(Span, Option<To>)>),
}

impl Targets {
    /// The services that are named.
    pub fn services(&self) -> Vec<&At<Name>> {
        match self {
            Self::One(to) => to.service.iter().collect(),
            Self::Split(shares) => shares.iter().filter_map(|(_, s)| s.as_ref()?.service.as_ref()).collect(),
        }
    }

    /// Whether something of it could not be read.
    pub fn broken(&self) -> bool {
        match self {
            Self::One(to) => to.broken,
            Self::Split(shares) => shares.iter().any(|(_, s)| s.as_ref().is_none_or(|s| s.broken)),
        }
    }
}

impl Value for Targets {
    fn read(node: &Node, cx: &mut Cx<'_>) -> Option<Self> {
        match &node.data {
            Data::List(items) => Some(Self::Split(items.iter().map(|n| (n.span, To::read(n, cx))).collect())),
            _ => To::read(node, cx).map(|t| Self::One(Box::new(t))),
        }
    }
    fn schema(declared: &mut Declared) -> Json {
        let one = declared.section::<To>();
        json!({"anyOf": [one, {"type": "array", "items": one}]})
    }
    fn kind() -> String {
        format!("{}, or a list of services", To::kind())
    }
}

section! {
    /// The versions of an API.
    Versions {
        /// Where a request says which version it means. The first that says one decides.
        "from" from: req(Many<VersionFrom>),
        /// What is meant when nothing is said. Without it such requests are refused.
        "default" default: opt(String),
        /// The versions, by name: `1` (also said `v1`), `2.1`, `2024-05-01`.
        "known" known: req(Named<Version>),
    }
}

words! {
    /// The capture `{version}` of the match's path.
    InPath { "path" Path }
}

section! {
    /// Where a request says its version: exactly one of these. `path` alone is the capture `{version}` of the match's path.
    VersionFrom short "path" {
        /// `path`: the capture `{version}` of the match's path, with or without a `v` before it.
        "path" path: opt(InPath),
        /// The name of a header.
        "header" header: opt(String),
        /// A media type without its version: of `application/vnd.shop`, `application/vnd.shop.v2+json` and `application/json;version=2` say 2.
        "accept" accept: opt(String),
        /// The name of a query parameter.
        "query" query: opt(String),
    }
}

section! {
    /// One version of an API.
    Version {
        /// Its service, and the path to ask it for. What is left out is the route's.
        "to" to: opt(VersionTo),
        /// Since or from when on it is deprecated: answers say `Deprecation`.
        "deprecated" deprecated: opt(Date),
        /// When it ends: until then answers say `Sunset`, from then on they are 410.
        "sunset" sunset: opt(Date),
        /// A page about its end.
        "link" link: opt(String),
        /// The version that replaces it, or where to go: `/other` or `https://...`.
        "successor" successor: opt(String),
        /// Makes its request bodies into the service's: JSON of expressions over `body`, `request`, `principal` and `address`.
        "request" request: opt(Template),
        /// Makes the service's answers into its own: JSON of expressions over the same, and `status`.
        "response" response: opt(Template),
    }
}

section! {
    /// Where a version is served.
    VersionTo {
        /// A service; without it the route's.
        "service" service: opt(Name),
        /// The path to ask it for; without it the route's.
        "path" path: opt(String),
    }
}

/// The name of shared versions, or versions.
#[derive(Clone, Debug)]
pub(in crate::config) enum VersionsUse {
    /// One of `gateway.versions`.
    Named(At<Name>),
    /// Written in place.
    Inline(Box<Versions>),
}

impl Value for VersionsUse {
    fn read(node: &Node, cx: &mut Cx<'_>) -> Option<Self> {
        match &node.data {
            Data::Scalar(s) if !s.text.is_empty() => At::read(node, cx).map(VersionsUse::Named),
            _ => Versions::read(node, cx).map(|v| VersionsUse::Inline(Box::new(v))),
        }
    }
    fn schema(declared: &mut Declared) -> Json {
        json!({"anyOf": [Name::schema(declared), declared.section::<Versions>()]})
    }
    fn kind() -> String {
        format!("name of versions, or {}", Versions::kind())
    }
}

/// Routes in file order, with the place of those that could not be read.
#[derive(Clone, Debug)]
pub(in crate::config) struct Routes(pub Vec<(Span, Option<Route>)>);

impl Value for Routes {
    fn read(node: &Node, cx: &mut Cx<'_>) -> Option<Self> {
        match &node.data {
            Data::List(items) => Some(Routes(items.iter().map(|n| (n.span, Route::read(n, cx))).collect())),
            Data::Scalar(s) if s.text.is_empty() => Some(Routes(Vec::new())),
            _ => {
                cx.expected(node, "a list of routes");
                None
            }
        }
    }
    fn schema(declared: &mut Declared) -> Json {
        json!({"type": "array", "items": declared.section::<Route>()})
    }
    fn kind() -> String {
        format!("list of {}", Route::kind())
    }
}

/// Names, and what the value of each must be.
#[derive(Clone, Debug)]
pub(in crate::config) struct Conditions(pub Vec<(At<String>, Test)>);

impl Value for Conditions {
    fn read(node: &Node, cx: &mut Cx<'_>) -> Option<Self> {
        let Data::Map(entries) = &node.data else {
            cx.expected(node, "a map from name to value");
            return None;
        };
        let mut out = Vec::new();
        for (key, value) in entries {
            let name = At::new(key.text.clone(), key.span);
            let test = match &value.data {
                Data::Scalar(s) if s.plain && matches!(s.text.as_str(), "" | "~" | "null") => Some(Test::Present),
                Data::Map(_) => Condition::read(value, cx).and_then(|c| c.test(cx)),
                _ => scalar(value, cx, "a value").map(|s| Test::Exact(s.text.clone())),
            };
            out.extend(test.map(|t| (name, t)));
        }
        Some(Conditions(out))
    }
    fn schema(declared: &mut Declared) -> Json {
        let condition = declared.section::<Condition>();
        let one = json!({"anyOf": [{"type": ["string", "number", "boolean", "null"]}, condition]});
        json!({"type": "object", "additionalProperties": one})
    }
    fn kind() -> String {
        format!("map from name to value, or to {}", Condition::kind())
    }
}

impl Condition {
    fn test(self, cx: &mut Cx<'_>) -> Option<Test> {
        let present = self.present.map(|p| if p.value { Test::Present } else { Test::Absent });
        let all = [
            self.exact.map(|t| Test::Exact(t.value)),
            self.prefix.map(|t| Test::Prefix(t.value)),
            self.regex.map(|t| Test::Regex(t.value)),
            present,
        ];
        let mut given = all.into_iter().flatten();
        match (given.next(), given.next()) {
            (Some(one), None) => Some(one),
            _ if self.broken => None,
            _ => {
                let message = "a condition is one of exact, prefix, regex and present";
                cx.say(Mistake::new(Some(self.at), message).help("keep one of them; two names make two conditions"));
                None
            }
        }
    }
}
