//! The writer: one thread that checks preconditions, forms groups, writes, syncs, publishes and answers.
//!
//! Everything that arrives while one sync runs goes into the next group. The writer never reads disk while it
//! serves. A failed write or sync poisons what is open: its batches are answered *unknown* and the store is
//! opened again through recovery; a second failure in a row closes it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rand::Rng;
use weft_core::limits::{GROUP_BYTES, SEGMENT_BYTES};
use weft_core::{Clock, Timestamp};

use crate::disk::{Disk, DiskFile};
use crate::embedded::{Health, Shared};
use crate::entry::Encoded;
use crate::group::{BLOCK, CLEAN_CLOSE, Group, GroupHeader, SegmentHeader};
use crate::pending::{Pending, Verdict};
use crate::queue::{Answer, Reply, Submission, Work};
use crate::recover::{self, Step, io, segment_name};
use crate::views::Views;
use crate::{Durability, Error, Position, Receipt, Result};

/// Positions skipped at an opening that was not preceded by an orderly close, so that none that was published
/// without a sync is given out twice.
const POSITION_GAP: u64 = 1 << 20;
/// How long a relaxed batch waits for a strict one to share its sync.
const RELAXED_SYNC: Duration = Duration::from_millis(20);

/// The segment being written.
struct Tail {
    file: Arc<dyn DiskFile>,
    id: u32,
    header: SegmentHeader,
    offset: u64,
}

/// The writer's state while the store is open.
pub(crate) struct Writer {
    shared: Arc<Shared>,
    disk: Arc<dyn Disk>,
    clock: Arc<dyn Clock>,
    pending: Pending,
    tail: Tail,
    epoch: u64,
    sequence: u64,
    durable: u64,
    chain: u64,
    next: Position,
    time: Timestamp,
}

/// An accepted batch waiting for its group.
struct Accepted {
    reply: Reply,
    position: Position,
    firsts: Vec<u64>,
}

impl Writer {
    /// Recovers the journal, publishes what it holds, and opens a fresh segment behind it.
    pub(crate) fn open(shared: Arc<Shared>, disk: Arc<dyn Disk>, clock: Arc<dyn Clock>) -> Result<Self> {
        let (found, blank) = recover::segments(&*disk)?;
        let mut candidates = Vec::new();
        for segment in &found {
            candidates.extend(recover::scan(&*disk, segment)?);
        }
        let steps = recover::order(candidates, 0, 0, 1);
        let clean = recover::ends_clean(&steps);
        let durable = steps
            .iter()
            .filter_map(|s| if let Step::Group(c) = s { Some(c.header.durable) } else { None })
            .max()
            .unwrap_or(0);
        let mut views = Views::default();
        let mut last: Option<GroupHeader> = None;
        let mut tail_groups = Vec::new();
        for step in &steps {
            let c = match step {
                Step::Group(c) => c,
                Step::Lost { sequence, from, to } => {
                    tracing::error!(sequence, from, to, "the journal is damaged: positions are lost");
                    continue;
                }
            };
            let group = recover::load(&*disk, c)?;
            let unproven = c.header.sequence > durable;
            let whole = group.as_ref().is_some_and(|g| g.damaged.is_empty());
            if unproven && !whole && !clean {
                tracing::warn!(sequence = c.header.sequence, bytes = c.header.disk_len(), "a torn tail was cut");
                break;
            }
            last = Some(c.header);
            let Some(group) = group else {
                let (from, to) = (c.header.base, c.header.end());
                tracing::error!(from, to, "a group's directory is damaged: positions are lost");
                continue;
            };
            if !group.damaged.is_empty() {
                tracing::error!(base = c.header.base, batches = ?group.damaged, "damaged batches were set aside");
            }
            if unproven {
                tail_groups.push(group.clone());
            }
            views.apply(group);
        }
        let generation = found.last().map_or(0, |f| f.header.generation) + 1;
        let epoch = found.iter().map(|f| f.header.epoch).max().unwrap_or(0) + 1;
        let id = found.iter().map(|f| f.id).chain(blank).max().unwrap_or(0) + 1;
        let tail = Tail::create(&*disk, id, generation, epoch)?;
        let gap = if clean || last.is_none() { 0 } else { POSITION_GAP };
        let mut writer = Self {
            pending: Pending::new(views.streams.lasts(), views.position),
            tail,
            epoch,
            sequence: last.map_or(0, |h| h.sequence),
            durable,
            chain: last.map_or(0, |h| h.chain()),
            next: last.map_or(1, |h| h.end() + gap),
            time: last.map_or(Timestamp(0), |h| h.time),
            shared,
            disk,
            clock,
        };
        for group in &tail_groups {
            writer.copy(group)?;
        }
        writer.tail.file.sync().map_err(io("syncing the journal"))?;
        writer.disk.sync_dir().map_err(io("syncing the directory"))?;
        writer.durable = writer.sequence;
        let position = views.position;
        *writer.shared.views.write() = views;
        writer.shared.published.send_replace(position);
        Ok(writer)
    }

    /// Serves until the last handle is gone or the store is closed (`Ok`), or a write or sync fails.
    pub(crate) fn serve(&mut self) -> Result<()> {
        let mut work = Vec::new();
        loop {
            let patience = (self.durable < self.sequence).then_some(RELAXED_SYNC);
            if self.shared.queue.take(GROUP_BYTES, patience, &mut work).is_none() {
                return self.sync();
            }
            if work.is_empty() {
                self.sync()?;
                continue;
            }
            let mut close = None;
            let mut commits = Vec::with_capacity(work.len());
            for w in work.drain(..) {
                match w {
                    Work::Commit(s, reply) => commits.push((s, reply)),
                    Work::Close(reply) => close = Some(reply),
                }
            }
            self.group(commits)?;
            self.shared.health.recovered();
            if let Some(reply) = close {
                let closed = self.close();
                let _ = reply.send(closed.clone());
                return closed;
            }
        }
    }

    /// Checks, writes, syncs, publishes and answers one group.
    fn group(&mut self, commits: Vec<(Submission, Reply)>) -> Result<()> {
        let mut batches: Vec<Encoded> = Vec::with_capacity(commits.len());
        let mut accepted: Vec<Accepted> = Vec::with_capacity(commits.len());
        // Refusals depend on what is pending, so they wait for this group as well.
        let mut refused = Vec::new();
        let mut strict = false;
        for (mut s, reply) in commits {
            match self.pending.check(&s.expect, &s.reads) {
                Verdict::Holds => {}
                Verdict::Fails(e) => {
                    strict |= s.durability == Durability::Strict;
                    refused.push((reply, Err(e)));
                    continue;
                }
                Verdict::Stale => {
                    refused.push((reply, Ok(Answer::Stale(Box::new(s)))));
                    continue;
                }
            }
            strict |= s.durability == Durability::Strict;
            let position = self.next + batches.len() as u64;
            let mut firsts = Vec::with_capacity(s.batch.runs.len());
            for run in 0..s.batch.runs.len() {
                let first = self.pending.advance(&s.batch.runs[run].stream, s.batch.runs[run].count);
                s.batch.place(run, first);
                firsts.push(first);
            }
            self.pending.changed(s.keys, position);
            accepted.push(Accepted { reply, position, firsts });
            batches.push(s.batch);
        }
        let outcome = self.write_group(&batches, strict);
        if let Err(e) = outcome {
            let unknown = Error::Unknown { reason: e.to_string() };
            for (reply, error) in accepted
                .into_iter()
                .map(|a| a.reply)
                .chain(refused.into_iter().map(|(r, _)| r))
                .zip(std::iter::repeat(unknown))
            {
                let _ = reply.send(Err(error));
            }
            return Err(e);
        }
        let time = self.time;
        for (a, batch) in accepted.into_iter().zip(batches) {
            let _ = a.reply.send(Ok(Answer::Done { position: a.position, time, firsts: a.firsts, batch }));
        }
        for (reply, answer) in refused {
            let _ = reply.send(answer);
        }
        Ok(())
    }

    fn write_group(&mut self, batches: &[Encoded], strict: bool) -> Result<()> {
        let group = if batches.is_empty() { None } else { Some(self.append(batches, 0)?) };
        if strict {
            self.sync()?;
        }
        if let Some(group) = group {
            let position = group.header.end() - 1;
            self.shared.views.write().apply(group);
            self.shared.published.send_replace(position);
        }
        Ok(())
    }

    /// Writes a group behind the others, without a sync.
    fn append(&mut self, batches: &[Encoded], flags: u16) -> Result<Arc<Group>> {
        self.time = self.time.max(self.clock.now());
        let header = GroupHeader {
            flags,
            generation: self.tail.header.generation,
            epoch: self.epoch,
            sequence: self.sequence + 1,
            durable: self.durable,
            base: self.next,
            time: self.time,
            batches: 0,
            dir_len: 0,
            dir_sum: 0,
            body_len: 0,
            prev: self.chain,
        };
        let (mut bytes, mut header) = Group::build(header, batches, self.tail.header.nonce);
        if self.tail.offset + bytes.len() as u64 > SEGMENT_BYTES {
            self.roll()?;
            header.generation = self.tail.header.generation;
            header.durable = self.durable;
            header.encode(self.tail.header.nonce, &mut bytes);
        }
        self.tail.file.write_at(self.tail.offset, &bytes).map_err(io("writing the journal"))?;
        self.tail.offset += bytes.len() as u64;
        self.sequence = header.sequence;
        self.chain = header.chain();
        self.next = header.end();
        Ok(Arc::new(Group::trusted(header, Bytes::from(bytes))))
    }

    /// Writes a recovered group once more.
    fn copy(&mut self, group: &Group) -> Result<()> {
        let h = &self.tail.header;
        let (bytes, _) = group.rebuild(h.generation, self.epoch, self.durable, h.nonce);
        self.tail.file.write_at(self.tail.offset, &bytes).map_err(io("writing the journal"))?;
        self.tail.offset += bytes.len() as u64;
        Ok(())
    }

    fn sync(&mut self) -> Result<()> {
        if self.durable < self.sequence {
            self.tail.file.sync().map_err(io("syncing the journal"))?;
            self.durable = self.sequence;
        }
        Ok(())
    }

    /// Goes on in the next segment; the full one is synced first, so that one sync a group stays enough.
    fn roll(&mut self) -> Result<()> {
        self.sync()?;
        self.tail = Tail::create(&*self.disk, self.tail.id + 1, self.tail.header.generation + 1, self.epoch)?;
        self.disk.sync_dir().map_err(io("syncing the directory"))
    }

    fn close(&mut self) -> Result<()> {
        self.append(&[], CLEAN_CLOSE)?;
        self.sync()
    }
}

impl Tail {
    fn create(disk: &dyn Disk, id: u32, generation: u64, epoch: u64) -> Result<Self> {
        let file = disk.create(&segment_name(id)).map_err(io("making a segment"))?;
        let header = SegmentHeader { generation, epoch, nonce: rand::rng().next_u64(), key_id: 0 };
        file.write_at(0, &header.encode()).map_err(io("writing the journal"))?;
        Ok(Self { file, id, header, offset: BLOCK as u64 })
    }
}

/// The writer's thread: serves, and after a failure opens again.
pub(crate) fn run(mut writer: Writer) {
    let (shared, disk, clock) = (writer.shared.clone(), writer.disk.clone(), writer.clock.clone());
    loop {
        let Err(e) = writer.serve() else {
            shared.health.set(Health::Closed("the store is closed".into()));
            return shared.refuse_queued();
        };
        let reason = e.to_string();
        tracing::error!(reason, "the journal failed");
        if shared.health.failed(&reason) {
            return shared.refuse_queued();
        }
        shared.refuse_queued();
        match Writer::open(shared.clone(), disk.clone(), clock.clone()) {
            Ok(again) => writer = again,
            Err(e) => {
                shared.health.set(Health::Closed(format!("opening again failed: {e}")));
                return shared.refuse_queued();
            }
        }
        shared.health.set(Health::Reopened);
    }
}

/// Spreads the first sequences of a batch's runs over its appends.
pub(crate) fn receipt(position: Position, time: Timestamp, firsts: &[u64], batch: &Encoded) -> Receipt {
    let seqs = firsts.iter().zip(&batch.runs).flat_map(|(first, run)| *first..first + run.count).collect();
    Receipt { position, time, seqs }
}
