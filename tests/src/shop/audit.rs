//! The audit: what the services' own databases say about the orders placed, without asking Weft.

use std::collections::BTreeMap;
use std::path::Path;

use rusqlite::{Connection, OpenFlags};

use super::{Outcome, Placed};
use crate::Result;

/// What the databases hold, and every promise they show to be broken.
#[derive(Clone, Debug, Default)]
pub struct Audit {
    /// Broken promises, in words; empty is what we want.
    pub broken: Vec<String>,
    /// Confirmed orders.
    pub confirmed: u64,
    /// Cancelled orders.
    pub cancelled: u64,
    /// Charges ever made.
    pub charges: u64,
    /// Refunds ever made.
    pub refunds: u64,
    /// Money kept.
    pub revenue_cents: i64,
    /// Items of confirmed orders that left the stock.
    pub items_sold: u64,
    /// Parcels scheduled and not cancelled.
    pub shipments: u64,
    /// E-mails written.
    pub emails: u64,
}

struct Row {
    id: String,
    status: String,
    total: i64,
    items: String,
}

/// Opens one service's database to read.
pub fn open(dir: &Path, service: &str) -> Result<Connection> {
    let file = dir.join(format!("{service}.db"));
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(&file, flags).map_err(|e| format!("{}: {e}", file.display()))?;
    db.busy_timeout(std::time::Duration::from_secs(5))?;
    Ok(db)
}

/// Checks every order placed, and that stock, money and parcels add up over all orders there are.
pub fn audit(dir: &Path, placed: &[Placed]) -> Result<Audit> {
    let [orders, inventory, payment, shipping, notification] =
        ["order", "inventory", "payment", "shipping", "notification"].map(|name| open(dir, name));
    let (orders, inventory, payment) = (orders?, inventory?, payment?);
    let (shipping, notification) = (shipping?, notification?);
    let mut found = Audit::default();

    let by_customer = rows_by_customer(&orders)?;
    let ledger = ledger(&payment)?;
    let reservations = reservations(&inventory)?;
    let parcels = pairs(&shipping, "SELECT key, state FROM shipments")?;
    for order in placed {
        check(order, &by_customer, &ledger, &reservations, &parcels, &mut found.broken);
    }

    // Over everything, placed by us or not: no order hangs, and nothing is held for an order that did not complete.
    let mut confirmed = BTreeMap::new();
    for row in by_customer.values().flatten() {
        match row.status.as_str() {
            "confirmed" => {
                found.confirmed += 1;
                confirmed.insert(row.id.as_str(), row.total);
            }
            "cancelled" => found.cancelled += 1,
            other => found.broken.push(format!("order {} is {other}", row.id)),
        }
    }
    for (key, (state, items)) in &reservations {
        if state == "reserved" {
            found.items_sold += items.iter().map(|(_, n)| u64::from(*n)).sum::<u64>();
            if !confirmed.contains_key(key.as_str()) {
                found.broken.push(format!("stock is held for {key}, which is not confirmed"));
            }
        }
    }
    for (key, entries) in &ledger {
        found.charges += entries.charges;
        found.refunds += entries.refunds;
        found.revenue_cents += entries.balance;
        if entries.charges > 1 {
            found.broken.push(format!("{key} was charged {} times", entries.charges));
        }
        let due = confirmed.get(key.as_str()).copied().unwrap_or(0);
        if entries.balance != due {
            found.broken.push(format!("{key} paid {} cents and owes {due}", entries.balance));
        }
    }
    for id in confirmed.keys().filter(|id| !ledger.contains_key(**id)) {
        found.broken.push(format!("order {id} is confirmed and was never charged"));
    }
    for (key, state) in &parcels {
        if state == "scheduled" {
            found.shipments += 1;
            if !confirmed.contains_key(key.as_str()) {
                found.broken.push(format!("a parcel goes out for {key}, which is not confirmed"));
            }
        }
    }
    found.broken.extend(stock(&inventory)?);
    found.emails = notification.query_row("SELECT count(*) FROM emails", [], |r| r.get::<_, u32>(0))?.into();
    let twice = "SELECT recipient, CAST(count(*) AS TEXT) FROM emails WHERE subject LIKE 'Your order%'
        GROUP BY recipient HAVING count(*) > 1";
    for (recipient, count) in pairs(&notification, twice)? {
        found.broken.push(format!("{recipient} was told {count} times how the order ended"));
    }
    Ok(found)
}

/// How many ended orders' customers have not been written to yet: e-mails follow their order a moment later.
pub fn unwritten(dir: &Path) -> Result<u64> {
    let orders = open(dir, "order")?;
    let notification = open(dir, "notification")?;
    let written = pairs(&notification, "SELECT recipient, subject FROM emails WHERE queued = 1")?;
    let ended = pairs(&orders, "SELECT customer, status FROM orders WHERE status <> 'pending' AND customer <> ''")?;
    Ok(ended.keys().filter(|c| !written.contains_key(&format!("{c}@customers.example"))).count() as u64)
}

/// What each service did, in words, by its own database.
pub fn work(dir: &Path) -> Result<Vec<(&'static str, String)>> {
    let ask =
        |service: &str, sql: &str| -> Result<String> { Ok(open(dir, service)?.query_row(sql, [], |r| r.get(0))?) };
    let mut all = Vec::new();
    for (service, sql) in [
        (
            "order",
            "SELECT count(*) FILTER (WHERE status = 'confirmed') || ' orders confirmed, '
               || count(*) FILTER (WHERE status = 'cancelled') || ' cancelled' FROM orders",
        ),
        (
            "inventory",
            "SELECT (SELECT count(*) FROM reservations WHERE state = 'reserved') || ' reservations hold, '
               || (SELECT count(*) FROM reservations WHERE state = 'released') || ' were released, '
               || (SELECT sum(initial - on_hand) FROM stock) || ' items left the stock'",
        ),
        (
            "payment",
            "SELECT (SELECT count(*) FROM ledger WHERE kind = 'charge') || ' charges, '
               || (SELECT count(*) FROM ledger WHERE kind = 'refund') || ' refunds, '
               || (SELECT count(*) FROM payments WHERE reason IS NOT NULL) || ' cards declined, '
               || printf('%.2f', (SELECT coalesce(sum(CASE kind WHEN 'charge' THEN amount_cents ELSE -amount_cents END), 0)
                    FROM ledger) / 100.0) || ' earned'",
        ),
        (
            "shipping",
            "SELECT (SELECT count(*) FROM shipments WHERE state = 'scheduled') || ' parcels scheduled, '
               || (SELECT count(*) FROM shipments WHERE state = 'cancelled') || ' cancelled'",
        ),
        ("notification", "SELECT count(*) || ' e-mails written, ' || count(*) FILTER (WHERE queued) || ' of them queued' FROM emails"),
        (
            "analytics",
            "SELECT (SELECT count(*) FROM events) || ' events counted, '
               || (SELECT count(*) FROM repeats) || ' repeats recognised'",
        ),
        ("product", "SELECT count(*) || ' products listed' FROM products"),
        ("user", "SELECT count(*) || ' users known' FROM users"),
        ("auth", "SELECT (SELECT count(*) FROM accounts) || ' accounts, ' || (SELECT count(*) FROM tokens) || ' tokens' "),
    ] {
        all.push((service, ask(service, sql)?));
    }
    Ok(all)
}

fn check(
    placed: &Placed,
    orders: &BTreeMap<String, Vec<Row>>,
    ledger: &BTreeMap<String, Entries>,
    reservations: &BTreeMap<String, Reservation>,
    parcels: &BTreeMap<String, String>,
    broken: &mut Vec<String>,
) {
    let customer = &placed.order.customer;
    let rows = orders.get(customer).map(Vec::as_slice).unwrap_or_default();
    let mut say =
        |what: String| broken.push(format!("{customer} ({:?}, {:?}): {what}", placed.order.flow, placed.outcome));
    if rows.len() > 1 {
        say(format!("one order was placed and {} exist", rows.len()));
    }
    match (placed.outcome, rows.first()) {
        (Outcome::Completed, None) => say("there is no order".into()),
        (Outcome::Completed, Some(row)) => {
            if row.status != "confirmed" {
                say(format!("the order is {}", row.status));
            }
            let entries = ledger.get(&row.id).copied().unwrap_or_default();
            if (entries.charges, entries.refunds, entries.balance) != (1, 0, row.total) {
                say(format!("{} cents were due, the ledger shows {entries:?}", row.total));
            }
            match reservations.get(&row.id) {
                Some((state, items)) if state == "reserved" => {
                    let held: BTreeMap<&str, u32> = items.iter().map(|(sku, n)| (sku.as_str(), *n)).collect();
                    if held != placed.order.items.iter().copied().collect() {
                        say(format!("{} was ordered, {held:?} is reserved", row.items));
                    }
                }
                other => say(format!("its reservation is {other:?}")),
            }
            if parcels.get(&row.id).map(String::as_str) != Some("scheduled") {
                say(format!("its parcel is {:?}", parcels.get(&row.id)));
            }
        }
        (Outcome::Compensated, Some(row)) if row.status != "cancelled" => say(format!("the order is {}", row.status)),
        // What is held for a cancelled order is found by the checks over everything.
        (Outcome::Compensated, _) => {}
    }
}

fn rows_by_customer(orders: &Connection) -> Result<BTreeMap<String, Vec<Row>>> {
    let mut rows =
        orders.prepare("SELECT customer, id, status, total_cents, items FROM orders WHERE customer <> ''")?;
    let rows = rows.query_map([], |r| {
        Ok((r.get(0)?, Row { id: r.get(1)?, status: r.get(2)?, total: r.get(3)?, items: r.get(4)? }))
    })?;
    let mut by_customer = BTreeMap::<String, Vec<Row>>::new();
    for row in rows {
        let (customer, row) = row?;
        by_customer.entry(customer).or_default().push(row);
    }
    Ok(by_customer)
}

#[derive(Clone, Copy, Debug, Default)]
struct Entries {
    charges: u64,
    refunds: u64,
    balance: i64,
}

fn ledger(payment: &Connection) -> Result<BTreeMap<String, Entries>> {
    let mut rows = payment.prepare("SELECT key, kind, amount_cents FROM ledger")?;
    let rows = rows.query_map([], |r| Ok((r.get::<_, String>(0)?, r.get::<_, String>(1)?, r.get::<_, i64>(2)?)))?;
    let mut keys = BTreeMap::<String, Entries>::new();
    for row in rows {
        let (key, kind, amount) = row?;
        let entries = keys.entry(key).or_default();
        if kind == "charge" {
            entries.charges += 1;
            entries.balance += amount;
        } else {
            entries.refunds += 1;
            entries.balance -= amount;
        }
    }
    Ok(keys)
}

/// State and items.
type Reservation = (String, Vec<(String, u32)>);

fn reservations(inventory: &Connection) -> Result<BTreeMap<String, Reservation>> {
    let states = pairs(inventory, "SELECT key, state FROM reservations")?;
    let mut keys: BTreeMap<String, Reservation> = states.into_iter().map(|(k, s)| (k, (s, Vec::new()))).collect();
    let mut rows = inventory.prepare("SELECT key, sku, quantity FROM reserved_items")?;
    for row in rows.query_map([], |r| Ok((r.get::<_, String>(0)?, r.get(1)?, r.get(2)?)))? {
        let (key, sku, quantity) = row?;
        keys.entry(key).or_default().1.push((sku, quantity));
    }
    Ok(keys)
}

fn stock(inventory: &Connection) -> Result<Vec<String>> {
    let mut rows = inventory.prepare(
        "SELECT sku, initial, on_hand, (SELECT coalesce(sum(i.quantity), 0) FROM reserved_items i
           JOIN reservations r ON r.key = i.key WHERE i.sku = stock.sku AND r.state = 'reserved') FROM stock",
    )?;
    let rows = rows.query_map([], |r| Ok((r.get::<_, String>(0)?, [r.get::<_, i64>(1)?, r.get(2)?, r.get(3)?])))?;
    let mut broken = Vec::new();
    for row in rows {
        let (sku, [initial, on_hand, reserved]) = row?;
        if on_hand < 0 || on_hand + reserved != initial {
            broken.push(format!("{sku}: {initial} at first, {reserved} reserved, {on_hand} left"));
        }
    }
    Ok(broken)
}

fn pairs(db: &Connection, sql: &str) -> Result<BTreeMap<String, String>> {
    let mut rows = db.prepare(sql)?;
    let rows = rows.query_map([], |r| Ok((r.get(0)?, r.get(1)?)))?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}
