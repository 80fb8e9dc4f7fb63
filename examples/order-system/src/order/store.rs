//! The order table.

use rusqlite::{OptionalExtension, Row, Transaction, params};
use serde::{Deserialize, Serialize};

use crate::catalogue;
use crate::fault::Fault;

/// The tables.
pub const SCHEMA: &str = "CREATE TABLE IF NOT EXISTS orders(
    id TEXT PRIMARY KEY,
    flow TEXT NOT NULL CHECK (flow IN ('orchestrated', 'choreographed')),
    customer TEXT NOT NULL,
    items TEXT NOT NULL,
    total_cents INTEGER NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('pending', 'confirmed', 'cancelled'))) STRICT;
CREATE INDEX IF NOT EXISTS orders_customer ON orders(customer);";

/// Items of one order.
const ITEMS: usize = 100;

/// An order.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Order {
    /// Its id.
    pub id: String,
    /// How it is driven.
    pub flow: String,
    /// Whose.
    pub customer: String,
    /// What.
    pub items: Vec<Item>,
    /// For how much.
    pub total_cents: i64,
    /// `pending`, `confirmed` or `cancelled`.
    pub status: String,
}

/// One line of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Item {
    /// Product.
    pub sku: String,
    /// How many.
    pub quantity: u32,
}

/// How an order is driven.
#[derive(Clone, Copy, Debug)]
pub enum Flow {
    /// By the saga.
    Orchestrated,
    /// By events.
    Choreographed,
}

/// Makes an order once. A repeat answers the row; one that was cancelled, even before it was made, is refused.
pub fn create(tx: &Transaction<'_>, id: &str, flow: Flow, customer: &str, items: &[Item]) -> Result<Order, Fault> {
    match find(tx, id)? {
        Some(order) if order.status == "cancelled" => {
            return Err(Fault::refused("order-cancelled", format!("order {id} was cancelled")));
        }
        Some(_) => {}
        None => return insert(tx, id, flow, customer, items),
    }
    repeated(tx, id, customer, items)?.ok_or_else(|| Fault::NotFound(format!("order {id}")))
}

/// The order that a repeated request made before, whatever became of it; the same id with other content is refused.
pub fn repeated(tx: &Transaction<'_>, id: &str, customer: &str, items: &[Item]) -> Result<Option<Order>, Fault> {
    match find(tx, id)? {
        Some(order) if order.customer == customer && order.items == items => Ok(Some(order)),
        Some(_) => Err(Fault::refused("key-reused", format!("order {id} exists with other content"))),
        None => Ok(None),
    }
}

fn insert(tx: &Transaction<'_>, id: &str, flow: Flow, customer: &str, items: &[Item]) -> Result<Order, Fault> {
    let total = total(items)?;
    if customer.is_empty() {
        return Err(Fault::Invalid("'customer' is empty".into()));
    }
    let flow = match flow {
        Flow::Orchestrated => "orchestrated",
        Flow::Choreographed => "choreographed",
    };
    let lines = serde_json::to_string(items).expect("items are JSON");
    tx.execute(
        "INSERT INTO orders(id, flow, customer, items, total_cents, status) VALUES (?1, ?2, ?3, ?4, ?5, 'pending')",
        params![id, flow, customer, lines, total],
    )?;
    find(tx, id)?.ok_or_else(|| Fault::NotFound(format!("order {id}")))
}

/// Confirms an order; a repeat changes nothing.
pub fn confirm(tx: &Transaction<'_>, id: &str) -> Result<Order, Fault> {
    let order = find(tx, id)?.ok_or_else(|| Fault::NotFound(format!("order {id}")))?;
    if order.status == "cancelled" {
        return Err(Fault::refused("order-cancelled", format!("order {id} was cancelled")));
    }
    tx.execute("UPDATE orders SET status = 'confirmed' WHERE id = ?1", [id])?;
    Ok(Order { status: "confirmed".into(), ..order })
}

/// Cancels an order and answers it if that changed something. An id never seen leaves a cancelled row without a customer,
/// which refuses a create that arrives late.
pub fn cancel(tx: &Transaction<'_>, id: &str) -> Result<Option<Order>, Fault> {
    match find(tx, id)? {
        Some(order) if order.status == "cancelled" => Ok(None),
        Some(order) => {
            tx.execute("UPDATE orders SET status = 'cancelled' WHERE id = ?1", [id])?;
            Ok(Some(Order { status: "cancelled".into(), ..order }))
        }
        None => {
            tx.execute(
                "INSERT INTO orders(id, flow, customer, items, total_cents, status)
                 VALUES (?1, 'orchestrated', '', '[]', 0, 'cancelled')",
                [id],
            )?;
            Ok(None)
        }
    }
}

/// The order of that id.
pub fn find(tx: &Transaction<'_>, id: &str) -> Result<Option<Order>, Fault> {
    let mut rows = tx.prepare_cached(&format!("{SELECT} WHERE id = ?1"))?;
    Ok(rows.query_row([id], read).optional()?)
}

/// The newest orders, of one customer or of all.
pub fn list(tx: &Transaction<'_>, customer: Option<&str>, limit: u32) -> Result<Vec<Order>, Fault> {
    let mut rows =
        tx.prepare_cached(&format!("{SELECT} WHERE ?1 IS NULL OR customer = ?1 ORDER BY rowid DESC LIMIT ?2"))?;
    let rows = rows.query_map(params![customer, limit], read)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

const SELECT: &str = "SELECT id, flow, customer, items, total_cents, status FROM orders";

fn read(row: &Row<'_>) -> rusqlite::Result<Order> {
    let items: String = row.get(3)?;
    let items = serde_json::from_str(&items)
        .map_err(|e| rusqlite::Error::FromSqlConversionFailure(3, rusqlite::types::Type::Text, Box::new(e)))?;
    Ok(Order {
        id: row.get(0)?,
        flow: row.get(1)?,
        customer: row.get(2)?,
        items,
        total_cents: row.get(4)?,
        status: row.get(5)?,
    })
}

fn total(items: &[Item]) -> Result<i64, Fault> {
    if items.is_empty() || items.len() > ITEMS {
        return Err(Fault::Invalid(format!("an order has 1 to {ITEMS} items, this one {}", items.len())));
    }
    let mut total = 0;
    for Item { sku, quantity } in items {
        let product = catalogue::find(sku).ok_or_else(|| Fault::Invalid(format!("there is no product '{sku}'")))?;
        if !(1..=1000).contains(quantity) {
            return Err(Fault::Invalid(format!("the quantity of {sku} is 1 to 1000, this is {quantity}")));
        }
        total += product.price_cents * i64::from(*quantity);
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::Db;

    fn cups(quantity: u32) -> Vec<Item> {
        vec![Item { sku: "cup-blue".into(), quantity }]
    }

    fn made(tx: &Transaction<'_>) -> Order {
        create(tx, "o1", Flow::Orchestrated, "ann", &cups(2)).unwrap()
    }

    #[test]
    fn a_repeated_create_answers_the_same_order() {
        let db = Db::memory(SCHEMA);
        let (first, second) = db.write_now(|tx| Ok((made(tx), made(tx)))).unwrap();
        assert_eq!(first, second);
        assert_eq!((first.total_cents, first.status.as_str()), (2_400, "pending"));
        assert_eq!(db.write_now(|tx| list(tx, None, 10)).unwrap().len(), 1);
    }

    #[test]
    fn the_same_id_with_other_content_is_refused() {
        let db = Db::memory(SCHEMA);
        db.write_now(|tx| Ok(made(tx))).unwrap();
        let other = db.write_now(|tx| create(tx, "o1", Flow::Orchestrated, "bob", &cups(2)));
        assert!(matches!(other, Err(Fault::Refused { code: "key-reused", .. })));
    }

    #[test]
    fn a_cancel_before_the_create_refuses_the_create() {
        let db = Db::memory(SCHEMA);
        assert_eq!(db.write_now(|tx| cancel(tx, "o1")).unwrap(), None);
        let late = db.write_now(|tx| create(tx, "o1", Flow::Orchestrated, "ann", &cups(2)));
        assert!(matches!(late, Err(Fault::Refused { code: "order-cancelled", .. })));
    }

    #[test]
    fn a_cancel_tells_once_and_refuses_a_later_confirm() {
        let db = Db::memory(SCHEMA);
        db.write_now(|tx| Ok(made(tx))).unwrap();
        assert_eq!(db.write_now(|tx| cancel(tx, "o1")).unwrap().unwrap().status, "cancelled");
        assert_eq!(db.write_now(|tx| cancel(tx, "o1")).unwrap(), None);
        assert!(db.write_now(|tx| confirm(tx, "o1")).is_err());
    }

    #[test]
    fn a_repeated_request_is_told_of_a_cancelled_order_and_never_of_another_one() {
        let db = Db::memory(SCHEMA);
        assert_eq!(db.write_now(|tx| repeated(tx, "o1", "ann", &cups(2))).unwrap(), None);
        db.write_now(|tx| Ok(made(tx))).unwrap();
        db.write_now(|tx| cancel(tx, "o1")).unwrap();
        let known = db.write_now(|tx| repeated(tx, "o1", "ann", &cups(2))).unwrap();
        assert_eq!(known.unwrap().status, "cancelled");
        assert!(db.write_now(|tx| repeated(tx, "o1", "ann", &cups(3))).is_err());
    }

    #[test]
    fn a_confirm_repeats_and_needs_an_order() {
        let db = Db::memory(SCHEMA);
        assert!(matches!(db.write_now(|tx| confirm(tx, "o1")), Err(Fault::NotFound(_))));
        db.write_now(|tx| Ok(made(tx))).unwrap();
        for _ in 0..2 {
            assert_eq!(db.write_now(|tx| confirm(tx, "o1")).unwrap().status, "confirmed");
        }
    }

    #[test]
    fn unknown_products_and_silly_quantities_are_refused() {
        let db = Db::memory(SCHEMA);
        for items in [vec![], cups(0), cups(1001), vec![Item { sku: "unicorn".into(), quantity: 1 }]] {
            let made = db.write_now(|tx| create(tx, "o1", Flow::Orchestrated, "ann", &items));
            assert!(matches!(made, Err(Fault::Invalid(_))), "{items:?}");
        }
    }
}
