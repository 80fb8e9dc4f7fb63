//! What a proxy holds in memory: when it has just started, with a thousand idle connections, with a thousand busy ones.

use std::path::Path;
use std::time::Duration;

use super::load::{Client, Services};
use super::peers::{self, Peer};
use super::{Args, CASES, Result};

const CONNECTIONS: usize = 1_000;

/// One subject's resident memory in MiB.
pub struct Memory {
    subject: &'static str,
    started: f64,
    idle: f64,
    busy: f64,
}

/// Measures each subject in a fresh process.
pub fn measure(args: &Args, dir: &Path, services: &Services) -> Result<Vec<Memory>> {
    let mut all = Vec::new();
    for peer in Peer::ALL.into_iter().filter(|p| args.wants(*p) && *p != Peer::Nginx2) {
        let Ok(running) = peers::start(peer, &dir.join("memory"), services, args) else { continue };
        let mib = || -> Result<f64> { Ok(running.memory()? as f64 / 1048576.0) };
        std::thread::sleep(Duration::from_millis(500));
        let started = mib()?;
        let case = CASES[0];
        let client = Client {
            to: running.port(case.wire),
            case,
            ca: services.ca.clone(),
            connections: CONNECTIONS,
            h2_connections: 1,
            core: args.load_core,
        };
        let idle = client.hold(mib)?;
        let mut busy: f64 = 0.0;
        std::thread::scope(|s| -> Result<()> {
            let load = s.spawn(|| client.run(Duration::from_secs(2)).map_err(|e| e.to_string()));
            while !load.is_finished() {
                std::thread::sleep(Duration::from_millis(100));
                busy = busy.max(mib()?);
            }
            load.join().map_err(|_| "the load panicked")?.map(|_| ()).map_err(Into::into)
        })?;
        all.push(Memory { subject: peer.name(), started, idle, busy });
    }
    Ok(all)
}

/// Prints the table.
pub fn print(all: &[Memory]) {
    println!("\n### memory: MiB resident, HTTP/1.1, one core\n");
    println!(
        "| proxy | started | {CONNECTIONS} idle connections | {CONNECTIONS} busy connections |\n|---|---|---|---|"
    );
    for m in all {
        println!("| {} | {:.0} | {:.0} | {:.0} |", m.subject, m.started, m.idle, m.busy);
    }
}
