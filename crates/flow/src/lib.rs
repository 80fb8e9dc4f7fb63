//! Sagas: definition, the pure machine, the runner.
//!
//! What it is not: it knows no listener and no wire frames; it calls services through `mesh` and publishes through
//! `broker`.

pub mod spec;

pub use spec::{Action, SagaSpec, Step, StepKind};
