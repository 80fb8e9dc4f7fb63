//! Work per time: the generic cell rate algorithm (ITU-T I.371), one number per key.
//!
//! `limit` per `period` is the steady rate; `burst` is how many may come at once above it, so a key that was idle may
//! send `1 + burst` at once. Keys are hashed with a secret seed; a key that is idle long enough is the same as one
//! never seen, so it is forgotten. The table holds [`limits::RATE_KEYS`] busy keys; when it is full of busy keys, new
//! ones share one count until places come free: memory stays bounded and the limit still holds.

use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use weft_core::limits;

use crate::error::Refused;
use crate::pad::Padded;
use crate::spec::{self, RatePer};

const SHARDS: usize = 16;

/// A rate limit. Without a spec it takes everything.
#[derive(Debug)]
pub struct RateLimit(Option<Limiter>);

#[derive(Debug)]
struct Limiter {
    per: RatePer,
    cell: Cell,
    /// The count for all, and for keys that found no place.
    shared: Padded<AtomicU64>,
    seed: RandomState,
    /// Empty when everything is counted together.
    shards: Vec<Padded<Mutex<Shard>>>,
    crowded: AtomicU64,
    refused: AtomicU64,
}

#[derive(Clone, Copy, Debug)]
struct Cell {
    /// Nanoseconds between two at the steady rate.
    interval: u64,
    /// How far ahead of the steady rate a burst may run.
    tolerance: u64,
}

#[derive(Debug)]
struct Shard {
    keys: std::collections::HashMap<u64, u64>,
    places: usize,
    /// Before this instant a sweep finds nothing to forget.
    sweep_at: u64,
}

impl Cell {
    /// The next theoretical arrival time, or how long to wait.
    #[inline]
    fn next(self, arrival: u64, now: u64) -> Result<u64, Duration> {
        let earliest = arrival.saturating_sub(self.tolerance);
        if now < earliest { Err(Duration::from_nanos(earliest - now)) } else { Ok(arrival.max(now) + self.interval) }
    }
}

impl RateLimit {
    /// A limit with this spec, or none.
    pub fn new(spec: Option<spec::Rate>) -> Self {
        Self::with_keys(spec, limits::RATE_KEYS)
    }

    fn with_keys(spec: Option<spec::Rate>, keys: usize) -> Self {
        Self(spec.map(|s| {
            let interval = (s.period.as_nanos() / u128::from(s.limit.max(1))).clamp(1, u128::from(u64::MAX / 4)) as u64;
            let tolerance = interval.saturating_mul(u64::from(s.burst)).min(u64::MAX / 4);
            let shards = if s.per == RatePer::All { 0 } else { SHARDS };
            let shard = || Shard { keys: Default::default(), places: (keys / SHARDS).max(1), sweep_at: 0 };
            Limiter {
                per: s.per,
                cell: Cell { interval, tolerance },
                shared: Padded::default(),
                seed: RandomState::new(),
                shards: (0..shards).map(|_| Padded(Mutex::new(shard()))).collect(),
                crowded: AtomicU64::new(0),
                refused: AtomicU64::new(0),
            }
        }))
    }

    /// What keys are: `None` when nothing is limited.
    pub fn per(&self) -> Option<RatePer> {
        self.0.as_ref().map(|l| l.per)
    }

    /// Times a key found no place in the table and was counted together with others.
    pub fn crowded(&self) -> u64 {
        self.0.as_ref().map_or(0, |l| l.crowded.load(Ordering::Relaxed))
    }

    /// How many were over the rate.
    pub fn refused(&self) -> u64 {
        self.0.as_ref().map_or(0, |l| l.refused.load(Ordering::Relaxed))
    }

    /// Takes one for a key, `now` in nanoseconds since any fixed instant. The key is not looked at when everything is
    /// counted together.
    #[inline]
    pub fn check<K: Hash + ?Sized>(&self, key: &K, now: u64) -> Result<(), Refused> {
        let Some(l) = &self.0 else { return Ok(()) };
        let taken = if l.shards.is_empty() { l.take_shared(now) } else { l.take(l.seed.hash_one(key), now) };
        taken.map_err(|retry_after| {
            l.refused.fetch_add(1, Ordering::Relaxed);
            Refused::RateLimited { retry_after }
        })
    }
}

impl Limiter {
    fn take_shared(&self, now: u64) -> Result<(), Duration> {
        let mut seen = self.shared.load(Ordering::Relaxed);
        loop {
            let next = self.cell.next(seen, now)?;
            match self.shared.compare_exchange_weak(seen, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Ok(()),
                Err(other) => seen = other,
            }
        }
    }

    fn take(&self, hash: u64, now: u64) -> Result<(), Duration> {
        // The map takes the low bits.
        let mut shard = self.shards[(hash >> 60) as usize % SHARDS].lock();
        if let Some(arrival) = shard.keys.get_mut(&hash) {
            *arrival = self.cell.next(*arrival, now)?;
            return Ok(());
        }
        if shard.keys.len() >= shard.places && !shard.sweep(now) {
            drop(shard);
            self.crowded.fetch_add(1, Ordering::Relaxed);
            return self.take_shared(now);
        }
        shard.keys.insert(hash, now + self.cell.interval);
        Ok(())
    }
}

impl Shard {
    /// Forgets idle keys; whether there is a place now.
    fn sweep(&mut self, now: u64) -> bool {
        if now < self.sweep_at {
            return false;
        }
        // A key whose time has come is as good as new.
        self.keys.retain(|_, arrival| *arrival > now);
        self.sweep_at = self.keys.values().min().copied().unwrap_or(0);
        self.keys.len() < self.places
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn rate(limit: u32, burst: u32, per: RatePer) -> Option<spec::Rate> {
        Some(spec::Rate { limit, period: Duration::from_secs(1), burst, per })
    }

    fn taken(r: &RateLimit, key: &str, now: u64) -> usize {
        (0..100_000).take_while(|_| r.check(key, now).is_ok()).count()
    }

    #[test]
    fn an_idle_key_may_send_the_burst_and_then_the_steady_rate() {
        let r = RateLimit::new(rate(10, 4, RatePer::Principal));
        assert_eq!(taken(&r, "ann", 0), 5);
        let wait = r.check("ann", 0).unwrap_err().retry_after().unwrap();
        assert_eq!(wait, Duration::from_millis(100));
        assert!(r.check("ann", 100_000_000 - 1).is_err(), "a nanosecond early");
        assert_eq!(taken(&r, "ann", 100_000_000), 1);
        assert_eq!(taken(&r, "bob", 100_000_000), 5, "keys do not share");
        let over_ten_seconds: usize = (1..=100).map(|i| taken(&r, "ann", SECOND + i * SECOND / 10)).sum();
        assert_eq!(over_ten_seconds, 5 + 99);
    }

    #[test]
    fn one_count_for_all_ignores_the_key_and_holds_under_many_threads() {
        let r = RateLimit::new(rate(10, 99, RatePer::All));
        let got: usize = std::thread::scope(|s| {
            let t: Vec<_> = (0..4)
                .map(|i| {
                    s.spawn({
                        let r = &r;
                        move || taken(r, &i.to_string(), 0)
                    })
                })
                .collect();
            t.into_iter().map(|t| t.join().unwrap()).sum()
        });
        assert_eq!(got, 100);
    }

    #[test]
    fn without_a_limit_everything_passes() {
        let r = RateLimit::new(None);
        assert_eq!((taken(&r, "x", 0), r.per()), (100_000, None));
    }

    #[test]
    fn the_table_is_bounded_and_crowded_keys_share_one_count() {
        let r = RateLimit::with_keys(rate(1, 0, RatePer::Address), 160);
        let passed = (0..10_000).filter(|i: &u32| r.check(i, 0).is_ok()).count();
        assert!((17..=161).contains(&passed), "{passed} keys passed: one a place, and one for the rest");
        let l = r.0.as_ref().unwrap();
        assert!(l.shards.iter().all(|s| s.lock().keys.len() <= 10));
        assert!(r.crowded() > 9_000);
        // A second later the places are free again.
        assert!(r.check(&20_000, SECOND).is_ok());
        assert!(r.check(&20_000, SECOND).is_err());
    }
}
