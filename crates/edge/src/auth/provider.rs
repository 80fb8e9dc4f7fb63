//! One way to know who calls: finds its credential in a request and has it checked.

use std::borrow::Cow;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{self, HeaderName};
use http::request::Parts;
use serde_json::json;
use tokio::sync::Semaphore;
use weft_core::{Clock as _, SystemClock, Timestamp, limits};
use weft_policy::auth::jwt::{self, Rules};
use weft_policy::auth::{Cache, Denied, Identity, password};

use super::Means;
use super::api_keys::ApiKeys;
use super::counts::{Counts, Verdict};
use super::source::Source;
use super::spec::{Place, ProviderKind, ProviderSpec};
use super::tries::Tries;

/// A provider in force; shared by all routes that name it, and kept over reloads that leave it as it is.
#[derive(Debug)]
pub(crate) struct Provider {
    pub(super) name: Arc<str>,
    pub(super) spec: ProviderSpec,
    pub(super) counts: Counts,
    checks: Checks,
    cache: Cache<Arc<Identity>>,
}

#[derive(Debug)]
enum Checks {
    Jwt { rules: Rules, header: HeaderName, keys: Arc<Source> },
    ApiKey { place: At, keys: ApiKeys },
    Basic { users: Arc<HashMap<String, String>>, like: Arc<str>, turns: Semaphore, tries: Tries },
}

#[derive(Debug)]
enum At {
    Header(HeaderName),
    Query(String),
}

/// What a provider says of a request.
#[derive(Debug)]
pub(super) enum Answer {
    /// It carries no credential of this kind.
    Nothing,
    /// It is this caller's.
    Known(Arc<Identity>),
    /// Its credential is no good.
    Denied(Denied),
    /// It cannot be said now.
    Unavailable(&'static str),
    /// Too many from there were no good; for so long none is looked at.
    Limited(Duration),
}

impl Provider {
    /// Puts a provider in force.
    pub(crate) fn start(spec: &ProviderSpec, means: &Means) -> Result<Arc<Self>, String> {
        let name: Arc<str> = spec.name.as_str().into();
        let field = |n: &str| HeaderName::try_from(n).map_err(|_| format!("'{n}' is not a header name"));
        let checks = match &spec.kind {
            ProviderKind::Jwt { rules, keys, ca, header } => {
                let keys = Source::start(&name, keys, ca.as_deref(), means)?;
                Checks::Jwt { rules: rules.clone(), header: field(header)?, keys }
            }
            ProviderKind::ApiKey { place } => {
                let place = match place {
                    Place::Header(h) => At::Header(field(h)?),
                    Place::Query(q) => At::Query(q.clone()),
                };
                Checks::ApiKey { place, keys: means.api_keys.clone() }
            }
            ProviderKind::Basic { users, .. } => {
                let (_, like) = users.first().ok_or("it has no users")?;
                let like = like.as_str().into();
                let users = Arc::new(users.iter().cloned().collect());
                Checks::Basic { users, like, turns: Semaphore::new(limits::PASSWORD_CHECKS), tries: Tries::new() }
            }
        };
        let counts = Counts::new(&means.telemetry, &name);
        let cache = Cache::new(limits::CHECKED_CREDENTIALS);
        Ok(Arc::new(Self { name, spec: spec.clone(), counts, checks, cache }))
    }

    /// Whether it is the provider of this specification.
    pub(crate) fn is(&self, spec: &ProviderSpec) -> bool {
        self.spec == *spec
    }

    /// The query parameter that its credential is in.
    pub(crate) fn parameter(&self) -> Option<&str> {
        match &self.checks {
            Checks::ApiKey { place: At::Query(name), .. } => Some(name),
            _ => None,
        }
    }

    /// Who the request is from, as far as this provider can tell.
    pub(super) async fn check(&self, head: &Parts, client: IpAddr) -> Answer {
        let now = SystemClock.now();
        match &self.checks {
            Checks::Jwt { rules, header, keys } => match bearer(head, header) {
                Found::Nothing => Answer::Nothing,
                Found::Twice => Answer::Denied(Denied::Malformed("there is more than one")),
                Found::One(token) => self.token(rules, keys, token, now).await,
            },
            Checks::ApiKey { place, keys } => {
                let found = match place {
                    At::Header(name) => bearer(head, name).map(Cow::Borrowed),
                    At::Query(name) => parameter(head.uri.query().unwrap_or_default(), name),
                };
                match found {
                    Found::Nothing => Answer::Nothing,
                    Found::Twice => Answer::Denied(Denied::Key),
                    Found::One(key) => self.api_key(keys, &key, now),
                }
            }
            Checks::Basic { users, like, turns, tries } => match basic(head) {
                Found::Nothing => Answer::Nothing,
                Found::Twice => Answer::Denied(Denied::Password),
                Found::One(pair) => self.password(users, like, turns, (tries, client), pair).await,
            },
        }
    }

    async fn token(&self, rules: &Rules, source: &Source, token: &str, now: Timestamp) -> Answer {
        if token.len() > limits::TOKEN_BYTES {
            return Answer::Denied(Denied::Malformed("it is over the limit of bytes"));
        }
        let name = self.cache.name(token.as_bytes());
        let mut asked = false;
        loop {
            let Some(set) = source.current() else {
                if !asked && source.renewed(0).await {
                    asked = true;
                    continue;
                }
                return Answer::Unavailable("the issuer's keys could not be fetched yet");
            };
            if let Some(who) = self.cache.get(&name, now, set.generation) {
                self.counts.add(Verdict::Cached);
                return Answer::Known(who);
            }
            match jwt::verify(rules, &self.name, &set.keys, token, now) {
                Ok((who, expires)) => {
                    let who = Arc::new(who);
                    self.cache.put(name, who.clone(), expires, set.generation);
                    self.counts.add(Verdict::Ok);
                    return Answer::Known(who);
                }
                Err(Denied::UnknownKey) if !asked && source.renewed(set.generation).await => asked = true,
                Err(d) => return Answer::Denied(d),
            }
        }
    }

    fn api_key(&self, keys: &ApiKeys, key: &str, now: Timestamp) -> Answer {
        let name = self.cache.name(key.as_bytes());
        // Read before the record, so that what changes in between is checked again.
        let generation = keys.generation();
        if let Some(who) = self.cache.get(&name, now, generation) {
            self.counts.add(Verdict::Cached);
            return Answer::Known(who);
        }
        let (record, ends) = match keys.check(key, now) {
            Ok(found) => found,
            Err(d) => return Answer::Denied(d),
        };
        let scopes = record.scopes.iter().map(|s| s.as_str().into()).collect();
        let claims = json!({"id": record.id, "owner": record.owner});
        let who = Arc::new(Identity::new(&self.name, &record.owner, scopes, claims));
        self.cache.put(name, who.clone(), ends.unwrap_or(Timestamp(u64::MAX)), generation);
        self.counts.add(Verdict::Ok);
        Answer::Known(who)
    }

    async fn password(
        &self,
        users: &Arc<HashMap<String, String>>,
        like: &Arc<str>,
        turns: &Semaphore,
        (tries, client): (&Tries, IpAddr),
        pair: Vec<u8>,
    ) -> Answer {
        let Some(colon) = pair.iter().position(|b| *b == b':') else { return Answer::Denied(Denied::Password) };
        let Ok(user) = std::str::from_utf8(&pair[..colon]).map(str::to_owned) else {
            return Answer::Denied(Denied::Password);
        };
        let name = self.cache.name(&pair);
        // The users change with the configuration only, and then this provider is another.
        let forever = Timestamp(u64::MAX);
        if let Some(who) = self.cache.get(&name, Timestamp(0), 0) {
            self.counts.add(Verdict::Cached);
            return Answer::Known(who);
        }
        let a_try = match tries.begin(client) {
            Ok(a_try) => a_try,
            Err(wait) => return Answer::Limited(wait),
        };
        let Ok(Ok(_turn)) = tokio::time::timeout(limits::PASSWORD_WAIT, turns.acquire()).await else {
            a_try.forgive();
            return Answer::Unavailable("too many passwords are being checked");
        };
        let (users, like) = (users.clone(), like.clone());
        let asked = user.clone();
        // A hash takes tens of milliseconds: not on a thread that carries requests.
        let checked = tokio::task::spawn_blocking(move || {
            password::check(users.get(&asked).map(String::as_str), &like, &pair[colon + 1..])
        });
        match checked.await {
            Ok(Ok(())) => {
                a_try.forgive();
                let who = Arc::new(Identity::new(&self.name, &user, Vec::new(), json!({"sub": user})));
                self.cache.put(name, who.clone(), forever, 0);
                self.counts.add(Verdict::Ok);
                Answer::Known(who)
            }
            Ok(Err(d)) => Answer::Denied(d),
            Err(_) => {
                a_try.forgive();
                Answer::Unavailable("the password could not be checked")
            }
        }
    }

    /// The challenge of a 401 (RFC 9110 11.6.1, RFC 6750 3, RFC 7617 2).
    pub(super) fn challenge(&self, denied: Option<&Denied>, missing_scopes: Option<&str>) -> String {
        let name = &self.name;
        match (&self.spec.kind, &self.checks) {
            (ProviderKind::Basic { realm, .. }, _) => format!("Basic realm=\"{realm}\", charset=\"UTF-8\""),
            (_, Checks::ApiKey { place: At::Query(q), .. }) => {
                format!("ApiKey realm=\"{name}\", in=\"query\", name=\"{q}\"")
            }
            (_, Checks::ApiKey { place: At::Header(h), .. }) if *h != header::AUTHORIZATION => {
                format!("ApiKey realm=\"{name}\", in=\"header\", name=\"{h}\"")
            }
            _ => match (denied, missing_scopes) {
                (Some(d), _) => {
                    let said = d.to_string().replace(['"', '\\'], "'");
                    format!("Bearer realm=\"{name}\", error=\"invalid_token\", error_description=\"{said}\"")
                }
                (None, Some(s)) => format!("Bearer realm=\"{name}\", error=\"insufficient_scope\", scope=\"{s}\""),
                (None, None) => format!("Bearer realm=\"{name}\""),
            },
        }
    }

    /// Takes the credential out of a request.
    pub(super) fn strip(&self, head: &mut Parts) {
        match &self.checks {
            Checks::Jwt { header, .. } | Checks::ApiKey { place: At::Header(header), .. } => {
                head.headers.remove(header);
            }
            Checks::Basic { .. } => drop(head.headers.remove(header::AUTHORIZATION)),
            Checks::ApiKey { place: At::Query(name), .. } => {
                if let Some(uri) = without(&head.uri, name) {
                    head.uri = uri;
                }
            }
        }
    }
}

/// A credential in a request.
#[derive(Debug, PartialEq, Eq)]
enum Found<T> {
    Nothing,
    One(T),
    /// Which one counts would be a guess, and what is behind us might guess otherwise.
    Twice,
}

impl<T> Found<T> {
    fn map<U>(self, f: impl FnOnce(T) -> U) -> Found<U> {
        match self {
            Found::Nothing => Found::Nothing,
            Found::One(t) => Found::One(f(t)),
            Found::Twice => Found::Twice,
        }
    }
}

/// The credential of a field: of `Authorization` the one of the scheme Bearer, of another the value, with or without
/// the scheme. A value that is not ASCII is no credential of ours.
fn bearer<'h>(head: &'h Parts, name: &HeaderName) -> Found<&'h str> {
    let of_scheme = |v: &'h http::HeaderValue| {
        let v = v.to_str().ok()?;
        match scheme(v, "bearer") {
            None if *name != header::AUTHORIZATION => Some(v.trim()),
            found => found,
        }
    };
    one(head.headers.get_all(name).iter().filter_map(of_scheme))
}

/// User and password, with the colon between them.
fn basic(head: &Parts) -> Found<Vec<u8>> {
    let all = head.headers.get_all(header::AUTHORIZATION).iter();
    let pairs = all.filter_map(|v| scheme(v.to_str().ok()?, "basic"));
    one(pairs).map(|p| STANDARD.decode(p).unwrap_or_default())
}

/// What follows a scheme, whose letters may be of any case (RFC 9110 11.1).
fn scheme<'v>(value: &'v str, name: &str) -> Option<&'v str> {
    let (scheme, rest) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case(name).then(|| rest.trim())
}

fn one<T>(mut all: impl Iterator<Item = T>) -> Found<T> {
    match (all.next(), all.next()) {
        (None, _) => Found::Nothing,
        (Some(only), None) => Found::One(only),
        (Some(_), Some(_)) => Found::Twice,
    }
}

fn parameter<'q>(query: &'q str, name: &str) -> Found<Cow<'q, str>> {
    one(query.split('&').filter_map(|p| {
        let (n, v) = p.split_once('=')?;
        (decoded(n) == name).then(|| decoded(v))
    }))
}

fn decoded(text: &str) -> Cow<'_, str> {
    percent_encoding::percent_decode_str(text).decode_utf8_lossy()
}

/// The target without a query parameter; `None` when it has none of that name.
fn without(uri: &http::Uri, name: &str) -> Option<http::Uri> {
    let query = uri.query()?;
    let is = |p: &&str| decoded(p.split_once('=').map_or(*p, |(n, _)| n)) == name;
    if !query.split('&').any(|p| is(&p)) {
        return None;
    }
    let rest = query.split('&').filter(|p| !is(p)).collect::<Vec<_>>().join("&");
    let target = if rest.is_empty() { uri.path().to_owned() } else { format!("{}?{rest}", uri.path()) };
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(target.parse().ok()?);
    http::Uri::from_parts(parts).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(fields: &[(&str, &str)]) -> Parts {
        let r = fields.iter().fold(http::Request::get("/"), |r, (n, v)| r.header(*n, *v));
        r.body(()).unwrap().into_parts().0
    }

    #[test]
    fn a_bearer_token_is_found_once_or_not_at_all() {
        let auth = header::AUTHORIZATION;
        assert_eq!(bearer(&head(&[("authorization", "bEaReR  abc ")]), &auth), Found::One("abc"));
        assert_eq!(bearer(&head(&[("authorization", "Basic abc")]), &auth), Found::Nothing);
        assert_eq!(bearer(&head(&[("authorization", "Bearer a"), ("authorization", "Bearer b")]), &auth), Found::Twice);
        let own = HeaderName::from_static("x-token");
        assert_eq!(bearer(&head(&[("x-token", "abc")]), &own), Found::One("abc"));
        assert_eq!(bearer(&head(&[("x-token", "Bearer abc")]), &own), Found::One("abc"));
    }

    #[test]
    fn a_key_in_the_query_is_read_decoded_and_taken_out_alone() {
        assert_eq!(parameter("a=1&k%65y=x%5Fy&b", "key"), Found::One("x_y".into()));
        assert_eq!(parameter("key=1&key=2", "key"), Found::Twice);
        assert_eq!(parameter("keys=1", "key"), Found::Nothing);
        let out = |u: &str| without(&u.parse().unwrap(), "key").map(|u| u.to_string());
        assert_eq!(out("/a?x=1&k%65y=s&y=2").as_deref(), Some("/a?x=1&y=2"));
        assert_eq!(out("http://h/a?key=s").as_deref(), Some("http://h/a"));
        assert_eq!(out("/a?keys=s"), None);
    }
}
