//! A batch as the journal holds it: an entry in its group's directory (what the batch does and to what) and a
//! body (payloads and values, in the order of the operations).
//!
//! The submitter encodes, so that the writer only fills in sequences and copies bytes. Layout of an entry:
//! length u32, body length u32, body checksum u64, then operations, each a kind byte and its fields.
//! An append's first sequence is a fixed u64, zero until the writer knows it.

use std::ops::Range;

use xxhash_rust::xxh3::xxh3_64;

use crate::wire::{Reader, put_bytes, put_uint};
use crate::{Attempt, Batch, Op, Seq, StreamName};

/// Length, body length and body checksum.
const HEAD: usize = 16;

const APPEND: u8 = 1;
const ACK: u8 = 2;
const ATTEMPT: u8 = 3;
const CREATE_CURSOR: u8 = 4;
const DROP_CURSOR: u8 = 5;
const TRIM: u8 = 6;
const PUT: u8 = 7;
const DELETE: u8 = 8;
const SETTLED: u8 = 9;

/// An encoded batch.
#[derive(Default)]
pub(crate) struct Encoded {
    /// The directory entry.
    pub(crate) entry: Vec<u8>,
    /// Payloads and values.
    pub(crate) body: Vec<u8>,
    /// Appends in order, neighbours to one stream joined.
    pub(crate) runs: Vec<Run>,
}

/// Neighbouring appends to one stream.
pub(crate) struct Run {
    pub(crate) stream: StreamName,
    pub(crate) count: u64,
    /// Where in the entry the first sequence belongs.
    pub(crate) at: usize,
}

impl Encoded {
    /// Encodes the operations of a batch.
    pub(crate) fn new(batch: &Batch) -> Self {
        let mut e = Self::default();
        e.entry.resize(HEAD, 0);
        e.body.reserve_exact(body_bytes(&batch.ops));
        let mut ops = batch.ops.as_slice();
        while let [op, rest @ ..] = ops {
            ops = match op {
                Op::Append(stream, _) => e.append_run(stream, ops),
                op => {
                    e.one(op);
                    rest
                }
            };
        }
        e.finish();
        e
    }

    /// A batch of the store's own: a settled file takes the place of the journal's records.
    pub(crate) fn settled(file: u64) -> Self {
        let mut e = Self::default();
        e.entry.resize(HEAD, 0);
        e.entry.push(SETTLED);
        put_uint(&mut e.entry, file);
        e.finish();
        e
    }

    /// Fills in the first sequence of a run.
    pub(crate) fn place(&mut self, run: usize, first: Seq) {
        let at = self.runs[run].at;
        self.entry[at..at + 8].copy_from_slice(&first.to_le_bytes());
    }

    fn append_run<'a>(&mut self, stream: &StreamName, ops: &'a [Op]) -> &'a [Op] {
        let same = |op: &&Op| matches!(op, Op::Append(s, _) if std::sync::Arc::ptr_eq(s, stream) || s == stream);
        let count = ops.iter().take_while(same).count();
        let (run, rest) = ops.split_at(count);
        self.entry.push(APPEND);
        put_bytes(&mut self.entry, stream.as_bytes());
        self.runs.push(Run { stream: stream.clone(), count: count as u64, at: self.entry.len() });
        self.entry.extend_from_slice(&[0; 8]);
        put_uint(&mut self.entry, count as u64);
        for op in run {
            if let Op::Append(_, payload) = op {
                put_uint(&mut self.entry, payload.len() as u64);
                self.body.extend_from_slice(payload);
            }
        }
        rest
    }

    fn one(&mut self, op: &Op) {
        let out = &mut self.entry;
        match op {
            Op::Append(..) => {}
            Op::Ack(stream, cursor, seqs) => {
                let ranges = ranges(seqs);
                out.push(ACK);
                put_bytes(out, stream.as_bytes());
                put_bytes(out, cursor.as_bytes());
                put_uint(out, ranges.len() as u64);
                for (first, last) in ranges {
                    put_uint(out, first);
                    put_uint(out, last - first);
                }
            }
            Op::Attempt(stream, cursor, seq, attempt) => {
                out.push(ATTEMPT);
                put_bytes(out, stream.as_bytes());
                put_bytes(out, cursor.as_bytes());
                put_uint(out, *seq);
                put_uint(out, u64::from(attempt.count));
                put_uint(out, attempt.not_before.0);
            }
            Op::CreateCursor(stream, cursor, floor) => {
                out.push(CREATE_CURSOR);
                put_bytes(out, stream.as_bytes());
                put_bytes(out, cursor.as_bytes());
                put_uint(out, *floor);
            }
            Op::DropCursor(stream, cursor) => {
                out.push(DROP_CURSOR);
                put_bytes(out, stream.as_bytes());
                put_bytes(out, cursor.as_bytes());
            }
            Op::Trim(stream, seq) => {
                out.push(TRIM);
                put_bytes(out, stream.as_bytes());
                put_uint(out, *seq);
            }
            Op::Put { space, key, value } => {
                out.push(PUT);
                put_bytes(out, space.as_bytes());
                put_bytes(out, key);
                put_uint(out, value.len() as u64);
                self.body.extend_from_slice(value);
            }
            Op::Delete { space, key } => {
                out.push(DELETE);
                put_bytes(out, space.as_bytes());
                put_bytes(out, key);
            }
        }
    }

    fn finish(&mut self) {
        let len = self.entry.len() as u32;
        self.entry[0..4].copy_from_slice(&len.to_le_bytes());
        self.entry[4..8].copy_from_slice(&(self.body.len() as u32).to_le_bytes());
        self.entry[8..16].copy_from_slice(&xxh3_64(&self.body).to_le_bytes());
    }
}

/// Bytes of payloads and values.
pub(crate) fn body_bytes(ops: &[Op]) -> usize {
    let of = |op: &Op| match op {
        Op::Append(_, payload) => payload.len(),
        Op::Put { value, .. } => value.len(),
        _ => 0,
    };
    ops.iter().map(of).sum()
}

/// Inclusive ranges of a set of sequences; zero, which is no sequence, is left out.
fn ranges(seqs: &[Seq]) -> Vec<(Seq, Seq)> {
    let mut sorted: Vec<Seq> = seqs.iter().copied().filter(|s| *s > 0).collect();
    sorted.sort_unstable();
    let mut ranges: Vec<(Seq, Seq)> = Vec::new();
    for s in sorted {
        match ranges.last_mut() {
            Some((_, last)) if s <= *last => {}
            Some((_, last)) if s == *last + 1 => *last = s,
            _ => ranges.push((s, s)),
        }
    }
    ranges
}

/// One entry of a directory, read in place.
#[derive(Clone, Copy)]
pub(crate) struct Entry<'a> {
    /// Bytes of the body.
    pub(crate) body_len: usize,
    /// The body's checksum.
    pub(crate) body_sum: u64,
    ops: &'a [u8],
}

/// One operation, read in place. `body` is a range within the batch's body.
pub(crate) enum Decoded<'a> {
    Append { stream: &'a str, first: Seq, lens: Lens<'a> },
    Ack { stream: &'a str, cursor: &'a str, ranges: Vec<(Seq, Seq)> },
    Attempt { stream: &'a str, cursor: &'a str, seq: Seq, attempt: Attempt },
    CreateCursor { stream: &'a str, cursor: &'a str, floor: Seq },
    DropCursor { stream: &'a str, cursor: &'a str },
    Trim { stream: &'a str, seq: Seq },
    Put { space: &'a str, key: &'a [u8], body: Range<usize> },
    Delete { space: &'a str, key: &'a [u8] },
    Settled { file: u64 },
}

/// The lengths of an append run's payloads, and where the first starts in the body.
#[derive(Clone, Copy)]
pub(crate) struct Lens<'a> {
    pub(crate) count: u64,
    at: usize,
    lens: &'a [u8],
}

impl<'a> Lens<'a> {
    /// Each payload's range within the batch's body.
    pub(crate) fn bodies(self) -> impl Iterator<Item = Range<usize>> + 'a {
        let mut r = Reader(self.lens);
        let mut at = self.at;
        std::iter::from_fn(move || {
            let len = r.uint()? as usize;
            at += len;
            Some(at - len..at)
        })
    }
}

impl<'a> Entry<'a> {
    /// Splits the first entry off a directory.
    pub(crate) fn split(dir: &mut &'a [u8]) -> Option<Self> {
        let mut r = Reader(dir);
        let len = r.u32()? as usize;
        let body_len = r.u32()? as usize;
        let body_sum = r.u64()?;
        let ops = r.take(len.checked_sub(HEAD)?)?;
        *dir = r.0;
        Some(Self { body_len, body_sum, ops })
    }

    /// Whether these bytes are the body.
    pub(crate) fn fits(&self, body: &[u8]) -> bool {
        body.len() == self.body_len && xxh3_64(body) == self.body_sum
    }

    /// The operations. A directory passes its checksum before it is read, so that an operation that does not
    /// decode ends the iteration only where a newer format slipped through.
    pub(crate) fn ops(&self) -> Ops<'a> {
        Ops { r: Reader(self.ops), at: 0 }
    }
}

/// Iterates the operations of an entry.
pub(crate) struct Ops<'a> {
    r: Reader<'a>,
    /// How far into the body the operations so far reach.
    at: usize,
}

impl<'a> Iterator for Ops<'a> {
    type Item = Decoded<'a>;

    fn next(&mut self) -> Option<Decoded<'a>> {
        let r = &mut self.r;
        Some(match r.u8()? {
            APPEND => {
                let stream = r.str()?;
                let first = r.u64()?;
                let count = r.uint()?;
                let (lens, at) = (r.0, self.at);
                for _ in 0..count {
                    self.at += r.uint()? as usize;
                }
                let lens = &lens[..lens.len() - r.0.len()];
                Decoded::Append { stream, first, lens: Lens { count, at, lens } }
            }
            ACK => {
                let (stream, cursor, n) = (r.str()?, r.str()?, r.uint()?);
                let mut ranges = Vec::new();
                for _ in 0..n {
                    let first = r.uint()?;
                    ranges.push((first, first + r.uint()?));
                }
                Decoded::Ack { stream, cursor, ranges }
            }
            ATTEMPT => Decoded::Attempt {
                stream: r.str()?,
                cursor: r.str()?,
                seq: r.uint()?,
                attempt: Attempt { count: r.uint()? as u32, not_before: weft_core::Timestamp(r.uint()?) },
            },
            CREATE_CURSOR => Decoded::CreateCursor { stream: r.str()?, cursor: r.str()?, floor: r.uint()? },
            DROP_CURSOR => Decoded::DropCursor { stream: r.str()?, cursor: r.str()? },
            TRIM => Decoded::Trim { stream: r.str()?, seq: r.uint()? },
            PUT => {
                let (space, key, len) = (r.str()?, r.bytes()?, r.uint()? as usize);
                self.at += len;
                Decoded::Put { space, key, body: self.at - len..self.at }
            }
            DELETE => Decoded::Delete { space: r.str()?, key: r.bytes()? },
            SETTLED => Decoded::Settled { file: r.uint()? },
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_core::Timestamp;

    #[test]
    fn a_batch_round_trips_through_its_entry_and_body() {
        let a = Attempt { count: 3, not_before: Timestamp(9_999) };
        let batch = Batch::new()
            .append("s", "one")
            .append("s", "")
            .append("t", "three")
            .op(Op::Ack("s".into(), "c".into(), vec![9, 3, 0, 2, 3]))
            .op(Op::Attempt("s".into(), "".into(), 7, a))
            .put("space", "key", "value")
            .op(Op::CreateCursor("s".into(), "c".into(), 4))
            .op(Op::DropCursor("s".into(), "c".into()))
            .op(Op::Trim("s".into(), 5))
            .delete("space", "gone")
            .append("s", "six");
        let mut e = Encoded::new(&batch);
        assert_eq!(e.runs.iter().map(|r| (&*r.stream, r.count)).collect::<Vec<_>>(), [("s", 2), ("t", 1), ("s", 1)]);
        for (i, first) in [11, 21, 13].into_iter().enumerate() {
            e.place(i, first);
        }
        let mut dir = e.entry.as_slice();
        let entry = Entry::split(&mut dir).unwrap();
        assert!(dir.is_empty() && entry.fits(&e.body) && !entry.fits(b"other"));
        let text = |r: Range<usize>| std::str::from_utf8(&e.body[r]).unwrap().to_owned();
        let mut said = Vec::new();
        for op in entry.ops() {
            said.push(match op {
                Decoded::Append { stream, first, lens } => {
                    format!("append {stream} {first} {:?}", lens.bodies().map(text).collect::<Vec<_>>())
                }
                Decoded::Ack { stream, cursor, ranges } => format!("ack {stream} {cursor} {ranges:?}"),
                Decoded::Attempt { stream, cursor, seq, attempt } => {
                    assert_eq!(attempt, a);
                    format!("attempt {stream} {cursor} {seq}")
                }
                Decoded::CreateCursor { stream, cursor, floor } => format!("create {stream} {cursor} {floor}"),
                Decoded::DropCursor { stream, cursor } => format!("drop {stream} {cursor}"),
                Decoded::Trim { stream, seq } => format!("trim {stream} {seq}"),
                Decoded::Put { space, key, body } => format!("put {space} {} {}", key.escape_ascii(), text(body)),
                Decoded::Delete { space, key } => format!("delete {space} {}", key.escape_ascii()),
                Decoded::Settled { file } => format!("settled {file}"),
            });
        }
        assert_eq!(
            said,
            [
                r#"append s 11 ["one", ""]"#,
                r#"append t 21 ["three"]"#,
                "ack s c [(2, 3), (9, 9)]",
                "attempt s  7",
                "put space key value",
                "create s c 4",
                "drop s c",
                "trim s 5",
                "delete space gone",
                r#"append s 13 ["six"]"#,
            ]
        );
    }

    #[test]
    fn an_entry_of_the_stores_own_round_trips() {
        let e = Encoded::settled(77);
        let mut dir = e.entry.as_slice();
        let entry = Entry::split(&mut dir).unwrap();
        assert!(matches!(entry.ops().next(), Some(Decoded::Settled { file: 77 })));
    }
}
