//! The retry budget: retries may be a fraction of the requests of the last ten seconds, plus a minimum a second, so
//! that retrying never multiplies the load on a service that is down.

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::pad::Padded;

/// Seconds that requests and retries are remembered.
pub const WINDOW_SECS: u64 = 10;
const SLOTS: usize = WINDOW_SECS as usize;
const SECOND: u64 = 1_000_000_000;
const COUNT: u64 = u32::MAX as u64;

/// Counts requests by second in atomics (every request passes here) and retries under a lock (few do).
#[derive(Debug)]
pub struct Budget {
    share: f64,
    min: u32,
    /// Second number (upper 32 bits) and requests in it (lower 32).
    requests: Padded<[AtomicU64; SLOTS]>,
    /// (second, retries in it).
    retries: Padded<Mutex<[(u64, u64); SLOTS]>>,
}

impl Budget {
    /// `share` of the requests of the last ten seconds, plus `min` a second.
    pub fn new(share: f64, min: u32) -> Self {
        Self { share, min, requests: Padded::default(), retries: Padded::default() }
    }

    /// Counts one request (not its retries), `now` in nanoseconds since any fixed instant.
    #[inline]
    pub fn request(&self, now: u64) {
        let second = now / SECOND;
        let slot = &self.requests[(second % WINDOW_SECS) as usize];
        let seen = slot.load(Ordering::Relaxed);
        if seen >> 32 == second & COUNT {
            slot.fetch_add(1, Ordering::Relaxed);
        } else if slot.compare_exchange(seen, second << 32 | 1, Ordering::Relaxed, Ordering::Relaxed).is_err() {
            // Another thread opened the second.
            slot.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Takes one retry from the budget, or says that it is used up.
    pub fn retry(&self, now: u64) -> bool {
        let second = now / SECOND;
        let recent = |s: u64| s <= second && second - s < WINDOW_SECS;
        let requests: u64 = (self.requests.iter())
            .map(|s| s.load(Ordering::Relaxed))
            .filter(|v| recent(second & !COUNT | v >> 32))
            .map(|v| v & COUNT)
            .sum();
        let mut slots = self.retries.lock();
        let used: u64 = slots.iter().filter(|(s, _)| recent(*s)).map(|(_, n)| n).sum();
        let allowed = self.share * requests as f64 + f64::from(self.min) * WINDOW_SECS as f64;
        if used as f64 + 1.0 > allowed {
            return false;
        }
        let slot = &mut slots[(second % WINDOW_SECS) as usize];
        if slot.0 != second {
            *slot = (second, 0);
        }
        slot.1 += 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(b: &Budget, at: u64) -> usize {
        (0..10_000).take_while(|_| b.retry(at)).count()
    }

    #[test]
    fn retries_are_a_share_of_requests_plus_the_minimum() {
        let b = Budget::new(0.2, 1);
        for i in 0..1_000 {
            b.request(i * SECOND / 200); // 5 s
        }
        assert_eq!(taken(&b, 5 * SECOND), 200 + 10);
        assert!(!b.retry(5 * SECOND));
    }

    #[test]
    fn what_happened_ten_seconds_ago_is_forgotten() {
        let b = Budget::new(0.5, 0);
        for _ in 0..100 {
            b.request(0);
        }
        assert_eq!(taken(&b, 9 * SECOND), 50);
        assert_eq!(taken(&b, 10 * SECOND), 0, "the requests are too old");
        for _ in 0..10 {
            b.request(30 * SECOND);
        }
        assert_eq!(taken(&b, 30 * SECOND), 5, "the old retries are forgotten too");
    }

    #[test]
    fn without_traffic_the_minimum_holds() {
        assert_eq!(taken(&Budget::new(0.2, 10), 1_000 * SECOND), 100);
        assert_eq!(taken(&Budget::new(0.2, 0), 0), 0);
    }

    #[test]
    fn many_threads_together_never_overdraw() {
        let b = Budget::new(0.1, 0);
        for _ in 0..1_000 {
            b.request(0);
        }
        let got: usize = std::thread::scope(|s| {
            let t: Vec<_> = (0..4).map(|_| s.spawn(|| taken(&b, 0))).collect();
            t.into_iter().map(|t| t.join().unwrap()).sum()
        });
        assert_eq!(got, 100);
    }
}
