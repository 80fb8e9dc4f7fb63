//! Names of things a user declares: services, queues, topics, subscriptions, sagas, routes, policies.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::limits;

/// A checked name: 1 to [`limits::NAME_BYTES`] of `A-Z a-z 0-9 . _ -`, starting with a letter or digit.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(Arc<str>);

/// Why a string is not a [`Name`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("'{given}' is not a name: use 1 to {max} of letters, digits, '.', '_' and '-', starting with a letter or digit", max = limits::NAME_BYTES)]
pub struct InvalidName {
    /// What was given.
    pub given: String,
}

impl Name {
    /// Checks and makes a name.
    pub fn new(s: &str) -> Result<Self, InvalidName> {
        let ok = !s.is_empty()
            && s.len() <= limits::NAME_BYTES
            && s.as_bytes()[0].is_ascii_alphanumeric()
            && s.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
        if ok { Ok(Self(s.into())) } else { Err(InvalidName { given: s.chars().take(80).collect() }) }
    }

    /// The name as shared text, without a copy.
    pub fn to_shared(&self) -> Arc<str> {
        self.0.clone()
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::ops::Deref for Name {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for Name {
    type Error = InvalidName;
    fn try_from(s: String) -> Result<Self, InvalidName> {
        Self::new(&s)
    }
}

impl TryFrom<&str> for Name {
    type Error = InvalidName;
    fn try_from(s: &str) -> Result<Self, InvalidName> {
        Self::new(s)
    }
}

impl From<Name> for String {
    fn from(n: Name) -> String {
        n.0.as_ref().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_takes_the_documented_characters_only() {
        assert!(Name::new("place-order.v2_x").is_ok());
        for bad in ["", "-a", "a b", "a/b", "é", &"x".repeat(limits::NAME_BYTES + 1)] {
            assert!(Name::new(bad).is_err(), "{bad:?} was taken");
        }
    }
}
