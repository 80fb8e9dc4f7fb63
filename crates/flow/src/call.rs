//! One attempt at a step: the request built from its templates, the call, what the answer means.
//!
//! `weft_policy::outcome` alone says what an answer means; here it becomes the machine's [`Outcome`]. Refused = the
//! service said so. Not done = never sent, or the service asks for less. All else is unknown. When an attempt before
//! the last one is in doubt, a refusal or an unsent retry proves nothing and the doubt travels with it.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE};
use http::{HeaderName, HeaderValue, Request};
use serde_json::Value;
use weft_broker::{Publish, PublishOptions};
use weft_core::{Class, Context, Deadline, Envelope, Name, limits};
use weft_mesh::{Answer, CallError, Mesh};
use weft_policy::Instance as Policy;
use weft_policy::attempt::Cause;
use weft_policy::outcome::{Judged as _, classify_push};

use crate::definition::{ActionDef, CallDef, Definition};
use crate::grpc::{Method, status_name};
use crate::instance::{Instance, Names};
use crate::machine::{Outcome, WorkId};
use crate::reflection::Services;
use crate::spec::{self, Idempotent};

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// Characters of a service's own words that are kept in an error.
const SAID: usize = 300;

/// What a piece of work comes to before anything is sent.
pub(crate) enum Prepared {
    /// Its condition is false.
    Skip,
    /// An event to publish in the commit of the transition.
    Publish(Box<Publish>),
    /// A request to send once the transition is durable.
    Send(Box<Sendable>),
    /// It cannot be built; nothing was sent.
    Impossible(String),
}

/// A request ready to be sent.
pub(crate) struct Sendable {
    pub work: WorkId,
    pub service: Name,
    pub policy: Policy,
    pub key: Option<String>,
    pub kind: Kind,
}

pub(crate) enum Kind {
    Http { method: http::Method, path: String, body: Option<Value> },
    Grpc { method: String, message: Value },
}

/// How an attempt ended, and whether one in it is in doubt.
pub(crate) struct Ended {
    pub outcome: Outcome,
    pub doubt: bool,
    /// The class for metrics and spans: success, retryable, overloaded, rejected, fault.
    pub class: &'static str,
}

/// The action or compensation a piece of work is.
pub(crate) fn definition_of(d: &Definition, id: WorkId) -> &ActionDef {
    let step = &d.steps[id.step];
    match id.undo {
        false => &step.action,
        true => step.compensate.as_ref().expect("the machine undoes only what its plan says can be undone"),
    }
}

/// The idempotency key of a piece of work: the same for every attempt, also after a restart.
pub(crate) fn idempotency_key(d: &Definition, i: &Instance, id: WorkId) -> String {
    let undo = if id.undo { ":undo" } else { "" };
    format!("{}:{}{undo}", i.id, d.steps[id.step].name)
}

/// Evaluates condition and templates.
pub(crate) fn prepare(d: &Definition, i: &Instance, id: WorkId) -> Prepared {
    let step = &d.steps[id.step];
    let names = Names { definition: d, instance: i, undo: id.undo.then_some(id.step) };
    if !id.undo {
        for when in [&d.stages[step.stage].when, &step.when].into_iter().flatten() {
            match when.eval_bool(&names) {
                Ok(true) => {}
                Ok(false) => return Prepared::Skip,
                Err(e) => return Prepared::Impossible(format!("when: {e}")),
            }
        }
    }
    let action = definition_of(d, id);
    build(d, i, id, action, &names).unwrap_or_else(|e| Prepared::Impossible(e.to_string()))
}

fn build(
    d: &Definition,
    i: &Instance,
    id: WorkId,
    action: &ActionDef,
    names: &Names<'_>,
) -> Result<Prepared, crate::expr::EvalError> {
    let key = idempotency_key(d, i, id);
    let send = |service: &Name, kind| {
        Prepared::Send(Box::new(Sendable {
            work: id,
            service: service.clone(),
            policy: action.instance.clone(),
            // A participant that promises nothing gets no key: nobody must take it for one that does.
            key: (action.idempotent != Idempotent::No).then(|| key.clone()),
            kind,
        }))
    };
    Ok(match &action.call {
        CallDef::Http { method, service, path, body } => {
            let body = body.as_ref().map(|b| b.eval(names)).transpose()?;
            send(service, Kind::Http { method: method.clone(), path: path.eval(names)?, body })
        }
        CallDef::Grpc { service, method, message } => {
            send(service, Kind::Grpc { method: method.clone(), message: message.eval(names)? })
        }
        CallDef::Publish { channel, ty, subject, data } => {
            let data = data.as_ref().map(|t| t.eval(names)).transpose()?;
            let mut event = Envelope::json(&format!("/sagas/{}", i.saga), ty, &data.unwrap_or_default());
            // The same event after a crash: consumers that look at ids see one.
            event.id = key;
            event.subject = subject.as_ref().map(|s| s.eval_text(names)).transpose()?;
            let channel = match channel {
                spec::Channel::Topic(n) => weft_broker::Channel::Topic(n.clone()),
                spec::Channel::Queue(n) => weft_broker::Channel::Queue(n.clone()),
            };
            Prepared::Publish(Box::new(Publish { channel, event, options: PublishOptions::default() }))
        }
    })
}

/// Sends, under the step's policy.
pub(crate) async fn send(mesh: &Mesh, services: &Services, ctx: &Context, s: &Sendable) -> Ended {
    match &s.kind {
        Kind::Http { method, path, body } => {
            let mut request = Request::new(Bytes::new());
            *request.method_mut() = method.clone();
            match path.parse() {
                Ok(uri) => *request.uri_mut() = uri,
                Err(e) => return unsent(Outcome::Refused(format!("'{path}' is not a path: {e}"))),
            }
            if let Some(b) = body {
                request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
                *request.body_mut() = Bytes::from(b.to_string());
            }
            request.headers_mut().insert(ACCEPT, HeaderValue::from_static("application/json"));
            with_key(&mut request, s.key.as_deref());
            ended(mesh.call(ctx, &s.service, request, &s.policy).await, http_answer)
        }
        Kind::Grpc { method, message } => {
            let (m, framed) = match services.encode(mesh, ctx, &s.service, method, message).await {
                Ok(found) => found,
                Err(outcome) => return unsent(outcome),
            };
            let mut request = Request::new(framed);
            *request.method_mut() = http::Method::POST;
            *request.uri_mut() = m.path().parse().expect("a protobuf name is a path segment");
            request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            with_key(&mut request, s.key.as_deref());
            ended(mesh.call(ctx, &s.service, request, &s.policy).await, |a| grpc_answer(&m, a))
        }
    }
}

/// The context of an attempt: an action is worth nothing past the saga's deadline; a compensation has no deadline but
/// the policy's, and a bound where that has none.
pub(crate) fn deadline(forward: Deadline, s: &Sendable) -> Deadline {
    match (s.work.undo, s.policy.policy().deadline) {
        (false, _) => forward,
        (true, Some(_)) => Deadline::NONE,
        (true, None) => Deadline::after(limits::SAGA_CALL),
    }
}

fn with_key(request: &mut Request<Bytes>, key: Option<&str>) {
    if let Some(v) = key.and_then(|k| HeaderValue::from_str(k).ok()) {
        request.headers_mut().insert(IDEMPOTENCY_KEY, v);
    }
}

fn unsent(outcome: Outcome) -> Ended {
    let class = if matches!(outcome, Outcome::Refused(_)) { "rejected" } else { "retryable" };
    Ended { outcome, doubt: false, class }
}

fn ended(done: Result<Answer, CallError>, read: impl FnOnce(&Answer) -> Read) -> Ended {
    match done {
        Ok(answer) => {
            let read = read(&answer);
            match (read.failure, read.value) {
                (None, Ok(v)) => Ended { outcome: Outcome::Done(Arc::new(v)), doubt: false, class: "success" },
                // It took effect, but the answer cannot be understood: only compensating is safe.
                (None, Err(said)) => Ended { outcome: Outcome::Refused(said), doubt: true, class: "rejected" },
                (Some(class), v) => {
                    let said = v.err().unwrap_or_default();
                    of_class(class, answer.doubt, said)
                }
            }
        }
        Err(failure) => {
            let judged = failure.outcome();
            let said = failure.to_string();
            match (&failure.cause, judged.unsent && !failure.doubt) {
                // The service answered, so it may well have done it.
                (Cause::Attempt(weft_mesh::Error::AnswerTooLarge { .. }), _) => {
                    Ended { outcome: Outcome::Refused(said), doubt: true, class: "rejected" }
                }
                (_, true) => Ended { outcome: Outcome::NotDone(said), doubt: false, class: "retryable" },
                _ => of_class(judged.failure.unwrap_or(Class::Fault), failure.doubt, said),
            }
        }
    }
}

fn of_class(class: Class, doubt: bool, said: String) -> Ended {
    let (outcome, class) = match class {
        Class::Rejected => (Outcome::Refused(said), "rejected"),
        Class::Overloaded if !doubt => (Outcome::NotDone(said), "overloaded"),
        Class::Overloaded => (Outcome::Unknown(said), "overloaded"),
        Class::Retryable => (Outcome::Unknown(said), "retryable"),
        Class::Fault => (Outcome::Unknown(said), "fault"),
    };
    Ended { outcome, doubt, class }
}

struct Read {
    failure: Option<Class>,
    value: Result<Value, String>,
}

fn http_answer(a: &Answer) -> Read {
    // A redirect is not followed, so nothing was done: as for a push, it is a refusal.
    let failure = if a.status.is_redirection() { classify_push(a.status.as_u16()).failure } else { a.outcome.failure };
    let value = match failure {
        None if a.body.is_empty() => Ok(Value::Null),
        None => Ok(serde_json::from_slice(&a.body)
            .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&a.body).into_owned()))),
        Some(_) => Err(format!("HTTP {}{}", a.status.as_u16(), said(&a.body))),
    };
    Read { failure, value }
}

/// What the service said, in its own words: the detail of a problem document, or the start of its text.
fn said(body: &[u8]) -> String {
    let problem: Option<Value> = serde_json::from_slice(body).ok();
    let member = |k: &str| problem.as_ref().and_then(|p| p.get(k)).and_then(Value::as_str).map(str::to_owned);
    let text = ["detail", "message", "error", "title"].into_iter().find_map(member);
    let text = text.unwrap_or_else(|| String::from_utf8_lossy(&body[..body.len().min(4 * SAID)]).into_owned());
    let text: String = text.trim().chars().take(SAID).collect();
    if text.is_empty() { text } else { format!(": {text}") }
}

fn grpc_answer(m: &Method, a: &Answer) -> Read {
    if let Some(failure) = a.outcome.failure {
        let said = match a.grpc_status() {
            Some((code, message)) => {
                let text = percent_encoding::percent_decode_str(message.unwrap_or_default()).decode_utf8_lossy();
                let text: String = text.chars().take(SAID).collect();
                if text.is_empty() { status_name(code).to_owned() } else { format!("{}: {text}", status_name(code)) }
            }
            None => format!("HTTP {} instead of a gRPC answer", a.status.as_u16()),
        };
        return Read { failure: Some(failure), value: Err(said) };
    }
    if a.grpc_status().is_none() {
        let said = "the answer has no grpc-status: is this a gRPC service?".to_owned();
        return Read { failure: None, value: Err(said) };
    }
    Read { failure: None, value: m.decode(&a.body).map_err(|e| e.to_string()) }
}
