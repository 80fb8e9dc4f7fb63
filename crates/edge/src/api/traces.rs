//! `GET /v1/traces`, `GET /v1/traces/{id}` and `GET /metrics`.

use axum::Router;
use axum::extract::{FromRef, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::header;
use serde::{Deserialize, Serialize};
use weft_core::limits;
use weft_core::trace::TraceId;
use weft_telemetry::{Telemetry, TraceSummary, TraceView};

use super::Api;
use super::problem::{Path, Problem, Query, code};

pub(super) fn routes() -> Router<Api> {
    table()
}

impl FromRef<Api> for Telemetry {
    fn from_ref(api: &Api) -> Telemetry {
        api.telemetry.clone()
    }
}

fn table<S>() -> Router<S>
where
    S: Clone + Send + Sync + 'static,
    Telemetry: FromRef<S>,
{
    Router::new().route("/v1/traces", get(list)).route("/v1/traces/{id}", get(one)).route("/metrics", get(metrics))
}

#[derive(Deserialize)]
struct ListQuery {
    limit: Option<usize>,
}

/// The newest traces only: the ring moves under a reader, so there is no cursor and `next` is always null.
#[derive(Serialize)]
struct List {
    items: Vec<TraceSummary>,
    next: Option<String>,
}

async fn list(State(telemetry): State<Telemetry>, Query(q): Query<ListQuery>) -> Result<axum::Json<List>, Problem> {
    let limit = q.limit.unwrap_or(50);
    if limit == 0 || limit > limits::TRACE_LIST {
        let detail = format!("limit is {limit}; 1 to {} are allowed", limits::TRACE_LIST);
        return Err(Problem::new(code::INVALID_QUERY, detail));
    }
    Ok(axum::Json(List { items: telemetry.traces(limit), next: None }))
}

async fn one(State(telemetry): State<Telemetry>, Path(id): Path<String>) -> Result<axum::Json<TraceView>, Problem> {
    let Some(trace_id) = TraceId::parse(&id.to_ascii_lowercase()) else {
        let shown: String = id.chars().take(64).collect();
        return Err(Problem::new(code::INVALID_PATH, format!("'{shown}' is not a trace id: 32 hexadecimal digits")));
    };
    let spans = telemetry.trace(trace_id);
    if spans.is_empty() {
        let detail =
            format!("no span of trace {trace_id} is held: it is unknown, was left out, or newer ones took its place");
        return Err(Problem::new(code::NOT_FOUND, detail));
    }
    Ok(axum::Json(TraceView { trace_id, spans }))
}

async fn metrics(State(telemetry): State<Telemetry>) -> Response {
    let text = telemetry.metrics().render_prometheus();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;
    use serde_json::Value;
    use tower_service::Service as _;
    use weft_core::Trace;
    use weft_telemetry::{SpanKind, SpanStatus, names, span};

    use super::*;

    async fn fetch(telemetry: &Telemetry, path: &str) -> (u16, String, String) {
        let request = http::Request::get(path).body(axum::body::Body::empty()).unwrap();
        let answer = table().with_state(telemetry.clone()).call(request).await.unwrap();
        let kind = answer.headers()[header::CONTENT_TYPE].to_str().unwrap().to_owned();
        let status = answer.status().as_u16();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        (status, kind, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn a_recorded_trace_is_listed_and_shown() {
        let t = Telemetry::new();
        let root = Trace::root();
        t.record(span::start(root.child(), "step charge", SpanKind::Client, "flow").fail("breaker-open", "is open"));
        t.record(span::start(root, "POST /v1/orders", SpanKind::Server, "gateway").end(SpanStatus::Ok));

        let (status, _, body) = fetch(&t, "/v1/traces?limit=5").await;
        let v: Value = serde_json::from_str(&body).unwrap();
        assert_eq!((status, &v["next"], v["items"].as_array().unwrap().len()), (200, &Value::Null, 1));
        let first = &v["items"][0];
        assert_eq!(
            (first["name"].as_str(), first["spans"].as_u64(), first["errors"].as_u64()),
            (Some("POST /v1/orders"), Some(2), Some(1))
        );

        let id = first["trace_id"].as_str().unwrap();
        let (status, _, body) = fetch(&t, &format!("/v1/traces/{id}")).await;
        assert_eq!(status, 200);
        let v: Value = serde_json::from_str(&body).unwrap();
        for member in
            ["span_id", "parent_id", "name", "kind", "service", "start", "duration_us", "status", "attributes"]
        {
            assert!(v["spans"][0].get(member).is_some(), "{member} is missing: {v}");
        }
        let view: TraceView = serde_json::from_str(&body).unwrap();
        assert!(weft_telemetry::tree::render(&view.spans).contains("`- step charge"));
    }

    #[tokio::test]
    async fn what_is_no_trace_id_or_no_limit_is_told_so() {
        let t = Telemetry::new();
        let unknown = Trace::root().trace_id;
        for (path, status, code) in [
            ("/v1/traces/xyz".to_owned(), 400, "invalid-path"),
            (format!("/v1/traces/{unknown}"), 404, "not-found"),
            ("/v1/traces?limit=0".to_owned(), 400, "invalid-query"),
            ("/v1/traces?limit=1000000".to_owned(), 400, "invalid-query"),
            ("/v1/traces?limit=many".to_owned(), 400, "invalid-query"),
        ] {
            let (got, kind, body) = fetch(&t, &path).await;
            assert_eq!((got, kind.as_str()), (status, "application/problem+json"), "{path}");
            assert!(body.contains(&format!("\"code\":\"{code}\"")), "{body}");
        }
    }

    #[tokio::test]
    async fn metrics_come_as_prometheus_text() {
        let t = Telemetry::new();
        t.metrics().counter(&names::HTTP_REQUESTS, &[("route", "orders"), ("code", "200")]).add(3);
        let (status, kind, body) = fetch(&t, "/metrics").await;
        assert_eq!((status, kind.as_str()), (200, "text/plain; version=0.0.4; charset=utf-8"));
        assert!(body.contains("# TYPE weft_http_requests_total counter\n"), "{body}");
        assert!(body.contains("weft_http_requests_total{route=\"orders\",code=\"200\"} 3\n"), "{body}");
    }
}
