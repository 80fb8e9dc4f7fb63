//! Which of several services a request goes to, and under which host it is asked for.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use http::uri::PathAndQuery;
use sha2::{Digest as _, Sha256};

use crate::spec::{Share, Sticky};

/// The share that was chosen, by its place; in a request's extensions, where it is not the first.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chosen(pub(crate) u16);

/// The shares of a route, compiled.
#[derive(Debug)]
pub(crate) struct Split {
    /// Where each share ends, as a part of 1.
    ends: Vec<f64>,
    by: Option<By>,
}

#[derive(Debug)]
enum By {
    Header(HeaderName),
    Cookie(String),
}

impl Split {
    pub(crate) fn new(shares: &[Share], sticky: Option<&Sticky>) -> Self {
        let all: f64 = shares.iter().map(|s| f64::from(s.weight)).sum();
        let mut sum = 0.0;
        let ends = shares.iter().map(|s| {
            sum += f64::from(s.weight);
            sum / all
        });
        let by = match sticky {
            Some(Sticky::Header(n)) => HeaderName::from_bytes(n.as_bytes()).ok().map(By::Header),
            Some(Sticky::Cookie(n)) => Some(By::Cookie(n.clone())),
            None => None,
        };
        Self { ends: ends.collect(), by }
    }

    /// By the caller's value where there is one, else by chance. When a share grows, callers move to it, and between no
    /// other two.
    pub(crate) fn choose(&self, h: &HeaderMap) -> u16 {
        let value = self.by.as_ref().and_then(|by| by.value(h));
        let at = match value {
            Some(v) => {
                let hash = Sha256::digest(v);
                let first = u64::from_be_bytes(hash[..8].try_into().expect("a SHA-256 has 32 bytes"));
                // 53 bits are what a float holds exactly.
                (first >> 11) as f64 / (1u64 << 53) as f64
            }
            None => rand::random::<f64>(),
        };
        self.ends.iter().position(|end| at < *end).unwrap_or(self.ends.len() - 1) as u16
    }
}

impl By {
    fn value<'h>(&self, h: &'h HeaderMap) -> Option<&'h [u8]> {
        match self {
            By::Header(n) => h.get(n).map(HeaderValue::as_bytes).filter(|v| !v.is_empty()),
            By::Cookie(name) => h.get_all(header::COOKIE).iter().find_map(|v| {
                v.as_bytes().split(|b| *b == b';').find_map(|pair| {
                    let value = pair.trim_ascii().strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
                    (!value.is_empty()).then_some(value)
                })
            }),
        }
    }
}

/// Asks for another host; `None` = the instance's address.
pub(super) fn ask_for_host(head: &mut Parts, host: Option<&HeaderValue>) {
    let path = head.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    head.uri = path.into();
    match host {
        Some(h) => drop(head.headers.insert(header::HOST, h.clone())),
        None => drop(head.headers.remove(header::HOST)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_core::Name;

    fn shares(weights: &[u32]) -> Vec<Share> {
        let one =
            |(i, w): (usize, &u32)| Share { service: Name::new(&format!("s{i}")).unwrap(), path: None, weight: *w };
        weights.iter().enumerate().map(one).collect()
    }

    #[test]
    fn a_split_without_a_value_follows_the_weights() {
        let s = Split::new(&shares(&[90, 10, 0]), None);
        let mut got = [0u32; 3];
        for _ in 0..10_000 {
            got[s.choose(&HeaderMap::new()) as usize] += 1;
        }
        assert!((700..1300).contains(&got[1]) && got[2] == 0, "{got:?}");
    }

    #[test]
    fn a_caller_stays_and_moves_only_to_a_share_that_grew() {
        let by = Some(Sticky::Cookie("user".into()));
        let (small, large) = (Split::new(&shares(&[90, 10]), by.as_ref()), Split::new(&shares(&[70, 30]), by.as_ref()));
        let mut moved = 0;
        for i in 0..1_000 {
            let h = HeaderMap::from_iter([(header::COOKIE, format!("a=b; user=u{i}; c=d").parse().unwrap())]);
            let (before, after) = (small.choose(&h), large.choose(&h));
            assert_eq!(before, small.choose(&h));
            assert!(before == 0 || after == 1, "user {i} moved away from the share that grew");
            moved += u32::from(before != after);
        }
        assert!((120..280).contains(&moved), "{moved}");
    }
}
