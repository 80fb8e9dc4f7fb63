//! gRPC-Web to gRPC and back: what a browser can send and read, in binary and in base64.
//!
//! The two differ in the content type, in base64 for the text form, and in the trailers, which a browser cannot read:
//! they come as a last frame of the body. Messages pass as they are. Source: PROTOCOL-WEB.md of the gRPC project.

use std::pin::Pin;
use std::task::{Context, Poll};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::{BufMut as _, Bytes, BytesMut};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Response, header};
use http_body::{Body as HttpBody, Frame};
use weft_mesh::BoxError;

use super::body::Body;

/// How messages are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Binary,
    /// In base64.
    Text,
}

const PLAIN: &[u8] = b"application/grpc-web";
const TEXT: &[u8] = b"application/grpc-web-text";

/// Whether a request is a gRPC-Web call, and in what form.
pub(super) fn form(h: &HeaderMap) -> Option<Form> {
    let v = h.get(header::CONTENT_TYPE)?.as_bytes();
    let is = |name: &[u8]| v.starts_with(name) && matches!(v.get(name.len()), None | Some(b'+' | b';'));
    match (is(TEXT), is(PLAIN)) {
        (true, _) => Some(Form::Text),
        (_, true) => Some(Form::Binary),
        _ => None,
    }
}

/// Makes the request one of gRPC; answers in which form the answer is wanted.
pub(super) fn to_grpc(head: &mut Parts, body: weft_mesh::Body, form: Form) -> (weft_mesh::Body, Form) {
    let h = &mut head.headers;
    let wanted = match h.get(header::ACCEPT) {
        Some(a) if a.as_bytes().starts_with(TEXT) => Form::Text,
        Some(a) if a.as_bytes().starts_with(PLAIN) => Form::Binary,
        _ => form,
    };
    h.remove(header::ACCEPT);
    h.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    h.insert(header::TE, HeaderValue::from_static("trailers"));
    match form {
        Form::Binary => (body, wanted),
        Form::Text => {
            h.remove(header::CONTENT_LENGTH);
            (weft_mesh::Body::stream(Decoded { body, rest: BytesMut::new() }), wanted)
        }
    }
}

/// Makes an answer of gRPC, Weft's own included, one of gRPC-Web; another is left as it is.
pub(super) fn to_web(mut response: Response<Body>, form: Form) -> Response<Body> {
    if !super::respond::is_grpc(response.headers()) {
        return response;
    }
    let h = response.headers_mut();
    let content = match form {
        Form::Binary => "application/grpc-web+proto",
        Form::Text => "application/grpc-web-text+proto",
    };
    h.insert(header::CONTENT_TYPE, HeaderValue::from_static(content));
    h.remove(header::CONTENT_LENGTH);
    response.map(|b| b.for_web(form == Form::Text))
}

/// A frame of an answer's body as gRPC-Web writes it.
pub(super) fn frame(frame: Frame<Bytes>, text: bool) -> Frame<Bytes> {
    let data = match frame.into_data() {
        Ok(data) => data,
        Err(frame) => match frame.into_trailers() {
            Ok(t) => trailers(&t),
            Err(_) => return Frame::data(Bytes::new()),
        },
    };
    Frame::data(if text { Bytes::from(BASE64_STANDARD.encode(data)) } else { data })
}

/// The last frame: its flag is the highest bit, its content a block of fields in lower case.
fn trailers(t: &HeaderMap) -> Bytes {
    let mut block = BytesMut::new();
    for (name, value) in t {
        block.extend_from_slice(name.as_str().as_bytes());
        block.extend_from_slice(b": ");
        block.extend_from_slice(value.as_bytes());
        block.extend_from_slice(b"\r\n");
    }
    let mut out = BytesMut::with_capacity(5 + block.len());
    out.put_u8(0x80);
    out.put_u32(block.len() as u32);
    out.extend_from_slice(&block);
    out.freeze()
}

/// A request's body out of base64, as it arrives.
struct Decoded<B> {
    body: B,
    /// Characters that are not a group of four yet.
    rest: BytesMut,
}

impl<B: HttpBody<Data = Bytes, Error: Into<BoxError>> + Unpin> HttpBody for Decoded<B> {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        loop {
            let Some(frame) = std::task::ready!(Pin::new(&mut self.body).poll_frame(cx)) else {
                return Poll::Ready(match self.rest.is_empty() {
                    true => None,
                    false => Some(Err("the base64 of the body stops within a group".into())),
                });
            };
            let Ok(data) = frame.map_err(Into::into)?.into_data() else { continue };
            self.rest.extend_from_slice(&data);
            let whole = self.rest.len() / 4 * 4;
            if whole > 0 {
                let groups = self.rest.split_to(whole);
                return Poll::Ready(Some(decode(&groups).map(Frame::data)));
            }
        }
    }
}

/// Groups of four characters; each message may have been encoded, and padded, on its own.
fn decode(groups: &[u8]) -> Result<Bytes, BoxError> {
    let mut out = Vec::with_capacity(groups.len() / 4 * 3);
    let mut from = 0;
    while from < groups.len() {
        let padded = groups[from..].chunks(4).position(|g| g[3] == b'=');
        let to = padded.map_or(groups.len(), |n| from + 4 * (n + 1));
        BASE64_STANDARD.decode_vec(&groups[from..to], &mut out)?;
        from = to;
    }
    Ok(out.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::{BodyExt as _, StreamBody};

    #[tokio::test]
    async fn base64_is_decoded_however_it_is_cut_and_padded() {
        // Two messages, each encoded on its own.
        let text = format!("{}{}", BASE64_STANDARD.encode(b"hello"), BASE64_STANDARD.encode(b"you!"));
        for cut in 0..text.len() {
            let (a, b) = text.split_at(cut);
            let frames = [a, b].map(|p| Ok::<_, BoxError>(Frame::data(Bytes::copy_from_slice(p.as_bytes()))));
            let body = StreamBody::new(futures_util::stream::iter(frames));
            let all = Decoded { body, rest: BytesMut::new() }.collect().await.unwrap().to_bytes();
            assert_eq!(all, "helloyou!", "cut at {cut}");
        }
        for bad in ["abc", "ab!=", "=abc"] {
            let frames = [Ok::<_, BoxError>(Frame::data(Bytes::from_static(bad.as_bytes())))];
            let body = StreamBody::new(futures_util::stream::iter(frames));
            assert!(Decoded { body, rest: BytesMut::new() }.collect().await.is_err(), "{bad}");
        }
    }

    #[test]
    fn a_call_is_told_by_its_content_type() {
        let of = |v: &'static str| form(&HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static(v))]));
        assert_eq!(of("application/grpc-web"), Some(Form::Binary));
        assert_eq!(of("application/grpc-web+proto"), Some(Form::Binary));
        assert_eq!(of("application/grpc-web-text"), Some(Form::Text));
        assert_eq!(of("application/grpc-web-text+proto"), Some(Form::Text));
        assert_eq!((of("application/grpc"), of("application/grpc-webs"), of("text/plain")), (None, None, None));
    }

    #[test]
    fn trailers_are_a_last_frame_with_the_highest_bit_set() {
        let t = HeaderMap::from_iter([("grpc-status".parse().unwrap(), HeaderValue::from_static("0"))]);
        assert_eq!(trailers(&t), &b"\x80\0\0\0\x10grpc-status: 0\r\n"[..]);
    }
}
