//! Idempotency-Key at the gateway: the first request with a key runs, its answer is stored in the same durable store as
//! everything else, and later ones get that answer.
//!
//! What is under way is known in memory only: the store belongs to one process, so after a crash nothing is under way,
//! and a request whose answer was not stored runs again. Work goes on when its client goes away, so that the answer it
//! retries for is there.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use hashbrown::HashMap;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, Uri};
use http_body_util::BodyExt as _;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use weft_core::{Class, Clock as _, Context, SystemClock, Timestamp, limits};
use weft_policy::bulkhead::Slot;
use weft_policy::idempotency::{Decision, Fingerprint, Known, State, decide, keeps};
use weft_policy::{Refused, outcome};
use weft_store::{Batch, Store};

use super::body::Body;
use super::exchange::send;
use super::{headers, respond};
use crate::api::problem::{Problem, code};
use crate::gateway::{Core, Route};
use crate::listener::Peer;

/// Answers by scope.
pub const ANSWERS: &str = "idempotency";
/// Scopes by the time they expire, for the sweep.
pub const EXPIRES: &str = "idempotency.expires";

const FORMAT: u8 = 1;
const SWEEP_EVERY: Duration = Duration::from_secs(60);
const SWEEP_MAX: usize = 1_000;

/// All keys of a process.
pub(crate) struct Keys {
    store: Arc<dyn Store>,
    under_way: Mutex<HashMap<String, Fingerprint>>,
}

/// A key whose work is under way; free again when dropped.
struct Reserved {
    keys: Arc<Keys>,
    scope: String,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.keys.under_way.lock().remove(&self.scope);
    }
}

/// A stored answer.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stored {
    head: Head,
    body: Bytes,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Head {
    fingerprint: [u8; 32],
    expires: Timestamp,
    status: u16,
    headers: Vec<(String, Vec<u8>)>,
    trailers: Vec<(String, Vec<u8>)>,
    /// The body was over the limit and is not here.
    too_large: bool,
}

/// Runs a request once for its key. `asked` is the target as it was asked for, without credentials: where a request is sent
/// may differ from one to the next. The place that the work took is the answer's, to its last byte.
#[allow(clippy::too_many_arguments, reason = "it is called from one place, with what that place knows")]
pub(super) async fn once(
    core: &Arc<Core>,
    route: &Arc<Route>,
    peer: &Arc<Peer>,
    keep: Duration,
    scope: String,
    ctx: Context,
    asked: Uri,
    head: Parts,
    body: Bytes,
) -> Result<(Response<Body>, Option<Slot>), Problem> {
    let fingerprint = fingerprint(&head.method, &asked, ctx.version.as_deref(), &body);
    // Reserved before the store is read, so that no other request can finish in between.
    let reserved = core.keys.reserve(scope, fingerprint).map_err(|r| respond::refused(&r))?;
    let known = core.keys.load(&reserved.scope).await?;
    match decide(known, &fingerprint, SystemClock.now()).map_err(|r| respond::refused(&r))? {
        Decision::Answer(stored) => return Ok((stored.replay()?, None)),
        Decision::Run => {}
    }
    let slot = route.policy.acquire(ctx.deadline).await.map_err(|r| respond::refused(&r))?;
    if let Some(fault) = route.traffic.as_ref().and_then(|t| t.fault()) {
        fault.strike(&head.headers, ctx.deadline).await?;
    }
    let (core, route, peer) = (core.clone(), route.clone(), peer.clone());
    let work = tokio::spawn(async move {
        let answer = send(&core, &route, &peer, &ctx, head, body).await?;
        let kept = core.keys.keep(&reserved, fingerprint, keep, answer).await?;
        Ok((kept, Some(slot)))
    });
    work.await.unwrap_or_else(|e| Err(Problem::new(code::INTERNAL, format!("the request's work ended early: {e}"))))
}

fn fingerprint(method: &Method, asked: &Uri, version: Option<&str>, body: &[u8]) -> Fingerprint {
    let mut h = Sha256::new();
    h.update(method.as_str());
    h.update(b" ");
    h.update(asked.path_and_query().map_or("/", |p| p.as_str()));
    if let Some(version) = version {
        h.update(b" ");
        h.update(version);
    }
    h.update(b"\n");
    h.update(Sha256::digest(body));
    Fingerprint(h.finalize().into())
}

impl Keys {
    pub(crate) fn new(store: Arc<dyn Store>) -> Self {
        Self { store, under_way: Mutex::new(HashMap::new()) }
    }

    fn reserve(self: &Arc<Self>, scope: String, fingerprint: Fingerprint) -> Result<Reserved, Refused> {
        let mut under_way = self.under_way.lock();
        match under_way.get(&scope) {
            Some(other) if *other != fingerprint => return Err(Refused::KeyReused),
            Some(_) => return Err(Refused::KeyInFlight),
            None => under_way.insert(scope.clone(), fingerprint),
        };
        Ok(Reserved { keys: self.clone(), scope })
    }

    async fn load(&self, scope: &str) -> Result<Option<Known<Stored>>, Problem> {
        let Some(value) = self.store.get(ANSWERS, scope.as_bytes()).await? else { return Ok(None) };
        let stored = Stored::decode(value.bytes)
            .ok_or_else(|| Problem::new(code::INTERNAL, "the stored answer of this Idempotency-Key does not decode"))?;
        let (fingerprint, expires) = (Fingerprint(stored.head.fingerprint), stored.head.expires);
        Ok(Some(Known { fingerprint, expires, state: State::Finished(stored) }))
    }

    /// Stores an answer that is to be kept, durably, before it is given.
    async fn keep(
        &self,
        reserved: &Reserved,
        fingerprint: Fingerprint,
        keep: Duration,
        answer: Response<Body>,
    ) -> Result<Response<Body>, Problem> {
        if !is_kept(&answer) {
            return Ok(answer);
        }
        let (parts, body) = answer.into_parts();
        let (taken, trailers, rest) = take(body).await?;
        let expires = SystemClock.now().plus(keep);
        let whole = rest.is_none();
        let data = if whole { join(&taken) } else { Bytes::new() };
        let grpc = respond::is_grpc(&parts.headers);
        if let Some(t) = &trailers
            && grpc
            && !grpc_keeps(t)
        {
            return Ok(Response::from_parts(parts, Body::with_trailers(data, trailers)));
        }
        let head = Head {
            fingerprint: fingerprint.0,
            expires,
            status: parts.status.as_u16(),
            headers: fields(&parts.headers),
            trailers: trailers.as_ref().map(fields).unwrap_or_default(),
            too_large: !whole,
        };
        let mut by_time = Vec::with_capacity(8 + reserved.scope.len());
        by_time.extend_from_slice(&expires.0.to_be_bytes());
        by_time.extend_from_slice(reserved.scope.as_bytes());
        let batch = Batch::new()
            .put(ANSWERS, reserved.scope.clone().into_bytes(), Stored { head, body: data.clone() }.encode())
            .put(EXPIRES, by_time, Bytes::new());
        self.store.commit(batch).await?;
        let body = match rest {
            None => Body::with_trailers(data, trailers),
            Some(rest) => Body::resumed(taken, rest),
        };
        Ok(Response::from_parts(parts, body))
    }

    /// Forgets expired keys, for ever.
    pub(crate) async fn sweep(self: Arc<Self>) {
        loop {
            tokio::time::sleep(SWEEP_EVERY).await;
            while self.sweep_once(SystemClock.now()).await.is_ok_and(|n| n == SWEEP_MAX) {}
        }
    }

    async fn sweep_once(&self, now: Timestamp) -> Result<usize, weft_store::Error> {
        let due = self.store.scan(EXPIRES, &[], None, SWEEP_MAX).await?;
        let mut batch = Batch::new();
        let mut n = 0;
        for (key, _) in due {
            let Some((time, scope)) = key.split_first_chunk::<8>() else { continue };
            if u64::from_be_bytes(*time) > now.0 {
                break;
            }
            n += 1;
            // The key may have been used again since, with a later expiry.
            let current = self.store.get(ANSWERS, scope).await?.and_then(|v| Stored::decode(v.bytes));
            if current.is_none_or(|s| s.head.expires <= now) {
                batch = batch.delete(ANSWERS, scope.to_vec());
            }
            batch = batch.delete(EXPIRES, key.clone());
        }
        if n > 0 {
            self.store.commit(batch).await?;
        }
        Ok(n)
    }
}

/// Whether an answer settles the key. A gRPC answer tells its status in its head only when it has no messages.
fn is_kept(answer: &Response<Body>) -> bool {
    keeps(answer.status().as_u16()) && (!respond::is_grpc(answer.headers()) || grpc_keeps(answer.headers()))
}

fn grpc_keeps(h: &HeaderMap) -> bool {
    let Some(code) = h.get("grpc-status") else { return true };
    let code = code.to_str().ok().and_then(|c| c.parse().ok()).unwrap_or(2);
    matches!(outcome::classify_grpc(code).failure, None | Some(Class::Rejected))
}

type Taken = (VecDeque<Bytes>, Option<HeaderMap>, Option<Body>);

/// Reads a body up to the limit; what is left when it is longer.
async fn take(mut body: Body) -> Result<Taken, Problem> {
    let (mut taken, mut size) = (VecDeque::new(), 0);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| respond::upstream(&e))?;
        match frame.into_data() {
            Ok(data) => {
                size += data.len();
                taken.push_back(data);
                if size > limits::COLLECTED_BODY_BYTES {
                    return Ok((taken, None, Some(body)));
                }
            }
            Err(frame) => return Ok((taken, frame.into_trailers().ok(), None)),
        }
    }
    Ok((taken, None, None))
}

fn join(parts: &VecDeque<Bytes>) -> Bytes {
    match parts.len() {
        0 => Bytes::new(),
        1 => parts[0].clone(),
        _ => parts
            .iter()
            .fold(BytesMut::new(), |mut all, p| {
                all.put_slice(p);
                all
            })
            .freeze(),
    }
}

fn fields(h: &HeaderMap) -> Vec<(String, Vec<u8>)> {
    h.iter().map(|(k, v)| (k.as_str().to_owned(), v.as_bytes().to_vec())).collect()
}

fn to_map(fields: &[(String, Vec<u8>)]) -> HeaderMap {
    let pairs =
        fields.iter().filter_map(|(k, v)| Some((HeaderName::try_from(k).ok()?, HeaderValue::from_bytes(v).ok()?)));
    let mut h = HeaderMap::with_capacity(fields.len());
    for (k, v) in pairs {
        h.append(k, v);
    }
    h
}

impl Stored {
    /// A format byte, the head's length, the head in JSON, the body.
    fn encode(&self) -> Bytes {
        let head = serde_json::to_vec(&self.head).expect("the head has only texts and numbers");
        let mut out = BytesMut::with_capacity(5 + head.len() + self.body.len());
        out.put_u8(FORMAT);
        out.put_u32(head.len() as u32);
        out.put_slice(&head);
        out.put_slice(&self.body);
        out.freeze()
    }

    fn decode(mut bytes: Bytes) -> Option<Self> {
        if *bytes.first()? != FORMAT || bytes.len() < 5 {
            return None;
        }
        let len = u32::from_be_bytes(bytes[1..5].try_into().ok()?) as usize;
        let head = serde_json::from_slice(bytes.get(5..5 + len)?).ok()?;
        Some(Self { head, body: bytes.split_off(5 + len) })
    }

    fn replay(self) -> Result<Response<Body>, Problem> {
        if self.head.too_large {
            let detail = format!(
                "the request with this key ran and was answered {}; the answer was over {} bytes and was not kept",
                self.head.status,
                limits::COLLECTED_BODY_BYTES
            );
            return Err(
                Problem::new(code::IDEMPOTENCY_NOT_REPLAYABLE, detail).with("ran_with_status", self.head.status)
            );
        }
        let trailers = Some(to_map(&self.head.trailers)).filter(|t| !t.is_empty());
        let mut r = Response::new(Body::with_trailers(self.body, trailers));
        *r.status_mut() = StatusCode::from_u16(self.head.status).unwrap_or(StatusCode::OK);
        *r.headers_mut() = to_map(&self.head.headers);
        r.headers_mut().insert(headers::IDEMPOTENCY_REPLAYED, HeaderValue::from_static("true"));
        Ok(r)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stored_answer_reads_back_and_a_foreign_format_does_not() {
        let s = Stored {
            head: Head {
                fingerprint: [7; 32],
                expires: Timestamp(9),
                status: 201,
                headers: vec![("location".into(), b"/x".to_vec()), ("set-cookie".into(), vec![0xe9])],
                trailers: vec![],
                too_large: false,
            },
            body: Bytes::from_static(b"body"),
        };
        let encoded = s.encode();
        assert_eq!(Stored::decode(encoded.clone()), Some(s));
        for bad in [&b""[..], b"\x01", b"\x02\0\0\0\0", b"\x01\xff\xff\xff\xff{}"] {
            assert_eq!(Stored::decode(Bytes::copy_from_slice(bad)), None);
        }
    }

    #[test]
    fn a_grpc_answer_keeps_its_key_when_it_is_final() {
        let of = |code: &'static str| {
            let mut r = Response::new(Body::from(Bytes::new()));
            r.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
            r.headers_mut().insert("grpc-status", HeaderValue::from_static(code));
            is_kept(&r)
        };
        assert!(of("0") && of("9"));
        assert!(!of("14") && !of("13") && !of("8"));
    }
}
