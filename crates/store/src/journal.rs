//! The writer: one thread that checks preconditions, forms groups, writes, syncs, publishes and answers.
//!
//! Everything that arrives while one sync runs goes into the next group. The writer never reads disk while it
//! serves. A failed write or sync poisons what is open: its batches are answered *unknown* and the store is
//! opened again through recovery; a second failure in a row closes it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use weft_core::limits::GROUP_BYTES;
use weft_core::{Clock, Timestamp};

use crate::applier;
use crate::checkpoint::Location;
use crate::disk::Disk;
use crate::embedded::{Health, Shared};
use crate::entry::Encoded;
use crate::group::{BLOCK, CLEAN_CLOSE, Group, GroupHeader};
use crate::keeper::{Ask, Keeper, remove_stale};
use crate::pending::{Pending, Verdict};
use crate::queue::{Answer, Reply, Submission, Work};
use crate::recover::{self, Report, io, open_files_of};
use crate::segments::Segment;
use crate::{Durability, Error, Position, Receipt, Result};

/// Positions skipped at an opening that was not preceded by an orderly close, so that none that was published
/// without a sync is given out twice.
const POSITION_GAP: u64 = 1 << 20;
/// How long a relaxed batch waits for a strict one to share its sync.
const RELAXED_SYNC: Duration = Duration::from_millis(20);

/// The writer's state while the store is open.
pub(crate) struct Writer {
    shared: Arc<Shared>,
    disk: Arc<dyn Disk>,
    clock: Arc<dyn Clock>,
    pending: Pending,
    tail: Arc<Segment>,
    offset: u64,
    epoch: u64,
    sequence: u64,
    durable: u64,
    chain: u64,
    next: Position,
    time: Timestamp,
    /// Published groups with key changes that are not durable yet.
    unsynced: Vec<Arc<Group>>,
    /// The keeper, where it works between groups instead of on a thread of its own.
    keeper: Option<Keeper>,
    /// Whether the segments changed since the keeper last looked.
    rolled: bool,
    /// Whose batches were in a group that failed.
    unknown: Vec<Reply>,
    /// Answers of a durable group that wait until the keeper between groups has done its work.
    answers: Vec<(Reply, Result<Answer>)>,
}

/// An accepted batch waiting for its group.
struct Accepted {
    reply: Reply,
    position: Position,
    firsts: Vec<u64>,
}

impl Writer {
    /// Recovers the journal, publishes what it holds, and opens a fresh segment behind it.
    pub(crate) fn open(shared: Arc<Shared>, disk: Arc<dyn Disk>, clock: Arc<dyn Clock>) -> Result<(Self, Report)> {
        shared.applier.reset();
        shared.kept.clear();
        let mut r = recover::recover(&*disk, &shared.kv)?;
        shared.pool.reset(&*disk, &r.free, r.next_segment)?;
        shared.next_file.store(r.next_file, Ordering::Relaxed);
        shared.checkpoint.store(r.checkpoint, Ordering::Relaxed);
        let epoch = r.epoch + 1;
        shared.epoch.store(epoch, Ordering::Relaxed);
        let (id, file) = shared.pool.take(&*disk)?;
        let tail = Arc::new(Segment::begin(id, file, r.generation + 1, epoch)?);
        r.views.segments.insert(id, tail.clone());
        let fresh = r.sequence == 0;
        let mut writer = Self {
            pending: Pending::default(),
            tail,
            offset: BLOCK as u64,
            epoch,
            sequence: r.sequence,
            durable: r.durable,
            chain: r.chain,
            next: if r.report.clean || fresh { r.next } else { r.next + POSITION_GAP },
            time: r.time,
            unsynced: Vec::new(),
            keeper: (!shared.tuning.background).then(|| Keeper::new(shared.clone(), disk.clone())),
            // Openings leave segments behind, too.
            rolled: true,
            unknown: Vec::new(),
            answers: Vec::new(),
            shared,
            disk,
            clock,
        };
        for group in &r.unproven {
            let segment = writer.tail.clone();
            let at = writer.copy(group)?;
            if !Arc::ptr_eq(&segment, &writer.tail) {
                r.views.segments.insert(writer.tail.id, writer.tail.clone());
            }
            open_files_of(&*writer.disk, group, &mut r.views, &mut r.report)?;
            r.views.apply_streams(group, at);
        }
        writer.tail.file.sync().map_err(io("syncing the journal"))?;
        writer.disk.sync_dir().map_err(io("syncing the directory"))?;
        writer.durable = writer.sequence;
        for group in &r.unproven {
            writer.shared.kv.apply(group)?;
        }
        let named = r.views.named_files();
        r.views.files.retain(|id, _| named.contains(id));
        r.views.overlay.applied = r.views.position;
        // Only now that the fresh segment is durable is anything older let go of.
        remove_stale(&*writer.disk, r.checkpoint, &named)?;
        writer.pending = Pending::new(r.views.streams.lasts(), r.views.position);
        let position = r.views.position;
        *writer.shared.views.write() = r.views;
        writer.shared.published.send_replace(position);
        writer.shared.tail_used.store(0, Ordering::Relaxed);
        writer.shared.note_crowding(&writer.shared.views.read());
        writer.shared.nudge.nudge();
        writer.keep()?;
        Ok((writer, r.report))
    }

    /// Serves until the last handle is gone or the store is closed (`Ok`), or a write or sync fails.
    pub(crate) fn serve(&mut self) -> Result<()> {
        let mut work: Vec<Work> = Vec::new();
        let most = GROUP_BYTES.min(self.shared.tuning.segment_bytes as usize / 4);
        loop {
            // A simulation has no time of its own that could pass.
            let waiting = self.durable < self.sequence && self.shared.tuning.background;
            let patience = waiting.then_some(RELAXED_SYNC);
            if self.shared.queue.take(most, patience, &mut work).is_none() {
                return self.sync();
            }
            if work.is_empty() {
                self.sync()?;
                continue;
            }
            let mut commits = Vec::with_capacity(work.len());
            let mut others = Vec::new();
            for w in work.drain(..) {
                match w {
                    Work::Commit(s, reply) => commits.push((s, reply)),
                    other => others.push(other),
                }
            }
            if !commits.is_empty() {
                self.group(commits)?;
            }
            for other in others {
                match other {
                    Work::Commit(..) => {}
                    Work::Edit(edit, reply) => self.answer(reply, |w| w.edit(edit))?,
                    Work::Sync(reply) => self.answer(reply, Self::sync)?,
                    Work::Close(reply) => {
                        let closed = self.close();
                        let _ = reply.send(closed.clone());
                        return closed;
                    }
                }
            }
            self.shared.health.recovered();
            let kept = self.keep();
            self.reply();
            kept?;
        }
    }

    /// Does a keeper's errand and tells it the outcome.
    fn answer(
        &mut self,
        reply: tokio::sync::oneshot::Sender<Result<()>>,
        errand: impl FnOnce(&mut Self) -> Result<()>,
    ) -> Result<()> {
        let outcome = errand(self);
        // A keeper that went away needs no answer.
        let _ = reply.send(outcome.clone());
        outcome
    }

    /// Lets the keeper do its work, when it has no thread of its own.
    fn keep(&mut self) -> Result<()> {
        let Some(mut keeper) = self.keeper.take() else { return Ok(()) };
        let mut failed = None;
        let looked = keeper.look();
        if self.rolled && looked.is_ok() {
            self.rolled = false;
            let kept = keeper.step(&mut |ask| {
                let outcome = match ask {
                    Ask::Edit(edit) => self.edit(edit),
                    Ask::Sync => self.sync(),
                };
                failed = outcome.clone().err();
                outcome
            });
            if let Err(e) = kept {
                tracing::warn!(error = %e, "keeping the journal short failed; it is tried again");
                self.rolled = true;
            }
        }
        self.keeper = Some(keeper);
        // Only what the writer itself failed at poisons the store.
        failed.map_or(Ok(()), Err)
    }

    /// Checks, writes, syncs, publishes and answers one group.
    fn group(&mut self, commits: Vec<(Submission, Reply)>) -> Result<()> {
        let mut batches: Vec<Encoded> = Vec::with_capacity(commits.len());
        let mut accepted: Vec<Accepted> = Vec::with_capacity(commits.len());
        // Refusals depend on what is pending, so they wait for this group as well.
        let mut refused = Vec::new();
        let mut strict = false;
        let full = self.refuses_more();
        for (mut s, reply) in commits {
            if s.adds
                && let Some(e) = &full
            {
                refused.push((reply, Err(e.clone())));
                continue;
            }
            strict |= s.durability == Durability::Strict;
            match self.pending.check(&s.expect, &s.reads) {
                Verdict::Holds => {}
                Verdict::Fails(e) => {
                    refused.push((reply, Err(e)));
                    continue;
                }
                Verdict::Stale => {
                    refused.push((reply, Ok(Answer::Stale(Box::new(s)))));
                    continue;
                }
            }
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
        if let Err(e) = self.write_group(&batches, strict) {
            // Answered once everyone can see that the store is being opened again.
            self.unknown.extend(accepted.into_iter().map(|a| a.reply));
            self.unknown.extend(refused.into_iter().map(|(reply, _)| reply));
            return Err(e);
        }
        let time = self.time;
        let done = |(a, batch): (Accepted, Encoded)| {
            (a.reply, Ok(Answer::Done { position: a.position, time, firsts: a.firsts, batch }))
        };
        self.answers.extend(accepted.into_iter().zip(batches).map(done));
        self.answers.extend(refused);
        if self.keeper.is_none() {
            self.reply();
        }
        Ok(())
    }

    /// Sends the answers of a group that is durable.
    fn reply(&mut self) {
        for (reply, answer) in self.answers.drain(..) {
            // Whoever dropped the future does not want the answer; the batch stands.
            let _ = reply.send(answer);
        }
    }

    /// Why batches that only add are refused now.
    fn refuses_more(&self) -> Option<Error> {
        let free = self.shared.free.load(Ordering::Relaxed);
        (free < self.shared.tuning.low_water).then_some(Error::DiskFull { free })
    }

    fn write_group(&mut self, batches: &[Encoded], strict: bool) -> Result<()> {
        let group = if batches.is_empty() { None } else { Some(self.append(batches, 0)?) };
        if strict {
            self.sync()?;
        }
        if let Some((group, at)) = group {
            self.publish(group, at)?;
        }
        Ok(())
    }

    /// Shows a group to everyone, and gives its key changes to the view once they are durable.
    fn publish(&mut self, group: Arc<Group>, at: Location) -> Result<()> {
        let changes_keys = crate::overlay::writes(&group).next().is_some();
        let position = {
            let mut views = self.shared.views.write();
            if !views.segments.contains_key(&self.tail.id) {
                views.segments.insert(self.tail.id, self.tail.clone());
            }
            views.apply(group.clone(), at);
            self.shared.note_crowding(&views);
            views.position
        };
        self.shared.published.send_replace(position);
        if changes_keys {
            self.unsynced.push(group);
        }
        if self.durable == self.sequence {
            self.hand_over()?;
        }
        Ok(())
    }

    /// Gives durable key changes to the view.
    fn hand_over(&mut self) -> Result<()> {
        for group in std::mem::take(&mut self.unsynced) {
            if self.shared.tuning.background {
                self.shared.applier.push(group);
            } else {
                applier::apply(&self.shared, &group)?;
            }
        }
        Ok(())
    }

    /// Commits a manifest edit.
    fn edit(&mut self, edit: Encoded) -> Result<()> {
        self.write_group(&[edit], true)
    }

    /// Writes a group behind the others, without a sync.
    fn append(&mut self, batches: &[Encoded], flags: u16) -> Result<(Arc<Group>, Location)> {
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
        if self.offset + bytes.len() as u64 > self.shared.tuning.segment_bytes {
            self.roll()?;
            header.generation = self.tail.header.generation;
            header.durable = self.durable;
            header.encode(self.tail.header.nonce, &mut bytes);
        }
        let at = Location { sequence: header.sequence, segment: self.tail.id, offset: self.offset };
        self.tail.file.write_at(self.offset, &bytes).map_err(io("writing the journal"))?;
        self.offset += bytes.len() as u64;
        self.shared.tail_used.store(self.offset, Ordering::Relaxed);
        self.sequence = header.sequence;
        self.chain = header.chain();
        self.next = header.end();
        self.shared.counters.groups.fetch_add(1, Ordering::Relaxed);
        self.shared.counters.batches.fetch_add(u64::from(header.batches), Ordering::Relaxed);
        Ok((Arc::new(Group::trusted(header, Bytes::from(bytes))), at))
    }

    /// Writes a recovered group once more.
    fn copy(&mut self, group: &Group) -> Result<Location> {
        if self.offset + group.header.disk_len() as u64 > self.shared.tuning.segment_bytes {
            self.tail.file.sync().map_err(io("syncing the journal"))?;
            self.next_segment()?;
        }
        let h = &self.tail.header;
        let (bytes, _) = group.rebuild(h.generation, self.epoch, self.durable, h.nonce);
        let at = Location { sequence: group.header.sequence, segment: self.tail.id, offset: self.offset };
        self.tail.file.write_at(self.offset, &bytes).map_err(io("writing the journal"))?;
        self.offset += bytes.len() as u64;
        Ok(at)
    }

    fn sync(&mut self) -> Result<()> {
        if self.durable < self.sequence {
            self.tail.file.sync().map_err(io("syncing the journal"))?;
            self.durable = self.sequence;
            self.shared.counters.syncs.fetch_add(1, Ordering::Relaxed);
            // What this sync made durable of earlier relaxed groups; a group being written is not published yet.
            if self.shared.views.read().last.is_some_and(|h| h.sequence == self.sequence) {
                self.hand_over()?;
            }
        }
        Ok(())
    }

    /// Goes on in the next segment; the full one is synced first, so that one sync a group stays enough.
    fn roll(&mut self) -> Result<()> {
        self.sync()?;
        self.next_segment()?;
        self.rolled = true;
        self.shared.nudge.nudge();
        Ok(())
    }

    fn next_segment(&mut self) -> Result<()> {
        let (id, file) = self.shared.pool.take(&*self.disk)?;
        self.tail = Arc::new(Segment::begin(id, file, self.tail.header.generation + 1, self.epoch)?);
        self.offset = BLOCK as u64;
        Ok(())
    }

    /// Checkpoints and says in the journal that nothing was torn.
    fn close(&mut self) -> Result<()> {
        self.sync()?;
        let mut keeper = self.keeper.take().unwrap_or_else(|| Keeper::new(self.shared.clone(), self.disk.clone()));
        if let Err(e) = keeper.checkpoint(&mut |ask| match ask {
            Ask::Edit(edit) => self.edit(edit),
            Ask::Sync => self.sync(),
        }) {
            tracing::warn!(error = %e, "the last checkpoint failed; opening replays more");
        }
        let (group, at) = self.append(&[], CLEAN_CLOSE)?;
        self.sync()?;
        self.publish(group, at)
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
        let closed = shared.health.failed(&reason);
        for reply in writer.unknown.drain(..) {
            // Whoever dropped the future does not want the answer.
            let _ = reply.send(Err(Error::Unknown { reason: reason.clone() }));
        }
        shared.refuse_queued();
        if closed {
            return;
        }
        // The keeper may be waiting for an answer of ours while it has the turn.
        let turn = loop {
            match shared.keeper_turn.try_lock_for(Duration::from_millis(5)) {
                Some(turn) => break turn,
                None => shared.refuse_queued(),
            }
        };
        match Writer::open(shared.clone(), disk.clone(), clock.clone()) {
            Ok((again, _)) => writer = again,
            Err(e) => {
                shared.health.set(Health::Closed(format!("opening again failed: {e}")));
                return shared.refuse_queued();
            }
        }
        drop(turn);
        shared.health.set(Health::Reopened);
    }
}

/// Spreads the first sequences of a batch's runs over its appends.
pub(crate) fn receipt(position: Position, time: Timestamp, firsts: &[u64], batch: &Encoded) -> Receipt {
    let seqs = firsts.iter().zip(&batch.runs).flat_map(|(first, run)| *first..first + run.count).collect();
    Receipt { position, time, seqs }
}
