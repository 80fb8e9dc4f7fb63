//! A service's own SQLite file, its inbox (events already reacted to) and its outbox (events still to be told).

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};

use crate::event::Event;
use crate::fault::Fault;

/// The inbox: which event was reacted to, and what was told because of it.
pub const INBOX: &str = "CREATE TABLE IF NOT EXISTS inbox(event TEXT PRIMARY KEY, told TEXT NOT NULL) STRICT;";

/// The outbox: what was decided in a transaction and has to reach Weft.
pub const OUTBOX: &str =
    "CREATE TABLE IF NOT EXISTS outbox(seq INTEGER PRIMARY KEY, event TEXT NOT NULL, published INTEGER NOT NULL DEFAULT 0) STRICT;
     CREATE INDEX IF NOT EXISTS outbox_open ON outbox(seq) WHERE published = 0;";

/// The database, shared by a service's handlers.
#[derive(Clone)]
pub struct Db(Arc<Mutex<Connection>>);

impl Db {
    /// Opens or makes the file and its tables. Commits are synced: what a service answered is on disk.
    pub fn open(path: &Path, schema: &str) -> Result<Self, Fault> {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)
                .map_err(|e| Fault::Invalid(format!("cannot make {}: {e}", parent.display())))?;
        }
        Self::prepare(Connection::open(path)?, schema)
    }

    /// A database that ends with the test.
    #[cfg(test)]
    pub fn memory(schema: &str) -> Self {
        Self::prepare(Connection::open_in_memory().unwrap(), schema).unwrap()
    }

    fn prepare(connection: Connection, schema: &str) -> Result<Self, Fault> {
        connection.busy_timeout(Duration::from_secs(5))?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "foreign_keys", true)?;
        connection.execute_batch(schema)?;
        Ok(Self(Arc::new(Mutex::new(connection))))
    }

    /// One transaction on a thread that may block: committed when `work` succeeds, undone when it fails.
    pub async fn write<T, W>(&self, work: W) -> Result<T, Fault>
    where
        T: Send + 'static,
        W: FnOnce(&Transaction<'_>) -> Result<T, Fault> + Send + 'static,
    {
        let this = self.clone();
        let done = tokio::task::spawn_blocking(move || this.write_now(work)).await;
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
    }

    /// The same on this thread.
    pub fn write_now<T>(&self, work: impl FnOnce(&Transaction<'_>) -> Result<T, Fault>) -> Result<T, Fault> {
        // A panic inside a transaction rolled it back: the connection is sound.
        let mut connection = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let value = work(&transaction)?;
        transaction.commit()?;
        Ok(value)
    }
}

/// Reacts to an event once: a repeat answers what the first reaction told, without `react`.
pub fn once(
    tx: &Transaction<'_>,
    event: &Event,
    react: impl FnOnce(&Transaction<'_>) -> Result<Vec<Event>, Fault>,
) -> Result<Vec<Event>, Fault> {
    let told: Option<String> =
        tx.query_row("SELECT told FROM inbox WHERE event = ?1", [&event.id], |r| r.get(0)).optional()?;
    if let Some(told) = told {
        return serde_json::from_str(&told).map_err(|e| Fault::Invalid(format!("inbox entry {}: {e}", event.id)));
    }
    let events: Vec<Event> = react(tx)?.into_iter().map(|e| e.in_trace(event.traceparent.clone())).collect();
    let told = serde_json::to_string(&events).expect("an event is JSON");
    tx.execute("INSERT INTO inbox(event, told) VALUES (?1, ?2)", params![event.id, told])?;
    Ok(events)
}

/// Puts an event into the outbox, in the transaction of the change it tells of.
pub fn tell(tx: &Transaction<'_>, event: &Event) -> Result<(), Fault> {
    let event = serde_json::to_string(event).expect("an event is JSON");
    tx.execute("INSERT INTO outbox(event) VALUES (?1)", [event])?;
    Ok(())
}

/// The oldest events still to be told.
pub fn untold(tx: &Transaction<'_>, limit: u32) -> Result<Vec<(i64, Event)>, Fault> {
    let mut rows = tx.prepare_cached("SELECT seq, event FROM outbox WHERE published = 0 ORDER BY seq LIMIT ?1")?;
    let rows = rows.query_map([limit], |r| Ok((r.get::<_, i64>(0)?, r.get::<_, String>(1)?)))?;
    rows.map(|row| {
        let (seq, text) = row?;
        let event = serde_json::from_str(&text).map_err(|e| Fault::Invalid(format!("outbox entry {seq}: {e}")))?;
        Ok((seq, event))
    })
    .collect()
}

/// Notes that an event reached Weft.
pub fn told(tx: &Transaction<'_>, seq: i64) -> Result<(), Fault> {
    tx.execute("UPDATE outbox SET published = 1 WHERE seq = ?1", [seq])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_event_is_reacted_to_once_and_a_repeat_tells_the_same() {
        let db = Db::memory(INBOX);
        let event = Event::new("t", "OrderCreated", "o1", json!({})).in_trace(Some("00-1-2-01".into()));
        let answer = |n: i64| move |_: &Transaction<'_>| Ok(vec![Event::new("t", "Done", "o1", json!(n))]);
        let first = db.write_now(|tx| once(tx, &event, answer(1))).unwrap();
        let second = db.write_now(|tx| once(tx, &event, answer(2))).unwrap();
        assert_eq!(first, second);
        assert_eq!(first[0].data, json!(1));
        assert_eq!(first[0].traceparent.as_deref(), Some("00-1-2-01"));
    }

    #[test]
    fn a_failed_reaction_leaves_no_trace_in_the_inbox() {
        let db = Db::memory(INBOX);
        let event = Event::new("t", "OrderCreated", "o1", json!({}));
        assert!(db.write_now(|tx| once(tx, &event, |_| Err(Fault::refused("no", "no")))).is_err());
        assert_eq!(db.write_now(|tx| once(tx, &event, |_| Ok(vec![]))).unwrap(), vec![]);
    }

    #[test]
    fn the_outbox_keeps_order_and_forgets_nothing_until_told() {
        let db = Db::memory(OUTBOX);
        for n in 0..3 {
            db.write_now(|tx| tell(tx, &Event::new("t", "E", &n.to_string(), json!(n)))).unwrap();
        }
        let open = db.write_now(|tx| untold(tx, 10)).unwrap();
        assert_eq!(open.iter().map(|(_, e)| e.data.clone()).collect::<Vec<_>>(), [json!(0), json!(1), json!(2)]);
        db.write_now(|tx| told(tx, open[0].0)).unwrap();
        assert_eq!(db.write_now(|tx| untold(tx, 10)).unwrap()[0].1.data, json!(1));
    }
}
