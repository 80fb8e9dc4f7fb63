//! Where bytes come in: listeners, TLS, routing, the HTTP exchange, the API.
//!
//! What it is not: it holds no business rules; it parses, asks `policy`, `mesh`, `broker` and `flow`, and answers.

pub mod api;
pub mod auth;
pub mod cloudevents;
pub mod gateway;
pub mod http;
pub mod listener;
pub mod publish;
pub mod route;
pub mod spec;
pub mod versions;

pub use gateway::Gateway;
pub use spec::{GatewaySpec, RouteMatch, RouteSpec, Target};
