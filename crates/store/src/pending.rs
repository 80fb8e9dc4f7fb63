//! What preconditions are checked against: everything accepted so far, published or not. Pure and in memory; the
//! writer never reads disk.

use std::collections::VecDeque;

use bytes::Bytes;
use hashbrown::HashMap;
use weft_core::limits::KEY_WINDOW;

use crate::{Batch, Error, Expect, Op, Position, Seq, StreamName, Version};

/// A key in a keyspace.
pub(crate) type Key = (&'static str, Bytes);

/// The pending state.
#[derive(Default)]
pub(crate) struct Pending {
    streams: HashMap<StreamName, Seq>,
    /// Every key changed since `floor`: when, and whether it exists.
    keys: HashMap<Key, (Position, bool)>,
    order: VecDeque<(Position, Key)>,
    /// Changes up to and with this position may be missing from `keys`.
    floor: Position,
}

/// What a submitter read of a batch's keys before it submitted.
#[derive(Clone, Debug, Default)]
pub(crate) struct KeyReads {
    /// The published position they were read at.
    pub(crate) at: Position,
    /// The version of each `Expect::Key`, in order; 0 = absent, `None` = damaged.
    pub(crate) versions: Vec<Option<Position>>,
}

/// How a check ended.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// All hold.
    Holds,
    /// One does not.
    Fails(Error),
    /// The keys were read too long ago to tell.
    Stale,
}

impl Pending {
    /// The state at opening: what is published is all there is.
    pub(crate) fn new(streams: impl Iterator<Item = (StreamName, Seq)>, at: Position) -> Self {
        Self { streams: streams.collect(), floor: at, ..Self::default() }
    }

    /// Checks preconditions.
    pub(crate) fn check(&self, expect: &[Expect], reads: &KeyReads) -> Verdict {
        let mut read = reads.versions.iter();
        for (index, e) in expect.iter().enumerate() {
            let (what, actual, version) = match e {
                Expect::Stream(name, version) => (Named::Stream(name), self.last(name), *version),
                Expect::Key { space, key, version } => {
                    let before = read.next().copied().flatten();
                    let actual = match self.keys.get(&(*space, key.clone())) {
                        Some((at, exists)) => {
                            if *exists {
                                *at
                            } else {
                                0
                            }
                        }
                        None if reads.at < self.floor => return Verdict::Stale,
                        None => match before {
                            Some(v) => v,
                            None => return Verdict::Fails(Error::Damaged { what: Named::Key(space, key).to_string() }),
                        },
                    };
                    (Named::Key(space, key), actual, *version)
                }
            };
            let holds = match version {
                Version::Absent => actual == 0,
                Version::Exists => actual != 0,
                Version::Exactly(v) => actual == v,
            };
            if !holds {
                return Verdict::Fails(Error::Precondition { index, what: what.to_string(), actual });
            }
        }
        Verdict::Holds
    }

    /// The last sequence given out in a stream.
    pub(crate) fn last(&self, stream: &str) -> Seq {
        self.streams.get(stream).copied().unwrap_or(0)
    }

    /// Gives out the next `count` sequences and answers the first.
    pub(crate) fn advance(&mut self, stream: &StreamName, count: u64) -> Seq {
        match self.streams.get_mut(stream) {
            Some(last) => {
                *last += count;
                *last + 1 - count
            }
            None => {
                self.streams.insert(stream.clone(), count);
                1
            }
        }
    }

    /// Notes the keys an accepted batch changes.
    pub(crate) fn changed(&mut self, keys: Vec<(Key, bool)>, position: Position) {
        for (key, exists) in keys {
            self.keys.insert(key.clone(), (position, exists));
            self.order.push_back((position, key));
        }
        while self.order.len() > KEY_WINDOW
            && let Some((at, key)) = self.order.pop_front()
        {
            self.floor = at;
            // A key changed again since has a later place in the order, too.
            if self.keys.get(&key).is_some_and(|(changed, _)| *changed == at) {
                self.keys.remove(&key);
            }
        }
    }
}

/// The keys a batch changes, and whether each exists afterwards.
pub(crate) fn changed_keys(batch: &Batch) -> Vec<(Key, bool)> {
    let of = |op: &Op| match op {
        Op::Put { space, key, .. } => Some(((*space, key.clone()), true)),
        Op::Delete { space, key } => Some(((*space, key.clone()), false)),
        _ => None,
    };
    batch.ops.iter().filter_map(of).collect()
}

enum Named<'a> {
    Stream(&'a str),
    Key(&'a str, &'a [u8]),
}

impl std::fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Named::Stream(s) => write!(f, "stream '{s}'"),
            Named::Key(space, key) => write!(f, "key '{}' of '{space}'", key.escape_ascii()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expect(version: Version) -> [Expect; 1] {
        [Expect::Key { space: "s", key: Bytes::from_static(b"k"), version }]
    }

    fn put(p: &mut Pending, key: String, position: Position, exists: bool) {
        p.changed(vec![(("s", Bytes::from(key)), exists)], position);
    }

    #[test]
    fn a_pending_change_wins_over_what_was_read() {
        let mut p = Pending::new(std::iter::empty(), 5);
        let reads = KeyReads { at: 5, versions: vec![Some(3)] };
        assert!(matches!(p.check(&expect(Version::Exactly(3)), &reads), Verdict::Holds));
        put(&mut p, "k".into(), 6, true);
        let Verdict::Fails(Error::Precondition { actual: 6, .. }) = p.check(&expect(Version::Exactly(3)), &reads)
        else {
            panic!("an overwritten version held")
        };
        put(&mut p, "k".into(), 7, false);
        assert!(matches!(p.check(&expect(Version::Absent), &reads), Verdict::Holds));
    }

    #[test]
    fn reads_older_than_the_window_are_stale_and_the_window_is_bounded() {
        let mut p = Pending::new(std::iter::empty(), 5);
        put(&mut p, "k".into(), 6, true);
        for i in 0..KEY_WINDOW as u64 {
            put(&mut p, format!("other-{i}"), 7 + i, true);
        }
        assert_eq!(p.order.len(), KEY_WINDOW);
        let old = KeyReads { at: 5, versions: vec![Some(0)] };
        assert!(matches!(p.check(&expect(Version::Absent), &old), Verdict::Stale));
        let fresh = KeyReads { at: 6, versions: vec![Some(6)] };
        assert!(matches!(p.check(&expect(Version::Exactly(6)), &fresh), Verdict::Holds));
    }

    #[test]
    fn a_damaged_key_fails_until_it_is_written_again() {
        let mut p = Pending::new(std::iter::empty(), 5);
        let reads = KeyReads { at: 5, versions: vec![None] };
        assert!(matches!(p.check(&expect(Version::Exists), &reads), Verdict::Fails(Error::Damaged { .. })));
        put(&mut p, "k".into(), 6, true);
        assert!(matches!(p.check(&expect(Version::Exists), &reads), Verdict::Holds));
    }

    #[test]
    fn stream_versions_count_accepted_appends() {
        let mut p = Pending::default();
        let name: StreamName = "s".into();
        let at = |v| [Expect::Stream("s".into(), v)];
        assert!(matches!(p.check(&at(Version::Absent), &KeyReads::default()), Verdict::Holds));
        assert_eq!((p.advance(&name, 3), p.advance(&name, 1)), (1, 4));
        assert!(matches!(p.check(&at(Version::Exactly(4)), &KeyReads::default()), Verdict::Holds));
        assert!(matches!(p.check(&at(Version::Absent), &KeyReads::default()), Verdict::Fails(_)));
    }
}
