//! Sagas: definition, the pure machine, the engine that runs it.
//!
//! What it is not: it knows no listener and no wire frames; it calls services through `mesh` and publishes through
//! `broker`.
//!
//! Invariants: a step is sent only after the intent to send it is durable; every transition is one store batch, in which
//! published events are; a start takes effect once per key; every instance ends completed or compensated, or is parked
//! with a reason; no compensation without an attempted action ([`machine`]).
//!
//! ```
//! use weft_core::Timestamp;
//! use weft_flow::machine::{Action, Event, Outcome, Phase, Plan, State, StepPlan, WorkId, apply};
//!
//! let step = StepPlan { undoable: true, repeatable: true, undo_repeatable: true };
//! let plan = Plan { stages: vec![0..1, 1..2], steps: vec![step, step] };
//! let mut saga = State::new(&plan);
//! let (now, reserve, charge) = (Timestamp(0), WorkId::action(0), WorkId::action(1));
//! assert_eq!(apply(&plan, &mut saga, Event::Run, now), [Action::Begin(reserve)]);
//! let done = Event::Answered(reserve, Outcome::Done(Default::default()), false);
//! assert_eq!(apply(&plan, &mut saga, done, now), [Action::Begin(charge)]);
//! let declined = Event::Answered(charge, Outcome::Refused("card declined".into()), false);
//! assert_eq!(apply(&plan, &mut saga, declined, now), [Action::Begin(WorkId::undo(0))]);
//! let undone = Event::Answered(WorkId::undo(0), Outcome::Done(Default::default()), false);
//! assert_eq!(apply(&plan, &mut saga, undone, now), []);
//! assert_eq!(saga.phase, Phase::Compensated);
//! ```

mod call;
pub mod definition;
mod engine;
mod error;
pub mod expr;
pub mod grpc;
pub mod instance;
pub mod machine;
mod metrics;
mod reflection;
mod runner;
pub mod spec;
pub mod template;

pub use definition::{Catalog, CatalogService, Definition, Mistake};
pub use engine::{Filter, Flow, Page, Staged, Started};
pub use error::{Error, Result};
pub use instance::View;
pub use spec::{Action, SagaSpec, Step, StepKind};
