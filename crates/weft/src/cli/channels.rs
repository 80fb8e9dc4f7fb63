//! `weft queues`, `weft topics`, `weft publish`, `weft receive`

use std::io::Read;
use std::time::Duration;

use bytes::Bytes;
use clap::{Args, Subcommand, ValueEnum};
use http::Method;
use serde_json::{Value, json};
use weft_core::{limits, units};

use super::client::{Client, Error, path, pretty};
use super::table::{Table, cell, clean, items};
use super::{Answer, Remote};

#[derive(Args)]
#[command(args_conflicts_with_subcommands = false)]
pub(super) struct QueuesArgs {
    /// Only this queue
    name: Option<String>,
    #[command(subcommand)]
    action: Option<QueueAction>,
    #[command(flatten)]
    remote: Remote,
}

#[derive(Subcommand)]
enum QueueAction {
    /// Shows messages without taking them
    Peek {
        /// How many at most
        #[arg(long, default_value_t = 20)]
        limit: usize,
    },
    /// Moves dead letters back to where they came from
    Redrive {
        /// How many at most
        #[arg(long)]
        max: Option<usize>,
        /// Another queue to move them to
        #[arg(long, value_name = "QUEUE")]
        to: Option<String>,
    },
}

pub(super) async fn queues(args: QueuesArgs) -> Answer {
    let client = Client::new(&args.remote)?;
    match (args.name, args.action) {
        (None, None) => {
            let answer = client.all("/v1/queues").await?;
            Ok(channels(
                &answer,
                items(&answer, "items"),
                client.json,
                "queue",
                "no queues yet: weft publish queue NAME makes one",
            ))
        }
        (Some(name), None) => {
            let answer = client.get(&path(&["v1", "queues", &name])).await?;
            Ok(channels(&answer, std::slice::from_ref(&answer), client.json, "queue", ""))
        }
        (None, Some(_)) => Err(Error::Input("name the queue: weft queues NAME peek".to_owned())),
        (Some(name), Some(QueueAction::Peek { limit })) => {
            let answer = client.get(&format!("{}?limit={limit}", path(&["v1", "queues", &name, "messages"]))).await?;
            if client.json {
                return Ok(pretty(&answer));
            }
            Ok(messages(items(&answer, "items"), &format!("no messages in {name}")))
        }
        (Some(name), Some(QueueAction::Redrive { max, to })) => {
            let mut body = json!({});
            if let Some(max) = max {
                body["max"] = max.into();
            }
            if let Some(to) = &to {
                body["to"] = to.as_str().into();
            }
            let answer = client.post(&path(&["v1", "queues", &name, "redrive"]), &body, Duration::ZERO).await?;
            let moved = answer["moved"].as_u64().unwrap_or(0);
            let goal = to.unwrap_or_else(|| "where they came from".to_owned());
            let text = format!("moved {moved} message{} back to {goal}\n", if moved == 1 { "" } else { "s" });
            Ok(if client.json { pretty(&answer) } else { text })
        }
    }
}

fn channels(answer: &Value, list: &[Value], json: bool, what: &str, nothing: &str) -> String {
    if json {
        return pretty(answer);
    }
    let mut table =
        Table::new([what, "ready", "in flight", "delayed", "dead letters", "oldest", "durability", "origin"]);
    for q in list {
        let k = |key| cell(q, key);
        let flow = [k("ready"), k("in_flight"), k("delayed"), k("dead_letters"), oldest(q)];
        let [ready, in_flight, delayed, dead, oldest] = flow;
        table.row([k("name"), ready, in_flight, delayed, dead, oldest, k("durability"), k("origin")]);
    }
    table.render(nothing)
}

/// The age of the oldest message, however the answer writes it.
fn oldest(q: &Value) -> String {
    match q["oldest_age_ms"].as_u64() {
        Some(ms) => units::format_duration(Duration::from_millis(ms)),
        None => cell(q, "oldest_age"),
    }
}

#[derive(Args)]
pub(super) struct TopicsArgs {
    #[command(flatten)]
    remote: Remote,
}

pub(super) async fn topics(args: TopicsArgs) -> Answer {
    let client = Client::new(&args.remote)?;
    let topics = client.all("/v1/topics").await?;
    let subscriptions = client.all("/v1/subscriptions").await?;
    if client.json {
        return Ok(pretty(&json!({"topics": topics, "subscriptions": subscriptions})));
    }
    let mut table = Table::new(["topic", "partitions", "records", "oldest", "durability", "origin"]);
    for t in items(&topics, "items") {
        let k = |key| cell(t, key);
        table.row([k("name"), k("partitions"), k("ready"), oldest(t), k("durability"), k("origin")]);
    }
    let mut subs = Table::new([
        "subscription",
        "topic",
        "ready",
        "in flight",
        "delayed",
        "dead letters",
        "oldest",
        "push",
        "origin",
    ]);
    for s in items(&subscriptions, "items") {
        let k = |key| cell(s, key);
        let [ready, in_flight, delayed, dead] = ["ready", "in_flight", "delayed", "dead_letters"].map(k);
        let push = format!("{}{}", cell(&s["push"], "service"), cell(&s["push"], "path"));
        subs.row([k("name"), k("topic"), ready, in_flight, delayed, dead, oldest(s), push, k("origin")]);
    }
    let topics = table.render("no topics yet: weft publish topic NAME makes one");
    Ok(format!("{topics}\n{}", subs.render("no subscriptions")))
}

#[derive(Clone, Copy, ValueEnum)]
enum Channel {
    Topic,
    Queue,
}

#[derive(Args)]
pub(super) struct PublishArgs {
    /// Topic or queue
    #[arg(value_enum)]
    channel: Channel,
    /// Its name
    name: String,
    /// CloudEvents type
    #[arg(long = "type", value_name = "TYPE")]
    ty: Option<String>,
    /// CloudEvents subject
    #[arg(long)]
    subject: Option<String>,
    /// JSON, @FILE, or - for standard input
    #[arg(long, value_name = "JSON|@FILE|-", allow_hyphen_values = true)]
    data: Option<String>,
    /// Dedup id: the same id within the channel's window is stored once
    #[arg(long, value_name = "ID")]
    dedup_id: Option<String>,
    /// Delivers it later (queues)
    #[arg(long, value_name = "DURATION")]
    delay: Option<String>,
    #[command(flatten)]
    remote: Remote,
}

pub(super) async fn publish(args: PublishArgs) -> Answer {
    let client = Client::new(&args.remote)?;
    let kind = match args.channel {
        Channel::Topic => "topics",
        Channel::Queue => "queues",
    };
    let data = data(args.data.as_deref())?;
    // Structured mode carries every attribute without header escapes.
    let mut event = json!({
        "specversion": "1.0",
        "id": weft_core::Id::new().to_string(),
        "source": "weft-cli",
        "type": args.ty.as_deref().unwrap_or("message"),
    });
    if let Some(subject) = &args.subject {
        event["subject"] = subject.as_str().into();
    }
    if let Some(data) = data {
        event["datacontenttype"] = "application/json".into();
        event["data"] = data;
    }
    let mut headers = vec![("content-type", "application/cloudevents+json")];
    if let Some(id) = &args.dedup_id {
        headers.push(("weft-dedup-id", id));
    }
    if let Some(delay) = &args.delay {
        units::parse_duration(delay).map_err(|e| Error::Input(e.to_string()))?;
        headers.push(("weft-delay", delay));
    }
    let body = Bytes::from(event.to_string());
    let path = path(&["v1", kind, &args.name, "messages"]);
    let answer = client.call(Method::POST, &path, Some(body), &headers, Duration::ZERO).await?;
    if client.json {
        return Ok(pretty(&answer));
    }
    let receipt = &answer["receipts"][0];
    let again = if receipt["duplicate"] == true { " (a repeat: it was stored before)" } else { "" };
    Ok(format!("{} at {}{again}\n", clean(&cell(receipt, "id")), clean(&cell(receipt, "position"))))
}

fn data(given: Option<&str>) -> Result<Option<Value>, Error> {
    let Some(given) = given else { return Ok(None) };
    let limit = limits::API_BODY_BYTES as u64;
    let read = |what: &str, from: &mut dyn Read| {
        let mut text = String::new();
        from.take(limit).read_to_string(&mut text).map_err(|e| Error::Input(format!("cannot read {what}: {e}")))?;
        Ok(text)
    };
    let text = match given {
        "-" => read("standard input", &mut std::io::stdin())?,
        file if file.starts_with('@') => {
            let name = &file[1..];
            let mut file = std::fs::File::open(name).map_err(|e| Error::Input(format!("cannot read {name}: {e}")))?;
            read(name, &mut file)?
        }
        text => text.to_owned(),
    };
    let wrong = |e: serde_json::Error| {
        Error::Input(format!("the data is not JSON: {e}\n  A text is written in quotes: --data '\"hello\"'"))
    };
    serde_json::from_str(&text).map(Some).map_err(wrong)
}

#[derive(Clone, Copy, ValueEnum)]
enum From {
    Queue,
    Subscription,
}

#[derive(Args)]
pub(super) struct ReceiveArgs {
    /// Queue or subscription
    #[arg(value_enum)]
    from: From,
    /// Its name
    name: String,
    /// How many at most
    #[arg(long, default_value_t = 1)]
    max: usize,
    /// How long to wait for the first
    #[arg(long, value_name = "DURATION", default_value = "0s")]
    wait: String,
    /// Acknowledges what was received; without it the messages are delivered again when their lease ends
    #[arg(long)]
    ack: bool,
    #[command(flatten)]
    remote: Remote,
}

pub(super) async fn receive(args: ReceiveArgs) -> Answer {
    let client = Client::new(&args.remote)?;
    let kind = match args.from {
        From::Queue => "queues",
        From::Subscription => "subscriptions",
    };
    let wait = units::parse_duration(&args.wait).map_err(|e| Error::Input(e.to_string()))?;
    let body = json!({"max": args.max, "wait": args.wait});
    let answer = client.post(&path(&["v1", kind, &args.name, "receive"]), &body, wait).await?;
    let received = items(&answer, "messages");
    let mut out = match client.json {
        true => pretty(&answer),
        false => messages(received, &format!("no messages in {}", args.name)),
    };
    if args.ack && !received.is_empty() {
        let leases: Vec<_> = received.iter().map(|m| m["lease"].clone()).collect();
        let answer = client.post("/v1/messages/ack", &json!({"leases": leases}), Duration::ZERO).await?;
        if !client.json {
            out += &format!("acknowledged {}\n", cell(&answer, "acked"));
        }
        let stale = items(&answer, "stale").len();
        if stale > 0 {
            return Err(Error::Input(format!(
                "{stale} leases ran out before they were acknowledged; those messages come again"
            )));
        }
    }
    Ok(out)
}

/// Messages one below the other, their data whole.
fn messages(list: &[Value], nothing: &str) -> String {
    if list.is_empty() {
        return format!("{nothing}\n");
    }
    let mut out = String::new();
    for m in list {
        let e = &m["event"];
        let mut head = format!("{}  {}", cell(m, "position"), cell(e, "type"));
        for (name, value) in [("subject", cell(e, "subject")), ("id", cell(e, "id")), ("source", cell(e, "source"))] {
            if !value.is_empty() {
                head += &format!("  {name}={value}");
            }
        }
        if let Some(attempt) = m["attempt"].as_u64().filter(|a| *a > 1) {
            head += &format!("  attempt {attempt}");
        }
        if let Some(state) = m["state"].as_str() {
            head += &format!("  {state}");
        }
        out += &clean(&head);
        out.push('\n');
        if !e["weftdeadreason"].is_null() {
            let dead = format!(
                "  dead: {} (from {}, after {})",
                cell(e, "weftdeadreason"),
                cell(e, "weftdeadorigin"),
                cell(e, "weftdeadcount")
            );
            out += &clean(&dead);
            out.push('\n');
        }
        let data = match (&e["data"], &e["data_base64"]) {
            (Value::Null, Value::Null) => continue,
            (Value::Null, base64) => format!("base64 {}", base64.as_str().unwrap_or_default()),
            (Value::String(s), _) => s.clone(),
            (data, _) => data.to_string(),
        };
        out += &format!("  {}\n", clean(&data));
    }
    out
}
