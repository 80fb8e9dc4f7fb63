//! What a route does with its traffic besides policy: rewriting, splitting, header fields, mirroring, CORS, compression,
//! limits, faults, shedding. Texts are checked when the routes are compiled.

use std::path::PathBuf;
use std::time::Duration;

use http::StatusCode;
use ipnet::IpNet;
use weft_core::Name;

/// Everything of one route; the default does nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Traffic {
    /// The `Host` that a service is asked for.
    pub host: Host,
    /// Rewrites the path by prefix or regular expression.
    pub rewrite: Option<Rewrite>,
    /// What decides the share of a split that a caller gets.
    pub sticky: Option<Sticky>,
    /// Changes to the request's fields, in order.
    pub request: Vec<FieldRule>,
    /// Changes to the answer's fields, in order.
    pub response: Vec<FieldRule>,
    /// Copies of requests to another service.
    pub mirror: Option<Mirror>,
    /// Cross-origin requests.
    pub cors: Option<Cors>,
    /// Compression of answers.
    pub compress: Option<Compress>,
    /// Bytes of a request's body.
    pub request_limit: Option<u64>,
    /// Bytes of an answer's body.
    pub response_limit: Option<u64>,
    /// Faults on purpose.
    pub fault: Option<Fault>,
    /// Collects the request's body, up to this many bytes, before it is sent on.
    pub buffer: Option<usize>,
    /// Refuses requests while a queue is too far behind.
    pub depends_on: Option<DependsOn>,
}

/// The `Host` that a service is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Host {
    /// As the client asked.
    #[default]
    Preserve,
    /// The instance's address.
    Service,
    /// This name.
    Name(String),
}

/// A change of the path; the query stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rewrite {
    /// Whole segments at the beginning, and what stands in their place.
    Prefix(String, String),
    /// All matches, and what stands in their place (`$1`, `${name}`).
    Regex(String, String),
}

/// What decides the share of a split that a caller gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sticky {
    /// The value of a header field.
    Header(String),
    /// The value of a cookie.
    Cookie(String),
}

/// One share of a split.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// The service.
    pub service: Name,
    /// As in [`super::Target::Service`].
    pub path: Option<String>,
    /// Its part of the sum of all weights.
    pub weight: u32,
}

/// A redirect (RFC 9110 15.4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirect {
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
    /// `http` or `https`; as asked without it.
    pub scheme: Option<String>,
    /// Host; as asked without it.
    pub host: Option<String>,
    /// Port; as asked without it, or the scheme's when the scheme changes.
    pub port: Option<u16>,
    /// Path with captures; as asked without it.
    pub path: Option<String>,
    /// Query with captures; as asked without it, none when empty.
    pub query: Option<String>,
}

/// A fixed answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Respond {
    /// Its status.
    pub status: StatusCode,
    /// Its body.
    pub body: String,
    /// Its header fields.
    pub headers: Vec<(String, String)>,
}

/// A change of a header field; values are texts with `{captures}` and variables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FieldRule {
    /// Replaces all values.
    Set(String, String),
    /// Adds a value.
    Add(String, String),
    /// Removes all values.
    Remove(String),
}

/// Copies of requests; their answers are read and thrown away.
#[derive(Clone, Debug, PartialEq)]
pub struct Mirror {
    /// Where to.
    pub service: Name,
    /// Share of the requests, 0 to 1.
    pub share: f64,
    /// Whether bodies are compared too, by hash.
    pub bodies: bool,
}

/// Cross-origin requests (Fetch, 3.2).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cors {
    /// `*`, `https://shop.example`, `https://*.shop.example`, `~regex`.
    pub origins: Vec<String>,
    /// Methods; those of the route's match when empty, and what is asked for when that names none.
    pub methods: Vec<String>,
    /// Request header fields; what is asked for when empty.
    pub headers: Vec<String>,
    /// Answer header fields that a page may read.
    pub expose: Vec<String>,
    /// Whether cookies and authorization are sent.
    pub credentials: bool,
    /// How long a browser remembers the answer to a preflight.
    pub max_age: Option<Duration>,
}

/// A content coding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    /// RFC 8878.
    Zstd,
    /// RFC 7932.
    Brotli,
    /// RFC 1952.
    Gzip,
}

/// Compression of answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compress {
    /// Of equally accepted ones the first is taken.
    pub codings: Vec<Coding>,
    /// Shorter answers are left as they are.
    pub min_size: u64,
    /// Media types; what text and structured data is when empty.
    pub types: Vec<String>,
}

/// Faults on purpose.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Fault {
    /// Time to wait, and for what share of the requests.
    pub delay: Option<(Duration, f64)>,
    /// Status to answer, and for what share of the requests.
    pub abort: Option<(StatusCode, f64)>,
    /// Only requests with this header field, and this value when one is given.
    pub header: Option<(String, Option<String>)>,
}

/// How far a queue may be behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lag {
    /// Messages ready for delivery.
    Messages(u64),
    /// Age of the oldest message.
    Age(Duration),
}

/// A queue that what stands behind the route must keep up with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DependsOn {
    /// The queue.
    pub queue: Name,
    /// Beyond this, requests are refused.
    pub max_lag: Lag,
}

/// One JSON object for each exchange.
#[derive(Clone, Debug, PartialEq)]
pub struct AccessLog {
    /// A file that is added to; `None` = standard output.
    pub file: Option<PathBuf>,
    /// Share of the exchanges, 0 to 1. Those answered with 5xx are always written.
    pub sample: f64,
}

/// Which peers are believed when they say who their client was.
pub type Networks = Vec<IpNet>;
