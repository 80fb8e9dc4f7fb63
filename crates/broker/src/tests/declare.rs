//! Declarations: the file's, run-time ones, and what is left of them.

use super::*;
use crate::spec::StartFrom;

fn queue_spec(n: &str) -> QueueSpec {
    crate::declare::queue(name(n), &json!({})).unwrap()
}

fn topic_spec(n: &str) -> TopicSpec {
    crate::declare::topic(name(n), &json!({})).unwrap()
}

fn sub_spec(n: &str, topic: &str) -> SubscriptionSpec {
    crate::declare::subscription(name(n), &json!({ "topic": topic })).unwrap()
}

#[tokio::test(start_paused = true)]
async fn the_files_objects_are_the_files_to_change() {
    let b = open(&MemStore::new()).await;
    b.apply(&[queue_spec("q")], &[topic_spec("t")], &[sub_spec("s", "t")]).await.unwrap();
    for e in [
        b.declare_queue(name("q"), &json!({})).await,
        b.declare_topic(name("t"), &json!({})).await,
        b.declare_subscription(name("s"), &json!({"topic": "t"})).await,
    ] {
        assert!(matches!(e, Err(Error::FileOwned { .. })), "{e:?}");
    }
    assert!(b.declare_queue(name("mine"), &json!({})).await.unwrap());
    assert!(!b.declare_queue(name("mine"), &json!({"lease": "5s"})).await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn what_leaves_the_file_is_orphaned_and_drains() {
    let store = MemStore::new();
    let b = open(&store).await;
    b.apply(&[queue_spec("q")], &[topic_spec("t")], &[sub_spec("s", "t")]).await.unwrap();
    publish(&b, queue("q"), event(1)).await;
    publish(&b, topic("t"), event(2)).await;
    for reopened in [false, true] {
        let b = if reopened {
            b.close().await;
            open(&store).await
        } else {
            b.clone()
        };
        b.apply(&[], &[], &[]).await.unwrap();
        let origins = |l: Vec<Listing>| l.into_iter().map(|l| (l.name.to_string(), l.origin)).collect::<Vec<_>>();
        assert_eq!(origins(b.queues().await.unwrap()), [("q".to_owned(), Declared::Orphaned)]);
        assert_eq!(origins(b.topics().await.unwrap()), [("t".to_owned(), Declared::Orphaned)]);
        assert_eq!(origins(b.subscriptions().await.unwrap()), [("s".to_owned(), Declared::Orphaned)]);
        for (source, id) in [(from_queue("q"), "e1"), (from_sub("s"), "e2")] {
            let d = take(&b, source, 10).await;
            assert_eq!(ids(&d), [id]);
            if reopened {
                assert_eq!(b.ack(&tokens(&d)).await.unwrap().done, 1);
            } else {
                b.nack(&tokens(&d), NackOptions { delay: Some(Duration::ZERO), ..Default::default() }).await.unwrap();
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_publish_to_an_orphan_makes_it_a_run_time_channel() {
    let b = open(&MemStore::new()).await;
    b.apply(&[queue_spec("q")], &[], &[]).await.unwrap();
    publish(&b, queue("q"), event(1)).await;
    b.apply(&[], &[], &[]).await.unwrap();
    publish(&b, queue("q"), event(2)).await;
    assert_eq!(b.queues().await.unwrap()[0].origin, Declared::Runtime);
    assert_eq!(take(&b, from_queue("q"), 10).await.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_run_time_declaration_comes_back_when_the_files_goes() {
    let b = open(&MemStore::new()).await;
    b.declare_queue(name("q"), &json!({"max_messages": 1})).await.unwrap();
    b.apply(&[queue_spec("q")], &[], &[]).await.unwrap();
    assert_eq!(b.queues().await.unwrap()[0].origin, Declared::File);
    publish(&b, queue("q"), event(1)).await;
    publish(&b, queue("q"), event(2)).await;
    b.apply(&[], &[], &[]).await.unwrap();
    assert_eq!(b.queues().await.unwrap()[0].origin, Declared::Runtime);
    assert!(b.publish(&ctx(), queue("q"), event(3), PublishOptions::default()).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_bad_configuration_changes_nothing_and_says_what_is_wrong() {
    let b = open(&MemStore::new()).await;
    let bad = SubscriptionSpec { filter: Some("event.type ==".into()), ..sub_spec("s", "t") };
    let e = b.apply(&[queue_spec("q")], &[topic_spec("t")], &[bad]).await.unwrap_err();
    assert!(e.to_string().starts_with("subscription 's' filter: "), "{e}");
    let e = b.apply(&[queue_spec("q")], &[], &[sub_spec("s", "nowhere")]).await.unwrap_err();
    assert!(e.to_string().contains("'nowhere'"), "{e}");
    assert!(b.queues().await.unwrap().is_empty());
    assert!(b.declare_subscription(name("s"), &json!({"topic": "nowhere"})).await.is_err());
    assert!(matches!(
        b.receive(from_sub("s"), ReceiveOptions::default()).await,
        Err(Error::NotFound { kind: "subscription", .. })
    ));
}

#[tokio::test(start_paused = true)]
async fn a_subscription_starts_at_the_oldest_or_the_newest() {
    let b = open(&MemStore::new()).await;
    publish(&b, topic("t"), event(1)).await;
    let latest = SubscriptionSpec { from: StartFrom::Latest, ..sub_spec("new", "t") };
    b.apply(&[], &[topic_spec("t")], &[sub_spec("old", "t"), latest]).await.unwrap();
    publish(&b, topic("t"), event(2)).await;
    assert_eq!(ids(&take(&b, from_sub("old"), 10).await), ["e1", "e2"]);
    assert_eq!(ids(&take(&b, from_sub("new"), 10).await), ["e2"]);
}

#[tokio::test(start_paused = true)]
async fn more_partitions_are_taken_up_by_existing_subscriptions() {
    let b = open(&MemStore::new()).await;
    b.apply(&[], &[topic_spec("t")], &[sub_spec("s", "t")]).await.unwrap();
    publish(&b, topic("t"), keyed(1, "a")).await;
    let wider = TopicSpec { partitions: 8, ..topic_spec("t") };
    b.apply(&[], &[wider], &[sub_spec("s", "t")]).await.unwrap();
    for n in 2..20 {
        publish(&b, topic("t"), keyed(n, &format!("k{n}"))).await;
    }
    assert_eq!(take(&b, from_sub("s"), 100).await.len(), 19);
}

#[tokio::test(start_paused = true)]
async fn a_changed_subscription_keeps_its_place_and_takes_the_new_rules() {
    let b = open(&MemStore::new()).await;
    b.apply(&[], &[topic_spec("t")], &[sub_spec("s", "t")]).await.unwrap();
    for n in 1..=4 {
        publish(&b, topic("t"), keyed(n, "k")).await;
    }
    b.ack(&tokens(&take(&b, from_sub("s"), 1).await)).await.unwrap();
    let keyed = SubscriptionSpec { mode: SubscriptionMode::KeyShared, ..sub_spec("s", "t") };
    b.apply(&[], &[topic_spec("t")], &[keyed]).await.unwrap();
    assert_eq!(ids(&take(&b, from_sub("s"), 10).await), ["e2"]);
}

#[tokio::test(start_paused = true)]
async fn peeking_takes_nothing() {
    let b = open(&MemStore::new()).await;
    for n in 1..=3 {
        publish(&b, queue("q"), event(n)).await;
    }
    take(&b, from_queue("q"), 1).await;
    let seen = b.peek(&name("q"), 0, 2).await.unwrap();
    assert_eq!((seen[0].state, seen[0].attempts, seen[1].state), ("in-flight", 1, "ready"));
    assert_eq!(seen[1].event.as_ref().unwrap().id, "e2");
    let rest = b.peek(&name("q"), seen[1].seq, 10).await.unwrap();
    assert_eq!(rest.len(), 1);
    assert_eq!(take(&b, from_queue("q"), 10).await.len(), 2);
    assert!(matches!(b.peek(&name("none"), 0, 1).await, Err(Error::NotFound { .. })));
}
