//! Commits as fast as it can until it is killed, and prints each acknowledged batch. The SIGKILL test runs it.

use std::io::Write;
use std::sync::Mutex;

use weft_store::conformance::block_on;
use weft_store::{Batch, Config, Embedded, OWN, Op, Store, Tuning};

fn main() {
    let dir = std::env::args().nth(1).expect("usage: hammer DIR");
    let mut config = Config::new(dir);
    config.tuning = Tuning { segment_bytes: 1 << 20, keep_segments: 2, ..Tuning::default() };
    let store = Embedded::open(config).expect("opens");
    let out = Mutex::new(std::io::stdout());
    std::thread::scope(|scope| {
        for t in 0..4 {
            let (store, out) = (&store, &out);
            scope.spawn(move || {
                let stream = format!("s{t}");
                let mut next = store.stream(&stream).map_or(1, |i| i.last + 1);
                loop {
                    let mut batch = Batch::new()
                        .append(stream.as_str(), format!("{next}:{}", "x".repeat((next % 2_000) as usize)))
                        .put("last", stream.clone(), next.to_string());
                    // Every third lingers long enough to be settled.
                    if next > 40 && (next - 40) % 3 != 0 {
                        batch = batch.op(Op::Ack(stream.as_str().into(), OWN.into(), vec![next - 40]));
                    }
                    if next > 3_000 {
                        batch = batch.op(Op::Ack(stream.as_str().into(), OWN.into(), vec![next - 3_000]));
                    }
                    let receipt = block_on(store.commit(batch)).expect("commits");
                    assert_eq!(receipt.seqs, [next]);
                    let mut out = out.lock().expect("no panic holds it");
                    writeln!(out, "{t} {next}").and_then(|()| out.flush()).expect("prints");
                    next += 1;
                }
            });
        }
    });
}
