//! One request to a service, across all its attempts: the head stays, the body is handed out while there is one, and
//! instances that were tried are remembered.

use std::net::IpAddr;
use std::sync::Arc;

use http::header::{HeaderName, HeaderValue};
use http::request::Parts;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, Method, Request, Uri, Version, header};
use parking_lot::Mutex;
use weft_policy::attempt::Replay;

use crate::body::{Body, Upload};
use crate::error::Error;

/// How many tried instances a request remembers; beyond it the first ones count as fresh again.
const TRIED: usize = 8;

/// `Idempotency-Key` (IETF httpapi draft).
pub const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// A request on its way to a service. Each attempt copies the head; nothing else is copied.
///
/// Header fields that belong to one connection must have been removed by the caller. The URI's path and query are
/// sent; `Host` (or the URI's authority) is kept, and is the instance's address when there is none.
#[derive(Debug)]
pub struct Outbound {
    pub(crate) head: Parts,
    repeatable: bool,
    source: Option<IpAddr>,
    upload: Option<Arc<Upload>>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    body: Option<Body>,
    tried: [u64; TRIED],
    tries: usize,
}

impl Outbound {
    /// Takes the request apart.
    pub fn new(request: Request<impl Into<Body>>) -> Self {
        let (head, body) = request.into_parts();
        let body = body.into();
        let repeatable = body.is_repeatable();
        let (body, upload) = match repeatable {
            true => (body, None),
            false => {
                let (body, upload) = body.watched();
                (body, Some(upload))
            }
        };
        Self {
            head,
            repeatable,
            source: None,
            upload,
            state: Mutex::new(State { body: Some(body), tried: [0; TRIED], tries: 0 }),
        }
    }

    /// Says who asked, for services whose instances are picked by it.
    pub fn asked_by(self, source: IpAddr) -> Self {
        Self { source: Some(source), ..self }
    }

    /// Who asked.
    pub(crate) fn source(&self) -> Option<IpAddr> {
        self.source
    }

    /// Whether the caller's body is still on its way, or broke off: whatever goes wrong now, the service is not to blame.
    pub fn is_uploading(&self) -> bool {
        self.upload.as_ref().is_some_and(|u| !u.is_complete())
    }

    /// How far a streamed body is.
    pub(crate) fn upload(&self) -> Option<&Arc<Upload>> {
        self.upload.as_ref()
    }

    /// The head.
    pub fn head(&self) -> &Parts {
        &self.head
    }

    /// Whether sending it again is safe: the method is idempotent (RFC 9110 9.2.2) or it carries an `Idempotency-Key`,
    /// and the body can be sent more than once.
    pub fn replay(&self) -> Replay {
        let safe = self.head.method.is_idempotent() || self.head.headers.contains_key(IDEMPOTENCY_KEY);
        if safe && self.repeatable { Replay::Safe } else { Replay::OnlyIfUnsent }
    }

    /// Whether a keep-alive race may be settled by sending again without asking anyone.
    pub(crate) fn may_race(&self) -> bool {
        self.repeatable && self.head.method.is_idempotent()
    }

    pub(crate) fn is_repeatable(&self) -> bool {
        self.repeatable
    }

    pub(crate) fn take_body(&self) -> Result<Body, Error> {
        let mut state = self.state.lock();
        match state.body.as_ref().and_then(Body::again) {
            Some(again) => Ok(again),
            None => state.body.take().ok_or(Error::BodySpent),
        }
    }

    /// Puts a body back that was not sent.
    pub(crate) fn put_back(&self, body: Body) {
        self.state.lock().body.get_or_insert(body);
    }

    pub(crate) fn mark_tried(&self, endpoint: u64) {
        let mut state = self.state.lock();
        let at = state.tries % TRIED;
        state.tried[at] = endpoint;
        state.tries += 1;
    }

    pub(crate) fn tried(&self) -> Tried {
        let state = self.state.lock();
        Tried { ids: state.tried, n: state.tries.min(TRIED) }
    }
}

/// The instances tried so far.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tried {
    ids: [u64; TRIED],
    n: usize,
}

impl Tried {
    pub(crate) fn has(&self, endpoint: u64) -> bool {
        self.ids[..self.n].contains(&endpoint)
    }
}

/// What an attempt writes over the head.
pub(crate) struct Overlay<'a> {
    /// `traceparent` of the attempt's span; checks of health have none.
    pub traceparent: Option<[u8; 55]>,
    /// W3C baggage that travels with the context.
    pub baggage: Option<&'a str>,
    /// `grpc-timeout`, for gRPC instances.
    pub grpc_timeout: Option<HeaderValue>,
}

pub(crate) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
pub(crate) const BAGGAGE: HeaderName = HeaderName::from_static("baggage");
const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

impl Overlay<'_> {
    fn headers(&self, head: &Parts) -> HeaderMap {
        let mut headers = head.headers.clone();
        if let Some(v) = self.traceparent.and_then(|t| HeaderValue::from_bytes(&t).ok()) {
            headers.insert(TRACEPARENT, v);
        }
        if let Some(v) = self.baggage.and_then(|b| HeaderValue::from_str(b).ok()) {
            headers.insert(BAGGAGE, v);
        }
        headers
    }

    /// The request with its pseudo-header fields for HTTP/2.
    pub(crate) fn h2(
        &self,
        head: &Parts,
        body: Body,
        default_authority: &Authority,
        scheme: Scheme,
        grpc: bool,
    ) -> Result<Request<Body>, Error> {
        let mut headers = self.headers(head);
        let host = headers.remove(header::HOST);
        let authority = match (host, head.uri.authority()) {
            // The URI's authority first: for a request that came over HTTP/2 it is `:authority` (RFC 9113 8.3.1).
            (_, Some(a)) => a.clone(),
            (Some(h), None) => Authority::from_maybe_shared(bytes::Bytes::copy_from_slice(h.as_bytes()))
                .map_err(|e| Error::InvalidRequest { reason: Arc::from(format!("Host: {e}")) })?,
            (None, None) => default_authority.clone(),
        };
        if grpc {
            headers.insert(header::TE, HeaderValue::from_static("trailers"));
            if let Some(t) = &self.grpc_timeout {
                headers.insert(GRPC_TIMEOUT, t.clone());
            }
        }
        let uri = Uri::builder().scheme(scheme).authority(authority).path_and_query(path_of(head)).build();
        let uri = uri.map_err(|e| Error::InvalidRequest { reason: Arc::from(e.to_string()) })?;
        Ok(request(head.method.clone(), uri, Version::HTTP_2, headers, body))
    }
}

fn path_of(head: &Parts) -> PathAndQuery {
    head.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"))
}

fn request(method: Method, uri: Uri, version: Version, headers: HeaderMap, body: Body) -> Request<Body> {
    let mut r = Request::new(body);
    *r.method_mut() = method;
    *r.uri_mut() = uri;
    *r.version_mut() = version;
    *r.headers_mut() = headers;
    r
}

/// A duration as `grpc-timeout` writes it: at most eight digits and a unit.
pub(crate) fn grpc_timeout(left: std::time::Duration) -> Option<HeaderValue> {
    let units = [(left.as_micros(), "u"), (left.as_millis(), "m"), (u128::from(left.as_secs()), "S")];
    let (n, unit) = units.into_iter().find(|(n, _)| *n < 100_000_000)?;
    HeaderValue::from_str(&format!("{n}{unit}")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use std::time::Duration;

    #[test]
    fn a_request_is_safe_to_replay_when_method_or_key_say_so_and_the_body_can_be_repeated() {
        let of = |m: &str, key: bool, body: Body| {
            let mut r = Request::builder().method(m).uri("/");
            if key {
                r = r.header("Idempotency-Key", "k");
            }
            Outbound::new(r.body(body).unwrap()).replay()
        };
        let stream = || Body::stream(http_body_util::Full::new(Bytes::from_static(b"x")));
        assert_eq!(of("GET", false, Body::Empty), Replay::Safe);
        assert_eq!(of("PUT", false, Bytes::from_static(b"x").into()), Replay::Safe);
        assert_eq!(of("POST", false, Body::Empty), Replay::OnlyIfUnsent);
        assert_eq!(of("POST", true, Body::Empty), Replay::Safe);
        assert_eq!(of("POST", true, stream()), Replay::OnlyIfUnsent);
    }

    #[test]
    fn a_stream_is_handed_out_once_and_again_when_put_back() {
        let stream = Body::stream(http_body_util::Full::new(Bytes::from_static(b"x")));
        let out = Outbound::new(Request::new(stream));
        let body = out.take_body().unwrap();
        assert!(matches!(out.take_body(), Err(Error::BodySpent)));
        out.put_back(body);
        assert!(out.take_body().is_ok());
    }

    #[test]
    fn a_grpc_timeout_has_at_most_eight_digits() {
        let shown = |d| grpc_timeout(d).unwrap().to_str().unwrap().to_owned();
        assert_eq!(shown(Duration::from_millis(1500)), "1500000u");
        assert_eq!(shown(Duration::from_secs(3_600)), "3600000m");
        assert_eq!(shown(Duration::from_secs(10_000_000)), "10000000S");
    }
}
