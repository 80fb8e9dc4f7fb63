//! Limits on the bytes of bodies. What says its length is refused before anything of it is sent on; what does not is cut
//! when it comes to the limit.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, Response, header};
use http_body::{Body as HttpBody, Frame, SizeHint};
use weft_core::Name;
use weft_mesh::BoxError;

use crate::api::problem::{Problem, code};
use crate::http::body::Body;

/// Whether a request's body went over its limit.
#[derive(Debug)]
pub(super) struct Over {
    limit: u64,
    passed: AtomicBool,
}

impl Over {
    pub(super) fn problem(&self) -> Option<Problem> {
        self.passed.load(Ordering::Acquire).then(|| too_large(self.limit))
    }
}

fn too_large(limit: u64) -> Problem {
    Problem::new(code::TOO_LARGE, format!("the body is over the limit of {limit} bytes")).with("limit", limit)
}

fn said(h: &HeaderMap) -> Option<u64> {
    h.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Refuses a request that says it is too long.
pub(super) fn declared(limit: u64, h: &HeaderMap) -> Result<(), Problem> {
    if said(h).is_some_and(|n| n > limit) { Err(too_large(limit)) } else { Ok(()) }
}

/// Counts a request's body.
pub(super) fn request(limit: u64, body: weft_mesh::Body) -> (weft_mesh::Body, Option<Arc<Over>>) {
    if body.is_repeatable() {
        // Its length was known on admission, or it was collected under this limit.
        return (body, None);
    }
    let over = Arc::new(Over { limit, passed: AtomicBool::new(false) });
    let told = over.clone();
    let error = move || {
        told.passed.store(true, Ordering::Release);
        BoxError::from(format!("it is over the limit of {limit} bytes"))
    };
    (weft_mesh::Body::stream(Counted { body, left: limit, error }), Some(over))
}

/// Refuses an answer that says it is too long, counts one that does not.
pub(super) fn response(limit: u64, service: &Name, r: Response<Body>) -> Result<Response<Body>, Problem> {
    if said(r.headers()).is_some_and(|n| n > limit) && !r.body().is_end_stream() {
        let detail = format!("the answer of service '{service}' is over this route's limit of {limit} bytes");
        return Err(Problem::new(code::ANSWER_TOO_LARGE, detail).with("limit", limit));
    }
    let service = service.clone();
    let error = move || weft_mesh::Error::ResetAfterBytes {
        service: service.clone(),
        instance: "the gateway's limit".into(),
        reason: format!("the answer is over this route's limit of {limit} bytes").into(),
    };
    Ok(r.map(|body| Body::layered(Counted { body, left: limit, error })))
}

/// A body that fails when it goes over what is left to it.
struct Counted<B, E> {
    body: B,
    left: u64,
    error: E,
}

impl<B, E> HttpBody for Counted<B, E>
where
    B: HttpBody<Data = Bytes> + Unpin,
    E: FnMut() -> B::Error + Unpin,
{
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = &mut *self;
        let polled = Pin::new(&mut this.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(f))) = &polled
            && let Some(d) = f.data_ref()
        {
            match this.left.checked_sub(d.len() as u64) {
                Some(left) => this.left = left,
                None => return Poll::Ready(Some(Err((this.error)()))),
            }
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
