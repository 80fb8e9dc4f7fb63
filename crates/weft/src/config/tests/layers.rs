//! Which layer wins, and what `explain` says about it.

use super::*;

const LAYERS: &str = "\
services:
  order: { policy: { attempt_timeout: 1s, retry: { attempts: 7 } } }
policies:
  default:
    deadline: 10s
    attempt_timeout: 2s
    retry: { attempts: 5, backoff: 1s..2s }
    breaker: off
  patient: { retry: { attempts: 20 }, bulkhead: 8 }
  quick: { deadline: 1s }
gateway:
  routes:
    - { name: plain, match: { path: /a }, to: { service: order } }
    - { name: named, match: { path: /b }, to: { service: order }, policy: patient }
    - { name: listed, match: { path: /c }, to: { service: order }, policy: [{ deadline: 9s }, patient, quick] }
    - { name: off, match: { path: /d }, to: { service: order }, policy: { retry: off, rate: 5/m } }
    - { name: saga, match: { path: /e }, to: { saga: s }, policy: quick }
sagas:
  s: { steps: [ { one: { call: POST order/x, compensate: { call: POST order/y, policy: patient } } } ] }
";

fn route(loaded: &Loaded, name: &str) -> Policy {
    loaded.snapshot.gateway.routes.iter().find(|r| r.name.as_str() == name).unwrap().policy.clone()
}

#[test]
fn a_stronger_layer_replaces_a_block_whole() {
    let loaded = load_text(LAYERS).unwrap_or_else(|r| panic!("{r}"));
    let plain = route(&loaded, "plain");
    assert_eq!(plain.deadline, Some(Duration::from_secs(10)), "policies.default over built-in");
    assert_eq!(plain.attempt_timeout, Some(Duration::from_secs(1)), "service over policies.default");
    let retry = plain.retry.unwrap();
    assert_eq!(retry.attempts, 7);
    assert_eq!(retry.backoff_max, Duration::from_secs(1), "the block's own default, not 2s of the weaker layer");
    assert_eq!(plain.breaker, None, "off in policies.default");
    assert_eq!(plain.bulkhead, Policy::builtin().bulkhead);

    let named = route(&loaded, "named");
    assert_eq!((named.retry.unwrap().attempts, named.bulkhead.unwrap().limit), (20, 8));
    assert_eq!(named.attempt_timeout, plain.attempt_timeout);
}

#[test]
fn inline_is_stronger_than_named_wherever_it_stands_in_the_list() {
    let loaded = load_text(LAYERS).unwrap();
    let listed = route(&loaded, "listed");
    assert_eq!(listed.deadline, Some(Duration::from_secs(9)));
    assert_eq!(listed.retry.unwrap().attempts, 20);
}

#[test]
fn off_turns_a_block_off_and_a_single_value_is_its_main_key() {
    let loaded = load_text(LAYERS).unwrap();
    let off = route(&loaded, "off");
    assert_eq!(off.retry, None);
    let rate = &off.rate[0];
    assert_eq!((rate.limit, rate.period, rate.burst), (5, Duration::from_secs(60), 0));
}

#[test]
fn blocks_that_mean_nothing_there_are_off() {
    let loaded = load_text(LAYERS).unwrap();
    let saga = route(&loaded, "saga");
    assert_eq!(
        saga,
        Policy { deadline: Some(Duration::from_secs(1)), bulkhead: Policy::builtin().bulkhead, ..Policy::default() }
    );
}

#[test]
fn steps_and_compensations_have_the_service_below_them() {
    let loaded = load_text(LAYERS).unwrap();
    let StepKind::Action { action, compensate } = &loaded.snapshot.sagas[0].steps[0].kind else { panic!("an action") };
    assert_eq!(action.policy.retry.unwrap().attempts, 7);
    assert_eq!(compensate.as_ref().unwrap().policy.retry.unwrap().attempts, 20);
}

#[test]
fn redelivery_comes_from_the_channel_then_its_policy_never_from_the_default_policy() {
    let text = "\
policies: { default: { retry: { attempts: 3 } }, many: { retry: { attempts: 9, backoff: 1s..2s } }, once: { retry: off } }
queues:
  plain:
  named: { policy: many }
  once: { policy: once }
  both: { policy: many, retry: { attempts: 4 } }
";
    let loaded = load_text(text).unwrap_or_else(|r| panic!("{r}"));
    let attempts: Vec<_> = loaded.snapshot.queues.iter().map(|q| q.redelivery.attempts).collect();
    assert_eq!(attempts, [10, 9, 1, 4]);
}

#[test]
fn explain_names_the_layer_and_the_line_of_every_value() {
    let loaded = load_text(LAYERS).unwrap();
    let said: Vec<String> = loaded
        .explain("route", "named")
        .unwrap()
        .values
        .iter()
        .map(|v| {
            format!("{} = {} | {} | {}", v.key, v.value, v.from, v.at.as_ref().map_or("-".into(), |p| p.to_string()))
        })
        .collect();
    assert_eq!(
        said,
        [
            "deadline = 10s | policies.default | weft.yaml:5:15",
            "attempt_timeout = 1s | service order | weft.yaml:2:39",
            "retry.attempts = 20 | policy patient | weft.yaml:9:33",
            "retry.backoff = 25ms..1s | built-in | -",
            "retry.jitter = full | built-in | -",
            "retry.budget = 20% | built-in | -",
            "retry.budget_min = 10 | built-in | -",
            "hedge = off | built-in | -",
            "breaker = off | policies.default | weft.yaml:8:14",
            "bulkhead.limit = 8 | policy patient | weft.yaml:9:49",
            "bulkhead.queue = 0 | built-in | -",
            "bulkhead.wait = 0s | built-in | -",
            "rate = off | built-in | -",
            "quota = off | built-in | -",
            "idempotency = off | built-in | -",
            "auth = off | built-in | -",
        ]
    );
}

#[test]
fn explain_finds_steps_with_and_without_their_saga() {
    let loaded = load_text(LAYERS).unwrap();
    let step = loaded.explain("step", "one").unwrap();
    assert_eq!((step.name.as_str(), step.summary.as_str()), ("s/one", "POST order/x"));
    assert_eq!(loaded.explain("step", "s/one/compensate").unwrap().summary, "POST order/y");
    assert!(loaded.explain("step", "two").is_none());
    let twice = LAYERS.replace("sagas:\n", "sagas:\n  t: { steps: [ { one: { call: POST order/z } } ] }\n");
    assert!(load_text(&twice).unwrap().explain("step", "one").is_none(), "two sagas have a step 'one'");
}

#[test]
fn explain_covers_queues_and_subscriptions() {
    let text = "topics: { t: }\nservices: { a: { policy: { deadline: 4s } } }\nsubscriptions:\n  s: { topic: t, push: { service: a, path: /e } }\n";
    let loaded = load_text(text).unwrap_or_else(|r| panic!("{r}"));
    let s = loaded.explain("subscription", "s").unwrap();
    assert_eq!(s.summary, "t -> POST a/e");
    let deadline = s.values.iter().find(|v| v.key == "deadline").unwrap();
    assert_eq!((deadline.value.as_str(), deadline.from.as_str()), ("4s", "service a"));
    assert_eq!(s.values.iter().filter(|v| v.key == "retry.attempts").count(), 1);
}
