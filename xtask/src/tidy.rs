//! `cargo xtask tidy`: the rules of the house that a compiler does not know, and rustfmt, clippy and cargo-deny.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::sh::{self, Outcome};

/// A crate imports only crates before it in this list.
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
/// Lines of a source file past which two ideas probably live in it.
const FILE_LINES: usize = 1_000;
/// The version `cargo deny` is installed in when the machine has none.
const CARGO_DENY: &str = "0.20.2";

/// Runs every check; the first failing kind stops it, with all its findings.
pub fn run() -> Outcome {
    let root = sh::root();
    report("import order", import_order(&root)?)?;
    report("files", files(&root)?)?;
    report("docs/patterns.md", crate::patterns::check(&root)?)?;
    sh::step("rustfmt", || sh::run("cargo", &["fmt", "--all", "--check"]))?;
    sh::step("clippy", || {
        sh::run("cargo", &["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"])
    })?;
    sh::step("cargo-deny", deny)
}

fn report(what: &str, findings: Vec<String>) -> Outcome {
    if findings.is_empty() {
        println!("tidy: {what} ok");
        return Ok(());
    }
    Err(format!("{what}:\n  {}", findings.join("\n  ")))
}

fn import_order(root: &Path) -> Result<Vec<String>, String> {
    let metadata = cargo_metadata::MetadataCommand::new()
        .manifest_path(root.join("Cargo.toml"))
        .no_deps()
        .exec()
        .map_err(|e| format!("cargo metadata: {e}"))?;
    let mut findings = Vec::new();
    let rank = |name: &str| ORDER.iter().position(|n| *n == name);
    let mut seen = 0;
    for package in &metadata.packages {
        let Some(own) = rank(package.name.as_ref()) else { continue };
        seen += 1;
        for dep in package.dependencies.iter().filter(|d| d.kind == cargo_metadata::DependencyKind::Normal) {
            if let Some(other) = rank(&dep.name)
                && other >= own
            {
                findings.push(format!("{} imports {}, which stands below it", package.name, dep.name));
            }
        }
    }
    if seen != ORDER.len() {
        findings.push(format!("{seen} of the {} crates of the order exist", ORDER.len()));
    }
    Ok(findings)
}

fn files(root: &Path) -> Result<Vec<String>, String> {
    let mut findings = Vec::new();
    let mut stack = vec![root.to_path_buf()];
    while let Some(dir) = stack.pop() {
        for entry in fs::read_dir(&dir).map_err(|e| format!("{}: {e}", dir.display()))?.flatten() {
            let path = entry.path();
            let name = entry.file_name();
            if path.is_dir() {
                if !matches!(name.to_str(), Some("target" | ".git" | "node_modules")) {
                    stack.push(path);
                }
            } else if path.extension().is_some_and(|e| e == "rs") {
                check_source(root, &path, &mut findings)?;
            }
        }
    }
    findings.sort();
    Ok(findings)
}

fn check_source(root: &Path, path: &Path, findings: &mut Vec<String>) -> Outcome {
    let text = fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
    let shown = path.strip_prefix(root).unwrap_or(path).display();
    let lines = text.lines().count();
    if lines > FILE_LINES {
        findings.push(format!("{shown} has {lines} lines; split it where two ideas meet"));
    }
    let is_crate_root = path.ends_with("src/lib.rs") || path.ends_with("src/main.rs");
    if is_crate_root && !text.starts_with("//!") {
        findings.push(format!("{shown} does not open with //! (what it is, what it is not, its invariants)"));
    }
    Ok(())
}

fn deny() -> Outcome {
    let tools = sh::root().join("target/tools");
    let own: PathBuf = tools.join("bin/cargo-deny");
    let program = if sh::works("cargo-deny", &["--version"]) {
        PathBuf::from("cargo-deny")
    } else {
        if !own.exists() {
            println!("tidy: building cargo-deny {CARGO_DENY} into target/tools (once)");
            let root = tools.display().to_string();
            let version = CARGO_DENY.to_string();
            sh::run(
                "cargo",
                &["install", "--quiet", "--locked", "--debug", "--root", &root, "--version", &version, "cargo-deny"],
            )?;
        }
        own
    };
    let program = program.display().to_string();
    sh::run(&program, &["--all-features", "check", "--hide-inclusion-graph", "bans", "licenses", "sources"])?;
    let advisories = sh::output(&program, &["check", "--hide-inclusion-graph", "advisories"])?;
    if advisories.ok {
        println!("tidy: advisories ok");
    } else if advisories.text.contains("failed to fetch") || advisories.text.contains("unable to fetch") {
        println!("tidy: advisories NOT checked: the advisory database is not reachable from here");
    } else {
        return Err(advisories.text);
    }
    Ok(())
}

/// Names of Rust source files that a document's back-quoted paths point to but that do not exist.
pub fn missing_paths(root: &Path, text: &str) -> BTreeSet<String> {
    text.split('`')
        .skip(1)
        .step_by(2)
        .filter(|s| s.contains('/') && s.ends_with(".rs"))
        .filter(|s| !root.join(s).exists())
        .map(str::to_owned)
        .collect()
}
