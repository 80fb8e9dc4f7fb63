//! The one commit: acknowledge, publish and what the caller adds, together or not at all.

use super::*;
use weft_store::{Expect, Version};

async fn commit(b: &Broker, ack: &[String], publish: Vec<Publish>, extra: Batch) -> Result<CommitReceipt> {
    b.commit(&ctx(), Commit { ack: ack.to_vec(), publish }, extra).await
}

fn to(channel: Channel, e: Envelope) -> Publish {
    Publish { channel, event: e, options: PublishOptions::default() }
}

#[tokio::test(start_paused = true)]
async fn acknowledgements_publishes_and_the_callers_own_take_effect_together() {
    let store = MemStore::new();
    let b = open(&store).await;
    publish(&b, queue("in"), event(1)).await;
    let d = take(&b, from_queue("in"), 1).await;
    let extra = Batch::new().append("events/order-1", "a").append("events/order-1", "b").put("state", "k", "v");
    let publishes = vec![to(queue("out"), event(2)), to(topic("t"), event(3))];
    let before = store.commits();
    let r = commit(&b, &tokens(&d), publishes, extra).await.unwrap();
    assert_eq!(store.commits() - before, 1);
    assert_eq!((r.publish.len(), r.publish[0].id.as_str()), (2, "e2"));
    assert_eq!(r.extra, [1, 2]);
    assert_eq!(store.get("state", b"k").await.unwrap().unwrap().version, r.position);
    assert_eq!(ids(&take(&b, from_queue("out"), 10).await), ["e2"]);
    assert_eq!(b.ack(&tokens(&d)).await.unwrap().stale, [0]);
}

#[tokio::test(start_paused = true)]
async fn a_stale_lease_rejects_the_whole_commit_and_is_named() {
    let b = open(&MemStore::new()).await;
    for n in 1..=2 {
        publish(&b, queue("in"), event(n)).await;
    }
    let first = take(&b, from_queue("in"), 1).await;
    tokio::time::advance(Duration::from_secs(30)).await;
    let both = take(&b, from_queue("in"), 2).await;
    let mut mixed = vec![tokens(&both)[1].clone()];
    mixed.extend(tokens(&first));
    let e = commit(&b, &mixed, vec![to(queue("out"), event(3))], Batch::new()).await.unwrap_err();
    assert!(matches!(e, Error::LeaseStale { index: 1, .. }), "{e}");
    assert!(take(&b, from_queue("out"), 1).await.is_empty());
    commit(&b, &tokens(&both), vec![], Batch::new()).await.unwrap();
    let e = commit(&b, &tokens(&both), vec![], Batch::new()).await.unwrap_err();
    assert!(matches!(e, Error::LeaseStale { index: 0, .. }), "{e}");
}

#[tokio::test(start_paused = true)]
async fn a_foreign_token_is_named() {
    let b = open(&MemStore::new()).await;
    let e = commit(&b, &["nonsense".into()], vec![], Batch::new()).await.unwrap_err();
    assert!(matches!(e, Error::LeaseUnknown { index: 0 }), "{e}");
    assert!(matches!(b.ack(&["".into()]).await, Err(Error::LeaseUnknown { index: 0 })));
}

#[tokio::test(start_paused = true)]
async fn a_failed_precondition_leaves_the_lease_and_everything_else_as_it_was() {
    let b = open(&MemStore::new()).await;
    publish(&b, queue("in"), event(1)).await;
    let d = take(&b, from_queue("in"), 1).await;
    let extra = || Batch::new().expect(Expect::Stream("events/x".into(), Version::Exists));
    let e = commit(&b, &tokens(&d), vec![to(queue("out"), event(2))], extra()).await.unwrap_err();
    assert!(matches!(e, Error::Store(weft_store::Error::Precondition { index: 0, .. })), "{e}");
    assert!(take(&b, from_queue("out"), 1).await.is_empty());
    commit(&b, &tokens(&d), vec![], Batch::new()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_commits_messages_are_delivered_only_once_it_is_durable() {
    let store = MemStore::new();
    let b = open(&store).await;
    publish(&b, queue("in"), event(1)).await;
    let d = take(&b, from_queue("in"), 1).await;
    store.hold();
    let committing = tokio::spawn({
        let (b, t) = (b.clone(), tokens(&d));
        async move { commit(&b, &t, vec![to(queue("out"), event(2))], Batch::new()).await }
    });
    let options = ReceiveOptions { max: 1, wait: Duration::from_secs(1), lease: None };
    assert!(b.receive(from_queue("out"), options).await.unwrap().is_empty());
    // The lease would end now; the message is being settled and is not delivered again.
    tokio::time::advance(Duration::from_secs(60)).await;
    assert!(b.receive(from_queue("in"), options).await.unwrap().is_empty());
    let other = tokio::spawn({
        let (b, t) = (b.clone(), tokens(&d));
        async move { commit(&b, &t, vec![], Batch::new()).await }
    });
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert!(!other.is_finished(), "whether the lease is stale is not known before the first commit is");
    store.let_go();
    committing.await.unwrap().unwrap();
    assert!(matches!(other.await.unwrap(), Err(Error::LeaseStale { index: 0, .. })));
    assert_eq!(ids(&take(&b, from_queue("out"), 1).await), ["e2"]);
}

#[tokio::test(start_paused = true)]
async fn a_publish_in_a_commit_continues_the_trace_of_the_message_it_acknowledges() {
    let b = open(&MemStore::new()).await;
    let caller = Context::of(Trace::root().child());
    b.publish(&caller, queue("in"), event(1), PublishOptions::default()).await.unwrap();
    let d = take(&b, from_queue("in"), 1).await;
    commit(&b, &tokens(&d), vec![to(queue("out"), event(2))], Batch::new()).await.unwrap();
    let out = take(&b, from_queue("out"), 1).await;
    let seen = Trace::parse(out[0].event.traceparent().unwrap()).unwrap();
    assert_eq!(seen.trace_id, caller.trace.trace_id);
}

#[tokio::test(start_paused = true)]
async fn too_many_operations_are_refused_by_name() {
    let b = open(&MemStore::new()).await;
    let many = (0..=weft_core::limits::COMMIT_OPS as u64).map(|n| to(queue("q"), event(n))).collect();
    assert!(matches!(commit(&b, &[], many, Batch::new()).await, Err(Error::TooMany { .. })));
}
