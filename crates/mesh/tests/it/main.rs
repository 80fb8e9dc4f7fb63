//! The mesh against real servers in this process, on ephemeral ports.

mod calls;
mod dns;
mod exchange;
mod h2;
mod health;
mod membership;
mod support;
mod tls;
