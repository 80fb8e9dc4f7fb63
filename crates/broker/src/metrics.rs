//! Counts per channel and subscription.

use hashbrown::HashMap;
use parking_lot::Mutex;

use crate::{Channel, Source};

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Count {
    /// Messages published to a channel.
    Published,
    /// Messages handed to receivers, redeliveries included.
    Delivered,
    /// Deliveries of a message after its first.
    Redelivered,
    /// Acknowledged.
    Acked,
    /// Given back by a receiver.
    Nacked,
    /// Moved to a dead-letter queue.
    Dead,
    /// Passed over because they could not be read.
    Damaged,
}

/// Counts since the broker was opened.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    counts: Mutex<HashMap<(Count, String), u64>>,
}

impl Metrics {
    fn add(&self, what: Count, name: String) {
        *self.counts.lock().entry((what, name)).or_default() += 1;
    }
    pub fn published(&self, c: &Channel) {
        self.add(Count::Published, c.to_string());
    }
    pub fn delivered(&self, s: &Source, attempt: u32) {
        self.add(Count::Delivered, s.to_string());
        if attempt > 1 {
            self.add(Count::Redelivered, s.to_string());
        }
    }
    pub fn acked(&self, s: &Source) {
        self.add(Count::Acked, s.to_string());
    }
    pub fn nacked(&self, s: &Source) {
        self.add(Count::Nacked, s.to_string());
    }
    pub fn dead(&self, s: &Source) {
        self.add(Count::Dead, s.to_string());
    }
    pub fn damaged(&self, s: &Source) {
        self.add(Count::Damaged, s.to_string());
    }
    pub fn get(&self, what: Count, name: &str) -> u64 {
        self.counts.lock().get(&(what, name.to_owned())).copied().unwrap_or(0)
    }
}
