//! Which route a request takes: an immutable table compiled from configuration.
//!
//! The most specific wins: host (exact, then the longest `*.` suffix, then any), then path (literal, then `{name}`,
//! then `/**`, segment by segment; then regular expressions), then the number of other conditions, then `priority`, then
//! file order. Two routes that nothing but file order tells apart, and that match exactly the same requests, are an
//! error.
//!
//! Literal paths are one hash lookup; patterns are a trie walked in order of specificity, so the first hit is the answer.

mod pattern;

use hashbrown::HashMap;
use http::{HeaderMap, HeaderName, Method};
use percent_encoding::percent_decode_str;

pub use pattern::{Pattern, Segment, Template, normal};

use crate::spec::{RouteSpec, Target};

/// Why a route does not compile. `route` is its index in the file's order.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// A member of the route is not usable.
    #[error("route '{name}': {member} '{given}' {reason}")]
    Member {
        /// Which route.
        route: usize,
        /// Its name.
        name: String,
        /// `path`, `host`, `method`, `header` or `to.path`.
        member: &'static str,
        /// What was given.
        given: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Two routes match exactly the same requests.
    #[error("route '{name}' matches exactly what route '{other_name}' matches, with the same priority")]
    Equal {
        /// The later one.
        route: usize,
        /// Its name.
        name: String,
        /// The earlier one.
        other: usize,
        /// Its name.
        other_name: String,
    },
}

impl RouteError {
    /// The route's index in the file's order.
    pub fn route(&self) -> usize {
        match self {
            RouteError::Member { route, .. } | RouteError::Equal { route, .. } => *route,
        }
    }
}

/// What of a request decides its route.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// Host, with or without port.
    pub host: &'a str,
    /// The path in normal form.
    pub path: &'a str,
    /// The raw query, without `?`.
    pub query: Option<&'a str>,
    /// The method.
    pub method: &'a Method,
    /// Header fields.
    pub headers: &'a HeaderMap,
}

/// What the table answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// This route, by its index in the file's order.
    Route(usize),
    /// Routes match but for the method; these would.
    OtherMethods(Vec<Method>),
    /// Nothing matches.
    Nothing,
}

/// The compiled table.
#[derive(Debug, Default)]
pub struct Table {
    exact: HashMap<Box<str>, Paths>,
    /// Suffixes with their leading dot, longest first.
    wildcard: Vec<(Box<str>, Paths)>,
    any: Paths,
    routes: Vec<Conditions>,
}

#[derive(Debug, Default)]
struct Paths {
    literal: HashMap<Box<str>, Vec<u32>>,
    root: Node,
    regex: Vec<(regex::Regex, u32)>,
}

#[derive(Debug, Default)]
struct Node {
    literal: HashMap<Box<str>, Node>,
    param: Option<Box<Node>>,
    /// Routes whose pattern ends here.
    here: Vec<u32>,
    /// Routes whose pattern goes on with `/**`.
    rest: Vec<u32>,
}

#[derive(Debug)]
struct Conditions {
    methods: Vec<Method>,
    headers: Vec<(HeaderName, Option<String>)>,
    query: Vec<(String, Option<String>)>,
    priority: i32,
    pattern: Pattern,
    rewrite: Option<Template>,
}

impl Table {
    /// Compiles routes; all mistakes at once.
    pub fn compile(specs: &[RouteSpec]) -> Result<Self, Vec<RouteError>> {
        let mut errors = Vec::new();
        let mut table = Table::default();
        let mut seen: HashMap<String, usize> = HashMap::new();
        let mut placed: Vec<(usize, Option<String>)> = Vec::new();
        for (i, spec) in specs.iter().enumerate() {
            match Conditions::compile(i, spec) {
                Ok((host, c)) => {
                    match seen.entry(c.identity(host.as_deref())) {
                        hashbrown::hash_map::Entry::Occupied(o) => errors.push(RouteError::Equal {
                            route: i,
                            name: spec.name.to_string(),
                            other: *o.get(),
                            other_name: specs[*o.get()].name.to_string(),
                        }),
                        hashbrown::hash_map::Entry::Vacant(v) => {
                            v.insert(i);
                        }
                    }
                    placed.push((i, host));
                    table.routes.push(c);
                }
                Err(e) => errors.extend(e),
            }
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        // Most conditions first, then priority; the sort is stable, so file order is last.
        placed.sort_by_key(|(i, _)| {
            let c = &table.routes[*i];
            (std::cmp::Reverse(c.count()), std::cmp::Reverse(c.priority))
        });
        for (i, host) in placed {
            let paths = match host.as_deref() {
                None => &mut table.any,
                Some(h) => match h.strip_prefix('*') {
                    None => table.exact.entry(h.into()).or_default(),
                    Some(suffix) => {
                        let at = table.wildcard.iter().position(|(s, _)| **s == *suffix).unwrap_or_else(|| {
                            table.wildcard.push((suffix.into(), Paths::default()));
                            table.wildcard.len() - 1
                        });
                        &mut table.wildcard[at].1
                    }
                },
            };
            paths.insert(&table.routes[i].pattern, i as u32);
        }
        table.wildcard.sort_by_key(|(s, _)| std::cmp::Reverse(s.len()));
        Ok(table)
    }

    /// Finds the most specific route.
    pub fn find(&self, asked: &Asked<'_>) -> Found {
        let mut search = Search { table: self, asked, allowed: Vec::new() };
        let hit =
            if self.exact.is_empty() && self.wildcard.is_empty() { search.paths(&self.any) } else { search.hosts() };
        match hit {
            Some(i) => Found::Route(i as usize),
            None if search.allowed.is_empty() => Found::Nothing,
            None => Found::OtherMethods(search.allowed),
        }
    }

    /// The path to send for a request path that took a route; `None` = as it came.
    pub fn rewrite(&self, route: usize, path: &str) -> Option<String> {
        let c = &self.routes[route];
        c.rewrite.as_ref().map(|t| t.fill(&c.pattern, path))
    }
}

struct Search<'t, 'a> {
    table: &'t Table,
    asked: &'t Asked<'a>,
    allowed: Vec<Method>,
}

impl<'t> Search<'t, '_> {
    fn hosts(&mut self) -> Option<u32> {
        let table = self.table;
        let host = host_name(self.asked.host);
        let lower;
        let host = if host.bytes().any(|b| b.is_ascii_uppercase()) {
            lower = host.to_ascii_lowercase();
            lower.as_str()
        } else {
            host
        };
        if let Some(p) = table.exact.get(host)
            && let Some(i) = self.paths(p)
        {
            return Some(i);
        }
        for (suffix, p) in &table.wildcard {
            if host.len() > suffix.len()
                && host.ends_with(&**suffix)
                && let Some(i) = self.paths(p)
            {
                return Some(i);
            }
        }
        self.paths(&table.any)
    }

    fn paths(&mut self, paths: &'t Paths) -> Option<u32> {
        let path = self.asked.path;
        if let Some(routes) = paths.literal.get(path)
            && let Some(i) = self.first(routes)
        {
            return Some(i);
        }
        if let Some(i) = self.walk(&paths.root, path.strip_prefix('/')) {
            return Some(i);
        }
        paths.regex.iter().find_map(|(re, i)| if re.is_match(path) { self.first(&[*i]) } else { None })
    }

    /// Depth first, most specific branch first.
    fn walk(&mut self, node: &'t Node, left: Option<&str>) -> Option<u32> {
        match left {
            None => {
                if let Some(i) = self.first(&node.here) {
                    return Some(i);
                }
            }
            Some(left) => {
                let (segment, after) = match left.split_once('/') {
                    Some((s, a)) => (s, Some(a)),
                    None => (left, None),
                };
                if let Some(n) = node.literal.get(segment)
                    && let Some(i) = self.walk(n, after)
                {
                    return Some(i);
                }
                if !segment.is_empty()
                    && let Some(n) = &node.param
                    && let Some(i) = self.walk(n, after)
                {
                    return Some(i);
                }
            }
        }
        self.first(&node.rest)
    }

    fn first(&mut self, routes: &[u32]) -> Option<u32> {
        routes.iter().copied().find(|i| {
            let c = &self.table.routes[*i as usize];
            if !c.hold(self.asked) {
                return false;
            }
            if c.takes(self.asked.method) {
                return true;
            }
            for m in &c.methods {
                if !self.allowed.contains(m) {
                    self.allowed.push(m.clone());
                }
            }
            false
        })
    }
}

impl Paths {
    fn insert(&mut self, pattern: &Pattern, route: u32) {
        let (segments, rest) = match pattern {
            Pattern::Regex(re) => return self.regex.push((re.clone(), route)),
            Pattern::Segments { segments, rest } => (segments, *rest),
        };
        if !rest && segments.iter().all(|s| matches!(s, Segment::Literal(_))) {
            return self.literal.entry(pattern.shape().into()).or_default().push(route);
        }
        let mut node = &mut self.root;
        for s in segments {
            node = match s {
                Segment::Literal(l) => node.literal.entry(l.as_str().into()).or_default(),
                Segment::Param(_) => node.param.get_or_insert_default(),
            };
        }
        if rest { node.rest.push(route) } else { node.here.push(route) }
    }
}

impl Conditions {
    fn compile(route: usize, spec: &RouteSpec) -> Result<(Option<String>, Self), Vec<RouteError>> {
        let mut errors = Vec::new();
        let mut bad = |member, given: &str, reason: String| {
            errors.push(RouteError::Member { route, name: spec.name.to_string(), member, given: given.into(), reason })
        };
        let m = &spec.matches;
        let pattern = Pattern::parse(&m.path).map_err(|e| bad("path", &m.path, e)).ok();
        let rewrite = match (&spec.to, &pattern) {
            (Target::Service { path: Some(t), .. }, Some(p)) => {
                Template::parse(t, p).map_err(|e| bad("to.path", t, e)).ok()
            }
            _ => None,
        };
        let host = m.host.as_deref().map(|h| h.to_ascii_lowercase());
        if let Some(h) = &host {
            let name = h.strip_prefix("*.").unwrap_or(h);
            if name.is_empty() || name.contains(['*', '/', ':', ' ']) && !name.starts_with('[') {
                bad("host", h, "must be a name like 'api.example.com' or '*.example.com', without port".into());
            }
        }
        let mut methods = Vec::new();
        for name in &m.methods {
            match Method::from_bytes(name.as_bytes()) {
                Ok(m) if !methods.contains(&m) => methods.push(m),
                Ok(_) => {}
                Err(_) => bad("method", name, "is not an HTTP method".into()),
            }
        }
        let mut headers = Vec::new();
        for (name, value) in &m.headers {
            match HeaderName::from_bytes(name.as_bytes()) {
                Ok(n) => headers.push((n, value.clone())),
                Err(_) => bad("header", name, "is not a header field name".into()),
            }
        }
        match (pattern, errors.is_empty()) {
            (Some(pattern), true) => {
                let (query, priority) = (m.query.clone(), spec.priority);
                Ok((host, Self { methods, headers, query, priority, pattern, rewrite }))
            }
            _ => Err(errors),
        }
    }

    /// Conditions besides host and path.
    fn count(&self) -> usize {
        usize::from(!self.methods.is_empty()) + self.headers.len() + self.query.len()
    }

    fn identity(&self, host: Option<&str>) -> String {
        let mut methods: Vec<_> = self.methods.iter().map(Method::as_str).collect();
        methods.sort_unstable();
        let mut headers: Vec<_> = self.headers.iter().map(|(n, v)| (n.as_str(), v)).collect();
        headers.sort_unstable();
        let mut query: Vec<_> = self.query.iter().collect();
        query.sort_unstable();
        format!("{host:?} {} {methods:?} {headers:?} {query:?} {}", self.pattern.shape(), self.priority)
    }

    /// Whether all conditions besides host, path and method hold.
    fn hold(&self, asked: &Asked<'_>) -> bool {
        self.headers.iter().all(|(name, want)| match want {
            None => asked.headers.contains_key(name),
            Some(w) => asked.headers.get_all(name).iter().any(|v| v.as_bytes() == w.as_bytes()),
        }) && self.query.iter().all(|(name, want)| {
            let mut pairs = asked.query.unwrap_or("").split('&').map(|p| p.split_once('=').unwrap_or((p, "")));
            pairs.any(|(n, v)| form_eq(n, name) && want.as_ref().is_none_or(|w| form_eq(v, w)))
        })
    }

    /// A route that takes GET takes HEAD (RFC 9110 9.3.2).
    fn takes(&self, m: &Method) -> bool {
        self.methods.is_empty()
            || self.methods.contains(m)
            || (*m == Method::HEAD && self.methods.contains(&Method::GET))
    }
}

/// Whether a form-encoded text (`+` is a space) decodes to `want`.
fn form_eq(raw: &str, want: &str) -> bool {
    if raw.contains('+') {
        return form_eq(&raw.replace('+', "%20"), want);
    }
    raw == want || (raw.contains('%') && percent_decode_str(raw).decode_utf8().is_ok_and(|d| d == want))
}

/// A host without port and final dot.
fn host_name(host: &str) -> &str {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    name.strip_suffix('.').unwrap_or(name)
}

#[cfg(test)]
mod tests;
