use http::Request;
use http_body_util::Full;
use serde_json::json;
use tokio::io::AsyncReadExt as _;
use weft_edge::auth::spec::{KeysFrom, Place, ProviderKind, ProviderSpec};
use weft_edge::spec::{GatewaySpec, ListenSpec};
use weft_policy::auth::jose::Keys;
use weft_policy::net::Nets;

use super::issuer::*;
use super::*;

fn fixed(key: &Signer) -> KeysFrom {
    let set = json!({"keys": [key.jwk()]});
    KeysFrom::Fixed(Keys::parse(set.to_string().as_bytes()).unwrap())
}

#[tokio::test]
async fn a_condition_sees_the_caller_and_the_request_and_what_cannot_be_judged_is_refused() {
    let key = Signer::new("a");
    let cel = "claims.tenant == 'acme' && 'write' in scopes && provider == 'id' && principal == 'id/ann' \
        && request.method == 'GET' && request.path.startsWith('/orders/') && request.query == 'x=1' \
        && request.headers['x-shop'] == 'a, b' && request.source == '127.0.0.1' && request.host == 'h'";
    let w = guarded(vec![jwt("id", rules(), fixed(&key))], |a| a.require = Some(cel.into())).await;
    let call = async |tenant: serde_json::Value, path: &str| {
        let mut c = claims("ann");
        c["scope"] = json!("read write");
        c["tenant"] = tenant;
        let token = format!("Bearer {}", key.token(&c));
        ask(&w, path, &[("authorization", &token), ("x-shop", "a"), ("x-shop", "b")]).await
    };
    assert_eq!(call(json!("acme"), "/orders/7?x=1").await.status, 200);
    assert_eq!(call(json!("acme"), "/%6frders/7?x=1").await.status, 200, "the path in normal form");
    assert_eq!(call(json!("acme"), "/order/7?x=1").await.code(), "forbidden");
    assert_eq!(call(json!("other"), "/orders/7?x=1").await.status, 403);
    assert_eq!(call(json!(null), "/orders/7?x=1").await.status, 403);
    let token = format!("Bearer {}", key.token(&claims("ann")));
    let got = ask(&w, "/orders/7?x=1", &[("authorization", &token)]).await;
    assert_eq!(got.status, 403, "the claim is not there");
    assert_eq!(decisions(&w, "id", "forbidden"), 4);
}

#[tokio::test]
async fn a_dry_run_lets_through_and_counts() {
    let key = Signer::new("a");
    let w = guarded(vec![jwt("id", rules(), fixed(&key))], |a| {
        a.require = Some("claims.tenant == 'acme'".into());
        a.dry_run = true;
    })
    .await;
    assert_eq!(bearer(&w, &key.token(&claims("ann"))).await.status, 200);
    assert_eq!(decisions(&w, "id", "would-forbid"), 1);
    assert_eq!(ask(&w, "/", &[]).await.status, 401, "who calls is asked all the same");
}

#[tokio::test]
async fn any_provider_is_enough_and_each_one_says_how() {
    let (a, b) = (Signer::new("k"), Signer::new("k"));
    let second = weft_policy::auth::jwt::Rules { issuer: Some("https://second.test".into()), ..rules() };
    let keys = ProviderSpec {
        name: name("partners"),
        kind: ProviderKind::ApiKey { place: Place::Header("x-api-key".into()) },
    };
    let providers = vec![jwt("first", rules(), fixed(&a)), jwt("second", second, fixed(&b)), keys];
    let w = guarded(providers, |auth| auth.headers = vec![("x-who".into(), "principal".into())]).await;
    let mut of_second = claims("ann");
    of_second["iss"] = json!("https://second.test");
    assert!(bearer(&w, &a.token(&claims("ann"))).await.text.contains("x-who: first/ann\n"));
    assert!(bearer(&w, &b.token(&of_second)).await.text.contains("x-who: second/ann\n"));
    let (_, key) = w.api_keys.create("acme", vec![], None).await.unwrap();
    assert!(ask(&w, "/", &[("x-api-key", key.expose())]).await.text.contains("x-who: partners/acme\n"));
    let got = ask(&w, "/", &[]).await;
    for scheme in ["Bearer realm=\"first\"", "Bearer realm=\"second\"", "ApiKey realm=\"partners\""] {
        assert!(got.challenge().contains(scheme), "{}", got.challenge());
    }
    // The second issuer's name on the first one's signature: what is wrong is what the second says.
    let got = bearer(&w, &a.token(&of_second)).await;
    assert!(got.status == 401 && got.text.contains("signature is wrong"), "{}", got.text);
}

#[tokio::test]
async fn where_a_credential_is_optional_a_bad_one_is_still_refused() {
    let key = Signer::new("a");
    let w = guarded(vec![jwt("id", rules(), fixed(&key))], |a| {
        a.optional = true;
        a.forward = true;
        a.headers = vec![("x-user".into(), "subject".into())];
    })
    .await;
    let got = ask(&w, "/", &[("x-user", "root")]).await;
    assert!(got.status == 200 && !got.text.contains("x-user"), "{}", got.text);
    let got = bearer(&w, &key.token(&claims("ann"))).await;
    assert!(got.text.contains("x-user: ann\n") && got.text.contains("authorization: Bearer"), "{}", got.text);
    assert_eq!(bearer(&w, "made.up.token").await.status, 401);
}

#[tokio::test]
async fn a_route_takes_callers_from_its_networks_only() {
    let nets = |allow: &str, deny: &str| {
        let list = |s: &str| s.split_whitespace().map(|n| n.parse().unwrap()).collect();
        Nets { allow: list(allow), deny: list(deny) }
    };
    for (given, status) in [(nets("127.0.0.0/8", ""), 200), (nets("10.0.0.0/8", ""), 403), (nets("", "127.0.0.1"), 403)]
    {
        let w = guarded(vec![], |a| a.nets = given).await;
        assert_eq!(ask(&w, "/", &[]).await.status, status);
        assert_eq!(decisions(&w, "none", "address"), u64::from(status == 403));
    }
}

#[tokio::test]
async fn access_goes_by_forwarded_addresses_only_where_the_configuration_names_the_proxies() {
    let inner = [("x-forwarded-for", "10.0.0.1")];
    let allowed = |proxies: Option<&str>, auth: Auth| {
        let mut r = route("all", "/**", "s");
        r.policy.auth = Some(auth);
        let trusted_proxies = proxies.map(|p| vec![p.parse().unwrap()]);
        GatewaySpec { trusted_proxies, ..gateway(vec![r]) }
    };
    let nets = Nets { allow: vec!["10.0.0.0/8".parse().unwrap()], deny: vec![] };
    let by_net = Auth { nets, ..Auth::default() };
    let by_condition = Auth { require: Some("request.source == '10.0.0.1'".into()), ..Auth::default() };
    let services = [spec_of("s", Protocol::Http, &[echo().await])];
    for auth in [by_net, by_condition] {
        for (proxies, status) in [(None, 403), (Some("127.0.0.0/8"), 200), (Some("192.0.2.0/24"), 403)] {
            let w = World::start(allowed(proxies, auth.clone()), &services).await;
            assert_eq!(ask(&w, "/", &inner).await.status, status, "{proxies:?} {auth:?}");
        }
    }
}

#[tokio::test]
async fn a_listener_closes_connections_from_elsewhere_unread() {
    let nets = Nets { allow: vec!["10.0.0.0/8".parse().unwrap()], deny: vec![] };
    let spec = GatewaySpec {
        listen: vec![ListenSpec { nets, ..listen() }, listen()],
        ..gateway(vec![route("all", "/**", "s")])
    };
    let w = World::start(spec, &[spec_of("s", Protocol::Http, &[echo().await])]).await;
    let mut s = tokio::net::TcpStream::connect(w.gateway.addresses()[0]).await.unwrap();
    assert_eq!(s.read(&mut [0; 1]).await.unwrap_or(0), 0);
    assert_eq!(send(w.gateway.addresses()[1], get("/")).await.status(), 200);
}

#[tokio::test]
async fn a_grpc_call_gets_its_own_codes() {
    let key = Signer::new("a");
    let w = guarded(vec![jwt("id", rules(), fixed(&key))], |a| a.scopes = vec!["s".into()]).await;
    let call = async |token: Option<String>| {
        let mut r = Request::post("/shop.Orders/Place").header("host", "h").header("content-type", "application/grpc");
        if let Some(t) = token {
            r = r.header("authorization", format!("Bearer {t}"));
        }
        let got = w.send(r.body(Full::new(Bytes::new())).unwrap()).await;
        (got.status().as_u16(), got.headers()["grpc-status"].to_str().unwrap().to_owned())
    };
    assert_eq!(call(None).await, (200, "16".into()), "UNAUTHENTICATED");
    assert_eq!(call(Some(key.token(&claims("ann")))).await, (200, "7".into()), "PERMISSION_DENIED");
}
