//! Who can be called: services of the file and services that registered, their instances, and what names resolved to.
//!
//! All of it changes under one lock, held for a moment and never across an await; what callers read is published whole
//! (`Mesh` swaps the map of services, each service its endpoints).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use arc_swap::ArcSwap;
use hashbrown::{HashMap, HashSet};
use tokio::task::JoinHandle;
use weft_core::Name;
use weft_policy::{Instance, Policy};
use weft_telemetry::Telemetry;

use crate::balance::{Choice, Endpoints};
use crate::endpoint::{Endpoint, Target, Wanted};
use crate::observe::Meter;
use crate::outlier::Outliers;
use crate::registry::Leases;
use crate::spec::{Address, Balance, Described, HealthCheck, Protocol, ServiceSpec};
use crate::tls::ClientTls;
use crate::upstream::Service;

/// A service of the file.
#[derive(Debug)]
pub(crate) struct Declared {
    pub spec: ServiceSpec,
    pub tls: Option<ClientTls>,
}

/// A service as it runs.
#[derive(Debug)]
pub(crate) struct Live {
    pub service: Arc<Service>,
    /// The change that made it what it is.
    pub index: u64,
    /// One task per checked endpoint.
    checks: HashMap<u64, Task>,
    /// Who takes out instances by their answers.
    outliers: Option<(Arc<Outliers>, Task)>,
}

/// A host name and what it stands for.
#[derive(Debug)]
struct Host {
    addresses: Option<Vec<IpAddr>>,
    _task: Task,
}

/// Ends when it is let go.
#[derive(Debug)]
pub(crate) struct Task(pub JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// One instance before its address is resolved.
struct Source<'a> {
    instance: Arc<str>,
    address: &'a Address,
    protocol: Protocol,
    tls: Option<&'a ClientTls>,
    health: Option<&'a HealthCheck>,
    weight: u32,
    zone: Option<Arc<str>>,
}

/// Starts the tasks that watch endpoints and names.
pub(crate) trait Watchers {
    /// Checks an endpoint for ever.
    fn check(&self, endpoint: &Arc<Endpoint>, check: &HealthCheck, meter: &Arc<Meter>) -> Task;
    /// Does for ever what is due for a service whose instances are taken out by their answers.
    fn watch_outliers(&self, outliers: &Arc<Outliers>) -> Task;
    /// Resolves a name for ever.
    fn resolve(&self, host: &str) -> Task;
}

#[derive(Debug)]
pub(crate) struct Catalog {
    telemetry: Telemetry,
    pub declared: BTreeMap<Name, Declared>,
    pub leases: Leases,
    pub live: BTreeMap<Name, Live>,
    hosts: HashMap<String, Host>,
    own: HashSet<SocketAddr>,
    pub index: u64,
}

impl Catalog {
    pub(crate) fn new(telemetry: Telemetry) -> Self {
        Self {
            telemetry,
            declared: BTreeMap::new(),
            leases: Leases::default(),
            live: BTreeMap::new(),
            hosts: HashMap::new(),
            own: HashSet::new(),
            index: 0,
        }
    }

    /// Names Weft's own listeners.
    pub(crate) fn forbid(&mut self, own: &[SocketAddr]) {
        self.own = own.iter().copied().collect();
    }

    /// Whether an address leads back into Weft.
    pub(crate) fn is_own(&self, address: &SocketAddr) -> bool {
        let here = |ip: IpAddr| ip.is_loopback() || ip.is_unspecified();
        self.own.iter().any(|own| {
            let same = own.ip() == address.ip();
            // A listener on all addresses is reached by loopback, and 0.0.0.0 connects to loopback.
            own.port() == address.port()
                && (same || (own.ip().is_unspecified() || here(own.ip())) && here(address.ip()))
        })
    }

    /// Puts what the file says in place of what it said.
    pub(crate) fn declare(&mut self, declared: Vec<Declared>, watchers: &impl Watchers) {
        let new: BTreeMap<_, _> = declared.into_iter().map(|d| (d.spec.name.clone(), d)).collect();
        self.declared = new;
        self.rebuild_all(watchers);
    }

    /// Builds every service anew from what is known.
    pub(crate) fn rebuild_all(&mut self, watchers: &impl Watchers) {
        let names: BTreeSet<Name> =
            self.declared.keys().chain(self.leases.services()).chain(self.live.keys()).cloned().collect();
        for name in names {
            self.rebuild(&name, watchers);
        }
        self.forget_hosts();
    }

    /// A name's addresses are known, or others than before.
    pub(crate) fn resolved(&mut self, host: &str, addresses: Vec<IpAddr>, watchers: &impl Watchers) -> bool {
        match self.hosts.get_mut(host) {
            Some(h) if h.addresses.as_ref() != Some(&addresses) => h.addresses = Some(addresses),
            _ => return false,
        }
        let users: Vec<Name> = self.live.keys().filter(|n| self.uses(n, host)).cloned().collect();
        for name in users {
            self.rebuild(&name, watchers);
        }
        true
    }

    /// An endpoint's health changed.
    pub(crate) fn rechecked(&mut self, service: &Name) {
        self.index += 1;
        if let Some(live) = self.live.get_mut(service) {
            let old = live.service.endpoints.load();
            live.service.endpoints.store(Arc::new(old.rechecked(&live.service.choice)));
            live.index = self.index;
        }
    }

    /// Builds one service anew from what is known of it; what did not change about it is kept.
    pub(crate) fn rebuild(&mut self, name: &Name, watchers: &impl Watchers) {
        self.index += 1;
        if !self.declared.contains_key(name) && !self.leases.has(name) {
            if let Some(gone) = self.live.remove(name) {
                gone.service.endpoints.load().all.iter().for_each(|e| e.remove());
                gone.service.endpoints.store(Arc::default());
            }
            return;
        }
        let (wanted, resolving, unknown_hosts) = self.wanted(name);
        for host in unknown_hosts {
            let _task = watchers.resolve(&host);
            self.hosts.insert(host, Host { addresses: None, _task });
        }
        let declared = self.declared.get(name);
        let choice = declared
            .map_or_else(Choice::default, |d| Choice { balance: d.spec.balance, picking: d.spec.picking.clone() });
        let policy = declared.map_or_else(Policy::builtin, |d| d.spec.policy.clone());

        let old = self.live.remove(name);
        let (old_service, mut checks, outliers) = match old {
            Some(live) => (Some(live.service), live.checks, live.outliers),
            None => (None, HashMap::new(), None),
        };
        let had = old_service.as_ref().map(|s| s.endpoints.load_full()).unwrap_or_default();
        let id = |w: &Wanted| (w.instance.clone(), w.target.clone());
        let known: HashMap<_, &Arc<Endpoint>> = had.all.iter().map(|e| (id(&e.wanted), e)).collect();
        let meter =
            old_service.as_ref().map_or_else(|| Arc::new(Meter::new(&self.telemetry, name)), |s| s.meter.clone());
        let mut all = Vec::with_capacity(wanted.len());
        for (w, weight) in wanted {
            let same = known.get(&id(&w)).filter(|e| e.wanted == w);
            let endpoint = match same {
                Some(e) => (*e).clone(),
                None => {
                    let e = Arc::new(Endpoint::new(name.clone(), w));
                    if let Some(check) = &e.wanted.health {
                        checks.insert(e.id, watchers.check(&e, check, &meter));
                    }
                    e
                }
            };
            endpoint.set_weight(weight);
            endpoint.set_timed(choice.balance == Balance::PeakEwma);
            all.push(endpoint);
        }
        let kept: HashSet<u64> = all.iter().map(|e| e.id).collect();
        for gone in had.all.iter().filter(|e| !kept.contains(&e.id)) {
            gone.remove();
            checks.remove(&gone.id);
        }
        let outliers = choice.picking.outlier.map(|spec| match outliers {
            Some((o, task)) if o.spec == spec => (o, task),
            _ => {
                let fresh = Arc::new(Outliers::new(name, spec, &self.telemetry));
                let task = watchers.watch_outliers(&fresh);
                (fresh, task)
            }
        });
        if let Some((o, _)) = &outliers {
            o.hosts(&all);
        }
        meter.outliers.store(outliers.as_ref().map(|(o, _)| o.clone()));
        let endpoints = Arc::new(Endpoints::new(all.into(), resolving, &choice));
        let service = match old_service {
            Some(s) if s.choice == choice && *s.policy.policy() == policy => {
                s.endpoints.store(endpoints);
                s
            }
            old => {
                // A policy that stays the same keeps its counters: a reload closes no breaker.
                let kept = old.map(|s| s.policy.clone()).filter(|p| *p.policy() == policy);
                Arc::new(Service {
                    name: name.clone(),
                    choice,
                    policy: kept.unwrap_or_else(|| {
                        let fresh = Instance::new(&policy);
                        fresh.tell(self.telemetry.metrics(), &format!("service {name}"));
                        fresh
                    }),
                    endpoints: ArcSwap::new(endpoints),
                    meter,
                    turn: Default::default(),
                })
            }
        };
        self.live.insert(name.clone(), Live { service, index: self.index, checks, outliers });
    }

    fn sources(&self, name: &str) -> Vec<Source<'_>> {
        let declared = self.declared.get(name);
        let protocol = declared.map_or(Protocol::Http, |d| d.spec.protocol);
        let health = declared.and_then(|d| d.spec.health.as_ref());
        let tls = declared.and_then(|d| d.tls.as_ref());
        let said = |address: &Address| declared.and_then(|d| d.spec.picking.described.get(address)).cloned();
        let written = declared.into_iter().flat_map(|d| &d.spec.addresses).map(|address| {
            let Described { weight, zone } = said(address).unwrap_or_default();
            Source { instance: address.to_string().into(), address, protocol, tls, health, weight, zone }
        });
        let registered = self.leases.of(name).map(|(id, lease)| Source {
            instance: id.to_shared(),
            address: &lease.registration.address,
            protocol: lease.registration.protocol.unwrap_or(protocol),
            tls,
            health: lease.registration.health.as_ref().or(health),
            weight: lease.registration.weight,
            zone: lease.registration.metadata.get("zone").map(|z| z.as_str().into()),
        });
        written.chain(registered).collect()
    }

    /// The endpoints that should be with their weights, whether any name is being resolved for the first time, and names nobody asked for
    /// yet. An address that appears twice (in the file and registered) counts once.
    fn wanted(&self, name: &str) -> (Vec<(Wanted, u32)>, bool, Vec<String>) {
        let (mut wanted, mut resolving, mut unknown) = (Vec::new(), false, Vec::new());
        let mut seen = HashSet::new();
        for s in self.sources(name) {
            let mut add = |target: Target, authority: String| {
                if let Target::Ip(a) = &target
                    && self.is_own(a)
                {
                    tracing::error!(service = name, address = %a, "refused: this is one of Weft's own listeners");
                    return;
                }
                if seen.insert(target.clone()) {
                    let w = Wanted {
                        instance: s.instance.clone(),
                        target,
                        authority,
                        protocol: s.protocol,
                        tls: s.tls.cloned(),
                        health: s.health.cloned(),
                        zone: s.zone.clone(),
                    };
                    wanted.push((w, s.weight));
                }
            };
            match s.address {
                Address::Ip(a) => add(Target::Ip(*a), a.to_string()),
                Address::Unix(p) => add(Target::Unix(p.clone()), "localhost".into()),
                Address::Dns(host, port) => match self.hosts.get(host) {
                    None => {
                        resolving = true;
                        if !unknown.contains(host) {
                            unknown.push(host.clone());
                        }
                    }
                    Some(Host { addresses: None, .. }) => resolving = true,
                    Some(Host { addresses: Some(all), .. }) => {
                        for ip in all {
                            add(Target::Ip(SocketAddr::new(*ip, *port)), s.address.to_string());
                        }
                    }
                },
            }
        }
        (wanted, resolving, unknown)
    }

    fn uses(&self, service: &str, host: &str) -> bool {
        self.sources(service).iter().any(|s| matches!(s.address, Address::Dns(h, _) if h == host))
    }

    /// Stops resolving names that no service has any more.
    pub(crate) fn forget_hosts(&mut self) {
        if self.hosts.is_empty() {
            return;
        }
        let used: HashSet<String> = (self.live.keys())
            .flat_map(|n| self.sources(n))
            .filter_map(|s| match s.address {
                Address::Dns(h, _) => Some(h.clone()),
                _ => None,
            })
            .collect();
        self.hosts.retain(|h, _| used.contains(h));
    }
}
