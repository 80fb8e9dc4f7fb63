//! SIGKILL under load: what was acknowledged is there, nothing is there twice.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use serde_json::json;
use weft_tests::{Request, Result, Weft};

#[tokio::test]
async fn acknowledged_messages_survive_ten_kills_under_load() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut weft = Weft::start(dir.path(), "queues:\n  load: {}\n").await?;
    let acknowledged = Arc::new(Mutex::new(BTreeSet::new()));
    let api = weft.api;
    for round in 0..10u32 {
        let writers: Vec<_> = (0..4u32)
            .map(|writer| {
                let acknowledged = acknowledged.clone();
                tokio::spawn(async move {
                    for n in 0.. {
                        let id = format!("{round}-{writer}-{n}");
                        let sent = Request::post(api, "/v1/queues/load/messages")
                            .header("weft-dedup-id", &id)
                            .json(&json!({"id": id}))
                            .send()
                            .await;
                        match sent {
                            Ok(a) if a.status == 201 => drop(acknowledged.lock().expect("no panic").insert(id)),
                            _ => break,
                        }
                    }
                })
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(80 + u64::from(round) * 13)).await;
        weft.kill().await?;
        for writer in writers {
            writer.await?;
        }
        weft.restart().await?;
    }
    let mut seen = BTreeSet::new();
    loop {
        let got = weft.post("/v1/queues/load/receive", &json!({"max": 500})).await?.expect(200)?.json();
        let messages = got["messages"].as_array().cloned().unwrap_or_default();
        if messages.is_empty() {
            break;
        }
        for m in &messages {
            let id = m["event"]["data"]["id"].as_str().unwrap_or_default().to_owned();
            assert!(seen.insert(id.clone()), "{id} is there twice");
        }
        let leases: Vec<_> = messages.iter().map(|m| m["lease"].clone()).collect();
        weft.post("/v1/messages/ack", &json!({"leases": leases})).await?.expect(200)?;
    }
    let acknowledged = acknowledged.lock().expect("no panic").clone();
    assert!(acknowledged.len() > 100, "only {} were acknowledged: no load", acknowledged.len());
    let lost: Vec<_> = acknowledged.difference(&seen).collect();
    assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
    weft.stop().await
}
