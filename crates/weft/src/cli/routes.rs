//! `weft routes`

use clap::Args;
use serde_json::Value;

use super::client::{Client, pretty};
use super::table::{Table, cell, items};
use super::{Answer, Remote};

#[derive(Args)]
pub(super) struct RoutesArgs {
    #[command(flatten)]
    remote: Remote,
}

pub(super) async fn run(args: RoutesArgs) -> Answer {
    let client = Client::new(&args.remote)?;
    let answer = client.all("/v1/routes").await?;
    if client.json {
        return Ok(pretty(&answer));
    }
    let words = |v: &Value| v.as_array().into_iter().flatten().filter_map(Value::as_str).collect::<Vec<_>>().join(", ");
    let mut table = Table::new(["route", "match", "target", "uses", "policy"]);
    for r in items(&answer, "items") {
        table.row([
            cell(r, "name"),
            cell(&r["match"], "text"),
            cell(r, "target"),
            words(&r["uses"]),
            words(&r["policy"]),
        ]);
    }
    Ok(table.render("no routes: write them under gateway.routes in weft.yaml"))
}
