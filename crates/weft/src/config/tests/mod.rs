//! What the loader takes, what it refuses and what it says then.

mod auth;
mod files;
mod layers;
mod mistakes;
mod protocols;
mod random;
mod traffic;

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use serde_json::{Map, Value as Json};
use weft_edge::spec::{Reply, Target};
use weft_flow::spec::{Call, StepKind};
use weft_policy::Policy;

use super::files::Input;
use super::node::{Data, Node, parse};
use super::{Loaded, Report, load, load_from};

const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/order-system/weft.yaml");

/// Loads from texts in memory; the first is the root.
pub(super) fn load_texts(files: &[(&str, &str)], env: &[(&str, &str)]) -> Result<Loaded, Report> {
    let files: HashMap<_, _> = files.iter().map(|(p, t)| (Path::new(p).to_owned(), t.to_string())).collect();
    let read = |p: &Path| files.get(p).map(|t| t.as_bytes().to_vec()).ok_or(std::io::ErrorKind::NotFound.into());
    let env = |name: &str| env.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
    load_from(Path::new("weft.yaml"), &Input { read: &read, env: &env })
}

/// Loads one text.
pub(super) fn load_text(text: &str) -> Result<Loaded, Report> {
    load_texts(&[("weft.yaml", text)], &[])
}

/// `line:column message | help` of each mistake.
pub(super) fn mistakes(text: &str) -> Vec<String> {
    lines(&load_text(text).expect_err("this text has mistakes"))
}

pub(super) fn lines(report: &Report) -> Vec<String> {
    let line = |m: super::MistakeLine| {
        let at = m.at.map_or("-".to_owned(), |p| match p.file.as_str() {
            "weft.yaml" => format!("{}:{}", p.line, p.column),
            file => format!("{file}:{}:{}", p.line, p.column),
        });
        format!("{at} {} | {}", m.message, m.help.unwrap_or_default())
    };
    report.lines().into_iter().map(line).collect()
}

fn json(node: &Node) -> Json {
    match &node.data {
        Data::Map(m) => Json::Object(m.iter().map(|(k, v)| (k.text.clone(), json(v))).collect::<Map<_, _>>()),
        Data::List(l) => Json::Array(l.iter().map(json).collect()),
        Data::Scalar(s) if s.plain => serde_json::from_str(&s.text).unwrap_or_else(|_| s.text.clone().into()),
        Data::Scalar(s) => s.text.clone().into(),
    }
}

/// The worked example as a schema validator sees it.
pub(super) fn example_as_json() -> Json {
    let text = std::fs::read_to_string(EXAMPLE).unwrap();
    json(&parse(&text, 0, &|_| None, &mut Vec::new()).unwrap())
}

#[test]
fn an_empty_file_is_the_defaults() {
    for text in ["", "# nothing\n", "---\n", "services:\n"] {
        let loaded = load_text(text).unwrap_or_else(|r| panic!("{r}"));
        assert_eq!(loaded.snapshot.gateway, weft_edge::spec::GatewaySpec::default());
        assert_eq!(loaded.settings, super::Settings::default());
    }
    assert_eq!(super::defaults().snapshot, load_text("").unwrap().snapshot);
}

#[test]
fn what_is_built_in_is_what_the_declarations_say() {
    let loaded =
        load_text("services: { a: }\nqueues: { q: }\ntopics: { t: }\nsubscriptions: { s: { topic: t } }").unwrap();
    let s = &loaded.snapshot;
    assert_eq!(s.services[0].policy, Policy { idempotency: None, ..Policy::builtin() });
    assert_eq!(s.queues[0].redelivery, weft_broker::spec::Redelivery::default());
    assert_eq!(s.queues[0].dedup, weft_broker::spec::Dedup::default());
    assert_eq!(s.subscriptions[0].redelivery, weft_broker::spec::Redelivery::default());
    let checked = load_text("services: { a: { health: } }").unwrap();
    assert_eq!(checked.snapshot.services[0].health, Some(weft_mesh::spec::HealthCheck::default()));
}

#[test]
fn the_worked_example_holds_together() {
    // Its protos are checked by compiling them; see the tests of lowering.
    let loaded = load(Path::new(EXAMPLE)).unwrap_or_else(|r| panic!("{r}"));
    let s = &loaded.snapshot;
    assert_eq!((s.services.len(), s.gateway.routes.len(), s.topics.len()), (9, 8, 1));
    assert_eq!((s.queues.len(), s.subscriptions.len(), s.sagas.len()), (1, 6, 1));

    let order = s.gateway.routes.iter().find(|r| r.name.as_str() == "place-order").unwrap();
    assert_eq!(order.to, Target::Saga { saga: "place-order".try_into().unwrap(), reply: Reply::Completed });
    let key = order.policy.idempotency.unwrap();
    assert!(key.required && key.public);
    assert_eq!(order.policy.deadline, Some(Duration::from_secs(10)));

    let saga = &s.sagas[0];
    let StepKind::Action { action, compensate } = &saga.steps[0].kind else { panic!("create is an action") };
    assert_eq!(action.policy.retry.unwrap().attempts, 3);
    let undo = compensate.as_ref().unwrap();
    assert_eq!(undo.policy.retry.unwrap().attempts, 20);
    assert_eq!(undo.policy.deadline, Some(Duration::from_secs(60)));
    let Call::Http { method, path, .. } = &undo.call else { panic!("an HTTP call") };
    assert_eq!((method.as_str(), path.as_str()), ("POST", "/orders/{saga.id}/cancel"));
    assert_eq!(saga.result.as_ref().unwrap()["status"], "'completed'");

    let push = s.subscriptions.iter().find(|s| s.name.as_str() == "notification").unwrap();
    assert_eq!(push.redelivery.attempts, 5);
    assert_eq!(push.push.as_ref().unwrap().policy.breaker.unwrap().window, 20);
}

#[test]
fn the_example_of_the_page_on_resilience_says_what_the_page_says() {
    use weft_edge::spec::Fallback;
    use weft_mesh::Balance;
    use weft_policy::spec::HedgeAfter;

    let page = include_str!("../../../../../docs/reference/resilience.md");
    let yaml = page.split("```yaml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let loaded = load_texts(&[("weft.yaml", yaml)], &[("ZONE", "b")]).unwrap_or_else(|r| panic!("{r}"));
    let s = &loaded.snapshot;
    let [catalog, carts, _] = &s.services[..] else { panic!("three services") };
    assert_eq!((catalog.balance, carts.balance), (Balance::PeakEwma, Balance::Maglev));
    assert_eq!((catalog.picking.zone.as_deref(), catalog.picking.described.len()), (Some("b"), 2));
    assert_eq!(catalog.picking.slow_start, Some(Duration::from_secs(30)));
    assert_eq!(catalog.picking.outlier, Some(weft_mesh::spec::Outlier::default()), "the page writes the defaults");
    assert_eq!((carts.picking.hash.len(), carts.picking.outlier), (2, Some(weft_mesh::spec::Outlier::default())));
    let policy = &s.gateway.routes[0].policy;
    assert_eq!(policy.hedge.unwrap().after, HedgeAfter::Share(0.95));
    assert_eq!(policy.breaker.unwrap().window_time, Some(Duration::from_secs(60)));
    assert_eq!(policy.bulkhead.unwrap().adaptive, Some(weft_policy::spec::Adaptive::default()));
    assert_eq!(s.gateway.routes[0].fallback, Some(Fallback::Service("spare".try_into().unwrap())));
    assert!(matches!(&s.gateway.routes[1].fallback, Some(Fallback::Respond { body, .. }) if body == "[]"));
    let off = load_text("services: { a: { outlier: off } }").unwrap();
    assert_eq!(off.snapshot.services[0].picking.outlier, None);
}
