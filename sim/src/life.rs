//! A world: a store on a simulated disk that lives, loses power at a random operation, and is opened again, many
//! times over; after each death it is held against the model.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use weft_core::{Clock, Timestamp};
use weft_store::conformance::block_on;
use weft_store::{Attempt, Batch, Config, Durability, Embedded, Error, Expect, OWN, Op, Store, Tuning, Version};

use crate::disk::{Behaviour, SimDisk};
use crate::model::Model;

/// Time that moves by a millisecond a look.
#[derive(Default)]
pub struct SimClock(AtomicU64);

impl Clock for SimClock {
    fn now(&self) -> Timestamp {
        Timestamp(1_700_000_000_000 + self.0.fetch_add(1, Ordering::Relaxed))
    }
}

/// What the disk of a world does besides losing power.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// Nothing.
    None,
    /// Now and then a sync fails.
    FailedSyncs,
    /// It is small.
    Full,
    /// Its syncs do nothing: the store cannot keep its promise, and the check must see that.
    LyingSyncs,
}

/// How many crashes fell where.
#[derive(Clone, Debug, Default)]
pub struct Census {
    /// By operation and kind of file.
    pub crashes: BTreeMap<String, u64>,
    /// In the middle of the key-value view's own work.
    pub torn_views: u64,
    /// Syncs made to fail.
    pub failed_syncs: u64,
    /// Batches refused because the disk was full.
    pub full: u64,
    /// Batches whose outcome was not answered and that were there, and that were not.
    pub survived: u64,
    /// Of these, those that were not.
    pub lost: u64,
}

impl Census {
    /// All crashes.
    pub fn total(&self) -> u64 {
        self.crashes.values().sum()
    }

    /// Crashes whose operation mentions something.
    pub fn of(&self, what: &str) -> u64 {
        self.crashes.iter().filter(|(k, _)| k.contains(what)).map(|(_, n)| n).sum()
    }

    /// Adds another census.
    pub fn add(&mut self, other: &Census) {
        for (k, n) in &other.crashes {
            *self.crashes.entry(k.clone()).or_default() += n;
        }
        self.torn_views += other.torn_views;
        self.failed_syncs += other.failed_syncs;
        self.full += other.full;
        self.survived += other.survived;
        self.lost += other.lost;
    }
}

/// Small sizes, so that a life of a hundred operations settles and recycles; no threads, so that a seed tells all.
pub fn tuning() -> Tuning {
    Tuning { segment_bytes: 48 << 10, keep_segments: 2, low_water: 0, background: false }
}

/// A directory for what the key-value view writes by itself: in memory where the machine has such a place.
pub fn scratch(name: &str) -> PathBuf {
    let base = PathBuf::from("/dev/shm");
    let base = if base.is_dir() { base } else { std::env::temp_dir() };
    base.join(format!("weft-sim-{}-{name}", std::process::id()))
}

/// Lives `lives` lives with one seed; the first broken promise is the error.
pub fn run(seed: u64, lives: u64, trouble: Trouble) -> Result<Census, String> {
    let dir = scratch(&format!("{seed}-{trouble:?}"));
    let outcome = World::new(seed, dir.clone(), trouble).run(lives);
    // A world that was never opened has no directory.
    let _ = std::fs::remove_dir_all(dir);
    outcome.map_err(|e| format!("seed {seed}, {trouble:?}: {e}"))
}

struct World {
    rng: StdRng,
    dir: PathBuf,
    clock: Arc<SimClock>,
    trouble: Trouble,
    model: Model,
    number: u64,
    census: Census,
    position: u64,
}

/// The batches of a life whose fate only the next opening tells, each with the state after it.
#[derive(Default)]
struct Open {
    models: Vec<Model>,
    /// How many of them are promised.
    promised: usize,
}

impl World {
    fn new(seed: u64, dir: PathBuf, trouble: Trouble) -> Self {
        let rng = StdRng::seed_from_u64(seed);
        let (model, census) = (Model::default(), Census::default());
        Self { rng, dir, clock: Arc::default(), trouble, model, number: 0, census, position: 0 }
    }

    fn behaviour(&mut self) -> Behaviour {
        // Some lives end while they begin, some are long.
        let most = [12, 60, 250][self.rng.random_range(0..3)];
        let mut b = Behaviour { crash_at: Some(self.rng.random_range(1..=most)), ..Behaviour::default() };
        match self.trouble {
            Trouble::None => {}
            Trouble::FailedSyncs => b.fail_sync_at = Some(self.rng.random_range(3..80)),
            Trouble::Full => b.capacity = self.rng.random_range(800_000..1_200_000),
            Trouble::LyingSyncs => b.syncs = false,
        }
        b
    }

    fn run(mut self, lives: u64) -> Result<Census, String> {
        let first = self.behaviour();
        let mut disk = SimDisk::new(first);
        std::fs::create_dir_all(self.dir.join("kv")).map_err(|e| e.to_string())?;
        let mut open = Open::default();
        for _ in 0..lives {
            disk.watch(&self.dir.join("kv"));
            self.live(&disk, &mut open)?;
            self.census.failed_syncs += u64::from(disk.failed_a_sync());
            let Some(place) = disk.crashed_in() else { return Err("a life did not end".into()) };
            *self.census.crashes.entry(place).or_default() += 1;
            let (seed, next) = (self.rng.random(), self.behaviour());
            let (after, torn) = disk.after_crash(seed, next);
            self.census.torn_views += u64::from(torn);
            disk = after;
        }
        Ok(self.census)
    }

    /// One life: opens, checks, works until the power fails.
    fn live(&mut self, disk: &SimDisk, open: &mut Open) -> Result<(), String> {
        let mut config = Config::new(&self.dir);
        config.disk = Some(Arc::new(disk.clone()));
        config.clock = self.clock.clone();
        config.tuning = tuning();
        if self.trouble == Trouble::Full {
            config.tuning.low_water = 250_000;
        }
        let store = match Embedded::open(config) {
            Ok(store) => store,
            // Died while opening, or its sync failed: as unsure as before.
            Err(_) if disk.crashed_in().is_some() => return Ok(()),
            Err(e) if disk.failed_a_sync() => {
                return if self.work_is_over(disk) { Ok(()) } else { Err(format!("does not open: {e}")) };
            }
            Err(e) => return Err(format!("does not open: {e}")),
        };
        if !store.report().damaged.is_empty() || !store.report().lost.is_empty() || !store.report().files.is_empty() {
            return Err(format!("reports damage where there is none: {:?}", store.report()));
        }
        self.check(&store, open)?;
        while disk.crashed_in().is_none() {
            self.work(&store, disk, open)?;
        }
        Ok(())
    }

    /// After a sync failed while opening, runs the disk into its crash point so that the next life can begin.
    fn work_is_over(&self, disk: &SimDisk) -> bool {
        use weft_store::disk::Disk;
        while disk.crashed_in().is_none() {
            if disk.sync_dir().is_err() {
                break;
            }
        }
        disk.crashed_in().is_some()
    }

    /// Finds out how far the store came, and holds it against the model of that moment.
    fn check(&mut self, store: &Embedded, open: &mut Open) -> Result<(), String> {
        let count = match block_on(store.get("meta", b"count")) {
            Ok(v) => v.map_or(0, |v| number(&v.bytes)),
            Err(e) => return Err(format!("reading the count: {e}")),
        };
        let states: Vec<&Model> = std::iter::once(&self.model).chain(&open.models).collect();
        let is = |m: &&Model| m.key("meta", "count").map_or(0, number) == count;
        let Some(reached) = states.iter().position(is) else {
            let known: Vec<u64> = states.iter().map(|m| m.key("meta", "count").map_or(0, number)).collect();
            return Err(format!("the store is at batch {count}, possible are {known:?}; {:?}", store.report()));
        };
        if reached < open.promised {
            let promised = states[open.promised].key("meta", "count").map_or(0, number);
            return Err(format!("batch {promised} was acknowledged, the store is at {count}; {:?}", store.report()));
        }
        if let Some(difference) = states[reached].differs(store, false) {
            return Err(format!("at batch {count}: {difference}"));
        }
        let position = *store.watch().borrow();
        if position < self.position {
            return Err(format!("position {} was published, now it is {position}", self.position));
        }
        self.census.survived += (reached - open.promised) as u64;
        self.census.lost += (open.models.len() - reached) as u64;
        if reached > 0 {
            self.model = open.models[reached - 1].clone();
        }
        *open = Open::default();
        Ok(())
    }

    /// Commits a few batches and notes what was promised.
    fn work(&mut self, store: &Embedded, disk: &SimDisk, open: &mut Open) -> Result<(), String> {
        // Of several, one could be refused and the next taken; here it matters to know which.
        let several = self.trouble != Trouble::Full && self.rng.random_bool(0.3);
        let count = if several { self.rng.random_range(2..6) } else { 1 };
        let mut batches = Vec::new();
        let before = open.models.len();
        for _ in 0..count {
            let latest = open.models.last().unwrap_or(&self.model).clone();
            let batch = self.batch(&latest);
            let mut next = latest;
            next.apply(&batch);
            open.models.push(next);
            batches.push(batch);
        }
        let strict: Vec<bool> = batches.iter().map(|b| b.durability == Durability::Strict).collect();
        let answers = match store.commit_all(batches) {
            Ok(answers) => answers,
            Err(e) => return self.refused(&e, store, disk, open, before),
        };
        for (i, answer) in answers.into_iter().enumerate() {
            match block_on(answer) {
                Ok(receipt) => {
                    if receipt.position <= self.position {
                        return Err(format!("position {} after {}", receipt.position, self.position));
                    }
                    if strict[i] {
                        self.position = receipt.position;
                        open.promised = before + i + 1;
                    }
                }
                Err(Error::Unknown { .. }) => return self.reopened(store, disk, open),
                Err(e) => return self.refused(&e, store, disk, open, before + i),
            }
        }
        Ok(())
    }

    /// A refusal says that nothing from this batch on took effect.
    fn refused(
        &mut self,
        e: &Error,
        store: &Embedded,
        disk: &SimDisk,
        open: &mut Open,
        keep: usize,
    ) -> Result<(), String> {
        match e {
            Error::DiskFull { .. } if self.trouble == Trouble::Full => {
                self.census.full += 1;
                // Batches behind a refused one may have been taken, so find out by looking.
                let taken = block_on(store.get("meta", b"count")).map_err(|e| e.to_string())?;
                let taken = taken.map_or(0, |v| number(&v.bytes));
                let at = |m: &Model| m.key("meta", "count").map_or(0, number) == taken;
                if !std::iter::once(&self.model).chain(&open.models[..keep]).any(at) {
                    return Err(format!("a refused batch took effect: {taken}"));
                }
                open.models.truncate(keep);
                self.make_room(store, disk, open)
            }
            Error::Unavailable { .. } if disk.crashed_in().is_some() || disk.failed_a_sync() => {
                self.reopened(store, disk, open)
            }
            e => Err(format!("a batch was refused: {e}")),
        }
    }

    /// A full disk still takes acknowledgements.
    fn make_room(&mut self, store: &Embedded, disk: &SimDisk, open: &mut Open) -> Result<(), String> {
        let mut batch = Batch::new();
        let latest = open.models.last().unwrap_or(&self.model).clone();
        for stream in STREAMS {
            let live = latest.live(stream);
            batch = batch.op(Op::Ack(stream.into(), OWN.into(), live));
        }
        self.number += 1;
        batch = batch.put("meta", "count", self.number.to_le_bytes().to_vec());
        let mut next = latest;
        next.apply(&batch);
        open.models.push(next);
        match block_on(store.commit(batch)) {
            Ok(receipt) => {
                self.position = receipt.position;
                open.promised = open.models.len();
                // Nothing but time and settling makes room now; the power fails first.
                Ok(())
            }
            Err(_) if disk.crashed_in().is_some() => Ok(()),
            Err(e) => Err(format!("an acknowledgement was refused: {e}")),
        }
    }

    /// After a failed sync the store opens itself again; what it then shows must be one of the possible states.
    fn reopened(&mut self, store: &Embedded, disk: &SimDisk, open: &mut Open) -> Result<(), String> {
        if disk.crashed_in().is_some() {
            return Ok(());
        }
        if !disk.failed_a_sync() {
            return Err("an outcome is unknown though nothing failed".into());
        }
        for _ in 0..2_000 {
            match store.health() {
                Ok(()) => return self.check(store, open),
                Err(_) if disk.crashed_in().is_some() => return Ok(()),
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
        Err("the store did not open again after a failed sync".into())
    }

    /// A random batch that holds on a state.
    fn batch(&mut self, state: &Model) -> Batch {
        self.number += 1;
        let rng = &mut self.rng;
        let mut batch = Batch::new();
        if rng.random_bool(0.2) {
            batch.durability = Durability::Relaxed;
        }
        let mut appended = 0;
        for _ in 0..rng.random_range(1..5) {
            let stream = STREAMS[rng.random_range(0..STREAMS.len())];
            let last = state.last(stream);
            let live = state.live(stream);
            batch = match rng.random_range(0..12) {
                0..=5 => {
                    let n = rng.random_range(1..4);
                    appended += n;
                    (0..n).fold(batch, |b, _| {
                        let len = if rng.random_bool(0.1) { 6_000 } else { rng.random_range(0..900) };
                        b.append(stream, payload(rng, len))
                    })
                }
                6 | 7 => {
                    // Most are consumed soon, some linger.
                    let keep = rng.random_range(1..8);
                    let old: Vec<u64> = live.iter().copied().filter(|q| q % keep != 0 || q + 40 < last).collect();
                    batch.op(Op::Ack(stream.into(), OWN.into(), old))
                }
                8 => batch.op(Op::CreateCursor(stream.into(), "c".into(), last / 2)),
                9 => {
                    let some = (0..rng.random_range(0..4)).map(|_| rng.random_range(0..=last + 1)).collect();
                    batch.op(Op::Ack(stream.into(), "c".into(), some))
                }
                10 => {
                    let attempt = Attempt { count: rng.random_range(1..9), not_before: Timestamp(self.number) };
                    batch.op(Op::Attempt(stream.into(), "c".into(), rng.random_range(1..=last + 1), attempt))
                }
                _ if rng.random_bool(0.3) => batch.op(Op::Trim(stream.into(), last.saturating_sub(30))),
                _ => batch.op(Op::DropCursor(stream.into(), "c".into())),
            };
        }
        for _ in 0..rng.random_range(0..3) {
            let key = format!("k{}", rng.random_range(0..12));
            let exists = state.key("a", &key).is_some();
            if rng.random_bool(0.5) {
                let version = if exists { Version::Exists } else { Version::Absent };
                batch = batch.expect(Expect::Key { space: "a", key: Bytes::from(key.clone()), version });
            }
            let value = payload(rng, 60);
            batch = if rng.random_bool(0.3) { batch.delete("a", key) } else { batch.put("a", key, value) };
        }
        if appended > 0 && rng.random_bool(0.3) {
            let last = state.last(STREAMS[0]);
            batch = batch.expect(Expect::Stream(STREAMS[0].into(), Version::Exactly(last)));
        }
        let count = self.number.to_le_bytes().to_vec();
        batch.append("log", count.clone()).put("meta", "count", count)
    }
}

const STREAMS: [&str; 3] = ["queue/a", "topic/b", "events/c"];

fn payload(rng: &mut StdRng, len: usize) -> Vec<u8> {
    let byte: u8 = rng.random();
    (0..len).map(|i| byte.wrapping_add(i as u8)).collect()
}

fn number(bytes: &Bytes) -> u64 {
    bytes[..].try_into().map_or(0, u64::from_le_bytes)
}
