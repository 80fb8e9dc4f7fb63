//! Callers of a real gateway: keys made on the command line, passwords hashed on it.

use std::io::Write as _;
use std::process::{Command, Stdio};

use weft_tests::{Request, Result, Weft, process};

use crate::support::Upstream;

/// Runs `weft keys ...`; what it prints.
fn keys(args: &[&str], input: &str) -> Result<String> {
    let mut child = Command::new(process::program("weft")?)
        .arg("keys")
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    child.stdin.take().expect("it is piped").write_all(input.as_bytes())?;
    let out = child.wait_with_output()?;
    let text = String::from_utf8(out.stdout)?;
    if out.status.success() { Ok(text) } else { Err(String::from_utf8_lossy(&out.stderr).into()) }
}

#[tokio::test]
async fn callers_with_a_key_or_a_password_get_in_and_others_do_not() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let upstream = Upstream::start().await?;
    let hash = keys(&["password"], "correct horse\n")?;
    let config = format!(
        r#"
auth:
  partners: {{ api_key: {{}} }}
  ops: {{ basic: {{ users: {{ ann: "{}" }} }} }}
services: {{ up: {{ http: "{}" }} }}
policies:
  default: {{ auth: {{ use: [partners, ops], headers: {{ x-caller: principal }} }} }}
gateway:
  routes:
    - {{ match: {{ path: /echo }}, to: {{ service: up }} }}
    - {{ match: {{ path: /status/204 }}, to: {{ service: up }}, policy: {{ auth: off }} }}
"#,
        hash.trim(),
        upstream.address
    );
    let mut weft = Weft::start(dir.path(), &config).await?;
    let api = format!("http://{}", weft.api);
    Request::get(weft.gateway, "/status/204").send().await?.expect(204)?;
    let refused = Request::get(weft.gateway, "/echo").send().await?.expect(401)?;
    assert!(refused.header("www-authenticate").is_some_and(|c| c.contains("Basic realm=\"weft\"")));

    let made = keys(&["create", "acme", "--scope", "orders:read", "--api", &api], "")?;
    let key = made.lines().next().expect("the key is the first line").to_owned();
    let echo = async |key: &str| Request::get(weft.gateway, "/echo").header("x-api-key", key).send().await;
    let got = echo(&key).await?.expect(200)?.json();
    assert_eq!(got["headers"]["x-caller"], "partners/acme");
    assert!(got["headers"]["x-api-key"].is_null());

    let id = key.split('_').nth(1).expect("weft_id_secret").to_owned();
    let next = keys(&["rotate", &id, "--overlap", "1h", "--api", &api], "")?;
    let next = next.lines().next().expect("the key is the first line").to_owned();
    echo(&key).await?.expect(200)?;
    echo(&next).await?.expect(200)?;
    let listed = keys(&["list", "--api", &api], "")?;
    assert!(listed.contains(&id) && listed.contains("acme") && !listed.contains(&key), "{listed}");

    let with = async |pair: &str| Request::get(weft.gateway, "/echo").header("authorization", pair).send().await;
    // `ann:correct horse` and `ann:wrong horse`.
    let got = with("Basic YW5uOmNvcnJlY3QgaG9yc2U=").await?.expect(200)?;
    assert_eq!(got.json()["headers"]["x-caller"], "ops/ann");
    with("Basic YW5uOndyb25nIGhvcnNl").await?.expect(401)?;

    // Keys are in the store: a crash forgets none.
    weft.kill().await?;
    weft.restart().await?;
    let echo = async |key: &str| Request::get(weft.gateway, "/echo").header("x-api-key", key).send().await;
    echo(&next).await?.expect(200)?;
    keys(&["revoke", &id, "--api", &api], "")?;
    echo(&next).await?.expect(401)?;
    assert!(!weft.process.output().contains(&key), "the log tells no secrets");
    weft.stop().await
}
