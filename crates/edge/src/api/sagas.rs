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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use http_body_util::BodyExt as _;
    use tower_service::Service as _;
    use weft_broker::Broker;
    use weft_core::Name;
    use weft_flow::spec::{Action, Call, Channel, Idempotent, SagaSpec, Step, StepKind};
    use weft_mesh::{Mesh, Protocol, ServiceSpec};
    use weft_policy::Policy;
    use weft_store::{Config, Embedded};
    use weft_telemetry::Telemetry;

    use super::*;

    fn step(name: &str, call: Call) -> Step {
        let action = Action { call, policy: Policy::builtin(), idempotent: Idempotent::Key };
        Step { name: Name::new(name).unwrap(), when: None, kind: StepKind::Action { action, compensate: None } }
    }

    /// `quick` publishes and ends; `stuck` calls a service that has no instance.
    async fn flow(dir: &std::path::Path) -> Flow {
        let store: Arc<dyn weft_store::Store> = Arc::new(Embedded::open(Config::new(dir)).unwrap());
        let telemetry = Telemetry::new();
        let mesh = Mesh::new(store.clone(), telemetry.clone());
        let broker = Broker::open(store.clone(), telemetry.clone(), mesh.clone()).await.unwrap();
        let flow = Flow::open(store, broker, mesh, telemetry).await.unwrap();
        let name = |s: &str| Name::new(s).unwrap();
        let publish = Call::Publish {
            channel: Channel::Queue(name("done")),
            ty: "Done".into(),
            subject: None,
            with: Some(json!({"n": "input.n"})),
        };
        let call = Call::Http { method: "POST".into(), service: name("away"), path: "/x".into(), with: None };
        let saga = |n: &str, s: Step| SagaSpec {
            name: name(n),
            deadline: Some(Duration::from_secs(60)),
            steps: vec![s],
            result: Some(json!({"n": "input.n + 1"})),
        };
        let service = ServiceSpec {
            name: name("away"),
            protocol: Protocol::Http,
            addresses: Vec::new(),
            balance: weft_mesh::Balance::default(),
            picking: Default::default(),
            health: None,
            tls: None,
            protos: Vec::new(),
            policy: Policy::builtin(),
        };
        flow.apply(&[saga("quick", step("announce", publish)), saga("stuck", step("call", call))], &[service])
            .await
            .unwrap();
        flow
    }

    struct Got {
        status: u16,
        location: Option<String>,
        body: Value,
    }

    async fn ask(flow: &Flow, method: &str, path: &str, body: Value, key: Option<&str>) -> Got {
        let mut r = http::Request::builder().method(method).uri(path);
        if let Some(k) = key {
            r = r.header("idempotency-key", k);
        }
        let body = match body {
            Value::Null => axum::body::Body::empty(),
            v => {
                r = r.header("content-type", "application/json");
                axum::body::Body::from(v.to_string())
            }
        };
        let answer = table().with_state(flow.clone()).call(r.body(body).unwrap()).await.unwrap();
        let location = answer.headers().get("location").map(|v| v.to_str().unwrap().to_owned());
        let status = answer.status().as_u16();
        let bytes = answer.into_body().collect().await.unwrap().to_bytes();
        Got { status, location, body: serde_json::from_slice(&bytes).unwrap() }
    }

    #[tokio::test]
    async fn a_saga_is_started_shown_and_listed() {
        let dir = tempfile::tempdir().unwrap();
        let flow = flow(dir.path()).await;
        let start = json!({"saga": "quick", "key": "k", "input": {"n": 1}});
        let got = ask(&flow, "POST", "/v1/sagas", start.clone(), None).await;
        assert_eq!(got.status, 202, "{}", got.body);
        let id = got.body["id"].as_str().unwrap().to_owned();
        assert_eq!(got.location.as_deref(), Some(format!("/v1/sagas/{id}").as_str()));
        let again = ask(&flow, "POST", "/v1/sagas", start, None).await;
        assert_eq!((again.status, again.body["id"].as_str()), (200, Some(id.as_str())));
        let by_header = ask(&flow, "POST", "/v1/sagas", json!({"saga": "quick", "input": {"n": 1}}), Some("k")).await;
        assert_eq!((by_header.status, by_header.body["id"].as_str()), (200, Some(id.as_str())));

        let one = ask(&flow, "GET", &format!("/v1/sagas/{id}?wait=10s"), Value::Null, None).await;
        assert_eq!((one.status, one.body["status"].as_str()), (200, Some("completed")), "{}", one.body);
        assert_eq!(one.body["result"], json!({"n": 2}));
        for member in
            ["id", "saga", "key", "status", "input", "result", "error", "steps", "trace_id", "created", "updated"]
        {
            assert!(one.body.get(member).is_some(), "{member} is missing: {}", one.body);
        }
        for member in ["name", "status", "attempts", "started", "ended", "result", "error"] {
            assert!(one.body["steps"][0].get(member).is_some(), "{member} is missing: {}", one.body);
        }
        let list = ask(&flow, "GET", "/v1/sagas?status=completed&saga=quick&key=k", Value::Null, None).await;
        assert_eq!((list.status, list.body["items"].as_array().unwrap().len()), (200, 1));
        assert_eq!(list.body["next"], Value::Null);
    }

    #[tokio::test]
    async fn a_running_saga_can_be_cancelled_and_an_ended_one_cannot() {
        let dir = tempfile::tempdir().unwrap();
        let flow = flow(dir.path()).await;
        let got = ask(&flow, "POST", "/v1/sagas", json!({"saga": "stuck", "input": {}}), None).await;
        assert_eq!((got.status, got.body["status"].as_str()), (202, Some("running")));
        let id = got.body["id"].as_str().unwrap();
        let got = ask(&flow, "POST", &format!("/v1/sagas/{id}/retry"), Value::Null, None).await;
        assert_eq!((got.status, got.body["code"].as_str()), (409, Some("conflict")));
        assert_eq!(got.body["saga_status"], json!("running"));
        let got = ask(&flow, "POST", &format!("/v1/sagas/{id}/cancel"), Value::Null, None).await;
        assert_eq!(got.status, 200, "{}", got.body);
        let got = ask(&flow, "GET", &format!("/v1/sagas/{id}?wait=10s"), Value::Null, None).await;
        assert_eq!((got.body["status"].as_str(), got.body["error"].as_str()), (Some("compensated"), Some("cancelled")));
        let got = ask(&flow, "POST", &format!("/v1/sagas/{id}/cancel"), Value::Null, None).await;
        assert_eq!(got.status, 409);
    }

    #[tokio::test]
    async fn bad_input_is_told_what_is_wrong() {
        let dir = tempfile::tempdir().unwrap();
        let flow = flow(dir.path()).await;
        let unknown = weft_core::Id::new();
        for (method, path, body, status, said) in [
            ("POST", "/v1/sagas".to_owned(), json!({"saga": "quik"}), 404, "did you mean 'quick'?"),
            ("POST", "/v1/sagas".to_owned(), json!({"sago": "quick"}), 400, "sago"),
            ("GET", "/v1/sagas?status=odd".to_owned(), Value::Null, 400, "'odd' is not a status"),
            ("GET", "/v1/sagas?limit=0".to_owned(), Value::Null, 400, "limit is 0"),
            ("GET", "/v1/sagas?cursor=x".to_owned(), Value::Null, 400, "cursor"),
            ("GET", "/v1/sagas/x".to_owned(), Value::Null, 404, "an id is a UUID"),
            ("GET", format!("/v1/sagas/{unknown}"), Value::Null, 404, "there is no saga instance"),
            ("GET", format!("/v1/sagas/{unknown}?wait=long"), Value::Null, 400, "not a duration"),
            ("POST", format!("/v1/sagas/{unknown}/cancel"), Value::Null, 404, "there is no saga instance"),
        ] {
            let got = ask(&flow, method, &path, body, None).await;
            assert_eq!(got.status, status, "{path}: {}", got.body);
            assert!(got.body["detail"].as_str().unwrap().contains(said), "{path}: {}", got.body);
        }
    }
}
