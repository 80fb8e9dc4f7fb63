//! What happens by itself: retention of topics, expiry of dedup ids.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use weft_core::Timestamp;
use weft_store::{Batch, Durability, Op, Result, Seq, Store, StreamName};

use super::{Actor, Read, Tx};
use crate::dedup;

/// Dedup keys removed in one batch.
const EXPIRE_KEYS: usize = 1_000;
/// Trims are looked for at a tenth of the retention, within these.
const TRIM_MIN: Duration = Duration::from_secs(1);
const TRIM_MAX: Duration = Duration::from_secs(60);
/// Topics without a retention are trimmed behind their slowest subscription this often.
const TRIM_SETTLED: Duration = Duration::from_secs(10);

impl Actor {
    pub(super) fn upkeep(&mut self) {
        let now = self.now();
        while let Some(keys) = self.dedup.expire(now) {
            for some in keys.chunks(EXPIRE_KEYS) {
                let ops = some.iter().map(|k| Op::Delete { space: dedup::SPACE, key: k.clone() }).collect();
                self.enlist(Batch { ops, durability: Durability::Relaxed, ..Batch::new() }, Tx::default());
            }
        }
        for sub in &self.subs {
            let counts = sub.lanes.iter().map(|l| {
                let lane = &self.lanes[*l];
                let last = self.streams.get(&lane.stream).map_or(0, |s| s.last);
                let c = lane.state.counts();
                (c.ready as i64 + lane.unloaded(last) as i64, c.in_flight as i64)
            });
            let (ready, in_flight) = counts.fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
            sub.counts.ready.set(ready);
            sub.counts.in_flight.set(in_flight);
        }
        let instant = Instant::now();
        let due: Vec<_> = self
            .topics
            .values_mut()
            .filter(|t| t.next_trim.is_none_or(|at| at <= instant))
            .map(|t| {
                let pause = t.spec.retention.map_or(TRIM_SETTLED, |r| (r / 10).clamp(TRIM_MIN, TRIM_MAX));
                t.next_trim = Some(instant + pause);
                (t.spec.retention, t.streams.clone(), t.subs.clone())
            })
            .collect();
        for (retention, streams, subs) in due {
            for stream in streams {
                match retention {
                    Some(kept) => {
                        let (store, name) = (self.store.clone(), stream.clone());
                        let cutoff = Timestamp(now.0.saturating_sub(kept.as_millis() as u64));
                        self.reads.push(Box::pin(async move {
                            let through = older_than(&store, &name, cutoff).await.unwrap_or_else(|e| {
                                tracing::warn!(stream = %name, error = %e, "retention could not read");
                                None
                            });
                            Read::Trim { stream: name, through }
                        }));
                    }
                    None => {
                        let through = self.settled_through(&stream, &subs);
                        self.trim(stream, through);
                    }
                }
            }
        }
    }

    /// What every subscription has acknowledged durably; nothing without subscriptions.
    fn settled_through(&self, stream: &StreamName, subs: &[usize]) -> Option<Seq> {
        let floor = |sub: &usize| {
            let name = self.subs[*sub].source.parts().1;
            self.store.cursor(stream, name).map_or(0, |c| c.floor)
        };
        let through = subs.iter().map(floor).min()?;
        let trimmed = self.store.stream(stream).map_or(0, |i| i.trimmed);
        (through > trimmed).then_some(through)
    }

    pub(super) fn trim(&mut self, stream: StreamName, through: Option<Seq>) {
        let Some(through) = through else { return };
        let tx = Tx { trims: vec![(stream.clone(), through)], ..Tx::default() };
        let ops = vec![Op::Trim(stream, through)];
        self.enlist(Batch { ops, durability: Durability::Relaxed, ..Batch::new() }, tx);
    }
}

/// The last record of a stream written before an instant. Times never decrease along a stream, so halving finds it.
async fn older_than(store: &Arc<dyn Store>, stream: &str, cutoff: Timestamp) -> Result<Option<Seq>> {
    let Some(info) = store.stream(stream) else { return Ok(None) };
    let (mut low, mut high) = (info.trimmed, info.last);
    // Invariant: all up to `low` may go, nothing above `high` may.
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        let old = match store.read(stream, middle, 1, 1).await?.first() {
            Some(r) => r.time < cutoff,
            None => false,
        };
        if old { low = middle } else { high = middle - 1 }
    }
    Ok((low > info.trimmed).then_some(low))
}
