//! The table of dedup ids: which publishes were seen, for how long, and what they got.
//!
//! Memory holds hashes and positions; the store holds the same under keys that start with the minute they expire in, so
//! that what left its window is removed by range. A window is never shortened: a full table refuses new ids.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use hashbrown::HashMap;
use weft_core::Timestamp;
use weft_store::Position;
use xxhash_rust::xxh3::xxh3_128;

/// The store's keyspace of dedup ids.
pub(crate) const SPACE: &str = "dedup";
const BUCKET: Duration = Duration::from_secs(60);

/// A dedup id within its channel and principal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Hash(pub u128);

impl Hash {
    pub fn of(channel: &str, principal: &str, id: &str) -> Self {
        // Lengths in front, so that no two triples spell the same bytes.
        let mut b = Vec::with_capacity(channel.len() + principal.len() + id.len() + 8);
        b.put_u32_le(channel.len() as u32);
        b.put_slice(channel.as_bytes());
        b.put_u32_le(principal.len() as u32);
        b.put_slice(principal.as_bytes());
        b.put_slice(id.as_bytes());
        Self(xxh3_128(&b))
    }
}

/// What is known of an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// Nothing: this is the first.
    New,
    /// Its first publish is on its way to disk.
    Pending,
    /// Published; `bucket` completes the key of the stored receipt.
    Done { position: Position, bucket: u64 },
}

#[derive(Clone, Copy)]
struct Entry {
    /// 0 while on its way to disk.
    position: Position,
    bucket: u64,
}

/// The table.
#[derive(Default)]
pub(crate) struct Table {
    ids: HashMap<u128, Entry>,
    buckets: BTreeMap<u64, Vec<u128>>,
}

/// The stored key of an id.
pub(crate) fn key(bucket: u64, hash: Hash) -> Bytes {
    let mut b = BytesMut::with_capacity(24);
    b.put_u64(bucket);
    b.put_u128(hash.0);
    b.freeze()
}

impl Table {
    /// What is known of an id now.
    pub fn look(&self, now: Timestamp, hash: Hash) -> Seen {
        match self.ids.get(&hash.0) {
            Some(e) if e.bucket <= bucket_of(now) => Seen::New,
            Some(e) if e.position == 0 => Seen::Pending,
            Some(e) => Seen::Done { position: e.position, bucket: e.bucket },
            None => Seen::New,
        }
    }

    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Notes a first publish on its way; the answer is the bucket of its stored key.
    pub fn begin(&mut self, now: Timestamp, hash: Hash, window: Duration) -> u64 {
        // The bucket after the one the window ends in: at least the window, at most a minute more.
        let bucket = bucket_of(now.plus(window)) + 1;
        self.insert(hash, bucket, 0);
        bucket
    }

    /// The publish is durable.
    pub fn confirm(&mut self, hash: Hash, position: Position) {
        if let Some(e) = self.ids.get_mut(&hash.0) {
            e.position = position;
        }
    }

    /// The publish failed: its id is free again.
    pub fn abandon(&mut self, hash: Hash) {
        self.ids.remove(&hash.0);
    }

    /// Takes a stored id at opening; `None` when the key is not one of ours.
    pub fn restore(&mut self, key: &[u8], position: Position) -> Option<()> {
        let bucket = u64::from_be_bytes(key.get(..8)?.try_into().ok()?);
        let hash = u128::from_be_bytes(key.get(8..)?.try_into().ok()?);
        self.insert(Hash(hash), bucket, position);
        Some(())
    }

    /// Forgets one expired bucket; the answer is the stored keys to delete.
    pub fn expire(&mut self, now: Timestamp) -> Option<Vec<Bytes>> {
        let entry = self.buckets.first_entry().filter(|e| *e.key() <= bucket_of(now))?;
        let (bucket, hashes) = entry.remove_entry();
        for h in &hashes {
            // The id may have been published again since, into a later bucket.
            if self.ids.get(h).is_some_and(|e| e.bucket == bucket) {
                self.ids.remove(h);
            }
        }
        Some(hashes.into_iter().map(|h| key(bucket, Hash(h))).collect())
    }

    fn insert(&mut self, hash: Hash, bucket: u64, position: Position) {
        // At opening the later bucket wins; while running a new publish always has the later one.
        let e = self.ids.entry(hash.0).or_insert(Entry { position, bucket });
        if bucket >= e.bucket {
            *e = Entry { position, bucket };
        }
        self.buckets.entry(bucket).or_default().push(hash.0);
    }
}

fn bucket_of(t: Timestamp) -> u64 {
    t.0 / BUCKET.as_millis() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const T0: Timestamp = Timestamp(1_700_000_000_000);

    #[test]
    fn an_id_is_new_then_pending_then_done_then_new_after_its_window() {
        let mut t = Table::default();
        let h = Hash::of("queue/a", "anonymous", "1");
        let window = Duration::from_secs(600);
        assert_eq!(t.look(T0, h), Seen::New);
        let bucket = t.begin(T0, h, window);
        assert_eq!(t.look(T0, h), Seen::Pending);
        t.confirm(h, 7);
        assert_eq!(t.look(T0.plus(window), h), Seen::Done { position: 7, bucket });
        let later = T0.plus(window + 2 * BUCKET);
        assert_eq!(t.look(later, h), Seen::New);
        assert_eq!(t.expire(later), Some(vec![key(bucket, h)]));
        assert_eq!(t.expire(later), None);
    }

    #[test]
    fn a_failed_publish_frees_its_id() {
        let mut t = Table::default();
        let h = Hash::of("queue/a", "anonymous", "1");
        t.begin(T0, h, Duration::from_secs(60));
        t.abandon(h);
        assert_eq!(t.look(T0, h), Seen::New);
    }

    #[test]
    fn an_id_published_again_after_its_window_survives_the_expiry_of_the_first() {
        let mut t = Table::default();
        let h = Hash::of("queue/a", "anonymous", "1");
        t.begin(T0, h, Duration::ZERO);
        t.confirm(h, 1);
        let later = T0.plus(3 * BUCKET);
        assert_eq!(t.look(later, h), Seen::New);
        let bucket = t.begin(later, h, Duration::from_secs(600));
        t.confirm(h, 2);
        assert!(t.expire(later).is_some());
        assert_eq!(t.look(later, h), Seen::Done { position: 2, bucket });
    }

    #[test]
    fn stored_keys_restore_the_table() {
        let mut t = Table::default();
        let h = Hash::of("topic/a", "ada", "x");
        let bucket = t.begin(T0, h, Duration::from_secs(600));
        let mut again = Table::default();
        again.restore(&key(bucket, h), 9).unwrap();
        assert_eq!(again.look(T0, h), Seen::Done { position: 9, bucket });
        assert!(again.restore(b"foreign", 1).is_none());
    }

    #[test]
    fn channel_principal_and_id_do_not_run_into_each_other() {
        assert_ne!(Hash::of("ab", "c", "d"), Hash::of("a", "bc", "d"));
        assert_ne!(Hash::of("a", "bc", "d"), Hash::of("a", "b", "cd"));
    }
}
