//! `POST /v1/commit`, event streams and state keys.

use std::sync::Arc;

use axum::extract::{FromRef, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json as Answer, Router};
use bytes::Bytes;
use http::{HeaderMap, header};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use weft_broker::{Broker, Channel, Commit, Lease, Publish, PublishOptions};
use weft_core::{Envelope, Name, limits};
use weft_flow::Flow;
use weft_store::{Batch, Expect, Op, Store, Version};

use super::Api;
use super::messages::{caller, duration, page_limit};
use super::problem::{Json, Path, Problem, Query, code};

/// The store's keyspace of `put`.
const STATE: &str = "state";
/// Streams of `append` in the store.
const EVENTS: &str = "events/";
/// Bytes of a stream's or key's name.
const NAME_BYTES: usize = 400;
/// Tries of a commit whose saga key was taken by another call while it was put together.
const TRIES: usize = 4;

pub(super) fn routes() -> Router<Api> {
    table()
}

impl FromRef<Api> for Arc<dyn Store> {
    fn from_ref(api: &Api) -> Arc<dyn Store> {
        api.store.clone()
    }
}

fn table<S>() -> Router<S>
where
    S: Clone + Send + Sync + 'static,
    Broker: FromRef<S>,
    Flow: FromRef<S>,
    Arc<dyn Store>: FromRef<S>,
{
    Router::new()
        .route("/v1/commit", post(commit))
        .route("/v1/streams/{stream}/events", get(events))
        .route("/v1/state/{space}/{key}", get(state))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    #[serde(default)]
    expect: Vec<ExpectOne>,
    #[serde(default)]
    ack: Vec<String>,
    #[serde(default)]
    publish: Vec<PublishOne>,
    #[serde(default)]
    append: Vec<AppendOne>,
    #[serde(default)]
    put: Vec<PutOne>,
    #[serde(default)]
    start_saga: Vec<StartOne>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ExpectOne {
    stream: Option<String>,
    space: Option<String>,
    key: Option<String>,
    version: VersionOne,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(untagged)]
enum VersionOne {
    Exactly(u64),
    Word(Word),
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Word {
    Absent,
    Exists,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PublishOne {
    topic: Option<String>,
    queue: Option<String>,
    event: Value,
    dedup_id: Option<String>,
    delay: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AppendOne {
    stream: String,
    events: Vec<Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PutOne {
    space: String,
    key: String,
    /// As it was written, so that numbers keep their digits.
    value: Option<Box<RawValue>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StartOne {
    saga: String,
    key: Option<String>,
    #[serde(default)]
    input: Value,
}

async fn commit(
    State(broker): State<Broker>,
    State(flow): State<Flow>,
    headers: HeaderMap,
    Json(body): Json<Body>,
) -> Result<Answer<Value>, Problem> {
    let (ctx, remote) = caller(&headers);
    let mut batch = Batch::new();
    for (i, e) in body.expect.iter().enumerate() {
        batch.expect.push(expectation(e).map_err(|p| at("expect", i, p))?);
    }
    let mut publish = Vec::with_capacity(body.publish.len());
    for (i, p) in body.publish.into_iter().enumerate() {
        publish.push(message(p).map_err(|p| at("publish", i, p))?);
    }
    // Events of a stream are part of the trace too: of the caller's, or of the message that led to them.
    let cause = remote.or_else(|| body.ack.first().and_then(|t| Lease::decode(t)).map(|l| l.trace));
    let mut appended = Vec::with_capacity(body.append.len());
    for (i, a) in body.append.iter().enumerate() {
        let stream = stream_name(&a.stream).map_err(|p| at("append", i, p))?;
        for v in &a.events {
            let mut e = Envelope::from_json(v).map_err(|e| at("append", i, e.into()))?;
            if let Some(t) = cause
                && (remote.is_some() || e.traceparent().is_none())
            {
                e.extensions.insert("traceparent".into(), t.to_traceparent());
            }
            batch.ops.push(Op::Append(stream.clone(), e.encode()));
        }
        appended.push((a.stream.clone(), a.events.len()));
    }
    for (i, p) in body.put.iter().enumerate() {
        batch.ops.push(put(p).map_err(|p| at("put", i, p))?);
    }
    let own = batch.expect.len();
    let commit = Commit { ack: body.ack, publish };
    for turn in 1.. {
        let mut all = batch.clone();
        let mut ids = Vec::with_capacity(body.start_saga.len());
        for (i, s) in body.start_saga.iter().enumerate() {
            let staged = flow.stage_start(&ctx, &s.saga, s.key.as_deref(), s.input.clone()).await;
            let staged = staged.map_err(|e| at("start_saga", i, e.into()))?;
            ids.push(staged.id);
            all = all.and(staged.batch);
        }
        let done = broker.commit(&ctx, commit.clone(), all).await;
        // Not knowing whether it started, the saga engine looks.
        if !ids.is_empty() && !matches!(&done, Err(e) if !is_unknown(e)) {
            flow.launch(&ids);
        }
        match done {
            Ok(r) => {
                let mut seqs = r.extra.iter();
                let append: Vec<Value> = appended
                    .iter()
                    .map(|(stream, n)| json!({"stream": stream, "version": seqs.by_ref().take(*n).last()}))
                    .collect();
                let started: Vec<Value> = ids.iter().map(|id| json!({ "id": id })).collect();
                return Ok(Answer(json!({
                    "position": r.position,
                    "publish": r.publish,
                    "append": append,
                    "start_saga": started,
                })));
            }
            // Another call started a saga with the same key meanwhile: now the key is known.
            Err(weft_broker::Error::Store(weft_store::Error::Precondition { index, .. }))
                if index >= own && turn < TRIES => {}
            Err(e) => return Err(refused(e, own)),
        }
    }
    unreachable!("the last try returns")
}

fn is_unknown(e: &weft_broker::Error) -> bool {
    matches!(e, weft_broker::Error::Store(weft_store::Error::Unknown { .. }) | weft_broker::Error::Closed)
}

/// Names the member of the request that was refused.
fn refused(e: weft_broker::Error, own: usize) -> Problem {
    use weft_broker::Error as E;
    let member = match &e {
        E::LeaseStale { index, .. } | E::LeaseUnknown { index } => Some(format!("ack[{index}]")),
        E::Event { index, .. } | E::DelayOnTopic { index, .. } => Some(format!("publish[{index}]")),
        E::Store(weft_store::Error::Precondition { index, .. }) if *index < own => Some(format!("expect[{index}]")),
        E::Store(weft_store::Error::Precondition { .. }) => Some("start_saga".to_owned()),
        _ => None,
    };
    let actual = match &e {
        E::Store(weft_store::Error::Precondition { actual, .. }) => Some(*actual),
        _ => None,
    };
    let mut p = Problem::from(e);
    if let Some(m) = member {
        p = p.with("member", m);
    }
    if let Some(a) = actual {
        p = p.with("actual", a);
    }
    p
}

fn at(list: &str, index: usize, p: Problem) -> Problem {
    let member = format!("{list}[{index}]");
    let again = Problem::new(p.code(), format!("{member}: {}", p.detail())).with("member", member);
    match p.headers().get(header::RETRY_AFTER) {
        Some(v) => again.with_header(header::RETRY_AFTER, v.clone()),
        None => again,
    }
}

fn bad(detail: impl Into<String>) -> Problem {
    Problem::new(code::BAD_REQUEST, detail)
}

fn expectation(e: &ExpectOne) -> Result<Expect, Problem> {
    let version = match e.version {
        VersionOne::Exactly(0) | VersionOne::Word(Word::Absent) => Version::Absent,
        VersionOne::Exactly(n) => Version::Exactly(n),
        VersionOne::Word(Word::Exists) => Version::Exists,
    };
    match (&e.stream, &e.space, &e.key) {
        (Some(s), None, None) => Ok(Expect::Stream(stream_name(s)?, version)),
        (None, Some(space), Some(key)) => Ok(Expect::Key { space: STATE, key: state_key(space, key)?, version }),
        _ => Err(bad("name either a stream, or a space and a key")),
    }
}

fn message(p: PublishOne) -> Result<Publish, Problem> {
    let channel = match (&p.topic, &p.queue) {
        (Some(t), None) => Channel::Topic(Name::new(t)?),
        (None, Some(q)) => Channel::Queue(Name::new(q)?),
        _ => return Err(bad("name either a topic or a queue")),
    };
    let delay = p.delay.as_deref().map(|d| duration("delay", d, limits::DELAY)).transpose()?;
    let event = Envelope::from_json(&p.event)?;
    Ok(Publish { channel, event, options: PublishOptions { dedup_id: p.dedup_id, delay } })
}

fn stream_name(s: &str) -> Result<weft_store::StreamName, Problem> {
    named("stream", s)?;
    Ok(format!("{EVENTS}{s}").into())
}

fn named(what: &str, s: &str) -> Result<(), Problem> {
    if s.is_empty() || s.len() > NAME_BYTES || s.chars().any(char::is_control) {
        let shown: String = s.chars().take(80).collect();
        let detail = format!("the {what} '{shown}' is not from 1 to {NAME_BYTES} bytes without control characters");
        return Err(Problem::new(code::INVALID_NAME, detail));
    }
    Ok(())
}

/// Space and key as one key of the store; a space has no zero byte, so pairs do not run into each other.
fn state_key(space: &str, key: &str) -> Result<Bytes, Problem> {
    let space = Name::new(space)?;
    named("key", key)?;
    Ok(format!("{space}\0{key}").into())
}

fn put(p: &PutOne) -> Result<Op, Problem> {
    let key = state_key(&p.space, &p.key)?;
    match &p.value {
        None => Ok(Op::Delete { space: STATE, key }),
        Some(v) if v.get().len() > limits::MESSAGE_BYTES => {
            let detail = format!("the value has {} bytes, the limit is {}", v.get().len(), limits::MESSAGE_BYTES);
            Err(Problem::new(code::TOO_LARGE, detail).with("limit", limits::MESSAGE_BYTES))
        }
        Some(v) => Ok(Op::Put { space: STATE, key, value: v.get().to_owned().into() }),
    }
}

#[derive(Deserialize)]
struct EventsQuery {
    from: Option<u64>,
    limit: Option<usize>,
    cursor: Option<String>,
}

async fn events(
    State(store): State<Arc<dyn Store>>,
    Path(stream): Path<String>,
    Query(q): Query<EventsQuery>,
) -> Result<Response, Problem> {
    let name = stream_name(&stream)?;
    let limit = page_limit(q.limit)?;
    let from = match &q.cursor {
        Some(c) => {
            c.parse().map_err(|_| Problem::new(code::INVALID_QUERY, "the cursor is not one that a listing gave"))?
        }
        None => q.from.unwrap_or(1).max(1),
    };
    let Some(info) = store.stream(&name) else {
        return Err(Problem::new(code::NOT_FOUND, format!("there is no stream '{stream}'")));
    };
    let records = store.read(&name, from, limit, limits::API_BODY_BYTES).await?;
    let next = records.last().filter(|r| r.seq < info.last).map(|r| (r.seq + 1).to_string());
    let items: Vec<Value> = records
        .into_iter()
        .map(|r| {
            let event = r.payload.ok().and_then(|p| Envelope::decode(p).ok());
            json!({
                "version": r.seq,
                "position": r.position,
                "time": r.time.to_string(),
                "damaged": event.is_none(),
                "event": event.map(|e| e.to_json()),
            })
        })
        .collect();
    let etag = [(header::ETAG, format!("\"{}\"", info.last))];
    Ok((etag, Answer(json!({ "items": items, "next": next }))).into_response())
}

async fn state(
    State(store): State<Arc<dyn Store>>,
    Path((space, key)): Path<(String, String)>,
) -> Result<Response, Problem> {
    let found = store.get(STATE, &state_key(&space, &key)?).await?;
    let Some(v) = found else {
        return Err(Problem::new(code::NOT_FOUND, format!("there is no key '{key}' in space '{space}'")));
    };
    let head = [(header::CONTENT_TYPE, "application/json".to_owned()), (header::ETAG, format!("\"{}\"", v.version))];
    Ok((head, v.bytes).into_response())
}

#[cfg(test)]
mod tests;
