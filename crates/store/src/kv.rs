//! The key-value view.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;
use hashbrown::HashMap;

use crate::entry::Decoded;
use crate::group::Group;
use crate::{Damaged, Value};

type Entry = std::result::Result<Value, Damaged>;

/// Keyspaces by name.
#[derive(Default)]
pub(crate) struct Kv {
    spaces: HashMap<String, BTreeMap<Bytes, Entry>>,
}

impl Kv {
    pub(crate) fn apply(&mut self, group: &Group) {
        for batch in group.batches() {
            for op in batch.entry.ops() {
                match op {
                    Decoded::Put { space, key, body } => {
                        let value = if batch.damaged {
                            Err(Damaged)
                        } else {
                            let body = batch.body_at + body.start..batch.body_at + body.end;
                            Ok(Value { version: batch.position, bytes: group.body.slice(body) })
                        };
                        self.space(space).insert(Bytes::copy_from_slice(key), value);
                    }
                    Decoded::Delete { space, key } if batch.damaged => {
                        self.space(space).insert(Bytes::copy_from_slice(key), Err(Damaged));
                    }
                    Decoded::Delete { space, key } => {
                        self.space(space).remove(key);
                    }
                    _ => {}
                }
            }
        }
    }

    fn space(&mut self, name: &str) -> &mut BTreeMap<Bytes, Entry> {
        self.spaces.entry_ref(name).or_default()
    }

    pub(crate) fn get(&self, space: &str, key: &[u8]) -> Option<Entry> {
        self.spaces.get(space)?.get(key).cloned()
    }

    pub(crate) fn scan(&self, space: &str, prefix: &[u8], after: Option<&[u8]>, max: usize) -> Vec<(Bytes, Entry)> {
        let Some(map) = self.spaces.get(space) else { return Vec::new() };
        let from = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        map.range::<[u8], _>((from, Bound::Unbounded))
            .take_while(|(k, _)| k.starts_with(prefix))
            .take(max)
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect()
    }
}
