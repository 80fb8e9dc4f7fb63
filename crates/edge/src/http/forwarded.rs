//! Who the client is when proxies stand before the gateway: `X-Forwarded-For` and `Forwarded` (RFC 7239) of peers that are
//! believed. What others say of that is thrown away.

use std::net::IpAddr;
use std::sync::Arc;

use http::header::{HeaderMap, HeaderName, HeaderValue};
use ipnet::IpNet;

use super::headers::{X_FORWARDED_FOR, X_FORWARDED_PROTO};
use crate::listener::Peer;

/// RFC 7239.
pub const FORWARDED: HeaderName = HeaderName::from_static("forwarded");

/// Which peers are believed.
#[derive(Debug, Default)]
pub struct Proxies {
    /// `None` = loopback, as a listener has found out already.
    listed: Option<Vec<IpNet>>,
}

impl Proxies {
    /// Those of a configuration.
    pub fn new(listed: Option<Vec<IpNet>>) -> Self {
        Self { listed }
    }

    fn trusts(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        match &self.listed {
            None => ip.is_loopback(),
            Some(nets) => nets.iter().any(|n| n.contains(&ip)),
        }
    }

    /// The peer, trusted or not as the list says.
    pub fn seen(&self, peer: Arc<Peer>) -> Arc<Peer> {
        if self.listed.is_none() {
            return peer;
        }
        let trusted = self.trusts(peer.address.ip());
        if trusted == peer.trusted { peer } else { Arc::new(peer.as_trusted(trusted)) }
    }

    /// The client: the last address that no believed proxy stands at. Fields are read from the end, since only their end
    /// was written by somebody who is believed.
    pub fn client(&self, peer: &Peer, h: &HeaderMap) -> IpAddr {
        let own = peer.address.ip().to_canonical();
        if !peer.trusted {
            return own;
        }
        let mut client = own;
        let mut step = |said: Option<IpAddr>| match said {
            Some(ip) => {
                client = ip;
                self.trusts(ip)
            }
            None => false,
        };
        if h.contains_key(X_FORWARDED_FOR) {
            let values: Vec<_> = h.get_all(X_FORWARDED_FOR).iter().collect();
            let all = values.iter().rev().flat_map(|v| v.to_str().unwrap_or("?").rsplit(','));
            for item in all {
                if !step(address(item)) {
                    break;
                }
            }
        } else {
            let values: Vec<_> = h.get_all(FORWARDED).iter().collect();
            let all = values.iter().rev().flat_map(|v| v.to_str().unwrap_or("?").rsplit(','));
            for element in all {
                let node = element.split(';').find_map(|pair| {
                    let (k, v) = pair.trim().split_once('=')?;
                    k.eq_ignore_ascii_case("for").then_some(v)
                });
                if !step(node.and_then(address)) {
                    break;
                }
            }
        }
        client
    }

    /// The client as decisions about access see it: another's word is taken only where the configuration says whose. What
    /// comes from loopback may be relayed from anywhere.
    pub fn vouched(&self, peer: &Peer, h: &HeaderMap) -> IpAddr {
        match self.listed {
            Some(_) => self.client(peer, h),
            None => peer.address.ip().to_canonical(),
        }
    }

    /// Whether the client came over TLS, by a believed proxy's word where there is one.
    pub fn is_https(&self, peer: &Peer, h: &HeaderMap) -> bool {
        let said = h.get(X_FORWARDED_PROTO).filter(|_| peer.trusted).and_then(|v| v.to_str().ok());
        said.map_or(peer.tls, |s| s.split(',').next().is_some_and(|s| s.trim().eq_ignore_ascii_case("https")))
    }
}

/// `192.0.2.1`, `192.0.2.1:80`, `"[2001:db8::1]:80"`; obfuscated nodes and `unknown` are nobody.
fn address(node: &str) -> Option<IpAddr> {
    let n = node.trim().trim_matches('"');
    if let Some(v6) = n.strip_prefix('[') {
        return v6.split_once(']')?.0.parse().ok();
    }
    n.parse().or_else(|_| n.split_once(':').map_or(n, |(ip, _)| ip).parse()).ok().map(|ip: IpAddr| ip.to_canonical())
}

/// Adds this hop's element to `Forwarded` (RFC 7239 4).
pub fn add(h: &mut HeaderMap, peer: &Peer, host: Option<&HeaderValue>) {
    let mut element = match peer.address.ip().to_canonical() {
        IpAddr::V4(ip) => format!("for={ip}"),
        IpAddr::V6(ip) => format!("for=\"[{ip}]\""),
    };
    let quotable = |h: &str| !h.contains(['"', '\\']);
    if let Some(host) = host.and_then(|h| h.to_str().ok()).filter(|h| quotable(h)) {
        element.push_str(&format!(";host=\"{host}\""));
    }
    element.push_str(if peer.tls { ";proto=https" } else { ";proto=http" });
    if let Ok(v) = HeaderValue::try_from(element) {
        h.append(FORWARDED, v);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(from: &str, fields: &[(&'static str, &str)]) -> String {
        let proxies = Proxies::new(Some(vec!["10.0.0.0/8".parse().unwrap(), "2001:db8::/32".parse().unwrap()]));
        let peer = proxies.seen(Arc::new(Peer::new(from.parse().unwrap(), false)));
        let mut h = HeaderMap::new();
        for (k, v) in fields {
            h.append(*k, v.parse().unwrap());
        }
        proxies.client(&peer, &h).to_string()
    }

    #[test]
    fn the_client_is_the_last_address_that_no_believed_proxy_stands_at() {
        for (from, fields, want) in [
            ("10.0.0.1:9", &[("x-forwarded-for", "1.1.1.1, 2.2.2.2, 10.1.1.1")][..], "2.2.2.2"),
            ("10.0.0.1:9", &[("x-forwarded-for", "1.1.1.1"), ("x-forwarded-for", "10.1.1.1")], "1.1.1.1"),
            ("10.0.0.1:9", &[("x-forwarded-for", "10.9.9.9, 10.1.1.1")], "10.9.9.9"),
            ("10.0.0.1:9", &[("x-forwarded-for", "1.1.1.1, unknown, 10.1.1.1")], "10.1.1.1"),
            ("9.9.9.9:9", &[("x-forwarded-for", "1.1.1.1")], "9.9.9.9"),
            ("127.0.0.1:9", &[("x-forwarded-for", "1.1.1.1")], "127.0.0.1"),
            ("10.0.0.1:9", &[], "10.0.0.1"),
            ("10.0.0.1:9", &[("forwarded", "for=1.1.1.1;proto=https, For=\"[2001:db8::7]:80\"")], "1.1.1.1"),
            ("10.0.0.1:9", &[("forwarded", "for=_hidden")], "10.0.0.1"),
            ("10.0.0.1:9", &[("forwarded", "for=1.1.1.1"), ("x-forwarded-for", "2.2.2.2")], "2.2.2.2"),
            ("[::ffff:10.0.0.1]:9", &[("x-forwarded-for", "3.3.3.3:123")], "3.3.3.3"),
        ] {
            assert_eq!(client(from, fields), want, "{from} {fields:?}");
        }
    }

    #[test]
    fn a_hop_adds_an_element_with_ipv6_in_brackets_and_quotes() {
        let mut h = HeaderMap::new();
        add(&mut h, &Peer::new("[2001:db8::1]:4".parse().unwrap(), true), Some(&HeaderValue::from_static("a:80")));
        assert_eq!(h[FORWARDED], "for=\"[2001:db8::1]\";host=\"a:80\";proto=https");
    }
}
