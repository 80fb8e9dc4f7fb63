//! The analytics service: Weft pushes every event here; each is counted once.

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::{get, post};
use axum::{Json, Router};
use bytes::Bytes;
use rusqlite::{Transaction, params};
use serde_json::{Map, Value, json};

use crate::db::Db;
use crate::event::Event;
use crate::fault::Fault;
use crate::host::{Failure, Host, Options, Speaks};

const SCHEMA: &str = "CREATE TABLE IF NOT EXISTS events(
    id TEXT PRIMARY KEY,
    type TEXT NOT NULL,
    subject TEXT NOT NULL,
    total_cents INTEGER) STRICT;
CREATE TABLE IF NOT EXISTS repeats(seq INTEGER PRIMARY KEY, id TEXT NOT NULL) STRICT;";

/// Runs the service.
pub async fn serve(options: Options) -> Result<(), Failure> {
    let host = Host::new("analytics", options, SCHEMA)?;
    let routes = Router::new().route("/events", post(take)).route("/counts", get(show)).with_state(host.db.clone());
    host.serve(Speaks::Http, routes).await
}

async fn take(State(db): State<Db>, headers: HeaderMap, body: Bytes) -> Result<StatusCode, Fault> {
    let event = Event::from_http(&headers, &body)?;
    db.write(move |tx| count(tx, &event)).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn show(State(db): State<Db>) -> Result<Json<Value>, Fault> {
    Ok(Json(db.write(counts).await?))
}

/// Counts an event; one that was counted before is noted as a repeat.
fn count(tx: &Transaction<'_>, event: &Event) -> Result<(), Fault> {
    let total = event.data["total_cents"].as_i64();
    let new = tx.execute(
        "INSERT OR IGNORE INTO events(id, type, subject, total_cents) VALUES (?1, ?2, ?3, ?4)",
        params![event.id, event.ty, event.subject, total],
    )?;
    if new == 0 {
        tx.execute("INSERT INTO repeats(id) VALUES (?1)", [&event.id])?;
    }
    Ok(())
}

fn counts(tx: &Transaction<'_>) -> Result<Value, Fault> {
    let mut rows = tx.prepare("SELECT type, count(*) FROM events GROUP BY type ORDER BY type")?;
    let types: Map<String, Value> =
        rows.query_map([], |r| Ok((r.get(0)?, json!(r.get::<_, i64>(1)?))))?.collect::<Result<_, _>>()?;
    let number = |sql: &str| tx.query_row(sql, [], |r| r.get::<_, i64>(0));
    Ok(json!({
        "events": number("SELECT count(*) FROM events")?,
        "repeats": number("SELECT count(*) FROM repeats")?,
        "revenue_cents": number("SELECT coalesce(sum(total_cents), 0) FROM events WHERE type = 'OrderCompleted'")?,
        "types": types,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_counts_once() {
        let db = Db::memory(SCHEMA);
        let event = Event::new("order", "OrderCompleted", "o1", json!({"total_cents": 700}));
        for _ in 0..2 {
            db.write_now(|tx| count(tx, &event)).unwrap();
        }
        let counts = db.write_now(counts).unwrap();
        assert_eq!(counts["types"], json!({"OrderCompleted": 1}));
        assert_eq!((&counts["repeats"], &counts["revenue_cents"]), (&json!(1), &json!(700)));
    }
}
