//! `weft diff`

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::print;
use crate::diff::diff;

#[derive(Args)]
pub(super) struct DiffArgs {
    /// OpenAPI (YAML or JSON) or .proto file, as it was
    old: PathBuf,
    /// The same, as it is to be
    new: PathBuf,
    /// Prints JSON
    #[arg(long)]
    json: bool,
}

/// 0: nothing breaks; 1: something does; 2: a file cannot be read.
pub(super) fn run(args: &DiffArgs) -> ExitCode {
    let changes = match diff(&args.old, &args.new) {
        Ok(changes) => changes,
        Err(e) => {
            eprintln!("weft: {e}");
            return ExitCode::from(2);
        }
    };
    let breaking = changes.iter().filter(|c| c.breaking).count();
    let compatible = changes.len() - breaking;
    let printed = if args.json {
        print(&format!("{:#}\n", json!({"breaking": breaking, "compatible": compatible, "changes": changes})))
    } else {
        let mut text = String::new();
        for c in &changes {
            let word = if c.breaking { "breaking" } else { "compatible" };
            text.push_str(&format!("{word:<10}  {}: {}\n", c.at, c.what));
        }
        let s = if breaking == 1 { "" } else { "s" };
        text.push_str(&format!("{breaking} breaking change{s}, {compatible} compatible\n"));
        print(&text)
    };
    if printed != ExitCode::SUCCESS {
        return ExitCode::from(2);
    }
    ExitCode::from(u8::from(breaking > 0))
}
