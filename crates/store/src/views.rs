//! The published state: what everyone but the writer sees, and where it lies.

use std::collections::VecDeque;
use std::sync::Arc;

use hashbrown::{HashMap, HashSet};

use crate::checkpoint::{Head, Location, SegmentRef};
use crate::entry::Decoded;
use crate::group::{Group, GroupHeader};
use crate::overlay::Overlay;
use crate::segments::Segment;
use crate::settled::Settled;
use crate::streams::{Piece, Place, Streams};
use crate::{Position, Seq};

/// Bytes of recent groups kept in memory: what is consumed soon is never read from disk.
pub(crate) const RECENT_BYTES: usize = 64 << 20;

/// All views, as of one published position.
#[derive(Default)]
pub(crate) struct Views {
    pub(crate) position: Position,
    /// The header of the last published group.
    pub(crate) last: Option<GroupHeader>,
    pub(crate) streams: Streams,
    pub(crate) overlay: Overlay,
    /// Where groups lie, in order of their sequence.
    pub(crate) locations: VecDeque<Location>,
    pub(crate) segments: HashMap<u32, Arc<Segment>>,
    pub(crate) files: HashMap<u64, Arc<Settled>>,
    recent: VecDeque<Arc<Group>>,
    recent_bytes: usize,
}

/// Where to read a piece from.
pub(crate) enum Source {
    /// From memory.
    Memory(Arc<Group>, u32),
    /// From the journal.
    Journal(Arc<Segment>, Location, u32),
    /// From a settled file.
    File(Arc<Settled>),
    /// Nowhere: it was set aside.
    Damaged,
}

impl Views {
    /// Publishes a group.
    pub(crate) fn apply(&mut self, group: Arc<Group>, at: Location) {
        self.apply_streams(&group, at);
        self.overlay.publish(&group);
        self.remember(group);
    }

    /// Takes in what a group did to streams and to the manifest.
    pub(crate) fn apply_streams(&mut self, group: &Group, at: Location) {
        self.streams.apply(group);
        self.locations.push_back(at);
        for op in group.batches().flat_map(|b| b.entry.ops()) {
            if let Decoded::Settled { file } = op
                && let Some(settled) = self.files.get(&file)
            {
                for (stream, ranges) in settled.streams() {
                    let stream = self.streams.entry(stream);
                    for (first, last) in ranges {
                        stream.replace(*first, *last, Place::File(file));
                    }
                }
            }
        }
        self.position = self.position.max(group.header.end() - 1);
        self.last = Some(group.header);
    }

    fn remember(&mut self, group: Arc<Group>) {
        self.recent_bytes += group.header.disk_len();
        self.recent.push_back(group);
        while self.recent_bytes > RECENT_BYTES && self.recent.len() > 1 {
            if let Some(old) = self.recent.pop_front() {
                self.recent_bytes -= old.header.disk_len();
            }
        }
    }

    /// A recent group.
    pub(crate) fn recent(&self, sequence: u64) -> Option<&Arc<Group>> {
        let i = self.recent.partition_point(|g| g.header.sequence < sequence);
        self.recent.get(i).filter(|g| g.header.sequence == sequence)
    }

    /// Where a group lies.
    pub(crate) fn location(&self, sequence: u64) -> Option<Location> {
        let i = self.locations.partition_point(|l| l.sequence < sequence);
        self.locations.get(i).copied().filter(|l| l.sequence == sequence)
    }

    /// The pieces of a read, and where each is to be read from. Holding a source keeps its segment from being
    /// recycled.
    pub(crate) fn plan(&self, stream: &str, from: Seq, max: usize) -> Vec<(Piece, Source)> {
        let pieces = self.streams.plan(stream, from, max);
        pieces.into_iter().map(|p| (p, self.source(&p))).collect()
    }

    /// Where a piece is to be read from.
    pub(crate) fn source(&self, piece: &Piece) -> Source {
        match piece.place {
            Place::Damaged => Source::Damaged,
            Place::File(id) => self.files.get(&id).cloned().map_or(Source::Damaged, Source::File),
            Place::Journal { sequence, batch } => {
                if let Some(group) = self.recent(sequence) {
                    return Source::Memory(group.clone(), batch);
                }
                let Some(at) = self.location(sequence) else { return Source::Damaged };
                let segment = self.segments.get(&at.segment).cloned();
                segment.map_or(Source::Damaged, |s| Source::Journal(s, at, batch))
            }
        }
    }

    /// Forgets extents without a live record, and locations no extent names that a checkpoint at `through` covers.
    pub(crate) fn prune(&mut self, through: u64) {
        let mut used = HashSet::new();
        for s in self.streams.map.values_mut() {
            s.prune();
            for e in &s.extents {
                if let Place::Journal { sequence, .. } = e.place {
                    used.insert(sequence);
                }
            }
        }
        self.locations.retain(|l| l.sequence > through || used.contains(&l.sequence));
    }

    /// Segments that still hold something: a live extent, or a group behind `through`.
    pub(crate) fn needed(&self, through: u64) -> HashSet<u32> {
        let mut needed: HashSet<u32> =
            self.locations.iter().filter(|l| l.sequence > through).map(|l| l.segment).collect();
        for s in self.streams.map.values() {
            for e in &s.extents {
                if let Place::Journal { sequence, .. } = e.place {
                    needed.extend(self.location(sequence).map(|l| l.segment));
                }
            }
        }
        needed
    }

    /// Settled files that extents name.
    pub(crate) fn named_files(&self) -> HashSet<u64> {
        let extents = self.streams.map.values().flat_map(|s| &s.extents);
        extents.filter_map(|e| if let Place::File(id) = e.place { Some(id) } else { None }).collect()
    }

    /// What a checkpoint taken now says besides the streams.
    pub(crate) fn head(&self, epoch: u64, next_file: u64) -> Option<Head> {
        let last = self.last?;
        let segments = self
            .segments
            .values()
            .map(|s| SegmentRef { id: s.id, generation: s.header.generation, nonce: s.header.nonce })
            .collect();
        let at = self.location(last.sequence)?;
        let generation = self.segments.get(&at.segment)?.header.generation;
        Some(Head {
            sequence: last.sequence,
            chain: last.chain(),
            next: last.end(),
            time: last.time,
            generation,
            epoch,
            next_file,
            segments,
            locations: self.locations.iter().copied().collect(),
        })
    }
}
