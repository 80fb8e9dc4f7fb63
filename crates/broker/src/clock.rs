//! Time for leases and delays: wall-clock instants that move with the monotonic clock, so that a step of the system's
//! clock neither ends leases nor keeps messages back.

use std::time::Duration;

use tokio::time::Instant;
use weft_core::{Clock as _, SystemClock, Timestamp};

/// The wall clock at opening, and the monotonic time since.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BrokerClock {
    wall: Timestamp,
    start: Instant,
}

impl BrokerClock {
    pub fn start() -> Self {
        Self { wall: SystemClock.now(), start: Instant::now() }
    }

    pub fn now(&self) -> Timestamp {
        self.wall.plus(self.start.elapsed())
    }

    /// When `at` comes, on the monotonic clock.
    pub fn instant(&self, at: Timestamp) -> Instant {
        let after = Duration::from_millis(at.0.saturating_sub(self.wall.0));
        self.start.checked_add(after).unwrap_or_else(|| self.start + Duration::from_secs(365 * 24 * 3600))
    }
}
