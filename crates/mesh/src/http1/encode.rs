//! Requests as bytes (RFC 9112 3, 7.1).

use std::io::Write as _;

use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, header};

use crate::body::Body;
use crate::outbound::{BAGGAGE, Overlay, TRACEPARENT};

/// Writes a request's head in origin form. `length` is what is known of the body's.
pub(super) fn head(
    out: &mut Vec<u8>,
    head: &Parts,
    overlay: &Overlay<'_>,
    default_host: &HeaderValue,
    body: &Body,
    length: Option<u64>,
) {
    out.extend_from_slice(head.method.as_str().as_bytes());
    out.push(b' ');
    let path = head.uri.path_and_query().map_or("/", |p| p.as_str());
    // A query alone (`http://host?q`) still has the path `/` (RFC 9112 3.2.1).
    if !path.starts_with(['/', '*']) {
        out.push(b'/');
    }
    out.extend_from_slice(path.as_bytes());
    out.extend_from_slice(b" HTTP/1.1\r\n");
    let host = head.headers.get(header::HOST).map(HeaderValue::as_bytes);
    let host = host.or_else(|| head.uri.authority().map(|a| a.as_str().as_bytes()));
    field(out, "host", host.unwrap_or(default_host.as_bytes()));
    for (name, value) in &head.headers {
        // Framing is the connection's; the others stand here once.
        let own = *name == header::HOST
            || *name == header::CONTENT_LENGTH
            || *name == header::TRANSFER_ENCODING
            || (*name == TRACEPARENT && overlay.traceparent.is_some())
            || (*name == BAGGAGE && overlay.baggage.is_some());
        if !own {
            field(out, name.as_str(), value.as_bytes());
        }
    }
    if let Some(traceparent) = &overlay.traceparent {
        field(out, "traceparent", traceparent);
    }
    if let Some(baggage) = overlay.baggage.filter(|b| HeaderValue::from_str(b).is_ok()) {
        field(out, "baggage", baggage.as_bytes());
    }
    match length {
        // RFC 9110 8.6: a method that anticipates content says so even when there is none.
        Some(0) if matches!(body, Body::Empty) && !anticipates_content(&head.method) => {}
        Some(n) => {
            out.extend_from_slice(b"content-length: ");
            write!(out, "{n}\r\n").expect("a vector takes everything");
        }
        None => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
    }
    out.extend_from_slice(b"\r\n");
}

fn anticipates_content(method: &Method) -> bool {
    matches!(*method, Method::POST | Method::PUT | Method::PATCH)
}

fn field(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// The line before a chunk of `n` bytes.
pub(super) fn chunk(out: &mut Vec<u8>, n: usize) {
    write!(out, "{n:x}\r\n").expect("a vector takes everything");
}

/// The last chunk and the trailer section.
pub(super) fn end(out: &mut Vec<u8>, trailers: Option<&HeaderMap>) {
    out.extend_from_slice(b"0\r\n");
    for (name, value) in trailers.into_iter().flatten() {
        if !super::decode::is_framing(name) {
            field(out, name.as_str(), value.as_bytes());
        }
    }
    out.extend_from_slice(b"\r\n");
}
