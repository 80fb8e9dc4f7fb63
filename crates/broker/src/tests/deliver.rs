//! Delivery: leases, redelivery, order, filters, dead letters.

use super::*;

const LEASE: Duration = Duration::from_secs(30);

#[tokio::test(start_paused = true)]
async fn a_lease_that_ends_is_followed_by_another_delivery() {
    let b = open(&MemStore::new()).await;
    publish(&b, queue("q"), event(1)).await;
    let first = take(&b, from_queue("q"), 1).await;
    assert!(take(&b, from_queue("q"), 1).await.is_empty(), "held under its lease");
    tokio::time::advance(LEASE).await;
    let second = take(&b, from_queue("q"), 1).await;
    assert_eq!((ids(&second), second[0].attempt, second[0].redelivered()), (vec!["e1"], 2, true));
    let late = b.ack(&tokens(&first)).await.unwrap();
    assert_eq!(late, Settled { done: 1, stale: vec![] }, "a late acknowledgement is welcome while nothing settled it");
    tokio::time::advance(LEASE).await;
    assert!(take(&b, from_queue("q"), 1).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_extended_lease_lasts_longer() {
    let b = open(&MemStore::new()).await;
    publish(&b, queue("q"), event(1)).await;
    let d = take(&b, from_queue("q"), 1).await;
    tokio::time::advance(Duration::from_secs(29)).await;
    assert_eq!(b.extend(&tokens(&d), Some(Duration::from_secs(60))).await.unwrap().done, 1);
    tokio::time::advance(Duration::from_secs(59)).await;
    assert!(take(&b, from_queue("q"), 1).await.is_empty());
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(take(&b, from_queue("q"), 1).await[0].attempt, 2);
    assert_eq!(b.extend(&tokens(&d), None).await.unwrap().stale, [0], "the old lease is over");
}

#[tokio::test(start_paused = true)]
async fn a_message_given_back_comes_again_after_its_delay_or_the_backoff() {
    let b = open(&MemStore::new()).await;
    b.declare_queue(name("q"), &json!({"retry": {"backoff": "100ms..1s"}})).await.unwrap();
    publish(&b, queue("q"), event(1)).await;
    let mut d = take(&b, from_queue("q"), 1).await;
    for (attempt, backoff) in [(2, 100), (3, 200), (4, 400), (5, 800), (6, 1000), (7, 1000)] {
        assert_eq!(b.nack(&tokens(&d), NackOptions::default()).await.unwrap().done, 1);
        tokio::time::advance(Duration::from_millis(backoff - 2)).await;
        assert!(take(&b, from_queue("q"), 1).await.is_empty(), "attempt {attempt} came early");
        d = wait(&b, from_queue("q"), 1).await;
        assert_eq!(d[0].attempt, attempt);
    }
    let now = NackOptions { delay: Some(Duration::ZERO), ..Default::default() };
    assert_eq!(b.nack(&tokens(&d), now.clone()).await.unwrap().done, 1);
    assert_eq!(b.nack(&tokens(&d), now).await.unwrap().stale, [0]);
    assert_eq!(take(&b, from_queue("q"), 1).await[0].attempt, 8);
}

#[tokio::test(start_paused = true)]
async fn a_long_poll_gets_the_message_that_comes_while_it_waits() {
    let b = open(&MemStore::new()).await;
    let waiting = tokio::spawn({
        let b = b.clone();
        async move { wait(&b, from_queue("q"), 5).await }
    });
    tokio::time::sleep(Duration::from_secs(3)).await;
    publish(&b, queue("q"), event(1)).await;
    assert_eq!(ids(&waiting.await.unwrap()), ["e1"]);
}

#[tokio::test(start_paused = true)]
async fn a_receiver_that_went_away_costs_no_attempt() {
    let b = open(&MemStore::new()).await;
    let gone = tokio::spawn({
        let b = b.clone();
        async move { wait(&b, from_queue("q"), 5).await }
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    gone.abort();
    assert!(gone.await.unwrap_err().is_cancelled());
    publish(&b, queue("q"), event(1)).await;
    assert_eq!(take(&b, from_queue("q"), 1).await[0].attempt, 1);
}

#[tokio::test(start_paused = true)]
async fn every_subscription_gets_what_its_filter_lets_through() {
    let b = open(&MemStore::new()).await;
    b.declare_topic(name("t"), &json!({"partitions": 4})).await.unwrap();
    b.declare_subscription(name("all"), &json!({"topic": "t"})).await.unwrap();
    b.declare_subscription(name("big"), &json!({"topic": "t", "filter": "event.data.n > 7"})).await.unwrap();
    for n in 0..10 {
        publish(&b, topic("t"), keyed(n, &format!("k{n}"))).await;
    }
    let all = take(&b, from_sub("all"), 100).await;
    assert_eq!(all.len(), 10);
    let big = take(&b, from_sub("big"), 100).await;
    let mut got = ids(&big);
    got.sort_unstable();
    assert_eq!(got, ["e8", "e9"]);
    b.ack(&tokens(&big)).await.unwrap();
    let l = b.subscriptions().await.unwrap();
    assert_eq!((l[1].name.as_str(), l[1].ready, l[1].in_flight), ("big", 0, 0), "what did not match is not waiting");
}

#[tokio::test(start_paused = true)]
async fn key_shared_keeps_each_keys_order_over_redelivery() {
    let b = open(&MemStore::new()).await;
    b.declare_topic(name("t"), &json!({"partitions": 3})).await.unwrap();
    b.declare_subscription(name("s"), &json!({"topic": "t", "mode": "key-shared"})).await.unwrap();
    for n in 0..6 {
        publish(&b, topic("t"), keyed(n, if n % 2 == 0 { "even" } else { "odd" })).await;
    }
    let d = take(&b, from_sub("s"), 100).await;
    let mut got = ids(&d);
    got.sort_unstable();
    assert_eq!(got, ["e0", "e1"], "one of each key");
    let (even, odd): (Vec<_>, Vec<_>) = d.into_iter().partition(|d| d.event.id == "e0");
    b.nack(&tokens(&even), NackOptions::default()).await.unwrap();
    b.ack(&tokens(&odd)).await.unwrap();
    let d = take(&b, from_sub("s"), 100).await;
    assert_eq!(ids(&d), ["e3"], "the backoff of e0 holds back its own key only");
    tokio::time::advance(Duration::from_millis(100)).await;
    assert_eq!(ids(&take(&b, from_sub("s"), 100).await), ["e0"]);
}

#[tokio::test(start_paused = true)]
async fn exclusive_hands_a_partition_to_one_receiver_at_a_time() {
    let b = open(&MemStore::new()).await;
    b.declare_topic(name("t"), &json!({})).await.unwrap();
    b.declare_subscription(name("s"), &json!({"topic": "t", "mode": "exclusive"})).await.unwrap();
    for n in 0..4 {
        publish(&b, topic("t"), keyed(n, &format!("k{}", n % 2))).await;
    }
    let d = take(&b, from_sub("s"), 100).await;
    assert_eq!(ids(&d), ["e0", "e1"]);
    assert!(take(&b, from_sub("s"), 100).await.is_empty());
    b.ack(&tokens(&d)[..1]).await.unwrap();
    assert!(take(&b, from_sub("s"), 100).await.is_empty(), "the first receiver still holds e1");
    b.ack(&tokens(&d)[1..]).await.unwrap();
    assert_eq!(ids(&take(&b, from_sub("s"), 100).await), ["e2", "e3"]);
}

#[tokio::test(start_paused = true)]
async fn a_message_whose_attempts_are_used_up_goes_to_the_dead_letter_queue() {
    let b = open(&MemStore::new()).await;
    b.declare_queue(name("q"), &json!({"retry": {"attempts": 2, "backoff": "1s"}})).await.unwrap();
    publish(&b, queue("q"), event(1)).await;
    let d = take(&b, from_queue("q"), 1).await;
    b.nack(&tokens(&d), NackOptions::default()).await.unwrap();
    let d = wait(&b, from_queue("q"), 1).await;
    let why = NackOptions { reason: Some("no such address".into()), ..Default::default() };
    b.nack(&tokens(&d), why).await.unwrap();
    assert!(take(&b, from_queue("q"), 1).await.is_empty());
    assert_eq!(b.queues().await.unwrap()[0].dead_letters, 1);
    let dead = take(&b, from_queue("q.dead"), 1).await;
    let x = &dead[0].event.extensions;
    assert_eq!(dead[0].event.id, "e1");
    assert_eq!((x["weftdeadreason"].as_str(), x["weftdeadcount"].as_str()), ("no such address", "2"));
    assert_eq!(x["weftdeadorigin"], "queue/q");
    assert!(weft_core::Timestamp::parse(&x["weftdeadtime"]).is_some());

    let options = NackOptions { delay: Some(Duration::ZERO), dead_letter: true, ..Default::default() };
    b.nack(&tokens(&dead), options.clone()).await.unwrap();
    let dead = take(&b, from_queue("q.dead"), 1).await;
    assert_eq!(dead[0].attempt, 2, "a dead-letter queue has no dead-letter queue: the message stays");
    b.nack(&tokens(&dead), options).await.unwrap();

    assert_eq!(b.redrive(&name("q.dead"), 100, None).await.unwrap(), 1);
    let back = take(&b, from_queue("q"), 1).await;
    assert_eq!((back[0].event.id.as_str(), back[0].attempt), ("e1", 1));
    assert!(!back[0].event.extensions.keys().any(|k| k.starts_with("weftdead")));
    assert_eq!(b.redrive(&name("q.dead"), 100, None).await.unwrap(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_ends_on_the_last_attempt_kills_the_message() {
    let b = open(&MemStore::new()).await;
    b.declare_queue(name("q"), &json!({"retry": {"attempts": 1}, "dead_letter": "grave"})).await.unwrap();
    publish(&b, queue("q"), event(1)).await;
    take(&b, from_queue("q"), 1).await;
    tokio::time::advance(LEASE).await;
    let dead = wait(&b, from_queue("grave"), 1).await;
    assert!(dead[0].event.extensions["weftdeadreason"].contains("lease ended"));
}

#[tokio::test(start_paused = true)]
async fn a_redriven_message_of_a_subscription_goes_back_to_that_subscription_alone() {
    let b = open(&MemStore::new()).await;
    b.declare_topic(name("t"), &json!({})).await.unwrap();
    for s in ["a", "b"] {
        b.declare_subscription(name(s), &json!({"topic": "t"})).await.unwrap();
    }
    publish(&b, topic("t"), event(1)).await;
    let a = take(&b, from_sub("a"), 1).await;
    b.ack(&tokens(&take(&b, from_sub("b"), 1).await)).await.unwrap();
    b.nack(&tokens(&a), NackOptions { dead_letter: true, ..Default::default() }).await.unwrap();
    assert_eq!(b.redrive(&name("a.dead"), 100, None).await.unwrap(), 1);
    assert!(take(&b, from_sub("b"), 1).await.is_empty());
    let again = take(&b, from_sub("a"), 1).await;
    assert_eq!(ids(&again), ["e1"]);
    assert_eq!(b.ack(&tokens(&again)).await.unwrap().done, 1);
    assert!(take(&b, from_sub("a"), 1).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_redrive_can_go_elsewhere_and_stops_at_its_maximum() {
    let b = open(&MemStore::new()).await;
    for n in 0..5 {
        publish(&b, queue("d"), event(n)).await;
    }
    assert_eq!(b.redrive(&name("d"), 100, None).await.unwrap(), 0, "these came from nowhere");
    assert_eq!(b.redrive(&name("d"), 3, Some(queue("q"))).await.unwrap(), 3);
    assert_eq!(ids(&take(&b, from_queue("q"), 10).await), ["e0", "e1", "e2"]);
    assert_eq!(take(&b, from_queue("d"), 10).await.len(), 2);
    assert!(matches!(b.redrive(&name("none"), 1, None).await, Err(Error::NotFound { .. })));
}

#[tokio::test(start_paused = true)]
async fn a_dead_message_waits_when_the_store_refuses_and_is_not_lost() {
    let store = MemStore::new();
    let b = open(&store).await;
    b.declare_queue(name("q"), &json!({"retry": {"attempts": 1, "backoff": "1s"}})).await.unwrap();
    publish(&b, queue("q"), event(1)).await;
    let d = take(&b, from_queue("q"), 1).await;
    store.fail(Some(weft_store::Error::Overloaded));
    b.nack(&tokens(&d), NackOptions::default()).await.unwrap();
    assert!(take(&b, from_queue("q.dead"), 1).await.is_empty());
    store.fail(None);
    assert_eq!(ids(&wait(&b, from_queue("q.dead"), 1).await), ["e1"]);
}

#[tokio::test(start_paused = true)]
async fn a_backlog_larger_than_the_window_is_read_on_in_order() {
    let store = MemStore::new();
    let b = open(&store).await;
    let total = weft_core::limits::DELIVERY_WINDOW as u64 * 3;
    for chunk in (0..total).collect::<Vec<_>>().chunks(500) {
        let all = chunk.iter().map(|n| Publish { channel: queue("q"), event: event(*n), options: Default::default() });
        b.publish_all(&ctx(), all.collect()).await.unwrap();
    }
    assert_eq!(b.queues().await.unwrap()[0].ready, total);
    let mut next = 0;
    while next < total {
        let d = take(&b, from_queue("q"), 700).await;
        assert!(!d.is_empty(), "at {next}");
        for m in &d {
            assert_eq!(m.event.id, format!("e{next}"));
            next += 1;
        }
        b.ack(&tokens(&d)).await.unwrap();
    }
    assert_eq!(b.queues().await.unwrap()[0].ready, 0);
}

#[tokio::test(start_paused = true)]
async fn retention_drops_what_is_old_and_a_slow_subscription_jumps() {
    let b = open(&MemStore::new()).await;
    b.declare_topic(name("t"), &json!({"retention": "1h"})).await.unwrap();
    b.declare_subscription(name("s"), &json!({"topic": "t"})).await.unwrap();
    for n in 0..10 {
        publish(&b, topic("t"), event(n)).await;
    }
    tokio::time::sleep(Duration::from_secs(1800)).await;
    assert_eq!(b.topics().await.unwrap()[0].ready, 10);
    tokio::time::sleep(Duration::from_secs(2000)).await;
    assert_eq!(b.topics().await.unwrap()[0].ready, 0);
    assert!(take(&b, from_sub("s"), 10).await.is_empty());
    assert_eq!(b.subscriptions().await.unwrap()[0].ready, 0);
}

#[tokio::test(start_paused = true)]
async fn a_topic_without_retention_is_trimmed_behind_its_slowest_subscription() {
    let b = open(&MemStore::new()).await;
    b.declare_topic(name("t"), &json!({})).await.unwrap();
    for s in ["fast", "slow"] {
        b.declare_subscription(name(s), &json!({"topic": "t"})).await.unwrap();
    }
    for n in 0..4 {
        publish(&b, topic("t"), event(n)).await;
    }
    b.ack(&tokens(&take(&b, from_sub("fast"), 4).await)).await.unwrap();
    b.ack(&tokens(&take(&b, from_sub("slow"), 2).await)).await.unwrap();
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(b.topics().await.unwrap()[0].ready, 2);
    assert_eq!(ids(&take(&b, from_sub("slow"), 4).await), ["e2", "e3"]);
}
