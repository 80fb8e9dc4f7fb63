//! Bad weather: services refuse work, and do work whose answer is lost. Retries and idempotent participants make it good.

use serde_json::json;

use super::{Listener, Seen, audited, both, place_all};
use crate::Result;
use crate::shop::{Cards, Flows, Shop, orders};

/// Services that lose answers in this scene.
const LOSSY: [&str; 4] = ["order", "inventory", "payment", "shipping"];

/// Places `count` orders while one request in ten fails and one in ten is done without an answer.
pub async fn lossy(shop: &mut Shop, seed: u64, count: usize, listener: &Listener) -> Result<Seen> {
    let mut seen = Seen::default();
    listener.say("order, inventory, payment and shipping refuse 5 % of their work and lose 10 % of their answers");
    shop.chaos(&LOSSY, &json!({"fail": 0.05, "lose": 0.1, "seed": seed})).await?;
    let placed = place_all(shop, orders::mix(seed, "lossy", count, Flows::Both, Cards::Mixed), listener).await;
    shop.chaos(&LOSSY, &json!({})).await?;
    seen.placed = placed?;
    audited(shop, &seen.placed)?;
    seen.fact(format!(
        "{} while answers were lost; nothing was charged, reserved or shipped twice",
        both(&seen.placed)
    ));
    Ok(seen)
}
