//! Header fields of one hop and of the whole way (RFC 9110 7.6), and what a proxy adds.

use http::header::{self, Entry, HeaderMap, HeaderName, HeaderValue};
use http::{Uri, Version};
use weft_core::Trace;

use super::forwarded::FORWARDED;
use crate::listener::Peer;

/// Who the client was.
pub const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// What it spoke.
pub const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
/// Whom it asked.
pub const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
/// W3C Trace Context.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// W3C Trace Context.
pub const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
/// W3C Baggage.
pub const BAGGAGE: HeaderName = HeaderName::from_static("baggage");
/// IETF httpapi draft.
pub const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// Marks an answer that was stored and is given again.
pub const IDEMPOTENCY_REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");

/// Tells a service that what it gets is a copy.
pub const MIRRORED: HeaderName = HeaderName::from_static("weft-mirrored");

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

fn of_one_hop(name: &HeaderName) -> bool {
    *name == header::CONNECTION
        || *name == header::TRANSFER_ENCODING
        || *name == header::TE
        || *name == header::UPGRADE
        || *name == header::EXPECT
        || *name == KEEP_ALIVE
        || *name == PROXY_CONNECTION
}

/// Removes fields of one hop: the known ones and those `Connection` names. `Expect` is one because Weft answers it
/// itself; `TE: trailers` is kept, gRPC asks for it.
pub fn strip_hop_by_hop(h: &mut HeaderMap) {
    if !h.keys().any(of_one_hop) {
        return;
    }
    if let Entry::Occupied(connection) = h.entry(header::CONNECTION) {
        let (_, values) = connection.remove_entry_mult();
        let named: Vec<HeaderName> = values
            .filter_map(|v| v.to_str().ok().map(str::to_owned))
            .flat_map(|v| v.split(',').filter_map(|t| HeaderName::try_from(t.trim()).ok()).collect::<Vec<_>>())
            // These mean nothing here, and are what nearly every request says.
            .filter(|n| *n != KEEP_ALIVE && n != "close" && *n != header::TE && *n != header::HOST)
            .collect();
        for n in named {
            h.remove(n);
        }
    }
    for name in [header::TRANSFER_ENCODING, header::UPGRADE, header::EXPECT, KEEP_ALIVE, PROXY_CONNECTION] {
        h.remove(name);
    }
    if let Some(te) = h.remove(header::TE)
        && te.to_str().is_ok_and(|t| t.split(',').any(|t| t.trim().eq_ignore_ascii_case("trailers")))
    {
        h.insert(header::TE, HeaderValue::from_static("trailers"));
    }
}

/// Fields that proxies write. Servers that hand fields to programs as variables (CGI, WSGI) make `x_real_ip` and
/// `x-real-ip` one.
fn of_proxies(name: &HeaderName) -> bool {
    let name = name.as_str().as_bytes();
    let dashed = |b: &u8| if *b == b'_' { b'-' } else { *b };
    let is = |ours: &str| name.len() == ours.len() && name.iter().map(dashed).eq(ours.bytes());
    match name.first() {
        Some(b'x') => {
            const FAMILY: &str = "x-forwarded-";
            let family = name.len() > FAMILY.len() && name.iter().map(dashed).take(FAMILY.len()).eq(FAMILY.bytes());
            family || is("x-real-ip")
        }
        Some(b'w') => is(MIRRORED.as_str()),
        Some(b'f') => name == FORWARDED.as_str().as_bytes(),
        Some(b't') => name == TRACESTATE.as_str().as_bytes(),
        Some(b'b') => name == BAGGAGE.as_str().as_bytes(),
        _ => false,
    }
}

/// Removes what only a proxy that is believed may say.
fn remove_said_by_proxies(h: &mut HeaderMap) {
    if !h.keys().any(of_proxies) {
        return;
    }
    let said: Vec<HeaderName> = h.keys().filter(|n| of_proxies(n)).cloned().collect();
    for name in said {
        h.remove(name);
    }
}

/// Makes a client's fields into those sent on. What an untrusted client says of forwarding is replaced, what a trusted
/// one says is added to.
pub fn to_upstream(h: &mut HeaderMap, peer: &Peer, version: Version, host: Option<&HeaderValue>, forwarded: bool) {
    strip_hop_by_hop(h);
    if !peer.trusted {
        remove_said_by_proxies(h);
    }
    // A chain that lacks a hop would name the wrong client.
    if forwarded || (peer.trusted && h.contains_key(FORWARDED)) {
        super::forwarded::add(h, peer, host);
    }
    match h.entry(X_FORWARDED_FOR) {
        Entry::Vacant(v) => {
            v.insert(peer.forwarded_for.clone());
        }
        Entry::Occupied(mut o) => {
            let mut all = Vec::new();
            for v in o.iter() {
                all.extend_from_slice(v.as_bytes());
                all.extend_from_slice(b", ");
            }
            all.extend_from_slice(peer.forwarded_for.as_bytes());
            o.insert(HeaderValue::from_bytes(&all).expect("field values joined by a comma are a field value"));
        }
    }
    h.entry(X_FORWARDED_PROTO).or_insert(HeaderValue::from_static(if peer.tls { "https" } else { "http" }));
    if let Some(host) = host {
        h.entry(X_FORWARDED_HOST).or_insert_with(|| host.clone());
    }
    add_via(h, version);
}

/// Makes a service's fields into those answered.
pub fn to_downstream(h: &mut HeaderMap, version: Version) {
    strip_hop_by_hop(h);
    h.remove(header::TE);
    add_via(h, version);
}

fn add_via(h: &mut HeaderMap, received: Version) {
    let us = match received {
        Version::HTTP_2 => "2 weft",
        Version::HTTP_10 => "1.0 weft",
        _ => "1.1 weft",
    };
    h.append(header::VIA, HeaderValue::from_static(us));
}

/// Names a span as the parent of the work behind a request.
pub fn set_traceparent(h: &mut HeaderMap, trace: &Trace) {
    let value = HeaderValue::from_bytes(&trace.traceparent()).expect("a traceparent is ASCII");
    h.insert(TRACEPARENT, value);
}

/// The host a request asks for: `:authority` or an absolute target before `Host` (RFC 9112 3.2.2). `Err` says what is
/// wrong: none, two, user information, or not text.
pub fn host<'r>(uri: &'r Uri, h: &'r HeaderMap) -> Result<&'r str, &'static str> {
    let mut fields = h.get_all(header::HOST).iter();
    let field = fields.next();
    if fields.next().is_some() {
        return Err("the request has more than one Host");
    }
    match (uri.authority(), field) {
        // RFC 9110 4.2.4.
        (Some(a), _) if a.as_str().contains('@') => Err("the target has user information before its host"),
        (Some(a), _) => Ok(a.as_str()),
        (None, Some(f)) => f.to_str().map_err(|_| "the Host is not ASCII"),
        (None, None) => Err("the request has no Host"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(fields: &[(&'static str, &str)]) -> HeaderMap {
        let mut h = HeaderMap::new();
        for (k, v) in fields {
            h.append(HeaderName::from_static(k), v.parse().unwrap());
        }
        h
    }

    #[test]
    fn fields_of_one_hop_and_those_connection_names_are_removed() {
        let mut h = map(&[
            ("connection", "keep-alive, X-Private"),
            ("connection", "x-other,host"),
            ("x-private", "1"),
            ("x-other", "1"),
            ("host", "h"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "close"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("expect", "100-continue"),
            ("te", "gzip, trailers"),
            ("accept", "a"),
        ]);
        strip_hop_by_hop(&mut h);
        let mut left: Vec<_> = h.iter().map(|(k, v)| (k.as_str(), v.to_str().unwrap())).collect();
        left.sort_unstable();
        assert_eq!(left, [("accept", "a"), ("host", "h"), ("te", "trailers")]);
    }

    #[test]
    fn an_untrusted_client_cannot_say_who_it_is_and_a_trusted_one_is_added_to() {
        let said = || {
            map(&[
                ("x-forwarded-for", "1.1.1.1"),
                ("x-forwarded-for", "2.2.2.2"),
                ("x-forwarded-proto", "https"),
                ("x-forwarded-host", "outer"),
                ("baggage", "a=b"),
            ])
        };
        let host = HeaderValue::from_static("h");
        let mut h = said();
        to_upstream(&mut h, &Peer::new("9.9.9.9:1".parse().unwrap(), false), Version::HTTP_11, Some(&host), false);
        assert_eq!(
            (&h[X_FORWARDED_FOR], &h[X_FORWARDED_PROTO]),
            (&HeaderValue::from_static("9.9.9.9"), &HeaderValue::from_static("http"))
        );
        assert_eq!((&h[X_FORWARDED_HOST], h.get(BAGGAGE)), (&host, None));
        let mut h = said();
        to_upstream(&mut h, &Peer::new("127.0.0.1:1".parse().unwrap(), false), Version::HTTP_2, Some(&host), false);
        assert_eq!(h.get_all(X_FORWARDED_FOR).iter().collect::<Vec<_>>(), ["1.1.1.1, 2.2.2.2, 127.0.0.1"]);
        assert_eq!(
            (&h[X_FORWARDED_HOST], &h[header::VIA]),
            (&HeaderValue::from_static("outer"), &HeaderValue::from_static("2 weft"))
        );
    }

    #[test]
    fn no_field_of_proxies_comes_from_an_untrusted_client_however_it_is_spelled() {
        let said = [
            ("x-forwarded-prefix", "/admin"),
            ("x-forwarded-port", "443"),
            ("x_forwarded_for", "10.0.0.1"),
            ("x-forwarded_server", "a"),
            ("x-forwarded-ssl", "on"),
            ("x-real-ip", "10.0.0.1"),
            ("x_real_ip", "10.0.0.1"),
            ("weft-mirrored", "true"),
            ("weft_mirrored", "true"),
            ("forwarded", "for=10.0.0.1"),
            ("tracestate", "a=b"),
            ("baggage", "a=b"),
            ("x-forwarder", "kept"),
            ("x-real", "kept"),
        ];
        let left = |from: &str| {
            let mut h = map(&said);
            to_upstream(&mut h, &Peer::new(from.parse().unwrap(), false), Version::HTTP_11, None, false);
            let mut left: Vec<_> = h.keys().map(|k| k.as_str().to_owned()).collect();
            left.sort_unstable();
            left
        };
        assert_eq!(left("9.9.9.9:1"), ["via", "x-forwarded-for", "x-forwarded-proto", "x-forwarder", "x-real"]);
        assert_eq!(left("127.0.0.1:1").len(), said.len() + 3, "what a believed proxy says goes on");
    }

    #[test]
    fn a_request_has_exactly_one_host() {
        let uri: Uri = "/".parse().unwrap();
        assert_eq!(host(&uri, &map(&[("host", "a")])), Ok("a"));
        assert!(host(&uri, &map(&[])).is_err());
        assert!(host(&uri, &map(&[("host", "a"), ("host", "a")])).is_err());
        assert_eq!(host(&"http://b/".parse().unwrap(), &map(&[("host", "a")])), Ok("b"));
    }
}
