//! Start, list, show, retry and cancel sagas.

use std::str::FromStr as _;
use std::time::Duration;

use axum::extract::{FromRef, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json as Answer, Router};
use http::{HeaderMap, StatusCode, header};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use weft_core::{Classify as _, Context, Deadline, Id, Trace, limits, units};
use weft_flow::{Error, Filter, Flow, View};

use super::Api;
use super::problem::{Json, Path, Problem, Query, code};

pub(super) fn routes() -> Router<Api> {
    table()
}

impl FromRef<Api> for Flow {
    fn from_ref(api: &Api) -> Flow {
        api.flow.clone()
    }
}

fn table<S>() -> Router<S>
where
    S: Clone + Send + Sync + 'static,
    Flow: FromRef<S>,
{
    Router::new()
        .route("/v1/sagas", post(start).get(list))
        .route("/v1/sagas/{id}", get(one))
        .route("/v1/sagas/{id}/retry", post(retry))
        .route("/v1/sagas/{id}/cancel", post(cancel))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Start {
    saga: String,
    key: Option<String>,
    #[serde(default)]
    input: Value,
}

async fn start(State(flow): State<Flow>, headers: HeaderMap, Json(s): Json<Start>) -> Result<Response, Problem> {
    let ctx = caller(&headers);
    let header = headers.get("idempotency-key").map(|v| v.to_str());
    let header = header.transpose().map_err(|_| Problem::new(code::INVALID_HEADER, "Idempotency-Key is not ASCII"))?;
    let key = s.key.as_deref().or(header);
    let started = flow.start(&ctx, &s.saga, key, s.input).await?;
    let view = flow.get(started.id).await?;
    let status = if started.existing { StatusCode::OK } else { StatusCode::ACCEPTED };
    let location = [(header::LOCATION, format!("/v1/sagas/{}", started.id))];
    Ok((status, location, Answer(json!({"id": view.id, "status": view.status}))).into_response())
}

/// The caller's span, when it names one: the saga is part of its trace.
fn caller(headers: &HeaderMap) -> Context {
    let parent = headers.get("traceparent").and_then(|v| v.to_str().ok()).and_then(Trace::parse);
    parent.map_or_else(Context::root, Context::of)
}

#[derive(Deserialize)]
struct ListQuery {
    status: Option<String>,
    saga: Option<String>,
    key: Option<String>,
    limit: Option<usize>,
    cursor: Option<String>,
}

#[derive(Serialize)]
struct List {
    items: Vec<View>,
    next: Option<String>,
}

const STATUSES: [&str; 5] = ["running", "compensating", "completed", "compensated", "parked"];

async fn list(State(flow): State<Flow>, Query(q): Query<ListQuery>) -> Result<Answer<List>, Problem> {
    let limit = q.limit.unwrap_or(50);
    if limit == 0 || limit > limits::SAGA_LIST {
        let detail = format!("limit is {limit}; 1 to {} are allowed", limits::SAGA_LIST);
        return Err(Problem::new(code::INVALID_QUERY, detail));
    }
    if let Some(s) = q.status.as_deref()
        && !STATUSES.contains(&s)
    {
        let shown: String = s.chars().take(64).collect();
        let detail = format!("'{shown}' is not a status: use {}", STATUSES.join(", "));
        return Err(Problem::new(code::INVALID_QUERY, detail));
    }
    if let Some(c) = &q.cursor
        && Id::from_str(c).is_err()
    {
        return Err(Problem::new(code::INVALID_QUERY, "the cursor is not one that a listing gave"));
    }
    let filter = Filter { status: q.status, saga: q.saga, key: q.key };
    let page = flow.list(&filter, limit, q.cursor.as_deref()).await?;
    Ok(Answer(List { items: page.items, next: page.next }))
}

#[derive(Deserialize)]
struct OneQuery {
    wait: Option<String>,
}

async fn one(
    State(flow): State<Flow>,
    Path(id): Path<String>,
    Query(q): Query<OneQuery>,
) -> Result<Answer<View>, Problem> {
    let id = parse_id(&id)?;
    let wait = q.wait.as_deref().map(units::parse_duration).transpose();
    let wait = wait.map_err(|e| Problem::new(code::INVALID_QUERY, e.to_string()))?.unwrap_or(Duration::ZERO);
    if wait.is_zero() {
        return Ok(Answer(flow.get(id).await?));
    }
    Ok(Answer(flow.wait(id, Deadline::after(wait.min(limits::RECEIVE_WAIT))).await?))
}

async fn retry(State(flow): State<Flow>, Path(id): Path<String>) -> Result<Answer<View>, Problem> {
    Ok(Answer(flow.retry(parse_id(&id)?).await?))
}

async fn cancel(State(flow): State<Flow>, Path(id): Path<String>) -> Result<Answer<View>, Problem> {
    Ok(Answer(flow.cancel(parse_id(&id)?).await?))
}

fn parse_id(id: &str) -> Result<Id, Problem> {
    Id::from_str(id).map_err(|_| {
        let shown: String = id.chars().take(64).collect();
        Problem::new(code::NOT_FOUND, format!("there is no saga instance '{shown}': an id is a UUID"))
    })
}

impl From<Error> for Problem {
    fn from(e: Error) -> Self {
        let code = match &e {
            Error::UnknownSaga { .. } | Error::NotFound { .. } => code::NOT_FOUND,
            Error::WrongStatus { .. } => code::CONFLICT,
            Error::TooLarge { .. } => code::TOO_LARGE,
            Error::Overloaded { .. } => code::OVERLOADED,
            Error::Closed => code::SHUTTING_DOWN,
            Error::Stored { .. } => code::INTERNAL,
            Error::Store(e) => return e.clone().into(),
            Error::Broker(e) if e.class() == weft_core::Class::Overloaded => code::OVERLOADED,
            Error::Definitions(_) | Error::Protos(_) | Error::Broker(_) => code::BAD_REQUEST,
        };
        let p = Problem::new(code, e.to_string());
        match &e {
            Error::WrongStatus { status, .. } => p.with("saga_status", *status),
            _ if matches!(e.class(), weft_core::Class::Overloaded | weft_core::Class::Retryable) => {
                p.with_retry_after(Duration::from_secs(1))
            }
            _ => p,
        }
    }
}
