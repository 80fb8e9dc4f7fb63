//! The vocabulary every other crate speaks: ids, time, the [`context`] that travels with work, the
//! [`envelope`] that carries a message, error [`class`](error::Class)es, [`limits`], [`task`]s.
//!
//! What it is not: it does no I/O, knows no protocol and holds no state.
//!
//! ```
//! use weft_core::trace::Trace;
//! let trace = Trace::parse("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01").unwrap();
//! assert_eq!(trace.trace_id.to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
//! ```

pub mod clock;
pub mod context;
pub mod envelope;
pub mod error;
pub mod id;
pub mod limits;
pub mod name;
pub mod task;
pub mod trace;
pub mod units;

pub use clock::{Clock, SystemClock, Timestamp};
pub use context::{Context, Deadline, Principal};
pub use envelope::Envelope;
pub use error::{Class, Classify, Origin};
pub use id::Id;
pub use name::Name;
pub use trace::Trace;
