//! Who uses which version of an API.

use axum::Router;
use axum::extract::State;
use axum::routing::get;
use serde_json::Value;

use super::Api;

pub(super) fn routes() -> Router<Api> {
    Router::new().route("/v1/versions", get(list))
}

async fn list(State(api): State<Api>) -> axum::Json<Value> {
    axum::Json(api.versions.to_json())
}
