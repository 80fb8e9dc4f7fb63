//! The little of Weft's HTTP API that these services use.

use std::time::Duration;

use axum::http::{Method, Request, StatusCode, Uri, header};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::event::Event;

/// Longest answer read.
const ANSWER_BYTES: usize = 8 << 20;

/// A client of Weft's API; clones share its connections.
#[derive(Clone)]
pub struct Weft {
    base: String,
    client: Client<HttpConnector, Full<Bytes>>,
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// No answer: whether Weft did it is unknown.
    #[error("Weft does not answer: {0}")]
    Away(String),
    /// Weft said no.
    #[error("Weft answered {status} {code}: {detail}")]
    Refused {
        /// HTTP status.
        status: StatusCode,
        /// The problem's code.
        code: String,
        /// What it said.
        detail: String,
    },
}

impl Failure {
    /// Whether the lease was lost: the message is or will be delivered again, to whoever asks.
    pub fn is_stale(&self) -> bool {
        matches!(self, Self::Refused { status, .. } if *status == StatusCode::CONFLICT)
    }

    /// Whether what was asked about is gone.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { status, .. } if *status == StatusCode::NOT_FOUND)
    }
}

/// A message taken from a subscription.
#[derive(Debug, Deserialize)]
pub struct Delivery {
    /// Settles it.
    pub lease: String,
    /// What was published.
    pub event: Event,
}

impl Weft {
    /// A client of the API at `http://host:port`.
    pub fn new(uri: &Uri) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(Duration::from_secs(2)));
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(20))
            .build(connector);
        Self { base: uri.to_string().trim_end_matches('/').to_owned(), client }
    }

    /// Registers an instance, or renews it.
    pub async fn register(&self, service: &str, id: &str, instance: &Value) -> Result<(), Failure> {
        let path = format!("/v1/services/{service}/instances/{id}");
        self.call(Method::PUT, &path, Some(instance), &[], SHORT).await.map(drop)
    }

    /// Says that an instance still lives.
    pub async fn heartbeat(&self, service: &str, id: &str) -> Result<(), Failure> {
        let path = format!("/v1/services/{service}/instances/{id}/heartbeat");
        self.call(Method::POST, &path, Some(&json!({})), &[], SHORT).await.map(drop)
    }

    /// Takes an instance out.
    pub async fn deregister(&self, service: &str, id: &str) -> Result<(), Failure> {
        let path = format!("/v1/services/{service}/instances/{id}");
        self.call(Method::DELETE, &path, None, &[], SHORT).await.map(drop)
    }

    /// Publishes an event to `topics/NAME` or `queues/NAME`; a repeat within the channel's window is stored once,
    /// because the event's id is its dedup id.
    pub async fn publish(&self, channel: &str, event: &Event) -> Result<(), Failure> {
        let path = format!("/v1/{channel}/messages");
        let body = serde_json::to_value(event).expect("an event is JSON");
        let mut headers = vec![("content-type", "application/cloudevents+json"), ("weft-dedup-id", event.id.as_str())];
        headers.extend(event.traceparent.as_deref().map(|t| ("traceparent", t)));
        self.call(Method::POST, &path, Some(&body), &headers, LONG).await.map(drop)
    }

    /// Waits up to `wait` for messages of a subscription.
    pub async fn receive(&self, subscription: &str, max: u32, wait: Duration) -> Result<Vec<Delivery>, Failure> {
        #[derive(Deserialize)]
        struct Answer {
            messages: Vec<Delivery>,
        }
        let path = format!("/v1/subscriptions/{subscription}/receive");
        let body = json!({"max": max, "wait": format!("{}ms", wait.as_millis())});
        let answer = self.call(Method::POST, &path, Some(&body), &[], wait + LONG).await?;
        let answer: Answer = serde_json::from_slice(&answer)
            .map_err(|e| Failure::Away(format!("its answer to receive is not understood: {e}")))?;
        Ok(answer.messages)
    }

    /// Acknowledges a message and publishes what follows from it, in one commit.
    pub async fn commit(&self, lease: &str, topic: &str, events: &[Event]) -> Result<(), Failure> {
        let publish: Vec<Value> =
            events.iter().map(|e| json!({"topic": topic, "event": e, "dedup_id": e.id})).collect();
        let trace = events.iter().find_map(|e| e.traceparent.as_deref());
        let headers: Vec<_> = trace.map(|t| ("traceparent", t)).into_iter().collect();
        let body = json!({"ack": [lease], "publish": publish});
        self.call(Method::POST, "/v1/commit", Some(&body), &headers, LONG).await.map(drop)
    }

    /// Gives a message back, to be delivered again later.
    pub async fn nack(&self, lease: &str, delay: Duration, reason: &str) -> Result<(), Failure> {
        let body = json!({"leases": [lease], "delay": format!("{}ms", delay.as_millis()), "reason": reason});
        self.call(Method::POST, "/v1/messages/nack", Some(&body), &[], LONG).await.map(drop)
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        headers: &[(&str, &str)],
        limit: Duration,
    ) -> Result<Bytes, Failure> {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.base));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if body.is_some() && !headers.iter().any(|(name, _)| *name == "content-type") {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let bytes = body.map(|b| Bytes::from(b.to_string())).unwrap_or_default();
        let request = request.body(Full::new(bytes)).map_err(|e| Failure::Away(e.to_string()))?;
        let exchange = async {
            let answer = self.client.request(request).await.map_err(|e| Failure::Away(chain(&e)))?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), ANSWER_BYTES).collect().await;
            let body = body.map_err(|e| Failure::Away(e.to_string()))?.to_bytes();
            if status.is_success() { Ok(body) } else { Err(refusal(status, &body)) }
        };
        match tokio::time::timeout(limit, exchange).await {
            Ok(done) => done,
            Err(_) => Err(Failure::Away(format!("no answer to {path} in {limit:?}"))),
        }
    }
}

const SHORT: Duration = Duration::from_secs(5);
const LONG: Duration = Duration::from_secs(10);

fn refusal(status: StatusCode, body: &[u8]) -> Failure {
    let problem: Value = serde_json::from_slice(body).unwrap_or_default();
    let member = |name: &str| problem[name].as_str().unwrap_or_default().to_owned();
    Failure::Refused { status, code: member("code"), detail: member("detail") }
}

/// An error with its causes, which is where hyper says what happened.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(c) = cause {
        text.push_str(": ");
        text.push_str(&c.to_string());
        cause = c.source();
    }
    text
}
