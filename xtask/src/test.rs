//! `cargo xtask test` and `cargo xtask ci`.

use std::process::ExitCode;

use crate::{Failure, cargo, tidy};

/// Options of `test`.
#[derive(clap::Args)]
pub struct TestArgs {
    /// Passed on to `cargo test`
    #[arg(last = true)]
    rest: Vec<String>,
}

/// Options of `ci`.
#[derive(clap::Args)]
pub struct CiArgs {}

/// Runs every test of the workspace.
pub fn test(args: TestArgs) -> Result<ExitCode, Failure> {
    let mut line = vec!["test", "--workspace"];
    line.extend(args.rest.iter().map(String::as_str));
    cargo(&line)
}

/// Runs what the pipeline runs, and stops at the first that fails.
pub fn ci(_: CiArgs) -> Result<ExitCode, Failure> {
    let lints = ["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"];
    for step in [&["fmt", "--all", "--check"][..], &lints[..]] {
        let code = cargo(step)?;
        if code != ExitCode::SUCCESS {
            return Ok(code);
        }
    }
    let code = tidy::run(tidy::Args {})?;
    if code != ExitCode::SUCCESS {
        return Ok(code);
    }
    test(TestArgs { rest: Vec::new() })
}
