//! What stands before a route: source addresses, any of its providers, scopes and a condition; and what of the caller
//! goes on to the target.

use std::net::IpAddr;
use std::sync::Arc;

use http::header::{self, HeaderName};
use http::request::Parts;
use http::{HeaderValue, Uri};
use weft_core::Deadline;
use weft_flow::expr::Expr;
use weft_policy::auth::{Denied, Identity};
use weft_policy::net;
use weft_policy::spec::Auth;

use super::counts::{Counts, Verdict};
use super::expression::{Caller, Field, NAMES, Seen};
use super::provider::{Answer, Provider};
use super::{Means, spec::ProviderKind};
use crate::api::problem::{Problem, code};
use crate::http::secrets::Secrets;

/// The guard of one route.
#[derive(Debug)]
pub(crate) struct Guard {
    route: Box<str>,
    policy: Auth,
    providers: Vec<Arc<Provider>>,
    require: Option<Expr>,
    headers: Vec<(HeaderName, Field)>,
    /// What of a query does not go on.
    secrets: Secrets,
    /// Of decisions that no provider made.
    counts: Counts,
}

impl Guard {
    /// Compiles; a provider that is not there is an error, never an open door.
    pub(crate) fn compile(
        route: &str,
        policy: &Auth,
        providers: &[Arc<Provider>],
        means: &Means,
    ) -> Result<Self, String> {
        let find = |n: &String| {
            let found = providers.iter().find(|p| *p.name == **n).cloned();
            found.ok_or_else(|| format!("route '{route}' asks for the provider '{n}', which is not declared"))
        };
        let one = |m: Vec<String>| format!("route '{route}': {}", m.join("; "));
        let mut headers = Vec::new();
        for (name, value) in &policy.headers {
            let name = HeaderName::try_from(name).map_err(|_| format!("'{name}' is not a header name"))?;
            headers.push((name, Field::compile(value).map_err(one)?));
        }
        let providers: Vec<_> = policy.providers.iter().map(find).collect::<Result<_, _>>()?;
        let stripped = providers.iter().filter(|_| !policy.forward);
        Ok(Self {
            route: route.into(),
            policy: policy.clone(),
            secrets: Secrets::new(stripped.filter_map(|p| p.parameter())),
            providers,
            require: policy.require.as_ref().map(|r| Expr::compile(r, NAMES)).transpose().map_err(one)?,
            headers,
            counts: Counts::new(&means.telemetry, "none"),
        })
    }

    /// The query parameters that are taken out of what goes on.
    pub(crate) fn secrets(&self) -> &Secrets {
        &self.secrets
    }

    /// Who asks, if it may: `None` is an anonymous caller. The request is given the fields that tell of the caller, and
    /// keeps its credential, by which limits may count, until [`strip`](Self::strip). `asked` is the target as it came.
    pub(crate) async fn admit(
        &self,
        from: Caller<'_>,
        head: &mut Parts,
        asked: &Uri,
        deadline: Deadline,
    ) -> Result<Option<Arc<Identity>>, Problem> {
        if !self.policy.nets.admit(from.client) {
            self.counts.add(Verdict::Address);
            let source = net::plain(from.client);
            return Err(Problem::new(code::FORBIDDEN, format!("callers from {source} are not let in here")));
        }
        let who = match deadline.instant() {
            None => self.authenticate(head, from.client).await?,
            Some(at) => tokio::time::timeout_at(at, self.authenticate(head, from.client)).await.map_err(|_| {
                let detail = "who is calling could not be checked before the deadline of the request";
                Problem::new(code::DEADLINE_EXCEEDED, detail)
            })??,
        };
        self.authorize(who.as_deref(), from, head, asked)?;
        self.prepare(who.as_deref(), from, head, asked);
        Ok(who)
    }

    async fn authenticate(&self, head: &Parts, client: IpAddr) -> Result<Option<Arc<Identity>>, Problem> {
        let mut denied: Option<(&Provider, Denied)> = None;
        let (mut unavailable, mut limited) = (None, None);
        for p in &self.providers {
            match p.check(head, client).await {
                Answer::Nothing => {}
                Answer::Known(who) => return Ok(Some(who)),
                Answer::Unavailable(why) => unavailable = Some((p, why)),
                Answer::Limited(wait) => limited = Some((p, wait)),
                // The most telling one: a token that is of another issuer's says nothing about this one.
                Answer::Denied(d) => match &denied {
                    Some((_, before)) if *before != Denied::Issuer => {}
                    _ => denied = Some((p, d)),
                },
            }
        }
        if let Some((p, wait)) = limited {
            p.counts.add(Verdict::Limited);
            let detail = format!("too many wrong passwords came from {}", net::plain(client));
            return Err(Problem::new(code::RATE_LIMITED, detail).with_retry_after(wait));
        }
        if let Some((p, why)) = unavailable {
            p.counts.add(Verdict::Unavailable);
            let p = Problem::new(code::AUTH_UNAVAILABLE, format!("provider '{}': {why}", p.name));
            return Err(p.with_retry_after(std::time::Duration::from_secs(1)));
        }
        if let Some((p, d)) = denied {
            p.counts.add(Verdict::of(d.word()));
            return Err(self.unauthenticated(d.to_string(), Some((p, &d))));
        }
        if self.providers.is_empty() || self.policy.optional {
            if self.policy.optional {
                self.counts.add(Verdict::Anonymous);
            }
            return Ok(None);
        }
        self.counts.add(Verdict::Missing);
        Err(self.unauthenticated("the request carries no credential".into(), None))
    }

    fn unauthenticated(&self, detail: String, denied: Option<(&Provider, &Denied)>) -> Problem {
        // RFC 6750 3: a request without a credential is told the scheme alone.
        let all = self.providers.iter().map(|p| {
            let of_this = denied.filter(|(by, _)| std::ptr::eq(*by, &**p)).map(|(_, d)| d);
            p.challenge(of_this, None)
        });
        challenged(Problem::new(code::UNAUTHENTICATED, detail), all)
    }

    fn authorize(&self, who: Option<&Identity>, from: Caller<'_>, head: &Parts, asked: &Uri) -> Result<(), Problem> {
        let refused = self.refusal(who, from, head, asked);
        let Some(p) = refused else { return Ok(()) };
        let by = who.and_then(|w| self.providers.iter().find(|p| p.name == w.provider));
        let counts = by.map_or(&self.counts, |p| &p.counts);
        if !self.policy.dry_run {
            counts.add(Verdict::Forbidden);
            return Err(p);
        }
        counts.add(Verdict::WouldForbid);
        let caller = who.map_or("anonymous", |w| &w.principal);
        tracing::info!(route = %self.route, caller, why = %p.detail(), "dry run: this request would be refused");
        Ok(())
    }

    fn refusal(&self, who: Option<&Identity>, from: Caller<'_>, head: &Parts, asked: &Uri) -> Option<Problem> {
        let missing = |s: &&String| !who.is_some_and(|w| w.has(s));
        let scopes: Vec<&str> = self.policy.scopes.iter().filter(missing).map(String::as_str).collect();
        if !scopes.is_empty() {
            let needs = self.policy.scopes.join(" ");
            let tokens = self.providers.iter().filter(|p| matches!(p.spec.kind, ProviderKind::Jwt { .. }));
            let p = Problem::new(code::FORBIDDEN, format!("the caller lacks the scope {}", scopes.join(" ")));
            return Some(challenged(p.with("scopes", scopes), tokens.map(|p| p.challenge(None, Some(&needs)))));
        }
        let require = self.require.as_ref()?;
        match require.eval_bool(&Seen { who, head, asked, from }) {
            Ok(true) => None,
            Ok(false) => Some(Problem::new(code::FORBIDDEN, "the caller may not do this here")),
            Err(e) => {
                // What cannot be judged is refused: most often a claim that the token does not have.
                tracing::debug!(route = %self.route, error = %e, "the condition could not be evaluated");
                Some(Problem::new(code::FORBIDDEN, "the caller may not do this here: the condition cannot be judged"))
            }
        }
    }

    /// What goes on: of the fields that tell of the caller only ours.
    fn prepare(&self, who: Option<&Identity>, from: Caller<'_>, head: &mut Parts, asked: &Uri) {
        let values = match (who, self.headers.is_empty()) {
            (Some(_), false) => {
                let seen = Seen { who, head, asked, from };
                self.headers.iter().map(|(_, f)| f.text(&seen)).collect()
            }
            _ => Vec::new(),
        };
        if !self.headers.is_empty() {
            self.remove_said(head);
        }
        for ((name, _), value) in self.headers.iter().zip(values) {
            // A claim with a line break in it is no field value, and is left out.
            if let Some(v) = value.and_then(|v| HeaderValue::try_from(v).ok()) {
                head.headers.insert(name, v);
            }
        }
    }

    /// Takes the credentials out of a request that goes on, unless they are to go with it.
    pub(crate) fn strip(&self, head: &mut Parts) {
        if !self.policy.forward {
            self.providers.iter().for_each(|p| p.strip(head));
        }
    }

    /// A target without the credentials in it.
    pub(crate) fn without_credentials(&self, asked: &Uri) -> Uri {
        let (mut head, ()) = http::Request::new(()).into_parts();
        head.uri = asked.clone();
        self.providers.iter().for_each(|p| p.strip(&mut head));
        head.uri
    }

    /// Removes what a caller says under our names. Servers that hand fields to programs as variables (CGI, WSGI) make
    /// `x_user` and `x-user` one.
    fn remove_said(&self, head: &mut Parts) {
        for (name, _) in &self.headers {
            head.headers.remove(name);
        }
        self.keep_ours(head);
        if head.headers.keys().any(|k| k.as_str().contains('_')) {
            let ours = |k: &&HeaderName| {
                let dashed = k.as_str().replace('_', "-");
                self.headers.iter().any(|(n, _)| n.as_str().replace('_', "-") == dashed)
            };
            let said: Vec<HeaderName> = head.headers.keys().filter(ours).cloned().collect();
            for name in said {
                head.headers.remove(name);
            }
        }
    }

    /// A caller that names our fields in `Connection` would have them taken out on the way to the target, as fields of
    /// its hop (RFC 9110 7.6.1).
    fn keep_ours(&self, head: &mut Parts) {
        let ours = |token: &str| self.headers.iter().any(|(n, _)| n.as_str().eq_ignore_ascii_case(token));
        if let header::Entry::Occupied(mut connection) = head.headers.entry(header::CONNECTION) {
            for said in connection.iter_mut() {
                if let Some(rest) = without(said, ours) {
                    *said = rest;
                }
            }
        }
    }
}

/// What `Connection` says of fields, without those that are ours.
fn without(said: &HeaderValue, ours: impl Fn(&str) -> bool) -> Option<HeaderValue> {
    let said = said.to_str().ok()?;
    let rest: Vec<&str> = said.split(',').map(str::trim).filter(|t| !ours(t)).collect();
    (rest.len() < said.split(',').count()).then(|| HeaderValue::try_from(rest.join(", ")).ok())?
}

fn challenged(p: Problem, challenges: impl Iterator<Item = String>) -> Problem {
    let all = challenges.collect::<Vec<_>>().join(", ");
    match HeaderValue::try_from(all) {
        Ok(v) if !v.is_empty() => p.with_header(header::WWW_AUTHENTICATE, v),
        _ => p,
    }
}
