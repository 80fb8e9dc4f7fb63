//! `policies:` and every `policy:`

use std::num::NonZeroU32;
use std::time::Duration;

use serde_json::{Value as Json, json};
use weft_core::Name;

use crate::config::declare::{Declared, Section, section, words};
use crate::config::node::{Data, Key, Node, Scalar};
use crate::config::source::At;
use crate::config::value::{Backoff, Cx, PerTime, Percent, Switch, Value};

section! {
    /// Limits and reactions, which mean the same on an HTTP route, a gRPC method, a push subscription and a saga step.
    /// A block replaces the same block of a weaker layer whole; `off` turns it off.
    Policy {
        /// Time for the whole work, retries included.
        "deadline" deadline: opt(Switch<Duration>),
        /// Time for one attempt.
        "attempt_timeout" attempt_timeout: opt(Switch<Duration>),
        /// Trying again.
        "retry" retry: opt(Switch<Retry>),
        /// Failing fast while the other side is down.
        "breaker" breaker: opt(Switch<Breaker>),
        /// Work at once; more is refused with 503.
        "bulkhead" bulkhead: opt(Switch<Bulkhead>),
        /// Work per time; more is refused with 429.
        "rate" rate: opt(Switch<Rate>),
        /// `Idempotency-Key` on requests: the second with the same key gets the first one's answer.
        "idempotency" idempotency: opt(Switch<IdempotencyUse>),
    }
}

words! {
    /// Whether backoffs are spread at random.
    Jitter { "full" Full, "none" None }
}

section! {
    /// Exponential backoff. A call is tried again only where that is safe.
    Retry {
        /// Tries in all, the first included.
        "attempts" attempts: def(NonZeroU32, "3"),
        /// First and longest wait between tries.
        "backoff" backoff: def(Backoff, "25ms..1s"),
        /// `full`: a random part of the wait; `none`: all of it.
        "jitter" jitter: def(Jitter, "full"),
        /// Retries as a share of requests over 10 s, so that a failing service is not flooded.
        "budget" budget: def(Percent, "20%"),
        /// Retries a second that the budget always allows.
        "budget_min" budget_min: def(u32, "10"),
    }
}

section! {
    /// Opens when too many of the last calls failed or were slow; lets trial calls through after a while.
    Breaker {
        /// Opens at this share of failures.
        "failure_rate" failure_rate: def(Percent, "50%"),
        /// A call slower than this is slow. Without it slowness does not count.
        "slow_call" slow_call: opt(Duration),
        /// Opens at this share of slow calls.
        "slow_rate" slow_rate: def(Percent, "100%"),
        /// Calls in the sliding window.
        "window" window: def(NonZeroU32, "100"),
        /// Calls before the shares count.
        "min_calls" min_calls: def(NonZeroU32, "20"),
        /// How long it stays open.
        "open_for" open_for: def(Duration, "10s"),
        /// Trial calls when half-open.
        "half_open_calls" half_open_calls: def(NonZeroU32, "5"),
    }
}

section! {
    /// Work at once. A number alone is the limit.
    Bulkhead short "limit" {
        /// At once.
        "limit" limit: req(NonZeroU32),
        /// How many more may wait for a place.
        "queue" queue: def(u32, "0"),
        /// How long they wait.
        "wait" wait: def(Duration, "0s"),
    }
}

words! {
    /// What a rate counts by.
    RatePer { "all" All, "principal" Principal, "address" Address }
}

section! {
    /// Work per time. A rate alone (`100/s`) is the limit.
    Rate short "limit" {
        /// The steady rate.
        "limit" limit: req(PerTime),
        /// How many above it at once.
        "burst" burst: def(u32, "0"),
        /// One count for all, one per principal (anonymous callers: per source address), or one per source address.
        "per" per: def(RatePer, "all"),
    }
}

words! {
    /// Whose keys share a scope.
    IdempotencyScope { "principal" Principal, "public" Public }
}

section! {
    /// `Idempotency-Key` handling. `required` or `optional` alone says whether requests must carry a key.
    Idempotency {
        /// Requests without a key are refused with 400.
        "required" required: def(bool, "false"),
        /// `public`: all anonymous callers share one scope, so whoever knows a key can read its answer.
        "scope" scope: def(IdempotencyScope, "principal"),
        /// How long answers are kept.
        "keep" keep: def(Duration, "24h"),
    }
}

/// `required`, `optional`, or an [`Idempotency`] map.
#[derive(Clone, Debug)]
pub(in crate::config) struct IdempotencyUse(pub Idempotency);

impl Value for IdempotencyUse {
    fn read(node: &Node, cx: &mut Cx<'_>) -> Option<Self> {
        let required = match &node.data {
            Data::Scalar(s) if s.text == "required" => "true",
            Data::Scalar(s) if s.text == "optional" => "false",
            Data::Scalar(s) if !s.text.is_empty() => {
                cx.expected(node, "required, optional, off or a map");
                return None;
            }
            _ => return Idempotency::read(node, cx).map(Self),
        };
        let scalar = Scalar { text: required.to_owned(), plain: true, verbatim: None, failed: false };
        let key = Key { text: "required".to_owned(), span: node.owner };
        let value = Node { span: node.span, owner: node.owner, data: Data::Scalar(scalar) };
        let map = Node { span: node.span, owner: node.owner, data: Data::Map(vec![(key, value)]) };
        Idempotency::read(&map, cx).map(Self)
    }
    fn schema(declared: &mut Declared) -> Json {
        json!({"anyOf": [{"enum": ["required", "optional"]}, declared.section::<Idempotency>()]})
    }
    fn kind() -> String {
        format!("`required`, `optional`, {}", Idempotency::kind())
    }
}

/// What stands at `policy:`: the name of one of `policies`, an inline policy, or a list of both.
#[derive(Clone, Debug)]
pub(in crate::config) struct Policies(pub Vec<PolicyUse>);

/// One entry of [`Policies`].
#[derive(Clone, Debug)]
pub(in crate::config) enum PolicyUse {
    /// One of `policies`.
    Named(At<Name>),
    /// Written in place.
    Inline(Box<Policy>),
}

impl Value for Policies {
    fn read(node: &Node, cx: &mut Cx<'_>) -> Option<Self> {
        let one = |n: &Node, cx: &mut Cx<'_>| match &n.data {
            Data::Map(_) => Policy::read(n, cx).map(|p| PolicyUse::Inline(Box::new(p))),
            Data::Scalar(s) if !s.text.is_empty() => At::read(n, cx).map(PolicyUse::Named),
            _ => {
                cx.expected(n, "the name of a policy, or a policy");
                None
            }
        };
        match &node.data {
            Data::List(items) => Some(Policies(items.iter().filter_map(|n| one(n, cx)).collect())),
            _ => one(node, cx).map(|p| Policies(vec![p])),
        }
    }
    fn schema(declared: &mut Declared) -> Json {
        let one = json!({"anyOf": [Name::schema(declared), declared.section::<Policy>()]});
        json!({"anyOf": [one, {"type": "array", "items": one}]})
    }
    fn kind() -> String {
        format!("name of a policy, {}, or a list of both", Policy::kind())
    }
}

/// The names of the blocks of a policy, as written.
pub(in crate::config) const BLOCKS: &[&str] = <Policy as Section>::KEYS;
