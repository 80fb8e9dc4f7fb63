//! Payments by key, and the ledger: every movement of money as it happened, which is what an auditor reads.

use rusqlite::{OptionalExtension, Transaction, params};

use crate::fault::Fault;

/// The tables. The ledger has no constraint against a second charge on purpose: if the code ever charged twice, it would
/// show.
pub const SCHEMA: &str = "CREATE TABLE IF NOT EXISTS payments(
    key TEXT PRIMARY KEY,
    customer TEXT NOT NULL,
    card_end TEXT NOT NULL,
    amount_cents INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('charged', 'declined', 'refunded', 'voided')),
    reason TEXT) STRICT;
CREATE TABLE IF NOT EXISTS ledger(
    seq INTEGER PRIMARY KEY,
    key TEXT NOT NULL,
    customer TEXT NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('charge', 'refund')),
    amount_cents INTEGER NOT NULL CHECK (amount_cents > 0)) STRICT;";

/// Test cards that are declined, and why. Every other card of 12 to 19 digits is good.
pub const DECLINED: [(&str, &str); 3] = [
    ("4000000000000002", "card declined"),
    ("4000000000009995", "insufficient funds"),
    ("4000000000000069", "card expired"),
];

/// A charge asked for.
#[derive(Clone, Debug)]
pub struct Charge {
    /// Which payment.
    pub key: String,
    /// Whose.
    pub customer: String,
    /// From which card; spaces and dashes do not count.
    pub card: String,
    /// How much.
    pub amount_cents: i64,
}

/// What became of a payment.
#[derive(Clone, Debug, PartialEq)]
pub struct Receipt {
    /// Which payment.
    pub key: String,
    /// `charged`, `declined`, `refunded` or `voided`.
    pub state: String,
    /// How much.
    pub amount_cents: i64,
    /// Why the card was declined.
    pub declined: Option<String>,
}

/// Charges once. A repeat answers the first receipt, a declined one too; a payment that was refunded or voided is refused.
pub fn charge(tx: &Transaction<'_>, charge: &Charge) -> Result<Receipt, Fault> {
    let Charge { key, customer, card, amount_cents } = charge;
    let card: String = card.chars().filter(|c| !matches!(c, ' ' | '-')).collect();
    if !(12..=19).contains(&card.len()) || !card.bytes().all(|b| b.is_ascii_digit()) {
        return Err(Fault::Invalid("'card' is not a card number".into()));
    }
    if *amount_cents <= 0 {
        return Err(Fault::Invalid(format!("'amount_cents' is {amount_cents}")));
    }
    let end = &card[card.len() - 4..];
    if let Some((receipt, whose)) = find(tx, key)? {
        if matches!(receipt.state.as_str(), "refunded" | "voided") {
            return Err(Fault::refused("refunded", format!("the payment {key} was {}", receipt.state)));
        }
        if receipt.amount_cents != *amount_cents || whose != (customer.clone(), end.to_owned()) {
            return Err(Fault::refused("key-reused", format!("the payment {key} exists with other content")));
        }
        return Ok(receipt);
    }
    let declined = DECLINED.iter().find(|(number, _)| *number == card).map(|(_, reason)| *reason);
    let state = if declined.is_some() { "declined" } else { "charged" };
    note(tx, key, customer, end, *amount_cents, state, declined)?;
    if declined.is_none() {
        move_money(tx, key, customer, "charge", *amount_cents)?;
    }
    Ok(Receipt {
        key: key.clone(),
        state: state.into(),
        amount_cents: *amount_cents,
        declined: declined.map(str::to_owned),
    })
}

/// Refunds once. A payment never seen is voided, so that a charge that arrives late is refused.
pub fn refund(tx: &Transaction<'_>, key: &str) -> Result<Receipt, Fault> {
    match find(tx, key)? {
        Some((receipt, (customer, _))) if receipt.state == "charged" => {
            tx.execute("UPDATE payments SET state = 'refunded' WHERE key = ?1", [key])?;
            move_money(tx, key, &customer, "refund", receipt.amount_cents)?;
            Ok(Receipt { state: "refunded".into(), ..receipt })
        }
        Some((receipt, _)) if receipt.state == "declined" => {
            // Nothing to give back; but from now on the key is closed.
            tx.execute("UPDATE payments SET state = 'voided' WHERE key = ?1", [key])?;
            Ok(Receipt { state: "voided".into(), ..receipt })
        }
        Some((receipt, _)) => Ok(receipt),
        None => {
            note(tx, key, "", "", 0, "voided", None)?;
            Ok(Receipt { key: key.to_owned(), state: "voided".into(), amount_cents: 0, declined: None })
        }
    }
}

/// Customer and end of the card number.
type Whose = (String, String);

/// The receipt of that key, and whose it is.
fn find(tx: &Transaction<'_>, key: &str) -> Result<Option<(Receipt, Whose)>, Fault> {
    let mut row =
        tx.prepare_cached("SELECT state, amount_cents, reason, customer, card_end FROM payments WHERE key = ?1")?;
    let found = row.query_row([key], |r| {
        let receipt = Receipt { key: key.to_owned(), state: r.get(0)?, amount_cents: r.get(1)?, declined: r.get(2)? };
        Ok((receipt, (r.get(3)?, r.get(4)?)))
    });
    Ok(found.optional()?)
}

fn note(
    tx: &Transaction<'_>,
    key: &str,
    customer: &str,
    card_end: &str,
    amount_cents: i64,
    state: &str,
    reason: Option<&str>,
) -> Result<(), Fault> {
    tx.execute(
        "INSERT INTO payments(key, customer, card_end, amount_cents, state, reason) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        params![key, customer, card_end, amount_cents, state, reason],
    )?;
    Ok(())
}

fn move_money(tx: &Transaction<'_>, key: &str, customer: &str, kind: &str, amount_cents: i64) -> Result<(), Fault> {
    tx.execute(
        "INSERT INTO ledger(key, customer, kind, amount_cents) VALUES (?1, ?2, ?3, ?4)",
        params![key, customer, kind, amount_cents],
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::Db;

    fn of(card: &str) -> Charge {
        Charge { key: "k".into(), customer: "ann".into(), card: card.into(), amount_cents: 500 }
    }

    const GOOD: &str = "4242-4242-4242-4242";

    fn ledger(db: &Db) -> Vec<String> {
        db.write_now(|tx| {
            let mut rows = tx.prepare("SELECT kind FROM ledger ORDER BY seq")?;
            Ok(rows.query_map([], |r| r.get(0))?.collect::<Result<_, _>>()?)
        })
        .unwrap()
    }

    #[test]
    fn a_repeated_charge_moves_money_once() {
        let db = Db::memory(SCHEMA);
        let first = db.write_now(|tx| charge(tx, &of(GOOD))).unwrap();
        let second = db.write_now(|tx| charge(tx, &of("4242 4242 4242 4242"))).unwrap();
        assert_eq!(first, second);
        assert_eq!((first.state.as_str(), ledger(&db)), ("charged", vec!["charge".to_owned()]));
    }

    #[test]
    fn a_repeated_refund_moves_money_back_once() {
        let db = Db::memory(SCHEMA);
        db.write_now(|tx| charge(tx, &of(GOOD))).unwrap();
        for _ in 0..3 {
            assert_eq!(db.write_now(|tx| refund(tx, "k")).unwrap().state, "refunded");
        }
        assert_eq!(ledger(&db), ["charge", "refund"]);
    }

    #[test]
    fn a_refund_before_its_charge_refuses_the_charge() {
        let db = Db::memory(SCHEMA);
        assert_eq!(db.write_now(|tx| refund(tx, "k")).unwrap().state, "voided");
        let late = db.write_now(|tx| charge(tx, &of(GOOD)));
        assert!(matches!(late, Err(Fault::Refused { code: "refunded", .. })));
        assert!(ledger(&db).is_empty());
    }

    #[test]
    fn a_charge_after_the_refund_is_refused() {
        let db = Db::memory(SCHEMA);
        db.write_now(|tx| charge(tx, &of(GOOD))).unwrap();
        db.write_now(|tx| refund(tx, "k")).unwrap();
        assert!(db.write_now(|tx| charge(tx, &of(GOOD))).is_err());
        assert_eq!(ledger(&db), ["charge", "refund"]);
    }

    #[test]
    fn declined_cards_stay_declined_and_move_nothing() {
        for (card, reason) in DECLINED {
            let db = Db::memory(SCHEMA);
            for _ in 0..2 {
                let receipt = db.write_now(|tx| charge(tx, &of(card))).unwrap();
                assert_eq!(receipt.declined.as_deref(), Some(reason));
            }
            assert_eq!(db.write_now(|tx| refund(tx, "k")).unwrap().state, "voided");
            assert!(ledger(&db).is_empty());
        }
    }

    #[test]
    fn the_same_key_for_another_amount_or_customer_is_refused() {
        let db = Db::memory(SCHEMA);
        db.write_now(|tx| charge(tx, &of(GOOD))).unwrap();
        for other in [Charge { amount_cents: 501, ..of(GOOD) }, Charge { customer: "bob".into(), ..of(GOOD) }] {
            let refused = db.write_now(|tx| charge(tx, &other));
            assert!(matches!(refused, Err(Fault::Refused { code: "key-reused", .. })));
        }
    }

    #[test]
    fn nonsense_is_invalid() {
        let db = Db::memory(SCHEMA);
        for wrong in [of("hello"), of(""), Charge { amount_cents: 0, ..of(GOOD) }] {
            assert!(matches!(db.write_now(|tx| charge(tx, &wrong)), Err(Fault::Invalid(_))));
        }
    }
}
