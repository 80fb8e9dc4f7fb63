//! Answers from bytes (RFC 9112 4, 6.3, 7.1). Pure: takes from a buffer what is complete.

use std::mem::MaybeUninit;
use std::sync::LazyLock;

use bytes::{Buf as _, Bytes, BytesMut};
use http::response::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, Version, header};
use memchr::memmem::Finder;
use weft_core::limits;

/// Bytes of the line before a chunk, extensions included.
const CHUNK_LINE: usize = 4 << 10;

type Result<T> = std::result::Result<T, &'static str>;

/// An answer's head.
#[derive(Debug)]
pub(super) struct Head {
    pub parts: Parts,
    pub framing: Framing,
    /// Whether the connection may be used again afterwards.
    pub keep: bool,
}

/// How a body's end is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// So many bytes are left.
    Length(u64),
    Chunked(Chunks),
    UntilClose,
}

/// Where in a chunked body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Chunks {
    /// Before a chunk's size.
    Size,
    /// So many bytes of this chunk are left.
    Data(u64),
    /// Before the line end that follows a chunk.
    LineEnd,
    Trailers,
}

/// What a buffer held of a body.
#[derive(Debug)]
pub(super) enum Decoded {
    Data(Bytes),
    End(Option<HeaderMap>),
    /// Nothing complete; about so many bytes are to come.
    More(usize),
}

/// Takes a whole head off the buffer, if it holds one.
pub(super) fn head(buf: &mut BytesMut, method: &Method) -> Result<Option<Head>> {
    let Some(end) = find_end(buf) else {
        return if buf.len() > limits::HEADER_BYTES { Err("the head is too large") } else { early(buf) };
    };
    if end > limits::HEADER_BYTES {
        return Err("the head is too large");
    }
    let bytes = buf.split_to(end).freeze();
    let mut fields = [const { MaybeUninit::uninit() }; limits::HEADER_COUNT];
    let mut parsed = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    let length = match config.parse_response_with_uninit_headers(&mut parsed, &bytes, &mut fields) {
        Ok(httparse::Status::Complete(n)) => n,
        Ok(httparse::Status::Partial) => return Err("the head is malformed"),
        Err(e) => return Err(explain(e)),
    };
    if length != end {
        return Err("the head has a bare line feed");
    }
    let status = StatusCode::from_u16(parsed.code.unwrap_or(0)).map_err(|_| "the status is not one")?;
    let (mut parts, ()) = Response::new(()).into_parts();
    parts.status = status;
    let old = parsed.version == Some(0);
    parts.version = if old { Version::HTTP_10 } else { Version::HTTP_11 };
    parts.headers.reserve(parsed.headers.len() + 2);
    for field in parsed.headers.iter() {
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| "a field's name is malformed")?;
        let value = HeaderValue::from_maybe_shared(bytes.slice_ref(field.value));
        parts.headers.append(name, value.map_err(|_| "a field's value is malformed")?);
    }
    let (framing, delimited) = framing(&parts.headers, status, method, old)?;
    let keep = delimited && keeps(&parts.headers, old);
    Ok(Some(Head { parts, framing, keep }))
}

/// Where the head ends: after the first empty line.
fn find_end(buf: &[u8]) -> Option<usize> {
    static EMPTY_LINE: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\r\n\r\n"));
    EMPTY_LINE.find(buf).map(|at| at + 4)
}

/// Says early that something else than HTTP speaks.
fn early(buf: &[u8]) -> Result<Option<Head>> {
    const BEGIN: &[u8] = b"HTTP/1.";
    let n = buf.len().min(BEGIN.len());
    if buf[..n] == BEGIN[..n] { Ok(None) } else { Err("the answer is not HTTP/1.1") }
}

fn explain(e: httparse::Error) -> &'static str {
    match e {
        httparse::Error::HeaderName => "a field's name is malformed",
        httparse::Error::HeaderValue => "a field's value is malformed",
        httparse::Error::NewLine => "a line's end is malformed",
        httparse::Error::Status => "the status line is malformed",
        httparse::Error::Token => "the head is malformed",
        httparse::Error::TooManyHeaders => "the head has too many fields",
        httparse::Error::Version => "the answer is not HTTP/1.1",
    }
}

/// RFC 9112 6.3, and whether the end is known without the connection's.
fn framing(h: &HeaderMap, status: StatusCode, method: &Method, old: bool) -> Result<(Framing, bool)> {
    let length = content_length(h)?;
    let coded = h.contains_key(header::TRANSFER_ENCODING);
    if coded && length.is_some() {
        return Err("the answer has both Content-Length and Transfer-Encoding");
    }
    let bodiless = *method == Method::HEAD
        || status.is_informational()
        || status == StatusCode::NO_CONTENT
        || status == StatusCode::NOT_MODIFIED;
    if bodiless {
        return Ok((Framing::Length(0), true));
    }
    if coded {
        let mut all = h.get_all(header::TRANSFER_ENCODING).iter();
        let only = all.next().is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"chunked")) && all.next().is_none();
        if old || !only {
            return Err("the answer has a Transfer-Encoding other than chunked");
        }
        return Ok((Framing::Chunked(Chunks::Size), true));
    }
    Ok(match length {
        Some(n) => (Framing::Length(n), true),
        None => (Framing::UntilClose, false),
    })
}

/// The one length that all fields agree on.
fn content_length(h: &HeaderMap) -> Result<Option<u64>> {
    const BAD: &str = "the answer's Content-Length is malformed or contradicts itself";
    let mut length = None;
    for value in h.get_all(header::CONTENT_LENGTH) {
        for part in value.as_bytes().split(|b| *b == b',') {
            let digits = part.trim_ascii();
            if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
                return Err(BAD);
            }
            let n = std::str::from_utf8(digits).ok().and_then(|d| d.parse::<u64>().ok()).ok_or(BAD)?;
            if length.is_some_and(|l| l != n) {
                return Err(BAD);
            }
            length = Some(n);
        }
    }
    Ok(length)
}

/// RFC 9112 9.3.
fn keeps(h: &HeaderMap, old: bool) -> bool {
    let mut keep = !old;
    for value in h.get_all(header::CONNECTION) {
        for option in value.as_bytes().split(|b| *b == b',').map(<[u8]>::trim_ascii) {
            if option.eq_ignore_ascii_case(b"close") {
                return false;
            }
            keep |= option.eq_ignore_ascii_case(b"keep-alive");
        }
    }
    keep
}

/// Fields that have no place in a trailer section (RFC 9110 6.5.1): they would say again how the message is framed.
pub(super) fn is_framing(name: &HeaderName) -> bool {
    [header::CONTENT_LENGTH, header::TRANSFER_ENCODING, header::HOST, header::TRAILER, header::CONNECTION]
        .contains(name)
}

impl Framing {
    /// Whether nothing is left to come.
    pub(super) fn is_end(&self) -> bool {
        matches!(self, Framing::Length(0))
    }

    /// Takes the next piece of the body off the buffer.
    pub(super) fn decode(&mut self, buf: &mut BytesMut) -> Result<Decoded> {
        match self {
            Framing::UntilClose if buf.is_empty() => Ok(Decoded::More(usize::MAX)),
            Framing::UntilClose => Ok(Decoded::Data(buf.split().freeze())),
            Framing::Length(0) => Ok(Decoded::End(None)),
            Framing::Length(left) => Ok(take(left, buf)),
            Framing::Chunked(at) => at.decode(buf),
        }
    }
}

/// As much of `left` bytes as the buffer has.
fn take(left: &mut u64, buf: &mut BytesMut) -> Decoded {
    if buf.is_empty() {
        return Decoded::More(usize::try_from(*left).unwrap_or(usize::MAX));
    }
    let n = usize::try_from(*left).unwrap_or(usize::MAX).min(buf.len());
    *left -= n as u64;
    Decoded::Data(buf.split_to(n).freeze())
}

impl Chunks {
    fn decode(&mut self, buf: &mut BytesMut) -> Result<Decoded> {
        loop {
            match self {
                // The parser takes no digit at all for 0.
                Chunks::Size if buf.first().is_some_and(|b| !b.is_ascii_hexdigit()) => {
                    return Err("a chunk's size is malformed");
                }
                Chunks::Size => match httparse::parse_chunk_size(buf) {
                    Ok(httparse::Status::Complete((line, size))) => {
                        buf.advance(line);
                        *self = if size == 0 { Chunks::Trailers } else { Chunks::Data(size) };
                    }
                    Ok(httparse::Status::Partial) if buf.len() < CHUNK_LINE => return Ok(Decoded::More(0)),
                    _ => return Err("a chunk's size is malformed"),
                },
                Chunks::Data(left) => {
                    let data = take(left, buf);
                    if *left == 0 {
                        *self = Chunks::LineEnd;
                    }
                    return Ok(data);
                }
                Chunks::LineEnd => match buf.first_chunk::<2>() {
                    Some(b"\r\n") => {
                        buf.advance(2);
                        *self = Chunks::Size;
                    }
                    Some(_) => return Err("a chunk is longer than its size"),
                    None => return Ok(Decoded::More(0)),
                },
                Chunks::Trailers => return trailers(buf),
            }
        }
    }
}

fn trailers(buf: &mut BytesMut) -> Result<Decoded> {
    if buf.starts_with(b"\r\n") {
        buf.advance(2);
        return Ok(Decoded::End(None));
    }
    let mut fields = [httparse::EMPTY_HEADER; limits::HEADER_COUNT];
    match httparse::parse_headers(buf, &mut fields) {
        Ok(httparse::Status::Complete((n, fields))) => {
            let mut map = HeaderMap::with_capacity(fields.len());
            for f in fields {
                let name = HeaderName::from_bytes(f.name.as_bytes()).map_err(|_| "a trailer's name is malformed")?;
                let value = HeaderValue::from_bytes(f.value).map_err(|_| "a trailer's value is malformed")?;
                if !is_framing(&name) {
                    map.append(name, value);
                }
            }
            buf.advance(n);
            Ok(Decoded::End(Some(map)))
        }
        Ok(httparse::Status::Partial) if buf.len() <= limits::HEADER_BYTES => Ok(Decoded::More(0)),
        Ok(httparse::Status::Partial) => Err("the trailer section is too large"),
        Err(e) => Err(explain(e)),
    }
}
