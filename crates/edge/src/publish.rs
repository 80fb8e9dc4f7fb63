//! Publishing over HTTP: a request's headers and body become events, the broker takes them in one commit, the answer is
//! their receipts. Shared by `POST /v1/{queues,topics}/NAME/messages` and by routes to a queue or topic.

use bytes::Bytes;
use http::HeaderMap;
use serde_json::{Value, json};
use weft_broker::{Broker, Channel, Error, Publish, PublishOptions};
use weft_core::{Class, Classify as _, Context, units};

use crate::api::problem::{Problem, code};
use crate::cloudevents;

/// Publishes the events of a request; all or none. `source` is the `source` of plain data. Answers
/// `{"receipts": [{"id", "position", "duplicate"}]}`.
pub async fn publish(
    broker: &Broker,
    ctx: &Context,
    channel: &Channel,
    headers: &HeaderMap,
    body: Bytes,
    source: &str,
) -> Result<Value, Problem> {
    let text = |name: &'static str| match headers.get(name).map(|v| v.to_str()) {
        None => Ok(None),
        Some(Ok(v)) => Ok(Some(v)),
        Some(Err(_)) => Err(Problem::new(code::INVALID_HEADER, format!("{name} has characters that are not ASCII"))),
    };
    let dedup_id = text("weft-dedup-id")?.map(str::to_owned);
    let delay = text("weft-delay")?.map(units::parse_duration).transpose();
    let delay = delay.map_err(|e| Problem::new(code::INVALID_HEADER, format!("Weft-Delay: {e}")))?;
    let events = cloudevents::parse(headers, body, source)?;
    if dedup_id.is_some() && events.len() > 1 {
        let detail = "Weft-Dedup-Id names one message and the request holds more: publish them one by one";
        return Err(Problem::new(code::INVALID_HEADER, detail));
    }
    let options = PublishOptions { dedup_id, delay };
    let publish =
        events.into_iter().map(|event| Publish { channel: channel.clone(), event, options: options.clone() }).collect();
    let receipts = broker.publish_all(ctx, publish).await?;
    Ok(json!({ "receipts": receipts }))
}

impl From<Error> for Problem {
    fn from(e: Error) -> Self {
        let code = match &e {
            Error::Event { .. } => code::INVALID_EVENT,
            Error::LeaseUnknown { .. } => code::LEASE_UNKNOWN,
            Error::Declaration { .. } | Error::DelayOnTopic { .. } => code::BAD_REQUEST,
            Error::LeaseStale { .. } => code::LEASE_STALE,
            Error::NotFound { .. } => code::NOT_FOUND,
            Error::FileOwned { .. } => code::OWNED_BY_FILE,
            Error::Full { .. } | Error::DedupFull { .. } | Error::Overloaded(_) => code::OVERLOADED,
            Error::TooMany { .. } => code::TOO_LARGE,
            Error::Closed => code::SHUTTING_DOWN,
            Error::Store(e) => return e.clone().into(),
        };
        let p = Problem::new(code, e.to_string());
        let p = match &e {
            Error::Event { index, .. }
            | Error::LeaseUnknown { index }
            | Error::LeaseStale { index, .. }
            | Error::DelayOnTopic { index, .. } => p.with("index", *index),
            _ => p,
        };
        match e.class() {
            Class::Overloaded | Class::Retryable => p.with_retry_after(std::time::Duration::from_secs(1)),
            _ => p,
        }
    }
}
