//! Bodies made into those of another version: JSON in, the declared mapping (CEL), JSON out, so that one service serves
//! both. Bodies that are mapped are collected, under [`limits::COLLECTED_BODY_BYTES`].

use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use serde_json::Value;
use weft_core::{Context, limits};
use weft_flow::expr::Scope;
use weft_flow::template::Template;

use super::body::Body;
use super::limited::Asking;
use crate::api::problem::{Problem, code, is_json, parse_json};

use crate::spec::{ANSWER_NAMES, BODY_NAMES};

/// The mappings of one version.
#[derive(Debug)]
pub(crate) struct Adapt {
    request: Option<Template>,
    response: Option<Template>,
}

/// What a mapping sees: `body` beside what every expression over a request sees; of an answer also `status`.
struct Seen<'r> {
    body: Arc<Value>,
    status: Option<u16>,
    request: &'r Asking<'r>,
}

impl Scope for Seen<'_> {
    fn value(&self, name: &str) -> Option<Arc<Value>> {
        match name {
            "body" => Some(self.body.clone()),
            "status" => self.status.map(|s| Arc::new(s.into())),
            other => self.request.value(other),
        }
    }
}

impl Adapt {
    pub(crate) fn compile(request: Option<&Value>, response: Option<&Value>) -> Result<Option<Self>, String> {
        if request.is_none() && response.is_none() {
            return Ok(None);
        }
        let mut wrong = Vec::new();
        let mut compiled = |v: &Value, known: &[&str], at: &str| {
            Template::compile(v, known, at, &mut |at, m| wrong.push(format!("{at}: {m}")))
        };
        let request = request.map(|v| compiled(v, &BODY_NAMES, "request"));
        let response = response.map(|v| compiled(v, &ANSWER_NAMES, "response"));
        if wrong.is_empty() { Ok(Some(Self { request, response })) } else { Err(wrong.join("; ")) }
    }

    /// Whether requests are mapped.
    pub(super) fn maps_requests(&self) -> bool {
        self.request.is_some()
    }

    /// Maps a request's body; one that is empty stays so.
    pub(super) fn request(
        &self,
        ctx: &Context,
        client: IpAddr,
        head: &mut Parts,
        body: Bytes,
    ) -> Result<Bytes, Problem> {
        if self.response.is_some() {
            // Answers are read here: they must be whole and plain.
            for name in [header::RANGE, header::IF_RANGE, header::ACCEPT_ENCODING] {
                head.headers.remove(name);
            }
        }
        let Some(template) = &self.request else { return Ok(body) };
        if body.is_empty() {
            return Ok(body);
        }
        if !is_json(&head.headers) {
            let detail =
                "this version's requests are adapted, and only JSON can be: send Content-Type: application/json";
            return Err(Problem::new(code::UNSUPPORTED_MEDIA_TYPE, detail));
        }
        let value: Value = parse_json(&body)?;
        let asking = Asking { ctx, client, head };
        let seen = Seen { body: Arc::new(value), status: None, request: &asking };
        let mapped = template
            .eval(&seen)
            .map_err(|e| Problem::new(code::VERSION_MAPPING, format!("the request cannot be adapted: {e}")))?;
        let mapped = Bytes::from(mapped.to_string());
        changed(&mut head.headers, mapped.len());
        Ok(mapped)
    }

    /// Maps the body of a good answer that is JSON; any other passes as it is.
    pub(super) async fn response(
        &self,
        ctx: &Context,
        client: IpAddr,
        head: &Parts,
        answer: Response<Body>,
    ) -> Result<Response<Body>, Problem> {
        let Some(template) = &self.response else { return Ok(answer) };
        if !answer.status().is_success() || !is_json(answer.headers()) || answer.body().is_end_stream() {
            return Ok(answer);
        }
        let bad = |detail: String| Problem::new(code::VERSION_MAPPING, detail).with_status(StatusCode::BAD_GATEWAY);
        if answer.headers().get(header::CONTENT_ENCODING).is_some_and(|e| e != "identity") {
            return Err(bad("the service's answer is compressed, so it cannot be adapted".into()));
        }
        let limit = limits::COLLECTED_BODY_BYTES;
        let (mut parts, body) = answer.into_parts();
        let collected = http_body_util::Limited::new(body, limit).collect();
        let collected = match ctx.deadline.instant() {
            None => collected.await,
            Some(at) => tokio::time::timeout_at(at, collected).await.map_err(|_| {
                Problem::new(code::DEADLINE_EXCEEDED, "the answer to be adapted did not arrive before the deadline")
            })?,
        };
        let bytes = match collected {
            Ok(all) => all.to_bytes(),
            Err(e) if e.downcast_ref::<http_body_util::LengthLimitError>().is_some() => {
                return Err(bad(format!("the service's answer is over the {limit} bytes that can be adapted")));
            }
            Err(e) => return Err(Problem::new(code::UPSTREAM_BROKEN, e.to_string())),
        };
        let value: Value = serde_json::from_slice(&bytes)
            .map_err(|e| bad(format!("the service's answer is not the JSON it says it is: {e}")))?;
        let asking = Asking { ctx, client, head };
        let seen = Seen { body: Arc::new(value), status: Some(parts.status.as_u16()), request: &asking };
        let mapped = template.eval(&seen).map_err(|e| bad(format!("the answer cannot be adapted: {e}")))?;
        let mapped = Bytes::from(mapped.to_string());
        changed(&mut parts.headers, mapped.len());
        Ok(Response::from_parts(parts, Body::from(mapped)))
    }
}

/// A body was changed: what spoke of the old one goes.
fn changed(h: &mut HeaderMap, len: usize) {
    for name in ["content-md5", "digest", "content-digest", "repr-digest", "accept-ranges"] {
        h.remove(HeaderName::from_static(name));
    }
    h.remove(header::ETAG);
    h.insert(header::CONTENT_LENGTH, HeaderValue::from(len));
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_mapping_with_unknown_names_does_not_compile() {
        let wrong = Adapt::compile(Some(&json!({"name": "boddy.title"})), Some(&json!("status + x"))).unwrap_err();
        assert!(wrong.contains("request.name") && wrong.contains("'boddy'") && wrong.contains("'x'"), "{wrong}");
        assert!(Adapt::compile(None, None).unwrap().is_none());
    }

    #[test]
    fn a_request_is_mapped_or_refused_with_the_reason() {
        let adapt = Adapt::compile(Some(&json!({"title": "body.name", "by": "request.method", "n": 1})), None);
        let adapt = adapt.unwrap().unwrap();
        let client = "10.0.0.1".parse().unwrap();
        let map = |content: &str, body: &'static str| {
            let request = http::Request::post("/a").header("content-type", content).header("content-md5", "x");
            let (mut head, ()) = request.body(()).unwrap().into_parts();
            let mapped = adapt.request(&Context::root(), client, &mut head, Bytes::from_static(body.as_bytes()));
            mapped.map(|b| (b, head))
        };
        let (body, head) = map("application/json", r#"{"name":"tea","x":1}"#).unwrap();
        assert_eq!(serde_json::from_slice::<Value>(&body).unwrap(), json!({"title": "tea", "by": "POST", "n": 1}));
        assert_eq!(head.headers["content-length"], body.len().to_string());
        assert!(!head.headers.contains_key("content-md5"));
        assert_eq!(map("text/plain", "x").unwrap_err().code(), code::UNSUPPORTED_MEDIA_TYPE);
        assert_eq!(map("application/json", "{").unwrap_err().code(), code::INVALID_JSON);
        let p = map("application/json", r#"{"other":1}"#).unwrap_err();
        assert!(p.code() == code::VERSION_MAPPING && p.detail().contains("name"), "{p}");
        assert!(map("text/plain", "").unwrap().0.is_empty());
    }
}
