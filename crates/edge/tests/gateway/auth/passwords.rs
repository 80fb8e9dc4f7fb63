use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use weft_edge::auth::spec::{ProviderKind, ProviderSpec};
use weft_policy::auth::password;

use super::*;

fn users() -> ProviderSpec {
    let users = vec![("ann".into(), password::hash("se:cret").unwrap())];
    ProviderSpec { name: name("ops"), kind: ProviderKind::Basic { users, realm: "the shop".into() } }
}

async fn with(w: &World, pair: &str) -> Got {
    ask(w, "/", &[("authorization", &format!("basic {}", STANDARD.encode(pair)))]).await
}

#[tokio::test]
async fn user_and_password_let_in_and_are_checked_slowly_once() {
    let w = guarded(vec![users()], |a| a.headers = vec![("x-user".into(), "principal".into())]).await;
    let got = with(&w, "ann:se:cret").await;
    assert!(got.status == 200 && got.text.contains("x-user: ops/ann\n"), "{}", got.text);
    assert!(!got.text.contains("authorization"));
    assert_eq!(with(&w, "ann:se:cret").await.status, 200);
    assert_eq!((decisions(&w, "ops", "ok"), decisions(&w, "ops", "cached")), (1, 1));
    for bad in ["ann:se", "ann:", "bob:se:cret", "ann", "", "ANN:se:cret"] {
        let got = with(&w, bad).await;
        assert_eq!((got.status, got.code().as_str()), (401, "unauthenticated"), "{bad}");
        assert_eq!(got.challenge(), "Basic realm=\"the shop\", charset=\"UTF-8\"");
    }
    assert_eq!(ask(&w, "/", &[("authorization", "Basic !!")]).await.status, 401);
}

#[tokio::test]
async fn wrong_passwords_are_limited_by_address_and_keep_nobody_else_waiting() {
    let mut r = route("all", "/**", "s");
    r.policy.auth = Some(Auth { providers: vec!["ops".into()], ..Auth::default() });
    let mut spec = weft_edge::spec::GatewaySpec { auth: vec![users()], ..gateway(vec![r]) };
    spec.trusted_proxies = Some(vec!["127.0.0.0/8".parse().unwrap()]);
    let w = World::start(spec, &[spec_of("s", Protocol::Http, &[echo().await])]).await;
    let from = async |client: &str, pair: &str| {
        let credential = format!("basic {}", STANDARD.encode(pair));
        ask(&w, "/", &[("authorization", &credential), ("x-forwarded-for", client)]).await
    };
    assert_eq!(from("10.0.0.3", "ann:se:cret").await.status, 200);
    let wrong: Vec<_> = (0..100).map(|i| format!("ann:{i}")).collect();
    let flood = futures_util::future::join_all(wrong.iter().map(|pair| from("10.0.0.1", pair)));
    let other = async {
        w.until(|| async { decisions(&w, "ops", "limited") > 0 }).await;
        from("10.0.0.2", "bob:x").await.status
    };
    let (answers, other) = tokio::join!(flood, other);
    assert_eq!(other, 401, "it is checked, not told to come again");
    let limited: Vec<_> = answers.iter().filter(|a| a.code() == "rate-limited").collect();
    assert!(limited.len() >= 75, "{:?}", answers.iter().map(|a| a.status).collect::<Vec<_>>());
    assert!(limited.iter().all(|a| a.status == 429 && a.headers.contains_key("retry-after")));
    assert_eq!(from("10.0.0.1", "ann:se:cret").await.status, 200, "a pair that is remembered goes on");
    assert_eq!(decisions(&w, "ops", "limited"), limited.len() as u64);
}
