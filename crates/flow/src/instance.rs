//! A saga instance as it is stored, and as callers see it.

use std::str::FromStr as _;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use weft_core::trace::SpanId;
use weft_core::{Context, Id, Name, Principal, Timestamp, Trace};

use crate::definition::Definition;
use crate::error::{Error, Result};
use crate::expr::Scope;
use crate::machine::{Phase, State, Status, Turned, Work};

/// One running or ended saga.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Instance {
    /// Its id.
    pub id: Id,
    /// The saga's name.
    pub saga: Name,
    /// The key that started it.
    pub key: String,
    /// The hash of the definition it began with.
    pub definition: String,
    /// Its input.
    pub input: Arc<Value>,
    /// The saga's span.
    trace: StoredTrace,
    /// On whose behalf, when somebody is named.
    principal: Option<String>,
    /// W3C baggage.
    baggage: Option<String>,
    /// When it began.
    pub created: Timestamp,
    /// When it last changed.
    pub updated: Timestamp,
    /// When its forward path is given up.
    pub deadline: Timestamp,
    /// Where it stands.
    pub state: State,
    /// The answer of a completed saga.
    pub result: Option<Value>,
    /// Why a completed saga has no answer although it should.
    pub result_error: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct StoredTrace {
    span: String,
    parent: Option<u64>,
}

const FORMAT: u8 = 1;

impl Instance {
    /// A fresh instance; its span is a child of the caller's.
    pub fn new(d: &Definition, id: Id, key: String, input: Value, ctx: &Context, now: Timestamp) -> Self {
        let trace = ctx.trace.child();
        Self {
            id,
            saga: d.name.clone(),
            key,
            definition: d.hash.clone(),
            input: Arc::new(input),
            trace: StoredTrace { span: trace.to_traceparent(), parent: trace.parent.map(|p| p.0) },
            principal: match &ctx.principal {
                Principal::Anonymous => None,
                Principal::Named(n) => Some(n.to_string()),
            },
            baggage: ctx.baggage.as_ref().map(|b| b.to_string()),
            created: now,
            updated: now,
            deadline: now.plus(d.deadline),
            state: State::new(&d.plan),
            result: None,
            result_error: None,
        }
    }

    /// The saga's span, the same after a restart.
    pub fn trace(&self) -> Trace {
        let stored = Trace::parse(&self.trace.span).unwrap_or_else(Trace::root);
        Trace { parent: self.trace.parent.map(SpanId), ..stored }
    }

    /// What its start is known by: the key counts per saga and principal.
    pub(crate) fn start_key(&self) -> Vec<u8> {
        key::start(&self.saga, &self.key, self.principal.as_deref())
    }

    /// The context its steps run in.
    pub fn context(&self) -> Context {
        let mut ctx = Context::of(self.trace());
        if let Some(p) = &self.principal {
            ctx.principal = Principal::Named(p.as_str().into());
        }
        ctx.baggage = self.baggage.as_deref().map(Arc::from);
        ctx
    }

    /// The stored form: JSON behind one format byte.
    pub fn encode(&self) -> Bytes {
        let mut out = vec![FORMAT];
        serde_json::to_writer(&mut out, self).expect("an instance is plain data");
        out.into()
    }

    /// Reads the stored form.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let bad = |reason: String| Error::Stored { what: "a saga instance".into(), reason };
        match bytes.split_first() {
            Some((&FORMAT, json)) => serde_json::from_slice(json).map_err(|e| bad(e.to_string())),
            other => Err(bad(format!("format {:?}, this binary reads {FORMAT}", other.map(|o| o.0)))),
        }
    }

    /// What callers see.
    pub fn view(&self, d: Option<&Definition>) -> View {
        let s = &self.state;
        let error = s.parked.clone().or_else(|| s.cause.clone()).or_else(|| self.result_error.clone());
        let steps = s.steps.iter().enumerate().map(|(i, step)| StepView {
            name: d.and_then(|d| d.steps.get(i)).map_or_else(|| format!("step {}", i + 1), |s| s.name.to_string()),
            status: step.action.status,
            attempts: step.action.attempts,
            started: step.action.started.map(|t| t.to_string()),
            ended: step.action.ended.map(|t| t.to_string()),
            result: step.result.clone(),
            error: step.action.error.clone(),
            compensation: Compensation::of(&step.undo),
        });
        View {
            id: self.id.to_string(),
            saga: self.saga.to_string(),
            key: self.key.clone(),
            status: s.phase.status(),
            input: self.input.clone(),
            result: self.result.clone(),
            error,
            cause: s.turned,
            steps: steps.collect(),
            trace_id: self.trace().trace_id.to_string(),
            created: self.created.to_string(),
            updated: self.updated.to_string(),
        }
    }
}

/// An instance as the API shows it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct View {
    /// Its id.
    pub id: String,
    /// The saga's name.
    pub saga: String,
    /// The key that started it.
    pub key: String,
    /// `running`, `compensating`, `completed`, `compensated` or `parked`.
    pub status: &'static str,
    /// Its input.
    pub input: Arc<Value>,
    /// The answer of a completed saga.
    pub result: Option<Value>,
    /// Why it is parked, or compensates.
    pub error: Option<String>,
    /// `rejected` (a step was refused), `deadline` or `cancelled`: why it compensates.
    pub cause: Option<Turned>,
    /// Its steps, in order.
    pub steps: Vec<StepView>,
    /// Its trace.
    pub trace_id: String,
    /// RFC 3339.
    pub created: String,
    /// RFC 3339.
    pub updated: String,
}

/// A step as the API shows it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StepView {
    /// Its name.
    pub name: String,
    /// Where its action stands.
    pub status: Status,
    /// Times the action was begun; a policy's retries inside one are not counted.
    pub attempts: u32,
    /// First begun.
    pub started: Option<String>,
    /// Settled.
    pub ended: Option<String>,
    /// The action's answer.
    pub result: Option<Arc<Value>>,
    /// What the last attempt met.
    pub error: Option<String>,
    /// How its compensation stands, once there is one.
    pub compensation: Option<Compensation>,
}

/// A compensation as the API shows it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Compensation {
    /// Where it stands.
    pub status: Status,
    /// Times it was begun.
    pub attempts: u32,
    /// First begun.
    pub started: Option<String>,
    /// Settled.
    pub ended: Option<String>,
    /// What the last attempt met.
    pub error: Option<String>,
}

impl Compensation {
    fn of(w: &Work) -> Option<Self> {
        (!matches!(w.status, Status::Pending | Status::Skipped)).then(|| Self {
            status: w.status,
            attempts: w.attempts,
            started: w.started.map(|t| t.to_string()),
            ended: w.ended.map(|t| t.to_string()),
            error: w.error.clone(),
        })
    }
}

/// The names an expression of this instance may use; in a compensation, those of its step.
pub struct Names<'a> {
    /// The definition.
    pub definition: &'a Definition,
    /// The instance.
    pub instance: &'a Instance,
    /// The step that is being compensated.
    pub undo: Option<usize>,
}

impl Scope for Names<'_> {
    fn value(&self, name: &str) -> Option<Arc<Value>> {
        let i = self.instance;
        let result = |step: usize| i.state.steps[step].result.clone().unwrap_or_default();
        match (name, self.undo) {
            ("input", _) => Some(i.input.clone()),
            ("saga", _) => Some(Arc::new(json!({"id": i.id.to_string(), "key": i.key, "name": i.saga.as_str()}))),
            ("result", Some(step)) => Some(result(step)),
            _ => self.definition.steps.iter().position(|s| s.name.as_str() == name).map(result),
        }
    }
}

/// Keys in the store.
pub(crate) mod key {
    use super::*;

    /// Instances by inverted id, so that the newest come first.
    pub const INSTANCES: &str = "saga/instances";
    /// `{saga}\0{start key}`, and `\0{principal}` for a named one, to id.
    pub const KEYS: &str = "saga/keys";
    /// Definitions by hash.
    pub const DEFINITIONS: &str = "saga/definitions";
    /// `s{status}` and the instance's key: instances by status; `e{ended}{id}`: ended instances by age.
    pub const INDEX: &str = "saga/index";

    /// Instances in a phase start with this in the index.
    pub fn status(phase: Phase) -> [u8; 2] {
        let status = match phase {
            Phase::Forward => b'r',
            Phase::Compensating => b'c',
            Phase::Completed => b'd',
            Phase::Compensated => b'u',
            Phase::ParkedForward | Phase::ParkedCompensating => b'p',
        };
        [b's', status]
    }

    pub fn instance(id: Id) -> [u8; 16] {
        (!id.as_u128()).to_be_bytes()
    }

    /// The id in the last 16 bytes of an instance's or status key.
    pub fn id(key: &[u8]) -> Option<Id> {
        let tail: [u8; 16] = key.get(key.len().checked_sub(16)?..)?.try_into().ok()?;
        let n = !u128::from_be_bytes(tail);
        let hex = format!("{n:032x}");
        Id::from_str(&hex).ok()
    }

    pub fn by_status(phase: Phase, id: Id) -> Vec<u8> {
        [status(phase).as_slice(), &instance(id)].concat()
    }

    pub fn ended(at: Timestamp, id: Id) -> Vec<u8> {
        [b"e".as_slice(), &at.0.to_be_bytes(), &instance(id)].concat()
    }

    /// The instant of an `e` key.
    pub fn ended_at(key: &[u8]) -> Option<Timestamp> {
        Some(Timestamp(u64::from_be_bytes(key.get(1..9)?.try_into().ok()?)))
    }

    /// Principals do not see each other's keys.
    pub fn start(saga: &str, key: &str, principal: Option<&str>) -> Vec<u8> {
        let mut out = [saga.as_bytes(), b"\0", key.as_bytes()].concat();
        if let Some(p) = principal {
            out.push(0);
            out.extend_from_slice(p.as_bytes());
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_sort_the_newest_first_and_give_the_id_back() {
        let old = Id::from_parts(1_000, [7; 10]);
        let new = Id::from_parts(2_000, [1; 10]);
        assert!(key::instance(new) < key::instance(old));
        assert_eq!(key::id(&key::instance(old)), Some(old));
        assert_eq!(key::id(&key::by_status(Phase::Forward, new)), Some(new));
        let at = Timestamp(12_345);
        assert_eq!(key::ended_at(&key::ended(at, new)), Some(at));
        assert_eq!(key::id(&key::ended(at, new)), Some(new));
        assert!(key::ended(Timestamp(1), new) < key::ended(at, old));
        assert_eq!(key::id(b"short"), None);
    }
}
