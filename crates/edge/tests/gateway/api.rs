use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Full};
use serde_json::{Value, json as value};
use weft_edge::api::{Api, ConfigView, Hosts, Readiness, router};

use crate::support::*;

struct Config;

impl ConfigView for Config {
    fn running(&self) -> Value {
        value!({"generation": 1})
    }
    fn routes(&self) -> Vec<Value> {
        Vec::new()
    }
    fn explain(&self, kind: &str, name: &str) -> Option<Value> {
        (kind == "route" && name == "orders").then(|| value!({"deadline": "10s"}))
    }
}

async fn serve() -> (World, Readiness, std::net::SocketAddr) {
    let w = World::start(gateway(vec![]), &[]).await;
    let ready = Readiness::new();
    let api = Api {
        telemetry: w.telemetry.clone(),
        broker: w.broker.clone(),
        flow: w.flow.clone(),
        api_keys: w.api_keys.clone(),
        mesh: w.mesh.clone(),
        store: w.store.clone(),
        ready: ready.clone(),
        config: std::sync::Arc::new(Config),
        versions: w.gateway.usage(),
        hosts: Hosts::default(),
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router(api)).await });
    (w, ready, address)
}

async fn call(to: std::net::SocketAddr, r: http::request::Builder, body: &str) -> (u16, http::HeaderMap, Value) {
    let r = send(to, r.body(Full::new(Bytes::from(body.to_owned()))).unwrap()).await;
    let (head, body) = r.into_parts();
    (head.status.as_u16(), head.headers, json(&body.collect().await.unwrap().to_bytes()))
}

#[tokio::test]
async fn every_error_of_the_api_is_a_problem_that_says_where() {
    let (_w, _, to) = serve().await;
    let at = |m: &str, path: &str| Request::builder().method(m).uri(path).header("host", "localhost:8081");
    let json_at = |m: &str, path: &str| at(m, path).header("content-type", "application/json");
    for (request, body, status, code) in [
        (at("GET", "/v1/nothing"), "", 404, "not-found"),
        (at("DELETE", "/healthz"), "", 405, "method-not-allowed"),
        (at("POST", "/v1/commit"), "{}", 415, "unsupported-media-type"),
        (json_at("POST", "/v1/commit"), "{\"expect\": [\n  nope]}", 400, "invalid-json"),
        (json_at("POST", "/v1/sagas"), "{}", 400, "invalid-json"),
        (at("GET", "/v1/config/explain?kind=route"), "", 400, "invalid-query"),
        (at("GET", "/v1/config/explain?kind=route&name=x"), "", 404, "not-found"),
        (Request::get("/healthz").header("host", "evil.example"), "", 421, "misdirected-request"),
        (at("GET", "/v1/queues").header("origin", "http://evil.example"), "", 403, "forbidden-origin"),
    ] {
        let shown = format!("{request:?}");
        let (got, headers, body) = call(to, request, body).await;
        assert_eq!((got, body["code"].as_str()), (status, Some(code)), "{shown} {body}");
        assert_eq!(headers["content-type"], "application/problem+json");
        assert_eq!(body["status"], status);
        assert!(body["type"].as_str().unwrap().ends_with(&format!("#{code}")) && body["title"].is_string());
        if code == "invalid-json" {
            assert!(body["line"].is_u64() && body["column"].is_u64(), "{body}");
        }
    }
    let (_, _, body) = call(to, json_at("POST", "/v1/commit"), "{\"expect\": [\n  nope]}").await;
    assert_eq!(body["line"], 2);
}

#[tokio::test]
async fn a_json_body_over_the_limit_is_413() {
    let (_w, _, to) = serve().await;
    let big = format!("{{\"x\":\"{}\"}}", "a".repeat(weft_core::limits::API_BODY_BYTES));
    let r = Request::post("/v1/commit").header("host", "localhost").header("content-type", "application/json");
    let (status, _, body) = call(to, r, &big).await;
    assert_eq!((status, body["limit"].as_u64()), (413, Some(weft_core::limits::API_BODY_BYTES as u64)));
}

#[tokio::test]
async fn readiness_names_what_is_missing_and_the_configuration_is_shown() {
    let (_w, ready, to) = serve().await;
    let at = |path: &str| Request::get(path).header("host", "127.0.0.1:8081");
    assert_eq!(call(to, at("/healthz"), "").await.0, 200);
    assert_eq!(call(to, at("/readyz"), "").await.0, 200);
    ready.not_ready("gateway", "it is starting");
    let (status, _, body) = call(to, at("/readyz"), "").await;
    assert_eq!((status, body["missing"]["gateway"].as_str()), (503, Some("it is starting")));
    ready.ready("gateway");
    assert_eq!(call(to, at("/readyz"), "").await.0, 200);
    assert_eq!(call(to, at("/v1/config"), "").await.2["generation"], 1);
    assert_eq!(call(to, at("/v1/config/explain?kind=route&name=orders"), "").await.2["deadline"], "10s");
}
