//! `services:`

use weft_mesh::spec::{Balance, HealthCheck, HealthKind, Protocol, ServiceSpec, UpstreamTls};

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
            let addresses =
                [&s.http, &s.h2, &s.grpc].into_iter().flatten().flat_map(|a| &a.value.0).map(|a| a.value.clone());
            let spec = ServiceSpec {
                name: entry.name.clone(),
                protocol,
                addresses: addresses.collect(),
                balance: match s.balance.value {
                    keys::Balance::LeastRequest => Balance::LeastRequest,
                    keys::Balance::RoundRobin => Balance::RoundRobin,
                },
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
