//! One reachable address of a service, and what all threads know about it: its load, its health, whether it is passed
//! over for a while. Connections to it belong to each thread (`pool`).

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};

use http::HeaderValue;
use http::uri::Authority;
use tokio::time::Instant;
use weft_core::{Name, limits};

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
    healthy: AtomicBool,
    removed: AtomicBool,
    failures: AtomicU32,
    /// Milliseconds since [`EPOCH`] until which it is passed over.
    ejected_until: AtomicU64,
}

/// Keeps what one core writes often off the cache lines others read.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Padded<T>(pub(crate) T);

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
            healthy: AtomicBool::new(true),
            removed: AtomicBool::new(false),
            failures: AtomicU32::new(0),
            ejected_until: AtomicU64::new(0),
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
        self.healthy.store(healthy, Ordering::Relaxed);
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
        let until = self.ejected_until.load(Ordering::Relaxed);
        until != 0 && until > millis(Instant::now())
    }
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
    Arc::new(Endpoint::new(
        Name::new("test").unwrap(),
        Wanted {
            instance: address.into(),
            target: Target::Ip(address.parse().unwrap()),
            authority: address.into(),
            protocol: Protocol::Http,
            tls: None,
            health: None,
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
