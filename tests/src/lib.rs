//! Drives the real binaries: starts `weft` and the services of the order system as processes, speaks HTTP to them,
//! hurts them and ends them by the id it started.
//!
//! The demo (`cargo xtask demo`) and the end to end tests run on this. It is not a client library.

pub mod http;
pub mod process;
pub mod scenes;
pub mod services;
pub mod shop;
pub mod weft;

pub use crate::http::{Answer, Request};
pub use crate::process::Process;
pub use crate::services::Service;
pub use crate::shop::Shop;
pub use crate::weft::Weft;

/// Why something could not be driven, in words.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;
/// Result of driving.
pub type Result<T> = std::result::Result<T, Failure>;
