//! Delivery of one stream to one subscription as a pure state machine: [`State::apply`] takes an [`Event`] and adds
//! [`Action`]s. No clock, no I/O, no randomness; the caller owns payloads, disk and time.
//!
//! The machine holds a window of the stream: what is ready, leased, delayed, or on its way to disk. What was
//! acknowledged is forgotten, what was not loaded yet is unknown to it.
//!
//! Invariants: a message has at most one lease at a time; its attempts go up by one with each delivery; in the keyed
//! modes at most one message of a key is out of the ready set at a time and keys are delivered in sequence order; no
//! message leaves the machine but by [`Event::Settled`] or [`Event::Trim`].

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use hashbrown::HashMap;
use weft_core::{Timestamp, limits};
use weft_store::Seq;

use crate::SubscriptionMode;
use crate::spec::Redelivery;

/// What decides about redelivery and order.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rules {
    /// How consumers share the stream.
    pub mode: SubscriptionMode,
    /// Deliveries in all and the backoff between them.
    pub redelivery: Redelivery,
}

/// What happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A published record came into the window.
    Load {
        /// Its place.
        seq: Seq,
        /// Its ordering key.
        key: Option<u64>,
        /// Deliveries counted before this opening.
        attempts: u32,
        /// Not to be delivered before.
        not_before: Timestamp,
    },
    /// A receiver asks for messages.
    Take {
        /// How many at most.
        max: usize,
        /// How long it holds them.
        lease: Duration,
    },
    /// An acknowledgement (or a move elsewhere) is on its way to disk.
    Settle {
        /// The message.
        seq: Seq,
    },
    /// It is durable: the message is gone.
    Settled {
        /// The message.
        seq: Seq,
    },
    /// It failed: the message goes back to where it was.
    Unsettled {
        /// The message.
        seq: Seq,
    },
    /// The receiver gives a delivery back.
    Nack {
        /// The message.
        seq: Seq,
        /// Which delivery.
        attempt: u32,
        /// When to try again; `None` = the configured backoff.
        delay: Option<Duration>,
        /// Why, in the receiver's words.
        reason: Option<String>,
        /// Not to be tried again.
        dead: bool,
    },
    /// The delivery never reached the receiver: it does not count.
    Release {
        /// The message.
        seq: Seq,
        /// Which delivery.
        attempt: u32,
    },
    /// The receiver needs longer.
    Extend {
        /// The message.
        seq: Seq,
        /// Which delivery.
        attempt: u32,
        /// From now.
        lease: Duration,
    },
    /// Time went on.
    Tick,
    /// Retention removed everything up to and with this.
    Trim {
        /// The last one removed.
        through: Seq,
    },
}

/// What the caller must do.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Hand the message to the receiver that asked.
    Deliver {
        /// The message.
        seq: Seq,
        /// Which delivery of it this is, from 1.
        attempt: u32,
    },
    /// Write the attempt count to the journal; nothing waits for it.
    Journal {
        /// The message.
        seq: Seq,
        /// Deliveries so far.
        attempts: u32,
        /// Not to be delivered before.
        not_before: Timestamp,
    },
    /// Move the message to the dead-letter queue, then say [`Event::Settled`] or [`Event::Unsettled`].
    Bury {
        /// The message.
        seq: Seq,
        /// Deliveries it had.
        attempts: u32,
        /// Why.
        reason: String,
    },
}

/// Where a message of the window is.
#[derive(Clone, Debug, PartialEq)]
enum Phase {
    /// Behind another message of its key.
    Waiting,
    Ready,
    Leased {
        until: Timestamp,
    },
    Delayed {
        until: Timestamp,
    },
    /// Its move to the dead-letter queue failed and is tried again.
    Doomed {
        until: Timestamp,
        reason: String,
    },
    /// On its way to disk; `back` is where it goes if that fails.
    Settling {
        back: Back,
    },
}

#[derive(Clone, Debug, PartialEq)]
enum Back {
    Leased { until: Timestamp },
    Delayed { until: Timestamp },
    Ready,
    Doomed { reason: String },
}

#[derive(Clone, Debug)]
struct Entry {
    key: Option<u64>,
    attempts: u32,
    not_before: Timestamp,
    phase: Phase,
}

#[derive(Debug, Default)]
struct KeyState {
    /// Messages of the key that are ready or out; 0 or 1 unless the mode was changed while several were out.
    busy: u32,
    waiting: BTreeSet<Seq>,
}

/// How many messages of the window are where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Ready or waiting for their key.
    pub ready: usize,
    /// Leased, or their settlement is on its way to disk.
    pub in_flight: usize,
    /// Waiting for an instant.
    pub delayed: usize,
}

/// What a lease token means now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The lease holds.
    Current,
    /// The message is unsettled, but not under this lease.
    Unsettled,
    /// A settlement of it is on its way to disk.
    Settling,
    /// Not in the window.
    Unknown,
}

/// The machine.
#[derive(Debug)]
pub struct State {
    rules: Rules,
    entries: BTreeMap<Seq, Entry>,
    ready: BTreeSet<Seq>,
    timers: BTreeSet<(Timestamp, Seq)>,
    keys: HashMap<u64, KeyState>,
    waiting: usize,
    out: usize,
    delayed: usize,
}

impl State {
    /// An empty window.
    pub fn new(rules: Rules) -> Self {
        Self {
            rules,
            entries: BTreeMap::new(),
            ready: BTreeSet::new(),
            timers: BTreeSet::new(),
            keys: HashMap::new(),
            waiting: 0,
            out: 0,
            delayed: 0,
        }
    }

    /// Takes new rules; messages that are out stay out, the others are ordered anew.
    pub fn set_rules(&mut self, rules: Rules) {
        let reorder = rules.mode != self.rules.mode;
        self.rules = rules;
        if !reorder {
            return;
        }
        self.keys.clear();
        self.ready.clear();
        self.waiting = 0;
        let (out, held): (Vec<Seq>, Vec<Seq>) = self
            .entries
            .iter()
            .map(|(seq, e)| (*seq, matches!(e.phase, Phase::Waiting | Phase::Ready)))
            .fold((Vec::new(), Vec::new()), |(mut out, mut held), (seq, is_held)| {
                if is_held { &mut held } else { &mut out }.push(seq);
                (out, held)
            });
        for seq in out {
            if let Some(key) = self.order_key(self.entries[&seq].key) {
                self.keys.entry(key).or_default().busy += 1;
            }
        }
        for seq in held {
            self.admit(seq);
        }
    }

    /// Applies one event; `false` when it concerns no message or no current lease. Actions are added to `out`.
    pub fn apply(&mut self, now: Timestamp, event: Event, out: &mut Vec<Action>) -> bool {
        match event {
            Event::Load { seq, key, attempts, not_before } => {
                if self.entries.contains_key(&seq) {
                    return false;
                }
                let phase = Phase::Waiting;
                self.entries.insert(seq, Entry { key, attempts, not_before, phase });
                self.waiting += 1;
                self.admit_at(seq, now);
                true
            }
            Event::Take { max, lease } => self.take(now, max, lease, out),
            Event::Settle { seq } => self.settle(seq),
            Event::Settled { seq } => self.remove(seq),
            Event::Unsettled { seq } => self.unsettle(now, seq),
            Event::Nack { seq, attempt, delay, reason, dead } => {
                if self.standing(now, seq, attempt) != Standing::Current {
                    return false;
                }
                let attempts = self.entries[&seq].attempts;
                if dead || attempts >= self.rules.redelivery.attempts {
                    let reason = reason.unwrap_or_else(|| {
                        if dead { "rejected by the consumer".into() } else { format!("{attempts} deliveries failed") }
                    });
                    self.doom(seq, reason, out);
                } else {
                    let delay = delay.unwrap_or_else(|| backoff(&self.rules.redelivery, attempts));
                    self.delay(seq, now.plus(delay), delay.is_zero(), out);
                }
                true
            }
            Event::Release { seq, attempt } => {
                if self.standing(now, seq, attempt) != Standing::Current {
                    return false;
                }
                let entry = self.entries.get_mut(&seq).expect("a current lease has its message");
                entry.attempts -= 1;
                let attempts = entry.attempts;
                self.set(seq, Phase::Ready);
                out.push(Action::Journal { seq, attempts, not_before: Timestamp(0) });
                true
            }
            Event::Extend { seq, attempt, lease } => {
                if self.standing(now, seq, attempt) != Standing::Current {
                    return false;
                }
                self.set(seq, Phase::Leased { until: now.plus(lease) });
                true
            }
            Event::Tick => self.tick(now, out),
            Event::Trim { through } => {
                let gone: Vec<Seq> = self.entries.range(..=through).map(|(seq, _)| *seq).collect();
                gone.iter().for_each(|seq| {
                    self.remove(*seq);
                });
                !gone.is_empty()
            }
        }
    }

    /// What a lease means now.
    pub fn standing(&self, now: Timestamp, seq: Seq, attempt: u32) -> Standing {
        match self.entries.get(&seq) {
            None => Standing::Unknown,
            Some(e) => match e.phase {
                Phase::Settling { .. } => Standing::Settling,
                Phase::Leased { until } if e.attempts == attempt && until > now => Standing::Current,
                _ => Standing::Unsettled,
            },
        }
    }

    /// Counts of the window.
    pub fn counts(&self) -> Counts {
        Counts { ready: self.ready.len() + self.waiting, in_flight: self.out, delayed: self.delayed }
    }

    /// Whether a receiver that asks now would get something.
    pub fn is_deliverable(&self) -> bool {
        !self.ready.is_empty()
            && self.out < limits::DELIVERIES_IN_FLIGHT
            && (self.rules.mode != SubscriptionMode::Exclusive || self.out == 0)
    }

    /// Room for more loaded messages.
    pub fn room(&self) -> usize {
        let window = limits::DELIVERY_WINDOW.saturating_sub(self.ready.len() + self.waiting);
        window.min(limits::DELAYED_MESSAGES.saturating_sub(self.delayed))
    }

    /// The next instant at which [`Event::Tick`] will do something.
    pub fn next_timer(&self) -> Option<Timestamp> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// The first message of the window.
    pub fn first(&self) -> Option<Seq> {
        self.entries.first_key_value().map(|(seq, _)| *seq)
    }

    /// Deliveries of a message so far and where it is: `ready`, `in-flight` or `delayed`.
    pub fn look(&self, seq: Seq) -> Option<(u32, &'static str)> {
        self.entries.get(&seq).map(|e| {
            let word = match e.phase {
                Phase::Waiting | Phase::Ready => "ready",
                Phase::Leased { .. } | Phase::Settling { .. } => "in-flight",
                Phase::Delayed { .. } | Phase::Doomed { .. } => "delayed",
            };
            (e.attempts, word)
        })
    }

    /// The key that orders a message in this mode.
    fn order_key(&self, key: Option<u64>) -> Option<u64> {
        match self.rules.mode {
            SubscriptionMode::Shared => None,
            SubscriptionMode::KeyShared => key,
            // Exclusive promises the stream's order, also to messages that name no key.
            SubscriptionMode::Exclusive => Some(key.unwrap_or(0)),
        }
    }

    fn take(&mut self, now: Timestamp, max: usize, lease: Duration, out: &mut Vec<Action>) -> bool {
        if !self.is_deliverable() {
            return false;
        }
        let until = now.plus(lease);
        let max = max.min(limits::DELIVERIES_IN_FLIGHT - self.out);
        let picked: Vec<Seq> = self.ready.iter().take(max).copied().collect();
        for seq in &picked {
            let entry = self.entries.get_mut(seq).expect("ready messages are in the window");
            entry.attempts += 1;
            // The delay has been waited for.
            entry.not_before = Timestamp(0);
            let attempt = entry.attempts;
            self.set(*seq, Phase::Leased { until });
            out.push(Action::Journal { seq: *seq, attempts: attempt, not_before: Timestamp(0) });
            out.push(Action::Deliver { seq: *seq, attempt });
        }
        !picked.is_empty()
    }

    fn settle(&mut self, seq: Seq) -> bool {
        let Some(entry) = self.entries.get(&seq) else { return false };
        let back = match &entry.phase {
            Phase::Settling { .. } => return false,
            Phase::Leased { until } => Back::Leased { until: *until },
            Phase::Delayed { until } => Back::Delayed { until: *until },
            Phase::Doomed { reason, .. } => Back::Doomed { reason: reason.clone() },
            Phase::Waiting | Phase::Ready => Back::Ready,
        };
        self.set(seq, Phase::Settling { back });
        true
    }

    fn unsettle(&mut self, now: Timestamp, seq: Seq) -> bool {
        let Some(Entry { phase: Phase::Settling { back }, key, .. }) = self.entries.get(&seq) else { return false };
        let (back, key) = (back.clone(), *key);
        match back {
            Back::Leased { until } => self.set(seq, Phase::Leased { until }),
            Back::Delayed { until } => self.set(seq, Phase::Delayed { until }),
            // The store refused it; it will not take it at once.
            Back::Doomed { reason } => {
                let until = now.plus(self.rules.redelivery.backoff_max.min(BURY_AGAIN));
                self.set(seq, Phase::Doomed { until, reason });
            }
            Back::Ready => match self.order_key(key) {
                None => self.set(seq, Phase::Ready),
                // It may have been acknowledged while it waited: it lines up again, and the first of the key goes.
                Some(key) => {
                    self.set(seq, Phase::Waiting);
                    self.keys.entry(key).or_default().waiting.insert(seq);
                    self.step_back(key);
                }
            },
        }
        true
    }

    fn tick(&mut self, now: Timestamp, out: &mut Vec<Action>) -> bool {
        let mut did = false;
        while let Some((at, seq)) = self.timers.first().copied()
            && at <= now
        {
            did = true;
            let entry = &self.entries[&seq];
            match &entry.phase {
                Phase::Leased { .. } if entry.attempts >= self.rules.redelivery.attempts => {
                    let reason = format!("{} deliveries, the last lease ended without an answer", entry.attempts);
                    self.doom(seq, reason, out);
                }
                Phase::Leased { .. } | Phase::Delayed { .. } => self.set(seq, Phase::Ready),
                Phase::Doomed { reason, .. } => {
                    let reason = reason.clone();
                    self.doom(seq, reason, out);
                }
                Phase::Waiting | Phase::Ready | Phase::Settling { .. } => {
                    unreachable!("only leased, delayed and doomed messages have a timer")
                }
            }
        }
        did
    }

    fn delay(&mut self, seq: Seq, until: Timestamp, at_once: bool, out: &mut Vec<Action>) {
        let attempts = self.entries[&seq].attempts;
        if at_once {
            self.set(seq, Phase::Ready);
        } else {
            self.set(seq, Phase::Delayed { until });
            out.push(Action::Journal { seq, attempts, not_before: until });
        }
    }

    fn doom(&mut self, seq: Seq, reason: String, out: &mut Vec<Action>) {
        let attempts = self.entries[&seq].attempts;
        self.set(seq, Phase::Settling { back: Back::Doomed { reason: reason.clone() } });
        out.push(Action::Bury { seq, attempts, reason });
    }

    /// Moves a message that is `Waiting` (or was never placed) to where it may be.
    fn admit_at(&mut self, seq: Seq, now: Timestamp) {
        let not_before = self.entries[&seq].not_before;
        let phase = if not_before > now { Phase::Delayed { until: not_before } } else { Phase::Ready };
        match self.order_key(self.entries[&seq].key) {
            None => self.set(seq, phase),
            Some(key) => {
                let k = self.keys.entry(key).or_default();
                if k.busy == 0 && k.waiting.is_empty() {
                    k.busy = 1;
                    self.set(seq, phase);
                } else {
                    k.waiting.insert(seq);
                }
            }
        }
    }

    /// [`admit_at`](Self::admit_at) for a message that was ready or waiting; a delay that is over ends with the next tick.
    fn admit(&mut self, seq: Seq) {
        let entry = self.entries.get_mut(&seq).expect("admitted messages are in the window");
        entry.phase = Phase::Waiting;
        self.waiting += 1;
        self.admit_at(seq, Timestamp(0));
    }

    /// The one place where a phase changes, so that the indexes follow.
    fn set(&mut self, seq: Seq, phase: Phase) {
        let entry = self.entries.get_mut(&seq).expect("phases change for messages of the window");
        let old = std::mem::replace(&mut entry.phase, phase.clone());
        let key = entry.key;
        self.unindex(seq, &old, key);
        match phase {
            Phase::Waiting => self.waiting += 1,
            Phase::Ready => {
                self.ready.insert(seq);
            }
            Phase::Leased { until } => {
                self.out += 1;
                self.timers.insert((until, seq));
            }
            Phase::Delayed { until } | Phase::Doomed { until, .. } => {
                self.delayed += 1;
                self.timers.insert((until, seq));
            }
            Phase::Settling { .. } => self.out += 1,
        }
    }

    fn unindex(&mut self, seq: Seq, old: &Phase, key: Option<u64>) {
        match old {
            Phase::Waiting => {
                self.waiting -= 1;
                // Acknowledged while it waited: it takes its place among the key's messages that are out.
                if let Some(key) = self.order_key(key)
                    && let Some(k) = self.keys.get_mut(&key)
                    && k.waiting.remove(&seq)
                {
                    k.busy += 1;
                }
            }
            Phase::Ready => {
                self.ready.remove(&seq);
            }
            Phase::Leased { until } => {
                self.out -= 1;
                self.timers.remove(&(*until, seq));
            }
            Phase::Delayed { until } | Phase::Doomed { until, .. } => {
                self.delayed -= 1;
                self.timers.remove(&(*until, seq));
            }
            Phase::Settling { .. } => self.out -= 1,
        }
    }

    /// Forgets a message and lets the next of its key go.
    fn remove(&mut self, seq: Seq) -> bool {
        let Some(entry) = self.entries.remove(&seq) else { return false };
        self.unindex(seq, &entry.phase, entry.key);
        if let Some(key) = self.order_key(entry.key) {
            self.step_back(key);
        }
        true
    }

    /// One message of a key is out no more: the next may go when it was the last.
    fn step_back(&mut self, key: u64) {
        let Some(k) = self.keys.get_mut(&key) else { return };
        k.busy = k.busy.saturating_sub(1);
        if k.busy > 0 {
            return;
        }
        let Some(next) = k.waiting.pop_first() else {
            self.keys.remove(&key);
            return;
        };
        k.busy = 1;
        // A delay from before a restart may still run; one that is over ends with the next tick.
        let not_before = self.entries[&next].not_before;
        let delayed = not_before > Timestamp(0);
        self.set(next, if delayed { Phase::Delayed { until: not_before } } else { Phase::Ready });
    }
}

/// How soon a refused move to a dead-letter queue is tried again, at most.
const BURY_AGAIN: Duration = Duration::from_secs(5);

/// Exponential: the first delay doubled with each delivery, up to the longest.
pub fn backoff(r: &Redelivery, attempts: u32) -> Duration {
    let doubled =
        r.backoff_min.saturating_mul(1u32.checked_shl(attempts.saturating_sub(1).min(31)).unwrap_or(u32::MAX));
    doubled.min(r.backoff_max)
}

#[cfg(test)]
mod tests;
