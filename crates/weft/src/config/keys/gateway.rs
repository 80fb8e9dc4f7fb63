//! `gateway:`

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value as Json, json};
use weft_core::Name;
use weft_policy::net::Net;

use super::policy::Policies;
use crate::config::declare::{Declared, section, words};
use crate::config::expr::Template;
use crate::config::node::{Data, Node};
use crate::config::source::{At, Span};
use crate::config::value::{Cx, Date, Many, Named, Switch, Value, scalar};

section! {
    /// Where requests come in and where they go.
    Gateway {
        /// Addresses to listen on (HTTP/1.1 and HTTP/2 without TLS by prior knowledge, or TLS). Port 0 takes a free one.
        "listen" listen: opt(Many<Listen>),
        /// Allows listening on addresses other than loopback without TLS.
        "insecure" insecure: def(bool, "false"),
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
        /// Where it sends.
        "to" to: req(To),
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
    /// An answer that is written in the file.
    Respond {
        /// Its status.
        "status" status: def(u32, "200"),
        /// Its header fields.
        "headers" headers: opt(Conditions),
        /// Its body.
        "body" body: opt(String),
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
        /// Header names with the exact value, or nothing for 'present'.
        "headers" headers: opt(Conditions),
        /// Query parameters with the exact value, or nothing for 'present'.
        "query" query: opt(Conditions),
    }
}

section! {
    /// A target: exactly one of `service`, `saga`, `queue` and `topic`.
    To {
        /// A service; the request is passed on.
        "service" service: opt(Name),
        /// The path to ask the service for: `{name}` is a captured segment, `{**}` the rest. Without it, as it came.
        "path" path: opt(String),
        /// A saga; the JSON body is its input.
        "saga" saga: opt(Name),
        /// A queue; the body is published.
        "queue" queue: opt(Name),
        /// A topic; the body is published.
        "topic" topic: opt(Name),
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

/// Name and exact value, or presence.
#[derive(Clone, Debug)]
pub(in crate::config) struct Conditions(pub Vec<(At<String>, Option<String>)>);

impl Value for Conditions {
    fn read(node: &Node, cx: &mut Cx<'_>) -> Option<Self> {
        let Data::Map(entries) = &node.data else {
            cx.expected(node, "a map from name to value");
            return None;
        };
        let mut out = Vec::new();
        for (key, value) in entries {
            let name = At::new(key.text.clone(), key.span);
            match &value.data {
                Data::Scalar(s) if s.plain && matches!(s.text.as_str(), "" | "~" | "null") => out.push((name, None)),
                _ => {
                    if let Some(s) = scalar(value, cx, "a value") {
                        out.push((name, Some(s.text.clone())));
                    }
                }
            }
        }
        Some(Conditions(out))
    }
    fn schema(_: &mut Declared) -> Json {
        json!({"type": "object", "additionalProperties": {"type": ["string", "number", "boolean", "null"]}})
    }
    fn kind() -> String {
        "map from name to value".to_owned()
    }
}
