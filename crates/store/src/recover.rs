//! What the journal holds after a stop of any kind.
//!
//! Groups are told from garbage by checksum, seeded with their segment's nonce, and put in order by their chain. A
//! group is *provably durable* when a later one says so. Behind the last provable one the page cache may hold what
//! the disk does not, so those groups are written once more, to a fresh segment, and synced before anything is
//! served. A recovered segment is never appended to.

use std::collections::BTreeMap;
use std::sync::Arc;

use hashbrown::HashSet;
use weft_core::Timestamp;

use crate::checkpoint::{self, Head, Location};
use crate::disk::Disk;
use crate::entry::Decoded;
use crate::group::{BLOCK, CLEAN_CLOSE, Group, GroupHeader, SegmentHeader};
use crate::kv::Kv;
use crate::reader;
use crate::segments::Segment;
use crate::settled::{self, Settled};
use crate::streams::Streams;
use crate::views::Views;
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
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// A group to apply: its copies, the newest first. A stop in the middle of recovery leaves copies whose header
    /// reached the disk and whose content did not.
    Group(Vec<Candidate>),
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

impl Step {
    /// The group's header; `None` for lost ones.
    fn header(&self) -> Option<&GroupHeader> {
        if let Step::Group(copies) = self { copies.first().map(|c| &c.header) } else { None }
    }
}

/// Puts candidates in order behind `sequence`, whose chain is `chain` and behind which positions go on at `next`.
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
        let copies = by_sequence[&c.header.sequence].iter().rev().filter(|o| o.header.chain() == c.header.chain());
        steps.push(Step::Group(copies.copied().collect()));
        expected = c.header.sequence + 1;
        chain = c.header.chain();
        next = c.header.end();
    }
}

/// What an opening found and did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Groups replayed behind the checkpoint.
    pub replayed: u64,
    /// Whether the journal ended with an orderly close.
    pub clean: bool,
    /// Bytes of a torn tail that were cut; nothing of it had been answered.
    pub cut: u64,
    /// Positions lost with their group's directory, first and one past the last.
    pub lost: Vec<(Position, Position)>,
    /// Positions of batches that failed their checksum and were set aside.
    pub damaged: Vec<Position>,
    /// Settled files that do not open; their records read as damaged.
    pub files: Vec<u64>,
}

/// The published state as recovered, and where to go on.
pub(crate) struct Recovered {
    pub(crate) views: Views,
    pub(crate) report: Report,
    /// Whole groups behind the last provably durable one, to be written again before anything is served.
    pub(crate) unproven: Vec<Arc<Group>>,
    pub(crate) sequence: u64,
    pub(crate) durable: u64,
    pub(crate) chain: u64,
    pub(crate) next: Position,
    pub(crate) time: Timestamp,
    pub(crate) generation: u64,
    pub(crate) epoch: u64,
    /// Segment files nothing needs.
    pub(crate) free: Vec<u32>,
    pub(crate) next_segment: u32,
    pub(crate) next_file: u64,
    pub(crate) checkpoint: u64,
}

/// Reads the newest checkpoint and replays the journal behind it up to the last provably durable group, into the
/// views and the key-value view.
pub(crate) fn recover(disk: &dyn Disk, kv: &Kv) -> Result<Recovered> {
    let names = disk.list().map_err(io("listing the journal"))?;
    let (number, head, streams) = newest_checkpoint(disk, &names)?;
    if number > 0 {
        checkpoint::confirm(disk, number)?;
    }
    let (found, blank) = segments(disk)?;
    let mut views = Views::default();
    views.streams = streams;
    let mut report = Report::default();
    for f in &found {
        let listed = head.segments.iter().any(|s| s.id == f.id && s.generation == f.header.generation);
        if listed || f.header.generation >= head.generation {
            let file = disk.open(&segment_name(f.id)).map_err(io("opening a segment"))?;
            views.segments.insert(f.id, Arc::new(Segment { id: f.id, header: f.header, file }));
        }
    }
    views.locations.extend(&head.locations);
    views.position = head.next.saturating_sub(1);
    for id in views.named_files() {
        open_file(disk, id, &mut views, &mut report)?;
    }
    let mut candidates = Vec::new();
    for f in found.iter().filter(|f| f.header.generation >= head.generation) {
        candidates.extend(scan(disk, f)?);
    }
    let sizes: BTreeMap<u64, u64> =
        candidates.iter().map(|c| (c.header.sequence, c.header.disk_len() as u64)).collect();
    let steps = order(candidates, head.sequence, head.chain, head.next);
    report.clean = ends_clean(&steps);
    let durable = steps.iter().filter_map(Step::header).map(|h| h.durable).max().unwrap_or(0).max(head.sequence);
    let mut r = Recovered {
        views,
        report,
        unproven: Vec::new(),
        sequence: head.sequence,
        durable,
        chain: head.chain,
        next: head.next.max(1),
        time: head.time,
        generation: found.iter().map(|f| f.header.generation).max().unwrap_or(0).max(head.generation),
        epoch: found.iter().map(|f| f.header.epoch).max().unwrap_or(0).max(head.epoch),
        free: Vec::new(),
        next_segment: found.iter().map(|f| f.id).chain(blank.iter().copied()).max().unwrap_or(0) + 1,
        next_file: names.iter().filter_map(|n| settled::id_of(n)).max().map_or(1, |n| n + 1).max(head.next_file),
        checkpoint: number,
    };
    for step in &steps {
        let copies = match step {
            Step::Group(copies) => copies,
            Step::Lost { sequence, from, to } => {
                tracing::error!(sequence, from, to, "the journal is damaged: positions are lost");
                r.report.lost.push((*from, *to));
                continue;
            }
        };
        let (c, group) = best(copies, &r.views)?;
        let at = Location { sequence: c.header.sequence, segment: c.segment, offset: c.offset };
        let unproven = c.header.sequence > durable;
        if unproven && !group.as_ref().is_some_and(|g| g.damaged.is_empty()) {
            // After an orderly close nothing is torn, so this is damage.
            if !r.report.clean {
                break;
            }
        }
        r.report.replayed += 1;
        (r.sequence, r.chain, r.next, r.time) = (c.header.sequence, c.header.chain(), c.header.end(), c.header.time);
        let Some(group) = group else {
            let (from, to) = (c.header.base, c.header.end());
            tracing::error!(from, to, "a group's directory is damaged: positions are lost");
            r.report.lost.push((from, to));
            continue;
        };
        for batch in &group.damaged {
            let position = c.header.base + u64::from(*batch);
            tracing::error!(position, "a damaged batch was set aside");
            r.report.damaged.push(position);
        }
        if unproven {
            r.unproven.push(group);
            continue;
        }
        open_files_of(disk, &group, &mut r.views, &mut r.report)?;
        r.views.apply_streams(&group, at);
        kv.apply(&group)?;
    }
    if !r.report.clean {
        r.report.cut = sizes.range(r.sequence + 1..).map(|(_, n)| n).sum();
    }
    if r.report.cut > 0 {
        tracing::warn!(bytes = r.report.cut, "a torn tail was cut; nothing of it had been answered");
    }
    let listed: HashSet<u32> = r.views.segments.keys().copied().collect();
    r.free = found.iter().map(|f| f.id).chain(blank).filter(|id| !listed.contains(id)).collect();
    Ok(r)
}

/// The first whole copy of a group, else the first with a whole directory.
fn best(copies: &[Candidate], views: &Views) -> Result<(Candidate, Option<Arc<Group>>)> {
    let mut found = (copies[0], None);
    for c in copies {
        let segment = views.segments.get(&c.segment).expect("scanned segments are listed");
        let at = Location { sequence: c.header.sequence, segment: c.segment, offset: c.offset };
        let group = reader::load(segment, at)?;
        if group.as_ref().is_some_and(|g| g.damaged.is_empty()) {
            return Ok((*c, group));
        }
        if found.1.is_none() && group.is_some() {
            found = (*c, group);
        }
    }
    Ok(found)
}

/// The newest checkpoint that reads back; the beginning, under number zero, when there is none.
fn newest_checkpoint(disk: &dyn Disk, names: &[String]) -> Result<(u64, Head, Streams)> {
    let mut numbers: Vec<u64> = names.iter().filter_map(|n| checkpoint::number_of(n)).collect();
    numbers.sort_unstable();
    for number in numbers.into_iter().rev() {
        match checkpoint::read(disk, number)? {
            Some((head, streams)) => return Ok((number, head, streams)),
            None => tracing::warn!(number, "a checkpoint is not whole; the one before it counts"),
        }
    }
    Ok((0, Head { next: 1, next_file: 1, ..Head::default() }, Streams::default()))
}

/// Opens the settled files a group's edits name.
pub(crate) fn open_files_of(disk: &dyn Disk, group: &Group, views: &mut Views, report: &mut Report) -> Result<()> {
    for op in group.batches().flat_map(|b| b.entry.ops()) {
        if let Decoded::Settled { file } = op {
            open_file(disk, file, views, report)?;
        }
    }
    Ok(())
}

fn open_file(disk: &dyn Disk, id: u64, views: &mut Views, report: &mut Report) -> Result<()> {
    match Settled::open(disk, id) {
        Ok(file) => drop(views.files.insert(id, Arc::new(file))),
        Err(e @ Error::Directory(_)) => return Err(e),
        Err(e) => {
            tracing::error!(file = id, error = %e, "a settled file is damaged");
            report.files.push(id);
        }
    }
    Ok(())
}

/// Whether the journal ends with an orderly close.
fn ends_clean(steps: &[Step]) -> bool {
    steps.last().and_then(Step::header).is_some_and(|h| h.flags & CLEAN_CLOSE != 0)
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
            Step::Group(copies) => (copies[0].header.sequence, copies[0].header.generation),
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
        let steps = order(vec![a, b, c, copy, d], 0, 0, 10);
        assert_eq!(sequences(&steps), [(1, 1), (2, 1), (3, 2), (4, 2)]);
        assert!(matches!(&steps[2], Step::Group(copies) if copies.len() == 2));
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
