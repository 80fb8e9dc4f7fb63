//! Configuration: ten mistakes at once, reload, and what a bad reload changes.

use std::process::Command;

use rustix::process::Signal;
use weft_tests::{Request, Result, Weft, process};

use crate::support::{Upstream, eventually, routed};

#[test]
fn ten_mistakes_are_reported_at_once_each_at_its_place() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("weft.yaml");
    let bad = "services:\n  order: { htp: [\"127.0.0.1:7001\"] }\n  inventory: { http: [\"not an address\"] }\npolicies:\n  default: { deadline: 10 seconds, retry: { attempts: many } }\ngateway:\n  routes:\n    - { name: a, match: { path: /a }, to: { service: ordr } }\n    - { name: b, match: { path: /b }, to: { saga: plce } }\nqueues:\n  \"bad name\": {}\ntopics:\n  t: { partitions: 0 }\nsubscriptions:\n  s: { topic: nope, filter: \"event.type ==\" }\n";
    std::fs::write(&file, bad)?;
    let out = Command::new(process::program("weft")?).arg("check").arg("-c").arg(&file).output()?;
    let text = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert_eq!(out.status.code(), Some(1), "{text}");
    for place in [":2:", ":3:", ":5:", ":8:", ":9:", ":11:", ":13:", ":15:"] {
        assert!(text.contains(&format!("weft.yaml{place}")), "no mistake named at {place}\n{text}");
    }
    assert!(text.contains("10 mistakes"), "{text}");
    assert!(text.contains("order"), "the nearest name is not suggested\n{text}");
    Ok(())
}

#[test]
fn the_example_configuration_is_clean() -> Result<()> {
    let file = process::workspace().join("examples/order-system/weft.yaml");
    let out = Command::new(process::program("weft")?).arg("check").arg("-c").arg(&file).output()?;
    assert!(out.status.success(), "{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    Ok(())
}

#[tokio::test]
async fn a_changed_file_takes_effect_and_a_bad_one_changes_nothing() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let upstream = Upstream::start().await?;
    let first = routed(upstream.address, "");
    let mut weft = Weft::start(dir.path(), &first).await?;
    Request::get(weft.gateway, "/echo").send().await?.expect(200)?;

    weft.rewrite("services: [this is not a map\n")?;
    weft.process.signal(Signal::HUP)?;
    eventually("the bad reload in the log", || async { weft.process.output().contains("reload").then_some(()) }).await;
    Request::get(weft.gateway, "/echo").send().await?.expect(200)?;

    weft.rewrite(&first.replace("/**", "/only/**"))?;
    eventually("the new routes", || async {
        let answer = Request::get(weft.gateway, "/echo").send().await.ok()?;
        (answer.status == 404).then_some(())
    })
    .await;
    weft.stop().await
}

#[tokio::test]
async fn weft_without_a_file_says_where_it_listens_and_serves() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut weft = Weft::start(dir.path(), "").await?;
    let said = weft.process.output();
    assert!(said.contains(&weft.gateway.to_string()) && said.contains(&weft.api.to_string()), "{said}");
    let sent = Request::post(weft.api, "/v1/queues/first/messages").header("content-type", "text/plain").body("hello");
    sent.send().await?.expect(201)?;
    let services = weft.get("/v1/services").await?;
    assert!(services["items"].is_array(), "{services}");
    weft.stop().await
}
