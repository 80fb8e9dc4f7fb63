//! `policies:` and every `policy:`

use std::num::NonZeroU32;
use std::time::Duration;

use serde_json::{Value as Json, json};
use weft_core::Name;

use super::auth::AuthUse;
use crate::config::declare::{Declared, Section, section, words};
use crate::config::expr::Cel;
use crate::config::node::{Data, Key, Node, Scalar};
use crate::config::report::Mistake;
use crate::config::source::At;
use crate::config::value::{
    Amount, Backoff, Cx, Decimal, Many, PerTime, Percent, Switch, Value, pattern, scalar, shorten,
};

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
        /// A second attempt beside one that takes long, where sending again is safe.
        "hedge" hedge: opt(Switch<Hedge>),
        /// Failing fast while the other side is down.
        "breaker" breaker: opt(Switch<Breaker>),
        /// Work at once; more is refused with 503.
        "bulkhead" bulkhead: opt(Switch<Bulkhead>),
        /// Work per time; more is refused with 429. Of several limits all must pass.
        "rate" rate: opt(Switch<Many<Rate>>),
        /// Work per day or month, which survives a restart; more is refused with 429. On routes only.
        "quota" quota: opt(Switch<Many<Quota>>),
        /// `Idempotency-Key` on requests: the second with the same key gets the first one's answer.
        "idempotency" idempotency: opt(Switch<IdempotencyUse>),
        /// Who may call.
        "auth" auth: opt(Switch<AuthUse>),
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
    /// When an attempt has not ended after a while, another goes out, to another instance if there is one; the first good answer counts. Taken from the retry budget.
    Hedge short "after" {
        /// How long an attempt is waited for alone: a duration, or `p95`: what 95 % of the calls stay below.
        "after" after: def(HedgeAfter, "p95"),
        /// Attempts beside the first, each after the same wait.
        "max" max: def(NonZeroU32, "1"),
    }
}

/// A duration, or a percentile.
#[derive(Clone, Copy, Debug)]
pub(in crate::config) enum HedgeAfter {
    /// A duration.
    Time(Duration),
    /// A percentile, as a share.
    Share(f64),
}

impl Value for HedgeAfter {
    fn read(node: &Node, cx: &mut Cx<'_>) -> Option<Self> {
        let text = &scalar(node, cx, "a duration or a percentile")?.text;
        let Some(percentile) = text.strip_prefix('p') else { return Duration::read(node, cx).map(Self::Time) };
        match percentile.parse::<f64>() {
            Ok(p) if (1.0..100.0).contains(&p) => Some(Self::Share(p / 100.0)),
            _ => {
                let message = format!("'{}' is not a percentile", shorten(text));
                cx.say(Mistake::new(Some(node.span), message).help("write it like p95, from p1 to p99.9"));
                None
            }
        }
    }
    fn schema(_: &mut Declared) -> Json {
        pattern(r"p[0-9]+(?:\.[0-9]+)?|0|(?:[0-9]+(?:\.[0-9]+)?(?:us|ms|s|m|h|d))+")
    }
    fn kind() -> String {
        "duration, or percentile (`p95`)".to_owned()
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
        /// What is judged: the last so many calls (`100`), or the calls of the last so long (`60s`).
        "window" window: def(Window, "100"),
        /// Calls before the shares count.
        "min_calls" min_calls: def(NonZeroU32, "20"),
        /// How long it stays open.
        "open_for" open_for: def(Duration, "10s"),
        /// Trial calls when half-open.
        "half_open_calls" half_open_calls: def(NonZeroU32, "5"),
    }
}

/// Calls, or time.
#[derive(Clone, Copy, Debug)]
pub(in crate::config) enum Window {
    /// The last so many calls.
    Calls(NonZeroU32),
    /// The calls of the last so long.
    Time(Duration),
}

impl Value for Window {
    fn read(node: &Node, cx: &mut Cx<'_>) -> Option<Self> {
        let text = &scalar(node, cx, "a number of calls or a duration")?.text;
        if text.bytes().all(|b| b.is_ascii_digit()) {
            return NonZeroU32::read(node, cx).map(Self::Calls);
        }
        match Duration::read(node, cx)? {
            Duration::ZERO => {
                let help = "write how many calls, or how long: '100' or '60s'";
                cx.say(Mistake::new(Some(node.span), "a window of no time holds no calls").help(help));
                None
            }
            d => Some(Self::Time(d)),
        }
    }
    fn schema(_: &mut Declared) -> Json {
        json!({"anyOf": [
            {"type": "integer", "minimum": 1, "maximum": u32::MAX},
            pattern(r"[0-9]+|(?:[0-9]+(?:\.[0-9]+)?(?:us|ms|s|m|h|d))+"),
        ]})
    }
    fn kind() -> String {
        "number of calls, or duration".to_owned()
    }
}

/// A number, or `adaptive`.
#[derive(Clone, Copy, Debug)]
pub(in crate::config) enum Limit {
    /// So many.
    Fixed(NonZeroU32),
    /// It finds itself.
    Adaptive,
}

impl Value for Limit {
    fn read(node: &Node, cx: &mut Cx<'_>) -> Option<Self> {
        match &node.data {
            Data::Scalar(s) if s.text == "adaptive" => Some(Self::Adaptive),
            _ => NonZeroU32::read(node, cx).map(Self::Fixed),
        }
    }
    fn schema(declared: &mut Declared) -> Json {
        json!({"anyOf": [{"const": "adaptive"}, NonZeroU32::schema(declared)]})
    }
    fn kind() -> String {
        "number, at least 1, or `adaptive`".to_owned()
    }
}

section! {
    /// A limit on work at once that goes by how long attempts take: it grows while they take no longer than usual, and shrinks when they do or when the other side says that it is overloaded.
    Adaptive {
        /// Never below.
        "min" min: def(NonZeroU32, "4"),
        /// Never above.
        "max" max: def(NonZeroU32, "1024"),
        /// How many times as long as usual attempts may take before it shrinks.
        "tolerance" tolerance: def(Decimal, "1.5"),
    }
}

section! {
    /// Work at once. A number, or `adaptive`, alone is the limit.
    Bulkhead short "limit" {
        /// At once. With `adaptive` the limit finds itself; a number beside `adaptive:` is where it begins (20).
        "limit" limit: opt(Limit),
        /// The limit finds itself, between bounds.
        "adaptive" adaptive: opt(Adaptive),
        /// How many more may wait for a place.
        "queue" queue: def(u32, "0"),
        /// How long they wait.
        "wait" wait: def(Duration, "0s"),
    }
}

words! {
    /// What a rate or quota counts by.
    RatePer { "all" All, "principal" Principal, "address" Address, "api_key" ApiKey }
}

words! {
    /// How a rate counts.
    Algorithm { "gcra" Gcra, "sliding" Sliding }
}

words! {
    /// A time of the calendar, in UTC.
    Calendar { "day" Day, "month" Month }
}

section! {
    /// Work per time. A rate alone (`100/s`) is the limit.
    Rate short "limit" {
        /// The steady rate.
        "limit" limit: req(PerTime),
        /// `gcra`: a steady flow with bursts; `sliding`: so many in any period.
        "algorithm" algorithm: def(Algorithm, "gcra"),
        /// How many above the steady rate at once (`gcra`).
        "burst" burst: def(u32, "0"),
        /// One count for all (the default), one per principal, one per source address, or one per `X-Api-Key`. Callers without a principal or key are counted by source address.
        "per" per: opt(RatePer),
        /// In place of `per`: a count per value of this header. Callers without it are counted by source address.
        "header" header: opt(String),
        /// In place of `per`: a count per value of this expression over `request`, `principal` and `address`.
        "key" key: opt(Cel),
        /// Bits of an IPv6 address that tell callers apart.
        "ipv6_prefix" ipv6_prefix: def(u32, "64"),
        /// How much a request takes, as an expression over `request`, `principal` and `address`. Without it 1.
        "cost" cost: opt(Cel),
        /// What callers know it by. Without it `default`, or what it counts by where there are several.
        "name" name: opt(Name),
        /// Tells callers how they stand, in `RateLimit` and `RateLimit-Policy`.
        "headers" headers: def(bool, "true"),
    }
}

section! {
    /// Work per day or month of UTC.
    Quota {
        /// How many in the period: `10k`, `5M`.
        "limit" limit: req(Amount),
        /// `day`: from midnight to midnight of UTC; `month`: from the first to the first.
        "per" per: req(Calendar),
        /// As `per` of a rate.
        "by" by: def(RatePer, "principal"),
        /// In place of `by`, as of a rate.
        "header" header: opt(String),
        /// In place of `by`, as of a rate.
        "key" key: opt(Cel),
        /// Bits of an IPv6 address that tell callers apart.
        "ipv6_prefix" ipv6_prefix: def(u32, "64"),
        /// How much a request takes, as of a rate.
        "cost" cost: opt(Cel),
        /// What callers know it by, and what its counts are stored under. Without it `day` or `month`.
        "name" name: opt(Name),
        /// Tells callers how they stand, in `RateLimit` and `RateLimit-Policy`.
        "headers" headers: def(bool, "true"),
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
