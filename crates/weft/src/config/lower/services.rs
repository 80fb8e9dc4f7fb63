//! `services:`

use std::collections::BTreeMap;

use weft_core::limits;
use weft_mesh::spec::{
    Balance, Described, HealthCheck, HealthKind, Outlier, Picking, Protocol, ServiceSpec, UpstreamTls,
};

use super::Lower;
use crate::config::keys::service::{self as keys, Service};
use crate::config::layer::{self, Use};
use crate::config::report::Mistake;
use crate::config::source::{At, Span};
use crate::config::value::Switch;

impl Lower<'_, '_, '_> {
    pub(super) fn services(&mut self) -> Vec<ServiceSpec> {
        let services = self.services;
        let mut out = Vec::new();
        for (entry, s) in services.good() {
            let mut layers = self.base(None);
            layers.extend(layer::written(s.policy.as_ref(), self.policies, Use::Service, self.cx));
            self.check_inline(s.policy.as_ref());
            let (policy, values) = layer::resolve(&layers, Use::Service, self.cx.sources);
            let protocol = self.protocol(s);
            let instances = [&s.http, &s.h2, &s.grpc].into_iter().flatten().flat_map(|a| &a.value.0);
            let spec = ServiceSpec {
                name: entry.name.clone(),
                protocol,
                addresses: instances.map(|i| i.value.address.value.clone()).collect(),
                balance: algorithm(s.balance.value.by.value),
                picking: self.picking(s),
                health: self.health(s),
                tls: self.tls(s),
                protos: self.protos(s),
                policy,
            };
            let word = word(protocol);
            let count = spec.addresses.len();
            let summary = match count {
                0 => format!("{word}, instances register themselves"),
                n => format!("{word}, {n} written instance{}", if n == 1 { "" } else { "s" }),
            };
            self.explain("service", entry.name.to_string(), entry.at, summary, values);
            out.push(spec);
        }
        out
    }

    /// What a service speaks.
    pub(super) fn protocol(&mut self, s: &Service) -> Protocol {
        let protocol = spoken_by(s);
        let lists = [(&s.http, Protocol::Http), (&s.h2, Protocol::H2), (&s.grpc, Protocol::Grpc)];
        for (list, p) in lists {
            if let Some(list) = list
                && p != protocol
            {
                let message = format!("'{}' addresses in a service that speaks {}", word(p), word(protocol));
                let first = s.protocol.as_ref().and_then(|p| p.span);
                self.say(
                    Mistake::new(list.span, message).help("a service speaks one protocol").also(first, "said here"),
                );
            }
        }
        protocol
    }

    /// What decides the choice of an instance besides the algorithm.
    fn picking(&mut self, s: &Service) -> Picking {
        let b = &s.balance.value;
        let algorithm = algorithm(b.by.value);
        match &b.hash {
            None if algorithm.hashes() => {
                let message = "what is a request known by? ring_hash and maglev need 'hash'";
                let help = "write 'balance: { by: maglev, hash: header x-user }'";
                self.say(Mistake::new(b.by.span.or(s.balance.span), message).help(help));
            }
            Some(hash) if !algorithm.hashes() => {
                let help = "leave it out, or write 'by: ring_hash' or 'by: maglev'";
                self.say(Mistake::new(hash.span, "'hash' has no meaning without ring_hash or maglev").help(help));
            }
            _ => {}
        }
        let mut described = BTreeMap::new();
        for At { value: i, .. } in [&s.http, &s.h2, &s.grpc].into_iter().flatten().flat_map(|a| &a.value.0) {
            let weight = i.weight.value.get();
            if weight > limits::WEIGHT {
                let help = format!("make it at most {}", limits::WEIGHT);
                self.say(Mistake::new(i.weight.span, format!("a weight of {weight} is too much")).help(help));
            }
            let zone = i.zone.as_ref().map(|z| z.value.as_str().into());
            if weight != 1 || zone.is_some() {
                described.insert(i.address.value.clone(), Described { weight, zone });
            }
        }
        Picking {
            hash: b.hash.iter().flat_map(|h| &h.value.0).map(|h| h.value.0.clone()).collect(),
            slow_start: b.slow_start.as_ref().map(|d| d.value),
            panic: b.panic.value.0,
            zone: self.root.zone.as_ref().map(|z| z.value.as_str().into()),
            outlier: match s.outlier.as_ref().map(|o| &o.value) {
                None => Some(Outlier::default()),
                Some(Switch::Off) => None,
                Some(Switch::On(o)) => Some(Outlier {
                    errors: o.errors.value,
                    gateway_errors: o.gateway_errors.value,
                    stdev: o.stdev.value.0,
                    min_hosts: o.min_hosts.value.get(),
                    min_requests: o.min_requests.value.get(),
                    interval: o.interval.value,
                    ejection: o.ejection.value.min,
                    ejection_max: o.ejection.value.max,
                    max_ejected: o.max_ejected.value.0,
                }),
            },
            described,
        }
    }

    fn health(&mut self, s: &Service) -> Option<HealthCheck> {
        let At { value: Switch::On(h), span } = s.health.as_ref()? else { return None };
        let kinds = [h.http.is_some(), h.grpc.is_some(), h.tcp.is_some()].iter().filter(|k| **k).count();
        if kinds > 1 {
            self.say(Mistake::new(*span, "a health check is one of http, grpc and tcp").help("keep one of them"));
        }
        if let Some(path) = h.http.as_ref().filter(|p| !p.value.starts_with('/')) {
            let help = format!("write '/{}'", path.value);
            self.say(Mistake::new(path.span, "a health check's path starts with '/'").help(help));
        }
        let kind = match (&h.http, &h.grpc) {
            (Some(path), _) => HealthKind::Http(path.value.clone()),
            (_, Some(name)) => HealthKind::Grpc(name.value.0.clone()),
            _ => HealthKind::Tcp,
        };
        Some(HealthCheck {
            kind,
            interval: h.interval.value,
            timeout: h.timeout.value,
            unhealthy_after: h.unhealthy_after.value.get(),
            healthy_after: h.healthy_after.value.get(),
        })
    }

    fn tls(&mut self, s: &Service) -> Option<UpstreamTls> {
        let tls = &s.tls.as_ref()?.value;
        let identity = match (&tls.cert, &tls.key) {
            (Some(cert), Some(key)) => Some((cert.value.clone(), key.value.clone())),
            (None, None) => None,
            (Some(one), None) => {
                self.say(Mistake::new(one.span, "'cert' without its 'key'").help("add 'key:'"));
                None
            }
            (None, Some(one)) => {
                self.say(Mistake::new(one.span, "'key' without its 'cert'").help("add 'cert:'"));
                None
            }
        };
        for file in [&tls.ca, &tls.cert, &tls.key].into_iter().flatten() {
            self.must_exist(&file.value, file.span);
        }
        Some(UpstreamTls {
            ca: tls.ca.as_ref().map(|c| c.value.clone()),
            server_name: tls.server_name.as_ref().map(|n| n.value.clone()),
            identity,
        })
    }

    fn protos(&mut self, s: &Service) -> Vec<std::path::PathBuf> {
        let mut out = Vec::new();
        for proto in s.proto.iter().flat_map(|p| &p.value.0) {
            if self.must_exist(&proto.value, proto.span) {
                out.push(proto.value.clone());
            }
        }
        out
    }

    /// Checks that a file is there.
    pub(super) fn must_exist(&mut self, path: &std::path::Path, at: Option<Span>) -> bool {
        let there = path.is_file();
        if !there {
            let help = "paths are seen from the file they are written in";
            self.say(Mistake::new(at, format!("there is no file {}", path.display())).help(help));
        }
        there
    }
}

fn algorithm(a: keys::Algorithm) -> Balance {
    match a {
        keys::Algorithm::LeastRequest => Balance::LeastRequest,
        keys::Algorithm::RoundRobin => Balance::RoundRobin,
        keys::Algorithm::PeakEwma => Balance::PeakEwma,
        keys::Algorithm::RingHash => Balance::RingHash,
        keys::Algorithm::Maglev => Balance::Maglev,
    }
}

/// What a service speaks, before it is checked.
pub(super) fn spoken_by(s: &Service) -> Protocol {
    match &s.protocol {
        Some(p) => match p.value {
            keys::Protocol::Http => Protocol::Http,
            keys::Protocol::H2 => Protocol::H2,
            keys::Protocol::Grpc => Protocol::Grpc,
        },
        None if s.grpc.is_some() => Protocol::Grpc,
        None if s.h2.is_some() => Protocol::H2,
        None if s.http.is_none() && s.proto.is_some() => Protocol::Grpc,
        None => Protocol::Http,
    }
}

/// A protocol as it is written.
pub(super) fn word(p: Protocol) -> &'static str {
    match p {
        Protocol::Http => "http",
        Protocol::H2 => "h2",
        Protocol::Grpc => "grpc",
    }
}
