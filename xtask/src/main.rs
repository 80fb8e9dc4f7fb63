//! `cargo xtask`: what developers of Weft run. `demo` shows the order system on Weft, `test` and `ci` prove the tree,
//! `tidy` proves its order, `bench` measures it, `schema` writes the configuration's JSON Schema.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod bench;
mod ci;
mod demo;
mod patterns;
mod schema;
mod sh;
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
    /// The order system on Weft, live: orders, failures, recovery, and what it proves
    Demo(demo::Args),
    /// Run everything that must hold; installs Debian packages it needs when it may (exit 3 = something could not run)
    Test,
    /// What the pipeline runs: the test command
    Ci,
    /// Import order, house rules, rustfmt, clippy, cargo-deny
    Tidy,
    /// Measure Weft beside its peers
    Bench {
        /// `store` or `gateway`
        name: String,
        /// Passed on, for example `--json FILE`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        rest: Vec<String>,
    },
    /// Write the JSON Schema and the reference of weft.yaml from the declarations
    Schema,
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Demo(args) => return demo::run(args),
        Command::Test => return test::run(),
        Command::Ci => return ci::run(),
        Command::Tidy => tidy::run(),
        Command::Bench { name, rest } => bench::run(&name, &rest),
        Command::Schema => schema::run(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("error: {why}");
            ExitCode::FAILURE
        }
    }
}
