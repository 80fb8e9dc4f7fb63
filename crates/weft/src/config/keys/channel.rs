//! `queues:`, `topics:` and `subscriptions:`

use std::num::NonZeroU32;
use std::time::Duration;

use serde_json::{Value as Json, json};
use weft_core::Name;

use super::policy::Policies;
use crate::config::declare::{Declared, section, words};
use crate::config::expr::Cel;
use crate::config::node::{Data, Node};
use crate::config::value::{Backoff, Cx, Value};

words! {
    /// When a publish is acknowledged.
    Durability { "fsync" Fsync, "relaxed" Relaxed }
}

section! {
    /// A queue: every message goes to one receiver; an acknowledged message is gone.
    Queue {
        /// How long a receiver holds a message before it is delivered again.
        "lease" lease: def(Duration, "30s"),
        /// How often and how far apart a message is delivered again.
        "retry" retry: opt(Redelivery),
        /// Only its `retry` block has a meaning here; `retry:` beside it is stronger.
        "policy" policy: opt(Policies),
        /// Where messages go whose attempts are used up; without it the queue's name with `.dead`.
        "dead_letter" dead_letter: opt(Name),
        /// When a publish counts as a repeat.
        "dedup" dedup: opt(Dedup),
        /// Messages it holds at most; a publish above is refused.
        "max_messages" max_messages: opt(u64),
        /// `fsync` acknowledges what is on disk, `relaxed` what was handed to the operating system.
        "durability" durability: def(Durability, "fsync"),
    }
}

section! {
    /// How often and how far apart a message is delivered again.
    Redelivery {
        /// Deliveries in all; then the message is dead.
        "attempts" attempts: def(NonZeroU32, "10"),
        /// First and longest wait between deliveries.
        "backoff" backoff: def(Backoff, "100ms..5m"),
    }
}

section! {
    /// When a publish counts as a repeat: acknowledged again, stored once. An explicit `Weft-Dedup-Id` always counts.
    Dedup short "by" {
        /// Where the id comes from when the publisher gives none: `explicit` (nowhere), `ce-id` (CloudEvents source and id), or a CEL expression over `event`.
        "by" by: def(DedupBy, "explicit"),
        /// How long ids are remembered.
        "window" window: def(Duration, "10m"),
    }
}

/// Source of the dedup id.
#[derive(Clone, Debug)]
pub(in crate::config) enum DedupBy {
    /// Only an explicit one.
    Explicit,
    /// CloudEvents source and id.
    CeId,
    /// CEL over `event`.
    Expression(Cel),
}

impl Value for DedupBy {
    fn read(node: &Node, cx: &mut Cx<'_>) -> Option<Self> {
        match &node.data {
            Data::Scalar(s) if s.text == "explicit" => Some(Self::Explicit),
            Data::Scalar(s) if s.text == "ce-id" => Some(Self::CeId),
            _ => Cel::read(node, cx).map(Self::Expression),
        }
    }
    fn schema(_: &mut Declared) -> Json {
        json!({"type": "string"})
    }
    fn kind() -> String {
        "`explicit`, `ce-id` or a CEL expression".to_owned()
    }
}

section! {
    /// A topic: every subscription gets every message that its filter lets through.
    Topic {
        /// Streams it is spread over; order holds within one.
        "partitions" partitions: def(NonZeroU32, "1"),
        /// CEL over `event` whose value picks the partition.
        "key" key: def(Cel, "event.subject"),
        /// How long records are kept; without it until every subscription acknowledged them.
        "retention" retention: opt(Duration),
        /// When a publish counts as a repeat.
        "dedup" dedup: opt(Dedup),
        /// `fsync` acknowledges what is on disk, `relaxed` what was handed to the operating system.
        "durability" durability: def(Durability, "fsync"),
    }
}

words! {
    /// How consumers share a subscription.
    Mode { "shared" Shared, "key-shared" KeyShared, "exclusive" Exclusive }
}

words! {
    /// Where a new subscription starts.
    From { "earliest" Earliest, "latest" Latest }
}

section! {
    /// A named cursor on a topic.
    Subscription {
        /// The topic.
        "topic" topic: req(Name),
        /// `shared`: any consumer, any message; `key-shared`: one message per key in flight, so that order per key holds; `exclusive`: one consumer at a time per partition, in order.
        "mode" mode: def(Mode, "shared"),
        /// CEL over `event`; what does not match is acknowledged unseen.
        "filter" filter: opt(Cel),
        /// Where a new subscription starts: at the oldest record kept, or with what comes after it was made.
        "from" from: def(From, "earliest"),
        /// How often and how far apart a message is delivered again.
        "retry" retry: opt(Redelivery),
        /// Policy of the push; its `retry` block is the redelivery, and `retry:` beside it is stronger.
        "policy" policy: opt(Policies),
        /// Where messages go whose attempts are used up; without it the subscription's name with `.dead`.
        "dead_letter" dead_letter: opt(Name),
        /// How long a receiver holds a message before it is delivered again.
        "lease" lease: def(Duration, "30s"),
        /// Weft calls a service with each message; without it consumers receive.
        "push" push: opt(Push),
    }
}

section! {
    /// Delivery by calling a service: a POST of the event (CloudEvents HTTP binary mode). 2xx acknowledges.
    Push {
        /// The service.
        "service" service: req(Name),
        /// Path of the POST.
        "path" path: def(String, "/"),
        /// Calls at once.
        "concurrency" concurrency: def(NonZeroU32, "16"),
    }
}
