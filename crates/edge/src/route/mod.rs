//! Which route a request takes: an immutable table compiled from configuration.
//!
//! The most specific wins: host (exact, then the longest `*.` suffix, then any), then path (literal, then `{name}`,
//! then `/**`, segment by segment; then regular expressions), then the number of other conditions, then `priority`, then
//! file order. Two routes that nothing but file order tells apart, and that match exactly the same requests, are an
//! error.
//!
//! Literal paths are one hash lookup; patterns are a trie walked in order of specificity, so the first hit is the answer.

mod condition;
mod pattern;

use std::net::IpAddr;

use hashbrown::HashMap;
use http::{HeaderMap, Method};

pub use pattern::{Pattern, Segment, Template, normal};

use crate::spec::{Rewrite, RouteSpec, Target};

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
        /// `path`, `host`, `method`, `header`, `query`, `content_type`, `when` or `to.path`.
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
    /// Who asks; only of use where [`Table::sees_source`].
    pub source: Option<IpAddr>,
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
    routes: Vec<Compiled>,
    sees_source: bool,
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
struct Compiled {
    methods: Vec<Method>,
    conditions: condition::Conditions,
    priority: i32,
    pattern: Pattern,
    /// By share of a split; one of a route to a service.
    rewrites: Vec<Option<Rewriter>>,
}

#[derive(Clone, Debug)]
enum Rewriter {
    Template(Template),
    Prefix(String, String),
    Regex(regex::Regex, String),
}

impl Table {
    /// Compiles routes; all mistakes at once.
    pub fn compile(specs: &[RouteSpec]) -> Result<Self, Vec<RouteError>> {
        let mut errors = Vec::new();
        let mut table = Table::default();
        let mut seen: HashMap<String, usize> = HashMap::new();
        let mut placed: Vec<(usize, Option<String>)> = Vec::new();
        for (i, spec) in specs.iter().enumerate() {
            match Compiled::compile(i, spec) {
                Ok((host, c)) => {
                    match seen.entry(c.identity(host.as_deref(), spec)) {
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
                    table.sees_source |= c.conditions.sees_source();
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

    /// Whether a condition of some route looks at the caller's address.
    pub fn sees_source(&self) -> bool {
        self.sees_source
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

    /// The path to send for a request path that took a route, to a share of its split; `None` = as it came.
    pub fn rewrite(&self, route: usize, share: usize, path: &str) -> Option<String> {
        let c = &self.routes[route];
        match c.rewrites.get(share)?.as_ref()? {
            Rewriter::Template(t) => Some(t.fill(&c.pattern, path)),
            Rewriter::Prefix(prefix, with) => {
                let rest = path.strip_prefix(prefix.as_str()).filter(|r| r.is_empty() || r.starts_with('/'))?;
                let made = format!("{with}{rest}");
                Some(if made.is_empty() { "/".to_owned() } else { made })
            }
            Rewriter::Regex(re, with) => match re.replace_all(path, with.as_str()) {
                std::borrow::Cow::Borrowed(_) => None,
                std::borrow::Cow::Owned(made) if made.starts_with('/') => Some(made),
                std::borrow::Cow::Owned(made) => Some(format!("/{made}")),
            },
        }
    }

    /// The pattern of a route's path.
    pub(crate) fn pattern(&self, route: usize) -> &Pattern {
        &self.routes[route].pattern
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
            if !c.conditions.hold(self.asked) {
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

impl Compiled {
    fn compile(route: usize, spec: &RouteSpec) -> Result<(Option<String>, Self), Vec<RouteError>> {
        let mut errors = Vec::new();
        let mut bad = |member, given: &str, reason: String| {
            errors.push(RouteError::Member { route, name: spec.name.to_string(), member, given: given.into(), reason })
        };
        let m = &spec.matches;
        let pattern = Pattern::parse(&m.path).map_err(|e| bad("path", &m.path, e)).ok();
        let general = match &spec.traffic.rewrite {
            None => None,
            Some(Rewrite::Prefix(prefix, with)) => {
                for (what, text) in [("prefix", prefix), ("with", with)] {
                    if !text.starts_with('/') {
                        bad("rewrite", text, format!("must start with '/': write '/{text}' as '{what}'"));
                    }
                }
                let end = |t: &str| t.trim_end_matches('/').to_owned();
                Some(Rewriter::Prefix(end(prefix), end(with)))
            }
            Some(Rewrite::Regex(re, with)) => match regex::Regex::new(re) {
                Ok(compiled) => Some(Rewriter::Regex(compiled, with.clone())),
                Err(e) => {
                    let text = e.to_string();
                    let last = text.lines().last().unwrap_or_default().trim();
                    bad("rewrite", re, format!("is not a regular expression: {last}"));
                    None
                }
            },
        };
        let paths: Vec<Option<&String>> = match &spec.to {
            Target::Service { path, .. } => vec![path.as_ref()],
            Target::Split(shares) => shares.iter().map(|s| s.path.as_ref()).collect(),
            _ => Vec::new(),
        };
        let rewrites = paths.into_iter().map(|path| match (path, &pattern) {
            (Some(t), Some(p)) => Template::parse(t, p).map_err(|e| bad("to.path", t, e)).ok().map(Rewriter::Template),
            _ => general.clone(),
        });
        let rewrites = rewrites.collect();
        for (member, given, reason) in pattern.iter().flat_map(|p| crate::http::traffic::mistakes(spec, p)) {
            bad(member, &given, reason);
        }
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
        let conditions = match condition::Conditions::compile(m) {
            Ok(c) => c,
            Err(all) => {
                for (member, given, reason) in all {
                    bad(member, &given, reason);
                }
                condition::Conditions::default()
            }
        };
        match (pattern, errors.is_empty()) {
            (Some(pattern), true) => {
                Ok((host, Self { methods, conditions, priority: spec.priority, pattern, rewrites }))
            }
            _ => Err(errors),
        }
    }

    /// Conditions besides host and path.
    fn count(&self) -> usize {
        usize::from(!self.methods.is_empty()) + self.conditions.count()
    }

    fn identity(&self, host: Option<&str>, spec: &RouteSpec) -> String {
        let mut methods: Vec<_> = self.methods.iter().map(Method::as_str).collect();
        methods.sort_unstable();
        let others = condition::identity(&spec.matches);
        format!("{host:?} {} {methods:?} {others} {}", self.pattern.shape(), self.priority)
    }

    /// A route that takes GET takes HEAD (RFC 9110 9.3.2).
    fn takes(&self, m: &Method) -> bool {
        self.methods.is_empty()
            || self.methods.contains(m)
            || (*m == Method::HEAD && self.methods.contains(&Method::GET))
    }
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
