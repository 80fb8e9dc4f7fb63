//! Faults on command: `POST /chaos` sets how often requests and events fail, lose their answer, hang or are slow, or
//! ends the process. Draws come from a seeded source, so a run can be repeated.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::{Deserialize, Serialize};

use crate::fault::Fault;

/// How the service misbehaves. `POST /chaos` replaces all of it, so `{}` heals.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Share of work refused as unavailable before it began.
    pub fail: f64,
    /// Share of work that is done, and whose answer is lost.
    pub lose: f64,
    /// Share of work that never ends.
    pub hang: f64,
    /// Time added to everything.
    pub slow_ms: u64,
    /// Ends the process at once, as a crash would.
    pub crash: bool,
    /// Seed of the draws.
    pub seed: u64,
    /// The notification service fails on events of this type.
    pub poison: Option<String>,
}

/// The switches of one service.
#[derive(Clone)]
pub struct Chaos(Arc<Mutex<Inner>>);

struct Inner {
    settings: Settings,
    draws: StdRng,
}

/// What befalls one piece of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Nothing.
    Spared,
    /// Refused before it began.
    Fails,
    /// Done, and nobody hears of it.
    LosesItsAnswer,
    /// Never ends.
    Hangs,
}

impl Chaos {
    /// All well.
    pub fn new() -> Self {
        Self(Arc::new(Mutex::new(Inner { settings: Settings::default(), draws: StdRng::seed_from_u64(0) })))
    }

    /// Changes the settings and starts the draws anew.
    pub fn set(&self, settings: Settings) -> Result<(), Fault> {
        for (name, share) in [("fail", settings.fail), ("lose", settings.lose), ("hang", settings.hang)] {
            if !(0.0..=1.0).contains(&share) {
                return Err(Fault::Invalid(format!("'{name}' is a share from 0 to 1, this is {share}")));
            }
        }
        let draws = StdRng::seed_from_u64(settings.seed);
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Inner { settings, draws };
        Ok(())
    }

    /// The settings now.
    pub fn settings(&self) -> Settings {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).settings.clone()
    }

    /// Draws what befalls the next piece of work, and how slow it is.
    pub fn draw(&self) -> (Fate, Duration) {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Inner { settings, draws } = &mut *inner;
        // One draw a kind, always, so that changing one share does not move the others.
        let [fail, lose, hang] = [settings.fail, settings.lose, settings.hang].map(|share| draws.random_bool(share));
        let fate = match (hang, fail, lose) {
            (true, ..) => Fate::Hangs,
            (_, true, _) => Fate::Fails,
            (_, _, true) => Fate::LosesItsAnswer,
            _ => Fate::Spared,
        };
        (fate, Duration::from_millis(settings.slow_ms))
    }
}

/// `POST /chaos`.
pub async fn post(State(chaos): State<Chaos>, Json(settings): Json<Settings>) -> Result<Json<Settings>, Fault> {
    let crash = settings.crash;
    chaos.set(settings)?;
    if crash {
        tracing::warn!("crash on command");
        // 128 + SIGABRT: no destructor runs, no connection is closed in order.
        std::process::exit(134);
    }
    Ok(Json(chaos.settings()))
}

/// `GET /chaos`.
pub async fn get(State(chaos): State<Chaos>) -> Json<Settings> {
    Json(chaos.settings())
}

/// The layer around a service's own routes.
pub async fn layer(State(chaos): State<Chaos>, request: Request, next: Next) -> Response {
    let (fate, slow) = chaos.draw();
    let content_type = request.headers().get("content-type").and_then(|v| v.to_str().ok());
    let grpc = content_type.is_some_and(|v| v.starts_with("application/grpc"));
    if !slow.is_zero() {
        tokio::time::sleep(slow).await;
    }
    match fate {
        Fate::Spared => next.run(request).await,
        Fate::Fails => unavailable(grpc),
        Fate::LosesItsAnswer => {
            next.run(request).await;
            unavailable(grpc)
        }
        // Ends when the caller gives up and its connection or stream is closed.
        Fate::Hangs => std::future::pending().await,
    }
}

fn unavailable(grpc: bool) -> Response {
    if grpc {
        tonic::Status::unavailable("fault on command").into_http()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "fault on command\n").into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fates(seed: u64) -> Vec<Fate> {
        let chaos = Chaos::new();
        chaos.set(Settings { fail: 0.3, lose: 0.2, hang: 0.1, seed, ..Settings::default() }).unwrap();
        (0..200).map(|_| chaos.draw().0).collect()
    }

    #[test]
    fn the_same_seed_draws_the_same_fates() {
        assert_eq!(fates(7), fates(7));
        assert_ne!(fates(7), fates(8));
        for fate in [Fate::Spared, Fate::Fails, Fate::LosesItsAnswer, Fate::Hangs] {
            assert!(fates(7).contains(&fate), "{fate:?} never happens");
        }
    }

    #[test]
    fn a_share_beyond_one_is_refused_and_changes_nothing() {
        let chaos = Chaos::new();
        assert!(chaos.set(Settings { fail: 1.5, ..Settings::default() }).is_err());
        assert_eq!(chaos.settings(), Settings::default());
    }
}
