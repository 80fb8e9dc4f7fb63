//! One reachable address of a service, and what all threads know about it: its load, its health, whether it is passed
//! over for a while. Connections to it belong to each thread (`pool`).

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use http::HeaderValue;
use http::uri::Authority;
use tokio::time::Instant;
use weft_core::{Name, limits};

use crate::outlier;
use crate::spec::{HealthCheck, Protocol};
use crate::tls::ClientTls;

/// Where to connect, with names resolved.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Target {
    /// TCP.
    Ip(SocketAddr),
    /// A unix socket.
    Unix(PathBuf),
}

/// What is asked of one endpoint; two equal ones are the same endpoint, whose connections and load are kept when a
/// service changes around it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Wanted {
    /// The instance it belongs to: the registered id, or the address as the file writes it.
    pub instance: Arc<str>,
    pub target: Target,
    /// Host and port to send where the request names none.
    pub authority: String,
    pub protocol: Protocol,
    pub tls: Option<ClientTls>,
    pub health: Option<HealthCheck>,
    /// Where it runs.
    pub zone: Option<Arc<str>>,
}

/// One reachable address.
#[derive(Debug)]
pub struct Endpoint {
    /// Never reused.
    pub(crate) id: u64,
    pub(crate) service: Name,
    pub(crate) wanted: Wanted,
    /// The address as people write it.
    pub(crate) address: Arc<str>,
    pub(crate) authority: Authority,
    pub(crate) host: HeaderValue,
    load: Padded<AtomicU32>,
    /// Its share of requests, relative to the others.
    weight: AtomicU32,
    /// Expected latency in microseconds (upper half, f32) as of a moment (lower half, milliseconds since [`EPOCH`]).
    latency: AtomicU64,
    /// Somebody picks by [`latency`](Self::latency).
    timed: AtomicBool,
    /// Milliseconds since [`EPOCH`] when it began, or came back.
    since: AtomicU64,
    healthy: AtomicBool,
    removed: AtomicBool,
    failures: AtomicU32,
    /// Milliseconds since [`EPOCH`] until which it is passed over.
    ejected_until: AtomicU64,
    /// The same, for its answers.
    outlier_until: AtomicU64,
    /// How it answered lately.
    pub(crate) record: Padded<outlier::Record>,
}

/// Keeps what one core writes often off the cache lines others read.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Padded<T>(pub(crate) T);

impl<T> std::ops::Deref for Padded<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.0
    }
}

/// In this time an old latency loses about two thirds of its say.
const LATENCY_DECAY_MS: f64 = 10_000.0;

static IDS: AtomicU64 = AtomicU64::new(1);
static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);

fn millis(at: Instant) -> u64 {
    at.saturating_duration_since(*EPOCH).as_millis() as u64
}

impl Endpoint {
    pub(crate) fn new(service: Name, wanted: Wanted) -> Self {
        LazyLock::force(&EPOCH);
        let fallback = || Authority::from_static("localhost");
        let authority: Authority = wanted.authority.parse().unwrap_or_else(|_| fallback());
        Self {
            id: IDS.fetch_add(1, Ordering::Relaxed),
            service,
            address: match &wanted.target {
                Target::Ip(a) => a.to_string().into(),
                Target::Unix(p) => format!("unix:{}", p.display()).into(),
            },
            host: HeaderValue::from_str(authority.as_str()).unwrap_or(HeaderValue::from_static("localhost")),
            authority,
            wanted,
            load: Padded::default(),
            weight: AtomicU32::new(1),
            latency: AtomicU64::new(0),
            timed: AtomicBool::new(false),
            since: AtomicU64::new(millis(Instant::now())),
            healthy: AtomicBool::new(true),
            removed: AtomicBool::new(false),
            failures: AtomicU32::new(0),
            ejected_until: AtomicU64::new(0),
            outlier_until: AtomicU64::new(0),
            record: Padded::default(),
        }
    }

    /// Its address.
    pub fn address(&self) -> &Arc<str> {
        &self.address
    }

    /// The instance it belongs to.
    pub fn instance(&self) -> &Arc<str> {
        &self.wanted.instance
    }

    /// Requests under way on all threads.
    #[inline]
    pub fn load(&self) -> u32 {
        self.load.0.load(Ordering::Relaxed)
    }

    /// Counts a request as under way until the guard goes.
    #[inline]
    pub(crate) fn enter(self: &Arc<Self>) -> Load {
        self.load.0.fetch_add(1, Ordering::Relaxed);
        Load(self.clone())
    }

    /// What active checks say.
    pub fn is_healthy(&self) -> bool {
        self.healthy.load(Ordering::Relaxed)
    }

    pub(crate) fn set_healthy(&self, healthy: bool) {
        if !self.healthy.swap(healthy, Ordering::Relaxed) && healthy {
            self.since.store(millis(Instant::now()), Ordering::Relaxed);
        }
    }

    /// Its share of requests, relative to the others of its service.
    pub fn weight(&self) -> u32 {
        self.weight.load(Ordering::Relaxed)
    }

    pub(crate) fn set_weight(&self, weight: u32) {
        self.weight.store(weight.max(1), Ordering::Relaxed);
    }

    /// The part of its share that it gets so long after it began or came back: from a tenth to the whole.
    pub(crate) fn warmth(&self, window: Duration) -> f64 {
        let age = millis(Instant::now()).saturating_sub(self.since.load(Ordering::Relaxed));
        (age as f64 / (window.as_millis() as f64).max(1.0)).clamp(0.1, 1.0)
    }

    /// Whether how long it takes is worth knowing.
    #[inline]
    pub(crate) fn is_timed(&self) -> bool {
        self.timed.load(Ordering::Relaxed)
    }

    pub(crate) fn set_timed(&self, timed: bool) {
        self.timed.store(timed, Ordering::Relaxed);
    }

    /// Takes in how long an answer took: a longer one counts whole and at once, a shorter one little by little (peak
    /// EWMA). Of two at the same moment one may be lost.
    pub(crate) fn took(&self, latency: Duration) {
        let now = millis(Instant::now());
        let seen = self.latency.load(Ordering::Relaxed);
        let latency = latency.as_secs_f32() * 1e6;
        let (cost, age) = (f32::from_bits((seen >> 32) as u32), (now as u32).wrapping_sub(seen as u32));
        let keep = (-f64::from(age) / LATENCY_DECAY_MS).exp() as f32;
        let cost = if latency >= cost { latency } else { cost * keep + latency * (1.0 - keep) };
        self.latency.store(u64::from(cost.to_bits()) << 32 | (now & u64::from(u32::MAX)), Ordering::Relaxed);
    }

    /// How long a request would wait here, in units that compare: expected latency, which fades while nothing is heard,
    /// times requests under way for its weight; `mean` is what instances weigh in the mean.
    pub(crate) fn expected_wait(&self, mean: f64) -> f64 {
        let seen = self.latency.load(Ordering::Relaxed);
        let age = (millis(Instant::now()) as u32).wrapping_sub(seen as u32);
        let cost = f64::from(f32::from_bits((seen >> 32) as u32)) * (-f64::from(age) / LATENCY_DECAY_MS).exp();
        // Of one that has not answered yet nothing is known but that it is busy.
        (cost + 1.0) * (1.0 + f64::from(self.load()) * mean / f64::from(self.weight()))
    }

    /// Whether it was taken out of its service: its connections finish and are not kept.
    pub(crate) fn is_removed(&self) -> bool {
        self.removed.load(Ordering::Relaxed)
    }

    pub(crate) fn remove(&self) {
        self.removed.store(true, Ordering::Relaxed);
    }

    /// Passes it over for a while because it could not be connected to.
    pub(crate) fn eject(&self) {
        let (first, longest) = limits::EJECTION;
        let n = self.failures.fetch_add(1, Ordering::Relaxed).min(16);
        let wait = (first * 2u32.pow(n)).min(longest);
        self.ejected_until.store(millis(Instant::now() + wait), Ordering::Relaxed);
    }

    /// A connection was made: it is there.
    pub(crate) fn reached(&self) {
        if self.failures.swap(0, Ordering::Relaxed) != 0 {
            self.ejected_until.store(0, Ordering::Relaxed);
        }
    }

    /// Whether it is passed over now.
    #[inline]
    pub fn is_ejected(&self) -> bool {
        self.is_unreachable() || self.is_outlier()
    }

    /// Whether it could not be connected to a moment ago.
    #[inline]
    pub fn is_unreachable(&self) -> bool {
        is_ahead(&self.ejected_until)
    }

    /// Whether it is passed over for its answers.
    #[inline]
    pub fn is_outlier(&self) -> bool {
        is_ahead(&self.outlier_until)
    }

    /// Passes it over for so long because of its answers; then it begins anew.
    pub(crate) fn eject_outlier(&self, wait: Duration) {
        let until = millis(Instant::now() + wait);
        self.outlier_until.store(until, Ordering::Relaxed);
        self.since.store(until, Ordering::Relaxed);
    }
}

fn is_ahead(until: &AtomicU64) -> bool {
    let until = until.load(Ordering::Relaxed);
    until != 0 && until > millis(Instant::now())
}

/// A request under way.
#[derive(Debug)]
pub(crate) struct Load(Arc<Endpoint>);

impl Load {
    pub(crate) fn endpoint(&self) -> &Arc<Endpoint> {
        &self.0
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.0.load.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
pub(crate) fn test_endpoint(address: &str) -> Arc<Endpoint> {
    test_endpoint_in(address, "")
}

#[cfg(test)]
pub(crate) fn test_endpoint_in(address: &str, zone: &str) -> Arc<Endpoint> {
    Arc::new(Endpoint::new(
        Name::new("test").unwrap(),
        Wanted {
            instance: address.into(),
            target: Target::Ip(address.parse().unwrap()),
            authority: address.into(),
            protocol: Protocol::Http,
            tls: None,
            health: None,
            zone: (!zone.is_empty()).then(|| zone.into()),
        },
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_ejection_doubles_and_ends_with_the_first_connection() {
        let e = test_endpoint("127.0.0.1:1");
        e.eject();
        assert!(e.is_ejected());
        tokio::time::advance(limits::EJECTION.0).await;
        assert!(!e.is_ejected());
        e.eject();
        tokio::time::advance(limits::EJECTION.0).await;
        assert!(e.is_ejected(), "the second takes twice as long");
        e.reached();
        assert!(!e.is_ejected());
        for _ in 0..40 {
            e.eject();
        }
        tokio::time::advance(limits::EJECTION.1).await;
        assert!(!e.is_ejected(), "the longest holds");
    }
}
