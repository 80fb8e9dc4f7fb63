//! Why a broker call failed.

use weft_core::{Class, Classify, Origin, envelope::InvalidEnvelope};

use crate::Source;

/// Why a broker call failed; nothing of the call took effect unless the store says `Unknown`.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The event is not a valid CloudEvent or over a limit.
    #[error("event {index}: {reason}")]
    Event {
        /// Which of the events of the call.
        index: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// A lease token that Weft never gave out, or that was cut or changed on the way.
    #[error("lease token {index} is not one of Weft's: pass it exactly as it was received")]
    LeaseUnknown {
        /// Which of the tokens of the call.
        index: usize,
    },
    /// The lease ended, or the message was settled: the commit would act on a message somebody else may hold.
    #[error("lease token {index} is no longer current: the message of {source_name} was settled or is delivered again")]
    LeaseStale {
        /// Which of the tokens of the call.
        index: usize,
        /// The queue or subscription it was received from.
        source_name: String,
    },
    /// No such queue, topic or subscription.
    #[error("there is no {kind} '{name}'")]
    NotFound {
        /// `queue`, `topic` or `subscription`.
        kind: &'static str,
        /// The name asked for.
        name: String,
    },
    /// The configuration file owns it.
    #[error("{kind} '{name}' is declared in the configuration file: change it there and reload")]
    FileOwned {
        /// `queue`, `topic` or `subscription`.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// A declaration that does not hold together.
    #[error("{place}: {reason}")]
    Declaration {
        /// Where: `subscription 'x' filter`.
        place: String,
        /// What is wrong.
        reason: String,
    },
    /// The queue holds as many messages as it may.
    #[error("queue '{name}' holds its {what} of {max} messages: consume, or raise the limit")]
    Full {
        /// The queue.
        name: String,
        /// Which limit.
        what: &'static str,
        /// The limit.
        max: u64,
    },
    /// The dedup table is full; refusing is honest, forgetting ids early would not be.
    #[error("{limit} dedup ids are remembered already: try again when some have left their window")]
    DedupFull {
        /// The limit.
        limit: usize,
    },
    /// A delay on a topic.
    #[error("event {index}: a delay is for queues; topic '{topic}' keeps its order")]
    DelayOnTopic {
        /// Which of the events of the call.
        index: usize,
        /// The topic.
        topic: String,
    },
    /// A call with too many parts.
    #[error("{got} {what} in one call, the limit is {limit}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many.
        got: usize,
        /// The limit.
        limit: usize,
    },
    /// The broker's own queue of calls is full.
    #[error("the broker is overloaded: {0}; try again")]
    Overloaded(&'static str),
    /// The broker was closed.
    #[error("the broker is closed")]
    Closed,
    /// The store refused or failed.
    #[error(transparent)]
    Store(#[from] weft_store::Error),
}

/// Result of broker calls.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn event(index: usize, e: &InvalidEnvelope) -> Self {
        Error::Event { index, reason: e.to_string() }
    }

    pub(crate) fn stale(index: usize, source: &Source) -> Self {
        Error::LeaseStale { index, source_name: source.to_string() }
    }

    pub(crate) fn unknown(source: &Source) -> Self {
        let (kind, name) = source.parts();
        Error::NotFound { kind, name: name.to_string() }
    }
}

impl Classify for Error {
    fn class(&self) -> Class {
        match self {
            Error::Full { .. } | Error::DedupFull { .. } | Error::Overloaded(_) => Class::Overloaded,
            Error::Closed => Class::Retryable,
            Error::Store(e) => e.class(),
            _ => Class::Rejected,
        }
    }
    fn origin(&self) -> Origin {
        match self {
            Error::Overloaded(_) | Error::Closed => Origin::Internal,
            Error::Store(e) => e.origin(),
            _ => Origin::Downstream,
        }
    }
}
