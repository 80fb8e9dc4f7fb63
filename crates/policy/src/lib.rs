//! One policy language: deadline, retry, breaker, bulkhead, rate, idempotency, and the one place where outcomes are
//! classified.
//!
//! What it is not: it knows no HTTP, no AMQP and does no I/O; it decides on typed inputs.

pub mod spec;

pub use spec::Policy;
