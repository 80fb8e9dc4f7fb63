//! Routes to a saga: the JSON body is its input, the Idempotency-Key its key; the answer waits for its end or does not.

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderValue, Response, StatusCode, header};
use serde_json::{Value, json};
use weft_core::{Context, Id, Name};
use weft_flow::machine::{Status, Turned};
use weft_flow::{Error, View};

use super::body::Body;
use crate::api::problem::{Problem, code, is_json, parse_json};
use crate::gateway::Core;
use crate::spec::Reply;

/// Starts a saga. Completed: 201 with its result; compensated: a problem that names the step and why; still under way at
/// the deadline, parked, or not to be waited for: 202. All but the problem have `Location`.
pub(super) async fn start(
    core: &Core,
    ctx: &Context,
    saga: &Name,
    reply: Reply,
    head: &Parts,
    body: Bytes,
) -> Result<Response<Body>, Problem> {
    if !is_json(&head.headers) {
        let got = head.headers.get(header::CONTENT_TYPE).map_or("no content type".into(), |v| format!("{v:?}"));
        let detail = format!("the input of a saga is JSON: send Content-Type: application/json, not {got}");
        return Err(Problem::new(code::UNSUPPORTED_MEDIA_TYPE, detail));
    }
    let input: Value = parse_json(&body)?;
    let flow = &core.deps.flow;
    let started = flow.start(ctx, saga, ctx.idempotency_key.as_deref(), input).await?;
    if reply == Reply::Accepted {
        return Ok(answer(StatusCode::ACCEPTED, started.id, json!({"id": started.id, "status": "running"})));
    }
    let view = match flow.wait(started.id, ctx.deadline).await {
        Ok(view) => view,
        // It runs, and goes on elsewhere or after a restart.
        Err(Error::Closed) => {
            return Ok(answer(StatusCode::ACCEPTED, started.id, json!({"id": started.id, "status": "running"})));
        }
        Err(e) => return Err(e.into()),
    };
    match view.status {
        "completed" => {
            let body = view.result.unwrap_or_else(|| json!({"id": started.id, "status": view.status}));
            Ok(answer(StatusCode::CREATED, started.id, body))
        }
        "compensated" => Err(compensated(&view)),
        status => Ok(answer(StatusCode::ACCEPTED, started.id, json!({"id": started.id, "status": status}))),
    }
}

fn answer(status: StatusCode, id: Id, body: Value) -> Response<Body> {
    let mut r = Response::new(Body::from(Bytes::from(body.to_string())));
    *r.status_mut() = status;
    r.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let location = HeaderValue::try_from(format!("/v1/sagas/{id}")).expect("an id is ASCII");
    r.headers_mut().insert(header::LOCATION, location);
    r
}

/// A refused step is the caller's affair (422); a deadline or a cancellation is not (409).
fn compensated(view: &View) -> Problem {
    let code = match view.cause {
        Some(Turned::Rejected) => code::SAGA_REJECTED,
        Some(Turned::Deadline | Turned::Cancelled) | None => code::SAGA_COMPENSATED,
    };
    let detail = view.error.clone().unwrap_or_else(|| "the saga was compensated".into());
    let mut p = Problem::new(code, detail).with("saga", view.id.clone()).with("status_of_saga", view.status);
    if let Some(step) = view.steps.iter().find(|s| s.status == Status::Failed) {
        p = p.with("step", step.name.clone());
        if let Some(e) = &step.error {
            p = p.with("step_error", e.clone());
        }
    }
    match HeaderValue::try_from(format!("/v1/sagas/{}", view.id)) {
        Ok(location) => p.with_header(header::LOCATION, location),
        Err(_) => p,
    }
}
