use super::*;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use serde_json::json;

const NOW: Timestamp = Timestamp(1_700_000_000_000);
const SECONDS: i64 = 1_700_000_000;

struct Issuer(Ed25519KeyPair);

impl Issuer {
    fn new() -> Self {
        Self(Ed25519KeyPair::from_seed_unchecked(&rand::random::<[u8; 32]>()).unwrap())
    }

    fn keys(&self) -> Keys {
        let x = URL_SAFE_NO_PAD.encode(self.0.public_key());
        Keys::parse(json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "x": x}]}).to_string().as_bytes()).unwrap()
    }

    fn token(&self, claims: &Value) -> String {
        let head = URL_SAFE_NO_PAD.encode(r#"{"alg":"EdDSA"}"#);
        let signed = format!("{head}.{}", URL_SAFE_NO_PAD.encode(claims.to_string()));
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(self.0.sign(signed.as_bytes())))
    }

    fn check(&self, rules: &Rules, claims: &Value) -> Result<(Identity, Timestamp), Denied> {
        verify(rules, &"staff".into(), &self.keys(), &self.token(claims), NOW)
    }
}

fn with(change: impl FnOnce(&mut Value)) -> Value {
    let mut claims = json!({"iss": "https://id", "aud": "orders", "sub": "ann", "exp": SECONDS + 60});
    change(&mut claims);
    claims
}

#[test]
fn a_good_token_names_its_caller_scopes_and_end() {
    let i = Issuer::new();
    let claims = with(|c| c["scope"] = json!("orders:read orders:write"));
    let (who, expires) = i.check(&Rules::default(), &claims).unwrap();
    assert_eq!((&*who.subject, &*who.principal), ("ann", "staff/ann"));
    assert!(who.has("orders:write") && !who.has("orders"));
    assert_eq!(expires, Timestamp((SECONDS as u64 + 60 + 30) * 1000));
    assert_eq!(*who.claims, claims);
    let rules = Rules { scopes: "roles".into(), principal: "uid".into(), ..Rules::default() };
    let (who, _) = i.check(&rules, &with(|c| *c = json!({"uid": 7, "exp": SECONDS + 1, "roles": ["a", "b"]}))).unwrap();
    assert_eq!((&*who.subject, who.scopes.len()), ("7", 2));
}

#[test]
fn times_hold_with_the_leeway_and_not_beyond_it() {
    let (i, rules) = (Issuer::new(), Rules::default());
    let exp = |s: i64| i.check(&rules, &with(|c| c["exp"] = json!(SECONDS + s))).map(drop);
    assert_eq!((exp(-29), exp(-30)), (Ok(()), Err(Denied::Expired)));
    let nbf = |s: i64| i.check(&rules, &with(|c| c["nbf"] = json!(SECONDS + s))).map(drop);
    assert_eq!((nbf(30), nbf(31)), (Ok(()), Err(Denied::NotYet)));
    assert_eq!(i.check(&rules, &with(|c| c["exp"] = json!(SECONDS as f64 + 0.5))).map(drop), Ok(()));
    for bad in [json!("1700000060"), json!(-1), json!([])] {
        assert_eq!(i.check(&rules, &with(|c| c["exp"] = bad)).unwrap_err(), Denied::Claim("exp".into()));
    }
    let endless = with(|c| drop(c.as_object_mut().unwrap().remove("exp")));
    assert_eq!(i.check(&rules, &endless).unwrap_err(), Denied::Claim("exp".into()));
    assert!(i.check(&Rules { endless: true, ..rules }, &endless).is_ok());
}

#[test]
fn issuer_audience_and_required_claims_are_asked_for() {
    let i = Issuer::new();
    let rules = Rules {
        issuer: Some("https://id".into()),
        audiences: vec!["orders".into(), "shop".into()],
        required: vec!["tenant".into()],
        ..Rules::default()
    };
    let good = with(|c| c["tenant"] = json!("acme"));
    assert!(i.check(&rules, &good).is_ok());
    let but = |change: fn(&mut Value)| {
        let mut claims = good.clone();
        change(&mut claims);
        i.check(&rules, &claims).map(drop)
    };
    assert_eq!(but(|c| c["iss"] = json!("https://id/")), Err(Denied::Issuer));
    assert_eq!(but(|c| c["iss"] = Value::Null), Err(Denied::Issuer));
    assert_eq!(but(|c| c["aud"] = json!(["x", "shop"])), Ok(()));
    assert_eq!(but(|c| c["aud"] = json!(["x"])), Err(Denied::Audience));
    assert_eq!(but(|c| c["aud"] = Value::Null), Err(Denied::Audience));
    assert_eq!(but(|c| c["tenant"] = Value::Null), Err(Denied::Claim("tenant".into())));
    assert_eq!(but(|c| c["sub"] = json!("")), Err(Denied::Claim("sub".into())));
}

#[test]
fn a_stranger_is_not_told_what_is_wrong_with_a_token_it_made_up() {
    let (i, other) = (Issuer::new(), Issuer::new());
    let expired = with(|c| c["exp"] = json!(0));
    let answer = verify(&Rules::default(), &"staff".into(), &i.keys(), &other.token(&expired), NOW);
    assert_eq!(answer.unwrap_err(), Denied::UnknownKey);
}

#[test]
fn an_algorithm_that_the_provider_does_not_list_is_refused_though_the_key_could() {
    let i = Issuer::new();
    let rules = Rules { algorithms: vec![Algorithm::Es256], ..Rules::default() };
    assert_eq!(i.check(&rules, &with(|_| {})).unwrap_err(), Denied::Algorithm);
}

#[test]
fn claims_must_be_an_object() {
    let i = Issuer::new();
    for bad in [json!([1]), json!("x"), json!(null)] {
        assert!(matches!(i.check(&Rules::default(), &bad), Err(Denied::Malformed(_))), "{bad}");
    }
}
