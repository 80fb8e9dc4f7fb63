//! What travels with every piece of work.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::trace::Trace;

/// Trace, principal, deadline, idempotency key, version and baggage of one piece of work.
#[derive(Clone, Debug)]
pub struct Context {
    /// The span this work runs in.
    pub trace: Trace,
    /// On whose behalf.
    pub principal: Principal,
    /// When the answer stops mattering.
    pub deadline: Deadline,
    /// The caller's Idempotency-Key, if it gave one.
    pub idempotency_key: Option<Arc<str>>,
    /// The API version asked for.
    pub version: Option<Arc<str>>,
    /// W3C baggage, as received from a trusted peer.
    pub baggage: Option<Arc<str>>,
}

impl Context {
    /// A context that starts a new trace, for work no caller asked for.
    pub fn root() -> Self {
        Self::of(Trace::root())
    }

    /// A context in a given span, anonymous and without deadline.
    pub fn of(trace: Trace) -> Self {
        Self {
            trace,
            principal: Principal::Anonymous,
            deadline: Deadline::NONE,
            idempotency_key: None,
            version: None,
            baggage: None,
        }
    }

    /// The same work one span deeper.
    pub fn child(&self) -> Self {
        Self { trace: self.trace.child(), ..self.clone() }
    }
}

/// Who asks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum Principal {
    /// Nobody in particular.
    #[default]
    Anonymous,
    /// A name an authenticator vouched for.
    Named(Arc<str>),
}

impl Principal {
    /// The name, `anonymous` for none.
    pub fn as_str(&self) -> &str {
        match self {
            Principal::Anonymous => "anonymous",
            Principal::Named(n) => n,
        }
    }
}

/// An instant after which nobody waits for the answer; monotonic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Deadline(Option<Instant>);

impl Deadline {
    /// No deadline.
    pub const NONE: Deadline = Deadline(None);

    /// A deadline that far from now.
    pub fn after(d: Duration) -> Self {
        Self(Instant::now().checked_add(d))
    }

    /// A deadline at an instant.
    pub fn at(i: Instant) -> Self {
        Self(Some(i))
    }

    /// The earlier of two.
    pub fn min(self, other: Deadline) -> Self {
        match (self.0, other.0) {
            (Some(a), Some(b)) => Self(Some(a.min(b))),
            (a, b) => Self(a.or(b)),
        }
    }

    /// The instant, if there is one.
    pub fn instant(self) -> Option<Instant> {
        self.0
    }

    /// Time left; `None` without a deadline, zero once passed.
    pub fn remaining(self) -> Option<Duration> {
        self.0.map(|i| i.saturating_duration_since(Instant::now()))
    }

    /// Whether it has passed.
    pub fn passed(self) -> bool {
        self.0.is_some_and(|i| i <= Instant::now())
    }
}
