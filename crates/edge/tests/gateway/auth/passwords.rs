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
