//! A poison message: it ends in the dead-letter queue with its reason, others pass, and after the cure it is redriven.

use std::time::Duration;

use serde_json::{Value, json};

use super::{Listener, Seen};
use crate::shop::{Shop, audit, eventually};
use crate::{Request, Result};

const TYPE: &str = "GiftWrapped";
const DEAD: &str = "notification.dead";
const PATIENCE: Duration = Duration::from_secs(120);

/// Makes the notification service fail on one type of event, publishes one, heals the service and redrives.
pub async fn poison(shop: &mut Shop, seed: u64, listener: &Listener) -> Result<Seen> {
    let mut seen = Seen::default();
    let api = shop.weft.api;
    let (poisoned, sound) = (format!("gift-{seed}-poisoned"), format!("gift-{seed}-sound"));
    shop.chaos(&["notification"], &json!({"poison": TYPE})).await?;
    shop.publish(TYPE, &poisoned, &json!({"customer": poisoned})).await?;
    let dead = eventually("the poison message in the dead-letter queue", PATIENCE, || {
        let poisoned = &poisoned;
        async move { Ok(find(&peek(api).await?, poisoned)) }
    })
    .await?;
    let reason = dead["weftdeadreason"].as_str().unwrap_or_default();
    if reason.is_empty() || dead["weftdeadcount"].as_str().is_none_or(|n| n == "0") {
        return Err(format!("the dead letter does not say why it died: {dead}").into());
    }
    // The rest is the service's own words.
    let reason = reason.split(": {").next().unwrap_or(reason);
    listener.say(format!("dead-lettered after {} deliveries: {reason}", dead["weftdeadcount"].as_str().unwrap_or("?")));
    if written(shop, &poisoned)? {
        return Err("the poison message was handled and dead-lettered".into());
    }
    // It held nobody back: the event after it is handled.
    shop.chaos(&["notification"], &json!({})).await?;
    shop.publish(TYPE, &sound, &json!({"customer": sound})).await?;
    wait_written(shop, &sound).await?;

    let moved = Request::post(api, &format!("/v1/queues/{DEAD}/redrive")).json(&json!({})).send().await?.expect(200)?;
    if moved.json()["moved"] != 1 {
        return Err(format!("redrive moved {}, not 1", moved.text()).into());
    }
    wait_written(shop, &poisoned).await?;
    eventually("an empty dead-letter queue", PATIENCE, || async move { Ok(peek(api).await?.is_empty().then_some(())) })
        .await?;
    seen.fact(format!("a poison message was dead-lettered with its reason (\"{reason}\"), others passed it"));
    seen.fact("after the cure it was redriven and handled once");
    Ok(seen)
}

async fn peek(api: std::net::SocketAddr) -> Result<Vec<Value>> {
    let answer = Request::get(api, &format!("/v1/queues/{DEAD}/messages?limit=100")).send().await?.expect(200)?;
    let items = answer.json()["items"].as_array().cloned().ok_or("the peek has no items")?;
    Ok(items.into_iter().map(|mut m| m["event"].take()).collect())
}

fn find(events: &[Value], subject: &str) -> Option<Value> {
    events.iter().find(|e| e["subject"] == subject).cloned()
}

fn written(shop: &Shop, customer: &str) -> Result<bool> {
    let db = audit::open(&shop.dir, "notification")?;
    let recipient = format!("{customer}@customers.example");
    let count: u32 =
        db.query_row("SELECT count(*) FROM emails WHERE recipient = ?1 AND queued = 1", [recipient], |r| r.get(0))?;
    match count {
        0 => Ok(false),
        1 => Ok(true),
        more => Err(format!("{customer} was written to {more} times").into()),
    }
}

async fn wait_written(shop: &Shop, customer: &str) -> Result<()> {
    eventually(&format!("the e-mail to {customer}"), PATIENCE, || {
        let found = written(shop, customer);
        async move { Ok(found?.then_some(())) }
    })
    .await
}
