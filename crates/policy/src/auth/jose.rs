//! JSON Web Signatures in compact form (RFC 7515) and the keys that check them (RFC 7517, RFC 7518, RFC 8037).
//!
//! There is no `none` and no HMAC in here: what cannot be named cannot be confused.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::signature as sig;
use serde::Deserialize;
use weft_core::limits;

use super::Denied;

/// A signature algorithm (RFC 7518 3.1, RFC 8037 3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    Rs256,
    /// RSASSA-PKCS1-v1_5 with SHA-384.
    Rs384,
    /// RSASSA-PKCS1-v1_5 with SHA-512.
    Rs512,
    /// RSASSA-PSS with SHA-256.
    Ps256,
    /// RSASSA-PSS with SHA-384.
    Ps384,
    /// RSASSA-PSS with SHA-512.
    Ps512,
    /// ECDSA on P-256 with SHA-256.
    Es256,
    /// ECDSA on P-384 with SHA-384.
    Es384,
    /// Ed25519.
    EdDsa,
}

/// What a key can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    Rsa,
    P256,
    P384,
    Ed25519,
}

impl Algorithm {
    /// All of them.
    pub const ALL: [Algorithm; 9] = [
        Algorithm::Rs256,
        Algorithm::Rs384,
        Algorithm::Rs512,
        Algorithm::Ps256,
        Algorithm::Ps384,
        Algorithm::Ps512,
        Algorithm::Es256,
        Algorithm::Es384,
        Algorithm::EdDsa,
    ];

    /// As `alg` names it.
    pub fn name(self) -> &'static str {
        match self {
            Algorithm::Rs256 => "RS256",
            Algorithm::Rs384 => "RS384",
            Algorithm::Rs512 => "RS512",
            Algorithm::Ps256 => "PS256",
            Algorithm::Ps384 => "PS384",
            Algorithm::Ps512 => "PS512",
            Algorithm::Es256 => "ES256",
            Algorithm::Es384 => "ES384",
            Algorithm::EdDsa => "EdDSA",
        }
    }

    /// The algorithm of an `alg`; `None` for all that is not signed with a private key.
    pub fn of(name: &str) -> Option<Self> {
        // RFC 9864 names what RFC 8037 left open.
        if name == "Ed25519" {
            return Some(Algorithm::EdDsa);
        }
        Self::ALL.into_iter().find(|a| a.name() == name)
    }

    fn family(self) -> Family {
        match self {
            Algorithm::Es256 => Family::P256,
            Algorithm::Es384 => Family::P384,
            Algorithm::EdDsa => Family::Ed25519,
            _ => Family::Rsa,
        }
    }
}

/// A compact JWS, taken apart and not yet believed.
#[derive(Debug)]
pub struct Jws<'t> {
    /// What it says it is signed with.
    pub algorithm: Algorithm,
    /// The key it names.
    pub kid: Option<String>,
    /// The decoded payload.
    pub payload: Vec<u8>,
    signed: &'t [u8],
    signature: Vec<u8>,
}

// The rest of a header (`jku`, `jwk`, `x5u`, `x5c`) would let a token bring its own key: it is not read.
#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    crit: Option<serde_json::Value>,
}

impl<'t> Jws<'t> {
    /// Takes a token apart.
    pub fn parse(token: &'t str) -> Result<Self, Denied> {
        if token.len() > limits::TOKEN_BYTES {
            return Err(Denied::Malformed("it is over the limit of bytes"));
        }
        let mut parts = token.split('.');
        let (Some(header), Some(payload), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(Denied::Malformed("it has not three parts"));
        };
        let decode =
            |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| Denied::Malformed("a part is not base64url"));
        let signed = &token.as_bytes()[..header.len() + 1 + payload.len()];
        let header: Header = serde_json::from_slice(&decode(header)?)
            .map_err(|_| Denied::Malformed("its header is not a JSON object with 'alg'"))?;
        // RFC 7515 4.1.11: what must be understood and is not makes the JWS invalid. We understand no extension.
        if header.crit.is_some() {
            return Err(Denied::Critical);
        }
        let algorithm = Algorithm::of(&header.alg).ok_or(Denied::Algorithm)?;
        Ok(Self { algorithm, kid: header.kid, payload: decode(payload)?, signed, signature: decode(signature)? })
    }

    /// Checks the signature with the keys that fit: the one its `kid` names, or, when it names none, those that have the
    /// right kind.
    pub fn verify(&self, keys: &Keys) -> Result<(), Denied> {
        let mut known = false;
        for key in keys.fitting(self.algorithm, self.kid.as_deref()) {
            known = true;
            if key.verify(self.algorithm, self.signed, &self.signature) {
                return Ok(());
            }
        }
        // A token that names no key may be signed with one that is new.
        Err(if known && self.kid.is_some() { Denied::Signature } else { Denied::UnknownKey })
    }
}

/// A set of public keys (RFC 7517 5).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Keys(Vec<Key>);

#[derive(Clone, Debug, PartialEq)]
struct Key {
    kid: Option<String>,
    algorithm: Option<Algorithm>,
    material: Material,
}

#[derive(Clone, Debug, PartialEq)]
enum Material {
    Rsa {
        n: Vec<u8>,
        e: Vec<u8>,
    },
    /// A point or an Edwards key, as ring takes it.
    Curve(Family, Vec<u8>),
}

#[derive(Deserialize)]
struct SetJson {
    keys: Vec<serde_json::Value>,
}

#[derive(Deserialize)]
struct KeyJson {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    usage: Option<String>,
    key_ops: Option<Vec<String>>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

impl Keys {
    /// Reads a set. Keys for other purposes or of other kinds are passed over, as RFC 7517 5 asks; a set that leaves
    /// nothing to check with is an error.
    pub fn parse(json: &[u8]) -> Result<Self, String> {
        let set: SetJson = serde_json::from_slice(json).map_err(|e| format!("not a JSON Web Key Set: {e}"))?;
        if set.keys.len() > limits::JWKS_KEYS {
            return Err(format!("{} keys are more than the {} that a set may have", set.keys.len(), limits::JWKS_KEYS));
        }
        let keys: Vec<Key> = set.keys.into_iter().filter_map(Key::of).collect();
        if keys.is_empty() {
            return Err("no key of the set checks signatures (RSA of 2048 bits and more, P-256, P-384, Ed25519)".into());
        }
        Ok(Self(keys))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn fitting<'k>(&'k self, algorithm: Algorithm, kid: Option<&'k str>) -> impl Iterator<Item = &'k Key> {
        let fits = move |k: &&Key| {
            k.material.family() == algorithm.family()
                && k.algorithm.is_none_or(|a| a == algorithm)
                && kid.is_none_or(|kid| k.kid.as_deref() == Some(kid))
        };
        self.0.iter().filter(fits).take(limits::JWK_TRIES)
    }
}

impl Material {
    fn family(&self) -> Family {
        match self {
            Material::Rsa { .. } => Family::Rsa,
            Material::Curve(f, _) => *f,
        }
    }
}

impl Key {
    fn of(json: serde_json::Value) -> Option<Self> {
        let k: KeyJson = serde_json::from_value(json).ok()?;
        if k.usage.is_some_and(|u| u != "sig") || k.key_ops.is_some_and(|o| !o.iter().any(|o| o == "verify")) {
            return None;
        }
        let algorithm = match &k.alg {
            None => None,
            Some(name) => Some(Algorithm::of(name)?),
        };
        let bytes = |part: Option<String>| URL_SAFE_NO_PAD.decode(part?.trim_end_matches('=')).ok();
        let material = match (k.kty.as_str(), k.crv.as_deref()) {
            ("RSA", _) => {
                let (mut n, e) = (bytes(k.n)?, bytes(k.e)?);
                // Base64urlUInt has no leading zero (RFC 7518 2); some issuers write one.
                let zeros = n.iter().take_while(|b| **b == 0).count();
                n.drain(..zeros);
                if n.len() < 2048 / 8 {
                    return None;
                }
                Material::Rsa { n, e }
            }
            ("EC", Some(crv)) => {
                let (family, size) = match crv {
                    "P-256" => (Family::P256, 32),
                    "P-384" => (Family::P384, 48),
                    _ => return None,
                };
                let (x, y) = (bytes(k.x)?, bytes(k.y)?);
                if x.len() != size || y.len() != size {
                    return None;
                }
                // SEC 1 2.3.3, uncompressed.
                Material::Curve(family, [&[4], &x[..], &y[..]].concat())
            }
            ("OKP", Some("Ed25519")) => Material::Curve(Family::Ed25519, bytes(k.x).filter(|x| x.len() == 32)?),
            // `oct` among them: a shared secret in a public set would be no secret.
            _ => return None,
        };
        // A key that says which algorithm it is for, and cannot do it, is for nothing.
        if algorithm.is_some_and(|a| a.family() != material.family()) {
            return None;
        }
        Some(Self { kid: k.kid, algorithm, material })
    }

    fn verify(&self, algorithm: Algorithm, signed: &[u8], signature: &[u8]) -> bool {
        match &self.material {
            Material::Rsa { n, e } => {
                let parameters = match algorithm {
                    Algorithm::Rs256 => &sig::RSA_PKCS1_2048_8192_SHA256,
                    Algorithm::Rs384 => &sig::RSA_PKCS1_2048_8192_SHA384,
                    Algorithm::Rs512 => &sig::RSA_PKCS1_2048_8192_SHA512,
                    Algorithm::Ps256 => &sig::RSA_PSS_2048_8192_SHA256,
                    Algorithm::Ps384 => &sig::RSA_PSS_2048_8192_SHA384,
                    Algorithm::Ps512 => &sig::RSA_PSS_2048_8192_SHA512,
                    Algorithm::Es256 | Algorithm::Es384 | Algorithm::EdDsa => return false,
                };
                sig::RsaPublicKeyComponents { n, e }.verify(parameters, signed, signature).is_ok()
            }
            Material::Curve(_, key) => {
                let parameters: &'static dyn sig::VerificationAlgorithm = match algorithm {
                    Algorithm::Es256 => &sig::ECDSA_P256_SHA256_FIXED,
                    Algorithm::Es384 => &sig::ECDSA_P384_SHA384_FIXED,
                    Algorithm::EdDsa => &sig::ED25519,
                    _ => return false,
                };
                sig::UnparsedPublicKey::new(parameters, key).verify(signed, signature).is_ok()
            }
        }
    }
}

#[cfg(test)]
mod tests;
