//! The stream view: what each stream has, where its records lie, what its cursors acknowledged.
//!
//! Memory holds extents, never records.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use hashbrown::HashMap;

use crate::cursor::State;
use crate::entry::Decoded;
use crate::group::Group;
use crate::{Attempt, Cursor, CursorName, OWN, Seq, StreamInfo, StreamName};

/// Where a run of records lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// In the journal, in the group of this sequence, from this batch on.
    Journal {
        /// The group.
        sequence: u64,
        /// The first batch of the group that has records of the extent.
        batch: u32,
    },
    /// In a settled file.
    File(u64),
    /// Set aside with a directory that was lost.
    Damaged,
}

/// Neighbouring records in one place. What was dead when it was settled is not in a settled file, but the dead
/// stay dead, so every live sequence of the range is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) first: Seq,
    pub(crate) last: Seq,
    pub(crate) place: Place,
}

/// Live records to read: the whole range is live, in one place.
pub(crate) type Piece = Extent;

/// One stream.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stream {
    pub(crate) last: Seq,
    pub(crate) trimmed: Seq,
    pub(crate) extents: VecDeque<Extent>,
    pub(crate) cursors: BTreeMap<CursorName, State>,
}

/// All streams.
#[derive(Default)]
pub(crate) struct Streams {
    pub(crate) map: HashMap<StreamName, Stream>,
    names: BTreeSet<StreamName>,
}

impl Stream {
    /// Nothing up to and with this is live.
    fn dead_to(&self) -> Seq {
        self.trimmed.max(self.cursors.get(OWN).map_or(0, |c| c.floor))
    }

    /// The first live inclusive range within `from..=to`.
    pub(crate) fn live_from(&self, from: Seq, to: Seq) -> Option<(Seq, Seq)> {
        let from = from.max(self.trimmed + 1);
        match self.cursors.get(OWN) {
            Some(own) => own.open_from(from, to),
            None => (from <= to).then_some((from, to)),
        }
    }

    fn cursor(&mut self, name: &str) -> Option<&mut State> {
        if name == OWN && !self.cursors.contains_key(OWN) {
            self.cursors.insert(OWN.into(), State::at(0));
        }
        self.cursors.get_mut(name)
    }

    /// Drops extents without a live record from the front.
    fn shed(&mut self) {
        let dead = self.dead_to();
        while self.extents.front().is_some_and(|e| e.last <= dead) {
            self.extents.pop_front();
        }
    }

    /// Drops extents without a live record, wherever they are. What is dead stays dead.
    pub(crate) fn prune(&mut self) {
        self.shed();
        let Some(own) = self.cursors.get(OWN) else { return };
        let trimmed = self.trimmed;
        self.extents.retain(|e| own.open_from(e.first.max(trimmed + 1), e.last).is_some());
    }

    fn append(&mut self, first: Seq, count: u64, place: Place) {
        let last = first + count - 1;
        if first > self.last + 1 {
            let lost = Extent { first: self.last + 1, last: first - 1, place: Place::Damaged };
            self.extents.push_back(lost);
        }
        self.last = last;
        match (self.extents.back_mut(), place) {
            (
                Some(Extent { last: end, place: Place::Journal { sequence: a, .. }, .. }),
                Place::Journal { sequence: b, .. },
            ) if a == &b && *end + 1 == first => {
                *end = last;
            }
            _ => self.extents.push_back(Extent { first, last, place }),
        }
    }

    /// Moves the records of a range to another place, where it is still as `from` said.
    pub(crate) fn replace(&mut self, first: Seq, last: Seq, place: Place) {
        let dead = self.dead_to();
        let mut out: VecDeque<Extent> = VecDeque::with_capacity(self.extents.len() + 1);
        let mut placed = last <= dead;
        for e in self.extents.drain(..) {
            if e.last < first || e.first > last {
                if e.first > last && !placed {
                    out.push_back(Extent { first, last, place });
                    placed = true;
                }
                out.push_back(e);
                continue;
            }
            if e.first < first {
                out.push_back(Extent { last: first - 1, ..e });
            }
            if !placed {
                out.push_back(Extent { first, last, place });
                placed = true;
            }
            if e.last > last {
                out.push_back(Extent { first: last + 1, ..e });
            }
        }
        if !placed {
            out.push_back(Extent { first, last, place });
        }
        self.extents = out;
    }
}

impl Streams {
    /// Applies what a group did to streams. A damaged batch is set aside whole: its appends keep their
    /// sequences, and nothing else of it takes effect.
    pub(crate) fn apply(&mut self, group: &Group) {
        for batch in group.batches() {
            for op in batch.entry.ops() {
                match op {
                    Decoded::Append { stream, first, lens } => {
                        let place = Place::Journal { sequence: group.header.sequence, batch: batch.index };
                        self.entry(stream).append(first, lens.count, place);
                    }
                    _ if batch.damaged => {}
                    Decoded::Ack { stream, cursor, ranges } => self.ack(stream, cursor, &ranges),
                    Decoded::Attempt { stream, cursor, seq, attempt } => self.attempt(stream, cursor, seq, attempt),
                    Decoded::CreateCursor { stream, cursor, floor } => {
                        let s = self.entry(stream);
                        if !s.cursors.contains_key(cursor) {
                            let floor = floor.min(s.last).max(s.trimmed);
                            s.cursors.insert(cursor.into(), State::at(floor));
                        }
                    }
                    Decoded::DropCursor { stream, cursor } => {
                        if let Some(s) = self.map.get_mut(stream) {
                            s.cursors.remove(cursor);
                        }
                    }
                    Decoded::Trim { stream, seq } => {
                        if let Some(s) = self.map.get_mut(stream) {
                            s.trimmed = s.trimmed.max(seq.min(s.last));
                            for c in s.cursors.values_mut() {
                                c.jump(s.trimmed);
                            }
                            s.shed();
                        }
                    }
                    Decoded::Put { .. } | Decoded::Delete { .. } | Decoded::Settled { .. } => {}
                }
            }
        }
    }

    fn ack(&mut self, stream: &str, cursor: &str, ranges: &[(Seq, Seq)]) {
        let Some(s) = self.map.get_mut(stream) else { return };
        let end = s.last;
        let Some(c) = s.cursor(cursor) else { return };
        for (first, last) in ranges {
            c.ack(*first, (*last).min(end));
        }
        if cursor == OWN {
            s.shed();
        }
    }

    fn attempt(&mut self, stream: &str, cursor: &str, seq: Seq, attempt: Attempt) {
        let Some(s) = self.map.get_mut(stream) else { return };
        if seq <= s.last
            && seq > s.trimmed
            && let Some(c) = s.cursor(cursor)
        {
            c.attempt(seq, attempt);
        }
    }

    /// The stream, made when absent.
    pub(crate) fn entry(&mut self, name: &str) -> &mut Stream {
        if !self.map.contains_key(name) {
            let name: StreamName = name.into();
            self.names.insert(name.clone());
            self.map.insert(name, Stream::default());
        }
        self.map.get_mut(name).expect("made above")
    }

    pub(crate) fn info(&self, name: &str) -> Option<StreamInfo> {
        let s = self.map.get(name)?;
        Some(StreamInfo { last: s.last, trimmed: s.trimmed, cursors: s.cursors.keys().cloned().collect() })
    }

    pub(crate) fn cursor(&self, stream: &str, cursor: &str) -> Option<Cursor> {
        Some(self.map.get(stream)?.cursors.get(cursor)?.export())
    }

    pub(crate) fn names(&self, prefix: &str) -> Vec<StreamName> {
        use std::ops::Bound;
        let from = (Bound::Included(prefix), Bound::Unbounded);
        self.names.range::<str, _>(from).take_while(|n| n.starts_with(prefix)).cloned().collect()
    }

    /// Where the live records from `from` on lie, at most `max` of them.
    pub(crate) fn plan(&self, stream: &str, from: Seq, max: usize) -> Vec<Piece> {
        let mut pieces = Vec::new();
        let Some(s) = self.map.get(stream) else { return pieces };
        let mut left = max as u64;
        let start = s.extents.partition_point(|e| e.last < from);
        for e in s.extents.range(start..) {
            let mut at = e.first.max(from);
            while left > 0 && at <= e.last {
                let Some((first, last)) = s.live_from(at, e.last) else { break };
                let last = last.min(first.saturating_add(left - 1));
                pieces.push(Piece { first, last, place: e.place });
                left -= last - first + 1;
                at = last + 1;
            }
            if left == 0 {
                break;
            }
        }
        pieces
    }

    /// The last sequences, for the writer's pending state.
    pub(crate) fn lasts(&self) -> impl Iterator<Item = (StreamName, Seq)> + '_ {
        self.map.iter().map(|(n, s)| (n.clone(), s.last))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn journal(sequence: u64) -> Place {
        Place::Journal { sequence, batch: 0 }
    }

    #[test]
    fn a_gap_before_an_append_reads_as_damaged() {
        let mut s = Stream::default();
        s.append(1, 2, journal(1));
        s.append(6, 1, journal(3));
        let places: Vec<_> = s.extents.iter().map(|e| (e.first, e.last, e.place)).collect();
        assert_eq!(places, [(1, 2, journal(1)), (3, 5, Place::Damaged), (6, 6, journal(3))]);
        assert_eq!(s.last, 6);
    }

    #[test]
    fn replacing_a_range_keeps_what_is_outside() {
        let mut s = Stream::default();
        s.append(1, 4, journal(1));
        s.append(5, 4, journal(2));
        s.append(9, 4, journal(3));
        s.replace(3, 10, Place::File(7));
        let places: Vec<_> = s.extents.iter().map(|e| (e.first, e.last, e.place)).collect();
        assert_eq!(places, [(1, 2, journal(1)), (3, 10, Place::File(7)), (11, 12, journal(3))]);
    }
}
