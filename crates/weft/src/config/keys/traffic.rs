//! What a route does with its traffic besides policy.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use serde_json::{Value as Json, json};
use weft_core::{Name, units};

use crate::config::declare::{Declared, section, words};
use crate::config::node::{Data, Node};
use crate::config::source::At;
use crate::config::value::{Cx, Many, Percent, Value, scalar};

section! {
    /// A change of the path: by `prefix` or by `regex`. The query stays.
    Rewrite {
        /// Whole segments at the beginning of the path.
        "prefix" prefix: opt(String),
        /// A regular expression; all its matches are replaced.
        "regex" regex: opt(String),
        /// What stands in their place; after `regex`, `$1` and `${name}` are what it captured.
        "with" with: req(String),
    }
}

section! {
    /// What decides the share of a split that a caller gets: one of the two. A caller without it gets one by chance.
    Sticky {
        /// The value of this header field.
        "header" header: opt(String),
        /// The value of this cookie.
        "cookie" cookie: opt(String),
    }
}

section! {
    /// A redirect. What is not written stays as it was asked for.
    Redirect {
        /// 301, 302, 303, 307 or 308.
        "status" status: def(u32, "307"),
        /// `http` or `https`.
        "scheme" scheme: opt(Scheme),
        /// The host.
        "host" host: opt(String),
        /// The port.
        "port" port: opt(u32),
        /// The path; `{name}` is a captured segment, `{**}` the rest.
        "path" path: opt(String),
        /// The query; empty for none.
        "query" query: opt(String),
    }
}

words! {
    /// Schemes of HTTP.
    Scheme { "http" Http, "https" Https }
}

section! {
    /// A fixed answer. A number alone is its status.
    Respond short "status" {
        /// Its status.
        "status" status: def(u32, "200"),
        /// Its body; empty without it.
        "body" body: opt(String),
        /// Its header fields; with a body, the content type is text unless they say another.
        "headers" headers: opt(Texts),
    }
}

section! {
    /// Changes to header fields.
    Headers {
        /// Of the request that the service gets.
        "request" request: opt(Fields),
        /// Of the answer that the client gets.
        "response" response: opt(Fields),
    }
}

section! {
    /// Changes to header fields: removed, then set, then added. Values may have `{name}` of what the path captured, and `{client.address}`, `{route.name}`, `{trace.id}`, `{request.host}`, `{request.method}`, `{request.path}`, `{request.query}`, `{request.scheme}`; `{{` is a brace.
    Fields {
        /// Takes fields away.
        "remove" remove: opt(Many<String>),
        /// Replaces all values of a field.
        "set" set: opt(Texts),
        /// Adds a value to a field.
        "add" add: opt(Texts),
    }
}

words! {
    /// What of two answers is compared.
    Compare { "status" Status, "body" Body }
}

section! {
    /// Copies of requests to another service, whose answers nobody waits for.
    Mirror {
        /// The service.
        "service" service: req(Name),
        /// Share of the requests.
        "percent" percent: def(Percent, "100%"),
        /// What must be the same in both answers: the status, or status and body.
        "compare" compare: def(Compare, "status"),
    }
}

section! {
    /// Cross-origin requests from web pages: preflights are answered by Weft. Origins alone allow what a page asks for.
    Cors short "origins" {
        /// `*`, `https://shop.example`, `https://*.shop.example`, `~regex`.
        "origins" origins: req(Many<String>),
        /// Methods; without it those of the match, or whatever is asked for.
        "methods" methods: opt(Many<String>),
        /// Request header fields; without it whatever is asked for.
        "headers" headers: opt(Many<String>),
        /// Answer header fields that a page may read beside the usual ones.
        "expose" expose: opt(Many<String>),
        /// Whether a page may send cookies and authorization.
        "credentials" credentials: def(bool, "false"),
        /// How long a browser remembers the answer to a preflight.
        "max_age" max_age: opt(Duration),
    }
}

words! {
    /// Content codings.
    Coding { "zstd" Zstd, "br" Brotli, "gzip" Gzip }
}

section! {
    /// Compression of answers by what the client accepts. Codings alone are the ones to use.
    Compress short "codings" {
        /// Of those a client likes the same, the first is used; without it zstd, br, gzip.
        "codings" codings: opt(Many<Coding>),
        /// Answers known to be shorter are left as they are.
        "min_size" min_size: def(Size, "1KiB"),
        /// Media types, as `text/css` or `text/*`; without it text, JSON, XML and the like.
        "types" types: opt(Many<String>),
    }
}

section! {
    /// Bytes of bodies.
    BodyLimits {
        /// Of a request; more is 413.
        "request" request: opt(Size),
        /// Of an answer; more is 502, or an answer that breaks off.
        "response" response: opt(Size),
    }
}

section! {
    /// Faults on purpose, to see how callers bear them.
    Fault {
        /// Waits before the request is sent on.
        "delay" delay: opt(FaultDelay),
        /// Answers with an error instead.
        "abort" abort: opt(FaultAbort),
        /// Only requests with this header field, and this value when one is given.
        "header" header: opt(Texts),
    }
}

section! {
    /// A wait. A duration alone is for every request.
    FaultDelay short "time" {
        /// How long.
        "time" time: req(Duration),
        /// Share of the requests.
        "percent" percent: def(Percent, "100%"),
    }
}

section! {
    /// An error. A number alone is for every request.
    FaultAbort short "status" {
        /// The status.
        "status" status: def(u32, "503"),
        /// Share of the requests.
        "percent" percent: def(Percent, "100%"),
    }
}

section! {
    /// A queue that what stands behind the route must keep up with.
    DependsOn {
        /// The queue.
        "queue" queue: req(Name),
        /// Beyond this many messages (`10k`), or beyond this age of the oldest (`30s`), requests are refused with 503.
        "max_lag" max_lag: req(MaxLag),
    }
}

section! {
    /// One JSON object a line for each exchange. A path alone is the file.
    AccessLog short "to" {
        /// `stdout`, or a file that is added to.
        "to" to: def(LogTarget, "stdout"),
        /// Share of the exchanges. Those answered with 5xx are always written.
        "sample" sample: def(Percent, "100%"),
    }
}

/// Where the access log goes.
#[derive(Clone, Debug)]
pub(in crate::config) struct LogTarget(pub Option<PathBuf>);

impl Value for LogTarget {
    fn read(node: &Node, cx: &mut Cx<'_>) -> Option<Self> {
        match scalar(node, cx, "stdout or a path")?.text.as_str() {
            "stdout" => Some(Self(None)),
            _ => PathBuf::read(node, cx).map(|p| Self(Some(p))),
        }
    }
    fn schema(_: &mut Declared) -> Json {
        json!({"type": "string"})
    }
    fn kind() -> String {
        format!("`stdout`, or a {}", PathBuf::kind())
    }
}

/// Bytes, as `64KiB`.
#[derive(Clone, Copy, Debug)]
pub(in crate::config) struct Size(pub u64);

impl Value for Size {
    fn read(node: &Node, cx: &mut Cx<'_>) -> Option<Self> {
        let text = &scalar(node, cx, "a size")?.text;
        match units::parse_size(text) {
            Ok(n) => Some(Self(n)),
            Err(_) => {
                let message = format!("'{}' is not a size", crate::config::value::shorten(text));
                cx.say(
                    crate::config::report::Mistake::new(Some(node.span), message).help("write it like 64KiB or 10MiB"),
                );
                None
            }
        }
    }
    fn schema(_: &mut Declared) -> Json {
        let text = crate::config::value::pattern("[0-9]+ *(?:B|kB|MB|GB|KiB|MiB|GiB|TiB)?");
        json!({"anyOf": [{"type": "integer", "minimum": 0}, text]})
    }
    fn kind() -> String {
        "size".to_owned()
    }
}

/// How far a queue may be behind.
#[derive(Clone, Copy, Debug)]
pub(in crate::config) enum MaxLag {
    /// Messages.
    Messages(u64),
    /// Age of the oldest.
    Age(Duration),
}

impl Value for MaxLag {
    fn read(node: &Node, cx: &mut Cx<'_>) -> Option<Self> {
        let text = scalar(node, cx, "a number of messages, or an age")?.text.trim();
        let (digits, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
        let thousands = match unit {
            "" => Some(1),
            "k" => Some(1_000),
            "M" => Some(1_000_000),
            _ => None,
        };
        let messages = thousands.and_then(|t| digits.parse::<u64>().ok()?.checked_mul(t));
        match (messages, units::parse_duration(text)) {
            (Some(n), _) => Some(Self::Messages(n)),
            (None, Ok(d)) => Some(Self::Age(d)),
            _ => {
                let message =
                    format!("'{}' is neither a number of messages nor an age", crate::config::value::shorten(text));
                cx.say(crate::config::report::Mistake::new(Some(node.span), message).help("write it like 10k or 30s"));
                None
            }
        }
    }
    fn schema(_: &mut Declared) -> Json {
        let text = crate::config::value::pattern(r"[0-9]+[kM]?|(?:[0-9]+(?:\.[0-9]+)?(?:us|ms|s|m|h|d))+");
        json!({"anyOf": [{"type": "integer", "minimum": 0}, text]})
    }
    fn kind() -> String {
        "number of messages (`10k`), or age (`30s`)".to_owned()
    }
}

/// `request`, or how much of it.
#[derive(Clone, Copy, Debug)]
pub(in crate::config) struct Buffer(pub Option<u64>);

section! {
    /// What is collected before it is sent on.
    Buffered {
        /// Up to this much of the request's body; more is 413.
        "request" request: req(Size),
    }
}

impl Value for Buffer {
    fn read(node: &Node, cx: &mut Cx<'_>) -> Option<Self> {
        match &node.data {
            Data::Scalar(s) if s.text == "request" => Some(Self(None)),
            Data::Scalar(_) => {
                cx.expected(node, "'request', or a map with it");
                None
            }
            _ => Buffered::read(node, cx).map(|b| Self(Some(b.request.value.0))),
        }
    }
    fn schema(declared: &mut Declared) -> Json {
        json!({"anyOf": [{"enum": ["request"]}, declared.section::<Buffered>()]})
    }
    fn kind() -> String {
        format!("`request`, or {}", Buffered::kind())
    }
}

/// Names and their values, in order.
#[derive(Clone, Debug)]
pub(in crate::config) struct Texts(pub Vec<(At<String>, String)>);

impl Value for Texts {
    fn read(node: &Node, cx: &mut Cx<'_>) -> Option<Self> {
        let Data::Map(entries) = &node.data else {
            cx.expected(node, "a map from name to value");
            return None;
        };
        let mut out = Vec::new();
        for (key, value) in entries {
            let text = match &value.data {
                Data::Scalar(s) if s.text.is_empty() => Some(String::new()),
                _ => scalar(value, cx, "a value").map(|s| s.text.clone()),
            };
            out.extend(text.map(|t| (At::new(key.text.clone(), key.span), t)));
        }
        Some(Self(out))
    }
    fn schema(_: &mut Declared) -> Json {
        json!({"type": "object", "additionalProperties": {"type": ["string", "number", "boolean", "null"]}})
    }
    fn kind() -> String {
        "map from name to value".to_owned()
    }
}

/// A network in CIDR notation, or one address.
#[derive(Clone, Copy, Debug)]
pub(in crate::config) struct Network(pub IpNet);

impl Value for Network {
    fn read(node: &Node, cx: &mut Cx<'_>) -> Option<Self> {
        let text = &scalar(node, cx, "a network")?.text;
        let net = text.parse().or_else(|_| text.parse::<std::net::IpAddr>().map(IpNet::from));
        if net.is_err() {
            let message = format!("'{}' is not a network", crate::config::value::shorten(text));
            cx.say(
                crate::config::report::Mistake::new(Some(node.span), message).help("write it like 10.0.0.0/8 or ::1"),
            );
        }
        net.ok().map(Self)
    }
    fn schema(_: &mut Declared) -> Json {
        json!({"type": "string"})
    }
    fn kind() -> String {
        "network".to_owned()
    }
}

/// The weight of a share.
pub(in crate::config) type Weight = NonZeroU32;
