//! `services:`

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use weft_mesh::spec::Address;

use super::policy::Policies;
use crate::config::declare::{Declared, section, words};
use crate::config::node::Node;
use crate::config::report::Mistake;
use crate::config::value::{Backoff, Cx, Decimal, Many, Percent, Switch, Value, pattern, scalar, shorten};

words! {
    /// What instances speak.
    Protocol { "http" Http, "h2" H2, "grpc" Grpc }
}

words! {
    /// Choice among healthy instances.
    Algorithm {
        "least_request" LeastRequest, "round_robin" RoundRobin, "peak_ewma" PeakEwma, "ring_hash" RingHash,
        "maglev" Maglev,
    }
}

section! {
    /// Choice among instances. A word alone is the algorithm.
    Balance short "by" {
        /// The less busy of two picked at random, each in turn, of two the one with less recent latency times requests under way, or the same key to the same instance, by a ring (ketama) or a table (Maglev).
        "by" by: def(Algorithm, "least_request"),
        /// What a request's key is, for `ring_hash` and `maglev`: `header NAME`, `cookie NAME`, `query NAME`, `path` or `address`; of a list the first that a request has. A request that has none goes to each in turn.
        "hash" hash: opt(Many<HashBy>),
        /// How long a new or recovered instance takes to get its whole share; it begins with a tenth.
        "slow_start" slow_start: opt(Duration),
        /// With a smaller share of healthy instances than this, all are tried.
        "panic" panic: def(Percent, "50%"),
    }
}

section! {
    /// An instance. An address alone weighs 1.
    Instance short "address" {
        /// `host:port`, `[ipv6]:port`, `name:port` (resolved again by TTL) or `unix:/path`.
        "address" address: req(Address),
        /// Its share of requests, relative to the others.
        "weight" weight: def(NonZeroU32, "1"),
        /// Where it runs; see `zone` at the top of the file.
        "zone" zone: opt(String),
    }
}

section! {
    /// Takes an instance out for a while because of its own answers.
    Outlier {
        /// Failures in a row: 5xx, no answer, or a gRPC status that means the same. 0 = not counted.
        "errors" errors: def(u32, "5"),
        /// Gateway errors in a row: 502, 503, 504, UNAVAILABLE, or no answer. 0 = not counted.
        "gateway_errors" gateway_errors: def(u32, "5"),
        /// An instance is out when its success rate is below the mean of all by more than so many standard deviations. 0 = not counted.
        "stdev" stdev: def(Decimal, "1.9"),
        /// Instances with enough requests that it takes to compare success rates.
        "min_hosts" min_hosts: def(NonZeroU32, "5"),
        /// Requests in an interval that an instance needs to be compared.
        "min_requests" min_requests: def(NonZeroU32, "100"),
        /// How often success rates are compared.
        "interval" interval: def(Duration, "10s"),
        /// How long an instance is out, times how often it was, and how long at most.
        "ejection" ejection: def(Backoff, "30s..5m"),
        /// Share of the instances that may be out at once. One always may, if there is another.
        "max_ejected" max_ejected: def(Percent, "10%"),
    }
}

section! {
    /// Something that can be called by name. Its instances are written here, or register themselves with
    /// `PUT /v1/services/{name}/instances/{id}`, or both.
    Service {
        /// What instances speak: HTTP/1.1, HTTP/2 with prior knowledge, or gRPC. `http:`, `h2:` or `grpc:` with addresses says it too.
        "protocol" protocol: opt(Protocol),
        /// Addresses of HTTP/1.1 instances: `host:port`, `[ipv6]:port`, `name:port` (resolved again by TTL) or `unix:/path`.
        "http" http: opt(Many<Instance>),
        /// Addresses of HTTP/2 instances.
        "h2" h2: opt(Many<Instance>),
        /// Addresses of gRPC instances.
        "grpc" grpc: opt(Many<Instance>),
        /// `.proto` files that describe its gRPC methods, for saga steps. Without them server reflection is asked.
        "proto" proto: opt(Many<PathBuf>),
        /// How an instance is chosen.
        "balance" balance: def(Balance, "least_request"),
        /// Takes out instances that answer badly, without checks.
        "outlier" outlier: opt(Switch<Outlier>),
        /// Active health checks. Without them instances count as healthy while they are registered.
        "health" health: opt(Switch<Health>),
        /// TLS towards the instances.
        "tls" tls: opt(ServiceTls),
        /// Policy of calls to it, below what routes, subscriptions and steps say.
        "policy" policy: opt(Policies),
    }
}

section! {
    /// An active health check: one of `http`, `grpc` and `tcp`.
    Health {
        /// GET this path; a 2xx answer is healthy.
        "http" http: opt(String),
        /// Ask `grpc.health.v1.Health/Check` about this service name (`\"\"` = the server as a whole).
        "grpc" grpc: opt(GrpcName),
        /// A connection is enough.
        "tcp" tcp: opt(bool),
        /// How often.
        "interval" interval: def(Duration, "5s"),
        /// How long one check may take.
        "timeout" timeout: def(Duration, "1s"),
        /// Failures in a row until an instance is unhealthy.
        "unhealthy_after" unhealthy_after: def(NonZeroU32, "2"),
        /// Successes in a row until it is healthy again.
        "healthy_after" healthy_after: def(NonZeroU32, "1"),
    }
}

/// What a request is known by.
#[derive(Clone, Debug)]
pub(in crate::config) struct HashBy(pub weft_mesh::spec::HashBy);

impl Value for HashBy {
    fn read(node: &Node, cx: &mut Cx<'_>) -> Option<Self> {
        use weft_mesh::spec::HashBy as By;
        let text = &scalar(node, cx, "what a request is known by")?.text;
        let (kind, name) = text.split_once(' ').map_or((text.as_str(), ""), |(k, n)| (k, n.trim()));
        let by = match (kind, name) {
            ("header", n) => n.parse().ok().map(By::Header),
            ("cookie", n) if !n.is_empty() && !n.contains(['=', ';', ' ']) => Some(By::Cookie(n.to_owned())),
            ("query", n) if !n.is_empty() && !n.contains(['=', '&', ' ']) => Some(By::Query(n.to_owned())),
            ("path", "") => Some(By::Path),
            ("address", "") => Some(By::Address),
            _ => None,
        };
        if by.is_none() {
            let message = format!("'{}' is not what a request is known by", shorten(text));
            let help = "write 'header NAME', 'cookie NAME', 'query NAME', 'path' or 'address'";
            cx.say(Mistake::new(Some(node.span), message).help(help));
        }
        by.map(Self)
    }
    fn schema(_: &mut Declared) -> serde_json::Value {
        pattern("(?:header|cookie|query) +[^ ]+|path|address")
    }
    fn kind() -> String {
        "`header NAME`, `cookie NAME`, `query NAME`, `path`, `address`".to_owned()
    }
}

/// A gRPC service name, which may be empty.
#[derive(Clone, Debug)]
pub(in crate::config) struct GrpcName(pub String);

impl crate::config::value::Value for GrpcName {
    fn read(node: &crate::config::node::Node, cx: &mut crate::config::value::Cx<'_>) -> Option<Self> {
        match &node.data {
            crate::config::node::Data::Scalar(s) => Some(Self(s.text.clone())),
            _ => {
                cx.expected(node, "a gRPC service name");
                None
            }
        }
    }
    fn schema(_: &mut crate::config::declare::Declared) -> serde_json::Value {
        serde_json::json!({"type": ["string", "null"]})
    }
    fn kind() -> String {
        "text".to_owned()
    }
}

section! {
    /// TLS towards a service's instances.
    ServiceTls {
        /// Trusted roots (PEM). The system's are not used.
        "ca" ca: opt(PathBuf),
        /// Name to verify and to send as SNI; without it the address's host.
        "server_name" server_name: opt(String),
        /// Client certificate chain (PEM); needs `key`.
        "cert" cert: opt(PathBuf),
        /// Client key (PEM).
        "key" key: opt(PathBuf),
    }
}
