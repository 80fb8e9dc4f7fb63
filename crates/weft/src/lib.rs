//! The binary's parts: configuration, the command line, and how the crates are wired together.
//!
//! Only this crate reads files, environment or arguments for configuration; the others take typed values.

pub mod cli;
pub mod config;
mod diff;
pub mod up;
