//! The embedded store's door.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use parking_lot::{Mutex, RwLock};
use tokio::sync::{oneshot, watch};
use weft_core::limits::{BATCH_BYTES, COMMIT_RESUBMITS, SEGMENT_BYTES, STREAM_NAME_BYTES};
use weft_core::{Clock, SystemClock};

use crate::applier::{self, Applier};
use crate::disk::{DirLock, Disk, FileDisk};
use crate::entry::{Encoded, body_bytes};
use crate::group::BLOCK;
use crate::journal::{self, Writer, receipt};
use crate::keeper::{self, Keeper, Nudge};
use crate::kv::{Kv, Stored};
use crate::pending::{KeyReads, changed_keys};
use crate::queue::{Answer, Queue, Submission, Work};
use crate::reader::{self, Kept, Outcome, Readers};
use crate::recover::{Report, io};
use crate::segments::{Pool, too_large};
use crate::views::{Source, Views};
use crate::{
    Batch, Cursor, Damaged, Error, Expect, Op, Position, Receipt, Record, Result, Seq, Store, StreamInfo, StreamName,
    Value,
};

/// Threads that wait for the disk on behalf of readers.
const READER_THREADS: usize = 2;
/// Bytes of key changes the key-value view may lag behind before batches that only add are refused.
const OVERLAY_BYTES: usize = 64 << 20;

/// How to open an embedded store.
#[derive(Clone)]
pub struct Config {
    /// The data directory; made when absent.
    pub dir: PathBuf,
    /// Where the journal and the settled files live; `None` = in the directory.
    pub disk: Option<Arc<dyn Disk>>,
    /// Stamps the batches.
    pub clock: Arc<dyn Clock>,
    /// Sizes and marks.
    pub tuning: Tuning,
}

/// Sizes and marks of an embedded store. The defaults suit a server; tests use small ones.
#[derive(Clone, Debug)]
pub struct Tuning {
    /// Bytes of a journal segment.
    pub segment_bytes: u64,
    /// Full segments kept before the oldest are settled.
    pub keep_segments: usize,
    /// Free bytes below which batches that only add are refused.
    pub low_water: u64,
    /// Whether settling, checkpoints and the key-value view have threads of their own. Without, the writer does
    /// their work between groups, in an order that depends on nothing but the batches.
    pub background: bool,
}

impl Default for Tuning {
    fn default() -> Self {
        Self { segment_bytes: SEGMENT_BYTES, keep_segments: 8, low_water: 4 * SEGMENT_BYTES, background: true }
    }
}

impl Config {
    /// The defaults, in a directory.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), disk: None, clock: Arc::new(SystemClock), tuning: Tuning::default() }
    }
}

/// The embedded store: one journal and views of it. Clones share it; it ends with the last one.
#[derive(Clone)]
pub struct Embedded {
    door: Arc<Door>,
}

struct Door {
    shared: Arc<Shared>,
    threads: Mutex<Option<Threads>>,
    lock: Mutex<Option<DirLock>>,
    report: Report,
}

struct Threads {
    writer: JoinHandle<()>,
    applier: Option<JoinHandle<()>>,
    keeper: Option<JoinHandle<()>>,
}

/// What the writer has done: batches accepted, groups written, syncs of the journal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Batches accepted.
    pub batches: u64,
    /// Groups written.
    pub groups: u64,
    /// Syncs of the journal.
    pub syncs: u64,
}

#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) batches: AtomicU64,
    pub(crate) groups: AtomicU64,
    pub(crate) syncs: AtomicU64,
}

/// What the handles and the threads share.
pub(crate) struct Shared {
    pub(crate) queue: Queue,
    pub(crate) views: RwLock<Views>,
    pub(crate) published: watch::Sender<Position>,
    pub(crate) health: HealthCell,
    pub(crate) kv: Arc<Kv>,
    pub(crate) applier: Applier,
    pub(crate) pool: Pool,
    pub(crate) kept: Kept,
    pub(crate) nudge: Nudge,
    /// Held during a step of the keeper and while the store is opened again.
    pub(crate) keeper_turn: Mutex<()>,
    pub(crate) tuning: Tuning,
    /// Bytes free on the disk when last looked.
    pub(crate) free: AtomicU64,
    /// Bytes written in the current segment.
    pub(crate) tail_used: AtomicU64,
    pub(crate) epoch: AtomicU64,
    pub(crate) next_file: AtomicU64,
    /// The newest checkpoint's number.
    pub(crate) checkpoint: AtomicU64,
    /// The key-value view or settling lags so far behind that batches that only add are refused.
    crowded: AtomicBool,
    pub(crate) counters: Counters,
    readers: Readers,
}

/// Whether commits are taken.
#[derive(Clone, Debug)]
pub(crate) enum Health {
    /// They are.
    Open,
    /// A sync failed; the store is being opened again.
    Reopening(String),
    /// Opened again, and nothing was synced since.
    Reopened,
    /// They will not be until the process opens the store again.
    Closed(String),
}

/// The current health.
pub(crate) struct HealthCell(RwLock<Health>);

impl HealthCell {
    pub(crate) fn set(&self, h: Health) {
        *self.0.write() = h;
    }

    /// Something was synced: an earlier failure is over.
    pub(crate) fn recovered(&self) {
        if matches!(*self.0.read(), Health::Reopened) {
            self.set(Health::Open);
        }
    }

    /// Notes a failure; true when it is the second in a row, which closes the store.
    pub(crate) fn failed(&self, reason: &str) -> bool {
        let again = !matches!(*self.0.read(), Health::Open);
        self.set(if again { Health::Closed(reason.to_owned()) } else { Health::Reopening(reason.to_owned()) });
        again
    }

    pub(crate) fn is_closed(&self) -> bool {
        matches!(*self.0.read(), Health::Closed(_))
    }

    pub(crate) fn check(&self) -> Result<()> {
        match &*self.0.read() {
            Health::Open | Health::Reopened => Ok(()),
            Health::Reopening(reason) => {
                Err(Error::Unavailable { reason: format!("the store is being opened again: {reason}") })
            }
            Health::Closed(reason) => Err(Error::Unavailable { reason: reason.clone() }),
        }
    }
}

impl Shared {
    /// Answers what waits in the queue: nothing of it took effect. Once closed, nothing is queued again.
    pub(crate) fn refuse_queued(&self) {
        let health = self.health.check().err();
        let closed = if self.health.is_closed() { health.clone() } else { None };
        let unavailable = health.unwrap_or(Error::Unavailable { reason: "the store is being opened again".into() });
        for work in self.queue.drain(closed) {
            match work {
                // Whoever dropped the future does not want the answer.
                Work::Commit(_, reply) => drop(reply.send(Err(unavailable.clone()))),
                Work::Edit(_, reply) | Work::Sync(reply) | Work::Close(reply) => {
                    drop(reply.send(Err(unavailable.clone())));
                }
            }
        }
    }

    /// Reads the keys a batch's preconditions name.
    fn read_keys(&self, expect: &[Expect]) -> Result<KeyReads> {
        if !expect.iter().any(|e| matches!(e, Expect::Key { .. })) {
            return Ok(KeyReads::default());
        }
        // The position comes first: what is read may be newer, and then the writer knows that, too.
        let mut reads = KeyReads { at: self.views.read().position, versions: Vec::new() };
        for e in expect {
            if let Expect::Key { space, key, .. } = e {
                reads.versions.push(match self.get(space, key)? {
                    None => Some(0),
                    Some(Ok(v)) => Some(v.version),
                    Some(Err(Damaged)) => None,
                });
            }
        }
        Ok(reads)
    }

    /// Notes whether the views lag too far behind the journal; called wherever that may change.
    pub(crate) fn note_crowding(&self, views: &Views) {
        let segments = views.segments.len() > 4 * self.tuning.keep_segments.max(4);
        self.crowded.store(segments || views.overlay.bytes > OVERLAY_BYTES, Ordering::Relaxed);
    }

    /// A key as published. What the overlay does not have, the view has.
    fn get(&self, space: &str, key: &[u8]) -> Result<Option<Stored>> {
        let newest = self.views.read().overlay.get(space, key);
        match newest {
            Some((version, Ok(Some(bytes)))) => Ok(Some(Ok(Value { version, bytes }))),
            Some((_, Ok(None))) => Ok(None),
            Some((_, Err(Damaged))) => Ok(Some(Err(Damaged))),
            None => self.kv.get(space, key),
        }
    }

    /// Reads records, from memory when they are there; starts again when a segment was recycled meanwhile.
    fn read_pieces(&self, stream: &str, mut from: Seq, max: usize, max_bytes: usize) -> Result<Vec<Record>> {
        let mut out: Vec<Record> = Vec::new();
        loop {
            let left = max - out.len();
            let bytes = max_bytes.saturating_sub(out.iter().map(|r| r.payload.as_ref().map_or(0, Bytes::len)).sum());
            if left == 0 || (bytes == 0 && !out.is_empty()) {
                return Ok(out);
            }
            let pieces = self.views.read().plan(stream, from, left);
            match reader::read(&self.kept, stream, &pieces, bytes)? {
                Outcome::Records(records) => {
                    out.extend(records);
                    return Ok(out);
                }
                Outcome::Missing(segment, piece, records) => {
                    out.extend(records);
                    from = piece.first;
                    let current = self.views.read().segments.get(&segment.id).is_some_and(|s| Arc::ptr_eq(s, &segment));
                    if current {
                        out.extend(reader::damaged(&piece));
                        from = piece.last + 1;
                    }
                }
            }
        }
    }

    /// Encodes a batch and reads what its preconditions name.
    fn prepare(&self, batch: Batch) -> Result<Submission> {
        check(&batch)?;
        // Reads memory and at most a few cached blocks, here and not later, so that calls keep their order.
        let reads = self.read_keys(&batch.expect)?;
        Ok(Submission {
            batch: Encoded::new(&batch),
            keys: changed_keys(&batch),
            adds: adds(&batch),
            reads,
            durability: batch.durability,
            expect: batch.expect,
        })
    }

    /// Hands batches to the writer as one.
    fn submit(&self, batches: Vec<Submission>) -> Result<Vec<oneshot::Receiver<Result<Answer>>>> {
        self.health.check()?;
        for s in &batches {
            if s.bytes() > self.tuning.segment_bytes as usize - 2 * BLOCK {
                return Err(too_large(s.bytes(), self.tuning.segment_bytes));
            }
            if s.adds && self.crowded.load(Ordering::Relaxed) {
                return Err(Error::Overloaded);
            }
        }
        let (mut work, mut answers) = (Vec::with_capacity(batches.len()), Vec::with_capacity(batches.len()));
        for s in batches {
            let (reply, answer) = oneshot::channel();
            work.push(Work::Commit(s, reply));
            answers.push(answer);
        }
        self.queue.push_all(work)?;
        Ok(answers)
    }

    /// Waits for a batch's answer; reads its keys again and submits it again where they were read too long ago.
    async fn settled(self: Arc<Self>, mut answer: oneshot::Receiver<Result<Answer>>) -> Result<Receipt> {
        let mut resubmits = 0;
        loop {
            // The writer answers everything it takes; only a panic drops a reply.
            let gone = |_| Error::Unknown { reason: "the journal's writer ended".into() };
            match answer.await.map_err(gone)?? {
                Answer::Done { position, time, firsts, batch } => return Ok(receipt(position, time, &firsts, &batch)),
                Answer::Stale(_) if resubmits == COMMIT_RESUBMITS => return Err(Error::Overloaded),
                Answer::Stale(mut s) => {
                    resubmits += 1;
                    s.reads = self.read_keys(&s.expect)?;
                    answer = self.submit(vec![*s])?.pop().expect("one answer a batch");
                }
            }
        }
    }
}

impl Embedded {
    /// Opens a store: takes the directory's lock, recovers the journal, and serves.
    pub fn open(config: Config) -> Result<Self> {
        let lock = DirLock::take(&config.dir)?;
        let disk = match config.disk {
            Some(disk) => disk,
            None => Arc::new(FileDisk::open(&config.dir.join("journal")).map_err(io("opening the journal"))?),
        };
        let kv = Arc::new(Kv::open(&config.dir.join("kv"))?);
        let shared = Arc::new(Shared {
            queue: Queue::default(),
            views: RwLock::default(),
            published: watch::Sender::new(0),
            health: HealthCell(RwLock::new(Health::Open)),
            kv,
            applier: Applier::default(),
            pool: Pool::new(config.tuning.segment_bytes),
            kept: Kept::default(),
            nudge: Nudge::default(),
            keeper_turn: Mutex::default(),
            free: AtomicU64::new(u64::MAX),
            tail_used: AtomicU64::new(0),
            epoch: AtomicU64::new(0),
            next_file: AtomicU64::new(1),
            checkpoint: AtomicU64::new(0),
            readers: Readers::start(if config.tuning.background { READER_THREADS } else { 0 })
                .map_err(io("starting the readers"))?,
            crowded: AtomicBool::new(false),
            counters: Counters::default(),
            tuning: config.tuning,
        });
        let (writer, report) = Writer::open(shared.clone(), disk.clone(), config.clock)?;
        let threads = Threads::start(&shared, disk, writer).map_err(io("starting the store's threads"))?;
        let (threads, lock) = (Mutex::new(Some(threads)), Mutex::new(Some(lock)));
        Ok(Self { door: Arc::new(Door { shared, threads, lock, report }) })
    }

    /// What the writer has done since the opening.
    pub fn stats(&self) -> Stats {
        let count = |c: &AtomicU64| c.load(Ordering::Relaxed);
        let c = &self.shared().counters;
        Stats { batches: count(&c.batches), groups: count(&c.groups), syncs: count(&c.syncs) }
    }

    /// What the opening found and did.
    pub fn report(&self) -> &Report {
        &self.door.report
    }

    /// Commits several batches, each atomic by itself, handed to the writer as one: cheaper than one by one for who
    /// has several at hand. All are submitted, or none.
    pub fn commit_all(&self, batches: Vec<Batch>) -> Result<Vec<BoxFuture<'static, Result<Receipt>>>> {
        let shared = self.shared();
        let prepared = batches.into_iter().map(|b| shared.prepare(b)).collect::<Result<Vec<_>>>()?;
        let answers = shared.submit(prepared)?;
        Ok(answers.into_iter().map(|a| shared.clone().settled(a).boxed()).collect())
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.door.shared
    }
}

impl Threads {
    fn start(shared: &Arc<Shared>, disk: Arc<dyn Disk>, writer: Writer) -> std::io::Result<Self> {
        let thread = |name: &str| std::thread::Builder::new().name(name.into());
        let (mut applier, mut keeper) = (None, None);
        if shared.tuning.background {
            let s = shared.clone();
            applier = Some(thread("weft-kv").spawn(move || applier::run(&s))?);
            let k = Keeper::new(shared.clone(), disk);
            keeper = Some(thread("weft-keeper").spawn(move || keeper::run(k))?);
        }
        let writer = thread("weft-journal").spawn(move || journal::run(writer))?;
        Ok(Self { writer, applier, keeper })
    }

    /// Waits for the threads to end; the keeper first, because it asks the writer. One that panicked has said so.
    fn end(self, shared: &Shared) {
        shared.nudge.end();
        let _ = self.keeper.map(JoinHandle::join);
        shared.queue.end();
        let _ = self.writer.join();
        shared.applier.end();
        let _ = self.applier.map(JoinHandle::join);
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        if let Some(threads) = self.threads.lock().take() {
            threads.end(&self.shared);
        }
    }
}

/// Checks a batch's bounds.
fn check(batch: &Batch) -> Result<()> {
    let bytes = body_bytes(&batch.ops);
    if bytes > BATCH_BYTES {
        return Err(Error::TooLarge { bytes, limit: BATCH_BYTES });
    }
    for op in &batch.ops {
        let (Op::Append(stream, _)
        | Op::Ack(stream, ..)
        | Op::Attempt(stream, ..)
        | Op::CreateCursor(stream, _, _)
        | Op::DropCursor(stream, _)
        | Op::Trim(stream, _)) = op
        else {
            continue;
        };
        if stream.len() > STREAM_NAME_BYTES {
            return Err(Error::TooLarge { bytes: stream.len(), limit: STREAM_NAME_BYTES });
        }
    }
    Ok(())
}

/// Whether a batch only adds data: appends and puts, and nothing that settles or frees.
fn adds(batch: &Batch) -> bool {
    let frees = |op: &Op| matches!(op, Op::Ack(..) | Op::Trim(..) | Op::Delete { .. } | Op::DropCursor(..));
    batch.ops.iter().any(|op| matches!(op, Op::Append(..) | Op::Put { .. })) && !batch.ops.iter().any(frees)
}

impl Store for Embedded {
    fn commit(&self, batch: Batch) -> BoxFuture<'static, Result<Receipt>> {
        let shared = self.shared().clone();
        let submitted = shared.prepare(batch).and_then(|s| shared.submit(vec![s]));
        async move {
            let answer = submitted?.pop().expect("one answer a batch");
            shared.settled(answer).await
        }
        .boxed()
    }

    fn read(&self, stream: &str, from: Seq, max: usize, max_bytes: usize) -> BoxFuture<'static, Result<Vec<Record>>> {
        let shared = self.shared().clone();
        let pieces = shared.views.read().plan(stream, from, max);
        if pieces.iter().all(|(_, s)| matches!(s, Source::Memory(..) | Source::Damaged)) {
            let out = match reader::read(&shared.kept, stream, &pieces, max_bytes) {
                Ok(Outcome::Records(records)) => Ok(records),
                Ok(Outcome::Missing(..)) => unreachable!("nothing was read from disk"),
                Err(e) => Err(e),
            };
            return std::future::ready(out).boxed();
        }
        drop(pieces);
        let stream = stream.to_owned();
        on_reader(self.shared(), move |shared| shared.read_pieces(&stream, from, max, max_bytes))
    }

    fn stream(&self, stream: &str) -> Option<StreamInfo> {
        self.shared().views.read().streams.info(stream)
    }

    fn cursor(&self, stream: &str, cursor: &str) -> Option<Cursor> {
        self.shared().views.read().streams.cursor(stream, cursor)
    }

    fn streams(&self, prefix: &str) -> Vec<StreamName> {
        self.shared().views.read().streams.names(prefix)
    }

    fn get(&self, space: &str, key: &[u8]) -> BoxFuture<'static, Result<Option<Value>>> {
        let found = match self.shared().get(space, key) {
            Ok(Some(Err(Damaged))) => Err(damaged(space, key)),
            Ok(Some(Ok(value))) => Ok(Some(value)),
            Ok(None) => Ok(None),
            Err(e) => Err(e),
        };
        std::future::ready(found).boxed()
    }

    fn scan(
        &self,
        space: &str,
        prefix: &[u8],
        after: Option<&[u8]>,
        max: usize,
    ) -> BoxFuture<'static, Result<Vec<(Bytes, Value)>>> {
        let (snapshot, over) = {
            let views = self.shared().views.read();
            (self.shared().kv.snapshot(views.overlay.applied), views.overlay.range(space, prefix, after))
        };
        let (space, prefix, after) = (space.to_owned(), prefix.to_vec(), after.map(<[u8]>::to_vec));
        on_reader(self.shared(), move |_| {
            let found = snapshot.scan(&space, &prefix, after.as_deref(), max, over)?;
            let whole = |(k, v): (Bytes, Stored)| match v {
                Ok(v) => Ok((k, v)),
                Err(Damaged) => Err(damaged(&space, &k)),
            };
            found.into_iter().map(whole).collect()
        })
    }

    fn watch(&self) -> watch::Receiver<Position> {
        self.shared().published.subscribe()
    }

    fn health(&self) -> Result<()> {
        self.shared().health.check()
    }

    fn close(&self) -> BoxFuture<'static, Result<()>> {
        if let Err(e) = self.health() {
            return std::future::ready(Err(e)).boxed();
        }
        let (reply, closed) = oneshot::channel();
        // The keeper's last step must not meet the writer's last checkpoint.
        self.shared().nudge.end();
        let keeper = self.door.threads.lock().as_mut().and_then(|t| t.keeper.take());
        let _ = keeper.map(JoinHandle::join);
        let pushed = self.shared().queue.push(Work::Close(reply));
        let door = self.door.clone();
        async move {
            pushed?;
            let gone = |_| Error::Unavailable { reason: "the store is closed".into() };
            let outcome = closed.await.map_err(gone)?;
            let threads = door.threads.lock().take();
            if let Some(threads) = threads {
                threads.end(&door.shared);
            }
            door.lock.lock().take();
            outcome
        }
        .boxed()
    }
}

/// Runs a read on one of the readers' threads.
fn on_reader<T: Send + 'static>(
    shared: &Arc<Shared>,
    read: impl FnOnce(&Shared) -> Result<T> + Send + 'static,
) -> BoxFuture<'static, Result<T>> {
    let (reply, answer) = oneshot::channel();
    let on = shared.clone();
    // Whoever dropped the future does not want the answer.
    shared.readers.run(move || drop(reply.send(read(&on))));
    let gone = |_| Error::Io { action: "reading", reason: "the reader's thread ended".into() };
    async move { answer.await.map_err(gone)? }.boxed()
}

fn damaged(space: &str, key: &[u8]) -> Error {
    Error::Damaged { what: format!("key '{}' of '{space}'", key.escape_ascii()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::{self, Subject, block_on};

    struct OnDisk {
        dir: tempfile::TempDir,
        store: Option<Embedded>,
    }

    impl Subject for OnDisk {
        fn store(&self) -> Arc<dyn Store> {
            Arc::new(self.store.clone().unwrap())
        }
        fn reopen(&mut self) {
            self.store = None;
            self.store = Some(Embedded::open(Config::new(self.dir.path())).unwrap());
        }
    }

    #[test]
    fn the_embedded_store_conforms() {
        conformance::all(|| {
            let dir = tempfile::tempdir().unwrap();
            let store = Some(Embedded::open(Config::new(dir.path())).unwrap());
            Box::new(OnDisk { dir, store })
        });
    }

    #[test]
    fn a_directory_in_use_is_refused_until_it_is_released() {
        let dir = tempfile::tempdir().unwrap();
        let store = Embedded::open(Config::new(dir.path())).unwrap();
        let Err(Error::Directory(message)) = Embedded::open(Config::new(dir.path())) else { panic!("opened twice") };
        assert!(message.contains("in use by process"), "{message}");
        block_on(store.close()).unwrap();
        Embedded::open(Config::new(dir.path())).unwrap();
    }
}
