//! The bounded ring of finished spans.
//!
//! Threads record into a few rings of their own, so recording takes an uncontended lock. A trace is found by scanning
//! the ids, which lie apart from the spans: 100,000 of them are read in well under a millisecond, and nothing is paid
//! for an index while recording.
//!
//! The tail rule, which decides when a span ends whether it is kept:
//! - a span that failed is kept;
//! - a span that took [`limits::TRACE_SLOW`] or longer is kept;
//! - otherwise all spans are kept while the ring holds at least [`limits::TRACE_HOLD`] of them at the present rate;
//!   above that rate, those of a share of all traces, chosen by trace id, so that a trace is kept or left out whole;
//! - a caller that set the `sampled` flag of `traceparent` to 0 gets only the first two.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use weft_core::trace::TraceId;
use weft_core::{Timestamp, Trace, limits};

use crate::shard::{self, Padded};
use crate::span::{SpanRecord, SpanStatus, Text};

/// The ring.
#[derive(Debug)]
pub struct Ring {
    shards: Vec<Padded<Shard>>,
    /// Spans a shard holds.
    capacity: usize,
    /// Plain spans of traces whose hash is at most this are kept.
    threshold: Padded<AtomicU64>,
    /// The second that is being counted, and the offers before it.
    second: Padded<AtomicU64>,
    before: AtomicU64,
}

#[derive(Debug, Default)]
struct Shard {
    offered: AtomicU64,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    /// Of the spans, in the same order.
    ids: VecDeque<u128>,
    spans: VecDeque<SpanRecord>,
    recorded: u64,
}

/// What the ring counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Spans that ended.
    pub offered: u64,
    /// Of these, kept at that time.
    pub recorded: u64,
    /// Of these, still held.
    pub held: u64,
}

/// A trace in a list.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TraceSummary {
    /// Which, as 32 hex digits.
    pub trace_id: String,
    /// What its first span did.
    pub name: Text,
    /// Who did that.
    pub service: Text,
    /// When it began, RFC 3339.
    pub start: String,
    /// From the first span's start to the last one's end.
    pub duration_us: u64,
    /// Spans held.
    pub spans: usize,
    /// Of these, failed.
    pub errors: usize,
}

impl Ring {
    /// Room for so many spans in all, shared evenly among the threads' rings.
    pub fn new(spans: usize) -> Self {
        Self::with_shards(spans, shard::count())
    }

    fn with_shards(spans: usize, shards: usize) -> Self {
        Self {
            shards: (0..shards).map(|_| Padded::default()).collect(),
            capacity: (spans / shards).max(1),
            threshold: Padded(AtomicU64::new(u64::MAX)),
            second: Padded::default(),
            before: AtomicU64::new(0),
        }
    }

    /// Whether a plain span that ends now would be kept; if not, it is counted as offered, and need not be built.
    #[inline]
    pub fn keeps(&self, trace: &Trace, took: Duration) -> bool {
        let wanted = self.wants(trace, took);
        if !wanted {
            self.shards[shard::mine(self.shards.len())].offered.fetch_add(1, Ordering::Relaxed);
        }
        wanted
    }

    #[inline]
    fn wants(&self, trace: &Trace, took: Duration) -> bool {
        took >= limits::TRACE_SLOW
            || (trace.sampled && spread(trace.trace_id) <= self.threshold.load(Ordering::Relaxed))
    }

    /// Keeps a span by the tail rule.
    pub fn record(&self, mut span: SpanRecord) {
        let shard = &self.shards[shard::mine(self.shards.len())];
        shard.offered.fetch_add(1, Ordering::Relaxed);
        self.tick(span.end());
        if span.status == SpanStatus::Ok && !self.wants(&span.trace, span.duration) {
            return;
        }
        span.bound();
        let id = span.trace.trace_id.0;
        let mut held = shard.held.lock();
        let old = if held.spans.len() >= self.capacity {
            held.ids.pop_front();
            held.spans.pop_front()
        } else {
            None
        };
        held.ids.push_back(id);
        held.spans.push_back(span);
        held.recorded += 1;
        drop(held);
        // Freed outside the lock.
        drop(old);
    }

    /// Once a second of the spans' own time, whoever comes first sets the share of traces to keep.
    #[inline]
    fn tick(&self, now: Timestamp) {
        let second = now.0 / 1_000;
        let seen = self.second.load(Ordering::Relaxed);
        if second > seen && self.second.compare_exchange(seen, second, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            self.adjust(second - seen);
        }
    }

    #[cold]
    fn adjust(&self, seconds: u64) {
        let offered: u64 = self.shards.iter().map(|s| s.offered.load(Ordering::Relaxed)).sum();
        let fresh = offered - self.before.swap(offered, Ordering::Relaxed).min(offered);
        let rate = fresh as f64 / seconds as f64;
        let limit = (self.capacity * self.shards.len()) as f64 / limits::TRACE_HOLD.as_secs_f64();
        let threshold = if rate <= limit { u64::MAX } else { (limit / rate * u64::MAX as f64) as u64 };
        self.threshold.store(threshold, Ordering::Relaxed);
    }

    /// The spans of one trace, by start; those of the same millisecond in the order they ended.
    pub fn trace(&self, id: TraceId) -> Vec<SpanRecord> {
        let mut out = Vec::new();
        for shard in &self.shards {
            let held = shard.held.lock();
            out.extend(held.of(id.0).cloned());
        }
        out.sort_by_key(|s| (s.start, std::cmp::Reverse(s.duration)));
        out
    }

    /// The traces that ended last, newest first.
    pub fn traces(&self, limit: usize) -> Vec<TraceSummary> {
        // Each ring's newest are a superset of the newest of all.
        let mut last: HashMap<u128, Timestamp> = HashMap::new();
        for shard in &self.shards {
            let held = shard.held.lock();
            let mut found = 0;
            for (id, span) in held.ids.iter().zip(&held.spans).rev() {
                if found >= limit {
                    break;
                }
                let end = last.entry(*id).or_insert_with(|| {
                    found += 1;
                    Timestamp(0)
                });
                *end = (*end).max(span.end());
            }
        }
        let mut newest: Vec<(Timestamp, u128)> = last.into_iter().map(|(id, end)| (end, id)).collect();
        newest.sort_by_key(|n| std::cmp::Reverse(*n));
        newest.truncate(limit);

        let mut sums: HashMap<u128, Sum> = newest.iter().map(|(_, id)| (*id, Sum::default())).collect();
        for shard in &self.shards {
            let held = shard.held.lock();
            for (id, span) in held.ids.iter().zip(&held.spans) {
                if let Some(sum) = sums.get_mut(id) {
                    sum.add(span);
                }
            }
        }
        newest.into_iter().filter_map(|(_, id)| sums.remove(&id)?.finish(TraceId(id))).collect()
    }

    /// What was counted so far.
    pub fn counts(&self) -> Counts {
        let mut c = Counts::default();
        for s in &self.shards {
            let held = s.held.lock();
            c.offered += s.offered.load(Ordering::Relaxed);
            c.recorded += held.recorded;
            c.held += held.spans.len() as u64;
        }
        c
    }
}

impl Held {
    fn of(&self, id: u128) -> impl Iterator<Item = &SpanRecord> {
        self.ids.iter().enumerate().filter(move |(_, i)| **i == id).map(|(at, _)| &self.spans[at])
    }
}

/// What is known about one trace of a list.
#[derive(Default)]
struct Sum {
    /// The span without parent, or the earliest: its rank, name and service.
    first: Option<((bool, Timestamp), Text, Text)>,
    start: Option<Timestamp>,
    end_us: u64,
    spans: usize,
    errors: usize,
}

impl Sum {
    fn add(&mut self, s: &SpanRecord) {
        let rank = (s.trace.parent.is_some(), s.start);
        if self.first.as_ref().is_none_or(|(r, ..)| rank < *r) {
            self.first = Some((rank, s.name.clone(), s.service.clone()));
        }
        self.start = Some(self.start.map_or(s.start, |t| t.min(s.start)));
        self.end_us = self.end_us.max(s.start.0 * 1_000 + s.duration.as_micros() as u64);
        self.spans += 1;
        self.errors += usize::from(s.status == SpanStatus::Error);
    }

    /// `None` when its spans were pushed out between the two looks.
    fn finish(self, id: TraceId) -> Option<TraceSummary> {
        let (_, name, service) = self.first?;
        let start = self.start?;
        Some(TraceSummary {
            trace_id: id.to_string(),
            name,
            service,
            start: start.to_string(),
            duration_us: self.end_us - start.0 * 1_000,
            spans: self.spans,
            errors: self.errors,
        })
    }
}

/// A trace id spread evenly over 64 bits, though its maker may have counted up.
#[inline]
fn spread(id: TraceId) -> u64 {
    let mixed = (id.0 as u64 ^ (id.0 >> 64) as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (mixed ^ mixed >> 32).wrapping_mul(0xD6E8_FEB8_6659_FD93)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::span::SpanKind;

    fn span(trace: Trace, name: &'static str, start: u64, ms: u64) -> SpanRecord {
        SpanRecord {
            trace,
            name: name.into(),
            kind: SpanKind::Internal,
            service: "test".into(),
            start: Timestamp(start),
            duration: Duration::from_millis(ms),
            status: SpanStatus::Ok,
            attributes: Vec::new(),
        }
    }

    #[test]
    fn a_trace_recorded_on_many_threads_is_found_whole_and_in_order() {
        let ring = Ring::new(1_000);
        let root = Trace::root();
        std::thread::scope(|s| {
            for t in 0..4u64 {
                let ring = &ring;
                s.spawn(move || (0..10).for_each(|i| ring.record(span(root.child(), "work", 100 + t + 4 * i, 1))));
            }
        });
        ring.record(span(root, "root", 100, 50));
        ring.record(span(Trace::root(), "other", 100, 1));
        let got = ring.trace(root.trace_id);
        assert_eq!((got.len(), got[0].name.as_str()), (41, "root"));
        assert!(got.is_sorted_by_key(|s| s.start));
        assert!(ring.trace(TraceId(7)).is_empty());
    }

    #[test]
    fn the_ring_holds_its_limit_and_forgets_the_oldest() {
        let ring = Ring::with_shards(100, 1);
        let traces: Vec<_> = (0..250).map(|_| Trace::root()).collect();
        for (i, t) in traces.iter().enumerate() {
            ring.record(span(*t, "x", i as u64, 0));
        }
        assert_eq!(ring.counts(), Counts { offered: 250, recorded: 250, held: 100 });
        assert!(ring.trace(traces[149].trace_id).is_empty());
        assert_eq!(ring.trace(traces[150].trace_id).len(), 1);
    }

    #[test]
    fn the_newest_traces_are_summed_up() {
        let ring = Ring::new(1_000);
        let old = Trace::root();
        ring.record(span(old, "old", 1, 1));
        let root = Trace::root();
        ring.record(span(root.child(), "step", 1_010, 20));
        let failed = SpanRecord { status: SpanStatus::Error, ..span(root.child(), "step", 1_040, 30) };
        ring.record(failed);
        ring.record(span(root, "POST /v1/orders", 1_000, 50));
        let got = ring.traces(10);
        assert_eq!(got.len(), 2);
        assert_eq!(
            (got[0].name.as_str(), got[0].spans, got[0].errors, got[0].duration_us),
            ("POST /v1/orders", 3, 1, 70_000)
        );
        assert_eq!(got[0].trace_id, root.trace_id.to_string());
        assert_eq!(got[1].name, "old");
        assert_eq!(ring.traces(1).len(), 1);
        assert!(ring.traces(0).is_empty());
    }

    #[test]
    fn under_pressure_whole_traces_are_left_out_but_never_failed_or_slow_spans() {
        let ring = Ring::with_shards(1_000, 1);
        let limit = 1_000 / limits::TRACE_HOLD.as_secs();
        let load = |second: u64| {
            for i in 0..limit * 10 {
                let s = span(Trace::root(), "x", second * 1_000 + i % 900, 1);
                // Half of the callers ask first, as hot paths do.
                if i % 2 == 0 || ring.keeps(&s.trace, s.duration) {
                    ring.record(s);
                }
            }
        };
        load(1);
        load(2);
        let before = ring.counts().recorded;
        load(3);
        let kept = ring.counts().recorded - before;
        assert!((limit / 3..limit * 3).contains(&kept), "{kept} of {} kept", limit * 10);

        let left_out = std::iter::repeat_with(Trace::root).find(|t| !ring.wants(t, Duration::ZERO)).unwrap();
        assert!(!ring.wants(&left_out.child(), Duration::ZERO), "the whole trace is left out");
        ring.record(span(left_out, "plain", 3_950, 1));
        ring.record(SpanRecord { status: SpanStatus::Error, ..span(left_out, "failed", 3_950, 1) });
        ring.record(span(left_out, "slow", 2_950, limits::TRACE_SLOW.as_millis() as u64));
        let names: Vec<_> = ring.trace(left_out.trace_id).iter().map(|s| s.name.to_string()).collect();
        assert_eq!(names, ["slow", "failed"]);

        ring.record(span(Trace::root(), "calm", 60_000, 1));
        assert!(ring.wants(&left_out, Duration::ZERO), "when it is calm again, all are kept");
    }

    #[test]
    fn a_caller_that_asks_for_no_trace_gets_errors_only() {
        let ring = Ring::new(100);
        let t = Trace { sampled: false, ..Trace::root() };
        ring.record(span(t, "plain", 1, 1));
        assert!(ring.trace(t.trace_id).is_empty());
        ring.record(SpanRecord { status: SpanStatus::Error, ..span(t, "failed", 1, 1) });
        assert_eq!(ring.trace(t.trace_id).len(), 1);
    }
}
