//! Providers as configuration describes them.

use std::path::PathBuf;

use weft_core::Name;
use weft_policy::auth::jose::Keys;
use weft_policy::auth::jwt::Rules;

/// One way to know who calls.
#[derive(Clone, Debug, PartialEq)]
pub struct ProviderSpec {
    /// As routes refer to it.
    pub name: Name,
    /// What it checks.
    pub kind: ProviderKind,
}

/// What a provider checks.
#[derive(Clone, Debug, PartialEq)]
pub enum ProviderKind {
    /// A JSON Web Token.
    Jwt {
        /// What is asked of it.
        rules: Rules,
        /// Where the keys are.
        keys: KeysFrom,
        /// Certificate authorities (PEM) for fetching; `None` = the system's.
        ca: Option<PathBuf>,
        /// The header field it comes in, in lower case.
        header: String,
    },
    /// One of Weft's API keys.
    ApiKey {
        /// The header field or query parameter it comes in.
        place: Place,
    },
    /// User and password (RFC 7617).
    Basic {
        /// User and Argon2 hash.
        users: Vec<(String, String)>,
        /// What a browser shows.
        realm: String,
    },
}

/// Where an issuer's public keys come from.
#[derive(Clone, Debug, PartialEq)]
pub enum KeysFrom {
    /// They are written in the configuration.
    Fixed(Keys),
    /// A key set at a URL.
    Url(String),
    /// The document that an OpenID issuer publishes about itself (OpenID Connect Discovery 4).
    Discovery(String),
}

/// Where an API key comes in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A header field, in lower case; of `authorization`, the `Bearer` credential.
    Header(String),
    /// A query parameter.
    Query(String),
}
