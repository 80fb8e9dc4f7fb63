use std::time::Duration;

use weft_edge::auth::spec::{Place, ProviderKind, ProviderSpec};
use weft_edge::spec::*;

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

fn versions(names: &[&str]) -> VersionsSpec {
    let known = names.iter().map(|n| VersionSpec {
        version: weft_policy::version::Version { name: (*n).into(), ..Default::default() },
        path: Some(format!("/of/{n}/{{**}}")),
        successor: Some(Successor::Version(names[names.len() - 1].into())),
        ..VersionSpec::default()
    });
    VersionsSpec { from: vec![VersionFrom::Path], default: None, known: known.collect() }
}

#[tokio::test]
async fn a_key_in_the_query_reaches_neither_a_version_nor_links_nor_header_rules() {
    let mut r = route("all", "/{version}/**", "s");
    r.versions = Some(versions(&["v1", "v2"]));
    r.traffic.request = vec![FieldRule::Set("x-query".into(), "{request.query}".into())];
    r.policy.auth = Some(Auth { providers: vec!["partners".into()], ..Auth::default() });
    let spec = GatewaySpec { auth: vec![by(Place::Query("key".into()))], ..gateway(vec![r]) };
    let w = World::start(spec, &[spec_of("s", Protocol::Http, &[echo().await])]).await;
    let (_, key) = w.api_keys.create("acme", vec![], None).await.unwrap();
    let got = ask(&w, &format!("/v1/orders?a=1&k%65y={}", key.expose()), &[]).await;
    assert!(got.status == 200 && got.text.starts_with("GET /of/v1/orders?a=1\n"), "{}", got.text);
    assert!(got.text.contains("\nx-query: a=1\n") && !got.text.contains(key.expose()), "{}", got.text);
    assert_eq!(got.headers["link"], "</v2/orders?a=1>; rel=\"successor-version\"");
}

#[tokio::test]
async fn the_access_log_writes_no_key_also_when_nobody_is_let_in() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("access.log");
    let mut r = route("orders", "/orders", "s");
    r.policy.auth = Some(Auth { providers: vec!["partners".into()], ..Auth::default() });
    let mut spec = GatewaySpec { auth: vec![by(Place::Query("key".into()))], ..gateway(vec![r]) };
    spec.access_log = Some(AccessLog { file: Some(file.clone()), sample: 1.0 });
    let w = World::start(spec, &[spec_of("s", Protocol::Http, &[echo().await])]).await;
    for (path, status) in [("/orders", 401), ("/elsewhere", 404)] {
        let got = ask(&w, &format!("{path}?a=1&key=hush"), &[("referer", "http://h/?key=hush")]).await;
        assert_eq!(got.status, status);
    }
    let written = || std::fs::read_to_string(&file).unwrap();
    w.until(|| async { written().lines().count() == 2 }).await;
    let text = written();
    assert_eq!(text.matches("\"query\":\"a=1&key=REDACTED\"").count(), 2, "{text}");
    assert!(!text.contains("hush"), "{text}");
}

#[tokio::test]
async fn to_prepare_a_configuration_changes_nothing_of_what_is_counted() {
    let spec = |names: &[&str]| {
        let mut r = route("all", "/{version}/**", "s");
        r.versions = Some(versions(names));
        gateway(vec![r])
    };
    let w = World::start(spec(&["v1", "v2"]), &[spec_of("s", Protocol::Http, &[echo().await])]).await;
    assert_eq!(ask(&w, "/v1/x", &[]).await.status, 200);
    let names = || {
        let items = w.gateway.usage().to_json()["items"].as_array().unwrap().clone();
        items.iter().map(|i| (i["version"].as_str().unwrap().to_owned(), i["requests"].as_u64())).collect::<Vec<_>>()
    };
    let before = [("v1".to_owned(), Some(1)), ("v2".to_owned(), Some(0))];
    assert_eq!(names(), before);
    let prepared = w.gateway.prepare(&spec(&["v1", "v3"])).unwrap();
    assert_eq!(names(), before);
    w.gateway.put(prepared);
    assert_eq!(names(), [("v1".to_owned(), Some(1)), ("v3".to_owned(), Some(0))]);
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
