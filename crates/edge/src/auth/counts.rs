//! Decisions, counted by provider and result.

use std::sync::OnceLock;

use weft_telemetry::metrics::Counter;
use weft_telemetry::{Telemetry, names};

/// How a decision ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Ok,
    Cached,
    Anonymous,
    Missing,
    Invalid,
    Expired,
    UnknownKey,
    Unavailable,
    Forbidden,
    WouldForbid,
    Address,
    Limited,
}

const WORDS: [&str; 12] = [
    "ok",
    "cached",
    "anonymous",
    "missing",
    "invalid",
    "expired",
    "unknown-key",
    "unavailable",
    "forbidden",
    "would-forbid",
    "address",
    "limited",
];

impl Verdict {
    pub(crate) fn of(word: &str) -> Self {
        match word {
            "expired" => Verdict::Expired,
            "unknown-key" => Verdict::UnknownKey,
            _ => Verdict::Invalid,
        }
    }
}

/// The counters of one provider, each made when it is first needed.
#[derive(Debug)]
pub(crate) struct Counts {
    telemetry: Telemetry,
    provider: Box<str>,
    counters: [OnceLock<Counter>; WORDS.len()],
}

impl Counts {
    pub(crate) fn new(telemetry: &Telemetry, provider: &str) -> Self {
        Self { telemetry: telemetry.clone(), provider: provider.into(), counters: Default::default() }
    }

    pub(crate) fn add(&self, v: Verdict) {
        let at = v as usize;
        let labels = [("provider", &*self.provider), ("result", WORDS[at])];
        self.counters[at].get_or_init(|| self.telemetry.metrics().counter(&names::AUTH_DECISIONS, &labels)).inc();
    }
}
