//! How many messages a second one broker takes and delivers on the embedded store, on this machine:
//! `cargo run --release -p weft-broker --example broker_throughput [MESSAGES] [PUBLISHERS]`.
//!
//! Publishers call one message at a time and wait for the disk; consumers receive up to 100 and acknowledge them. Then
//! single messages without company show what one commit costs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use weft_broker::{Broker, Channel, PublishOptions, ReceiveOptions, Source};
use weft_core::{Context, Envelope, Name};
use weft_mesh::Mesh;
use weft_store::{Config, Embedded, Store};
use weft_telemetry::Telemetry;

const DATA: usize = 128;
const CONSUMERS: usize = 4;
const ALONE: u32 = 500;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1).filter_map(|a| a.parse::<u64>().ok());
    let messages = args.next().unwrap_or(200_000);
    let publishers = args.next().unwrap_or(256).max(1);
    // Beside the build: a temporary directory is often in memory, where a sync costs nothing.
    let dir = tempfile::tempdir_in(std::env::current_dir()?)?;
    let store: Arc<dyn Store> = Arc::new(Embedded::open(Config::new(dir.path()))?);
    let telemetry = Telemetry::new();
    let mesh = Mesh::new(store.clone(), telemetry.clone());
    let broker = Broker::open(store.clone(), telemetry, mesh).await?;
    let queue = Name::new("bench")?;

    let began = Instant::now();
    let mut publishing = tokio::task::JoinSet::new();
    for p in 0..publishers {
        let (broker, queue) = (broker.clone(), queue.clone());
        let share = messages / publishers + u64::from(p < messages % publishers);
        publishing.spawn(async move {
            for _ in 0..share {
                broker
                    .publish(&Context::root(), Channel::Queue(queue.clone()), event(), PublishOptions::default())
                    .await?;
            }
            Ok::<_, weft_broker::Error>(())
        });
    }
    while let Some(done) = publishing.join_next().await {
        done??;
    }
    report("publish, durable", messages, began.elapsed());

    let began = Instant::now();
    let mut consuming = tokio::task::JoinSet::new();
    for _ in 0..CONSUMERS {
        let (broker, queue) = (broker.clone(), queue.clone());
        consuming.spawn(async move {
            let mut got = 0u64;
            loop {
                let options = ReceiveOptions { max: 100, ..Default::default() };
                let some = broker.receive(Source::Queue(queue.clone()), options).await?;
                if some.is_empty() {
                    return Ok::<_, weft_broker::Error>(got);
                }
                let tokens: Vec<String> = some.into_iter().map(|d| d.token).collect();
                got += broker.ack(&tokens).await?.done as u64;
            }
        });
    }
    let mut consumed = 0;
    while let Some(done) = consuming.join_next().await {
        consumed += done??;
    }
    report("receive and acknowledge, durable", consumed, began.elapsed());
    if consumed != messages {
        return Err(format!("{consumed} of {messages} messages came out").into());
    }

    let mut took = Vec::new();
    for _ in 0..ALONE {
        let began = Instant::now();
        broker.publish(&Context::root(), Channel::Queue(queue.clone()), event(), PublishOptions::default()).await?;
        took.push(began.elapsed());
    }
    took.sort_unstable();
    let at = |p: usize| took[took.len() * p / 100];
    println!("one publish alone: p50 {:?}, p99 {:?}", at(50), at(99));
    broker.close().await;
    store.close().await?;
    Ok(())
}

fn event() -> Envelope {
    Envelope {
        data_content_type: Some("application/octet-stream".into()),
        data: vec![b'x'; DATA].into(),
        ..Envelope::json("/bench", "Bench", &serde_json::Value::Null)
    }
}

fn report(what: &str, n: u64, took: Duration) {
    println!("{what}: {n} messages of {DATA} B in {took:.2?}, {:.0} a second", n as f64 / took.as_secs_f64());
}
