//! Fifty kills of a real process under load. They keep the page cache, so alone they prove little.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use weft_store::conformance::block_on;
use weft_store::{Config, Embedded, Store, Tuning};

#[test]
fn what_was_acknowledged_survives_fifty_kills() {
    let dir = tempfile::tempdir().unwrap();
    let mut rng = StdRng::seed_from_u64(1);
    let mut acknowledged = [0u64; 4];
    let mut settled = false;
    for kill in 0..50 {
        let mut child =
            Command::new(env!("CARGO_BIN_EXE_hammer")).arg(dir.path()).stdout(Stdio::piped()).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        // Killed after a number of answers, not after a time, plus a little to hit any moment of a commit.
        let enough = rng.random_range(1..400);
        let mut lines = out.lines();
        for line in lines.by_ref().take(enough) {
            note(&mut acknowledged, &line.unwrap());
        }
        std::thread::sleep(Duration::from_micros(rng.random_range(0..2_000)));
        child.kill().unwrap();
        child.wait().unwrap();
        for line in lines.map_while(Result::ok) {
            note(&mut acknowledged, &line);
        }
        let mut config = Config::new(dir.path());
        config.tuning = Tuning { segment_bytes: 1 << 20, keep_segments: 2, ..Tuning::default() };
        let store = Embedded::open(config).unwrap();
        assert!(store.report().damaged.is_empty() && store.report().lost.is_empty(), "{:?}", store.report());
        for (t, last) in acknowledged.iter().enumerate() {
            check(&store, &format!("s{t}"), *last, kill);
        }
        drop(store);
        let names = std::fs::read_dir(dir.path().join("journal")).unwrap();
        settled |= names.flatten().any(|e| e.file_name().to_string_lossy().starts_with("set-"));
    }
    assert!(acknowledged.iter().sum::<u64>() > 2_000, "{acknowledged:?}");
    assert!(settled, "no kill fell where settled files were");
}

fn note(acknowledged: &mut [u64; 4], line: &str) {
    // The kill may have cut the last line.
    let Some((t, n)) = line.split_once(' ') else { return };
    if let (Ok(t), Ok(n)) = (t.parse::<usize>(), n.parse::<u64>()) {
        acknowledged[t] = acknowledged[t].max(n);
    }
}

fn check(store: &Embedded, stream: &str, acknowledged: u64, kill: u32) {
    let last = store.stream(stream).map_or(0, |i| i.last);
    assert!(last >= acknowledged, "kill {kill}: {stream} is at {last}, {acknowledged} was acknowledged");
    if last == 0 {
        return;
    }
    // One batch wrote both.
    let key = block_on(store.get("last", stream.as_bytes())).unwrap().expect("the key is there");
    assert_eq!(key.bytes, last.to_string(), "kill {kill}");
    let records = block_on(store.read(stream, 1, usize::MAX, usize::MAX)).unwrap();
    let expected = (1..=last).filter(|n| {
        let settled = (n + 40 <= last && n % 3 != 0) || n + 3_000 <= last;
        !settled
    });
    let found: Vec<u64> = records.iter().map(|r| r.seq).collect();
    assert_eq!(found, expected.collect::<Vec<_>>(), "kill {kill}: {stream}");
    for r in &records {
        let payload = r.payload.as_ref().expect("undamaged");
        let text = std::str::from_utf8(payload).unwrap();
        let (n, rest) = text.split_once(':').unwrap();
        assert_eq!((n.parse::<u64>().unwrap(), rest.len() as u64), (r.seq, r.seq % 2_000));
    }
}
