//! The whole policy loop around a call whose answer is wanted in one piece: saga steps and pushes.

use bytes::Bytes;
use http::header::HeaderName;
use http::{HeaderMap, HeaderValue, Request, StatusCode};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use weft_core::{Context, limits};
use weft_policy::Instance;
use weft_policy::attempt::{self, Attempt, Cause, Failure, Stop};
use weft_policy::outcome::{self, Judged, Outcome};

use crate::answer::{Reply, grpc_status, judge, pushback};
use crate::error::Error;
use crate::mesh::Mesh;
use crate::outbound::{IDEMPOTENCY_KEY, Outbound};

/// An answer in one piece, at most [`limits::COLLECTED_BODY_BYTES`].
#[derive(Clone, Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: StatusCode,
    /// Head fields.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
    /// Trailer fields; a gRPC status comes here or, without a body, in [`headers`](Self::headers).
    pub trailers: Option<HeaderMap>,
    /// What it means.
    pub outcome: Outcome,
    /// Attempts made.
    pub attempts: u32,
    /// An earlier attempt may have taken effect without anybody having said so: a refusal then proves nothing.
    pub doubt: bool,
}

impl Answer {
    /// The gRPC status and message, if it is a gRPC answer; the message is percent-encoded.
    pub fn grpc_status(&self) -> Option<(u32, Option<&str>)> {
        let from = |h: &'_ HeaderMap| grpc_status(h);
        let map = self.trailers.as_ref().filter(|t| from(t).is_some()).unwrap_or(&self.headers);
        let message = map.get("grpc-message").and_then(|v| v.to_str().ok());
        from(map).map(|code| (code, message))
    }
}

impl Judged for Answer {
    fn outcome(&self) -> Outcome {
        self.outcome
    }
}

/// Why there is no answer: what ended the last attempt, how many there were, and why there is no further one.
pub type CallError = Failure<Error>;

impl Mesh {
    /// Calls a service under a policy: rate, bulkhead, deadline, breaker, attempts with backoff. A bad answer that is the last
    /// one comes back as an [`Answer`]; its `outcome` says how bad.
    ///
    /// A POST is repeated only if nothing can have happened, or if it carries an `Idempotency-Key`; the context's key is
    /// added when the request has none.
    pub async fn call(
        &self,
        ctx: &Context,
        service: &str,
        mut request: Request<Bytes>,
        policy: &Instance,
    ) -> Result<Answer, CallError> {
        if let Some(key) = ctx.idempotency_key.as_deref().and_then(|k| HeaderValue::from_str(k).ok()) {
            request.headers_mut().entry(IDEMPOTENCY_KEY).or_insert(key);
        }
        let mut ctx = ctx.clone();
        ctx.deadline = policy.deadline(ctx.deadline);
        let refused = |r| Failure { cause: Cause::Refused(r), attempts: 0, stop: Stop::Refusal, doubt: false };
        // Weft's own calls come from no address: they are counted by principal, or all together.
        policy.check_rate(&ctx.principal).map_err(refused)?;
        let _slot = policy.acquire(ctx.deadline).await.map_err(refused)?;
        let out = Outbound::new(request);
        let done = attempt::run(policy, &ctx, out.replay(), |a| self.collected(&ctx, service, &out, a)).await?;
        Ok(Answer { attempts: done.attempts, doubt: done.doubt, ..done.answer })
    }

    async fn collected(&self, ctx: &Context, service: &str, out: &Outbound, a: Attempt) -> Result<Answer, Error> {
        let reply = self.send(ctx, service, out, a).await?;
        collect(reply).await
    }
}

/// Reads an answer to its end.
async fn collect(reply: Reply) -> Result<Answer, Error> {
    const LIMIT: usize = limits::COLLECTED_BODY_BYTES;
    let service = reply.endpoint().service.clone();
    let (head, mut body) = reply.response.into_parts();
    let too_large = || Error::AnswerTooLarge { service: service.clone(), limit: LIMIT };
    if body.size_hint().lower() > LIMIT as u64 {
        return Err(too_large());
    }
    let mut first = Bytes::new();
    let mut rest: Vec<u8> = Vec::new();
    let mut trailers = None;
    while let Some(frame) = body.frame().await {
        match frame?.into_data() {
            Ok(data) => {
                if first.len() + rest.len() + data.len() > LIMIT {
                    return Err(too_large());
                }
                match (first.is_empty(), rest.is_empty()) {
                    // Most answers are one frame, which is not copied.
                    (true, true) => first = data,
                    (false, true) => {
                        rest.extend_from_slice(&first);
                        first = Bytes::new();
                        rest.extend_from_slice(&data);
                    }
                    _ => rest.extend_from_slice(&data),
                }
            }
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
    }
    let outcome = match trailers.as_ref().and_then(grpc_status) {
        Some(code) => outcome::classify_grpc(code).with_retry_after(trailers.as_ref().and_then(pushback)),
        None => judge(head.status, &head.headers, is_grpc(&head.headers)),
    };
    let body = if rest.is_empty() { first } else { rest.into() };
    Ok(Answer { status: head.status, headers: head.headers, body, trailers, outcome, attempts: 1, doubt: false })
}

fn is_grpc(headers: &HeaderMap) -> bool {
    let content_type: Option<&HeaderValue> = headers.get(HeaderName::from_static("content-type"));
    content_type.is_some_and(|v| v.as_bytes().starts_with(b"application/grpc"))
}
