//! The payment service: pretends to charge cards, over gRPC, and its part in the choreography.

use axum::Router;
use rusqlite::Transaction;
use serde_json::json;
use tonic::{Request, Response, Status};

use crate::db::{self, Db};
use crate::event::Event;
use crate::fault::Fault;
use crate::host::{Failure, Host, Options, Speaks};
use crate::inventory::key;
use crate::proto::payment::payment_server::{Payment, PaymentServer};
use crate::proto::payment::{PaymentReceipt, ProcessPaymentRequest, RefundRequest};

mod store;

use store::{Charge, Receipt};

/// Runs the service.
pub async fn serve(options: Options) -> Result<(), Failure> {
    let host = Host::new("payment", options, &[store::SCHEMA, db::INBOX].concat())?;
    host.consume("payment", react);
    let routes: Router = tonic::service::Routes::new(PaymentServer::new(Grpc(host.db.clone()))).into_axum_router();
    host.serve(Speaks::Grpc, routes).await
}

struct Grpc(Db);

#[tonic::async_trait]
impl Payment for Grpc {
    async fn process_payment(
        &self,
        request: Request<ProcessPaymentRequest>,
    ) -> Result<Response<PaymentReceipt>, Status> {
        let key = key(&request, &request.get_ref().key)?;
        let ProcessPaymentRequest { customer, card, amount_cents, .. } = request.into_inner();
        let charge = Charge { key, customer, card, amount_cents };
        let receipt = self.0.write(move |tx| store::charge(tx, &charge)).await?;
        match receipt.declined {
            Some(reason) => Err(Status::failed_precondition(format!("the card was declined: {reason}"))),
            None => Ok(Response::new(message(receipt))),
        }
    }

    async fn refund(&self, request: Request<RefundRequest>) -> Result<Response<PaymentReceipt>, Status> {
        let key = key(&request, &request.get_ref().key)?;
        let receipt = self.0.write(move |tx| store::refund(tx, &key)).await?;
        Ok(Response::new(message(receipt)))
    }
}

fn message(receipt: Receipt) -> PaymentReceipt {
    PaymentReceipt { key: receipt.key, state: receipt.state, amount_cents: receipt.amount_cents }
}

/// New orders are charged, or fail; what cannot be delivered is refunded.
fn react(tx: &Transaction<'_>, event: &Event) -> Result<Vec<Event>, Fault> {
    let order = event.subject.as_str();
    let mut data = event.data.clone();
    let mut tell = |ty, reason: Option<String>| {
        if let Some(reason) = reason {
            data["reason"] = json!(reason);
        }
        // The card goes no further than this service.
        data.as_object_mut().map(|d| d.remove("card"));
        Ok(vec![Event::new("payment", ty, order, data.clone())])
    };
    match event.ty.as_str() {
        "OrderCreated" => {
            let amount_cents = event.data["total_cents"].as_i64().unwrap_or_default();
            let (customer, card) = (event.text("customer")?.to_owned(), event.text("card")?.to_owned());
            match store::charge(tx, &Charge { key: order.to_owned(), customer, card, amount_cents }) {
                Ok(Receipt { declined: Some(reason), .. }) => tell("PaymentFailed", Some(reason)),
                Ok(_) => tell("PaymentCompleted", None),
                Err(Fault::Refused { detail, .. } | Fault::Invalid(detail)) => tell("PaymentFailed", Some(detail)),
                Err(other) => Err(other),
            }
        }
        "InventoryRejected" | "InventoryReleased" => {
            store::refund(tx, order)?;
            tell("PaymentRefunded", None)
        }
        _ => Ok(Vec::new()),
    }
}
