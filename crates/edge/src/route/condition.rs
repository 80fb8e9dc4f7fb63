//! What a route asks of a request besides host, path and method: header fields, query parameters, the content type, a CEL
//! expression. Cheap ones are looked at first.

use std::net::IpAddr;
use std::sync::{Arc, LazyLock};

use cel::{Context, Env, Program, Value};
use http::{HeaderMap, HeaderName, header};
use percent_encoding::percent_decode_str;
use regex::bytes::Regex;
use serde_json::{Map, json};

use super::Asked;
use crate::spec::{RouteMatch, Test};

/// Shared by every evaluation: building the standard environment costs more than most expressions.
static ENV: LazyLock<Arc<Env>> = LazyLock::new(|| Arc::new(Env::stdlib()));

/// All conditions of one route, compiled.
#[derive(Debug, Default)]
pub(super) struct Conditions {
    headers: Vec<(HeaderName, Matcher)>,
    query: Vec<(String, Matcher)>,
    /// Lower case; `image/*` is `image/`.
    content_types: Vec<String>,
    grpc: bool,
    when: Option<When>,
}

#[derive(Debug)]
enum Matcher {
    Exact(String),
    Prefix(String),
    Regex(Regex),
    Present,
    Absent,
}

/// A member, what was given, what is wrong with it.
pub(super) type Bad = (&'static str, String, String);

impl Conditions {
    /// Compiles; all mistakes at once.
    pub(super) fn compile(m: &RouteMatch) -> Result<Self, Vec<Bad>> {
        let (mut out, mut bad) = (Self { grpc: m.grpc, ..Self::default() }, Vec::new());
        for (name, test) in &m.headers {
            match (HeaderName::from_bytes(name.as_bytes()), Matcher::compile(test)) {
                (Ok(n), Ok(t)) => out.headers.push((n, t)),
                (Err(_), _) => bad.push(("header", name.clone(), "is not a header field name".into())),
                (_, Err(e)) => bad.push(("header", name.clone(), e)),
            }
        }
        for (name, test) in &m.query {
            match Matcher::compile(test) {
                Ok(t) => out.query.push((name.clone(), t)),
                Err(e) => bad.push(("query", name.clone(), e)),
            }
        }
        for given in &m.content_types {
            let parts = given.split_once('/').filter(|(t, s)| {
                let token = |x: &str| !x.is_empty() && !x.contains(['*', ' ', ';', ',', '/']);
                token(t) && (*s == "*" || token(s))
            });
            match parts {
                Some((t, "*")) => out.content_types.push(format!("{}/", t.to_ascii_lowercase())),
                Some(_) => out.content_types.push(given.to_ascii_lowercase()),
                None => bad.push((
                    "content_type",
                    given.clone(),
                    "is not a media type: write it like application/json or image/*, without parameters".into(),
                )),
            }
        }
        if let Some(text) = &m.when {
            match When::compile(text) {
                Ok(w) => out.when = Some(w),
                Err(e) => bad.push(("when", text.clone(), e)),
            }
        }
        if bad.is_empty() { Ok(out) } else { Err(bad) }
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.headers.len()
            + self.query.len()
            + usize::from(!self.content_types.is_empty())
            + usize::from(self.grpc)
            + usize::from(self.when.is_some())
    }

    /// Whether one of them looks at the caller's address.
    pub(super) fn sees_source(&self) -> bool {
        self.when.as_ref().is_some_and(|w| w.sees.source)
    }

    /// Whether all hold.
    pub(super) fn hold(&self, asked: &Asked<'_>) -> bool {
        self.headers.iter().all(|(name, want)| want.of_field(asked.headers, name))
            && self.query.iter().all(|(name, want)| want.of_parameter(asked.query.unwrap_or(""), name))
            && (self.content_types.is_empty() || has_type(asked.headers, &self.content_types))
            && (!self.grpc || crate::http::respond::is_grpc(asked.headers))
            && self.when.as_ref().is_none_or(|w| w.holds(asked))
    }
}

/// The conditions as one text, the same for those that ask the same.
pub(super) fn identity(m: &RouteMatch) -> String {
    let (mut headers, mut query, mut types) = (m.headers.clone(), m.query.clone(), m.content_types.clone());
    for (name, _) in &mut headers {
        name.make_ascii_lowercase();
    }
    headers.sort_unstable();
    query.sort_unstable();
    types.sort_unstable();
    format!("{headers:?} {query:?} {types:?} {} {:?}", m.grpc, m.when)
}

fn has_type(h: &HeaderMap, wanted: &[String]) -> bool {
    let Some(given) = h.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()) else { return false };
    let given = given.split(';').next().unwrap_or("").trim().as_bytes();
    wanted.iter().any(|w| {
        let w = w.as_bytes();
        let end = if w.ends_with(b"/") { w.len() } else { given.len() };
        given.get(..end).is_some_and(|g| g.eq_ignore_ascii_case(w))
    })
}

impl Matcher {
    fn compile(test: &Test) -> Result<Self, String> {
        Ok(match test {
            Test::Exact(s) => Self::Exact(s.clone()),
            Test::Prefix(s) => Self::Prefix(s.clone()),
            Test::Present => Self::Present,
            Test::Absent => Self::Absent,
            Test::Regex(s) => Self::Regex(Regex::new(&format!("^(?:{s})$")).map_err(|e| {
                let text = e.to_string();
                format!("has a value that is not a regular expression: {}", text.lines().last().unwrap_or("").trim())
            })?),
        })
    }

    /// One of a field's values is enough.
    fn of_field(&self, h: &HeaderMap, name: &HeaderName) -> bool {
        match self {
            Self::Present => h.contains_key(name),
            Self::Absent => !h.contains_key(name),
            wants => h.get_all(name).iter().any(|v| wants.takes(v.as_bytes())),
        }
    }

    fn of_parameter(&self, query: &str, name: &str) -> bool {
        let mut values = query
            .split('&')
            .filter(|p| !p.is_empty())
            .map(|p| p.split_once('=').unwrap_or((p, "")))
            .filter(|(n, _)| form_eq(n, name))
            .map(|(_, v)| v);
        match self {
            Self::Present => values.next().is_some(),
            Self::Absent => values.next().is_none(),
            Self::Exact(w) => values.any(|v| form_eq(v, w)),
            wants => values.any(|v| wants.takes(form(v).as_bytes())),
        }
    }

    fn takes(&self, value: &[u8]) -> bool {
        match self {
            Self::Exact(w) => value == w.as_bytes(),
            Self::Prefix(w) => value.starts_with(w.as_bytes()),
            Self::Regex(re) => re.is_match(value),
            Self::Present => true,
            Self::Absent => false,
        }
    }
}

/// Whether a form-encoded text (`+` is a space) decodes to `want`.
fn form_eq(raw: &str, want: &str) -> bool {
    if raw.contains(['+', '%']) { form(raw) == want } else { raw == want }
}

/// A form-encoded text, decoded; as it is where it is not UTF-8.
fn form(raw: &str) -> String {
    let spaced = raw.replace('+', " ");
    percent_decode_str(&spaced).decode_utf8().map_or_else(|_| raw.to_owned(), |d| d.into_owned())
}

/// A CEL expression over `request` and `source`.
struct When {
    program: Program,
    sees: Sees,
}

/// What an expression looks at; the rest is not made for it.
#[derive(Clone, Copy, Debug)]
struct Sees {
    headers: bool,
    query: bool,
    source: bool,
}

impl std::fmt::Debug for When {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("When").field("sees", &self.sees).finish_non_exhaustive()
    }
}

impl When {
    fn compile(text: &str) -> Result<Self, String> {
        let program = Program::compile(text).map_err(|e| format!("is not a CEL expression: {e}"))?;
        if let Some(other) = program.references().variables().into_iter().find(|v| !["request", "source"].contains(v)) {
            return Err(format!("unknown name '{other}': write request or source"));
        }
        // `request[name]` may be anything.
        let any = text.contains("request[") || !text.contains("request.");
        let sees = Sees {
            headers: any || text.contains("headers"),
            query: any || text.contains("query"),
            source: text.contains("source"),
        };
        Ok(Self { program, sees })
    }

    /// An expression that fails (a header the request does not have) does not hold.
    fn holds(&self, asked: &Asked<'_>) -> bool {
        let mut request = Map::new();
        request.insert("method".into(), asked.method.as_str().into());
        request.insert("path".into(), asked.path.into());
        request.insert("host".into(), super::host_name(asked.host).to_ascii_lowercase().into());
        if self.sees.headers {
            let mut all = Map::new();
            for name in asked.headers.keys() {
                let values: Vec<_> =
                    asked.headers.get_all(name).iter().map(|v| String::from_utf8_lossy(v.as_bytes())).collect();
                all.insert(name.as_str().to_owned(), values.join(", ").into());
            }
            request.insert("headers".into(), all.into());
        }
        if self.sees.query {
            let mut all = Map::new();
            for pair in asked.query.unwrap_or("").split('&').filter(|p| !p.is_empty()) {
                let (n, v) = pair.split_once('=').unwrap_or((pair, ""));
                all.entry(form(n)).or_insert_with(|| form(v).into());
            }
            request.insert("query".into(), all.into());
        }
        let source = json!({"address": asked.source.map(|a: IpAddr| a.to_canonical().to_string())});
        let mut context = Context::with_env(ENV.clone());
        for (name, value) in [("request", request.into()), ("source", source)] {
            match cel::to_value(value) {
                Ok(v) => context.add_variable_from_value(name, v),
                Err(_) => return false,
            }
        }
        matches!(self.program.execute(&context), Ok(Value::Bool(true)))
    }
}
