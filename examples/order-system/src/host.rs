//! What all nine services share: options, listener, switches, health, registration, an orderly end.

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use axum::Router;
use axum::http::Uri;
use axum::routing::get;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use crate::chaos::{self, Chaos};
use crate::consumer::{self, Consumer, React};
use crate::db::Db;
use crate::registry;
use crate::weft::Weft;

/// Options of every subcommand.
#[derive(clap::Args)]
pub struct Options {
    /// Where to listen; port 0 takes a free one, which the first line of output names
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// SQLite file, made when missing
    #[arg(long, default_value = "order-system.db")]
    db: PathBuf,
    /// Weft's API
    #[arg(long, default_value = "http://127.0.0.1:8081")]
    weft: Uri,
    /// Instance id in Weft's registry [default: random]
    #[arg(long)]
    id: Option<String>,
}

/// What a service speaks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Speaks {
    /// HTTP/1.1.
    Http,
    /// gRPC; `/chaos` and `/healthz` are plain HTTP on the same port.
    Grpc,
}

/// Why a service ended badly.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// A service about to run.
pub struct Host {
    name: &'static str,
    options: Options,
    /// Its database.
    pub db: Db,
    /// The API of Weft.
    pub weft: Weft,
    /// Its switches.
    pub chaos: Chaos,
}

/// Work in flight has this long to end after SIGTERM.
const DRAIN: Duration = Duration::from_secs(3);

impl Host {
    /// Opens the log and the database.
    pub fn new(name: &'static str, options: Options, schema: &str) -> Result<Self, Failure> {
        let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
        let ansi = std::io::stderr().is_terminal();
        tracing_subscriber::fmt().with_env_filter(filter).with_ansi(ansi).with_writer(std::io::stderr).init();
        let db = Db::open(&options.db, schema)?;
        let weft = Weft::new(&options.weft);
        Ok(Self { name, options, db, weft, chaos: Chaos::new() })
    }

    /// Consumes a subscription beside the routes.
    pub fn consume(&self, subscription: &'static str, react: React) {
        let (weft, db, chaos) = (self.weft.clone(), self.db.clone(), self.chaos.clone());
        tokio::spawn(consumer::run(Consumer { weft, db, chaos, subscription, react }));
    }

    /// Serves the routes until SIGTERM or SIGINT.
    pub async fn serve(self, speaks: Speaks, routes: Router) -> Result<(), Failure> {
        let listener = TcpListener::bind(self.options.listen).await?;
        let address = listener.local_addr()?;
        let switches = Router::new()
            .route("/chaos", get(chaos::get).post(chaos::post))
            .with_state(self.chaos.clone())
            .route("/healthz", get(async || "ok\n"));
        let app = routes.layer(axum::middleware::from_fn_with_state(self.chaos.clone(), chaos::layer)).merge(switches);

        let id = self.options.id.clone().unwrap_or_else(|| format!("{}-{:08x}", self.name, rand::random::<u32>()));
        let instance = json!({
            "address": address.to_string(),
            "protocol": if speaks == Speaks::Grpc { "grpc" } else { "http" },
            "ttl": format!("{}s", registry::TTL.as_secs()),
            "metadata": {"chaos": format!("http://{address}/chaos"), "pid": std::process::id().to_string()},
        });
        let registered = tokio::spawn(registry::keep(self.weft.clone(), self.name, id.clone(), instance));
        println!("{} listening on {address}", self.name);

        let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let (stop, mut stopped) = tokio::sync::watch::channel(());
        let server = axum::serve(listener, app).with_graceful_shutdown(async move {
            let _ = stopped.changed().await;
        });
        let mut server = std::pin::pin!(server.into_future());
        tokio::select! {
            ended = &mut server => return Ok(ended?),
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        // First out of the registry, so that no new work is sent here; then finish what is in flight.
        registered.abort();
        if let Err(why) = self.weft.deregister(self.name, &id).await {
            tracing::warn!(error = %why, "not deregistered; Weft forgets this instance after its ttl");
        }
        let _ = stop.send(());
        if tokio::time::timeout(DRAIN, server).await.is_err() {
            tracing::warn!("work was still in flight after {DRAIN:?}");
        }
        Ok(())
    }
}
