//! An issuer's keys, kept fresh by a task of their own: a request never waits for them, except for the first set and for
//! a key that the issuer has just begun to use.
//!
//! A set that was fetched is good until there is a newer one. While its issuer cannot be reached the old one goes on: an
//! outage there signs nobody out here.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use rustls::ClientConfig;
use serde::Deserialize;
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;
use tokio::time::Instant;
use weft_core::limits;
use weft_policy::auth::jose::Keys;
use weft_telemetry::metrics::Counter;
use weft_telemetry::names;

use super::spec::KeysFrom;
use super::{Means, fetch};

/// Fresh for this long when the server does not say.
const FRESH: Duration = Duration::from_secs(600);

/// A set of keys and which one it is: what was checked with another is checked again.
#[derive(Debug)]
pub(super) struct Set {
    pub(super) keys: Keys,
    pub(super) generation: u64,
}

#[derive(Debug)]
pub(super) struct Source {
    provider: Arc<str>,
    set: ArcSwapOption<Set>,
    /// Ended fetches, good or not.
    ended: watch::Sender<u64>,
    under_way: AtomicBool,
    asked: Mutex<Option<Instant>>,
    wanted: Arc<Notify>,
    fetches: Option<[Counter; 2]>,
    task: Mutex<Option<AbortHandle>>,
}

impl Drop for Source {
    fn drop(&mut self) {
        if let Some(task) = self.task.lock().take() {
            task.abort();
        }
    }
}

#[derive(Deserialize)]
struct Discovery {
    issuer: String,
    jwks_uri: String,
}

impl Source {
    /// Keys that stay as they are, or a task that fetches them.
    pub(super) fn start(
        provider: &Arc<str>,
        from: &KeysFrom,
        ca: Option<&std::path::Path>,
        means: &Means,
    ) -> Result<Arc<Self>, String> {
        let fixed = match from {
            KeysFrom::Fixed(keys) => Some(Arc::new(Set { keys: keys.clone(), generation: 1 })),
            KeysFrom::Url(_) | KeysFrom::Discovery(_) => None,
        };
        let remote = fixed.is_none();
        let count = |result| {
            let labels = [("provider", &**provider), ("result", result)];
            means.telemetry.metrics().counter(&names::AUTH_KEY_FETCHES, &labels)
        };
        let source = Arc::new(Self {
            provider: provider.clone(),
            set: ArcSwapOption::from(fixed),
            ended: watch::Sender::new(0),
            under_way: AtomicBool::new(remote),
            asked: Mutex::new(None),
            wanted: Arc::default(),
            fetches: remote.then(|| [count("ok"), count("failed")]),
            task: Mutex::new(None),
        });
        if remote {
            let secure = matches!(from, KeysFrom::Url(u) | KeysFrom::Discovery(u) if u.starts_with("https:"));
            let tls = if secure || ca.is_some() { Some(fetch::tls(ca)?) } else { None };
            let task = means.runtime.spawn(keep_fresh(Arc::downgrade(&source), from.clone(), tls));
            *source.task.lock() = Some(task.abort_handle());
        }
        Ok(source)
    }

    /// The keys now.
    pub(super) fn current(&self) -> Option<Arc<Set>> {
        self.set.load_full()
    }

    /// Asks for newer keys than these, waits for them, and says whether there are some. However many ask, there is one
    /// fetch in [`limits::JWKS_REFETCH`]: tokens that name keys nobody has are no way to flood an issuer.
    pub(super) async fn renewed(&self, than: u64) -> bool {
        if self.fetches.is_none() {
            return false;
        }
        let mut ended = self.ended.subscribe();
        let newer = || self.current().is_some_and(|s| s.generation > than);
        // It came while this one was on its way here.
        if newer() {
            return true;
        }
        // The first set is on its way: that is no asking for a newer one.
        if than > 0 || !self.under_way.load(Ordering::Acquire) {
            let mut asked = self.asked.lock();
            let now = Instant::now();
            if !asked.is_some_and(|t| now < t + limits::JWKS_REFETCH) {
                *asked = Some(now);
                // One that is under way may have been answered before the issuer changed its keys: once more after it.
                self.under_way.store(true, Ordering::Release);
                self.wanted.notify_one();
            }
        }
        if self.under_way.load(Ordering::Acquire) {
            let _ = tokio::time::timeout(limits::JWKS_FETCH, ended.changed()).await;
        }
        newer()
    }

    fn take(&self, keys: Keys) {
        let old = self.current();
        match &old {
            Some(o) if o.keys == keys => {}
            _ => {
                let generation = old.as_ref().map_or(0, |o| o.generation) + 1;
                tracing::info!(provider = %self.provider, keys = keys.len(), "the issuer's keys are new");
                self.set.store(Some(Arc::new(Set { keys, generation })));
            }
        }
    }
}

async fn keep_fresh(source: Weak<Source>, from: KeysFrom, tls: Option<Arc<ClientConfig>>) {
    let mut retry = limits::JWKS_RETRY.0;
    loop {
        let fetched = tokio::time::timeout(limits::JWKS_FETCH, keys(&from, tls.as_ref())).await;
        let Some(this) = source.upgrade() else { return };
        let fetched = fetched.unwrap_or_else(|_| Err(format!("no answer within {:?}", limits::JWKS_FETCH)));
        if let Some([ok, failed]) = &this.fetches {
            if fetched.is_ok() { ok.inc() } else { failed.inc() }
        }
        let wait = match fetched {
            Ok((keys, fresh)) => {
                this.take(keys);
                retry = limits::JWKS_RETRY.0;
                fresh.unwrap_or(FRESH).clamp(limits::JWKS_FRESH.0, limits::JWKS_FRESH.1)
            }
            Err(e) => {
                let known = this.current().is_some();
                tracing::warn!(provider = %this.provider, error = %e, keys_known = known, "fetching the issuer's keys failed");
                let wait = retry;
                retry = (retry * 2).min(limits::JWKS_RETRY.1);
                wait
            }
        };
        this.under_way.store(false, Ordering::Release);
        this.ended.send_modify(|n| *n += 1);
        // Waits without holding the source, so that a reload that drops it ends this.
        let wanted = this.wanted.clone();
        drop(this);
        let _ = tokio::time::timeout(wait, wanted.notified()).await;
        match source.upgrade() {
            Some(this) => this.under_way.store(true, Ordering::Release),
            None => return,
        }
    }
}

async fn keys(from: &KeysFrom, tls: Option<&Arc<ClientConfig>>) -> Result<(Keys, Option<Duration>), String> {
    let url = match from {
        KeysFrom::Fixed(keys) => return Ok((keys.clone(), None)),
        KeysFrom::Url(url) => url.clone(),
        KeysFrom::Discovery(issuer) => {
            let at = format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'));
            let (document, _) = fetch::get(&at, tls).await?;
            let d: Discovery = serde_json::from_slice(&document).map_err(|e| format!("{at}: {e}"))?;
            // OpenID Connect Discovery 4.3: another issuer's document says nothing about this one.
            if d.issuer != *issuer {
                return Err(format!("{at} is the document of the issuer '{}'", d.issuer));
            }
            if issuer.starts_with("https:") && !d.jwks_uri.starts_with("https:") {
                return Err(format!("{at} names keys that are not fetched by https: '{}'", d.jwks_uri));
            }
            d.jwks_uri
        }
    };
    let (set, fresh) = fetch::get(&url, tls).await?;
    Ok((Keys::parse(&set).map_err(|e| format!("{url}: {e}"))?, fresh))
}
