//! `auth:` and the block of policies: the page's example, and every mistake.

use super::*;
use weft_edge::auth::spec::{KeysFrom, Place, ProviderKind};

/// The example of `docs/reference/security.md`.
fn page() -> String {
    let page = include_str!("../../../../../docs/reference/security.md");
    let from = page.split("```yaml\n").nth(1).expect("the page has an example");
    from.split("```").next().unwrap().to_owned()
}

#[test]
fn the_example_of_the_page_is_a_configuration() {
    let loaded = load_text(&page()).unwrap_or_else(|r| panic!("{r}"));
    let g = &loaded.snapshot.gateway;
    assert_eq!(g.auth.len(), 3);
    let ProviderKind::Jwt { rules, keys, .. } = &g.auth[0].kind else { panic!("staff has tokens") };
    assert_eq!(*keys, KeysFrom::Discovery("https://id.example.com".into()));
    assert_eq!((rules.algorithms.len(), rules.required.as_slice()), (2, &["tenant".to_owned()][..]));
    assert_eq!(g.auth[1].kind, ProviderKind::ApiKey { place: Place::Header("x-api-key".into()) });
    let auth = |i: usize| g.routes[i].policy.auth.as_ref();
    assert_eq!(auth(0).unwrap().providers, ["partners", "staff"]);
    assert_eq!(auth(1).unwrap().headers[1], ("x-tenant".into(), "claims.tenant".into()));
    assert!(g.routes[1].policy.idempotency.is_some_and(|i| !i.public));
    assert_eq!(auth(2).unwrap().nets.allow.len(), 2);
    assert_eq!(auth(3), None);
    assert_eq!(g.listen[0].nets.deny.len(), 1);
}

#[test]
fn a_key_set_is_a_url_a_file_or_written_in_place() {
    let jwk = "{ kty: OKP, crv: Ed25519, x: 11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo, kid: 1 }";
    let keys = |jwks: &str| {
        let text = format!("auth: {{ a: {{ jwt: {{ jwks: {jwks} }} }} }}");
        match load_text(&text).unwrap_or_else(|r| panic!("{r}")).snapshot.gateway.auth.remove(0).kind {
            ProviderKind::Jwt { keys, .. } => keys,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(keys("https://id.example.com/keys"), KeysFrom::Url("https://id.example.com/keys".into()));
    assert_eq!(keys("http://127.0.0.1:1/keys"), KeysFrom::Url("http://127.0.0.1:1/keys".into()));
    let KeysFrom::Fixed(written) = keys(&format!("{{ keys: [{jwk}] }}")) else { panic!("written in place") };
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("keys.json");
    std::fs::write(
        &file,
        r#"{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo","kid":"1"}]}"#,
    )
    .unwrap();
    assert_eq!(keys(&format!("{{ file: {} }}", file.display())), KeysFrom::Fixed(written));
}

/// Checks that a text has exactly these mistakes.
fn says(text: &str, expected: &[&str]) {
    assert_eq!(mistakes(text), expected, "in:\n{text}");
}

#[test]
fn mistakes_in_providers_are_named_with_their_place() {
    says("auth: { a: {} }", &["1:9 auth provider 'a' has 0 kinds, it needs one | write one of jwt, api_key and basic"]);
    says("auth: { a: { jwt: {} } }", &["1:14 whose tokens are these? | write 'issuer:', 'jwks:' or both"]);
    says(
        "auth: { a: { jwt: { issuer: id.example.com } } }",
        &[
            "1:29 'id.example.com' is not a URL that keys can be fetched from | write it like https://id.example.com, or name a 'jwks'",
        ],
    );
    says(
        "auth: { a: { jwt: { issuer: http://id.example.com } } }",
        &[
            "1:29 keys from 'http://id.example.com' could be anybody's | write https, or 'insecure: true' where nobody else can be in between",
        ],
    );
    says(
        "auth: { a: { jwt: { issuer: x, jwks: https://x/k, algorithms: HS256 } } }",
        &[
            "1:63 'HS256' is not one of RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, EdDSA | did you mean 'RS256'?",
        ],
    );
    says(
        "auth: { a: { jwt: { jwks: { keys: [{ kty: oct, k: c2VjcmV0 }] } } } }",
        &[
            "1:29 no key of the set checks signatures (RSA of 2048 bits and more, P-256, P-384, Ed25519) | write the issuer's public keys as JSON Web Keys",
        ],
    );
    says(
        "auth: { a: { api_key: { header: a, query: b } } }",
        &["1:43 a key comes in one place | keep 'header' or 'query'"],
    );
    let report = load_text("auth: { a: { basic: { users: { ann: hunter2 } } } }").unwrap_err();
    assert!(lines(&report)[0].contains("make one with 'weft keys password'"), "{:?}", lines(&report));
    assert!(!lines(&report)[0].contains("hunter2"), "what may be a password is not repeated");
}

#[test]
fn mistakes_in_the_block_are_named_with_their_place() {
    let route = |auth: &str| {
        format!(
            "auth: {{ staff: {{ api_key: {{}} }} }}\nservices: {{ s: }}\ngateway: {{ routes: [{{ match: {{ path: / }}, to: {{ service: s }}, policy: {{ auth: {auth} }} }}] }}"
        )
    };
    let one = |auth: &str, expected: &str| {
        let found = mistakes(&route(auth));
        assert!(found.len() == 1 && found[0].ends_with(expected), "{auth}: {found:?}");
    };
    one("stuff", "unknown auth provider 'stuff' | did you mean 'staff'?");
    one("[staff, other]", "unknown auth provider 'other' | known auth providers: staff");
    one("{}", "this asks nothing of a caller | name providers with 'use', or write 'auth: off'");
    one(
        "{ use: staff, require: claim.x == 1 }",
        "unknown name 'claim' | did you mean 'claims'?; known here: principal, subject, provider, scopes, claims, request",
    );
    one("{ use: staff, headers: { 'a b': subject } }", "'a b' is not a header name | use letters, digits and '-'");
    one("{ allow: 10.0.0.1/8 }", "'10.0.0.1/8' has bits set behind its prefix | write '10.0.0.0/8'");
    one(
        "{ use: staff, optional: true, scopes: x }",
        "nobody anonymous has a scope: this would let nobody in that comes without a credential | name providers with 'use', without 'optional'",
    );
    says(
        "policies: { p: { auth: { use: nobody } } }",
        &["1:31 unknown auth provider 'nobody' | no auth provider is declared"],
    );
    says(
        "auth: { a: { api_key: } }\nservices: { s: { policy: { auth: a } } }",
        &[
            "2:34 'auth' has no meaning on a service | what has one: deadline, attempt_timeout, retry, hedge, breaker, bulkhead, rate",
        ],
    );
    let keyed = |auth: &str| {
        load_text(&route(&format!("{auth}, idempotency: required"))).map(drop).map_err(|r| lines(&r)[0].clone())
    };
    assert_eq!(keyed("staff"), Ok(()));
    assert!(keyed("{ use: staff, optional: true }").unwrap_err().contains("callers of route"));
    assert!(keyed("{ allow: 10.0.0.0/8 }").unwrap_err().contains("callers of route"));
}
