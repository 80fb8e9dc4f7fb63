//! Acknowledging, giving back, burying and moving messages.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use weft_core::{Envelope, Name, Timestamp};
use weft_store::{Batch, Durability, Op, Seq};

use super::deliver::read_one;
use super::lane::LaneId;
use super::{Actor, Command, Done, Lost, Read, Tx};
use crate::queue::{Event, Standing};
use crate::record;
use crate::token::Lease;
use crate::types::Stored;
use crate::{Channel, NackOptions, Result, Settled, Source};

/// Extensions a dead-lettered message carries.
pub(crate) const DEAD_REASON: &str = "weftdeadreason";
pub(crate) const DEAD_COUNT: &str = "weftdeadcount";
pub(crate) const DEAD_ORIGIN: &str = "weftdeadorigin";
pub(crate) const DEAD_TIME: &str = "weftdeadtime";

/// Answers a nack once every message it sent to the dead-letter queue has arrived there: the last holder answers.
pub(super) struct Answer(Mutex<Option<(oneshot::Sender<Result<Settled>>, Settled)>>);

impl Drop for Answer {
    fn drop(&mut self) {
        if let Some((reply, settled)) = self.0.get_mut().take() {
            let _ = reply.send(Ok(settled));
        }
    }
}

impl Actor {
    /// A plain acknowledgement: accepted for every message that is still unsettled, also when its lease has ended.
    pub(super) fn ack(&mut self, leases: Vec<Lease>, reply: oneshot::Sender<Result<Settled>>) {
        let now = self.now();
        let lanes: Vec<Option<LaneId>> = leases.iter().map(|l| self.lane_of(&l.source, l.lane)).collect();
        let standing = |a: &Self, (l, id): (&Lease, &Option<LaneId>)| {
            id.map(|id| a.lanes[id].state.standing(now, l.seq, l.attempt))
        };
        if leases.iter().zip(&lanes).any(|pair| standing(self, pair) == Some(Standing::Settling)) {
            self.deferred.push(Command::Ack { leases, reply });
            return;
        }
        let mut settled = Settled::default();
        let mut acks = Vec::with_capacity(leases.len());
        for (index, (lease, lane)) in leases.iter().zip(lanes).enumerate() {
            match lane.filter(|id| self.reach(*id, lease.seq)) {
                Some(id) => {
                    acks.push((id, lease.seq));
                    settled.done += 1;
                }
                None => settled.stale.push(index),
            }
        }
        if acks.is_empty() {
            let _ = reply.send(Ok(settled));
            return;
        }
        let relaxed = acks.iter().all(|(id, _)| self.is_relaxed(*id));
        let durability = if relaxed { Durability::Relaxed } else { Durability::Strict };
        let (mut batch, mut tx) = (Batch { durability, ..Batch::new() }, Tx::default());
        self.acknowledge(acks, &mut batch, &mut tx);
        tx.done = Done::Ack { reply, settled };
        self.enlist(batch, tx);
    }

    /// Adds acknowledgements to a batch and marks their messages as being settled.
    pub(super) fn acknowledge(&mut self, acks: Vec<(LaneId, Seq)>, batch: &mut Batch, tx: &mut Tx) {
        let first_op = batch.ops.len();
        for (id, seq) in acks {
            // The same token twice in one call settles once.
            if !self.step(id, Event::Settle { seq }) {
                continue;
            }
            self.subs[self.lanes[id].sub].counts.acked.inc();
            let lane = &self.lanes[id];
            let same = batch.ops[first_op..].iter_mut().find_map(|op| match op {
                Op::Ack(s, c, seqs) if Arc::ptr_eq(s, &lane.stream) && *c == lane.cursor => Some(seqs),
                _ => None,
            });
            match same {
                Some(seqs) => seqs.push(seq),
                None => batch.ops.push(Op::Ack(lane.stream.clone(), lane.cursor.clone(), vec![seq])),
            }
            tx.acks.push((id, seq));
        }
    }

    pub(super) fn nack(&mut self, leases: Vec<Lease>, options: NackOptions, reply: oneshot::Sender<Result<Settled>>) {
        let answer = Arc::new(Answer(Mutex::new(None)));
        let mut settled = Settled::default();
        for (index, lease) in leases.iter().enumerate() {
            let lane = self.lane_of(&lease.source, lease.lane).filter(|_| lease.epoch == self.epoch);
            // A dead-letter queue has none of its own: its messages stay.
            let mortal = lane.is_some_and(|id| self.subs[self.lanes[id].sub].dead_letter.is_some());
            let event = Event::Nack {
                seq: lease.seq,
                attempt: lease.attempt,
                delay: options.delay,
                reason: options.reason.clone(),
                dead: options.dead_letter && mortal,
            };
            match lane {
                Some(id) if self.step_guarded(id, event, Some(answer.clone())) => {
                    settled.done += 1;
                }
                _ => settled.stale.push(index),
            }
        }
        *answer.0.lock() = Some((reply, settled));
    }

    pub(super) fn extend(&mut self, leases: Vec<Lease>, by: Option<Duration>, reply: oneshot::Sender<Result<Settled>>) {
        let mut settled = Settled::default();
        for (index, l) in leases.iter().enumerate() {
            let lane = self.lane_of(&l.source, l.lane).filter(|_| l.epoch == self.epoch);
            let did = lane.is_some_and(|id| {
                let lease = by.unwrap_or(self.subs[self.lanes[id].sub].lease);
                self.step(id, Event::Extend { seq: l.seq, attempt: l.attempt, lease })
            });
            if did {
                settled.done += 1;
            } else {
                settled.stale.push(index);
            }
        }
        let _ = reply.send(Ok(settled));
    }

    /// The delivery did not reach anybody.
    pub(super) fn release(&mut self, source: &Source, lane: u32, epoch: u64, seq: Seq, attempt: u32) {
        if let Some(id) = self.lane_of(source, lane).filter(|_| epoch == self.epoch) {
            self.step(id, Event::Release { seq, attempt });
        }
    }

    fn is_relaxed(&self, id: LaneId) -> bool {
        let sub = &self.subs[self.lanes[id].sub];
        match &sub.source {
            Source::Queue(n) => self.queues.get(n).is_some_and(|q| q.spec.relaxed),
            Source::Subscription(_) => {
                sub.topic.as_ref().and_then(|t| self.topics.get(t)).is_some_and(|t| t.spec.relaxed)
            }
        }
    }

    /// A message's attempts are used up: finds its payload, then moves it.
    pub(super) fn bury(&mut self, id: LaneId, seq: Seq, attempts: u32, reason: String, guard: Option<Arc<Answer>>) {
        let (store, stream) = (self.store.clone(), self.lanes[id].stream.clone());
        let known = self.take_payload(id, seq);
        self.reads.push(Box::pin(async move {
            let stored = match known {
                Some(stored) => Ok(stored),
                None => read_one(store.as_ref(), &stream, seq).await,
            };
            Read::Bury { lane: id, seq, attempts, reason, guard, stored }
        }));
    }

    pub(super) fn bury_read(
        &mut self,
        id: LaneId,
        seq: Seq,
        attempts: u32,
        reason: &str,
        guard: Option<Arc<Answer>>,
        stored: std::result::Result<Stored, Lost>,
    ) {
        let payload = match stored {
            Ok(stored) => stored.payload,
            Err(Lost::Failed(e)) => {
                tracing::warn!(stream = %self.lanes[id].stream, seq, error = %e, "reading a dead message failed; it is tried again");
                self.step(id, Event::Unsettled { seq });
                return;
            }
            Err(Lost::Gone) => {
                self.step(id, Event::Settled { seq });
                return;
            }
            Err(Lost::Damaged) => {
                self.step(id, Event::Settled { seq });
                self.skip_damaged(id, seq, "damaged");
                return;
            }
        };
        let sub = self.lanes[id].sub;
        let source = self.subs[sub].source.clone();
        let mut event = match Self::envelope(&payload) {
            Ok(event) => event,
            Err(why) => {
                self.step(id, Event::Settled { seq });
                self.skip_damaged(id, seq, &why);
                return;
            }
        };
        let x = &mut event.extensions;
        x.insert(DEAD_REASON.into(), reason.to_owned());
        x.insert(DEAD_COUNT.into(), attempts.to_string());
        x.insert(DEAD_ORIGIN.into(), source.to_string());
        x.insert(DEAD_TIME.into(), self.now().to_string());
        let dead = self.subs[sub].dead_letter.clone().expect("messages without a dead-letter queue never die");
        let stream = match self.make_queue(&dead) {
            Ok(_) => self.queues[&dead].stream.clone(),
            Err(e) => {
                tracing::error!(queue = %dead, error = %e, "the dead-letter queue cannot be made; the message stays");
                self.step(id, Event::Unsettled { seq });
                return;
            }
        };
        let key = event.subject.as_deref().map(record::key_hash);
        let (mut batch, mut tx) = (Batch::new(), Tx::default());
        self.append(stream, record::encode(key, Timestamp(0), &event), &mut batch, &mut tx);
        // The machine says it is being settled already.
        let lane = &self.lanes[id];
        batch.ops.push(Op::Ack(lane.stream.clone(), lane.cursor.clone(), vec![seq]));
        tx.acks.push((id, seq));
        batch.ops.extend(self.undeclared(&mut tx));
        tx.done = Done::Bury { sub, _guard: guard };
        self.enlist(batch, tx);
    }

    /// Moves one ready message of a queue elsewhere: append there and acknowledgement here in one batch. Answers `false`
    /// when the message is not ready, or its origin is gone.
    pub(super) fn move_message(
        &mut self,
        queue: Name,
        seq: Seq,
        payload: Bytes,
        to: Channel,
        back: Option<Source>,
        reply: oneshot::Sender<Result<bool>>,
    ) {
        let Some(lane) = self.queues.get(&queue).map(|q| self.subs[q.sub].lanes[0]) else {
            let _ = reply.send(Err(crate::Error::unknown(&Source::Queue(queue))));
            return;
        };
        let stream = match (&back, &to) {
            (Some(Source::Subscription(name)), _) => match self.subscriptions.get(name) {
                Some(sub) => self.subs[*sub]
                    .lanes
                    .iter()
                    .find(|l| self.lanes[**l].index == super::REDRIVEN)
                    .map(|l| self.lanes[*l].stream.clone()),
                None => None,
            },
            (Some(Source::Queue(name)), _) | (None, Channel::Queue(name)) => match self.make_queue(name) {
                Ok(_) => Some(self.queues[name].stream.clone()),
                Err(e) => {
                    let _ = reply.send(Err(e));
                    return;
                }
            },
            (None, Channel::Topic(name)) => match self.make_topic(name) {
                Ok(()) => {
                    let key = record::decode(&payload).ok().and_then(|r| r.key).unwrap_or(0);
                    let t = &self.topics[name];
                    Some(t.streams[(key % u64::from(t.spec.partitions)) as usize].clone())
                }
                Err(e) => {
                    let _ = reply.send(Err(e));
                    return;
                }
            },
        };
        let ready =
            self.reach(lane, seq) && self.lanes[lane].state.look(seq).is_some_and(|(_, state)| state == "ready");
        let (Some(stream), true) = (stream, ready) else {
            let _ = reply.send(Ok(false));
            return;
        };
        let (mut batch, mut tx) = (Batch::new(), Tx::default());
        self.append(stream, payload, &mut batch, &mut tx);
        self.acknowledge(vec![(lane, seq)], &mut batch, &mut tx);
        batch.ops.extend(self.undeclared(&mut tx));
        tx.done = Done::Move { reply };
        self.enlist(batch, tx);
    }

    /// Decodes a stored message, changes its event and stores it anew.
    pub(crate) fn rewrite(payload: &Bytes, change: impl FnOnce(&mut Envelope)) -> std::result::Result<Bytes, String> {
        let r = record::decode(payload).map_err(|e| e.to_string())?;
        let mut event = Envelope::decode(r.envelope).map_err(|e| e.to_string())?;
        change(&mut event);
        Ok(record::encode(r.key, Timestamp(0), &event))
    }
}
