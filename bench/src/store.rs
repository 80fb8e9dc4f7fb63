//! The embedded store under a queue's load: batches of appends, consumers that acknowledge half within a second
//! and the rest after ten segments (so that settling and recycling run), key puts in one batch of ten.
//!
//! A probe syncs one pre-written block at a time on the same disk during each case; the longest commit is held
//! against its longest sync.

use std::error::Error;
use std::fs;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use weft_store::conformance::block_on;
use weft_store::{Batch, Config, Embedded, OWN, Op, Store, Tuning};

const PAYLOAD: usize = 128;
const STREAMS: usize = 8;

/// One case: appends a group and the bar in appends a second.
struct Case {
    name: &'static str,
    appends: usize,
    bar: f64,
}

const CASES: [Case; 2] =
    [Case { name: "1000 x 128 B", appends: 1_000, bar: 1.5e6 }, Case { name: "64 x 128 B", appends: 64, bar: 250e3 }];

/// One measured figure and its bar.
struct Figure {
    case: &'static str,
    metric: &'static str,
    value: f64,
    unit: &'static str,
    /// The bar, and whether more is better.
    bar: Option<(f64, bool)>,
}

impl Figure {
    fn passes(&self) -> Option<bool> {
        self.bar.map(|(bar, more)| if more { self.value >= bar } else { self.value <= bar })
    }
}

/// Runs all cases and prints the figures.
pub fn run(json: Option<&Path>, dir: &Path, seconds: u64) -> Result<(), Box<dyn Error>> {
    let mut figures = Vec::new();
    for case in &CASES {
        let dir = dir.join(case.appends.to_string());
        // A run that was broken off may have left one.
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir)?;
        measure(case, &dir, Duration::from_secs(seconds), &mut figures)?;
        fs::remove_dir_all(&dir)?;
    }
    println!("{:<14} {:<30} {:>14} {:<8} {:>14}", "case", "metric", "value", "unit", "bar");
    for f in &figures {
        let bar = f.bar.map_or(String::new(), |(b, more)| format!("{} {b:.0}", if more { ">=" } else { "<=" }));
        let verdict = f.passes().map_or("", |p| if p { "pass" } else { "MISS" });
        println!("{:<14} {:<30} {:>14.2} {:<8} {bar:>14} {verdict}", f.case, f.metric, f.value, f.unit);
    }
    if let Some(path) = json {
        let mut out = fs::File::create(path)?;
        for f in &figures {
            let line = json!({
                "bench": "store", "case": f.case, "subject": "weft", "metric": f.metric, "unit": f.unit,
                "median": f.value, "min": f.value, "max": f.value, "rounds": 1, "pass": f.passes(),
            });
            writeln!(out, "{line}")?;
        }
    }
    Ok(())
}

/// Syncs a pre-written block over and over, slowly enough not to be the load; the longest sync.
fn probe(dir: &Path, stop: &AtomicBool) -> std::io::Result<Vec<Duration>> {
    let file = fs::File::create(dir.join("probe"))?;
    file.write_all_at(&vec![0; 4 << 20], 0)?;
    file.sync_all()?;
    let mut took = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let offset = (took.len() % 1024) as u64 * 4096;
        let start = Instant::now();
        file.write_all_at(&[took.len() as u8; 4096], offset)?;
        file.sync_data()?;
        took.push(start.elapsed());
        thread::sleep(Duration::from_millis(2));
    }
    took.sort_unstable();
    Ok(took)
}

/// What a producer waits to acknowledge.
struct Consumer {
    /// Sequences appended to a stream, with when and at how many bytes.
    soon: std::collections::VecDeque<(usize, u64, u64, Instant)>,
    late: std::collections::VecDeque<(usize, u64, u64, u64)>,
}

impl Consumer {
    /// Takes note of a run of appends: even sequences are acknowledged soon, odd ones late.
    fn appended(&mut self, stream: usize, first: u64, last: u64, bytes: u64) {
        self.soon.push_back((stream, first, last, Instant::now()));
        self.late.push_back((stream, first, last, bytes));
    }

    /// Adds what is due to a batch.
    fn due(&mut self, names: &[Arc<str>], bytes: u64, segment: u64, mut batch: Batch) -> Batch {
        for _ in 0..2 {
            if self.soon.front().is_some_and(|(.., at)| at.elapsed() > Duration::from_millis(500)) {
                let (stream, first, last, _) = self.soon.pop_front().expect("looked");
                let seqs = (first..=last).filter(|s| s % 2 == 0).collect();
                batch = batch.op(Op::Ack(names[stream].clone(), OWN.into(), seqs));
            }
            if self.late.front().is_some_and(|(.., at)| at + 10 * segment < bytes) {
                let (stream, first, last, _) = self.late.pop_front().expect("looked");
                batch = batch.op(Op::Ack(names[stream].clone(), OWN.into(), (first..=last).collect()));
            }
        }
        batch
    }
}

fn measure(case: &Case, dir: &Path, time: Duration, figures: &mut Vec<Figure>) -> Result<(), Box<dyn Error>> {
    let stop = Arc::new(AtomicBool::new(false));
    let prober = {
        let (dir, stop) = (dir.to_owned(), stop.clone());
        thread::spawn(move || probe(&dir, &stop))
    };
    let tuning = Tuning::default();
    let segment = tuning.segment_bytes;
    let store = Embedded::open(Config { tuning, ..Config::new(dir.join("store")) })?;
    let names: Vec<Arc<str>> = (0..STREAMS).map(|i| format!("queue/{i}").into()).collect();
    let payload = bytes::Bytes::from(vec![b'x'; PAYLOAD]);
    let mut consumer = Consumer { soon: Default::default(), late: Default::default() };
    let mut commits: Vec<Duration> = Vec::new();
    let (mut appended, mut bytes, mut refused) = (0u64, 0u64, 0u64);
    let start = Instant::now();
    let cpu = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    while start.elapsed() < time {
        let n = commits.len();
        let stream = n % STREAMS;
        let mut batch = Batch::new();
        batch.ops.reserve(case.appends + 8);
        for _ in 0..case.appends {
            batch = batch.op(Op::Append(names[stream].clone(), payload.clone()));
        }
        if n.is_multiple_of(10) {
            for k in 0..10 {
                batch = batch.put("bench", format!("key-{:06}", (n * 10 + k) % 100_000), payload.clone());
            }
        }
        batch = consumer.due(&names, bytes, segment, batch);
        let begun = Instant::now();
        let receipt = match block_on(store.commit(batch)) {
            Ok(receipt) => receipt,
            Err(weft_store::Error::Overloaded) => {
                refused += 1;
                thread::sleep(Duration::from_millis(1));
                continue;
            }
            Err(e) => return Err(e.into()),
        };
        commits.push(begun.elapsed());
        appended += case.appends as u64;
        bytes += (case.appends * (PAYLOAD + 2)) as u64;
        consumer.appended(stream, receipt.seqs[0], receipt.seqs[case.appends - 1], bytes);
    }
    let elapsed = start.elapsed();
    let cpu_after = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    stop.store(true, Ordering::Relaxed);
    let syncs = prober.join().map_err(|_| "the probe panicked")??;
    let stats = store.stats();
    drop(store);
    let settled = fs::read_dir(dir.join("store/journal"))?.flatten().count();
    let begun = Instant::now();
    let store = Embedded::open(Config::new(dir.join("store")))?;
    let reopened = begun.elapsed();
    let report = store.report().clone();
    drop(store);
    let used = |t: rustix::time::Timespec| t.tv_sec as f64 * 1e6 + t.tv_nsec as f64 / 1e3;
    commits.sort_unstable();
    let micros = |d: Duration| d.as_secs_f64() * 1e6;
    let at = |of: &[Duration], q: f64| of.get(((of.len() - 1) as f64 * q) as usize).copied().unwrap_or_default();
    let longest = micros(*syncs.last().ok_or("the probe never ran")?);
    let mut push = |metric, value, unit, bar| figures.push(Figure { case: case.name, metric, value, unit, bar });
    push("appends", appended as f64 / elapsed.as_secs_f64(), "/s", Some((case.bar, true)));
    push("batches per sync", stats.batches as f64 / stats.syncs as f64, "", None);
    push("commit p50", micros(at(&commits, 0.5)), "us", None);
    push("commit p99", micros(at(&commits, 0.99)), "us", None);
    push("longest commit", micros(at(&commits, 1.0)), "us", Some((10.0 * longest, false)));
    push("bare sync p50", micros(at(&syncs, 0.5)), "us", None);
    push("longest bare sync", longest, "us", None);
    push("CPU per append", (used(cpu_after) - used(cpu)) / appended as f64, "us", None);
    push("refused for lag", refused as f64, "", None);
    push("files in the journal", settled as f64, "", None);
    push("groups replayed", report.replayed as f64, "", None);
    push("reopen", reopened.as_secs_f64(), "s", Some((1.0, false)));
    Ok(())
}
