//! Collecting a body because a policy or a target asked for it; always under a limit.

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, header};
use http_body_util::BodyExt as _;
use weft_core::Deadline;

use crate::api::problem::{Problem, code, too_large};

/// Collects a request's body. Over the limit: 413 (at once when `Content-Length` says so); not before the deadline: 408.
pub(super) async fn collect<B>(body: B, headers: &HeaderMap, limit: usize, deadline: Deadline) -> Result<Bytes, Problem>
where
    B: http_body::Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let said = headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    if said.is_some_and(|n| n > limit as u64) {
        return Err(too_large(limit));
    }
    let all = all(body, limit);
    match deadline.instant() {
        None => all.await,
        Some(at) => tokio::time::timeout_at(at, all).await.unwrap_or_else(|_| {
            Err(Problem::new(code::REQUEST_TIMEOUT, "the request's body did not arrive before the deadline"))
        }),
    }
}

async fn all<B>(mut body: B, limit: usize) -> Result<Bytes, Problem>
where
    B: http_body::Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let mut first = Bytes::new();
    let mut more = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| Problem::new(code::BAD_REQUEST, format!("the request's body broke off: {e}")))?;
        let Ok(data) = frame.into_data() else { continue };
        if first.len() + more.len() + data.len() > limit {
            return Err(too_large(limit));
        }
        if first.is_empty() {
            first = data;
        } else {
            more.extend_from_slice(&data);
        }
    }
    if more.is_empty() {
        return Ok(first);
    }
    let mut whole = BytesMut::with_capacity(first.len() + more.len());
    whole.extend_from_slice(&first);
    whole.extend_from_slice(&more);
    Ok(whole.freeze())
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::{Full, StreamBody};
    use std::time::Duration;

    fn chunks(parts: &[&'static str]) -> impl http_body::Body<Data = Bytes, Error = std::io::Error> + Unpin {
        let frames: Vec<_> =
            parts.iter().map(|p| Ok(http_body::Frame::data(Bytes::from_static(p.as_bytes())))).collect();
        StreamBody::new(futures_util::stream::iter(frames))
    }

    #[tokio::test]
    async fn a_body_is_collected_up_to_the_limit_and_not_a_byte_beyond() {
        let h = HeaderMap::new();
        assert_eq!(collect(chunks(&["ab", "c", "d"]), &h, 4, Deadline::NONE).await.unwrap(), "abcd");
        assert_eq!(collect(chunks(&["ab", "cde"]), &h, 4, Deadline::NONE).await.unwrap_err().code(), code::TOO_LARGE);
        let said = HeaderMap::from_iter([(header::CONTENT_LENGTH, 5.into())]);
        let p = collect(Full::new(Bytes::new()), &said, 4, Deadline::NONE).await.unwrap_err();
        assert_eq!(p.to_json()["limit"], 4);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_does_not_come_is_given_up_at_the_deadline() {
        let never = StreamBody::new(futures_util::stream::pending::<Result<http_body::Frame<Bytes>, std::io::Error>>());
        let p = collect(never, &HeaderMap::new(), 4, Deadline::after(Duration::from_secs(1))).await.unwrap_err();
        assert_eq!(p.code(), code::REQUEST_TIMEOUT);
    }
}
