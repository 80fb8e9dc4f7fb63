//! What policy itself says no to.

use std::time::Duration;

use weft_core::{Class, Classify, Origin};

/// Work that a policy refused before it was sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The breaker is open, or all its trial calls are under way.
    #[error("the circuit breaker is open; it tries again in {retry_after:?}")]
    BreakerOpen {
        /// Until it takes trial calls.
        retry_after: Duration,
    },
    /// All places are taken and so is the waiting room.
    #[error("{limit} calls are under way and {queue} wait: the bulkhead is full")]
    BulkheadFull {
        /// Places.
        limit: u32,
        /// Places to wait.
        queue: u32,
    },
    /// A place to wait was free, but no place to work became free in time.
    #[error("waited {waited:?} for one of {limit} places in the bulkhead")]
    BulkheadWait {
        /// Places.
        limit: u32,
        /// How long it waited.
        waited: Duration,
    },
    /// Over the rate.
    #[error("over the rate limit; the next call is taken in {retry_after:?}")]
    RateLimited {
        /// Until the next one is taken.
        retry_after: Duration,
    },
    /// The deadline had passed.
    #[error("the deadline passed before the call was sent")]
    DeadlinePassed,
    /// An Idempotency-Key is required here.
    #[error("this needs an Idempotency-Key: a value the caller chooses once for each piece of work")]
    KeyMissing,
    /// The key is longer than [`weft_core::limits::IDEMPOTENCY_KEY_BYTES`] or empty.
    #[error("the Idempotency-Key has {bytes} bytes; 1 to {max} are allowed", max = weft_core::limits::IDEMPOTENCY_KEY_BYTES)]
    KeyInvalid {
        /// How many it has.
        bytes: usize,
    },
    /// Anonymous callers may not use keys here.
    #[error(
        "an Idempotency-Key belongs to a caller, and this call is anonymous: sign in, or let the route say `scope: public`"
    )]
    KeyAnonymous,
    /// The first call with this key is still under way.
    #[error("the first call with this Idempotency-Key is still under way")]
    KeyInFlight,
    /// The key was used for another payload.
    #[error("this Idempotency-Key was used with another payload; choose a new one for new work")]
    KeyReused,
}

impl Refused {
    /// The stable `code` of the problem, for clients.
    pub fn code(&self) -> &'static str {
        match self {
            Refused::BreakerOpen { .. } => "breaker-open",
            Refused::BulkheadFull { .. } => "bulkhead-full",
            Refused::BulkheadWait { .. } => "bulkhead-wait",
            Refused::RateLimited { .. } => "rate-limited",
            Refused::DeadlinePassed => "deadline-exceeded",
            Refused::KeyMissing => "idempotency-key-missing",
            Refused::KeyInvalid { .. } => "idempotency-key-invalid",
            Refused::KeyAnonymous => "idempotency-key-anonymous",
            Refused::KeyInFlight => "idempotency-key-in-flight",
            Refused::KeyReused => "idempotency-key-reused",
        }
    }

    /// When to come back, where that is known.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Refused::BreakerOpen { retry_after } | Refused::RateLimited { retry_after } => Some(*retry_after),
            Refused::BulkheadFull { .. } | Refused::BulkheadWait { .. } | Refused::KeyInFlight => {
                Some(Duration::from_secs(1))
            }
            _ => None,
        }
    }
}

impl Classify for Refused {
    fn class(&self) -> Class {
        match self {
            // Nothing was sent, so another try is safe.
            Refused::BreakerOpen { .. } => Class::Retryable,
            Refused::BulkheadFull { .. } | Refused::BulkheadWait { .. } | Refused::RateLimited { .. } => {
                Class::Overloaded
            }
            Refused::DeadlinePassed => Class::Fault,
            Refused::KeyInFlight => Class::Retryable,
            Refused::KeyMissing | Refused::KeyInvalid { .. } | Refused::KeyAnonymous | Refused::KeyReused => {
                Class::Rejected
            }
        }
    }

    fn origin(&self) -> Origin {
        match self {
            Refused::BreakerOpen { .. } => Origin::Upstream,
            Refused::BulkheadFull { .. } | Refused::BulkheadWait { .. } | Refused::DeadlinePassed => Origin::Internal,
            _ => Origin::Downstream,
        }
    }
}
