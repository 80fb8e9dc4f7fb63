//! What steps do: complete, decline, fail, hang, park; and what the participants have to show for it.

use super::support::*;
use serde_json::{Value, json};
use std::time::Duration;
use weft_broker::{ReceiveOptions, Source};
use weft_core::{Context, Deadline};
use weft_flow::spec::{Idempotent, SagaSpec, Step, StepKind};
use weft_mesh::Address;

const HANG: Duration = Duration::from_secs(5);

struct Scene {
    house: House,
    parties: Parties,
    _dir: tempfile::TempDir,
}

async fn scene(sagas: &[SagaSpec]) -> Scene {
    let parties = Parties::start(Reflects::No);
    let dir = tempfile::tempdir().unwrap();
    let house = House::open(dir.path()).await;
    house.apply(sagas, &parties.services(true)).await;
    Scene { house, parties, _dir: dir }
}

fn with_deadline(s: SagaSpec, d: Duration) -> SagaSpec {
    SagaSpec { deadline: Some(d), ..s }
}

fn once(mut s: Step) -> Step {
    if let StepKind::Action { action, .. } = &mut s.kind {
        action.idempotent = Idempotent::No;
        if let weft_flow::spec::Call::Http { with, .. } = &mut action.call {
            *with = Some(json!({"saga": "saga.id"}));
        }
    }
    s
}

#[tokio::test]
async fn an_order_completes_with_result_events_keys_and_one_trace() {
    let s = scene(&[order()]).await;
    let ctx = Context::root();
    let started = s.house.flow.start(&ctx, "order", Some("k-1"), input()).await.unwrap();
    let view = s.house.end(started.id).await;
    assert_eq!(view.status, "completed", "{view:#?}");
    assert_eq!(view.result, Some(json!({"id": view.id, "total": 4207, "status": "completed"})));
    assert_eq!(
        view.steps.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(),
        ["create", "reserve", "charge", "ship", "announce"]
    );
    assert!(view.steps.iter().all(|s| s.attempts == 1 && s.started.is_some() && s.ended.is_some()), "{view:#?}");
    assert_eq!(s.parties.book.in_effect(started.id), ["charge", "create", "reserve", "ship"]);

    let seen = s.parties.book.seen.lock().clone();
    for call in &seen {
        assert_eq!(call.key.as_deref(), Some(format!("{}:{}", started.id, call.step).as_str()));
        assert!(call.trace.contains(&ctx.trace.trace_id.to_string()), "{call:?}");
    }
    assert_eq!(seen[0].body, json!({"id": view.id, "who": "ada"}));
    assert_eq!(seen[1].body["items"], json!([{"sku": "tea", "count": 2}]));

    let got = s.house.broker.receive(Source::Queue(name("done")), ReceiveOptions::default()).await.unwrap();
    assert_eq!(got.len(), 1);
    assert_eq!(got[0].event.id, format!("{}:announce", started.id));
    assert_eq!(got[0].event.subject.as_deref(), Some(view.id.as_str()));
    assert_eq!(got[0].event.data_json().unwrap(), json!({"order": view.id, "left": 7}));
    assert!(got[0].event.traceparent().unwrap().contains(&ctx.trace.trace_id.to_string()));

    assert_eq!(view.trace_id, ctx.trace.trace_id.to_string());
    let spans = s.house.telemetry.trace(ctx.trace.trace_id);
    let saga = spans.iter().find(|s| s.name == "saga order").expect("the saga's span");
    assert_eq!(saga.trace.parent, Some(ctx.trace.span_id));
    for step in ["step create", "step reserve", "step charge", "step ship", "step announce"] {
        let span = spans.iter().find(|s| s.name == step).unwrap_or_else(|| panic!("no span '{step}'"));
        assert_eq!(span.trace.parent, Some(saga.trace.span_id), "{step}");
    }
    let metrics = s.house.telemetry.metrics().render_prometheus();
    for line in [
        r#"weft_sagas_started_total{saga="order"} 1"#,
        r#"weft_sagas_ended_total{saga="order",status="completed"} 1"#,
        r#"weft_saga_steps_total{saga="order",step="reserve",outcome="success"} 1"#,
        r#"weft_saga_step_duration_seconds_count{saga="order",step="charge"} 1"#,
        r#"weft_sagas_running{saga="order"} 0"#,
    ] {
        assert!(metrics.contains(line), "missing {line}\n{metrics}");
    }
}

#[tokio::test]
async fn a_decline_compensates_what_was_done_and_says_why() {
    let s = scene(&[order()]).await;
    for (declined, left, said) in [
        ("create", 0, "HTTP 422: the card is declined"),
        ("reserve", 1, "FAILED_PRECONDITION: out of stock: 100 % sold"),
        ("ship", 3, "HTTP 422: the card is declined"),
    ] {
        s.parties.book.seen.lock().clear();
        s.parties.book.order(declined, &[Do::Decline]);
        let view = s.house.run("order", input()).await;
        assert_eq!((view.status, view.error.as_deref()), ("compensated", Some(said)), "{view:#?}");
        assert_eq!(serde_json::to_value(view.cause).unwrap(), json!("rejected"));
        assert_eq!(s.parties.book.in_effect(id(&view)), [""; 0], "{declined}");
        let seen = s.parties.book.seen.lock().clone();
        let undone = seen.iter().filter(|c| c.step.ends_with("/undo")).count();
        assert_eq!(undone, left, "{seen:?}");
        assert!(seen.iter().filter(|c| c.step.ends_with("/undo")).all(|c| c.key.as_ref().unwrap().ends_with(":undo")));
    }
    let done = s.house.broker.receive(Source::Queue(name("done")), ReceiveOptions::default()).await;
    assert!(done.is_err() || done.unwrap().is_empty(), "nothing was announced");
}

#[tokio::test]
async fn an_answer_that_is_lost_is_asked_for_again_with_the_same_key() {
    let s = scene(&[impatient(order())]).await;
    for trouble in [Do::DoneThenHang(HANG), Do::DoneThenFault, Do::Away, Do::Busy, Do::Hang(HANG)] {
        for step in ["create", "reserve", "charge"] {
            // More than the policy's own attempts: the saga itself goes on asking.
            s.parties.book.seen.lock().clear();
            s.parties.book.order(step, &[trouble; 3]);
            let view = s.house.run("order", input()).await;
            assert_eq!(view.status, "completed", "{trouble:?} {step}: {view:#?}");
            assert_eq!(s.parties.book.in_effect(id(&view)).len(), 4);
            let seen = s.parties.book.seen.lock().clone();
            let keys: Vec<_> = seen.iter().filter(|c| c.step == step).map(|c| c.key.clone()).collect();
            assert!(keys.len() >= 4, "{trouble:?} {step}: {keys:?}");
            assert!(keys.iter().all(|k| *k == keys[0]), "{keys:?}");
        }
    }
}

#[tokio::test]
async fn an_outcome_unknown_at_the_deadline_is_compensated() {
    let short = with_deadline(impatient(order()), Duration::from_millis(1_500));
    let s = scene(&[short]).await;
    s.parties.book.always("reserve", Do::DoneThenHang(HANG));
    let view = s.house.run("order", input()).await;
    assert_eq!((view.status, view.error.as_deref()), ("compensated", Some("the saga's deadline passed")), "{view:#?}");
    assert_eq!(serde_json::to_value(view.steps[1].status).unwrap(), json!("unknown"));
    assert_eq!(s.parties.book.in_effect(id(&view)), [""; 0]);
    assert!(s.parties.book.count("reserve/undo") >= 1);
}

#[tokio::test]
async fn a_step_that_was_never_sent_is_not_compensated() {
    let parties = Parties::start(Reflects::No);
    let dir = tempfile::tempdir().unwrap();
    let house = House::open(dir.path()).await;
    let mut services = parties.services(true);
    // Bound and let go: nobody listens there.
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    services[1].addresses = vec![Address::Ip(nobody)];
    house.apply(&[with_deadline(order(), Duration::from_millis(500))], &services).await;
    let view = house.run("order", input()).await;
    assert_eq!(view.status, "compensated");
    assert_eq!(serde_json::to_value(view.steps[1].status).unwrap(), json!("failed"), "{view:#?}");
    assert_eq!(view.steps[1].compensation, None);
    assert_eq!(parties.book.count("create/undo"), 1);
}

#[tokio::test]
async fn an_unknown_outcome_of_a_step_that_may_not_be_repeated_parks_and_an_operator_decides() {
    for cancel in [false, true] {
        let s = scene(&[saga("pay", vec![simple("create"), once(simple("charge"))])]).await;
        s.parties.book.order("charge", &[Do::DoneThenFault]);
        let view = s.house.run("pay", json!({})).await;
        assert_eq!(view.status, "parked", "{view:#?}");
        assert!(view.error.as_ref().unwrap().contains("HTTP 500"), "{view:#?}");
        assert_eq!(s.parties.book.count("charge"), 1, "it was repeated");
        assert!(s.parties.book.seen.lock().iter().all(|c| c.step != "charge" || c.key.is_none()));
        let id = id(&view);
        let after = if cancel { s.house.flow.cancel(id).await } else { s.house.flow.retry(id).await };
        assert_ne!(after.unwrap().status, "parked");
        let view = s.house.end(id).await;
        assert_eq!(view.status, if cancel { "compensated" } else { "completed" }, "{view:#?}");
        let effects = s.parties.book.in_effect(id).len();
        assert_eq!(effects, if cancel { 0 } else { 2 });
    }
}

#[tokio::test]
async fn a_compensation_that_is_refused_parks_with_its_reason_and_goes_on_when_retried() {
    let s = scene(&[saga("two", vec![simple("create"), simple("charge")])]).await;
    s.parties.book.order("charge", &[Do::Decline]);
    s.parties.book.order("create/undo", &[Do::Away, Do::Decline]);
    let view = s.house.run("two", json!({})).await;
    assert_eq!(view.status, "parked", "{view:#?}");
    assert_eq!(view.error.as_deref(), Some("a compensation failed: HTTP 422: the card is declined"));
    let listed = s.house.flow.list(&filter("parked"), 10, None).await.unwrap();
    assert_eq!(listed.items.len(), 1);
    s.house.flow.retry(id(&view)).await.unwrap();
    let view = s.house.end(id(&view)).await;
    assert_eq!((view.status, view.error.as_deref()), ("compensated", Some("HTTP 422: the card is declined")));
    assert_eq!(s.parties.book.in_effect(id(&view)), [""; 0]);
    let again = s.house.flow.retry(id(&view)).await.unwrap_err().to_string();
    assert!(again.contains("is compensated: only a parked saga can be retried"), "{again}");
}

fn filter(status: &str) -> weft_flow::Filter {
    weft_flow::Filter { status: Some(status.into()), ..Default::default() }
}

#[tokio::test]
async fn cancelling_a_running_saga_awaits_the_step_under_way_and_undoes_it() {
    let s = scene(&[saga("two", vec![simple("create"), simple("charge")])]).await;
    s.parties.book.order("charge", &[Do::DoneThenHang(Duration::from_millis(100))]);
    let started = s.house.flow.start(&Context::root(), "two", None, json!({})).await.unwrap();
    while s.parties.book.count("charge") == 0 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let view = s.house.flow.cancel(started.id).await.unwrap();
    assert_ne!(view.status, "running");
    let view = s.house.end(started.id).await;
    assert_eq!((view.status, view.error.as_deref()), ("compensated", Some("cancelled")), "{view:#?}");
    assert_eq!(s.parties.book.in_effect(started.id), [""; 0]);
    assert!(s.house.flow.cancel(started.id).await.unwrap_err().to_string().contains("is compensated"));
}

#[tokio::test]
async fn conditions_skip_steps_and_whole_groups() {
    let when = |mut s: Step, w: &str| {
        s.when = Some(w.into());
        s
    };
    let s = scene(&[]).await;
    let group = Step {
        name: name("group"),
        when: Some("input.both".into()),
        kind: StepKind::Parallel(vec![simple("charge"), when(simple("ship"), "input.ship")]),
    };
    s.house.apply(&[saga("c", vec![when(simple("create"), "input.create"), group])], &s.parties.services(true)).await;
    for (input, effects) in [
        (json!({"create": true, "both": true, "ship": true}), vec!["charge", "create", "ship"]),
        (json!({"create": false, "both": true, "ship": false}), vec!["charge"]),
        (json!({"create": false, "both": false}), vec![]),
    ] {
        let view = s.house.run("c", input).await;
        assert_eq!(view.status, "completed", "{view:#?}");
        assert_eq!(s.parties.book.in_effect(id(&view)), effects);
    }
    let view = s.house.run("c", json!({"create": true})).await;
    assert_eq!(view.status, "compensated");
    assert!(view.error.unwrap().contains("both"), "the missing member is named");
    assert_eq!(s.parties.book.in_effect(view.id.parse().unwrap()), [""; 0]);
}

#[tokio::test]
async fn an_expression_that_fails_names_itself_and_what_was_done_is_undone() {
    let bad = step("charge", http("/charge", json!({"amount": "create.nothing.at_all"})), None);
    let s = scene(&[saga("bad", vec![simple("create"), bad])]).await;
    let view = s.house.run("bad", json!({})).await;
    assert_eq!(view.status, "compensated");
    assert!(view.error.as_ref().unwrap().contains("create.nothing.at_all"), "{view:#?}");
    assert_eq!(s.parties.book.count("charge"), 0);
    assert_eq!(s.parties.book.in_effect(id(&view)), [""; 0]);
}

#[tokio::test]
async fn an_answer_over_the_limit_is_compensated_and_not_kept() {
    let s = scene(&[saga("big", vec![simple("create"), simple("charge")])]).await;
    s.parties.book.always("charge", Do::Large(weft_core::limits::COLLECTED_BODY_BYTES + 1));
    let view = s.house.run("big", json!({})).await;
    assert_eq!(view.status, "compensated", "{view:#?}");
    assert!(view.error.as_ref().unwrap().contains("limit"), "{view:#?}");
    assert_eq!(s.parties.book.in_effect(id(&view)), [""; 0]);

    // Each answer fits, all of them do not.
    let steps: Vec<Step> = (0..6).map(|i| simple(&format!("s{i}"))).collect();
    s.house.apply(&[saga("many", steps)], &s.parties.services(true)).await;
    (0..6).for_each(|i| s.parties.book.always(&format!("s{i}"), Do::Large(1_000_000)));
    let view = s.house.run("many", json!({})).await;
    assert_eq!(view.status, "compensated");
    assert!(view.error.as_ref().unwrap().contains("makes the state larger than"), "{:?}", view.error);
    assert_eq!(s.parties.book.in_effect(id(&view)), [""; 0]);
}

#[tokio::test]
async fn a_publish_that_the_broker_refuses_fails_its_step() {
    let huge = step("announce", publish("done", json!("input.text")), None);
    let s = scene(&[saga("p", vec![simple("create"), huge.clone()]), saga("first", vec![huge])]).await;
    let text = "x".repeat(weft_core::limits::MESSAGE_BYTES + 1);
    for name in ["p", "first"] {
        let view = s.house.run(name, json!({"text": text})).await;
        assert_eq!(view.status, "compensated", "{:?}", view.error);
        assert!(view.error.as_ref().unwrap().contains("bytes of data"), "{:?}", view.error);
        assert_eq!(s.parties.book.in_effect(id(&view)), [""; 0]);
    }
}

#[tokio::test]
async fn more_steps_than_may_be_in_flight_wait_their_turn() {
    let s = scene(&[saga("one", vec![simple("create")])]).await;
    let starts =
        (0..1_200).map(|_| async { s.house.flow.start(&Context::root(), "one", None, Value::Null).await.unwrap().id });
    let ids = futures_util::future::join_all(starts).await;
    for id in ids {
        let view = s.house.flow.wait(id, Deadline::after(Duration::from_secs(60))).await.unwrap();
        assert_eq!(view.status, "completed", "{view:#?}");
        assert_eq!(s.parties.book.in_effect(id), ["create"]);
    }
}
