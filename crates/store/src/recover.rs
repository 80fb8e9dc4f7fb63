//! What the journal holds after a stop of any kind.
//!
//! Groups are told from garbage by checksum, seeded with their segment's nonce, and put in order by their chain. A
//! group is *provably durable* when a later one says so. Behind the last provable one the page cache may hold what
//! the disk does not, so those groups are written once more, to a fresh segment, and synced before anything is
//! served. A recovered segment is never appended to.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use crate::disk::Disk;
use crate::group::{BLOCK, CLEAN_CLOSE, Group, GroupHeader, HEADER, SegmentHeader};
use crate::{Error, Position, Result};

/// A segment file that holds a life's header.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) id: u32,
    pub(crate) header: SegmentHeader,
}

/// Where a group lies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Candidate {
    pub(crate) header: GroupHeader,
    pub(crate) segment: u32,
    pub(crate) offset: u64,
}

/// One step of the journal's order.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Step {
    /// A group to apply.
    Group(Candidate),
    /// Groups whose headers are lost though they were durable; positions from `from` up to but without `to`.
    Lost {
        /// First lost sequence.
        sequence: u64,
        /// First lost position.
        from: Position,
        /// The next group's first position.
        to: Position,
    },
}

/// The file name of a segment.
pub(crate) fn segment_name(id: u32) -> String {
    format!("seg-{id:08}")
}

/// Turns an I/O error into the store's.
pub(crate) fn io(action: &'static str) -> impl Fn(std::io::Error) -> Error {
    move |e| Error::Io { action, reason: e.to_string() }
}

/// Finds the segments, in order of their generations; ids of files without a header come second.
pub(crate) fn segments(disk: &dyn Disk) -> Result<(Vec<Found>, Vec<u32>)> {
    let mut found = Vec::new();
    let mut blank = Vec::new();
    for name in disk.list().map_err(io("listing the journal"))? {
        let Some(id) = name.strip_prefix("seg-").and_then(|n| n.parse().ok()) else { continue };
        let file = disk.open(&name).map_err(io("opening a segment"))?;
        let mut block = vec![0; BLOCK];
        let long_enough = file.len().map_err(io("reading a segment"))? >= BLOCK as u64;
        if long_enough {
            file.read_at(0, &mut block).map_err(io("reading a segment"))?;
        }
        match SegmentHeader::decode(&block)? {
            Some(header) if long_enough => found.push(Found { id, header }),
            _ => blank.push(id),
        }
    }
    found.sort_by_key(|f| f.header.generation);
    Ok((found, blank))
}

/// Finds the group headers of a segment, damage between them skipped.
pub(crate) fn scan(disk: &dyn Disk, segment: &Found) -> Result<Vec<Candidate>> {
    let file = disk.open(&segment_name(segment.id)).map_err(io("opening a segment"))?;
    let len = file.len().map_err(io("reading a segment"))? as usize / BLOCK * BLOCK;
    let mut bytes = vec![0; len];
    file.read_at(0, &mut bytes).map_err(io("reading a segment"))?;
    let mut out = Vec::new();
    let mut at = BLOCK;
    while at < len {
        let header = GroupHeader::decode(&bytes[at..], segment.header.nonce)
            .filter(|h| h.generation == segment.header.generation && at + h.disk_len() <= len);
        match header {
            Some(header) => {
                out.push(Candidate { header, segment: segment.id, offset: at as u64 });
                at += header.disk_len();
            }
            None => at += BLOCK,
        }
    }
    Ok(out)
}

/// Puts candidates in order behind `sequence`, whose chain is `chain` and behind which positions go on at `next`.
/// Of copies of one group the later generation counts.
pub(crate) fn order(candidates: Vec<Candidate>, sequence: u64, chain: u64, next: Position) -> Vec<Step> {
    let mut by_sequence: BTreeMap<u64, Vec<Candidate>> = BTreeMap::new();
    for c in candidates {
        if c.header.sequence > sequence {
            by_sequence.entry(c.header.sequence).or_default().push(c);
        }
    }
    let mut steps = Vec::new();
    let (mut expected, mut chain, mut next) = (sequence + 1, chain, next);
    loop {
        let fits = |c: &&Candidate| c.header.prev == chain;
        let here = by_sequence.get(&expected).and_then(|cs| cs.iter().rev().find(fits));
        let c = match here {
            Some(c) => *c,
            None => {
                // A later group that saw the missing one durable makes this damage, not the end.
                let later = by_sequence.range(expected..).flat_map(|(_, cs)| cs.iter().rev());
                let Some(c) = later.into_iter().find(|c| c.header.sequence > expected && c.header.durable >= expected)
                else {
                    return steps;
                };
                steps.push(Step::Lost { sequence: expected, from: next, to: c.header.base });
                *c
            }
        };
        steps.push(Step::Group(c));
        expected = c.header.sequence + 1;
        chain = c.header.chain();
        next = c.header.end();
    }
}

/// Reads and checks one group; `None` when its directory is lost.
pub(crate) fn load(disk: &dyn Disk, c: &Candidate) -> Result<Option<Arc<Group>>> {
    let file = disk.open(&segment_name(c.segment)).map_err(io("opening a segment"))?;
    let mut bytes = vec![0; c.header.dir_len as usize + c.header.body_len as usize];
    file.read_at(c.offset + HEADER as u64, &mut bytes).map_err(io("reading a group"))?;
    Ok(Group::check(c.header, &Bytes::from(bytes)).map(Arc::new))
}

/// Whether the journal ends with an orderly close.
pub(crate) fn ends_clean(steps: &[Step]) -> bool {
    matches!(steps.last(), Some(Step::Group(c)) if c.header.flags & CLEAN_CLOSE != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_core::Timestamp;

    fn group(sequence: u64, durable: u64, prev: u64, generation: u64) -> Candidate {
        let header = GroupHeader {
            flags: 0,
            generation,
            epoch: 1,
            sequence,
            durable,
            base: sequence * 10,
            time: Timestamp(1),
            batches: 10,
            dir_len: 5,
            dir_sum: sequence,
            body_len: 5,
            prev,
        };
        Candidate { header, segment: generation as u32, offset: 0 }
    }

    fn sequences(steps: &[Step]) -> Vec<(u64, u64)> {
        let of = |s: &Step| match s {
            Step::Group(c) => (c.header.sequence, c.header.generation),
            Step::Lost { sequence, .. } => (*sequence, 0),
        };
        steps.iter().map(of).collect()
    }

    #[test]
    fn groups_follow_their_chain_and_a_later_copy_counts() {
        let a = group(1, 0, 0, 1);
        let b = group(2, 1, a.header.chain(), 1);
        let c = group(3, 2, b.header.chain(), 1);
        let copy = group(3, 2, b.header.chain(), 2);
        let d = group(4, 3, copy.header.chain(), 2);
        assert_eq!(sequences(&order(vec![a, b, c, copy, d], 0, 0, 10)), [(1, 1), (2, 1), (3, 2), (4, 2)]);
    }

    #[test]
    fn a_survivor_behind_a_cut_tail_is_not_taken() {
        let a = group(1, 0, 0, 1);
        let lost = group(2, 1, a.header.chain(), 1);
        // Written without a sync between: it cannot say that 2 was durable.
        let survivor = group(3, 1, lost.header.chain(), 1);
        assert_eq!(sequences(&order(vec![a, survivor], 0, 0, 10)), [(1, 1)]);
        let mut other = group(2, 1, a.header.chain(), 2);
        other.header.dir_sum = 99;
        assert_eq!(sequences(&order(vec![a, survivor, other], 0, 0, 10)), [(1, 1), (2, 2)]);
    }

    #[test]
    fn a_missing_group_that_was_durable_is_damage_and_what_follows_is_served() {
        let a = group(1, 0, 0, 1);
        let lost = group(2, 1, a.header.chain(), 1);
        let c = group(3, 2, lost.header.chain(), 1);
        let steps = order(vec![a, c], 0, 0, 10);
        assert_eq!(sequences(&steps), [(1, 1), (2, 0), (3, 1)]);
        assert!(matches!(steps[1], Step::Lost { from: 20, to: 30, .. }));
    }
}
