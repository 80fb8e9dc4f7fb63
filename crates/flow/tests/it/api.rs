//! Starting, listing, reloading, purging.

use super::support::*;
use serde_json::json;
use std::time::Duration;
use weft_core::{Context, Deadline, Principal, limits};
use weft_flow::{Error, Filter};

struct Scene {
    house: House,
    parties: Parties,
    dir: tempfile::TempDir,
}

async fn scene() -> Scene {
    let parties = Parties::start(Reflects::No);
    let dir = tempfile::tempdir().unwrap();
    let house = House::open(dir.path()).await;
    house.apply(&[saga("one", vec![simple("create")])], &parties.services(true)).await;
    Scene { house, parties, dir }
}

#[tokio::test]
async fn a_key_starts_one_saga_however_often_it_is_used() {
    let s = scene().await;
    let ctx = Context::root();
    let starts = (0..50).map(|_| s.house.flow.start(&ctx, "one", Some("order-7"), json!({"n": 1})));
    let all: Vec<_> = futures_util::future::join_all(starts).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(all.iter().filter(|s| !s.existing).count(), 1);
    assert!(all.iter().all(|s| s.id == all[0].id));
    s.house.end(all[0].id).await;
    assert_eq!(s.parties.book.seen.lock().len(), 1);
    assert!(s.house.flow.start(&ctx, "one", Some("order-7"), json!({})).await.unwrap().existing);
    assert!(!s.house.flow.start(&ctx, "one", Some("order-8"), json!({})).await.unwrap().existing);

    // Another principal's keys are its own.
    let mut ada = Context::root();
    ada.principal = Principal::Named("ada".into());
    let hers = s.house.flow.start(&ada, "one", Some("order-7"), json!({})).await.unwrap();
    assert!(!hers.existing && hers.id != all[0].id);
    let both = Filter { saga: Some("one".into()), key: Some("order-7".into()), status: None };
    assert_eq!(s.house.flow.list(&both, 10, None).await.unwrap().items.len(), 2);
}

#[tokio::test]
async fn bad_starts_are_refused_and_named() {
    let s = scene().await;
    let ctx = Context::root();
    let e = s.house.flow.start(&ctx, "onee", None, json!({})).await.unwrap_err().to_string();
    assert_eq!(e, "there is no saga 'onee'; did you mean 'one'?");
    let long = "k".repeat(limits::SAGA_KEY_BYTES + 1);
    assert!(matches!(s.house.flow.start(&ctx, "one", Some(&long), json!({})).await, Err(Error::TooLarge { .. })));
    let huge = json!("x".repeat(limits::SAGA_STATE_BYTES));
    assert!(matches!(s.house.flow.start(&ctx, "one", None, huge).await, Err(Error::TooLarge { .. })));
    let nobody = weft_core::Id::new();
    assert!(matches!(s.house.flow.get(nobody).await, Err(Error::NotFound { .. })));
    assert!(matches!(s.house.flow.wait(nobody, Deadline::NONE).await, Err(Error::NotFound { .. })));
}

#[tokio::test]
async fn listing_pages_the_newest_first_and_filters() {
    let s = scene().await;
    let mut ids = Vec::new();
    for i in 0..7 {
        if i == 3 {
            s.parties.book.order("create", &[Do::Decline]);
        }
        let started =
            s.house.flow.start(&Context::root(), "one", Some(&format!("k{i}")), json!({"i": i})).await.unwrap();
        s.house.end(started.id).await;
        ids.push(started.id.to_string());
        // Ids are ordered by millisecond.
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    ids.reverse();
    let (mut seen, mut cursor) = (Vec::new(), None);
    loop {
        let page = s.house.flow.list(&Filter::default(), 3, cursor.as_deref()).await.unwrap();
        assert!(page.items.len() <= 3);
        seen.extend(page.items.into_iter().map(|v| v.id));
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(seen, ids);
    let count = async |status: Option<&str>, saga: Option<&str>, key: Option<&str>| {
        let own = |s: Option<&str>| s.map(str::to_owned);
        let f = Filter { status: own(status), saga: own(saga), key: own(key) };
        s.house.flow.list(&f, 100, None).await.unwrap().items.len()
    };
    assert_eq!(count(Some("completed"), None, None).await, 6);
    assert_eq!(count(Some("compensated"), Some("one"), None).await, 1);
    assert_eq!(count(Some("running"), None, None).await, 0);
    assert_eq!(count(None, Some("two"), None).await, 0);
    assert_eq!(count(None, None, Some("k5")).await, 1);
    assert_eq!(count(None, Some("one"), Some("k5")).await, 1);
    assert_eq!(count(Some("compensated"), Some("one"), Some("k5")).await, 0);
    assert_eq!(count(Some("odd"), None, None).await, 0);
}

#[tokio::test]
async fn a_running_instance_stays_on_its_definition_and_a_removed_one_drains() {
    let s = scene().await;
    let old = saga("v", vec![simple("create"), simple("old")]);
    s.house.apply(&[old], &s.parties.services(true)).await;
    s.parties.book.order("create", &[Do::DoneThenHang(Duration::from_millis(100))]);
    let first = s.house.flow.start(&Context::root(), "v", None, json!({})).await.unwrap();
    let new = saga("v", vec![simple("create"), simple("new")]);
    s.house.apply(&[new], &s.parties.services(true)).await;
    let second = s.house.run("v", json!({})).await;
    assert_eq!(s.house.end(first.id).await.steps[1].name, "old");
    assert_eq!(second.steps[1].name, "new");

    s.parties.book.order("create", &[Do::DoneThenHang(Duration::from_millis(100))]);
    let last = s.house.flow.start(&Context::root(), "v", None, json!({})).await.unwrap();
    s.house.apply(&[], &s.parties.services(true)).await;
    assert!(matches!(s.house.flow.start(&Context::root(), "v", None, json!({})).await, Err(Error::UnknownSaga { .. })));
    assert_eq!(s.house.end(last.id).await.status, "completed");
}

#[tokio::test]
async fn a_staged_start_takes_effect_with_the_batch_it_is_in() {
    let s = scene().await;
    let ctx = Context::root();
    let staged = s.house.flow.stage_start(&ctx, "one", Some("k"), json!({})).await.unwrap();
    let rival = s.house.flow.stage_start(&ctx, "one", Some("k"), json!({})).await.unwrap();
    assert!(matches!(s.house.flow.get(staged.id).await, Err(Error::NotFound { .. })), "nothing happened yet");
    s.house.store.commit(staged.batch.put("carts", "c", "1")).await.unwrap();
    assert!(s.house.store.commit(rival.batch.put("carts", "c", "2")).await.is_err(), "the key was taken");
    s.house.flow.launch(&[staged.id, rival.id]);
    assert_eq!(s.house.end(staged.id).await.status, "completed");
    assert_eq!(s.house.store.get("carts", b"c").await.unwrap().unwrap().bytes, "1");
    let again = s.house.flow.stage_start(&ctx, "one", Some("k"), json!({})).await.unwrap();
    assert!(again.existing && again.id == staged.id && again.batch.ops.is_empty());
}

#[tokio::test]
async fn a_staged_start_that_nobody_launched_runs_when_the_process_runs_again() {
    let s = scene().await;
    let staged = s.house.flow.stage_start(&Context::root(), "one", Some("k"), json!({})).await.unwrap();
    s.house.store.commit(staged.batch).await.unwrap();
    let services = s.parties.services(true);
    s.house.flow.close().await;
    s.house.broker.close().await;
    s.house.store.close().await.unwrap();
    drop(s.house);
    let house = House::open(s.dir.path()).await;
    // Its definition is no longer in the file.
    house.apply(&[], &services).await;
    assert_eq!(house.end(staged.id).await.status, "completed");
    assert_eq!(s.parties.book.in_effect(staged.id), ["create"]);
}

#[tokio::test]
async fn closing_awaits_steps_under_way_and_the_next_process_goes_on() {
    let s = scene().await;
    s.house.apply(&[saga("two", vec![simple("create"), simple("charge")])], &s.parties.services(true)).await;
    s.parties.book.order("create", &[Do::DoneThenHang(Duration::from_millis(100))]);
    let started = s.house.flow.start(&Context::root(), "two", None, json!({})).await.unwrap();
    while s.parties.book.count("create") == 0 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    s.house.flow.close().await;
    assert!(matches!(s.house.flow.start(&Context::root(), "two", None, json!({})).await, Err(Error::Closed)));
    let view = s.house.flow.get(started.id).await.unwrap();
    assert_eq!(serde_json::to_value(view.steps[0].status).unwrap(), json!("done"), "{view:#?}");
    assert_eq!(s.parties.book.count("charge"), 0);
    s.house.broker.close().await;
    s.house.store.close().await.unwrap();
    drop(s.house);
    let house = House::open(s.dir.path()).await;
    house.apply(&[], &s.parties.services(true)).await;
    assert_eq!(house.end(started.id).await.status, "completed");
    assert_eq!((s.parties.book.count("create"), s.parties.book.count("charge")), (1, 1));
}

#[tokio::test]
async fn ended_instances_are_purged_with_their_keys_and_running_ones_are_not() {
    let s = scene().await;
    let mut ids = Vec::new();
    for i in 0..5 {
        let id = s.house.flow.start(&Context::root(), "one", Some(&format!("k{i}")), json!({})).await.unwrap().id;
        s.house.end(id).await;
        ids.push(id);
    }
    s.parties.book.order("create", &[Do::DoneThenHang(Duration::from_millis(120))]);
    let running = s.house.flow.start(&Context::root(), "one", Some("r"), json!({})).await.unwrap().id;
    assert_eq!(s.house.flow.purge(Duration::from_secs(3_600)).await.unwrap(), 0);
    assert_eq!(s.house.flow.purge(Duration::ZERO).await.unwrap(), 5);
    for id in ids {
        assert!(matches!(s.house.flow.get(id).await, Err(Error::NotFound { .. })));
    }
    assert_eq!(s.house.flow.list(&Filter::default(), 100, None).await.unwrap().items.len(), 1);
    assert!(!s.house.flow.start(&Context::root(), "one", Some("k0"), json!({})).await.unwrap().existing);
    assert_eq!(s.house.end(running).await.status, "completed");
}
