//! The services of the order system, each a process of its own.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use crate::http::Request;
use crate::process::{Process, free_address, program};
use crate::{Answer, Result};

/// The nine.
pub const NAMES: [&str; 9] =
    ["order", "inventory", "payment", "shipping", "notification", "analytics", "product", "user", "auth"];

/// How long a start or an end may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// One running service.
pub struct Service {
    /// Which.
    pub name: &'static str,
    /// Where it listens.
    pub address: SocketAddr,
    /// Its SQLite file.
    pub db: PathBuf,
    /// The process.
    pub process: Process,
    weft: SocketAddr,
    dir: PathBuf,
}

impl Service {
    /// Starts one with its database and output in `dir`.
    pub async fn start(name: &'static str, dir: &Path, weft: SocketAddr) -> Result<Self> {
        let address = free_address()?;
        let process = spawn(name, dir, address, weft)?;
        let db = dir.join(format!("{name}.db"));
        let mut service = Self { name, address, db, process, weft, dir: dir.to_owned() };
        service.healthy().await?;
        Ok(service)
    }

    /// Starts again after a kill: same address, same database.
    pub async fn restart(&mut self) -> Result<()> {
        self.process = spawn(self.name, &self.dir, self.address, self.weft)?;
        self.healthy().await
    }

    /// SIGKILL.
    pub async fn kill(&mut self) -> Result<()> {
        self.process.kill().await
    }

    /// SIGTERM; an error when it does not end in order.
    pub async fn stop(&mut self) -> Result<()> {
        if self.process.terminate(PATIENCE).await? {
            return Ok(());
        }
        Err(format!("{} did not end in order:\n{}", self.name, self.process.output()).into())
    }

    /// Sets the service's switches; `{}` heals it.
    pub async fn chaos(&self, settings: &Value) -> Result<Answer> {
        Request::post(self.address, "/chaos").json(settings).send().await?.expect(200)
    }

    async fn healthy(&mut self) -> Result<()> {
        let address = self.address;
        let probe = || async move {
            let answer = Request::get(address, "/healthz").send().await.ok()?;
            (answer.status == 200).then_some(())
        };
        self.process.wait_for("health", PATIENCE, probe).await
    }
}

fn spawn(name: &str, dir: &Path, address: SocketAddr, weft: SocketAddr) -> Result<Process> {
    let args = [
        name.to_owned(),
        "--listen".to_owned(),
        address.to_string(),
        "--db".to_owned(),
        dir.join(format!("{name}.db")).display().to_string(),
        "--weft".to_owned(),
        format!("http://{weft}"),
        "--id".to_owned(),
        format!("{name}-1"),
    ];
    Process::start(name, &program("order-system")?, &args, &dir.join(format!("{name}.log")))
}
