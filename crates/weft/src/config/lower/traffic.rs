//! What a route does with its traffic besides policy.

use http::StatusCode;
use weft_core::limits;
use weft_edge::spec::{
    AccessLog, Coding, Compress, Cors, DependsOn, Fault, FieldRule, GatewaySpec, Host, Lag, Mirror, Redirect, Respond,
    Rewrite, Share, Sticky, Target, Traffic,
};

use super::Lower;
use crate::config::keys::gateway::{Gateway, Route, Targets, To};
use crate::config::keys::traffic::{self as keys, Texts};
use crate::config::layer::Use;
use crate::config::report::Mistake;
use crate::config::source::{At, Span};
use crate::config::value::Many;

fn words(many: Option<&At<Many<String>>>) -> Vec<String> {
    many.iter().flat_map(|m| &m.value.0).map(|w| w.value.clone()).collect()
}

fn pairs(texts: Option<&At<Texts>>) -> Vec<(String, String)> {
    texts.iter().flat_map(|t| &t.value.0).map(|(n, v)| (n.value.clone(), v.clone())).collect()
}

/// Where something that the route table complains of is written.
pub(super) fn place(route: &Route, member: &str, given: &str) -> Option<Span> {
    let named = |texts: Option<&At<Texts>>| {
        texts.iter().flat_map(|t| &t.value.0).find(|(n, _)| n.value == given).and_then(|(n, _)| n.span)
    };
    let word = |many: Option<&At<Many<String>>>| {
        many.iter().flat_map(|m| &m.value.0).find(|w| w.value == given).and_then(|w| w.span)
    };
    let to = match &route.to.value {
        Targets::One(to) => Some(to),
        Targets::Split(_) => None,
    };
    let text = |t: Option<&At<String>>| t.filter(|t| t.value == given).and_then(|t| t.span);
    match member {
        "rewrite" => {
            let r = &route.rewrite.as_ref()?.value;
            text(r.prefix.as_ref()).or(text(r.regex.as_ref())).or(text(Some(&r.with)))
        }
        "request header" | "response header" => {
            let h = &route.headers.as_ref()?.value;
            let f = if member == "request header" { &h.request } else { &h.response };
            let f = &f.as_ref()?.value;
            named(f.set.as_ref()).or(named(f.add.as_ref())).or(word(f.remove.as_ref()))
        }
        "host rewrite" => route.host.as_ref()?.span,
        "cors" => {
            let c = &route.cors.as_ref()?.value;
            let lists = [c.methods.as_ref(), c.headers.as_ref(), c.expose.as_ref()];
            word(Some(&c.origins)).or(lists.into_iter().find_map(word))
        }
        "fault" => named(route.fault.as_ref()?.value.header.as_ref()),
        "redirect" => {
            let r = &to?.redirect.as_ref()?.value;
            let texts = [r.path.as_ref(), r.query.as_ref(), r.host.as_ref()];
            texts.into_iter().find_map(text).or(r.status.span)
        }
        "respond" => named(to?.respond.as_ref()?.value.headers.as_ref()),
        _ => None,
    }
}

impl Lower<'_, '_, '_> {
    /// What concerns all routes.
    pub(super) fn outside(&mut self, g: &Gateway, spec: &mut GatewaySpec) {
        spec.trusted_proxies = g.trusted_proxies.as_ref().map(|t| t.value.0.iter().map(|n| n.value.0).collect());
        spec.forwarded = g.forwarded.value;
        spec.access_log = g
            .access_log
            .as_ref()
            .map(|a| AccessLog { file: a.value.to.value.0.clone(), sample: a.value.sample.value.0 });
    }

    /// A target that answers by itself.
    pub(super) fn answer_of(&mut self, r: &Route, to: &To) -> Option<Target> {
        if to.redirect.is_none() && to.respond.is_none() {
            return None;
        }
        let others = [to.service.is_some(), to.saga.is_some(), to.queue.is_some(), to.topic.is_some()];
        if others.contains(&true) || (to.redirect.is_some() && to.respond.is_some()) {
            let help = "keep one target";
            self.say(Mistake::new(Some(to.at), "a route that answers by itself has no other target").help(help));
        }
        for (what, span) in [
            ("path", to.path.as_ref().map(|p| p.span)),
            ("weight", to.weight.as_ref().map(|w| w.span)),
            ("reply", r.reply.as_ref().map(|w| w.span)),
        ] {
            if let Some(span) = span {
                let message = format!("'{what}' has no meaning on a route that answers by itself");
                self.say(Mistake::new(span, message).help("leave it out"));
            }
        }
        if let Some(r) = &to.redirect {
            let k = &r.value;
            let port = k.port.as_ref().and_then(|p| {
                let fits = u16::try_from(p.value).ok().filter(|p| *p > 0);
                if fits.is_none() {
                    self.say(Mistake::new(p.span, format!("{} is not a port", p.value)).help("write 1 to 65535"));
                }
                fits
            });
            return Some(Target::Redirect(Redirect {
                status: u16::try_from(k.status.value).unwrap_or(0),
                scheme: k.scheme.as_ref().map(|s| match s.value {
                    keys::Scheme::Http => "http".to_owned(),
                    keys::Scheme::Https => "https".to_owned(),
                }),
                host: k.host.as_ref().map(|h| h.value.clone()),
                port,
                path: k.path.as_ref().map(|p| p.value.clone()),
                query: k.query.as_ref().map(|q| q.value.clone()),
            }));
        }
        let k = &to.respond.as_ref()?.value;
        let body = k.body.as_ref().map(|b| b.value.clone()).unwrap_or_default();
        let headers = pairs(k.headers.as_ref());
        Some(Target::Respond(Respond { status: self.status(&k.status, 200), body, headers }))
    }

    fn status(&mut self, at: &At<u32>, least: u16) -> StatusCode {
        let status = u16::try_from(at.value).ok().filter(|s| (least..600).contains(s));
        match status.and_then(|s| StatusCode::from_u16(s).ok()) {
            Some(s) => s,
            None => {
                let message = format!("{} is not a status to answer with", at.value);
                self.say(Mistake::new(at.span, message).help(format!("write one from {least} to 599")));
                StatusCode::OK
            }
        }
    }

    /// Several services by weight.
    pub(super) fn split(&mut self, r: &Route, shares: &[(Span, Option<To>)]) -> Option<(Target, Use)> {
        if shares.is_empty() || shares.len() > limits::SHARES {
            let message = format!("a route is split over {} services", shares.len());
            self.say(Mistake::new(r.to.span, message).help(format!("write 1 to {} of them", limits::SHARES)));
            return None;
        }
        if let Some(reply) = &r.reply {
            let help = "leave it out: only a route to a saga chooses when to answer";
            self.say(Mistake::new(reply.span, "'reply' has no meaning on a route to a service").help(help));
        }
        let mut out = Vec::new();
        for (at, to) in shares {
            let Some(to) = to else { continue };
            let other = to.saga.is_some() || to.queue.is_some() || to.topic.is_some();
            let other = other || to.redirect.is_some() || to.respond.is_some();
            let Some(service) = to.service.as_ref().filter(|_| !other) else {
                if !to.broken {
                    let help = "write {service: NAME, weight: N}";
                    self.say(Mistake::new(Some(*at), "a route can be split over services only").help(help));
                }
                continue;
            };
            self.service(service);
            let weight = match &to.weight {
                Some(w) => w.value.get(),
                None => {
                    let message = format!("the share of service '{}' has no weight", service.value);
                    self.say(Mistake::new(Some(*at), message).help("add 'weight:'"));
                    1
                }
            };
            let path = to.path.as_ref().map(|p| p.value.clone());
            out.push(Share { service: service.value.clone(), path, weight });
        }
        Some((Target::Split(out), Use::Route))
    }

    /// Everything else.
    pub(super) fn traffic(&mut self, r: &Route, to: &Target) -> Traffic {
        let service = matches!(to, Target::Service { .. } | Target::Split(_));
        if !service {
            self.only_services(r);
        }
        let fields = |f: Option<&At<keys::Fields>>| {
            let Some(f) = f.map(|f| &f.value) else { return Vec::new() };
            let mut out: Vec<_> = words(f.remove.as_ref()).into_iter().map(FieldRule::Remove).collect();
            out.extend(pairs(f.set.as_ref()).into_iter().map(|(n, v)| FieldRule::Set(n, v)));
            out.extend(pairs(f.add.as_ref()).into_iter().map(|(n, v)| FieldRule::Add(n, v)));
            out
        };
        let headers = r.headers.as_ref().map(|h| &h.value);
        let body_limits = r.limits.as_ref().map(|l| &l.value);
        Traffic {
            host: match r.host.as_ref().map(|h| h.value.as_str()) {
                None | Some("preserve") => Host::Preserve,
                Some("service") => Host::Service,
                Some(name) => Host::Name(name.to_owned()),
            },
            rewrite: r.rewrite.as_ref().and_then(|w| self.rewrite(r, w)),
            sticky: r.sticky.as_ref().and_then(|s| self.sticky(s, to)),
            request: fields(headers.and_then(|h| h.request.as_ref())),
            response: fields(headers.and_then(|h| h.response.as_ref())),
            mirror: r.mirror.as_ref().map(|m| {
                self.service(&m.value.service);
                Mirror {
                    service: m.value.service.value.clone(),
                    share: m.value.percent.value.0,
                    bodies: m.value.compare.value == keys::Compare::Body,
                }
            }),
            cors: r.cors.as_ref().map(|c| {
                let c = &c.value;
                Cors {
                    origins: words(Some(&c.origins)),
                    methods: words(c.methods.as_ref()),
                    headers: words(c.headers.as_ref()),
                    expose: words(c.expose.as_ref()),
                    credentials: c.credentials.value,
                    max_age: c.max_age.as_ref().map(|d| d.value),
                }
            }),
            compress: r.compress.as_ref().map(|c| compress(&c.value)),
            request_limit: body_limits.and_then(|l| l.request.as_ref()).map(|s| s.value.0),
            response_limit: body_limits.and_then(|l| l.response.as_ref()).map(|s| s.value.0),
            fault: r.fault.as_ref().map(|f| self.fault(&f.value)),
            buffer: r.buffer.as_ref().map(|b| {
                let most = limits::COLLECTED_BODY_BYTES as u64;
                let asked = b.value.0.unwrap_or(most);
                if asked > limits::BUFFERED_BODY_BYTES as u64 {
                    let message = "a body this large is not collected".to_owned();
                    let help = format!("write at most {}MiB, or let it stream", limits::BUFFERED_BODY_BYTES >> 20);
                    self.say(Mistake::new(b.span, message).help(help));
                }
                asked as usize
            }),
            depends_on: r.depends_on.as_ref().map(|d| {
                self.queue(&d.value.queue);
                let max_lag = match d.value.max_lag.value {
                    keys::MaxLag::Messages(n) => Lag::Messages(n),
                    keys::MaxLag::Age(d) => Lag::Age(d),
                };
                DependsOn { queue: d.value.queue.value.clone(), max_lag }
            }),
        }
    }

    fn only_services(&mut self, r: &Route) {
        for (what, span) in [
            ("rewrite", r.rewrite.as_ref().map(|x| x.span)),
            ("host", r.host.as_ref().map(|x| x.span)),
            ("mirror", r.mirror.as_ref().map(|x| x.span)),
            ("buffer", r.buffer.as_ref().map(|x| x.span)),
        ] {
            if let Some(span) = span {
                let message = format!("'{what}' has no meaning on a route without a service");
                self.say(Mistake::new(span, message).help("leave it out"));
            }
        }
        let request = r.headers.as_ref().and_then(|h| h.value.request.as_ref());
        let response = r.limits.as_ref().and_then(|l| l.value.response.as_ref());
        for (what, span) in
            [("headers.request", request.map(|x| x.span)), ("limits.response", response.map(|x| x.span))]
        {
            if let Some(span) = span {
                let message = format!("'{what}' has no meaning on a route without a service");
                self.say(Mistake::new(span, message).help("leave it out"));
            }
        }
    }

    fn rewrite(&mut self, r: &Route, w: &At<keys::Rewrite>) -> Option<Rewrite> {
        let at_target = match &r.to.value {
            Targets::One(to) => to.path.as_ref(),
            Targets::Split(shares) => shares.iter().filter_map(|(_, s)| s.as_ref()).find_map(|s| s.path.as_ref()),
        };
        if let Some(path) = at_target {
            let help = "keep 'rewrite' or the target's 'path'";
            self.say(Mistake::new(w.span, "the path is rewritten twice").help(help).also(path.span, "the other one"));
        }
        let with = w.value.with.value.clone();
        match (&w.value.prefix, &w.value.regex) {
            (Some(p), None) => Some(Rewrite::Prefix(p.value.clone(), with)),
            (None, Some(re)) => Some(Rewrite::Regex(re.value.clone(), with)),
            _ => {
                if !w.value.broken {
                    let message = "a rewrite is by prefix or by regex";
                    self.say(Mistake::new(Some(w.value.at), message).help("write one of the two"));
                }
                None
            }
        }
    }

    fn sticky(&mut self, s: &At<keys::Sticky>, to: &Target) -> Option<Sticky> {
        if !matches!(to, Target::Split(_)) {
            let help = "leave it out, or write 'to' as a list of services with weights";
            self.say(Mistake::new(s.span, "'sticky' has no meaning without a split").help(help));
        }
        match (&s.value.header, &s.value.cookie) {
            (Some(h), None) => {
                if http::HeaderName::from_bytes(h.value.as_bytes()).is_err() {
                    let message = format!("header '{}' is not a header field name", h.value);
                    self.say(Mistake::new(h.span, message).help("use letters, digits and '-'"));
                }
                Some(Sticky::Header(h.value.clone()))
            }
            (None, Some(c)) => Some(Sticky::Cookie(c.value.clone())),
            _ => {
                if !s.value.broken {
                    let message = "a split is sticky by header or by cookie";
                    self.say(Mistake::new(Some(s.value.at), message).help("write one of the two"));
                }
                None
            }
        }
    }

    fn fault(&mut self, f: &keys::Fault) -> Fault {
        let header = pairs(f.header.as_ref()).into_iter().next();
        if f.header.as_ref().is_some_and(|h| h.value.0.len() > 1) {
            let at = f.header.as_ref().and_then(|h| h.value.0[1].0.span);
            self.say(Mistake::new(at, "a fault looks at one header field").help("keep one"));
        }
        Fault {
            delay: f.delay.as_ref().map(|d| (d.value.time.value, d.value.percent.value.0)),
            abort: f.abort.as_ref().map(|a| (self.status(&a.value.status, 400), a.value.percent.value.0)),
            header: header.map(|(n, v)| (n, Some(v).filter(|v| !v.is_empty()))),
        }
    }
}

fn compress(c: &keys::Compress) -> Compress {
    let coding = |c: keys::Coding| match c {
        keys::Coding::Zstd => Coding::Zstd,
        keys::Coding::Brotli => Coding::Brotli,
        keys::Coding::Gzip => Coding::Gzip,
    };
    let mut codings = Vec::new();
    for c in c.codings.iter().flat_map(|c| &c.value.0).map(|c| coding(c.value)) {
        if !codings.contains(&c) {
            codings.push(c);
        }
    }
    if codings.is_empty() {
        codings = vec![Coding::Zstd, Coding::Brotli, Coding::Gzip];
    }
    Compress { codings, min_size: c.min_size.value.0, types: words(c.types.as_ref()) }
}
