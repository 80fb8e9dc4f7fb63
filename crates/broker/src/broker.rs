//! The door: a clonable handle to the sequencing task.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use weft_core::{Context, Envelope, Id, Name, Timestamp, Trace, limits};
use weft_mesh::Mesh;
use weft_store::{Batch, Store};
use weft_telemetry::Telemetry;

use crate::actor::{Actor, Command, Declaration, Draft, Handed, Item, Parcel, Receiver};
use crate::clock::BrokerClock;
use crate::metrics;
use crate::spec::{QueueSpec, SubscriptionSpec, TopicSpec};
use crate::token::Lease;
use crate::topology::{ChannelRules, Topology};
use crate::types::{
    Channel, Commit, CommitReceipt, Delivery, Listing, NackOptions, Peeked, Publish, PublishOptions, Receipt,
    ReceiveOptions, Settled, Source,
};
use crate::{Error, Result, actor, declare, dedup, record};

/// Queues and topics. Cheap to clone; usable from any runtime.
#[derive(Clone)]
pub struct Broker {
    calls: mpsc::Sender<Command>,
    shared: Arc<Shared>,
}

/// What the handle and the task share.
pub(crate) struct Shared {
    pub store: Arc<dyn Store>,
    pub clock: BrokerClock,
    pub topology: RwLock<Arc<Topology>>,
    pub telemetry: Telemetry,
    pub mesh: Mesh,
    task: Mutex<Option<JoinHandle<()>>>,
}

/// Keys read from the store at once while opening.
const OPEN_KEYS: usize = 1_000;

impl Broker {
    /// Opens the broker on a store: takes the declarations, dedup ids, cursors and attempts it left there, ends all leases,
    /// and starts its task on the current runtime.
    pub async fn open(store: Arc<dyn Store>, telemetry: Telemetry, mesh: Mesh) -> Result<Self> {
        let mut ids = dedup::Table::default();
        let mut after: Option<bytes::Bytes> = None;
        loop {
            let some = store.scan(dedup::SPACE, b"", after.as_deref(), OPEN_KEYS).await?;
            for (key, value) in &some {
                if ids.restore(key, value.version).is_none() {
                    tracing::error!("a stored dedup id has a key of an unknown form");
                }
            }
            match some.last() {
                Some((key, _)) if some.len() == OPEN_KEYS => after = Some(key.clone()),
                _ => break,
            }
        }
        let mut declarations = Vec::new();
        let mut after: Option<bytes::Bytes> = None;
        loop {
            let some = store.scan(actor::DECLARATIONS, b"", after.as_deref(), OPEN_KEYS).await?;
            for (key, value) in &some {
                match Declaration::restore(&String::from_utf8_lossy(key), &value.bytes) {
                    Ok(d) => declarations.push(d),
                    Err(e) => tracing::error!(error = %e, "a stored declaration cannot be read; its messages stay"),
                }
            }
            match some.last() {
                Some((key, _)) if some.len() == OPEN_KEYS => after = Some(key.clone()),
                _ => break,
            }
        }
        let shared = Arc::new(Shared {
            store: store.clone(),
            clock: BrokerClock::start(),
            topology: RwLock::default(),
            telemetry,
            mesh,
            task: Mutex::default(),
        });
        let (calls, rx) = mpsc::channel(limits::BROKER_CALLS);
        // Leases of an earlier opening must not look current: 64 random bits do not repeat.
        let mut actor = Actor::new(store, shared.clone(), calls.downgrade(), rand::random(), ids);
        actor.restore(declarations);
        *shared.task.lock() = Some(weft_core::task::spawn("broker", actor.run(rx)));
        Ok(Self { calls, shared })
    }

    /// The handle of a task whose calls come in here.
    pub(crate) fn of(calls: mpsc::Sender<Command>, shared: Arc<Shared>) -> Self {
        Self { calls, shared }
    }

    pub(crate) fn telemetry(&self) -> &Telemetry {
        &self.shared.telemetry
    }

    /// Stops the task and the pushes. Calls in flight end unanswered; everything acknowledged is in the store.
    pub async fn close(&self) {
        let _ = self.calls.send(Command::Close).await;
        let task = self.shared.task.lock().take();
        if let Some(task) = task {
            // A panic of the task was printed with its name.
            let _ = task.await;
        }
    }

    /// Replaces what the configuration file declares. On an error nothing changed.
    pub async fn apply(
        &self,
        queues: &[QueueSpec],
        topics: &[TopicSpec],
        subscriptions: &[SubscriptionSpec],
    ) -> Result<()> {
        let (queues, topics, subscriptions) = (queues.to_vec(), topics.to_vec(), subscriptions.to_vec());
        self.call(|reply| Command::Apply { queues, topics, subscriptions, reply }).await
    }

    /// Publishes one event; the answer comes when it is durable.
    pub async fn publish(
        &self,
        ctx: &Context,
        channel: Channel,
        event: Envelope,
        options: PublishOptions,
    ) -> Result<Receipt> {
        let mut receipts = self.publish_all(ctx, vec![Publish { channel, event, options }]).await?;
        Ok(receipts.pop().expect("one receipt for one event"))
    }

    /// Publishes several events, all or none.
    pub async fn publish_all(&self, ctx: &Context, publish: Vec<Publish>) -> Result<Vec<Receipt>> {
        let (items, spans) = self.prepare(ctx, publish, None)?;
        let done = self.call(|reply| Command::Publish { items, reply }).await;
        self.record(spans, done.is_ok());
        self.receipts(done?).await
    }

    /// Receives up to `max` messages; an empty answer after `wait`.
    pub async fn receive(&self, source: Source, options: ReceiveOptions) -> Result<Vec<Delivery>> {
        self.take(source, options, true).await
    }

    /// [`receive`](Self::receive); a push records the consumer span itself, when it knows how the call went.
    pub(crate) async fn take(&self, source: Source, options: ReceiveOptions, record: bool) -> Result<Vec<Delivery>> {
        if options.max == 0 || options.max > limits::RECEIVE_MESSAGES {
            let (got, limit) = (options.max, limits::RECEIVE_MESSAGES);
            return Err(Error::TooMany { what: "messages asked for", got, limit });
        }
        let wait = options.wait.min(limits::RECEIVE_WAIT);
        let (reply, mut answer) = oneshot::channel();
        let receiver = Receiver {
            max: options.max,
            lease: options.lease.map(|l| l.min(limits::LEASE)),
            now: wait.is_zero(),
            reply,
        };
        self.send(Command::Receive { source: source.clone(), receiver }).await?;
        let handed: Parcel = if wait.is_zero() {
            (&mut answer).await.map_err(|_| Error::Closed)??
        } else {
            match tokio::time::timeout(wait, &mut answer).await {
                Ok(answer) => answer.map_err(|_| Error::Closed)??,
                Err(_) => {
                    // What was handed over at the last moment is ours.
                    answer.close();
                    match answer.try_recv() {
                        Ok(handed) => handed?,
                        Err(_) => Parcel::default(),
                    }
                }
            }
        };
        Ok(handed.open().into_iter().filter_map(|h| self.deliver(&source, h, record)).collect())
    }

    /// Gives back a delivery that was not worked on: it counts no attempt.
    pub(crate) async fn release(&self, d: &Delivery) {
        if let Some(l) = Lease::decode(&d.token) {
            let call =
                Command::Release { source: l.source, lane: l.lane, epoch: l.epoch, seq: l.seq, attempt: l.attempt };
            // Closed: the next opening ends the lease.
            let _ = self.send(call).await;
        }
    }

    /// Acknowledges messages; accepted for each that is still unsettled, also after its lease ended.
    pub async fn ack(&self, tokens: &[String]) -> Result<Settled> {
        let leases = self.leases(tokens)?;
        self.call(|reply| Command::Ack { leases, reply }).await
    }

    /// Gives messages back for redelivery, or to the dead-letter queue.
    pub async fn nack(&self, tokens: &[String], options: NackOptions) -> Result<Settled> {
        let leases = self.leases(tokens)?;
        self.call(|reply| Command::Nack { leases, options, reply }).await
    }

    /// Holds messages longer: `lease` from now, `None` = as the queue or subscription says.
    pub async fn extend(&self, tokens: &[String], lease: Option<Duration>) -> Result<Settled> {
        let leases = self.leases(tokens)?;
        let lease = lease.map(|l| l.min(limits::LEASE));
        self.call(|reply| Command::Extend { leases, lease, reply }).await
    }

    /// Acknowledges, publishes and does what `extra` says in one durable store batch, or nothing of it. Every lease must be
    /// current. Indexes in a store precondition error are those of `extra.expect`.
    pub async fn commit(&self, ctx: &Context, commit: Commit, extra: Batch) -> Result<CommitReceipt> {
        let ack = self.leases(&commit.ack)?;
        let got = ack.len() + commit.publish.len() + extra.ops.len();
        if got > limits::COMMIT_OPS {
            return Err(Error::TooMany { what: "operations", got, limit: limits::COMMIT_OPS });
        }
        let (items, spans) = self.prepare(ctx, commit.publish, ack.first().map(|l| l.trace))?;
        let done = self.call(|reply| Command::Commit { ack, items, extra, reply }).await;
        self.record(spans, done.is_ok());
        let done = done?;
        Ok(CommitReceipt {
            position: done.receipt.position,
            time: done.receipt.time,
            publish: self.receipts(done.drafts).await?,
            extra: done.extra,
        })
    }

    /// Declares a queue at run time; `true` when it is new. The members are those of the configuration file.
    pub async fn declare_queue(&self, name: Name, members: &Value) -> Result<bool> {
        let d = Declaration::Queue(declare::queue(name, members)?, members.clone());
        self.call(|reply| Command::Declare { declaration: Box::new(d), reply }).await
    }

    /// Declares a topic at run time; `true` when it is new.
    pub async fn declare_topic(&self, name: Name, members: &Value) -> Result<bool> {
        let d = Declaration::Topic(declare::topic(name, members)?, members.clone());
        self.call(|reply| Command::Declare { declaration: Box::new(d), reply }).await
    }

    /// Declares a subscription at run time; `true` when it is new.
    pub async fn declare_subscription(&self, name: Name, members: &Value) -> Result<bool> {
        let d = Declaration::Subscription(Box::new(declare::subscription(name, members)?), members.clone());
        self.call(|reply| Command::Declare { declaration: Box::new(d), reply }).await
    }

    /// Whether there is a queue or topic of that name.
    pub fn has(&self, channel: &Channel) -> bool {
        self.shared.topology.read().channels.contains_key(channel)
    }

    /// All queues by name.
    pub async fn queues(&self) -> Result<Vec<Listing>> {
        self.list(actor::Kind::Queues).await
    }

    /// All topics by name.
    pub async fn topics(&self) -> Result<Vec<Listing>> {
        self.list(actor::Kind::Topics).await
    }

    /// All subscriptions by name.
    pub async fn subscriptions(&self) -> Result<Vec<Listing>> {
        self.list(actor::Kind::Subscriptions).await
    }

    /// Messages of a queue after a place in it, without taking them.
    pub async fn peek(&self, queue: &Name, after: u64, max: usize) -> Result<Vec<Peeked>> {
        let stream = format!("queue/{queue}");
        let records = self.shared.store.read(&stream, after + 1, max, limits::API_BODY_BYTES).await?;
        let (name, seqs) = (queue.clone(), records.iter().map(|r| r.seq).collect());
        let (reply, answer) = oneshot::channel();
        self.send(Command::Look { queue: name, seqs, reply }).await?;
        let states = answer.await.map_err(|_| Error::Closed)?;
        let states = states.ok_or_else(|| Error::unknown(&Source::Queue(queue.clone())))?;
        let event = |p: &bytes::Bytes| {
            let record = record::decode(p).ok()?;
            Envelope::decode(record.envelope).ok()
        };
        Ok(records
            .into_iter()
            .zip(states)
            .map(|(r, (attempts, state))| Peeked {
                seq: r.seq,
                position: r.position,
                time: r.time,
                attempts,
                state,
                event: r.payload.ok().as_ref().and_then(event),
            })
            .collect())
    }

    /// Moves up to `max` messages of a dead-letter queue back to where each came from, or to `to`. Messages that are in
    /// flight, delayed, or came from nowhere that is left stay.
    pub async fn redrive(&self, queue: &Name, max: usize, to: Option<Channel>) -> Result<usize> {
        let stream = format!("queue/{queue}");
        if self.shared.store.stream(&stream).is_none() {
            return Err(Error::unknown(&Source::Queue(queue.clone())));
        }
        let (mut moved, mut after) = (0, 0);
        while moved < max {
            let records = self.shared.store.read(&stream, after + 1, REDRIVE_READ, limits::API_BODY_BYTES).await?;
            let Some(last) = records.last() else { break };
            after = last.seq;
            let mut answers = Vec::with_capacity(records.len());
            for r in records {
                if moved + answers.len() == max {
                    break;
                }
                if let Some(answer) = self.redrive_one(queue, r, to.clone()).await? {
                    answers.push(answer);
                }
            }
            for answer in answers {
                moved += usize::from(answer.await.map_err(|_| Error::Closed)??);
            }
        }
        Ok(moved)
    }

    async fn redrive_one(
        &self,
        queue: &Name,
        r: weft_store::Record,
        to: Option<Channel>,
    ) -> Result<Option<oneshot::Receiver<Result<bool>>>> {
        let Ok(payload) = r.payload else { return Ok(None) };
        let mut origin = None;
        let payload = Actor::rewrite(&payload, |event| {
            origin = event.extensions.get(actor::DEAD_ORIGIN).and_then(|o| Source::parse(o));
            event.extensions.retain(|name, _| !name.starts_with("weftdead"));
        });
        let Ok(payload) = payload else { return Ok(None) };
        let (to, back) = match (to, origin) {
            (Some(to), _) => (to, None),
            (None, Some(Source::Queue(name))) => (Channel::Queue(name), None),
            (None, Some(back)) => (Channel::Queue(queue.clone()), Some(back)),
            (None, None) => return Ok(None),
        };
        let (reply, answer) = oneshot::channel();
        self.send(Command::Move { queue: queue.clone(), seq: r.seq, payload, to, back, reply }).await?;
        Ok(Some(answer))
    }

    async fn list(&self, kind: actor::Kind) -> Result<Vec<Listing>> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::List { kind, reply }).await?;
        let now = self.shared.clock.now();
        let mut out = Vec::new();
        for (mut listing, places) in answer.await.map_err(|_| Error::Closed)? {
            let mut oldest: Option<Timestamp> = None;
            for (stream, seq) in places {
                let first = self.shared.store.read(&stream, seq, 1, 1).await?;
                oldest = first.first().map(|r| oldest.map_or(r.time, |o| o.min(r.time))).or(oldest);
            }
            let age = |t: Timestamp| {
                let age = t.until(now);
                // Tenths of a second matter to nobody beyond a minute.
                if age.as_secs() > 60 { Duration::from_secs(age.as_secs()) } else { age }
            };
            listing.oldest_age = oldest.map(|t| weft_core::units::format_duration(age(t)));
            out.push(listing);
        }
        Ok(out)
    }

    /// Checks events, stamps their trace, finds keys and dedup ids: all that needs no sequencing.
    fn prepare(&self, ctx: &Context, publish: Vec<Publish>, lease: Option<Trace>) -> Result<(Vec<Item>, Spans)> {
        if publish.len() > limits::COMMIT_OPS {
            return Err(Error::TooMany { what: "events", got: publish.len(), limit: limits::COMMIT_OPS });
        }
        let topology = self.shared.topology.read().clone();
        let now = self.shared.clock.now();
        let mut items = Vec::with_capacity(publish.len());
        let mut spans = Vec::with_capacity(publish.len());
        for (index, Publish { channel, mut event, options }) in publish.into_iter().enumerate() {
            if event.id.is_empty() {
                event.id = Id::new().to_string();
            }
            event.check().map_err(|e| Error::event(index, &e))?;
            let undeclared = ChannelRules::default();
            let rules = topology.channels.get(&channel).map_or(&undeclared, |r| r);
            let not_before = match (options.delay, &channel) {
                (None, _) => Timestamp(0),
                (Some(d), Channel::Queue(_)) if d > limits::DELAY => {
                    let most = weft_core::units::format_duration(limits::DELAY);
                    return Err(Error::Event { index, reason: format!("the delay is over the limit of {most}") });
                }
                (Some(d), Channel::Queue(_)) => now.plus(d),
                (Some(_), Channel::Topic(topic)) => {
                    return Err(Error::DelayOnTopic { index, topic: topic.to_string() });
                }
            };
            let id = options.dedup_id.or_else(|| rules.dedup_id(&event));
            let dedup = id.map(|id| (dedup::Hash::of(&channel.to_string(), ctx.principal.as_str(), &id), rules.window));
            let span = parent(ctx, &event, lease).child();
            event.extensions.insert("traceparent".into(), span.to_traceparent());
            let key = rules.key(&event);
            let payload = record::encode(key, not_before, &event);
            spans.push((span, channel.clone(), event.id.clone()));
            items.push(Item { channel, id: event.id, payload, key, not_before, dedup });
        }
        Ok((items, Spans { began: Instant::now(), spans }))
    }

    fn record(&self, s: Spans, ok: bool) {
        let took = s.began.elapsed();
        for (trace, channel, id) in s.spans {
            metrics::published(&self.shared.telemetry, trace, &channel, &id, took, ok);
        }
    }

    async fn receipts(&self, drafts: Vec<Draft>) -> Result<Vec<Receipt>> {
        let mut out: Vec<Receipt> = Vec::with_capacity(drafts.len());
        for d in drafts {
            let receipt = match d {
                Draft::New { id, position } => Receipt { id, position, duplicate: false },
                Draft::Same(first) => Receipt { duplicate: true, ..out[first].clone() },
                Draft::Repeat { key, position, id } => {
                    // Expired since the task looked: the publisher's own id is as good.
                    let stored = self.shared.store.get(dedup::SPACE, &key).await?;
                    let id = stored.map_or(id, |v| String::from_utf8_lossy(&v.bytes).into_owned());
                    Receipt { id, position, duplicate: true }
                }
            };
            out.push(receipt);
        }
        Ok(out)
    }

    /// Decodes one delivery; what cannot be decoded was checked when it was published, so this is damage.
    fn deliver(&self, source: &Source, h: Handed, record: bool) -> Option<Delivery> {
        let decoded = record::decode(&h.stored.payload).and_then(|r| Envelope::decode(r.envelope));
        let mut event = match decoded {
            Ok(e) => e,
            Err(e) => {
                tracing::error!(%source, seq = h.seq, error = %e, "a message cannot be decoded");
                return None;
            }
        };
        let trace = event.traceparent().and_then(Trace::parse).map_or_else(Trace::root, |t| t.child());
        event.extensions.insert("traceparent".into(), trace.to_traceparent());
        if record {
            metrics::delivered(&self.shared.telemetry, trace, source, &event.id, h.attempt);
        }
        let lease =
            Lease { source: source.clone(), lane: h.lane, epoch: h.epoch, seq: h.seq, attempt: h.attempt, trace };
        Some(Delivery {
            token: lease.encode(),
            position: h.stored.position,
            attempt: h.attempt,
            event,
            caused_by: trace.parent,
        })
    }

    fn leases(&self, tokens: &[String]) -> Result<Vec<Lease>> {
        if tokens.len() > limits::COMMIT_OPS {
            return Err(Error::TooMany { what: "lease tokens", got: tokens.len(), limit: limits::COMMIT_OPS });
        }
        tokens.iter().enumerate().map(|(index, t)| Lease::decode(t).ok_or(Error::LeaseUnknown { index })).collect()
    }

    async fn call<T>(&self, make: impl FnOnce(oneshot::Sender<Result<T>>) -> Command) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        self.send(make(reply)).await?;
        answer.await.map_err(|_| Error::Closed)?
    }

    async fn send(&self, call: Command) -> Result<()> {
        match self.calls.try_send(call) {
            Ok(()) => Ok(()),
            Err(mpsc::error::TrySendError::Closed(_)) => Err(Error::Closed),
            Err(mpsc::error::TrySendError::Full(call)) => {
                match tokio::time::timeout(limits::BROKER_CALL_WAIT, self.calls.send(call)).await {
                    Ok(sent) => sent.map_err(|_| Error::Closed),
                    Err(_) => Err(Error::Overloaded("its queue of calls is full")),
                }
            }
        }
    }
}

/// Producer spans under way.
struct Spans {
    began: Instant,
    spans: Vec<(Trace, Channel, String)>,
}

/// Messages of a dead-letter queue read at once.
const REDRIVE_READ: usize = 100;

/// The span that caused an event: the caller's own, else what the event says, else the delivery that is acknowledged
/// with it, else the caller's fresh one.
fn parent(ctx: &Context, event: &Envelope, lease: Option<Trace>) -> Trace {
    if ctx.trace.parent.is_some() {
        return ctx.trace;
    }
    event.traceparent().and_then(Trace::parse).or(lease).unwrap_or(ctx.trace)
}
