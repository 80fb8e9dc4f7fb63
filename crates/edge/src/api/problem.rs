//! Errors as `application/problem+json` (RFC 9457), and the extractors that answer with them.
//!
//! [`Problem`] is the one error body of the API and of the gateway. Its [`Code`]s live in one table below; `type` is the
//! place in the reference where the code is explained, so it is stable as long as the code is.

use std::fmt;

use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::request::Parts;
use http::{HeaderMap, StatusCode};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use weft_core::{Class, Classify, limits};

/// A kind of problem: the stable name, the status it is answered with, and its title.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code {
    /// The member `code`.
    pub name: &'static str,
    /// The HTTP status.
    pub status: u16,
    /// The member `title`.
    pub title: &'static str,
}

macro_rules! codes {
    ($($(#[$doc:meta])* $id:ident = $status:literal $name:literal $title:literal;)*) => {
        $($(#[$doc])* #[doc = $title] pub const $id: Code = Code { name: $name, status: $status, title: $title };)*
        /// Every code, for the reference page.
        pub const ALL: &[Code] = &[$($id),*];
    };
}

/// The table of codes.
pub mod code {
    use super::Code;

    codes! {
        BAD_REQUEST = 400 "bad-request" "The request is not well formed";
        INVALID_JSON = 400 "invalid-json" "The body is not the JSON expected";
        INVALID_QUERY = 400 "invalid-query" "The query string is not understood";
        INVALID_NAME = 400 "invalid-name" "A name has characters or a length that names may not have";
        INVALID_EVENT = 400 "invalid-event" "The body or headers are not a CloudEvent";
        INVALID_HEADER = 400 "invalid-header" "A header field has a value that is not understood";
        INVALID_PATH = 400 "invalid-path" "The path is not in normal form";
        IDEMPOTENCY_KEY_MISSING = 400 "idempotency-key-missing" "This route needs an Idempotency-Key";
        IDEMPOTENCY_KEY_INVALID = 400 "idempotency-key-invalid" "The Idempotency-Key is not usable";
        IDEMPOTENCY_KEY_ANONYMOUS = 400 "idempotency-key-anonymous" "Anonymous callers may not use an Idempotency-Key here";
        VERSION_MISSING = 400 "version-missing" "The request does not say which version it means";
        VERSION_UNKNOWN = 400 "version-unknown" "There is no such version";
        VERSION_MAPPING = 400 "version-mapping" "A body cannot be adapted between versions";
        LEASE_UNKNOWN = 400 "lease-unknown" "A lease token is not one of Weft's";
        UNAUTHENTICATED = 401 "unauthenticated" "The caller is not known";
        FORBIDDEN_ORIGIN = 403 "forbidden-origin" "Calls from this origin are refused";
        CLIENT_CERTIFICATE_REQUIRED = 403 "client-certificate-required" "A client certificate is needed here";
        FORBIDDEN = 403 "forbidden" "The caller may not do this";
        NOT_FOUND = 404 "not-found" "There is nothing here";
        ROUTE_NOT_FOUND = 404 "route-not-found" "No route matches the request";
        METHOD_NOT_ALLOWED = 405 "method-not-allowed" "The method is not allowed here";
        REQUEST_TIMEOUT = 408 "request-timeout" "The request did not arrive in time";
        CONFLICT = 409 "conflict" "The state of the resource does not allow this";
        OWNED_BY_FILE = 409 "owned-by-file" "The configuration file owns this object";
        LEASE_STALE = 409 "lease-stale" "A lease is no longer held";
        PRECONDITION_FAILED = 409 "precondition-failed" "A precondition does not hold";
        IDEMPOTENCY_IN_FLIGHT = 409 "idempotency-key-in-flight" "A request with this Idempotency-Key is still running";
        IDEMPOTENCY_NOT_REPLAYABLE = 409 "idempotency-not-replayable" "The request with this Idempotency-Key ran, its answer was not kept";
        SAGA_COMPENSATED = 409 "saga-compensated" "A step failed and what was done is undone";
        VERSION_GONE = 410 "version-gone" "The version is no longer served";
        TOO_LARGE = 413 "too-large" "The body is over the limit";
        UNSUPPORTED_MEDIA_TYPE = 415 "unsupported-media-type" "The content type is not accepted here";
        MISDIRECTED = 421 "misdirected-request" "The Host is not one this listener answers for";
        IDEMPOTENCY_KEY_REUSED = 422 "idempotency-key-reused" "The Idempotency-Key was used with another request";
        SAGA_REJECTED = 422 "saga-rejected" "A step refused the request and what was done is undone";
        RATE_LIMITED = 429 "rate-limited" "Too many requests";
        QUOTA_EXCEEDED = 429 "quota-exceeded" "The quota of this day or month is used up";
        INTERNAL = 500 "internal" "Weft failed; this is a bug";
        OUTCOME_UNKNOWN = 500 "outcome-unknown" "Whether the work was done is not known";
        NOT_IMPLEMENTED = 501 "not-implemented" "This is not supported";
        UPSTREAM_UNREACHABLE = 502 "upstream-unreachable" "The service cannot be reached";
        UPSTREAM_INVALID = 502 "upstream-invalid" "The service cannot be called as configured";
        UPSTREAM_BROKEN = 502 "upstream-broken" "The service broke off its answer";
        AUTH_UNAVAILABLE = 503 "auth-unavailable" "Who is calling cannot be checked now";
        ANSWER_TOO_LARGE = 502 "answer-too-large" "The service's answer is over the route's limit";
        OVERLOADED = 503 "overloaded" "There is more work than can be done now";
        BULKHEAD_FULL = 503 "bulkhead-full" "As many requests as allowed are running";
        BULKHEAD_WAIT = 503 "bulkhead-wait" "No place among the running requests became free in time";
        BREAKER_OPEN = 503 "breaker-open" "The service failed too often and is given time";
        NO_INSTANCE = 503 "no-instance" "The service has no healthy instance";
        QUEUE_BEHIND = 503 "queue-behind" "A queue that this route depends on is too far behind";
        FAULT_INJECTED = 503 "fault-injected" "The route fails some requests on purpose";
        STORE_UNAVAILABLE = 503 "store-unavailable" "The store takes no work now";
        NOT_READY = 503 "not-ready" "Weft is not ready";
        SHUTTING_DOWN = 503 "shutting-down" "Weft is shutting down";
        UPSTREAM_TIMEOUT = 504 "upstream-timeout" "The service did not answer in time";
        DEADLINE_EXCEEDED = 504 "deadline-exceeded" "The deadline of the request passed";
        INSUFFICIENT_STORAGE = 507 "insufficient-storage" "The data directory is nearly full";
    }
}

const TYPE_BASE: &str = "https://github.com/weft-rs/weft/blob/main/docs/reference/problems.md#";

/// One error answer. Build with [`Problem::new`], add with the `with_` methods, return it from a handler.
#[derive(Clone, Debug)]
pub struct Problem(Box<Inner>);

#[derive(Clone, Debug)]
struct Inner {
    code: Code,
    status: StatusCode,
    detail: String,
    extra: Map<String, Value>,
    headers: HeaderMap,
}

impl Problem {
    /// A problem with the code's own status.
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        let status = StatusCode::from_u16(code.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Self(Box::new(Inner { code, status, detail: detail.into(), extra: Map::new(), headers: HeaderMap::new() }))
    }

    /// Another status than the code's.
    pub fn with_status(mut self, status: StatusCode) -> Self {
        self.0.status = status;
        self
    }

    /// Another detail.
    pub fn with_detail(mut self, detail: impl Into<String>) -> Self {
        self.0.detail = detail.into();
        self
    }

    /// Adds a member.
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.0.extra.insert(name.to_owned(), value.into());
        self
    }

    /// Adds a header field to the answer.
    pub fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.0.headers.insert(name, value);
        self
    }

    /// Adds `Retry-After`, in whole seconds, at least one.
    pub fn with_retry_after(self, wait: std::time::Duration) -> Self {
        let secs = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        self.with_header(header::RETRY_AFTER, secs.max(1).into())
    }

    /// The status it answers with.
    pub fn status(&self) -> StatusCode {
        self.0.status
    }

    /// The code.
    pub fn code(&self) -> Code {
        self.0.code
    }

    /// What went wrong in this case.
    pub fn detail(&self) -> &str {
        &self.0.detail
    }

    /// Header fields it adds.
    pub fn headers(&self) -> &HeaderMap {
        &self.0.headers
    }

    /// The body.
    pub fn to_json(&self) -> Value {
        let p = &self.0;
        let mut m = Map::new();
        m.insert("type".into(), format!("{TYPE_BASE}{}", p.code.name).into());
        m.insert("title".into(), p.code.title.into());
        m.insert("status".into(), p.status.as_u16().into());
        m.insert("code".into(), p.code.name.into());
        m.insert("detail".into(), p.detail.clone().into());
        for (k, v) in &p.extra {
            m.entry(k.clone()).or_insert_with(|| v.clone());
        }
        Value::Object(m)
    }

    /// The whole answer with a body of any type made from bytes.
    pub fn to_response<B: From<Bytes>>(&self) -> http::Response<B> {
        let mut r = http::Response::new(B::from(Bytes::from(self.to_json().to_string())));
        *r.status_mut() = self.0.status;
        r.headers_mut().clone_from(&self.0.headers);
        r.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        r.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        r
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.0.code.name, self.0.detail)
    }
}

impl std::error::Error for Problem {}

impl Classify for Problem {
    fn class(&self) -> Class {
        match self.0.status.as_u16() {
            429 | 507 => Class::Overloaded,
            502..=504 => Class::Retryable,
            400..=499 => Class::Rejected,
            _ => Class::Fault,
        }
    }
    fn origin(&self) -> weft_core::Origin {
        match self.0.status.as_u16() {
            400..=499 => weft_core::Origin::Downstream,
            502 | 504 => weft_core::Origin::Upstream,
            _ => weft_core::Origin::Internal,
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        self.to_response::<axum::body::Body>()
    }
}

impl From<weft_core::name::InvalidName> for Problem {
    fn from(e: weft_core::name::InvalidName) -> Self {
        Problem::new(code::INVALID_NAME, e.to_string())
    }
}

impl From<weft_core::envelope::InvalidEnvelope> for Problem {
    fn from(e: weft_core::envelope::InvalidEnvelope) -> Self {
        let code = match e {
            weft_core::envelope::InvalidEnvelope::TooLarge { .. } => code::TOO_LARGE,
            _ => code::INVALID_EVENT,
        };
        Problem::new(code, e.to_string())
    }
}

impl From<weft_store::Error> for Problem {
    fn from(e: weft_store::Error) -> Self {
        use weft_store::Error as E;
        let code = match &e {
            E::Precondition { .. } => code::PRECONDITION_FAILED,
            E::TooLarge { .. } => code::TOO_LARGE,
            E::Overloaded => code::OVERLOADED,
            E::DiskFull { .. } => code::INSUFFICIENT_STORAGE,
            E::Unknown { .. } => code::OUTCOME_UNKNOWN,
            E::Unavailable { .. } => code::STORE_UNAVAILABLE,
            E::Damaged { .. } | E::Io { .. } | E::Directory(_) => code::INTERNAL,
        };
        let p = Problem::new(code, e.to_string());
        match e.class() {
            Class::Overloaded | Class::Retryable => p.with_retry_after(std::time::Duration::from_secs(1)),
            _ => p,
        }
    }
}

/// A JSON body. Wrong content type: 415; over [`limits::API_BODY_BYTES`]: 413; not the JSON expected: 400 with `line`
/// and `column`.
#[derive(Clone, Debug)]
pub struct Json<T>(pub T);

/// A JSON body that may be left out: an empty body is `T::default()`.
#[derive(Clone, Debug)]
pub struct OptionalJson<T>(pub T);

/// Path parameters; not the type expected: 400.
#[derive(Clone, Debug)]
pub struct Path<T>(pub T);

/// Query parameters; not the type expected: 400.
#[derive(Clone, Debug)]
pub struct Query<T>(pub T);

/// Collects a body under [`limits::API_BODY_BYTES`].
pub async fn collect(body: axum::body::Body) -> Result<Bytes, Problem> {
    match Limited::new(body, limits::API_BODY_BYTES).collect().await {
        Ok(b) => Ok(b.to_bytes()),
        Err(e) if e.downcast_ref::<LengthLimitError>().is_some() => Err(too_large(limits::API_BODY_BYTES)),
        Err(e) => Err(Problem::new(code::BAD_REQUEST, format!("the body could not be read: {e}"))),
    }
}

/// 413 that names the limit.
pub fn too_large(limit: usize) -> Problem {
    Problem::new(code::TOO_LARGE, format!("the body is over the limit of {limit} bytes")).with("limit", limit)
}

/// Parses JSON; the problem says the line and column where it stopped being what was expected.
pub fn parse_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    serde_json::from_slice(bytes)
        .map_err(|e| Problem::new(code::INVALID_JSON, e.to_string()).with("line", e.line()).with("column", e.column()))
}

/// Whether a content type is JSON: `application/json` or a `+json` suffix, parameters aside.
pub fn is_json(headers: &HeaderMap) -> bool {
    let Some(v) = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()) else { return false };
    let essence = v.split(';').next().unwrap_or("").trim().to_ascii_lowercase();
    essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json"))
}

fn need_json(headers: &HeaderMap) -> Result<(), Problem> {
    if is_json(headers) {
        return Ok(());
    }
    let got = headers.get(header::CONTENT_TYPE).map_or("no content type".into(), |v| format!("{v:?}"));
    Err(Problem::new(code::UNSUPPORTED_MEDIA_TYPE, format!("send Content-Type: application/json, not {got}")))
}

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Json<T> {
    type Rejection = Problem;
    async fn from_request(req: Request, _: &S) -> Result<Self, Problem> {
        need_json(req.headers())?;
        parse_json(&collect(req.into_body()).await?).map(Self)
    }
}

impl<S: Send + Sync, T: DeserializeOwned + Default> FromRequest<S> for OptionalJson<T> {
    type Rejection = Problem;
    async fn from_request(req: Request, _: &S) -> Result<Self, Problem> {
        let (parts, body) = req.into_parts();
        let bytes = collect(body).await?;
        if bytes.is_empty() {
            return Ok(Self(T::default()));
        }
        need_json(&parts.headers)?;
        parse_json(&bytes).map(Self)
    }
}

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Path<T> {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match axum::extract::Path::from_request_parts(parts, state).await {
            Ok(axum::extract::Path(v)) => Ok(Self(v)),
            Err(e) => Err(Problem::new(code::INVALID_PATH, e.body_text())),
        }
    }
}

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match axum::extract::Query::from_request_parts(parts, state).await {
            Ok(axum::extract::Query(v)) => Ok(Self(v)),
            Err(e) => Err(Problem::new(code::INVALID_QUERY, e.body_text())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_named_once_and_has_an_error_status() {
        let mut names: Vec<_> = code::ALL.iter().map(|c| c.name).collect();
        names.sort_unstable();
        let n = names.len();
        names.dedup();
        assert_eq!(names.len(), n);
        assert!(code::ALL.iter().all(|c| (400..600).contains(&c.status)));
    }

    #[test]
    fn a_json_error_names_line_and_column() {
        let p = parse_json::<Vec<u8>>(b"[1,\n 2,\n x]").unwrap_err();
        let v = p.to_json();
        assert_eq!(
            (v["code"].as_str(), v["line"].as_u64(), v["column"].as_u64()),
            (Some("invalid-json"), Some(3), Some(2))
        );
    }

    #[test]
    fn extra_members_never_replace_the_standard_ones() {
        let v = Problem::new(code::CONFLICT, "d").with("status", 1).with("place", "x").to_json();
        assert_eq!((v["status"].as_u64(), v["place"].as_str()), (Some(409), Some("x")));
    }

    #[test]
    fn retry_after_is_at_least_one_second_and_rounds_up() {
        let wait = |ms| {
            let p = Problem::new(code::OVERLOADED, "").with_retry_after(std::time::Duration::from_millis(ms));
            p.headers()[header::RETRY_AFTER].to_str().unwrap().to_owned()
        };
        assert_eq!((wait(0), wait(1001)), ("1".into(), "2".into()));
    }

    #[test]
    fn the_reference_page_lists_every_code_with_its_status_and_title() {
        let page = include_str!("../../../../docs/reference/problems.md");
        for c in code::ALL {
            let entry = format!("\n## {}\n{}: {}.\n", c.name, c.status, c.title);
            assert!(page.contains(&entry), "docs/reference/problems.md does not say:{entry}");
        }
        assert_eq!(page.matches("\n## ").count(), code::ALL.len(), "the page has a code that is none");
    }
}
