//! The notification service: Weft pushes events here; the e-mails it would send go into a table and to the queue `emails`.

use axum::Router;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::{get, post};
use bytes::Bytes;
use rusqlite::{OptionalExtension, Transaction, params};
use serde_json::{Value, json};

use crate::chaos::Chaos;
use crate::db::Db;
use crate::event::Event;
use crate::fault::Fault;
use crate::host::{Failure, Host, Options, Speaks};
use crate::weft::Weft;

const SCHEMA: &str = "CREATE TABLE IF NOT EXISTS emails(
    event TEXT PRIMARY KEY,
    recipient TEXT NOT NULL,
    subject TEXT NOT NULL,
    body TEXT NOT NULL,
    queued INTEGER NOT NULL DEFAULT 0) STRICT;";

/// Runs the service.
pub async fn serve(options: Options) -> Result<(), Failure> {
    let host = Host::new("notification", options, SCHEMA)?;
    let post_office = PostOffice { db: host.db.clone(), weft: host.weft.clone(), chaos: host.chaos.clone() };
    let routes = Router::new().route("/events", post(take)).route("/emails", get(list)).with_state(post_office);
    host.serve(Speaks::Http, routes).await
}

#[derive(Clone)]
struct PostOffice {
    db: Db,
    weft: Weft,
    chaos: Chaos,
}

/// An e-mail.
#[derive(Clone, Debug, PartialEq)]
struct Email {
    recipient: String,
    subject: String,
    body: String,
}

/// `POST /events`: the e-mail is written once however often the event comes, then queued under the event's id.
async fn take(State(office): State<PostOffice>, headers: HeaderMap, body: Bytes) -> Result<StatusCode, Fault> {
    let event = Event::from_http(&headers, &body)?;
    if office.chaos.settings().poison.as_deref() == Some(&event.ty) {
        return Err(Fault::Commanded(format!("no template for {}", event.ty)));
    }
    let Some(email) = compose(&event)? else { return Ok(StatusCode::NO_CONTENT) };
    let id = event.id.clone();
    let written = email.clone();
    if !office.db.write(move |tx| keep(tx, &id, &written)).await? {
        let data = json!({"to": email.recipient, "subject": email.subject, "body": email.body});
        let mut letter = Event::new("notification", "EmailWritten", &event.subject, data);
        // One event, one e-mail: its id names it, so the queue stores a repeat once.
        letter.id = format!("{}:email", event.id);
        office.weft.publish("queues/emails", &letter.in_trace(event.traceparent)).await?;
        let id = event.id;
        office.db.write(move |tx| Ok(tx.execute("UPDATE emails SET queued = 1 WHERE event = ?1", [id])?)).await?;
    }
    Ok(StatusCode::NO_CONTENT)
}

/// What a customer is told about an event; nothing about most.
fn compose(event: &Event) -> Result<Option<Email>, Fault> {
    let order = &event.subject;
    let (subject, body) = match event.ty.as_str() {
        "OrderCompleted" => {
            let cents = event.data["total_cents"].as_i64().unwrap_or_default();
            let body = format!("Your order {order} over {}.{:02} is on its way.", cents / 100, cents % 100);
            ("Your order is on its way", body)
        }
        "OrderCancelled" => {
            let reason = event.data["reason"].as_str().unwrap_or("it could not be fulfilled");
            ("Your order was cancelled", format!("Your order {order} was cancelled: {reason}. You pay nothing."))
        }
        "GiftWrapped" => ("Your gift is wrapped", format!("The gift of your order {order} is wrapped.")),
        _ => return Ok(None),
    };
    let recipient = format!("{}@customers.example", event.text("customer")?);
    Ok(Some(Email { recipient, subject: subject.into(), body }))
}

/// Writes the e-mail unless it is there; answers whether it is already queued.
fn keep(tx: &Transaction<'_>, event: &str, email: &Email) -> Result<bool, Fault> {
    let queued: Option<bool> =
        tx.query_row("SELECT queued FROM emails WHERE event = ?1", [event], |r| r.get(0)).optional()?;
    if queued.is_none() {
        tx.execute(
            "INSERT INTO emails(event, recipient, subject, body) VALUES (?1, ?2, ?3, ?4)",
            params![event, email.recipient, email.subject, email.body],
        )?;
    }
    Ok(queued == Some(true))
}

#[derive(serde::Deserialize)]
struct Page {
    limit: Option<u32>,
}

async fn list(State(office): State<PostOffice>, Query(page): Query<Page>) -> Result<axum::Json<Value>, Fault> {
    let limit = page.limit.unwrap_or(50).min(500);
    let emails = office.db.write(move |tx| {
        let mut rows =
            tx.prepare("SELECT event, recipient, subject, body, queued FROM emails ORDER BY rowid DESC LIMIT ?1")?;
        let rows = rows.query_map([limit], |r| {
            let (event, to, subject): (String, String, String) = (r.get(0)?, r.get(1)?, r.get(2)?);
            let (body, queued): (String, bool) = (r.get(3)?, r.get(4)?);
            Ok(json!({"event": event, "to": to, "subject": subject, "body": body, "queued": queued}))
        })?;
        Ok(rows.collect::<Result<Vec<_>, _>>()?)
    });
    Ok(axum::Json(json!({"items": emails.await?, "next": null})))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_makes_one_email_however_often_it_comes() {
        let db = Db::memory(SCHEMA);
        let event = Event::new("order", "OrderCompleted", "o1", json!({"customer": "ann", "total_cents": 1205}));
        let email = compose(&event).unwrap().unwrap();
        assert_eq!(email.recipient, "ann@customers.example");
        assert!(email.body.contains("12.05"), "{}", email.body);
        for _ in 0..2 {
            assert!(!db.write_now(|tx| keep(tx, &event.id, &email)).unwrap());
        }
        db.write_now(|tx| Ok(tx.execute("UPDATE emails SET queued = 1", [])?)).unwrap();
        assert!(db.write_now(|tx| keep(tx, &event.id, &email)).unwrap());
        let count: i64 = db.write_now(|tx| Ok(tx.query_row("SELECT count(*) FROM emails", [], |r| r.get(0))?)).unwrap();
        assert_eq!(count, 1);
    }

    #[test]
    fn steps_in_between_write_to_nobody() {
        let event = Event::new("payment", "PaymentCompleted", "o1", json!({}));
        assert_eq!(compose(&event).unwrap(), None);
    }

    #[test]
    fn an_email_to_nobody_is_an_error_that_says_so() {
        let event = Event::new("order", "OrderCancelled", "o1", json!({}));
        assert!(compose(&event).unwrap_err().to_string().contains("customer"));
    }
}
