//! A lane: one stream delivered to one subscription. Here messages come in, from durable publishes or from the store.

use hashbrown::HashMap;
use weft_core::{Envelope, Timestamp, limits};
use weft_store::{Attempt, CursorName, OWN, Op, Position, Record, Seq, StreamName};

use super::{Actor, Read, Stream, event_of};
use crate::queue::{Event, State};
use crate::ranges::Ranges;
use crate::record;
use crate::types::Stored;

/// Index into the actor's lanes.
pub(super) type LaneId = usize;

/// The lane index, in lease tokens, of messages redriven to a subscription.
pub(crate) const REDRIVEN: u32 = u32::MAX;

/// Records asked of the store at once.
const LOAD_RECORDS: usize = 512;
/// Bytes asked of the store at once.
const LOAD_BYTES: usize = 1 << 20;

pub(super) struct Lane {
    pub sub: usize,
    /// In lease tokens: the partition, or [`REDRIVEN`].
    pub index: u32,
    pub stream: StreamName,
    pub cursor: CursorName,
    pub state: State,
    /// The first record that was not looked at yet.
    pub next: Seq,
    pub loading: bool,
    /// Settled, at or above `next`.
    pub settled: Ranges,
    /// Attempts of earlier openings, of records at or above `next`.
    pub attempts: HashMap<Seq, Attempt>,
    /// Payloads of ready messages, as far as memory allows.
    pub payloads: HashMap<Seq, Stored>,
    /// Did not match the filter; to be acknowledged.
    pub unseen: Vec<Seq>,
    pub armed: Option<Timestamp>,
}

impl Lane {
    /// Messages of a stream that ends at `last` which this lane did not settle.
    pub fn backlog(&self, last: Seq) -> u64 {
        let c = self.state.counts();
        (c.ready + c.in_flight + c.delayed) as u64 + self.unloaded(last)
    }

    /// Those it did not look at yet.
    pub fn unloaded(&self, last: Seq) -> u64 {
        (last + 1).saturating_sub(self.next)
            - self.settled.count_from(self.next).min((last + 1).saturating_sub(self.next))
    }

    /// The first message it did not settle.
    pub fn oldest(&self, last: Seq) -> Option<Seq> {
        self.state.first().or((self.next <= last).then_some(self.next))
    }
}

impl Actor {
    /// Makes the lane of a subscription on a stream, where the store's cursor stands, or at `start` without one.
    pub(super) fn add_lane(
        &mut self,
        sub: usize,
        index: u32,
        stream: &StreamName,
        cursor: CursorName,
        start: Seq,
    ) -> LaneId {
        let info = self.store.stream(stream).unwrap_or_default();
        let known = self.store.cursor(stream, &cursor);
        let c = known.unwrap_or(weft_store::Cursor { floor: start, ..Default::default() });
        let mut settled = Ranges::default();
        for (from, to) in &c.acked {
            settled.insert_range(*from, *to);
        }
        let id = self.lanes.len();
        self.lanes.push(Lane {
            sub,
            index,
            stream: stream.clone(),
            cursor,
            state: State::new(self.subs[sub].rules()),
            next: c.floor.max(info.trimmed) + 1,
            loading: false,
            settled,
            attempts: c.attempts.into_iter().collect(),
            payloads: HashMap::new(),
            unseen: Vec::new(),
            armed: None,
        });
        let s = self.streams.entry(stream.clone()).or_insert(Stream { last: info.last, ..Stream::default() });
        s.lanes.push(id);
        self.subs[sub].lanes.push(id);
        self.touched.insert(id);
        id
    }

    /// A record of ours is durable.
    pub(super) fn published(&mut self, stream: &StreamName, seq: Seq, position: Position, payload: bytes::Bytes) {
        self.arrived(stream, &payload);
        let Some(s) = self.streams.get_mut(stream) else { return };
        s.last = s.last.max(seq);
        if s.lanes.is_empty() {
            return;
        }
        let lanes = s.lanes.clone();
        let Ok(record) = record::decode(&payload) else { return };
        let mut event = None;
        for id in lanes {
            let lane = &self.lanes[id];
            // Behind its stream: it comes to this record by reading.
            if lane.next == seq && !lane.loading && lane.state.room() > 0 {
                self.admit(id, seq, &record, Stored { payload: payload.clone(), position }, &mut event);
            }
            self.touched.insert(id);
        }
    }

    /// Shows one record to a lane: filtered out, or into the window.
    fn admit(&mut self, id: LaneId, seq: Seq, r: &record::Record, stored: Stored, event: &mut Option<Envelope>) {
        let lane = &mut self.lanes[id];
        lane.next = seq + 1;
        if lane.settled.contains(seq) {
            return;
        }
        if let Some(filter) = &self.subs[lane.sub].filter {
            if event.is_none() {
                *event = Envelope::decode(r.envelope.clone()).ok();
            }
            // What does not decode does not match anything; it is reported when somebody without a filter meets it.
            if !event.as_ref().is_some_and(|e| filter.matches(e)) {
                lane.unseen.push(seq);
                return;
            }
        }
        let before = lane.attempts.remove(&seq).unwrap_or_default();
        let not_before = r.not_before.max(before.not_before);
        if self.ready_bytes + stored.payload.len() <= limits::READY_BYTES {
            self.ready_bytes += stored.payload.len();
            self.lanes[id].payloads.insert(seq, stored);
        }
        self.step(id, Event::Load { seq, key: r.key, attempts: before.count, not_before });
    }

    /// Reads on when there is something to read and room for it.
    pub(super) fn load(&mut self, id: LaneId) {
        let lane = &mut self.lanes[id];
        let Some(stream) = self.streams.get(&lane.stream) else { return };
        let room = lane.state.room();
        // Half a read's worth of room at least: reading record by record would read blocks again and again.
        if lane.loading || lane.next > stream.last || room < LOAD_RECORDS / 2 {
            return;
        }
        lane.loading = true;
        let upto = stream.last;
        let read = self.store.read(&lane.stream, lane.next, room.min(LOAD_RECORDS), LOAD_BYTES);
        self.reads.push(Box::pin(async move { Read::Load { lane: id, upto, records: read.await } }));
    }

    pub(super) fn loaded(&mut self, id: LaneId, upto: Seq, records: weft_store::Result<Vec<Record>>) {
        self.lanes[id].loading = false;
        self.touched.insert(id);
        let records = match records {
            Ok(r) => r,
            Err(e) => {
                // The store is going down or reopening; the next turn that touches the lane reads again.
                tracing::warn!(stream = %self.lanes[id].stream, error = %e, "reading messages failed");
                self.touched.remove(&id);
                return;
            }
        };
        if records.is_empty() {
            let lane = &mut self.lanes[id];
            lane.next = lane.next.max(upto + 1);
        }
        for r in records {
            let lane = &mut self.lanes[id];
            if r.seq < lane.next {
                continue;
            }
            // A gap was trimmed, or settled under the stream's own cursor.
            lane.next = r.seq;
            let decoded = r.payload.as_ref().map_err(|_| "damaged".to_owned());
            match decoded.and_then(|p| record::decode(p).map_err(|e| e.to_string())) {
                Ok(record) => {
                    let payload = r.payload.expect("decoded above");
                    self.admit(id, r.seq, &record, Stored { payload, position: r.position }, &mut None);
                }
                Err(reason) => {
                    lane.next = r.seq + 1;
                    self.skip_damaged(id, r.seq, &reason);
                }
            }
        }
        let lane = &mut self.lanes[id];
        let next = lane.next;
        lane.settled.forget_below(next);
        lane.attempts.retain(|seq, _| *seq >= next);
    }

    /// A record that cannot be read is reported and left behind; the store keeps what it set aside.
    pub(super) fn skip_damaged(&mut self, id: LaneId, seq: Seq, reason: &str) {
        let lane = &mut self.lanes[id];
        tracing::error!(stream = %lane.stream, seq, reason, "a message cannot be read and is passed over");
        self.subs[lane.sub].counts.damaged.inc();
        lane.unseen.push(seq);
    }

    /// Acknowledges what the filter kept out; nobody waits for it.
    pub(super) fn acknowledge_unseen(&mut self, id: LaneId) {
        let lane = &mut self.lanes[id];
        if !lane.unseen.is_empty() {
            let seqs = std::mem::take(&mut lane.unseen);
            self.relaxed.push(Op::Ack(lane.stream.clone(), lane.cursor.clone(), seqs));
        }
    }

    pub(super) fn drop_payload(&mut self, id: LaneId, seq: Seq) {
        if let Some(s) = self.lanes[id].payloads.remove(&seq) {
            self.ready_bytes -= s.payload.len();
        }
    }

    pub(super) fn take_payload(&mut self, id: LaneId, seq: Seq) -> Option<Stored> {
        let stored = self.lanes[id].payloads.remove(&seq)?;
        self.ready_bytes -= stored.payload.len();
        Some(stored)
    }

    /// Retention removed records.
    pub(super) fn trimmed(&mut self, stream: &StreamName, through: Seq) {
        let Some(s) = self.streams.get(stream) else { return };
        for id in s.lanes.clone() {
            self.step(id, Event::Trim { through });
            let lane = &mut self.lanes[id];
            let lost = (through + 1).saturating_sub(lane.next);
            lane.next = lane.next.max(through + 1);
            let next = lane.next;
            lane.settled.forget_below(next);
            lane.attempts.retain(|seq, _| *seq >= next);
            let gone: Vec<Seq> = lane.payloads.keys().copied().filter(|seq| *seq <= through).collect();
            if lost > 0 {
                tracing::warn!(%stream, lost, source = %self.subs[lane.sub].source, "retention passed a subscription that fell behind");
            }
            gone.into_iter().for_each(|seq| self.drop_payload(id, seq));
        }
    }

    /// A message that may not be in the window yet: brings it in so that it can be settled. `false` when it is settled,
    /// trimmed, or was never published.
    pub(super) fn reach(&mut self, id: LaneId, seq: Seq) -> bool {
        let lane = &self.lanes[id];
        if lane.state.look(seq).is_some() {
            return true;
        }
        let last = self.streams.get(&lane.stream).map_or(0, |s| s.last);
        if seq < lane.next || seq > last || lane.settled.contains(seq) {
            return false;
        }
        let attempts = self.lanes[id].attempts.get(&seq).map_or(0, |a| a.count);
        self.lanes[id].settled.insert(seq);
        self.step(id, Event::Load { seq, key: None, attempts, not_before: Timestamp(0) })
    }

    /// The lane a lease names.
    pub(super) fn lane_of(&self, source: &crate::Source, index: u32) -> Option<LaneId> {
        let sub = self.sub_of(source)?;
        self.subs[sub].lanes.iter().copied().find(|l| self.lanes[*l].index == index)
    }

    pub(super) fn sub_of(&self, source: &crate::Source) -> Option<usize> {
        match source {
            crate::Source::Queue(n) => self.queues.get(n).map(|q| q.sub),
            crate::Source::Subscription(n) => self.subscriptions.get(n).copied(),
        }
    }

    /// The cursor a source's lane acknowledges under.
    pub(super) fn own() -> CursorName {
        OWN.into()
    }

    /// Decodes for burial and moves.
    pub(super) fn envelope(payload: &bytes::Bytes) -> std::result::Result<Envelope, String> {
        event_of(payload)
    }
}
