//! What is counted and recorded of calls to a service: counters per service, a client span per attempt.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use http::Method;
use tokio::time::Instant;
use weft_core::{Class, Clock as _, Name, SystemClock, Timestamp, Trace};
use weft_policy::attempt::Attempt;
use weft_policy::outcome::{self, Judged, Outcome, Transport};
use weft_telemetry::metrics::{Counter, Gauge, Histogram, Raised};
use weft_telemetry::{SpanKind, SpanRecord, SpanStatus, Telemetry, Text, Value, names};

use crate::body::Upload;
use crate::endpoint::{Endpoint, Load};
use crate::error::Error;
use crate::outbound::Outbound;
use crate::outlier::Outliers;
use crate::spec::Protocol;

/// A service's counters.
#[derive(Debug)]
pub(crate) struct Meter {
    telemetry: Telemetry,
    service: Arc<str>,
    /// By outcome: success, then [`Class`] in its order.
    requests: [Counter; 5],
    duration: Histogram,
    connects: [Counter; 2],
    reused: Counter,
    in_flight: Gauge,
    /// Takes out instances by their answers.
    pub(crate) outliers: ArcSwapOption<Outliers>,
}

const OUTCOMES: [&str; 5] = ["success", "retryable", "overloaded", "rejected", "fault"];

fn outcome_index(o: &Outcome) -> usize {
    match o.failure {
        None => 0,
        Some(Class::Retryable) => 1,
        Some(Class::Overloaded) => 2,
        Some(Class::Rejected) => 3,
        Some(Class::Fault) => 4,
    }
}

impl Meter {
    pub(crate) fn new(telemetry: &Telemetry, service: &Name) -> Self {
        let m = telemetry.metrics();
        let own = [("service", service.as_str())];
        let requests = OUTCOMES.map(|o| m.counter(&names::UPSTREAM_REQUESTS, &[own[0], ("outcome", o)]));
        let connects = ["ok", "failed"].map(|r| m.counter(&names::UPSTREAM_CONNECTS, &[own[0], ("result", r)]));
        Self {
            telemetry: telemetry.clone(),
            service: service.to_shared(),
            requests,
            duration: m.histogram(&names::UPSTREAM_DURATION, &own),
            connects,
            reused: m.counter(&names::UPSTREAM_REUSED, &own),
            in_flight: m.gauge(&names::UPSTREAM_IN_FLIGHT, &own),
            outliers: ArcSwapOption::empty(),
        }
    }

    pub(crate) fn connected(&self, ok: bool) {
        self.connects[usize::from(!ok)].inc();
    }

    pub(crate) fn reused(&self) {
        self.reused.inc();
    }
}

/// One attempt under way, from picking an instance to the end of its answer's body.
#[derive(Debug)]
pub(crate) struct Attempted {
    meter: Arc<Meter>,
    load: Load,
    _in_flight: Raised,
    trace: Trace,
    attempt: Attempt,
    method: Method,
    upload: Option<Arc<Upload>>,
    began: Instant,
    status: Option<u16>,
    outcome: Option<Outcome>,
    done: bool,
}

impl Attempted {
    pub(crate) fn begin(
        meter: &Arc<Meter>,
        endpoint: &Arc<Endpoint>,
        trace: Trace,
        attempt: Attempt,
        out: &Outbound,
    ) -> Self {
        Self {
            meter: meter.clone(),
            load: endpoint.enter(),
            _in_flight: meter.in_flight.raise(),
            trace,
            attempt,
            method: out.head.method.clone(),
            upload: out.upload().cloned(),
            began: Instant::now(),
            status: None,
            outcome: None,
            done: false,
        }
    }

    pub(crate) fn endpoint(&self) -> &Arc<Endpoint> {
        self.load.endpoint()
    }

    /// The head of the answer is there.
    pub(crate) fn answered(&mut self, status: u16, outcome: Outcome) {
        self.meter.requests[outcome_index(&outcome)].inc();
        let took = self.began.elapsed();
        self.meter.duration.observe(took);
        if self.endpoint().is_timed() && outcome.is_success() {
            self.endpoint().took(took);
        }
        self.status = Some(status);
        self.outcome = Some(outcome);
        // A gRPC call says how it went at its end.
        if !(self.is_grpc() && outcome.is_success()) {
            self.judge(&outcome, false);
        }
    }

    fn is_grpc(&self) -> bool {
        self.endpoint().wanted.protocol == Protocol::Grpc
    }

    /// Tells how the instance did, if anybody takes out those that do badly.
    fn judge(&self, outcome: &Outcome, unanswered: bool) {
        if let Some(outliers) = &*self.meter.outliers.load() {
            outliers.answered(self.endpoint(), outcome, unanswered);
        }
    }

    /// There is no answer.
    pub(crate) fn failed(mut self, e: &Error) {
        let outcome = e.outcome();
        self.meter.requests[outcome_index(&outcome)].inc();
        self.outcome = Some(outcome);
        if !e.blames_caller() {
            self.judge(&outcome, true);
        }
        self.record(Some((e.code(), e.to_string())));
    }

    /// The body broke off.
    pub(crate) fn broke_off(mut self, reason: &dyn std::fmt::Display) {
        self.record(Some(("upstream-broken", reason.to_string())));
    }

    /// The body was read to its end; trailers may have told the gRPC status.
    pub(crate) fn ended(mut self, trailers: Option<Outcome>) {
        if self.is_grpc() && self.outcome.is_some_and(|o| o.is_success()) {
            self.judge(&trailers.unwrap_or(Outcome::SUCCESS), false);
        }
        self.outcome = trailers.or(self.outcome);
        self.record(None);
    }

    /// Records the span, once, if it is one to keep.
    fn record(&mut self, error: Option<(&'static str, String)>) {
        self.done = true;
        let bad = error.is_some() || self.outcome.is_some_and(|o| !o.is_success());
        let took = self.began.elapsed();
        if !bad && !self.meter.telemetry.keeps(&self.trace, took) {
            return;
        }
        let outcome = self.outcome.map_or("abandoned", |o| OUTCOMES[outcome_index(&o)]);
        let ended = SystemClock.now();
        let mut span = SpanRecord {
            trace: self.trace,
            name: method_text(&self.method),
            kind: SpanKind::Client,
            service: Text::Shared(self.meter.service.clone()),
            start: Timestamp(ended.0.saturating_sub(took.as_millis() as u64)),
            duration: took,
            status: if bad { SpanStatus::Error } else { SpanStatus::Ok },
            attributes: Vec::with_capacity(6),
        };
        span.set("server.address", Value::Text(Text::Shared(self.endpoint().address.clone())));
        span.set("weft.attempt", self.attempt.number);
        span.set("weft.outcome", outcome);
        if let Some(status) = self.status {
            span.set("http.response.status_code", status);
        }
        if let Some((code, message)) = error {
            span.set("error.type", code);
            span.set("error.message", message);
        }
        self.meter.telemetry.record(span);
    }
}

impl Drop for Attempted {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        if self.outcome.is_none() {
            // The attempt timed out, or its caller went away.
            self.meter.requests[4].inc();
            if self.attempt.deadline.passed() && self.upload.as_ref().is_none_or(|u| u.is_complete()) {
                self.judge(&outcome::classify_transport(Transport::Timeout), true);
            }
            self.record(Some(("abandoned", "no answer when it was given up".into())));
        } else {
            self.record(None);
        }
    }
}

fn method_text(m: &Method) -> Text {
    Text::Static(match *m {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::PATCH => "PATCH",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        // Callers choose other methods' names; spans have few different names.
        _ => "other method",
    })
}
