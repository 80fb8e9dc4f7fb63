//! Rates and quotas as a client sees them.

use std::time::Duration;

use http_body_util::BodyExt as _;
use weft_mesh::Protocol;
use weft_policy::spec::{Algorithm, Calendar, Quota, Rate, RatePer};

use crate::support::*;

fn field<'r>(r: &'r http::Response<hyper::body::Incoming>, name: &str) -> &'r str {
    r.headers()[name].to_str().unwrap()
}

fn hourly(name: &str, limit: u32, per: RatePer) -> Rate {
    let (name, period) = (name.to_owned(), Duration::from_secs(3600));
    Rate { name, limit, period, algorithm: Algorithm::Sliding, per, ..Rate::default() }
}

#[tokio::test]
async fn every_answer_says_how_the_caller_stands_and_a_refusal_names_the_limit() {
    let w = one(echo().await, |r| {
        r.policy.rate = vec![hourly("all", 5, RatePer::All), hourly("tenant", 2, RatePer::Header("x-tenant".into()))];
    })
    .await;
    let as_tenant = |tenant: &str| {
        let mut r = get("/x");
        r.headers_mut().insert("x-tenant", tenant.parse().unwrap());
        r
    };
    let first = w.send(as_tenant("a")).await;
    assert_eq!(first.status(), 200);
    assert_eq!(field(&first, "ratelimit-policy"), "\"all\";q=5;w=3600, \"tenant\";q=2;w=3600");
    let told = field(&first, "ratelimit");
    assert!(told.starts_with("\"all\";r=4;t=") && told.contains(", \"tenant\";r=1;t="), "{told}");
    assert_eq!(w.send(as_tenant("a")).await.status(), 200);
    for _ in 0..5 {
        let refused = w.send(as_tenant("a")).await;
        assert_eq!(refused.status(), 429);
        assert!(field(&refused, "ratelimit").starts_with("\"tenant\";r=0;t="));
        assert!(field(&refused, "retry-after").parse::<u64>().unwrap() > 1);
        let body = json(&refused.into_body().collect().await.unwrap().to_bytes());
        assert_eq!((&body["code"], &body["limit"]), (&"rate-limited".into(), &"tenant".into()));
    }
    let other = w.send(as_tenant("b")).await;
    assert!(field(&other, "ratelimit").starts_with("\"all\";r=2;t="), "refusals took nothing from 'all'");
}

#[tokio::test]
async fn a_rate_that_is_not_told_is_not_told_and_a_cost_is_counted() {
    let w = one(echo().await, |r| {
        r.policy.rate = vec![
            Rate { headers: false, ..hourly("hidden", 100, RatePer::All) },
            Rate { cost: Some("request.method == 'GET' ? 3 : 1".into()), ..hourly("work", 8, RatePer::All) },
        ];
    })
    .await;
    let r = w.send(get("/x")).await;
    assert_eq!(field(&r, "ratelimit-policy"), "\"work\";q=8;w=3600");
    assert!(field(&r, "ratelimit").starts_with("\"work\";r=5;t="));
    assert_eq!(w.get("/x").await.0, 200);
    assert_eq!(w.get("/x").await.0, 429, "6 of 8 are taken, it costs 3");
}

#[tokio::test]
async fn a_quota_is_refused_with_the_time_until_its_period_ends_and_survives_a_restart() {
    let address = echo().await;
    let change = |r: &mut weft_edge::spec::RouteSpec| {
        let (per, cost) = (RatePer::Address, None);
        r.policy.quota = vec![Quota {
            name: "month".into(),
            limit: 3,
            period: Calendar::Month,
            per,
            ipv6_prefix: 64,
            cost,
            headers: true,
        }];
        r.policy.rate = vec![hourly("default", 2, RatePer::Header("x-run".into()))];
    };
    let w = one(address, change).await;
    let run = |n: &str| {
        let mut r = get("/x");
        r.headers_mut().insert("x-run", n.parse().unwrap());
        r
    };
    let first = w.send(run("1")).await;
    assert_eq!(field(&first, "ratelimit-policy"), "\"default\";q=2;w=3600, \"month\";q=3");
    assert_eq!(w.send(run("1")).await.status(), 200);
    for _ in 0..3 {
        let over = w.send(run("1")).await;
        assert_eq!(over.status(), 429, "the rate refuses, and the quota gets back what it gave");
    }
    let World { gateway: running, store, dir, broker, flow, mesh, .. } = w;
    running.shutdown().await;
    flow.close().await;
    broker.close().await;
    store.close().await.unwrap();
    drop((store, broker, flow, mesh));
    let mut r = route("all", "/**", "s");
    change(&mut r);
    let w = World::start_in(dir, gateway(vec![r]), &[spec_of("s", Protocol::Http, &[address])]).await;
    assert_eq!(w.send(run("2")).await.status(), 200, "two of three were counted before");
    let over = w.send(run("2")).await;
    assert_eq!(over.status(), 429);
    assert!(field(&over, "ratelimit").starts_with("\"month\";r=0;t="));
    let body = json(&over.into_body().collect().await.unwrap().to_bytes());
    assert_eq!((&body["code"], &body["limit"]), (&"quota-exceeded".into(), &"month".into()));
    let text = w.telemetry.metrics().render_prometheus();
    assert!(text.contains("weft_quota_refused_total{route=\"all\",quota=\"month\"} 1\n"), "{text}");
}
