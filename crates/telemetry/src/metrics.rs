//! Counters, gauges and histograms, and their Prometheus text.
//!
//! A series (a name with one set of labels) is looked up once and gives a handle; counting through a handle is one
//! atomic addition on a cell of the thread's own. Reading adds the cells up.
//!
//! There are at most [`limits::METRIC_SERIES`] series. A handle asked for beyond that counts into nowhere, and
//! `weft_metric_series_dropped_total` says how often that happened: a label with too many values costs its own detail
//! and nothing else.

mod text;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use weft_core::limits;

use crate::names;
use crate::shard::{self, Padded};

/// A metric's name, meaning and kind; all of them are constants in [`names`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Def {
    /// As Prometheus sees it: `[a-zA-Z_:][a-zA-Z0-9_:]*`.
    pub name: &'static str,
    /// One sentence.
    pub help: &'static str,
    /// What it is.
    pub kind: Kind,
}

/// What a metric is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Durations in exponential buckets: 100 us doubled 19 times, to 52 s.
    Histogram,
}

/// Buckets of a histogram, the one without bound included.
const BUCKETS: usize = 21;
/// Upper bound of the first, in nanoseconds.
const FIRST_BUCKET: u64 = 100_000;

type Labels = Box<[(&'static str, Box<str>)]>;

/// All metrics of the program; cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics(Arc<Registry>);

#[derive(Debug)]
struct Registry {
    families: Mutex<BTreeMap<&'static str, Family>>,
    series: AtomicU64,
    dropped: AtomicU64,
    max_series: usize,
    collectors: Mutex<Vec<Weak<Collect>>>,
}

#[derive(Debug)]
struct Family {
    def: &'static Def,
    series: BTreeMap<Labels, Cell>,
}

#[derive(Clone, Debug)]
enum Cell {
    Counter(Counter),
    Gauge(Gauge),
    Histogram(Histogram),
}

/// Counts up.
#[derive(Clone, Debug)]
pub struct Counter(Arc<[Padded<AtomicU64>]>);

/// Goes up and down: either added to from anywhere, or set by one.
#[derive(Clone, Debug)]
pub struct Gauge(Arc<[Padded<AtomicI64>]>);

/// Counts durations by size.
#[derive(Clone, Debug)]
pub struct Histogram(Arc<[Padded<Buckets>]>);

#[derive(Debug, Default)]
struct Buckets {
    counts: [AtomicU64; BUCKETS],
    sum_nanos: AtomicU64,
}

/// Gauge raised by one until this is dropped.
#[derive(Debug)]
#[must_use = "the gauge goes down as soon as this is dropped"]
pub struct Raised(Gauge);

/// Values that are known elsewhere and read at each scrape, for as long as this is held.
pub struct Collector(#[allow(dead_code, reason = "held for its drop")] Arc<Collect>);

type Collect = dyn Fn(&mut Samples) + Send + Sync;

impl std::fmt::Debug for Collector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Collector")
    }
}

/// Takes what collectors tell.
#[derive(Debug, Default)]
pub struct Samples {
    found: BTreeMap<&'static str, (&'static Def, BTreeMap<Labels, f64>)>,
    count: usize,
    dropped: u64,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// None yet.
    pub fn new() -> Self {
        Self::with_series(limits::METRIC_SERIES)
    }

    fn with_series(max_series: usize) -> Self {
        Self(Arc::new(Registry {
            families: Mutex::default(),
            series: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            max_series,
            collectors: Mutex::default(),
        }))
    }

    /// The counter of these labels.
    pub fn counter(&self, def: &'static Def, labels: &[(&'static str, &str)]) -> Counter {
        match self.cell(def, Kind::Counter, labels, || Cell::Counter(Counter(cells()))) {
            Cell::Counter(c) => c,
            _ => unreachable!("a family holds one kind: checked in cell"),
        }
    }

    /// The gauge of these labels.
    pub fn gauge(&self, def: &'static Def, labels: &[(&'static str, &str)]) -> Gauge {
        match self.cell(def, Kind::Gauge, labels, || Cell::Gauge(Gauge(cells()))) {
            Cell::Gauge(g) => g,
            _ => unreachable!("a family holds one kind: checked in cell"),
        }
    }

    /// The histogram of these labels.
    pub fn histogram(&self, def: &'static Def, labels: &[(&'static str, &str)]) -> Histogram {
        match self.cell(def, Kind::Histogram, labels, || Cell::Histogram(Histogram(cells()))) {
            Cell::Histogram(h) => h,
            _ => unreachable!("a family holds one kind: checked in cell"),
        }
    }

    /// Asks `collect` for values at every scrape until the answer is dropped.
    pub fn collect(&self, collect: impl Fn(&mut Samples) + Send + Sync + 'static) -> Collector {
        let collect: Arc<Collect> = Arc::new(collect);
        let mut all = self.0.collectors.lock();
        all.retain(|c| c.strong_count() > 0);
        all.push(Arc::downgrade(&collect));
        Collector(collect)
    }

    /// All metrics in the Prometheus text format 0.0.4.
    pub fn render_prometheus(&self) -> String {
        // Collectors run without a lock held: they may look up handles themselves.
        let collectors: Vec<_> = self.0.collectors.lock().iter().filter_map(Weak::upgrade).collect();
        let mut samples = Samples::default();
        for c in collectors {
            c(&mut samples);
        }
        self.0.dropped.fetch_add(samples.dropped, Ordering::Relaxed);
        samples.counter(&names::METRIC_SERIES_DROPPED, &[], self.0.dropped.load(Ordering::Relaxed));
        text::render(&self.0.families.lock(), &samples)
    }

    fn cell(
        &self,
        def: &'static Def,
        kind: Kind,
        labels: &[(&'static str, &str)],
        make: impl FnOnce() -> Cell,
    ) -> Cell {
        assert_eq!(def.kind, kind, "{} is a {:?}", def.name, def.kind);
        let labels = owned(labels);
        let mut families = self.0.families.lock();
        let family = families.entry(def.name).or_insert_with(|| Family { def, series: BTreeMap::new() });
        if let Some(cell) = family.series.get(&labels) {
            return cell.clone();
        }
        let cell = make();
        if self.0.series.load(Ordering::Relaxed) >= self.0.max_series as u64 {
            self.0.dropped.fetch_add(1, Ordering::Relaxed);
            return cell;
        }
        self.0.series.fetch_add(1, Ordering::Relaxed);
        family.series.insert(labels, cell.clone());
        cell
    }
}

fn owned(labels: &[(&'static str, &str)]) -> Labels {
    labels.iter().map(|(k, v)| (*k, Box::from(*v))).collect()
}

fn cells<T: Default>() -> Arc<[T]> {
    (0..shard::count()).map(|_| T::default()).collect()
}

impl Counter {
    /// One more.
    #[inline]
    pub fn inc(&self) {
        self.add(1);
    }

    /// So many more.
    #[inline]
    pub fn add(&self, n: u64) {
        self.0[shard::mine(self.0.len())].fetch_add(n, Ordering::Relaxed);
    }

    /// How many so far.
    pub fn value(&self) -> u64 {
        self.0.iter().map(|c| c.load(Ordering::Relaxed)).sum()
    }
}

impl Gauge {
    /// Up or down.
    #[inline]
    pub fn add(&self, n: i64) {
        self.0[shard::mine(self.0.len())].fetch_add(n, Ordering::Relaxed);
    }

    /// Up by one until the answer is dropped.
    #[inline]
    pub fn raise(&self) -> Raised {
        self.add(1);
        Raised(self.clone())
    }

    /// To this value; for gauges that one place sets.
    pub fn set(&self, n: i64) {
        self.add(n - self.value());
    }

    /// The value now.
    pub fn value(&self) -> i64 {
        self.0.iter().map(|c| c.load(Ordering::Relaxed)).sum()
    }
}

impl Drop for Raised {
    fn drop(&mut self) {
        self.0.add(-1);
    }
}

impl Histogram {
    /// Counts one duration.
    #[inline]
    pub fn observe(&self, took: Duration) {
        let nanos = took.as_nanos().min(u128::from(u64::MAX)) as u64;
        let b = &self.0[shard::mine(self.0.len())];
        b.counts[bucket(nanos)].fetch_add(1, Ordering::Relaxed);
        b.sum_nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    /// How many durations were counted.
    pub fn count(&self) -> u64 {
        self.read().0.iter().sum()
    }

    /// Counts by bucket, and the sum in nanoseconds.
    fn read(&self) -> ([u64; BUCKETS], u64) {
        let mut counts = [0; BUCKETS];
        let mut sum = 0u64;
        for b in self.0.iter() {
            counts.iter_mut().zip(&b.counts).for_each(|(t, c)| *t += c.load(Ordering::Relaxed));
            sum = sum.wrapping_add(b.sum_nanos.load(Ordering::Relaxed));
        }
        (counts, sum)
    }
}

/// The first bucket whose bound (inclusive) holds the value.
#[inline]
fn bucket(nanos: u64) -> usize {
    let times = nanos.div_ceil(FIRST_BUCKET).max(1);
    ((u64::BITS - (times - 1).leading_zeros()) as usize).min(BUCKETS - 1)
}

impl Samples {
    /// A count that is kept elsewhere. Counted twice in one scrape, it is added up.
    pub fn counter(&mut self, def: &'static Def, labels: &[(&'static str, &str)], value: u64) {
        assert_eq!(def.kind, Kind::Counter, "{}", def.name);
        self.put(def, labels, value as f64, |a, b| a + b);
    }

    /// A value that is known elsewhere. Told twice in one scrape, it is added up.
    pub fn gauge(&mut self, def: &'static Def, labels: &[(&'static str, &str)], value: f64) {
        assert_eq!(def.kind, Kind::Gauge, "{}", def.name);
        self.put(def, labels, value, |a, b| a + b);
    }

    /// As [`gauge`](Self::gauge), but told twice in one scrape the greater counts.
    pub fn gauge_max(&mut self, def: &'static Def, labels: &[(&'static str, &str)], value: f64) {
        assert_eq!(def.kind, Kind::Gauge, "{}", def.name);
        self.put(def, labels, value, f64::max);
    }

    fn put(&mut self, def: &'static Def, labels: &[(&'static str, &str)], value: f64, join: fn(f64, f64) -> f64) {
        let series = &mut self.found.entry(def.name).or_insert_with(|| (def, BTreeMap::new())).1;
        let labels = owned(labels);
        if let Some(old) = series.get_mut(&labels) {
            *old = join(*old, value);
        } else if self.count >= limits::METRIC_SERIES {
            self.dropped += 1;
        } else {
            self.count += 1;
            series.insert(labels, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::{HTTP_REQUEST_DURATION, HTTP_REQUESTS, HTTP_REQUESTS_IN_FLIGHT};

    #[test]
    fn handles_of_the_same_labels_count_together_on_any_thread() {
        let m = Metrics::new();
        let labels = [("route", "a"), ("code", "200")];
        std::thread::scope(|s| {
            for _ in 0..4 {
                s.spawn(|| {
                    let c = m.counter(&HTTP_REQUESTS, &labels);
                    (0..1_000).for_each(|_| c.inc());
                });
            }
        });
        assert_eq!(m.counter(&HTTP_REQUESTS, &labels).value(), 4_000);
        assert_eq!(m.counter(&HTTP_REQUESTS, &[("route", "b"), ("code", "200")]).value(), 0);
    }

    #[test]
    fn a_gauge_goes_up_and_down_across_threads() {
        let g = Metrics::new().gauge(&HTTP_REQUESTS_IN_FLIGHT, &[]);
        let raised = g.raise();
        std::thread::scope(|s| {
            s.spawn(move || drop(raised));
        });
        assert_eq!(g.value(), 0);
        g.add(5);
        g.set(3);
        assert_eq!(g.value(), 3);
    }

    #[test]
    fn a_duration_falls_into_the_first_bucket_that_holds_it() {
        assert_eq!(bucket(0), 0);
        for i in 0..BUCKETS - 1 {
            let bound = FIRST_BUCKET << i;
            assert_eq!(bucket(bound), i, "a bound is inclusive");
            assert_eq!(bucket(bound + 1), i + 1);
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn a_histogram_counts_and_sums() {
        let h = Metrics::new().histogram(&HTTP_REQUEST_DURATION, &[]);
        h.observe(Duration::from_millis(3));
        h.observe(Duration::from_secs(100));
        let (counts, sum) = h.read();
        assert_eq!((h.count(), counts[5], counts[BUCKETS - 1], sum), (2, 1, 1, 100_003_000_000));
    }

    #[test]
    fn series_beyond_the_limit_are_counted_and_left_out() {
        let m = Metrics::with_series(2);
        for route in ["a", "b", "c", "d"] {
            m.counter(&HTTP_REQUESTS, &[("route", route)]).inc();
        }
        m.counter(&HTTP_REQUESTS, &[("route", "a")]).inc();
        let text = m.render_prometheus();
        assert!(text.contains("weft_http_requests_total{route=\"a\"} 2\n"), "{text}");
        assert!(text.contains("weft_http_requests_total{route=\"b\"} 1\n"), "{text}");
        assert!(!text.contains("route=\"c\""), "{text}");
        assert!(text.contains("weft_metric_series_dropped_total 2\n"), "{text}");
    }

    #[test]
    fn collectors_are_asked_at_each_scrape_until_dropped() {
        let m = Metrics::new();
        let collector = m.collect(|out| {
            out.gauge(&names::BREAKER_STATE, &[("policy", "x")], 2.0);
            out.gauge(&names::BREAKER_STATE, &[("policy", "y")], 0.5);
        });
        let text = m.render_prometheus();
        assert!(text.contains("weft_breaker_state{policy=\"x\"} 2\n"), "{text}");
        assert!(text.contains("weft_breaker_state{policy=\"y\"} 0.5\n"), "{text}");
        drop(collector);
        assert!(!m.render_prometheus().contains("weft_breaker_state"));
    }

    #[test]
    #[should_panic(expected = "weft_http_requests_total is a Counter")]
    fn a_name_has_one_kind() {
        Metrics::new().gauge(&HTTP_REQUESTS, &[]);
    }
}
