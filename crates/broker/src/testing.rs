//! A store in memory for tests that own time: its commits and reads are ready at once, or held until the test lets them
//! go. It outlives the broker, so a test can reopen one on it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};
use weft_core::{Clock as _, SystemClock};
use weft_store::{
    Attempt, Batch, Cursor, Error, Expect, OWN, Op, Position, Receipt, Record, Result, Seq, Store, StreamInfo,
    StreamName, Value, Version,
};

#[derive(Clone, Default)]
struct MemCursor {
    floor: Seq,
    acked: BTreeSet<Seq>,
    attempts: BTreeMap<Seq, Attempt>,
}

#[derive(Clone, Default)]
struct MemStream {
    records: BTreeMap<Seq, Record>,
    last: Seq,
    trimmed: Seq,
    cursors: BTreeMap<String, MemCursor>,
}

#[derive(Default)]
struct World {
    streams: BTreeMap<String, MemStream>,
    keys: BTreeMap<(String, Vec<u8>), Value>,
    position: Position,
    held: Option<VecDeque<(Batch, oneshot::Sender<Result<Receipt>>)>>,
    failing: Option<Error>,
    commits: u64,
}

#[derive(Clone)]
pub(crate) struct MemStore {
    world: Arc<Mutex<World>>,
    watch: watch::Sender<Position>,
}

impl MemStore {
    pub fn new() -> Self {
        Self { world: Arc::default(), watch: watch::channel(0).0 }
    }

    /// Commits are taken but neither durable nor visible until [`let_go`](Self::let_go).
    pub fn hold(&self) {
        self.world.lock().held = Some(VecDeque::new());
    }

    /// Makes everything held durable, in order, and holds nothing more.
    pub fn let_go(&self) {
        let held = self.world.lock().held.take().unwrap_or_default();
        for (batch, reply) in held {
            let _ = reply.send(self.take(batch));
        }
    }

    /// Forgets everything held, as a crash would, and holds nothing more.
    pub fn lose(&self) {
        self.world.lock().held = None;
    }

    /// Every commit fails with this until `None`.
    pub fn fail(&self, e: Option<Error>) {
        self.world.lock().failing = e;
    }

    pub fn commits(&self) -> u64 {
        self.world.lock().commits
    }

    pub fn held(&self) -> usize {
        self.world.lock().held.as_ref().map_or(0, VecDeque::len)
    }

    fn take(&self, batch: Batch) -> Result<Receipt> {
        let mut w = self.world.lock();
        if let Some(e) = &w.failing {
            return Err(e.clone());
        }
        for (index, e) in batch.expect.iter().enumerate() {
            let (what, actual, version) = match e {
                Expect::Stream(s, v) => (s.to_string(), w.streams.get(&**s).map_or(0, |s| s.last), v),
                Expect::Key { space, key, version } => {
                    let at = w.keys.get(&((*space).to_owned(), key.to_vec())).map_or(0, |v| v.version);
                    ((*space).to_owned(), at, version)
                }
            };
            let holds = match version {
                Version::Absent => actual == 0,
                Version::Exists => actual != 0,
                Version::Exactly(v) => actual == *v,
            };
            if !holds {
                return Err(Error::Precondition { index, what, actual });
            }
        }
        w.position += 1;
        w.commits += 1;
        let (position, time) = (w.position, SystemClock.now());
        let mut seqs = Vec::new();
        for op in batch.ops {
            match op {
                Op::Append(s, payload) => {
                    let s = w.streams.entry(s.to_string()).or_default();
                    s.last += 1;
                    s.records.insert(s.last, Record { seq: s.last, position, time, payload: Ok(payload) });
                    seqs.push(s.last);
                }
                Op::Ack(s, c, acked) => {
                    let s = w.streams.entry(s.to_string()).or_default();
                    let cursor = s.cursors.entry(c.to_string()).or_default();
                    for seq in acked {
                        cursor.attempts.remove(&seq);
                        if seq > cursor.floor {
                            cursor.acked.insert(seq);
                        }
                        if &*c == OWN {
                            s.records.remove(&seq);
                        }
                    }
                    while cursor.acked.remove(&(cursor.floor + 1)) {
                        cursor.floor += 1;
                    }
                }
                Op::Attempt(s, c, seq, attempt) => {
                    let s = w.streams.entry(s.to_string()).or_default();
                    let cursor = s.cursors.entry(c.to_string()).or_default();
                    if seq > cursor.floor && !cursor.acked.contains(&seq) {
                        cursor.attempts.insert(seq, attempt);
                    }
                }
                Op::CreateCursor(s, c, floor) => {
                    let s = w.streams.entry(s.to_string()).or_default();
                    s.cursors.entry(c.to_string()).or_insert(MemCursor { floor, ..Default::default() });
                }
                Op::DropCursor(s, c) => {
                    if let Some(s) = w.streams.get_mut(&*s) {
                        s.cursors.remove(&*c);
                    }
                }
                Op::Trim(s, through) => {
                    if let Some(s) = w.streams.get_mut(&*s) {
                        s.trimmed = s.trimmed.max(through);
                        s.records.retain(|seq, _| *seq > through);
                    }
                }
                Op::Put { space, key, value } => {
                    w.keys.insert((space.to_owned(), key.to_vec()), Value { version: position, bytes: value });
                }
                Op::Delete { space, key } => {
                    w.keys.remove(&(space.to_owned(), key.to_vec()));
                }
            }
        }
        drop(w);
        self.watch.send_replace(position);
        Ok(Receipt { position, time, seqs })
    }
}

impl Store for MemStore {
    fn commit(&self, batch: Batch) -> BoxFuture<'static, Result<Receipt>> {
        if let Some(held) = &mut self.world.lock().held {
            let (reply, answer) = oneshot::channel();
            held.push_back((batch, reply));
            let gone = || Err(Error::Unavailable { reason: "the world ended".into() });
            return async move { answer.await.unwrap_or_else(|_| gone()) }.boxed();
        }
        std::future::ready(self.take(batch)).boxed()
    }

    fn read(&self, stream: &str, from: Seq, max: usize, max_bytes: usize) -> BoxFuture<'static, Result<Vec<Record>>> {
        let w = self.world.lock();
        let mut bytes = 0;
        let records = w.streams.get(stream).map_or(Vec::new(), |s| {
            s.records
                .range(from..)
                .take(max)
                .map(|(_, r)| r.clone())
                .take_while(|r| {
                    let first = bytes == 0;
                    bytes += r.payload.as_ref().map_or(1, Bytes::len).max(1);
                    first || bytes <= max_bytes
                })
                .collect()
        });
        std::future::ready(Ok(records)).boxed()
    }

    fn stream(&self, stream: &str) -> Option<StreamInfo> {
        let w = self.world.lock();
        let s = w.streams.get(stream)?;
        let cursors = s.cursors.keys().map(|c| c.as_str().into()).collect();
        Some(StreamInfo { last: s.last, trimmed: s.trimmed, cursors })
    }

    fn cursor(&self, stream: &str, cursor: &str) -> Option<Cursor> {
        let w = self.world.lock();
        let c = w.streams.get(stream)?.cursors.get(cursor)?;
        let acked = c.acked.iter().map(|s| (*s, *s)).collect();
        Some(Cursor { floor: c.floor, acked, attempts: c.attempts.iter().map(|(s, a)| (*s, *a)).collect() })
    }

    fn streams(&self, prefix: &str) -> Vec<StreamName> {
        let w = self.world.lock();
        w.streams.keys().filter(|s| s.starts_with(prefix)).map(|s| s.as_str().into()).collect()
    }

    fn get(&self, space: &str, key: &[u8]) -> BoxFuture<'static, Result<Option<Value>>> {
        let v = self.world.lock().keys.get(&(space.to_owned(), key.to_vec())).cloned();
        std::future::ready(Ok(v)).boxed()
    }

    fn scan(
        &self,
        space: &str,
        prefix: &[u8],
        after: Option<&[u8]>,
        max: usize,
    ) -> BoxFuture<'static, Result<Vec<(Bytes, Value)>>> {
        let w = self.world.lock();
        let found = w
            .keys
            .iter()
            .filter(|((s, k), _)| s == space && k.starts_with(prefix) && after.is_none_or(|a| k.as_slice() > a))
            .take(max)
            .map(|((_, k), v)| (Bytes::from(k.clone()), v.clone()))
            .collect();
        std::future::ready(Ok(found)).boxed()
    }

    fn watch(&self) -> watch::Receiver<Position> {
        self.watch.subscribe()
    }

    fn health(&self) -> Result<()> {
        Ok(())
    }

    fn close(&self) -> BoxFuture<'static, Result<()>> {
        std::future::ready(Ok(())).boxed()
    }
}
