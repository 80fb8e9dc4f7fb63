//! Routes to a queue or topic: the request is published, the answer says what is on disk.

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderValue, Response, StatusCode, header};
use weft_broker::Channel;
use weft_core::Context;

use super::body::Body;
use crate::api::problem::Problem;
use crate::gateway::Core;
use crate::publish::publish as send;

/// Publishes a request. 202 with the receipts: what consumers make of the message comes later.
pub(super) async fn publish(
    core: &Core,
    ctx: &Context,
    channel: Channel,
    head: &Parts,
    body: Bytes,
) -> Result<Response<Body>, Problem> {
    let receipts = send(&core.deps.broker, ctx, &channel, &head.headers, body, head.uri.path()).await?;
    let mut r = Response::new(Body::from(Bytes::from(receipts.to_string())));
    *r.status_mut() = StatusCode::ACCEPTED;
    r.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(r)
}
