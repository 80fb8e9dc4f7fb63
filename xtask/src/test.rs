//! `cargo xtask test`: everything that must hold, from a machine that has Rust and a C compiler.

use std::process::ExitCode;

use crate::sh::{self, Outcome};
use crate::tidy;

/// A Debian package and a call that shows it is there, and the test binary that needs it.
struct Need {
    package: &'static str,
    probe: (&'static str, &'static [&'static str]),
}

const NEEDS: &[Need] = &[
    Need { package: "curl", probe: ("curl", &["--version"]) },
    Need { package: "prometheus", probe: ("promtool", &["--version"]) },
];

/// Exit status when tests that need a package could not run.
const INCOMPLETE: u8 = 3;

/// Tidy, then the workspace's tests, then end to end and interop tests against the built binaries.
pub fn run() -> ExitCode {
    match all() {
        Ok(missing) if missing.is_empty() => ExitCode::SUCCESS,
        Ok(missing) => {
            eprintln!(
                "xtask: everything that needs no package passed. NOT run: the interop tests, which need {}. \
                 Install these, or run as root on Debian or Ubuntu.",
                missing.join(", ")
            );
            ExitCode::from(INCOMPLETE)
        }
        Err(e) => {
            eprintln!("xtask: FAILED: {e}");
            ExitCode::FAILURE
        }
    }
}

fn all() -> Result<Vec<&'static str>, String> {
    sh::step("tidy", tidy::run)?;
    sh::step("build", || sh::run("cargo", &["build", "--quiet", "--workspace", "--all-targets"]))?;
    let missing = install();
    let mut args = vec!["test", "--workspace", "--no-fail-fast"];
    if !missing.is_empty() {
        args.extend(["--features", "weft-tests/no-packages"]);
    }
    sh::step("tests", || sh::run("cargo", &args))?;
    Ok(missing)
}

/// Installs what is missing when it can; returns what is still missing.
fn install() -> Vec<&'static str> {
    let absent = |n: &&Need| !sh::works(n.probe.0, n.probe.1);
    let wanted: Vec<_> = NEEDS.iter().filter(absent).map(|n| n.package).collect();
    if wanted.is_empty() {
        return wanted;
    }
    if let Err(e) = apt(&wanted) {
        eprintln!("xtask: {} not installed: {e}", wanted.join(", "));
    }
    NEEDS.iter().filter(absent).map(|n| n.package).collect()
}

/// Installs Debian packages without starting what they contain.
pub fn apt(packages: &[&str]) -> Outcome {
    let is_root = sh::output("id", &["-u"])?.text.trim() == "0";
    if !is_root || !sh::works("apt-get", &["--version"]) {
        return Err("this needs root on Debian or Ubuntu".into());
    }
    println!("xtask: installing {}", packages.join(", "));
    let install = [
        "DEBIAN_FRONTEND=noninteractive",
        "RUNLEVEL=1",
        "apt-get",
        "install",
        "-y",
        "-qq",
        "--no-install-recommends",
        "-o",
        "Dpkg::Use-Pty=0",
    ];
    let mut args: Vec<&str> = install.to_vec();
    args.extend(packages);
    // The lists may be old or empty: one quiet attempt first, then update and again.
    if sh::output("env", &args)?.ok {
        return Ok(());
    }
    sh::run("apt-get", &["update", "-qq"])?;
    let out = sh::output("env", &args)?;
    if out.ok { Ok(()) } else { Err(out.text) }
}
