//! Who to call and how to reach it: registry, health, balance, pool, upstream.
//!
//! What it is not: it knows no routes and no messages, and it classifies nothing itself: outcomes go to
//! `weft_policy::outcome`.

pub mod spec;

pub use spec::{Address, Balance, Protocol, ServiceSpec};
