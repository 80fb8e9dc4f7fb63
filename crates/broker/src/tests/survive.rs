//! What survives a kill: the broker is closed without ceremony and opened again on the same store.

use super::*;

async fn reopen(store: &MemStore, b: Broker) -> Broker {
    b.close().await;
    open(store).await
}

#[tokio::test(start_paused = true)]
async fn unacknowledged_messages_come_again_with_their_attempts_counted() {
    let store = MemStore::new();
    let b = open(&store).await;
    for n in 1..=3 {
        publish(&b, queue("q"), event(n)).await;
    }
    let d = take(&b, from_queue("q"), 2).await;
    b.ack(&tokens(&d)[..1]).await.unwrap();
    let b = reopen(&store, b).await;
    let again = take(&b, from_queue("q"), 10).await;
    assert_eq!(ids(&again), ["e2", "e3"]);
    assert_eq!([again[0].attempt, again[1].attempt], [2, 1], "e2 might have been worked on");
    let stale = b.commit(&ctx(), Commit { ack: tokens(&d)[1..].to_vec(), publish: vec![] }, Batch::new()).await;
    assert!(matches!(stale, Err(Error::LeaseStale { index: 0, .. })), "leases end with the process");
    assert_eq!(b.ack(&tokens(&d)).await.unwrap(), Settled { done: 1, stale: vec![0] });
    assert_eq!(b.ack(&tokens(&again)).await.unwrap(), Settled { done: 1, stale: vec![0] });
}

#[tokio::test(start_paused = true)]
async fn a_late_acknowledgement_from_before_the_kill_reaches_a_message_not_loaded_yet() {
    let store = MemStore::new();
    let b = open(&store).await;
    publish(&b, queue("q"), event(1)).await;
    let d = take(&b, from_queue("q"), 1).await;
    let b = reopen(&store, b).await;
    assert_eq!(b.ack(&tokens(&d)).await.unwrap().done, 1);
    assert!(take(&b, from_queue("q"), 1).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn delays_of_publishes_and_of_nacks_survive() {
    let store = MemStore::new();
    let b = open(&store).await;
    let delayed = PublishOptions { delay: Some(Duration::from_secs(3600)), dedup_id: None };
    b.publish(&ctx(), queue("q"), event(1), delayed).await.unwrap();
    publish(&b, queue("q"), event(2)).await;
    let d = take(&b, from_queue("q"), 1).await;
    b.nack(&tokens(&d), NackOptions { delay: Some(Duration::from_secs(1800)), ..Default::default() }).await.unwrap();
    let b = reopen(&store, b).await;
    assert!(take(&b, from_queue("q"), 10).await.is_empty());
    tokio::time::advance(Duration::from_secs(1801)).await;
    let d = take(&b, from_queue("q"), 10).await;
    assert_eq!((ids(&d), d[0].attempt), (vec!["e2"], 2));
    tokio::time::advance(Duration::from_secs(1800)).await;
    assert_eq!(take(&b, from_queue("q"), 10).await[0].event.id, "e1");
}

#[tokio::test(start_paused = true)]
async fn dedup_ids_survive() {
    let store = MemStore::new();
    let b = open(&store).await;
    let options = PublishOptions { dedup_id: Some("x".into()), delay: None };
    let first = b.publish(&ctx(), queue("q"), event(1), options.clone()).await.unwrap();
    let b = reopen(&store, b).await;
    let again = b.publish(&ctx(), queue("q"), event(2), options).await.unwrap();
    assert_eq!(again, Receipt { duplicate: true, ..first });
    assert_eq!(take(&b, from_queue("q"), 10).await.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_was_declared_or_made_by_first_use_survives() {
    let store = MemStore::new();
    let b = open(&store).await;
    b.declare_queue(name("small"), &json!({"max_messages": 1})).await.unwrap();
    b.declare_topic(name("t"), &json!({"partitions": 2})).await.unwrap();
    b.declare_subscription(name("s"), &json!({"topic": "t", "filter": "event.data.n == 2"})).await.unwrap();
    publish(&b, queue("made"), event(1)).await;
    let b = reopen(&store, b).await;
    let made = |l: &Listing| (l.name.to_string(), l.origin, l.ready);
    let listed: Vec<_> = b.queues().await.unwrap().iter().map(made).collect();
    assert_eq!(listed, [("made".into(), Declared::Runtime, 1), ("small".into(), Declared::Runtime, 0)]);
    assert_eq!(b.topics().await.unwrap()[0].partitions, Some(2));
    for n in 1..=2 {
        publish(&b, topic("t"), event(n)).await;
    }
    assert_eq!(ids(&take(&b, from_sub("s"), 10).await), ["e2"]);
    publish(&b, queue("small"), event(1)).await;
    assert!(b.publish(&ctx(), queue("small"), event(2), PublishOptions::default()).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn subscriptions_go_on_where_they_stood() {
    let store = MemStore::new();
    let b = open(&store).await;
    b.declare_topic(name("t"), &json!({"partitions": 3})).await.unwrap();
    b.declare_subscription(name("s"), &json!({"topic": "t", "mode": "key-shared"})).await.unwrap();
    for n in 0..9 {
        publish(&b, topic("t"), keyed(n, &format!("k{}", n % 3))).await;
    }
    let d = take(&b, from_sub("s"), 100).await;
    b.ack(&tokens(&d)).await.unwrap();
    let b = reopen(&store, b).await;
    let mut got = Vec::new();
    loop {
        let d = take(&b, from_sub("s"), 100).await;
        if d.is_empty() {
            break;
        }
        got.extend(d.iter().map(|d| d.event.id.clone()));
        b.ack(&tokens(&d)).await.unwrap();
    }
    got.sort_unstable();
    assert_eq!(got, ["e3", "e4", "e5", "e6", "e7", "e8"]);
}

#[tokio::test(start_paused = true)]
async fn a_publish_that_was_not_durable_is_gone_and_was_never_acknowledged() {
    let store = MemStore::new();
    let b = open(&store).await;
    publish(&b, queue("q"), event(1)).await;
    store.hold();
    let lost = tokio::spawn({
        let b = b.clone();
        async move { b.publish(&ctx(), queue("q"), event(2), PublishOptions::default()).await }
    });
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(store.held(), 1);
    b.close().await;
    store.lose();
    assert!(matches!(lost.await.unwrap(), Err(Error::Closed)));
    let b = open(&store).await;
    assert_eq!(ids(&take(&b, from_queue("q"), 10).await), ["e1"]);
}
