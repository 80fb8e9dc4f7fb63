//! The same POST twice: the second is answered from the store.

use super::{Listener, Seen, as_expected, audited, counter};
use crate::shop::place::post;
use crate::shop::{Cards, Expect, Flow, Flows, Order, Shop, orders, place};
use crate::{Request, Result};

/// Repeats orders of both flows with their Idempotency-Key, then one key with another body.
pub async fn replay(shop: &mut Shop, seed: u64, listener: &Listener) -> Result<Seen> {
    let mut seen = Seen::default();
    let counter = counter(shop);
    for flows in [Flows::Saga, Flows::Choreography] {
        let tag = format!("replay-{flows:?}").to_lowercase();
        for order in orders::mix(seed, &tag, 5, flows, Cards::Good) {
            debug_assert_eq!(order.expect, Expect::Completed);
            let first = post(counter, &order).await?;
            let again = post(counter, &order).await?;
            let same = (first.status, &first.body, first.header("location"))
                == (again.status, &again.body, again.header("location"));
            if !same {
                let texts = (first.status, first.text(), again.status, again.text());
                return Err(format!("{}: the repeat was answered otherwise: {texts:?}", order.key).into());
            }
            seen.placed.push(place::place(counter, &order).await?);
        }
    }
    // A repeat that comes while the first still runs never runs beside it.
    let order = orders::mix(seed, "replay-burst", 1, Flows::Saga, Cards::Good).remove(0);
    let burst = (0..8).map(|_| place::place(counter, &order));
    let burst = futures_util::future::join_all(burst).await.into_iter().collect::<Result<Vec<_>>>()?;
    if burst.iter().any(|p| p.id != burst[0].id) {
        return Err("eight requests with one key made different orders".into());
    }
    seen.placed.extend(burst.into_iter().next());

    let other = Order { items: vec![("kettle", 1), ("tray-oak", 2)], flow: Flow::Saga, ..seen.placed[0].order.clone() };
    let answer = Request::post(counter.gateway, other.path()).header("idempotency-key", &other.key);
    answer.json(&other.body()).send().await?.expect(422)?;
    let keyless = Request::post(counter.gateway, other.path()).json(&other.body()).send().await?;
    keyless.expect(400)?;

    listener.say("every order posted twice with its Idempotency-Key, one eight times at once");
    as_expected(&seen.placed)?;
    audited(shop, &seen.placed)?;
    seen.fact("a repeated POST got the first answer, byte for byte, and no second order");
    seen.fact("the same key with another body was refused with 422, no key at all with 400");
    Ok(seen)
}
