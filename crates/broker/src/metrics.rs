//! What the broker counts, and the spans it records.

use std::time::Duration;

use weft_core::Trace;
use weft_core::{Clock as _, SystemClock};
use weft_telemetry::metrics::{Counter, Gauge};
use weft_telemetry::span::{SpanKind, SpanRecord, SpanStatus};
use weft_telemetry::{Telemetry, names};

use crate::{Channel, Source};

/// Counts of a queue or topic.
pub(crate) struct ChannelCounts {
    pub published: Counter,
    pub duplicate: Counter,
}

/// Counts of a queue's or subscription's deliveries.
pub(crate) struct SourceCounts {
    pub delivered: Counter,
    pub acked: Counter,
    pub retried: Counter,
    pub dead: Counter,
    pub damaged: Counter,
    pub ready: Gauge,
    pub in_flight: Gauge,
}

impl ChannelCounts {
    pub fn of(t: &Telemetry, c: &Channel) -> Self {
        let name = c.to_string();
        let labels = [("channel", name.as_str())];
        Self {
            published: t.metrics().counter(&names::MESSAGES_PUBLISHED, &labels),
            duplicate: t.metrics().counter(&names::MESSAGES_DUPLICATE, &labels),
        }
    }
}

impl SourceCounts {
    pub fn of(t: &Telemetry, s: &Source) -> Self {
        let name = s.to_string();
        let labels = [("subscription", name.as_str())];
        let m = t.metrics();
        Self {
            delivered: m.counter(&names::MESSAGES_DELIVERED, &labels),
            acked: m.counter(&names::MESSAGES_ACKED, &labels),
            retried: m.counter(&names::MESSAGES_RETRIED, &labels),
            dead: m.counter(&names::MESSAGES_DEAD_LETTERED, &labels),
            damaged: m.counter(&names::MESSAGES_DAMAGED, &labels),
            ready: m.gauge(&names::MESSAGES_READY, &labels),
            in_flight: m.gauge(&names::MESSAGES_IN_FLIGHT, &labels),
        }
    }
}

/// The producer span of one publish that took so long.
pub(crate) fn published(t: &Telemetry, trace: Trace, channel: &Channel, id: &str, took: Duration, ok: bool) {
    if ok && !t.keeps(&trace, took) {
        return;
    }
    let status = if ok { SpanStatus::Ok } else { SpanStatus::Error };
    let (kind, name) = channel.parts();
    let mut s = span(trace, format!("publish {name}"), SpanKind::Producer, took, status);
    s.set("messaging.destination.kind", kind);
    s.set("messaging.message.id", id.to_owned());
    t.record(s);
}

/// The consumer span of one delivery.
pub(crate) fn delivered(t: &Telemetry, trace: Trace, source: &Source, id: &str, attempt: u32) {
    if !t.keeps(&trace, Duration::ZERO) {
        return;
    }
    let (kind, name) = source.parts();
    let mut s = span(trace, format!("receive {name}"), SpanKind::Consumer, Duration::ZERO, SpanStatus::Ok);
    s.set("messaging.source.kind", kind);
    s.set("messaging.message.id", id.to_owned());
    s.set("messaging.delivery.attempt", i64::from(attempt));
    t.record(s);
}

fn span(trace: Trace, name: String, kind: SpanKind, duration: Duration, status: SpanStatus) -> SpanRecord {
    let now = SystemClock.now();
    SpanRecord {
        trace,
        name: name.into(),
        kind,
        service: "broker".into(),
        start: weft_core::Timestamp(now.0.saturating_sub(duration.as_millis() as u64)),
        duration,
        status,
        attributes: Vec::new(),
    }
}
