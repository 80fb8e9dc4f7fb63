//! The key-value view: a log-structured tree a keyspace, with the journal as its only write-ahead log.
//!
//! The tree's sequence number is the commit position. Only durable groups are applied, by one thread; a flush
//! makes everything applied so far durable, and recovery replays the journal from the last checkpoint, which comes
//! after a flush. Applying a group again is harmless: the same keys get the same values at the same positions.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use hashbrown::HashMap;
use lsm_tree::{AbstractTree, AnyTree, Cache, Guard, SequenceNumberCounter};
use parking_lot::{Mutex, RwLock};

use crate::group::Group;
use crate::overlay::{Change, writes};
use crate::{Damaged, Error, Position, Result, Value};

/// The tree numbers its own versions from the same counter, so positions are spread out to leave room between.
const STRIDE: u32 = 8;
/// Bytes in memory at which a keyspace is flushed.
const MEMTABLE_BYTES: u64 = 16 << 20;
/// Bytes of blocks cached for all keyspaces together.
const CACHE_BYTES: u64 = 64 << 20;

const VALUE: u8 = 0;
const DAMAGED: u8 = 1;

/// A stored value, or the mark of a batch set aside.
pub(crate) type Stored = std::result::Result<Value, Damaged>;

/// All keyspaces.
pub(crate) struct Kv {
    dir: PathBuf,
    spaces: RwLock<HashMap<String, Arc<Space>>>,
    cache: Arc<Cache>,
    /// Held while a group is applied, so that no flush splits a batch.
    turn: Mutex<()>,
    /// Positions that scans are reading at, and how many.
    snapshots: Mutex<BTreeMap<Position, usize>>,
    applied: AtomicU64,
}

struct Space {
    tree: AnyTree,
    counter: SequenceNumberCounter,
    dirty: AtomicBool,
}

impl Kv {
    /// Opens the keyspaces of a directory. One that does not open is set aside under another name and reported;
    /// it starts empty and takes what the journal still holds.
    pub(crate) fn open(dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(dir).map_err(io("opening the key-value view"))?;
        let kv = Self {
            dir: dir.to_owned(),
            spaces: RwLock::default(),
            cache: Arc::new(Cache::with_capacity_bytes(CACHE_BYTES)),
            turn: Mutex::default(),
            snapshots: Mutex::default(),
            applied: AtomicU64::new(0),
        };
        for entry in std::fs::read_dir(dir).map_err(io("opening the key-value view"))? {
            let entry = entry.map_err(io("opening the key-value view"))?;
            let Some(name) = entry.file_name().to_str().and_then(unescape) else { continue };
            if let Err(e) = kv.space(&name) {
                tracing::error!(keyspace = name, error = %e, "a keyspace does not open and is set aside");
                kv.set_aside(&name)?;
            }
        }
        Ok(kv)
    }

    fn set_aside(&self, name: &str) -> Result<()> {
        let from = self.dir.join(escape(name));
        let to = (0..).map(|i| self.dir.join(format!("{}.damaged.{i}", escape(name)))).find(|p| !p.exists());
        std::fs::rename(from, to.expect("some number is free")).map_err(io("setting a keyspace aside"))
    }

    fn space(&self, name: &str) -> Result<Arc<Space>> {
        if let Some(s) = self.spaces.read().get(name) {
            return Ok(s.clone());
        }
        let mut spaces = self.spaces.write();
        if let Some(s) = spaces.get(name) {
            return Ok(s.clone());
        }
        let counter = SequenceNumberCounter::default();
        let config =
            lsm_tree::Config::new(self.dir.join(escape(name)), counter.clone(), SequenceNumberCounter::default());
        let tree = config.use_cache(self.cache.clone()).open().map_err(lsm("opening a keyspace"))?;
        let space = Arc::new(Space { tree, counter, dirty: AtomicBool::new(false) });
        spaces.insert(name.to_owned(), space.clone());
        Ok(space)
    }

    /// Takes in a durable group.
    pub(crate) fn apply(&self, group: &Group) -> Result<()> {
        let turn = self.turn.lock();
        let mut large = false;
        // Of several writes of a batch to one key the last counts: they share a sequence number.
        let mut last: HashMap<(&str, Bytes, Position), Change> = HashMap::new();
        for w in writes(group) {
            last.insert((w.space, w.key, w.position), w.change);
        }
        for ((name, key, position), change) in last {
            let space = self.space(name)?;
            let seqno = position << STRIDE;
            space.dirty.store(true, Ordering::Relaxed);
            let (_, size) = match change {
                Ok(None) => space.tree.remove(&key[..], seqno),
                Ok(Some(value)) => space.tree.insert(&key[..], encode(VALUE, position, &value), seqno),
                Err(Damaged) => space.tree.insert(&key[..], encode(DAMAGED, position, &[]), seqno),
            };
            large |= size > MEMTABLE_BYTES;
        }
        self.applied.fetch_max(group.header.end() - 1, Ordering::Release);
        drop(turn);
        if large { self.flush() } else { Ok(()) }
    }

    /// Makes everything applied so far durable.
    pub(crate) fn flush(&self) -> Result<()> {
        let spaces: Vec<Arc<Space>> = self.spaces.read().values().cloned().collect();
        for space in spaces {
            if !space.dirty.load(Ordering::Relaxed) {
                continue;
            }
            let lock = space.tree.get_flush_lock();
            let oldest = {
                let _turn = self.turn.lock();
                space.dirty.store(false, Ordering::Relaxed);
                space.tree.rotate_memtable();
                // The tree's new version must be older than any position applied after it.
                space.counter.set(self.applied.load(Ordering::Acquire) << STRIDE);
                self.oldest_snapshot() << STRIDE
            };
            let flushed = space.tree.flush(&lock, oldest);
            drop(lock);
            if let Err(e) = flushed {
                space.dirty.store(true, Ordering::Relaxed);
                return Err(lsm("flushing a keyspace")(e));
            }
            if space.tree.l0_run_count() >= 4 {
                let strategy = Arc::new(lsm_tree::compaction::Leveled::default());
                space.tree.compact(strategy, oldest).map_err(lsm("compacting a keyspace"))?;
            }
        }
        Ok(())
    }

    fn oldest_snapshot(&self) -> Position {
        let applied = self.applied.load(Ordering::Acquire);
        self.snapshots.lock().keys().next().copied().unwrap_or(applied).min(applied)
    }

    /// The newest applied value of a key.
    pub(crate) fn get(&self, space: &str, key: &[u8]) -> Result<Option<Stored>> {
        let Some(space) = self.spaces.read().get(space).cloned() else { return Ok(None) };
        let found = space.tree.get(key, lsm_tree::SeqNo::MAX).map_err(lsm("reading a key"))?;
        found.map(|v| decode(&v)).transpose()
    }

    /// Holds a position readable until the guard is dropped. Called while nothing newer can be released from the
    /// overlay.
    pub(crate) fn snapshot(self: &Arc<Self>, at: Position) -> Snapshot {
        *self.snapshots.lock().entry(at).or_default() += 1;
        Snapshot { kv: self.clone(), at }
    }
}

/// A position held readable.
pub(crate) struct Snapshot {
    kv: Arc<Kv>,
    at: Position,
}

impl Snapshot {
    /// Keys with a prefix, strictly after `after`, as of the position, with newer changes laid over them.
    pub(crate) fn scan(
        &self,
        space: &str,
        prefix: &[u8],
        after: Option<&[u8]>,
        max: usize,
        over: Vec<(Bytes, Position, Change)>,
    ) -> Result<Vec<(Bytes, Stored)>> {
        let mut out = Vec::new();
        let mut over = over.into_iter().peekable();
        let lay = |(key, version, change): (Bytes, Position, Change), out: &mut Vec<(Bytes, Stored)>| match change {
            Ok(Some(bytes)) => out.push((key, Ok(Value { version, bytes }))),
            Ok(None) => {}
            Err(Damaged) => out.push((key, Err(Damaged))),
        };
        let tree = self.kv.spaces.read().get(space).cloned();
        if let Some(space) = &tree {
            let from = match after {
                Some(after) if after >= prefix => std::ops::Bound::Excluded(after),
                _ => std::ops::Bound::Included(prefix),
            };
            let range = (from, std::ops::Bound::Unbounded);
            for guard in space.tree.range::<&[u8], _>(range, (self.at + 1) << STRIDE, None) {
                let (key, value) = guard.into_inner().map_err(lsm("scanning keys"))?;
                if !key.starts_with(prefix) || out.len() >= max {
                    break;
                }
                while let Some(o) = over.next_if(|(k, ..)| k[..] < key[..]) {
                    lay(o, &mut out);
                }
                match over.next_if(|(k, ..)| k[..] == key[..]) {
                    Some(o) => lay(o, &mut out),
                    None => out.push((Bytes::copy_from_slice(&key), decode(&value)?)),
                }
            }
        }
        for o in over {
            if out.len() >= max {
                break;
            }
            lay(o, &mut out);
        }
        out.truncate(max);
        Ok(out)
    }
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        let mut snapshots = self.kv.snapshots.lock();
        if let Some(n) = snapshots.get_mut(&self.at) {
            *n -= 1;
            if *n == 0 {
                snapshots.remove(&self.at);
            }
        }
    }
}

fn encode(tag: u8, version: Position, value: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(9 + value.len());
    out.push(tag);
    out.extend_from_slice(&version.to_le_bytes());
    out.extend_from_slice(value);
    out
}

fn decode(bytes: &[u8]) -> Result<Stored> {
    let mut r = crate::wire::Reader(bytes);
    match (r.u8(), r.u64()) {
        (Some(VALUE), Some(version)) => Ok(Ok(Value { version, bytes: Bytes::copy_from_slice(r.0) })),
        (Some(DAMAGED), Some(_)) => Ok(Err(Damaged)),
        _ => Err(Error::Io { action: "reading a key", reason: "the stored value has no known form".into() }),
    }
}

/// A keyspace's directory name.
fn escape(name: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    name.bytes().map(|b| if plain(b) { (b as char).to_string() } else { format!("%{b:02x}") }).collect()
}

/// The keyspace of a directory name; `None` for what was set aside.
fn unescape(name: &str) -> Option<String> {
    let mut out = Vec::new();
    let mut bytes = name.bytes();
    while let Some(b) = bytes.next() {
        match b {
            b'%' => {
                let hex = [bytes.next()?, bytes.next()?];
                out.push(u8::from_str_radix(std::str::from_utf8(&hex).ok()?, 16).ok()?);
            }
            b'.' => return None,
            b => out.push(b),
        }
    }
    String::from_utf8(out).ok()
}

fn io(action: &'static str) -> impl Fn(std::io::Error) -> Error {
    crate::recover::io(action)
}

fn lsm(action: &'static str) -> impl Fn(lsm_tree::Error) -> Error {
    move |e| Error::Io { action, reason: e.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Batch;
    use crate::entry::Encoded;
    use crate::group::tests::group;

    fn value(kv: &Kv, key: &str) -> Option<(Position, Bytes)> {
        kv.get("s", key.as_bytes()).unwrap().map(|v| v.unwrap()).map(|v| (v.version, v.bytes))
    }

    #[test]
    fn what_was_flushed_is_there_after_opening_again_and_applying_again_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let one = group(1, 10, &[Encoded::new(&Batch::new().put("s", "k", "1").put("s", "k", "2"))]);
        let two = group(2, 11, &[Encoded::new(&Batch::new().delete("s", "k").put("s", "l", "3"))]);
        {
            let kv = Kv::open(dir.path()).unwrap();
            kv.apply(&one).unwrap();
            assert_eq!(value(&kv, "k"), Some((10, Bytes::from("2"))));
            kv.apply(&two).unwrap();
            kv.flush().unwrap();
        }
        let kv = Kv::open(dir.path()).unwrap();
        for _ in 0..2 {
            assert_eq!(value(&kv, "k"), None);
            assert_eq!(value(&kv, "l"), Some((11, Bytes::from("3"))));
            kv.apply(&one).unwrap();
            kv.apply(&two).unwrap();
        }
    }

    #[test]
    fn a_snapshot_does_not_see_what_comes_later_even_across_flushes() {
        let dir = tempfile::tempdir().unwrap();
        let kv = Arc::new(Kv::open(dir.path()).unwrap());
        kv.apply(&group(1, 10, &[Encoded::new(&Batch::new().put("s", "a", "1").put("s", "b", "1"))])).unwrap();
        let before = kv.snapshot(10);
        for i in 0..8 {
            kv.apply(&group(2 + i, 11 + i, &[Encoded::new(&Batch::new().delete("s", "a").put("s", "b", "2"))]))
                .unwrap();
            kv.flush().unwrap();
        }
        let keys = |s: &Snapshot| s.scan("s", b"", None, 9, Vec::new()).unwrap().len();
        assert_eq!(keys(&before), 2);
        assert_eq!(keys(&kv.snapshot(18)), 1);
        let over = vec![(Bytes::from("aa"), 20, Ok(Some(Bytes::from("x")))), (Bytes::from("b"), 20, Ok(None))];
        let merged = kv.snapshot(18).scan("s", b"", None, 9, over).unwrap();
        assert_eq!(merged.iter().map(|(k, _)| k.clone()).collect::<Vec<_>>(), ["aa"]);
    }

    #[test]
    fn a_keyspace_that_does_not_open_is_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        {
            let kv = Kv::open(dir.path()).unwrap();
            kv.apply(&group(1, 10, &[Encoded::new(&Batch::new().put("s", "a", "1").put("odd/ä", "a", "1"))])).unwrap();
            kv.flush().unwrap();
        }
        std::fs::write(dir.path().join("s").join("current"), b"garbage").unwrap();
        let kv = Kv::open(dir.path()).unwrap();
        assert_eq!(value(&kv, "a"), None);
        assert!(kv.get("odd/ä", b"a").unwrap().is_some());
        assert!(dir.path().join("s.damaged.0").exists());
        assert_eq!(unescape(&escape("odd/ä")).as_deref(), Some("odd/ä"));
    }
}
