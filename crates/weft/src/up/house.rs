//! The running process: every crate's door, wired, and the configuration they run on.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use weft_broker::Broker;
use weft_core::limits;
use weft_core::task::{self, Shutdown};
use weft_edge::api::{self, Api, Hosts, Readiness};
use weft_edge::auth::{ApiKeys, api_keys};
use weft_edge::gateway::{self, Gateway};
use weft_edge::spec::{ListenSpec, Snapshot};
use weft_flow::Flow;
use weft_mesh::Mesh;
use weft_store::{Config, Embedded, Store};
use weft_telemetry::Telemetry;

use super::UpArgs;
use super::material::Material;
use super::ports::{self, PortError, Wish};
use super::view::View;
use crate::config::{Loaded, Report};

/// Where the store lies when nothing says otherwise.
const DATA: &str = "weft-data";

/// Why Weft does not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Signals cannot be received.
    #[error("signals cannot be received: {0}")]
    Signals(std::io::Error),
    /// A port cannot be had.
    #[error(transparent)]
    Port(#[from] PortError),
    /// The store does not open.
    #[error("the store in '{}' does not open: {source}", dir.display())]
    Store {
        /// Its directory.
        dir: PathBuf,
        /// Why.
        source: weft_store::Error,
    },
    /// The broker does not start.
    #[error("the broker does not start: {0}")]
    Broker(#[from] weft_broker::Error),
    /// The saga engine does not start.
    #[error("the sagas do not start: {0}")]
    Flow(#[from] weft_flow::Error),
    /// The API keys cannot be read.
    #[error("the API keys cannot be read: {0}")]
    ApiKeys(#[from] api_keys::Error),
    /// A service cannot be set up.
    #[error("the services cannot be set up: {0}")]
    Mesh(#[from] weft_mesh::Error),
    /// The gateway does not start.
    #[error("the gateway does not start: {0}")]
    Gateway(#[from] gateway::Error),
    /// The API does not listen.
    #[error("the API cannot listen on {address}: {reason}")]
    Api {
        /// Where.
        address: SocketAddr,
        /// Why.
        reason: std::io::Error,
    },
}

/// Everything that runs.
pub struct House {
    store: Arc<dyn Store>,
    mesh: Mesh,
    broker: Broker,
    flow: Flow,
    api_keys: ApiKeys,
    gateway: Gateway,
    ready: Readiness,
    view: View,
    shutdown: Shutdown,
    api: Option<ApiServer>,
    dir: PathBuf,
    notes: Vec<String>,
    material: Material,
}

struct ApiServer {
    address: SocketAddr,
    task: tokio::task::JoinHandle<()>,
}

impl House {
    /// Opens, wires and starts everything.
    pub async fn start(args: &UpArgs, loaded: Loaded) -> Result<Self, Error> {
        let mut notes = Vec::new();
        // Before anything is made of the files: a change from here on is noticed.
        let material = Material::read(&loaded.snapshot);
        let snapshot = listening(args, &loaded, &mut notes)?;
        let api_at = api_address(args, &loaded, &mut notes)?;

        let dir = args.data.clone().or_else(|| loaded.settings.store.dir.clone()).unwrap_or_else(|| DATA.into());
        let store = Embedded::open(Config::new(&dir)).map_err(|source| Error::Store { dir: dir.clone(), source })?;
        let store: Arc<dyn Store> = Arc::new(store);
        let telemetry = Telemetry::new();
        let mesh = Mesh::new(store.clone(), telemetry.clone());
        mesh.apply(&snapshot.services)?;
        mesh.restore().await?;
        let broker = Broker::open(store.clone(), telemetry.clone(), mesh.clone()).await?;
        broker.apply(&snapshot.queues, &snapshot.topics, &snapshot.subscriptions).await?;
        let flow = Flow::open(store.clone(), broker.clone(), mesh.clone(), telemetry.clone()).await?;
        flow.apply(&snapshot.sagas, &snapshot.services).await?;

        let api_keys = ApiKeys::open(store.clone()).await?;

        let ready = Readiness::new();
        let shutdown = Shutdown::new();
        let view = View::new(loaded);
        let threads = args.threads.or(view.loaded().settings.threads).unwrap_or_else(cores);
        let deps = gateway::Deps {
            store: store.clone(),
            telemetry: telemetry.clone(),
            mesh: mesh.clone(),
            broker: broker.clone(),
            flow: flow.clone(),
            api_keys: api_keys.clone(),
        };
        let gateway = Gateway::start(threads, &snapshot.gateway, deps)?;
        let mut own = gateway.addresses().to_vec();
        own.extend(api_at);
        mesh.forbid(&own);

        let api = None;
        let mut house =
            Self { store, mesh, broker, flow, api_keys, gateway, ready, view, shutdown, api, dir, notes, material };
        if let Some(address) = api_at {
            house.api = Some(house.serve_api(address, telemetry).await?);
        }
        Ok(house)
    }

    async fn serve_api(&self, address: SocketAddr, telemetry: Telemetry) -> Result<ApiServer, Error> {
        let failed = |reason| Error::Api { address, reason };
        let listener = tokio::net::TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let api = Api {
            store: self.store.clone(),
            telemetry,
            mesh: self.mesh.clone(),
            broker: self.broker.clone(),
            flow: self.flow.clone(),
            api_keys: self.api_keys.clone(),
            ready: self.ready.clone(),
            config: Arc::new(self.view.clone()),
            versions: self.gateway.usage(),
            hosts: Hosts::default(),
        };
        let router = api::router(api);
        let shutdown = self.shutdown.clone();
        let task = task::spawn("api", async move {
            let stop = async move { shutdown.triggered().await };
            if let Err(e) = axum::serve(listener, router).with_graceful_shutdown(stop).await {
                tracing::error!(error = %e, "the API ended");
            }
        });
        Ok(ApiServer { address, task })
    }

    /// What a person wants to know first.
    pub fn greeting(&self) -> String {
        let mut out = format!("weft {} is up (pid {})\n", env!("CARGO_PKG_VERSION"), std::process::id());
        for address in self.gateway.addresses() {
            let _ = writeln!(out, "  gateway  {address}");
        }
        if let Some(api) = &self.api {
            let _ = writeln!(out, "  api      http://{}", api.address);
        }
        let _ = writeln!(out, "  data     {} (embedded, acknowledged means on disk)", self.dir.display());
        for note in &self.notes {
            let _ = writeln!(out, "  note     {note}");
        }
        if let Some(api) = &self.api
            && self.view.loaded().snapshot.gateway.routes.is_empty()
        {
            let a = api.address;
            let _ = write!(
                out,
                "There are no routes yet. Try:\n  \
                 curl -X PUT http://{a}/v1/services/hello/instances/1 -H 'content-type: application/json' -d '{{\"address\":\"127.0.0.1:9000\",\"protocol\":\"http\",\"ttl\":\"60s\"}}'\n  \
                 curl http://{a}/v1/queues/mail/messages -H 'content-type: text/plain' -d 'first message'\n  \
                 weft receive queue mail --api http://{a}\n\
                 Then write a weft.yaml with routes and start `weft up -c weft.yaml`.\n"
            );
        }
        out
    }

    /// Whether a configuration is what runs already, files it names included.
    pub fn runs(&self, next: &Loaded) -> bool {
        let running = self.view.loaded();
        running.settings == next.settings
            && Snapshot { generation: running.snapshot.generation, ..next.snapshot.clone() } == running.snapshot
            && Material::read(&next.snapshot) == self.material
    }

    /// Swaps to another configuration; what cannot be applied is logged and the rest of the old one goes on.
    pub async fn reload(&mut self, mut next: Loaded) {
        let running = self.view.loaded();
        next.snapshot.generation = running.snapshot.generation + 1;
        let addresses = |s: &Snapshot| s.gateway.listen.iter().map(|l| l.address).collect::<Vec<_>>();
        let moved = addresses(&running.snapshot) != addresses(&next.snapshot);
        if running.settings != next.settings || moved {
            tracing::warn!("reload: listeners, store, threads and log settings change at the next start only");
        }
        let material = Material::read(&next.snapshot);
        let mut snapshot = next.snapshot.clone();
        let open = self.gateway.listen().iter();
        // What is open stays where it is (port 0, an offset and the command line count); what it serves may change.
        let written = if moved { &running.snapshot } else { &next.snapshot }.gateway.listen.iter();
        snapshot.gateway.listen =
            open.zip(written).map(|(l, new)| ListenSpec { address: l.address, ..new.clone() }).collect();
        if let Err(e) = self.apply(snapshot).await {
            tracing::error!(error = %e, "reload refused; the running configuration goes on");
            return;
        }
        tracing::info!(generation = next.snapshot.generation, "reload: the new configuration runs");
        self.material = material;
        self.view.swap(next);
    }

    async fn apply(&self, snapshot: Snapshot) -> Result<(), Error> {
        let prepared = self.gateway.prepare(&snapshot.gateway)?;
        self.mesh.apply(&snapshot.services)?;
        self.broker.apply(&snapshot.queues, &snapshot.topics, &snapshot.subscriptions).await?;
        self.flow.apply(&snapshot.sagas, &snapshot.services).await?;
        self.gateway.put(prepared);
        Ok(())
    }

    /// Says why a reload changes nothing.
    pub fn refuse_reload(&self, report: &Report) {
        tracing::error!("reload refused; the running configuration goes on:\n{}", report.render(false));
    }

    /// Ends in order: no new connections, what is in flight may end within `limits::DRAIN`, then the store closes.
    pub async fn stop(self) {
        self.ready.not_ready("process", "stopping");
        self.gateway.shutdown().await;
        self.flow.close().await;
        self.shutdown.trigger();
        if let Some(api) = self.api
            && tokio::time::timeout(limits::DRAIN, api.task).await.is_err()
        {
            tracing::warn!("API calls were still in flight after {:?}", limits::DRAIN);
        }
        self.broker.close().await;
        if let Err(e) = self.store.close().await {
            tracing::error!(error = %e, "the store did not close in order; it recovers at the next start");
        }
    }
}

fn listening(args: &UpArgs, loaded: &Loaded, notes: &mut Vec<String>) -> Result<Snapshot, Error> {
    let mut snapshot = loaded.snapshot.clone();
    if let Some(address) = args.gateway {
        snapshot.gateway.listen.truncate(1);
        snapshot.gateway.listen[0].address = address;
    }
    for listen in &mut snapshot.gateway.listen {
        listen.address = ports::shift(listen.address, args.port_offset)?;
    }
    let written = loaded.settings.gateway_written || args.gateway.is_some();
    snapshot.gateway.listen = ports::settle_gateway(&snapshot.gateway.listen, written, notes)?;
    Ok(snapshot)
}

fn api_address(args: &UpArgs, loaded: &Loaded, notes: &mut Vec<String>) -> Result<Option<SocketAddr>, Error> {
    let settings = &loaded.settings.api;
    let address = ports::shift(args.api.unwrap_or(settings.listen), args.port_offset)?;
    let wish = Wish { address, written: settings.written || args.api.is_some() };
    Ok(match ports::settle("the API", "api.listen", &wish)? {
        Ok(address) => Some(address),
        Err(note) => {
            notes.push(note);
            None
        }
    })
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
