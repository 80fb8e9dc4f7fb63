//! `weft trace`

use clap::Args;
use weft_telemetry::{TraceView, tree};

use super::client::{Client, Error, path, pretty};
use super::table::{Table, cell, items};
use super::{Answer, Remote};

#[derive(Args)]
pub(super) struct TraceArgs {
    /// Trace id: 32 hexadecimal digits. Without one the newest traces are listed
    id: Option<String>,
    /// How many to list
    #[arg(long, default_value_t = 20)]
    limit: usize,
    #[command(flatten)]
    remote: Remote,
}

pub(super) async fn run(args: TraceArgs) -> Answer {
    let client = Client::new(&args.remote)?;
    let Some(id) = &args.id else {
        let answer = client.get(&format!("/v1/traces?limit={}", args.limit)).await?;
        if client.json {
            return Ok(pretty(&answer));
        }
        let mut table = Table::new(["trace", "root", "start", "duration", "spans", "errors"]);
        for t in items(&answer, "items") {
            let duration = t["duration_us"]
                .as_u64()
                .map_or(String::new(), |us| weft_core::units::format_duration(std::time::Duration::from_micros(us)));
            let k = |key| cell(t, key);
            table.row([k("trace_id"), k("name"), k("start"), duration, k("spans"), k("errors")]);
        }
        return Ok(table.render("no traces yet: send a request through the gateway"));
    };
    let answer = client.get(&path(&["v1", "traces", id])).await?;
    if client.json {
        return Ok(pretty(&answer));
    }
    let view: TraceView = serde_json::from_value(answer)
        .map_err(|e| Error::Input(format!("the answer is not a trace: {e}; is that Weft of another version?")))?;
    Ok(tree::render(&view.spans))
}
