//! What CEL sees of a caller and a request.

use std::sync::Arc;

use http::request::Parts;
use serde_json::{Map, Value, json};
use weft_flow::expr::{Expr, Scope};
use weft_policy::auth::Identity;
use weft_policy::net;

use crate::http::headers;
use crate::listener::Peer;
use crate::route::normal;

/// The names that conditions and header values may use.
pub const NAMES: &[&str] = &["principal", "subject", "provider", "scopes", "claims", "request"];

/// A caller and its request.
pub(super) struct Seen<'a> {
    pub(super) who: Option<&'a Identity>,
    pub(super) head: &'a Parts,
    /// As it was asked for, before a rewrite.
    pub(super) asked: &'a http::Uri,
    pub(super) from: Caller<'a>,
}

/// Where a request comes from.
#[derive(Clone, Copy)]
pub(crate) struct Caller<'a> {
    /// The other end of its connection.
    pub(crate) peer: &'a Peer,
    /// The client, as the proxies tell that the configuration names.
    pub(crate) client: std::net::IpAddr,
}

impl Scope for Seen<'_> {
    fn value(&self, name: &str) -> Option<Arc<Value>> {
        let who = self.who;
        Some(Arc::new(match name {
            "principal" => json!(who.map_or(self.from.peer.principal.as_str(), |w| &w.principal)),
            "subject" => json!(who.map_or("", |w| &w.subject)),
            "provider" => json!(who.map_or("", |w| &w.provider)),
            "scopes" => who.map_or(json!([]), |w| w.scopes.iter().map(|s| &**s).collect()),
            "claims" => return Some(who.map_or_else(|| Arc::new(json!({})), |w| w.claims.clone())),
            "request" => self.request(),
            _ => return None,
        }))
    }
}

impl Seen<'_> {
    fn request(&self) -> Value {
        let mut fields = Map::new();
        for name in self.head.headers.keys() {
            let all = self.head.headers.get_all(name).iter();
            let joined = all.map(|v| String::from_utf8_lossy(v.as_bytes())).collect::<Vec<_>>().join(", ");
            fields.insert(name.as_str().to_owned(), joined.into());
        }
        // In normal form, as the route was found: another spelling of a path is no way around a condition.
        let path = normal(self.asked.path()).unwrap_or_default();
        json!({
            "method": self.head.method.as_str(),
            "path": path,
            "query": self.asked.query().unwrap_or_default(),
            "host": headers::host(self.asked, &self.head.headers).unwrap_or_default(),
            "source": net::plain(self.from.client).to_string(),
            "headers": fields,
        })
    }
}

/// A header field's value. The common forms, a name or a member of the claims, need no evaluation.
#[derive(Debug)]
pub(super) enum Field {
    Principal,
    Subject,
    Claim(Vec<String>),
    Other(Expr),
}

impl Field {
    pub(super) fn compile(text: &str) -> Result<Self, Vec<String>> {
        let expr = Expr::compile(text, NAMES)?;
        let word = |w: &str| !w.is_empty() && w.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        Ok(match text.trim() {
            "principal" => Field::Principal,
            "subject" => Field::Subject,
            t => match t.strip_prefix("claims.") {
                Some(path) if path.split('.').all(word) => Field::Claim(path.split('.').map(str::to_owned).collect()),
                _ => Field::Other(expr),
            },
        })
    }

    /// Its text; nothing when there is none, or none that a header can hold.
    pub(super) fn text(&self, seen: &Seen<'_>) -> Option<String> {
        let who = seen.who?;
        match self {
            Field::Principal => Some(who.principal.to_string()),
            Field::Subject => Some(who.subject.to_string()),
            Field::Claim(path) => text(path.iter().try_fold(&*who.claims, |v, name| v.get(name))?),
            Field::Other(expr) => text(&expr.eval(seen).ok()?),
        }
    }
}

fn text(v: &Value) -> Option<String> {
    match v {
        Value::String(s) => Some(s.clone()),
        Value::Number(n) => Some(n.to_string()),
        Value::Bool(b) => Some(b.to_string()),
        Value::Array(a) => a.iter().map(text).collect::<Option<Vec<_>>>().map(|a| a.join(",")),
        Value::Null | Value::Object(_) => None,
    }
}
