use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::Request;
use http_body_util::Full;
use serde_json::{Value, json};
use weft_core::limits;
use weft_edge::auth::spec::KeysFrom;
use weft_edge::spec::GatewaySpec;
use weft_policy::auth::jose::{Algorithm, Keys};
use weft_policy::spec::{Idempotency, Rate, RatePer};

use super::issuer::*;
use super::*;

fn fixed(keys: &[&Signer]) -> KeysFrom {
    let set = json!({"keys": keys.iter().map(|k| k.jwk()).collect::<Vec<_>>()});
    KeysFrom::Fixed(Keys::parse(set.to_string().as_bytes()).unwrap())
}

#[tokio::test]
async fn a_token_lets_its_caller_in_without_the_credential_going_on() {
    let key = Signer::new("a");
    let w = guarded(vec![jwt("id", rules(), fixed(&[&key]))], |a| {
        a.headers = vec![
            ("x-user".into(), "subject".into()),
            ("x-caller".into(), "principal".into()),
            ("x-tenant".into(), "claims.org.name".into()),
            ("x-size".into(), "size(scopes)".into()),
            ("x-absent".into(), "claims.nothing".into()),
        ];
    })
    .await;
    let mut c = claims("ann");
    c["org"] = json!({"name": "acme"});
    c["scope"] = json!("a b");
    let token = format!("Bearer {}", key.token(&c));
    let said = [
        ("authorization", token.as_str()),
        ("x-user", "root"),
        ("x_user", "root"),
        ("x-absent", "root"),
        ("connection", "keep-alive, X-User"),
    ];
    let got = ask(&w, "/orders", &said).await;
    assert_eq!(got.status, 200, "{}", got.text);
    for line in ["x-user: ann\n", "x-caller: id/ann\n", "x-tenant: acme\n", "x-size: 2\n"] {
        assert!(got.text.contains(line), "{line} is not in\n{}", got.text);
    }
    assert!(!got.text.contains("root") && !got.text.contains("authorization"), "{}", got.text);
    ask(&w, "/orders", &said).await;
    assert_eq!((decisions(&w, "id", "ok"), decisions(&w, "id", "cached")), (1, 1));
}

#[tokio::test]
async fn a_request_without_a_good_token_is_told_what_is_missing() {
    let (key, other) = (Signer::new("a"), Signer::new("a"));
    let w = guarded(vec![jwt("id", rules(), fixed(&[&key]))], |_| {}).await;
    let got = ask(&w, "/orders", &[]).await;
    assert_eq!((got.status, got.code().as_str()), (401, "unauthenticated"));
    assert_eq!(got.challenge(), "Bearer realm=\"id\"", "RFC 6750 3.1: no error code without a credential");

    let but = |f: fn(&mut Value)| {
        let mut c = claims("ann");
        f(&mut c);
        key.token(&c)
    };
    let header = |h: Value| key.sign(&h, &claims("ann"));
    let part = |v: Value| URL_SAFE_NO_PAD.encode(v.to_string());
    let unsigned = format!("{}.{}.", part(json!({"alg": "none"})), part(claims("ann")));
    // The public key as the secret of an HMAC.
    let head = format!("{}.{}", part(json!({"alg": "HS256", "kid": "a"})), part(claims("ann")));
    let secret = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, key.jwk().to_string().as_bytes());
    let confused = format!("{head}.{}", URL_SAFE_NO_PAD.encode(ring::hmac::sign(&secret, head.as_bytes())));
    // The key that comes with the token.
    let own = other.sign(&json!({"alg": "ES256", "jwk": other.jwk(), "jku": "http://evil.test/keys"}), &claims("ann"));
    for (token, why) in [
        (but(|c| c["exp"] = json!(now() - 31)), "expired"),
        (but(|c| c["nbf"] = json!(now() + 60)), "not valid yet"),
        (but(|c| c["iss"] = json!("https://evil.test")), "another issuer"),
        (but(|c| c["aud"] = json!("bank")), "another audience"),
        (but(|c| c["sub"] = Value::Null), "'sub'"),
        (other.token(&claims("ann")), "signature is wrong"),
        (unsigned, "algorithm"),
        (confused, "algorithm"),
        (own, "unknown key"),
        (header(json!({"alg": "RS256", "kid": "a"})), "unknown key"),
        (header(json!({"alg": "ES384", "kid": "a"})), "unknown key"),
        (header(json!({"alg": "ES256", "kid": "b"})), "unknown key"),
        (header(json!({"alg": "ES256", "kid": "a", "crit": ["b64"], "b64": false})), "'crit'"),
        (format!("{}.x", key.token(&claims("ann"))), "not a signed JWT"),
        ("x".repeat(limits::TOKEN_BYTES + 1), "over the limit"),
    ] {
        let got = bearer(&w, &token).await;
        assert_eq!((got.status, got.code().as_str()), (401, "unauthenticated"), "{why}");
        assert!(got.text.contains(why), "'{why}' is not in {}", got.text);
        assert!(got.challenge().starts_with("Bearer realm=\"id\", error=\"invalid_token\""), "{}", got.challenge());
        assert!(!got.text.contains(&token[..token.len().min(40)]), "the token is not repeated");
    }
    assert_eq!(bearer(&w, &header(json!({"alg": "ES256"}))).await.status, 200, "a token that names no key");
    assert_eq!(decisions(&w, "id", "expired"), 1);
    assert_eq!(decisions(&w, "none", "missing"), 1);
}

#[tokio::test]
async fn two_credentials_are_one_too_many() {
    let key = Signer::new("a");
    let w = guarded(vec![jwt("id", rules(), fixed(&[&key]))], |_| {}).await;
    let token = format!("Bearer {}", key.token(&claims("ann")));
    let got = ask(&w, "/", &[("authorization", &token), ("authorization", &token)]).await;
    assert_eq!(got.status, 401);
}

#[tokio::test]
async fn an_algorithm_outside_the_list_of_the_provider_is_refused() {
    let key = Signer::new("a");
    let only = weft_policy::auth::jwt::Rules { algorithms: vec![Algorithm::EdDsa], ..rules() };
    let w = guarded(vec![jwt("id", only, fixed(&[&key]))], |_| {}).await;
    assert_eq!(bearer(&w, &key.token(&claims("ann"))).await.status, 401);
}

#[tokio::test]
async fn keys_are_fetched_once_and_a_key_the_issuer_has_just_begun_to_use_is_fetched_when_it_is_met() {
    let (a, b) = (Signer::new("a"), Signer::new("b"));
    let issuer = Issuer::start(&[&a]).await;
    let w = guarded(vec![jwt("id", rules(), issuer.keys())], |_| {}).await;
    let before = a.token(&claims("ann"));
    assert_eq!(bearer(&w, &before).await.status, 200);
    let fetched = issuer.fetched();
    for i in 0..20 {
        assert_eq!(bearer(&w, &a.token(&claims(&format!("u{i}")))).await.status, 200);
    }
    assert_eq!(issuer.fetched(), fetched, "known keys need no fetch");
    // The issuer changes its key and withdraws the old one.
    issuer.serve(200, &[&b]);
    w.until(|| async { bearer(&w, &b.token(&claims("ann"))).await.status == 200 }).await;
    assert_eq!(bearer(&w, &before).await.status, 401, "remembered under keys that are gone");
    // Made-up keys are no way to flood the issuer.
    let fetched = issuer.fetched();
    for _ in 0..50 {
        let token = Signer::new("made-up").token(&claims("ann"));
        assert_eq!(bearer(&w, &token).await.status, 401);
    }
    assert!(issuer.fetched() <= fetched + 1, "{} fetches for 50 tokens", issuer.fetched() - fetched);
}

#[tokio::test]
async fn an_outage_of_the_issuer_signs_nobody_out() {
    let a = Signer::new("a");
    let issuer = Issuer::start(&[&a]).await;
    let w = guarded(vec![jwt("id", rules(), issuer.keys())], |_| {}).await;
    assert_eq!(bearer(&w, &a.token(&claims("ann"))).await.status, 200);
    issuer.serve(500, &[]);
    // A fetch that fails, asked for by a key nobody knows.
    assert_eq!(bearer(&w, &Signer::new("new").token(&claims("eve"))).await.status, 401);
    for i in 0..5 {
        assert_eq!(bearer(&w, &a.token(&claims(&format!("u{i}")))).await.status, 200, "a caller never seen before");
    }
    let text = w.telemetry.metrics().render_prometheus();
    let failed = "weft_auth_key_fetches_total{provider=\"id\",result=\"failed\"} ";
    let failed: u64 = text.lines().find_map(|l| l.strip_prefix(failed)).unwrap().parse().unwrap();
    assert!(failed > 0, "{text}");
}

#[tokio::test]
async fn before_the_first_keys_are_there_nobody_is_refused_for_good() {
    let a = Signer::new("a");
    let issuer = Issuer::start(&[&a]).await;
    issuer.serve(503, &[&a]);
    let w = guarded(vec![jwt("id", rules(), issuer.keys())], |_| {}).await;
    let token = a.token(&claims("ann"));
    let got = bearer(&w, &token).await;
    assert_eq!((got.status, got.code().as_str()), (503, "auth-unavailable"));
    assert_eq!(got.headers["retry-after"], "1");
    issuer.serve(200, &[&a]);
    w.until(|| async { bearer(&w, &token).await.status == 200 }).await;
}

#[tokio::test]
async fn an_openid_issuer_says_itself_where_its_keys_are() {
    let a = Signer::new("a");
    let issuer = Issuer::start(&[&a]).await;
    let name = format!("http://{}", issuer.address);
    let rules = weft_policy::auth::jwt::Rules { issuer: Some(name.clone()), ..rules() };
    let w = guarded(vec![jwt("id", rules, KeysFrom::Discovery(name.clone()))], |_| {}).await;
    let mut c = claims("ann");
    c["iss"] = json!(name);
    assert_eq!(bearer(&w, &a.token(&c)).await.status, 200);
    // Another issuer's document is not believed.
    let other = KeysFrom::Discovery(format!("{name}/"));
    let w = guarded(vec![jwt("id", weft_policy::auth::jwt::Rules::default(), other)], |_| {}).await;
    assert_eq!(bearer(&w, &a.token(&c)).await.status, 503);
}

#[tokio::test]
async fn a_reload_keeps_the_keys_of_a_provider_that_stays_and_drops_those_of_one_that_goes() {
    let a = Signer::new("a");
    let issuer = Issuer::start(&[&a]).await;
    let provider = jwt("id", rules(), issuer.keys());
    let w = guarded(vec![provider.clone()], |_| {}).await;
    let token = a.token(&claims("ann"));
    assert_eq!(bearer(&w, &token).await.status, 200);
    let fetched = issuer.fetched();
    let mut r = route("all", "/**", "s");
    r.policy.auth = Some(Auth { providers: vec!["id".into()], scopes: vec!["x".into()], ..Auth::default() });
    let next = GatewaySpec { listen: w.gateway.listen().to_vec(), auth: vec![provider], ..gateway(vec![r.clone()]) };
    w.gateway.swap(&next).unwrap();
    let got = bearer(&w, &token).await;
    assert_eq!((got.status, got.code().as_str()), (403, "forbidden"));
    assert!(got.challenge().contains("error=\"insufficient_scope\", scope=\"x\""), "{}", got.challenge());
    assert_eq!((issuer.fetched(), decisions(&w, "id", "cached")), (fetched, 1));
    // A provider that is not declared is no open door.
    let e = w.gateway.swap(&GatewaySpec { auth: vec![], ..next }).unwrap_err();
    assert!(e.to_string().contains("'id', which is not declared"), "{e}");
    assert_eq!(bearer(&w, &token).await.status, 403);
}

#[tokio::test]
async fn rates_and_idempotency_keys_belong_to_the_caller_of_the_token() {
    let key = Signer::new("a");
    let provider = jwt("id", rules(), fixed(&[&key]));
    let mut r = route("all", "/**", "s");
    r.policy.auth = Some(Auth { providers: vec!["id".into()], ..Auth::default() });
    r.policy.idempotency = Some(Idempotency { required: true, ..Idempotency::default() });
    let hour = std::time::Duration::from_secs(3600);
    r.policy.rate = vec![Rate { period: hour, burst: 2, per: RatePer::Principal, ..Rate::default() }];
    let spec = GatewaySpec { auth: vec![provider], ..gateway(vec![r]) };
    let calls = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = calls.clone();
    let s = service(move |_| {
        let n = counted.fetch_add(1, std::sync::atomic::Ordering::SeqCst) + 1;
        async move { answer(200, format!("call {n}")) }
    })
    .await;
    let w = World::start(spec, &[spec_of("s", weft_mesh::Protocol::Http, &[s])]).await;
    let post = async |sub: &str| {
        let token = key.token(&claims(sub));
        let r = Request::post("/").header("host", "h").header("authorization", format!("Bearer {token}"));
        let r = r.header("idempotency-key", "k").body(Full::new(Bytes::from_static(b"x"))).unwrap();
        let (head, body) = w.send(r).await.into_parts();
        (head.status.as_u16(), body.collect().await.unwrap().to_bytes())
    };
    assert_eq!(post("ann").await, (200, "call 1".into()));
    assert_eq!(post("ann").await, (200, "call 1".into()), "a fresh token of the same caller");
    assert_eq!(post("bob").await, (200, "call 2".into()), "the same key of another caller");
    assert_eq!(post("ann").await.0, 200);
    assert_eq!(post("ann").await.0, 429);
    assert_eq!(post("bob").await.0, 200);
}
