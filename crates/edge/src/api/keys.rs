//! Make, list, rotate, disable and revoke API keys.

use std::time::Duration;

use axum::Router;
use axum::extract::{FromRef, State};
use axum::routing::{get, post};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use weft_core::Timestamp;
use weft_core::units::parse_duration;
use weft_policy::auth::key::{Clear, Record};

use super::Api;
use super::problem::{Json, OptionalJson, Path, Problem, Query, code};
use crate::auth::ApiKeys;
use crate::auth::api_keys::Error;

/// Keys in one page, when the caller does not say, and at most.
const PAGE: (usize, usize) = (100, 1_000);
/// Bytes of an owner, and of a scope.
const TEXT_BYTES: usize = 128;
/// Scopes of one key.
const SCOPES: usize = 64;
/// How long the old secret is good after a rotation, when the caller does not say.
const OVERLAP: Duration = Duration::from_secs(24 * 3600);

pub(super) fn routes() -> Router<Api> {
    table()
}

impl FromRef<Api> for ApiKeys {
    fn from_ref(api: &Api) -> ApiKeys {
        api.api_keys.clone()
    }
}

fn table<S>() -> Router<S>
where
    S: Clone + Send + Sync + 'static,
    ApiKeys: FromRef<S>,
{
    Router::new()
        .route("/v1/keys", get(list).post(create))
        .route("/v1/keys/{id}", get(one).delete(revoke))
        .route("/v1/keys/{id}/rotate", post(rotate))
        .route("/v1/keys/{id}/disable", post(disable))
        .route("/v1/keys/{id}/enable", post(enable))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Create {
    owner: String,
    #[serde(default)]
    scopes: Vec<String>,
    expires_in: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rotate {
    overlap: Option<String>,
}

#[derive(Deserialize)]
struct Page {
    limit: Option<usize>,
    cursor: Option<String>,
}

/// What is shown of a key: everything but its secrets.
#[derive(Serialize)]
struct View {
    id: String,
    prefix: String,
    owner: String,
    scopes: Vec<String>,
    created: String,
    expires: Option<String>,
    disabled: bool,
    secrets: Vec<SecretView>,
    /// The key itself, once.
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
}

#[derive(Serialize)]
struct SecretView {
    created: String,
    expires: Option<String>,
}

#[derive(Serialize)]
struct List {
    items: Vec<View>,
    next: Option<String>,
}

impl View {
    fn of(r: &Record, key: Option<Clear>) -> Self {
        let text = |t: &Timestamp| t.to_string();
        let secret = |s: &weft_policy::auth::key::Secret| SecretView {
            created: text(&s.created),
            expires: s.expires.as_ref().map(text),
        };
        Self {
            id: r.id.clone(),
            prefix: format!("weft_{}_", r.id),
            owner: r.owner.clone(),
            scopes: r.scopes.clone(),
            created: text(&r.created),
            expires: r.expires.as_ref().map(text),
            disabled: r.disabled,
            secrets: r.secrets.iter().map(secret).collect(),
            key: key.map(|k| k.expose().to_owned()),
        }
    }
}

fn bad(member: &str, detail: impl Into<String>) -> Problem {
    Problem::new(code::BAD_REQUEST, detail).with("member", member)
}

fn duration(member: &str, text: &str) -> Result<Duration, Problem> {
    parse_duration(text).map_err(|e| bad(member, format!("{member}: {e}")))
}

async fn create(State(keys): State<ApiKeys>, Json(c): Json<Create>) -> Result<(StatusCode, axum::Json<View>), Problem> {
    let printable = |s: &str| !s.is_empty() && s.len() <= TEXT_BYTES && s.bytes().all(|b| (b'!'..=b'~').contains(&b));
    if !printable(&c.owner) {
        return Err(bad("owner", format!("owner has 1 to {TEXT_BYTES} visible ASCII characters, without blanks")));
    }
    // RFC 6749 3.3: quotes and backslashes cannot stand in a challenge.
    if c.scopes.len() > SCOPES || c.scopes.iter().any(|s| !printable(s) || s.contains(['"', '\\'])) {
        let detail =
            format!("at most {SCOPES} scopes, each of 1 to {TEXT_BYTES} visible ASCII characters but \" and \\");
        return Err(bad("scopes", detail));
    }
    let lives = c.expires_in.as_deref().map(|t| duration("expires_in", t)).transpose()?;
    let (record, key) = keys.create(&c.owner, c.scopes, lives).await.map_err(problem)?;
    Ok((StatusCode::CREATED, axum::Json(View::of(&record, Some(key)))))
}

async fn list(State(keys): State<ApiKeys>, Query(q): Query<Page>) -> Result<axum::Json<List>, Problem> {
    let limit = q.limit.unwrap_or(PAGE.0);
    if limit == 0 || limit > PAGE.1 {
        return Err(Problem::new(code::INVALID_QUERY, format!("limit is {limit}; 1 to {} are allowed", PAGE.1)));
    }
    let mut found = keys.list(q.cursor.as_deref(), limit + 1);
    let more = found.len() > limit;
    found.truncate(limit);
    let next = if more { found.last().map(|r| r.id.clone()) } else { None };
    Ok(axum::Json(List { items: found.iter().map(|r| View::of(r, None)).collect(), next }))
}

async fn one(State(keys): State<ApiKeys>, Path(id): Path<String>) -> Result<axum::Json<View>, Problem> {
    let found = keys.get(&id).ok_or(Error::Unknown(id)).map_err(problem)?;
    Ok(axum::Json(View::of(&found, None)))
}

async fn rotate(
    State(keys): State<ApiKeys>,
    Path(id): Path<String>,
    OptionalJson(r): OptionalJson<Rotate>,
) -> Result<axum::Json<View>, Problem> {
    let overlap = r.overlap.as_deref().map(|t| duration("overlap", t)).transpose()?.unwrap_or(OVERLAP);
    let (record, key) = keys.rotate(&id, overlap).await.map_err(problem)?;
    Ok(axum::Json(View::of(&record, Some(key))))
}

async fn disable(State(keys): State<ApiKeys>, Path(id): Path<String>) -> Result<axum::Json<View>, Problem> {
    Ok(axum::Json(View::of(&*keys.disable(&id, true).await.map_err(problem)?, None)))
}

async fn enable(State(keys): State<ApiKeys>, Path(id): Path<String>) -> Result<axum::Json<View>, Problem> {
    Ok(axum::Json(View::of(&*keys.disable(&id, false).await.map_err(problem)?, None)))
}

async fn revoke(State(keys): State<ApiKeys>, Path(id): Path<String>) -> Result<StatusCode, Problem> {
    keys.revoke(&id).await.map_err(problem)?;
    Ok(StatusCode::NO_CONTENT)
}

fn problem(e: Error) -> Problem {
    let code = match &e {
        Error::Store(e) => return e.clone().into(),
        Error::Unknown(_) => code::NOT_FOUND,
        Error::TooMany => code::OVERLOADED,
        Error::Format { .. } => code::INTERNAL,
    };
    Problem::new(code, e.to_string())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use http::Request;
    use http_body_util::BodyExt as _;
    use serde_json::{Value, json};
    use tower_service::Service as _;
    use weft_store::{Config, Embedded};

    use super::*;

    async fn call(keys: &ApiKeys, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
        let mut request = Request::builder().method(method).uri(path);
        if body.is_some() {
            request = request.header("content-type", "application/json");
        }
        let body = axum::body::Body::from(body.map_or(String::new(), |b| b.to_string()));
        let answer = table().with_state(keys.clone()).call(request.body(body).unwrap()).await.unwrap();
        let status = answer.status().as_u16();
        let bytes = answer.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
    }

    async fn world() -> (ApiKeys, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(Embedded::open(Config::new(dir.path())).unwrap());
        (ApiKeys::open(store).await.unwrap(), dir)
    }

    #[tokio::test]
    async fn a_key_is_shown_once_and_lives_through_its_changes() {
        let (keys, _dir) = world().await;
        let body = json!({"owner": "acme", "scopes": ["a", "b"], "expires_in": "90d"});
        let (status, made) = call(&keys, "POST", "/v1/keys", Some(body)).await;
        assert_eq!(status, 201, "{made}");
        let (id, key) = (made["id"].as_str().unwrap(), made["key"].as_str().unwrap());
        assert!(key.starts_with(made["prefix"].as_str().unwrap()));
        assert!(made["expires"].is_string() && made["disabled"] == json!(false));
        let at = format!("/v1/keys/{id}");
        let (_, shown) = call(&keys, "GET", &at, None).await;
        assert_eq!((shown["owner"].as_str(), shown.get("key")), (Some("acme"), None));
        assert!(!shown.to_string().contains(key) && !shown.to_string().contains("hash"));

        let (status, turned) = call(&keys, "POST", &format!("{at}/rotate"), Some(json!({"overlap": "1h"}))).await;
        assert_eq!((status, turned["secrets"].as_array().unwrap().len()), (200, 2));
        assert_ne!(turned["key"].as_str(), Some(key));
        assert_eq!(call(&keys, "POST", &format!("{at}/rotate"), None).await.0, 200, "the overlap may be left out");
        assert_eq!(call(&keys, "POST", &format!("{at}/disable"), None).await.1["disabled"], json!(true));
        assert_eq!(call(&keys, "POST", &format!("{at}/enable"), None).await.1["disabled"], json!(false));
        assert_eq!(call(&keys, "DELETE", &at, None).await.0, 204);
        for (method, path) in [("GET", at.clone()), ("DELETE", at.clone()), ("POST", format!("{at}/rotate"))] {
            let (status, p) = call(&keys, method, &path, None).await;
            assert_eq!((status, p["code"].as_str()), (404, Some("not-found")), "{method} {path}");
        }
    }

    #[tokio::test]
    async fn keys_are_listed_page_by_page() {
        let (keys, _dir) = world().await;
        for _ in 0..5 {
            keys.create("acme", vec![], None).await.unwrap();
        }
        let mut seen = Vec::new();
        let mut path = "/v1/keys?limit=2".to_owned();
        let mut pages = 0;
        loop {
            pages += 1;
            let (_, page) = call(&keys, "GET", &path, None).await;
            seen.extend(page["items"].as_array().unwrap().iter().map(|k| k["id"].as_str().unwrap().to_owned()));
            match page["next"].as_str() {
                Some(next) => path = format!("/v1/keys?limit=2&cursor={next}"),
                None => break,
            }
        }
        assert_eq!(pages, 3);
        seen.dedup();
        assert_eq!(seen.len(), 5);
    }

    #[tokio::test]
    async fn what_cannot_be_a_key_is_refused_with_the_member() {
        let (keys, _dir) = world().await;
        for (body, member) in [
            (json!({"owner": ""}), "owner"),
            (json!({"owner": "a b"}), "owner"),
            (json!({"owner": "a", "scopes": ["x y"]}), "scopes"),
            (json!({"owner": "a", "scopes": ["x\"y"]}), "scopes"),
            (json!({"owner": "a", "expires_in": "soon"}), "expires_in"),
        ] {
            let (status, p) = call(&keys, "POST", "/v1/keys", Some(body)).await;
            assert_eq!((status, p["member"].as_str()), (400, Some(member)), "{p}");
        }
        assert_eq!(call(&keys, "GET", "/v1/keys?limit=0", None).await.0, 400);
        assert!(keys.list(None, 10).is_empty());
    }
}
