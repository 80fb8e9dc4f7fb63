//! `cargo xtask`: what developers of Weft run. `demo` shows the order system on Weft, `test` and `ci` prove the tree,
//! `tidy` proves its order, `bench` measures it, `schema` writes the configuration's JSON Schema.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod bench;
mod test;
mod tidy;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Demo, tests, order of the tree, benches")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run every test of the workspace
    Test(test::TestArgs),
    /// What the pipeline runs: format, lints, tidy, tests
    Ci(test::CiArgs),
    /// Prove that crates import only those above them, and the other rules of the tree
    Tidy(tidy::Args),
    /// Measure Weft beside its peers
    Bench(bench::BenchArgs),
    /// Print the JSON Schema of weft.yaml as this tree understands it
    Schema(bench::SchemaArgs),
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Test(args) => test::test(args),
        Command::Ci(args) => test::ci(args),
        Command::Tidy(args) => tidy::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Schema(args) => bench::schema(args),
    };
    match done {
        Ok(code) => code,
        Err(why) => {
            eprintln!("error: {why}");
            ExitCode::FAILURE
        }
    }
}

/// Why a task could not do its work, in words for the person at the terminal.
type Failure = Box<dyn std::error::Error>;

/// Runs a cargo command in the workspace and takes its exit status for ours.
fn cargo(args: &[&str]) -> Result<ExitCode, Failure> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = std::process::Command::new(cargo).args(args).status()?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
