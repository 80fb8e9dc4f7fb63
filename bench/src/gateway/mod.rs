//! `weft-bench gateway`: what a proxied request costs, in CPU time of the proxy, and what connections cost in memory.
//!
//! Every proxy runs on one core, the clients and the service behind it on another; rounds are interleaved, and one peer
//! runs twice: how far its two medians lie apart is the noise of the machine. CPU time is read from
//! `/proc/PID/task/*/schedstat`, in nanoseconds. Every answer's length is checked.

mod load;
mod memory;
mod peers;
mod report;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use peers::{Peer, Running};
use report::Sample;

pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Options.
#[derive(clap::Args)]
pub struct Args {
    /// Also write one JSON object a line to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Interleaved rounds
    #[arg(long, default_value_t = 8)]
    rounds: usize,
    /// How long each proxy works in each round
    #[arg(long, value_name = "MS", default_value_t = 1000)]
    millis: u64,
    /// Connections of the client (HTTP/1.1), or streams at once (HTTP/2)
    #[arg(long, default_value_t = 32)]
    connections: usize,
    /// Connections that carry the HTTP/2 streams
    #[arg(long, default_value_t = 4)]
    h2_connections: usize,
    /// Core of the proxies
    #[arg(long, default_value_t = 0)]
    proxy_core: usize,
    /// Core of clients and service
    #[arg(long, default_value_t = 1)]
    load_core: usize,
    /// Only these subjects, separated by commas: weft, nginx, nginx-2, haproxy, envoy, envoy-traced, traefik
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Only these cases, separated by commas: http1-128B, http1-16KiB, http1-1MiB, tls-128B, h2c-128B, memory
    #[arg(long, value_delimiter = ',')]
    case: Vec<String>,
    /// Routes in Weft's table beside the one that is asked for
    #[arg(long, default_value_t = 5000)]
    routes: usize,
    /// The weft binary [default: beside this one]
    #[arg(long, value_name = "FILE")]
    weft: Option<PathBuf>,
}

/// What is asked, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Case {
    /// As the report names it.
    pub name: &'static str,
    /// What the client speaks.
    pub wire: Wire,
    /// Bytes of an answer's body.
    pub body: usize,
}

/// A client's protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    /// HTTP/1.1 with keep-alive, HTTP/1.1 to the service.
    Http1,
    /// The same inside TLS 1.3, plain to the service.
    Tls,
    /// HTTP/2 by prior knowledge, h2c to the service where the proxy can.
    H2c,
}

const CASES: [Case; 5] = [
    Case { name: "http1-128B", wire: Wire::Http1, body: 128 },
    Case { name: "http1-16KiB", wire: Wire::Http1, body: 16 << 10 },
    Case { name: "http1-1MiB", wire: Wire::Http1, body: 1 << 20 },
    Case { name: "tls-128B", wire: Wire::Tls, body: 128 },
    Case { name: "h2c-128B", wire: Wire::H2c, body: 128 },
];

impl Args {
    fn wants(&self, peer: Peer) -> bool {
        self.only.is_empty() || self.only.iter().any(|o| o == peer.name())
    }
}

/// Runs it all and prints the figures.
pub fn run(args: &Args) -> Result<()> {
    let cores = std::thread::available_parallelism()?.get();
    if cores < 2 {
        return Err("this bench needs two cores: one for the proxy, one for clients and service".into());
    }
    let dir = tempfile::tempdir()?;
    let services = load::Services::start(args.load_core)?;
    let mut peers = Vec::new();
    for peer in Peer::ALL.into_iter().filter(|p| args.wants(*p)) {
        match peers::start(peer, dir.path(), &services, args) {
            Ok(p) => peers.push(p),
            Err(e) => println!("{} is left out: {e}", peer.name()),
        }
    }
    let mut samples = Vec::new();
    let wanted = |name: &str| args.case.is_empty() || args.case.iter().any(|c| c == name);
    for case in CASES.into_iter().filter(|c| wanted(c.name)) {
        measure(args, case, &peers, &services, &mut samples)?;
    }
    report::print(&samples, args.rounds);
    if wanted("memory") {
        drop(peers);
        memory::print(&memory::measure(args, dir.path(), &services)?);
    }
    if let Some(path) = &args.json {
        report::write_json(path, &samples, args.rounds)?;
    }
    Ok(())
}

fn measure(
    args: &Args,
    case: Case,
    peers: &[Running],
    services: &load::Services,
    samples: &mut Vec<Sample>,
) -> Result<()> {
    let took = Duration::from_millis(args.millis);
    for round in 0..=args.rounds {
        for at in 0..peers.len() {
            // Each round begins with another one.
            let p = &peers[(at + round) % peers.len()];
            let client = load::Client {
                to: p.port(case.wire),
                case,
                ca: services.ca.clone(),
                connections: args.connections,
                h2_connections: args.h2_connections,
                core: args.load_core,
            };
            client.run(took / 5).map_err(|e| format!("{} ({}): {e}", p.name(), case.name))?;
            let (cpu, began) = (p.cpu()?, Instant::now());
            let requests = client.run(took).map_err(|e| format!("{} ({}): {e}", p.name(), case.name))?;
            let (cpu, wall) = (p.cpu()? - cpu, began.elapsed());
            // The first round warms caches and connections.
            if round > 0 {
                samples.push(Sample {
                    case: case.name,
                    subject: p.name(),
                    cpu_us: cpu.as_secs_f64() * 1e6 / requests as f64,
                    per_second: requests as f64 / wall.as_secs_f64(),
                    memory_mib: p.memory()? as f64 / 1048576.0,
                });
            }
        }
    }
    Ok(())
}
