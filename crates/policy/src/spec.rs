//! The effective policy of a route, push subscription or saga step, as configuration resolves it.
//!
//! Durations are exact; `None` means the block is off.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// All blocks that apply to one piece of work, after built-in defaults, `policies.default`, service, named and
/// inline were laid over each other.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Policy {
    /// Time for the whole work, retries included.
    pub deadline: Option<Duration>,
    /// Time for one attempt (to the response head; for calls with a collected body, to its end).
    pub attempt_timeout: Option<Duration>,
    /// Trying again.
    pub retry: Option<Retry>,
    /// A second attempt beside a slow one.
    pub hedge: Option<Hedge>,
    /// Failing fast.
    pub breaker: Option<Breaker>,
    /// Work at once.
    pub bulkhead: Option<Bulkhead>,
    /// Work per time; all must pass.
    pub rate: Vec<Rate>,
    /// Work per day or month; all must pass.
    pub quota: Vec<Quota>,
    /// Idempotency-Key handling.
    pub idempotency: Option<Idempotency>,
    /// Who may call.
    // Left out where there is none, so that what was hashed before there was one has the same hash.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth: Option<Auth>,
}

/// Who may call: from where, vouched for by whom, and under which condition.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Auth {
    /// Names of providers, any of which is enough; empty = nobody is asked who they are.
    pub providers: Vec<String>,
    /// Callers without a credential are let in as anonymous; one with a bad credential is not.
    pub optional: bool,
    /// Source addresses.
    pub nets: crate::net::Nets,
    /// Scopes, all of which the caller must have.
    pub scopes: Vec<String>,
    /// CEL; must be true.
    pub require: Option<String>,
    /// `scopes` and `require` are judged, counted and logged, and not enforced.
    pub dry_run: bool,
    /// The credential goes on to the target.
    pub forward: bool,
    /// Header fields for the target, each with the CEL expression of its value. What a caller sends under these names
    /// never goes on.
    pub headers: Vec<(String, String)>,
}

/// Exponential backoff with full jitter under a budget.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Retry {
    /// Tries in all, the first included; at least 1.
    pub attempts: u32,
    /// First backoff.
    pub backoff_min: Duration,
    /// Longest backoff.
    pub backoff_max: Duration,
    /// Full jitter (AWS Architecture Blog, 2015) or none.
    pub jitter: bool,
    /// Retries as a fraction of requests, over a sliding 10 s; plus `budget_min` a second.
    pub budget: f64,
    /// Retries a second that the budget always allows.
    pub budget_min: u32,
}

/// A further attempt beside one that takes long, where sending again is safe.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hedge {
    /// How long an attempt is waited for alone.
    pub after: HedgeAfter,
    /// Attempts beside the first, each after the same wait; at most [`limits::HEDGES`](weft_core::limits::HEDGES).
    pub max: u32,
}

/// When a hedge goes out.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum HedgeAfter {
    /// After so long.
    Time(Duration),
    /// After what this share (0 to 1) of calls stay below; until that is known there are no hedges.
    Share(f64),
}

/// Closed, open, half-open over a window of calls.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Breaker {
    /// Opens at this share of failures, 0 to 1.
    pub failure_rate: f64,
    /// A call slower than this is slow; `None` = slowness does not count.
    pub slow_call: Option<Duration>,
    /// Opens at this share of slow calls, 0 to 1.
    pub slow_rate: f64,
    /// Calls in the sliding window.
    pub window: u32,
    /// The calls of the last so long, however many, instead of the last [`window`](Self::window).
    pub window_time: Option<Duration>,
    /// Calls before the rates count.
    pub min_calls: u32,
    /// How long it stays open.
    pub open_for: Duration,
    /// Trial calls when half-open; all must be judged before it closes or opens again.
    pub half_open_calls: u32,
}

/// Work at once, and how many may wait for a place.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Bulkhead {
    /// At once; where it begins, when it is [adaptive](Self::adaptive).
    pub limit: u32,
    /// May wait.
    pub queue: u32,
    /// How long they wait.
    pub wait: Duration,
    /// The limit finds itself.
    pub adaptive: Option<Adaptive>,
}

/// A limit that goes by how long attempts take.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Adaptive {
    /// Never below.
    pub min: u32,
    /// Never above.
    pub max: u32,
    /// How much longer than usual attempts may take before the limit shrinks: 1.5 = half as long again.
    pub tolerance: f64,
}

/// Work per time, counted apart by key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rate {
    /// As callers read it in `RateLimit`.
    pub name: String,
    /// How many.
    pub limit: u32,
    /// Per this long.
    pub period: Duration,
    /// How.
    pub algorithm: Algorithm,
    /// Above the steady rate, for GCRA.
    pub burst: u32,
    /// Counted by.
    pub per: RatePer,
    /// Bits of an IPv6 address that tell callers apart.
    pub ipv6_prefix: u8,
    /// How much one takes (CEL); 1 without it.
    pub cost: Option<String>,
    /// Whether callers are told how they stand.
    pub headers: bool,
}

/// How a rate counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Algorithm {
    /// A steady flow with bursts.
    #[default]
    Gcra,
    /// So many in any period.
    Sliding,
}

/// What a rate or quota counts by.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum RatePer {
    /// One count for all.
    #[default]
    All,
    /// A count per principal (anonymous callers: per source address).
    Principal,
    /// A count per source address.
    Address,
    /// A count per value of a header (without it: per source address).
    Header(String),
    /// A count per value of a CEL expression (when it has none: per source address).
    Expression(String),
}

/// Work per day or month of UTC; survives a restart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quota {
    /// As callers read it in `RateLimit`, and as it is stored.
    pub name: String,
    /// How many.
    pub limit: u64,
    /// In which time.
    pub period: Calendar,
    /// Counted by.
    pub per: RatePer,
    /// Bits of an IPv6 address that tell callers apart.
    pub ipv6_prefix: u8,
    /// How much one takes (CEL); 1 without it.
    pub cost: Option<String>,
    /// Whether callers are told how they stand.
    pub headers: bool,
}

/// A time of the calendar, in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Calendar {
    /// From midnight to midnight.
    Day,
    /// From the first to the first.
    Month,
}

/// Idempotency-Key (IETF httpapi draft) on a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Idempotency {
    /// Without a key: 400.
    pub required: bool,
    /// Anonymous callers share one scope; without this they may not use keys.
    pub public: bool,
    /// How long answers are kept.
    pub keep: Duration,
}

impl Auth {
    /// Whether callers may be anonymous under it.
    pub fn anonymous(&self) -> bool {
        self.providers.is_empty() || self.optional
    }
}

impl Policy {
    /// What applies where configuration says nothing.
    pub fn builtin() -> Self {
        Self {
            deadline: Some(Duration::from_secs(15)),
            attempt_timeout: Some(Duration::from_secs(5)),
            retry: Some(Retry::default()),
            hedge: None,
            breaker: Some(Breaker::default()),
            bulkhead: Some(Bulkhead::default()),
            rate: Vec::new(),
            quota: Vec::new(),
            idempotency: None,
            auth: None,
        }
    }
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            attempts: 3,
            backoff_min: Duration::from_millis(25),
            backoff_max: Duration::from_secs(1),
            jitter: true,
            budget: 0.2,
            budget_min: 10,
        }
    }
}

impl Default for Breaker {
    fn default() -> Self {
        Self {
            failure_rate: 0.5,
            slow_call: None,
            slow_rate: 1.0,
            window: 100,
            window_time: None,
            min_calls: 20,
            open_for: Duration::from_secs(10),
            half_open_calls: 5,
        }
    }
}

impl Default for Bulkhead {
    fn default() -> Self {
        Self { limit: 1024, queue: 0, wait: Duration::ZERO, adaptive: None }
    }
}

impl Default for Adaptive {
    fn default() -> Self {
        Self { min: 4, max: 1_024, tolerance: 1.5 }
    }
}

impl Default for Hedge {
    fn default() -> Self {
        Self { after: HedgeAfter::Share(0.95), max: 1 }
    }
}

impl Default for Rate {
    fn default() -> Self {
        Self {
            name: "default".to_owned(),
            limit: 1,
            period: Duration::from_secs(1),
            algorithm: Algorithm::Gcra,
            burst: 0,
            per: RatePer::All,
            ipv6_prefix: 64,
            cost: None,
            headers: true,
        }
    }
}

impl Default for Idempotency {
    fn default() -> Self {
        Self { required: false, public: false, keep: Duration::from_secs(24 * 3600) }
    }
}
