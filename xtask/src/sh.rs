//! Running other programs, with their output kept or shown.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

/// Success, or what went wrong, for a person.
pub type Outcome = Result<(), String>;

/// What a program printed and whether it succeeded.
pub struct Output {
    /// Exit status 0.
    pub ok: bool,
    /// stdout and stderr.
    pub text: String,
}

/// The workspace's root.
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace").to_path_buf()
}

/// Runs a program in the root with its output shown.
pub fn run(program: &str, args: &[&str]) -> Outcome {
    let status = Command::new(program).args(args).current_dir(root()).stdin(Stdio::null()).status();
    match status {
        Ok(s) if s.success() => Ok(()),
        Ok(s) => Err(format!("`{program} {}` ended with {s}", args.join(" "))),
        Err(e) => Err(format!("`{program}` did not start: {e}")),
    }
}

/// Runs a program in the root and keeps what it prints.
pub fn output(program: &str, args: &[&str]) -> Result<Output, String> {
    let out = Command::new(program)
        .args(args)
        .current_dir(root())
        .stdin(Stdio::null())
        .output()
        .map_err(|e| format!("`{program}` did not start: {e}"))?;
    let text = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    Ok(Output { ok: out.status.success(), text })
}

/// Whether a program is there and answers.
pub fn works(program: &str, args: &[&str]) -> bool {
    let status = Command::new(program).args(args).stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|s| s.success())
}

/// Runs a named step and prints how long it took.
pub fn step(name: &str, f: impl FnOnce() -> Outcome) -> Outcome {
    let begun = Instant::now();
    f().map_err(|e| format!("{name}: {e}"))?;
    println!("xtask: {name} ok ({:.0?})", begun.elapsed());
    Ok(())
}
