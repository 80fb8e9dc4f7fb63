//! A saga as configuration describes it. Expressions are CEL source text; `definition` compiles them.
//!
//! Names an expression may use: `input`, `saga` (`saga.id`, `saga.key`), the result of each finished step by the step's
//! name, and in a compensation `result` (its action's answer, null when its outcome is unknown).

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use weft_core::Name;
use weft_policy::Policy;

/// A saga definition.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SagaSpec {
    /// Its name.
    pub name: Name,
    /// Time for the forward path; past it the saga compensates. Compensation has no deadline.
    pub deadline: Option<Duration>,
    /// In order.
    pub steps: Vec<Step>,
    /// The answer of a completed saga: a template like [`Call::with`].
    pub result: Option<Value>,
}

/// One named step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// Unique in the saga.
    pub name: Name,
    /// CEL; the step is skipped when false.
    pub when: Option<String>,
    /// What it does.
    pub kind: StepKind,
}

/// What a step does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(clippy::large_enum_variant, reason = "a definition has few steps, and they are written by hand")]
pub enum StepKind {
    /// One action and how to undo it.
    Action {
        /// Forward.
        action: Action,
        /// Backward.
        compensate: Option<Action>,
    },
    /// Steps that run at once; it ends when all ended.
    Parallel(Vec<Step>),
}

/// An action with its policy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Action {
    /// What is done.
    pub call: Call,
    /// Resolved policy; its retry runs inside one step attempt.
    pub policy: Policy,
    /// What the participant promises about repeats.
    pub idempotent: Idempotent,
}

/// What is called.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Call {
    /// `POST order/orders/{saga.id}/cancel`: an HTTP request; `{cel}` in the path.
    Http {
        /// Method.
        method: String,
        /// Service.
        service: Name,
        /// Path and query with `{cel}` placeholders, starting with `/`.
        path: String,
        /// JSON body: every string in it is CEL, numbers, booleans and null are themselves.
        with: Option<Value>,
    },
    /// `inventory/Reserve` or `inventory/shop.v1.Inventory/Reserve`: a unary gRPC method.
    Grpc {
        /// Service.
        service: Name,
        /// Method, or package.Service/Method.
        method: String,
        /// The request message in protobuf JSON, a template as above.
        with: Option<Value>,
    },
    /// Publishes an event in the same commit as the saga's transition.
    Publish {
        /// `topic` or `queue`.
        channel: Channel,
        /// CloudEvents type.
        ty: String,
        /// CEL of the subject.
        subject: Option<String>,
        /// The data, a template as above.
        with: Option<Value>,
    },
}

/// Where a publish goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Channel {
    /// A topic.
    Topic(Name),
    /// A queue.
    Queue(Name),
}

/// What the participant promises about repeats.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Idempotent {
    /// It honours the Idempotency-Key (HTTP) or `idempotency-key` metadata (gRPC) that Weft sends.
    #[default]
    Key,
    /// Repeating is harmless by nature.
    Natural,
    /// It promises nothing: an unknown outcome parks the saga.
    No,
}
