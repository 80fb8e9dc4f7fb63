//! Keeps a service registered with Weft while it lives, whether or not Weft does.

use std::time::Duration;

use serde_json::Value;

use crate::weft::Weft;

/// How long Weft keeps an instance it hears nothing from.
pub const TTL: Duration = Duration::from_secs(10);

const BEAT: Duration = Duration::from_secs(2);
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(1);

/// Registers, then beats; registers again when Weft forgot the instance or went away. Never returns.
pub async fn keep(weft: Weft, service: &'static str, id: String, instance: Value) {
    let mut retry = FIRST_RETRY;
    let mut known = false;
    loop {
        match weft.register(service, &id, &instance).await {
            Ok(()) => {
                tracing::info!(service, id, "registered with Weft");
                (known, retry) = (true, FIRST_RETRY);
            }
            Err(why) => {
                if std::mem::replace(&mut known, false) || retry == FIRST_RETRY {
                    tracing::warn!(error = %why, "not registered, trying on");
                }
                tokio::time::sleep(retry).await;
                retry = (retry * 2).min(LAST_RETRY);
                continue;
            }
        }
        loop {
            tokio::time::sleep(BEAT).await;
            if let Err(why) = weft.heartbeat(service, &id).await {
                tracing::warn!(error = %why, gone = why.is_not_found(), "no heartbeat, registering again");
                break;
            }
        }
    }
}
