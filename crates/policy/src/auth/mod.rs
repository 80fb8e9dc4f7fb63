//! Who is calling: pure checks of tokens, API keys and passwords.
//!
//! What it is not: it knows no header and fetches nothing; the edge hands it a credential, the keys that it holds and
//! the time.
//!
//! Invariants: a signature is checked with an algorithm that both the provider and the key allow, never with one that
//! the token alone names; nothing that a token carries chooses a key but its `kid`; what could not be checked is refused.

mod cache;
pub mod jose;
pub mod jwt;
pub mod key;
pub mod password;

use std::sync::Arc;

pub use cache::{Cache, Hashed};

/// Who an authenticator found.
#[derive(Clone, Debug, PartialEq)]
pub struct Identity {
    /// The provider that vouches for it.
    pub provider: Arc<str>,
    /// Its name there: `sub`, a key's owner, a user.
    pub subject: Arc<str>,
    /// `provider/subject`: two providers that know the same name mean two callers.
    pub principal: Arc<str>,
    /// What it may do, as the credential says.
    pub scopes: Vec<Arc<str>>,
    /// Claims of a token; of a key its `id` and `owner`; of a user its `sub`.
    pub claims: Arc<serde_json::Value>,
}

impl Identity {
    /// An identity; its principal is made from provider and subject.
    pub fn new(provider: &Arc<str>, subject: &str, scopes: Vec<Arc<str>>, claims: serde_json::Value) -> Self {
        Self {
            provider: provider.clone(),
            subject: subject.into(),
            principal: format!("{provider}/{subject}").into(),
            scopes,
            claims: Arc::new(claims),
        }
    }

    /// Whether it has a scope.
    pub fn has(&self, scope: &str) -> bool {
        self.scopes.iter().any(|s| **s == *scope)
    }
}

/// Why a credential is no good. The texts are for the caller: they say nothing that the credential does not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// Not three base64url parts with a JSON header and JSON claims, or over the limit.
    #[error("the token is not a signed JWT: {0}")]
    Malformed(&'static str),
    /// The header names an algorithm that is not allowed; `none` and HMAC never are.
    #[error("the token's algorithm is not accepted here")]
    Algorithm,
    /// The header asks for an extension (RFC 7515 4.1.11).
    #[error("the token's header has a 'crit' that is not understood")]
    Critical,
    /// Nobody we know has signed it: the keys may have changed.
    #[error("the token is signed with an unknown key")]
    UnknownKey,
    /// The signature is not the key's.
    #[error("the token's signature is wrong")]
    Signature,
    /// Another issuer.
    #[error("the token is of another issuer")]
    Issuer,
    /// For somebody else.
    #[error("the token is for another audience")]
    Audience,
    /// Its time is over.
    #[error("the token has expired")]
    Expired,
    /// Its time has not come.
    #[error("the token is not valid yet")]
    NotYet,
    /// A claim is missing or not of its kind.
    #[error("the token lacks a usable claim '{0}'")]
    Claim(String),
    /// No such API key, or its secret is wrong.
    #[error("the API key is not known")]
    Key,
    /// The key's, or its secret's, time is over.
    #[error("the API key has expired")]
    KeyExpired,
    /// Switched off by its administrator.
    #[error("the API key is disabled")]
    KeyDisabled,
    /// No such user, or another password.
    #[error("user or password is wrong")]
    Password,
}

impl Denied {
    /// A word for metrics.
    pub fn word(&self) -> &'static str {
        match self {
            Denied::Expired | Denied::KeyExpired => "expired",
            Denied::UnknownKey => "unknown-key",
            _ => "invalid",
        }
    }
}
