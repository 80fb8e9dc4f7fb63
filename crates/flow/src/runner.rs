//! One instance under way: a task that owns it, from its start (or from what the store says) to its end.
//!
//! Every transition is one store batch, made durable before anything is sent. When a batch is refused the transition is
//! tried again; when nobody knows whether it was taken, the instance is read back and goes on as after a restart.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use hashbrown::HashMap;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use weft_broker::{Commit, Publish};
use weft_core::{Class, Classify as _, Deadline, Id, Trace, limits};
use weft_store::{Batch, Expect, Position, Version};
use weft_telemetry::metrics::Raised;
use weft_telemetry::{SpanKind, SpanStatus, Text, span};

use crate::call::{self, Prepared, Sendable};
use crate::definition::Definition;
use crate::engine::Inner;
use crate::error::{Error, Result};
use crate::instance::{Instance, Names, key};
use crate::machine::{Action, Event, Outcome, Phase, WorkId, apply};

/// What others may ask of a running instance.
pub(crate) enum Command {
    /// Give up and compensate.
    Abort(String, oneshot::Sender<bool>),
}

/// How others reach it.
#[derive(Clone)]
pub(crate) struct Handle {
    pub commands: mpsc::Sender<Command>,
    pub phase: watch::Receiver<Phase>,
}

/// Commands that may wait.
pub(crate) const COMMANDS: usize = 8;

/// First and longest pause before a step is sent again.
const STEP_BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
/// The same for compensations.
const UNDO_BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(120));
/// The same for commits that were refused.
const COMMIT_BACKOFF: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(5));

/// A transition worked out, not yet durable.
pub(crate) struct Transition {
    pub next: Instance,
    pub batch: Batch,
    pub publish: Vec<(WorkId, Publish)>,
    send: Vec<Sendable>,
    later: Vec<(WorkId, u32)>,
}

/// Works out what an event leads to. `refused` are publishes that the broker did not take.
pub(crate) fn transition(
    flow: &Inner,
    d: &Definition,
    now_at: Option<(&Instance, Position)>,
    fresh: Option<&Instance>,
    event: Event,
    refused: &HashMap<WorkId, Outcome>,
) -> Transition {
    let before = now_at.map(|(i, _)| i).or(fresh).expect("an instance to move");
    let now = flow.now();
    let mut next = before.clone();
    let (mut publish, mut send, mut later) = (Vec::new(), Vec::new(), Vec::new());
    let mut events = VecDeque::from([event]);
    while let Some(e) = events.pop_front() {
        for action in apply(&d.plan, &mut next.state, e, now) {
            let id = match action {
                Action::Begin(id) => id,
                Action::Later(id, round) => {
                    later.push((id, round));
                    continue;
                }
            };
            let answer = |o| Event::Answered(id, o, false);
            match call::prepare(d, &next, id) {
                Prepared::Skip => events.push_back(Event::Skipped(id.step)),
                Prepared::Impossible(reason) => events.push_back(answer(Outcome::Refused(reason))),
                Prepared::Send(s) => send.push(*s),
                Prepared::Publish(p) => match refused.get(&id) {
                    Some(outcome) => events.push_back(answer(outcome.clone())),
                    None => {
                        publish.push((id, *p));
                        events.push_back(answer(Outcome::Done(Arc::default())));
                    }
                },
            }
        }
    }
    next.updated = now;
    if before.state.phase == Phase::ParkedForward && next.state.phase == Phase::Forward {
        // An operator's retry gives the forward path its whole time again.
        next.deadline = now.plus(d.deadline);
    }
    if next.state.phase == Phase::Completed
        && let Some(t) = &d.result
    {
        match t.eval(&Names { definition: d, instance: &next, undo: None }) {
            Ok(v) => next.result = Some(v),
            Err(e) => next.result_error = Some(format!("result: {e}")),
        }
    }
    let id = next.id;
    let mut batch = Batch::new().put(key::INSTANCES, key::instance(id).to_vec(), next.encode());
    let was = now_at.map(|(i, _)| i.state.phase);
    let (from, to) = (was.map(|p| key::by_status(p, id)), key::by_status(next.state.phase, id));
    if from.as_ref() != Some(&to) {
        if let Some(from) = from {
            batch = batch.delete(key::INDEX, from);
        }
        batch = batch.put(key::INDEX, to, next.saga.as_bytes().to_vec());
        if next.state.phase.is_ended() {
            batch = batch.put(key::INDEX, key::ended(now, id), next.start_key());
        }
    }
    if let Some((_, version)) = now_at {
        let key = key::instance(id).to_vec().into();
        batch = batch.expect(Expect::Key { space: key::INSTANCES, key, version: Version::Exactly(version) });
    }
    Transition { next, batch, publish, send, later }
}

/// Commits a transition; the position is the instance's new version.
pub(crate) async fn commit(flow: &Inner, d: &Definition, t: &Transition) -> Result<Position> {
    if t.publish.is_empty() {
        return Ok(flow.store.commit(t.batch.clone()).await?.position);
    }
    let mut ctx = t.next.context();
    ctx.trace = ctx.trace.child();
    let publish = t.publish.iter().map(|(_, p)| p.clone()).collect();
    let receipt = flow.broker.commit(&ctx, Commit { ack: Vec::new(), publish }, t.batch.clone()).await?;
    for (id, _) in &t.publish {
        let mut span = span::start(ctx.trace, step_span(d, *id), SpanKind::Internal, "flow");
        span.set("saga.id", t.next.id.to_string());
        flow.telemetry.record(span.end(SpanStatus::Ok));
    }
    Ok(receipt.position)
}

fn step_span(d: &Definition, id: WorkId) -> Text {
    let name = &d.steps[id.step].name;
    Text::Shared(if id.undo { format!("undo {name}") } else { format!("step {name}") }.into())
}

/// Runs one instance.
pub(crate) struct Runner {
    pub flow: Arc<Inner>,
    pub definition: Arc<Definition>,
    pub instance: Instance,
    pub version: Position,
    pub commands: mpsc::Receiver<Command>,
    pub phase: watch::Sender<Phase>,
    pub pending: FuturesUnordered<BoxFuture<'static, Ready>>,
    pub backlog: VecDeque<Event>,
    pub calls: usize,
    gone: bool,
    _running: Raised,
}

/// What the store says of a transition whose commit was not answered.
enum Known {
    NotTaken,
    Taken(Position),
    Moved,
    Gone,
}

/// What a pending future came to.
pub(crate) enum Ready {
    Call(WorkId, call::Ended),
    Timer(WorkId),
}

impl Runner {
    /// A runner that does nothing yet, and how to reach it.
    pub fn new(flow: Arc<Inner>, definition: Arc<Definition>, instance: Instance, version: Position) -> (Self, Handle) {
        let (tx, commands) = mpsc::channel(COMMANDS);
        // One that is let go on from a park counts as under way from now, or a waiter would see the old park.
        let now = if instance.state.phase.is_parked() { Phase::Compensating } else { instance.state.phase };
        let (phase, rx) = watch::channel(now);
        let _running = flow.metrics.running(&instance.saga);
        let (pending, backlog) = (FuturesUnordered::new(), VecDeque::new());
        let runner = Self {
            flow,
            definition,
            instance,
            version,
            commands,
            phase,
            pending,
            backlog,
            calls: 0,
            gone: false,
            _running,
        };
        (runner, Handle { commands: tx, phase: rx })
    }

    /// To the end, to a park, or to the shutdown. `first` is the transition just committed, or what to begin with.
    pub async fn run(mut self, first: First) {
        match first {
            First::Committed(t) => self.carry_out(*t),
            First::Event(e) => self.event(e).await,
        }
        self.phase.send_replace(self.instance.state.phase);
        while self.instance.state.phase.is_active() && !self.gone {
            if self.flow.shutdown.is_triggered() && self.calls == 0 {
                // What was not sent stays recorded, and goes on when the process runs again.
                return;
            }
            let Some(event) = self.next().await else { continue };
            self.event(event).await;
            self.phase.send_replace(self.instance.state.phase);
        }
        if !self.gone {
            self.finished();
        }
    }

    async fn next(&mut self) -> Option<Event> {
        if let Some(e) = self.backlog.pop_front() {
            return Some(e);
        }
        let forward = self.instance.state.phase == Phase::Forward;
        let left = self.flow.now().until(self.instance.deadline);
        let stopping = self.flow.shutdown.is_triggered();
        tokio::select! {
            Some(ready) = self.pending.next(), if !self.pending.is_empty() => Some(self.ready(ready)),
            () = tokio::time::sleep(left), if forward => Some(Event::Deadline),
            Some(Command::Abort(reason, reply)) = self.commands.recv() => {
                let accepted = self.instance.state.phase == Phase::Forward;
                // The asker has gone, or learns that it was taken: the compensation is what it asked for.
                let _ = reply.send(accepted);
                accepted.then_some(Event::Abort(reason))
            }
            () = self.flow.shutdown.triggered(), if !stopping => None,
        }
    }

    /// A result that would make the state too large is not kept, and the saga turns: later steps may need it.
    fn ready(&mut self, ready: Ready) -> Event {
        let (id, ended) = match ready {
            Ready::Timer(id) => return Event::Wake(id),
            Ready::Call(id, ended) => (id, ended),
        };
        self.calls -= 1;
        let Outcome::Done(v) = &ended.outcome else { return Event::Answered(id, ended.outcome, ended.doubt) };
        let size = if id.undo { 0 } else { serde_json::to_vec(v).map_or(0, |b| b.len()) };
        if size > limits::COLLECTED_BODY_BYTES / 16 && self.instance.encode().len() + size > limits::SAGA_STATE_BYTES {
            let limit = limits::SAGA_STATE_BYTES;
            let step = &self.definition.steps[id.step].name;
            self.backlog.push_back(Event::Answered(id, Outcome::Done(Arc::default()), false));
            return Event::Abort(format!("the answer of step '{step}' makes the state larger than {limit} bytes"));
        }
        Event::Answered(id, ended.outcome, ended.doubt)
    }

    /// One transition: worked out, made durable, carried out.
    async fn event(&mut self, mut event: Event) {
        let mut refused = HashMap::new();
        let mut round = 0;
        loop {
            let now_at = Some((&self.instance, self.version));
            let t = transition(&self.flow, &self.definition, now_at, None, event.clone(), &refused);
            if t.next.state == self.instance.state {
                // Nothing to remember; backoffs are armed again.
                self.carry_out(t);
                return;
            }
            let error = match self.commit(&t).await {
                Ok(version) => {
                    self.version = version;
                    self.carry_out(t);
                    return;
                }
                Err(e) => e,
            };
            let (saga, id) = (&self.instance.saga, self.instance.id);
            tracing::warn!(%saga, %id, error = %error, "a saga transition was not committed");
            match error {
                Error::Broker(e) if !t.publish.is_empty() => {
                    let said = e.to_string();
                    let rejected = e.class() == Class::Rejected;
                    let outcome = if rejected { Outcome::Refused(said) } else { Outcome::NotDone(said) };
                    refused.extend(t.publish.iter().map(|(id, _)| (*id, outcome.clone())));
                    continue;
                }
                Error::Store(
                    weft_store::Error::Overloaded
                    | weft_store::Error::DiskFull { .. }
                    | weft_store::Error::Unavailable { .. },
                ) => {}
                _ => match self.read_back(&t).await {
                    Known::NotTaken => {}
                    Known::Taken(version) => {
                        self.version = version;
                        self.carry_out(t);
                        return;
                    }
                    Known::Moved => event = Event::Run,
                    Known::Gone => {
                        self.gone = true;
                        return;
                    }
                },
            }
            if self.flow.shutdown.is_triggered() {
                // Only what is durable counts: the next process goes on from there.
                self.gone = true;
                return;
            }
            round += 1;
            tokio::time::sleep(backoff(COMMIT_BACKOFF, round)).await;
        }
    }

    /// Commits while calls under way go on.
    async fn commit(&mut self, t: &Transition) -> Result<Position> {
        let flow = self.flow.clone();
        let definition = self.definition.clone();
        let commit = commit(&flow, &definition, t);
        tokio::pin!(commit);
        loop {
            tokio::select! {
                biased;
                done = &mut commit => return done,
                Some(ready) = self.pending.next(), if !self.pending.is_empty() => {
                    let event = self.ready(ready);
                    self.backlog.push_back(event);
                }
            }
        }
    }

    /// Whether a transition took effect, when the commit could not say.
    async fn read_back(&mut self, t: &Transition) -> Known {
        for round in 1.. {
            if self.flow.shutdown.is_triggered() {
                break;
            }
            match self.flow.load(self.instance.id).await {
                Ok(Some((_, version))) if version == self.version => return Known::NotTaken,
                Ok(Some((found, version))) if found == t.next => return Known::Taken(version),
                Ok(Some((found, version))) => {
                    // Somebody else moved it: what is under way here belongs to a state that is no more.
                    self.pending.clear();
                    self.backlog.clear();
                    self.calls = 0;
                    self.instance = found;
                    self.version = version;
                    return Known::Moved;
                }
                Ok(None) => {
                    tracing::error!(id = %self.instance.id, "a running saga is no longer in the store");
                    return Known::Gone;
                }
                Err(e) => {
                    tracing::warn!(id = %self.instance.id, error = %e, "a saga cannot be read back yet");
                    tokio::time::sleep(backoff(COMMIT_BACKOFF, round)).await;
                }
            }
        }
        Known::Gone
    }

    /// The transition is durable: what it asks for may leave the process.
    fn carry_out(&mut self, t: Transition) {
        let parked_before = self.instance.state.phase.is_parked();
        self.instance = t.next;
        if self.instance.state.phase.is_parked() && !parked_before {
            self.flow.metrics.parked(&self.instance);
        }
        let stopping = self.flow.shutdown.is_triggered();
        for s in t.send {
            // At shutdown nothing new is sent, except what would park the saga if it were found unsent.
            if !stopping || s.key.is_none() {
                self.calls += 1;
                self.pending.push(self.call(s));
            }
        }
        for (id, round) in t.later {
            let wait = backoff(if id.undo { UNDO_BACKOFF } else { STEP_BACKOFF }, round);
            self.pending.push(Box::pin(async move {
                tokio::time::sleep(wait).await;
                Ready::Timer(id)
            }));
        }
    }

    fn call(&self, s: Sendable) -> BoxFuture<'static, Ready> {
        let flow = self.flow.clone();
        let mut ctx = self.instance.context();
        ctx.trace = ctx.trace.child();
        ctx.idempotency_key = s.key.as_deref().map(Arc::from);
        let left = flow.now().until(self.instance.deadline);
        let forward = Deadline::after(left);
        let name = step_span(&self.definition, s.work);
        let (saga, id) = (self.instance.saga.clone(), self.instance.id);
        let step = self.definition.steps[s.work.step].name.clone();
        let w = &self.instance.state.steps[s.work.step];
        let attempt = if s.work.undo { w.undo.attempts } else { w.action.attempts };
        Box::pin(async move {
            let Ok(_permit) = flow.in_flight.acquire().await else {
                let outcome = Outcome::NotDone("the saga engine is closed".into());
                return Ready::Call(s.work, call::Ended { outcome, doubt: false, class: "retryable" });
            };
            ctx.deadline = call::deadline(forward, &s);
            let mut span = span::start(ctx.trace, name, SpanKind::Internal, "flow");
            span.set("saga.id", id.to_string());
            span.set("saga.attempt", i64::from(attempt));
            let began = Instant::now();
            let ended = call::send(&flow.mesh, &flow.services, &ctx, &s).await;
            flow.metrics.step(&saga, &step, s.work.undo, ended.class, began.elapsed());
            flow.telemetry.record(match &ended.outcome {
                Outcome::Done(_) => span.end(SpanStatus::Ok),
                Outcome::Refused(r) | Outcome::NotDone(r) | Outcome::Unknown(r) => {
                    span.fail(ended.class, Text::Shared(r.as_str().into()))
                }
            });
            Ready::Call(s.work, ended)
        })
    }

    fn finished(&self) {
        let i = &self.instance;
        match i.state.phase {
            Phase::Completed | Phase::Compensated => {
                self.flow.metrics.ended(i, self.flow.now());
                let error = i.state.cause.clone();
                self.flow.telemetry.record(saga_span(i, self.flow.now(), error));
            }
            _ => {
                let why = i.state.parked.as_deref().unwrap_or_default();
                let (trace_id, id, saga) = (i.trace().trace_id, i.id, &i.saga);
                tracing::error!(%trace_id, %saga, %id, reason = why, "a saga is parked: look at it, then retry or cancel it");
                parked_span(i, &self.flow, why);
            }
        }
    }
}

/// What a runner begins with.
pub(crate) enum First {
    /// A committed transition whose actions are to be carried out.
    Committed(Box<Transition>),
    /// An event.
    Event(Event),
}

fn saga_span(i: &Instance, now: weft_core::Timestamp, error: Option<String>) -> weft_telemetry::SpanRecord {
    let name = Text::Shared(format!("saga {}", i.saga).into());
    let mut record = span::start(i.trace(), name, SpanKind::Internal, "flow").end(SpanStatus::Ok);
    record.start = i.created;
    record.duration = i.created.until(now);
    record.set("saga.id", i.id.to_string());
    record.set("saga.status", i.state.phase.status());
    if let Some(e) = error {
        record.status = SpanStatus::Error;
        record.set("error.type", "compensated");
        record.set("error.message", e);
    }
    record
}

/// The saga's own span is recorded when it ends; that it stands still is a span below it.
fn parked_span(i: &Instance, flow: &Inner, why: &str) {
    let trace: Trace = i.trace().child();
    let mut span = span::start(trace, "parked", SpanKind::Internal, "flow");
    span.set("saga.id", i.id.to_string());
    flow.telemetry.record(span.fail("parked", Text::Shared(why.into())));
}

/// Doubling with full jitter above half, so that nothing is sent again at once.
fn backoff((first, longest): (Duration, Duration), round: u32) -> Duration {
    let doubled = 2u32.checked_pow(round.saturating_sub(1)).and_then(|f| first.checked_mul(f));
    let full = doubled.map_or(longest, |d| d.min(longest));
    full.mul_f64(0.5 + 0.5 * rand::random::<f64>())
}

/// The commit of a start: the instance, its key, and its first transition.
pub(crate) fn start_batch(t: &mut Transition, id: Id) {
    let start = t.next.start_key();
    let expect = Expect::Key { space: key::KEYS, key: start.clone().into(), version: Version::Absent };
    let batch = std::mem::take(&mut t.batch);
    t.batch = batch.expect(expect).put(key::KEYS, start, key::instance(id).to_vec());
}
