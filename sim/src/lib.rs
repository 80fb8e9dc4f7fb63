//! Seeded simulation: a disk that loses what was not synced, a model of what the store promises, and worlds that
//! put the one against the other.
//!
//! What it is not: part of the product. Only tests use it.

pub mod disk;
pub mod life;
pub mod model;
