//! Weft dies by SIGKILL in the middle of many running sagas, and starts again.

use std::time::{Duration, Instant};

use serde_json::json;

use super::{Listener, Seen, as_expected, audited, begin, both, ended};
use crate::shop::{Cards, Flows, Shop, eventually, orders};
use crate::{Request, Result};

/// Services made slow, so that sagas are caught in every step.
const SLOW: [&str; 4] = ["order", "inventory", "payment", "shipping"];

/// Starts `count` orders at once, kills Weft when most of them run, starts it again, and sees every order to its end.
pub async fn crash(shop: &mut Shop, seed: u64, count: usize, flows: Flows, listener: &Listener) -> Result<Seen> {
    let mut seen = Seen::default();
    shop.chaos(&SLOW, &json!({"slow_ms": 400})).await?;
    let orders = orders::mix(seed, "crash", count, flows, Cards::Mixed);
    let sagas = orders.iter().filter(|o| o.flow == crate::shop::Flow::Saga).count();
    let orders = begin(shop, orders, count, listener);
    let api = shop.weft.api;
    let enough = sagas * 3 / 4;
    let running = eventually("most sagas running", Duration::from_secs(20), || async move {
        let running = unended(api).await?;
        Ok((running >= enough).then_some(running))
    })
    .await?;
    shop.weft.kill().await?;
    listener.say(format!("Weft killed with SIGKILL while {running} sagas ran"));
    let killed = Instant::now();
    shop.weft.restart().await?;
    let away = killed.elapsed();
    listener.say(format!("Weft is back and ready after {} ms", away.as_millis()));
    let placed = ended(orders).await;
    shop.chaos(&SLOW, &json!({})).await?;
    seen.placed = placed?;
    as_expected(&seen.placed)?;
    eventually("the end of every saga", Duration::from_secs(30), || async move {
        Ok((unended(api).await? == 0).then_some(()))
    })
    .await?;
    audited(shop, &seen.placed)?;
    seen.fact(format!("killed with {running} sagas running, ready again {} ms later", away.as_millis()));
    seen.fact(format!("{}, each as it had to; nobody charged twice, no stock lost", both(&seen.placed)));
    Ok(seen)
}

/// Sagas that have not ended.
async fn unended(api: std::net::SocketAddr) -> Result<usize> {
    let mut all = 0;
    for status in ["running", "compensating", "parked"] {
        let path = format!("/v1/sagas?limit=1000&status={status}");
        let listed = Request::get(api, &path).send().await?.expect(200)?.json();
        all += listed["items"].as_array().ok_or("the saga listing has no items")?.len();
    }
    Ok(all)
}
