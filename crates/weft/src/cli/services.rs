//! `weft services`

use clap::Args;
use serde_json::Value;

use super::client::{Client, path, pretty};
use super::table::{Table, cell, items};
use super::{Answer, Remote};

#[derive(Args)]
pub(super) struct ServicesArgs {
    /// Only this service
    name: Option<String>,
    #[command(flatten)]
    remote: Remote,
}

pub(super) async fn run(args: ServicesArgs) -> Answer {
    let client = Client::new(&args.remote)?;
    let answer = match &args.name {
        Some(name) => client.get(&path(&["v1", "services", name])).await?,
        None => client.all("/v1/services").await?,
    };
    if client.json {
        return Ok(pretty(&answer));
    }
    let one = [answer.clone()];
    let services = if args.name.is_some() { &one } else { items(&answer, "items") };
    let mut table = Table::new(["service", "protocol", "instance", "address", "health", "weight", "load", "breaker"]);
    for service in services {
        rows(&mut table, service);
    }
    Ok(table.render("no services: declare them in weft.yaml, or register one with PUT /v1/services/NAME/instances/ID"))
}

fn rows(table: &mut Table, service: &Value) {
    let name = cell(service, "name");
    let instances = items(service, "instances");
    if instances.is_empty() {
        let none = String::new;
        table.row([name, cell(service, "protocol"), "none registered".into(), none(), none(), none(), none(), none()]);
        return;
    }
    for i in instances {
        let protocol = if i["protocol"].is_null() { cell(service, "protocol") } else { cell(i, "protocol") };
        let breaker = if i["breaker"].is_null() { cell(service, "breaker") } else { cell(i, "breaker") };
        table.row([
            name.clone(),
            protocol,
            cell(i, "id"),
            cell(i, "address"),
            cell(i, "health"),
            cell(i, "weight"),
            cell(i, "load"),
            breaker,
        ]);
    }
}
