//! Payment dies for a while: its breaker opens, calls fail fast, it half-opens, it closes.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::{Listener, Seen, as_expected, audited, begin, both, ended, place_all};
use crate::shop::{Cards, Flows, Shop, eventually, orders};
use crate::{Request, Result};

const PATIENCE: Duration = Duration::from_secs(120);
/// Orders at once while payment is away.
const AT_ONCE: usize = 16;
/// The policy whose breaker is watched, as metrics name it.
const CHARGE: &str = "step place-order/charge";

/// Kills payment while orders come in, starts it again when its breaker has opened, and waits until it closed.
pub async fn outage(shop: &mut Shop, seed: u64, count: usize, listener: &Listener) -> Result<Seen> {
    let mut seen = Seen::default();
    let api = shop.weft.api;
    let before = Breaker::read(api).await?;
    shop.service("payment")?.kill().await?;
    let killed = Instant::now();
    listener.say("payment killed with SIGKILL");
    let orders = begin(shop, orders::mix(seed, "outage", count, Flows::Saga, Cards::Good), AT_ONCE, listener);
    let open = eventually("an open breaker that fails calls fast", PATIENCE, || async move {
        let now = Breaker::read(api).await?;
        Ok((now.state == State::Open && now.refused > before.refused).then_some(now))
    })
    .await?;
    let refused = open.refused - before.refused;
    listener.say(format!("breaker open after {} ms, {refused} calls failed fast", killed.elapsed().as_millis()));

    shop.service("payment")?.restart().await?;
    let back = Instant::now();
    listener.say("payment is back");
    let mut tried = false;
    while Breaker::read(api).await?.state != State::Closed {
        tried |= Breaker::read(api).await?.state == State::HalfOpen;
        if back.elapsed() > PATIENCE {
            return Err(format!("the breaker did not close in {PATIENCE:?} after payment came back").into());
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let passed = if tried { "half-open, then closed" } else { "closed after its trials" };
    let closed = format!("{passed} {} ms after payment came back", back.elapsed().as_millis());
    listener.say(&closed);
    seen.placed = ended(orders).await?;
    as_expected(&seen.placed)?;
    audited(shop, &seen.placed)?;
    let opened = Breaker::read(api).await?.opened - before.opened;
    seen.fact(format!("breaker opened {opened} times, {refused} calls failed fast, {closed}"));
    seen.fact(format!("{} while payment was away", both(&seen.placed)));
    let after = place_all(shop, orders::mix(seed, "after", 10, Flows::Saga, Cards::Good), listener).await?;
    as_expected(&after)?;
    audited(shop, &after)?;
    seen.placed.extend(after);
    Ok(seen)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Closed,
    HalfOpen,
    Open,
}

#[derive(Clone, Copy, Debug)]
struct Breaker {
    state: State,
    opened: u64,
    refused: u64,
}

impl Breaker {
    async fn read(api: SocketAddr) -> Result<Self> {
        let text = Request::get(api, "/metrics").send().await?.expect(200)?.text();
        let value = |name: &str, more: &str| -> Result<f64> {
            let series = format!("{name}{{policy=\"{CHARGE}\"{more}}} ");
            let line = text.lines().find_map(|l| l.strip_prefix(&series));
            Ok(line.ok_or_else(|| format!("there is no {series}in the metrics"))?.parse()?)
        };
        let state = match value("weft_breaker_state", "")? {
            0.0 => State::Closed,
            1.0 => State::HalfOpen,
            _ => State::Open,
        };
        let opened = value("weft_breaker_opened_total", "")? as u64;
        let refused = value("weft_policy_refused_total", ",reason=\"breaker-open\"")? as u64;
        Ok(Self { state, opened, refused })
    }
}
