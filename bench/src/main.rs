//! Benchmarks: each prints what was measured and whether it meets its bar.

mod gateway;
mod store;

use std::path::PathBuf;

use clap::{Parser, Subcommand};

/// Weft's benchmarks.
#[derive(Parser)]
#[command(name = "weft-bench")]
struct Args {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Subcommand)]
enum Bench {
    /// CPU per proxied request: Weft, nginx (twice), HAProxy, Envoy.
    Gateway(gateway::Args),
    /// The embedded store: appends, commits against bare syncs, reopening.
    Store {
        /// Write one JSON object a line to this file.
        #[arg(long)]
        json: Option<PathBuf>,
        /// Where the data goes; must be on the disk to be measured.
        #[arg(long, default_value = "target/bench-store")]
        dir: PathBuf,
        /// Seconds each case runs.
        #[arg(long, default_value_t = 10)]
        seconds: u64,
    },
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    match Args::parse().bench {
        Bench::Gateway(args) => gateway::run(&args),
        Bench::Store { json, dir, seconds } => store::run(json.as_deref(), &dir, seconds),
    }
}
