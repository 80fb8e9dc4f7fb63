//! A `weft up` of one's own: its directory, its ports, and a life that can be ended and begun again.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::http::Request;
use crate::process::{Process, free_address, program};
use crate::{Answer, Result};

/// How long a start or an end may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running Weft.
pub struct Weft {
    /// The process.
    pub process: Process,
    /// The gateway's address.
    pub gateway: SocketAddr,
    /// The API's address.
    pub api: SocketAddr,
    /// Where its configuration, data and output lie.
    pub dir: PathBuf,
    config: PathBuf,
}

impl Weft {
    /// Writes a configuration into `dir` and starts on it.
    pub async fn start(dir: &Path, config: &str) -> Result<Self> {
        let file = dir.join("weft.yaml");
        std::fs::write(&file, config)?;
        Self::start_file(dir, &file).await
    }

    /// Starts on a configuration file, with data and output in `dir`.
    pub async fn start_file(dir: &Path, config: &Path) -> Result<Self> {
        let (gateway, api) = (free_address()?, free_address()?);
        let process = spawn(dir, config, gateway, api)?;
        let mut weft = Self { process, gateway, api, dir: dir.to_owned(), config: config.to_owned() };
        weft.ready().await?;
        Ok(weft)
    }

    /// Starts again after a kill: same ports, same data.
    pub async fn restart(&mut self) -> Result<()> {
        self.process = spawn(&self.dir, &self.config, self.gateway, self.api)?;
        self.ready().await
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
        Err(format!("weft did not end in order:\n{}", self.process.output()).into())
    }

    /// Rewrites the configuration file, which Weft watches.
    pub fn rewrite(&self, config: &str) -> Result<()> {
        Ok(std::fs::write(&self.config, config)?)
    }

    /// Waits until `/readyz` answers 200.
    pub async fn ready(&mut self) -> Result<()> {
        let api = self.api;
        let ready = || async move {
            let answer = Request::get(api, "/readyz").send().await.ok()?;
            (answer.status == 200).then_some(())
        };
        self.process.wait_for("readiness", PATIENCE, ready).await
    }

    /// GET from the API, which must answer 200.
    pub async fn get(&self, path: &str) -> Result<serde_json::Value> {
        Ok(Request::get(self.api, path).send().await?.expect(200)?.json())
    }

    /// POST of JSON to the API.
    pub async fn post(&self, path: &str, body: &serde_json::Value) -> Result<Answer> {
        Request::post(self.api, path).json(body).send().await
    }
}

fn spawn(dir: &Path, config: &Path, gateway: SocketAddr, api: SocketAddr) -> Result<Process> {
    let args = [
        "up".to_owned(),
        "--config".to_owned(),
        config.display().to_string(),
        "--data".to_owned(),
        dir.join("data").display().to_string(),
        "--gateway".to_owned(),
        gateway.to_string(),
        "--api".to_owned(),
        api.to_string(),
    ];
    Process::start("weft", &program("weft")?, &args, &dir.join("weft.log"))
}
