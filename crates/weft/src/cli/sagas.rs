//! `weft sagas`

use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use weft_core::units;

use super::client::{Client, Error, escape, path, pretty};
use super::table::{Table, cell, clean, items};
use super::{Answer, Remote};

#[derive(Args)]
pub(super) struct SagasArgs {
    #[command(subcommand)]
    action: Option<Action>,
    #[command(flatten)]
    remote: Remote,
}

#[derive(Subcommand)]
enum Action {
    /// Lists sagas, newest first
    List {
        /// running, compensating, completed, compensated or parked
        #[arg(long)]
        status: Option<String>,
        /// Only of this definition
        #[arg(long)]
        saga: Option<String>,
        /// How many at most
        #[arg(long, default_value_t = 50)]
        limit: usize,
    },
    /// Shows one saga with its steps
    Show {
        /// Its id
        id: String,
        /// Waits this long for its end
        #[arg(long, value_name = "DURATION")]
        wait: Option<String>,
    },
    /// Starts a saga
    Start {
        /// The definition
        saga: String,
        /// Key: the same key starts it once
        #[arg(long)]
        key: Option<String>,
        /// Input as JSON
        #[arg(long, value_name = "JSON", default_value = "{}")]
        input: String,
    },
    /// Lets a parked saga go on where it stands
    Retry {
        /// Its id
        id: String,
    },
    /// Makes a running saga compensate
    Cancel {
        /// Its id
        id: String,
    },
}

pub(super) async fn run(args: SagasArgs) -> Answer {
    let client = Client::new(&args.remote)?;
    let action = args.action.unwrap_or(Action::List { status: None, saga: None, limit: 50 });
    let (answer, text) = match action {
        Action::List { status, saga, limit } => {
            let mut query = format!("/v1/sagas?limit={limit}");
            for (name, value) in [("status", status), ("saga", saga)] {
                if let Some(value) = value {
                    query += &format!("&{name}={}", escape(&value));
                }
            }
            let answer = client.get(&query).await?;
            let text = list(&answer);
            (answer, text)
        }
        Action::Show { id, wait } => {
            let base = path(&["v1", "sagas", &id]);
            let answer = match &wait {
                Some(wait) => {
                    let long = units::parse_duration(wait).map_err(|e| Error::Input(e.to_string()))?;
                    let path = format!("{base}?wait={}", escape(wait));
                    client.call(http::Method::GET, &path, None, &[], long).await?
                }
                None => client.get(&base).await?,
            };
            let text = show(&answer);
            (answer, text)
        }
        Action::Start { saga, key, input } => {
            let input: Value =
                serde_json::from_str(&input).map_err(|e| Error::Input(format!("the input is not JSON: {e}")))?;
            let mut body = json!({"saga": saga, "input": input});
            if let Some(key) = key {
                body["key"] = key.into();
            }
            let answer = client.post("/v1/sagas", &body, Duration::ZERO).await?;
            let id = clean(&cell(&answer, "id"));
            let text =
                format!("{id} {}\nfollow it: weft sagas show {id} --wait 30s\n", clean(&cell(&answer, "status")));
            (answer, text)
        }
        Action::Retry { id } => settle(&client, &id, "retry").await?,
        Action::Cancel { id } => settle(&client, &id, "cancel").await?,
    };
    Ok(if client.json { pretty(&answer) } else { text })
}

async fn settle(client: &Client, id: &str, what: &str) -> Result<(Value, String), Error> {
    let answer = client.post(&path(&["v1", "sagas", id, what]), &json!({}), Duration::ZERO).await?;
    let text = format!("{} {}\n", clean(id), clean(&cell(&answer, "status")));
    Ok((answer, text))
}

fn list(answer: &Value) -> String {
    let mut table = Table::new(["id", "saga", "key", "status", "created", "updated"]);
    for s in items(answer, "items") {
        table.row(["id", "saga", "key", "status", "created", "updated"].map(|k| cell(s, k)));
    }
    let mut out = table.render("no sagas: start one with weft sagas start NAME --input JSON");
    if answer["next"].is_string() {
        out += "... there are more: use --limit\n";
    }
    out
}

fn show(s: &Value) -> String {
    let mut out = String::new();
    for key in ["id", "saga", "key", "status", "created", "updated", "input", "result", "error", "cause", "trace_id"] {
        let value = cell(s, key);
        if !value.is_empty() {
            out += &format!("{key:<9} {}\n", clean(&value));
        }
    }
    let mut table = Table::new(["step", "status", "attempts", "started", "ended", "compensation", "result"]);
    for step in items(s, "steps") {
        let result = if step["error"].is_null() { cell(step, "result") } else { cell(step, "error") };
        let undo = &step["compensation"];
        let undone = match undo["error"].as_str() {
            Some(error) => format!("{}: {error}", cell(undo, "status")),
            None => cell(undo, "status"),
        };
        let k = |key| cell(step, key);
        table.row([k("name"), k("status"), k("attempts"), k("started"), k("ended"), cut(&undone), cut(&result)]);
    }
    out + "\n" + &table.render("no steps ran")
}

fn cut(text: &str) -> String {
    let short: String = text.chars().take(80).collect();
    if short.len() < text.len() { short + "..." } else { short }
}
