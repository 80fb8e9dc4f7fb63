//! Which version of an API a caller means, and whether it is still served.

use serde::{Deserialize, Serialize};
use weft_core::Timestamp;

/// One version that is known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// `1`, `2.1`, `2024-05-01`.
    pub name: String,
    /// From when on it is deprecated (RFC 9745).
    pub deprecated: Option<Timestamp>,
    /// From when on it is gone (RFC 8594).
    pub sunset: Option<Timestamp>,
}

/// Why no version is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The caller named none, and there is no default.
    Missing,
    /// The caller named one that is not known.
    Unknown,
    /// This one, by its index, is past its sunset.
    Gone(usize),
}

/// Chooses by what the caller said, or the default; an index into `known`.
pub fn select(
    known: &[Version],
    default: Option<usize>,
    asked: Option<&str>,
    now: impl FnOnce() -> Timestamp,
) -> Result<usize, Refusal> {
    let chosen = match asked {
        Some(asked) => known.iter().position(|v| same(&v.name, asked)).ok_or(Refusal::Unknown)?,
        None => default.ok_or(Refusal::Missing)?,
    };
    match known[chosen].sunset {
        Some(sunset) if sunset <= now() => Err(Refusal::Gone(chosen)),
        _ => Ok(chosen),
    }
}

/// `v2` and `2` name the same version.
pub fn same(a: &str, b: &str) -> bool {
    fn bare(s: &str) -> &str {
        match s.strip_prefix(['v', 'V']) {
            Some(rest) if rest.starts_with(|c: char| c.is_ascii_digit()) => rest,
            _ => s,
        }
    }
    bare(a).eq_ignore_ascii_case(bare(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_caller_says_is_chosen_or_the_default_until_its_sunset() {
        let version = |name: &str, sunset| Version { name: name.into(), deprecated: None, sunset };
        let known = [version("1", Some(Timestamp(100))), version("v2", None), version("beta", None)];
        let at = |asked, default, now| select(&known, default, asked, || Timestamp(now));
        assert_eq!(at(Some("1"), None, 99), Ok(0));
        assert_eq!(at(Some("1"), None, 100), Err(Refusal::Gone(0)));
        assert_eq!(at(None, Some(0), 100), Err(Refusal::Gone(0)), "a default can be gone too");
        assert_eq!(at(None, Some(1), 100), Ok(1));
        assert_eq!(at(None, None, 0), Err(Refusal::Missing));
        assert_eq!(at(Some("3"), Some(1), 0), Err(Refusal::Unknown), "the default is for who says nothing");
        for (asked, want) in
            [("v1", Ok(0)), ("V2", Ok(1)), ("2", Ok(1)), ("BETA", Ok(2)), ("vbeta", Err(Refusal::Unknown))]
        {
            assert_eq!(at(Some(asked), None, 0), want, "{asked}");
        }
    }
}
