//! A latency that a given share of calls stays below, as of the last thousand calls or the last ten seconds.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

/// Four to each doubling of a microsecond, up to about an hour.
const BUCKETS: usize = 128;
/// Calls after which the latency is worked out anew.
const CALLS: u32 = 1_000;
/// And so long after.
const NANOS: u64 = 10_000_000_000;
/// Fewer calls say too little.
const ENOUGH: u32 = 50;

/// Counts latencies in buckets; many threads may.
#[derive(Debug)]
pub struct Quantile {
    share: f64,
    counts: Box<[AtomicU32]>,
    calls: AtomicU32,
    began: AtomicU64,
    /// Nanoseconds; 0 = not known yet.
    value: AtomicU64,
    turning: Mutex<()>,
}

fn bucket(d: Duration) -> usize {
    let micros = (d.as_micros().min(u128::from(u64::MAX)) as u64).max(1);
    let octave = micros.ilog2();
    // The two bits below the highest one.
    let quarter = if octave >= 2 { (micros >> (octave - 2)) & 3 } else { (micros << (2 - octave)) & 3 };
    (octave as usize * 4 + quarter as usize).min(BUCKETS - 1)
}

/// The upper end of a bucket.
fn upper(bucket: usize) -> Duration {
    let (octave, quarter) = (bucket / 4, bucket % 4);
    Duration::from_secs_f64(2f64.powi(octave as i32) * (1.25 + 0.25 * quarter as f64) / 1e6)
}

impl Quantile {
    /// Below what `share` (0 to 1) of the calls stay.
    pub fn new(share: f64) -> Self {
        Self {
            share,
            counts: (0..BUCKETS).map(|_| AtomicU32::new(0)).collect(),
            calls: AtomicU32::new(0),
            began: AtomicU64::new(0),
            value: AtomicU64::new(0),
            turning: Mutex::new(()),
        }
    }

    /// Takes in a call, `now` in nanoseconds since any fixed instant.
    pub fn record(&self, now: u64, took: Duration) {
        self.counts[bucket(took)].fetch_add(1, Ordering::Relaxed);
        let calls = self.calls.fetch_add(1, Ordering::Relaxed) + 1;
        let old = now.saturating_sub(self.began.load(Ordering::Relaxed)) >= NANOS;
        if (calls >= CALLS || old && calls >= ENOUGH)
            && let Some(_turn) = self.turning.try_lock()
        {
            self.turn(now);
        }
    }

    fn turn(&self, now: u64) {
        self.began.store(now, Ordering::Relaxed);
        self.calls.store(0, Ordering::Relaxed);
        let counts: Vec<u32> = self.counts.iter().map(|c| c.swap(0, Ordering::Relaxed)).collect();
        let wanted = (f64::from(counts.iter().sum::<u32>()) * self.share).ceil() as u32;
        let mut seen = 0;
        let at = counts.iter().position(|c| {
            seen += c;
            seen >= wanted
        });
        if let Some(at) = at {
            self.value.store(upper(at).as_nanos() as u64, Ordering::Relaxed);
        }
    }

    /// The latency, once enough calls are known.
    pub fn value(&self) -> Option<Duration> {
        match self.value.load(Ordering::Relaxed) {
            0 => None,
            nanos => Some(Duration::from_nanos(nanos)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_latency_lies_below_the_end_of_its_bucket_and_within_a_quarter_of_it() {
        for micros in (1..100_000u64).step_by(7) {
            let d = Duration::from_micros(micros);
            let end = upper(bucket(d));
            assert!(end > d && end.as_secs_f64() <= d.as_secs_f64() * 1.5, "{d:?} in {end:?}");
        }
        assert_eq!(bucket(Duration::from_secs(1 << 40)), BUCKETS - 1);
    }

    #[test]
    fn the_ninety_fifth_of_a_hundred_is_found_after_enough_calls() {
        let q = Quantile::new(0.95);
        for i in 0..CALLS {
            assert_eq!(q.value(), None);
            q.record(0, Duration::from_millis(u64::from(i % 100) + 1));
        }
        let found = q.value().unwrap();
        assert!((95..=120).contains(&found.as_millis()), "{found:?}");
        for _ in 0..ENOUGH {
            q.record(NANOS, Duration::from_millis(1));
        }
        assert!(q.value().unwrap() < Duration::from_millis(2), "ten seconds later, from fewer calls");
    }
}
