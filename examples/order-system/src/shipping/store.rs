//! Shipments.

use rusqlite::{OptionalExtension, Transaction, params};
use serde::Serialize;

use crate::fault::Fault;

/// The table.
pub const SCHEMA: &str = "CREATE TABLE IF NOT EXISTS shipments(
    key TEXT PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    order_id TEXT NOT NULL,
    customer TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('scheduled', 'cancelled'))) STRICT;";

/// Customers whose name begins so live where no parcel goes.
pub const UNREACHABLE: &str = "nowhere";

/// A parcel.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Shipment {
    /// Its number.
    pub id: String,
    /// The key it was scheduled under.
    pub key: String,
    /// For which order.
    pub order: String,
    /// To whom.
    pub customer: String,
    /// `scheduled` or `cancelled`.
    pub state: String,
}

/// Schedules once; a repeat answers the same parcel. After a cancel, even one that came first, it is refused.
pub fn schedule(tx: &Transaction<'_>, key: &str, order: &str, customer: &str) -> Result<Shipment, Fault> {
    match find(tx, key)? {
        Some(shipment) if shipment.state == "scheduled" => return Ok(shipment),
        Some(_) => return Err(Fault::refused("cancelled", format!("the shipment {key} was cancelled"))),
        None => {}
    }
    if customer.starts_with(UNREACHABLE) {
        return Err(Fault::refused("undeliverable", format!("no parcel reaches {customer}")));
    }
    insert(tx, key, order, customer, "scheduled")
}

/// Cancels once. A key never seen is marked, so that a schedule that arrives late is refused.
pub fn cancel(tx: &Transaction<'_>, key: &str) -> Result<Shipment, Fault> {
    match find(tx, key)? {
        Some(shipment) => {
            tx.execute("UPDATE shipments SET state = 'cancelled' WHERE key = ?1", [key])?;
            Ok(Shipment { state: "cancelled".into(), ..shipment })
        }
        None => insert(tx, key, "", "", "cancelled"),
    }
}

/// The shipment of that key.
pub fn find(tx: &Transaction<'_>, key: &str) -> Result<Option<Shipment>, Fault> {
    let mut row = tx.prepare_cached("SELECT id, key, order_id, customer, state FROM shipments WHERE key = ?1")?;
    let found = row.query_row([key], |r| {
        Ok(Shipment { id: r.get(0)?, key: r.get(1)?, order: r.get(2)?, customer: r.get(3)?, state: r.get(4)? })
    });
    Ok(found.optional()?)
}

fn insert(tx: &Transaction<'_>, key: &str, order: &str, customer: &str, state: &str) -> Result<Shipment, Fault> {
    let number: i64 = tx.query_row("SELECT count(*) + 1 FROM shipments", [], |r| r.get(0))?;
    let shipment = Shipment {
        id: format!("P{number:07}"),
        key: key.into(),
        order: order.into(),
        customer: customer.into(),
        state: state.into(),
    };
    tx.execute(
        "INSERT INTO shipments(key, id, order_id, customer, state) VALUES (?1, ?2, ?3, ?4, ?5)",
        params![key, shipment.id, order, customer, state],
    )?;
    Ok(shipment)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::Db;

    #[test]
    fn a_repeated_schedule_answers_the_same_parcel() {
        let db = Db::memory(SCHEMA);
        let first = db.write_now(|tx| schedule(tx, "k", "o", "ann")).unwrap();
        assert_eq!(db.write_now(|tx| schedule(tx, "k", "o", "ann")).unwrap(), first);
        assert_ne!(db.write_now(|tx| schedule(tx, "l", "p", "ann")).unwrap().id, first.id);
    }

    #[test]
    fn a_cancel_before_the_schedule_refuses_it() {
        let db = Db::memory(SCHEMA);
        db.write_now(|tx| cancel(tx, "k")).unwrap();
        let late = db.write_now(|tx| schedule(tx, "k", "o", "ann"));
        assert!(matches!(late, Err(Fault::Refused { code: "cancelled", .. })));
    }

    #[test]
    fn a_cancelled_parcel_stays_cancelled() {
        let db = Db::memory(SCHEMA);
        db.write_now(|tx| schedule(tx, "k", "o", "ann")).unwrap();
        for _ in 0..2 {
            assert_eq!(db.write_now(|tx| cancel(tx, "k")).unwrap().state, "cancelled");
        }
        assert!(db.write_now(|tx| schedule(tx, "k", "o", "ann")).is_err());
    }

    #[test]
    fn nobody_brings_a_parcel_nowhere() {
        let db = Db::memory(SCHEMA);
        let refused = db.write_now(|tx| schedule(tx, "k", "o", "nowhere-1"));
        assert!(matches!(refused, Err(Fault::Refused { code: "undeliverable", .. })));
        assert_eq!(db.write_now(|tx| find(tx, "k")).unwrap(), None);
    }
}
