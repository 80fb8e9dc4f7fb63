//! `services:`

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use weft_mesh::spec::Address;

use super::policy::Policies;
use crate::config::declare::{section, words};
use crate::config::value::{Many, Switch};

words! {
    /// What instances speak.
    Protocol { "http" Http, "h2" H2, "grpc" Grpc }
}

words! {
    /// Choice among healthy instances.
    Balance { "least_request" LeastRequest, "round_robin" RoundRobin }
}

section! {
    /// Something that can be called by name. Its instances are written here, or register themselves with
    /// `PUT /v1/services/{name}/instances/{id}`, or both.
    Service {
        /// What instances speak: HTTP/1.1, HTTP/2 with prior knowledge, or gRPC. `http:`, `h2:` or `grpc:` with addresses says it too.
        "protocol" protocol: opt(Protocol),
        /// Addresses of HTTP/1.1 instances: `host:port`, `[ipv6]:port`, `name:port` (resolved again by TTL) or `unix:/path`.
        "http" http: opt(Many<Address>),
        /// Addresses of HTTP/2 instances.
        "h2" h2: opt(Many<Address>),
        /// Addresses of gRPC instances.
        "grpc" grpc: opt(Many<Address>),
        /// `.proto` files that describe its gRPC methods, for saga steps. Without them server reflection is asked.
        "proto" proto: opt(Many<PathBuf>),
        /// How an instance is chosen: the less busy of two picked at random, or each in turn.
        "balance" balance: def(Balance, "least_request"),
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
