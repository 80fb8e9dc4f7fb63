//! Credentials in queries: by the names of their parameters, however those are spelled.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

/// The names of query parameters that are credentials. Most gateways have none.
#[derive(Clone, Debug, Default)]
pub(crate) struct Secrets(Box<[Box<str>]>);

/// Stands where a credential stood.
const REDACTED: &str = "REDACTED";

impl Secrets {
    pub(crate) fn new<'n>(names: impl Iterator<Item = &'n str>) -> Self {
        Self(names.map(Into::into).collect())
    }

    fn has(&self, pair: &str) -> bool {
        let name = pair.split_once('=').map_or(pair, |(n, _)| n);
        let name = percent_decode_str(name).decode_utf8_lossy();
        self.0.iter().any(|s| **s == *name)
    }

    fn none_in(&self, query: &str) -> bool {
        self.0.is_empty() || !query.split('&').any(|p| self.has(p))
    }

    /// A query without them; `None` when nothing is left.
    pub(crate) fn without<'q>(&self, query: &'q str) -> Option<Cow<'q, str>> {
        if self.none_in(query) {
            return Some(Cow::Borrowed(query));
        }
        let rest: Vec<_> = query.split('&').filter(|p| !self.has(p)).collect();
        (!rest.is_empty()).then(|| Cow::Owned(rest.join("&")))
    }

    /// A query in which their values cannot be read.
    pub(crate) fn redacted<'q>(&self, query: &'q str) -> Cow<'q, str> {
        if self.none_in(query) {
            return Cow::Borrowed(query);
        }
        let pair = |p: &'q str| match p.split_once('=') {
            Some((name, _)) if self.has(p) => Cow::Owned(format!("{name}={REDACTED}")),
            _ => Cow::Borrowed(p),
        };
        Cow::Owned(query.split('&').map(pair).collect::<Vec<_>>().join("&"))
    }

    /// The same of a whole URL, which may have a fragment.
    pub(crate) fn redacted_url<'u>(&self, url: &'u str) -> Cow<'u, str> {
        match url.split_once('?') {
            Some((before, query)) if !self.0.is_empty() => {
                let (query, fragment) = query.split_at(query.find('#').unwrap_or(query.len()));
                Cow::Owned(format!("{before}?{}{fragment}", self.redacted(query)))
            }
            _ => Cow::Borrowed(url),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_taken_out_and_redacted_however_their_names_are_spelled() {
        let s = Secrets::new(["key"].into_iter());
        assert_eq!(s.without("a=1&k%65y=s&key=t&b").as_deref(), Some("a=1&b"));
        assert_eq!(s.without("key=s"), None);
        assert!(matches!(s.without("keys=s"), Some(Cow::Borrowed("keys=s"))));
        assert_eq!(s.redacted("a=1&k%65y=s&key=t&key"), "a=1&k%65y=REDACTED&key=REDACTED&key");
        assert_eq!(s.redacted_url("https://h/a?key=s&b=1#x?key=t"), "https://h/a?key=REDACTED&b=1#x?key=t");
        assert_eq!(Secrets::default().redacted("key=s"), "key=s");
    }
}
