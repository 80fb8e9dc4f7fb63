//! Asking for another protocol on the same connection: `Upgrade` over HTTP/1.1 (RFC 9110 7.8) and extended CONNECT over
//! HTTP/2 (RFC 8441). Both become an `Upgrade` towards the service.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use hyper::ext::Protocol;
use hyper::upgrade::OnUpgrade;

use crate::api::problem::{Problem, code};

const SEC_WEBSOCKET_KEY: HeaderName = HeaderName::from_static("sec-websocket-key");
const SEC_WEBSOCKET_ACCEPT: HeaderName = HeaderName::from_static("sec-websocket-accept");

/// A wish to go on with another protocol.
#[derive(Debug)]
pub(super) struct Upgrade {
    /// Which, as the client wrote it.
    to: HeaderValue,
    /// The client's side, once it was told yes.
    pub(super) client: OnUpgrade,
    /// Whether it came as extended CONNECT.
    h2: bool,
}

/// Makes an extended CONNECT into the request that HTTP/1.1 would have made of it (RFC 8441 5). Any other CONNECT is
/// refused.
pub(super) fn from_connect(head: &mut Parts) -> Result<(), Problem> {
    let Some(protocol) = head.extensions.get::<Protocol>() else {
        return Err(Problem::new(code::NOT_IMPLEMENTED, "CONNECT is not supported"));
    };
    let to = HeaderValue::from_str(protocol.as_str())
        .map_err(|_| Problem::new(code::BAD_REQUEST, "the :protocol is no token"))?;
    if to == "websocket" {
        // The service answers it with a hash that only says that it speaks the protocol: its 101 does.
        let key = BASE64_STANDARD.encode(rand::random::<[u8; 16]>());
        head.headers.insert(SEC_WEBSOCKET_KEY, HeaderValue::try_from(key).expect("base64 is ASCII"));
    }
    head.method = Method::GET;
    head.headers.insert(header::UPGRADE, to);
    head.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    Ok(())
}

/// What a request with an `Upgrade` field asks for, of what the route allows. `None`: it is to be answered as it is.
pub(super) fn asked(head: &mut Parts, allowed: &[String]) -> Result<Option<Upgrade>, Problem> {
    // Without `Connection: upgrade` the field is not meant for us (RFC 9110 7.8).
    if !lists(&head.headers, &header::CONNECTION, "upgrade") {
        return Ok(None);
    }
    let mut tokens = tokens(&head.headers, &header::UPGRADE);
    let to = tokens.clone().find(|t| allowed.iter().any(|a| a.eq_ignore_ascii_case(t)));
    let Some(to) = to else {
        // An offer of HTTP/2 may be left alone; who asks for something else cannot go on without it.
        return match tokens.find(|t| !t.eq_ignore_ascii_case("h2c")) {
            None => Ok(None),
            Some(t) => {
                let detail = format!("upgrading a connection to '{t}' is not allowed on this route");
                Err(Problem::new(code::NOT_IMPLEMENTED, detail))
            }
        };
    };
    let to = HeaderValue::from_str(to).expect("a part of a field value is one");
    let h2 = head.extensions.get::<Protocol>().is_some();
    let client = head.extensions.remove::<OnUpgrade>();
    let client = client.ok_or_else(|| Problem::new(code::BAD_REQUEST, "this connection cannot be upgraded"))?;
    Ok(Some(Upgrade { to, client, h2 }))
}

impl Upgrade {
    /// Asks the service for it; fields of one hop were removed.
    pub(super) fn ask(&self, h: &mut HeaderMap) {
        h.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        h.insert(header::UPGRADE, self.to.clone());
    }

    /// The head of the answer when the service said yes: 101, over HTTP/2 200. Fields of one hop were removed.
    pub(super) fn agree(&self, h: &mut HeaderMap) -> StatusCode {
        if self.h2 {
            h.remove(SEC_WEBSOCKET_ACCEPT);
            h.remove(header::CONTENT_LENGTH);
            return StatusCode::OK;
        }
        self.ask(h);
        StatusCode::SWITCHING_PROTOCOLS
    }
}

fn tokens<'h>(h: &'h HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'h str> + Clone {
    let values: Vec<&str> = h.get_all(name).iter().filter_map(|v| v.to_str().ok()).collect();
    values.into_iter().flat_map(|v| v.split(',').map(str::trim)).filter(|t| !t.is_empty())
}

fn lists(h: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    tokens(h, name).any(|t| t.eq_ignore_ascii_case(token))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    fn ask(fields: &[(&str, &str)], allowed: &[&str]) -> Result<bool, &'static str> {
        let mut r = Request::builder();
        for (k, v) in fields {
            r = r.header(*k, *v);
        }
        let mut r = r.body(()).unwrap();
        // Takes what is there, or a placeholder that never resolves.
        let client = hyper::upgrade::on(&mut r);
        r.extensions_mut().insert(client);
        let mut head = r.into_parts().0;
        let allowed: Vec<String> = allowed.iter().map(|a| a.to_string()).collect();
        asked(&mut head, &allowed).map(|u| u.is_some()).map_err(|p| p.code().name)
    }

    #[test]
    fn only_what_the_route_allows_and_the_connection_names_is_an_upgrade() {
        let named = ("connection", "keep-alive, Upgrade");
        assert_eq!(ask(&[named, ("upgrade", "WebSocket")], &["websocket"]), Ok(true));
        assert_eq!(ask(&[named, ("upgrade", "h2c, websocket")], &["websocket"]), Ok(true));
        assert_eq!(ask(&[("upgrade", "websocket")], &["websocket"]), Ok(false));
        assert_eq!(ask(&[named, ("upgrade", "h2c")], &["websocket"]), Ok(false));
        assert_eq!(ask(&[named, ("upgrade", "websocket")], &[]), Err("not-implemented"));
        assert_eq!(ask(&[named, ("upgrade", "mqtt")], &["websocket"]), Err("not-implemented"));
        assert_eq!(ask(&[named, ("upgrade", "mqtt")], &["websocket", "mqtt"]), Ok(true));
    }
}
