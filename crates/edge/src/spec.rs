//! The gateway as configuration describes it.

mod traffic;

use std::net::SocketAddr;
use std::path::PathBuf;

pub use traffic::{
    AccessLog, Coding, Compress, Cors, DependsOn, Fault, FieldRule, Host, Lag, Mirror, Networks, Redirect, Respond,
    Rewrite, Share, Sticky, Traffic,
};
use weft_broker::spec::SubscriptionSpec;
use weft_core::Name;
use weft_policy::Policy;
use weft_policy::net::Nets;
use weft_policy::version::Version;

/// Listeners and routes.
#[derive(Clone, Debug, PartialEq)]
pub struct GatewaySpec {
    /// Plain listeners (HTTP/1.1 and h2c by prior knowledge) and TLS ones.
    pub listen: Vec<ListenSpec>,
    /// In file order.
    pub routes: Vec<RouteSpec>,
    /// Ways to know who calls, by name.
    pub auth: Vec<crate::auth::spec::ProviderSpec>,
    /// Peers that are believed about their clients; `None` = loopback.
    pub trusted_proxies: Option<Networks>,
    /// Whether services get `Forwarded` (RFC 7239) beside the `X-Forwarded` fields.
    pub forwarded: bool,
    /// A line for each exchange.
    pub access_log: Option<AccessLog>,
}

/// One listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenSpec {
    /// Where.
    pub address: SocketAddr,
    /// TLS; ALPN offers h2 and http/1.1.
    pub tls: Option<TlsSpec>,
    /// Whose connections are taken.
    pub nets: Nets,
}

impl ListenSpec {
    /// A plain listener.
    pub fn at(address: SocketAddr) -> Self {
        Self { address, tls: None, nets: Nets::default() }
    }
}

/// TLS on a listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsSpec {
    /// Certificate chains and keys (PEM). SNI chooses by the names in them; the first serves all other names.
    pub certificates: Vec<(PathBuf, PathBuf)>,
    /// Whether clients are asked for a certificate.
    pub client: Option<ClientCertificates>,
}

/// Certificates of clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificates {
    /// Who vouches for them (PEM).
    pub ca: PathBuf,
    /// Whether a client without one is refused in the handshake.
    pub required: bool,
}

/// The names that expressions over a request may use.
pub const REQUEST_NAMES: [&str; 3] = ["request", "principal", "address"];

/// The names that mappings of request bodies may use.
pub const BODY_NAMES: [&str; 4] = ["body", "request", "principal", "address"];
/// The names that mappings of answers may use.
pub const ANSWER_NAMES: [&str; 5] = ["body", "status", "request", "principal", "address"];

/// The versions of an API on a route.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct VersionsSpec {
    /// Where a request says which it means; the first that says one decides.
    pub from: Vec<VersionFrom>,
    /// What is meant when nothing is said.
    pub default: Option<String>,
    /// In file order.
    pub known: Vec<VersionSpec>,
}

/// Where a request says its version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VersionFrom {
    /// The capture `{version}` of the match's path.
    Path,
    /// A header.
    Header(String),
    /// `Accept`, by a media type without its version: `application/vnd.shop`.
    Accept(String),
    /// A query parameter.
    Query(String),
}

/// One version of an API.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct VersionSpec {
    /// Its name and dates.
    pub version: Version,
    /// Its service; `None` = the route's.
    pub service: Option<Name>,
    /// The path to ask the service for; `None` = the route's.
    pub path: Option<String>,
    /// What people read about its end.
    pub link: Option<String>,
    /// What replaces it.
    pub successor: Option<Successor>,
    /// Makes its request bodies into the service's.
    pub request: Option<serde_json::Value>,
    /// Makes the service's answers into its.
    pub response: Option<serde_json::Value>,
}

/// What replaces a version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Successor {
    /// Another version.
    Version(String),
    /// Somewhere else.
    Link(String),
}

/// One route.
#[derive(Clone, Debug, PartialEq)]
pub struct RouteSpec {
    /// Given, or made from method and path.
    pub name: Name,
    /// When it applies.
    pub matches: RouteMatch,
    /// Ties between equally specific routes; higher wins.
    pub priority: i32,
    /// Where it sends.
    pub to: Target,
    /// Resolved policy.
    pub policy: Policy,
    /// What of the protocols' own abilities it allows.
    pub protocols: Protocols,
    /// What it answers when its service did not.
    pub fallback: Option<Fallback>,
    /// Its versions, when it has several.
    pub versions: Option<VersionsSpec>,
    /// What else it does.
    pub traffic: Traffic,
}

/// What a route allows of the protocols' own abilities.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Protocols {
    /// Only clients that showed a certificate which their listener verified.
    pub client_certificate: bool,
    /// What a connection may be upgraded to, in lower case.
    pub upgrade: Vec<String>,
    /// How long an answer's stream or an upgraded connection may be silent.
    pub idle: Idle,
    /// Whether gRPC-Web is translated to gRPC: the service speaks gRPC.
    pub grpc_web: bool,
}

impl Default for Protocols {
    fn default() -> Self {
        Self { client_certificate: false, upgrade: vec!["websocket".to_owned()], idle: Idle::BuiltIn, grpc_web: false }
    }
}

/// How long an answer's stream or an upgraded connection may be silent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Idle {
    /// An upgraded connection [`weft_core::limits::TUNNEL_IDLE`], a stream as long as it likes.
    #[default]
    BuiltIn,
    /// As long as they like.
    Off,
    /// This long.
    After(std::time::Duration),
}

/// What a route to a service answers instead of a failure.
#[derive(Clone, Debug, PartialEq)]
pub enum Fallback {
    /// This.
    Respond {
        /// Status.
        status: http::StatusCode,
        /// Header fields.
        headers: http::HeaderMap,
        /// The body.
        body: String,
    },
    /// What another service answers.
    Service(Name),
}

/// Conditions, all of which must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouteMatch {
    /// `api.example.com`, `*.example.com`; any when `None`.
    pub host: Option<String>,
    /// Path pattern: literal, `{name}` one segment, `/**` the rest, `~regex`.
    pub path: String,
    /// Any of these methods; any when empty.
    pub methods: Vec<String>,
    /// Header name and what its value must be.
    pub headers: Vec<(String, Test)>,
    /// Query parameter and what its value must be.
    pub query: Vec<(String, Test)>,
    /// Media types of the body, as `application/json` or `image/*`; any when empty.
    pub content_types: Vec<String>,
    /// Only gRPC calls (content type `application/grpc`).
    pub grpc: bool,
    /// CEL over `request` and `source`.
    pub when: Option<String>,
}

/// What a header field or query parameter must be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Test {
    /// Exactly this.
    Exact(String),
    /// Begins with this.
    Prefix(String),
    /// All of it matches this regular expression.
    Regex(String),
    /// There, whatever it is.
    Present,
    /// Not there.
    Absent,
}

impl From<Option<String>> for Test {
    fn from(exact: Option<String>) -> Self {
        exact.map_or(Test::Present, Test::Exact)
    }
}

/// Where a route sends.
#[derive(Clone, Debug, PartialEq)]
pub enum Target {
    /// A service, HTTP or gRPC.
    Service {
        /// Which.
        service: Name,
        /// Replaces the matched path; `{name}` captures. `None` = as it came.
        path: Option<String>,
    },
    /// Starts a saga with the JSON body as input.
    Saga {
        /// Which.
        saga: Name,
        /// When to answer.
        reply: Reply,
    },
    /// Publishes the body (CloudEvents binary or structured, or plain).
    Topic(Name),
    /// Publishes the body to a queue.
    Queue(Name),
    /// Several services by weight.
    Split(Vec<Share>),
    /// Sends the client elsewhere.
    Redirect(Redirect),
    /// Answers always the same.
    Respond(Respond),
}

/// When a saga route answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reply {
    /// When the saga ended, or 202 at the deadline.
    #[default]
    Completed,
    /// 202 at once.
    Accepted,
}

/// Everything of one running configuration; immutable, swapped whole at reload.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// Counts reloads from 1.
    pub generation: u64,
    /// Services of the file.
    pub services: Vec<weft_mesh::ServiceSpec>,
    /// The gateway.
    pub gateway: GatewaySpec,
    /// Queues.
    pub queues: Vec<weft_broker::QueueSpec>,
    /// Topics.
    pub topics: Vec<weft_broker::TopicSpec>,
    /// Subscriptions.
    pub subscriptions: Vec<SubscriptionSpec>,
    /// Sagas.
    pub sagas: Vec<weft_flow::SagaSpec>,
}

impl Default for GatewaySpec {
    fn default() -> Self {
        Self {
            listen: vec![ListenSpec::at(([127, 0, 0, 1], 8080).into())],
            routes: Vec::new(),
            auth: Vec::new(),
            trusted_proxies: None,
            forwarded: false,
            access_log: None,
        }
    }
}
