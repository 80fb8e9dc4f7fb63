//! Changes to header fields, with what the path captured and a few facts of the request in their values.

use std::borrow::Cow;
use std::net::IpAddr;

use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use weft_core::Trace;

use super::Bad;
use crate::gateway::Route;
use crate::http::headers;
use crate::listener::Peer;
use crate::route::Pattern;
use crate::spec::FieldRule;

/// What a text can say of a request.
#[derive(Debug)]
pub(crate) struct Facts {
    pub(super) path: String,
    pub(super) query: Option<String>,
    pub(super) host: String,
    pub(super) https: bool,
    method: http::Method,
    client: IpAddr,
    route: std::sync::Arc<str>,
    trace: String,
}

impl Facts {
    pub(super) fn of(route: &Route, peer: &Peer, trace: &Trace, head: &Parts) -> Self {
        let path = crate::route::normal(head.uri.path()).unwrap_or_default();
        let traceparent = trace.to_traceparent();
        Self {
            path: path.into_owned(),
            query: head.uri.query().and_then(|q| match &route.guard {
                None => Some(q.to_owned()),
                Some(guard) => guard.secrets().without(q).map(Cow::into_owned),
            }),
            host: headers::host(&head.uri, &head.headers).unwrap_or_default().to_owned(),
            https: route.proxies.is_https(peer, &head.headers),
            method: head.method.clone(),
            client: route.proxies.client(peer, &head.headers),
            route: route.name.clone(),
            trace: traceparent.split('-').nth(1).unwrap_or_default().to_owned(),
        }
    }

    fn say(&self, v: Var, out: &mut String) {
        match v {
            Var::Client => out.push_str(&self.client.to_string()),
            Var::Route => out.push_str(&self.route),
            Var::Trace => out.push_str(&self.trace),
            Var::Host => out.push_str(&self.host),
            Var::Method => out.push_str(self.method.as_str()),
            Var::Path => out.push_str(&self.path),
            Var::Query => out.push_str(self.query.as_deref().unwrap_or_default()),
            Var::Scheme => out.push_str(if self.https { "https" } else { "http" }),
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Var {
    Client,
    Route,
    Trace,
    Host,
    Method,
    Path,
    Query,
    Scheme,
}

const VARS: [(&str, Var); 8] = [
    ("client.address", Var::Client),
    ("route.name", Var::Route),
    ("trace.id", Var::Trace),
    ("request.host", Var::Host),
    ("request.method", Var::Method),
    ("request.path", Var::Path),
    ("request.query", Var::Query),
    ("request.scheme", Var::Scheme),
];

/// Text with `{capture}` and `{variable}`; `{{` and `}}` are braces.
#[derive(Debug)]
pub(super) struct Text(Vec<Part>);

#[derive(Debug)]
enum Part {
    Text(String),
    Capture(String),
    Var(Var),
}

impl Text {
    pub(super) fn parse(s: &str, pattern: &Pattern) -> Result<Self, String> {
        let (mut parts, mut text) = (Vec::new(), String::new());
        let mut left = s;
        while let Some(at) = left.find(['{', '}']) {
            text.push_str(&left[..at]);
            let brace = &left[at..=at];
            let after = &left[at + 1..];
            if let Some(rest) = after.strip_prefix(brace) {
                text.push_str(brace);
                left = rest;
                continue;
            }
            let name = (brace == "{").then(|| after.split_once('}')).flatten();
            let Some((name, rest)) = name else {
                return Err(format!("has a '{brace}' alone: write '{brace}{brace}' for a brace"));
            };
            if !text.is_empty() {
                parts.push(Part::Text(std::mem::take(&mut text)));
            }
            parts.push(match VARS.iter().find(|(n, _)| *n == name) {
                Some((_, v)) => Part::Var(*v),
                None if pattern.has(name) => Part::Capture(name.to_owned()),
                None => {
                    let known = VARS.map(|(n, _)| n).join(", ");
                    return Err(format!(
                        "uses '{{{name}}}', which is not known: write what the path captures, or {known}"
                    ));
                }
            });
            left = rest;
        }
        text.push_str(left);
        if !text.is_empty() {
            parts.push(Part::Text(text));
        }
        Ok(Self(parts))
    }

    pub(super) fn sees_facts(&self) -> bool {
        self.0.iter().any(|p| !matches!(p, Part::Text(_)))
    }

    pub(super) fn fill(&self, pattern: &Pattern, facts: Option<&Facts>) -> String {
        let mut out = String::new();
        for p in &self.0 {
            match (p, facts) {
                (Part::Text(t), _) => out.push_str(t),
                (Part::Capture(n), Some(f)) => out.push_str(pattern.capture(n, &f.path).unwrap_or_default()),
                (Part::Var(v), Some(f)) => f.say(*v, &mut out),
                (_, None) => {}
            }
        }
        out
    }
}

/// One change, compiled.
#[derive(Debug)]
pub(super) struct Rule {
    name: HeaderName,
    change: Change,
}

#[derive(Debug)]
enum Change {
    Set(Value),
    Add(Value),
    Remove,
}

#[derive(Debug)]
enum Value {
    Same(HeaderValue),
    Made(Text),
}

impl Rule {
    pub(super) fn sees_facts(&self) -> bool {
        matches!(&self.change, Change::Set(Value::Made(_)) | Change::Add(Value::Made(_)))
    }
}

/// Fields that say how the message is sent, or to whom, and are not the route's to change.
const FRAMING: [&str; 8] =
    ["connection", "content-length", "host", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"];

pub(super) fn compile(rules: &[FieldRule], pattern: &Pattern, member: &'static str, bad: &mut Vec<Bad>) -> Vec<Rule> {
    let mut out = Vec::new();
    for rule in rules {
        let (name, text) = match rule {
            FieldRule::Set(n, t) | FieldRule::Add(n, t) => (n, Some(t)),
            FieldRule::Remove(n) => (n, None),
        };
        let Ok(field) = HeaderName::from_bytes(name.as_bytes()) else {
            bad.push((member, name.clone(), "is not a header field name: use letters, digits and '-'".to_owned()));
            continue;
        };
        if FRAMING.contains(&field.as_str()) {
            let instead = if field == "host" { "write 'host:' on the route" } else { "leave it to Weft" };
            bad.push((member, name.clone(), format!("belongs to the connection: {instead}")));
            continue;
        }
        let value = match text.map(|t| value(t, pattern)) {
            None => None,
            Some(Ok(v)) => Some(v),
            Some(Err(e)) => {
                bad.push((member, name.clone(), e));
                continue;
            }
        };
        let change = match (rule, value) {
            (FieldRule::Set(..), Some(v)) => Change::Set(v),
            (FieldRule::Add(..), Some(v)) => Change::Add(v),
            _ => Change::Remove,
        };
        out.push(Rule { name: field, change });
    }
    out
}

fn value(text: &str, pattern: &Pattern) -> Result<Value, String> {
    let parsed = Text::parse(text, pattern)?;
    if HeaderValue::from_str(text).is_err() {
        return Err("has a value that no header field can have: use visible characters".to_owned());
    }
    if parsed.sees_facts() {
        return Ok(Value::Made(parsed));
    }
    let plain = parsed.fill(pattern, None);
    HeaderValue::from_str(&plain).map(Value::Same).map_err(|e| e.to_string())
}

/// Applies changes in order. A value that cannot stand in a field (a capture with strange bytes) is left out.
pub(super) fn apply(rules: &[Rule], pattern: &Pattern, facts: Option<&Facts>, h: &mut HeaderMap) {
    for rule in rules {
        let made = |v: &Value| match v {
            Value::Same(v) => Some(v.clone()),
            Value::Made(t) => HeaderValue::from_str(&t.fill(pattern, facts)).ok(),
        };
        match &rule.change {
            Change::Remove => drop(h.remove(&rule.name)),
            Change::Set(v) => drop(made(v).and_then(|v| h.insert(&rule.name, v))),
            Change::Add(v) => {
                if let Some(v) = made(v) {
                    h.append(&rule.name, v);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_know_captures_variables_and_braces_and_nothing_else() {
        let p = Pattern::parse("/u/{id}").unwrap();
        assert!(!Text::parse("a {{b}} c", &p).unwrap().sees_facts());
        assert_eq!(Text::parse("a {{b}} c", &p).unwrap().fill(&p, None), "a {b} c");
        assert!(Text::parse("{id} {client.address}", &p).unwrap().sees_facts());
        for bad in ["{", "}", "{nope}", "{id", "a}b"] {
            assert!(Text::parse(bad, &p).is_err(), "{bad}");
        }
    }

    #[test]
    fn fields_of_the_connection_are_not_a_routes_to_change() {
        let p = Pattern::parse("/**").unwrap();
        let mut bad = Vec::new();
        let rules = [FieldRule::Set("Host".into(), "x".into()), FieldRule::Remove("Content-Length".into())];
        assert!(compile(&rules, &p, "request header", &mut bad).is_empty());
        assert_eq!(bad.len(), 2);
    }
}
