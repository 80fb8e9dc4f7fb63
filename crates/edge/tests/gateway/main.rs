//! The gateway end to end: real sockets, real clients, real services.

mod support;

mod api;
mod auth;
mod bad_input;
mod floods;
mod grpc;
mod grpc_web;
mod idempotency;
mod limits;
mod protocols;
mod proxying;
mod resilience;
mod smuggling;
mod streams;
mod swaps;
mod targets;
mod tls;
mod traffic;
mod websocket;
