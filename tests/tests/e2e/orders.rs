//! The scenes of the demo as tests: each starts its own Weft and its own nine services, and fails when a promise is
//! broken. What a scene promises is written where it is played, in `src/scenes`.

use tokio::sync::{Mutex, MutexGuard};
use weft_tests::scenes::{self, Listener};
use weft_tests::shop::Flows;
use weft_tests::{Result, Shop};

const SEED: u64 = 1;

/// Ten processes a scene: one scene at a time, so that a small machine shows the scene and not its own limits.
static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

/// A shop of one's own; its directory ends with it.
struct Own {
    shop: Shop,
    _dir: tempfile::TempDir,
    _turn: MutexGuard<'static, ()>,
}

async fn open() -> Result<Own> {
    let turn = ONE_AT_A_TIME.lock().await;
    let dir = tempfile::tempdir()?;
    let shop = Shop::start(dir.path()).await?;
    Ok(Own { shop, _dir: dir, _turn: turn })
}

impl Own {
    async fn close(self) -> Result<()> {
        self.shop.stop().await
    }
}

#[tokio::test]
async fn a_visitor_is_served_through_the_gateway() -> Result<()> {
    let mut own = open().await?;
    scenes::front(&mut own.shop, SEED, &Listener::print()).await?;
    own.close().await
}

#[tokio::test]
async fn every_order_of_a_normal_day_ends_as_it_should() -> Result<()> {
    let mut own = open().await?;
    scenes::calm(&mut own.shop, SEED, 100, Flows::Both, &Listener::print()).await?;
    own.close().await
}

#[tokio::test]
async fn a_declined_card_undoes_the_order_and_the_stock_comes_back() -> Result<()> {
    let mut own = open().await?;
    scenes::declined(&mut own.shop, SEED, 20, &Listener::print()).await?;
    own.close().await
}

#[tokio::test]
async fn a_repeated_post_is_answered_from_the_store() -> Result<()> {
    let mut own = open().await?;
    scenes::replay(&mut own.shop, SEED, &Listener::print()).await?;
    own.close().await
}

#[tokio::test]
async fn lost_answers_make_nothing_happen_twice() -> Result<()> {
    let mut own = open().await?;
    scenes::lossy(&mut own.shop, SEED, 60, &Listener::print()).await?;
    own.close().await
}

#[tokio::test]
async fn a_dead_service_opens_its_breaker_which_closes_when_it_is_back() -> Result<()> {
    let mut own = open().await?;
    scenes::outage(&mut own.shop, SEED, 40, &Listener::print()).await?;
    own.close().await
}

#[tokio::test]
async fn every_order_ends_when_weft_is_killed_in_the_middle() -> Result<()> {
    let mut own = open().await?;
    scenes::crash(&mut own.shop, SEED, 200, &Listener::print()).await?;
    own.close().await
}

#[tokio::test]
async fn a_poison_message_is_dead_lettered_and_redriven() -> Result<()> {
    let mut own = open().await?;
    scenes::poison(&mut own.shop, SEED, &Listener::print()).await?;
    own.close().await
}
