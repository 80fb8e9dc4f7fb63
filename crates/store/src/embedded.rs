//! The embedded store's door.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use parking_lot::{Mutex, RwLock};
use tokio::sync::{oneshot, watch};
use weft_core::limits::{BATCH_BYTES, COMMIT_RESUBMITS, STREAM_NAME_BYTES};
use weft_core::{Clock, SystemClock};

use crate::disk::{DirLock, Disk, FileDisk};
use crate::entry::{Encoded, body_bytes};
use crate::journal::{self, Writer, receipt};
use crate::pending::{KeyReads, changed_keys};
use crate::queue::{Answer, Queue, Submission, Work};
use crate::recover::io;
use crate::views::Views;
use crate::{
    Batch, Cursor, Error, Expect, Op, Position, Receipt, Record, Result, Seq, Store, StreamInfo, StreamName, Value,
};

/// How to open an embedded store.
#[derive(Clone)]
pub struct Config {
    /// The data directory; made when absent.
    pub dir: PathBuf,
    /// Where the journal and the settled files live; `None` = in the directory.
    pub disk: Option<Arc<dyn Disk>>,
    /// Stamps the batches.
    pub clock: Arc<dyn Clock>,
}

impl Config {
    /// The defaults, in a directory.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), disk: None, clock: Arc::new(SystemClock) }
    }
}

/// The embedded store: one journal and views of it. Clones share it; it ends with the last one.
#[derive(Clone)]
pub struct Embedded {
    door: Arc<Door>,
}

struct Door {
    shared: Arc<Shared>,
    writer: Mutex<Option<JoinHandle<()>>>,
    lock: Mutex<Option<DirLock>>,
}

/// What the handles and the threads share.
pub(crate) struct Shared {
    pub(crate) queue: Queue,
    pub(crate) views: RwLock<Views>,
    pub(crate) published: watch::Sender<Position>,
    pub(crate) health: HealthCell,
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
                Work::Commit(_, reply) => drop(reply.send(Err(unavailable.clone()))),
                Work::Close(reply) => drop(reply.send(Err(unavailable.clone()))),
            }
        }
    }

    /// Reads the keys a batch's preconditions name.
    fn read_keys(&self, expect: &[Expect]) -> KeyReads {
        if !expect.iter().any(|e| matches!(e, Expect::Key { .. })) {
            return KeyReads::default();
        }
        let views = self.views.read();
        let of = |e: &Expect| match e {
            Expect::Stream(..) => None,
            Expect::Key { space, key, .. } => Some(match views.kv.get(space, key) {
                None => Some(0),
                Some(Ok(v)) => Some(v.version),
                Some(Err(_)) => None,
            }),
        };
        KeyReads { at: views.position, versions: expect.iter().filter_map(of).collect() }
    }

    fn submit(&self, s: Submission) -> Result<oneshot::Receiver<Result<Answer>>> {
        self.health.check()?;
        let (reply, answer) = oneshot::channel();
        self.queue.push(Work::Commit(s, reply))?;
        Ok(answer)
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
        let shared = Arc::new(Shared {
            queue: Queue::default(),
            views: RwLock::default(),
            published: watch::Sender::new(0),
            health: HealthCell(RwLock::new(Health::Open)),
        });
        let writer = Writer::open(shared.clone(), disk, config.clock)?;
        let thread = std::thread::Builder::new()
            .name("weft-journal".into())
            .spawn(move || journal::run(writer))
            .map_err(io("starting the writer"))?;
        Ok(Self { door: Arc::new(Door { shared, writer: Mutex::new(Some(thread)), lock: Mutex::new(Some(lock)) }) })
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.door.shared
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.shared.queue.end();
        if let Some(thread) = self.writer.lock().take() {
            // A writer that panicked has said so; the lock is released all the same.
            let _ = thread.join();
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
        if let Err(e) = check(&batch) {
            return std::future::ready(Err(e)).boxed();
        }
        let shared = self.shared().clone();
        let submission = Submission {
            batch: Encoded::new(&batch),
            keys: changed_keys(&batch),
            adds: adds(&batch),
            reads: shared.read_keys(&batch.expect),
            durability: batch.durability,
            expect: batch.expect,
        };
        let submitted = shared.submit(submission);
        async move {
            let mut answer = submitted?;
            let mut resubmits = 0;
            loop {
                // The writer answers everything it takes; only a panic drops a reply.
                let gone = |_| Error::Unknown { reason: "the journal's writer ended".into() };
                match answer.await.map_err(gone)?? {
                    Answer::Done { position, time, firsts, batch } => {
                        return Ok(receipt(position, time, &firsts, &batch));
                    }
                    Answer::Stale(_) if resubmits == COMMIT_RESUBMITS => return Err(Error::Overloaded),
                    Answer::Stale(mut s) => {
                        resubmits += 1;
                        s.reads = shared.read_keys(&s.expect);
                        answer = shared.submit(*s)?;
                    }
                }
            }
        }
        .boxed()
    }

    fn read(&self, stream: &str, from: Seq, max: usize, max_bytes: usize) -> BoxFuture<'static, Result<Vec<Record>>> {
        let views = self.shared().views.read();
        let plan = views.streams.plan(stream, from, max);
        std::future::ready(Ok(views.read(stream, &plan, max_bytes))).boxed()
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
        let found = self.shared().views.read().kv.get(space, key).transpose();
        std::future::ready(found.map_err(|_| damaged(space, key))).boxed()
    }

    fn scan(
        &self,
        space: &str,
        prefix: &[u8],
        after: Option<&[u8]>,
        max: usize,
    ) -> BoxFuture<'static, Result<Vec<(Bytes, Value)>>> {
        let found = self.shared().views.read().kv.scan(space, prefix, after, max);
        let whole = found.into_iter().map(|(k, v)| match v {
            Ok(v) => Ok((k, v)),
            Err(_) => Err(damaged(space, &k)),
        });
        std::future::ready(whole.collect()).boxed()
    }

    fn watch(&self) -> watch::Receiver<Position> {
        self.shared().published.subscribe()
    }

    fn health(&self) -> Result<()> {
        self.shared().health.check()
    }

    fn close(&self) -> BoxFuture<'static, Result<()>> {
        let (reply, closed) = oneshot::channel();
        let pushed = self.health().and_then(|()| self.shared().queue.push(Work::Close(reply)));
        let door = self.door.clone();
        async move {
            pushed?;
            let gone = |_| Error::Unavailable { reason: "the store is closed".into() };
            let outcome = closed.await.map_err(gone)?;
            if let Some(thread) = door.writer.lock().take() {
                let _ = thread.join();
            }
            door.lock.lock().take();
            outcome
        }
        .boxed()
    }
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
