//! Counts of quotas: in memory where requests take from them, in the store so that they survive a restart.
//!
//! A count is read from the store when a caller first comes in a period, and written behind the requests, at most
//! [`limits::QUOTA_FLUSH`] after it changed. A process that is killed forgets what it counted since, so callers get that
//! much more, never less; one that shuts down forgets nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use hashbrown::HashMap;
use parking_lot::Mutex;
use weft_core::{Clock, SystemClock, Timestamp, limits};
use weft_policy::quota::{Count, Standing};
use weft_policy::spec::{Calendar, Quota};
use weft_store::{Batch, Store};
use weft_telemetry::metrics::Counter;
use weft_telemetry::{Telemetry, names};

use crate::api::problem::Problem;

/// Counts by the end of their period, quota and caller.
pub const COUNTS: &str = "quota";

const WRITE_MAX: usize = 4_096;
const SWEEP_MAX: usize = 1_000;

/// All quotas of a process.
pub(crate) struct Quotas {
    store: Arc<dyn Store>,
    counts: Mutex<HashMap<Box<[u8]>, Entry>>,
    places: usize,
    crowded: Counter,
    complained: AtomicBool,
}

impl std::fmt::Debug for Quotas {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Quotas").field("callers", &self.counts.lock().len()).finish_non_exhaustive()
    }
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    count: Count,
    dirty: bool,
}

/// What a request took, to be given back.
#[derive(Debug)]
pub(super) struct Taken {
    key: Box<[u8]>,
    until: Timestamp,
    cost: u64,
}

impl Quotas {
    pub(crate) fn new(store: Arc<dyn Store>, telemetry: &Telemetry) -> Self {
        Self::with_places(store, telemetry, limits::QUOTA_KEYS)
    }

    fn with_places(store: Arc<dyn Store>, telemetry: &Telemetry, places: usize) -> Self {
        let crowded = telemetry.metrics().counter(&names::QUOTA_CROWDED, &[]);
        Self { store, counts: Mutex::new(HashMap::new()), places, crowded, complained: AtomicBool::new(false) }
    }

    /// Takes `cost` for a caller, or nothing.
    pub(super) async fn take(
        &self,
        route: &str,
        quota: &Quota,
        caller: &[u8],
        cost: u64,
        clock: &dyn Clock,
    ) -> Result<Result<(Taken, Standing), Standing>, Problem> {
        let mut key = key(route, quota, caller);
        if let Some(taken) = self.take_known(&key, quota, cost, clock) {
            return Ok(taken);
        }
        if self.counts.lock().len() >= self.places {
            // As of the rates: those who find no place share one count.
            self.crowded.inc();
            key = self::key(route, quota, b"+");
            if let Some(taken) = self.take_known(&key, quota, cost, clock) {
                return Ok(taken);
            }
        }
        let fresh = Count::fresh(quota.period, clock.now());
        let stored = self.store.get(COUNTS, &stored(fresh.until, &key)).await?;
        let used = stored.and_then(|v| Some(u64::from_be_bytes(v.bytes.as_ref().try_into().ok()?))).unwrap_or(0);
        // Who came first while this was read has counted on.
        self.counts.lock().entry(key.clone()).or_insert(Entry { count: Count { used, ..fresh }, dirty: false });
        Ok(self.take_known(&key, quota, cost, clock).unwrap_or_else(|| {
            // Swept away in between, because its period just ended.
            let mut count = fresh;
            count
                .take(quota.period, quota.limit, cost, clock.now())
                .map(|s| (Taken { key, until: fresh.until, cost }, s))
        }))
    }

    /// `None` when the store must be asked first: the caller is new, or new in this period.
    fn take_known(
        &self,
        key: &[u8],
        quota: &Quota,
        cost: u64,
        clock: &dyn Clock,
    ) -> Option<Result<(Taken, Standing), Standing>> {
        let mut counts = self.counts.lock();
        let (key, entry) = counts.get_key_value_mut(key)?;
        let taken = entry.count.take(quota.period, quota.limit, cost, clock.now());
        entry.dirty |= taken.is_ok() && cost > 0;
        Some(taken.map(|standing| (Taken { key: key.clone(), until: entry.count.until, cost }, standing)))
    }

    pub(super) fn give_back(&self, taken: Taken) {
        if let Some(entry) = self.counts.lock().get_mut(&taken.key) {
            entry.count.give_back(taken.until, taken.cost);
            entry.dirty = true;
        }
    }

    /// Writes what changed, for ever.
    pub(crate) async fn keep(self: Arc<Self>) {
        let mut rounds = 0u32;
        loop {
            tokio::time::sleep(limits::QUOTA_FLUSH).await;
            self.flush(SystemClock.now()).await;
            rounds = rounds.wrapping_add(1);
            if rounds.is_multiple_of(60) {
                while self.sweep(SystemClock.now()).await.is_ok_and(|n| n == SWEEP_MAX) {}
            }
        }
    }

    /// Writes what changed, and forgets periods that ended.
    pub(crate) async fn flush(&self, now: Timestamp) {
        loop {
            let mut batch = Batch::new();
            let mut written = Vec::new();
            {
                let mut counts = self.counts.lock();
                counts.retain(|_, e| e.count.until > now);
                for (key, e) in counts.iter_mut().filter(|(_, e)| e.dirty).take(WRITE_MAX) {
                    e.dirty = false;
                    let value = Bytes::copy_from_slice(&e.count.used.to_be_bytes());
                    batch = batch.put(COUNTS, stored(e.count.until, key), value);
                    written.push(key.clone());
                }
            }
            if written.is_empty() {
                return;
            }
            let full = written.len() == WRITE_MAX;
            if let Err(e) = self.store.commit(batch).await {
                let mut counts = self.counts.lock();
                for key in &written {
                    if let Some(e) = counts.get_mut(key) {
                        e.dirty = true;
                    }
                }
                if !self.complained.swap(true, Ordering::Relaxed) {
                    tracing::warn!(error = %e, "quota counts are not written; they are tried again every second");
                }
                return;
            }
            self.complained.store(false, Ordering::Relaxed);
            if !full {
                return;
            }
        }
    }

    /// Deletes counts of periods that ended, oldest first.
    async fn sweep(&self, now: Timestamp) -> Result<usize, weft_store::Error> {
        let old = self.store.scan(COUNTS, &[], None, SWEEP_MAX).await?;
        let ended = |k: &Bytes| k.first_chunk::<8>().is_none_or(|t| u64::from_be_bytes(*t) <= now.0);
        let ended: Vec<_> = old.into_iter().map(|(k, _)| k).take_while(ended).collect();
        let n = ended.len();
        if n > 0 {
            let batch = ended.into_iter().fold(Batch::new(), |b, k| b.delete(COUNTS, k));
            self.store.commit(batch).await?;
        }
        Ok(n)
    }
}

fn key(route: &str, quota: &Quota, caller: &[u8]) -> Box<[u8]> {
    let period: &[u8] = match quota.period {
        Calendar::Day => b"d",
        Calendar::Month => b"m",
    };
    [route.as_bytes(), b"\0", quota.name.as_bytes(), b"\0", period, caller].concat().into()
}

fn stored(until: Timestamp, key: &[u8]) -> Vec<u8> {
    [&until.0.to_be_bytes(), key].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_policy::spec::RatePer;
    use weft_store::{Config, Embedded};

    struct At(&'static str);

    impl Clock for At {
        fn now(&self) -> Timestamp {
            Timestamp::parse(self.0).unwrap()
        }
    }

    const NOON: At = At("2024-03-31T12:00:00Z");
    const MIDNIGHT: At = At("2024-04-01T00:00:00Z");

    fn quota(limit: u64, period: Calendar) -> Quota {
        let (per, cost) = (RatePer::Principal, None);
        Quota { name: "q".into(), limit, period, per, ipv6_prefix: 64, cost, headers: true }
    }

    fn open(dir: &std::path::Path) -> Arc<dyn Store> {
        Arc::new(Embedded::open(Config::new(dir)).unwrap())
    }

    async fn left(q: &Quotas, spec: &Quota, caller: &str, clock: &At) -> Option<u64> {
        q.take("r", spec, caller.as_bytes(), 1, clock).await.unwrap().ok().map(|(_, s)| s.remaining)
    }

    #[tokio::test]
    async fn what_was_flushed_survives_and_what_was_not_is_the_callers_gain() {
        let dir = tempfile::tempdir().unwrap();
        let (store, spec) = (open(dir.path()), quota(5, Calendar::Month));
        let q = Quotas::new(store.clone(), &Telemetry::new());
        for want in [4, 3] {
            assert_eq!(left(&q, &spec, "ann", &NOON).await, Some(want));
        }
        q.flush(NOON.now()).await;
        assert_eq!(left(&q, &spec, "ann", &NOON).await, Some(2));
        // The process ends here without a flush.
        let again = Quotas::new(store.clone(), &Telemetry::new());
        assert_eq!(left(&again, &spec, "ann", &NOON).await, Some(2), "two were on disk");
        assert_eq!(left(&again, &spec, "bob", &NOON).await, Some(4));
        assert_eq!(left(&again, &quota(5, Calendar::Day), "ann", &NOON).await, Some(4), "another quota");
        assert_eq!(left(&again, &spec, "ann", &MIDNIGHT).await, Some(4), "another month");
        again.flush(MIDNIGHT.now()).await;
        assert_eq!(again.counts.lock().len(), 1, "counts of periods that ended are forgotten");
        assert_eq!(store.scan(COUNTS, &[], None, 9).await.unwrap().len(), 2);
        assert_eq!(again.sweep(MIDNIGHT.now()).await.unwrap(), 1, "and deleted");
        assert_eq!(left(&again, &spec, "ann", &MIDNIGHT).await, Some(3));
    }

    #[tokio::test]
    async fn what_is_given_back_is_there_again() {
        let dir = tempfile::tempdir().unwrap();
        let (q, spec) = (Quotas::new(open(dir.path()), &Telemetry::new()), quota(1, Calendar::Day));
        let (taken, _) = q.take("r", &spec, b"ann", 1, &NOON).await.unwrap().unwrap();
        assert_eq!(left(&q, &spec, "ann", &NOON).await, None);
        q.give_back(taken);
        assert_eq!(left(&q, &spec, "ann", &NOON).await, Some(0));
    }

    #[tokio::test]
    async fn the_table_is_bounded_and_callers_without_a_place_share_one_count() {
        let dir = tempfile::tempdir().unwrap();
        let telemetry = Telemetry::new();
        let (q, spec) = (Quotas::with_places(open(dir.path()), &telemetry, 10), quota(2, Calendar::Day));
        let mut passed = 0;
        for i in 0..100 {
            passed += u32::from(left(&q, &spec, &i.to_string(), &NOON).await.is_some());
        }
        assert_eq!(passed, 12, "ten with places, and two of all the others");
        assert_eq!(q.counts.lock().len(), 11);
        let text = telemetry.metrics().render_prometheus();
        assert!(text.contains("weft_quota_crowded_total 90\n"), "{text}");
    }
}
