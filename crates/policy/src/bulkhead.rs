//! Work at once, with a bounded waiting room.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use weft_core::Deadline;

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
}

/// A place in the bulkhead, given back when dropped. It is `Send + 'static`, so it can move into a response body and
/// a stream counts until it ends.
#[derive(Debug)]
#[must_use = "the place is given back as soon as this is dropped"]
pub struct Slot(#[allow(dead_code, reason = "held for its drop")] Option<OwnedSemaphorePermit>);

impl Bulkhead {
    /// A bulkhead with these limits, or one without.
    pub fn new(spec: Option<spec::Bulkhead>) -> Self {
        Self(spec.map(|spec| Limits {
            spec,
            places: Arc::new(Semaphore::new((spec.limit as usize).min(Semaphore::MAX_PERMITS))),
            waiting: Padded::default(),
            refused: AtomicU64::new(0),
        }))
    }

    /// Takes a place at once or not at all.
    #[inline]
    pub fn try_acquire(&self) -> Result<Slot, Refused> {
        match &self.0 {
            None => Ok(Slot(None)),
            Some(l) => match l.places.clone().try_acquire_owned() {
                Ok(p) => Ok(Slot(Some(p))),
                Err(_) => Err(Refused::BulkheadFull { limit: l.spec.limit, queue: l.spec.queue }),
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

    /// How much work is under way, and how much waits.
    pub fn load(&self) -> (u32, u32) {
        match &self.0 {
            None => (0, 0),
            Some(l) => {
                let free = l.places.available_permits().min(u32::MAX as usize) as u32;
                (l.spec.limit.saturating_sub(free), l.waiting.load(Ordering::Relaxed))
            }
        }
    }
}

impl Limits {
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
            Ok(Ok(p)) => Ok(Slot(Some(p))),
            // The semaphore is never closed, so the only other end is the timeout.
            Ok(Err(_)) => Err(full),
            Err(_) => Err(Refused::BulkheadWait { limit: self.spec.limit, waited: began.elapsed() }),
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
    use std::time::Duration;

    fn bulkhead(limit: u32, queue: u32, wait_ms: u64) -> Arc<Bulkhead> {
        Arc::new(Bulkhead::new(Some(spec::Bulkhead { limit, queue, wait: Duration::from_millis(wait_ms) })))
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

    #[test]
    fn a_slot_can_move_into_a_response_body() {
        fn moves<T: Send + 'static>() {}
        moves::<Slot>();
    }
}
