//! A service as configuration or registration describes it.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use serde::{Deserialize, Serialize};
use weft_core::Name;
use weft_policy::Policy;

/// A service and how to call it.
#[derive(Clone, Debug, PartialEq)]
pub struct ServiceSpec {
    /// Its name.
    pub name: Name,
    /// What its instances speak unless they say otherwise.
    pub protocol: Protocol,
    /// Instances written in the file; registered ones join them.
    pub addresses: Vec<Address>,
    /// Choice among healthy instances.
    pub balance: Balance,
    /// What else decides the choice.
    pub picking: Picking,
    /// Active checks; `None` = instances count as healthy while registered.
    pub health: Option<HealthCheck>,
    /// TLS to the instances.
    pub tls: Option<UpstreamTls>,
    /// .proto files that describe its gRPC methods (resolved paths).
    pub protos: Vec<PathBuf>,
    /// The policy of calls to it that name none (saga steps, pushes), resolved.
    pub policy: Policy,
}

/// How to speak to an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// HTTP/1.1.
    Http,
    /// HTTP/2 with prior knowledge, any content.
    H2,
    /// gRPC over HTTP/2.
    Grpc,
}

impl Protocol {
    /// Whether it is carried by HTTP/2.
    pub fn is_h2(self) -> bool {
        self != Protocol::Http
    }
}

/// Where an instance listens: `127.0.0.1:7001`, `[::1]:7001`, `name.local:7001` (re-resolved by TTL, every address an
/// instance) or `unix:/run/order.sock`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Address {
    /// An IP address and port.
    Ip(std::net::SocketAddr),
    /// A DNS name and port.
    Dns(String, u16),
    /// A unix socket.
    Unix(PathBuf),
}

/// Why a string is not an [`Address`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("'{0}' is not an address: write host:port, [ipv6]:port or unix:/path")]
pub struct InvalidAddress(pub String);

impl FromStr for Address {
    type Err = InvalidAddress;
    fn from_str(s: &str) -> Result<Self, InvalidAddress> {
        let bad = || InvalidAddress(s.to_owned());
        if let Some(path) = s.strip_prefix("unix:") {
            return if path.starts_with('/') { Ok(Self::Unix(path.into())) } else { Err(bad()) };
        }
        if let Ok(ip) = s.parse() {
            return Ok(Self::Ip(ip));
        }
        let (host, port) = s.rsplit_once(':').ok_or_else(bad)?;
        let port = port.parse().map_err(|_| bad())?;
        let label = |l: &str| !l.is_empty() && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        let numeric = host.bytes().all(|b| b.is_ascii_digit() || b == b'.');
        if numeric || !host.trim_end_matches('.').split('.').all(label) {
            return Err(bad());
        }
        Ok(Self::Dns(host.to_ascii_lowercase(), port))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(a) => a.fmt(f),
            Self::Dns(h, p) => write!(f, "{h}:{p}"),
            Self::Unix(p) => write!(f, "unix:{}", p.display()),
        }
    }
}

impl TryFrom<String> for Address {
    type Error = InvalidAddress;
    fn try_from(s: String) -> Result<Self, InvalidAddress> {
        s.parse()
    }
}

impl From<Address> for String {
    fn from(a: Address) -> String {
        a.to_string()
    }
}

/// Choice among healthy instances. All of them heed weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Balance {
    /// In turn.
    RoundRobin,
    /// The less busy of two picked at random.
    #[default]
    LeastRequest,
    /// Of two picked at random, the one with less expected waiting: recent latency, quick to rise and slow to fall,
    /// times requests under way.
    PeakEwma,
    /// The same key to the same instance, by points on a ring (as ketama).
    RingHash,
    /// The same key to the same instance, by a table (Eisenbud et al., NSDI 2016): spreads more evenly than a ring and
    /// moves a few more keys when instances change.
    Maglev,
}

impl Balance {
    /// Whether it picks by [`Picking::hash`].
    pub fn hashes(self) -> bool {
        matches!(self, Self::RingHash | Self::Maglev)
    }
}

/// What decides the choice of an instance besides [`Balance`].
#[derive(Clone, Debug, PartialEq)]
pub struct Picking {
    /// What a request is known by, for the two that hash; the first that a request has.
    pub hash: Vec<HashBy>,
    /// How long a new or recovered instance takes to get its whole share.
    pub slow_start: Option<Duration>,
    /// With a smaller share of healthy instances than this, all are tried.
    pub panic: f64,
    /// Where this process runs: instances of the same zone are preferred.
    pub zone: Option<Arc<str>>,
    /// Takes out instances that answer badly.
    pub outlier: Option<Outlier>,
    /// What the file says of single addresses.
    pub described: BTreeMap<Address, Described>,
}

impl Default for Picking {
    fn default() -> Self {
        Self {
            hash: Vec::new(),
            slow_start: None,
            panic: 0.5,
            zone: None,
            outlier: Some(Outlier::default()),
            described: BTreeMap::new(),
        }
    }
}

/// What is said of an instance besides its address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Described {
    /// Its share of requests, relative to the others.
    pub weight: u32,
    /// Where it runs.
    pub zone: Option<Arc<str>>,
}

impl Default for Described {
    fn default() -> Self {
        Self { weight: 1, zone: None }
    }
}

/// What a request is known by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HashBy {
    /// The first value of a header field.
    Header(HeaderName),
    /// A cookie.
    Cookie(String),
    /// A query parameter, as written.
    Query(String),
    /// The path.
    Path,
    /// The caller's address.
    Address,
}

/// Takes an instance out for a while because of its own answers (Envoy's outlier detection, with its defaults).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outlier {
    /// Failures in a row (5xx, no answer, a gRPC status that means the same); 0 = not counted.
    pub errors: u32,
    /// Gateway errors in a row (502, 503, 504, UNAVAILABLE, no answer); 0 = not counted.
    pub gateway_errors: u32,
    /// An instance is out when its success rate is below the mean by more than this many standard deviations;
    /// 0 = not counted.
    pub stdev: f64,
    /// Instances with enough requests that it takes to compare success rates.
    pub min_hosts: u32,
    /// Requests in an interval that an instance needs to be compared.
    pub min_requests: u32,
    /// How often success rates are compared, and past ejections forgiven by one.
    pub interval: Duration,
    /// How long an instance is out, times how often it was.
    pub ejection: Duration,
    /// And at most this long.
    pub ejection_max: Duration,
    /// Share of the instances that may be out at once; one always may, if there is another.
    pub max_ejected: f64,
}

impl Default for Outlier {
    fn default() -> Self {
        Self {
            errors: 5,
            gateway_errors: 5,
            stdev: 1.9,
            min_hosts: 5,
            min_requests: 100,
            interval: Duration::from_secs(10),
            ejection: Duration::from_secs(30),
            ejection_max: Duration::from_secs(300),
            max_ejected: 0.1,
        }
    }
}

/// An active check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCheck {
    /// How.
    pub kind: HealthKind,
    /// How often.
    pub interval: Duration,
    /// How long one may take.
    pub timeout: Duration,
    /// Failures in a row until unhealthy.
    pub unhealthy_after: u32,
    /// Successes in a row until healthy.
    pub healthy_after: u32,
}

/// What a check does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HealthKind {
    /// GET this path; 2xx is healthy.
    Http(String),
    /// grpc.health.v1.Health/Check of this service name ("" = the server).
    Grpc(String),
    /// A connection.
    Tcp,
}

impl Default for HealthCheck {
    fn default() -> Self {
        Self {
            kind: HealthKind::Tcp,
            interval: Duration::from_secs(5),
            timeout: Duration::from_secs(1),
            unhealthy_after: 2,
            healthy_after: 1,
        }
    }
}

/// TLS towards instances.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UpstreamTls {
    /// Trusted roots (PEM); none = the system's are NOT used: name a file.
    pub ca: Option<PathBuf>,
    /// Name to verify and send as SNI; default the address's host.
    pub server_name: Option<String>,
    /// Client certificate and key (PEM).
    pub identity: Option<(PathBuf, PathBuf)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_read_and_print() {
        for s in ["127.0.0.1:7001", "[::1]:80", "order.local:7001", "unix:/run/o.sock"] {
            assert_eq!(s.parse::<Address>().unwrap().to_string(), s);
        }
        for s in ["", "7001", "127.0.0.1", "1.2.3.4.5:80", "a b:80", "host:99999", "unix:rel"] {
            assert!(s.parse::<Address>().is_err(), "{s}");
        }
    }
}
