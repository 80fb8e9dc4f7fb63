//! The mesh against real servers in this process, on ephemeral ports.

mod exchange;
mod support;
