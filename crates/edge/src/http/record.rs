//! What is counted and recorded of an exchange, once, when it ends: a server span, the request counter, the duration.

use std::fmt::Display;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri};
use tokio::time::Instant;
use weft_core::{Clock as _, SystemClock, Timestamp, Trace};
use weft_policy::bulkhead::Slot;
use weft_telemetry::{SpanKind, SpanRecord, SpanStatus, Telemetry, Text, Value};

use super::access::{Ended, Line};
use crate::gateway::Route;

/// An exchange under way; recorded when it is dropped.
#[derive(Debug)]
pub(crate) struct Exchange {
    telemetry: Telemetry,
    route: Arc<Route>,
    trace: Trace,
    began: Instant,
    method: Method,
    uri: Uri,
    status: StatusCode,
    bytes: u64,
    received: u64,
    end: End,
    error: Option<(&'static str, String)>,
    /// What goes on the answer, whatever it is.
    fields: Vec<(HeaderName, HeaderValue)>,
    version: Option<Arc<str>>,
    log: Option<Box<Line>>,
    _slot: Option<Slot>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The answer's body is still going out.
    UnderWay,
    /// All of it went out.
    Complete,
    /// The service broke it off.
    BrokenOff,
}

impl Exchange {
    pub(super) fn new(
        telemetry: &Telemetry,
        route: &Arc<Route>,
        trace: Trace,
        began: Instant,
        method: Method,
        uri: Uri,
    ) -> Self {
        route.in_flight.add(1);
        Self {
            telemetry: telemetry.clone(),
            route: route.clone(),
            trace,
            began,
            method,
            uri,
            // What a client gets that goes away before there is an answer.
            status: CLIENT_CLOSED,
            bytes: 0,
            received: 0,
            end: End::UnderWay,
            error: None,
            fields: Vec::new(),
            version: None,
            log: None,
            _slot: None,
        }
    }

    /// The target as it was asked for.
    pub(super) fn asked(&self) -> &Uri {
        &self.uri
    }

    pub(super) fn holds(&mut self, slot: Slot) {
        self._slot = Some(slot);
    }

    pub(super) fn logs(&mut self, line: Box<Line>) {
        self.log = Some(line);
    }

    pub(super) fn version(&mut self, version: Arc<str>) {
        self.version = Some(version);
    }

    /// Adds a field to the answer, whatever it will be.
    pub(super) fn field(&mut self, name: HeaderName, value: HeaderValue) {
        self.fields.push((name, value));
    }

    pub(super) fn answered(&mut self, status: StatusCode, headers: &mut HeaderMap) {
        self.status = status;
        for (name, value) in self.fields.drain(..) {
            headers.append(name, value);
        }
    }

    pub(super) fn failed(&mut self, code: &'static str, detail: &str) {
        self.error = Some((code, detail.to_owned()));
    }

    pub(super) fn sent(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
    }

    /// Bytes that came through an upgraded connection.
    pub(super) fn received(&mut self, bytes: u64) {
        self.received = bytes;
    }

    /// It was ended before its end.
    pub(super) fn cut(&mut self, code: &'static str, detail: &str) {
        self.end = End::BrokenOff;
        self.failed(code, detail);
    }

    pub(super) fn trailers(&mut self, trailers: &HeaderMap) {
        if let Some(s) = trailers.get("grpc-status")
            && s != "0"
        {
            self.error = Some(("grpc", format!("grpc-status {}", String::from_utf8_lossy(s.as_bytes()))));
        }
    }

    pub(super) fn broke_off(&mut self, e: &dyn Display) {
        self.end = End::BrokenOff;
        self.error = Some(("upstream-broken", e.to_string()));
    }

    pub(super) fn finished(&mut self) {
        if self.end == End::UnderWay {
            self.end = End::Complete;
        }
    }
}

/// The status counted when the client went away first; nginx's, widely read as that.
const CLIENT_CLOSED: StatusCode = match StatusCode::from_u16(499) {
    Ok(s) => s,
    Err(_) => StatusCode::BAD_REQUEST,
};

impl Drop for Exchange {
    fn drop(&mut self) {
        let took = self.began.elapsed();
        self.route.in_flight.add(-1);
        self.route.count(self.status, took);
        let gone = self.end == End::UnderWay;
        if let Some(line) = self.log.take() {
            line.end(&Ended {
                method: &self.method,
                status: self.status,
                bytes: self.bytes,
                took,
                route: &self.route.name,
                trace: &self.trace,
                error: self.error.as_ref().map(|(code, _)| *code).or(gone.then_some("client-gone")),
            });
        }
        let bad = self.error.is_some() || gone || self.status.is_server_error();
        if !bad && !self.telemetry.keeps(&self.trace, took) {
            return;
        }
        let ended = SystemClock.now();
        let mut span = SpanRecord {
            trace: self.trace,
            name: Text::Shared(self.route.span_name(&self.method)),
            kind: SpanKind::Server,
            service: Text::Static("gateway"),
            start: Timestamp(ended.0.saturating_sub(took.as_millis() as u64)),
            duration: took,
            status: if bad { SpanStatus::Error } else { SpanStatus::Ok },
            attributes: Vec::with_capacity(7),
        };
        span.set("weft.route", Value::Text(Text::Shared(self.route.name.clone())));
        if let Some(version) = self.version.take() {
            span.set("weft.version", Value::Text(Text::Shared(version)));
        }
        span.set("url.path", self.uri.path().to_owned());
        span.set("http.response.status_code", self.status.as_u16());
        span.set("http.response.body.size", self.bytes as i64);
        if self.received > 0 {
            span.set("http.request.body.size", self.received as i64);
        }
        if let Some((code, message)) = self.error.take() {
            span.set("error.type", code);
            span.set("error.message", message);
        } else if gone {
            span.set("error.type", "client-gone");
            span.set("error.message", "the client went away before the answer's end");
        }
        self.telemetry.record(span);
    }
}
