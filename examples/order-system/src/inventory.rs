//! The inventory service: stock and reservations, over gRPC, and its part in the choreography.

use axum::Router;
use rusqlite::Transaction;
use serde_json::json;
use tonic::{Request, Response, Status};

use crate::db::{self, Db};
use crate::event::Event;
use crate::fault::Fault;
use crate::host::{Failure, Host, Options, Speaks};
use crate::proto::inventory::inventory_server::{Inventory, InventoryServer};
use crate::proto::inventory::{GetRequest, ReleaseRequest, Reservation, ReserveRequest, StockLevel};

mod store;

/// Runs the service.
pub async fn serve(options: Options) -> Result<(), Failure> {
    let host = Host::new("inventory", options, &[store::SCHEMA, db::INBOX].concat())?;
    host.db.write(store::fill).await?;
    host.consume("inventory", react);
    let service = InventoryServer::new(Grpc(host.db.clone()));
    let routes: Router = tonic::service::Routes::new(service).into_axum_router();
    host.serve(Speaks::Grpc, routes).await
}

struct Grpc(Db);

#[tonic::async_trait]
impl Inventory for Grpc {
    async fn reserve(&self, request: Request<ReserveRequest>) -> Result<Response<Reservation>, Status> {
        let key = key(&request, &request.get_ref().key)?;
        let items = request.into_inner().items.into_iter().map(|i| (i.sku, i.quantity)).collect::<Vec<_>>();
        let state = self.0.write(move |tx| store::reserve(tx, &key, &items).map(|state| (key, state))).await?;
        Ok(reservation(state))
    }

    async fn release(&self, request: Request<ReleaseRequest>) -> Result<Response<Reservation>, Status> {
        let key = key(&request, &request.get_ref().key)?;
        let state = self.0.write(move |tx| store::release(tx, &key).map(|state| (key, state))).await?;
        Ok(reservation(state))
    }

    async fn get(&self, request: Request<GetRequest>) -> Result<Response<StockLevel>, Status> {
        let sku = request.into_inner().sku;
        let level = self.0.write(move |tx| store::level(tx, &sku).map(|(on_hand, reserved)| (sku, on_hand, reserved)));
        let (sku, on_hand, reserved) = level.await?;
        Ok(Response::new(StockLevel { sku, on_hand, reserved }))
    }
}

fn reservation((key, state): (String, &'static str)) -> Response<Reservation> {
    Response::new(Reservation { key, state: state.into() })
}

/// The key of a request: its field, or else the metadata that Weft sends with every call.
pub fn key<T>(request: &Request<T>, field: &str) -> Result<String, Fault> {
    let metadata = || request.metadata().get("idempotency-key").and_then(|v| v.to_str().ok());
    let key = if field.is_empty() { metadata().unwrap_or_default() } else { field };
    if key.is_empty() {
        return Err(Fault::Invalid("'key' is missing".into()));
    }
    Ok(key.to_owned())
}

/// Paid orders are reserved, or rejected; a parcel that cannot be sent puts the items back.
fn react(tx: &Transaction<'_>, event: &Event) -> Result<Vec<Event>, Fault> {
    let order = event.subject.as_str();
    let tell = |ty, data| Ok(vec![Event::new("inventory", ty, order, data)]);
    match event.ty.as_str() {
        "PaymentCompleted" => {
            let items = event.data["items"].as_array().map(Vec::as_slice).unwrap_or_default();
            let items = items
                .iter()
                .map(|i| {
                    let quantity = i["quantity"].as_u64().and_then(|q| u32::try_from(q).ok())?;
                    Some((i["sku"].as_str()?.to_owned(), quantity))
                })
                .collect::<Option<Vec<_>>>()
                .ok_or_else(|| Fault::Invalid(format!("the items of {order} are not understood")))?;
            match store::reserve(tx, order, &items) {
                Ok(_) => tell("InventoryReserved", event.data.clone()),
                Err(Fault::Refused { detail, .. }) => {
                    let mut data = event.data.clone();
                    data["reason"] = json!(detail);
                    tell("InventoryRejected", data)
                }
                Err(other) => Err(other),
            }
        }
        "ShippingRejected" => {
            store::release(tx, order)?;
            tell("InventoryReleased", event.data.clone())
        }
        _ => Ok(Vec::new()),
    }
}
