//! `queues:`, `topics:` and `subscriptions:`

use weft_broker::spec::{
    Dedup, DedupBy, Push, QueueSpec, Redelivery, StartFrom, SubscriptionMode, SubscriptionSpec, TopicSpec,
};
use weft_core::units::format_duration;

use super::Lower;
use crate::config::expr::{Cel, complain};
use crate::config::keys::channel::{self as keys, Durability, From, Mode};
use crate::config::keys::policy::{Policies, Policy, PolicyUse};
use crate::config::layer::{self, Layer, Resolver, Use};
use crate::config::report::Mistake;
use crate::config::source::{At, Span};
use crate::config::value::{Switch, default_of};

impl<'r> Lower<'r, '_, '_> {
    /// Checks the inline policies of a `policy:`; named ones are checked where they are declared.
    pub(super) fn check_inline(&mut self, uses: Option<&At<Policies>>) {
        for one in uses.iter().flat_map(|u| &u.value.0) {
            if let PolicyUse::Inline(policy) = one {
                layer::check(policy, self.cx);
                self.check_auth(policy);
            }
        }
    }

    pub(super) fn queues(&mut self) -> Vec<QueueSpec> {
        let mut out = Vec::new();
        for (entry, q) in self.root.queues.iter().flat_map(|q| q.value.good()) {
            self.dedup_names(q.dedup.as_ref());
            let layers = layer::written(q.policy.as_ref(), self.policies, Use::Channel, self.cx);
            self.check_inline(q.policy.as_ref());
            let mut rows = Resolver::new(self.cx.sources, "queue");
            rows.time("lease", q.lease.value, q.lease.span);
            let redelivery = redelivery(q.retry.as_ref(), &layers, "queue", &mut rows);
            let dead = q.dead_letter.as_ref();
            rows.row("dead_letter", dead_letter(dead, &entry.name), dead.and_then(|d| d.span));
            let dedup = dedup(q.dedup.as_ref(), &mut rows);
            let relaxed = q.durability.value == Durability::Relaxed;
            rows.row("durability", if relaxed { "relaxed" } else { "fsync" }, q.durability.span);
            match &q.max_messages {
                Some(n) => rows.row("max_messages", n.value, n.span),
                None => rows.row("max_messages", "no limit", None),
            }
            let values = rows.finish();
            self.explain("queue", entry.name.to_string(), entry.at, "one receiver per message".to_owned(), values);
            self.not_itself(dead, &entry.name);
            out.push(QueueSpec {
                name: entry.name.clone(),
                redelivery,
                dead_letter: dead.map(|d| d.value.clone()),
                lease: q.lease.value,
                dedup,
                max_messages: q.max_messages.as_ref().map(|n| n.value),
                relaxed,
            });
        }
        out
    }

    pub(super) fn topics(&mut self) -> Vec<TopicSpec> {
        let mut out = Vec::new();
        for (entry, t) in self.root.topics.iter().flat_map(|t| t.value.good()) {
            self.dedup_names(t.dedup.as_ref());
            self.event_names(&t.key.value, t.key.span);
            let mut rows = Resolver::new(self.cx.sources, "topic");
            rows.row("partitions", t.partitions.value, t.partitions.span);
            rows.row("key", &t.key.value.text, t.key.span);
            match &t.retention {
                Some(d) => drop(rows.time("retention", d.value, d.span)),
                None => rows.row("retention", "until acknowledged", None),
            }
            let dedup = dedup(t.dedup.as_ref(), &mut rows);
            let relaxed = t.durability.value == Durability::Relaxed;
            rows.row("durability", if relaxed { "relaxed" } else { "fsync" }, t.durability.span);
            let values = rows.finish();
            self.explain(
                "topic",
                entry.name.to_string(),
                entry.at,
                "every subscription gets a copy".to_owned(),
                values,
            );
            out.push(TopicSpec {
                name: entry.name.clone(),
                partitions: t.partitions.value.get(),
                key: t.key.span.is_some().then(|| t.key.value.text.clone()),
                retention: t.retention.as_ref().map(|d| d.value),
                dedup,
                relaxed,
            });
        }
        out
    }

    pub(super) fn subscriptions(&mut self) -> Vec<SubscriptionSpec> {
        let mut out = Vec::new();
        for (entry, s) in self.root.subscriptions.iter().flat_map(|s| s.value.good()) {
            self.topic(&s.topic);
            if let Some(filter) = &s.filter {
                self.event_names(&filter.value, filter.span);
            }
            let on = if s.push.is_some() { Use::Push } else { Use::Channel };
            let own = layer::written(s.policy.as_ref(), self.policies, on, self.cx);
            self.check_inline(s.policy.as_ref());
            let mut rows = Resolver::new(self.cx.sources, "subscription");
            rows.row("topic", &s.topic.value, s.topic.span);
            let (mode, word) = match s.mode.value {
                Mode::Shared => (SubscriptionMode::Shared, "shared"),
                Mode::KeyShared => (SubscriptionMode::KeyShared, "key-shared"),
                Mode::Exclusive => (SubscriptionMode::Exclusive, "exclusive"),
            };
            rows.row("mode", word, s.mode.span);
            if let Some(filter) = &s.filter {
                rows.row("filter", &filter.value.text, filter.span);
            }
            let from = if s.from.value == From::Latest { StartFrom::Latest } else { StartFrom::Earliest };
            rows.row("from", if from == StartFrom::Latest { "latest" } else { "earliest" }, s.from.span);
            rows.time("lease", s.lease.value, s.lease.span);
            let redelivery = redelivery(s.retry.as_ref(), &own, "subscription", &mut rows);
            let dead = s.dead_letter.as_ref();
            rows.row("dead_letter", dead_letter(dead, &entry.name), dead.and_then(|d| d.span));
            let mut values = rows.finish();
            let push = s.push.as_ref().and_then(|p| self.push(&p.value, &own, &mut values));
            let summary = match &push {
                Some(p) => format!("{} -> POST {}{}", s.topic.value, p.service, p.path),
                None => format!("{} -> consumers", s.topic.value),
            };
            self.explain("subscription", entry.name.to_string(), entry.at, summary, values);
            self.not_itself(dead, &entry.name);
            out.push(SubscriptionSpec {
                name: entry.name.clone(),
                topic: s.topic.value.clone(),
                mode,
                filter: s.filter.as_ref().map(|f| f.value.text.clone()),
                from,
                redelivery,
                dead_letter: dead.map(|d| d.value.clone()),
                lease: s.lease.value,
                push,
            });
        }
        out
    }

    fn push(&mut self, p: &keys::Push, own: &[Layer<'r>], values: &mut Vec<layer::Explained>) -> Option<Push> {
        self.service(&p.service);
        if !p.path.value.starts_with('/') {
            let help = format!("write '/{}'", p.path.value);
            self.say(Mistake::new(p.path.span, "the path of a push starts with '/'").help(help));
        }
        let mut layers = self.base(Some(&p.service.value));
        layers.extend(own.iter().cloned());
        let (policy, rows) = layer::resolve(&layers, Use::Push, self.cx.sources);
        // The redelivery is the retry of a push; it is listed already.
        values.extend(rows.into_iter().filter(|r| !r.key.starts_with("retry")));
        Some(Push {
            service: p.service.value.clone(),
            path: p.path.value.clone(),
            policy: weft_policy::Policy { retry: None, ..policy },
            concurrency: p.concurrency.value.get(),
        })
    }

    /// Expressions over events know `event` and nothing else.
    fn event_names(&mut self, e: &Cel, at: Option<Span>) {
        let Some(at) = at else { return };
        for message in weft_flow::expr::Expr::compile(&e.text, &["event"]).err().into_iter().flatten() {
            complain(&message, &e.text, at, e.verbatim, self.cx);
        }
    }

    fn dedup_names(&mut self, dedup: Option<&At<keys::Dedup>>) {
        if let Some(At { value: keys::DedupBy::Expression(e), span }) = dedup.map(|d| &d.value.by) {
            self.event_names(e, *span);
        }
    }

    fn not_itself(&mut self, dead: Option<&At<weft_core::Name>>, name: &weft_core::Name) {
        if let Some(d) = dead.filter(|d| d.value == *name) {
            let help = format!("write another name, like '{name}.dead'");
            self.say(Mistake::new(d.span, format!("'{name}' cannot be its own dead letter queue")).help(help));
        }
    }
}

fn dead_letter(written: Option<&At<weft_core::Name>>, name: &weft_core::Name) -> String {
    written.map_or_else(|| format!("{name}.dead"), |d| d.value.to_string())
}

/// `retry:` of the channel itself, else the retry block of its policies, else the default of channels: the default
/// policy is made for calls, and would call a message dead after a second.
fn redelivery(
    own: Option<&At<keys::Redelivery>>,
    layers: &[Layer<'_>],
    from: &str,
    rows: &mut Resolver<'_>,
) -> Redelivery {
    let block = |p: &Policy| p.retry.clone();
    let (attempts, backoff) = match (own, layers.iter().rev().find_map(|(f, p)| Some((f, block(p)?)))) {
        (Some(own), _) => (own.value.attempts.clone(), own.value.backoff.clone()),
        (None, Some((layer, At { value: Switch::On(retry), .. }))) => {
            rows.layer(layer);
            (retry.attempts, retry.backoff)
        }
        (None, Some((layer, At { value: Switch::Off, span }))) => {
            rows.layer(layer);
            rows.row("retry", "off", span);
            rows.layer(from);
            return Redelivery { attempts: 1, ..Redelivery::default() };
        }
        (None, None) => {
            let default = default_of::<keys::Redelivery>();
            (default.attempts, default.backoff)
        }
    };
    rows.row("retry.attempts", attempts.value, attempts.span);
    let range = format!("{}..{}", format_duration(backoff.value.min), format_duration(backoff.value.max));
    rows.row("retry.backoff", range, backoff.span);
    rows.layer(from);
    Redelivery { attempts: attempts.value.get(), backoff_min: backoff.value.min, backoff_max: backoff.value.max }
}

fn dedup(written: Option<&At<keys::Dedup>>, rows: &mut Resolver<'_>) -> Dedup {
    let dedup = written.map_or_else(default_dedup, |d| d.value.clone());
    let (by, word) = match dedup.by.value {
        keys::DedupBy::Explicit => (DedupBy::Explicit, "explicit".to_owned()),
        keys::DedupBy::CeId => (DedupBy::CeId, "ce-id".to_owned()),
        keys::DedupBy::Expression(e) => (DedupBy::Expression(e.text.clone()), e.text),
    };
    rows.row("dedup.by", word, dedup.by.span);
    rows.time("dedup.window", dedup.window.value, dedup.window.span);
    Dedup { by, window: dedup.window.value }
}

fn default_dedup() -> keys::Dedup {
    default_of()
}
