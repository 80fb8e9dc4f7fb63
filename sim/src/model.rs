//! What a store with certain batches applied must show: plain maps, no cleverness.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use weft_store::conformance::block_on;
use weft_store::{Attempt, Batch, Cursor, OWN, Op, Store};

/// One stream.
#[derive(Clone, Debug, Default)]
struct Stream {
    last: u64,
    trimmed: u64,
    payloads: BTreeMap<u64, Bytes>,
    cursors: BTreeMap<String, Marks>,
}

/// One cursor: what it acknowledged, plainly.
#[derive(Clone, Debug, Default)]
struct Marks {
    acked: BTreeSet<u64>,
    attempts: BTreeMap<u64, Attempt>,
}

/// The state after a number of batches.
#[derive(Clone, Debug, Default)]
pub struct Model {
    streams: BTreeMap<String, Stream>,
    keys: BTreeMap<(&'static str, Bytes), Bytes>,
}

impl Model {
    /// Applies a batch.
    pub fn apply(&mut self, batch: &Batch) {
        for op in &batch.ops {
            match op {
                Op::Append(name, payload) => {
                    let s = self.streams.entry(name.to_string()).or_default();
                    s.last += 1;
                    s.payloads.insert(s.last, payload.clone());
                }
                Op::Ack(name, cursor, seqs) => {
                    let Some(s) = self.streams.get_mut(&**name) else { continue };
                    if &**cursor == OWN {
                        s.cursors.entry(OWN.into()).or_default();
                    }
                    let Some(c) = s.cursors.get_mut(&**cursor) else { continue };
                    for seq in seqs.iter().filter(|q| **q > 0 && **q <= s.last) {
                        c.acked.insert(*seq);
                        c.attempts.remove(seq);
                    }
                }
                Op::Attempt(name, cursor, seq, attempt) => {
                    let Some(s) = self.streams.get_mut(&**name) else { continue };
                    if *seq > s.last || *seq <= s.trimmed {
                        continue;
                    }
                    if &**cursor == OWN {
                        s.cursors.entry(OWN.into()).or_default();
                    }
                    if let Some(c) = s.cursors.get_mut(&**cursor)
                        && !c.acked.contains(seq)
                    {
                        c.attempts.insert(*seq, *attempt);
                    }
                }
                Op::CreateCursor(name, cursor, floor) => {
                    let s = self.streams.entry(name.to_string()).or_default();
                    let floor = (*floor).min(s.last).max(s.trimmed);
                    s.cursors
                        .entry(cursor.to_string())
                        .or_insert_with(|| Marks { acked: (1..=floor).collect(), ..Marks::default() });
                }
                Op::DropCursor(name, cursor) => {
                    if let Some(s) = self.streams.get_mut(&**name) {
                        s.cursors.remove(&**cursor);
                    }
                }
                Op::Trim(name, seq) => {
                    let Some(s) = self.streams.get_mut(&**name) else { continue };
                    s.trimmed = s.trimmed.max((*seq).min(s.last));
                    for c in s.cursors.values_mut() {
                        c.acked.extend(1..=s.trimmed);
                        c.attempts.retain(|q, _| *q > s.trimmed);
                    }
                }
                Op::Put { space, key, value } => drop(self.keys.insert((*space, key.clone()), value.clone())),
                Op::Delete { space, key } => drop(self.keys.remove(&(*space, key.clone()))),
            }
        }
    }

    /// The last sequence of a stream.
    pub fn last(&self, stream: &str) -> u64 {
        self.streams.get(stream).map_or(0, |s| s.last)
    }

    /// The live sequences of a stream.
    pub fn live(&self, stream: &str) -> Vec<u64> {
        self.streams.get(stream).map_or_else(Vec::new, |s| s.live().map(|(q, _)| q).collect())
    }

    /// The value of a key.
    pub fn key(&self, space: &'static str, key: &str) -> Option<&Bytes> {
        self.keys.get(&(space, Bytes::copy_from_slice(key.as_bytes())))
    }

    /// What a store shows that this does not, or the other way round. `damage` allows records and keys to read as
    /// damaged, but never as something else.
    pub fn differs(&self, store: &dyn Store, damage: bool) -> Option<String> {
        let names: Vec<String> = store.streams("").iter().map(|n| n.to_string()).collect();
        let expected: Vec<String> = self.streams.keys().cloned().collect();
        if names != expected && !damage {
            return Some(format!("streams {names:?} instead of {expected:?}"));
        }
        self.streams.iter().find_map(|(n, s)| s.differs(n, store, damage)).or_else(|| self.keys_differ(store, damage))
    }

    fn keys_differ(&self, store: &dyn Store, damage: bool) -> Option<String> {
        let spaces: BTreeSet<&'static str> = self.keys.keys().map(|(s, _)| *s).collect();
        for space in spaces {
            let expected: Vec<(Bytes, Bytes)> =
                self.keys.iter().filter(|((s, _), _)| *s == space).map(|((_, k), v)| (k.clone(), v.clone())).collect();
            match block_on(store.scan(space, b"", None, usize::MAX)) {
                Ok(found) => {
                    let found: Vec<(Bytes, Bytes)> = found.into_iter().map(|(k, v)| (k, v.bytes)).collect();
                    if found != expected && !damage {
                        let names = |of: &[(Bytes, Bytes)]| of.iter().map(|(k, _)| k.clone()).collect::<Vec<_>>();
                        return Some(format!("keys of {space}: {:?} for {:?}", names(&found), names(&expected)));
                    }
                }
                Err(e) if !damage => return Some(format!("scanning {space}: {e}")),
                Err(_) => {}
            }
            for (key, value) in &expected {
                match block_on(store.get(space, key)) {
                    Ok(Some(v)) if v.bytes == *value => {}
                    Err(_) if damage => {}
                    got if !damage => return Some(format!("key {key:?} of {space}: {got:?}")),
                    _ => {}
                }
            }
        }
        None
    }
}

impl Stream {
    fn live(&self) -> impl Iterator<Item = (u64, &Bytes)> {
        let own = self.cursors.get(OWN);
        let dead = move |q: u64| q <= self.trimmed || own.is_some_and(|c| c.acked.contains(&q));
        self.payloads.iter().filter(move |(q, _)| !dead(**q)).map(|(q, p)| (*q, p))
    }

    fn differs(&self, name: &str, store: &dyn Store, damage: bool) -> Option<String> {
        let Some(info) = store.stream(name) else {
            return (!damage).then(|| format!("stream {name} is missing"));
        };
        if (info.last, info.trimmed) != (self.last, self.trimmed) && !damage {
            return Some(format!("stream {name}: {info:?} instead of {} and {}", self.last, self.trimmed));
        }
        let cursors: Vec<String> = info.cursors.iter().map(|c| c.to_string()).collect();
        if cursors != self.cursors.keys().cloned().collect::<Vec<_>>() && !damage {
            return Some(format!("cursors of {name}: {cursors:?}"));
        }
        for (cursor, marks) in &self.cursors {
            let got = store.cursor(name, cursor);
            if got.as_ref() != Some(&marks.export()) && !damage {
                return Some(format!("cursor '{cursor}' of {name}: {got:?} instead of {:?}", marks.export()));
            }
        }
        let records = match block_on(store.read(name, 1, usize::MAX, usize::MAX)) {
            Ok(records) => records,
            Err(e) => return Some(format!("reading {name}: {e}")),
        };
        if damage {
            let wrong = |r: &&weft_store::Record| match &r.payload {
                Ok(p) => self.payloads.get(&r.seq) != Some(p),
                Err(_) => false,
            };
            return records.iter().find(wrong).map(|r| format!("record {} of {name} is not what was appended", r.seq));
        }
        let seqs: Vec<u64> = records.iter().map(|r| r.seq).collect();
        let expected: Vec<u64> = self.live().map(|(q, _)| q).collect();
        if seqs != expected {
            return Some(format!("records of {name}: {seqs:?} instead of {expected:?}"));
        }
        let wrong = records.iter().zip(self.live()).find(|(r, (_, p))| r.payload.as_ref() != Ok(*p));
        if let Some((r, (_, p))) = wrong {
            let got = r.payload.as_ref().map(Bytes::len);
            return Some(format!("record {} of {name}: {got:?} bytes instead of {}", r.seq, p.len()));
        }
        // A short read must agree with the long one.
        let from = expected.get(expected.len() / 2).copied().unwrap_or(1);
        let some = block_on(store.read(name, from, 3, 4_000)).ok()?;
        let same = some.iter().zip(records.iter().filter(|r| r.seq >= from)).all(|(a, b)| a == b);
        (!same).then(|| format!("a short read of {name} from {from} differs"))
    }
}

impl Marks {
    fn export(&self) -> Cursor {
        let mut c = Cursor { attempts: self.attempts.iter().map(|(q, a)| (*q, *a)).collect(), ..Cursor::default() };
        for q in &self.acked {
            if *q == c.floor + 1 && c.acked.is_empty() {
                c.floor = *q;
            } else {
                match c.acked.last_mut() {
                    Some((_, last)) if *last + 1 == *q => *last = *q,
                    _ => c.acked.push((*q, *q)),
                }
            }
        }
        c
    }
}
