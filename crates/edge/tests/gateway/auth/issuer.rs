//! An identity provider: keys made for the test, tokens signed with them, and a server of its documents.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::Request;
use parking_lot::Mutex;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use serde_json::{Value, json};
use weft_edge::auth::spec::{KeysFrom, ProviderKind, ProviderSpec};
use weft_policy::auth::jwt::Rules;

use crate::support::*;

/// A P-256 key and its name.
#[derive(Clone)]
pub struct Signer {
    pub kid: &'static str,
    pair: Arc<EcdsaKeyPair>,
}

impl Signer {
    pub fn new(kid: &'static str) -> Self {
        let rng = SystemRandom::new();
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &rng).unwrap();
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.as_ref(), &rng).unwrap();
        Self { kid, pair: Arc::new(pair) }
    }

    pub fn jwk(&self) -> Value {
        let point = self.pair.public_key().as_ref();
        let part = |b: &[u8]| URL_SAFE_NO_PAD.encode(b);
        json!({"kty": "EC", "crv": "P-256", "use": "sig", "kid": self.kid,
            "x": part(&point[1..33]), "y": part(&point[33..])})
    }

    pub fn sign(&self, header: &Value, claims: &Value) -> String {
        let part = |v: &Value| URL_SAFE_NO_PAD.encode(v.to_string());
        let signed = format!("{}.{}", part(header), part(claims));
        let signature = self.pair.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    /// A token of this key with these claims.
    pub fn token(&self, claims: &Value) -> String {
        self.sign(&json!({"alg": "ES256", "kid": self.kid}), claims)
    }
}

pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// Claims of a subject, good for a minute.
pub fn claims(sub: &str) -> Value {
    json!({"iss": "https://id.test", "aud": "shop", "sub": sub, "exp": now() + 60})
}

/// The server of a key set.
#[derive(Clone)]
pub struct Issuer {
    pub address: SocketAddr,
    pub calls: Arc<AtomicUsize>,
    state: Arc<Mutex<(u16, Vec<Value>)>>,
}

impl Issuer {
    pub async fn start(keys: &[&Signer]) -> Self {
        let state = Arc::new(Mutex::new((200, keys.iter().map(|k| k.jwk()).collect::<Vec<_>>())));
        let calls = Arc::new(AtomicUsize::new(0));
        let (shared, counted) = (state.clone(), calls.clone());
        let address = service(move |r: Request<_>| {
            let (status, keys) = shared.lock().clone();
            let counted = counted.clone();
            async move {
                let host = r.headers()["host"].to_str().unwrap();
                let body = if r.uri().path() == "/.well-known/openid-configuration" {
                    json!({"issuer": format!("http://{host}"), "jwks_uri": format!("http://{host}/keys")})
                } else {
                    counted.fetch_add(1, Ordering::SeqCst);
                    json!({"keys": keys})
                };
                answer(status, body.to_string())
            }
        })
        .await;
        Self { address, calls, state }
    }

    pub fn serve(&self, status: u16, keys: &[&Signer]) {
        *self.state.lock() = (status, keys.iter().map(|k| k.jwk()).collect());
    }

    pub fn fetched(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }

    pub fn keys(&self) -> KeysFrom {
        KeysFrom::Url(format!("http://{}/keys", self.address))
    }
}

pub fn jwt(named: &str, rules: Rules, keys: KeysFrom) -> ProviderSpec {
    let kind = ProviderKind::Jwt { rules, keys, ca: None, header: "authorization".into() };
    ProviderSpec { name: name(named), kind }
}

pub fn rules() -> Rules {
    Rules { issuer: Some("https://id.test".into()), audiences: vec!["shop".into()], ..Rules::default() }
}
