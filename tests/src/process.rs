//! A child process that ends with its handle, and ports for it.

use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};

use crate::Result;

/// A running program whose output goes to a file.
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a program of the workspace; its stdout and stderr are appended to `log`.
    pub fn start(name: &str, program: &Path, args: &[String], log: &Path) -> Result<Self> {
        let out = File::options().create(true).append(true).open(log)?;
        let child = Command::new(program)
            .args(args)
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| format!("{} does not start: {e}", program.display()))?;
        Ok(Self { name: name.to_owned(), child, log: log.to_owned() })
    }

    /// The process id, while it runs.
    pub fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// Whether it still runs.
    pub fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Everything it printed.
    pub fn output(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// SIGKILL, and waits for its end.
    pub async fn kill(&mut self) -> Result<()> {
        self.signal(Signal::KILL)?;
        self.child.wait().await?;
        Ok(())
    }

    /// Sends a signal to the process, if it still runs.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        if let Some(pid) = self.child.id().and_then(|id| Pid::from_raw(id as i32)) {
            kill_process(pid, signal)?;
        }
        Ok(())
    }

    /// SIGTERM, and waits up to `patience` for its end; whether it ended with status 0.
    pub async fn terminate(&mut self, patience: Duration) -> Result<bool> {
        self.signal(Signal::TERM)?;
        let status = tokio::time::timeout(patience, self.child.wait())
            .await
            .map_err(|_| format!("{} did not end within {patience:?} of SIGTERM", self.name))??;
        Ok(status.success())
    }

    /// Waits until `probe` answers something, as long as the process runs.
    pub async fn wait_for<T, F>(&mut self, what: &str, patience: Duration, probe: impl Fn() -> F) -> Result<T>
    where
        F: Future<Output = Option<T>>,
    {
        let begun = Instant::now();
        loop {
            if let Some(found) = probe().await {
                return Ok(found);
            }
            if !self.runs() {
                return Err(format!("{} ended before {what}:\n{}", self.name, self.output()).into());
            }
            if begun.elapsed() > patience {
                return Err(format!("{}: no {what} in {patience:?}:\n{}", self.name, self.output()).into());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

static PROGRAMS: OnceLock<PathBuf> = OnceLock::new();

/// Takes the programs from this directory, when they do not lie beside the running one. The first call counts.
pub fn use_programs_in(dir: PathBuf) {
    let _ = PROGRAMS.set(dir);
}

/// A built program of the workspace, found where [`use_programs_in`] said or beside the running one.
pub fn program(name: &str) -> Result<PathBuf> {
    if let Some(dir) = PROGRAMS.get() {
        return Ok(dir.join(name));
    }
    let own = std::env::current_exe()?;
    let found = own.ancestors().skip(1).map(|dir| dir.join(name)).find(|p| p.is_file());
    found.ok_or_else(|| format!("no `{name}` near {}: run `cargo build --workspace` first", own.display()).into())
}

/// A loopback address that was free a moment ago.
///
/// It lies below the range from which the system takes ports for outgoing connections, so that a process that is killed
/// finds it free when it starts again.
pub fn free_address() -> Result<SocketAddr> {
    const TRIES: usize = 100;
    for _ in 0..TRIES {
        let address = SocketAddr::from(([127, 0, 0, 1], rand::random_range(15_000..32_000)));
        if TcpListener::bind(address).is_ok() {
            return Ok(address);
        }
    }
    Err(format!("no free port in {TRIES} tries").into())
}

/// The workspace's root.
pub fn workspace() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the workspace").to_path_buf()
}
