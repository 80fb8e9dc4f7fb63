//! `weft up`: one process, all roles.
//!
//! The order of the start: configuration, log, store, then the house on the main thread's runtime (the state runtime),
//! then the API, then the gateway's threads. The end is the same backwards.

mod house;
mod material;
mod ports;
mod reload;
mod routes;
mod view;

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};

use crate::config::{self, Loaded};
use house::House;
use reload::Triggers;

/// Options of `weft up`.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct UpArgs {
    /// Configuration file; without one Weft starts with the defaults
    #[arg(short, long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Adds N to every port
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub port_offset: u16,
    /// Data directory [default: ./weft-data]
    #[arg(long, value_name = "DIR", env = "WEFT_DATA")]
    pub data: Option<PathBuf>,
    /// Where the gateway listens, in place of what the file says
    #[arg(long, value_name = "ADDR")]
    pub gateway: Option<SocketAddr>,
    /// Where the API listens, in place of what the file says
    #[arg(long, value_name = "ADDR")]
    pub api: Option<SocketAddr>,
    /// Threads that carry requests [default: one per core]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// Log for people or as JSON, one object a line
    #[arg(long, value_name = "FORMAT")]
    pub log: Option<LogFormat>,
}

/// Form of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// Text.
    Human,
    /// One JSON object a line.
    Json,
}

/// Runs until SIGTERM or SIGINT; what went wrong is on standard error.
pub fn run(args: UpArgs) -> ExitCode {
    let loaded = match load(&args) {
        Ok(loaded) => loaded,
        Err(report) => {
            eprint!("{}", report.render(std::io::stderr().is_terminal()));
            return ExitCode::FAILURE;
        }
    };
    let json = args.log.map_or(loaded.settings.logs.json, |l| l == LogFormat::Json);
    let format = if json { weft_telemetry::log::Format::Json } else { weft_telemetry::log::Format::Human };
    if let Err(e) = weft_telemetry::log::init(format, &loaded.settings.logs.level) {
        eprintln!("weft: {e}");
        return ExitCode::FAILURE;
    }
    raise_descriptors();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            eprintln!("weft: the runtime does not start: {e}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(live(args, loaded)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("weft: {e}");
            ExitCode::FAILURE
        }
    }
}

/// Raises the limit of open files as far as the process may: each connection through the gateway takes two, and many
/// systems begin at 1,024.
fn raise_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if let Err(e) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        tracing::warn!(limit = current, error = %e, "the limit of open files stays as it is");
    }
}

fn load(args: &UpArgs) -> Result<Loaded, config::Report> {
    args.config.as_deref().map_or_else(|| Ok(config::defaults()), config::load)
}

/// Every file a change of which is a cause to reload.
fn watched(loaded: &Loaded) -> Vec<PathBuf> {
    let mut all = loaded.sources.paths();
    all.extend(material::paths(&loaded.snapshot));
    all
}

async fn live(args: UpArgs, loaded: Loaded) -> Result<(), house::Error> {
    let mut terminate = signal(SignalKind::terminate()).map_err(house::Error::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(house::Error::Signals)?;
    let mut triggers = Triggers::new(&watched(&loaded)).map_err(house::Error::Signals)?;
    let mut house = House::start(&args, loaded).await?;
    print!("{}", house.greeting());
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            cause = triggers.next() => {
                let Some(file) = &args.config else { continue };
                match config::load(file) {
                    Ok(next) if cause == reload::Cause::File && house.runs(&next) => {}
                    Ok(next) => {
                        triggers.watch(&watched(&next));
                        house.reload(next).await;
                    }
                    Err(report) => house.refuse_reload(&report),
                }
            }
        }
    }
    tracing::info!("stopping: no new connections, work in flight may end");
    house.stop().await;
    Ok(())
}
