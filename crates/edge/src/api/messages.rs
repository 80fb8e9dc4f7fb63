//! Publish, receive, settle, list and declare queues, topics and subscriptions.

use std::time::Duration;

use axum::extract::{FromRef, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json as Answer, Router};
use http::{HeaderMap, StatusCode, Uri};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use weft_broker::{Broker, Channel, Delivery, Listing, NackOptions, ReceiveOptions, Settled, Source};
use weft_core::{Context, Envelope, Name, Trace, limits, units};

use super::Api;
use super::problem::{Json, OptionalJson, Path, Problem, Query, code, collect};

pub(super) fn routes() -> Router<Api> {
    table()
}

impl FromRef<Api> for Broker {
    fn from_ref(api: &Api) -> Broker {
        api.broker.clone()
    }
}

fn table<S>() -> Router<S>
where
    S: Clone + Send + Sync + 'static,
    Broker: FromRef<S>,
{
    Router::new()
        .route("/v1/queues", get(queues))
        .route("/v1/queues/{name}", get(one_queue).put(put_queue))
        .route("/v1/queues/{name}/messages", post(publish_queue).get(peek))
        .route("/v1/queues/{name}/receive", post(receive_queue))
        .route("/v1/queues/{name}/redrive", post(redrive))
        .route("/v1/topics", get(topics))
        .route("/v1/topics/{name}", get(one_topic).put(put_topic))
        .route("/v1/topics/{name}/messages", post(publish_topic))
        .route("/v1/subscriptions", get(subscriptions))
        .route("/v1/subscriptions/{name}", get(one_subscription).put(put_subscription))
        .route("/v1/subscriptions/{name}/receive", post(receive_subscription))
        .route("/v1/messages/ack", post(ack))
        .route("/v1/messages/nack", post(nack))
        .route("/v1/messages/extend", post(extend))
}

/// The caller's span, when it names one, as the cause of what this call does; it is stronger than what events say, and a
/// context that has a parent says so.
pub(super) fn caller(headers: &HeaderMap) -> (Context, Option<Trace>) {
    let remote = headers.get("traceparent").and_then(|v| v.to_str().ok()).and_then(Trace::parse);
    let remote = remote.map(|t| Trace { parent: Some(t.span_id), ..t });
    (remote.map_or_else(Context::root, Context::of), remote)
}

/// A duration member or header.
pub(super) fn duration(what: &str, text: &str, max: Duration) -> Result<Duration, Problem> {
    let d = units::parse_duration(text).map_err(|e| Problem::new(code::BAD_REQUEST, format!("{what}: {e}")))?;
    if d > max {
        let most = units::format_duration(max);
        return Err(Problem::new(code::BAD_REQUEST, format!("{what}: '{text}' is over the limit of {most}")));
    }
    Ok(d)
}

async fn publish_queue(
    State(broker): State<Broker>,
    Path(name): Path<String>,
    uri: Uri,
    headers: HeaderMap,
    body: axum::body::Body,
) -> Result<Response, Problem> {
    publish(&broker, Channel::Queue(Name::new(&name)?), &uri, &headers, body).await
}

async fn publish_topic(
    State(broker): State<Broker>,
    Path(name): Path<String>,
    uri: Uri,
    headers: HeaderMap,
    body: axum::body::Body,
) -> Result<Response, Problem> {
    publish(&broker, Channel::Topic(Name::new(&name)?), &uri, &headers, body).await
}

async fn publish(
    broker: &Broker,
    channel: Channel,
    uri: &Uri,
    headers: &HeaderMap,
    body: axum::body::Body,
) -> Result<Response, Problem> {
    let body = collect(body).await?;
    let receipts = crate::publish::publish(broker, &caller(headers).0, &channel, headers, body, uri.path()).await?;
    Ok((StatusCode::CREATED, Answer(receipts)).into_response())
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Receive {
    max: Option<usize>,
    wait: Option<String>,
    lease: Option<String>,
}

async fn receive_queue(
    State(broker): State<Broker>,
    Path(name): Path<String>,
    OptionalJson(r): OptionalJson<Receive>,
) -> Result<Answer<Value>, Problem> {
    receive(&broker, Source::Queue(Name::new(&name)?), r).await
}

async fn receive_subscription(
    State(broker): State<Broker>,
    Path(name): Path<String>,
    OptionalJson(r): OptionalJson<Receive>,
) -> Result<Answer<Value>, Problem> {
    receive(&broker, Source::Subscription(Name::new(&name)?), r).await
}

async fn receive(broker: &Broker, source: Source, r: Receive) -> Result<Answer<Value>, Problem> {
    let max = r.max.unwrap_or(1);
    if max == 0 || max > limits::RECEIVE_MESSAGES {
        let detail = format!("max is {max}; 1 to {} are allowed", limits::RECEIVE_MESSAGES);
        return Err(Problem::new(code::BAD_REQUEST, detail));
    }
    let options = ReceiveOptions {
        max,
        wait: r.wait.as_deref().map_or(Ok(Duration::ZERO), |w| duration("wait", w, limits::RECEIVE_WAIT))?,
        lease: lease(r.lease.as_deref())?,
    };
    let messages = broker.receive(source, options).await?;
    let shown: Vec<Value> = messages.iter().map(message).collect();
    Ok(Answer(json!({ "messages": shown })))
}

fn lease(text: Option<&str>) -> Result<Option<Duration>, Problem> {
    let lease = text.map(|l| duration("lease", l, limits::LEASE)).transpose()?;
    if lease.is_some_and(|l| l.is_zero()) {
        return Err(Problem::new(code::BAD_REQUEST, "lease: a lease of no time is none"));
    }
    Ok(lease)
}

fn message(d: &Delivery) -> Value {
    json!({
        "lease": d.token,
        "position": d.position,
        "attempt": d.attempt,
        "redelivered": d.redelivered(),
        "event": d.event.to_json(),
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Ack {
    leases: Vec<String>,
}

async fn ack(State(broker): State<Broker>, Json(a): Json<Ack>) -> Result<Answer<Value>, Problem> {
    Ok(settled("acked", &a.leases, broker.ack(&a.leases).await?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Nack {
    leases: Vec<String>,
    delay: Option<String>,
    reason: Option<String>,
    #[serde(default)]
    dead_letter: bool,
}

async fn nack(State(broker): State<Broker>, Json(n): Json<Nack>) -> Result<Answer<Value>, Problem> {
    let delay = n.delay.as_deref().map(|d| duration("delay", d, limits::DELAY)).transpose()?;
    let options = NackOptions { delay, reason: n.reason, dead_letter: n.dead_letter };
    Ok(settled("nacked", &n.leases, broker.nack(&n.leases, options).await?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Extend {
    leases: Vec<String>,
    lease: Option<String>,
}

async fn extend(State(broker): State<Broker>, Json(e): Json<Extend>) -> Result<Answer<Value>, Problem> {
    let by = lease(e.lease.as_deref())?;
    Ok(settled("extended", &e.leases, broker.extend(&e.leases, by).await?))
}

fn settled(word: &str, leases: &[String], s: Settled) -> Answer<Value> {
    let stale: Vec<&String> = s.stale.iter().map(|i| &leases[*i]).collect();
    Answer(json!({ word: s.done, "stale": stale }))
}

#[derive(Deserialize)]
struct Page {
    limit: Option<usize>,
    cursor: Option<String>,
}

impl Page {
    fn limit(&self) -> Result<usize, Problem> {
        page_limit(self.limit)
    }
}

/// How many a listing shows: 100 unless asked for fewer or, up to [`limits::LIST`], more.
pub(super) fn page_limit(asked: Option<usize>) -> Result<usize, Problem> {
    match asked.unwrap_or(100) {
        n if n == 0 || n > limits::LIST => {
            let detail = format!("limit is {n}; 1 to {} are allowed", limits::LIST);
            Err(Problem::new(code::INVALID_QUERY, detail))
        }
        n => Ok(n),
    }
}

#[derive(Serialize)]
struct List {
    items: Vec<Listing>,
    next: Option<String>,
}

fn page(all: Vec<Listing>, q: &Page) -> Result<Answer<List>, Problem> {
    let limit = q.limit()?;
    let mut items: Vec<Listing> =
        all.into_iter().filter(|l| q.cursor.as_deref().is_none_or(|c| l.name.as_str() > c)).take(limit + 1).collect();
    let more = items.len() > limit;
    items.truncate(limit);
    let next = items.last().filter(|_| more).map(|l| l.name.to_string());
    Ok(Answer(List { items, next }))
}

fn one(all: Vec<Listing>, kind: &str, name: &str) -> Result<Answer<Listing>, Problem> {
    let shown: String = name.chars().take(limits::NAME_BYTES).collect();
    let found = all.into_iter().find(|l| l.name.as_str() == name);
    found.map(Answer).ok_or_else(|| Problem::new(code::NOT_FOUND, format!("there is no {kind} '{shown}'")))
}

async fn queues(State(b): State<Broker>, Query(q): Query<Page>) -> Result<Answer<List>, Problem> {
    page(b.queues().await?, &q)
}

async fn topics(State(b): State<Broker>, Query(q): Query<Page>) -> Result<Answer<List>, Problem> {
    page(b.topics().await?, &q)
}

async fn subscriptions(State(b): State<Broker>, Query(q): Query<Page>) -> Result<Answer<List>, Problem> {
    page(b.subscriptions().await?, &q)
}

async fn one_queue(State(b): State<Broker>, Path(name): Path<String>) -> Result<Answer<Listing>, Problem> {
    one(b.queues().await?, "queue", &name)
}

async fn one_topic(State(b): State<Broker>, Path(name): Path<String>) -> Result<Answer<Listing>, Problem> {
    one(b.topics().await?, "topic", &name)
}

async fn one_subscription(State(b): State<Broker>, Path(name): Path<String>) -> Result<Answer<Listing>, Problem> {
    one(b.subscriptions().await?, "subscription", &name)
}

fn put(made: bool, listing: Answer<Listing>) -> Response {
    let status = if made { StatusCode::CREATED } else { StatusCode::OK };
    (status, listing).into_response()
}

async fn put_queue(
    State(b): State<Broker>,
    Path(name): Path<String>,
    Json(members): Json<Value>,
) -> Result<Response, Problem> {
    let made = b.declare_queue(Name::new(&name)?, &members).await?;
    Ok(put(made, one(b.queues().await?, "queue", &name)?))
}

async fn put_topic(
    State(b): State<Broker>,
    Path(name): Path<String>,
    Json(members): Json<Value>,
) -> Result<Response, Problem> {
    let made = b.declare_topic(Name::new(&name)?, &members).await?;
    Ok(put(made, one(b.topics().await?, "topic", &name)?))
}

async fn put_subscription(
    State(b): State<Broker>,
    Path(name): Path<String>,
    Json(members): Json<Value>,
) -> Result<Response, Problem> {
    let made = b.declare_subscription(Name::new(&name)?, &members).await?;
    Ok(put(made, one(b.subscriptions().await?, "subscription", &name)?))
}

/// Peeks: what is in the queue, in order, without taking it.
async fn peek(
    State(b): State<Broker>,
    Path(name): Path<String>,
    Query(q): Query<Page>,
) -> Result<Answer<Value>, Problem> {
    let limit = q.limit()?;
    let after = match &q.cursor {
        None => 0,
        Some(c) => {
            c.parse().map_err(|_| Problem::new(code::INVALID_QUERY, "the cursor is not one that a listing gave"))?
        }
    };
    let found = b.peek(&Name::new(&name)?, after, limit + 1).await?;
    let more = found.len() > limit;
    let shown = &found[..found.len().min(limit)];
    let items: Vec<Value> = shown
        .iter()
        .map(|m| {
            json!({
                "position": m.position,
                "time": m.time.to_string(),
                "state": m.state,
                "attempt": m.attempts,
                "damaged": m.event.is_none(),
                "event": m.event.as_ref().map(Envelope::to_json),
            })
        })
        .collect();
    let next = shown.last().filter(|_| more).map(|m| m.seq.to_string());
    Ok(Answer(json!({ "items": items, "next": next })))
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Redrive {
    max: Option<usize>,
    to: Option<String>,
}

async fn redrive(
    State(b): State<Broker>,
    Path(name): Path<String>,
    OptionalJson(r): OptionalJson<Redrive>,
) -> Result<Answer<Value>, Problem> {
    let queue = Name::new(&name)?;
    let to = r.to.as_deref().map(Name::new).transpose()?.map(|to| {
        let topic = Channel::Topic(to.clone());
        let queue = Channel::Queue(to);
        if !b.has(&queue) && b.has(&topic) { topic } else { queue }
    });
    let moved = b.redrive(&queue, r.max.unwrap_or(100), to).await?;
    Ok(Answer(json!({ "moved": moved })))
}

#[cfg(test)]
mod tests;
