//! `gateway:`

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value as Json, json};
use weft_core::Name;

use super::policy::Policies;
use crate::config::declare::{Declared, section, words};
use crate::config::node::{Data, Node};
use crate::config::source::{At, Span};
use crate::config::value::{Cx, Many, Switch, Value, scalar};

section! {
    /// Where requests come in and where they go.
    Gateway {
        /// Addresses to listen on (HTTP/1.1 and HTTP/2 without TLS by prior knowledge, or TLS). Port 0 takes a free one.
        "listen" listen: opt(Many<Listen>),
        /// Allows listening on addresses other than loopback without TLS.
        "insecure" insecure: def(bool, "false"),
        /// What goes where. The most specific match wins; of equal ones, the first.
        "routes" routes: opt(Routes),
    }
}

section! {
    /// A listener. An address alone listens without TLS.
    Listen short "address" {
        /// Where.
        "address" address: req(SocketAddr),
        /// Serves TLS 1.2 and 1.3; ALPN offers h2 and http/1.1. A list of certificates, or a map.
        "tls" tls: opt(Tls),
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
