//! A saga definition, compiled: every expression parsed, every name checked, all mistakes at once.

use std::ops::Range;
use std::time::Duration;

use hashbrown::{HashMap, HashSet};
use serde_json::Value;
use weft_core::{Name, limits};
use weft_mesh::spec::{Protocol, ServiceSpec};
use weft_policy::Policy;

use crate::expr::{Expr, suggest};
use crate::grpc::Descriptors;
use crate::machine::{Plan, StepPlan};
use crate::spec::{self, Call, Channel, Idempotent, SagaSpec, StepKind};
use crate::template::{PathTemplate, Template};

/// One mistake in a saga definition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// The step it is in; `None` for the saga itself.
    pub step: Option<String>,
    /// The member, as a path from the step or saga: `with.items[0].sku`, `compensate.call`, `result.id`.
    pub field: String,
    /// What is wrong, and what would be right.
    pub message: String,
}

impl std::fmt::Display for Mistake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.step {
            Some(s) => write!(f, "step '{s}', {}: {}", self.field, self.message),
            None => write!(f, "{}: {}", self.field, self.message),
        }
    }
}

/// What a definition may refer to. A part that is `None` is not checked.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    /// Services by name.
    pub services: Option<HashMap<Name, CatalogService>>,
    /// Topics.
    pub topics: Option<HashSet<Name>>,
    /// Queues.
    pub queues: Option<HashSet<Name>>,
}

/// What is known of a service.
#[derive(Clone, Debug)]
pub struct CatalogService {
    /// What it speaks.
    pub protocol: Protocol,
    /// Its gRPC methods, when it declares .proto files; without them it is asked by reflection when first called.
    pub descriptors: Option<Descriptors>,
}

impl Catalog {
    /// The catalog of configured services, their .proto files compiled; the name of each service whose files do not
    /// compile, and why.
    pub fn load(services: &[ServiceSpec]) -> (Self, Vec<(Name, String)>) {
        let (mut map, mut mistakes) = (HashMap::new(), Vec::new());
        for s in services {
            let descriptors = match s.protos.as_slice() {
                [] => None,
                files => match Descriptors::from_files(files) {
                    Ok(d) => Some(d),
                    Err(e) => {
                        mistakes.push((s.name.clone(), e.to_string()));
                        None
                    }
                },
            };
            map.insert(s.name.clone(), CatalogService { protocol: s.protocol, descriptors });
        }
        (Self { services: Some(map), ..Self::default() }, mistakes)
    }

    /// The descriptors of a service, if it declares any.
    pub fn descriptors(&self, service: &str) -> Option<&Descriptors> {
        self.services.as_ref()?.get(service)?.descriptors.as_ref()
    }
}

/// A definition ready to run.
#[derive(Debug)]
pub struct Definition {
    /// Its name.
    pub name: Name,
    /// Tells one version of the definition from another: 32 hex digits.
    pub hash: String,
    /// Time for the forward path.
    pub deadline: Duration,
    /// Steps in order, those of parallel groups flattened.
    pub steps: Vec<StepDef>,
    /// Groups of steps that run at once, in order; a sequential step is a group of one.
    pub stages: Vec<StageDef>,
    /// The answer of a completed saga.
    pub result: Option<Template>,
    /// What the machine needs to know.
    pub plan: Plan,
    /// As it was written.
    pub spec: SagaSpec,
}

/// Steps that run at once.
#[derive(Debug)]
pub struct StageDef {
    /// Condition of a parallel group.
    pub when: Option<Expr>,
    /// Which steps.
    pub steps: Range<usize>,
}

/// A compiled step.
#[derive(Debug)]
pub struct StepDef {
    /// Its name.
    pub name: Name,
    /// The stage it belongs to.
    pub stage: usize,
    /// The step is skipped when false.
    pub when: Option<Expr>,
    /// Forward.
    pub action: ActionDef,
    /// Backward.
    pub compensate: Option<ActionDef>,
}

/// A compiled action.
#[derive(Debug)]
pub struct ActionDef {
    /// What is called.
    pub call: CallDef,
    /// Its policy in force: breaker, bulkhead and retry budget are shared by all instances of this definition.
    pub instance: weft_policy::Instance,
    /// What the participant promises about repeats.
    pub idempotent: Idempotent,
}

/// A compiled call.
#[derive(Debug)]
pub enum CallDef {
    /// An HTTP request.
    Http {
        /// Method.
        method: http::Method,
        /// Service.
        service: Name,
        /// Path and query.
        path: PathTemplate,
        /// JSON body.
        body: Option<Template>,
    },
    /// A unary gRPC call.
    Grpc {
        /// Service.
        service: Name,
        /// Method, or package.Service/Method.
        method: String,
        /// The request message.
        message: Template,
    },
    /// A publish.
    Publish {
        /// Where to.
        channel: Channel,
        /// CloudEvents type.
        ty: String,
        /// Subject.
        subject: Option<Expr>,
        /// Data.
        data: Option<Template>,
    },
}

/// Compiles and checks; every mistake is reported, none hides another.
pub fn compile(spec: &SagaSpec, catalog: &Catalog) -> Result<Definition, Vec<Mistake>> {
    let mut c = Compiler { catalog, mistakes: Vec::new(), seen: HashSet::new() };
    let (mut steps, mut stages) = (Vec::new(), Vec::new());
    let total: usize = spec.steps.iter().map(|s| if let StepKind::Parallel(p) = &s.kind { p.len() } else { 1 }).sum();
    if total == 0 {
        c.report(None, "steps", "a saga needs at least one step".into());
    }
    if total > limits::SAGA_STEPS {
        c.report(None, "steps", format!("the saga has {total} steps, the limit is {}", limits::SAGA_STEPS));
    }
    // Names of steps whose results an expression may use: those of the stages before.
    let mut before: Vec<&str> = Vec::new();
    for s in &spec.steps {
        c.name(&s.name);
        let from = steps.len();
        let stage = stages.len();
        match &s.kind {
            StepKind::Action { action, compensate } => {
                steps.push(c.step(s, stage, action, compensate.as_ref(), &before));
                stages.push(StageDef { when: None, steps: from..steps.len() });
                before.push(&s.name);
            }
            StepKind::Parallel(inner) => {
                let when = c.when(s, &before);
                if inner.is_empty() {
                    c.report(Some(&s.name), "parallel", "a parallel group needs at least one step".into());
                }
                for i in inner {
                    c.name(&i.name);
                    match &i.kind {
                        StepKind::Action { action, compensate } => {
                            steps.push(c.step(i, stage, action, compensate.as_ref(), &before));
                        }
                        StepKind::Parallel(_) => {
                            let m = "a parallel group cannot stand in a parallel group: put its steps into one";
                            c.report(Some(&i.name), "parallel", m.into());
                        }
                    }
                }
                stages.push(StageDef { when, steps: from..steps.len() });
                before.extend(inner.iter().map(|i| i.name.as_str()));
            }
        }
    }
    let known = [&["input", "saga"], before.as_slice()].concat();
    let result = spec.result.as_ref().map(|v| {
        Template::compile(v, &known, "result", &mut |at, m| {
            c.mistakes.push(Mistake { step: None, field: at.to_owned(), message: m });
        })
    });
    if !c.mistakes.is_empty() {
        return Err(c.mistakes);
    }
    let plan = Plan {
        stages: stages.iter().map(|s| s.steps.clone()).collect(),
        steps: steps
            .iter()
            .map(|s: &StepDef| StepPlan {
                undoable: s.compensate.is_some(),
                repeatable: s.action.idempotent != Idempotent::No,
                undo_repeatable: s.compensate.as_ref().is_none_or(|c| c.idempotent != Idempotent::No),
            })
            .collect(),
    };
    Ok(Definition {
        name: spec.name.clone(),
        hash: hash(spec),
        deadline: spec.deadline.unwrap_or(limits::SAGA_DEADLINE),
        steps,
        stages,
        result,
        plan,
        spec: spec.clone(),
    })
}

/// The hash of a definition: equal for equal definitions.
pub fn hash(spec: &SagaSpec) -> String {
    let json = serde_json::to_vec(spec).expect("a spec is plain data");
    format!("{:032x}", xxhash_rust::xxh3::xxh3_128(&json))
}

struct Compiler<'a> {
    catalog: &'a Catalog,
    mistakes: Vec<Mistake>,
    seen: HashSet<Name>,
}

impl Compiler<'_> {
    fn report(&mut self, step: Option<&str>, field: &str, message: String) {
        self.mistakes.push(Mistake { step: step.map(str::to_owned), field: field.to_owned(), message });
    }

    fn name(&mut self, name: &Name) {
        if ["input", "saga", "result"].contains(&name.as_str()) {
            self.report(Some(name), "name", format!("'{name}' has a meaning in expressions; name the step otherwise"));
        }
        if !self.seen.insert(name.clone()) {
            self.report(Some(name), "name", format!("there are two steps named '{name}'"));
        }
    }

    fn when(&mut self, s: &spec::Step, before: &[&str]) -> Option<Expr> {
        let known = [&["input", "saga"], before].concat();
        let r = Expr::compile(s.when.as_ref()?, &known);
        r.map_err(|ms| ms.into_iter().for_each(|m| self.report(Some(&s.name), "when", m))).ok()
    }

    fn step(
        &mut self,
        s: &spec::Step,
        stage: usize,
        action: &spec::Action,
        compensate: Option<&spec::Action>,
        before: &[&str],
    ) -> StepDef {
        let known = [&["input", "saga"], before].concat();
        let undo_known = [known.as_slice(), &["result", s.name.as_str()]].concat();
        StepDef {
            name: s.name.clone(),
            stage,
            when: self.when(s, before),
            action: self.action(&s.name, "", action, &known),
            compensate: compensate.map(|a| self.action(&s.name, "compensate.", a, &undo_known)),
        }
    }

    fn action(&mut self, step: &Name, prefix: &str, a: &spec::Action, known: &[&str]) -> ActionDef {
        let mut found = Vec::new();
        let mut report = |at: &str, m: String| {
            found.push(Mistake { step: Some(step.to_string()), field: format!("{prefix}{at}"), message: m });
        };
        let with = |v: &Option<Value>, at: &str, report: &mut dyn FnMut(&str, String)| {
            v.as_ref().map(|v| Template::compile(v, known, at, report))
        };
        let call = match &a.call {
            Call::Http { method, service, path, with: body } => {
                check_service(self.catalog, service, false, &mut report);
                let m = http::Method::from_bytes(method.as_bytes()).unwrap_or_else(|_| {
                    report("call", format!("'{method}' is not an HTTP method"));
                    http::Method::POST
                });
                if body.is_some() && (m == http::Method::GET || m == http::Method::HEAD) {
                    report("with", format!("a {m} carries no body: put values into the path or query"));
                }
                CallDef::Http {
                    method: m,
                    service: service.clone(),
                    path: PathTemplate::compile(path, known, &mut |m| report("call", m)),
                    body: with(body, "with", &mut report),
                }
            }
            Call::Grpc { service, method, with: message } => {
                check_service(self.catalog, service, true, &mut report);
                let message = with(message, "with", &mut report).unwrap_or(Template::Object(Vec::new()));
                match self.catalog.descriptors(service).map(|d| d.method(method)) {
                    Some(Ok(m)) => m.check(&message, "with", &mut report),
                    Some(Err(e)) => report("call", e.to_string()),
                    None => {}
                }
                CallDef::Grpc { service: service.clone(), method: method.clone(), message }
            }
            Call::Publish { channel, ty, subject, with: data } => {
                check_channel(self.catalog, channel, &mut report);
                if ty.is_empty() {
                    report("publish.type", "a CloudEvent needs a type".into());
                }
                let subject = subject.as_ref().and_then(|s| {
                    Expr::compile(s, known).map_err(|ms| ms.into_iter().for_each(|m| report("publish.subject", m))).ok()
                });
                CallDef::Publish {
                    channel: channel.clone(),
                    ty: ty.clone(),
                    subject,
                    data: with(data, "publish.data", &mut report),
                }
            }
        };
        self.mistakes.append(&mut found);
        ActionDef { call, instance: weft_policy::Instance::new(&policy_of(a)), idempotent: a.idempotent }
    }
}

/// What may not be repeated is tried once; the saga itself sends again only what was certainly never sent.
fn policy_of(a: &spec::Action) -> Policy {
    match a.idempotent {
        Idempotent::No => Policy { retry: None, ..a.policy.clone() },
        Idempotent::Key | Idempotent::Natural => a.policy.clone(),
    }
}

fn check_service(catalog: &Catalog, service: &Name, grpc: bool, report: &mut dyn FnMut(&str, String)) {
    let Some(services) = &catalog.services else { return };
    match services.get(service) {
        None => {
            let known: Vec<&str> = services.keys().map(Name::as_str).collect();
            report("call", format!("unknown service '{service}'{}", suggest(service, &known)));
        }
        Some(s) if grpc && !s.protocol.is_h2() => {
            report("call", format!("service '{service}' speaks http; a gRPC call needs one with protocol: grpc"));
        }
        Some(s) if !grpc && s.protocol == Protocol::Grpc => {
            report("call", format!("service '{service}' speaks gRPC; write {service}/Method"));
        }
        Some(_) => {}
    }
}

fn check_channel(catalog: &Catalog, channel: &Channel, report: &mut dyn FnMut(&str, String)) {
    let (kind, name, known) = match channel {
        Channel::Topic(n) => ("topic", n, &catalog.topics),
        Channel::Queue(n) => ("queue", n, &catalog.queues),
    };
    if let Some(known) = known
        && !known.contains(name)
    {
        let names: Vec<&str> = known.iter().map(Name::as_str).collect();
        report(&format!("publish.{kind}"), format!("unknown {kind} '{name}'{}", suggest(name, &names)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    pub(crate) fn name(s: &str) -> Name {
        Name::new(s).unwrap()
    }

    fn action(call: Call) -> spec::Action {
        spec::Action { call, policy: Policy::builtin(), idempotent: Idempotent::Key }
    }

    fn http(service: &str, path: &str, with: Value) -> spec::Action {
        action(Call::Http {
            method: "POST".into(),
            service: name(service),
            path: path.into(),
            with: Some(with).filter(|w| !w.is_null()),
        })
    }

    fn step(n: &str, action: spec::Action, compensate: Option<spec::Action>) -> spec::Step {
        spec::Step { name: name(n), when: None, kind: StepKind::Action { action, compensate } }
    }

    fn saga(steps: Vec<spec::Step>, result: Value) -> SagaSpec {
        SagaSpec { name: name("s"), deadline: None, steps, result: Some(result) }
    }

    fn catalog() -> Catalog {
        let s = |p| CatalogService { protocol: p, descriptors: None };
        Catalog {
            services: Some(HashMap::from([(name("order"), s(Protocol::Http)), (name("inventory"), s(Protocol::Grpc))])),
            topics: Some(HashSet::from([name("orders")])),
            queues: Some(HashSet::new()),
        }
    }

    #[test]
    fn a_sound_definition_compiles_with_its_stages() {
        let par = spec::Step {
            name: name("both"),
            when: Some("create.ok".into()),
            kind: StepKind::Parallel(vec![
                step("a", http("order", "/a", Value::Null), Some(http("order", "/a/{result.id}/undo", Value::Null))),
                step("b", http("order", "/b", json!({"x": "create.id"})), None),
            ]),
        };
        let s = saga(
            vec![step("create", http("order", "/orders", json!({"id": "saga.id", "n": 1})), None), par],
            json!({"a": "a.id"}),
        );
        let d = compile(&s, &catalog()).unwrap();
        assert_eq!(d.plan.stages, vec![0..1, 1..3]);
        assert_eq!(d.steps.iter().map(|s| s.plan_undoable()).collect::<Vec<_>>(), [false, true, false]);
        assert_eq!(d.hash, hash(&serde_json::from_value(serde_json::to_value(&s).unwrap()).unwrap()));
    }

    impl StepDef {
        fn plan_undoable(&self) -> bool {
            self.compensate.is_some()
        }
    }

    #[test]
    fn all_mistakes_are_reported_at_once() {
        let publish = action(Call::Publish {
            channel: Channel::Topic(name("ordres")),
            ty: "T".into(),
            subject: Some("nope".into()),
            with: None,
        });
        let s = saga(
            vec![
                step("create", http("odrer", "/orders/{saga.idd}", json!({"a": "later.id"})), None),
                step(
                    "create",
                    http("inventory", "orders", Value::Null),
                    Some(http("order", "/{reslut.id}", Value::Null)),
                ),
                step("input", publish, None),
                step("g", action(Call::Grpc { service: name("order"), method: "M".into(), with: None }), None),
                step("later", http("order", "/x", Value::Null), None),
            ],
            json!({"x": "1 +"}),
        );
        let got: Vec<String> = compile(&s, &catalog()).unwrap_err().iter().map(|m| m.to_string()).collect();
        for want in [
            "step 'create', call: unknown service 'odrer'; did you mean 'order'?",
            "'saga' has no 'idd'",
            "step 'create', with.a: 'later.id': unknown name 'later'",
            "there are two steps named 'create'",
            "service 'inventory' speaks gRPC",
            "must start with '/'",
            "step 'create', compensate.call: 'reslut.id': unknown name 'reslut'; did you mean 'result'?",
            "'input' has a meaning in expressions",
            "step 'input', publish.topic: unknown topic 'ordres'; did you mean 'orders'?",
            "step 'input', publish.subject: 'nope': unknown name 'nope'",
            "step 'g', call: service 'order' speaks http",
            "result.x: '1 +' is not CEL",
        ] {
            assert!(got.iter().any(|g| g.contains(want)), "missing: {want}\ngot: {got:#?}");
        }
        assert_eq!(got.len(), 12, "{got:#?}");
    }

    #[test]
    fn a_step_sees_the_results_of_earlier_stages_only() {
        let par = spec::Step {
            name: name("both"),
            when: None,
            kind: StepKind::Parallel(vec![
                step("a", http("order", "/a", Value::Null), None),
                step("b", http("order", "/b", json!({"x": "a.id"})), None),
            ]),
        };
        let e = compile(&saga(vec![par], Value::Null), &catalog()).unwrap_err();
        assert!(e.len() == 1 && e[0].message.contains("unknown name 'a'"), "{e:?}");
        let many =
            (0..=limits::SAGA_STEPS).map(|i| step(&format!("s{i}"), http("order", "/a", Value::Null), None)).collect();
        let e = compile(&saga(many, Value::Null), &catalog()).unwrap_err();
        assert!(e[0].message.contains("the limit is 1000"), "{e:?}");
        assert!(compile(&saga(vec![], Value::Null), &catalog()).is_err());
    }
}
