//! Queues, topics and the one commit over HTTP.

use serde_json::{Value, json};
use weft_tests::{Request, Result, Weft};

use crate::support::eventually;

async fn publish(weft: &Weft, path: &str, id: &str, subject: &str) -> Result<Value> {
    let answer = Request::post(weft.api, path)
        .header("ce-specversion", "1.0")
        .header("ce-id", id)
        .header("ce-source", "/tests")
        .header("ce-type", "Tested")
        .header("ce-subject", subject)
        .json(&json!({"id": id}))
        .send()
        .await?;
    Ok(answer.expect(201)?.json())
}

async fn receive(weft: &Weft, path: &str, max: u32) -> Result<Vec<Value>> {
    let answer = weft.post(path, &json!({"max": max, "wait": "2s"})).await?.expect(200)?;
    Ok(answer.json()["messages"].as_array().cloned().unwrap_or_default())
}

#[tokio::test]
async fn a_message_is_delivered_acknowledged_and_gone() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut weft = Weft::start(dir.path(), "queues:\n  mail: { lease: 30s }\n").await?;
    let receipt = publish(&weft, "/v1/queues/mail/messages", "m1", "s").await?;
    assert_eq!(receipt["receipts"][0]["id"], json!("m1"));
    let got = receive(&weft, "/v1/queues/mail/receive", 10).await?;
    assert_eq!(got.len(), 1);
    assert_eq!(got[0]["event"]["data"], json!({"id": "m1"}));
    assert_eq!(got[0]["attempt"], json!(1));
    let acked = weft.post("/v1/messages/ack", &json!({"leases": [got[0]["lease"]]})).await?.expect(200)?;
    assert_eq!(acked.json()["acked"], json!(1));
    weft.kill().await?;
    weft.restart().await?;
    let again = weft.post("/v1/queues/mail/receive", &json!({"max": 10})).await?.expect(200)?;
    assert_eq!(again.json()["messages"], json!([]), "an acknowledged message came back after a crash");
    weft.stop().await
}

#[tokio::test]
async fn what_was_not_acknowledged_comes_back_marked_after_a_crash() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut weft = Weft::start(dir.path(), "queues:\n  mail: { lease: 60s }\n").await?;
    publish(&weft, "/v1/queues/mail/messages", "m1", "s").await?;
    assert_eq!(receive(&weft, "/v1/queues/mail/receive", 1).await?.len(), 1);
    // Attempts are not waited for: they are on disk with whatever is acknowledged next.
    publish(&weft, "/v1/queues/other/messages", "m2", "s").await?;
    weft.kill().await?;
    weft.restart().await?;
    let got = receive(&weft, "/v1/queues/mail/receive", 1).await?;
    assert_eq!(got.len(), 1, "a leased message was lost by a crash");
    assert_eq!(got[0]["redelivered"], json!(true));
    weft.stop().await
}

#[tokio::test]
async fn the_same_dedup_id_is_stored_once_even_across_a_crash() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut weft = Weft::start(dir.path(), "queues:\n  mail: {}\n").await?;
    let send = |api| {
        Request::post(api, "/v1/queues/mail/messages").header("weft-dedup-id", "once").json(&json!({"a": 1})).send()
    };
    let first = send(weft.api).await?.expect(201)?.json();
    weft.kill().await?;
    weft.restart().await?;
    let second = send(weft.api).await?.expect(201)?.json();
    assert_eq!(second["receipts"][0]["duplicate"], json!(true), "{second}");
    assert_eq!(second["receipts"][0]["position"], first["receipts"][0]["position"]);
    assert_eq!(receive(&weft, "/v1/queues/mail/receive", 10).await?.len(), 1);
    weft.stop().await
}

#[tokio::test]
async fn acknowledge_and_publish_are_one_commit() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let config = "queues:\n  in: {}\n  out: {}\ntopics:\n  facts: {}\nsubscriptions:\n  reader: { topic: facts }\n";
    let mut weft = Weft::start(dir.path(), config).await?;
    publish(&weft, "/v1/queues/in/messages", "m1", "s").await?;
    let got = receive(&weft, "/v1/queues/in/receive", 1).await?;
    let lease = &got[0]["lease"];
    let event = |id: &str| json!({"specversion": "1.0", "id": id, "source": "/t", "type": "Made", "data": {"n": 1}});
    let body = json!({
        "ack": [lease],
        "publish": [{"queue": "out", "event": event("o1")}, {"topic": "facts", "event": event("f1")}],
        "append": [{"stream": "order-1", "events": [event("e1"), event("e2")]}],
        "put": [{"space": "carts", "key": "k", "value": {"n": 2}}],
    });
    let done = weft.post("/v1/commit", &body).await?.expect(200)?.json();
    assert_eq!(done["append"][0], json!({"stream": "order-1", "version": 2}));
    let again = weft.post("/v1/commit", &body).await?;
    assert_eq!(again.status, 409, "the lease was used: {}", again.text());
    assert_eq!(again.json()["code"], json!("lease-stale"));

    assert_eq!(receive(&weft, "/v1/queues/out/receive", 10).await?.len(), 1);
    assert_eq!(receive(&weft, "/v1/subscriptions/reader/receive", 10).await?.len(), 1);
    assert_eq!(weft.get("/v1/state/carts/k").await?, json!({"n": 2}));
    let events = weft.get("/v1/streams/order-1/events").await?;
    assert_eq!(events["items"].as_array().map(Vec::len), Some(2), "{events}");
    weft.stop().await
}

#[tokio::test]
async fn a_poison_message_is_dead_lettered_and_redriven() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let config = "queues:\n  jobs: { retry: { attempts: 2, backoff: 10ms..20ms }, dead_letter: jobs.dead }\n";
    let mut weft = Weft::start(dir.path(), config).await?;
    publish(&weft, "/v1/queues/jobs/messages", "poison", "s").await?;
    for attempt in 1..=2 {
        let got = receive(&weft, "/v1/queues/jobs/receive", 1).await?;
        assert_eq!(got[0]["attempt"], json!(attempt));
        let nack = json!({"leases": [got[0]["lease"]], "reason": "cannot be parsed"});
        weft.post("/v1/messages/nack", &nack).await?.expect(200)?;
    }
    let dead = eventually("the dead letter", || async {
        let page = weft.get("/v1/queues/jobs.dead/messages").await.ok()?;
        page["items"].get(0).cloned()
    })
    .await;
    assert!(dead["event"]["weftdeadreason"].as_str().is_some_and(|r| r.contains("cannot be parsed")), "{dead}");
    assert_eq!(dead["event"]["weftdeadorigin"], json!("queue/jobs"));
    let moved = weft.post("/v1/queues/jobs.dead/redrive", &json!({})).await?.expect(200)?;
    assert_eq!(moved.json()["moved"], json!(1));
    let back = receive(&weft, "/v1/queues/jobs/receive", 1).await?;
    assert_eq!(back[0]["event"]["id"], json!("poison"));
    assert_eq!(back[0]["attempt"], json!(1), "a redriven message starts anew");
    weft.stop().await
}
