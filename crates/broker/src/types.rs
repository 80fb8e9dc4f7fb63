//! What callers of the broker say and get.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use weft_core::trace::SpanId;
use weft_core::{Envelope, Name, Timestamp};
use weft_store::{Position, Seq};

use crate::spec::SubscriptionMode;

/// Where a message is published.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Channel {
    /// A queue.
    Queue(Name),
    /// A topic.
    Topic(Name),
}

/// Where messages are received from.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Source {
    /// A queue.
    Queue(Name),
    /// A subscription of a topic.
    Subscription(Name),
}

impl Channel {
    /// `queue` or `topic`, and the name.
    pub fn parts(&self) -> (&'static str, &Name) {
        match self {
            Channel::Queue(n) => ("queue", n),
            Channel::Topic(n) => ("topic", n),
        }
    }
}

impl Source {
    /// `queue` or `subscription`, and the name.
    pub fn parts(&self) -> (&'static str, &Name) {
        match self {
            Source::Queue(n) => ("queue", n),
            Source::Subscription(n) => ("subscription", n),
        }
    }

    /// Reads what [`fmt::Display`] prints.
    pub fn parse(s: &str) -> Option<Self> {
        let (kind, name) = s.split_once('/')?;
        let name = Name::new(name).ok()?;
        match kind {
            "queue" => Some(Source::Queue(name)),
            "subscription" => Some(Source::Subscription(name)),
            _ => None,
        }
    }
}

impl fmt::Display for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, name) = self.parts();
        write!(f, "{kind}/{name}")
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, name) = self.parts();
        write!(f, "{kind}/{name}")
    }
}

/// How to publish.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PublishOptions {
    /// The same id again within the channel's window is acknowledged and stored once.
    pub dedup_id: Option<String>,
    /// Not to be delivered sooner; queues only.
    pub delay: Option<Duration>,
}

/// One message to publish.
#[derive(Clone, Debug, PartialEq)]
pub struct Publish {
    /// Where.
    pub channel: Channel,
    /// What.
    pub event: Envelope,
    /// How.
    pub options: PublishOptions,
}

/// What a durable publish got.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Receipt {
    /// The event's id; for a repeat, the id of the event that was stored.
    pub id: String,
    /// The commit position.
    pub position: Position,
    /// Whether the dedup id was seen before, so that nothing was stored.
    pub duplicate: bool,
}

/// How to receive.
#[derive(Clone, Copy, Debug)]
pub struct ReceiveOptions {
    /// How many at most, 1 to [`RECEIVE_MESSAGES`](weft_core::limits::RECEIVE_MESSAGES).
    pub max: usize,
    /// How long to wait for the first, up to [`RECEIVE_WAIT`](weft_core::limits::RECEIVE_WAIT).
    pub wait: Duration,
    /// How long to hold them; `None` = as the queue or subscription says.
    pub lease: Option<Duration>,
}

impl Default for ReceiveOptions {
    fn default() -> Self {
        Self { max: 1, wait: Duration::ZERO, lease: None }
    }
}

/// One message handed to a receiver.
#[derive(Clone, Debug, PartialEq)]
pub struct Delivery {
    /// What settles it.
    pub token: String,
    /// The commit position of the message.
    pub position: Position,
    /// Which delivery of it this is, from 1.
    pub attempt: u32,
    /// The event; its `traceparent` is the delivery's span.
    pub event: Envelope,
    /// The span that published it, parent of the delivery's.
    pub caused_by: Option<SpanId>,
}

impl Delivery {
    /// Whether it may have been delivered before.
    pub fn redelivered(&self) -> bool {
        self.attempt > 1
    }
}

/// How many leases a settlement reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settled {
    /// Settled by this call.
    pub done: usize,
    /// Indexes of tokens whose message is settled already (or, for nack and extend, is not held under that lease).
    pub stale: Vec<usize>,
}

/// How to give messages back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NackOptions {
    /// When to deliver them again; `None` = the configured backoff.
    pub delay: Option<Duration>,
    /// Why, kept when the message dies.
    pub reason: Option<String>,
    /// Straight to the dead-letter queue.
    pub dead_letter: bool,
}

/// The broker's part of one atomic commit.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Commit {
    /// Lease tokens; all must be current.
    pub ack: Vec<String>,
    /// Messages to publish.
    pub publish: Vec<Publish>,
}

/// What a durable commit got.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CommitReceipt {
    /// The commit position.
    pub position: Position,
    /// The instant the journal stamped on it.
    pub time: Timestamp,
    /// One for each message published, in order.
    pub publish: Vec<Receipt>,
    /// The sequences of the appends of the `extra` batch, in order.
    pub extra: Vec<Seq>,
}

/// Who declared a channel or subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Declared {
    /// The configuration file.
    File,
    /// The API, or first use.
    Runtime,
    /// Nobody any more; its messages are still there.
    Orphaned,
}

/// One line of a listing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Listing {
    /// Its name.
    pub name: Name,
    /// Who declared it.
    pub origin: Declared,
    /// `fsync` or `relaxed`.
    pub durability: &'static str,
    /// Ready for delivery; for a topic, the records it keeps.
    pub ready: u64,
    /// Leased.
    pub in_flight: u64,
    /// Waiting for an instant.
    pub delayed: u64,
    /// In its dead-letter queue.
    pub dead_letters: u64,
    /// Age of the oldest message, as `1m30s`.
    pub oldest_age: Option<String>,
    /// Its dead-letter queue, when it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dead_letter: Option<Name>,
    /// A subscription's topic.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topic: Option<Name>,
    /// A subscription's mode.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<SubscriptionMode>,
    /// Where a subscription pushes to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub push: Option<PushTo>,
    /// A topic's partitions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub partitions: Option<u32>,
    /// Records a topic keeps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub records: Option<u64>,
    /// How long a topic keeps them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retention: Option<String>,
}

/// The target of a push subscription.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PushTo {
    /// The service.
    pub service: Name,
    /// Path of the POST.
    pub path: String,
}

/// A message seen without taking it.
#[derive(Clone, Debug, PartialEq)]
pub struct Peeked {
    /// Its place in the queue.
    pub seq: Seq,
    /// Its commit position.
    pub position: Position,
    /// When the journal took it.
    pub time: Timestamp,
    /// Deliveries so far.
    pub attempts: u32,
    /// `ready`, `in-flight` or `delayed`.
    pub state: &'static str,
    /// The event; `None` where damage was set aside.
    pub event: Option<Envelope>,
}

/// A payload with what is known of it.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub payload: Bytes,
    pub position: Position,
}
