//! Stock and reservations.

use rusqlite::{OptionalExtension, Transaction, params};

use crate::catalogue;
use crate::fault::Fault;

/// The tables. The CHECK is what keeps stock from going below zero, whatever the code above it does.
pub const SCHEMA: &str = "CREATE TABLE IF NOT EXISTS stock(
    sku TEXT PRIMARY KEY,
    initial INTEGER NOT NULL,
    on_hand INTEGER NOT NULL CHECK (on_hand >= 0)) STRICT;
CREATE TABLE IF NOT EXISTS reservations(
    key TEXT PRIMARY KEY,
    state TEXT NOT NULL CHECK (state IN ('reserved', 'released'))) STRICT;
CREATE TABLE IF NOT EXISTS reserved_items(
    key TEXT NOT NULL REFERENCES reservations(key),
    sku TEXT NOT NULL REFERENCES stock(sku),
    quantity INTEGER NOT NULL CHECK (quantity > 0)) STRICT;
CREATE INDEX IF NOT EXISTS reserved_items_key ON reserved_items(key);
CREATE INDEX IF NOT EXISTS reserved_items_sku ON reserved_items(sku);";

/// Puts the catalogue's stock into a new database.
pub fn fill(tx: &Transaction<'_>) -> Result<(), Fault> {
    for p in &catalogue::PRODUCTS {
        tx.execute("INSERT OR IGNORE INTO stock(sku, initial, on_hand) VALUES (?1, ?2, ?2)", params![p.sku, p.stock])?;
    }
    Ok(())
}

/// Takes items out of stock under a key, all or none, once.
pub fn reserve(tx: &Transaction<'_>, key: &str, items: &[(String, u32)]) -> Result<&'static str, Fault> {
    match state(tx, key)?.as_deref() {
        Some("reserved") => return Ok("reserved"),
        Some(_) => return Err(Fault::refused("released", format!("the reservation {key} was released"))),
        None => {}
    }
    if items.is_empty() {
        return Err(Fault::Invalid("there are no items to reserve".into()));
    }
    // Asked before anything is changed, so that a refusal leaves nothing behind even inside a larger transaction.
    for (sku, quantity) in items {
        if *quantity == 0 {
            return Err(Fault::Invalid(format!("the quantity of {sku} is zero")));
        }
        let wanted: u64 = items.iter().filter(|(s, _)| s == sku).map(|(_, q)| u64::from(*q)).sum();
        let (on_hand, _) = level(tx, sku)?;
        if wanted > u64::from(on_hand) {
            return Err(Fault::refused("out-of-stock", format!("{wanted} of {sku} wanted, {on_hand} in stock")));
        }
    }
    tx.execute("INSERT INTO reservations(key, state) VALUES (?1, 'reserved')", [key])?;
    for (sku, quantity) in items {
        tx.execute("UPDATE stock SET on_hand = on_hand - ?2 WHERE sku = ?1", params![sku, quantity])?;
        tx.execute("INSERT INTO reserved_items(key, sku, quantity) VALUES (?1, ?2, ?3)", params![key, sku, quantity])?;
    }
    Ok("reserved")
}

/// Puts a reservation's items back, once. An unknown key is marked, so that a late reserve is refused.
pub fn release(tx: &Transaction<'_>, key: &str) -> Result<&'static str, Fault> {
    match state(tx, key)?.as_deref() {
        Some("reserved") => {
            tx.execute(
                "UPDATE stock SET on_hand = on_hand +
                   (SELECT sum(quantity) FROM reserved_items i WHERE i.key = ?1 AND i.sku = stock.sku)
                 WHERE sku IN (SELECT sku FROM reserved_items WHERE key = ?1)",
                [key],
            )?;
            tx.execute("UPDATE reservations SET state = 'released' WHERE key = ?1", [key])?;
        }
        Some(_) => {}
        None => {
            tx.execute("INSERT INTO reservations(key, state) VALUES (?1, 'released')", [key])?;
        }
    }
    Ok("released")
}

/// How many of a product are in stock, and how many are reserved.
pub fn level(tx: &Transaction<'_>, sku: &str) -> Result<(u32, u32), Fault> {
    let mut row = tx.prepare_cached(
        "SELECT on_hand, (SELECT coalesce(sum(quantity), 0) FROM reserved_items i JOIN reservations r ON r.key = i.key
           WHERE i.sku = stock.sku AND r.state = 'reserved') FROM stock WHERE sku = ?1",
    )?;
    row.query_row([sku], |r| Ok((r.get(0)?, r.get(1)?)))
        .optional()?
        .ok_or_else(|| Fault::NotFound(format!("product '{sku}'")))
}

fn state(tx: &Transaction<'_>, key: &str) -> Result<Option<String>, Fault> {
    Ok(tx.query_row("SELECT state FROM reservations WHERE key = ?1", [key], |r| r.get(0)).optional()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::Db;

    fn db() -> Db {
        let db = Db::memory(SCHEMA);
        db.write_now(fill).unwrap();
        db
    }

    fn lamps(quantity: u32) -> Vec<(String, u32)> {
        vec![("lamp-brass".into(), quantity)]
    }

    fn lamp(db: &Db) -> (u32, u32) {
        db.write_now(|tx| level(tx, "lamp-brass")).unwrap()
    }

    #[test]
    fn a_repeated_reservation_takes_the_items_once() {
        let db = db();
        for _ in 0..3 {
            assert_eq!(db.write_now(|tx| reserve(tx, "k", &lamps(5))).unwrap(), "reserved");
        }
        assert_eq!(lamp(&db), (7, 5));
    }

    #[test]
    fn a_repeated_release_puts_the_items_back_once() {
        let db = db();
        db.write_now(|tx| reserve(tx, "k", &[lamps(2), lamps(3)].concat())).unwrap();
        for _ in 0..3 {
            assert_eq!(db.write_now(|tx| release(tx, "k")).unwrap(), "released");
        }
        assert_eq!(lamp(&db), (12, 0));
    }

    #[test]
    fn a_release_before_its_reserve_refuses_the_reserve() {
        let db = db();
        db.write_now(|tx| release(tx, "k")).unwrap();
        let late = db.write_now(|tx| reserve(tx, "k", &lamps(1)));
        assert!(matches!(late, Err(Fault::Refused { code: "released", .. })));
        assert_eq!(lamp(&db), (12, 0));
    }

    #[test]
    fn a_reserve_after_the_release_takes_nothing() {
        let db = db();
        db.write_now(|tx| reserve(tx, "k", &lamps(1))).unwrap();
        db.write_now(|tx| release(tx, "k")).unwrap();
        assert!(db.write_now(|tx| reserve(tx, "k", &lamps(1))).is_err());
        assert_eq!(lamp(&db), (12, 0));
    }

    #[test]
    fn a_short_item_refuses_the_whole_reservation() {
        let db = db();
        let mut items = vec![("cup-blue".to_owned(), 3)];
        items.extend(lamps(13));
        let short = db.write_now(|tx| {
            let refused = reserve(tx, "k", &items);
            // Committed all the same, as a consumer does that tells of the refusal.
            Ok(matches!(refused, Err(Fault::Refused { code: "out-of-stock", .. })))
        });
        assert!(short.unwrap());
        assert_eq!(db.write_now(|tx| level(tx, "cup-blue")).unwrap(), (20_000, 0));
        assert_eq!(lamp(&db), (12, 0));
        // Nothing was noted under the key: with fewer lamps the same key may succeed.
        assert!(db.write_now(|tx| reserve(tx, "k", &lamps(12))).is_ok());
    }

    #[test]
    fn two_lines_of_one_product_count_together() {
        let db = db();
        assert!(db.write_now(|tx| reserve(tx, "k", &[lamps(7), lamps(7)].concat())).is_err());
        assert_eq!(lamp(&db), (12, 0));
    }

    #[test]
    fn the_database_itself_refuses_stock_below_zero() {
        let db = db();
        let forced = db.write_now(|tx| Ok(tx.execute("UPDATE stock SET on_hand = -1", [])?));
        assert!(matches!(forced, Err(Fault::Database(_))));
    }

    #[test]
    fn an_unknown_product_is_not_found() {
        let unknown = db().write_now(|tx| reserve(tx, "k", &[("unicorn".into(), 1)]));
        assert!(matches!(unknown, Err(Fault::NotFound(_))));
    }
}
