//! Names to addresses, as long as their records live.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, LookupIpStrategy, NameServerConfig, ResolverConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use tokio::sync::OnceCell;
use weft_core::limits;

/// Where names are asked for. Cheap to clone.
///
/// A name's IPv4 addresses are used, and its IPv6 addresses when it has none: services commonly listen on IPv4 alone
/// while their name (`localhost`) has both.
#[derive(Clone, Debug, Default)]
pub struct Dns(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    servers: Vec<SocketAddr>,
    resolver: OnceCell<TokioResolver>,
}

/// What a name stands for, and for how long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Resolved {
    /// Sorted, without repetitions, never empty.
    pub addresses: Vec<IpAddr>,
    pub valid_for: Duration,
}

impl Dns {
    /// The system's resolver configuration and hosts file.
    pub fn system() -> Self {
        Self::default()
    }

    /// These name servers, and the hosts file.
    pub fn servers(servers: Vec<SocketAddr>) -> Self {
        Self(Arc::new(Inner { servers, resolver: OnceCell::new() }))
    }

    async fn resolver(&self) -> Result<&TokioResolver, String> {
        let make = async || {
            let mut builder = match self.0.servers.as_slice() {
                [] => {
                    TokioResolver::builder_tokio().map_err(|e| format!("the system's resolver configuration: {e}"))?
                }
                servers => {
                    let servers = servers.iter().map(|s| {
                        let on_port = |mut c: ConnectionConfig| {
                            c.port = s.port();
                            c
                        };
                        let both = vec![on_port(ConnectionConfig::udp()), on_port(ConnectionConfig::tcp())];
                        NameServerConfig::new(s.ip(), true, both)
                    });
                    let config = ResolverConfig::from_parts(None, Vec::new(), servers.collect());
                    TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
                        .with_options(ResolverOpts::default())
                }
            };
            let options = builder.options_mut();
            options.ip_strategy = LookupIpStrategy::Ipv4thenIpv6;
            // Each name has one task that asks again when its records end; a cache would only repeat the old answer.
            options.cache_size = 0;
            builder.build().map_err(|e| e.to_string())
        };
        self.0.resolver.get_or_try_init(make).await
    }

    /// Asks once.
    pub(crate) async fn resolve(&self, host: &str) -> Result<Resolved, String> {
        let found = self.resolver().await?.lookup_ip(host).await.map_err(|e| e.to_string())?;
        let mut addresses: Vec<IpAddr> = found.iter().collect();
        addresses.sort_unstable();
        addresses.dedup();
        if addresses.is_empty() {
            return Err(format!("'{host}' has no address"));
        }
        let (least, most) = limits::DNS_TTL;
        let valid_for = found.valid_until().saturating_duration_since(std::time::Instant::now());
        Ok(Resolved { addresses, valid_for: valid_for.clamp(least, most) })
    }
}
