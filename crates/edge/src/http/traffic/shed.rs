//! Shedding by a queue: while it is too far behind, requests that would make more work for it are refused. The queue is
//! looked at once a second at most, by one request that waits for it; the others go by what was seen last.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;
use weft_broker::Broker;
use weft_core::{limits, units};

use crate::api::problem::{Problem, code};
use crate::spec::{DependsOn, Lag};

#[derive(Debug)]
pub(super) struct Shed {
    on: DependsOn,
    behind: AtomicBool,
    looked: Mutex<Option<Instant>>,
}

impl Shed {
    pub(super) fn new(on: &DependsOn) -> Self {
        Self { on: on.clone(), behind: AtomicBool::new(false), looked: Mutex::new(None) }
    }

    /// 503 while the queue is too far behind.
    pub(super) async fn check(&self, broker: &Broker) -> Result<(), Problem> {
        if self.due() {
            self.behind.store(self.is_behind(broker).await, Ordering::Release);
        }
        if !self.behind.load(Ordering::Acquire) {
            return Ok(());
        }
        let bound = match self.on.max_lag {
            Lag::Messages(n) => format!("more than {n} messages wait in it"),
            Lag::Age(d) => format!("its oldest message is older than {}", units::format_duration(d)),
        };
        let detail = format!("queue '{}' is too far behind: {bound}", self.on.queue);
        Err(Problem::new(code::QUEUE_BEHIND, detail).with_retry_after(RETRY_AFTER))
    }

    fn due(&self) -> bool {
        let mut looked = self.looked.lock();
        let now = Instant::now();
        let due = looked.is_none_or(|at| now.duration_since(at) >= limits::LAG_LOOK);
        if due {
            *looked = Some(now);
        }
        due
    }

    /// A broker that does not answer says nothing of the queue: what was seen last holds.
    async fn is_behind(&self, broker: &Broker) -> bool {
        let last = self.behind.load(Ordering::Acquire);
        let Ok(Ok(queues)) = tokio::time::timeout(limits::LAG_LOOK, broker.queues()).await else { return last };
        let Some(q) = queues.iter().find(|q| q.name == self.on.queue) else { return false };
        match self.on.max_lag {
            Lag::Messages(n) => q.ready + q.delayed > n,
            Lag::Age(d) => {
                let age = q.oldest_age.as_deref().and_then(|a| units::parse_duration(a).ok());
                age.is_some_and(|a| a > d)
            }
        }
    }
}

/// A queue that is behind is not caught up in a moment.
const RETRY_AFTER: Duration = Duration::from_secs(5);
