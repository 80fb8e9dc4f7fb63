//! Reading records from memory, the journal and settled files.
//!
//! Every group read from disk is checked against its segment's nonce, its sequence and its checksums. A segment
//! recycled under a reader fails those checks, and the reader starts again from where the records are now.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use bytes::Bytes;
use parking_lot::Mutex;

use crate::checkpoint::Location;
use crate::entry::Decoded;
use crate::group::{Group, GroupHeader, HEADER};
use crate::segments::Segment;
use crate::streams::Piece;
use crate::views::Source;
use crate::{Damaged, Record, Result, Seq};

/// Groups read from disk that are kept for the next read.
const KEPT: usize = 8;

/// Groups lately read from disk.
#[derive(Default)]
pub(crate) struct Kept(Mutex<VecDeque<Arc<Group>>>);

/// How a read of pieces ended.
pub(crate) enum Outcome {
    /// What is there.
    Records(Vec<Record>),
    /// A segment did not hold the group it should: recycled, or damaged.
    Missing(Arc<Segment>, Piece, Vec<Record>),
}

/// Reads pieces in order until the bytes are enough.
pub(crate) fn read(kept: &Kept, stream: &str, pieces: &[(Piece, Source)], max_bytes: usize) -> Result<Outcome> {
    let mut out = Vec::new();
    let mut bytes = 0;
    for (piece, source) in pieces {
        let records = match source {
            Source::Memory(group, batch) => records(group, *batch, stream, piece.first, piece.last),
            Source::File(file) => {
                let left = max_bytes.saturating_sub(bytes).max(1);
                file.read(stream, piece.first, piece.last, left)?
            }
            Source::Damaged => damaged(piece),
            Source::Journal(segment, at, batch) => match kept.load(segment, *at)? {
                Some(group) => records(&group, *batch, stream, piece.first, piece.last),
                None => return Ok(Outcome::Missing(segment.clone(), *piece, out)),
            },
        };
        for record in records {
            bytes += record.payload.as_ref().map_or(0, Bytes::len);
            if !out.is_empty() && bytes > max_bytes {
                return Ok(Outcome::Records(out));
            }
            out.push(record);
        }
    }
    Ok(Outcome::Records(out))
}

/// What a piece reads as whose group is lost.
pub(crate) fn damaged(piece: &Piece) -> Vec<Record> {
    let of = |seq| Record { seq, position: 0, time: weft_core::Timestamp(0), payload: Err(Damaged) };
    (piece.first..=piece.last).map(of).collect()
}

impl Kept {
    /// The group at a location; `None` when it is not there.
    fn load(&self, segment: &Segment, at: Location) -> Result<Option<Arc<Group>>> {
        let same =
            |g: &&Arc<Group>| g.header.sequence == at.sequence && g.header.generation == segment.header.generation;
        if let Some(g) = self.0.lock().iter().find(same) {
            return Ok(Some(g.clone()));
        }
        let Some(group) = load(segment, at)? else { return Ok(None) };
        let mut kept = self.0.lock();
        kept.push_back(group.clone());
        if kept.len() > KEPT {
            kept.pop_front();
        }
        Ok(Some(group))
    }

    /// Forgets all; what was read may be about to change.
    pub(crate) fn clear(&self) {
        self.0.lock().clear();
    }
}

/// Reads and checks the group at a location; `None` when it is not there, or its directory is damaged.
pub(crate) fn load(segment: &Segment, at: Location) -> Result<Option<Arc<Group>>> {
    let mut head = [0; HEADER];
    if segment.file.read_at(at.offset, &mut head).is_err() {
        return Ok(None);
    }
    let header = GroupHeader::decode(&head, segment.header.nonce)
        .filter(|h| h.sequence == at.sequence && h.generation == segment.header.generation);
    let Some(header) = header else { return Ok(None) };
    let mut bytes = vec![0; header.dir_len as usize + header.body_len as usize];
    if segment.file.read_at(at.offset + HEADER as u64, &mut bytes).is_err() {
        return Ok(None);
    }
    Ok(Group::check(header, &Bytes::from(bytes)).map(Arc::new))
}

/// The records of a stream in a group, from a batch on, within an inclusive range.
pub(crate) fn records(group: &Group, batch: u32, stream: &str, first: Seq, last: Seq) -> Vec<Record> {
    let mut out = Vec::new();
    for b in group.batches().skip(batch as usize) {
        for op in b.entry.ops() {
            let Decoded::Append { stream: s, first: run, lens } = op else { continue };
            if s != stream || run > last {
                continue;
            }
            for (seq, body) in (run..).zip(lens.bodies()) {
                if seq > last {
                    return out;
                }
                if seq >= first {
                    let payload = if b.damaged {
                        Err(Damaged)
                    } else {
                        Ok(group.body.slice(b.body_at + body.start..b.body_at + body.end))
                    };
                    out.push(Record { seq, position: b.position, time: group.header.time, payload });
                }
            }
            if run + lens.count > last {
                return out;
            }
        }
    }
    out
}

type Job = Box<dyn FnOnce() + Send>;

/// Threads that wait for the disk, so that no caller's thread does.
pub(crate) struct Readers {
    jobs: Mutex<Option<Sender<Job>>>,
}

impl Readers {
    /// Starts `threads` of them; with none, jobs run where they are given.
    pub(crate) fn start(threads: usize) -> std::io::Result<Self> {
        if threads == 0 {
            return Ok(Self { jobs: Mutex::new(None) });
        }
        let (jobs, work) = channel::<Job>();
        let work = Arc::new(Mutex::new(work));
        for _ in 0..threads {
            let work: Arc<Mutex<Receiver<Job>>> = work.clone();
            std::thread::Builder::new().name("weft-store-read".into()).spawn(move || {
                loop {
                    let job = work.lock().recv();
                    let Ok(job) = job else { return };
                    job();
                }
            })?;
        }
        Ok(Self { jobs: Mutex::new(Some(jobs)) })
    }

    /// Runs a job on one of the threads.
    pub(crate) fn run(&self, job: impl FnOnce() + Send + 'static) {
        let jobs = self.jobs.lock().clone();
        match jobs {
            // The threads end only after this is dropped.
            Some(jobs) => drop(jobs.send(Box::new(job))),
            None => job(),
        }
    }
}
