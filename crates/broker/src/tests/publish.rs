//! Publishing: durability, dedup, limits, traces.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_published_message_is_received_and_acknowledged_once() {
    let b = open(&MemStore::new()).await;
    let r = publish(&b, queue("q"), event(1)).await;
    assert_eq!((r.id.as_str(), r.duplicate), ("e1", false));
    let d = take(&b, from_queue("q"), 10).await;
    assert_eq!(ids(&d), ["e1"]);
    assert_eq!((d[0].attempt, d[0].redelivered(), d[0].position), (1, false, r.position));
    assert_eq!(b.ack(&tokens(&d)).await.unwrap(), Settled { done: 1, stale: vec![] });
    assert_eq!(b.ack(&tokens(&d)).await.unwrap(), Settled { done: 0, stale: vec![0] });
    assert!(take(&b, from_queue("q"), 10).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_publish_is_neither_acknowledged_nor_delivered_before_it_is_durable() {
    let store = MemStore::new();
    let b = open(&store).await;
    publish(&b, queue("q"), event(0)).await;
    b.ack(&tokens(&take(&b, from_queue("q"), 1).await)).await.unwrap();
    store.hold();
    let publishing = tokio::spawn({
        let b = b.clone();
        async move { publish(&b, queue("q"), event(1)).await }
    });
    let empty =
        b.receive(from_queue("q"), ReceiveOptions { max: 1, wait: Duration::from_secs(1), lease: None }).await.unwrap();
    assert!(empty.is_empty());
    assert!(!publishing.is_finished());
    assert_eq!(store.held(), 1);
    store.let_go();
    assert_eq!(publishing.await.unwrap().id, "e1");
    assert_eq!(ids(&wait(&b, from_queue("q"), 1).await), ["e1"]);
}

#[tokio::test(start_paused = true)]
async fn publishes_that_arrive_together_share_a_commit() {
    let store = MemStore::new();
    let b = open(&store).await;
    publish(&b, queue("q"), event(0)).await;
    let before = store.commits();
    let all = (1..=100).map(|n| publish(&b, queue("q"), event(n)));
    let receipts = futures_util::future::join_all(all).await;
    assert_eq!(receipts.len(), 100);
    assert!(store.commits() - before <= 2, "{} commits", store.commits() - before);
    let d = take(&b, from_queue("q"), 1000).await;
    assert_eq!(d.len(), 101);
}

#[tokio::test(start_paused = true)]
async fn the_same_dedup_id_is_stored_once_and_answered_with_the_first_receipt() {
    let store = MemStore::new();
    let b = open(&store).await;
    let options = |id: &str| PublishOptions { dedup_id: Some(id.into()), delay: None };
    let first = b.publish(&ctx(), queue("q"), event(1), options("x")).await.unwrap();
    let again = b.publish(&ctx(), queue("q"), event(2), options("x")).await.unwrap();
    assert_eq!(again, Receipt { duplicate: true, ..first.clone() });
    assert!(!b.publish(&ctx(), queue("q"), event(3), options("y")).await.unwrap().duplicate);
    assert!(!b.publish(&ctx(), queue("other"), event(4), options("x")).await.unwrap().duplicate, "another channel");
    assert_eq!(ids(&take(&b, from_queue("q"), 10).await), ["e1", "e3"]);

    tokio::time::advance(Duration::from_secs(599)).await;
    assert!(b.publish(&ctx(), queue("q"), event(5), options("x")).await.unwrap().duplicate, "within the window");
    tokio::time::advance(Duration::from_secs(200)).await;
    assert!(!b.publish(&ctx(), queue("q"), event(6), options("x")).await.unwrap().duplicate, "after it");
    tokio::time::advance(Duration::from_secs(2)).await;
    take(&b, from_queue("none"), 1).await;
    let left = store.scan("dedup", b"", None, 100).await.unwrap();
    assert_eq!(left.len(), 1, "expired ids leave the store");
}

#[tokio::test(start_paused = true)]
async fn a_repeat_waits_for_the_first_publish_and_shares_its_fate() {
    let store = MemStore::new();
    let b = open(&store).await;
    publish(&b, queue("q"), event(0)).await;
    let options = PublishOptions { dedup_id: Some("x".into()), delay: None };
    for outcome in [false, true] {
        store.hold();
        let spawn = |n| {
            let (b, options) = (b.clone(), options.clone());
            tokio::spawn(async move { b.publish(&ctx(), queue("q"), event(n), options).await })
        };
        let first = spawn(1);
        tokio::time::sleep(Duration::from_millis(1)).await;
        let second = spawn(2);
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert!(!first.is_finished() && !second.is_finished());
        if outcome {
            store.let_go();
            assert!(!first.await.unwrap().unwrap().duplicate);
            let second = second.await.unwrap().unwrap();
            assert_eq!((second.duplicate, second.id.as_str()), (true, "e1"));
        } else {
            store.lose();
            assert!(first.await.unwrap().is_err());
            // The id was free again: the second was the first.
            assert!(!second.await.unwrap().unwrap().duplicate);
            tokio::time::advance(Duration::from_secs(800)).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_batch_with_the_same_dedup_id_twice_stores_it_once() {
    let b = open(&MemStore::new()).await;
    let one = |n: u64| Publish {
        channel: queue("q"),
        event: event(n),
        options: PublishOptions { dedup_id: Some("same".into()), delay: None },
    };
    let r = b.publish_all(&ctx(), vec![one(1), one(2)]).await.unwrap();
    assert_eq!(r[1], Receipt { duplicate: true, ..r[0].clone() });
    assert_eq!(take(&b, from_queue("q"), 10).await.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_refuses_and_takes_again_after_an_acknowledgement() {
    let b = open(&MemStore::new()).await;
    b.declare_queue(name("q"), &json!({"max_messages": 2})).await.unwrap();
    publish(&b, queue("q"), event(1)).await;
    publish(&b, queue("q"), event(2)).await;
    let refused = b.publish(&ctx(), queue("q"), event(3), PublishOptions::default()).await.unwrap_err();
    assert!(matches!(refused, Error::Full { max: 2, .. }), "{refused}");
    assert_eq!(weft_core::Classify::class(&refused), weft_core::Class::Overloaded);
    b.ack(&tokens(&take(&b, from_queue("q"), 1).await)).await.unwrap();
    publish(&b, queue("q"), event(3)).await;
    let both = vec![
        Publish { channel: queue("free"), event: event(4), options: PublishOptions::default() },
        Publish { channel: queue("q"), event: event(5), options: PublishOptions::default() },
    ];
    assert!(b.publish_all(&ctx(), both).await.is_err());
    assert!(take(&b, from_queue("free"), 1).await.is_empty(), "all or none");
}

#[tokio::test(start_paused = true)]
async fn a_delayed_message_comes_when_it_is_due() {
    let b = open(&MemStore::new()).await;
    let options = PublishOptions { dedup_id: None, delay: Some(Duration::from_secs(10)) };
    b.publish(&ctx(), queue("q"), event(1), options.clone()).await.unwrap();
    publish(&b, queue("q"), event(2)).await;
    assert_eq!(ids(&take(&b, from_queue("q"), 10).await), ["e2"]);
    assert_eq!(b.queues().await.unwrap()[0].delayed, 1);
    tokio::time::advance(Duration::from_millis(9_998)).await;
    assert!(take(&b, from_queue("q"), 10).await.is_empty());
    let d = wait(&b, from_queue("q"), 10).await;
    assert_eq!((ids(&d), d[0].attempt), (vec!["e1"], 1));
    let e = b.publish(&ctx(), topic("t"), event(3), options).await.unwrap_err();
    assert!(matches!(e, Error::DelayOnTopic { index: 0, .. }), "{e}");
}

#[tokio::test(start_paused = true)]
async fn an_invalid_event_is_refused_by_its_index() {
    let b = open(&MemStore::new()).await;
    let p = |e| Publish { channel: queue("q"), event: e, options: PublishOptions::default() };
    let bad = Envelope { ty: String::new(), ..event(2) };
    let e = b.publish_all(&ctx(), vec![p(event(1)), p(bad)]).await.unwrap_err();
    assert!(e.to_string().starts_with("event 1: CloudEvents attribute 'type'"), "{e}");
    let big = Envelope { data: vec![b'x'; weft_core::limits::MESSAGE_BYTES + 1].into(), ..event(3) };
    assert!(b.publish_all(&ctx(), vec![p(big)]).await.unwrap_err().to_string().contains("limit"));
}

#[tokio::test(start_paused = true)]
async fn a_failed_store_refuses_the_publish_and_leaves_no_trace_of_it() {
    let store = MemStore::new();
    let b = open(&store).await;
    publish(&b, queue("q"), event(1)).await;
    store.fail(Some(weft_store::Error::DiskFull { free: 0 }));
    let e = b.publish(&ctx(), queue("q"), event(2), PublishOptions::default()).await.unwrap_err();
    assert!(matches!(e, Error::Store(weft_store::Error::DiskFull { .. })), "{e}");
    store.fail(None);
    publish(&b, queue("q"), event(3)).await;
    assert_eq!(ids(&take(&b, from_queue("q"), 10).await), ["e1", "e3"]);
    assert_eq!(b.queues().await.unwrap()[0].in_flight, 2);
}

#[tokio::test(start_paused = true)]
async fn the_trace_goes_from_publisher_to_consumer() {
    let b = open(&MemStore::new()).await;
    let caller = Context::of(Trace::root().child());
    b.publish(&caller, queue("q"), event(1), PublishOptions::default()).await.unwrap();
    let d = take(&b, from_queue("q"), 1).await;
    let seen = Trace::parse(d[0].event.traceparent().unwrap()).unwrap();
    assert_eq!(seen.trace_id, caller.trace.trace_id);
    assert_ne!(seen.span_id, caller.trace.span_id);

    let own = Trace::root();
    let mut e = event(2);
    e.extensions.insert("traceparent".into(), own.to_traceparent());
    b.publish(&ctx(), queue("q"), e, PublishOptions::default()).await.unwrap();
    let d = take(&b, from_queue("q"), 1).await;
    assert_eq!(Trace::parse(d[0].event.traceparent().unwrap()).unwrap().trace_id, own.trace_id);
}
