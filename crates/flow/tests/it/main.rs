//! The engine with a real store, real HTTP and gRPC services, and crashes.

mod api;
mod crash;
mod grpc;
mod steps;
mod support;
