//! Compression of answers (RFC 9110 8.4 and 12.5.3). An answer is compressed once, while it streams: what was written is
//! flushed as soon as the service pauses. Encoded, partial, small, incompressible and `no-transform` answers and event
//! streams are left as they are.

use std::io::Write;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use flate2::write::GzEncoder;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Response, StatusCode};
use http_body::{Body as HttpBody, Frame};

use super::cors::vary;
use crate::http::body::Body;
use crate::spec::{self, Coding};

#[derive(Debug)]
pub(super) struct Compress {
    codings: Vec<Coding>,
    min_size: u64,
    types: Vec<String>,
}

impl Coding {
    fn token(self) -> &'static str {
        match self {
            Coding::Zstd => "zstd",
            Coding::Brotli => "br",
            Coding::Gzip => "gzip",
        }
    }
}

impl Compress {
    pub(super) fn new(c: &spec::Compress) -> Self {
        let types = c.types.iter().map(|t| t.to_ascii_lowercase().trim_end_matches('*').to_owned()).collect();
        Self { codings: c.codings.clone(), min_size: c.min_size, types }
    }

    /// The coding a client likes best; of those it likes the same, the route's first.
    pub(super) fn accepted(&self, method: &Method, h: &HeaderMap) -> Option<Coding> {
        if *method == Method::HEAD {
            return None;
        }
        let mut wanted: [Option<u16>; 3] = [None; 3];
        let mut star = None;
        for v in h.get_all(header::ACCEPT_ENCODING) {
            for item in v.to_str().unwrap_or_default().split(',') {
                let (name, q) = weighted(item);
                if name == "*" {
                    star = Some(q);
                }
                for (i, c) in self.codings.iter().enumerate().take(3) {
                    if name.eq_ignore_ascii_case(c.token())
                        || (*c == Coding::Gzip && name.eq_ignore_ascii_case("x-gzip"))
                    {
                        wanted[i] = Some(q);
                    }
                }
            }
        }
        let mut best: Option<(u16, Coding)> = None;
        for (c, w) in self.codings.iter().zip(wanted) {
            let q = w.or(star).unwrap_or(0);
            if q > best.map_or(0, |(b, _)| b) {
                best = Some((q, *c));
            }
        }
        best.map(|(_, c)| c)
    }

    /// Compresses an answer, if it is one to compress.
    pub(super) fn answer(&self, coding: Option<Coding>, mut r: Response<Body>) -> Response<Body> {
        if !self.is_for(&r) {
            return r;
        }
        vary(r.headers_mut(), header::ACCEPT_ENCODING);
        let Some(coding) = coding.filter(|_| !r.body().is_end_stream()) else { return r };
        let h = r.headers_mut();
        h.insert(header::CONTENT_ENCODING, HeaderValue::from_static(coding.token()));
        for name in [
            header::CONTENT_LENGTH,
            header::ACCEPT_RANGES,
            CONTENT_DIGEST,
            DIGEST,
            HeaderName::from_static("content-md5"),
        ] {
            h.remove(name);
        }
        // A strong validator would claim that the bytes are the same (RFC 9110 8.8.1).
        if let Some(tag) = h.get(header::ETAG).filter(|t| t.as_bytes().starts_with(b"\"")) {
            let weak = HeaderValue::from_bytes(&[b"W/", tag.as_bytes()].concat());
            h.insert(header::ETAG, weak.expect("a tag with W/ before it is a field value"));
        }
        r.map(|body| {
            Body::layered(Compressed { body, encoder: Some(Encoder::new(coding)), dirty: false, trailers: None })
        })
    }

    fn is_for(&self, r: &Response<Body>) -> bool {
        let h = r.headers();
        let has_body = !r.status().is_informational()
            && !matches!(r.status(), StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED | StatusCode::PARTIAL_CONTENT);
        let length = h.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
        let length = length.or_else(|| r.body().size_hint().exact());
        let kept = |v: &HeaderValue| {
            v.to_str().is_ok_and(|v| v.split(',').any(|d| d.trim().eq_ignore_ascii_case("no-transform")))
        };
        has_body
            && !h.contains_key(header::CONTENT_ENCODING)
            && !h.contains_key(header::CONTENT_RANGE)
            && length.is_none_or(|n| n >= self.min_size)
            && !h.get_all(header::CACHE_CONTROL).iter().any(kept)
            && h.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).is_some_and(|t| self.takes(t))
    }

    fn takes(&self, content_type: &str) -> bool {
        let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        if essence == "text/event-stream" || essence.starts_with("application/grpc") {
            return false;
        }
        if !self.types.is_empty() {
            return self.types.iter().any(|t| if t.ends_with('/') { essence.starts_with(t) } else { *t == essence });
        }
        essence.starts_with("text/")
            || essence.ends_with("+json")
            || essence.ends_with("+xml")
            || matches!(
                essence.as_str(),
                "application/json"
                    | "application/x-ndjson"
                    | "application/xml"
                    | "application/javascript"
                    | "application/wasm"
                    | "application/graphql-response"
                    | "application/yaml"
                    | "application/x-protobuf"
                    | "image/bmp"
                    | "image/vnd.microsoft.icon"
                    | "font/ttf"
                    | "font/otf"
            )
    }
}

const CONTENT_DIGEST: HeaderName = HeaderName::from_static("content-digest");
const DIGEST: HeaderName = HeaderName::from_static("digest");

/// `gzip;q=0.5`: the name and thousandths.
fn weighted(item: &str) -> (&str, u16) {
    let mut parts = item.split(';');
    let name = parts.next().unwrap_or_default().trim();
    let q = parts.find_map(|p| {
        let (k, v) = p.trim().split_once('=')?;
        k.trim().eq_ignore_ascii_case("q").then(|| v.trim().parse::<f32>().unwrap_or(0.0))
    });
    (name, (q.unwrap_or(1.0).clamp(0.0, 1.0) * 1000.0) as u16)
}

/// Levels that cost about as much CPU as they save of the network for what is made anew each time.
enum Encoder {
    Gzip(GzEncoder<Vec<u8>>),
    Brotli(Box<brotli::CompressorWriter<Vec<u8>>>),
    Zstd(zstd::stream::write::Encoder<'static, Vec<u8>>),
    /// The library refused to begin: cannot happen with these settings, and is an error of the body where it does.
    Broken,
}

impl Encoder {
    fn new(coding: Coding) -> Self {
        match coding {
            Coding::Gzip => Encoder::Gzip(GzEncoder::new(Vec::new(), flate2::Compression::new(5))),
            // 2^18 bytes of window: 16 times less memory than the default, for little less compression.
            Coding::Brotli => Encoder::Brotli(Box::new(brotli::CompressorWriter::new(Vec::new(), 4096, 4, 18))),
            Coding::Zstd => zstd::stream::write::Encoder::new(Vec::new(), 3).map_or(Encoder::Broken, |mut e| {
                // RFC 8878 3.1.1.1.2: a window that every decoder takes.
                let _ = e.window_log(20);
                Encoder::Zstd(e)
            }),
        }
    }

    fn write(&mut self, data: &[u8]) -> std::io::Result<Vec<u8>> {
        match self {
            Encoder::Gzip(e) => e.write_all(data).map(|()| std::mem::take(e.get_mut())),
            Encoder::Brotli(e) => e.write_all(data).map(|()| std::mem::take(e.get_mut())),
            Encoder::Zstd(e) => e.write_all(data).map(|()| std::mem::take(e.get_mut())),
            Encoder::Broken => Err(std::io::ErrorKind::OutOfMemory.into()),
        }
    }

    fn flush(&mut self) -> std::io::Result<Vec<u8>> {
        match self {
            Encoder::Gzip(e) => e.flush().map(|()| std::mem::take(e.get_mut())),
            Encoder::Brotli(e) => e.flush().map(|()| std::mem::take(e.get_mut())),
            Encoder::Zstd(e) => e.flush().map(|()| std::mem::take(e.get_mut())),
            Encoder::Broken => Err(std::io::ErrorKind::OutOfMemory.into()),
        }
    }

    fn finish(self) -> std::io::Result<Vec<u8>> {
        match self {
            Encoder::Gzip(e) => e.finish(),
            Encoder::Brotli(e) => Ok(e.into_inner()),
            Encoder::Zstd(e) => e.finish(),
            Encoder::Broken => Err(std::io::ErrorKind::OutOfMemory.into()),
        }
    }
}

/// A body, compressed as it is read.
struct Compressed {
    body: Body,
    encoder: Option<Encoder>,
    /// Something was written since the last flush.
    dirty: bool,
    trailers: Option<HeaderMap>,
}

impl HttpBody for Compressed {
    type Data = Bytes;
    type Error = weft_mesh::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = &mut *self;
        loop {
            let Some(encoder) = &mut this.encoder else {
                return Poll::Ready(this.trailers.take().map(|t| Ok(Frame::trailers(t))));
            };
            let made = match Pin::new(&mut this.body).poll_frame(cx) {
                Poll::Ready(Some(Ok(f))) => match f.into_data() {
                    Ok(data) => {
                        this.dirty = true;
                        encoder.write(&data)
                    }
                    Err(f) => {
                        this.trailers = f.into_trailers().ok();
                        continue;
                    }
                },
                Poll::Ready(Some(Err(e))) => return Poll::Ready(Some(Err(e))),
                Poll::Ready(None) => match this.encoder.take() {
                    Some(e) => e.finish(),
                    None => continue,
                },
                // The service pauses: whoever waits for what it said so far gets it.
                Poll::Pending if this.dirty => {
                    this.dirty = false;
                    match encoder.flush() {
                        Ok(b) if b.is_empty() => return Poll::Pending,
                        flushed => flushed,
                    }
                }
                Poll::Pending => return Poll::Pending,
            };
            match made {
                Ok(b) if b.is_empty() => {}
                Ok(b) => return Poll::Ready(Some(Ok(Frame::data(b.into())))),
                Err(e) => {
                    let reason = format!("compressing the answer: {e}").into();
                    return Poll::Ready(Some(Err(weft_mesh::Error::InvalidRequest { reason })));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Compress {
        let codings = vec![Coding::Zstd, Coding::Brotli, Coding::Gzip];
        Compress::new(&spec::Compress { codings, min_size: 4, types: vec![] })
    }

    #[test]
    fn the_client_chooses_by_weight_and_the_route_among_equals() {
        let of = |accept: &str| {
            let h = HeaderMap::from_iter([(header::ACCEPT_ENCODING, accept.parse().unwrap())]);
            all().accepted(&Method::GET, &h)
        };
        for (accept, want) in [
            ("gzip, br, zstd", Some(Coding::Zstd)),
            ("gzip;q=1.0, br;q=0.5", Some(Coding::Gzip)),
            ("gzip;q=0", None),
            ("identity", None),
            ("*", Some(Coding::Zstd)),
            ("*;q=0.5, gzip;q=0.9", Some(Coding::Gzip)),
            ("zstd;q=0, *", Some(Coding::Brotli)),
            ("X-GZIP", Some(Coding::Gzip)),
            ("", None),
            ("gzip;q=nonsense", None),
        ] {
            assert_eq!(of(accept), want, "{accept}");
        }
        assert_eq!(all().accepted(&Method::GET, &HeaderMap::new()), None);
    }

    #[test]
    fn what_is_encoded_small_partial_or_not_to_be_changed_is_left_alone() {
        for (fields, want) in [
            (&[("content-type", "text/html; charset=utf-8")][..], true),
            (&[("content-type", "application/vnd.api+json")], true),
            (&[("content-type", "image/png")], false),
            (&[("content-type", "text/event-stream")], false),
            (&[("content-type", "application/grpc")], false),
            (&[], false),
            (&[("content-type", "text/html"), ("content-encoding", "gzip")], false),
            (&[("content-type", "text/html"), ("cache-control", "public, No-Transform")], false),
            (&[("content-type", "text/html"), ("content-range", "bytes 0-1/2")], false),
            (&[("content-type", "text/html"), ("content-length", "3")], false),
        ] {
            let mut r = Response::new(Body::from(Bytes::from_static(b"12345")));
            for (k, v) in fields {
                r.headers_mut().insert(*k, HeaderValue::from_static(v));
            }
            let coded = all().answer(Some(Coding::Gzip), r);
            let done = coded.headers().get(header::CONTENT_ENCODING).is_some_and(|v| v == "gzip");
            let varies = coded.headers().get(header::VARY).is_some_and(|v| v == "accept-encoding");
            assert_eq!((done && varies, varies), (want, want), "{fields:?}");
        }
    }
}
