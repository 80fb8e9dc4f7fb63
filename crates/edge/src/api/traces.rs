//! Traces and `/metrics`.

use axum::Router;

use super::Api;

pub(super) fn routes() -> Router<Api> {
    Router::new()
}
