use std::time::Duration;

use weft_edge::auth::spec::{Place, ProviderKind, ProviderSpec};

use super::*;

fn by(place: Place) -> ProviderSpec {
    ProviderSpec { name: name("partners"), kind: ProviderKind::ApiKey { place } }
}

fn in_header() -> ProviderSpec {
    by(Place::Header("x-api-key".into()))
}

#[tokio::test]
async fn an_api_key_names_its_owner_and_is_not_passed_on() {
    let w = guarded(vec![in_header()], |a| {
        a.scopes = vec!["orders:read".into()];
        a.headers = vec![("x-owner".into(), "subject".into()), ("x-key".into(), "claims.id".into())];
    })
    .await;
    let (record, key) = w.api_keys.create("acme", vec!["orders:read".into()], None).await.unwrap();
    let got = ask(&w, "/orders", &[("x-api-key", key.expose())]).await;
    assert_eq!(got.status, 200, "{}", got.text);
    assert!(got.text.contains("x-owner: acme\n") && got.text.contains(&format!("x-key: {}\n", record.id)));
    assert!(!got.text.contains(key.expose()), "{}", got.text);

    let (_, narrow) = w.api_keys.create("acme", vec![], None).await.unwrap();
    assert_eq!(ask(&w, "/orders", &[("x-api-key", narrow.expose())]).await.status, 403);
    for bad in ["x", "weft_0000000000000000_0123456789012345678901234567890123456789012"] {
        let got = ask(&w, "/orders", &[("x-api-key", bad)]).await;
        assert_eq!((got.status, got.code().as_str()), (401, "unauthenticated"));
        assert_eq!(got.challenge(), "ApiKey realm=\"partners\", in=\"header\", name=\"x-api-key\"");
    }
}

#[tokio::test]
async fn a_key_in_the_query_is_taken_out_of_the_target() {
    let w = guarded(vec![by(Place::Query("key".into()))], |_| {}).await;
    let (_, key) = w.api_keys.create("acme", vec![], None).await.unwrap();
    let got = ask(&w, &format!("/orders?a=1&key={}&b=2", key.expose()), &[]).await;
    assert!(got.status == 200 && got.text.starts_with("GET /orders?a=1&b=2\n"), "{}", got.text);
    let twice = format!("/orders?key={0}&key={0}", key.expose());
    assert_eq!(ask(&w, &twice, &[]).await.status, 401);
}

#[tokio::test]
async fn a_change_of_a_key_holds_for_the_next_request() {
    let w = guarded(vec![in_header()], |_| {}).await;
    let (record, first) = w.api_keys.create("acme", vec![], None).await.unwrap();
    let with = async |key: &weft_policy::auth::key::Clear| ask(&w, "/", &[("x-api-key", key.expose())]).await.status;
    assert_eq!((with(&first).await, with(&first).await), (200, 200));
    let (_, second) = w.api_keys.rotate(&record.id, Duration::from_secs(60)).await.unwrap();
    assert_eq!((with(&first).await, with(&second).await), (200, 200), "two are good at once");
    let (_, third) = w.api_keys.rotate(&record.id, Duration::ZERO).await.unwrap();
    assert_eq!((with(&first).await, with(&second).await, with(&third).await), (401, 401, 200));
    w.api_keys.disable(&record.id, true).await.unwrap();
    assert_eq!(with(&third).await, 401);
    w.api_keys.disable(&record.id, false).await.unwrap();
    assert_eq!(with(&third).await, 200);
    w.api_keys.revoke(&record.id).await.unwrap();
    assert_eq!(with(&third).await, 401);
}

#[tokio::test]
async fn keys_survive_a_restart_as_hashes() {
    let w = guarded(vec![in_header()], |_| {}).await;
    let (record, key) = w.api_keys.create("acme", vec!["s".into()], None).await.unwrap();
    let kept = w.store.get(weft_edge::auth::api_keys::SPACE, record.id.as_bytes()).await.unwrap().unwrap();
    let secret = key.expose().splitn(3, '_').nth(2).unwrap();
    assert!(!String::from_utf8_lossy(&kept.bytes).contains(secret));
    let again = weft_edge::auth::ApiKeys::open(w.store.clone()).await.unwrap();
    assert_eq!(again.list(None, 10), vec![record]);
}

#[tokio::test]
async fn a_limit_by_key_counts_by_it_though_the_key_does_not_go_on() {
    use weft_policy::spec::{Algorithm, Rate, RatePer};
    const HOUR: Duration = Duration::from_secs(3600);
    for (place, per) in [
        (Place::Header("x-api-key".into()), RatePer::Header("x-api-key".into())),
        (Place::Header("x-api-key".into()), RatePer::Expression("request.headers['x-api-key']".into())),
        (Place::Query("key".into()), RatePer::Expression("request.query.key".into())),
    ] {
        let in_query = matches!(place, Place::Query(_));
        let mut r = route("all", "/**", "s");
        r.policy.auth = Some(Auth { providers: vec!["partners".into()], ..Auth::default() });
        r.policy.rate =
            vec![Rate { limit: 1, period: HOUR, algorithm: Algorithm::Sliding, per: per.clone(), ..Rate::default() }];
        let spec = weft_edge::spec::GatewaySpec { auth: vec![by(place)], ..gateway(vec![r]) };
        let w = World::start(spec, &[spec_of("s", Protocol::Http, &[echo().await])]).await;
        for owner in ["acme", "other"] {
            let (_, key) = w.api_keys.create(owner, vec![], None).await.unwrap();
            let (path, fields) = match in_query {
                true => (format!("/a?key={}", key.expose()), vec![]),
                false => ("/a".to_owned(), vec![("x-api-key", key.expose())]),
            };
            let got = ask(&w, &path, &fields).await;
            assert_eq!(got.status, 200, "{owner} by {per:?}: {}", got.text);
            assert!(!got.text.contains(key.expose()), "{}", got.text);
            assert_eq!(ask(&w, &path, &fields).await.status, 429, "{owner} by {per:?}");
        }
    }
}
