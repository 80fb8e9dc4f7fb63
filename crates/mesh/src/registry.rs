//! Instances that registered themselves, for as long as they keep saying that they live.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use weft_core::{Name, limits};

use crate::error::Error;
use crate::spec::{Address, HealthCheck, Protocol};

/// What an instance says about itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Registration {
    /// Where it listens.
    pub address: Address,
    /// What it speaks; the service's protocol when it does not say.
    pub protocol: Option<Protocol>,
    /// How long it is believed without a heartbeat.
    pub ttl: Duration,
    /// Its share of requests, relative to the others.
    #[serde(default = "one")]
    pub weight: u32,
    /// Anything else worth knowing (`zone`, `version`), shown in listings.
    #[serde(default)]
    pub metadata: BTreeMap<String, String>,
    /// Checked this way; the service's check when it does not say.
    pub health: Option<HealthCheck>,
}

fn one() -> u32 {
    1
}

/// What became of a registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Registered {
    /// It was not known.
    New,
    /// It was known and said something else.
    Changed,
    /// It was known and lives on.
    Renewed,
}

/// A registration and its lease.
#[derive(Clone, Debug)]
pub(crate) struct Lease {
    pub registration: Registration,
    pub expires: Instant,
}

/// All leases, by service and instance. Pure: time is handed in.
#[derive(Debug, Default)]
pub(crate) struct Leases(BTreeMap<Name, BTreeMap<Name, Lease>>);

impl Registration {
    /// Holds it to the limits.
    pub fn check(&self) -> Result<(), Error> {
        let bad = |member, reason| Err(Error::InvalidRegistration { member, reason });
        let (least, most) = limits::REGISTRATION_TTL;
        if self.ttl < least || self.ttl > most {
            return bad("ttl", format!("{:?} is not between {least:?} and {most:?}", self.ttl));
        }
        if self.weight == 0 || self.weight > limits::WEIGHT {
            return bad("weight", format!("{} is not between 1 and {}", self.weight, limits::WEIGHT));
        }
        let bytes: usize = self.metadata.iter().map(|(k, v)| k.len() + v.len()).sum();
        if bytes > limits::METADATA_BYTES {
            return bad("metadata", format!("{bytes} bytes are over the limit of {}", limits::METADATA_BYTES));
        }
        if let Some(h) = &self.health
            && (h.interval.is_zero() || h.timeout.is_zero() || h.unhealthy_after == 0 || h.healthy_after == 0)
        {
            return bad("health", "interval, timeout and counts must be more than zero".into());
        }
        Ok(())
    }
}

impl Leases {
    pub(crate) fn of(&self, service: &str) -> impl Iterator<Item = (&Name, &Lease)> {
        self.0.get(service).into_iter().flatten()
    }

    pub(crate) fn has(&self, service: &str) -> bool {
        self.0.contains_key(service)
    }

    pub(crate) fn services(&self) -> impl Iterator<Item = &Name> {
        self.0.keys()
    }

    /// Takes or renews a registration.
    pub(crate) fn put(
        &mut self,
        service: &Name,
        id: &Name,
        r: Registration,
        now: Instant,
    ) -> Result<Registered, Error> {
        if !self.0.contains_key(service) && self.0.len() >= limits::SERVICES {
            return Err(Error::TooManyServices);
        }
        let instances = self.0.entry(service.clone()).or_default();
        if !instances.contains_key(id) && instances.len() >= limits::INSTANCES {
            return Err(Error::TooManyInstances { service: service.clone() });
        }
        let expires = now + r.ttl;
        let lease = Lease { registration: r, expires };
        let done = match instances.get(id) {
            None => Registered::New,
            Some(old) if old.registration == lease.registration => Registered::Renewed,
            Some(_) => Registered::Changed,
        };
        instances.insert(id.clone(), lease);
        Ok(done)
    }

    /// Renews a lease; `false` when there is none.
    pub(crate) fn heartbeat(&mut self, service: &str, id: &str, now: Instant) -> bool {
        match self.0.get_mut(service).and_then(|s| s.get_mut(id)) {
            Some(lease) if lease.expires > now => {
                lease.expires = now + lease.registration.ttl;
                true
            }
            _ => false,
        }
    }

    /// Forgets one; `false` when there is none.
    pub(crate) fn remove(&mut self, service: &str, id: &str) -> bool {
        let Some(instances) = self.0.get_mut(service) else { return false };
        let was = instances.remove(id).is_some();
        if instances.is_empty() {
            self.0.remove(service);
        }
        was
    }

    /// Forgets those whose lease ran out, and names them.
    pub(crate) fn expire(&mut self, now: Instant) -> Vec<(Name, Name)> {
        let due: Vec<_> = (self.0.iter())
            .flat_map(|(s, all)| all.iter().map(move |(id, lease)| (s, id, lease)))
            .filter(|(_, _, lease)| lease.expires <= now)
            .map(|(s, id, _)| (s.clone(), id.clone()))
            .collect();
        for (service, id) in &due {
            self.remove(service, id);
        }
        due
    }

    /// When the next lease runs out.
    pub(crate) fn next_expiry(&self) -> Option<Instant> {
        self.0.values().flat_map(|all| all.values()).map(|l| l.expires).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(s: &str) -> Name {
        Name::new(s).unwrap()
    }

    fn registration(ttl: u64) -> Registration {
        Registration {
            address: "127.0.0.1:1".parse().unwrap(),
            protocol: None,
            ttl: Duration::from_secs(ttl),
            weight: 1,
            metadata: BTreeMap::new(),
            health: None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_runs_out_unless_it_is_renewed() {
        let (mut l, t0) = (Leases::default(), Instant::now());
        let s = |n| t0 + Duration::from_secs(n);
        assert_eq!(l.put(&name("a"), &name("1"), registration(10), t0).unwrap(), Registered::New);
        assert_eq!(l.put(&name("a"), &name("2"), registration(10), t0).unwrap(), Registered::New);
        assert!(l.heartbeat("a", "1", s(9)));
        assert_eq!(l.next_expiry(), Some(s(10)));
        assert_eq!(l.expire(s(10)), [(name("a"), name("2"))]);
        assert!(!l.heartbeat("a", "2", s(10)), "gone: register again");
        assert_eq!(l.put(&name("a"), &name("1"), registration(10), s(12)).unwrap(), Registered::Renewed);
        assert_eq!(l.expire(s(22)).len(), 1);
        assert_eq!((l.has("a"), l.next_expiry()), (false, None));
    }

    #[tokio::test(start_paused = true)]
    async fn a_heartbeat_after_the_lease_ran_out_is_refused_even_before_it_is_swept() {
        let (mut l, t0) = (Leases::default(), Instant::now());
        l.put(&name("a"), &name("1"), registration(1), t0).unwrap();
        assert!(!l.heartbeat("a", "1", t0 + Duration::from_secs(1)));
    }

    #[tokio::test(start_paused = true)]
    async fn the_instance_over_the_limit_is_refused_and_a_known_one_is_not() {
        let (mut l, t0) = (Leases::default(), Instant::now());
        for i in 0..limits::INSTANCES {
            l.put(&name("a"), &name(&format!("i{i}")), registration(1), t0).unwrap();
        }
        assert!(matches!(l.put(&name("a"), &name("more"), registration(1), t0), Err(Error::TooManyInstances { .. })));
        assert!(l.put(&name("a"), &name("i0"), registration(1), t0).is_ok());
    }

    #[test]
    fn a_registration_outside_the_limits_names_the_member() {
        let member = |r: Registration| match r.check() {
            Err(Error::InvalidRegistration { member, .. }) => member,
            other => panic!("{other:?}"),
        };
        assert_eq!(member(registration(0)), "ttl");
        assert_eq!(member(registration(100_000)), "ttl");
        assert_eq!(member(Registration { weight: 0, ..registration(1) }), "weight");
        assert_eq!(member(Registration { weight: limits::WEIGHT + 1, ..registration(1) }), "weight");
        let mut r = registration(1);
        r.metadata.insert("k".into(), "v".repeat(limits::METADATA_BYTES));
        assert_eq!(member(r), "metadata");
        let mut r = registration(1);
        r.health = Some(HealthCheck { interval: Duration::ZERO, ..HealthCheck::default() });
        assert_eq!(member(r), "health");
    }
}
