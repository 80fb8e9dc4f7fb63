//! A policy in force: the counters that all work under it shares.

use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;
use weft_core::Deadline;

use crate::breaker::{self, Breaker};
use crate::budget::Budget;
use crate::bulkhead::{Bulkhead, Slot};
use crate::error::Refused;
use crate::quantile::Quantile;
use crate::rate::{Ask, Exceeded, RateLimits, Standing};
use crate::spec::{HedgeAfter, Policy, Rate, Retry};

/// A policy and its counters; cheap to clone, shared by every thread.
///
/// One instance stands for one thing that is limited (a route, a subscription, a saga step): its breaker, bulkhead,
/// rate and retry budget count what passes through it.
#[derive(Clone, Debug)]
pub struct Instance(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    policy: Policy,
    began: Instant,
    bulkhead: Bulkhead,
    rate: RateLimits,
    breaker: Option<Breaker>,
    budget: Option<Budget>,
    latency: Option<Quantile>,
    hedges: AtomicU64,
    hedges_won: AtomicU64,
    retries: AtomicU64,
    budget_spent: AtomicU64,
    #[cfg(feature = "telemetry")]
    told: std::sync::OnceLock<weft_telemetry::metrics::Collector>,
}

/// Counts of what does not happen on a good day.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Attempts after the first.
    pub retries: u64,
    /// Attempts that went out beside a slow one.
    pub hedges: u64,
    /// Of these, whose answer was the one that counted.
    pub hedges_won: u64,
    /// Retries not made because the budget was used up.
    pub budget_spent: u64,
    /// Times the breaker opened.
    pub breaker_opened: u64,
    /// Calls the breaker refused.
    pub breaker_refused: u64,
    /// Work the bulkhead refused.
    pub bulkhead_refused: u64,
    /// Work over the rate.
    pub rate_refused: u64,
    /// Calls under way in the bulkhead.
    pub under_way: u32,
    /// Calls waiting for the bulkhead.
    pub waiting: u32,
    /// Times a rate key found no place of its own.
    pub rate_crowded: u64,
}

/// Hedges without retries have the budget that retries have by default.
fn budget(policy: &Policy) -> Option<Budget> {
    let r = policy.retry.or_else(|| policy.hedge.map(|_| Retry::default()))?;
    Some(Budget::new(r.budget, r.budget_min))
}

impl Instance {
    /// Puts a policy in force with fresh counters.
    pub fn new(policy: &Policy) -> Self {
        Self(Arc::new(Inner {
            began: Instant::now(),
            bulkhead: Bulkhead::new(policy.bulkhead),
            rate: RateLimits::new(&policy.rate),
            breaker: policy.breaker.map(Breaker::new),
            budget: budget(policy),
            latency: match policy.hedge.map(|h| h.after) {
                Some(HedgeAfter::Share(share)) => Some(Quantile::new(share)),
                Some(HedgeAfter::Time(_)) | None => None,
            },
            hedges: AtomicU64::new(0),
            hedges_won: AtomicU64::new(0),
            retries: AtomicU64::new(0),
            budget_spent: AtomicU64::new(0),
            #[cfg(feature = "telemetry")]
            told: std::sync::OnceLock::new(),
            policy: policy.clone(),
        }))
    }

    /// The policy.
    #[inline]
    pub fn policy(&self) -> &Policy {
        &self.0.policy
    }

    /// The earlier of a caller's deadline and the policy's, counted from now. Ask once, when the work arrives.
    #[inline]
    pub fn deadline(&self, caller: Deadline) -> Deadline {
        match self.0.policy.deadline {
            Some(d) => caller.min(Deadline::after(d)),
            None => caller,
        }
    }

    /// The bulkhead; takes everything when the policy has none.
    #[inline]
    pub fn bulkhead(&self) -> &Bulkhead {
        &self.0.bulkhead
    }

    /// Takes a place in the bulkhead.
    #[inline]
    pub async fn acquire(&self, deadline: Deadline) -> Result<Slot, Refused> {
        self.0.bulkhead.acquire(deadline).await
    }

    /// The rate limits.
    #[inline]
    pub fn rate(&self) -> &RateLimits {
        &self.0.rate
    }

    /// Counts one piece of work against every rate limit, all under one key.
    #[inline]
    pub fn check_rate<K: Hash + ?Sized>(&self, key: &K) -> Result<(), Refused> {
        if self.0.rate.is_empty() {
            return Ok(());
        }
        let taken = self.check_rates(|i, _| Ask { key: self.0.rate.hash(i, key), cost: 1 }, |_, _| {});
        taken.map_err(|e| Refused::RateLimited { retry_after: e.retry_after })
    }

    /// Counts one piece of work against every rate limit, or none; as [`RateLimits::check`], now.
    #[inline]
    pub fn check_rates(
        &self,
        ask: impl FnMut(usize, &Rate) -> Ask,
        seen: impl FnMut(usize, Standing),
    ) -> Result<(), Exceeded> {
        self.0.rate.check(self.nanos(Instant::now()), ask, seen)
    }

    /// The breaker, if the policy has one.
    #[inline]
    pub fn breaker(&self) -> Option<&Breaker> {
        self.0.breaker.as_ref()
    }

    /// The breaker's state for people, if the policy has one.
    pub fn breaker_status(&self) -> Option<breaker::Status> {
        self.breaker().map(|b| b.status(self.nanos(Instant::now())))
    }

    /// The counts so far.
    pub fn stats(&self) -> Stats {
        let breaker = self.breaker_status();
        let (under_way, waiting) = self.0.bulkhead.load();
        Stats {
            retries: self.0.retries.load(Ordering::Relaxed),
            hedges: self.0.hedges.load(Ordering::Relaxed),
            hedges_won: self.0.hedges_won.load(Ordering::Relaxed),
            budget_spent: self.0.budget_spent.load(Ordering::Relaxed),
            breaker_opened: breaker.map_or(0, |b| b.opened),
            breaker_refused: breaker.map_or(0, |b| b.refused),
            bulkhead_refused: self.0.bulkhead.refused(),
            rate_refused: self.0.rate.refused(),
            under_way,
            waiting,
            rate_crowded: self.0.rate.crowded(),
        }
    }

    /// Tells its counters to the metrics for as long as it lives, and what its breaker does to the log. `policy` names
    /// the one thing it limits: `route orders`, `service payment`, `step place-order/charge`, `subscription mail`. Said
    /// once; later calls change nothing. An old instance that still drains counts together with the new one of its
    /// name; of two breakers the worse shows.
    #[cfg(feature = "telemetry")]
    pub fn tell(&self, metrics: &weft_telemetry::Metrics, policy: &str) {
        let (inner, name) = (Arc::downgrade(&self.0), Box::<str>::from(policy));
        self.0.told.get_or_init(|| {
            if let Some(b) = self.breaker() {
                b.name(policy);
            }
            metrics.collect(move |out| {
                if let Some(this) = inner.upgrade().map(Instance) {
                    this.samples(out, &name);
                }
            })
        });
    }

    #[cfg(feature = "telemetry")]
    fn samples(&self, out: &mut weft_telemetry::metrics::Samples, name: &str) {
        use weft_telemetry::names;
        let (policy, stats) = (self.policy(), self.stats());
        let own = [("policy", name)];
        if !policy.rate.is_empty() {
            out.counter(&names::POLICY_REFUSED, &[own[0], ("reason", "rate-limited")], stats.rate_refused);
            if policy.rate.iter().any(|r| r.per != crate::spec::RatePer::All) {
                out.counter(&names::RATE_CROWDED, &own, stats.rate_crowded);
            }
        }
        if policy.bulkhead.is_some() {
            out.counter(&names::POLICY_REFUSED, &[own[0], ("reason", "bulkhead")], stats.bulkhead_refused);
            out.gauge(&names::BULKHEAD_IN_FLIGHT, &own, stats.under_way.into());
            out.gauge(&names::BULKHEAD_WAITING, &own, stats.waiting.into());
            out.gauge(&names::BULKHEAD_LIMIT, &own, self.bulkhead().limit().unwrap_or(0).into());
        }
        if policy.retry.is_some() {
            out.counter(&names::RETRIES, &own, stats.retries);
            out.counter(&names::RETRY_BUDGET_SPENT, &own, stats.budget_spent);
        }
        if policy.hedge.is_some() {
            out.counter(&names::HEDGES, &own, stats.hedges);
            out.counter(&names::HEDGES_WON, &own, stats.hedges_won);
        }
        if let Some(breaker) = self.breaker_status() {
            let state = match breaker.state {
                breaker::Name::Closed => 0.0,
                breaker::Name::HalfOpen => 1.0,
                breaker::Name::Open => 2.0,
            };
            out.gauge_max(&names::BREAKER_STATE, &own, state);
            out.counter(&names::BREAKER_OPENED, &own, breaker.opened);
            out.counter(&names::POLICY_REFUSED, &[own[0], ("reason", "breaker-open")], breaker.refused);
        }
    }

    /// An instant as the counters see it.
    #[inline]
    pub(crate) fn nanos(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.0.began).as_nanos() as u64
    }

    #[inline]
    pub(crate) fn count_request(&self, now: Instant) {
        if let Some(b) = &self.0.budget {
            b.request(self.nanos(now));
        }
    }

    /// How long an attempt is waited for alone, if the policy hedges and that is known.
    pub(crate) fn hedge_delay(&self) -> Option<Duration> {
        match self.0.policy.hedge?.after {
            HedgeAfter::Time(d) => Some(d),
            HedgeAfter::Share(_) => self.0.latency.as_ref()?.value(),
        }
    }

    /// Takes one hedge from the budget.
    pub(crate) fn take_hedge(&self, now: Instant) -> bool {
        let allowed = self.0.budget.as_ref().is_some_and(|b| b.retry(self.nanos(now)));
        let counter = if allowed { &self.0.hedges } else { &self.0.budget_spent };
        counter.fetch_add(1, Ordering::Relaxed);
        allowed
    }

    pub(crate) fn hedge_won(&self) {
        self.0.hedges_won.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes in how long an attempt took, or had taken when it was given up, where hedges go by it.
    #[inline]
    pub(crate) fn timed(&self, took: Duration) {
        if let Some(q) = &self.0.latency {
            q.record(self.nanos(Instant::now()), took);
        }
    }

    /// Takes one retry from the budget.
    pub(crate) fn take_retry(&self, now: Instant) -> bool {
        let allowed = self.0.budget.as_ref().is_some_and(|b| b.retry(self.nanos(now)));
        let counter = if allowed { &self.0.retries } else { &self.0.budget_spent };
        counter.fetch_add(1, Ordering::Relaxed);
        allowed
    }
}

#[cfg(all(test, feature = "telemetry"))]
mod tests {
    use super::*;
    use crate::spec::{self, Rate, RatePer};

    #[tokio::test(start_paused = true)]
    async fn what_policy_refuses_is_told_to_the_metrics_while_the_instance_lives() {
        let metrics = weft_telemetry::Metrics::new();
        let rate = Rate { per: RatePer::Principal, ..Rate::default() };
        let i = Instance::new(&Policy { rate: vec![rate], ..Policy::builtin() });
        i.tell(&metrics, "route orders");
        i.tell(&metrics, "route again");
        let _slot = i.acquire(Deadline::NONE).await.unwrap();
        i.check_rate("ann").unwrap();
        i.check_rate("ann").unwrap_err();
        let text = metrics.render_prometheus();
        for line in [
            "weft_policy_refused_total{policy=\"route orders\",reason=\"rate-limited\"} 1\n",
            "weft_bulkhead_in_flight{policy=\"route orders\"} 1\n",
            "weft_breaker_state{policy=\"route orders\"} 0\n",
            "weft_retries_total{policy=\"route orders\"} 0\n",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("again"), "{text}");
        drop(i);
        assert!(!metrics.render_prometheus().contains("orders"));
    }

    #[tokio::test(start_paused = true)]
    async fn an_open_breaker_shows_its_state_beside_a_newer_one_of_its_name() {
        let metrics = weft_telemetry::Metrics::new();
        let breaker = spec::Breaker { min_calls: 1, window: 1, ..spec::Breaker::default() };
        let policy = Policy { breaker: Some(breaker), ..Policy::builtin() };
        let (old, new) = (Instance::new(&policy), Instance::new(&policy));
        old.tell(&metrics, "step s/charge");
        new.tell(&metrics, "step s/charge");
        let gate = old.breaker().unwrap();
        gate.admit(0).unwrap().judge(0, true, Duration::ZERO);
        assert!(gate.admit(1).is_err());
        let text = metrics.render_prometheus();
        for line in [
            "weft_breaker_state{policy=\"step s/charge\"} 2\n",
            "weft_breaker_opened_total{policy=\"step s/charge\"} 1\n",
            "weft_policy_refused_total{policy=\"step s/charge\",reason=\"breaker-open\"} 1\n",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
