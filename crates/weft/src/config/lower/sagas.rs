//! `sagas:`

use weft_core::{Name, limits};
use weft_flow::definition::{self, Catalog, CatalogService};
use weft_flow::spec::{Action, Call, Channel, Idempotent, SagaSpec, Step, StepKind};
use weft_mesh::spec::{Protocol, ServiceSpec};

use super::Lower;
use super::services::{spoken_by, word};
use crate::config::expr::{Template, complain};
use crate::config::keys::policy::Policies;
use crate::config::keys::saga::{self as keys, CallText, NamedStep, Promise};
use crate::config::layer::{self, Use};
use crate::config::node::{Data, Node};
use crate::config::report::Mistake;
use crate::config::source::{At, Span};
use crate::config::value::Switch;

/// Names that expressions already use.
const RESERVED: [&str; 3] = ["input", "saga", "result"];

/// What a step and a compensation have in common.
struct Written<'a> {
    call: &'a Option<At<CallText>>,
    with: &'a Option<At<Template>>,
    publish: &'a Option<At<keys::Publish>>,
    policy: &'a Option<At<Policies>>,
    idempotent: &'a At<Promise>,
    at: Span,
    broken: bool,
}

impl Lower<'_, '_, '_> {
    pub(super) fn sagas(&mut self, services: &[ServiceSpec]) -> Vec<SagaSpec> {
        let catalog = self.catalog(services);
        let mut out = Vec::new();
        for (entry, s) in self.root.sagas.iter().flat_map(|s| s.value.good()) {
            let mut names: Vec<(Name, Span)> = Vec::new();
            let steps = self.steps(&entry.name, &s.steps.value.0, &mut names);
            if s.steps.value.0.is_empty() && !s.broken {
                self.say(
                    Mistake::new(s.steps.span, "a saga has at least one step").help("write '- name: { call: ... }'"),
                );
            }
            if names.len() > limits::SAGA_STEPS {
                let message = format!("{} steps are more than {}", names.len(), limits::SAGA_STEPS);
                self.say(Mistake::new(Some(entry.at), message).help("split the saga"));
            }
            let deadline = match s.deadline.as_ref().map(|d| &d.value) {
                Some(Switch::On(d)) => Some(*d),
                Some(Switch::Off) | None => None,
            };
            let result = s.result.as_ref().map(|r| r.value.0.clone());
            let spec = SagaSpec { name: entry.name.clone(), deadline, steps, result };
            self.compile(&spec, &catalog);
            out.push(spec);
        }
        out
    }

    /// The services that calls are checked against, their .proto files compiled.
    fn catalog(&mut self, services: &[ServiceSpec]) -> Catalog {
        let (mut catalog, mistakes) = Catalog::load(services);
        for (name, why) in mistakes {
            let at = self.services.get(&name).map(|e| {
                let proto = e.value.as_ref().and_then(|s| s.proto.as_ref()).and_then(|p| p.span);
                proto.unwrap_or(e.at)
            });
            self.say(Mistake::new(at, format!("the .proto files of '{name}' do not compile")).help(why));
        }
        // A service that could not be read exists all the same, whatever it speaks.
        let known = catalog.services.get_or_insert_default();
        for name in self.services.0.iter().filter(|e| e.value.is_none()).map(|e| &e.name) {
            known.insert(name.clone(), CatalogService { protocol: Protocol::H2, descriptors: None });
        }
        catalog
    }

    /// Names in expressions, fields of gRPC messages and the rest that only the compiler of sagas knows.
    fn compile(&mut self, spec: &SagaSpec, catalog: &Catalog) {
        let Err(mistakes) = definition::compile(spec, catalog) else { return };
        let Some(saga) = self.node.get("sagas").and_then(|s| s.get(&spec.name)) else { return };
        for m in mistakes {
            // These two are checked above, at a better place.
            if matches!(m.field.as_str(), "name" | "steps") {
                continue;
            }
            let from = match &m.step {
                Some(step) => saga.get("steps").and_then(|s| step_node(s, step)).unwrap_or(saga),
                None => saga,
            };
            let node = from.at_path(&m.field);
            // A complaint about a member's name is about its key, not its value.
            let own = m.field.rsplit('.').next().is_some_and(|last| m.message.contains(&format!("'{last}'")));
            match &node.data {
                Data::Scalar(s) if !own => complain(&m.message, &s.text, node.span, s.verbatim, self.cx),
                _ => complain(&m.message, "", node.owner, None, self.cx),
            }
        }
    }

    fn steps(&mut self, saga: &Name, steps: &[NamedStep], names: &mut Vec<(Name, Span)>) -> Vec<Step> {
        let mut out = Vec::new();
        for NamedStep { name, at, step } in steps {
            if let Some((_, first)) = names.iter().find(|(n, _)| n == name) {
                let mistake = Mistake::new(Some(*at), format!("two steps of saga '{saga}' are named '{name}'"));
                self.say(mistake.help("rename one of them").also(Some(*first), "first here"));
            }
            if RESERVED.contains(&name.as_str()) {
                let mistake = Mistake::new(Some(*at), format!("a step cannot be named '{name}'"));
                self.say(mistake.help("expressions use that name already: write another"));
            }
            names.push((name.clone(), *at));
            let kind = step.as_ref().and_then(|step| self.kind(saga, name, *at, step, names));
            let when = step.as_ref().and_then(|s| s.when.as_ref()).map(|w| w.value.text.clone());
            // A step that could not be read keeps its name: later expressions may use its result.
            out.push(Step { name: name.clone(), when, kind: kind.unwrap_or_else(|| unread(name)) });
        }
        out
    }

    fn kind(
        &mut self,
        saga: &Name,
        name: &Name,
        at: Span,
        step: &keys::Step,
        names: &mut Vec<(Name, Span)>,
    ) -> Option<StepKind> {
        if let Some(parallel) = &step.parallel {
            let beside = [
                step.call.as_ref().map(|v| ("call", v.span)),
                step.publish.as_ref().map(|v| ("publish", v.span)),
                step.with.as_ref().map(|v| ("with", v.span)),
                step.compensate.as_ref().map(|v| ("compensate", v.span)),
                step.policy.as_ref().map(|v| ("policy", v.span)),
            ];
            for (key, at) in beside.into_iter().flatten() {
                let help = "write it in the steps inside";
                self.say(Mistake::new(at, format!("'{key}' has no meaning beside 'parallel'")).help(help));
            }
            return Some(StepKind::Parallel(self.steps(saga, &parallel.value.0, names)));
        }
        let written = Written {
            call: &step.call,
            with: &step.with,
            publish: &step.publish,
            policy: &step.policy,
            idempotent: &step.idempotent,
            at,
            broken: step.broken,
        };
        let compensate = step.compensate.as_ref().map(|c| Written {
            call: &c.value.call,
            with: &c.value.with,
            publish: &c.value.publish,
            policy: &c.value.policy,
            idempotent: &c.value.idempotent,
            at: c.value.at,
            broken: c.value.broken,
        });
        let action = self.action(format!("{saga}/{name}"), written);
        let compensate = compensate.map(|c| self.action(format!("{saga}/{name}/compensate"), c));
        Some(StepKind::Action { action: action?, compensate: compensate.flatten() })
    }

    fn action(&mut self, path: String, w: Written<'_>) -> Option<Action> {
        let idempotent = match w.idempotent.value {
            Promise::Key => Idempotent::Key,
            Promise::Natural => Idempotent::Natural,
            Promise::No => Idempotent::No,
        };
        match (w.call, w.publish) {
            (Some(call), None) => {
                let service = At { value: call.value.service().clone(), span: call.span };
                self.callable(&service, &call.value);
                let with = w.with.as_ref().map(|t| t.value.0.clone());
                let mut layers = self.base(Some(&service.value));
                layers.extend(layer::written(w.policy.as_ref(), self.policies, Use::Step, self.cx));
                self.check_inline(w.policy.as_ref());
                let (policy, values) = layer::resolve(&layers, Use::Step, self.cx.sources);
                let call = match call.value.clone() {
                    CallText::Http { method, service, path } => Call::Http { method, service, path, with },
                    CallText::Grpc { service, method } => Call::Grpc { service, method, with },
                };
                self.explain("step", path, w.at, call_text(&call), values);
                Some(Action { call, policy, idempotent })
            }
            (None, Some(publish)) => {
                let beside = [w.with.as_ref().map(|v| ("with", v.span)), w.policy.as_ref().map(|v| ("policy", v.span))];
                for (key, at) in beside.into_iter().flatten() {
                    let help = if key == "with" { "the data of an event is 'publish.data'" } else { "leave it out" };
                    self.say(Mistake::new(at, format!("'{key}' has no meaning beside 'publish'")).help(help));
                }
                let call = self.publish(&publish.value)?;
                self.explain("step", path, w.at, call_text(&call), Vec::new());
                Some(Action { call, policy: weft_policy::Policy::default(), idempotent })
            }
            (Some(_), Some(publish)) => {
                let mistake = Mistake::new(publish.span, "a step does one thing, found call and publish");
                self.say(mistake.help("make two steps of it"));
                None
            }
            (None, None) if w.broken => None,
            (None, None) => {
                self.say(Mistake::new(Some(w.at), "this does nothing").help("add 'call:' or 'publish:'"));
                None
            }
        }
    }

    /// The service of a call must exist and speak what the call is written in.
    fn callable(&mut self, service: &At<Name>, call: &CallText) {
        let Some(declared) = self.service(service) else { return };
        let protocol = spoken_by(declared);
        let grpc = protocol == weft_mesh::spec::Protocol::Grpc;
        let name = &service.value;
        let (message, help) = match call {
            CallText::Http { .. } if grpc => {
                (format!("service '{name}' speaks grpc, this call is HTTP"), format!("write '{name}/Method'"))
            }
            CallText::Grpc { .. } if !grpc => (
                format!("service '{name}' speaks {}, this call is gRPC", word(protocol)),
                format!("write 'POST {name}/path', or 'protocol: grpc' in the service"),
            ),
            _ => return,
        };
        self.say(Mistake::new(service.span, message).help(help));
    }

    fn publish(&mut self, p: &keys::Publish) -> Option<Call> {
        let channel = match (&p.topic, &p.queue) {
            (Some(topic), None) => {
                self.topic(topic);
                Channel::Topic(topic.value.clone())
            }
            (None, Some(queue)) => {
                self.queue(queue);
                Channel::Queue(queue.value.clone())
            }
            (Some(_), Some(queue)) => {
                let mistake = Mistake::new(queue.span, "an event is published to one of topic and queue");
                self.say(mistake.help("keep one of the two"));
                return None;
            }
            (None, None) if p.broken => return None,
            (None, None) => {
                self.say(Mistake::new(Some(p.at), "publish to what?").help("add 'topic:' or 'queue:'"));
                return None;
            }
        };
        Some(Call::Publish {
            channel,
            ty: p.ty.value.clone(),
            subject: p.subject.as_ref().map(|s| s.value.text.clone()),
            with: p.data.as_ref().map(|d| d.value.0.clone()),
        })
    }
}

/// What stands in for a step that could not be read; the configuration is refused in any case.
fn unread(name: &Name) -> StepKind {
    let call =
        Call::Publish { channel: Channel::Topic(name.clone()), ty: "unread".to_owned(), subject: None, with: None };
    let action = Action { call, policy: weft_policy::Policy::default(), idempotent: Idempotent::Key };
    StepKind::Action { action, compensate: None }
}

/// The node of a step, also inside parallel ones.
fn step_node<'n>(steps: &'n Node, name: &str) -> Option<&'n Node> {
    let Data::List(items) = &steps.data else { return None };
    items.iter().find_map(|item| {
        let Data::Map(entries) = &item.data else { return None };
        let (key, step) = entries.first()?;
        if key.text == name { Some(step) } else { step.get("parallel").and_then(|p| step_node(p, name)) }
    })
}

fn call_text(call: &Call) -> String {
    match call {
        Call::Http { method, service, path, .. } => format!("{method} {service}{path}"),
        Call::Grpc { service, method, .. } => format!("{service}/{method}"),
        Call::Publish { channel: Channel::Topic(t), ty, .. } => format!("publish {ty} to topic {t}"),
        Call::Publish { channel: Channel::Queue(q), ty, .. } => format!("publish {ty} to queue {q}"),
    }
}
