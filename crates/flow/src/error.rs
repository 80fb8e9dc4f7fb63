//! Why a saga call failed.

use weft_core::{Class, Classify, Origin};

use crate::definition::Mistake;

/// Why a saga call failed; nothing of the call took effect unless the store says `Unknown`.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// No such definition.
    #[error("there is no saga '{name}'{hint}")]
    UnknownSaga {
        /// The name asked for.
        name: String,
        /// The nearest known name.
        hint: String,
    },
    /// No such instance.
    #[error("there is no saga instance '{id}'")]
    NotFound {
        /// The id asked for.
        id: String,
    },
    /// The instance is not in a phase in which this can be done.
    #[error("saga '{id}' is {status}: only {wanted} can be {verb}")]
    WrongStatus {
        /// The instance.
        id: String,
        /// What it is.
        status: &'static str,
        /// What it would have to be.
        wanted: &'static str,
        /// What was asked.
        verb: &'static str,
    },
    /// Definitions with mistakes; nothing changed.
    #[error("{}", list(.0))]
    Definitions(Vec<(String, Vec<Mistake>)>),
    /// .proto files of services that do not compile; nothing changed.
    #[error("{}", .0.iter().map(|(s, m)| format!("service '{s}': {m}")).collect::<Vec<_>>().join("\n"))]
    Protos(Vec<(String, String)>),
    /// The start key or input is over its limit.
    #[error("the {what} has {got} bytes, the limit is {limit}")]
    TooLarge {
        /// Which.
        what: &'static str,
        /// Its size.
        got: usize,
        /// The limit.
        limit: usize,
    },
    /// As many unfinished sagas as there may be.
    #[error("{limit} sagas are under way, the limit: try again when some have ended")]
    Overloaded {
        /// The limit.
        limit: usize,
    },
    /// A stored instance or definition cannot be read.
    #[error("{what} cannot be read: {reason}")]
    Stored {
        /// Which.
        what: String,
        /// Why.
        reason: String,
    },
    /// The engine was closed.
    #[error("the saga engine is closed")]
    Closed,
    /// The broker refused an event of the first step.
    #[error(transparent)]
    Broker(weft_broker::Error),
    /// The store refused or failed.
    #[error(transparent)]
    Store(#[from] weft_store::Error),
}

impl From<weft_broker::Error> for Error {
    fn from(e: weft_broker::Error) -> Self {
        match e {
            weft_broker::Error::Store(e) => Error::Store(e),
            e => Error::Broker(e),
        }
    }
}

/// Result of saga calls.
pub type Result<T> = std::result::Result<T, Error>;

fn list(all: &[(String, Vec<Mistake>)]) -> String {
    let lines = all.iter().flat_map(|(saga, ms)| ms.iter().map(move |m| format!("saga '{saga}', {m}")));
    lines.collect::<Vec<_>>().join("\n")
}

impl Classify for Error {
    fn class(&self) -> Class {
        match self {
            Error::Overloaded { .. } => Class::Overloaded,
            Error::Closed => Class::Retryable,
            Error::Stored { .. } => Class::Fault,
            Error::Store(e) => e.class(),
            Error::Broker(e) => e.class(),
            _ => Class::Rejected,
        }
    }
    fn origin(&self) -> Origin {
        match self {
            Error::Closed | Error::Stored { .. } | Error::Overloaded { .. } => Origin::Internal,
            Error::Store(e) => e.origin(),
            Error::Broker(e) => e.origin(),
            _ => Origin::Downstream,
        }
    }
}
