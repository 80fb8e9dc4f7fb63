//! Who to call and how to reach it: registry, health, balance, pool, upstream.
//!
//! What it is not: it knows no routes and no messages, and it classifies nothing itself: outcomes go to
//! `weft_policy::outcome`.
//!
//! Invariants:
//! - Bodies pass through frame by frame in both directions; only [`Mesh::call`] collects an answer, under a limit.
//! - An attempt goes to one instance. Only an exchange that cannot have taken effect is repeated here (a pooled
//!   connection that turned out closed); everything else is `weft_policy::attempt`'s to decide.
//! - Connections belong to the thread that made them; shared between threads are immutable snapshots and atomics.
//! - A change to a service keeps the connections, loads and breakers of what did not change.

pub mod spec;

mod answer;
mod balance;
mod body;
mod call;
mod catalog;
mod connect;
mod dns;
mod endpoint;
mod error;
mod health;
mod http1;
mod mesh;
mod observe;
mod outbound;
mod outlier;
mod pool;
mod registry;
mod ring;
mod tls;
mod upgraded;
mod upstream;

pub use answer::{Incoming, Reply};
pub use body::{Body, BoxError};
pub use call::{Answer, CallError};
pub use dns::Dns;
pub use endpoint::{Endpoint, Target};
pub use error::Error;
pub use mesh::{InstanceView, Mesh, ServiceView};
pub use outbound::{IDEMPOTENCY_KEY, Outbound};
pub use registry::{Registered, Registration};
pub use spec::{Address, Balance, Protocol, ServiceSpec};
pub use upgraded::Upgraded;
pub use upstream::Service;
