//! Queues and topics: publish (the one door), route, deliver, settle, dead-letter.
//!
//! What it is not: it knows no wire protocol; sessions of HTTP, AMQP or MQTT live in `edge`.
//!
//! Invariants: a publish is acknowledged only when it is durable, and deliverable only then; a message is delivered at
//! least once and leaves only by acknowledgement, retention, or together with its arrival in a dead-letter queue; one
//! [`Broker::commit`] is one store batch. One task sequences everything ([`Broker`] is a handle to it) and never waits for
//! the disk.

mod actor;
mod broker;
mod clock;
mod declare;
mod dedup;
mod error;
mod expression;
mod metrics;
mod push;
pub mod queue;
mod ranges;
mod record;
pub mod spec;
mod token;
mod topology;
mod types;

pub use broker::Broker;
pub use error::{Error, Result};
pub use spec::{DedupBy, QueueSpec, SubscriptionMode, SubscriptionSpec, TopicSpec};
pub use token::Lease;
pub use types::{
    Channel, Commit, CommitReceipt, Declared, Delivery, Listing, NackOptions, Peeked, Publish, PublishOptions, PushTo,
    Receipt, ReceiveOptions, Settled, Source,
};

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
