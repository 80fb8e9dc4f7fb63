//! Spans, metrics and logs of Weft itself.
//!
//! What it is not: it sends nothing anywhere and keeps nothing on disk; spans live in a bounded ring, metrics in
//! memory, logs go to a writer.
//!
//! Invariants:
//! - Recording never blocks on a reader for longer than a short scan, never waits, and never fails.
//! - Memory is bounded: [`limits::TRACE_SPANS`](weft_core::limits::TRACE_SPANS) spans of bounded size,
//!   [`limits::METRIC_SERIES`](weft_core::limits::METRIC_SERIES) series.
//! - Every metric name is listed in [`names`].
//!
//! ```
//! use weft_core::Trace;
//! use weft_telemetry::span::{self, SpanKind, SpanStatus};
//! use weft_telemetry::{Telemetry, names};
//!
//! let telemetry = Telemetry::new();
//! let requests = telemetry.metrics().counter(&names::HTTP_REQUESTS, &[("route", "orders"), ("code", "200")]);
//!
//! let trace = Trace::root();
//! let mut span = span::start(trace, "GET orders", SpanKind::Server, "gateway");
//! span.set("http.response.status_code", 200);
//! requests.inc();
//! telemetry.record(span.end(SpanStatus::Ok));
//!
//! assert_eq!(telemetry.trace(trace.trace_id).len(), 1);
//! assert!(telemetry.metrics().render_prometheus().contains(r#"weft_http_requests_total{route="orders",code="200"} 1"#));
//! ```

pub mod log;
pub mod metrics;
pub mod names;
pub mod ring;
mod shard;
pub mod span;
pub mod tree;

use std::sync::Arc;

use weft_core::limits;
use weft_core::trace::TraceId;

pub use metrics::Metrics;
pub use ring::TraceSummary;
pub use span::{SpanKind, SpanRecord, SpanStatus, Text, TraceView, Value};

/// Where the whole program records; cheap to clone.
#[derive(Clone, Debug)]
pub struct Telemetry(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    ring: Arc<ring::Ring>,
    metrics: Metrics,
    /// Keeps the ring's own counts in the scrape.
    _collector: metrics::Collector,
}

impl Default for Telemetry {
    fn default() -> Self {
        Self::new()
    }
}

impl Telemetry {
    /// An empty ring of [`limits::TRACE_SPANS`] and no metrics.
    pub fn new() -> Self {
        Self::with_spans(limits::TRACE_SPANS)
    }

    /// With room for so many spans.
    pub fn with_spans(spans: usize) -> Self {
        let ring = Arc::new(ring::Ring::new(spans));
        let metrics = Metrics::new();
        let counted = ring.clone();
        let _collector = metrics.collect(move |out| {
            let counts = counted.counts();
            out.counter(&names::SPANS_OFFERED, &[], counts.offered);
            out.counter(&names::SPANS_RECORDED, &[], counts.recorded);
            out.gauge(&names::SPANS_HELD, &[], counts.held as f64);
        });
        Self(Arc::new(Inner { ring, metrics, _collector }))
    }

    /// Keeps a finished span, if the tail rule ([`ring`]) keeps it.
    #[inline]
    pub fn record(&self, span: SpanRecord) {
        self.0.ring.record(span);
    }

    /// Whether a span that went well, ends now and took so long would be kept. Hot paths ask before they build one: yes
    /// means record it, no means it was counted and that is all. Failed spans are always kept.
    #[inline]
    pub fn keeps(&self, trace: &weft_core::Trace, took: std::time::Duration) -> bool {
        self.0.ring.keeps(trace, took)
    }

    /// The spans of one trace that are still held, by start.
    pub fn trace(&self, id: TraceId) -> Vec<SpanRecord> {
        self.0.ring.trace(id)
    }

    /// The newest traces, newest first.
    pub fn traces(&self, limit: usize) -> Vec<TraceSummary> {
        self.0.ring.traces(limit)
    }

    /// Counters, gauges and histograms.
    #[inline]
    pub fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }
}
