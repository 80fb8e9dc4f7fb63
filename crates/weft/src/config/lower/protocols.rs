//! What listeners and routes say of the protocols' own abilities.

use weft_core::Name;
use weft_edge::listener::tls::Tls;
use weft_edge::spec::{ClientCertificates, Idle, Protocols, TlsSpec};
use weft_mesh::Protocol;

use super::Lower;
use super::services::{spoken_by, word};
use crate::config::keys::gateway::{Asked, ListenTls, Required, Route};
use crate::config::report::Mistake;
use crate::config::source::At;
use crate::config::value::Switch;

impl Lower<'_, '_, '_> {
    /// TLS on a listener. The files are read, so that what is wrong in them is said with the rest.
    pub(super) fn listen_tls(&mut self, t: &ListenTls) -> Option<TlsSpec> {
        let before = self.cx.mistakes.len();
        let mut certificates = Vec::new();
        match (&t.cert, &t.key) {
            (Some(cert), Some(key)) => certificates.push((cert, key)),
            (None, None) => {}
            (Some(one), None) => self.say(Mistake::new(one.span, "'cert' without its 'key'").help("add 'key:'")),
            (None, Some(one)) => self.say(Mistake::new(one.span, "'key' without its 'cert'").help("add 'cert:'")),
        }
        let several = t.certificates.iter().flat_map(|c| &c.value.0);
        certificates.extend(several.map(|c| (&c.value.cert, &c.value.key)));
        if certificates.is_empty() && self.cx.mistakes.len() == before && !t.broken {
            let help = "write 'cert:' and 'key:', or a list of both";
            self.say(Mistake::new(Some(t.at), "TLS needs a certificate").help(help));
        }
        let client = match (&t.client, &t.client_ca) {
            (Some(asked), Some(ca)) => {
                Some(ClientCertificates { ca: ca.value.clone(), required: asked.value == Asked::Required })
            }
            (Some(asked), None) => {
                let help = "add 'client_ca:', the file of who vouches for them";
                self.say(Mistake::new(asked.span, "'client' without its 'client_ca'").help(help));
                None
            }
            (None, Some(ca)) => {
                let help = "add 'client: required' or 'client: optional'";
                self.say(Mistake::new(ca.span, "'client_ca' without 'client'").help(help));
                None
            }
            (None, None) => None,
        };
        for file in certificates.iter().flat_map(|(c, k)| [*c, *k]).chain(&t.client_ca) {
            self.must_exist(&file.value, file.span);
        }
        let at = certificates.first().and_then(|(c, _)| c.span).unwrap_or(t.at);
        let certificates = certificates.iter().map(|(c, k)| (c.value.clone(), k.value.clone())).collect();
        let spec = TlsSpec { certificates, client };
        if self.cx.mistakes.len() == before
            && !t.broken
            && let Err(e) = Tls::load(&spec, None)
        {
            self.say(Mistake::new(Some(at), e.to_string()).help("give a PEM chain, leaf first, and the leaf's key"));
        }
        Some(spec)
    }

    pub(super) fn protocols(&mut self, r: &Route) -> Protocols {
        let client_certificate = match &r.client_certificate {
            Some(asked) => {
                let Required::Yes = asked.value;
                let listeners = self.root.gateway.iter().filter_map(|g| g.value.listen.as_ref());
                let mut tls = listeners.flat_map(|l| &l.value.0).filter_map(|l| l.value.tls.as_ref());
                if !tls.any(|t| t.value.0.client.is_some()) {
                    let help = "add 'client: optional' and 'client_ca:' to the 'tls' of a listener";
                    self.say(Mistake::new(asked.span, "no listener asks clients for a certificate").help(help));
                }
                true
            }
            None => false,
        };
        let services = r.to.value.services();
        for (what, at) in [("idle", r.idle.as_ref().map(|i| i.span)), ("upgrade", r.upgrade.as_ref().map(|u| u.span))] {
            if let Some(at) = at
                && services.is_empty()
                && !r.to.value.broken()
            {
                let help = "leave it out: only a service's answers stream and go on with another protocol";
                self.say(Mistake::new(at, format!("'{what}' has no meaning on this route")).help(help));
            }
        }
        let known = |s: &&At<Name>| self.services.get(&s.value)?.value.as_ref();
        let spoken: Vec<Protocol> = services.iter().filter_map(known).map(spoken_by).collect();
        let grpc_web = !spoken.is_empty() && spoken.iter().all(|p| *p == Protocol::Grpc);
        let mut protocols = Protocols { client_certificate, grpc_web, ..Protocols::default() };
        if let Some(idle) = &r.idle {
            protocols.idle = match idle.value {
                Switch::Off => Idle::Off,
                Switch::On(d) => Idle::After(d),
            };
        }
        if let Some(upgrade) = &r.upgrade {
            protocols.upgrade = match &upgrade.value {
                Switch::Off => Vec::new(),
                Switch::On(to) => to.0.iter().filter_map(|t| self.upgrade(t)).collect(),
            };
            if !protocols.upgrade.is_empty()
                && let Some(word) = spoken.iter().copied().find(|p| p.is_h2()).map(word)
            {
                let help = "leave it out, or let the service speak http";
                let message = format!("a service that speaks {word} has no connections to upgrade");
                self.say(Mistake::new(upgrade.span, message).help(help));
            }
        }
        protocols
    }

    fn upgrade(&mut self, to: &At<String>) -> Option<String> {
        let lower = to.value.to_ascii_lowercase();
        let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~/".contains(&b);
        let why = match lower.as_str() {
            "h2c" | "h2" => "HTTP/2 is spoken without being asked: clients begin with it",
            l if l.is_empty() || !l.bytes().all(token) => "write a protocol's name, as in websocket",
            _ => return Some(lower),
        };
        self.say(Mistake::new(to.span, format!("'{}' is nothing to upgrade to", to.value)).help(why));
        None
    }
}
