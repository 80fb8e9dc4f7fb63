//! The example of `docs/reference/routing.md`, run.

use http::Method;
use weft_tests::{Request, Result, Weft};

use crate::support::{Upstream, eventually};

/// The page's YAML with the addresses of running services.
fn example(shop: &Upstream, canary: &Upstream) -> String {
    let page = include_str!("../../../docs/reference/routing.md");
    let yaml = page.split("```yaml\n").nth(1).and_then(|t| t.split("```").next()).expect("the page has an example");
    yaml.replace("127.0.0.1:7001", &shop.address.to_string()).replace("127.0.0.1:7002", &canary.address.to_string())
}

#[tokio::test]
async fn the_example_of_the_routing_page_does_what_the_page_says() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (shop, canary) = (Upstream::start().await?, Upstream::start().await?);
    let mut weft = Weft::start(dir.path(), &example(&shop, &canary)).await?;
    let g = weft.gateway;

    // Matching: a header by regular expression, an expression over source and query, a content type.
    let hits = || (shop.hits(), canary.hits());
    Request::get(g, "/split/echo").header("x-beta", "true").send().await?;
    assert_eq!(hits(), (0, 1));
    Request::get(g, "/split/echo?debug=yes").header("x-forwarded-for", "10.1.2.3").send().await?;
    assert_eq!(hits(), (0, 2));
    let image = |ty: &'static str| Request::post(g, "/files/a").header("content-type", ty).body("x").send();
    assert_eq!(image("text/plain").await?.status, 404);
    image("image/png").await?;
    assert_eq!(hits(), (1, 2));
    let large = Request::post(g, "/files/a").header("content-type", "image/png").body("x".repeat(2000)).send().await?;
    assert_eq!((large.status.as_u16(), hits()), (413, (1, 2)));

    // Targets: a caller stays; a redirect; a fixed answer.
    for _ in 0..5 {
        Request::get(g, "/split/echo").header("x-user", "7").send().await?;
    }
    let (s, c) = hits();
    assert!((s, c) == (6, 2) || (s, c) == (1, 7), "one caller was split: {s} {c}");
    let moved = Request::get(g, "/old/7?a=b").send().await?;
    assert_eq!((moved.status.as_u16(), moved.header("location")), (308, Some("https://shop.example/new/7?a=b")));

    let old = Request::get(g, "/api/v1/x").send().await?;
    assert_eq!((old.status.as_u16(), old.text().as_str()), (404, "write it without v1\n"));

    // Fields, CORS, compression, mirroring.
    let got = Request::get(g, "/api/echo")
        .header("origin", "https://web.shop.example")
        .header("accept-encoding", "gzip")
        .send()
        .await?;
    assert_eq!(got.status, 200, "{}", got.text());
    assert_eq!(got.header("x-trace").map(str::len), Some(32));
    assert_eq!(got.header("access-control-allow-origin"), Some("https://web.shop.example"));
    assert_eq!(got.header("content-encoding"), Some("gzip"));
    let preflight = Request::new(Method::OPTIONS, g, "/api/echo")
        .header("origin", "https://web.shop.example")
        .header("access-control-request-method", "PUT")
        .send()
        .await?;
    assert_eq!((preflight.status.as_u16(), preflight.header("access-control-max-age")), (204, Some("600")));
    eventually("the copy is compared", || async {
        let text = Request::get(weft.api, "/metrics").send().await.ok()?.text();
        let line = text.lines().find(|l| l.starts_with("weft_mirrored_total{route=\"v2\"") && !l.ends_with(" 0"))?;
        (line.contains("same") || line.contains("different")).then_some(())
    })
    .await;

    // Faults for those who ask for them.
    let sign = || Request::post(g, "/signup").body("x");
    assert_ne!(sign().send().await?.status, 503);
    assert_eq!(sign().header("x-fault", "1").send().await?.status, 503);

    // Listing, and the access log.
    let routes = weft.get("/v1/routes").await?;
    let of = |name: &str| routes["items"].as_array().unwrap().iter().find(|r| r["name"] == name).unwrap().clone();
    assert_eq!(of("split")["target"], "services shop 90/100, canary 10/100");
    assert_eq!(of("reviews")["match"]["path"], "/shop.v1.Reviews/Get");
    assert_eq!(of("v2")["uses"], serde_json::json!(["rewrite", "host", "headers", "mirror", "cors", "compress"]));
    eventually("the access log has the redirect", || async {
        let log = std::fs::read_to_string(dir.path().join("access.log")).ok()?;
        log.lines().any(|l| l.contains("\"status\":308") && l.contains("\"path\":\"/old/7\"")).then_some(())
    })
    .await;
    weft.stop().await
}
