//! Push subscriptions: Weft calls the service itself. One task a subscription receives like any consumer, keeps up to
//! `concurrency` calls under way, and turns each call's outcome into a settlement.
//!
//! What was refused before it was sent (open breaker, full bulkhead, no instance) costs the message no attempt: it goes
//! back as it was, and the subscription pauses.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use http::header::{HeaderName, HeaderValue};
use http::{Method, Request, header};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use tokio::task::JoinSet;
use tokio::time::Instant;
use weft_core::task::Shutdown;
use weft_core::{Class, Context, Deadline, Envelope, limits};
use weft_mesh::{Answer, CallError, Mesh};
use weft_policy::attempt::Cause;
use weft_policy::outcome::Judged as _;
use weft_policy::{Instance, Policy, breaker};
use weft_telemetry::span::{self, SpanKind, SpanStatus};

use crate::broker::Broker;
use crate::queue::backoff;
use crate::spec::{Push, Redelivery};
use crate::types::{Delivery, NackOptions, ReceiveOptions, Source};

/// Time a call's settlement has after the call itself before the lease ends.
const SETTLE: Duration = Duration::from_secs(5);
/// Pause after a refusal that does not say how long it lasts.
const PAUSE: Duration = Duration::from_millis(100);
/// Pause when there is nobody to call.
const NOBODY: Duration = Duration::from_millis(500);
/// Messages asked for at once.
const ASK: usize = 64;
/// How long one receive waits.
const WAIT: Duration = Duration::from_secs(30);
/// Bytes of an answer's body quoted as the reason of a failure.
const QUOTE: usize = 200;

/// What a pool works on; a change of it means a new pool.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Job {
    pub source: Source,
    pub push: Push,
    pub redelivery: Redelivery,
    pub lease: Duration,
}

/// A running pool; ends when told to, calls under way included.
pub(crate) struct Pool {
    pub job: Job,
    stop: Shutdown,
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.stop.trigger();
    }
}

impl Pool {
    pub fn start(job: Job, broker: Broker, mesh: Mesh) -> Self {
        let stop = Shutdown::new();
        // Redelivery is the retry: it survives restarts and keeps the place of the message.
        let policy = Instance::new(&Policy { retry: None, ..job.push.policy.clone() });
        let (kind, name) = job.source.parts();
        policy.tell(broker.telemetry().metrics(), &format!("{kind} {name}"));
        let pusher = Arc::new(Pusher {
            policy,
            lease: job.push.policy.deadline.map_or(job.lease, |d| job.lease.max(d + SETTLE)),
            broker,
            mesh,
            job: job.clone(),
        });
        weft_core::task::spawn("push subscription", run(pusher, stop.clone()));
        Self { job, stop }
    }
}

struct Pusher {
    broker: Broker,
    mesh: Mesh,
    policy: Instance,
    lease: Duration,
    job: Job,
}

type Receiving = Pin<Box<dyn Future<Output = crate::Result<Vec<Delivery>>> + Send>>;

async fn run(p: Arc<Pusher>, stop: Shutdown) {
    let mut calls: JoinSet<Option<Duration>> = JoinSet::new();
    let mut receiving: Option<Receiving> = None;
    let mut paused = Instant::now();
    let pause = |paused: &mut Instant, d: Option<Duration>| {
        if let Some(d) = d {
            *paused = (*paused).max(Instant::now() + d);
        }
    };
    loop {
        let free = p.concurrency().saturating_sub(calls.len());
        let may_ask = receiving.is_none() && free > 0;
        tokio::select! {
            biased;
            () = stop.triggered() => break,
            Some(done) = calls.join_next() => pause(&mut paused, done.ok().flatten()),
            () = tokio::time::sleep_until(paused), if may_ask => receiving = Some(p.clone().ask(free.min(ASK))),
            got = next(&mut receiving), if receiving.is_some() => {
                receiving = None;
                match got {
                    Ok(deliveries) => deliveries.into_iter().for_each(|d| {
                        calls.spawn(p.clone().deliver(d));
                    }),
                    Err(crate::Error::Closed) => break,
                    Err(e) => {
                        tracing::warn!(subscription = %p.job.source, error = %e, "receiving for a push failed");
                        pause(&mut paused, Some(PAUSE));
                    }
                }
            }
        }
    }
    // A receive that is dropped gives back what it was handed.
    drop(receiving);
    while calls.join_next().await.is_some() {}
}

async fn next(receiving: &mut Option<Receiving>) -> crate::Result<Vec<Delivery>> {
    match receiving {
        Some(r) => r.await,
        None => std::future::pending().await,
    }
}

impl Pusher {
    /// Calls at once: as configured, and one while the breaker is not closed, because most would be refused.
    fn concurrency(&self) -> usize {
        match self.policy.breaker_status() {
            Some(s) if s.state != breaker::Name::Closed => 1,
            _ => self.job.push.concurrency.clamp(1, limits::PUSH_CONCURRENCY) as usize,
        }
    }

    fn ask(self: Arc<Self>, max: usize) -> Receiving {
        let options = ReceiveOptions { max, wait: WAIT, lease: Some(self.lease) };
        Box::pin(async move { self.broker.take(self.job.source.clone(), options, false).await })
    }

    /// Delivers one message; the answer is how long to pause.
    async fn deliver(self: Arc<Self>, d: Delivery) -> Option<Duration> {
        let Some(trace) = d.event.traceparent().and_then(weft_core::Trace::parse) else {
            // Every delivery is stamped; this one is not ours to judge.
            return Some(PAUSE);
        };
        let span_trace = weft_core::Trace { parent: d.caused_by, ..trace };
        let name = format!("deliver {}", self.job.source.parts().1);
        let mut running = span::start(span_trace, name, SpanKind::Consumer, "broker");
        running.set("messaging.message.id", d.event.id.clone());
        running.set("messaging.delivery.attempt", i64::from(d.attempt));
        let ctx =
            Context { deadline: Deadline::after(self.lease - SETTLE.min(self.lease / 2)), ..Context::of(span_trace) };
        let telemetry = self.broker.telemetry().clone();
        let request = match request(&self.job.push.path, &d) {
            Ok(r) => r,
            Err(reason) => {
                telemetry.record(running.fail("invalid-event", reason.clone()));
                self.give_back(&d, Some(reason), None, true).await;
                return None;
            }
        };
        let done = self.mesh.call(&ctx, &self.job.push.service, request, &self.policy).await;
        match self.judge(&done, d.attempt) {
            Verdict::Ack => {
                telemetry.record(running.end(SpanStatus::Ok));
                if let Err(e) = self.broker.ack(std::slice::from_ref(&d.token)).await {
                    tracing::warn!(subscription = %self.job.source, error = %e, "a pushed message was taken but not acknowledged; it will be pushed again");
                }
                None
            }
            Verdict::Release(pause) => {
                self.broker.release(&d).await;
                Some(pause)
            }
            Verdict::Again { reason, delay } => {
                telemetry.record(running.fail("push-failed", reason.clone()));
                self.give_back(&d, Some(reason), delay, false).await;
                None
            }
            Verdict::Dead(reason) => {
                tracing::warn!(trace_id = %span_trace.trace_id, subscription = %self.job.source, id = %d.event.id, reason, "a pushed message was refused: it goes to the dead-letter queue");
                telemetry.record(running.fail("push-rejected", reason.clone()));
                self.give_back(&d, Some(reason), None, true).await;
                None
            }
        }
    }

    async fn give_back(&self, d: &Delivery, reason: Option<String>, delay: Option<Duration>, dead_letter: bool) {
        let options = NackOptions { delay, reason, dead_letter };
        if let Err(e) = self.broker.nack(std::slice::from_ref(&d.token), options).await {
            tracing::warn!(subscription = %self.job.source, error = %e, "a failed push could not be given back; its lease will end");
        }
    }

    fn judge(&self, done: &Result<Answer, CallError>, attempt: u32) -> Verdict {
        let outcome = match done {
            Ok(answer) => answer.outcome,
            Err(failure) => match &failure.cause {
                Cause::Refused(r) => {
                    return Verdict::Release(r.retry_after().unwrap_or(PAUSE).clamp(PAUSE, limits::RECEIVE_WAIT));
                }
                Cause::Attempt(weft_mesh::Error::NoInstances { .. }) => return Verdict::Release(NOBODY),
                cause => cause.outcome(),
            },
        };
        let reason = match done {
            Ok(answer) => quote(answer),
            Err(failure) => failure.cause.to_string(),
        };
        match outcome.failure {
            None => Verdict::Ack,
            Some(Class::Rejected) => Verdict::Dead(reason),
            Some(_) => {
                let own = backoff(&self.job.redelivery, attempt);
                Verdict::Again { reason, delay: outcome.retry_after.map(|asked| asked.max(own)) }
            }
        }
    }
}

enum Verdict {
    Ack,
    /// Nothing was sent: as if it had not been delivered.
    Release(Duration),
    Again {
        reason: String,
        delay: Option<Duration>,
    },
    Dead(String),
}

fn quote(a: &Answer) -> String {
    let text = String::from_utf8_lossy(&a.body[..a.body.len().min(QUOTE)]);
    match text.trim() {
        "" => format!("the service answered {}", a.status),
        text => format!("the service answered {}: {text}", a.status),
    }
}

/// HTTP protocol binding 1.0.2, 3.1.3.2: what a header value may not hold as it is.
const ENCODED: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'%');

/// CloudEvents HTTP binary mode: attributes as `ce-` headers, the data as the body.
fn request(path: &str, d: &Delivery) -> Result<Request<bytes::Bytes>, String> {
    let e: &Envelope = &d.event;
    let mut r = Request::new(e.data.clone());
    *r.method_mut() = Method::POST;
    *r.uri_mut() = path.parse().map_err(|_| format!("the push path '{path}' is not a path"))?;
    let fixed = [("specversion", Some("1.0")), ("id", Some(&e.id)), ("source", Some(&e.source)), ("type", Some(&e.ty))];
    let optional =
        [("subject", e.subject.as_deref()), ("time", e.time.as_deref()), ("dataschema", e.data_schema.as_deref())];
    let extensions = e.extensions.iter().map(|(k, v)| (k.as_str(), Some(v.as_str())));
    for (name, value) in fixed.into_iter().chain(optional).chain(extensions) {
        let Some(value) = value else { continue };
        let text = utf8_percent_encode(value, ENCODED).to_string();
        let bad = || format!("attribute '{name}' cannot be sent as a header");
        let name = HeaderName::try_from(format!("ce-{name}")).map_err(|_| bad())?;
        r.headers_mut().insert(name, HeaderValue::try_from(text).map_err(|_| bad())?);
    }
    if let Some(ct) = &e.data_content_type {
        let value = HeaderValue::try_from(ct).map_err(|_| "the content type cannot be sent as a header".to_owned())?;
        r.headers_mut().insert(header::CONTENT_TYPE, value);
    }
    r.headers_mut().insert(HeaderName::from_static("weft-attempt"), HeaderValue::from(d.attempt));
    Ok(r)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_push_is_a_cloudevent_in_binary_mode() {
        let mut e = Envelope::json("/shop", "OrderCreated", &json!({"a": 1}));
        e.subject = Some("Grüße \"1\" 100%".into());
        e.extensions.insert("tenant".into(), "acme".into());
        let d = Delivery { token: String::new(), position: 1, attempt: 3, event: e, caused_by: None };
        let r = request("/events?x=1", &d).unwrap();
        let h = |n: &str| r.headers()[n].to_str().unwrap().to_owned();
        assert_eq!((r.method().as_str(), r.uri().to_string().as_str()), ("POST", "/events?x=1"));
        assert_eq!((h("ce-specversion").as_str(), h("ce-type").as_str()), ("1.0", "OrderCreated"));
        assert_eq!(h("ce-subject"), "Gr%C3%BC%C3%9Fe%20%221%22%20100%25");
        assert_eq!((h("ce-tenant").as_str(), h("content-type").as_str()), ("acme", "application/json"));
        assert_eq!((h("weft-attempt").as_str(), r.body().as_ref()), ("3", b"{\"a\":1}".as_slice()));
    }
}
