//! `versions:` of routes.

use weft_core::limits;
use weft_edge::route::{Pattern, Segment, Template};
use weft_edge::spec::{
    ANSWER_NAMES, BODY_NAMES, RouteMatch, Successor, Target, VersionFrom, VersionSpec, VersionsSpec,
};
use weft_policy::version::{Version, same};

use super::Lower;
use crate::config::expr;
use crate::config::keys::gateway::{self as keys, Route, Versions, VersionsUse};
use crate::config::report::{Mistake, suggest};
use crate::config::source::At;

impl Lower<'_, '_, '_> {
    pub(super) fn versions(&mut self, r: &Route, matches: &RouteMatch, to: &Target) -> Option<VersionsSpec> {
        let written = r.versions.as_ref()?;
        let v: &Versions = match &written.value {
            VersionsUse::Inline(v) => v,
            VersionsUse::Named(name) => {
                let sets = self.root.gateway.as_ref().and_then(|g| g.value.versions.as_ref()).map(|v| &v.value);
                match sets.and_then(|s| s.get(&name.value)) {
                    Some(entry) => entry.value.as_ref()?,
                    None => {
                        let known = sets.into_iter().flat_map(|s| s.names());
                        self.unknown("version", name, known);
                        return None;
                    }
                }
            }
        };
        let known = &v.known.value;
        if known.0.is_empty() || known.0.len() > limits::VERSIONS {
            let message = format!("{} versions; a route has 1 to {}", known.0.len(), limits::VERSIONS);
            self.say(Mistake::new(v.known.span, message).help("name each under 'known'"));
            return None;
        }
        let pattern = Pattern::parse(&matches.path).ok()?;
        let from = v.from.value.0.iter().filter_map(|f| self.said_in(f, &pattern, written)).collect();
        let names: Vec<String> = known.names().map(str::to_owned).collect();
        for (i, entry) in known.0.iter().enumerate() {
            if let Some(first) = known.0[..i].iter().find(|e| same(e.name.as_str(), entry.name.as_str())) {
                let message = format!("'{}' and '{}' name the same version", first.name, entry.name);
                self.say(
                    Mistake::new(Some(entry.at), message).help("rename one of them").also(Some(first.at), "first here"),
                );
            }
        }
        if let Some(d) = &v.default
            && !names.iter().any(|n| same(n, &d.value))
        {
            let help = suggest(&d.value, "version", names.iter().map(String::as_str));
            self.say(Mistake::new(d.span, format!("unknown version '{}'", d.value)).help(help));
        }
        let mut out = Vec::new();
        for (entry, one) in known.good() {
            out.push(self.version(entry.name.as_str(), one, &names, &pattern, to));
        }
        Some(VersionsSpec { from, default: v.default.as_ref().map(|d| d.value.clone()), known: out })
    }

    fn said_in(&mut self, f: &At<keys::VersionFrom>, pattern: &Pattern, used: &At<VersionsUse>) -> Option<VersionFrom> {
        let k = &f.value;
        let given = [k.path.is_some(), k.header.is_some(), k.accept.is_some(), k.query.is_some()];
        if given.iter().filter(|g| **g).count() != 1 {
            if !k.broken {
                let message = "a version is said in exactly one place each";
                self.say(Mistake::new(f.span, message).help("write path, or one of header, accept and query"));
            }
            return None;
        }
        if k.path.is_some() {
            let captures = |s: &Segment| matches!(s, Segment::Param(p) if p == "version");
            let there = matches!(pattern, Pattern::Segments { segments, .. } if segments.iter().any(captures));
            if !there {
                let message = "the match's path captures no {version}";
                let at = if matches!(used.value, VersionsUse::Named(_)) { used.span } else { f.span };
                self.say(Mistake::new(at, message).help("match a path such as '/{version}/orders/**'"));
            }
            return Some(VersionFrom::Path);
        }
        if let Some(h) = &k.header {
            if http::HeaderName::try_from(&h.value).is_err() {
                let message = format!("'{}' is not the name of a header", h.value);
                self.say(Mistake::new(h.span, message).help("use letters, digits and '-'"));
            }
            return Some(VersionFrom::Header(h.value.clone()));
        }
        if let Some(a) = &k.accept {
            let plain = a.value.split('/').count() == 2 && !a.value.contains(['+', ';', '*', ' ']);
            if !plain {
                let message = format!("'{}' is not a media type without version", a.value);
                self.say(Mistake::new(a.span, message).help("write it like 'application/vnd.shop'"));
            }
            return Some(VersionFrom::Accept(a.value.clone()));
        }
        k.query.as_ref().map(|q| VersionFrom::Query(q.value.clone()))
    }

    fn version(
        &mut self,
        name: &str,
        k: &keys::Version,
        names: &[String],
        pattern: &Pattern,
        to: &Target,
    ) -> VersionSpec {
        let own = k.to.as_ref().map(|t| &t.value);
        let (service, path) = (own.and_then(|t| t.service.as_ref()), own.and_then(|t| t.path.as_ref()));
        if let (Some(at), false) = (&k.to, matches!(to, Target::Service { .. })) {
            let message = "'to' has no meaning in a version of a route that sends to no service";
            self.say(Mistake::new(at.span, message).help("leave it out, or give the version a route of its own"));
        }
        if let (Some(at), false) = (&k.response, matches!(to, Target::Service { .. })) {
            let message = "'response' has no meaning in a version of a route that sends to no service";
            self.say(Mistake::new(at.span, message).help("leave it out: only a service's answers are adapted"));
        }
        if let Some(service) = service {
            self.service(service);
        }
        if let Some(path) = path
            && let Err(e) = Template::parse(&path.value, pattern)
        {
            self.say(
                Mistake::new(path.span, format!("path '{}' {e}", path.value))
                    .help("write {name} for what the match captures"),
            );
        }
        if let (Some(d), Some(s)) = (&k.deprecated, &k.sunset)
            && s.value.0 < d.value.0
        {
            let message = format!("version '{name}' ends before it is deprecated");
            self.say(
                Mistake::new(s.span, message)
                    .help("RFC 8594 and RFC 9745 want 'deprecated' first")
                    .also(d.span, "deprecated here"),
            );
        }
        let successor = k.successor.as_ref().map(|s| {
            if s.value.starts_with('/') || s.value.contains("://") {
                return Successor::Link(s.value.clone());
            }
            if !names.iter().any(|n| same(n, &s.value)) || same(name, &s.value) {
                let others = names.iter().map(String::as_str).filter(|n| *n != name);
                let help = suggest(&s.value, "version", others);
                self.say(Mistake::new(s.span, format!("'{}' is no other version", s.value)).help(help));
            }
            Successor::Version(s.value.clone())
        });
        for link in [&k.link, &k.successor].into_iter().flatten() {
            if link.value.contains(['<', '>', '"']) || link.value.chars().any(|c| !c.is_ascii_graphic()) {
                let message = format!("'{}' cannot stand in a Link field", link.value);
                self.say(Mistake::new(link.span, message).help("percent-encode it"));
            }
        }
        for (at, known) in [(&k.request, &BODY_NAMES[..]), (&k.response, &ANSWER_NAMES[..])] {
            let Some(At { value: template, span: Some(span) }) = at else { continue };
            let mut wrong = Vec::new();
            weft_flow::template::Template::compile(&template.0, known, "", &mut |_, m| wrong.push(m));
            wrong.iter().for_each(|m| expr::complain(m, "", *span, None, self.cx));
        }
        VersionSpec {
            version: Version {
                name: name.to_owned(),
                deprecated: k.deprecated.as_ref().map(|d| d.value.0),
                sunset: k.sunset.as_ref().map(|d| d.value.0),
            },
            service: service.map(|s| s.value.clone()),
            path: path.map(|p| p.value.clone()),
            link: k.link.as_ref().map(|l| l.value.clone()),
            successor,
            request: k.request.as_ref().map(|t| t.value.0.clone()),
            response: k.response.as_ref().map(|t| t.value.0.clone()),
        }
    }
}
