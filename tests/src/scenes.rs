//! The scenes of the demo, each with its promises: what a person sees in `cargo xtask demo` is what the tests assert.
//!
//! A scene drives a running [`Shop`], leaves it healthy, and answers what it saw. It fails when a promise is broken;
//! the services' own databases decide, not Weft's word.

use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::shop::place::{Counter, place};
use crate::shop::{Audit, Expect, Order, Outcome, Placed, Shop, audit};
use crate::{Failure, Result};

mod calm;
mod crash;
mod declined;
mod front;
mod lossy;
mod outage;
mod poison;
mod replay;

pub use calm::calm;
pub use crash::crash;
pub use declined::declined;
pub use front::front;
pub use lossy::lossy;
pub use outage::outage;
pub use poison::poison;
pub use replay::replay;

/// Orders placed at once.
pub const AT_ONCE: usize = 24;

/// What a scene saw.
#[derive(Debug, Default)]
pub struct Seen {
    /// Orders it placed, all ended.
    pub placed: Vec<Placed>,
    /// What held, in words.
    pub facts: Vec<String>,
}

impl Seen {
    fn fact(&mut self, what: impl Into<String>) {
        self.facts.push(what.into());
    }
}

/// What a scene tells while it plays.
#[derive(Debug)]
pub enum Note {
    /// A line for the person watching.
    Say(String),
    /// So many orders are about to be placed.
    Expect(usize),
    /// One ended.
    Ended(Outcome),
}

/// Who listens to a scene.
#[derive(Clone)]
pub struct Listener(Arc<dyn Fn(Note) + Send + Sync>);

impl Listener {
    /// Calls `hear` with every note.
    pub fn new(hear: impl Fn(Note) + Send + Sync + 'static) -> Self {
        Self(Arc::new(hear))
    }

    /// Prints what is said.
    pub fn print() -> Self {
        Self::new(|note| {
            if let Note::Say(line) = note {
                println!("{line}");
            }
        })
    }

    fn say(&self, line: impl Into<String>) {
        (self.0)(Note::Say(line.into()));
    }
}

fn counter(shop: &Shop) -> Counter {
    Counter { gateway: shop.weft.gateway, api: shop.weft.api }
}

/// Begins to place orders, some at once; the set ends when all have ended.
fn begin(shop: &Shop, orders: Vec<Order>, at_once: usize, listener: &Listener) -> JoinSet<Result<Placed>> {
    (listener.0)(Note::Expect(orders.len()));
    let places = Arc::new(Semaphore::new(at_once));
    let counter = counter(shop);
    let mut set = JoinSet::new();
    for order in orders {
        let (places, listener) = (places.clone(), listener.clone());
        set.spawn(async move {
            let _place = places.acquire().await;
            let placed = place(counter, &order).await?;
            (listener.0)(Note::Ended(placed.outcome));
            Ok(placed)
        });
    }
    set
}

/// Waits for the end of all orders; the first that cannot be brought to an end fails the scene.
async fn ended(mut set: JoinSet<Result<Placed>>) -> Result<Vec<Placed>> {
    let mut all = Vec::new();
    while let Some(done) = set.join_next().await {
        all.push(done??);
    }
    Ok(all)
}

async fn place_all(shop: &Shop, orders: Vec<Order>, listener: &Listener) -> Result<Vec<Placed>> {
    ended(begin(shop, orders, AT_ONCE, listener)).await
}

/// Fails unless every order ended as it must when nothing is broken.
fn as_expected(placed: &[Placed]) -> Result<()> {
    let wrong = placed.iter().filter(|p| {
        matches!(
            (p.order.expect, p.outcome),
            (Expect::Completed, Outcome::Compensated) | (Expect::Compensated, Outcome::Completed)
        )
    });
    let lines: Vec<String> = wrong
        .map(|p| format!("{} must be {:?} and is {:?}: {:?}", p.order.customer, p.order.expect, p.outcome, p.reason))
        .collect();
    refuse(lines)
}

/// Fails unless the databases bear out every promise.
fn audited(shop: &Shop, placed: &[Placed]) -> Result<Audit> {
    let found = audit(&shop.dir, placed)?;
    refuse(found.broken.clone())?;
    Ok(found)
}

fn refuse(broken: Vec<String>) -> Result<()> {
    const SHOWN: usize = 10;
    if broken.is_empty() {
        return Ok(());
    }
    let more = broken.len().saturating_sub(SHOWN);
    let more = if more > 0 { format!("\n  and {more} more") } else { String::new() };
    let shown: Vec<&str> = broken.iter().take(SHOWN).map(String::as_str).collect();
    Err(Failure::from(format!("{} broken:\n  {}{more}", broken.len(), shown.join("\n  "))))
}

fn count(placed: &[Placed], outcome: Outcome) -> usize {
    placed.iter().filter(|p| p.outcome == outcome).count()
}

/// `12 completed and 3 compensated`.
fn both(placed: &[Placed]) -> String {
    let (done, undone) = (count(placed, Outcome::Completed), count(placed, Outcome::Compensated));
    format!("{done} completed and {undone} compensated")
}
