//! Listings and looks: what is where, without touching it.

use weft_core::Name;
use weft_store::{Seq, StreamName};

use super::{Actor, Sub};
use crate::types::PushTo;
use crate::{Listing, Source};

/// A listing, and where its oldest messages may be.
pub(crate) type Entry = (Listing, Vec<(StreamName, Seq)>);

/// What to list.
#[derive(Clone, Debug)]
pub(crate) enum Kind {
    Queues,
    Topics,
    Subscriptions,
}

impl Actor {
    /// Listings by name, each with where its oldest messages are: reading their times is the caller's work.
    pub(super) fn list(&self, kind: Kind) -> Vec<Entry> {
        let mut all: Vec<_> = match kind {
            Kind::Queues => self
                .queues
                .values()
                .map(|q| {
                    let (mut l, oldest) = self.sub_listing(&self.subs[q.sub]);
                    l.durability = word(q.spec.relaxed);
                    (l, oldest)
                })
                .collect(),
            Kind::Subscriptions => self
                .subscriptions
                .values()
                .map(|id| {
                    let sub = &self.subs[*id];
                    let (mut l, oldest) = self.sub_listing(sub);
                    let topic = sub.topic.as_ref().and_then(|t| self.topics.get(t));
                    l.durability = word(topic.is_some_and(|t| t.spec.relaxed));
                    l.topic = sub.topic.clone();
                    l.mode = sub.spec.as_ref().map(|s| s.mode);
                    let push = sub.spec.as_ref().and_then(|s| s.push.as_ref());
                    l.push = push.map(|p| PushTo { service: p.service.clone(), path: p.path.clone() });
                    (l, oldest)
                })
                .collect(),
            Kind::Topics => self
                .topics
                .iter()
                .map(|(name, t)| {
                    let kept = |s: &StreamName| {
                        let i = self.store.stream(s).unwrap_or_default();
                        (i.last - i.trimmed, i.trimmed + 1)
                    };
                    let listing = Listing {
                        name: name.clone(),
                        origin: t.owner.declared,
                        durability: word(t.spec.relaxed),
                        ready: t.streams.iter().map(|s| kept(s).0).sum(),
                        in_flight: 0,
                        delayed: 0,
                        dead_letters: 0,
                        oldest_age: None,
                        dead_letter: None,
                        topic: None,
                        mode: None,
                        push: None,
                        partitions: Some(t.spec.partitions),
                        records: Some(t.streams.iter().map(|s| kept(s).0).sum()),
                        retention: t.spec.retention.map(weft_core::units::format_duration),
                    };
                    let oldest = t.streams.iter().map(|s| (s.clone(), kept(s))).filter(|(_, (n, _))| *n > 0);
                    let oldest = oldest.map(|(s, (_, first))| (s, first)).collect();
                    (listing, oldest)
                })
                .collect(),
        };
        all.sort_by(|a, b| a.0.name.cmp(&b.0.name));
        all
    }

    fn sub_listing(&self, sub: &Sub) -> Entry {
        let mut l = Listing {
            name: sub.source.parts().1.clone(),
            origin: sub.owner.declared,
            durability: "",
            ready: 0,
            in_flight: 0,
            delayed: 0,
            dead_letters: 0,
            oldest_age: None,
            dead_letter: sub.dead_letter.clone(),
            topic: None,
            mode: None,
            push: None,
            partitions: None,
            records: None,
            retention: None,
        };
        let mut oldest = Vec::new();
        for id in &sub.lanes {
            let lane = &self.lanes[*id];
            let last = self.streams.get(&lane.stream).map_or(0, |s| s.last);
            let c = lane.state.counts();
            l.ready += c.ready as u64 + lane.unloaded(last);
            l.in_flight += c.in_flight as u64;
            l.delayed += c.delayed as u64;
            oldest.extend(lane.oldest(last).map(|seq| (lane.stream.clone(), seq)));
        }
        if let Some(q) = sub.dead_letter.as_ref().and_then(|d| self.queues.get(d)) {
            l.dead_letters = self.depth(q);
        }
        (l, oldest)
    }

    /// Attempts and state of messages of a queue; what is not in the window is ready.
    pub(super) fn look(&self, queue: &Name, seqs: &[Seq]) -> Option<Vec<(u32, &'static str)>> {
        let sub = self.sub_of(&Source::Queue(queue.clone()))?;
        let state = &self.lanes[self.subs[sub].lanes[0]].state;
        Some(seqs.iter().map(|seq| state.look(*seq).unwrap_or((0, "ready"))).collect())
    }
}

fn word(relaxed: bool) -> &'static str {
    if relaxed { "relaxed" } else { "fsync" }
}
