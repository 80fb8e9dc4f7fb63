//! HTTP through the gateway: one exchange from its request's head to its answer's last byte.

pub mod headers;
pub mod respond;
