//! Handing ready messages to waiting receivers.

use weft_core::limits;
use weft_store::{Seq, Store};

use super::lane::LaneId;
use super::{Actor, Handed, Lost, Parcel, Read, Receiver};
use crate::queue::{Action, Event};
use crate::types::Stored;
use crate::{Error, Result, Source};

impl Actor {
    pub(super) fn receive(&mut self, source: Source, receiver: Receiver) {
        let sub = match self.sub_of(&source) {
            Some(sub) => sub,
            None => match &source {
                Source::Queue(name) => match self.make_queue(name) {
                    Ok(sub) => {
                        self.store_declarations();
                        sub
                    }
                    Err(e) => {
                        let _ = receiver.reply.send(Err(e));
                        return;
                    }
                },
                Source::Subscription(_) => {
                    let _ = receiver.reply.send(Err(Error::unknown(&source)));
                    return;
                }
            },
        };
        let s = &mut self.subs[sub];
        if s.receivers.len() >= limits::RECEIVERS {
            s.receivers.retain(|r| !r.reply.is_closed());
        }
        if s.receivers.len() >= limits::RECEIVERS {
            let _ =
                receiver.reply.send(Err(Error::Overloaded("too many receivers wait on this queue or subscription")));
            return;
        }
        s.receivers.push_back(receiver);
        self.hungry.insert(sub);
    }

    /// Gives what is ready to who waits.
    pub(super) fn serve(&mut self, sub: usize) {
        loop {
            let s = &mut self.subs[sub];
            let Some(first) = s.receivers.front() else { return };
            if first.reply.is_closed() {
                s.receivers.pop_front();
                continue;
            }
            let (max, lease, at_once) = (first.max, first.lease.unwrap_or(s.lease), first.now);
            let lanes = s.lanes.clone();
            s.turn = s.turn.wrapping_add(1);
            let turn = s.turn;
            let mut picked = Vec::new();
            for i in 0..lanes.len() {
                if picked.len() >= max {
                    break;
                }
                // Another lane goes first each time, so that a busy partition cannot starve the others.
                let id = lanes[(turn + i) % lanes.len()];
                self.pick(id, max - picked.len(), lease, &mut picked);
            }
            if picked.is_empty() {
                if at_once && !lanes.iter().any(|id| self.lanes[*id].loading) {
                    let r = self.subs[sub].receivers.pop_front().expect("looked at above");
                    let _ = r.reply.send(Ok(Parcel::default()));
                    continue;
                }
                return;
            }
            let r = self.subs[sub].receivers.pop_front().expect("looked at above");
            self.hand(r, picked);
        }
    }

    fn pick(&mut self, id: LaneId, max: usize, lease: std::time::Duration, picked: &mut Vec<(LaneId, Seq, u32)>) {
        if !self.lanes[id].state.is_deliverable() {
            return;
        }
        let now = self.now();
        let mut actions = std::mem::take(&mut self.actions);
        self.lanes[id].state.apply(now, Event::Take { max, lease }, &mut actions);
        for action in actions.drain(..) {
            match action {
                Action::Deliver { seq, attempt } => picked.push((id, seq, attempt)),
                Action::Journal { seq, attempts, not_before } => self.journal(id, seq, attempts, not_before),
                Action::Bury { .. } => unreachable!("taking buries nothing"),
            }
        }
        self.actions = actions;
        self.touched.insert(id);
        self.load(id);
    }

    fn hand(&mut self, r: Receiver, picked: Vec<(LaneId, Seq, u32)>) {
        let mut handed = Vec::with_capacity(picked.len());
        let mut missing = Vec::new();
        for (id, seq, attempt) in picked {
            let lane = self.lanes[id].index;
            let stored = self.take_payload(id, seq);
            let absent = Stored { payload: bytes::Bytes::new(), position: 0 };
            if stored.is_none() {
                missing.push((handed.len(), id, self.lanes[id].stream.clone(), seq));
            }
            let (epoch, lane_id) = (self.epoch, id);
            handed.push(Handed { lane, lane_id, epoch, seq, attempt, stored: stored.unwrap_or(absent) });
        }
        if missing.is_empty() {
            self.send(r.reply, handed);
            return;
        }
        let store = self.store.clone();
        self.reads.push(Box::pin(async move {
            let mut lost = Vec::new();
            for (at, id, stream, seq) in missing {
                match read_one(store.as_ref(), &stream, seq).await {
                    Ok(stored) => handed[at].stored = stored,
                    Err(why) => lost.push((id, seq, why)),
                }
            }
            Read::Hand { receiver: r.reply, handed, lost }
        }));
    }

    /// The payloads a delivery had to read are here.
    pub(super) fn handed(
        &mut self,
        reply: tokio::sync::oneshot::Sender<Result<Parcel>>,
        mut handed: Vec<Handed>,
        lost: Vec<(LaneId, Seq, Lost)>,
    ) {
        for (id, seq, why) in lost {
            let at = handed.iter().position(|h| h.lane_id == id && h.seq == seq).expect("lost messages were picked");
            let attempt = handed.remove(at).attempt;
            match why {
                Lost::Failed(e) => {
                    tracing::warn!(stream = %self.lanes[id].stream, seq, error = %e, "reading a message failed; it stays");
                    self.step(id, Event::Release { seq, attempt });
                }
                Lost::Gone => {
                    self.step(id, Event::Settled { seq });
                }
                Lost::Damaged => {
                    self.step(id, Event::Settled { seq });
                    self.skip_damaged(id, seq, "damaged");
                }
            }
        }
        self.send(reply, handed);
    }

    fn send(&mut self, reply: tokio::sync::oneshot::Sender<Result<Parcel>>, handed: Vec<Handed>) {
        for h in &handed {
            self.subs[self.lanes[h.lane_id].sub].counts.delivered.inc();
        }
        let back = handed.first().map(|h| {
            let sub = self.lanes[h.lane_id].sub;
            (self.subs[sub].source.clone(), self.calls.clone())
        });
        if let Err(Ok(parcel)) = reply.send(Ok(Parcel { handed, back })) {
            // Nobody took them: they were not delivered and count no attempt.
            for h in parcel.open() {
                self.step(h.lane_id, Event::Release { seq: h.seq, attempt: h.attempt });
            }
        }
    }
}

/// One message's payload from the store.
pub(super) async fn read_one(store: &dyn Store, stream: &str, seq: Seq) -> std::result::Result<Stored, Lost> {
    let records = store.read(stream, seq, 1, limits::MESSAGE_BYTES * 2).await.map_err(Lost::Failed)?;
    match records.into_iter().next() {
        Some(r) if r.seq == seq => match r.payload {
            Ok(payload) => Ok(Stored { payload, position: r.position }),
            Err(_) => Err(Lost::Damaged),
        },
        _ => Err(Lost::Gone),
    }
}
