//! The order service: takes orders, knows their state, and in the choreographed flow tells the others about them.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures_util::future::join_all;
use rusqlite::Transaction;
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::sync::Notify;

use crate::consumer::TOPIC;
use crate::db::{self, Db};
use crate::event::{Event, traceparent};
use crate::fault::Fault;
use crate::host::{Failure, Host, Options, Speaks};
use crate::weft::Weft;

mod store;

use store::{Flow, Item, Order};

/// Runs the service.
pub async fn serve(options: Options) -> Result<(), Failure> {
    let host = Host::new("order", options, &[store::SCHEMA, db::INBOX, db::OUTBOX].concat())?;
    host.consume("order", react);
    let shop = Shop { db: host.db.clone(), told: Arc::new(Notify::new()) };
    tokio::spawn(tell(shop.clone(), host.weft.clone()));
    let routes = Router::new()
        .route("/orders", get(list).post(create))
        .route("/orders/", get(list))
        .route("/orders/{id}", get(show))
        .route("/orders/{id}/cancel", post(cancel))
        .route("/orders/{id}/confirm", post(confirm))
        .route("/choreography/orders", post(choreograph))
        .with_state(shop);
    host.serve(Speaks::Http, routes).await
}

#[derive(Clone)]
struct Shop {
    db: Db,
    /// Something new is in the outbox.
    told: Arc<Notify>,
}

#[derive(Deserialize)]
struct NewOrder {
    id: Option<String>,
    customer: String,
    items: Vec<Item>,
    card: Option<String>,
}

/// `POST /orders`: the order row alone. The id in the body, or the Idempotency-Key, makes a repeat answer the same row.
async fn create(State(shop): State<Shop>, headers: HeaderMap, Json(new): Json<NewOrder>) -> Result<Response, Fault> {
    let id = new.id.unwrap_or_else(|| id_of(&headers));
    let order = shop.db.write(move |tx| store::create(tx, &id, Flow::Orchestrated, &new.customer, &new.items)).await?;
    Ok((StatusCode::CREATED, Json(order)).into_response())
}

/// `POST /choreography/orders`: the order row and the event that tells of it, in one local transaction.
async fn choreograph(
    State(shop): State<Shop>,
    headers: HeaderMap,
    Json(new): Json<NewOrder>,
) -> Result<Response, Fault> {
    let card = new.card.ok_or_else(|| Fault::Invalid("'card' is missing".into()))?;
    let id = new.id.unwrap_or_else(|| id_of(&headers));
    let trace = traceparent(&headers);
    let order = shop
        .db
        .write(move |tx| {
            // A repeat is told what became of the order, also when that was its end.
            if let Some(known) = store::repeated(tx, &id, &new.customer, &new.items)? {
                return Ok(known);
            }
            let order = store::create(tx, &id, Flow::Choreographed, &new.customer, &new.items)?;
            let mut data = facts(&order);
            data["card"] = json!(card);
            db::tell(tx, &Event::new("order", "OrderCreated", &order.id, data).in_trace(trace))?;
            Ok(order)
        })
        .await?;
    shop.told.notify_one();
    let location = format!("/v1/orders/{}", order.id);
    Ok((StatusCode::ACCEPTED, [(header::LOCATION, location)], Json(order)).into_response())
}

async fn show(State(shop): State<Shop>, Path(id): Path<String>) -> Result<Json<Order>, Fault> {
    let order = shop.db.write(move |tx| store::find(tx, &id)?.ok_or_else(|| no_order(&id))).await?;
    Ok(Json(order))
}

#[derive(Deserialize)]
struct Filter {
    customer: Option<String>,
    limit: Option<u32>,
}

async fn list(State(shop): State<Shop>, Query(filter): Query<Filter>) -> Result<Json<Value>, Fault> {
    let limit = filter.limit.unwrap_or(50).min(500);
    let orders = shop.db.write(move |tx| store::list(tx, filter.customer.as_deref(), limit)).await?;
    Ok(Json(json!({"items": orders, "next": null})))
}

/// `POST /orders/{id}/cancel`: for an id never seen it leaves a mark that refuses a later create.
async fn cancel(State(shop): State<Shop>, headers: HeaderMap, Path(id): Path<String>) -> Result<Json<Value>, Fault> {
    let trace = traceparent(&headers);
    let answer = shop
        .db
        .write(move |tx| {
            if let Some(order) = store::cancel(tx, &id)? {
                db::tell(tx, &cancelled(&order, "the order could not be fulfilled").in_trace(trace))?;
            }
            Ok(Json(json!({"id": id, "status": "cancelled"})))
        })
        .await?;
    shop.told.notify_one();
    Ok(answer)
}

async fn confirm(State(shop): State<Shop>, Path(id): Path<String>) -> Result<Json<Order>, Fault> {
    shop.db.write(move |tx| store::confirm(tx, &id).map(Json)).await
}

/// The order's part in the choreography: it ends well when the parcel is scheduled, badly when the money did not come or
/// went back.
fn react(tx: &Transaction<'_>, event: &Event) -> Result<Vec<Event>, Fault> {
    let id = event.subject.as_str();
    match event.ty.as_str() {
        "ShippingScheduled" => {
            let order = store::confirm(tx, id)?;
            Ok(vec![Event::new("order", "OrderCompleted", id, facts(&order))])
        }
        "PaymentFailed" | "PaymentRefunded" => {
            let reason = event.data["reason"].as_str().unwrap_or("no payment");
            let order = store::cancel(tx, id)?;
            Ok(order.iter().map(|order| cancelled(order, reason)).collect())
        }
        _ => Ok(Vec::new()),
    }
}

/// Brings the outbox to Weft, oldest first, until each event is acknowledged. Never returns.
async fn tell(shop: Shop, weft: Weft) {
    const BATCH: u32 = 64;
    const LONGEST: Duration = Duration::from_secs(1);
    let mut pause = LONGEST;
    loop {
        // What an earlier process left in the outbox is found without a word from a handler.
        let _ = tokio::time::timeout(pause, shop.told.notified()).await;
        pause = match tell_batch(&shop.db, &weft, BATCH).await {
            Ok(0) => LONGEST,
            Ok(_) => Duration::ZERO,
            Err(why) => {
                tracing::warn!(error = %why, "an event waits in the outbox");
                tokio::time::sleep(Duration::from_millis(200)).await;
                Duration::ZERO
            }
        };
    }
}

async fn tell_batch(db: &Db, weft: &Weft, limit: u32) -> Result<usize, Fault> {
    let open = db.write(move |tx| db::untold(tx, limit)).await?;
    // The dedup id makes a repeat harmless, so what is unknown after a lost answer is simply told again.
    let sent = open.iter().map(async |(seq, event)| {
        let seq = *seq;
        weft.publish(&format!("topics/{TOPIC}"), event).await?;
        db.write(move |tx| db::told(tx, seq)).await
    });
    join_all(sent).await.into_iter().collect::<Result<Vec<()>, Fault>>().map(|done| done.len())
}

fn facts(order: &Order) -> Value {
    json!({"order": order.id, "customer": order.customer, "items": order.items, "total_cents": order.total_cents})
}

fn cancelled(order: &Order, reason: &str) -> Event {
    let mut data = facts(order);
    data["reason"] = json!(reason);
    Event::new("order", "OrderCancelled", &order.id, data)
}

/// The same for the same Idempotency-Key, else fresh.
fn id_of(headers: &HeaderMap) -> String {
    match headers.get("idempotency-key") {
        Some(key) if !key.is_empty() => {
            let digest = Sha256::digest(key.as_bytes());
            format!("{:032x}", u128::from_be_bytes(digest[..16].try_into().expect("a digest has 32 bytes")))
        }
        _ => format!("{:032x}", rand::random::<u128>()),
    }
}

fn no_order(id: &str) -> Fault {
    Fault::NotFound(format!("order {id}"))
}
