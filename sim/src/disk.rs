//! A disk that keeps its word and nothing more: what a completed sync did not cover may be there after a crash,
//! in part, in another order, or not at all.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use weft_store::disk::{Disk, DiskFile};

/// Pieces in which the page cache writes back.
const PAGE: usize = 4096;
/// Pieces a device writes whole.
const SECTOR: usize = 512;

/// How the disk behaves.
#[derive(Clone, Debug)]
pub struct Behaviour {
    /// The operation at which power fails; none after it succeeds.
    pub crash_at: Option<u64>,
    /// Syncs that fail, by the count of operations at or after which the next one does.
    pub fail_sync_at: Option<u64>,
    /// Bytes the disk holds.
    pub capacity: u64,
    /// Whether a sync makes anything durable. Without, the disk lies: a check that passes then proves nothing.
    pub syncs: bool,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self { crash_at: None, fail_sync_at: None, capacity: u64::MAX, syncs: true }
    }
}

#[derive(Clone, Debug, Default)]
struct FileState {
    /// What the disk has.
    durable: Vec<u8>,
    /// What a reader sees.
    current: Vec<u8>,
    /// Written since the last sync: offset and length in `current` order.
    pending: Vec<(usize, Vec<u8>)>,
}

#[derive(Clone, Debug)]
enum NameChange {
    Create(String, u64),
    Remove(String),
}

struct World {
    files: BTreeMap<u64, FileState>,
    names: BTreeMap<String, u64>,
    durable_names: BTreeMap<String, u64>,
    changes: Vec<NameChange>,
    next_file: u64,
    ops: u64,
    crashed_in: Option<String>,
    failed: bool,
    behaviour: Behaviour,
    watched: Option<Watched>,
}

/// A real directory whose owner does its own I/O: its states between our operations.
struct Watched {
    dir: PathBuf,
    /// Its state at the operation before the last change, and at which operation that was seen.
    before: Tree,
    now: Tree,
    changed_at: u64,
}

/// Files by path, relative, with their contents.
type Tree = BTreeMap<PathBuf, Vec<u8>>;

/// The disk.
#[derive(Clone)]
pub struct SimDisk {
    world: Arc<Mutex<World>>,
}

struct SimFile {
    world: Arc<Mutex<World>>,
    name: String,
    id: u64,
}

impl SimDisk {
    /// An empty disk.
    pub fn new(behaviour: Behaviour) -> Self {
        Self::with(BTreeMap::new(), BTreeMap::new(), behaviour)
    }

    fn with(files: BTreeMap<u64, FileState>, names: BTreeMap<String, u64>, behaviour: Behaviour) -> Self {
        let next_file = files.keys().max().map_or(1, |n| n + 1);
        let world = World {
            files,
            durable_names: names.clone(),
            names,
            changes: Vec::new(),
            next_file,
            ops: 0,
            crashed_in: None,
            failed: false,
            behaviour,
            watched: None,
        };
        Self { world: Arc::new(Mutex::new(world)) }
    }

    /// Watches a real directory, so that a crash can fall into the middle of what its owner did last.
    pub fn watch(&self, dir: &Path) {
        let now = read_tree(dir);
        let watched = Watched { dir: dir.to_owned(), before: now.clone(), now, changed_at: 0 };
        self.lock().watched = Some(watched);
    }

    /// Operations so far.
    pub fn ops(&self) -> u64 {
        self.lock().ops
    }

    /// What the power failed in the middle of: an operation and the kind of its file.
    pub fn crashed_in(&self) -> Option<String> {
        self.lock().crashed_in.clone()
    }

    /// Whether a sync was made to fail.
    pub fn failed_a_sync(&self) -> bool {
        self.lock().failed
    }

    /// Changes the capacity.
    pub fn set_capacity(&self, capacity: u64) {
        self.lock().behaviour.capacity = capacity;
    }

    /// What is left after the power failed: another disk. The watched directory is set back likewise; true when
    /// the crash fell into the middle of its owner's work.
    pub fn after_crash(&self, seed: u64, behaviour: Behaviour) -> (Self, bool) {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut world = self.lock();
        let mood: f64 = [0.0, 1.0, 0.5, 0.9, 0.1][rng.random_range(0..5)];
        let mut names = world.durable_names.clone();
        for change in std::mem::take(&mut world.changes) {
            if rng.random_bool(mood) {
                change.apply(&mut names);
            }
        }
        let mut files = BTreeMap::new();
        for id in names.values() {
            let file = &world.files[id];
            let mut durable = file.durable.clone();
            for (offset, bytes) in &file.pending {
                survive(&mut durable, *offset, bytes, mood, &mut rng);
            }
            files.insert(*id, FileState { current: durable.clone(), durable, pending: Vec::new() });
        }
        let ops = world.ops;
        let mut torn = false;
        if let Some(w) = &mut world.watched {
            w.look(ops);
            if w.changed_at == ops && rng.random_bool(0.7) {
                torn = true;
                w.tear(&mut rng);
            }
        }
        (Self::with(files, names, behaviour), torn)
    }

    /// Flips bits in what is durable; answers the kinds of files hit.
    pub fn flip_bits(&self, seed: u64, flips: usize, kind: &str) -> usize {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut world = self.lock();
        let ids: Vec<u64> = world.names.iter().filter(|(n, _)| n.starts_with(kind)).map(|(_, id)| *id).collect();
        let mut hit = 0;
        for _ in 0..flips {
            let Some(id) = ids.get(rng.random_range(0..ids.len().max(1))) else { return hit };
            let file = world.files.get_mut(id).expect("named files exist");
            if file.current.is_empty() {
                continue;
            }
            // Where something was written, not in the zeros behind it.
            let end = file.current.iter().rposition(|b| *b != 0).map_or(1, |e| e + 1);
            let at = rng.random_range(0..end);
            file.current[at] ^= 1 << rng.random_range(0..8);
            file.durable = file.current.clone();
            hit += 1;
        }
        hit
    }

    fn lock(&self) -> MutexGuard<'_, World> {
        self.world.lock().expect("no panic holds the world")
    }
}

/// What of an unsynced write is there after a crash: each page of it whole, cut at a sector, or not at all.
fn survive(durable: &mut Vec<u8>, offset: usize, bytes: &[u8], mood: f64, rng: &mut StdRng) {
    let mut at = 0;
    while at < bytes.len() {
        let end = ((offset + at) / PAGE * PAGE + PAGE - offset).min(bytes.len());
        if rng.random_bool(mood) {
            let mut page = &bytes[at..end];
            if mood < 1.0 && rng.random_bool(0.2) {
                page = &page[..rng.random_range(0..=page.len() / SECTOR) * SECTOR];
            }
            put(durable, offset + at, page);
        }
        at = end;
    }
}

fn put(into: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    if bytes.is_empty() {
        return;
    }
    if into.len() < offset + bytes.len() {
        into.resize(offset + bytes.len(), 0);
    }
    into[offset..offset + bytes.len()].copy_from_slice(bytes);
}

impl NameChange {
    fn apply(&self, names: &mut BTreeMap<String, u64>) {
        match self {
            NameChange::Create(name, id) => drop(names.insert(name.clone(), *id)),
            NameChange::Remove(name) => drop(names.remove(name)),
        }
    }
}

impl World {
    /// Counts an operation; an error once the power is off. `true` when it fails in this very operation.
    fn op(&mut self, what: &str, name: &str) -> io::Result<bool> {
        let gone = || io::Error::other("the power is off");
        if self.crashed_in.is_some() {
            return Err(gone());
        }
        self.ops += 1;
        let ops = self.ops;
        if let Some(w) = &mut self.watched {
            w.look(ops);
        }
        if self.behaviour.crash_at.is_some_and(|at| self.ops >= at) {
            self.crashed_in = Some(format!("{what} {}", name.split('-').next().unwrap_or("")));
            return Ok(true);
        }
        Ok(false)
    }

    fn used(&self) -> u64 {
        self.names.values().map(|id| self.files[id].current.len() as u64).sum()
    }
}

fn power_off<T>() -> io::Result<T> {
    Err(io::Error::other("the power failed"))
}

impl Disk for SimDisk {
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let world = self.lock();
        let id = *world.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(Arc::new(SimFile { world: self.world.clone(), name: name.to_owned(), id }))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let mut world = self.lock();
        let fails = world.op("create", name)?;
        let id = world.next_file;
        world.next_file += 1;
        world.files.insert(id, FileState::default());
        world.names.insert(name.to_owned(), id);
        world.changes.push(NameChange::Create(name.to_owned(), id));
        if fails {
            return power_off();
        }
        Ok(Arc::new(SimFile { world: self.world.clone(), name: name.to_owned(), id }))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut world = self.lock();
        let fails = world.op("remove", name)?;
        world.names.remove(name).ok_or(io::ErrorKind::NotFound)?;
        world.changes.push(NameChange::Remove(name.to_owned()));
        if fails { power_off() } else { Ok(()) }
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.lock().names.keys().cloned().collect())
    }

    fn sync_dir(&self) -> io::Result<()> {
        let mut world = self.lock();
        if world.op("sync", "dir")? {
            return power_off();
        }
        if world.behaviour.syncs {
            world.changes.clear();
            world.durable_names = world.names.clone();
        }
        Ok(())
    }

    fn free(&self) -> io::Result<u64> {
        let world = self.lock();
        Ok(world.behaviour.capacity.saturating_sub(world.used()))
    }
}

impl DiskFile for SimFile {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut world = self.world.lock().expect("no panic holds the world");
        let fails = world.op("write", &self.name)?;
        let offset = offset as usize;
        let grows = (offset + bytes.len()).saturating_sub(world.files[&self.id].current.len()) as u64;
        if grows > 0 && world.used() + grows > world.behaviour.capacity {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let file = world.files.get_mut(&self.id).expect("open files exist");
        put(&mut file.current, offset, bytes);
        file.pending.push((offset, bytes.to_vec()));
        if fails { power_off() } else { Ok(()) }
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let world = self.world.lock().expect("no panic holds the world");
        let current = &world.files[&self.id].current;
        let offset = offset as usize;
        let from = current.get(offset..offset + into.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        into.copy_from_slice(from);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut world = self.world.lock().expect("no panic holds the world");
        if world.op("sync", &self.name)? {
            return power_off();
        }
        let ops = world.ops;
        if world.behaviour.fail_sync_at.is_some_and(|at| ops >= at) {
            // The page cache goes on showing what it will never write: it thinks it is clean.
            world.behaviour.fail_sync_at = None;
            world.failed = true;
            world.files.get_mut(&self.id).expect("open files exist").pending.clear();
            return Err(io::Error::other("the device reports an error"));
        }
        if world.behaviour.syncs {
            let file = world.files.get_mut(&self.id).expect("open files exist");
            for (offset, bytes) in std::mem::take(&mut file.pending) {
                put(&mut file.durable, offset, &bytes);
            }
        }
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        let world = self.world.lock().expect("no panic holds the world");
        Ok(world.files[&self.id].current.len() as u64)
    }
}

fn read_tree(dir: &Path) -> Tree {
    let mut tree = Tree::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(d) = dirs.pop() {
        for entry in std::fs::read_dir(&d).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                dirs.push(path);
            } else if let Ok(bytes) = std::fs::read(&path) {
                let relative = path.strip_prefix(dir).expect("inside").to_owned();
                tree.insert(relative, bytes);
            }
        }
    }
    tree
}

/// Names and lengths: enough to see that a log-structured tree changed.
fn outline(dir: &Path) -> Vec<(PathBuf, u64)> {
    let mut out = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(d) = dirs.pop() {
        for entry in std::fs::read_dir(&d).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(t) if t.is_dir() => dirs.push(entry.path()),
                _ => out.push((
                    entry.path().strip_prefix(dir).expect("inside").to_owned(),
                    entry.metadata().map_or(0, |m| m.len()),
                )),
            }
        }
    }
    out.sort();
    out
}

impl Watched {
    fn look(&mut self, op: u64) {
        let seen = outline(&self.dir);
        let same = seen.len() == self.now.len()
            && seen.iter().zip(&self.now).all(|((p, n), (q, bytes))| p == q && *n == bytes.len() as u64);
        if !same {
            self.before = std::mem::replace(&mut self.now, read_tree(&self.dir));
            self.changed_at = op;
        }
    }

    /// Sets the directory back to before its last change, with what that change added cut and garbled.
    fn tear(&mut self, rng: &mut StdRng) {
        for (path, bytes) in &self.now {
            let at = self.dir.join(path);
            if self.before.contains_key(path) {
                continue;
            }
            let mut left = bytes[..rng.random_range(0..=bytes.len())].to_vec();
            if !left.is_empty() && rng.random_bool(0.5) {
                let i = rng.random_range(0..left.len());
                left[i] ^= 0x55;
            }
            if rng.random_bool(0.3) {
                std::fs::remove_file(at).expect("removes");
            } else {
                std::fs::write(at, left).expect("writes");
            }
        }
        for (path, bytes) in &self.before {
            let at = self.dir.join(path);
            std::fs::create_dir_all(at.parent().expect("has a parent")).expect("makes");
            std::fs::write(at, bytes).expect("writes");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_synced_bytes_and_names_are_sure_to_survive() {
        let mut seen = [0u32; 3];
        for seed in 0..200 {
            let disk = SimDisk::new(Behaviour::default());
            let a = disk.create("a").unwrap();
            a.write_at(0, &[1; 8192]).unwrap();
            a.sync().unwrap();
            disk.sync_dir().unwrap();
            a.write_at(4096, &[2; 8192]).unwrap();
            disk.create("b").unwrap();
            let (after, _) = disk.after_crash(seed, Behaviour::default());
            let mut page = [0; 4096];
            after.open("a").unwrap().read_at(0, &mut page).unwrap();
            assert_eq!(page, [1; 4096]);
            let mut second = [0; 4096];
            after.open("a").unwrap().read_at(4096, &mut second).unwrap();
            seen[0] += u32::from(second == [1; 4096]);
            seen[1] += u32::from(second == [2; 4096]);
            seen[2] += u32::from(after.open("b").is_ok());
        }
        assert!(seen.iter().all(|n| *n > 20 && *n < 180), "{seen:?}");
    }

    #[test]
    fn a_failed_sync_loses_what_the_cache_still_shows() {
        let disk = SimDisk::new(Behaviour { fail_sync_at: Some(1), ..Behaviour::default() });
        let a = disk.create("a").unwrap();
        disk.sync_dir().unwrap();
        a.write_at(0, &[1; 10]).unwrap();
        assert!(a.sync().is_err());
        a.sync().unwrap();
        assert_eq!(a.len().unwrap(), 10);
        let (after, _) = disk.after_crash(1, Behaviour::default());
        assert_eq!(after.open("a").unwrap().len().unwrap(), 0);
    }

    #[test]
    fn a_full_disk_refuses_to_grow() {
        let disk = SimDisk::new(Behaviour { capacity: 100, ..Behaviour::default() });
        let a = disk.create("a").unwrap();
        a.write_at(0, &[1; 100]).unwrap();
        assert_eq!(a.write_at(50, &[1; 51]).unwrap_err().kind(), io::ErrorKind::StorageFull);
        a.write_at(50, &[1; 50]).unwrap();
        assert_eq!(disk.free().unwrap(), 0);
    }
}
