//! The gateway as a client sees it.

use serde_json::json;
use weft_tests::{Request, Result, Weft};

use crate::support::{Upstream, eventually, routed};

#[tokio::test]
async fn a_service_that_registers_can_be_called_at_once() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let upstream = Upstream::start().await?;
    let config = "services:\n  late: { protocol: http }\ngateway:\n  routes:\n    - { name: late, match: { path: \"/late/**\" }, to: { service: late, path: \"/{**}\" } }\n";
    let mut weft = Weft::start(dir.path(), config).await?;
    assert_eq!(Request::get(weft.gateway, "/late/echo").send().await?.status, 503);
    let instance = json!({"address": upstream.address.to_string(), "protocol": "http", "ttl": "30s"});
    let put = || Request::put(weft.api, "/v1/services/late/instances/one").json(&instance).send();
    put().await?.expect(201)?;
    put().await?.expect(200)?;
    eventually("the route to the new instance", || async {
        let answer = Request::get(weft.gateway, "/late/echo").send().await.ok()?;
        (answer.status == 200).then_some(())
    })
    .await;
    let path = "/v1/services/late/instances/one";
    Request::post(weft.api, &format!("{path}/heartbeat")).send().await?.expect(204)?;
    Request::new(http::Method::DELETE, weft.api, path).send().await?.expect(204)?;
    Request::post(weft.api, &format!("{path}/heartbeat")).send().await?.expect(404)?;
    weft.stop().await
}

#[tokio::test]
async fn a_repeated_idempotency_key_runs_once_and_survives_a_crash() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let upstream = Upstream::start().await?;
    let config = format!(
        "services:\n  up: {{ http: [\"{}\"] }}\ngateway:\n  routes:\n    - name: pay\n      match: {{ method: POST, path: /echo }}\n      to: {{ service: up }}\n      policy: {{ idempotency: {{ required: true, scope: public }} }}\n",
        upstream.address
    );
    let mut weft = Weft::start(dir.path(), &config).await?;
    let post = |to, key: &str, body: i64| {
        Request::post(to, "/echo").header("idempotency-key", key).json(&json!({"n": body})).send()
    };
    let without = Request::post(weft.gateway, "/echo").json(&json!({})).send().await?;
    assert_eq!(without.status, 400, "{}", without.text());
    let first = post(weft.gateway, "k1", 1).await?.expect(200)?;
    let second = post(weft.gateway, "k1", 1).await?.expect(200)?;
    assert_eq!(first.body, second.body);
    assert_eq!(upstream.hits(), 1, "the repeat reached the service");
    assert_eq!(post(weft.gateway, "k1", 2).await?.status, 422, "another payload under the same key");
    weft.kill().await?;
    weft.restart().await?;
    let third = post(weft.gateway, "k1", 1).await?.expect(200)?;
    assert_eq!(first.body, third.body);
    assert_eq!(upstream.hits(), 1, "the repeat reached the service after a crash");
    weft.stop().await
}

#[tokio::test]
async fn one_trace_goes_from_the_caller_to_the_service() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let upstream = Upstream::start().await?;
    let mut weft = Weft::start(dir.path(), &routed(upstream.address, "")).await?;
    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let answer = Request::get(weft.gateway, "/echo").header("traceparent", parent).send().await?.expect(200)?.json();
    let seen = answer["headers"]["traceparent"].as_str().unwrap_or_default().to_owned();
    assert!(seen.starts_with("00-4bf92f3577b34da6a3ce929d0e0e4736-"), "{seen}");
    assert_ne!(seen, parent, "the service's parent is Weft's span");
    let trace = eventually("the trace", || async {
        let trace = weft.get("/v1/traces/4bf92f3577b34da6a3ce929d0e0e4736").await.ok()?;
        (trace["spans"].as_array().map_or(0, Vec::len) >= 2).then_some(trace)
    })
    .await;
    let spans = trace["spans"].as_array().cloned().unwrap_or_default();
    assert!(spans.iter().any(|s| seen.contains(s["span_id"].as_str().unwrap_or("none"))), "{trace}");
    let metrics = Request::get(weft.api, "/metrics").send().await?.expect(200)?.text();
    assert!(metrics.contains("# TYPE"), "{metrics}");
    weft.stop().await
}

#[tokio::test]
async fn a_breaker_opens_on_a_failing_service_and_closes_when_it_heals() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let upstream = Upstream::start().await?;
    let policies = "policies:\n  default:\n    retry: off\n    breaker: { failure_rate: 50%, window: 10, min_calls: 5, open_for: 300ms, half_open_calls: 1 }\n";
    let mut weft = Weft::start(dir.path(), &routed(upstream.address, policies)).await?;
    for _ in 0..5 {
        Request::get(weft.gateway, "/status/503").send().await?;
    }
    let before = upstream.hits();
    let open = Request::get(weft.gateway, "/echo").send().await?;
    assert_eq!(open.status, 503);
    assert_eq!(open.json()["code"], json!("breaker-open"), "{}", open.text());
    assert!(open.header("retry-after").is_some());
    assert_eq!(upstream.hits(), before, "an open breaker lets nothing through");
    eventually("the breaker to close", || async {
        let answer = Request::get(weft.gateway, "/echo").send().await.ok()?;
        (answer.status == 200).then_some(())
    })
    .await;
    weft.stop().await
}

#[tokio::test]
async fn a_late_service_is_a_gateway_timeout() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let upstream = Upstream::start().await?;
    let policies = "policies:\n  default: { deadline: 200ms, retry: off }\n";
    let mut weft = Weft::start(dir.path(), &routed(upstream.address, policies)).await?;
    let late = Request::get(weft.gateway, "/slow/5000").send().await?;
    assert_eq!(late.status, 504, "{}", late.text());
    weft.stop().await
}
