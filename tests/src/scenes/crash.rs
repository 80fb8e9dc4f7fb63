//! Weft dies by SIGKILL in the middle of many running sagas, and starts again.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::json;

use super::{Listener, Seen, as_expected, audited, begin, both, ended};
use crate::shop::{Cards, Flows, Shop, eventually, orders};
use crate::{Request, Result};

/// Services made slow, so that sagas are caught in every step.
const SLOW: [&str; 4] = ["order", "inventory", "payment", "shipping"];

/// Starts `sagas` orders by saga at once, and a third as many by events; kills Weft when most sagas run, starts it again,
/// and sees every order to its end.
pub async fn crash(shop: &mut Shop, seed: u64, sagas: usize, listener: &Listener) -> Result<Seen> {
    let mut seen = Seen::default();
    shop.chaos(&SLOW, &json!({"slow_ms": 400})).await?;
    let mut all = orders::mix(seed, "crash", sagas, Flows::Saga, Cards::Mixed);
    all.extend(orders::mix(seed, "crash-events", sagas / 3, Flows::Choreography, Cards::Mixed));
    let at_once = all.len();
    let orders = begin(shop, all, at_once, listener);
    let api = shop.weft.api;
    let running = most(api, sagas).await?;
    shop.weft.kill().await?;
    listener.say(format!("Weft killed with SIGKILL while {running} sagas ran"));
    let killed = Instant::now();
    shop.weft.restart().await?;
    let away = killed.elapsed().as_millis();
    listener.say(format!("Weft is back and ready after {away} ms"));
    let placed = ended(orders).await;
    shop.chaos(&SLOW, &json!({})).await?;
    seen.placed = placed?;
    as_expected(&seen.placed)?;
    eventually("the end of every saga", Duration::from_secs(120), || async move {
        Ok((unended(api).await? == 0).then_some(()))
    })
    .await?;
    audited(shop, &seen.placed)?;
    seen.fact(format!("killed with {running} sagas running, ready again {away} ms later"));
    seen.fact(format!("{}, each as it had to; nobody charged twice, no stock lost", both(&seen.placed)));
    Ok(seen)
}

/// Waits for the moment when as many sagas run as will ever run at once; at least three in four of all.
async fn most(api: SocketAddr, sagas: usize) -> Result<usize> {
    const PATIENCE: Duration = Duration::from_secs(120);
    let begun = Instant::now();
    let mut most = 0;
    while begun.elapsed() < PATIENCE {
        let running = unended(api).await?;
        if running == sagas || (running < most && running >= sagas * 3 / 4) {
            return Ok(running);
        }
        most = most.max(running);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Err(format!("at most {most} of {sagas} sagas ran at once").into())
}

/// Sagas that have not ended.
async fn unended(api: SocketAddr) -> Result<usize> {
    let mut all = 0;
    for status in ["running", "compensating", "parked"] {
        let mut cursor = String::new();
        loop {
            let path = format!("/v1/sagas?limit=500&status={status}{cursor}");
            let listed = Request::get(api, &path).send().await?.expect(200)?.json();
            all += listed["items"].as_array().ok_or("the saga listing has no items")?.len();
            match listed["next"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => break,
            }
        }
    }
    Ok(all)
}
