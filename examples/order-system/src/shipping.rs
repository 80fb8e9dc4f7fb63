//! The shipping service: parcels, over REST, and its part in the choreography.

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::{get, post};
use axum::{Json, Router};
use rusqlite::Transaction;
use serde::Deserialize;
use serde_json::json;

use crate::db::{self, Db};
use crate::event::Event;
use crate::fault::Fault;
use crate::host::{Failure, Host, Options, Speaks};

mod store;

use store::Shipment;

/// Runs the service.
pub async fn serve(options: Options) -> Result<(), Failure> {
    let host = Host::new("shipping", options, &[store::SCHEMA, db::INBOX].concat())?;
    host.consume("shipping", react);
    let routes = Router::new()
        .route("/shipments", post(schedule))
        .route("/shipments/{key}", get(show))
        .route("/shipments/{key}/cancel", post(cancel))
        .with_state(host.db.clone());
    host.serve(Speaks::Http, routes).await
}

#[derive(Deserialize)]
struct NewShipment {
    key: Option<String>,
    order: String,
    customer: String,
}

async fn schedule(
    State(db): State<Db>,
    headers: HeaderMap,
    Json(new): Json<NewShipment>,
) -> Result<(StatusCode, Json<Shipment>), Fault> {
    let header = || headers.get("idempotency-key").and_then(|v| v.to_str().ok()).map(str::to_owned);
    let key = new.key.or_else(header).ok_or_else(|| Fault::Invalid("'key' is missing".into()))?;
    let shipment = db.write(move |tx| store::schedule(tx, &key, &new.order, &new.customer)).await?;
    Ok((StatusCode::CREATED, Json(shipment)))
}

async fn show(State(db): State<Db>, Path(key): Path<String>) -> Result<Json<Shipment>, Fault> {
    let found = db.write(move |tx| store::find(tx, &key)?.ok_or_else(|| Fault::NotFound(format!("shipment {key}"))));
    Ok(Json(found.await?))
}

async fn cancel(State(db): State<Db>, Path(key): Path<String>) -> Result<Json<Shipment>, Fault> {
    Ok(Json(db.write(move |tx| store::cancel(tx, &key)).await?))
}

/// Reserved orders are scheduled, or rejected when nobody can bring them there.
fn react(tx: &Transaction<'_>, event: &Event) -> Result<Vec<Event>, Fault> {
    let order = event.subject.as_str();
    if event.ty != "InventoryReserved" {
        return Ok(Vec::new());
    }
    let mut data = event.data.clone();
    let ty = match store::schedule(tx, order, order, event.text("customer")?) {
        Ok(shipment) => {
            data["shipment"] = json!(shipment.id);
            "ShippingScheduled"
        }
        Err(Fault::Refused { detail, .. }) => {
            data["reason"] = json!(detail);
            "ShippingRejected"
        }
        Err(other) => return Err(other),
    };
    Ok(vec![Event::new("shipping", ty, order, data)])
}
