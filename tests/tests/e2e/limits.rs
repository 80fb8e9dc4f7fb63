//! Rates and quotas, as their reference page writes them.

use weft_tests::{Answer, Request, Result, Weft};

use crate::support::{Upstream, eventually, page_example};

fn left(answer: &Answer, name: &str) -> Option<u64> {
    let told = answer.headers.get("ratelimit")?.to_str().ok()?;
    let one = told.split(", ").find(|l| l.starts_with(&format!("\"{name}\";")))?;
    one.split(';').find_map(|p| p.strip_prefix("r="))?.parse().ok()
}

#[tokio::test]
async fn the_page_on_limits_says_what_happens_and_a_quota_survives_a_kill() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let upstream = Upstream::start().await?;
    let config = page_example("rate-limits.md", "127.0.0.1:7001", upstream.address);
    let mut weft = Weft::start(dir.path(), &config).await?;
    let search = |to, key: &'static str| Request::get(to, "/echo").header("x-api-key", key).send();

    let first = search(weft.gateway, "k1").await?.expect(200)?;
    let policy = first.headers["ratelimit-policy"].to_str()?;
    assert_eq!(policy, "\"api_key\";q=5;w=60, \"address\";q=100;w=60, \"month\";q=10000");
    assert_eq!(
        (left(&first, "api_key"), left(&first, "address"), left(&first, "month")),
        (Some(4), Some(99), Some(9_999))
    );
    for _ in 0..4 {
        search(weft.gateway, "k1").await?.expect(200)?;
    }
    let over = search(weft.gateway, "k1").await?.expect(429)?;
    assert_eq!(over.json()["limit"], "api_key");
    let other = search(weft.gateway, "k2").await?.expect(200)?;
    assert_eq!((left(&other, "api_key"), left(&other, "month")), (Some(4), Some(9_999)), "a key of its own");

    // What was counted is on disk a second later, whatever happens to the process.
    tokio::time::sleep(std::time::Duration::from_millis(1_500)).await;
    weft.kill().await?;
    weft.restart().await?;
    let after = eventually("an answer", || async { search(weft.gateway, "k1").await.ok() }).await.expect(200)?;
    assert_eq!((left(&after, "api_key"), left(&after, "month")), (Some(4), Some(9_994)), "five were counted before");
    weft.stop().await
}
