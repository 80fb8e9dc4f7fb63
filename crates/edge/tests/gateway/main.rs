//! The gateway end to end: real sockets, real clients, real services.

mod support;

mod api;
mod bad_input;
mod grpc;
mod idempotency;
mod protocols;
mod proxying;
mod resilience;
mod smuggling;
mod targets;
mod tls;
mod websocket;
