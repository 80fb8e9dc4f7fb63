//! A normal day: every order ends as it should, and every customer is written to once.

use std::time::Duration;

use super::{Listener, Seen, as_expected, audited, both, place_all};
use crate::Result;
use crate::shop::{Cards, Flows, Shop, audit, eventually, orders};

/// E-mails follow the orders within this.
const LETTERS: Duration = Duration::from_secs(120);

/// Places `count` orders of both kinds and all cards.
pub async fn calm(shop: &mut Shop, seed: u64, count: usize, flows: Flows, listener: &Listener) -> Result<Seen> {
    let placed = place_all(shop, orders::mix(seed, "calm", count, flows, Cards::Mixed), listener).await?;
    let mut seen = Seen { placed, ..Seen::default() };
    as_expected(&seen.placed)?;
    let audit = audited(shop, &seen.placed)?;
    seen.fact(format!("{}, each as its card, address and stock require", both(&seen.placed)));
    seen.fact(format!("{} charges, {} refunds; stock, money and parcels add up", audit.charges, audit.refunds));
    letters(shop).await?;
    audited(shop, &seen.placed)?;
    seen.fact("every customer was written to exactly once");
    Ok(seen)
}

/// Waits until every ended order's customer was written to.
async fn letters(shop: &Shop) -> Result<()> {
    let dir = shop.dir.clone();
    eventually("an e-mail for every ended order", LETTERS, || {
        let missing = audit::unwritten(&dir);
        async move { Ok((missing? == 0).then_some(())) }
    })
    .await
}
