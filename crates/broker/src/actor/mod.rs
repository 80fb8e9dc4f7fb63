//! The sequencing task: owns every machine, forms store batches, never waits for the disk.
//!
//! One turn takes what arrived (calls, finished commits, finished reads, time), applies it, and submits what came of it as
//! store batches; calls are answered when their batch is durable. Batches of plain calls that arrive together go to the
//! store together. Because only this task writes to queue and topic streams and commits finish in submission order,
//! messages enter the machines in sequence order, and only once they are durable.

mod configure;
mod deliver;
mod lane;
mod list;
mod publish;
mod settle;
mod upkeep;

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesOrdered, FuturesUnordered};
use hashbrown::HashMap;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use weft_core::{Envelope, Name, Timestamp, limits};
use weft_store::{Batch, Durability, Op, Position, Receipt, Seq, Store, StreamName};

use crate::broker::Shared;
use crate::push::Pool;
use crate::queue::{Action, Event};
use crate::spec::{QueueSpec, SubscriptionSpec, TopicSpec};
use crate::token::Lease;
use crate::types::Stored;
use crate::{Channel, Error, NackOptions, Result, Settled, Source, dedup};

pub(crate) use configure::{Declaration, SPACE as DECLARATIONS};
use lane::{Lane, LaneId, REDRIVEN};
pub(crate) use list::Kind;
pub(crate) use settle::DEAD_ORIGIN;

/// A call.
pub(crate) enum Command {
    Publish {
        items: Vec<Item>,
        reply: oneshot::Sender<Result<Vec<Draft>>>,
    },
    Commit {
        ack: Vec<Lease>,
        items: Vec<Item>,
        extra: Batch,
        reply: oneshot::Sender<Result<Committed>>,
    },
    Receive {
        source: Source,
        receiver: Receiver,
    },
    Ack {
        leases: Vec<Lease>,
        reply: oneshot::Sender<Result<Settled>>,
    },
    Nack {
        leases: Vec<Lease>,
        options: NackOptions,
        reply: oneshot::Sender<Result<Settled>>,
    },
    Extend {
        leases: Vec<Lease>,
        lease: Option<Duration>,
        reply: oneshot::Sender<Result<Settled>>,
    },
    Release {
        source: Source,
        lane: u32,
        epoch: u64,
        seq: Seq,
        attempt: u32,
    },
    Move {
        queue: Name,
        seq: Seq,
        payload: Bytes,
        to: Channel,
        back: Option<Source>,
        reply: oneshot::Sender<Result<bool>>,
    },
    Apply {
        queues: Vec<QueueSpec>,
        topics: Vec<TopicSpec>,
        subscriptions: Vec<SubscriptionSpec>,
        reply: oneshot::Sender<Result<()>>,
    },
    Declare {
        declaration: Box<Declaration>,
        reply: oneshot::Sender<Result<bool>>,
    },
    List {
        kind: list::Kind,
        reply: oneshot::Sender<Vec<list::Entry>>,
    },
    Look {
        queue: Name,
        seqs: Vec<Seq>,
        reply: oneshot::Sender<Option<Vec<(u32, &'static str)>>>,
    },
    Close,
}

/// A message prepared by its caller.
pub(crate) struct Item {
    pub channel: Channel,
    pub id: String,
    pub payload: Bytes,
    pub key: Option<u64>,
    pub not_before: Timestamp,
    pub dedup: Option<(dedup::Hash, Duration)>,
}

/// A publish's answer before ids of repeats were looked up.
#[derive(Clone, Debug)]
pub(crate) enum Draft {
    /// Stored.
    New { id: String, position: Position },
    /// Seen before; the stored receipt is under this key.
    Repeat { key: Bytes, position: Position, id: String },
    /// A repeat of an earlier item of the same call.
    Same(usize),
}

/// A commit's answer.
pub(crate) struct Committed {
    pub receipt: Receipt,
    pub drafts: Vec<Draft>,
    pub extra: Vec<Seq>,
}

/// One waiting receive call.
pub(crate) struct Receiver {
    pub max: usize,
    pub lease: Option<Duration>,
    /// Answer at once, empty if need be.
    pub now: bool,
    pub reply: oneshot::Sender<Result<Parcel>>,
}

/// A delivery before its event is decoded.
pub(crate) struct Handed {
    pub lane: u32,
    pub lane_id: usize,
    pub epoch: u64,
    pub seq: Seq,
    pub attempt: u32,
    pub stored: Stored,
}

/// Deliveries on their way to a receiver. Dropped unopened (the receiver went away at the last moment), they are given
/// back and count no attempt.
#[derive(Default)]
pub(crate) struct Parcel {
    handed: Vec<Handed>,
    back: Option<(Source, mpsc::WeakSender<Command>)>,
}

impl Parcel {
    pub fn open(mut self) -> Vec<Handed> {
        std::mem::take(&mut self.handed)
    }
}

impl Drop for Parcel {
    fn drop(&mut self) {
        let Some((source, calls)) = self.back.take().filter(|_| !self.handed.is_empty()) else { return };
        let Some(calls) = calls.upgrade() else { return };
        for h in self.handed.drain(..) {
            let (source, lane) = (source.clone(), h.lane);
            // Full: the lease ends by itself, one attempt poorer.
            let _ = calls.try_send(Command::Release { source, lane, epoch: h.epoch, seq: h.seq, attempt: h.attempt });
        }
    }
}

/// What one call put into a store batch, and what to do when the batch is durable.
#[derive(Default)]
struct Tx {
    appended: Vec<Appended>,
    /// Appends of the caller's own, behind ours.
    extra_appends: usize,
    acks: Vec<(LaneId, Seq)>,
    dedup: Vec<dedup::Hash>,
    declared: Vec<Channel>,
    trims: Vec<(StreamName, Seq)>,
    done: Done,
}

struct Appended {
    stream: StreamName,
    payload: Bytes,
}

#[derive(Default)]
enum Done {
    #[default]
    Nothing,
    Publish {
        reply: oneshot::Sender<Result<Vec<Draft>>>,
        drafts: Vec<Draft>,
    },
    Commit {
        reply: oneshot::Sender<Result<Committed>>,
        drafts: Vec<Draft>,
    },
    Ack {
        reply: oneshot::Sender<Result<Settled>>,
        settled: Settled,
    },
    Bury {
        sub: usize,
        _guard: Option<Arc<settle::Answer>>,
    },
    Move {
        reply: oneshot::Sender<Result<bool>>,
    },
    Apply {
        reply: oneshot::Sender<Result<()>>,
    },
    Declare {
        reply: oneshot::Sender<Result<bool>>,
        created: bool,
    },
}

/// A read that finished.
enum Read {
    Load {
        lane: LaneId,
        upto: Seq,
        records: weft_store::Result<Vec<weft_store::Record>>,
    },
    Hand {
        receiver: oneshot::Sender<Result<Parcel>>,
        handed: Vec<Handed>,
        lost: Vec<(LaneId, Seq, Lost)>,
    },
    Bury {
        lane: LaneId,
        seq: Seq,
        attempts: u32,
        reason: String,
        guard: Option<Arc<settle::Answer>>,
        stored: std::result::Result<Stored, Lost>,
    },
    Trim {
        stream: StreamName,
        through: Option<Seq>,
    },
}

/// Why a payload could not be read.
#[derive(Clone, Debug)]
enum Lost {
    /// Trimmed or settled meanwhile.
    Gone,
    /// Set aside with a damaged batch.
    Damaged,
    /// The store failed.
    Failed(weft_store::Error),
}

/// A batch being formed out of several calls.
#[derive(Default)]
struct Group {
    batch: Batch,
    txs: Vec<Tx>,
    bytes: usize,
}

/// Payload bytes of calls joined into one store batch; more gains nothing.
const GROUP_BYTES: usize = 1 << 20;
/// Calls taken in one turn.
const TURN_CALLS: usize = 256;
/// How often retention and expiry are looked at.
const UPKEEP: Duration = Duration::from_secs(1);

struct Queue {
    spec: QueueSpec,
    owner: configure::Owner,
    stream: StreamName,
    sub: usize,
    counts: crate::metrics::ChannelCounts,
}

struct Topic {
    spec: TopicSpec,
    owner: configure::Owner,
    /// One for each partition that has records, which can be more than the spec says.
    streams: Vec<StreamName>,
    turn: usize,
    subs: Vec<usize>,
    next_trim: Option<Instant>,
    counts: crate::metrics::ChannelCounts,
}

struct Sub {
    source: Source,
    owner: configure::Owner,
    topic: Option<Name>,
    spec: Option<SubscriptionSpec>,
    /// A queue's; a subscription's is in its spec.
    redelivery: crate::spec::Redelivery,
    lease: Duration,
    filter: Option<crate::expression::Expression>,
    dead_letter: Option<Name>,
    lanes: Vec<LaneId>,
    receivers: VecDeque<Receiver>,
    turn: usize,
    counts: crate::metrics::SourceCounts,
}

#[derive(Default)]
struct Stream {
    last: Seq,
    lanes: Vec<LaneId>,
    /// Appends on their way to disk.
    pending: u64,
    pending_delayed: usize,
}

pub(crate) struct Actor {
    store: Arc<dyn Store>,
    shared: Arc<Shared>,
    calls: mpsc::WeakSender<Command>,
    pools: HashMap<Name, Pool>,
    epoch: u64,
    queues: HashMap<Name, Queue>,
    topics: HashMap<Name, Topic>,
    subscriptions: HashMap<Name, usize>,
    subs: Vec<Sub>,
    lanes: Vec<Lane>,
    streams: HashMap<StreamName, Stream>,
    dedup: dedup::Table,
    /// Calls that depend on a commit in flight; run again when one finishes.
    deferred: Vec<Command>,
    /// Channels made by first use whose declaration is not durable yet.
    undeclared: BTreeSet<Channel>,
    open: Option<Group>,
    /// Operations nobody waits for.
    relaxed: Vec<Op>,
    commits: FuturesOrdered<BoxFuture<'static, (Vec<Tx>, weft_store::Result<Receipt>)>>,
    reads: FuturesUnordered<BoxFuture<'static, Read>>,
    timers: BinaryHeap<Reverse<(Timestamp, LaneId)>>,
    touched: BTreeSet<LaneId>,
    hungry: BTreeSet<usize>,
    ready_bytes: usize,
    actions: Vec<Action>,
    closing: bool,
}

impl Actor {
    pub fn new(
        store: Arc<dyn Store>,
        shared: Arc<Shared>,
        calls: mpsc::WeakSender<Command>,
        epoch: u64,
        dedup: dedup::Table,
    ) -> Self {
        Self {
            store,
            shared,
            calls,
            pools: HashMap::new(),
            epoch,
            queues: HashMap::new(),
            topics: HashMap::new(),
            subscriptions: HashMap::new(),
            subs: Vec::new(),
            lanes: Vec::new(),
            streams: HashMap::new(),
            dedup,
            deferred: Vec::new(),
            undeclared: BTreeSet::new(),
            open: None,
            relaxed: Vec::new(),
            commits: FuturesOrdered::new(),
            reads: FuturesUnordered::new(),
            timers: BinaryHeap::new(),
            touched: BTreeSet::new(),
            hungry: BTreeSet::new(),
            ready_bytes: 0,
            actions: Vec::new(),
            closing: false,
        }
    }

    /// Runs until the broker is closed.
    pub async fn run(mut self, mut calls: mpsc::Receiver<Command>) {
        let mut taken = Vec::with_capacity(TURN_CALLS);
        let mut upkeep = tokio::time::interval(UPKEEP);
        upkeep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        self.end_turn();
        while !self.closing {
            let timer = self.timers.peek().map(|Reverse((at, _))| self.shared.clock.instant(*at));
            tokio::select! {
                biased;
                Some((txs, result)) = self.commits.next() => {
                    self.finish(txs, result);
                    self.drain_finished();
                }
                Some(read) = self.reads.next() => self.read_done(read),
                () = tokio::time::sleep_until(timer.unwrap_or_else(Instant::now)), if timer.is_some() => {}
                n = calls.recv_many(&mut taken, TURN_CALLS), if self.commits.len() < limits::BROKER_COMMITS => {
                    if n == 0 {
                        break;
                    }
                }
                _ = upkeep.tick() => self.upkeep(),
            }
            self.tick();
            for call in taken.drain(..) {
                self.handle(call);
            }
            self.end_turn();
        }
    }

    fn now(&self) -> Timestamp {
        self.shared.clock.now()
    }

    fn handle(&mut self, call: Command) {
        match call {
            Command::Publish { items, reply } => self.publish(items, reply),
            Command::Commit { ack, items, extra, reply } => self.commit(ack, items, extra, reply),
            Command::Receive { source, receiver } => self.receive(source, receiver),
            Command::Ack { leases, reply } => self.ack(leases, reply),
            Command::Nack { leases, options, reply } => self.nack(leases, options, reply),
            Command::Extend { leases, lease, reply } => self.extend(leases, lease, reply),
            Command::Release { source, lane, epoch, seq, attempt } => self.release(&source, lane, epoch, seq, attempt),
            Command::Move { queue, seq, payload, to, back, reply } => {
                self.move_message(queue, seq, payload, to, back, reply)
            }
            Command::Apply { queues, topics, subscriptions, reply } => self.apply(queues, topics, subscriptions, reply),
            Command::Declare { declaration, reply } => self.declare(*declaration, reply),
            Command::List { kind, reply } => {
                let _ = reply.send(self.list(kind));
            }
            Command::Look { queue, seqs, reply } => {
                let _ = reply.send(self.look(&queue, &seqs));
            }
            Command::Close => self.closing = true,
        }
    }

    /// Takes every further commit that is finished already, so that one turn answers all of a group.
    fn drain_finished(&mut self) {
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        while let std::task::Poll::Ready(Some((txs, result))) = self.commits.poll_next_unpin(&mut cx) {
            self.finish(txs, result);
        }
    }

    /// Adds one call's operations to the batch being formed, or gives it a batch of its own when it has preconditions:
    /// those must fail alone.
    fn enlist(&mut self, batch: Batch, tx: Tx) {
        let bytes: usize = batch.ops.iter().map(op_bytes).sum();
        let alone = !batch.expect.is_empty();
        let joins = !alone
            && self
                .open
                .as_ref()
                .is_some_and(|g| g.bytes + bytes <= GROUP_BYTES && g.batch.durability == batch.durability);
        if !joins {
            self.flush();
        }
        let group = self.open.get_or_insert_with(|| Group {
            batch: Batch { durability: batch.durability, ..Batch::new() },
            ..Group::default()
        });
        group.batch.expect.extend(batch.expect);
        group.batch.ops.extend(batch.ops);
        group.txs.push(tx);
        group.bytes += bytes;
        if alone {
            self.flush();
        }
    }

    /// Submits the batch being formed.
    fn flush(&mut self) {
        let Some(mut group) = self.open.take() else { return };
        // Attempts ride in front: a message that is settled in this batch was delivered before it.
        if !self.relaxed.is_empty() && group.batch.expect.is_empty() {
            let mut ops = std::mem::take(&mut self.relaxed);
            ops.append(&mut group.batch.ops);
            group.batch.ops = ops;
        }
        let commit = self.store.commit(group.batch);
        self.commits.push_back(Box::pin(async move { (group.txs, commit.await) }));
    }

    fn end_turn(&mut self) {
        let subs: BTreeSet<usize> =
            self.touched.iter().map(|l| self.lanes[*l].sub).chain(std::mem::take(&mut self.hungry)).collect();
        for lane in self.touched.clone() {
            self.load(lane);
        }
        for sub in subs {
            self.serve(sub);
        }
        for lane in std::mem::take(&mut self.touched) {
            self.arm(lane);
            self.acknowledge_unseen(lane);
        }
        self.flush();
        if !self.relaxed.is_empty() {
            let batch =
                Batch { ops: std::mem::take(&mut self.relaxed), durability: Durability::Relaxed, ..Batch::new() };
            self.enlist(batch, Tx::default());
            self.flush();
        }
    }

    /// One batch is durable, or failed.
    fn finish(&mut self, txs: Vec<Tx>, result: weft_store::Result<Receipt>) {
        match result {
            Ok(receipt) => {
                let mut at = 0;
                for tx in txs {
                    for a in tx.appended {
                        self.published(&a.stream, receipt.seqs[at], receipt.position, a.payload);
                        at += 1;
                    }
                    let extra = receipt.seqs[at..at + tx.extra_appends].to_vec();
                    at += tx.extra_appends;
                    for (lane, seq) in tx.acks {
                        self.step(lane, Event::Settled { seq });
                        self.drop_payload(lane, seq);
                    }
                    for (stream, through) in tx.trims {
                        self.trimmed(&stream, through);
                    }
                    for hash in tx.dedup {
                        self.dedup.confirm(hash, receipt.position);
                    }
                    for channel in tx.declared {
                        self.stored(&channel);
                    }
                    self.answer(tx.done, &receipt, extra);
                }
            }
            Err(e) => {
                for tx in txs {
                    for a in tx.appended {
                        self.arrived(&a.stream, &a.payload);
                    }
                    for (lane, seq) in tx.acks {
                        self.step(lane, Event::Unsettled { seq });
                    }
                    for hash in tx.dedup {
                        self.dedup.abandon(hash);
                    }
                    tx.done.fail(&e);
                }
            }
        }
        self.rerun();
    }

    /// Runs calls again that waited for what just ended.
    fn rerun(&mut self) {
        for call in std::mem::take(&mut self.deferred) {
            self.handle(call);
        }
    }

    fn answer(&mut self, done: Done, receipt: &Receipt, extra: Vec<Seq>) {
        let place = |mut drafts: Vec<Draft>| {
            for d in &mut drafts {
                if let Draft::New { position, .. } = d {
                    *position = receipt.position;
                }
            }
            drafts
        };
        // A caller that stopped waiting is no error: its call took effect.
        match done {
            Done::Nothing => {}
            Done::Publish { reply, drafts } => {
                let _ = reply.send(Ok(place(drafts)));
            }
            Done::Commit { reply, drafts } => {
                let _ = reply.send(Ok(Committed { receipt: receipt.clone(), drafts: place(drafts), extra }));
            }
            Done::Ack { reply, settled } => {
                let _ = reply.send(Ok(settled));
            }
            Done::Bury { sub, .. } => self.subs[sub].counts.dead.inc(),
            Done::Move { reply } => {
                let _ = reply.send(Ok(true));
            }
            Done::Apply { reply } => {
                let _ = reply.send(Ok(()));
            }
            Done::Declare { reply, created } => {
                let _ = reply.send(Ok(created));
            }
        }
    }

    /// Applies one event to a lane's machine and does what it asks, deliveries excepted: those come from `serve`.
    fn step(&mut self, lane: LaneId, event: Event) -> bool {
        self.step_guarded(lane, event, None)
    }

    fn step_guarded(&mut self, lane: LaneId, event: Event, guard: Option<Arc<settle::Answer>>) -> bool {
        let now = self.now();
        let mut actions = std::mem::take(&mut self.actions);
        let did = self.lanes[lane].state.apply(now, event, &mut actions);
        for action in actions.drain(..) {
            match action {
                Action::Journal { seq, attempts, not_before } => {
                    if not_before > Timestamp(0) {
                        self.subs[self.lanes[lane].sub].counts.retried.inc();
                    }
                    self.journal(lane, seq, attempts, not_before);
                }
                Action::Bury { seq, attempts, reason } => self.bury(lane, seq, attempts, reason, guard.clone()),
                Action::Deliver { .. } => unreachable!("only Take delivers, and only serve takes"),
            }
        }
        self.actions = actions;
        self.touched.insert(lane);
        did
    }

    fn journal(&mut self, lane: LaneId, seq: Seq, count: u32, not_before: Timestamp) {
        let l = &self.lanes[lane];
        self.relaxed.push(Op::Attempt(
            l.stream.clone(),
            l.cursor.clone(),
            seq,
            weft_store::Attempt { count, not_before },
        ));
    }

    fn tick(&mut self) {
        let now = self.now();
        while let Some(Reverse((at, lane))) = self.timers.peek().copied()
            && at <= now
        {
            self.timers.pop();
            if self.lanes[lane].armed == Some(at) {
                self.lanes[lane].armed = None;
            }
            self.step(lane, Event::Tick);
        }
    }

    /// Makes sure a timer fires for the lane's next instant.
    fn arm(&mut self, lane: LaneId) {
        let l = &mut self.lanes[lane];
        if let Some(at) = l.state.next_timer()
            && l.armed.is_none_or(|armed| at < armed)
        {
            l.armed = Some(at);
            self.timers.push(Reverse((at, lane)));
        }
    }

    fn read_done(&mut self, read: Read) {
        match read {
            Read::Load { lane, upto, records } => self.loaded(lane, upto, records),
            Read::Hand { receiver, handed, lost } => self.handed(receiver, handed, lost),
            Read::Bury { lane, seq, attempts, reason, guard, stored } => {
                self.bury_read(lane, seq, attempts, &reason, guard, stored)
            }
            Read::Trim { stream, through } => self.trim(stream, through),
        }
        self.rerun();
    }
}

impl Done {
    fn fail(self, e: &weft_store::Error) {
        let e = Error::Store(e.clone());
        match self {
            Done::Nothing | Done::Bury { .. } => {}
            Done::Publish { reply, .. } => drop(reply.send(Err(e))),
            Done::Commit { reply, .. } => drop(reply.send(Err(e))),
            Done::Ack { reply, .. } => drop(reply.send(Err(e))),
            Done::Move { reply } => drop(reply.send(Err(e))),
            Done::Apply { reply } => drop(reply.send(Err(e))),
            Done::Declare { reply, .. } => drop(reply.send(Err(e))),
        }
    }
}

fn op_bytes(op: &Op) -> usize {
    match op {
        Op::Append(stream, payload) => stream.len() + payload.len(),
        Op::Put { key, value, .. } => key.len() + value.len(),
        Op::Ack(stream, _, seqs) => stream.len() + 8 * seqs.len(),
        _ => 32,
    }
}

/// Decodes the event of a stored message.
fn event_of(payload: &Bytes) -> std::result::Result<Envelope, String> {
    let record = crate::record::decode(payload).map_err(|e| e.to_string())?;
    Envelope::decode(record.envelope).map_err(|e| e.to_string())
}
