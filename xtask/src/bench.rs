//! `cargo xtask bench NAME` and `cargo xtask schema`.

use std::process::ExitCode;

use crate::{Failure, cargo};

/// Options of `bench`.
#[derive(clap::Args)]
pub struct BenchArgs {
    /// Which bench, and its options
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

/// Options of `schema`.
#[derive(clap::Args)]
pub struct SchemaArgs {}

/// Builds and runs a bench with optimisation.
pub fn run(args: BenchArgs) -> Result<ExitCode, Failure> {
    let mut line = vec!["run", "--release", "--package", "weft-bench", "--"];
    line.extend(args.rest.iter().map(String::as_str));
    cargo(&line)
}

/// Prints the schema.
pub fn schema(_: SchemaArgs) -> Result<ExitCode, Failure> {
    cargo(&["run", "--quiet", "--package", "weft", "--", "schema"])
}
