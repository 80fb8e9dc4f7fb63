//! Credentials that were checked a moment ago, by a keyed hash of them: neither the credential nor a hash that could be
//! guessed at stays in memory.
//!
//! Each shard has a young and an old half. What is asked for in the old half moves to the young one; when the young one
//! is full, it becomes the old one and what was old and not asked for is gone. So memory is bounded, nothing is sorted,
//! and what is in use stays.

use std::collections::HashMap;

use parking_lot::Mutex;
use ring::hmac;
use weft_core::Timestamp;

const SHARDS: usize = 16;

/// A credential's name in the cache.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Hashed([u8; 32]);

/// The tag is as good as random: its first bytes are its hash.
impl std::hash::Hash for Hashed {
    fn hash<H: std::hash::Hasher>(&self, h: &mut H) {
        h.write_u64(u64::from_le_bytes(self.0[..8].try_into().expect("a tag has 32 bytes")));
    }
}

/// What was found for credentials, until it expires or what it was checked with changes.
pub struct Cache<V> {
    seed: hmac::Key,
    shards: Vec<Mutex<Shard<V>>>,
    half: usize,
}

struct Shard<V> {
    young: HashMap<Hashed, Entry<V>>,
    old: HashMap<Hashed, Entry<V>>,
}

struct Entry<V> {
    value: V,
    expires: Timestamp,
    /// Of the keys it was checked with.
    generation: u64,
}

impl<V> std::fmt::Debug for Cache<V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Cache")
    }
}

impl<V: Clone> Cache<V> {
    /// A cache of about that many credentials.
    pub fn new(places: usize) -> Self {
        let seed = rand::random::<[u8; 32]>();
        let shard = || Mutex::new(Shard { young: HashMap::new(), old: HashMap::new() });
        Self {
            seed: hmac::Key::new(hmac::HMAC_SHA256, &seed),
            shards: (0..SHARDS).map(|_| shard()).collect(),
            half: (places / SHARDS / 2).max(1),
        }
    }

    /// The name of a credential in here.
    pub fn name(&self, credential: &[u8]) -> Hashed {
        let tag = hmac::sign(&self.seed, credential);
        Hashed(tag.as_ref().try_into().expect("HMAC-SHA-256 has 32 bytes"))
    }

    /// What was found, if that still holds under keys of this generation.
    pub fn get(&self, name: &Hashed, now: Timestamp, generation: u64) -> Option<V> {
        let mut shard = self.shard(name).lock();
        let shard = &mut *shard;
        if let Some(e) = shard.young.get(name) {
            return (now < e.expires && e.generation == generation).then(|| e.value.clone());
        }
        let entry = shard.old.remove(name)?;
        if now >= entry.expires || entry.generation != generation {
            return None;
        }
        let value = entry.value.clone();
        shard.put(*name, entry, self.half);
        Some(value)
    }

    /// Remembers what was found.
    pub fn put(&self, name: Hashed, value: V, expires: Timestamp, generation: u64) {
        self.shard(&name).lock().put(name, Entry { value, expires, generation }, self.half);
    }

    fn shard(&self, name: &Hashed) -> &Mutex<Shard<V>> {
        &self.shards[usize::from(name.0[31]) % SHARDS]
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.shards.iter().map(|s| s.lock()).map(|s| s.young.len() + s.old.len()).sum()
    }
}

impl<V> Shard<V> {
    fn put(&mut self, name: Hashed, entry: Entry<V>, half: usize) {
        if self.young.len() >= half && !self.young.contains_key(&name) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(name, entry);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_found_holds_until_it_expires_or_the_keys_change() {
        let c = Cache::new(64);
        let name = c.name(b"token");
        c.put(name, 7, Timestamp(100), 1);
        assert_eq!(c.get(&name, Timestamp(99), 1), Some(7));
        assert_eq!(c.get(&name, Timestamp(100), 1), None);
        assert_eq!(c.get(&name, Timestamp(50), 2), None);
        assert_eq!(c.get(&c.name(b"other"), Timestamp(50), 1), None);
    }

    #[test]
    fn the_cache_is_bounded_and_what_is_asked_for_stays() {
        let c = Cache::new(256);
        let favourite = c.name(b"favourite");
        c.put(favourite, 0, Timestamp(u64::MAX), 1);
        for i in 0..100_000u32 {
            c.put(c.name(&i.to_le_bytes()), i, Timestamp(u64::MAX), 1);
            if i % 4 == 0 {
                assert_eq!(c.get(&favourite, Timestamp(0), 1), Some(0), "after {i}");
            }
        }
        assert!(c.len() <= 256, "{}", c.len());
    }

    #[test]
    fn two_caches_name_the_same_credential_differently() {
        assert!(Cache::<()>::new(1).name(b"x") != Cache::<()>::new(1).name(b"x"));
    }
}
