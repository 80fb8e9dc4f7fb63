//! An idempotent consumer of the choreography: receive, change the own database, then acknowledge and publish in one
//! `POST /v1/commit`.
//!
//! Dying at any point is harmless. Before the local transaction: nothing happened, the lease ends, the event comes
//! again. Between it and the commit: the event comes again, the inbox knows it and answers what to publish. After the
//! commit: all is done. A stale lease means that the event was or will be delivered to somebody else; drop it.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use rusqlite::Transaction;

use crate::chaos::{Chaos, Fate};
use crate::db::{self, Db};
use crate::event::Event;
use crate::fault::Fault;
use crate::weft::{Delivery, Failure, Weft};

/// The topic the choreography runs on.
pub const TOPIC: &str = "orders";

const BATCH: u32 = 16;
const WAIT: Duration = Duration::from_secs(10);
const GIVE_BACK: Duration = Duration::from_millis(200);
const FIRST_RETRY: Duration = Duration::from_millis(50);
const LAST_RETRY: Duration = Duration::from_secs(1);
/// Tries of one commit; later the lease has ended and the event comes again anyway.
const COMMITS: u32 = 6;

/// What a service does with an event inside its own transaction: changes, and events to tell.
pub type React = fn(&Transaction<'_>, &Event) -> Result<Vec<Event>, Fault>;

/// Everything a consumer works with.
#[derive(Clone)]
pub struct Consumer {
    /// The API.
    pub weft: Weft,
    /// The service's database.
    pub db: Db,
    /// Its switches.
    pub chaos: Chaos,
    /// Name of the subscription.
    pub subscription: &'static str,
    /// The reaction.
    pub react: React,
}

/// Consumes for ever.
pub async fn run(consumer: Consumer) {
    let consumer = Arc::new(consumer);
    let mut retry = FIRST_RETRY;
    loop {
        match consumer.weft.receive(consumer.subscription, BATCH, WAIT).await {
            Ok(deliveries) => {
                retry = FIRST_RETRY;
                join_all(deliveries.into_iter().map(|d| consumer.handle(d))).await;
            }
            Err(why) => {
                tracing::warn!(error = %why, subscription = consumer.subscription, "cannot receive, trying on");
                tokio::time::sleep(retry).await;
                retry = (retry * 2).min(LAST_RETRY);
            }
        }
    }
}

impl Consumer {
    async fn handle(&self, delivery: Delivery) {
        let (fate, slow) = self.chaos.draw();
        tokio::time::sleep(slow).await;
        let Delivery { lease, event } = delivery;
        let done = match fate {
            Fate::Fails => Err("fault on command".to_owned()),
            // Hanging for ever would stop the loop; what others see is the same: the lease ends.
            Fate::Hangs => return,
            Fate::Spared | Fate::LosesItsAnswer => self.react(event.clone()).await.map_err(|f| f.to_string()),
        };
        match done {
            Ok(_) if fate == Fate::LosesItsAnswer => self.give_back(&lease, "answer lost on command").await,
            Ok(events) => self.commit(&lease, &events).await,
            Err(why) => {
                tracing::warn!(error = why, event = event.id, "reaction failed, giving the event back");
                self.give_back(&lease, &why).await;
            }
        }
    }

    async fn react(&self, event: Event) -> Result<Vec<Event>, Fault> {
        let react = self.react;
        self.db.write(move |tx| db::once(tx, &event, |tx| react(tx, &event))).await
    }

    async fn commit(&self, lease: &str, events: &[Event]) {
        let mut retry = FIRST_RETRY;
        for _ in 0..COMMITS {
            match self.weft.commit(lease, TOPIC, events).await {
                Ok(()) => return,
                Err(why) if why.is_stale() => {
                    tracing::debug!(error = %why, "stale lease, dropped");
                    return;
                }
                Err(why) => {
                    tracing::warn!(error = %why, "commit not acknowledged, trying on");
                    tokio::time::sleep(retry).await;
                    retry = (retry * 2).min(LAST_RETRY);
                }
            }
        }
    }

    async fn give_back(&self, lease: &str, reason: &str) {
        if let Err(why @ Failure::Refused { .. }) = self.weft.nack(lease, GIVE_BACK, reason).await {
            tracing::warn!(error = %why, "event not given back; its lease will end");
        }
    }
}
