//! Places an order through the gateway as a careful client does: the same Idempotency-Key until the end is known.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{Flow, Order};
use crate::{Answer, Request, Result};

/// How long an order may take, whatever befalls Weft and the services meanwhile.
const PATIENCE: Duration = Duration::from_secs(150);
/// First and longest pause before asking again.
const AGAIN: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(400));

/// How an order ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The customer gets what they ordered.
    Completed,
    /// All is undone.
    Compensated,
}

/// An order that ended.
#[derive(Clone, Debug)]
pub struct Placed {
    /// What was asked for.
    pub order: Order,
    /// Its id, when an answer named one.
    pub id: Option<String>,
    /// How it ended.
    pub outcome: Outcome,
    /// From the first request to the known end.
    pub latency: Duration,
    /// Requests sent until an answer was final.
    pub requests: u32,
    /// Why it was undone.
    pub reason: Option<String>,
}

enum Known {
    Ended(Outcome, Option<String>, Option<String>),
    /// Ask the saga of that path.
    Saga(String),
    /// Ask for the order of that id.
    Order(String),
    NotYet(String),
}

/// Where to place orders and to ask about them.
#[derive(Clone, Copy, Debug)]
pub struct Counter {
    /// The gateway.
    pub gateway: SocketAddr,
    /// The API.
    pub api: SocketAddr,
}

/// Sends the POST once.
pub async fn post(counter: Counter, order: &Order) -> Result<Answer> {
    let request = Request::post(counter.gateway, order.path()).header("idempotency-key", &order.key);
    request.json(&order.body()).send().await
}

/// Places an order and follows it to its end.
pub async fn place(counter: Counter, order: &Order) -> Result<Placed> {
    let begun = Instant::now();
    let mut requests = 0;
    let mut pause = AGAIN.0;
    let mut next = Known::NotYet(String::new());
    loop {
        next = match next {
            Known::Ended(outcome, id, reason) => {
                let order = order.clone();
                return Ok(Placed { order, id, outcome, latency: begun.elapsed(), requests, reason });
            }
            Known::NotYet(why) if begun.elapsed() > PATIENCE => {
                return Err(
                    format!("order {} of {} has no end after {PATIENCE:?}: {why}", order.key, order.customer).into()
                );
            }
            Known::Saga(_) | Known::Order(_) if begun.elapsed() > PATIENCE => {
                return Err(format!("order {} of {} still runs after {PATIENCE:?}", order.key, order.customer).into());
            }
            Known::NotYet(_) => {
                if requests > 0 {
                    wait(&mut pause).await;
                }
                requests += 1;
                match post(counter, order).await {
                    Ok(answer) => read(order, &answer)?,
                    // Whether Weft heard it is unknown; the key makes asking again safe.
                    Err(why) => Known::NotYet(why.to_string()),
                }
            }
            Known::Saga(path) => saga(counter, path, &mut pause).await?,
            Known::Order(id) => choreographed(counter, id, &mut pause).await?,
        };
    }
}

fn read(order: &Order, answer: &Answer) -> Result<Known> {
    let body = answer.json();
    let text = |v: &Value| v.as_str().map(str::to_owned);
    let code = body["code"].as_str().unwrap_or_default();
    Ok(match (answer.status.as_u16(), code) {
        (201, _) => Known::Ended(Outcome::Completed, text(&body["id"]), None),
        (202, _) if order.flow == Flow::Choreography => Known::Order(text(&body["id"]).ok_or("202 without an id")?),
        (200 | 202, _) => Known::Saga(answer.header("location").ok_or("202 without a Location")?.to_owned()),
        (_, "saga-compensated" | "saga-rejected") => {
            Known::Ended(Outcome::Compensated, text(&body["saga"]), text(&body["detail"]))
        }
        (409, "idempotency-key-in-flight") | (429 | 500 | 502..=504, _) => Known::NotYet(answer.text()),
        (status, _) => {
            return Err(format!("order {} was answered {status}: {}", order.key, answer.text()).into());
        }
    })
}

async fn wait(pause: &mut Duration) {
    tokio::time::sleep(*pause).await;
    *pause = (*pause * 3 / 2).min(AGAIN.1);
}

async fn saga(counter: Counter, path: String, pause: &mut Duration) -> Result<Known> {
    let Ok(answer) = Request::get(counter.api, &format!("{path}?wait=10s")).send().await else {
        wait(pause).await;
        return Ok(Known::Saga(path));
    };
    let body = answer.json();
    let text = |v: &Value| v.as_str().map(str::to_owned);
    Ok(match body["status"].as_str() {
        Some("completed") => Known::Ended(Outcome::Completed, text(&body["id"]), None),
        Some("compensated") => Known::Ended(Outcome::Compensated, text(&body["id"]), text(&body["error"])),
        Some("parked") => return Err(format!("{path} is parked: {}", answer.text()).into()),
        Some(_) => Known::Saga(path),
        None if answer.status == 404 => return Err(format!("{path} was acknowledged and is gone").into()),
        None => {
            wait(pause).await;
            Known::Saga(path)
        }
    })
}

async fn choreographed(counter: Counter, id: String, pause: &mut Duration) -> Result<Known> {
    let answer = Request::get(counter.gateway, &format!("/v1/orders/{id}")).send().await;
    let status = answer.as_ref().map(|a| a.json()["status"].as_str().unwrap_or_default().to_owned());
    Ok(match status.as_deref() {
        Ok("confirmed") => Known::Ended(Outcome::Completed, Some(id), None),
        Ok("cancelled") => Known::Ended(Outcome::Compensated, Some(id), None),
        _ => {
            wait(pause).await;
            Known::Order(id)
        }
    })
}
