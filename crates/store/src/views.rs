//! The published state: what everyone but the writer sees.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::group::Group;
use crate::kv::Kv;
use crate::streams::{Piece, Place, Streams};
use crate::{Damaged, Position, Record, Seq};

/// All views, as of one published position.
#[derive(Default)]
pub(crate) struct Views {
    pub(crate) position: Position,
    pub(crate) streams: Streams,
    pub(crate) kv: Kv,
    pub(crate) groups: BTreeMap<u64, Arc<Group>>,
}

impl Views {
    /// Publishes a group.
    pub(crate) fn apply(&mut self, group: Arc<Group>) {
        self.streams.apply(&group);
        self.kv.apply(&group);
        self.position = group.header.end() - 1;
        self.groups.insert(group.header.sequence, group);
    }

    /// Reads the pieces of a plan.
    pub(crate) fn read(&self, stream: &str, plan: &[Piece], max_bytes: usize) -> Vec<Record> {
        let mut out = Vec::new();
        let mut bytes = 0;
        for piece in plan {
            let Place::Journal { sequence, batch } = piece.place else { continue };
            let Some(group) = self.groups.get(&sequence) else { continue };
            for record in records(group, batch, stream, piece.first, piece.last) {
                bytes += record.payload.as_ref().map_or(0, |p| p.len());
                if !out.is_empty() && bytes > max_bytes {
                    return out;
                }
                out.push(record);
            }
        }
        out
    }
}

/// The records of a stream in a group, from a batch on, within an inclusive range.
pub(crate) fn records(group: &Group, batch: u32, stream: &str, first: Seq, last: Seq) -> Vec<Record> {
    use crate::entry::Decoded;
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
