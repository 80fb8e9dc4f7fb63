//! End to end: the real `weft` binary, driven over its sockets.

mod bad_input;
mod config;
mod crash;
mod gateway;
mod messages;
mod orders;
mod support;
