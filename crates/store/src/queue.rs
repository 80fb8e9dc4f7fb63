//! The bounded way from submitters to the writer.

use std::collections::VecDeque;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;
use weft_core::Timestamp;
use weft_core::limits::{STORE_QUEUE_BATCHES, STORE_QUEUE_BYTES};

use crate::entry::Encoded;
use crate::pending::{Key, KeyReads};
use crate::{Durability, Error, Expect, Position, Result, Seq};

/// An encoded batch on its way.
pub(crate) struct Submission {
    pub(crate) batch: Encoded,
    pub(crate) expect: Vec<Expect>,
    pub(crate) reads: KeyReads,
    /// The keys it changes, and whether each exists afterwards.
    pub(crate) keys: Vec<(Key, bool)>,
    pub(crate) durability: Durability,
    /// Whether it only adds data, so that it is refused when the disk is nearly full.
    pub(crate) adds: bool,
}

impl Submission {
    pub(crate) fn bytes(&self) -> usize {
        self.batch.entry.len() + self.batch.body.len()
    }
}

/// What the writer answers.
pub(crate) enum Answer {
    /// Durable and published; the first sequence of each run.
    Done { position: Position, time: Timestamp, firsts: Vec<Seq>, batch: Encoded },
    /// The keys were read too long ago: read them again and submit again.
    Stale(Box<Submission>),
}

pub(crate) type Reply = oneshot::Sender<Result<Answer>>;

/// Something for the writer to do.
pub(crate) enum Work {
    Commit(Submission, Reply),
    /// Commit a manifest edit of the keeper's.
    Edit(Encoded, oneshot::Sender<Result<()>>),
    /// Make everything published durable.
    Sync(oneshot::Sender<Result<()>>),
    /// Checkpoint, say in the journal that nothing was torn, and end.
    Close(oneshot::Sender<Result<()>>),
}

impl Work {
    fn bytes(&self) -> usize {
        if let Work::Commit(s, _) = self { s.bytes() } else { 0 }
    }
}

#[derive(Default)]
struct Inner {
    work: VecDeque<Work>,
    bytes: usize,
    parked: bool,
    /// The last handle is gone.
    ended: bool,
    /// The writer is gone, and why.
    closed: Option<Error>,
}

/// The queue.
#[derive(Default)]
pub(crate) struct Queue {
    inner: Mutex<Inner>,
    wake: Condvar,
}

impl Queue {
    /// Hands work over, or says that the queue is full.
    pub(crate) fn push(&self, work: Work) -> Result<()> {
        self.push_all(vec![work])
    }

    /// Hands work over as one: all of it, or none.
    pub(crate) fn push_all(&self, work: Vec<Work>) -> Result<()> {
        let bytes: usize = work.iter().map(Work::bytes).sum();
        let mut q = self.inner.lock();
        if let Some(e) = &q.closed {
            return Err(e.clone());
        }
        let full =
            q.work.len() + work.len() > STORE_QUEUE_BATCHES || (q.bytes > 0 && q.bytes + bytes > STORE_QUEUE_BYTES);
        if full && work.iter().any(|w| matches!(w, Work::Commit(..))) {
            return Err(Error::Overloaded);
        }
        q.bytes += bytes;
        q.work.extend(work);
        let parked = std::mem::take(&mut q.parked);
        drop(q);
        if parked {
            self.wake.notify_one();
        }
        Ok(())
    }

    /// Takes all that waits, to answer it; from now on nothing is taken if `closed` says why.
    pub(crate) fn drain(&self, closed: Option<Error>) -> VecDeque<Work> {
        let mut q = self.inner.lock();
        q.bytes = 0;
        q.closed = closed;
        std::mem::take(&mut q.work)
    }

    /// Says that nobody will push again.
    pub(crate) fn end(&self) {
        let mut q = self.inner.lock();
        q.ended = true;
        drop(q);
        self.wake.notify_one();
    }

    /// Takes what waits, at most about `max_bytes` of it; waits when there is nothing. Empty after `patience`,
    /// `None` once nobody will push again.
    pub(crate) fn take(&self, max_bytes: usize, patience: Option<Duration>, into: &mut Vec<Work>) -> Option<()> {
        let mut q = self.inner.lock();
        while q.work.is_empty() {
            if q.ended {
                return None;
            }
            q.parked = true;
            match patience {
                None => self.wake.wait(&mut q),
                Some(p) => {
                    if self.wake.wait_for(&mut q, p).timed_out() {
                        q.parked = false;
                        break;
                    }
                }
            }
        }
        let mut bytes = 0;
        while let Some(work) = q.work.front() {
            let size = work.bytes();
            if bytes > 0 && bytes + size > max_bytes {
                break;
            }
            bytes += size;
            into.extend(q.work.pop_front());
        }
        q.bytes -= bytes;
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Batch;

    fn commit(bytes: usize) -> Work {
        let batch = Batch::new().append("s", vec![0u8; bytes]);
        let s = Submission {
            batch: Encoded::new(&batch),
            expect: Vec::new(),
            reads: KeyReads::default(),
            keys: Vec::new(),
            durability: Durability::Strict,
            adds: true,
        };
        Work::Commit(s, oneshot::channel().0)
    }

    #[test]
    fn a_full_queue_refuses_and_takes_again_once_drained() {
        let q = Queue::default();
        for _ in 0..STORE_QUEUE_BATCHES {
            q.push(commit(1)).unwrap();
        }
        assert!(matches!(q.push(commit(1)), Err(Error::Overloaded)));
        let mut taken = Vec::new();
        q.take(usize::MAX, None, &mut taken).unwrap();
        assert_eq!(taken.len(), STORE_QUEUE_BATCHES);
        q.push(commit(1)).unwrap();
    }

    #[test]
    fn a_queue_is_bounded_in_bytes_and_taken_in_bites() {
        let q = Queue::default();
        for _ in 0..4 {
            q.push(commit(15 << 20)).unwrap();
        }
        assert!(matches!(q.push(commit(15 << 20)), Err(Error::Overloaded)));
        let mut taken = Vec::new();
        q.take(4 << 20, None, &mut taken).unwrap();
        assert_eq!(taken.len(), 1);
        q.end();
        while q.take(usize::MAX, None, &mut taken).is_some() {}
        assert_eq!(taken.len(), 4);
    }
}
