//! Bad input gets an error that names the place; nothing is lost, nothing crashes.

use serde_json::{Value, json};
use weft_tests::{Answer, Request, Result, Weft};

use crate::support::{Upstream, raw, routed};

/// The answer is a problem of this status and code, and its detail says the word.
fn problem(answer: Answer, status: u16, code: &str, word: &str) -> Result<Value> {
    let answer = answer.expect(status)?;
    assert_eq!(answer.header("content-type"), Some("application/problem+json"));
    let body = answer.json();
    assert_eq!(body["status"], json!(status), "{body}");
    assert_eq!(body["code"], json!(code), "{body}");
    assert!(body["detail"].as_str().is_some_and(|d| d.contains(word)), "'{word}' is not in {body}");
    assert!(body["type"].is_string() && body["title"].is_string(), "{body}");
    Ok(body)
}

#[tokio::test]
async fn malformed_http_is_refused_and_the_gateway_goes_on() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let upstream = Upstream::start().await?;
    let mut weft = Weft::start(dir.path(), &routed(upstream.address, "")).await?;
    let long = format!("GET /echo HTTP/1.1\r\nHost: a\r\nX-Long: {}\r\n\r\n", "x".repeat(200_000));
    let many: String = (0..500).map(|i| format!("X-{i}: 1\r\n")).collect();
    let many = format!("GET /echo HTTP/1.1\r\nHost: a\r\n{many}\r\n");
    let cases: &[(&str, &[u8], &str)] = &[
        ("no request line", b"\x00\x01\x02\r\n\r\n", "400"),
        ("a bad version", b"GET /echo HTTP/9.9\r\nHost: a\r\n\r\n", "400"),
        ("a bad header", b"GET /echo HTTP/1.1\r\nHost: a\r\nBad Header\r\n\r\n", "400"),
        ("two lengths", b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc", "400"),
        ("no host", b"GET /echo HTTP/1.1\r\n\r\n", "400"),
        ("a long header", long.as_bytes(), "431"),
        ("many headers", many.as_bytes(), "431"),
    ];
    for (what, bytes, status) in cases {
        let answer = raw(weft.gateway, bytes).await?;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{what}: {}", &answer[..answer.len().min(200)]);
    }
    // A length beside a transfer coding is how requests are smuggled: RFC 9112 6.1.
    let before = upstream.hits();
    let smuggle = b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /echo HTTP/1.1\r\nHost: a\r\n\r\n";
    raw(weft.gateway, smuggle).await?;
    assert!(upstream.hits() <= before + 1, "a second request was smuggled through");

    let answer = Request::get(weft.gateway, "/echo").send().await?.expect(200)?;
    assert_eq!(answer.json()["method"], json!("GET"));
    weft.stop().await
}

#[tokio::test]
async fn an_unknown_route_and_an_unreachable_service_are_told_apart() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let config = "services:\n  gone: { http: [\"127.0.0.1:1\"] }\n  empty: { protocol: http }\npolicies:\n  default: { retry: off }\ngateway:\n  routes:\n    - { name: gone, match: { path: /gone }, to: { service: gone } }\n    - { name: empty, match: { path: /empty }, to: { service: empty } }\n";
    let mut weft = Weft::start(dir.path(), config).await?;
    problem(Request::get(weft.gateway, "/nothing/here").send().await?, 404, "route-not-found", "/nothing/here")?;
    let gone = Request::get(weft.gateway, "/gone").send().await?;
    assert!(matches!(gone.status.as_u16(), 502 | 503), "{}", gone.text());
    assert!(gone.text().contains("gone"), "the service is not named: {}", gone.text());
    problem(Request::get(weft.gateway, "/empty").send().await?, 503, "no-instance", "empty")?;
    weft.stop().await
}

#[tokio::test]
async fn events_that_are_none_are_refused_by_name() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut weft = Weft::start(dir.path(), "topics:\n  orders: {}\n").await?;
    let publish = |body: &str, kind: &str| {
        Request::post(weft.api, "/v1/topics/orders/messages").header("content-type", kind).body(body.to_owned()).send()
    };
    let structured = "application/cloudevents+json";
    let missing = publish(r#"{"specversion":"1.0","id":"1","source":"/s"}"#, structured).await?;
    problem(missing, 400, "invalid-event", "type")?;
    let cut = publish(r#"{"specversion":"1.0","id""#, structured).await?;
    assert_eq!(cut.status, 400, "{}", cut.text());
    let batch = publish(r#"{"specversion":"1.0"}"#, "application/cloudevents-batch+json").await?;
    assert_eq!(batch.status, 400, "{}", batch.text());
    let binary = Request::post(weft.api, "/v1/topics/orders/messages")
        .header("ce-specversion", "1.0")
        .header("ce-id", "1")
        .header("content-type", "application/json")
        .body("{}")
        .send()
        .await?;
    assert_eq!(binary.status, 400, "binary mode without source and type: {}", binary.text());
    let large = publish(&"x".repeat((1 << 20) + 1), "text/plain").await?;
    assert_eq!(large.status, 413, "{}", large.text());
    let name = Request::post(weft.api, "/v1/queues/-bad-/messages").header("content-type", "text/plain").body("x");
    assert_eq!(name.send().await?.status, 400);

    let topics = weft.get("/v1/topics/orders").await?;
    assert_eq!(topics["name"], json!("orders"), "{topics}");
    weft.stop().await
}

#[tokio::test]
async fn bad_commits_change_nothing_and_name_the_member() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut weft = Weft::start(dir.path(), "queues:\n  q: {}\n").await?;
    let commit = |body: Value| Request::post(weft.api, "/v1/commit").json(&body).send();
    let event = json!({"specversion":"1.0","id":"1","source":"/s","type":"T"});

    let stale = commit(json!({"ack": ["no-such-lease"], "publish": [{"queue": "q", "event": event}]})).await?;
    assert!(matches!(stale.status.as_u16(), 400 | 409), "{}", stale.text());
    let failed =
        commit(json!({"expect": [{"stream": "s", "version": 7}], "publish": [{"queue": "q", "event": event}]}));
    problem(failed.await?, 409, "precondition-failed", "s")?;
    let unknown = commit(json!({"publihs": []})).await?;
    assert_eq!(unknown.status, 400, "{}", unknown.text());
    assert!(unknown.text().contains("publihs"), "{}", unknown.text());
    let invalid =
        Request::post(weft.api, "/v1/commit").header("content-type", "application/json").body("{\"ack\": [1,}");
    let invalid = invalid.send().await?;
    assert_eq!(invalid.status, 400, "{}", invalid.text());
    assert!(invalid.text().contains("line"), "the place is not named: {}", invalid.text());
    let kind = Request::post(weft.api, "/v1/commit").header("content-type", "text/plain").body("{}").send().await?;
    assert_eq!(kind.status, 415, "{}", kind.text());

    let left = weft.post("/v1/queues/q/receive", &json!({"max": 10})).await?.expect(200)?.json();
    assert_eq!(left["messages"], json!([]), "a refused commit published");
    weft.stop().await
}

#[tokio::test]
async fn the_api_refuses_foreign_hosts_and_origins() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut weft = Weft::start(dir.path(), "queues:\n  q: {}\n").await?;
    let host = raw(weft.api, b"GET /v1/queues HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n").await?;
    assert!(host.starts_with("HTTP/1.1 4"), "{host}");
    let origin = Request::post(weft.api, "/v1/queues/q/messages")
        .header("origin", "https://evil.example")
        .header("content-type", "text/plain")
        .body("x")
        .send()
        .await?;
    assert_eq!(origin.status, 403, "{}", origin.text());
    weft.stop().await
}
