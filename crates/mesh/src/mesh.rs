//! The door: [`Mesh`].

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use hashbrown::HashMap;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use weft_core::{Context, Name, limits, task};
use weft_policy::attempt::Attempt;
use weft_store::{Batch, Store};
use weft_telemetry::metrics::{Collector, Samples};
use weft_telemetry::{Telemetry, names};

use crate::answer::Reply;
use crate::catalog::{Catalog, Declared, Task, Watchers};
use crate::dns::Dns;
use crate::endpoint::Endpoint;
use crate::error::Error;
use crate::health;
use crate::observe::Meter;
use crate::outbound::Outbound;
use crate::outlier::Outliers;
use crate::registry::{Registered, Registration};
use crate::spec::{Address, HealthCheck, Protocol, ServiceSpec};
use crate::tls::ClientTls;
use crate::upstream::Service;

/// Registrations in the store: `{service}/{instance}` to JSON.
const SPACE: &str = "mesh/instances";

/// Knows all services and calls them; cheap to clone, usable from any thread that runs a tokio runtime.
#[derive(Clone, Debug)]
pub struct Mesh(Arc<Inner>);

struct Inner {
    services: ArcSwap<HashMap<Name, Arc<Service>>>,
    catalog: Mutex<Catalog>,
    changes: watch::Sender<u64>,
    store: Arc<dyn Store>,
    telemetry: Telemetry,
    runtime: Handle,
    dns: Dns,
    /// Wakes the task that removes expired registrations.
    expiry: Arc<Notify>,
    /// Tells how instances are, at each scrape.
    _collector: Collector,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mesh").field("index", &*self.changes.borrow()).finish_non_exhaustive()
    }
}

/// A service as listings show it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ServiceView {
    /// Its name.
    pub name: Name,
    /// `file`, or `runtime` for one that exists because instances registered.
    pub origin: &'static str,
    /// What its instances speak unless they say otherwise.
    pub protocol: Protocol,
    /// `closed`, `open`, `half_open`; none when its policy has no breaker.
    pub breaker: Option<&'static str>,
    /// The change that made it what it is; see [`Mesh::watch`].
    pub index: u64,
    /// All of them, healthy or not.
    pub instances: Vec<InstanceView>,
}

/// An instance as listings show it; one that has a DNS name appears once for each of its addresses.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct InstanceView {
    /// The registered id, or the address as the file writes it.
    pub id: Arc<str>,
    /// Where it is reached.
    pub address: Arc<str>,
    /// What it speaks.
    pub protocol: Protocol,
    /// `file` or `registered`.
    pub origin: &'static str,
    /// `healthy`, `unhealthy` (its checks fail), `unreachable` (no connection a moment ago) or `ejected` (for its answers).
    pub health: &'static str,
    /// Its share of requests, relative to the others.
    pub weight: u32,
    /// Requests under way.
    pub load: u32,
    /// How long its registration holds without a heartbeat.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "as_text")]
    pub expires_in: Option<Duration>,
    /// What it said about itself.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
}

fn as_text<S: serde::Serializer>(d: &Option<Duration>, s: S) -> Result<S::Ok, S::Error> {
    match d {
        Some(d) => s.serialize_str(&weft_core::units::format_duration(Duration::from_millis(d.as_millis() as u64))),
        None => s.serialize_none(),
    }
}

impl Mesh {
    /// A mesh that knows nobody. Call it on the runtime that is to run checks and resolve names; [`restore`](Self::restore)
    /// brings back registrations.
    pub fn new(store: Arc<dyn Store>, telemetry: Telemetry) -> Self {
        Self::with_dns(store, telemetry, Dns::system())
    }

    /// With a resolver of its own.
    pub fn with_dns(store: Arc<dyn Store>, telemetry: Telemetry, dns: Dns) -> Self {
        let inner = Arc::new_cyclic(|inner: &Weak<Inner>| Inner {
            _collector: telemetry.metrics().collect(samples(inner.clone())),
            services: ArcSwap::default(),
            catalog: Mutex::new(Catalog::new(telemetry.clone())),
            changes: watch::Sender::new(0),
            store,
            telemetry,
            runtime: Handle::current(),
            dns,
            expiry: Arc::default(),
        });
        task::spawn("mesh: expire registrations", expire(Arc::downgrade(&inner), inner.expiry.clone()));
        Self(inner)
    }

    /// Brings back the registrations of the store. Each gets one fresh TTL in which to send a heartbeat.
    pub async fn restore(&self) -> Result<usize, Error> {
        let mut after: Option<Bytes> = None;
        let mut count = 0;
        loop {
            const PAGE: usize = 1_000;
            let page = self.0.store.scan(SPACE, b"", after.as_deref(), PAGE).await?;
            let full = page.len() == PAGE;
            let now = Instant::now();
            let mut catalog = self.0.catalog.lock();
            for (key, value) in &page {
                let known = std::str::from_utf8(key).ok().and_then(|k| k.split_once('/'));
                let names = known.and_then(|(s, i)| Some((Name::new(s).ok()?, Name::new(i).ok()?)));
                let registration = serde_json::from_slice::<Registration>(&value.bytes);
                let (Some((service, id)), Ok(registration)) = (names, registration) else {
                    tracing::warn!(key = %String::from_utf8_lossy(key), "a stored registration cannot be read and is left out");
                    continue;
                };
                catalog.leases.put(&service, &id, registration, now)?;
                count += 1;
            }
            catalog.rebuild_all(self);
            self.publish(&catalog);
            drop(catalog);
            self.0.expiry.notify_one();
            match page.last() {
                Some((key, _)) if full => after = Some(key.clone()),
                _ => return Ok(count),
            }
        }
    }

    /// Puts these services in place of those of the last call; instances that stay keep their connections, breakers whose
    /// policy stays keep their state. On an error nothing changed.
    pub fn apply(&self, services: &[ServiceSpec]) -> Result<(), Error> {
        let mut declared = Vec::with_capacity(services.len());
        for spec in services {
            let tls = spec.tls.as_ref().map(|tls| ClientTls::load(&spec.name, tls)).transpose()?;
            declared.push(Declared { spec: spec.clone(), tls });
        }
        let mut catalog = self.0.catalog.lock();
        for spec in services {
            for address in &spec.addresses {
                self.not_own(&catalog, &spec.name, address)?;
            }
        }
        catalog.declare(declared, self);
        self.publish(&catalog);
        Ok(())
    }

    /// Refuses, from now on, to call Weft's own listeners.
    pub fn forbid(&self, own: &[SocketAddr]) {
        let mut catalog = self.0.catalog.lock();
        catalog.forbid(own);
        catalog.rebuild_all(self);
        self.publish(&catalog);
    }

    /// A service that can be called. Handles go stale at a reload: ask again for each piece of work.
    pub fn service(&self, name: &str) -> Result<Arc<Service>, Error> {
        let found = self.0.services.load().get(name).cloned();
        found.ok_or_else(|| Error::NoInstances { service: name.into(), known: false })
    }

    /// One attempt on one picked instance; bodies stream both ways. To be called by `policy::attempt::run`.
    pub async fn send(&self, ctx: &Context, service: &str, out: &Outbound, attempt: Attempt) -> Result<Reply, Error> {
        let service = self.service(service)?;
        if service.endpoints.load().is_resolving() {
            Box::pin(self.until_resolved(&service)).await;
        }
        service.send(ctx, out, attempt).await
    }

    /// Waits a moment for names that are being resolved for the first time.
    async fn until_resolved(&self, service: &Service) {
        let mut changes = self.0.changes.subscribe();
        let known = changes.wait_for(|_| !service.endpoints.load().is_resolving());
        let _ = tokio::time::timeout(limits::CONNECT_TIMEOUT, known).await;
    }

    /// Takes or renews a registration. It is callable at once, and durable when this answers.
    pub async fn register(&self, service: &Name, id: &Name, r: Registration) -> Result<Registered, Error> {
        r.check()?;
        let (done, stored) = {
            let mut catalog = self.0.catalog.lock();
            self.not_own(&catalog, service, &r.address)?;
            let json = serde_json::to_vec(&r).expect("a registration is plain data");
            let done = catalog.leases.put(service, id, r, Instant::now())?;
            if done == Registered::Renewed {
                return Ok(done);
            }
            catalog.rebuild(service, self);
            catalog.forget_hosts();
            self.publish(&catalog);
            // Submitted under the lock, so that the store sees changes in the order they were made.
            (done, self.0.store.commit(Batch::new().put(SPACE, key(service, id), json)))
        };
        self.0.expiry.notify_one();
        stored.await?;
        Ok(done)
    }

    /// Says that a registered instance lives.
    pub fn heartbeat(&self, service: &Name, id: &Name) -> Result<(), Error> {
        match self.0.catalog.lock().leases.heartbeat(service, id, Instant::now()) {
            true => Ok(()),
            false => Err(Error::NotRegistered { service: service.clone(), id: id.clone() }),
        }
    }

    /// Forgets a registered instance: it gets no more requests, those under way finish.
    pub async fn deregister(&self, service: &Name, id: &Name) -> Result<(), Error> {
        let stored = {
            let mut catalog = self.0.catalog.lock();
            if !catalog.leases.remove(service, id) {
                return Err(Error::NotRegistered { service: service.clone(), id: id.clone() });
            }
            catalog.rebuild(service, self);
            catalog.forget_hosts();
            self.publish(&catalog);
            self.0.store.commit(Batch::new().delete(SPACE, key(service, id)))
        };
        stored.await?;
        Ok(())
    }

    /// All services by name, and the index of the newest change.
    pub fn list(&self) -> (Vec<ServiceView>, u64) {
        let catalog = self.0.catalog.lock();
        (catalog.live.keys().filter_map(|n| view(&catalog, n)).collect(), catalog.index)
    }

    /// One service, and the index of the newest change anywhere.
    pub fn get(&self, service: &str) -> (Option<ServiceView>, u64) {
        let catalog = self.0.catalog.lock();
        (view(&catalog, service), catalog.index)
    }

    /// Waits until something changed after `index`: anything, or the named service. Answers at once when it has, or when
    /// `index` is of an earlier life of this process; gives up after `wait`, at most [`limits::RECEIVE_WAIT`].
    pub async fn watch(&self, service: Option<&str>, index: u64, wait: Duration) {
        let mut changes = self.0.changes.subscribe();
        let there = service.map(|s| self.get(s).0.is_some());
        let changed = async {
            loop {
                let now = *changes.borrow_and_update();
                // Asked outside of the channel's lock, which is taken under the catalog's when a change is published.
                let changed = match service.map(|s| self.get(s).0) {
                    None => now > index,
                    Some(Some(view)) => view.index > index || there == Some(false),
                    Some(None) => there == Some(true),
                };
                if changed || index > now || changes.changed().await.is_err() {
                    return;
                }
            }
        };
        let _ = tokio::time::timeout(wait.min(limits::RECEIVE_WAIT), changed).await;
    }

    /// Where calls are counted.
    pub fn telemetry(&self) -> &Telemetry {
        &self.0.telemetry
    }

    fn not_own(&self, catalog: &Catalog, service: &Name, address: &Address) -> Result<(), Error> {
        match address {
            Address::Ip(a) if catalog.is_own(a) => Err(Error::OwnListener { service: service.clone(), address: *a }),
            _ => Ok(()),
        }
    }

    fn remove_expired(&self) {
        let mut catalog = self.0.catalog.lock();
        let gone = catalog.leases.expire(Instant::now());
        if gone.is_empty() {
            return;
        }
        let mut batch = Batch::new();
        for (service, id) in &gone {
            tracing::warn!(%service, instance = %id, "removed: no heartbeat within its TTL");
            batch = batch.delete(SPACE, key(service, id));
            catalog.rebuild(service, self);
        }
        catalog.forget_hosts();
        self.publish(&catalog);
        let stored = self.0.store.commit(batch);
        // Not waited for: the next one expires on time even when the store is slow.
        task::spawn("mesh: forget expired registrations", async move {
            if let Err(e) = stored.await {
                // Harmless: after a restart it gets one more TTL.
                tracing::warn!("expired registrations are still in the store: {e}");
            }
        });
    }

    /// Shows callers and watchers what the catalog says.
    fn publish(&self, catalog: &Catalog) {
        let services = self.0.services.load();
        let same = services.len() == catalog.live.len()
            && catalog.live.iter().all(|(n, l)| services.get(n).is_some_and(|s| Arc::ptr_eq(s, &l.service)));
        if !same {
            let new = catalog.live.iter().map(|(n, l)| (n.clone(), l.service.clone())).collect();
            self.0.services.store(Arc::new(new));
        }
        self.0.changes.send_replace(catalog.index);
    }
}

fn key(service: &Name, id: &Name) -> String {
    // '/' is in no name.
    format!("{service}/{id}")
}

fn view(catalog: &Catalog, name: &str) -> Option<ServiceView> {
    let live = catalog.live.get(name)?;
    let declared = catalog.declared.get(name);
    let now = Instant::now();
    let leases: BTreeMap<&str, _> = catalog.leases.of(name).map(|(id, lease)| (id.as_str(), lease)).collect();
    let endpoints = live.service.endpoints.load();
    let instances = endpoints.all.iter().map(|e| {
        let lease = leases.get(&**e.instance());
        InstanceView {
            id: e.instance().clone(),
            address: e.address().clone(),
            protocol: e.wanted.protocol,
            origin: if lease.is_some() { "registered" } else { "file" },
            health: match e {
                e if !e.is_healthy() => "unhealthy",
                e if e.is_unreachable() => "unreachable",
                e if e.is_outlier() => "ejected",
                _ => "healthy",
            },
            weight: e.weight(),
            load: e.load(),
            expires_in: lease.map(|l| l.expires.saturating_duration_since(now)),
            metadata: lease.map(|l| l.registration.metadata.clone()).unwrap_or_default(),
        }
    });
    Some(ServiceView {
        name: live.service.name.clone(),
        origin: if declared.is_some() { "file" } else { "runtime" },
        protocol: declared.map_or(Protocol::Http, |d| d.spec.protocol),
        breaker: live.service.policy.breaker_status().map(|b| b.state.as_str()),
        index: live.index,
        instances: instances.collect(),
    })
}

/// How the services' instances are.
fn samples(mesh: Weak<Inner>) -> impl Fn(&mut Samples) + Send + Sync + 'static {
    move |out| {
        let services = mesh.upgrade().map(|inner| inner.services.load_full());
        for service in services.iter().flat_map(|all| all.values()) {
            let endpoints = service.endpoints.load();
            let unhealthy = endpoints.all.iter().filter(|e| !e.is_healthy()).count();
            let ejected = endpoints.all.iter().filter(|e| e.is_healthy() && e.is_outlier()).count();
            let healthy = endpoints.all.len() - unhealthy - ejected;
            for (state, n) in [("healthy", healthy), ("unhealthy", unhealthy), ("ejected", ejected)] {
                out.gauge(&names::INSTANCES, &[("service", &service.name), ("state", state)], n as f64);
            }
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.expiry.notify_one();
    }
}

/// Removes registrations whose lease ran out, for as long as the mesh exists.
async fn expire(mesh: Weak<Inner>, wake: Arc<Notify>) {
    loop {
        let Some(next) = mesh.upgrade().map(|inner| inner.catalog.lock().leases.next_expiry()) else { return };
        match next {
            Some(at) => tokio::select! {
                () = tokio::time::sleep_until(at) => {}
                () = wake.notified() => {}
            },
            None => wake.notified().await,
        }
        let Some(inner) = mesh.upgrade() else { return };
        Mesh(inner).remove_expired();
    }
}

impl Watchers for Mesh {
    fn check(&self, endpoint: &Arc<Endpoint>, check: &HealthCheck, meter: &Arc<Meter>) -> Task {
        let (weak, service) = (Arc::downgrade(&self.0), endpoint.service.clone());
        let changed = move |_| {
            if let Some(inner) = weak.upgrade() {
                let mesh = Mesh(inner);
                let mut catalog = mesh.0.catalog.lock();
                catalog.rechecked(&service);
                mesh.publish(&catalog);
            }
        };
        Task(self.0.runtime.spawn(health::run(endpoint.clone(), check.clone(), meter.clone(), changed)))
    }

    fn watch_outliers(&self, outliers: &Arc<Outliers>) -> Task {
        Task(self.0.runtime.spawn(outliers.clone().run()))
    }

    fn resolve(&self, host: &str) -> Task {
        let (weak, dns, host) = (Arc::downgrade(&self.0), self.0.dns.clone(), host.to_owned());
        Task(self.0.runtime.spawn(async move {
            loop {
                let wait = match dns.resolve(&host).await {
                    Ok(found) => {
                        let Some(inner) = weak.upgrade() else { return };
                        let mesh = Mesh(inner);
                        let mut catalog = mesh.0.catalog.lock();
                        if catalog.resolved(&host, found.addresses, &mesh) {
                            mesh.publish(&catalog);
                        }
                        found.valid_for
                    }
                    Err(reason) => {
                        // What was found before stays in use.
                        tracing::warn!(host, reason, "name not resolved");
                        limits::DNS_RETRY
                    }
                };
                tokio::time::sleep(wait).await;
            }
        }))
    }
}
