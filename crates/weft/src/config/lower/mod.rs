//! From what was written to the typed configuration that the crates take; everything that needs more than one place to
//! be checked is checked here.

mod auth;
mod channels;
mod gateway;
mod protocols;
mod sagas;
mod services;
mod traffic;
mod versions;

use serde::Serialize;
use weft_core::Name;
use weft_edge::spec::Snapshot;

use super::Settings;
use super::keys::policy::Policy;
use super::keys::root::{BrokerKind, Configuration, LogFormat, StoreKind};
use super::keys::service::Service;
use super::layer::{self, Explained, Layer, Use};
use super::node::Node;
use super::report::{Mistake, suggest};
use super::source::{At, Place, Span};
use super::value::{Cx, Named};

/// The effective settings of one route, queue, subscription, step or service, and where each came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// `route`, `queue`, `subscription`, `step`, `service`.
    pub kind: &'static str,
    /// Its name; of a step, `saga/step` or `saga/step/compensate`.
    pub name: String,
    /// Where it is declared.
    pub at: Option<Place>,
    /// What it does, in one line.
    pub summary: String,
    /// Each value.
    pub values: Vec<Explained>,
}

/// What lowering works on.
pub(super) struct Lower<'r, 'c, 's> {
    root: &'r Configuration,
    node: &'r Node,
    services: &'r Named<Service>,
    policies: &'r Named<Policy>,
    cx: &'c mut Cx<'s>,
    explained: Vec<Explanation>,
}

static NO_SERVICES: Named<Service> = Named(Vec::new());
static NO_POLICIES: Named<Policy> = Named(Vec::new());

/// Lowers the whole configuration. What it answers is of use only when `cx` holds no mistakes.
pub(super) fn lower(root: &Configuration, node: &Node, cx: &mut Cx<'_>) -> (Snapshot, Settings, Vec<Explanation>) {
    let mut l = Lower {
        root,
        node,
        services: root.services.as_ref().map_or(&NO_SERVICES, |s| &s.value),
        policies: root.policies.as_ref().map_or(&NO_POLICIES, |p| &p.value),
        cx,
        explained: Vec::new(),
    };
    for (_, policy) in l.policies.good() {
        layer::check(policy, l.cx);
        l.check_auth(policy);
    }
    let services = l.services();
    let sagas = l.sagas(&services);
    let snapshot = Snapshot {
        generation: 1,
        services,
        gateway: l.gateway(),
        queues: l.queues(),
        topics: l.topics(),
        subscriptions: l.subscriptions(),
        sagas,
    };
    let settings = l.settings();
    (snapshot, settings, l.explained)
}

impl<'r> Lower<'r, '_, '_> {
    fn say(&mut self, mistake: Mistake) {
        self.cx.say(mistake);
    }

    /// Reports a reference to something that is not declared.
    fn unknown<'n>(&mut self, what: &str, name: &At<Name>, known: impl IntoIterator<Item = &'n str>) {
        let help = suggest(&name.value, what, known);
        self.cx.say(Mistake::new(name.span, format!("unknown {what} '{}'", name.value)).help(help));
    }

    /// Checks that a service is declared.
    fn service(&mut self, name: &At<Name>) -> Option<&'r Service> {
        match self.services.get(&name.value) {
            Some(entry) => entry.value.as_ref(),
            None => {
                self.unknown("service", name, self.services.names());
                None
            }
        }
    }

    /// Checks that a topic is declared.
    fn topic(&mut self, name: &At<Name>) {
        let topics = self.root.topics.as_ref().map(|t| &t.value);
        if topics.is_none_or(|t| t.get(&name.value).is_none()) {
            self.unknown("topic", name, topics.into_iter().flat_map(Named::names));
        }
    }

    /// Checks that a queue is declared.
    fn queue(&mut self, name: &At<Name>) {
        let queues = self.root.queues.as_ref().map(|q| &q.value);
        if queues.is_none_or(|q| q.get(&name.value).is_none()) {
            self.unknown("queue", name, queues.into_iter().flat_map(Named::names));
        }
    }

    /// The layers below what a route, subscription or step writes itself.
    fn base(&mut self, service: Option<&Name>) -> Vec<Layer<'r>> {
        let mut layers = Vec::new();
        if let Some(policy) = self.policies.get("default").and_then(|e| e.value.as_ref()) {
            layers.push(("policies.default".to_owned(), policy));
        }
        if let Some((name, service)) = service.and_then(|n| Some((n, self.services.get(n)?.value.as_ref()?))) {
            // Its mistakes are reported once, with the service.
            let mut quiet = Cx { sources: self.cx.sources, mistakes: Vec::new() };
            let own = layer::written(service.policy.as_ref(), self.policies, Use::Service, &mut quiet);
            layers.extend(own.into_iter().map(|(_, p)| (format!("service {name}"), p)));
        }
        layers
    }

    fn explain(&mut self, kind: &'static str, name: String, at: Span, summary: String, values: Vec<Explained>) {
        let at = Some(self.cx.sources.place(at));
        self.explained.push(Explanation { kind, name, at, summary, values });
    }

    fn settings(&mut self) -> Settings {
        let mut settings = Settings::default();
        // Read by `files::gather`, before there is a configuration.
        let _ = &self.root.include;
        if let Some(api) = &self.root.api {
            settings.api.listen = api.value.listen.value;
            settings.api.written = api.value.listen.span.is_some();
            let hosts = api.value.hosts.iter().flat_map(|h| &h.value.0);
            settings.api.hosts = hosts.map(|h| h.value.clone()).collect();
            let at = api.value.listen.span;
            self.open(settings.api.listen, api.value.insecure.value, false, at, "api");
        }
        settings.gateway_written = self.root.gateway.as_ref().is_some_and(|g| g.value.listen.is_some());
        // The one kind there is; a second makes these lines fail to compile.
        let BrokerKind::Embedded = self.root.broker.value;
        if let Some(store) = &self.root.store {
            let StoreKind::Embedded = store.value.kind.value;
            settings.store.dir = store.value.dir.as_ref().map(|d| d.value.clone());
        }
        if let Some(logs) = &self.root.logs {
            settings.logs.json = logs.value.format.value == LogFormat::Json;
            settings.logs.level = logs.value.level.value.clone();
        }
        settings.threads = self.root.threads.as_ref().map(|t| t.value.get() as usize);
        settings
    }

    /// Nothing is open by accident: a listener others can reach needs TLS or an explicit word.
    fn open(&mut self, address: std::net::SocketAddr, insecure: bool, tls: bool, at: Option<Span>, section: &str) {
        if !address.ip().is_loopback() && !insecure && !tls {
            let message = format!("{address} can be reached from other machines, without TLS");
            let help = format!("listen on 127.0.0.1, or write 'insecure: true' in {section}");
            self.say(Mistake::new(at, message).help(help));
        }
    }
}
