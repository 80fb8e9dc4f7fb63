//! Published key changes that the key-value view has not taken in yet. Reads look here first.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;
use hashbrown::HashMap;

use crate::entry::Decoded;
use crate::group::Group;
use crate::{Damaged, Position};

/// What a key was changed to: `None` = deleted, `Err` = its batch was set aside.
pub(crate) type Change = std::result::Result<Option<Bytes>, Damaged>;

/// One key change of a group.
pub(crate) struct Write<'a> {
    pub(crate) space: &'a str,
    pub(crate) key: Bytes,
    pub(crate) position: Position,
    pub(crate) change: Change,
}

/// The key changes of a group in order.
pub(crate) fn writes(group: &Group) -> impl Iterator<Item = Write<'_>> {
    group.batches().flat_map(move |batch| {
        let (position, damaged, at) = (batch.position, batch.damaged, batch.body_at);
        batch.entry.ops().filter_map(move |op| {
            let (space, key, body) = match op {
                Decoded::Put { space, key, body } => (space, key, Some(body)),
                Decoded::Delete { space, key } => (space, key, None),
                _ => return None,
            };
            let change = match body {
                _ if damaged => Err(Damaged),
                Some(body) => Ok(Some(group.body.slice(at + body.start..at + body.end))),
                None => Ok(None),
            };
            Some(Write { space, key: group.dir.slice_ref(key), position, change })
        })
    })
}

#[derive(Debug)]
struct Slot {
    position: Position,
    change: Change,
}

/// The changes by keyspace and key.
#[derive(Default)]
pub(crate) struct Overlay {
    spaces: HashMap<String, BTreeMap<Bytes, Slot>>,
    /// Bytes of keys and values held.
    pub(crate) bytes: usize,
    /// The key-value view has everything up to and with this position.
    pub(crate) applied: Position,
}

impl Overlay {
    /// Takes in a published group.
    pub(crate) fn publish(&mut self, group: &Group) {
        for w in writes(group) {
            self.bytes += size(&w.key, &w.change);
            let space = self.spaces.entry_ref(w.space).or_default();
            let before = space.insert(w.key.clone(), Slot { position: w.position, change: w.change });
            self.bytes -= before.map_or(0, |b| size(&w.key, &b.change));
        }
    }

    /// Lets go of a group the view has taken in.
    pub(crate) fn release(&mut self, group: &Group) {
        for w in writes(group) {
            let Some(space) = self.spaces.get_mut(w.space) else { continue };
            if space.get(&w.key).is_some_and(|s| s.position == w.position)
                && let Some(slot) = space.remove(&w.key)
            {
                self.bytes -= size(&w.key, &slot.change);
            }
        }
        self.applied = self.applied.max(group.header.end() - 1);
    }

    /// What a key was changed to, and where; `None` when the view knows better.
    pub(crate) fn get(&self, space: &str, key: &[u8]) -> Option<(Position, Change)> {
        self.spaces.get(space)?.get(key).map(|s| (s.position, s.change.clone()))
    }

    /// Changed keys with a prefix, strictly after `after`, in order.
    pub(crate) fn range(&self, space: &str, prefix: &[u8], after: Option<&[u8]>) -> Vec<(Bytes, Position, Change)> {
        let Some(map) = self.spaces.get(space) else { return Vec::new() };
        let from = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        map.range::<[u8], _>((from, Bound::Unbounded))
            .take_while(|(k, _)| k.starts_with(prefix))
            .map(|(k, s)| (k.clone(), s.position, s.change.clone()))
            .collect()
    }
}

fn size(key: &Bytes, change: &Change) -> usize {
    key.len() + change.as_ref().map_or(0, |c| c.as_ref().map_or(0, Bytes::len))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Batch;
    use crate::entry::Encoded;
    use crate::group::tests::group;

    #[test]
    fn a_change_is_held_until_its_own_group_is_released() {
        let mut o = Overlay::default();
        let one = group(1, 10, &[Encoded::new(&Batch::new().put("s", "k", "old").put("s", "other", "x"))]);
        let two = group(2, 11, &[Encoded::new(&Batch::new().put("s", "k", "new"))]);
        o.publish(&one);
        o.publish(&two);
        o.release(&one);
        assert_eq!(o.get("s", b"other"), None);
        assert_eq!(o.get("s", b"k"), Some((11, Ok(Some(Bytes::from("new"))))));
        assert_eq!((o.bytes, o.applied), (4, 10));
        o.release(&two);
        assert_eq!((o.bytes, o.applied), (0, 11));
    }
}
