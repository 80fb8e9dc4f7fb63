//! Laying policies over each other, and remembering where every effective value came from.
//!
//! Built-in defaults < `policies.default` < the service's < named < inline. A block replaces the same block whole.

use std::time::Duration;

use serde::Serialize;
use weft_core::limits;
use weft_core::units::format_duration;
use weft_policy::Policy as Effective;
use weft_policy::net::{Net, Nets};
use weft_policy::spec;

use super::keys::auth;
use super::keys::policy::{self as keys, Policies, Policy, PolicyUse};
use super::report::{Mistake, suggest};
use super::source::{At, Place, Sources, Span};
use super::value::{Cx, Many, Named, Switch, default_of};

/// One effective value and its source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Explained {
    /// `retry.attempts`
    pub key: String,
    /// As it is written in the file.
    pub value: String,
    /// The layer: `built-in`, `policies.default`, `service order`, `policy patient`, `inline`.
    pub from: String,
    /// Where it is written; `None` for what is built in.
    pub at: Option<Place>,
}

/// What a policy stands on; decides which blocks mean something there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// A route to a service.
    Route,
    /// A route to a saga.
    SagaRoute,
    /// A route to a queue or topic.
    PublishRoute,
    /// A route that answers by itself.
    AnswerRoute,
    /// A service.
    Service,
    /// A step that calls.
    Step,
    /// A subscription that pushes.
    Push,
    /// A queue, or a subscription that consumers receive from.
    Channel,
}

impl Use {
    /// As people say it.
    pub fn spoken(self) -> &'static str {
        match self {
            Use::Route => "a route to a service",
            Use::SagaRoute => "a route to a saga",
            Use::PublishRoute => "a route to a queue or topic",
            Use::AnswerRoute => "a route that answers by itself",
            Use::Service => "a service",
            Use::Step => "a saga step",
            Use::Push => "a push subscription",
            Use::Channel => "a queue or a subscription without push",
        }
    }

    /// The blocks that mean something there.
    pub fn blocks(self) -> &'static [&'static str] {
        match self {
            Use::Route => keys::BLOCKS,
            Use::SagaRoute | Use::PublishRoute => &["deadline", "bulkhead", "rate", "quota", "idempotency", "auth"],
            Use::AnswerRoute => &["rate"],
            Use::Service | Use::Step => {
                &["deadline", "attempt_timeout", "retry", "hedge", "breaker", "bulkhead", "rate"]
            }
            // A push is a POST without a key: it is never sent twice at once.
            Use::Push => &["deadline", "attempt_timeout", "retry", "breaker", "bulkhead", "rate"],
            Use::Channel => &["retry"],
        }
    }

    /// Every use, for the reference.
    pub const ALL: [Use; 8] = [
        Use::Route,
        Use::SagaRoute,
        Use::PublishRoute,
        Use::AnswerRoute,
        Use::Service,
        Use::Step,
        Use::Push,
        Use::Channel,
    ];
}

/// One layer and its name.
pub(super) type Layer<'a> = (String, &'a Policy);

/// The layers that `policy:` adds, named before inline; reports unknown names and blocks without meaning.
pub(super) fn written<'a>(
    uses: Option<&'a At<Policies>>,
    policies: &'a Named<Policy>,
    on: Use,
    cx: &mut Cx<'_>,
) -> Vec<Layer<'a>> {
    let (mut named, mut inline) = (Vec::new(), Vec::new());
    for one in uses.iter().flat_map(|u| &u.value.0) {
        match one {
            PolicyUse::Inline(policy) => {
                meaningless(policy, on, None, cx);
                inline.push(("inline".to_owned(), &**policy));
            }
            PolicyUse::Named(name) => match policies.get(&name.value) {
                Some(entry) => {
                    if let Some(policy) = &entry.value {
                        meaningless(policy, on, Some((name.value.as_str(), name.span)), cx);
                        named.push((format!("policy {}", name.value), policy));
                    }
                }
                None => {
                    let help = suggest(&name.value, "policy", policies.names()).replace("policys", "policies");
                    cx.say(Mistake::new(name.span, format!("unknown policy '{}'", name.value)).help(help));
                }
            },
        }
    }
    named.extend(inline);
    named
}

fn meaningless(policy: &Policy, on: Use, named: Option<(&str, Option<Span>)>, cx: &mut Cx<'_>) {
    for (block, span) in blocks(policy) {
        if on.blocks().contains(&block) {
            continue;
        }
        let help = format!("what has one: {}", on.blocks().join(", "));
        cx.say(match named {
            None => Mistake::new(span, format!("'{block}' has no meaning on {}", on.spoken())).help(help),
            Some((name, at)) => {
                Mistake::new(at, format!("policy '{name}' sets '{block}', which has no meaning on {}", on.spoken()))
                    .help(help)
                    .also(span, "set here")
            }
        });
    }
}

/// The blocks that a policy writes, and where.
fn blocks(p: &Policy) -> Vec<(&'static str, Option<Span>)> {
    fn one<T>(name: &'static str, block: &Option<At<T>>) -> Option<(&'static str, Option<Span>)> {
        block.as_ref().map(|b| (name, b.span))
    }
    [
        one("deadline", &p.deadline),
        one("attempt_timeout", &p.attempt_timeout),
        one("retry", &p.retry),
        one("hedge", &p.hedge),
        one("breaker", &p.breaker),
        one("bulkhead", &p.bulkhead),
        one("rate", &p.rate),
        one("quota", &p.quota),
        one("idempotency", &p.idempotency),
        one("auth", &p.auth),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Checks what one policy says by itself.
pub(super) fn check(p: &Policy, cx: &mut Cx<'_>) {
    if let Some(At { value: Switch::On(b), .. }) = &p.breaker
        && let keys::Window::Calls(window) = b.window.value
        && b.min_calls.value > window
    {
        let message = format!(
            "the breaker would never open: min_calls {} is more than the window of {window} calls",
            b.min_calls.value
        );
        let help = "make min_calls at most the window";
        cx.say(Mistake::new(b.min_calls.span.or(b.window.span), message).help(help));
    }
    if let Some(At { value: Switch::On(b), .. }) = &p.breaker
        && let keys::Window::Calls(window) = b.window.value
        && window.get() > limits::BREAKER_WINDOW
    {
        let message = format!("a window of {window} calls is more than a breaker remembers");
        cx.say(Mistake::new(b.window.span, message).help(format!("make it at most {}", limits::BREAKER_WINDOW)));
    }
    if let Some(At { value: Switch::On(b), .. }) = &p.bulkhead {
        if b.limit.is_none() && b.adaptive.is_none() && !b.broken {
            cx.say(Mistake::new(Some(b.at), "bulkhead needs 'limit'").help("add 'limit:'"));
        }
        if let Some(At { value: a, .. }) = &b.adaptive
            && a.min.value > a.max.value
        {
            let message = format!("the least, {}, is more than the most, {}", a.min.value, a.max.value);
            cx.say(Mistake::new(a.min.span.or(a.max.span), message).help("make 'min' at most 'max'"));
        }
    }
    if let Some(At { value: Switch::On(h), .. }) = &p.hedge
        && h.max.value.get() > limits::HEDGES
    {
        let message = format!("{} hedges are more than go out beside one attempt", h.max.value);
        cx.say(Mistake::new(h.max.span, message).help(format!("make it at most {}", limits::HEDGES)));
    }
    super::limit::check(p, cx);
    for (name, block) in [("deadline", &p.deadline), ("attempt_timeout", &p.attempt_timeout)] {
        if let Some(At { value: Switch::On(Duration::ZERO), span }) = block {
            cx.say(Mistake::new(*span, format!("{name} of 0 leaves no time at all")).help("write 'off' for no limit"));
        }
    }
}

/// Lays the layers over the built-in defaults. Blocks that mean nothing on `on` are off.
pub(super) fn resolve(layers: &[Layer<'_>], on: Use, sources: &Sources) -> (Effective, Vec<Explained>) {
    let mut r = Resolver::new(sources, "built-in");
    let builtin = Effective::builtin();
    let policy = Effective {
        deadline: r.block(
            ("deadline", on, layers, |p| &p.deadline),
            |r, d, at| r.time("deadline", *d, at),
            |r| builtin.deadline.map(|d| r.time("deadline", d, None)),
        ),
        attempt_timeout: r.block(
            ("attempt_timeout", on, layers, |p| &p.attempt_timeout),
            |r, d, at| r.time("attempt_timeout", *d, at),
            |r| builtin.attempt_timeout.map(|d| r.time("attempt_timeout", d, None)),
        ),
        retry: r.block(("retry", on, layers, |p| &p.retry), |r, k, _| r.retry(k), |r| Some(r.retry(&default_of()))),
        hedge: r.block(("hedge", on, layers, |p| &p.hedge), |r, k, _| r.hedge(k), |r| r.off("hedge")),
        breaker: r.block(
            ("breaker", on, layers, |p| &p.breaker),
            |r, k, _| r.breaker(k),
            |r| Some(r.breaker(&default_of())),
        ),
        bulkhead: r.block(
            ("bulkhead", on, layers, |p| &p.bulkhead),
            |r, k, _| r.bulkhead(k),
            |r| {
                let b = builtin.bulkhead?;
                r.row("bulkhead.limit", b.limit, None);
                r.row("bulkhead.queue", b.queue, None);
                r.time("bulkhead.wait", b.wait, None);
                Some(b)
            },
        ),
        rate: r
            .block(("rate", on, layers, |p| &p.rate), |r, k, _| r.rates(&k.0), |r| r.off("rate"))
            .unwrap_or_default(),
        quota: r
            .block(("quota", on, layers, |p| &p.quota), |r, k, _| r.quotas(&k.0), |r| r.off("quota"))
            .unwrap_or_default(),
        idempotency: r.block(
            ("idempotency", on, layers, |p| &p.idempotency),
            |r, k, _| r.idempotency(&k.0),
            |r| r.off("idempotency"),
        ),
        auth: r.block(("auth", on, layers, |p| &p.auth), |r, k, _| r.auth(&k.0), |r| r.off("auth")),
    };
    (policy, r.rows)
}

/// Where a limit that finds itself begins.
const ADAPTIVE_BEGIN: u32 = 20;

/// A block's name, where it is used, the layers, and how a layer's block is found.
type Search<'l, 'p, T> = (&'static str, Use, &'l [Layer<'p>], fn(&Policy) -> &Option<At<Switch<T>>>);

/// Collects the rows of one resolution.
pub(super) struct Resolver<'a> {
    sources: &'a Sources,
    rows: Vec<Explained>,
    from: String,
}

impl<'a> Resolver<'a> {
    /// The strongest layer's block, or the built-in one; nothing where the block has no meaning.
    fn block<T, U>(
        &mut self,
        (name, on, layers, pick): Search<'_, '_, T>,
        lower: impl FnOnce(&mut Self, &T, Option<Span>) -> U,
        builtin: impl FnOnce(&mut Self) -> Option<U>,
    ) -> Option<U> {
        if !on.blocks().contains(&name) {
            return None;
        }
        let strongest = layers.iter().rev().find_map(|(from, p)| pick(p).as_ref().map(|b| (from, b)));
        let Some((from, block)) = strongest else {
            self.layer("built-in");
            return builtin(self);
        };
        self.layer(from);
        match &block.value {
            Switch::On(value) => Some(lower(self, value, block.span)),
            Switch::Off => {
                self.row(name, "off", block.span);
                None
            }
        }
    }

    fn off<T>(&mut self, name: &str) -> Option<T> {
        self.row(name, "off", None);
        None
    }

    /// For rows of things other than policies.
    pub fn new(sources: &'a Sources, from: &str) -> Self {
        Self { sources, rows: Vec::new(), from: from.to_owned() }
    }

    /// The rows collected.
    pub fn finish(self) -> Vec<Explained> {
        self.rows
    }

    /// Adds a row; a value without a place is a default.
    pub fn row(&mut self, key: &str, value: impl ToString, at: Option<Span>) {
        let from = if at.is_some() { self.from.clone() } else { "built-in".to_owned() };
        let at = at.map(|s| self.sources.place(s));
        self.rows.push(Explained { key: key.to_owned(), value: value.to_string(), from, at });
    }

    /// Adds a row of a duration and passes it on.
    pub fn time(&mut self, key: &str, d: Duration, at: Option<Span>) -> Duration {
        self.row(key, format_duration(d), at);
        d
    }

    /// Sets the layer that further rows come from.
    pub fn layer(&mut self, from: &str) {
        self.from = from.to_owned();
    }

    fn percent(&mut self, key: &str, at: &At<super::value::Percent>) -> f64 {
        self.row(key, format!("{}%", at.value.0 * 100.0), at.span);
        at.value.0
    }

    fn count(&mut self, key: &str, at: &At<std::num::NonZeroU32>) -> u32 {
        self.row(key, at.value, at.span);
        at.value.get()
    }

    fn retry(&mut self, k: &keys::Retry) -> spec::Retry {
        let attempts = self.count("retry.attempts", &k.attempts);
        let backoff = k.backoff.value;
        let range = format!("{}..{}", format_duration(backoff.min), format_duration(backoff.max));
        self.row("retry.backoff", range, k.backoff.span);
        let jitter = k.jitter.value == keys::Jitter::Full;
        self.row("retry.jitter", if jitter { "full" } else { "none" }, k.jitter.span);
        let budget = self.percent("retry.budget", &k.budget);
        self.row("retry.budget_min", k.budget_min.value, k.budget_min.span);
        spec::Retry {
            attempts,
            backoff_min: backoff.min,
            backoff_max: backoff.max,
            jitter,
            budget,
            budget_min: k.budget_min.value,
        }
    }

    fn breaker(&mut self, k: &keys::Breaker) -> spec::Breaker {
        let failure_rate = self.percent("breaker.failure_rate", &k.failure_rate);
        match &k.slow_call {
            Some(d) => drop(self.time("breaker.slow_call", d.value, d.span)),
            None => self.row("breaker.slow_call", "off", None),
        }
        spec::Breaker {
            failure_rate,
            slow_call: k.slow_call.as_ref().map(|d| d.value),
            slow_rate: self.percent("breaker.slow_rate", &k.slow_rate),
            window: match k.window.value {
                keys::Window::Calls(n) => {
                    self.row("breaker.window", n, k.window.span);
                    n.get()
                }
                keys::Window::Time(d) => {
                    self.time("breaker.window", d, k.window.span);
                    spec::Breaker::default().window
                }
            },
            window_time: match k.window.value {
                keys::Window::Calls(_) => None,
                keys::Window::Time(d) => Some(d),
            },
            min_calls: self.count("breaker.min_calls", &k.min_calls),
            open_for: self.time("breaker.open_for", k.open_for.value, k.open_for.span),
            half_open_calls: self.count("breaker.half_open_calls", &k.half_open_calls),
        }
    }

    fn bulkhead(&mut self, k: &keys::Bulkhead) -> spec::Bulkhead {
        let adaptive = match (&k.adaptive, k.limit.as_ref().map(|l| l.value)) {
            (Some(a), _) => Some(self.adaptive(&a.value)),
            (None, Some(keys::Limit::Adaptive)) => Some(self.adaptive(&default_of())),
            (None, _) => None,
        };
        let limit = match k.limit.as_ref().map(|l| (l.value, l.span)) {
            Some((keys::Limit::Fixed(n), at)) => {
                self.row("bulkhead.limit", n, at);
                n.get()
            }
            adaptive => {
                self.row("bulkhead.limit", "adaptive", adaptive.and_then(|(_, at)| at));
                ADAPTIVE_BEGIN
            }
        };
        self.row("bulkhead.queue", k.queue.value, k.queue.span);
        let wait = self.time("bulkhead.wait", k.wait.value, k.wait.span);
        spec::Bulkhead { limit, queue: k.queue.value, wait, adaptive }
    }

    fn adaptive(&mut self, k: &keys::Adaptive) -> spec::Adaptive {
        let (min, max) = (self.count("bulkhead.adaptive.min", &k.min), self.count("bulkhead.adaptive.max", &k.max));
        self.row("bulkhead.adaptive.tolerance", k.tolerance.value.0, k.tolerance.span);
        spec::Adaptive { min, max, tolerance: k.tolerance.value.0 }
    }

    fn hedge(&mut self, k: &keys::Hedge) -> spec::Hedge {
        let after = match k.after.value {
            keys::HedgeAfter::Time(d) => spec::HedgeAfter::Time(self.time("hedge.after", d, k.after.span)),
            keys::HedgeAfter::Share(share) => {
                // Two decimals at most: shares are fractions of what was written.
                self.row("hedge.after", format!("p{}", (share * 1e4).round() / 1e2), k.after.span);
                spec::HedgeAfter::Share(share)
            }
        };
        spec::Hedge { after, max: self.count("hedge.max", &k.max) }
    }

    fn auth(&mut self, k: &auth::Auth) -> spec::Auth {
        fn list<T: ToString>(r: &mut Resolver<'_>, key: &str, many: &Option<At<Many<T>>>) -> Vec<String> {
            let Some(many) = many else { return Vec::new() };
            let all: Vec<String> = many.value.0.iter().map(|v| v.value.to_string()).collect();
            r.row(key, all.join(", "), many.span);
            all
        }
        let nets = |many: &Option<At<Many<Net>>>| many.iter().flat_map(|m| &m.value.0).map(|n| n.value).collect();
        let providers = list(self, "auth.use", &k.providers);
        self.row("auth.optional", k.optional.value, k.optional.span);
        list(self, "auth.allow", &k.allow);
        list(self, "auth.deny", &k.deny);
        let scopes = list(self, "auth.scopes", &k.scopes);
        if let Some(r) = &k.require {
            self.row("auth.require", &r.value.text, r.span);
        }
        self.row("auth.dry_run", k.dry_run.value, k.dry_run.span);
        self.row("auth.forward", k.forward.value, k.forward.span);
        let mut headers = Vec::new();
        for (name, value) in k.headers.iter().flat_map(|h| &h.value.0) {
            self.row(&format!("auth.headers.{}", name.value), &value.value.text, value.span);
            headers.push((name.value.to_ascii_lowercase(), value.value.text.clone()));
        }
        spec::Auth {
            providers,
            optional: k.optional.value,
            nets: Nets { allow: nets(&k.allow), deny: nets(&k.deny) },
            scopes,
            require: k.require.as_ref().map(|r| r.value.text.clone()),
            dry_run: k.dry_run.value,
            forward: k.forward.value,
            headers,
        }
    }

    fn idempotency(&mut self, k: &keys::Idempotency) -> spec::Idempotency {
        let public = k.scope.value == keys::IdempotencyScope::Public;
        self.row("idempotency.required", k.required.value, k.required.span);
        self.row("idempotency.scope", if public { "public" } else { "principal" }, k.scope.span);
        let keep = self.time("idempotency.keep", k.keep.value, k.keep.span);
        spec::Idempotency { required: k.required.value, public, keep }
    }
}
