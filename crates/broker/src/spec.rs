//! Channels and subscriptions as configuration describes them.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use weft_core::Name;
use weft_policy::Policy;

/// A queue: one shared subscription; an acknowledged message is gone.
#[derive(Clone, Debug, PartialEq)]
pub struct QueueSpec {
    /// Its name.
    pub name: Name,
    /// Redelivery.
    pub redelivery: Redelivery,
    /// Where messages go whose attempts are used up; default `NAME.dead`.
    pub dead_letter: Option<Name>,
    /// How long a receiver holds a message before it is delivered again.
    pub lease: Duration,
    /// Dedup window and source of the dedup id; an explicit `Weft-Dedup-Id` always counts.
    pub dedup: Dedup,
    /// Messages it holds at most; a publish above is refused as overloaded.
    pub max_messages: Option<u64>,
    /// Acknowledge after the write instead of after fsync.
    pub relaxed: bool,
}

/// A topic: partitions, and any number of subscriptions.
#[derive(Clone, Debug, PartialEq)]
pub struct TopicSpec {
    /// Its name.
    pub name: Name,
    /// Streams it is spread over; order holds within one.
    pub partitions: u32,
    /// CEL over `event` whose value picks the partition; default `event.subject`.
    pub key: Option<String>,
    /// How long records are kept.
    pub retention: Option<Duration>,
    /// Dedup window and source of the dedup id.
    pub dedup: Dedup,
    /// Acknowledge after the write instead of after fsync.
    pub relaxed: bool,
}

/// When a publish is recognised as a repeat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dedup {
    /// Where the id comes from when the publisher gives no `Weft-Dedup-Id`.
    pub by: DedupBy,
    /// How long ids are remembered.
    pub window: Duration,
}

/// Source of the dedup id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DedupBy {
    /// Only when the publisher gives one.
    Explicit,
    /// CloudEvents source and id.
    CeId,
    /// CEL over `event`.
    Expression(String),
}

impl Default for Dedup {
    fn default() -> Self {
        Self { by: DedupBy::Explicit, window: Duration::from_secs(600) }
    }
}

/// How often and how far apart a message is delivered again.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Redelivery {
    /// Deliveries in all, then it is dead.
    pub attempts: u32,
    /// First delay.
    pub backoff_min: Duration,
    /// Longest delay.
    pub backoff_max: Duration,
}

impl Default for Redelivery {
    fn default() -> Self {
        Self { attempts: 10, backoff_min: Duration::from_millis(100), backoff_max: Duration::from_secs(300) }
    }
}

/// A named cursor on a topic.
#[derive(Clone, Debug, PartialEq)]
pub struct SubscriptionSpec {
    /// Its name, unique in the process.
    pub name: Name,
    /// The topic.
    pub topic: Name,
    /// How consumers share it.
    pub mode: SubscriptionMode,
    /// CEL over `event`; what does not match is acknowledged unseen.
    pub filter: Option<String>,
    /// Where a new subscription starts.
    pub from: StartFrom,
    /// Redelivery.
    pub redelivery: Redelivery,
    /// Where messages go whose attempts are used up; default `NAME.dead`.
    pub dead_letter: Option<Name>,
    /// Lease of a delivery.
    pub lease: Duration,
    /// Weft calls the service itself; `None` = consumers receive.
    pub push: Option<Push>,
}

/// How consumers share a subscription.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SubscriptionMode {
    /// One consumer at a time per partition, in order; one in flight per key.
    Exclusive,
    /// Any consumer takes any message.
    #[default]
    Shared,
    /// Any consumer, but one message per key in flight: order per key holds.
    KeyShared,
}

/// Where a new subscription starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StartFrom {
    /// The oldest record kept.
    #[default]
    Earliest,
    /// What comes after it was made.
    Latest,
}

/// Delivery by calling a service: POST the event (CloudEvents HTTP binary mode); the outcome's class decides between
/// acknowledgement, redelivery and dead letter.
#[derive(Clone, Debug, PartialEq)]
pub struct Push {
    /// The service.
    pub service: Name,
    /// Path of the POST.
    pub path: String,
    /// Deadline, attempt timeout, breaker, bulkhead and rate of the call; its retry block is the redelivery.
    pub policy: Policy,
    /// Calls at once.
    pub concurrency: u32,
}
