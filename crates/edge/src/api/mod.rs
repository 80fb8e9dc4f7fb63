//! The HTTP API: one router assembled from the parts that own the handlers.
//!
//! What it is not: it decides nothing; handlers parse, ask a door (`broker`, `flow`, `mesh`, `telemetry`) and answer.
//! Every error is a [`Problem`]. Calls need a known `Host` (against DNS rebinding) and no foreign `Origin` (against web
//! pages that post to localhost).

pub mod commit;
pub mod config;
pub mod guard;
pub mod health;
pub mod keys;
pub mod messages;
pub mod problem;
pub mod sagas;
pub mod services;
pub mod traces;
pub mod versions;

use std::sync::Arc;

use axum::Router;
use weft_broker::Broker;
use weft_flow::Flow;
use weft_mesh::Mesh;
use weft_store::Store;
use weft_telemetry::Telemetry;

use crate::auth::ApiKeys;

pub use config::ConfigView;
pub use guard::Hosts;
pub use health::Readiness;
pub use problem::{Problem, code};

/// What the handlers work with; cheap to clone.
#[derive(Clone)]
pub struct Api {
    /// Traces and metrics.
    pub telemetry: Telemetry,
    /// Queues and topics.
    pub broker: Broker,
    /// Sagas.
    pub flow: Flow,
    /// API keys.
    pub api_keys: ApiKeys,
    /// Services and their instances.
    pub mesh: Mesh,
    /// The store, for state keys and readiness.
    pub store: Arc<dyn Store>,
    /// What the process waits for before it is ready.
    pub ready: Readiness,
    /// The running configuration.
    pub config: Arc<dyn ConfigView>,
    /// Who uses which version of an API.
    pub versions: crate::versions::Usage,
    /// Names this API answers for.
    pub hosts: Hosts,
}

/// The whole API as one service.
pub fn router(api: Api) -> Router {
    let hosts = api.hosts.clone();
    Router::new()
        .merge(messages::routes())
        .merge(commit::routes())
        .merge(sagas::routes())
        .merge(keys::routes())
        .merge(services::routes())
        .merge(traces::routes())
        .merge(versions::routes())
        .merge(config::routes())
        .merge(health::routes())
        .method_not_allowed_fallback(method_not_allowed)
        .fallback(not_found)
        .with_state(api)
        .layer(axum::middleware::from_fn_with_state(hosts, guard::check))
}

async fn not_found(uri: http::Uri) -> Problem {
    Problem::new(code::NOT_FOUND, format!("there is nothing at {}", uri.path()))
}

async fn method_not_allowed(method: http::Method, uri: http::Uri) -> Problem {
    Problem::new(code::METHOD_NOT_ALLOWED, format!("{method} is not allowed at {}", uri.path()))
}
