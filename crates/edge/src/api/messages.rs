//! Publish, receive, settle, list and declare queues, topics and subscriptions.

use axum::Router;

use super::Api;

pub(super) fn routes() -> Router<Api> {
    Router::new()
}
