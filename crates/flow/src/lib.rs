//! Sagas: definition, the pure machine, the runner.
//!
//! What it is not: it knows no listener and no wire frames; it calls services through `mesh` and publishes through
//! `broker`.

pub mod definition;
pub mod expr;
pub mod grpc;
pub mod machine;
pub mod spec;
pub mod template;

pub use definition::{Catalog, Definition, Mistake};
pub use spec::{Action, SagaSpec, Step, StepKind};
