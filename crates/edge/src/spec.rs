//! The gateway as configuration describes it.

use std::net::SocketAddr;
use std::path::PathBuf;

use weft_broker::spec::SubscriptionSpec;
use weft_core::Name;
use weft_policy::Policy;

/// Listeners and routes.
#[derive(Clone, Debug, PartialEq)]
pub struct GatewaySpec {
    /// Plain listeners (HTTP/1.1 and h2c by prior knowledge) and TLS ones.
    pub listen: Vec<ListenSpec>,
    /// In file order.
    pub routes: Vec<RouteSpec>,
}

/// One listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenSpec {
    /// Where.
    pub address: SocketAddr,
    /// Certificate chain and key (PEM); ALPN offers h2 and http/1.1.
    pub tls: Option<(PathBuf, PathBuf)>,
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
    /// Header name and exact value; `None` = present.
    pub headers: Vec<(String, Option<String>)>,
    /// Query parameter and exact value; `None` = present.
    pub query: Vec<(String, Option<String>)>,
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
        Self { listen: vec![ListenSpec { address: ([127, 0, 0, 1], 8080).into(), tls: None }], routes: Vec::new() }
    }
}
