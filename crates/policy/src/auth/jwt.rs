//! Claims of a token (RFC 7519, RFC 9068), checked in an order that tells a stranger nothing: what is wrong with the
//! time or the audience is only said of a token whose signature is right.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use weft_core::Timestamp;

use super::jose::{Algorithm, Jws, Keys};
use super::{Denied, Identity};

/// What a provider asks of a token.
#[derive(Clone, Debug, PartialEq)]
pub struct Rules {
    /// `iss` must be this; `None` = any.
    pub issuer: Option<String>,
    /// One of `aud` must be one of these; empty = any.
    pub audiences: Vec<String>,
    /// Algorithms that are accepted.
    pub algorithms: Vec<Algorithm>,
    /// How far clocks may differ.
    pub leeway: Duration,
    /// Claims that must be there.
    pub required: Vec<String>,
    /// The claim that names the caller.
    pub principal: String,
    /// The claim that lists scopes: words in a text, or a list.
    pub scopes: String,
    /// Whether a token without `exp` is taken.
    pub endless: bool,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            issuer: None,
            audiences: Vec::new(),
            algorithms: Algorithm::ALL.to_vec(),
            leeway: Duration::from_secs(30),
            required: Vec::new(),
            principal: "sub".into(),
            scopes: "scope".into(),
            endless: false,
        }
    }
}

/// Checks a token. Answers who it is of, and until when, leeway included.
pub fn verify(
    rules: &Rules,
    provider: &Arc<str>,
    keys: &Keys,
    token: &str,
    now: Timestamp,
) -> Result<(Identity, Timestamp), Denied> {
    let jws = Jws::parse(token)?;
    if !rules.algorithms.contains(&jws.algorithm) {
        return Err(Denied::Algorithm);
    }
    let claims: Value =
        serde_json::from_slice(&jws.payload).map_err(|_| Denied::Malformed("its claims are not JSON"))?;
    if !claims.is_object() {
        return Err(Denied::Malformed("its claims are not a JSON object"));
    }
    // Before the signature, because it says nothing that the caller does not know, and another issuer's keys are not ours.
    if let Some(issuer) = &rules.issuer
        && claims["iss"].as_str() != Some(issuer)
    {
        return Err(Denied::Issuer);
    }
    jws.verify(keys)?;

    if !rules.audiences.is_empty() && !audiences(&claims["aud"]).any(|a| rules.audiences.iter().any(|r| r == a)) {
        return Err(Denied::Audience);
    }
    let leeway = rules.leeway;
    let expires = match instant(&claims, "exp")? {
        // RFC 7519 4.1.4: on or after it is too late.
        Some(exp) if exp.plus(leeway) <= now => return Err(Denied::Expired),
        Some(exp) => exp.plus(leeway),
        None if rules.endless => Timestamp(u64::MAX),
        None => return Err(Denied::Claim("exp".into())),
    };
    if instant(&claims, "nbf")?.is_some_and(|nbf| nbf > now.plus(leeway)) {
        return Err(Denied::NotYet);
    }
    if let Some(missing) = rules.required.iter().find(|c| claims.get(c).is_none_or(Value::is_null)) {
        return Err(Denied::Claim(missing.clone()));
    }
    let subject = match &claims[&rules.principal] {
        Value::String(s) if !s.is_empty() => s.clone(),
        Value::Number(n) => n.to_string(),
        _ => return Err(Denied::Claim(rules.principal.clone())),
    };
    let scopes = words(&claims[&rules.scopes]);
    Ok((Identity::new(provider, &subject, scopes, claims), expires))
}

/// RFC 7519 4.1.3: one, or a list.
fn audiences(aud: &Value) -> impl Iterator<Item = &str> {
    let list = aud.as_array().map(Vec::as_slice).unwrap_or_default();
    aud.as_str().into_iter().chain(list.iter().filter_map(Value::as_str))
}

/// A NumericDate (RFC 7519 2): seconds, which may have a fraction.
fn instant(claims: &Value, name: &str) -> Result<Option<Timestamp>, Denied> {
    match &claims[name] {
        Value::Null => Ok(None),
        v => match v.as_f64().filter(|s| s.is_finite() && *s >= 0.0) {
            Some(s) => Ok(Some(Timestamp((s * 1000.0) as u64))),
            None => Err(Denied::Claim(name.to_owned())),
        },
    }
}

/// Scopes as RFC 8693 4.2 writes them, words in one text, or as a list (Entra's `roles`, Okta's `scp`).
fn words(v: &Value) -> Vec<Arc<str>> {
    match v {
        Value::String(s) => s.split_whitespace().map(Arc::from).collect(),
        Value::Array(a) => a.iter().filter_map(Value::as_str).map(Arc::from).collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests;
