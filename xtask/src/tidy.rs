//! `cargo xtask tidy`: a crate imports only crates above it (ARCHITECTURE.md).

use std::process::ExitCode;

use cargo_metadata::{DependencyKind, MetadataCommand};

use crate::Failure;

/// Top to bottom.
const ORDER: [&str; 9] = [
    "weft-core",
    "weft-store",
    "weft-telemetry",
    "weft-policy",
    "weft-mesh",
    "weft-broker",
    "weft-flow",
    "weft-edge",
    "weft",
];

/// Options of `tidy`.
#[derive(clap::Args)]
pub struct Args {}

/// Checks the tree and says every rule that is broken.
pub fn run(_: Args) -> Result<ExitCode, Failure> {
    let metadata = MetadataCommand::new().no_deps().exec()?;
    let place = |name: &str| ORDER.iter().position(|n| *n == name);
    let mut broken = 0;
    for package in &metadata.packages {
        let Some(own) = place(&package.name) else { continue };
        for dependency in package.dependencies.iter().filter(|d| d.kind != DependencyKind::Development) {
            if place(&dependency.name).is_some_and(|theirs| theirs >= own) {
                println!("{} imports {}, which stands below it", package.name, dependency.name);
                broken += 1;
            }
        }
    }
    println!("import order: {broken} broken");
    Ok(if broken == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
