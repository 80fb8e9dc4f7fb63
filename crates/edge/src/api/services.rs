//! Register, renew, list and watch service instances.

use axum::Router;

use super::Api;

pub(super) fn routes() -> Router<Api> {
    Router::new()
}
