//! Work at once, with a bounded waiting room.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use weft_core::Deadline;

use crate::adaptive::Gradient;
use crate::error::Refused;
use crate::pad::Padded;
use crate::spec;

/// A limit on work at once; first come, first served. Without a spec it takes everything.
#[derive(Debug)]
pub struct Bulkhead(Option<Limits>);

#[derive(Debug)]
struct Limits {
    spec: spec::Bulkhead,
    places: Arc<Semaphore>,
    waiting: Padded<AtomicU32>,
    refused: AtomicU64,
    adapting: Option<Arc<Adapting>>,
}

/// A limit that finds itself.
#[derive(Debug)]
struct Adapting {
    gradient: Mutex<Gradient>,
    limit: AtomicU32,
    /// Places to be taken away when they become free, because the limit shrank below what was under way.
    debt: AtomicU32,
}

/// A place in the bulkhead, given back when dropped. It is `Send + 'static`, so it can move into a response body and
/// a stream counts until it ends.
#[derive(Debug)]
#[must_use = "the place is given back as soon as this is dropped"]
pub struct Slot(Option<OwnedSemaphorePermit>, Option<Arc<Adapting>>);

impl Drop for Slot {
    fn drop(&mut self) {
        if let (Some(permit), Some(a)) = (self.0.take(), &self.1)
            && a.debt.fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| n.checked_sub(1)).is_ok()
        {
            permit.forget();
        }
    }
}

impl Bulkhead {
    /// A bulkhead with these limits, or one without.
    pub fn new(spec: Option<spec::Bulkhead>) -> Self {
        Self(spec.map(|spec| Limits {
            spec,
            places: Arc::new(Semaphore::new((begin(&spec) as usize).min(Semaphore::MAX_PERMITS))),
            waiting: Padded::default(),
            refused: AtomicU64::new(0),
            adapting: spec.adaptive.map(|a| {
                let gradient = Gradient::new(a, spec.limit);
                Arc::new(Adapting {
                    limit: AtomicU32::new(gradient.limit()),
                    gradient: Mutex::new(gradient),
                    debt: AtomicU32::new(0),
                })
            }),
        }))
    }

    /// Takes a place at once or not at all.
    #[inline]
    pub fn try_acquire(&self) -> Result<Slot, Refused> {
        match &self.0 {
            None => Ok(Slot(None, None)),
            Some(l) => match l.places.clone().try_acquire_owned() {
                Ok(p) => Ok(Slot(Some(p), l.adapting.clone())),
                Err(_) => Err(Refused::BulkheadFull { limit: l.limit(), queue: l.spec.queue }),
            },
        }
    }

    /// Takes a place, waiting for one within the waiting room's limits and the deadline.
    #[inline]
    pub async fn acquire(&self, deadline: Deadline) -> Result<Slot, Refused> {
        match (self.try_acquire(), &self.0) {
            (Err(full), Some(l)) => {
                let got = l.wait(full, deadline).await;
                l.refused.fetch_add(u64::from(got.is_err()), Ordering::Relaxed);
                got
            }
            (now, _) => now,
        }
    }

    /// How many [`acquire`](Self::acquire) turned away.
    pub fn refused(&self) -> u64 {
        self.0.as_ref().map_or(0, |l| l.refused.load(Ordering::Relaxed))
    }

    /// The limit now, if there is one.
    pub fn limit(&self) -> Option<u32> {
        self.0.as_ref().map(Limits::limit)
    }

    /// Takes in how an attempt went, if the limit goes by it: `now` in nanoseconds since any fixed instant, how long it
    /// took, and whether it says that the other side is overloaded.
    #[inline]
    pub fn learn(&self, now: u64, took: Duration, overloaded: bool) {
        if let Some(l) = &self.0
            && let Some(a) = &l.adapting
        {
            l.adapt(a, now, took, overloaded);
        }
    }

    /// How much work is under way, and how much waits.
    pub fn load(&self) -> (u32, u32) {
        match &self.0 {
            None => (0, 0),
            Some(l) => {
                let free = l.places.available_permits().min(u32::MAX as usize) as u32;
                (l.under_way(free), l.waiting.load(Ordering::Relaxed))
            }
        }
    }
}

/// Where the limit begins.
fn begin(spec: &spec::Bulkhead) -> u32 {
    spec.adaptive.map_or(spec.limit, |a| spec.limit.clamp(a.min, a.max))
}

impl Limits {
    fn limit(&self) -> u32 {
        self.adapting.as_ref().map_or(self.spec.limit, |a| a.limit.load(Ordering::Relaxed))
    }

    fn under_way(&self, free: u32) -> u32 {
        let debt = self.adapting.as_ref().map_or(0, |a| a.debt.load(Ordering::Acquire));
        (self.limit() + debt).saturating_sub(free)
    }

    fn adapt(&self, a: &Adapting, now: u64, took: Duration, overloaded: bool) {
        let free = self.places.available_permits().min(u32::MAX as usize) as u32;
        let took = took.as_nanos().min(u128::from(u64::MAX)) as u64;
        let mut gradient = a.gradient.lock();
        let Some(new) = gradient.sample(now, took, self.under_way(free), overloaded) else { return };
        // Still under the lock: one change at a time.
        let old = a.limit.swap(new, Ordering::Relaxed);
        if new > old {
            let mut more = new - old;
            let paid = a.debt.fetch_update(Ordering::AcqRel, Ordering::Acquire, |d| Some(d.saturating_sub(more)));
            more -= paid.unwrap_or(0).min(more);
            self.places.add_permits(more as usize);
        } else {
            let less = old - new;
            let gone = self.places.forget_permits(less as usize) as u32;
            a.debt.fetch_add(less - gone, Ordering::AcqRel);
        }
    }

    async fn wait(&self, full: Refused, deadline: Deadline) -> Result<Slot, Refused> {
        let queue = self.spec.queue;
        let entered = self
            .waiting
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| (n < queue).then_some(n + 1))
            .map(|_| Waiting(&self.waiting));
        let Ok(_place_to_wait) = entered else { return Err(full) };
        let began = Instant::now();
        let until = Deadline::after(self.spec.wait).min(deadline);
        let place = self.places.clone().acquire_owned();
        let got = match until.instant() {
            Some(at) => tokio::time::timeout_at(at, place).await,
            None => Ok(place.await),
        };
        match got {
            Ok(Ok(p)) => Ok(Slot(Some(p), self.adapting.clone())),
            // The semaphore is never closed, so the only other end is the timeout.
            Ok(Err(_)) => Err(full),
            Err(_) => Err(Refused::BulkheadWait { limit: self.limit(), waited: began.elapsed() }),
        }
    }
}

struct Waiting<'a>(&'a AtomicU32);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bulkhead(limit: u32, queue: u32, wait_ms: u64) -> Arc<Bulkhead> {
        Arc::new(Bulkhead::new(Some(spec::Bulkhead {
            limit,
            queue,
            wait: Duration::from_millis(wait_ms),
            adaptive: None,
        })))
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_bulkhead_refuses_and_a_dropped_slot_frees_its_place() {
        let b = bulkhead(2, 0, 0);
        let one = b.acquire(Deadline::NONE).await.unwrap();
        let _two = b.acquire(Deadline::NONE).await.unwrap();
        assert_eq!(b.load(), (2, 0));
        assert_eq!(b.acquire(Deadline::NONE).await.unwrap_err(), Refused::BulkheadFull { limit: 2, queue: 0 });
        assert_eq!(b.refused(), 1);
        drop(one);
        assert_eq!(b.load(), (1, 0));
        assert!(b.acquire(Deadline::NONE).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn the_waiting_room_is_bounded_and_served_in_order() {
        let b = bulkhead(1, 1, 1_000);
        let held = b.acquire(Deadline::NONE).await.unwrap();
        let waiter = tokio::spawn({
            let b = b.clone();
            async move { b.acquire(Deadline::NONE).await }
        });
        tokio::task::yield_now().await;
        assert_eq!(b.load(), (1, 1));
        assert!(matches!(b.acquire(Deadline::NONE).await, Err(Refused::BulkheadFull { .. })));
        drop(held);
        let got = waiter.await.unwrap().unwrap();
        assert_eq!(b.load(), (1, 0));
        drop(got);
        assert_eq!(b.load(), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_ends_at_the_wait_limit_or_at_the_deadline_whichever_is_first() {
        let b = bulkhead(1, 5, 1_000);
        let _held = b.acquire(Deadline::NONE).await.unwrap();
        let start = Instant::now();
        assert!(matches!(b.acquire(Deadline::NONE).await, Err(Refused::BulkheadWait { .. })));
        assert_eq!(start.elapsed(), Duration::from_millis(1_000));
        let start = Instant::now();
        assert!(b.acquire(Deadline::after(Duration::from_millis(30))).await.is_err());
        assert_eq!(start.elapsed(), Duration::from_millis(30));
        assert_eq!(b.load(), (1, 0), "those who gave up left the waiting room");
    }

    #[tokio::test(start_paused = true)]
    async fn a_waiter_that_is_dropped_leaves_its_place_to_wait() {
        let b = bulkhead(1, 1, 60_000);
        let _held = b.acquire(Deadline::NONE).await.unwrap();
        {
            let waiting = b.acquire(Deadline::NONE);
            assert!(tokio::time::timeout(Duration::from_millis(1), waiting).await.is_err());
        }
        assert_eq!(b.load(), (1, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn waiters_are_served_in_the_order_they_came() {
        let b = bulkhead(1, 10, 1_000);
        let held = b.acquire(Deadline::NONE).await.unwrap();
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut waiters = Vec::new();
        for i in 0..10 {
            let (b, order) = (b.clone(), order.clone());
            waiters.push(tokio::spawn(async move {
                let _slot = b.acquire(Deadline::NONE).await.unwrap();
                order.lock().push(i);
            }));
            tokio::task::yield_now().await;
        }
        drop(held);
        for w in waiters {
            w.await.unwrap();
        }
        assert_eq!(*order.lock(), (0..10).collect::<Vec<_>>());
    }

    #[tokio::test(start_paused = true)]
    async fn a_limit_that_shrinks_takes_places_away_as_they_become_free_and_gives_them_back_when_it_grows() {
        let adaptive = Some(spec::Adaptive { min: 2, max: 100, tolerance: 1.5 });
        let b = Bulkhead::new(Some(spec::Bulkhead { limit: 20, adaptive, ..spec::Bulkhead::default() }));
        let mut held = Vec::new();
        while let Ok(s) = b.try_acquire() {
            held.push(s);
        }
        assert_eq!((held.len(), b.load().0, b.limit()), (20, 20, Some(20)));
        let mut now = 0;
        let mut windows = |n: usize, overloaded: bool| {
            for _ in 0..n * 11 {
                b.learn(now, Duration::from_millis(1), overloaded);
                now += 10_000_000;
            }
        };
        windows(40, true);
        assert_eq!((b.limit(), b.load().0), (Some(2), 20), "what is under way goes on");
        for left in (0..20).rev() {
            held.pop();
            assert_eq!(b.load().0, left);
            assert_eq!(b.try_acquire().is_ok(), left < 2, "{left} under way");
        }
        let _two = [b.try_acquire().unwrap(), b.try_acquire().unwrap()];
        windows(10, false);
        let limit = b.limit().unwrap();
        assert!(limit > 2);
        let more: Vec<_> = std::iter::from_fn(|| b.try_acquire().ok()).collect();
        assert_eq!((more.len() as u32 + 2, b.load().0), (limit, limit));
    }

    #[test]
    fn a_slot_can_move_into_a_response_body() {
        fn moves<T: Send + 'static>() {}
        moves::<Slot>();
    }
}
