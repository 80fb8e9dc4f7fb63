//! Versions of an API, as their reference page writes them.

use axum::extract::Path;
use axum::routing::get;
use serde_json::{Value, json};
use weft_tests::{Answer, Request, Result, Weft};

use crate::support::{eventually, page_example};

/// A shop that knows version 2 only: products with `title` and `cents`.
async fn shop() -> Result<std::net::SocketAddr> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let product = |Path(id): Path<String>| async move { axum::Json(json!({"title": id, "cents": 250})) };
    let next = |Path(id): Path<String>| async move { axum::Json(json!({"next": id})) };
    let create = |body: axum::Json<Value>| async move { body };
    let app = axum::Router::new()
        .route("/products/{id}", get(product))
        .route("/next/products/{id}", get(next))
        .route("/products", axum::routing::post(create));
    tokio::spawn(axum::serve(listener, app).into_future());
    Ok(address)
}

fn links(answer: &Answer) -> Vec<String> {
    answer.headers.get_all("link").iter().map(|l| l.to_str().unwrap_or_default().to_owned()).collect()
}

#[tokio::test]
async fn the_page_on_versions_says_what_happens() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let config = page_example("versioning.md", "127.0.0.1:7001", shop().await?);
    let mut weft = Weft::start(dir.path(), &config).await?;
    let ask = |path: &'static str| Request::get(weft.gateway, path);
    let new = json!({"title": "tea", "cents": 250});
    let old = json!({"name": "tea", "price": 2.5});

    // By path; each as it is declared.
    let two = ask("/v2/shop/products/tea").send().await?.expect(200)?;
    assert_eq!(two.json(), new);
    assert!(!two.headers.contains_key("deprecation") && !two.headers.contains_key("sunset"));
    let one = ask("/v1/shop/products/tea?x=1").send().await?.expect(200)?;
    assert_eq!(one.json(), old, "adapted from what the one service answers");
    assert_eq!(one.headers["deprecation"], "@1719792000");
    assert_eq!(one.headers["sunset"], "Thu, 31 Dec 2099 00:00:00 GMT");
    let said = [
        "<https://shop.example/v1-ends>; rel=\"deprecation\"",
        "<https://shop.example/v1-ends>; rel=\"sunset\"",
        "</v2/shop/products/tea?x=1>; rel=\"successor-version\"",
    ];
    assert_eq!(links(&one), said);
    assert_eq!(ask("/v3/shop/products/tea").send().await?.expect(200)?.json(), json!({"next": "tea"}));

    // A request is adapted, too; one that cannot be is told why.
    let post = |body: Value| Request::post(weft.gateway, "/v1/shop/products").json(&body).send();
    assert_eq!(
        post(json!({"name": "rice", "price": 1.5})).await?.expect(200)?.json(),
        json!({"name": "rice", "price": 1.5})
    );
    let wrong = post(json!({"name": "rice"})).await?.expect(400)?.json();
    assert_eq!(wrong["code"], "version-mapping");
    assert!(wrong["detail"].as_str().unwrap_or_default().contains("price"), "{wrong}");

    // By header, media type and query; nothing said is the default.
    for (version, request) in [
        (2, ask("/shop/products/tea")),
        (1, ask("/shop/products/tea").header("api-version", "1")),
        (1, ask("/shop/products/tea").header("accept", "application/vnd.shop.v1+json")),
        (1, ask("/shop/products/tea").header("accept", "application/json;version=1")),
        (1, ask("/shop/products/tea?v=1")),
        (2, ask("/shop/products/tea?v=1").header("api-version", "v2")),
    ] {
        let answer = request.send().await?.expect(200)?;
        assert_eq!(answer.json(), if version == 1 { json!({"name": "tea"}) } else { new.clone() });
        assert_eq!(answer.headers["vary"], "api-version, accept");
    }

    // Unknown and gone.
    for (status, request) in [
        (404, ask("/v9/shop/products/tea")),
        (400, ask("/shop/products/tea").header("api-version", "9")),
        (406, ask("/shop/products/tea").header("accept", "application/vnd.shop.v9+json")),
        (400, ask("/shop/products/tea?v=9")),
    ] {
        let problem = request.send().await?.expect(status)?.json();
        assert_eq!(problem["code"], "version-unknown");
        assert!(problem["versions"].as_array().is_some_and(|v| v.contains(&json!("2"))), "{problem}");
    }
    let gone = ask("/v0/shop/products/tea").send().await?.expect(410)?;
    assert!(links(&gone).contains(&"</v2/shop/products/tea>; rel=\"successor-version\"".to_owned()));
    let gone = gone.json();
    assert_eq!((&gone["code"], &gone["successor"]), (&json!("version-gone"), &json!("2")));

    // Who uses what.
    let used = weft.get("/v1/versions").await?;
    let of = |route: &str, version: &str| {
        let all = used["items"].as_array().cloned().unwrap_or_default();
        all.into_iter().find(|i| i["route"] == route && i["version"] == version).unwrap_or_default()
    };
    assert_eq!(of("shop-by-path", "1")["requests"], 3, "{used}");
    assert_eq!(of("shop-by-path", "1")["consumers"], json!([{"consumer": "anonymous", "requests": 3}]));
    assert_eq!(of("shop-by-path", "0")["refused_after_sunset"], 1);
    assert_eq!(of("shop", "2")["requests"], 2);
    let shown = std::process::Command::new(weft_tests::process::program("weft")?)
        .args(["versions", "--api", &format!("http://{}", weft.api)])
        .output()?;
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    let row = shown.lines().find(|l| l.contains("shop-by-path") && l.contains("2024-07-01")).unwrap_or_default();
    assert!(row.contains("2099-12-31") && row.contains("anonymous"), "{shown}");
    let metrics = Request::get(weft.api, "/metrics").send().await?.expect(200)?.text();
    assert!(metrics.contains("weft_version_requests_total{route=\"shop\",version=\"1\"} 4"), "{metrics}");

    // The trace says it.
    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4737-00f067aa0ba902b7-01";
    ask("/v2/shop/products/tea").header("traceparent", parent).send().await?.expect(200)?;
    let trace = eventually("the trace", || async {
        let trace = weft.get("/v1/traces/4bf92f3577b34da6a3ce929d0e0e4737").await.ok()?;
        trace.to_string().contains("weft.version").then_some(trace)
    })
    .await;
    assert!(trace.to_string().contains("shop-by-path"), "{trace}");
    weft.stop().await
}

#[test]
fn diff_exits_with_1_for_what_breaks_0_for_what_does_not_and_2_for_what_it_cannot_read() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let api = |field: &str| {
        format!(
            "openapi: 3.0.3\npaths:\n  /products/{{id}}:\n    get:\n      responses:\n        200:\n          content:\n            application/json:\n              schema: {{ type: object, properties: {{ {field} }} }}\n"
        )
    };
    for (name, field) in [("one", "price: { type: number }"), ("two", "cents: { type: integer }")] {
        std::fs::write(dir.path().join(format!("{name}.yaml")), api(field))?;
    }
    std::fs::write(dir.path().join("more.yaml"), api("price: { type: number }, name: { type: string }"))?;
    let diff = |args: &[&str]| -> Result<(Option<i32>, String)> {
        let run = std::process::Command::new(weft_tests::process::program("weft")?)
            .current_dir(dir.path())
            .arg("diff")
            .args(args)
            .output()?;
        Ok((
            run.status.code(),
            format!("{}{}", String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr)),
        ))
    };
    let (code, text) = diff(&["one.yaml", "two.yaml"])?;
    assert_eq!(code, Some(1), "{text}");
    let said = "breaking    GET /products/{id} response 200 body.price: removed\ncompatible  GET /products/{id} response 200 body.cents: added\n1 breaking change, 1 compatible\n";
    assert_eq!(text, said);
    let (code, text) = diff(&["one.yaml", "more.yaml", "--json"])?;
    assert_eq!(code, Some(0), "{text}");
    let json: Value = serde_json::from_str(&text)?;
    assert_eq!((&json["breaking"], &json["changes"][0]["rule"]), (&json!(0), &json!("added")));
    let (code, text) = diff(&["one.yaml", "none.yaml"])?;
    assert!(code == Some(2) && text.contains("none.yaml"), "{code:?} {text}");
    Ok(())
}
