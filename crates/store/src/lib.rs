//! Durability: one journal and the views of it, behind the [`Store`] trait.
//!
//! What it is not: it knows no message, saga or event, only streams of records, cursors on them and keys.
//!
//! Invariants: a [`Batch`] is atomic; an answer comes after the batch, and everything it depended on, is
//! durable; readers see the published state only; positions never change and never go back.

mod applier;
mod batch;
mod checkpoint;
#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
mod cursor;
pub mod disk;
mod embedded;
mod entry;
mod group;
mod journal;
mod keeper;
mod kv;
mod overlay;
mod pending;
mod queue;
mod reader;
mod recover;
mod segments;
mod settled;
mod streams;
mod views;
mod wire;

pub use batch::{Batch, Durability, Expect, Op, Version};
pub use embedded::{Config, Embedded, Stats, Tuning};
pub use recover::Report;

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use weft_core::{Class, Classify, Origin, Timestamp};

/// A stream's name: `queue/emails`, `topic/orders/0`, `events/order-17`. Any UTF-8 up to 512 bytes.
pub type StreamName = Arc<str>;
/// A cursor's name on a stream. [`OWN`] is the stream's own: what it acknowledges is gone.
pub type CursorName = Arc<str>;
/// The cursor whose acknowledgement deletes the record (queues).
pub const OWN: &str = "";

/// Where a batch stands among all batches: the commit position. Increases, is never reused, 0 is before all.
pub type Position = u64;
/// A record's place in its stream: dense, from 1.
pub type Seq = u64;

/// One record of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its place in the stream.
    pub seq: Seq,
    /// The commit position of its batch.
    pub position: Position,
    /// When the journal took it.
    pub time: Timestamp,
    /// The payload; `Err` where damage was set aside.
    pub payload: std::result::Result<Bytes, Damaged>,
}

/// A record or key whose batch failed its checksum and was set aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damaged;

/// A stored value and the position that wrote it (its version).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    /// The commit position of the last write.
    pub version: Position,
    /// The bytes.
    pub bytes: Bytes,
}

/// What a cursor says: everything up to and with `floor` is acknowledged, and `acked` above it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    /// All of 1..=floor is acknowledged.
    pub floor: Seq,
    /// Acknowledged above the floor, as inclusive ranges in order.
    pub acked: Vec<(Seq, Seq)>,
    /// Delivery attempts of records not yet acknowledged.
    pub attempts: Vec<(Seq, Attempt)>,
}

/// Delivery state of one record under one cursor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attempt {
    /// Deliveries begun.
    pub count: u32,
    /// Not to be delivered before this instant.
    pub not_before: Timestamp,
}

/// A stream as published.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StreamInfo {
    /// The last sequence given out; 0 for an empty stream.
    pub last: Seq,
    /// Everything up to and with this is trimmed.
    pub trimmed: Seq,
    /// Cursors by name, [`OWN`] included once it acknowledged anything.
    pub cursors: Vec<CursorName>,
}

/// What a durable batch got.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Receipt {
    /// The batch's commit position.
    pub position: Position,
    /// The instant the journal stamped on it; never decreasing.
    pub time: Timestamp,
    /// The sequence of each append, in the order of the batch's appends.
    pub seqs: Vec<Seq>,
}

/// Why a store call failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// A precondition does not hold; nothing of the batch took effect. Index into the batch's `expect`.
    #[error("precondition {index} does not hold: {what} is at {actual}")]
    Precondition {
        /// Which of the batch's preconditions.
        index: usize,
        /// Stream or key.
        what: String,
        /// What it is at now; 0 = does not exist.
        actual: u64,
    },
    /// The batch is over `limits::BATCH_BYTES`.
    #[error("the batch has {bytes} bytes, the limit is {limit}: split it")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// The queue to the writer is full; nothing was taken.
    #[error("the store is overloaded; try again")]
    Overloaded,
    /// The disk is nearly full: only acknowledgements, trims and transitions are taken.
    #[error("the data directory is nearly full ({free} bytes free); free space or trim")]
    DiskFull {
        /// Bytes free.
        free: u64,
    },
    /// The sync failed: whether the batch took effect is unknown until the store is reopened.
    #[error("the outcome of the batch is unknown: {reason}")]
    Unknown {
        /// What failed.
        reason: String,
    },
    /// The store is not open (poisoned, or reopening).
    #[error("the store is unavailable: {reason}")]
    Unavailable {
        /// Why.
        reason: String,
    },
    /// The key was set aside with a damaged batch.
    #[error("{what} is damaged: its batch failed the checksum and was set aside")]
    Damaged {
        /// Stream or key.
        what: String,
    },
    /// Reading or opening failed.
    #[error("{action}: {reason}")]
    Io {
        /// The failed action.
        action: &'static str,
        /// The operating system's word.
        reason: String,
    },
    /// The data directory cannot be used.
    #[error("{0}")]
    Directory(String),
}

impl Classify for Error {
    fn class(&self) -> Class {
        match self {
            Error::Precondition { .. } | Error::TooLarge { .. } => Class::Rejected,
            Error::Overloaded | Error::DiskFull { .. } => Class::Overloaded,
            Error::Unavailable { .. } => Class::Retryable,
            Error::Unknown { .. } | Error::Damaged { .. } | Error::Io { .. } | Error::Directory(_) => Class::Fault,
        }
    }
    fn origin(&self) -> Origin {
        match self {
            Error::Precondition { .. } | Error::TooLarge { .. } => Origin::Downstream,
            _ => Origin::Internal,
        }
    }
}

/// Result of store calls.
pub type Result<T> = std::result::Result<T, Error>;

/// A durable store. One conformance suite (`conformance`) holds for every implementation.
pub trait Store: Send + Sync + 'static {
    /// Commits a batch atomically. The batch is submitted when this is CALLED, in call order; the future
    /// resolves once the batch is durable (strict) or written (relaxed) and published. Dropping the future does not
    /// withdraw the batch.
    fn commit(&self, batch: Batch) -> BoxFuture<'static, Result<Receipt>>;

    /// Reads live records of a stream with `seq >= from`, at most `max` and about `max_bytes` (at least one).
    /// Trimmed records and those acknowledged by [`OWN`] are left out.
    fn read(&self, stream: &str, from: Seq, max: usize, max_bytes: usize) -> BoxFuture<'static, Result<Vec<Record>>>;

    /// What is known of a stream; `None` when nothing was ever appended to it and no cursor made.
    fn stream(&self, stream: &str) -> Option<StreamInfo>;

    /// A cursor as published; `None` when it does not exist.
    fn cursor(&self, stream: &str, cursor: &str) -> Option<Cursor>;

    /// Names of streams that start with a prefix, sorted.
    fn streams(&self, prefix: &str) -> Vec<StreamName>;

    /// The value of a key.
    fn get(&self, space: &str, key: &[u8]) -> BoxFuture<'static, Result<Option<Value>>>;

    /// Keys of a space with a prefix, in key order, strictly after `after`, at most `max`.
    fn scan(
        &self,
        space: &str,
        prefix: &[u8],
        after: Option<&[u8]>,
        max: usize,
    ) -> BoxFuture<'static, Result<Vec<(Bytes, Value)>>>;

    /// The published position; changes wake the receiver. One receiver per interested service.
    fn watch(&self) -> tokio::sync::watch::Receiver<Position>;

    /// `Ok` when commits are taken; the reason when not (readiness).
    fn health(&self) -> Result<()>;

    /// Flushes, checkpoints and closes; later calls answer `Unavailable`.
    fn close(&self) -> BoxFuture<'static, Result<()>>;
}
