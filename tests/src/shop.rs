//! The whole order system: a Weft, the nine services, the orders placed with them, and the audit of their databases.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use crate::process::workspace;
use crate::{Answer, Request, Result, Service, Weft, services};

pub mod audit;
pub mod orders;
pub mod place;

pub use audit::{Audit, audit};
pub use orders::{Cards, Expect, Flow, Flows, Order};
pub use place::{Outcome, Placed, place};

/// How long the system may take to know all its services.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running order system.
pub struct Shop {
    /// Where databases, data and output lie.
    pub dir: PathBuf,
    /// Weft, on `examples/order-system/weft.yaml`.
    pub weft: Weft,
    /// The nine, in the order of [`services::NAMES`].
    pub services: Vec<Service>,
}

impl Shop {
    /// Starts everything, with all its files in `dir`, and waits until Weft knows every service.
    pub async fn start(dir: &Path) -> Result<Self> {
        let config = workspace().join("examples/order-system/weft.yaml");
        let weft = Weft::start_file(dir, &config).await?;
        let mut services = Vec::with_capacity(services::NAMES.len());
        for name in services::NAMES {
            services.push(Service::start(name, dir, weft.api).await?);
        }
        let mut shop = Self { dir: dir.to_owned(), weft, services };
        shop.registered().await?;
        Ok(shop)
    }

    /// One of the services.
    pub fn service(&mut self, name: &str) -> Result<&mut Service> {
        self.services.iter_mut().find(|s| s.name == name).ok_or_else(|| format!("there is no service {name}").into())
    }

    /// Sets the switches of some services; `{}` heals.
    pub async fn chaos(&mut self, names: &[&str], settings: &Value) -> Result<()> {
        for name in names {
            self.service(name)?.chaos(settings).await?;
        }
        Ok(())
    }

    /// Waits until every service has an instance in Weft's registry.
    pub async fn registered(&mut self) -> Result<()> {
        let api = self.weft.api;
        let probe = || async move {
            let listed = Request::get(api, "/v1/services?limit=100").send().await.ok()?.json();
            let known = |name: &str| {
                let mut items = listed["items"].as_array()?.iter();
                let instances = items.find(|s| s["name"] == name)?["instances"].as_array()?;
                (!instances.is_empty()).then_some(())
            };
            services::NAMES.iter().map(|name| known(name)).collect::<Option<Vec<_>>>()
        };
        self.weft.process.wait_for("registration of all nine services", PATIENCE, probe).await.map(drop)
    }

    /// Publishes an event on the topic `orders`, as an outsider would.
    pub async fn publish(&self, ty: &str, subject: &str, data: &Value) -> Result<Answer> {
        let event = json!({"specversion": "1.0", "id": format!("{subject}:{ty}"), "source": "/demo", "type": ty,
            "subject": subject, "data": data});
        Request::post(self.weft.api, "/v1/topics/orders/messages")
            .header("content-type", "application/cloudevents+json")
            .body(event.to_string())
            .send()
            .await?
            .expect(201)
    }

    /// Ends everything in order: services first, so that they can deregister.
    pub async fn stop(mut self) -> Result<()> {
        for service in &mut self.services {
            service.stop().await?;
        }
        self.weft.stop().await
    }
}

/// Asks `probe` every 50 ms until it answers something, for at most `patience`.
pub async fn eventually<T, F>(what: &str, patience: Duration, mut probe: impl FnMut() -> F) -> Result<T>
where
    F: Future<Output = Result<Option<T>>>,
{
    let begun = std::time::Instant::now();
    loop {
        let last = probe().await;
        if let Ok(Some(found)) = last {
            return Ok(found);
        }
        if begun.elapsed() > patience {
            let why = last.err().map(|e| format!(" ({e})")).unwrap_or_default();
            return Err(format!("{what}: not in {patience:?}{why}").into());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
