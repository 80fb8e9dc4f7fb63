//! Which channels and subscriptions there are: from the file, from the API, by first use, or left behind.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::{Value, json};
use tokio::sync::oneshot;
use weft_core::{Name, limits};
use weft_store::{Batch, Op, StreamName};

use super::{Actor, Done, Queue, REDRIVEN, Stream, Sub, Topic, Tx};
use crate::broker::Broker;
use crate::metrics::{ChannelCounts, SourceCounts};
use crate::push::{Job, Pool};
use crate::queue::Rules;
use crate::spec::{QueueSpec, Redelivery, StartFrom, SubscriptionMode, SubscriptionSpec, TopicSpec};
use crate::topology::{ChannelRules, Topology, compile};
use crate::types::Declared;
use crate::{Channel, Error, Result, Source, declare};

/// The store's keyspace of run-time declarations: `queue/NAME`, `topic/NAME`, `subscription/NAME` to their members.
pub(crate) const SPACE: &str = "channels";

/// Who owns a channel or subscription.
#[derive(Clone, Debug)]
pub(super) struct Owner {
    pub declared: Declared,
    /// The run-time declaration, which comes back when the file's goes.
    members: Option<Value>,
}

impl Owner {
    fn new(declared: Declared, members: Option<Value>) -> Self {
        Self { declared, members }
    }
}

/// A run-time declaration.
#[derive(Clone, Debug)]
pub(crate) enum Declaration {
    Queue(QueueSpec, Value),
    Topic(TopicSpec, Value),
    Subscription(Box<SubscriptionSpec>, Value),
}

impl Declaration {
    /// Reads a stored one.
    pub fn restore(key: &str, value: &[u8]) -> Result<Self> {
        let wrong = |reason: String| Error::Declaration { place: format!("stored declaration '{key}'"), reason };
        let members: Value = serde_json::from_slice(value).map_err(|e| wrong(e.to_string()))?;
        let (kind, name) = key.split_once('/').ok_or_else(|| wrong("has no kind".into()))?;
        let name = Name::new(name).map_err(|e| wrong(e.to_string()))?;
        match kind {
            "queue" => Ok(Self::Queue(declare::queue(name, &members)?, members)),
            "topic" => Ok(Self::Topic(declare::topic(name, &members)?, members)),
            "subscription" => Ok(Self::Subscription(Box::new(declare::subscription(name, &members)?), members)),
            other => Err(wrong(format!("'{other}' is not a kind"))),
        }
    }

    fn key(&self) -> String {
        match self {
            Self::Queue(s, _) => format!("queue/{}", s.name),
            Self::Topic(s, _) => format!("topic/{}", s.name),
            Self::Subscription(s, _) => format!("subscription/{}", s.name),
        }
    }

    fn members(&self) -> &Value {
        match self {
            Self::Queue(_, m) | Self::Topic(_, m) | Self::Subscription(_, m) => m,
        }
    }
}

impl Sub {
    pub(super) fn rules(&self) -> Rules {
        let (mode, mut redelivery) = match &self.spec {
            Some(s) => (s.mode, s.redelivery),
            None => (SubscriptionMode::Shared, self.redelivery),
        };
        if self.dead_letter.is_none() {
            redelivery.attempts = u32::MAX;
        }
        Rules { mode, redelivery }
    }
}

impl Actor {
    /// Takes the declarations the store kept, topics before their subscriptions.
    pub fn restore(&mut self, mut declarations: Vec<Declaration>) {
        declarations.sort_by_key(|d| matches!(d, Declaration::Subscription(..)));
        let mut batch = Batch::new();
        for d in declarations {
            let members = Some(d.members().clone());
            let key = d.key();
            let owner = Owner::new(Declared::Runtime, members);
            let done = match d {
                Declaration::Queue(s, _) => self.put_queue(s, owner),
                Declaration::Topic(s, _) => self.put_topic(s, owner, &mut batch),
                Declaration::Subscription(s, _) => self.put_subscription(*s, owner, &mut batch),
            };
            if let Err(e) = done {
                tracing::error!(%key, error = %e, "a stored declaration cannot be used; its messages stay");
            }
        }
        self.changed();
        if !batch.ops.is_empty() {
            self.enlist(batch, Tx::default());
        }
    }

    /// The file's channels and subscriptions, all of them: what it declared before and no longer does goes back to its
    /// run-time declaration, or is orphaned.
    pub(super) fn apply(
        &mut self,
        queues: Vec<QueueSpec>,
        topics: Vec<TopicSpec>,
        subscriptions: Vec<SubscriptionSpec>,
        reply: oneshot::Sender<Result<()>>,
    ) {
        if let Err(e) = self.check(&queues, &topics, &subscriptions) {
            let _ = reply.send(Err(e));
            return;
        }
        let mut batch = Batch::new();
        let done = self.apply_checked(queues, topics, subscriptions, &mut batch);
        self.changed();
        let tx = Tx { done: Done::Apply { reply }, ..Tx::default() };
        match done {
            Err(e) => {
                if let Done::Apply { reply } = tx.done {
                    let _ = reply.send(Err(e));
                }
            }
            Ok(()) => self.enlist(batch, tx),
        }
    }

    /// Everything that can be wrong with a configuration, before anything of it takes effect.
    fn check(&self, queues: &[QueueSpec], topics: &[TopicSpec], subscriptions: &[SubscriptionSpec]) -> Result<()> {
        for q in queues {
            ChannelRules::queue(q)?;
        }
        for t in topics {
            ChannelRules::topic(t)?;
        }
        for s in subscriptions {
            if let Some(f) = &s.filter {
                compile(f, || format!("subscription '{}' filter", s.name))?;
            }
            if !topics.iter().any(|t| t.name == s.topic) && !self.topics.contains_key(&s.topic) {
                return Err(Error::Declaration {
                    place: format!("subscription '{}' topic", s.name),
                    reason: format!("there is no topic '{}'", s.topic),
                });
            }
        }
        Ok(())
    }

    fn apply_checked(
        &mut self,
        queues: Vec<QueueSpec>,
        topics: Vec<TopicSpec>,
        subscriptions: Vec<SubscriptionSpec>,
        batch: &mut Batch,
    ) -> Result<()> {
        let file = |members: Option<Value>| Owner::new(Declared::File, members);
        let names = |n: Vec<&Name>| n.into_iter().cloned().collect::<BTreeSet<Name>>();
        let in_file = (
            names(queues.iter().map(|s| &s.name).collect()),
            names(topics.iter().map(|s| &s.name).collect()),
            names(subscriptions.iter().map(|s| &s.name).collect()),
        );
        for s in queues {
            let members = self.queues.get(&s.name).and_then(|q| q.owner.members.clone());
            self.put_queue(s, file(members))?;
        }
        for s in topics {
            let members = self.topics.get(&s.name).and_then(|t| t.owner.members.clone());
            self.put_topic(s, file(members), batch)?;
        }
        for s in subscriptions {
            let members = self.subscriptions.get(&s.name).and_then(|i| self.subs[*i].owner.members.clone());
            self.put_subscription(s, file(members), batch)?;
        }
        let gone = |declared: Declared, listed: bool| declared == Declared::File && !listed;
        let left: Vec<Name> = self
            .queues
            .iter()
            .filter(|(n, q)| gone(q.owner.declared, in_file.0.contains(*n)))
            .map(|(n, _)| n.clone())
            .collect();
        for name in left {
            let members = self.queues[&name].owner.members.clone();
            let declared = if members.is_some() { Declared::Runtime } else { Declared::Orphaned };
            let spec = declare::queue(name, members.as_ref().unwrap_or(&json!({})))?;
            self.put_queue(spec, Owner::new(declared, members))?;
        }
        let left: Vec<Name> = self
            .topics
            .iter()
            .filter(|(n, t)| gone(t.owner.declared, in_file.1.contains(*n)))
            .map(|(n, _)| n.clone())
            .collect();
        for name in left {
            let members = self.topics[&name].owner.members.clone();
            let declared = if members.is_some() { Declared::Runtime } else { Declared::Orphaned };
            let mut spec = declare::topic(name.clone(), members.as_ref().unwrap_or(&json!({})))?;
            if members.is_none() {
                spec = TopicSpec { relaxed: false, ..self.topics[&name].spec.clone() };
            }
            self.put_topic(spec, Owner::new(declared, members), batch)?;
        }
        let left: Vec<Name> = self
            .subscriptions
            .iter()
            .filter(|(n, i)| gone(self.subs[**i].owner.declared, in_file.2.contains(*n)))
            .map(|(n, _)| n.clone())
            .collect();
        for name in left {
            let old = &self.subs[self.subscriptions[&name]];
            let members = old.owner.members.clone();
            match &members {
                Some(m) => {
                    let spec = declare::subscription(name, m)?;
                    self.put_subscription(spec, Owner::new(Declared::Runtime, members), batch)?;
                }
                None => {
                    let spec = SubscriptionSpec { push: None, ..old.spec.clone().expect("subscriptions have one") };
                    self.put_subscription(spec, Owner::new(Declared::Orphaned, None), batch)?;
                }
            }
        }
        self.find_orphans(batch)
    }

    /// Streams and cursors in the store that nobody declares.
    fn find_orphans(&mut self, batch: &mut Batch) -> Result<()> {
        let orphan = || Owner::new(Declared::Orphaned, None);
        for stream in self.store.streams("queue/") {
            let Ok(name) = Name::new(&stream["queue/".len()..]) else { continue };
            if !self.queues.contains_key(&name) {
                self.put_queue(declare::queue(name, &json!({}))?, orphan())?;
            }
        }
        for stream in self.store.streams("topic/") {
            let Some((name, _)) = stream["topic/".len()..].split_once('/') else { continue };
            let Ok(name) = Name::new(name) else { continue };
            if !self.topics.contains_key(&name) {
                self.put_topic(declare::topic(name.clone(), &json!({}))?, orphan(), batch)?;
            }
            for cursor in self.store.stream(&stream).unwrap_or_default().cursors {
                let Ok(sub) = Name::new(&cursor) else { continue };
                if !self.subscriptions.contains_key(&sub) {
                    // Its mode is not known any more: the one that keeps the order is safe for all.
                    let members = json!({"topic": name, "mode": "key-shared"});
                    self.put_subscription(declare::subscription(sub, &members)?, orphan(), batch)?;
                }
            }
        }
        Ok(())
    }

    pub(super) fn declare(&mut self, d: Declaration, reply: oneshot::Sender<Result<bool>>) {
        let mut batch = Batch::new();
        let before = match &d {
            Declaration::Queue(s, _) => self.queues.get(&s.name).map(|q| q.owner.declared),
            Declaration::Topic(s, _) => self.topics.get(&s.name).map(|t| t.owner.declared),
            Declaration::Subscription(s, _) => self.subscriptions.get(&s.name).map(|i| self.subs[*i].owner.declared),
        };
        let key = d.key();
        if before == Some(Declared::File) {
            let (kind, name) = key.split_once('/').expect("keys have a kind");
            let kind = ["queue", "topic"].into_iter().find(|k| *k == kind).unwrap_or("subscription");
            let _ = reply.send(Err(Error::FileOwned { kind, name: name.to_owned() }));
            return;
        }
        let members = d.members().clone();
        batch.ops.push(Op::Put { space: SPACE, key: key.into(), value: members.to_string().into() });
        let owner = Owner::new(Declared::Runtime, Some(members));
        let mut tx = Tx::default();
        let done = match d {
            Declaration::Queue(s, _) => {
                tx.declared.push(Channel::Queue(s.name.clone()));
                ChannelRules::queue(&s).and_then(|_| self.put_queue(s, owner))
            }
            Declaration::Topic(s, _) => {
                tx.declared.push(Channel::Topic(s.name.clone()));
                ChannelRules::topic(&s).and_then(|_| self.put_topic(s, owner, &mut batch))
            }
            Declaration::Subscription(s, _) => self
                .check(&[], &[], std::slice::from_ref(s.as_ref()))
                .and_then(|()| self.put_subscription(*s, owner, &mut batch)),
        };
        self.changed();
        match done {
            Err(e) => drop(reply.send(Err(e))),
            Ok(()) => {
                tx.done = Done::Declare { reply, created: before.is_none() };
                self.enlist(batch, tx);
            }
        }
    }

    /// The queue of that name, made with the defaults when there is none.
    pub(super) fn make_queue(&mut self, name: &Name) -> Result<usize> {
        if let Some(q) = self.queues.get(name)
            && q.owner.declared != Declared::Orphaned
        {
            return Ok(q.sub);
        }
        self.check_count()?;
        let members = json!({});
        let spec = declare::queue(name.clone(), &members)?;
        self.put_queue(spec, Owner::new(Declared::Runtime, Some(members)))?;
        self.undeclared.insert(Channel::Queue(name.clone()));
        self.changed();
        Ok(self.queues[name].sub)
    }

    /// The topic of that name, made with the defaults when there is none.
    pub(super) fn make_topic(&mut self, name: &Name) -> Result<()> {
        if let Some(t) = self.topics.get(name)
            && t.owner.declared != Declared::Orphaned
        {
            return Ok(());
        }
        self.check_count()?;
        let members = json!({});
        let spec = declare::topic(name.clone(), &members)?;
        let mut batch = Batch::new();
        self.put_topic(spec, Owner::new(Declared::Runtime, Some(members)), &mut batch)?;
        self.undeclared.insert(Channel::Topic(name.clone()));
        self.changed();
        if !batch.ops.is_empty() {
            self.enlist(batch, Tx::default());
        }
        Ok(())
    }

    fn check_count(&self) -> Result<()> {
        let got = self.queues.len() + self.topics.len();
        if got >= limits::CHANNELS {
            return Err(Error::TooMany { what: "queues and topics", got, limit: limits::CHANNELS });
        }
        Ok(())
    }

    /// Operations that declare what first use made; they ride with the publish that made it.
    pub(super) fn undeclared(&mut self, tx: &mut Tx) -> Vec<Op> {
        let put = |c: &Channel| Op::Put { space: SPACE, key: c.to_string().into(), value: "{}".into() };
        tx.declared.extend(self.undeclared.iter().cloned());
        self.undeclared.iter().map(put).collect()
    }

    pub(super) fn store_declarations(&mut self) {
        let (mut batch, mut tx) = (Batch::new(), Tx::default());
        batch.ops = self.undeclared(&mut tx);
        if !batch.ops.is_empty() {
            self.enlist(batch, tx);
        }
    }

    /// A declaration is durable.
    pub(super) fn stored(&mut self, channel: &Channel) {
        self.undeclared.remove(channel);
    }

    fn put_queue(&mut self, spec: QueueSpec, owner: Owner) -> Result<()> {
        if let Some(q) = self.queues.get_mut(&spec.name) {
            let sub = &mut self.subs[q.sub];
            (sub.lease, sub.redelivery) = (spec.lease, spec.redelivery);
            sub.owner = owner.clone();
            (q.spec, q.owner) = (spec, owner);
            return Ok(());
        }
        let name = spec.name.clone();
        let sub = self.subs.len();
        self.subs.push(Sub {
            source: Source::Queue(name.clone()),
            owner: owner.clone(),
            topic: None,
            spec: None,
            redelivery: spec.redelivery,
            lease: spec.lease,
            filter: None,
            dead_letter: None,
            lanes: Vec::new(),
            receivers: Default::default(),
            turn: 0,
            counts: SourceCounts::of(&self.shared.telemetry, &Source::Queue(name.clone())),
        });
        let stream: StreamName = format!("queue/{name}").into();
        self.add_lane(sub, 0, &stream, Self::own(), 0);
        let counts = ChannelCounts::of(&self.shared.telemetry, &Channel::Queue(name.clone()));
        self.queues.insert(name, Queue { spec, owner, stream, sub, counts });
        Ok(())
    }

    fn put_topic(&mut self, spec: TopicSpec, owner: Owner, batch: &mut Batch) -> Result<()> {
        let name = spec.name.clone();
        let prefix = format!("topic/{name}/");
        let kept = self.store.streams(&prefix).iter().filter_map(|s| s[prefix.len()..].parse::<u32>().ok()).max();
        let count = spec.partitions.max(kept.map_or(0, |n| n + 1));
        let t = self.topics.entry(name.clone()).or_insert_with(|| Topic {
            spec: spec.clone(),
            owner: owner.clone(),
            streams: Vec::new(),
            turn: 0,
            subs: Vec::new(),
            next_trim: None,
            counts: ChannelCounts::of(&self.shared.telemetry, &Channel::Topic(name.clone())),
        });
        (t.spec, t.owner, t.next_trim) = (spec, owner, None);
        let first_new = t.streams.len() as u32;
        let subs = t.subs.clone();
        for partition in first_new..count {
            let stream: StreamName = format!("{prefix}{partition}").into();
            let last = self.store.stream(&stream).unwrap_or_default().last;
            self.streams.entry(stream.clone()).or_insert(Stream { last, ..Stream::default() });
            self.topics.get_mut(&name).expect("made above").streams.push(stream.clone());
            for sub in &subs {
                self.subscribe(*sub, partition, &stream, 0, batch);
            }
        }
        Ok(())
    }

    fn put_subscription(&mut self, spec: SubscriptionSpec, owner: Owner, batch: &mut Batch) -> Result<()> {
        let name = spec.name.clone();
        let filter =
            spec.filter.as_deref().map(|f| compile(f, || format!("subscription '{name}' filter"))).transpose()?;
        let topic = spec.topic.clone();
        if !self.topics.contains_key(&topic) {
            return Err(Error::Declaration {
                place: format!("subscription '{name}' topic"),
                reason: format!("there is no topic '{topic}'"),
            });
        }
        let known = self.subscriptions.get(&name).copied();
        let id = known.unwrap_or_else(|| {
            self.subs.push(Sub {
                source: Source::Subscription(name.clone()),
                owner: owner.clone(),
                topic: None,
                spec: None,
                redelivery: Redelivery::default(),
                lease: spec.lease,
                filter: None,
                dead_letter: None,
                lanes: Vec::new(),
                receivers: Default::default(),
                turn: 0,
                counts: SourceCounts::of(&self.shared.telemetry, &Source::Subscription(name.clone())),
            });
            self.subscriptions.insert(name.clone(), self.subs.len() - 1);
            self.subs.len() - 1
        });
        let from = spec.from;
        let moved = self.subs[id].topic.as_ref().is_some_and(|t| *t != topic);
        if moved {
            self.unsubscribe(id, batch);
        }
        let sub = &mut self.subs[id];
        (sub.lease, sub.filter, sub.owner, sub.spec) = (spec.lease, filter, owner, Some(spec));
        if sub.topic.as_ref() == Some(&topic) {
            return Ok(());
        }
        sub.topic = Some(topic.clone());
        let t = self.topics.get_mut(&topic).expect("looked up above");
        t.subs.push(id);
        for (partition, stream) in t.streams.clone().iter().enumerate() {
            let start = match from {
                StartFrom::Earliest => 0,
                StartFrom::Latest => self.streams.get(stream).map_or(0, |s| s.last),
            };
            self.subscribe(id, partition as u32, stream, start, batch);
        }
        if !self.subs[id].lanes.iter().any(|l| self.lanes[*l].index == REDRIVEN) {
            let stream: StreamName = format!("redrive/{name}").into();
            self.add_lane(id, REDRIVEN, &stream, Self::own(), 0);
        }
        Ok(())
    }

    /// A subscription's lane on one partition, and its cursor when it has none.
    fn subscribe(&mut self, sub: usize, partition: u32, stream: &StreamName, start: u64, batch: &mut Batch) {
        let cursor: weft_store::CursorName = Arc::from(self.subs[sub].source.parts().1.as_str());
        if self.store.cursor(stream, &cursor).is_none() {
            batch.ops.push(Op::CreateCursor(stream.clone(), cursor.clone(), start));
        }
        self.add_lane(sub, partition, stream, cursor, start);
    }

    /// Leaves the topic; leases on it end.
    fn unsubscribe(&mut self, sub: usize, batch: &mut Batch) {
        if let Some(t) = self.subs[sub].topic.take().and_then(|t| self.topics.get_mut(&t)) {
            t.subs.retain(|s| *s != sub);
        }
        let (kept, left): (Vec<usize>, Vec<usize>) =
            self.subs[sub].lanes.iter().partition(|l| self.lanes[**l].index == REDRIVEN);
        self.subs[sub].lanes = kept;
        for id in left {
            let lane = &self.lanes[id];
            batch.ops.push(Op::DropCursor(lane.stream.clone(), lane.cursor.clone()));
            if let Some(s) = self.streams.get_mut(&lane.stream) {
                s.lanes.retain(|l| *l != id);
            }
            self.ready_bytes -= self.lanes[id].payloads.drain().map(|(_, s)| s.payload.len()).sum::<usize>();
        }
    }

    /// Push pools as the subscriptions ask for: what did not change goes on, the rest ends and starts anew.
    fn repool(&mut self) {
        let mut wanted = hashbrown::HashMap::new();
        for (name, id) in &self.subscriptions {
            let sub = &self.subs[*id];
            let Some(spec) = &sub.spec else { continue };
            let Some(push) = &spec.push else { continue };
            let (source, redelivery, lease) = (sub.source.clone(), spec.redelivery, spec.lease);
            wanted.insert(name.clone(), Job { source, push: push.clone(), redelivery, lease });
        }
        self.pools.retain(|name, pool| wanted.get(name) == Some(&pool.job));
        for (name, job) in wanted {
            if !self.pools.contains_key(&name)
                && let Some(calls) = self.calls.upgrade()
            {
                let broker = Broker::of(calls, self.shared.clone());
                let pool = Pool::start(job, broker, self.shared.mesh.clone());
                self.pools.insert(name, pool);
            }
        }
    }

    /// After any change: dead-letter queues, rules of the machines, the callers' snapshot, pushes.
    fn changed(&mut self) {
        let explicit = |a: &Self, sub: &Sub| match (&sub.source, &sub.spec) {
            (Source::Queue(n), _) => a.queues.get(n).and_then(|q| q.spec.dead_letter.clone()),
            (Source::Subscription(_), spec) => spec.as_ref().and_then(|s| s.dead_letter.clone()),
        };
        let by_default = |sub: &Sub| {
            let text = format!("{}.dead", sub.source.parts().1);
            Name::new(&text).ok()
        };
        let named: Vec<(Option<Name>, Option<Name>)> =
            self.subs.iter().map(|s| (explicit(self, s), by_default(s))).collect();
        let targets: BTreeSet<Name> = named.iter().filter_map(|(e, d)| e.clone().or_else(|| d.clone())).collect();
        for (sub, (explicit, default)) in self.subs.iter_mut().zip(named) {
            // A dead-letter queue without one of its own keeps its messages.
            let is_target = matches!(&sub.source, Source::Queue(n) if targets.contains(n));
            sub.dead_letter = explicit.or(if is_target { None } else { default });
        }
        for id in 0..self.lanes.len() {
            let rules = self.subs[self.lanes[id].sub].rules();
            self.lanes[id].state.set_rules(rules);
            self.touched.insert(id);
        }
        let mut channels = hashbrown::HashMap::new();
        for (n, q) in &self.queues {
            match ChannelRules::queue(&q.spec) {
                Ok(r) => drop(channels.insert(Channel::Queue(n.clone()), Arc::new(r))),
                Err(e) => tracing::error!(queue = %n, error = %e, "its rules do not compile"),
            }
        }
        for (n, t) in &self.topics {
            match ChannelRules::topic(&t.spec) {
                Ok(r) => drop(channels.insert(Channel::Topic(n.clone()), Arc::new(r))),
                Err(e) => tracing::error!(topic = %n, error = %e, "its rules do not compile"),
            }
        }
        *self.shared.topology.write() = Arc::new(Topology { channels });
        self.repool();
    }
}
