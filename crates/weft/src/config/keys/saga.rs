//! `sagas:`

use std::time::Duration;

use serde_json::{Value as Json, json};
use weft_core::Name;

use super::policy::Policies;
use crate::config::declare::{Declared, section, words};
use crate::config::expr::{Cel, Template, check_placeholders};
use crate::config::node::{Data, Node};
use crate::config::report::Mistake;
use crate::config::source::Span;
use crate::config::value::{Cx, Switch, Value, scalar, shorten};

section! {
    /// A sequence of steps with compensations: it ends completed, or compensated in reverse, or parked with a reason.
    /// Expressions see `input`, `saga.id`, `saga.key` and the result of each finished step by the step's name.
    Saga {
        /// Time for the forward path; past it the saga compensates.
        "deadline" deadline: opt(Switch<Duration>),
        /// What it does, in order: a list of `- name: step`.
        "steps" steps: req(Steps),
        /// The answer of a completed saga.
        "result" result: opt(Template),
    }
}

words! {
    /// What a participant promises about repeats.
    Promise { "key" Key, "natural" Natural, "no" No }
}

section! {
    /// One step: exactly one of `call`, `publish` and `parallel`.
    Step {
        /// CEL; the step is skipped when false.
        "when" when: opt(Cel),
        /// `POST order/orders/{saga.id}/cancel` (HTTP: method, service, path), `inventory/Reserve` or `inventory/pkg.Service/Method` (gRPC).
        "call" call: opt(CallText),
        /// The JSON body or the gRPC request message.
        "with" with: opt(Template),
        /// Publishes an event in the same commit as the saga's transition.
        "publish" publish: opt(Publish),
        /// Steps that run at once; it ends when all ended.
        "parallel" parallel: opt(Steps),
        /// How to undo it. Expressions also see `result`, the step's own answer (null when its outcome is unknown).
        "compensate" compensate: opt(Compensation),
        /// Policy of the call, above the service's.
        "policy" policy: opt(Policies),
        /// What the participant promises about repeats: it honours the key that Weft sends, repeating is harmless by nature, or nothing (an unknown outcome parks the saga).
        "idempotent" idempotent: def(Promise, "key"),
    }
}

section! {
    /// How a step is undone: exactly one of `call` and `publish`.
    Compensation {
        /// As in a step.
        "call" call: opt(CallText),
        /// As in a step.
        "with" with: opt(Template),
        /// As in a step.
        "publish" publish: opt(Publish),
        /// As in a step.
        "policy" policy: opt(Policies),
        /// As in a step.
        "idempotent" idempotent: def(Promise, "key"),
    }
}

section! {
    /// An event to publish, to exactly one of `topic` and `queue`.
    Publish {
        /// A topic.
        "topic" topic: opt(Name),
        /// A queue.
        "queue" queue: opt(Name),
        /// CloudEvents type.
        "type" ty: req(String),
        /// CEL of the subject.
        "subject" subject: opt(Cel),
        /// The data.
        "data" data: opt(Template),
    }
}

/// What stands at `call:`.
#[derive(Clone, Debug)]
pub(in crate::config) enum CallText {
    /// `POST service/path`
    Http {
        /// Method.
        method: String,
        /// Service.
        service: Name,
        /// With `{cel}` placeholders, from `/`.
        path: String,
    },
    /// `service/Method`
    Grpc {
        /// Service.
        service: Name,
        /// `Method` or `pkg.Service/Method`.
        method: String,
    },
}

const METHODS: [&str; 7] = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"];
const SHAPE: &str = "write 'POST service/path' for HTTP or 'service/Method' for gRPC";

impl CallText {
    /// The service it calls.
    pub fn service(&self) -> &Name {
        match self {
            Self::Http { service, .. } | Self::Grpc { service, .. } => service,
        }
    }
}

impl Value for CallText {
    fn read(node: &Node, cx: &mut Cx<'_>) -> Option<Self> {
        let s = scalar(node, cx, "a call")?;
        let bad = |cx: &mut Cx<'_>, message: String, help: String| {
            cx.say(Mistake::new(Some(node.span), message).help(help));
            None
        };
        let text = s.text.as_str();
        let Some((method, rest)) = text.split_once(' ').map(|(m, r)| (m, r.trim_start())) else {
            let Some((service, method)) = text.split_once('/') else {
                return bad(cx, format!("'{}' is not a call", shorten(text)), SHAPE.to_owned());
            };
            let dotted = |m: &str| m.split(['/', '.']).all(is_word) && m.matches('/').count() <= 1;
            return match Name::new(service) {
                Ok(service) if dotted(method) => Some(Self::Grpc { service, method: method.to_owned() }),
                _ => bad(cx, format!("'{}' is not a call", shorten(text)), SHAPE.to_owned()),
            };
        };
        if !METHODS.contains(&method) {
            let help = crate::config::report::suggest(method, "method", METHODS);
            return bad(cx, format!("'{}' is not an HTTP method", shorten(method)), help);
        }
        let (service, path) = rest.split_once('/').unwrap_or((rest, ""));
        let Ok(service) = Name::new(service) else {
            return bad(cx, format!("'{}' is not the name of a service", shorten(service)), SHAPE.to_owned());
        };
        // Placeholders stand after method, blanks and service.
        let before = text.len() - path.len();
        let skip = text[..before].chars().count() as u32;
        let part = match s.verbatim {
            Some(quote) => Span { start: node.span.start + quote + skip, ..node.span },
            None => node.span,
        };
        check_placeholders(path, part, s.verbatim.map(|_| 0), cx).then(|| Self::Http {
            method: method.to_owned(),
            service,
            path: format!("/{path}"),
        })
    }
    fn schema(_: &mut Declared) -> Json {
        json!({"type": "string"})
    }
    fn kind() -> String {
        "call".to_owned()
    }
}

fn is_word(s: &str) -> bool {
    !s.is_empty() && s.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// `- name: step`, in order.
#[derive(Clone, Debug)]
pub(in crate::config) struct Steps(pub Vec<NamedStep>);

/// One of [`Steps`].
#[derive(Clone, Debug)]
pub(in crate::config) struct NamedStep {
    /// Its name.
    pub name: Name,
    /// Where.
    pub at: Span,
    /// `None` = mistakes inside, reported.
    pub step: Option<Step>,
}

impl Value for Steps {
    fn read(node: &Node, cx: &mut Cx<'_>) -> Option<Self> {
        let Data::List(items) = &node.data else {
            let mistake = Mistake::new(Some(node.owner), format!("steps are a list, found {}", node.what()));
            cx.say(mistake.help("write '- name: { call: ... }'"));
            return None;
        };
        let mut out = Vec::new();
        for item in items {
            match &item.data {
                Data::Map(entries) if entries.len() == 1 => {
                    let (key, value) = &entries[0];
                    let step = Step::read(value, cx);
                    match Name::new(&key.text) {
                        Ok(name) => out.push(NamedStep { name, at: key.span, step }),
                        Err(_) => cx.say(
                            Mistake::new(Some(key.span), format!("'{}' is not a name", shorten(&key.text)))
                                .help("use letters, digits, '.', '_' and '-'"),
                        ),
                    }
                }
                _ => cx.say(
                    Mistake::new(Some(item.span), "a step is one name with its step")
                        .help("write '- name: { call: ... }'"),
                ),
            }
        }
        Some(Steps(out))
    }
    fn schema(declared: &mut Declared) -> Json {
        let step = declared.section::<Step>();
        json!({"type": "array", "items": {"type": "object", "minProperties": 1, "maxProperties": 1, "additionalProperties": step}})
    }
    fn kind() -> String {
        format!("list of `- name:` {}", Step::kind())
    }
}
