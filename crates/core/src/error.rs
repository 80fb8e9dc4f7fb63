//! What an error means to the one who meets it: may it be tried again, and whose fault it was.

use serde::{Deserialize, Serialize};

/// How work ended, in the one vocabulary that retry, breaker, saga and dead-lettering share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// Nothing was processed, or the other side says it is away: safe to try again elsewhere.
    Retryable,
    /// The other side asks for less: try again later.
    Overloaded,
    /// The request itself is refused and will be refused again.
    Rejected,
    /// The other side failed; whether it did the work is not known.
    Fault,
}

/// Where an error arose, seen from Weft.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// The caller.
    Downstream,
    /// The service called.
    Upstream,
    /// Weft itself.
    Internal,
}

/// Every error of every crate answers these two questions.
pub trait Classify {
    /// May it be tried again.
    fn class(&self) -> Class;
    /// Whose fault it was.
    fn origin(&self) -> Origin;
}
