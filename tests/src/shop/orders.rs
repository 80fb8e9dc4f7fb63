//! Orders as customers place them: a seeded mix, so that a run can be repeated.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};

/// A good card.
const GOOD: [&str; 3] = ["4242-4242-4242-4242", "5555-5555-5555-4444", "3782-8224-6310-005"];
/// Cards the payment service declines (its documentation lists them).
const DECLINED: [&str; 3] = ["4000-0000-0000-0002", "4000-0000-0000-9995", "4000-0000-0000-0069"];
/// Products there is plenty of.
const PLENTY: [&str; 7] = ["tea-assam", "tea-sencha", "pot-iron", "cup-blue", "cup-white", "kettle", "tray-oak"];
/// The product there are twelve of.
const SCARCE: &str = "lamp-brass";

/// Which of the two flows drives an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// The saga.
    Saga,
    /// Events.
    Choreography,
}

/// Which flows a mix uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Flows {
    /// Only the saga.
    Saga,
    /// Only events.
    Choreography,
    /// Two of three by the saga.
    #[default]
    Both,
}

/// Which cards a mix uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cards {
    /// Good ones only.
    Good,
    /// Declined ones only.
    Declined,
    /// As in life.
    #[default]
    Mixed,
}

/// How an order must end when nothing is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Confirmed, charged and shipped.
    Completed,
    /// Undone; nothing charged, nothing missing from stock.
    Compensated,
    /// Depends on what is left in stock.
    Either,
}

/// An order to be placed. Each has a customer of its own, so that the databases tell what became of it.
#[derive(Clone, Debug)]
pub struct Order {
    /// Whose.
    pub customer: String,
    /// Paid with.
    pub card: &'static str,
    /// Products and how many.
    pub items: Vec<(&'static str, u32)>,
    /// How it is driven.
    pub flow: Flow,
    /// Its Idempotency-Key.
    pub key: String,
    /// How it must end.
    pub expect: Expect,
}

impl Order {
    /// The body of the POST.
    pub fn body(&self) -> Value {
        let items: Vec<Value> = self.items.iter().map(|(sku, n)| json!({"sku": sku, "quantity": n})).collect();
        json!({"customer": self.customer, "card": self.card, "items": items})
    }

    /// Path and query of the POST.
    pub fn path(&self) -> &'static str {
        match self.flow {
            Flow::Saga => "/v1/orders",
            Flow::Choreography => "/v1/orders?flow=choreography",
        }
    }
}

/// `count` orders; the same arguments give the same orders. `tag` keeps the customers of two mixes apart.
pub fn mix(seed: u64, tag: &str, count: usize, flows: Flows, cards: Cards) -> Vec<Order> {
    let mut draws = StdRng::seed_from_u64(seed);
    (0..count).map(|n| order(&mut draws, seed, tag, n, flows, cards)).collect()
}

fn order(draws: &mut StdRng, seed: u64, tag: &str, n: usize, flows: Flows, cards: Cards) -> Order {
    // Every order takes the same draws, so that one order's kind does not move the next one.
    let [declined, nowhere, scarce] = [0.12, 0.05, 0.06].map(|share| draws.random_bool(share));
    let choreographed = draws.random_bool(1.0 / 3.0);
    let lines = draws.random_range(1..=3);
    let picks = [(); 3].map(|()| (draws.random_range(0..PLENTY.len()), draws.random_range(1..=3)));
    let card = draws.random_range(0..3);

    let declined = match cards {
        Cards::Good => false,
        Cards::Declined => true,
        Cards::Mixed => declined,
    };
    let (nowhere, scarce) = (nowhere && cards == Cards::Mixed, scarce && cards == Cards::Mixed);
    let flow = match flows {
        Flows::Saga => Flow::Saga,
        Flows::Choreography => Flow::Choreography,
        Flows::Both if choreographed => Flow::Choreography,
        Flows::Both => Flow::Saga,
    };
    let mut items: Vec<(&str, u32)> = Vec::new();
    for (pick, quantity) in &picks[..lines] {
        if !items.iter().any(|(sku, _)| *sku == PLENTY[*pick]) {
            items.push((PLENTY[*pick], *quantity));
        }
    }
    if scarce {
        items.push((SCARCE, 1));
    }
    let who = if nowhere { "nowhere" } else { "customer" };
    Order {
        customer: format!("{who}-{tag}-{seed}-{n:04}"),
        card: if declined { DECLINED[card] } else { GOOD[card] },
        items,
        flow,
        key: format!("{tag}-{seed}-{n:04}"),
        expect: match (declined || nowhere, scarce) {
            (true, _) => Expect::Compensated,
            (_, true) => Expect::Either,
            _ => Expect::Completed,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_makes_the_same_orders() {
        let text = |seed| format!("{:?}", mix(seed, "t", 100, Flows::Both, Cards::Mixed));
        assert_eq!(text(1), text(1));
        assert_ne!(text(1), text(2));
    }

    #[test]
    fn a_mix_holds_every_kind_of_order() {
        let orders = mix(3, "t", 300, Flows::Both, Cards::Mixed);
        for expect in [Expect::Completed, Expect::Compensated, Expect::Either] {
            assert!(orders.iter().any(|o| o.expect == expect), "{expect:?}");
        }
        for flow in [Flow::Saga, Flow::Choreography] {
            assert!(orders.iter().any(|o| o.flow == flow), "{flow:?}");
        }
    }
}
