//! One policy language: deadline, retry, breaker, bulkhead, rate, idempotency, auth, and the one place where outcomes are
//! classified.
//!
//! What it is not: it knows no HTTP client, no AMQP and does no I/O; it decides on typed inputs. The same
//! limits serve a proxied request, a gRPC call, a push and a saga step. Without the feature `telemetry` it needs only
//! `weft-core`; with the feature `tower` it serves any program as layers (`tower`), without `auth` it brings no
//! cryptography.
//!
//! Invariants:
//! - Whether work may be tried again is decided in [`attempt::run`] and nowhere else.
//! - What an answer or an error means is decided in [`outcome`] and nowhere else.
//! - Every table and queue in here is bounded by its configuration or by [`weft_core::limits`].
//! - Nothing allocates while work succeeds.
//!
//! ```
//! use weft_core::Context;
//! use weft_policy::attempt::{self, Replay};
//! use weft_policy::outcome::{self, Judged, Outcome};
//! use weft_policy::{Instance, Policy};
//!
//! #[derive(Debug)]
//! struct Status(u16);
//! impl Judged for Status {
//!     fn outcome(&self) -> Outcome {
//!         outcome::classify_http(self.0)
//!     }
//! }
//!
//! # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
//! let instance = Instance::new(&Policy::builtin());
//! let slot = instance.bulkhead().acquire(Context::root().deadline).await.unwrap();
//! let done = attempt::run(&instance, &Context::root(), Replay::Safe, |attempt| async move {
//!     Ok::<_, Status>(Status(if attempt.number == 1 { 503 } else { 200 }))
//! })
//! .await
//! .unwrap();
//! assert_eq!((done.answer.0, done.attempts), (200, 2));
//! drop(slot); // in the gateway it moves into the response body
//! # });
//! ```

pub mod adaptive;
pub mod attempt;
#[cfg(feature = "auth")]
pub mod auth;
pub mod breaker;
pub mod budget;
pub mod bulkhead;
pub mod error;
pub mod idempotency;
pub mod instance;
pub mod net;
pub mod outcome;
mod pad;
pub mod quantile;
pub mod quota;
pub mod rate;
pub mod spec;
#[cfg(feature = "tower")]
pub mod tower;
pub mod version;

#[cfg(all(doctest, feature = "tower"))]
#[doc = include_str!("../README.md")]
struct Readme;

pub use error::Refused;
pub use instance::Instance;
pub use outcome::{Judged, Outcome};
pub use spec::Policy;
