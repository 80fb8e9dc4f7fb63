//! Other people's programs against the real binary: curl, and Prometheus' own checker of what `/metrics` says.

use std::process::{Command, Stdio};

use weft_tests::{Request, Result, Weft};

use crate::support::{Upstream, routed};

#[tokio::test(flavor = "multi_thread")]
async fn curl_speaks_http1_and_http2_by_prior_knowledge_to_the_gateway() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let upstream = Upstream::start().await?;
    let mut weft = Weft::start(dir.path(), &routed(upstream.address, "")).await?;
    for (flag, version) in [("--http1.1", "1.1"), ("--http2-prior-knowledge", "2")] {
        let out = Command::new("curl")
            .args(["--silent", "--show-error", flag, "--data", "ping", "--write-out", " %{http_version} %{http_code}"])
            .arg(format!("http://{}/echo", weft.gateway))
            .output()?;
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        assert!(text.ends_with(&format!(" {version} 200")), "{flag}: {text} {}", String::from_utf8_lossy(&out.stderr));
        assert!(text.contains("\"body\":\"ping\""), "{flag}: {text}");
    }
    weft.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn prometheus_accepts_the_metrics() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let upstream = Upstream::start().await?;
    let mut weft = Weft::start(dir.path(), &routed(upstream.address, "queues:\n  q: {}\n")).await?;
    Request::get(weft.gateway, "/echo").send().await?.expect(200)?;
    Request::post(weft.api, "/v1/queues/q/messages").header("content-type", "text/plain").body("x").send().await?;
    let metrics = Request::get(weft.api, "/metrics").send().await?.expect(200)?;
    let file = dir.path().join("metrics.txt");
    std::fs::write(&file, &metrics.body)?;
    let out =
        Command::new("promtool").args(["check", "metrics"]).stdin(Stdio::from(std::fs::File::open(&file)?)).output()?;
    // Status 3 is the linter's taste in names; 1 is text that Prometheus cannot read.
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(matches!(out.status.code(), Some(0 | 3)) && !said.contains("error while linting"), "{said}");
    weft.stop().await
}
