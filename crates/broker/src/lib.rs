//! Queues and topics: publish (the one door), route, deliver, settle, dead-letter.
//!
//! What it is not: it knows no wire protocol; sessions of HTTP, AMQP or MQTT live in `edge`.

pub mod spec;

pub use spec::{DedupBy, QueueSpec, SubscriptionMode, SubscriptionSpec, TopicSpec};
