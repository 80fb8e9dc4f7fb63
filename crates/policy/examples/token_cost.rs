//! What a token costs: the first time, by algorithm, and every time after.
//! `cargo run --release -p weft-policy --example token_cost`

use std::sync::Arc;
use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{self as sig, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _};
use serde_json::json;
use weft_core::{Clock as _, SystemClock, Timestamp};
use weft_policy::auth::jose::Keys;
use weft_policy::auth::jwt::{self, Rules};
use weft_policy::auth::{Cache, Identity};

const ROUNDS: u32 = 2_000;

fn main() {
    let rng = SystemRandom::new();
    let ec = |alg, fixed: &'static sig::EcdsaSigningAlgorithm, crv: &str| {
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(fixed, &rng).expect("ring makes keys");
        let pair = EcdsaKeyPair::from_pkcs8(fixed, pkcs8.as_ref(), &rng).expect("ring reads its own keys");
        let (x, y) = pair.public_key().as_ref()[1..].split_at(pair.public_key().as_ref().len() / 2);
        let key = json!({"kty": "EC", "crv": crv, "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y)});
        measure(alg, &key, |m| pair.sign(&rng, m).expect("ring signs").as_ref().to_vec());
    };
    ec("ES256", &sig::ECDSA_P256_SHA256_FIXED_SIGNING, "P-256");
    ec("ES384", &sig::ECDSA_P384_SHA384_FIXED_SIGNING, "P-384");
    let ed = Ed25519KeyPair::from_seed_unchecked(&[7; 32]).expect("any 32 bytes are a seed");
    let key = json!({"kty": "OKP", "crv": "Ed25519", "x": URL_SAFE_NO_PAD.encode(ed.public_key())});
    measure("EdDSA", &key, |m| ed.sign(m).as_ref().to_vec());
}

fn measure(alg: &str, key: &serde_json::Value, sign: impl Fn(&[u8]) -> Vec<u8>) {
    let keys = Keys::parse(json!({"keys": [key]}).to_string().as_bytes()).expect("the key is right");
    let now = SystemClock.now();
    let claims = json!({"iss": "https://id.example.com", "aud": "shop", "sub": "ann", "exp": now.0 / 1000 + 3600,
        "scope": "orders:read orders:write", "tenant": "acme", "name": "Ann Example", "email": "ann@example.com"});
    let part = |v: &serde_json::Value| URL_SAFE_NO_PAD.encode(v.to_string());
    let signed = format!("{}.{}", part(&json!({"alg": alg, "typ": "JWT"})), part(&claims));
    let token = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(sign(signed.as_bytes())));
    let (rules, provider): (Rules, Arc<str>) = (Rules::default(), "id".into());

    let began = Instant::now();
    for _ in 0..ROUNDS {
        jwt::verify(&rules, &provider, &keys, &token, now).expect("the token is good");
    }
    let first = began.elapsed() / ROUNDS;

    let cache: Cache<Arc<Identity>> = Cache::new(16_384);
    let who = Identity::new(&provider, "ann", Vec::new(), claims);
    cache.put(cache.name(token.as_bytes()), Arc::new(who), Timestamp(u64::MAX), 1);
    let began = Instant::now();
    for _ in 0..ROUNDS * 100 {
        let now = SystemClock.now();
        std::hint::black_box(cache.get(&cache.name(token.as_bytes()), now, 1)).expect("it was put");
    }
    println!("{alg}: {} bytes, first {first:?}, again {:?}", token.len(), began.elapsed() / (ROUNDS * 100));
}
