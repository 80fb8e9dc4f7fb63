//! Declined cards: the saga undoes what it did, and the stock comes back.

use super::{Listener, Seen, as_expected, audited, place_all};
use crate::Result;
use crate::shop::{Cards, Flows, Shop, audit, orders};

/// Places `count` orders that cannot be paid, by both flows.
pub async fn declined(shop: &mut Shop, seed: u64, count: usize, listener: &Listener) -> Result<Seen> {
    let mut seen = Seen::default();
    let before = stock(shop)?;
    seen.placed = place_all(shop, orders::mix(seed, "declined", count, Flows::Both, Cards::Declined), listener).await?;
    as_expected(&seen.placed)?;
    audited(shop, &seen.placed)?;
    let after = stock(shop)?;
    if before != after {
        return Err(format!("stock was {before:?} and is {after:?}").into());
    }
    seen.fact(format!("{count} declined cards: all undone, nothing charged, stock of all products as before"));
    Ok(seen)
}

fn stock(shop: &Shop) -> Result<Vec<(String, i64)>> {
    let db = audit::open(&shop.dir, "inventory")?;
    let mut rows = db.prepare("SELECT sku, on_hand FROM stock ORDER BY sku")?;
    let rows = rows.query_map([], |r| Ok((r.get(0)?, r.get(1)?)))?;
    Ok(rows.collect::<std::result::Result<_, _>>()?)
}
