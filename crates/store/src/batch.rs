//! What is committed together.

use bytes::Bytes;

use crate::{Attempt, CursorName, Position, Seq, StreamName};

/// Preconditions and operations that take effect together or not at all.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// All must hold against the pending state, else [`Error::Precondition`](crate::Error::Precondition).
    pub expect: Vec<Expect>,
    /// Applied in order.
    pub ops: Vec<Op>,
    /// When to answer.
    pub durability: Durability,
}

/// When a commit is answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// After fdatasync.
    #[default]
    Strict,
    /// After the write returned.
    Relaxed,
}

/// A precondition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expect {
    /// The stream's last sequence.
    Stream(StreamName, Version),
    /// The key's version (the commit position that wrote it).
    Key {
        /// Keyspace.
        space: &'static str,
        /// Key.
        key: Bytes,
        /// What it must be at.
        version: Version,
    },
}

/// What a precondition asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// Must not exist.
    Absent,
    /// Must exist, at whatever version.
    Exists,
    /// Must be exactly this.
    Exactly(Position),
}

/// One operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Adds a record at the end of a stream, which springs into being.
    Append(StreamName, Bytes),
    /// Acknowledges records under a cursor; under [`OWN`](crate::OWN) they are gone. Repeats are no-ops.
    Ack(StreamName, CursorName, Vec<Seq>),
    /// Records a delivery attempt under a cursor; erased by the acknowledgement.
    Attempt(StreamName, CursorName, Seq, Attempt),
    /// Makes a cursor with its floor at the given sequence; no-op when it exists.
    CreateCursor(StreamName, CursorName, Seq),
    /// Forgets a cursor.
    DropCursor(StreamName, CursorName),
    /// Everything up to and with this sequence is gone (retention).
    Trim(StreamName, Seq),
    /// Sets a key.
    Put {
        /// Keyspace.
        space: &'static str,
        /// Key.
        key: Bytes,
        /// Value.
        value: Bytes,
    },
    /// Removes a key.
    Delete {
        /// Keyspace.
        space: &'static str,
        /// Key.
        key: Bytes,
    },
}

impl Batch {
    /// An empty, strict batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a precondition.
    pub fn expect(mut self, e: Expect) -> Self {
        self.expect.push(e);
        self
    }

    /// Adds an operation.
    pub fn op(mut self, op: Op) -> Self {
        self.ops.push(op);
        self
    }

    /// Adds an append.
    pub fn append(self, stream: impl Into<StreamName>, payload: impl Into<Bytes>) -> Self {
        self.op(Op::Append(stream.into(), payload.into()))
    }

    /// Adds a put.
    pub fn put(self, space: &'static str, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        self.op(Op::Put { space, key: key.into(), value: value.into() })
    }

    /// Adds a delete.
    pub fn delete(self, space: &'static str, key: impl Into<Bytes>) -> Self {
        self.op(Op::Delete { space, key: key.into() })
    }

    /// Joins another batch's preconditions and operations behind these; strict if either is.
    pub fn and(mut self, other: Batch) -> Self {
        self.expect.extend(other.expect);
        self.ops.extend(other.ops);
        if other.durability == Durability::Strict {
            self.durability = Durability::Strict;
        }
        self
    }
}
