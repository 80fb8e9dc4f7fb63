//! Publishing and committing: from prepared messages to one store batch.

use tokio::sync::oneshot;
use weft_core::{Timestamp, limits};
use weft_store::{Batch, Durability, Op, StreamName};

use super::{Actor, Appended, Committed, Done, Draft, Item, Tx};
use crate::dedup::{self, Seen};
use crate::queue::Standing;
use crate::record;
use crate::token::Lease;
use crate::{Channel, Error, Result};

impl Actor {
    pub(super) fn publish(&mut self, items: Vec<Item>, reply: oneshot::Sender<Result<Vec<Draft>>>) {
        if self.awaits_dedup(&items) {
            self.deferred.push(super::Command::Publish { items, reply });
            return;
        }
        let mut batch = Batch { durability: Durability::Relaxed, ..Batch::new() };
        let mut tx = Tx::default();
        match self.stage(items, &mut batch, &mut tx) {
            Err(e) => drop(reply.send(Err(e))),
            // Repeats of what is durable already.
            Ok(drafts) if batch.ops.is_empty() => drop(reply.send(Ok(drafts))),
            Ok(drafts) => {
                tx.done = Done::Publish { reply, drafts };
                self.enlist(batch, tx);
            }
        }
    }

    pub(super) fn commit(
        &mut self,
        ack: Vec<Lease>,
        items: Vec<Item>,
        extra: Batch,
        reply: oneshot::Sender<Result<Committed>>,
    ) {
        let now = self.now();
        let mut acks = Vec::with_capacity(ack.len());
        let mut settling = false;
        for (index, lease) in ack.iter().enumerate() {
            let lane = self.lane_of(&lease.source, lease.lane).filter(|_| lease.epoch == self.epoch);
            match lane.map(|id| (id, self.lanes[id].state.standing(now, lease.seq, lease.attempt))) {
                Some((id, Standing::Current)) => acks.push((id, lease.seq)),
                // Whether it is stale depends on a commit in flight.
                Some((_, Standing::Settling)) => settling = true,
                _ => {
                    let _ = reply.send(Err(Error::stale(index, &lease.source)));
                    return;
                }
            }
        }
        if settling || self.awaits_dedup(&items) {
            self.deferred.push(super::Command::Commit { ack, items, extra, reply });
            return;
        }
        let mut batch = Batch::new();
        // An acknowledgement on relaxed channels alone would be relaxed too, but a commit promises the disk.
        let mut tx = Tx::default();
        let drafts = match self.stage(items, &mut batch, &mut tx) {
            Ok(drafts) => drafts,
            Err(e) => {
                let _ = reply.send(Err(e));
                return;
            }
        };
        batch.durability = Durability::Strict;
        self.acknowledge(acks, &mut batch, &mut tx);
        tx.extra_appends = extra.ops.iter().filter(|op| matches!(op, Op::Append(..))).count();
        batch.expect.extend(extra.expect);
        batch.ops.extend(extra.ops);
        tx.done = Done::Commit { reply, drafts };
        self.enlist(batch, tx);
    }

    /// Whether the answer to one of the items depends on a publish in flight.
    fn awaits_dedup(&self, items: &[Item]) -> bool {
        let now = self.now();
        items.iter().filter_map(|i| i.dedup).any(|(hash, _)| self.dedup.look(now, hash) == Seen::Pending)
    }

    /// Checks all items, then adds their appends; nothing is added when one is refused. Makes the batch strict when one of
    /// the channels is.
    fn stage(&mut self, items: Vec<Item>, batch: &mut Batch, tx: &mut Tx) -> Result<Vec<Draft>> {
        let now = self.now();
        let new_ids =
            items.iter().filter(|i| i.dedup.is_some_and(|(h, _)| self.dedup.look(now, h) == Seen::New)).count();
        if new_ids > 0 && self.dedup.len() + new_ids > limits::DEDUP_IDS {
            return Err(Error::DedupFull { limit: limits::DEDUP_IDS });
        }
        for channel in items.iter().map(|i| &i.channel) {
            match channel {
                Channel::Queue(name) => drop(self.make_queue(name)?),
                Channel::Topic(name) => self.make_topic(name)?,
            }
        }
        self.check_room(&items)?;
        let mut first_of = hashbrown::HashMap::<u128, usize>::new();
        let mut drafts = Vec::with_capacity(items.len());
        for (at, item) in items.into_iter().enumerate() {
            if let Some((hash, window)) = item.dedup {
                if let Some(first) = first_of.get(&hash.0) {
                    drafts.push(Draft::Same(*first));
                    self.counts(&item.channel).duplicate.inc();
                    continue;
                }
                if let Seen::Done { position, bucket } = self.dedup.look(now, hash) {
                    self.counts(&item.channel).duplicate.inc();
                    drafts.push(Draft::Repeat { key: dedup::key(bucket, hash), position, id: item.id });
                    continue;
                }
                let bucket = self.dedup.begin(now, hash, window);
                first_of.insert(hash.0, at);
                tx.dedup.push(hash);
                batch.ops.push(Op::Put {
                    space: dedup::SPACE,
                    key: dedup::key(bucket, hash),
                    value: item.id.clone().into(),
                });
            }
            let (stream, relaxed) = self.route(&item);
            if !relaxed {
                batch.durability = Durability::Strict;
            }
            self.counts(&item.channel).published.inc();
            self.append(stream, item.payload, batch, tx);
            drafts.push(Draft::New { id: item.id, position: 0 });
        }
        if !tx.appended.is_empty() {
            for op in self.undeclared(tx) {
                batch.ops.push(op);
            }
        }
        Ok(drafts)
    }

    /// Adds one append.
    pub(super) fn append(&mut self, stream: StreamName, payload: bytes::Bytes, batch: &mut Batch, tx: &mut Tx) {
        self.departs(&stream, &payload);
        batch.ops.push(Op::Append(stream.clone(), payload.clone()));
        tx.appended.push(Appended { stream, payload });
    }

    /// Room for all items in the queues they go to.
    fn check_room(&self, items: &[Item]) -> Result<()> {
        let mut wanted = hashbrown::HashMap::<&weft_core::Name, (u64, usize)>::new();
        for item in items {
            if let Channel::Queue(name) = &item.channel {
                let w = wanted.entry(name).or_default();
                w.0 += 1;
                w.1 += usize::from(item.not_before > Timestamp(0));
            }
        }
        for (name, (n, delayed)) in wanted {
            let q = &self.queues[name];
            let pending_delayed = self.streams.get(&q.stream).map_or(0, |s| s.pending_delayed);
            if let Some(max) = q.spec.max_messages
                && self.depth(q) + n > max
            {
                return Err(Error::Full { name: name.to_string(), what: "limit", max });
            }
            let max = limits::DELAYED_MESSAGES;
            let known: usize = self.subs[q.sub].lanes.iter().map(|l| self.lanes[*l].state.counts().delayed).sum();
            if delayed > 0 && known + pending_delayed + delayed > max {
                return Err(Error::Full { name: name.to_string(), what: "limit of delayed messages", max: max as u64 });
            }
        }
        Ok(())
    }

    /// Messages of a queue, those on their way to disk included.
    pub(super) fn depth(&self, q: &super::Queue) -> u64 {
        let live: u64 = self.subs[q.sub].lanes.iter().map(|l| self.backlog(*l)).sum();
        live + self.streams.get(&q.stream).map_or(0, |s| s.pending)
    }

    pub(super) fn backlog(&self, id: super::LaneId) -> u64 {
        let lane = &self.lanes[id];
        lane.backlog(self.streams.get(&lane.stream).map_or(0, |s| s.last))
    }

    fn counts(&self, channel: &Channel) -> &crate::metrics::ChannelCounts {
        match channel {
            Channel::Queue(n) => &self.queues[n].counts,
            Channel::Topic(n) => &self.topics[n].counts,
        }
    }

    /// The stream an item goes to, and whether its channel is relaxed.
    fn route(&mut self, item: &Item) -> (StreamName, bool) {
        match &item.channel {
            Channel::Queue(name) => {
                let q = &self.queues[name];
                (q.stream.clone(), q.spec.relaxed)
            }
            Channel::Topic(name) => {
                let t = self.topics.get_mut(name).expect("made above");
                let n = t.spec.partitions as usize;
                let at = match item.key {
                    Some(key) => (key % n as u64) as usize,
                    None => {
                        t.turn = t.turn.wrapping_add(1);
                        t.turn % n
                    }
                };
                (t.streams[at].clone(), t.spec.relaxed)
            }
        }
    }

    /// An append is on its way to disk.
    pub(super) fn departs(&mut self, stream: &StreamName, payload: &bytes::Bytes) {
        let delayed = record::decode(payload).is_ok_and(|r| r.not_before > Timestamp(0));
        let s = self.streams.entry(stream.clone()).or_default();
        s.pending += 1;
        s.pending_delayed += usize::from(delayed);
    }

    /// An append is durable, or failed.
    pub(super) fn arrived(&mut self, stream: &StreamName, payload: &bytes::Bytes) {
        let delayed = record::decode(payload).is_ok_and(|r| r.not_before > Timestamp(0));
        let s = self.streams.entry(stream.clone()).or_default();
        s.pending -= 1;
        s.pending_delayed -= usize::from(delayed);
    }
}
