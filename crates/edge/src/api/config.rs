//! `GET /v1/config`, `/v1/config/explain` and `/v1/routes`: the running configuration, as its owner shows it.

use axum::Router;
use axum::extract::State;
use axum::routing::get;
use serde::Deserialize;
use serde_json::{Value, json};

use super::Api;
use super::problem::{Problem, Query, code};

/// The running configuration, seen from the API. The process that reads files implements it; secrets are not in it.
pub trait ConfigView: Send + Sync + 'static {
    /// The whole configuration as JSON, with `generation` and `source`.
    fn running(&self) -> Value;

    /// Every route in the file's order: `name`, `match`, `target`, `uses`, `policy`.
    fn routes(&self) -> Vec<Value>;

    /// The effective policy of a `route`, `queue`, `subscription` or `step`, with the line each value came from; `None`
    /// when there is no such thing.
    fn explain(&self, kind: &str, name: &str) -> Option<Value>;
}

pub(super) fn routes() -> Router<Api> {
    Router::new()
        .route("/v1/config", get(running))
        .route("/v1/config/explain", get(explain))
        .route("/v1/routes", get(listed))
}

async fn running(State(api): State<Api>) -> axum::Json<Value> {
    axum::Json(api.config.running())
}

async fn listed(State(api): State<Api>) -> axum::Json<Value> {
    axum::Json(json!({"items": api.config.routes(), "next": null}))
}

#[derive(Deserialize)]
struct What {
    kind: String,
    name: String,
}

async fn explain(State(api): State<Api>, Query(q): Query<What>) -> Result<axum::Json<Value>, Problem> {
    match api.config.explain(&q.kind, &q.name) {
        Some(v) => Ok(axum::Json(v)),
        None => Err(Problem::new(code::NOT_FOUND, format!("the configuration has no {} named '{}'", q.kind, q.name))),
    }
}
