//! `cargo xtask bench NAME`: builds in release and runs the benches of `bench/`.

use crate::sh::{self, Outcome};

/// Runs one bench with its own options.
pub fn run(name: &str, rest: &[String]) -> Outcome {
    sh::run("cargo", &["build", "--quiet", "--release", "--package", "weft", "--package", "weft-bench"])?;
    let program = sh::root().join("target/release/weft-bench").display().to_string();
    let mut args = vec![name];
    args.extend(rest.iter().map(String::as_str));
    sh::run(&program, &args)
}
