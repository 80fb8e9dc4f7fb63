//! `weft versions`

use clap::Args;

use super::client::{Client, pretty};
use super::table::{Table, cell, items};
use super::{Answer, Remote};

#[derive(Args)]
pub(super) struct VersionsArgs {
    #[command(flatten)]
    remote: Remote,
}

pub(super) async fn run(args: VersionsArgs) -> Answer {
    let client = Client::new(&args.remote)?;
    let answer = client.get("/v1/versions").await?;
    if client.json {
        return Ok(pretty(&answer));
    }
    let mut table = Table::new(["route", "version", "deprecated", "sunset", "requests", "consumer"]);
    for v in items(&answer, "items") {
        let row = |requests: String, consumer: String| {
            [cell(v, "route"), cell(v, "version"), cell(v, "deprecated"), cell(v, "sunset"), requests, consumer]
        };
        let consumers = items(v, "consumers");
        if consumers.is_empty() {
            table.row(row("0".into(), String::new()));
        }
        for c in consumers {
            table.row(row(cell(c, "requests"), cell(c, "consumer")));
        }
        if v["other_consumers"].as_u64().unwrap_or(0) > 0 {
            table.row(row(cell(v, "other_consumers"), "others".into()));
        }
        if v["refused_after_sunset"].as_u64().unwrap_or(0) > 0 {
            table.row(row(cell(v, "refused_after_sunset"), "refused: after its sunset".into()));
        }
    }
    Ok(table.render("no versions: routes declare them with 'versions:'"))
}
