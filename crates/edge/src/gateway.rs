//! The gateway: one OS thread per core, each with a current-thread runtime and listening sockets of its own; nothing is
//! shared between them but the running configuration, the limits' atomics and the handles of other services.
//!
//! A [`Gateway::swap`] puts a new configuration in force between two requests: a request that began goes on under the
//! one it began with.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use weft_broker::Broker;
use weft_core::{Class, Classify, Clock as _, Name, Origin, SystemClock, limits};
use weft_flow::Flow;
use weft_mesh::Mesh;
use weft_policy::Instance;
use weft_store::Store;
use weft_telemetry::metrics::{Counter, Gauge, Histogram};
use weft_telemetry::{Telemetry, names};

use crate::auth::{ApiKeys, Guard, Means, Provider};
use crate::http::access::Access;
use crate::http::adapt::Adapt;
use crate::http::body::Body;
use crate::http::exchange::exchange;
use crate::http::fallback::Fallback;
use crate::http::forwarded::Proxies;
use crate::http::idempotency::Keys;
use crate::http::limited::Limited;
use crate::http::quota::Quotas;
use crate::http::secrets::Secrets;
use crate::http::traffic::{Split, Traffic};
use crate::http::version::Versions;
use crate::listener::{self, Door, Drain, Drained, Handler, Peer, Settings};
use crate::route::{RouteError, Table};
use crate::spec::{GatewaySpec, Idle, ListenSpec, Protocols, RouteSpec, Target};
use crate::versions::{Usage, Used};

/// What the gateway works with.
#[derive(Clone)]
pub struct Deps {
    /// Keeps idempotency keys.
    pub store: Arc<dyn Store>,
    /// Spans and metrics.
    pub telemetry: Telemetry,
    /// Calls services.
    pub mesh: Mesh,
    /// Takes messages of routes to queues and topics.
    pub broker: Broker,
    /// Runs sagas of routes to them.
    pub flow: Flow,
    /// Knows API keys.
    pub api_keys: ApiKeys,
}

/// Why the gateway does not start, or does not take a configuration.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A listener does not start.
    #[error(transparent)]
    Listen(#[from] listener::Error),
    /// Routes do not compile; all mistakes.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Routes(Vec<RouteError>),
    /// A provider cannot be put in force, or a route's condition does not compile.
    #[error("{0}")]
    Auth(String),
    /// The addresses in `gateway.listen` are not what they were.
    #[error("gateway.listen changed: listeners are opened at start only, restart to move them")]
    ListenChanged,
    /// A limit or version of a route does not compile.
    #[error("route '{route}': {reason}")]
    Limit {
        /// Whose.
        route: String,
        /// What is wrong.
        reason: String,
    },
    /// The access log cannot be opened.
    #[error("the access log cannot be opened: {0}")]
    AccessLog(std::io::Error),
    /// A thread does not start.
    #[error("cannot start a gateway thread: {0}")]
    Thread(std::io::Error),
}

impl Classify for Error {
    fn class(&self) -> Class {
        Class::Rejected
    }
    fn origin(&self) -> Origin {
        Origin::Internal
    }
}

/// A running gateway.
#[derive(Debug)]
pub struct Gateway {
    running: Arc<ArcSwap<Running>>,
    means: Means,
    listen: Vec<ListenSpec>,
    doors: Vec<Arc<Door>>,
    addresses: Vec<SocketAddr>,
    drains: Vec<Drain>,
    quotas: Arc<Quotas>,
    usage: Usage,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Gateway {
    /// Binds the listeners and starts the threads. When it returns, connections are taken.
    pub fn start(threads: usize, spec: &GatewaySpec, deps: Deps) -> Result<Self, Error> {
        let threads = threads.max(1);
        let runtime = tokio::runtime::Handle::current();
        let usage = Usage::new(&deps.telemetry);
        let means = Means { telemetry: deps.telemetry.clone(), api_keys: deps.api_keys.clone(), runtime };
        let running = Running::compile(spec, &means, &usage, None)?;
        usage.put(running.versions());
        let running = Arc::new(ArcSwap::from_pointee(running));
        let (mut addresses, mut doors) = (Vec::new(), Vec::new());
        let mut shares: Vec<Vec<Share>> = (0..threads).map(|_| Vec::new()).collect();
        for l in &spec.listen {
            let door = Door::new(Settings::load(l, None)?, limits::CONNECTIONS);
            let sockets = listener::bind(l.address, threads)?;
            let failed = |source| listener::Error::Bind { address: l.address, source };
            addresses.push(sockets[0].local_addr().map_err(failed)?);
            for (share, socket) in shares.iter_mut().zip(sockets) {
                share.push(Share { socket, door: door.clone() });
            }
            doors.push(door);
        }
        let keys = Arc::new(Keys::new(deps.store.clone()));
        let quotas = Arc::new(Quotas::new(deps.store.clone(), &deps.telemetry));
        let mut started = Self {
            running,
            means,
            listen: spec.listen.clone(),
            doors,
            addresses,
            drains: vec![],
            quotas: quotas.clone(),
            usage,
            threads: vec![],
        };
        for (i, share) in shares.into_iter().enumerate() {
            let (drain, drained) = Drain::new();
            let core = Arc::new(Core {
                running: started.running.clone(),
                keys: keys.clone(),
                quotas: quotas.clone(),
                deps: deps.clone(),
                drain: drain.clone(),
            });
            started.drains.push(drain.clone());
            let work = thread(share, core, drain, drained, i == 0);
            let spawned = std::thread::Builder::new().name(format!("gateway-{i}")).spawn(move || {
                match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                    Ok(runtime) => runtime.block_on(work),
                    Err(e) => tracing::error!(error = %e, "a gateway thread has no runtime"),
                }
            });
            started.threads.push(spawned.map_err(Error::Thread)?);
        }
        Ok(started)
    }

    /// Where it listens, in the order of the configuration; ports of 0 are filled in.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// The listeners as they were opened at start.
    pub fn listen(&self) -> &[ListenSpec] {
        &self.listen
    }

    /// Makes everything ready for a [`put`](Self::put); changes nothing. Files are read again. Limits of a route whose
    /// name and policy stay will go on counting where they stand.
    pub fn prepare(&self, spec: &GatewaySpec) -> Result<Prepared, Error> {
        if !spec.listen.iter().map(|l| l.address).eq(self.listen.iter().map(|l| l.address)) {
            return Err(Error::ListenChanged);
        }
        let listeners = spec.listen.iter().zip(&self.doors);
        let doors = listeners.map(|(l, door)| Settings::load(l, Some(&door.settings()))).collect::<Result<_, _>>()?;
        let running = Running::compile(spec, &self.means, &self.usage, Some(&self.running.load_full()))?;
        Ok(Prepared { running, doors })
    }

    /// Puts what was prepared in force: routes for requests, listeners' settings for connections from now on.
    pub fn put(&self, prepared: Prepared) {
        for (door, settings) in self.doors.iter().zip(prepared.doors) {
            door.put(settings);
        }
        self.usage.put(prepared.running.versions());
        self.running.store(Arc::new(prepared.running));
    }

    /// Prepares and puts in force. An error changes nothing.
    pub fn swap(&self, spec: &GatewaySpec) -> Result<(), Error> {
        self.put(self.prepare(spec)?);
        Ok(())
    }

    /// Who uses which version of what.
    pub fn usage(&self) -> Usage {
        self.usage.clone()
    }

    /// The policy in force on a route, for those who show it.
    pub fn policy(&self, route: &str) -> Option<Instance> {
        self.running.load().routes.iter().find(|r| *r.name == *route).map(|r| r.policy.clone())
    }

    /// Takes no more connections, waits for the requests under way up to [`limits::DRAIN`], and ends the threads.
    pub async fn shutdown(mut self) {
        for d in self.drains.drain(..) {
            d.start();
        }
        let threads = std::mem::take(&mut self.threads);
        let joined = tokio::task::spawn_blocking(move || threads.into_iter().all(|t| t.join().is_ok()));
        if !joined.await.unwrap_or(false) {
            tracing::error!("a gateway thread panicked");
        }
        self.quotas.flush(SystemClock.now()).await;
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        for d in &self.drains {
            d.start();
        }
    }
}

/// A configuration that is ready to be put in force.
#[derive(Debug)]
pub struct Prepared {
    running: Running,
    doors: Vec<Settings>,
}

struct Share {
    socket: std::net::TcpListener,
    door: Arc<Door>,
}

async fn thread(share: Vec<Share>, core: Arc<Core>, drain: Drain, drained: Drained, sweeps: bool) {
    let sweepers = sweeps.then(|| [tokio::spawn(core.keys.clone().sweep()), tokio::spawn(core.quotas.clone().keep())]);
    let mut accepting = Vec::new();
    for s in share {
        accepting.push(tokio::spawn(listener::accept(s.socket, s.door, drain.clone(), Entrance(core.clone()))));
    }
    drop(core);
    drop(drain);
    for a in accepting {
        match a.await {
            Ok(Ok(())) => {}
            Ok(Err(e)) => tracing::error!(error = %e, "a listener ended"),
            Err(e) => tracing::error!(error = %e, "a listener's task ended"),
        }
    }
    for s in sweepers.into_iter().flatten() {
        s.abort();
    }
    if !drained.wait(limits::DRAIN).await {
        tracing::warn!(limit = ?limits::DRAIN, "requests were still under way when the time to drain was up");
    }
}

#[derive(Clone)]
struct Entrance(Arc<Core>);

impl Handler for Entrance {
    type Body = Body;

    async fn handle(self, peer: Arc<Peer>, request: Request<Incoming>) -> Response<Body> {
        exchange(self.0, peer, request).await
    }
}

/// What one thread's requests share.
pub(crate) struct Core {
    pub(crate) running: Arc<ArcSwap<Running>>,
    pub(crate) keys: Arc<Keys>,
    pub(crate) quotas: Arc<Quotas>,
    pub(crate) deps: Deps,
    /// Whoever works for a request holds the core, and so the drain waits for it.
    pub(crate) drain: Drain,
}

/// One configuration, compiled.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) table: Table,
    /// By index of the table.
    pub(crate) routes: Vec<Arc<Route>>,
    /// Stands for requests that took no route.
    pub(crate) unmatched: Arc<Route>,
    /// Kept over reloads that leave them as they are, with the keys they fetched.
    providers: Vec<Arc<Provider>>,
    pub(crate) proxies: Arc<Proxies>,
    pub(crate) access: Option<Arc<Access>>,
    /// Whether some route answers preflights.
    pub(crate) cors: bool,
}

impl Running {
    fn compile(spec: &GatewaySpec, means: &Means, usage: &Usage, old: Option<&Running>) -> Result<Self, Error> {
        let telemetry = &means.telemetry;
        let provider = |p| match old.and_then(|o| o.providers.iter().find(|k| k.is(p))) {
            Some(kept) => Ok(kept.clone()),
            None => Provider::start(p, means).map_err(|e| Error::Auth(format!("auth provider '{}': {e}", p.name))),
        };
        let providers: Vec<_> = spec.auth.iter().map(provider).collect::<Result<_, _>>()?;
        let table = Table::compile(&spec.routes).map_err(Error::Routes)?;
        let proxies = Arc::new(Proxies::new(spec.trusted_proxies.clone()));
        let access = match (&spec.access_log, old.and_then(|o| o.access.as_ref())) {
            (None, _) => None,
            (Some(log), Some(open)) if open.spec() == log => Some(open.clone()),
            (Some(log), _) => Some(Arc::new(Access::open(log, telemetry).map_err(Error::AccessLog)?)),
        };
        let secrets = Arc::new(Secrets::new(providers.iter().filter_map(|p| p.parameter())));
        let forwarded = spec.forwarded;
        let routes = spec.routes.iter().enumerate().map(|(i, r)| {
            let kept = old.and_then(|o| o.routes.iter().find(|k| *k.name == *r.name.as_str()));
            let policy = match kept {
                Some(k) if *k.policy.policy() == r.policy => k.policy.clone(),
                _ => {
                    let fresh = Instance::new(&r.policy);
                    fresh.tell(telemetry.metrics(), &format!("route {}", r.name));
                    fresh
                }
            };
            let finish = |route: &mut Route, spec: &RouteSpec| {
                route.proxies = proxies.clone();
                route.secrets = secrets.clone();
                route.forwarded = forwarded;
                route.traffic = Traffic::compile(spec, table.pattern(i), Some(telemetry)).unwrap_or_default();
            };
            let mut route = Route::with_versions(r, policy, telemetry, usage, &finish)?;
            let guard = r.policy.auth.as_ref().map(|a| Guard::compile(&r.name, a, &providers, means));
            route.guard = guard.transpose().map_err(Error::Auth)?;
            if let (Some(versions), Some(guard)) = (&mut route.versions, &route.guard) {
                versions.hide(guard.secrets().clone());
            }
            Ok(Arc::new(route))
        });
        let routes: Vec<_> = routes.collect::<Result<_, Error>>()?;
        let cors = routes.iter().any(|r: &Arc<Route>| r.traffic.as_ref().is_some_and(|t| t.cors().is_some()));
        let none = RouteSpec {
            name: weft_core::Name::new("none").expect("'none' is a name"),
            matches: Default::default(),
            priority: 0,
            to: Target::Service { service: weft_core::Name::new("none").expect("'none' is a name"), path: None },
            policy: Default::default(),
            protocols: Default::default(),
            fallback: None,
            versions: None,
            traffic: Default::default(),
        };
        let mut unmatched = Route::new(&none, Instance::new(&none.policy), telemetry)?;
        (unmatched.proxies, unmatched.secrets) = (proxies.clone(), secrets);
        Ok(Self { table, routes, unmatched: Arc::new(unmatched), providers, proxies, access, cors })
    }

    /// The use of every version of every route.
    fn versions(&self) -> impl Iterator<Item = (&str, &str, &Arc<Used>)> {
        let versioned = self.routes.iter().filter_map(|r| Some((&*r.name, r.versions.as_ref()?)));
        versioned.flat_map(|(r, v)| v.used().map(move |(name, used)| (r, name, used)))
    }
}

/// One route in force.
#[derive(Debug)]
pub(crate) struct Route {
    pub(crate) name: Arc<str>,
    pub(crate) to: Target,
    pub(crate) policy: Instance,
    pub(crate) protocols: Protocols,
    pub(crate) fallback: Option<Fallback>,
    /// What its rates and quotas need to know of a request.
    pub(crate) limited: Option<Box<Limited>>,
    /// Its versions, when it has several.
    pub(crate) versions: Option<Box<Versions>>,
    /// Makes bodies those of another version.
    pub(crate) adapt: Option<Box<Adapt>>,
    pub(crate) guard: Option<Guard>,
    /// What it does besides policy, where it does.
    pub(crate) traffic: Option<Box<Traffic>>,
    pub(crate) split: Option<Split>,
    pub(crate) proxies: Arc<Proxies>,
    /// What no log writes.
    pub(crate) secrets: Arc<Secrets>,
    /// Whether services get `Forwarded`.
    pub(crate) forwarded: bool,
    pub(crate) in_flight: Gauge,
    telemetry: Telemetry,
    /// Made when it first answers: a table of thousands of routes holds many that never do.
    meter: OnceLock<Box<Meter>>,
    path: Box<str>,
    span_names: [OnceLock<Arc<str>>; METHODS.len() + 1],
}

/// What is counted of a route's answers.
#[derive(Debug)]
struct Meter {
    duration: Histogram,
    /// By status, made when first needed.
    answers: Box<[OnceLock<Counter>]>,
}

const METHODS: [Method; 7] =
    [Method::GET, Method::POST, Method::PUT, Method::DELETE, Method::PATCH, Method::HEAD, Method::OPTIONS];

impl Route {
    fn new(spec: &RouteSpec, policy: Instance, telemetry: &Telemetry) -> Result<Self, Error> {
        let name = spec.name.as_str();
        let m = telemetry.metrics();
        let limited = Limited::compile(&spec.policy, name, telemetry)
            .map_err(|reason| Error::Limit { route: name.to_owned(), reason })?;
        Ok(Self {
            name: name.into(),
            to: spec.to.clone(),
            policy,
            protocols: spec.protocols.clone(),
            fallback: (spec.fallback.as_ref())
                .map(|f| Fallback::new(f, m.counter(&names::FALLBACKS, &[("route", name)]))),
            limited: limited.map(Box::new),
            versions: None,
            adapt: None,
            guard: None,
            traffic: None,
            split: match &spec.to {
                Target::Split(shares) => Some(Split::new(shares, spec.traffic.sticky.as_ref())),
                _ => None,
            },
            proxies: Arc::default(),
            secrets: Arc::default(),
            forwarded: false,
            in_flight: m.gauge(&names::HTTP_REQUESTS_IN_FLIGHT, &[]),
            meter: OnceLock::new(),
            telemetry: telemetry.clone(),
            path: spec.matches.path.as_str().into(),
            span_names: Default::default(),
        })
    }

    /// A route and the routes of its versions, which share its policy.
    fn with_versions(
        spec: &RouteSpec,
        policy: Instance,
        telemetry: &Telemetry,
        usage: &Usage,
        finish: &dyn Fn(&mut Route, &RouteSpec),
    ) -> Result<Self, Error> {
        let mut route = Self::new(spec, policy.clone(), telemetry)?;
        finish(&mut route, spec);
        let Some(versions) = &spec.versions else { return Ok(route) };
        let name = spec.name.as_str();
        let compiled = Versions::compile(versions, &spec.matches.path, name, usage, |i| {
            let v = &versions.known[i];
            let mut own = RouteSpec { versions: None, ..spec.clone() };
            if let (Target::Service { service, .. }, Some(other)) = (&mut own.to, &v.service) {
                *service = other.clone();
            }
            let mut made = Self::new(&own, policy.clone(), telemetry).map_err(|e| e.to_string())?;
            finish(&mut made, &own);
            made.adapt = Adapt::compile(v.request.as_ref(), v.response.as_ref())?.map(Box::new);
            Ok(Arc::new(made))
        });
        let compiled = compiled.map_err(|reason| Error::Limit { route: name.to_owned(), reason })?;
        route.versions = Some(Box::new(compiled));
        Ok(route)
    }

    /// What a connection may be upgraded to: something where there is a service to go on with.
    pub(crate) fn upgrades(&self) -> &[String] {
        if crate::http::traffic::is_service(&self.to) { &self.protocols.upgrade } else { &[] }
    }

    /// How long an upgraded connection may be silent.
    pub(crate) fn tunnel_idle(&self) -> Option<Duration> {
        match self.protocols.idle {
            Idle::BuiltIn => Some(limits::TUNNEL_IDLE),
            Idle::Off => None,
            Idle::After(d) => Some(d),
        }
    }

    /// The service of a share.
    pub(crate) fn service(&self, share: u16) -> &Name {
        match &self.to {
            Target::Service { service, .. } => service,
            Target::Split(shares) => &shares[usize::from(share)].service,
            _ => unreachable!("only routes to services are proxied"),
        }
    }

    /// How much of a request is collected before it is sent on.
    pub(crate) fn buffers(&self) -> Option<usize> {
        self.traffic.as_ref()?.buffer
    }

    /// Counts one answer.
    pub(crate) fn count(&self, status: StatusCode, took: Duration) {
        let metrics = self.telemetry.metrics();
        let meter = self.meter.get_or_init(|| {
            let duration = metrics.histogram(&names::HTTP_REQUEST_DURATION, &[("route", &self.name)]);
            Box::new(Meter { duration, answers: (0..500).map(|_| OnceLock::new()).collect() })
        });
        let at = usize::from(status.as_u16()).saturating_sub(100).min(meter.answers.len() - 1);
        let answers = meter.answers[at].get_or_init(|| {
            metrics.counter(&names::HTTP_REQUESTS, &[("route", &self.name), ("code", status.as_str())])
        });
        answers.inc();
        meter.duration.observe(took);
    }

    /// `GET /v1/orders/{id}`: the method and the route's pattern, so that there are few different ones.
    pub(crate) fn span_name(&self, method: &Method) -> Arc<str> {
        let at = METHODS.iter().position(|m| m == method).unwrap_or(METHODS.len());
        let made = self.span_names[at].get_or_init(|| {
            let method = METHODS.get(at).map_or("other", Method::as_str);
            if self.path.is_empty() { method.into() } else { format!("{method} {}", self.path).into() }
        });
        made.clone()
    }
}
