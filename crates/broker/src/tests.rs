//! The broker on a store in memory, under a clock the tests own.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use weft_core::{Context, Envelope, Name, Trace};
use weft_store::{Batch, Store};

use crate::testing::MemStore;
use crate::*;

mod commit;
mod declare;
mod deliver;
mod publish;
mod survive;

fn name(s: &str) -> Name {
    Name::new(s).unwrap()
}

fn queue(s: &str) -> Channel {
    Channel::Queue(name(s))
}

fn topic(s: &str) -> Channel {
    Channel::Topic(name(s))
}

fn from_queue(s: &str) -> Source {
    Source::Queue(name(s))
}

fn from_sub(s: &str) -> Source {
    Source::Subscription(name(s))
}

fn event(n: u64) -> Envelope {
    let mut e = Envelope::json("/test", "Test", &json!({ "n": n }));
    e.id = format!("e{n}");
    e
}

fn keyed(n: u64, key: &str) -> Envelope {
    Envelope { subject: Some(key.into()), ..event(n) }
}

fn ctx() -> Context {
    Context::root()
}

async fn open(store: &MemStore) -> Broker {
    let telemetry = weft_telemetry::Telemetry::new();
    let mesh = weft_mesh::Mesh::new(Arc::new(store.clone()), telemetry.clone());
    Broker::open(Arc::new(store.clone()), telemetry, mesh).await.unwrap()
}

async fn publish(b: &Broker, channel: Channel, e: Envelope) -> Receipt {
    b.publish(&ctx(), channel, e, PublishOptions::default()).await.unwrap()
}

/// Receives at once.
async fn take(b: &Broker, source: Source, max: usize) -> Vec<Delivery> {
    b.receive(source, ReceiveOptions { max, ..Default::default() }).await.unwrap()
}

/// Receives, waiting for the first.
async fn wait(b: &Broker, source: Source, max: usize) -> Vec<Delivery> {
    b.receive(source, ReceiveOptions { max, wait: Duration::from_secs(20), lease: None }).await.unwrap()
}

fn ids(d: &[Delivery]) -> Vec<&str> {
    d.iter().map(|d| d.event.id.as_str()).collect()
}

fn tokens(d: &[Delivery]) -> Vec<String> {
    d.iter().map(|d| d.token.clone()).collect()
}
