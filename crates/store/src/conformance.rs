//! What every [`Store`] must do, whatever it is built on. An implementation's tests call [`all`] with a way to open
//! a fresh, empty store and a way to stop and open it again.

use std::future::Future;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;

use bytes::Bytes;
use weft_core::Timestamp;
use weft_core::limits::BATCH_BYTES;

use crate::{Attempt, Batch, Cursor, Error, Expect, OWN, Op, Receipt, Store, Version};

/// A store under test, and how to stop it and open it again.
pub trait Subject {
    /// The open store.
    fn store(&self) -> Arc<dyn Store>;
    /// Stops it without an orderly close and opens it again; nobody holds what [`Subject::store`] gave.
    fn reopen(&mut self);
}

/// Runs a future on this thread, without a runtime.
pub fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut future = std::pin::pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(out) => return out,
            Poll::Pending => std::thread::park(),
        }
    }
}

/// Runs every check, each on a fresh store.
pub fn all(mut fresh: impl FnMut() -> Box<dyn Subject>) {
    let checks: [fn(&mut dyn Subject); 13] = [
        appends_get_dense_sequences_and_increasing_positions,
        reads_answer_live_records_within_their_bounds,
        a_batch_takes_effect_whole_or_not_at_all,
        stream_preconditions_hold_against_what_is_pending,
        key_preconditions_follow_versions,
        acknowledged_records_are_gone_under_the_own_cursor_only,
        cursors_keep_floor_sparse_set_and_attempts,
        trims_remove_and_lift_floors,
        keys_are_put_deleted_and_scanned_in_order,
        the_watch_follows_the_published_position,
        bounds_are_enforced,
        everything_survives_a_stop,
        a_closed_store_refuses,
    ];
    for check in checks {
        check(&mut *fresh());
    }
}

fn commit(s: &dyn Store, batch: Batch) -> Receipt {
    block_on(s.commit(batch)).expect("the batch commits")
}

fn payloads(s: &dyn Store, stream: &str, from: u64) -> Vec<(u64, String)> {
    let records = block_on(s.read(stream, from, usize::MAX, usize::MAX)).expect("reads");
    let text = |b: Bytes| String::from_utf8_lossy(&b).into_owned();
    records.into_iter().map(|r| (r.seq, text(r.payload.expect("undamaged")))).collect()
}

fn pairs(of: &[(u64, &str)]) -> Vec<(u64, String)> {
    of.iter().map(|(s, p)| (*s, (*p).to_owned())).collect()
}

fn appends_get_dense_sequences_and_increasing_positions(subject: &mut dyn Subject) {
    let s = subject.store();
    assert_eq!(s.stream("a"), None);
    let one = commit(&*s, Batch::new().append("a", "1").append("b", "x").append("a", "2"));
    assert_eq!(one.seqs, [1, 1, 2]);
    let two = commit(&*s, Batch::new().append("a", "3"));
    assert_eq!(two.seqs, [3]);
    assert!(one.position > 0 && two.position > one.position && two.time >= one.time);
    assert_eq!(s.stream("a").map(|i| i.last), Some(3));
    assert_eq!(payloads(&*s, "a", 1), pairs(&[(1, "1"), (2, "2"), (3, "3")]));
    let records = block_on(s.read("a", 2, 9, 9)).expect("reads");
    assert_eq!((records[0].position, records[0].time), (one.position, one.time));
    let names: Vec<String> = s.streams("").iter().map(|n| n.to_string()).collect();
    assert_eq!(names, ["a", "b"]);
    assert_eq!(s.streams("b").len(), 1);
    assert!(s.streams("c").is_empty());
}

fn reads_answer_live_records_within_their_bounds(subject: &mut dyn Subject) {
    let s = subject.store();
    for i in 0..20 {
        commit(&*s, Batch::new().append("a", format!("{i:010}")));
    }
    let read = |from, max, bytes| {
        let records = block_on(s.read("a", from, max, bytes)).expect("reads");
        records.iter().map(|r| r.seq).collect::<Vec<_>>()
    };
    assert_eq!(read(1, 3, usize::MAX), [1, 2, 3]);
    assert_eq!(read(19, 9, usize::MAX), [19, 20]);
    assert_eq!(read(5, 9, 1), [5]);
    assert_eq!(read(5, 9, 35), [5, 6, 7]);
    assert!(read(21, 9, 99).is_empty());
    assert!(read(1, 0, 99).is_empty());
    assert!(block_on(s.read("none", 1, 9, 9)).expect("reads").is_empty());
}

fn a_batch_takes_effect_whole_or_not_at_all(subject: &mut dyn Subject) {
    let s = subject.store();
    commit(&*s, Batch::new().append("a", "1"));
    let batch = Batch::new()
        .append("a", "2")
        .put("k", "x", "y")
        .expect(Expect::Stream("a".into(), Version::Exists))
        .expect(Expect::Stream("b".into(), Version::Exists));
    let Err(Error::Precondition { index: 1, actual: 0, what }) = block_on(s.commit(batch)) else {
        panic!("a precondition that does not hold was accepted")
    };
    assert!(what.contains('b'), "{what}");
    assert_eq!(s.stream("a").map(|i| i.last), Some(1));
    assert_eq!(block_on(s.get("k", b"x")).expect("gets"), None);
}

fn stream_preconditions_hold_against_what_is_pending(subject: &mut dyn Subject) {
    let s = subject.store();
    let at = |v| Expect::Stream("a".into(), v);
    // Submitted without waiting: each is checked against those before it.
    let first = s.commit(Batch::new().expect(at(Version::Absent)).append("a", "1"));
    let second = s.commit(Batch::new().expect(at(Version::Exactly(1))).append("a", "2"));
    let late = s.commit(Batch::new().expect(at(Version::Exactly(1))).append("a", "3"));
    let absent = s.commit(Batch::new().expect(at(Version::Absent)));
    assert_eq!(block_on(first).expect("holds").seqs, [1]);
    assert_eq!(block_on(second).expect("holds").seqs, [2]);
    assert!(matches!(block_on(late), Err(Error::Precondition { index: 0, actual: 2, .. })));
    // A refusal waits for what it depended on: that is published by now.
    assert_eq!(payloads(&*s, "a", 1), pairs(&[(1, "1"), (2, "2")]));
    assert!(matches!(block_on(absent), Err(Error::Precondition { actual: 2, .. })));
}

fn key_preconditions_follow_versions(subject: &mut dyn Subject) {
    let s = subject.store();
    let at = |v| Expect::Key { space: "k", key: Bytes::from_static(b"x"), version: v };
    let first = s.commit(Batch::new().expect(at(Version::Absent)).put("k", "x", "1"));
    let twice = s.commit(Batch::new().expect(at(Version::Absent)).put("k", "x", "2"));
    let v1 = block_on(first).expect("absent").position;
    assert!(matches!(block_on(twice), Err(Error::Precondition { actual, .. }) if actual == v1));
    assert_eq!(block_on(s.get("k", b"x")).expect("gets").expect("is there").version, v1);
    let v2 = commit(&*s, Batch::new().expect(at(Version::Exactly(v1))).put("k", "x", "2")).position;
    assert!(block_on(s.commit(Batch::new().expect(at(Version::Exactly(v1))).delete("k", "x"))).is_err());
    drop(s);
    subject.reopen();
    let s = subject.store();
    commit(&*s, Batch::new().expect(at(Version::Exactly(v2))).delete("k", "x"));
    assert!(matches!(
        block_on(s.commit(Batch::new().expect(at(Version::Exists)))),
        Err(Error::Precondition { actual: 0, .. })
    ));
    commit(&*s, Batch::new().expect(at(Version::Absent)));
}

fn acknowledged_records_are_gone_under_the_own_cursor_only(subject: &mut dyn Subject) {
    let s = subject.store();
    commit(&*s, Batch::new().append("q", "1").append("q", "2").append("q", "3").append("q", "4"));
    let other = Batch::new().op(Op::CreateCursor("q".into(), "c".into(), 0));
    commit(&*s, other.op(Op::Ack("q".into(), "c".into(), vec![1, 2])));
    assert_eq!(payloads(&*s, "q", 1).len(), 4);
    commit(&*s, Batch::new().op(Op::Ack("q".into(), OWN.into(), vec![1, 3])));
    commit(&*s, Batch::new().op(Op::Ack("q".into(), OWN.into(), vec![3, 99])));
    assert_eq!(payloads(&*s, "q", 1), pairs(&[(2, "2"), (4, "4")]));
    assert_eq!(s.cursor("q", OWN), Some(Cursor { floor: 1, acked: vec![(3, 3)], attempts: vec![] }));
    let cursors: Vec<String> = s.stream("q").expect("is there").cursors.iter().map(|c| c.to_string()).collect();
    assert_eq!(cursors, ["", "c"]);
    // The acknowledgement of a record that was not there does not hold for the one that comes.
    commit(&*s, Batch::new().append("q", "5"));
    assert_eq!(payloads(&*s, "q", 5), pairs(&[(5, "5")]));
}

fn cursors_keep_floor_sparse_set_and_attempts(subject: &mut dyn Subject) {
    let s = subject.store();
    let (q, c): (Arc<str>, Arc<str>) = ("q".into(), "c".into());
    assert_eq!(s.cursor("q", "c"), None);
    let mut batch = Batch::new();
    for i in 0..10 {
        batch = batch.append(q.clone(), format!("{i}"));
    }
    commit(&*s, batch.op(Op::CreateCursor(q.clone(), c.clone(), 2)));
    commit(&*s, Batch::new().op(Op::CreateCursor(q.clone(), c.clone(), 9)));
    assert_eq!(s.cursor("q", "c").map(|c| c.floor), Some(2));
    let tried = Attempt { count: 2, not_before: Timestamp(77) };
    let ops =
        Batch::new().op(Op::Attempt(q.clone(), c.clone(), 4, tried)).op(Op::Attempt(q.clone(), c.clone(), 5, tried));
    commit(&*s, ops);
    commit(&*s, Batch::new().op(Op::Ack(q.clone(), c.clone(), vec![6, 4, 8, 7])));
    let expected = Cursor { floor: 2, acked: vec![(4, 4), (6, 8)], attempts: vec![(5, tried)] };
    assert_eq!(s.cursor("q", "c"), Some(expected.clone()));
    drop(s);
    subject.reopen();
    let s = subject.store();
    assert_eq!(s.cursor("q", "c"), Some(expected));
    commit(&*s, Batch::new().op(Op::Ack(q.clone(), c.clone(), vec![3, 5])));
    assert_eq!(s.cursor("q", "c"), Some(Cursor { floor: 8, ..Cursor::default() }));
    commit(&*s, Batch::new().op(Op::DropCursor(q.clone(), c.clone())));
    assert_eq!(s.cursor("q", "c"), None);
}

fn trims_remove_and_lift_floors(subject: &mut dyn Subject) {
    let s = subject.store();
    for i in 1..=6 {
        commit(&*s, Batch::new().append("t", format!("{i}")));
    }
    commit(&*s, Batch::new().op(Op::CreateCursor("t".into(), "c".into(), 1)));
    commit(&*s, Batch::new().op(Op::Trim("t".into(), 4)));
    assert_eq!(payloads(&*s, "t", 1), pairs(&[(5, "5"), (6, "6")]));
    assert_eq!(s.stream("t").map(|i| (i.last, i.trimmed)), Some((6, 4)));
    assert_eq!(s.cursor("t", "c").map(|c| c.floor), Some(4));
    commit(&*s, Batch::new().op(Op::Trim("t".into(), 99)));
    assert!(payloads(&*s, "t", 1).is_empty());
    assert_eq!(commit(&*s, Batch::new().append("t", "7")).seqs, [7]);
    assert_eq!(payloads(&*s, "t", 1), pairs(&[(7, "7")]));
}

fn keys_are_put_deleted_and_scanned_in_order(subject: &mut dyn Subject) {
    let s = subject.store();
    let mut batch = Batch::new().put("other", "a1", "no");
    for k in ["b", "a3", "a1", "a2", "c"] {
        batch = batch.put("k", k, format!("<{k}>"));
    }
    let at = commit(&*s, batch.put("k", "a2", "last wins")).position;
    commit(&*s, Batch::new().delete("k", "a3").delete("k", "none"));
    let scan = |prefix: &str, after: Option<&str>, max| {
        let found = block_on(s.scan("k", prefix.as_bytes(), after.map(str::as_bytes), max)).expect("scans");
        let text = |b: &Bytes| String::from_utf8_lossy(b).into_owned();
        found.iter().map(|(k, v)| format!("{}={}", text(k), text(&v.bytes))).collect::<Vec<_>>()
    };
    assert_eq!(scan("a", None, 9), ["a1=<a1>", "a2=last wins"]);
    assert_eq!(scan("", None, 9), ["a1=<a1>", "a2=last wins", "b=<b>", "c=<c>"]);
    assert_eq!(scan("", Some("a2"), 1), ["b=<b>"]);
    assert_eq!(scan("a", Some("a1"), 9), ["a2=last wins"]);
    assert!(scan("a", Some("b"), 9).is_empty());
    let got = block_on(s.get("k", b"a2")).expect("gets").expect("is there");
    assert_eq!((got.version, &got.bytes[..]), (at, &b"last wins"[..]));
    assert_eq!(block_on(s.get("k", b"a3")).expect("gets"), None);
    assert_eq!(block_on(s.get("none", b"a3")).expect("gets"), None);
}

fn the_watch_follows_the_published_position(subject: &mut dyn Subject) {
    let s = subject.store();
    let mut watch = s.watch();
    watch.mark_unchanged();
    let at = commit(&*s, Batch::new().append("a", "1")).position;
    assert!(watch.has_changed().expect("the store is open"));
    assert_eq!(*watch.borrow_and_update(), at);
    let relaxed = Batch { durability: crate::Durability::Relaxed, ..Batch::new().append("a", "2") };
    let at = commit(&*s, relaxed).position;
    assert_eq!(*watch.borrow_and_update(), at);
    assert_eq!(payloads(&*s, "a", 2), pairs(&[(2, "2")]));
}

fn bounds_are_enforced(subject: &mut dyn Subject) {
    let s = subject.store();
    let big = Batch::new().append("a", vec![0u8; BATCH_BYTES]).append("a", "1");
    assert!(matches!(block_on(s.commit(big)), Err(Error::TooLarge { .. })));
    let name = "n".repeat(weft_core::limits::STREAM_NAME_BYTES + 1);
    assert!(matches!(block_on(s.commit(Batch::new().append(name, "1"))), Err(Error::TooLarge { .. })));
    let most = commit(&*s, Batch::new().append("a", vec![7u8; BATCH_BYTES]));
    assert_eq!(most.seqs, [1]);
    assert_eq!(block_on(s.read("a", 1, 9, 9)).expect("reads")[0].payload.as_ref().map(|p| p.len()), Ok(BATCH_BYTES));
}

fn everything_survives_a_stop(subject: &mut dyn Subject) {
    let s = subject.store();
    let before = commit(&*s, Batch::new().append("a", "1").put("k", "x", "y"));
    drop(s);
    for i in 2..5u64 {
        subject.reopen();
        let s = subject.store();
        assert!(*s.watch().borrow() >= before.position);
        assert_eq!(payloads(&*s, "a", 1).len() as u64, i - 1);
        let after = commit(&*s, Batch::new().append("a", format!("{i}")));
        assert_eq!(after.seqs, [i]);
        assert!(after.position > before.position && after.time >= before.time);
        assert_eq!(block_on(s.get("k", b"x")).expect("gets").map(|v| v.version), Some(before.position));
    }
}

fn a_closed_store_refuses(subject: &mut dyn Subject) {
    let s = subject.store();
    commit(&*s, Batch::new().append("a", "1"));
    assert!(s.health().is_ok());
    block_on(s.close()).expect("closes");
    assert!(matches!(s.health(), Err(Error::Unavailable { .. })));
    assert!(matches!(block_on(s.commit(Batch::new().append("a", "2"))), Err(Error::Unavailable { .. })));
    assert!(block_on(s.close()).is_err());
    drop(s);
    subject.reopen();
    assert_eq!(payloads(&*subject.store(), "a", 1), pairs(&[(1, "1")]));
}
