//! Payment dies for a while: its breaker opens, calls fail fast, it half-opens, it closes.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::{Listener, Seen, as_expected, audited, begin, both, ended, place_all};
use crate::shop::{Cards, Flows, Shop, eventually, orders};
use crate::{Request, Result};

const PATIENCE: Duration = Duration::from_secs(30);
/// Orders at once while payment is away.
const AT_ONCE: usize = 10;

/// Kills payment while orders come in, starts it again when its breaker has opened, and waits until it closed.
pub async fn outage(shop: &mut Shop, seed: u64, count: usize, listener: &Listener) -> Result<Seen> {
    let mut seen = Seen::default();
    let api = shop.weft.api;
    shop.service("payment")?.kill().await?;
    let killed = Instant::now();
    listener.say("payment killed with SIGKILL");
    let orders = orders::mix(seed, "outage", count, Flows::Saga, Cards::Good);
    let orders = begin(shop, orders, AT_ONCE, listener);
    let opened = eventually("an open breaker before payment", PATIENCE, || async move {
        let breaker = breaker(api).await?;
        Ok((breaker.state == "open" && breaker.refused > 0).then_some(breaker))
    })
    .await?;
    listener.say(format!("its breaker is open after {} ms: calls fail fast", killed.elapsed().as_millis()));
    shop.service("payment")?.restart().await?;
    let back = Instant::now();
    listener.say("payment is back");
    // Trials need calls to be tried on.
    let trials = orders::mix(seed, "trial", 40, Flows::Saga, Cards::Good);
    let trials = begin(shop, trials, 2, listener);
    let closed = eventually("a closed breaker before payment", PATIENCE, || async move {
        let breaker = breaker(api).await?;
        Ok((breaker.state == "closed").then_some(breaker))
    })
    .await?;
    listener.say(format!("half-open, then closed {} ms after payment came back", back.elapsed().as_millis()));
    let _ = (opened, closed);
    seen.placed = ended(orders).await?;
    seen.placed.extend(ended(trials).await?);
    audited(shop, &seen.placed)?;
    seen.fact(format!("{} while payment was away and came back", both(&seen.placed)));
    let after = place_all(shop, orders::mix(seed, "after", 10, Flows::Saga, Cards::Good), listener).await?;
    as_expected(&after)?;
    audited(shop, &after)?;
    seen.placed.extend(after);
    seen.fact("every order after that completed");
    Ok(seen)
}

struct Breaker {
    state: String,
    refused: u64,
}

async fn breaker(api: SocketAddr) -> Result<Breaker> {
    let service = Request::get(api, "/v1/services/payment").send().await?.expect(200)?.json();
    let breaker = &service["breaker"];
    let state = breaker["state"].as_str().ok_or_else(|| format!("payment shows no breaker: {service}"))?.to_owned();
    Ok(Breaker { state, refused: breaker["refused"].as_u64().unwrap_or_default() })
}
