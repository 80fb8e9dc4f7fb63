//! HTTP through the gateway: one exchange from its request's head to its answer's last byte.

pub(crate) mod exchange;
pub(crate) mod fallback;

pub(crate) mod access;
pub(crate) mod adapt;
pub mod body;
mod collect;
pub mod forwarded;
mod grpc_web;
pub mod headers;
pub(crate) mod idempotency;
pub(crate) mod limited;
mod publish;
pub(crate) mod quota;
mod record;
pub mod respond;
mod saga;
pub(crate) mod secrets;
pub(crate) mod traffic;
mod tunnel;
mod upgrade;
pub(crate) mod version;
