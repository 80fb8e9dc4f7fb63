//! `gateway:`

use std::net::SocketAddr;
use std::path::PathBuf;

use serde_json::{Value as Json, json};
use weft_core::Name;

use super::policy::Policies;
use crate::config::declare::{Declared, section, words};
use crate::config::node::{Data, Node};
use crate::config::source::{At, Span};
use crate::config::value::{Cx, Many, Value, scalar};

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
        /// Serves TLS 1.2 and 1.3; ALPN offers h2 and http/1.1.
        "tls" tls: opt(ListenTls),
    }
}

section! {
    /// A certificate to serve.
    ListenTls {
        /// Certificate chain (PEM).
        "cert" cert: req(PathBuf),
        /// Its key (PEM).
        "key" key: req(PathBuf),
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
        /// Policy, above the service's.
        "policy" policy: opt(Policies),
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
