//! The order system: nine small services that know nothing of each other and talk through Weft.
//!
//! One binary, nine subcommands; each runs as a process of its own with its own port and its own SQLite file, registers
//! itself with Weft and takes `POST /chaos` to fail, hang, be slow or crash. `weft.yaml` beside this crate is what joins
//! them: as one orchestrated saga, and as a choreography over the topic `orders`.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod host;

mod catalogue;
mod chaos;
mod consumer;
mod db;
mod event;
mod fault;
mod registry;
mod weft;

mod analytics;
mod auth;
mod inventory;
mod notification;
mod order;
mod payment;
mod product;
mod shipping;
mod user;

/// The generated gRPC services.
#[allow(missing_docs)]
mod proto {
    pub mod inventory {
        tonic::include_proto!("shop.inventory.v1");
    }
    pub mod payment {
        tonic::include_proto!("shop.payment.v1");
    }
}

#[derive(Parser)]
#[command(name = "order-system", version, about = "Nine services of an order system, one subcommand each")]
struct Cli {
    #[command(subcommand)]
    service: Service,
}

#[derive(Subcommand)]
enum Service {
    /// Takes orders and knows their state (REST)
    Order(host::Options),
    /// Stock and reservations (gRPC)
    Inventory(host::Options),
    /// Charges and refunds (gRPC)
    Payment(host::Options),
    /// Shipments (REST)
    Shipping(host::Options),
    /// Writes e-mails about what happened (events pushed by Weft)
    Notification(host::Options),
    /// Counts everything that happens (events pushed by Weft)
    Analytics(host::Options),
    /// The catalogue (REST)
    Product(host::Options),
    /// Customers (REST)
    User(host::Options),
    /// Issues and checks tokens (REST)
    Auth(host::Options),
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let done = match Cli::parse().service {
        Service::Order(o) => order::serve(o).await,
        Service::Inventory(o) => inventory::serve(o).await,
        Service::Payment(o) => payment::serve(o).await,
        Service::Shipping(o) => shipping::serve(o).await,
        Service::Notification(o) => notification::serve(o).await,
        Service::Analytics(o) => analytics::serve(o).await,
        Service::Product(o) => product::serve(o).await,
        Service::User(o) => user::serve(o).await,
        Service::Auth(o) => auth::serve(o).await,
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("error: {why}");
            ExitCode::FAILURE
        }
    }
}
