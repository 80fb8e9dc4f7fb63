//! Start, list, show, retry and cancel sagas.

use axum::Router;

use super::Api;

pub(super) fn routes() -> Router<Api> {
    Router::new()
}
