//! Register, renew, list and watch service instances.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Router;
use axum::extract::{FromRef, State};
use axum::routing::{get, post, put};
use http::StatusCode;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Value, json};
use weft_core::units::{format_duration, parse_duration};
use weft_core::{Name, limits};
use weft_mesh::spec::{HealthCheck, HealthKind};
use weft_mesh::{Address, Error, Mesh, Protocol, Registered, Registration, ServiceView};

use super::Api;
use super::problem::{Json, Path, Problem, Query, code};

/// Services in one page, when the caller does not say.
const PAGE: usize = 100;
/// Services in one page at most.
const PAGE_MAX: usize = 1_000;

pub(super) fn routes() -> Router<Api> {
    table()
}

impl FromRef<Api> for Mesh {
    fn from_ref(api: &Api) -> Mesh {
        api.mesh.clone()
    }
}

fn table<S>() -> Router<S>
where
    S: Clone + Send + Sync + 'static,
    Mesh: FromRef<S>,
{
    Router::new()
        .route("/v1/services", get(list))
        .route("/v1/services/{name}", get(one))
        .route("/v1/services/{name}/instances/{id}", put(register).delete(deregister))
        .route("/v1/services/{name}/instances/{id}/heartbeat", post(heartbeat))
}

/// The body of a registration.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RegistrationJson {
    address: Address,
    protocol: Option<Protocol>,
    #[serde(default = "default_ttl", deserialize_with = "duration")]
    ttl: Duration,
    #[serde(default = "default_weight")]
    weight: u32,
    #[serde(default)]
    metadata: BTreeMap<String, String>,
    health: Option<HealthJson>,
}

/// One of `http`, `grpc` and `tcp`, and when.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HealthJson {
    http: Option<String>,
    grpc: Option<String>,
    tcp: Option<bool>,
    #[serde(default, deserialize_with = "maybe_duration")]
    interval: Option<Duration>,
    #[serde(default, deserialize_with = "maybe_duration")]
    timeout: Option<Duration>,
    unhealthy_after: Option<u32>,
    healthy_after: Option<u32>,
}

#[derive(Deserialize)]
struct Watch {
    index: Option<u64>,
    wait: Option<String>,
    limit: Option<usize>,
    cursor: Option<String>,
}

#[derive(Serialize)]
struct List {
    items: Vec<ServiceView>,
    next: Option<String>,
    index: u64,
}

fn default_weight() -> u32 {
    1
}

fn default_ttl() -> Duration {
    Duration::from_secs(10)
}

fn duration<'de, D: Deserializer<'de>>(d: D) -> Result<Duration, D::Error> {
    parse_duration(&String::deserialize(d)?).map_err(serde::de::Error::custom)
}

fn maybe_duration<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Duration>, D::Error> {
    duration(d).map(Some)
}

impl HealthJson {
    fn check(self) -> Result<Option<HealthCheck>, Problem> {
        let bad = |detail: &str| Err(Problem::new(code::BAD_REQUEST, detail).with("member", "health"));
        let kind = match (self.http, self.grpc, self.tcp) {
            (Some(path), None, None) if path.starts_with('/') => HealthKind::Http(path),
            (Some(_), None, None) => return bad("health.http is a path and starts with '/'"),
            (None, Some(service), None) => HealthKind::Grpc(service),
            (None, None, Some(true)) => HealthKind::Tcp,
            (None, None, Some(false)) => return Ok(None),
            _ => return bad("health has exactly one of 'http', 'grpc' and 'tcp'"),
        };
        let default = HealthCheck::default();
        Ok(Some(HealthCheck {
            kind,
            interval: self.interval.unwrap_or(default.interval),
            timeout: self.timeout.unwrap_or(default.timeout),
            unhealthy_after: self.unhealthy_after.unwrap_or(default.unhealthy_after),
            healthy_after: self.healthy_after.unwrap_or(default.healthy_after),
        }))
    }
}

async fn register(
    State(mesh): State<Mesh>,
    Path((service, id)): Path<(String, String)>,
    Json(r): Json<RegistrationJson>,
) -> Result<(StatusCode, axum::Json<Value>), Problem> {
    let (service, id) = (Name::new(&service)?, Name::new(&id)?);
    let health = r.health.map(HealthJson::check).transpose()?.flatten();
    let ttl = r.ttl;
    let registration =
        Registration { address: r.address, protocol: r.protocol, ttl, weight: r.weight, metadata: r.metadata, health };
    let status = match mesh.register(&service, &id, registration).await.map_err(problem)? {
        Registered::New => StatusCode::CREATED,
        Registered::Changed | Registered::Renewed => StatusCode::OK,
    };
    Ok((status, axum::Json(json!({"service": service, "id": id, "ttl": format_duration(ttl)}))))
}

async fn heartbeat(
    State(mesh): State<Mesh>,
    Path((service, id)): Path<(String, String)>,
) -> Result<StatusCode, Problem> {
    mesh.heartbeat(&Name::new(&service)?, &Name::new(&id)?).map_err(problem)?;
    Ok(StatusCode::NO_CONTENT)
}

async fn deregister(
    State(mesh): State<Mesh>,
    Path((service, id)): Path<(String, String)>,
) -> Result<StatusCode, Problem> {
    mesh.deregister(&Name::new(&service)?, &Name::new(&id)?).await.map_err(problem)?;
    Ok(StatusCode::NO_CONTENT)
}

async fn list(State(mesh): State<Mesh>, Query(q): Query<Watch>) -> Result<axum::Json<List>, Problem> {
    let limit = q.limit.unwrap_or(PAGE);
    if limit == 0 || limit > PAGE_MAX {
        return Err(Problem::new(code::INVALID_QUERY, format!("limit is {limit}; 1 to {PAGE_MAX} are allowed")));
    }
    q.wait(&mesh, None).await?;
    let (all, index) = mesh.list();
    let after = q.cursor.as_deref().unwrap_or("");
    let mut items: Vec<_> = all.into_iter().filter(|s| s.name.as_str() > after).take(limit + 1).collect();
    let more = items.len() > limit;
    items.truncate(limit);
    let next = if more { items.last().map(|s| s.name.to_string()) } else { None };
    Ok(axum::Json(List { items, next, index }))
}

async fn one(
    State(mesh): State<Mesh>,
    Path(service): Path<String>,
    Query(q): Query<Watch>,
) -> Result<axum::Json<ServiceView>, Problem> {
    let service = Name::new(&service)?;
    q.wait(&mesh, Some(&service)).await?;
    let found = mesh.get(&service).0;
    found.map(axum::Json).ok_or_else(|| {
        let detail = format!("service '{service}' is not configured and no instance of it is registered");
        Problem::new(code::NOT_FOUND, detail)
    })
}

impl Watch {
    /// Waits for a change after `index`, when there is one given.
    async fn wait(&self, mesh: &Mesh, service: Option<&str>) -> Result<(), Problem> {
        let wait = match &self.wait {
            None => limits::RECEIVE_WAIT,
            Some(w) => parse_duration(w).map_err(|e| Problem::new(code::INVALID_QUERY, format!("wait: {e}")))?,
        };
        if let Some(index) = self.index {
            mesh.watch(service, index, wait).await;
        }
        Ok(())
    }
}

fn problem(e: Error) -> Problem {
    let code = match &e {
        Error::Store(e) => return Problem::from(e.clone()),
        Error::NotRegistered { .. } => code::NOT_FOUND,
        Error::InvalidRegistration { member, .. } => {
            return Problem::new(code::BAD_REQUEST, e.to_string()).with("member", *member);
        }
        Error::OwnListener { .. } => code::BAD_REQUEST,
        Error::TooManyInstances { .. } | Error::TooManyServices => code::OVERLOADED,
        _ => code::INTERNAL,
    };
    Problem::new(code, e.to_string())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use http::Request;
    use http_body_util::BodyExt as _;
    use tower_service::Service as _;
    use weft_store::{Config, Embedded};
    use weft_telemetry::Telemetry;

    use super::*;

    struct World {
        mesh: Mesh,
        _dir: tempfile::TempDir,
    }

    fn world() -> World {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(Embedded::open(Config::new(dir.path())).unwrap());
        World { mesh: Mesh::new(store, Telemetry::new()), _dir: dir }
    }

    impl World {
        async fn call(&self, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
            let mut request = Request::builder().method(method).uri(path);
            if body.is_some() {
                request = request.header("content-type", "application/json");
            }
            let body = axum::body::Body::from(body.map_or(String::new(), |b| b.to_string()));
            let answer = table().with_state(self.mesh.clone()).call(request.body(body).unwrap()).await.unwrap();
            let status = answer.status().as_u16();
            let bytes = answer.into_body().collect().await.unwrap().to_bytes();
            (status, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
        }
    }

    #[tokio::test]
    async fn an_instance_registers_renews_lives_and_leaves() {
        let w = world();
        let at = "/v1/services/order/instances/o1";
        let body = json!({"address": "127.0.0.1:7001", "protocol": "grpc", "ttl": "30s", "metadata": {"zone": "a"}});
        assert_eq!(w.call("PUT", at, Some(body.clone())).await.0, 201);
        assert_eq!(w.call("PUT", at, Some(body)).await.0, 200);
        assert_eq!(w.call("POST", &format!("{at}/heartbeat"), None).await.0, 204);

        let (status, view) = w.call("GET", "/v1/services/order", None).await;
        assert_eq!((status, &view["origin"], &view["breaker"]), (200, &json!("runtime"), &json!("closed")));
        let i = &view["instances"][0];
        assert_eq!(
            (&i["id"], &i["address"], &i["protocol"], &i["health"], &i["load"], &i["metadata"]["zone"]),
            (&json!("o1"), &json!("127.0.0.1:7001"), &json!("grpc"), &json!("healthy"), &json!(0), &json!("a"))
        );

        assert_eq!(w.call("DELETE", at, None).await.0, 204);
        let (status, gone) = w.call("POST", &format!("{at}/heartbeat"), None).await;
        assert_eq!((status, &gone["code"]), (404, &json!("not-found")));
        assert_eq!(w.call("DELETE", at, None).await.0, 404);
        assert_eq!(w.call("GET", "/v1/services/order", None).await.0, 404);
    }

    #[tokio::test]
    async fn a_watch_answers_when_something_changes_after_its_index() {
        let w = world();
        let register = |id: &str| {
            let at = format!("/v1/services/order/instances/{id}");
            (at, json!({"address": "127.0.0.1:7001"}))
        };
        let (at, body) = register("o1");
        w.call("PUT", &at, Some(body)).await;
        let index = w.call("GET", "/v1/services/order", None).await.1["index"].as_u64().unwrap();
        let path = format!("/v1/services/order?index={index}&wait=60s");
        let watching = w.call("GET", &path, None);
        let changing = async {
            // Lets the watch begin first.
            tokio::task::yield_now().await;
            let (at, _) = register("o2");
            w.call("PUT", &at, Some(json!({"address": "127.0.0.1:7002"}))).await
        };
        let ((status, seen), _) = tokio::join!(watching, changing);
        assert_eq!((status, seen["instances"].as_array().unwrap().len()), (200, 2));
        assert!(seen["index"].as_u64().unwrap() > index);
        let (_, same) = w.call("GET", &format!("/v1/services?index={}&wait=1ms", seen["index"]), None).await;
        assert_eq!(same["index"], seen["index"], "nothing changed, so it gave up waiting");
    }

    #[tokio::test]
    async fn services_are_listed_in_pages() {
        let w = world();
        for s in ["a", "b", "c"] {
            w.call("PUT", &format!("/v1/services/{s}/instances/i"), Some(json!({"address": "127.0.0.1:1"}))).await;
        }
        let (_, first) = w.call("GET", "/v1/services?limit=2", None).await;
        assert_eq!((first["items"].as_array().unwrap().len(), &first["next"]), (2, &json!("b")));
        let (_, rest) = w.call("GET", "/v1/services?limit=2&cursor=b", None).await;
        assert_eq!((&rest["items"][0]["name"], &rest["next"]), (&json!("c"), &Value::Null));
    }

    #[tokio::test]
    async fn what_is_wrong_with_a_registration_is_named() {
        let w = world();
        w.mesh.forbid(&["127.0.0.1:8081".parse().unwrap()]);
        let ok = json!({"address": "127.0.0.1:7001"});
        let with = |k: &str, v: Value| {
            let mut b = ok.clone();
            b[k] = v;
            b
        };
        let at = "/v1/services/order/instances/o1";
        for (path, body, status, detail) in [
            ("/v1/services/-order/instances/o1", ok.clone(), 400, "'-order' is not a name"),
            ("/v1/services/order/instances/a%20b", ok.clone(), 400, "'a b' is not a name"),
            (at, json!({}), 400, "address"),
            (at, with("address", json!("nowhere")), 400, "'nowhere' is not an address"),
            (at, with("address", json!("127.0.0.1:8081")), 400, "own listeners"),
            (at, with("protocol", json!("smtp")), 400, "smtp"),
            (at, with("ttl", json!("soon")), 400, "'soon' is not a duration"),
            (at, with("ttl", json!("0")), 400, "ttl"),
            (at, with("colour", json!("red")), 400, "colour"),
            (at, with("health", json!({"http": "/a", "tcp": true})), 400, "exactly one"),
            (at, with("health", json!({"http": "/a", "interval": "0"})), 400, "health"),
        ] {
            let (got, p) = w.call("PUT", path, Some(body)).await;
            assert_eq!(got, status, "{p}");
            assert!(p["detail"].as_str().unwrap().contains(detail), "{p} does not say {detail}");
        }
        assert_eq!(w.call("GET", "/v1/services?wait=ever&index=1", None).await.0, 400);
    }
}
