//! End to end: the real `weft` binary, driven over its sockets.

mod auth;
mod bad_input;
mod config;
mod crash;
mod gateway;
#[cfg(not(feature = "no-packages"))]
mod interop;
mod limits;
mod messages;
mod orders;
mod routing;
mod support;
mod versioning;
