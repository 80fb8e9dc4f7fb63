//! `/healthz` while the process lives, `/readyz` when it can do its work.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::routing::get;
use parking_lot::Mutex;
use serde_json::json;

use super::Api;
use super::problem::{Problem, code};

/// What the process waits for; each part says when it is not ready and why.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<Mutex<BTreeMap<&'static str, String>>>);

impl Readiness {
    /// Nothing to wait for.
    pub fn new() -> Self {
        Self::default()
    }

    /// A part is not ready, for this reason.
    pub fn not_ready(&self, part: &'static str, reason: impl Into<String>) {
        self.0.lock().insert(part, reason.into());
    }

    /// A part is ready.
    pub fn ready(&self, part: &'static str) {
        self.0.lock().remove(part);
    }

    /// What is not ready.
    pub fn missing(&self) -> BTreeMap<&'static str, String> {
        self.0.lock().clone()
    }
}

pub(super) fn routes() -> Router<Api> {
    Router::new().route("/healthz", get(healthz)).route("/readyz", get(readyz))
}

async fn healthz() -> axum::Json<serde_json::Value> {
    axum::Json(json!({"status": "ok"}))
}

async fn readyz(State(api): State<Api>) -> Result<axum::Json<serde_json::Value>, Problem> {
    let mut missing = api.ready.missing();
    if let Err(e) = api.store.health() {
        missing.insert("store", e.to_string());
    }
    if missing.is_empty() {
        return Ok(axum::Json(json!({"status": "ready"})));
    }
    let names: Vec<_> = missing.keys().copied().collect();
    Err(Problem::new(code::NOT_READY, format!("not ready: {}", names.join(", "))).with("missing", json!(missing)))
}
