//! `POST /v1/commit`, event streams and state keys.

use axum::Router;

use super::Api;

pub(super) fn routes() -> Router<Api> {
    Router::new()
}
