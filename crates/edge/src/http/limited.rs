//! The rate limits and quotas of a route: whom a request counts for, what it costs, and what callers are told
//! (`RateLimit` and `RateLimit-Policy` of the IETF httpapi draft, `Retry-After`).

use std::borrow::Cow;
use std::fmt::Write as _;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use http::request::Parts;
use http::{HeaderName, HeaderValue};
use percent_encoding::percent_decode_str;
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};
use weft_core::{Context, Principal, SystemClock};
use weft_flow::expr::{Expr, Scope};
use weft_policy::rate::Ask;
use weft_policy::spec::{Calendar, Policy, RatePer};
use weft_policy::{Instance, Refused};
use weft_telemetry::metrics::Counter;
use weft_telemetry::{Telemetry, names};

use super::quota::{self, Quotas};
use super::record::Exchange;
use super::respond;
use crate::api::problem::{Problem, code};
use crate::spec::REQUEST_NAMES;

const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// The limits of one route, compiled.
#[derive(Debug)]
pub(crate) struct Limited {
    rates: Box<[Counted]>,
    quotas: Box<[(Counted, Counter)]>,
    /// What never changes; none when no limit is told.
    policy: Option<HeaderValue>,
}

/// How one limit counts.
#[derive(Debug)]
struct Counted {
    by: By,
    ipv6_prefix: u8,
    cost: Option<Expr>,
    /// `"name"` as it stands in the fields; none when it is not told.
    told: Option<Box<str>>,
}

#[derive(Debug)]
enum By {
    All,
    Principal,
    Address,
    Header(HeaderName),
    Expression(Expr),
}

/// What the quotas of a route counted of a request, and what is told of it.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    told: String,
    taken: Vec<quota::Taken>,
}

impl Taken {
    fn give_back(self, counts: &Quotas) {
        self.taken.into_iter().for_each(|t| counts.give_back(t));
    }
}

/// Whom a request counts for.
#[derive(Debug, Hash)]
pub(super) enum Caller<'r> {
    All,
    Name(&'r str),
    Address(IpAddr),
    Value(Cow<'r, [u8]>),
}

impl Limited {
    /// The limits of a policy; `None` when it has none. The error says which expression or header is wrong.
    pub(crate) fn compile(policy: &Policy, route: &str, telemetry: &Telemetry) -> Result<Option<Self>, String> {
        if policy.rate.is_empty() && policy.quota.is_empty() {
            return Ok(None);
        }
        let mut rates = Vec::new();
        let mut quotas = Vec::new();
        let mut text = String::new();
        for r in &policy.rate {
            rates.push(Counted::compile(&r.per, r.ipv6_prefix, r.cost.as_deref(), &r.name, r.headers)?);
            if r.headers {
                let (comma, window) = (if text.is_empty() { "" } else { ", " }, r.period.as_secs().max(1));
                let _ = write!(text, "{comma}\"{}\";q={};w={window}", r.name, r.limit);
            }
        }
        for q in &policy.quota {
            let refused = telemetry.metrics().counter(&names::QUOTA_REFUSED, &[("route", route), ("quota", &q.name)]);
            let counted = Counted::compile(&q.per, q.ipv6_prefix, q.cost.as_deref(), &q.name, q.headers)?;
            quotas.push((counted, refused));
            if q.headers {
                let comma = if text.is_empty() { "" } else { ", " };
                let _ = write!(text, "{comma}\"{}\";q={}", q.name, q.limit);
                // Months differ; the draft lets the window be left out.
                if q.period == Calendar::Day {
                    text.push_str(";w=86400");
                }
            }
        }
        let policy = if text.is_empty() { None } else { HeaderValue::try_from(text).ok() };
        Ok(Some(Self { rates: rates.into(), quotas: quotas.into(), policy }))
    }

    /// Whether the store may have to be asked.
    pub(crate) fn has_quotas(&self) -> bool {
        !self.quotas.is_empty()
    }

    /// Counts a request against every quota, or none. They come before the rates, because what they counted can be
    /// given back.
    pub(crate) async fn quotas(
        &self,
        counts: &Quotas,
        route: &str,
        policy: &Instance,
        request: &Asking<'_>,
        record: &mut Exchange,
    ) -> Result<Taken, Problem> {
        let mut all = Taken::default();
        for ((counted, refused), spec) in self.quotas.iter().zip(&policy.policy().quota) {
            let cost = u64::from(counted.cost(request));
            let caller = counted.caller(request).stored();
            match counts.take(route, spec, &caller, cost, &SystemClock).await {
                Ok(Ok((taken, standing))) => {
                    counted.tell(&mut all.told, standing.remaining, standing.reset);
                    all.taken.push(taken);
                }
                Ok(Err(standing)) => {
                    refused.inc();
                    all.give_back(counts);
                    let mut told = String::new();
                    counted.tell(&mut told, standing.remaining, standing.reset);
                    self.put(told, record);
                    let period = match spec.period {
                        Calendar::Day => "day",
                        Calendar::Month => "month",
                    };
                    let detail = format!("the quota '{}' of {} a {period} is used up", spec.name, spec.limit);
                    return Err(Problem::new(code::QUOTA_EXCEEDED, detail)
                        .with("limit", spec.name.clone())
                        .with_retry_after(standing.reset));
                }
                Err(p) => {
                    all.give_back(counts);
                    return Err(p);
                }
            }
        }
        Ok(all)
    }

    /// Counts a request against every rate, or none; then what the quotas took is given back. What callers are told goes
    /// on the answer, whatever it is.
    pub(crate) fn rates(
        &self,
        quotas: Option<Taken>,
        counts: &Quotas,
        policy: &Instance,
        request: &Asking<'_>,
        record: &mut Exchange,
    ) -> Result<(), Problem> {
        let quotas = quotas.unwrap_or_default();
        let mut told = quotas.told.clone();
        if !self.rates.is_empty() {
            let checked = policy.check_rates(
                |i, _| {
                    let counted = &self.rates[i];
                    let key = match counted.caller(request) {
                        Caller::All => 0,
                        caller => policy.rate().hash(i, &caller),
                    };
                    Ask { key, cost: counted.cost(request) }
                },
                |i, standing| self.rates[i].tell(&mut told, standing.remaining.into(), standing.reset),
            );
            if let Err(e) = checked {
                quotas.give_back(counts);
                told.clear();
                self.rates[e.index].tell(&mut told, e.standing.remaining.into(), e.standing.reset);
                self.put(told, record);
                let name = policy.policy().rate[e.index].name.clone();
                return Err(respond::refused(&Refused::RateLimited { retry_after: e.retry_after }).with("limit", name));
            }
        }
        self.put(told, record);
        Ok(())
    }

    fn put(&self, told: String, record: &mut Exchange) {
        if let Some(policy) = &self.policy
            && !told.is_empty()
            && let Ok(told) = HeaderValue::try_from(told)
        {
            record.field(RATE_LIMIT_POLICY, policy.clone());
            record.field(RATE_LIMIT, told);
        }
    }
}

impl Counted {
    fn compile(per: &RatePer, ipv6_prefix: u8, cost: Option<&str>, name: &str, told: bool) -> Result<Self, String> {
        let expression = |text: &str| Expr::compile(text, &REQUEST_NAMES).map_err(|e| e.join("; "));
        Ok(Self {
            by: match per {
                RatePer::All => By::All,
                RatePer::Principal => By::Principal,
                RatePer::Address => By::Address,
                RatePer::Header(h) => By::Header(h.parse().map_err(|_| format!("'{h}' is not the name of a header"))?),
                RatePer::Expression(e) => By::Expression(expression(e)?),
            },
            ipv6_prefix,
            cost: cost.map(expression).transpose()?,
            told: told.then(|| format!("\"{name}\"").into()),
        })
    }

    fn caller<'r>(&self, r: &Asking<'r>) -> Caller<'r> {
        match &self.by {
            By::All => return Caller::All,
            By::Principal => {
                if let Principal::Named(name) = &r.ctx.principal {
                    return Caller::Name(name);
                }
            }
            By::Address => {}
            By::Header(name) => {
                if let Some(value) = r.head.headers.get(name) {
                    return Caller::Value(value.as_bytes().into());
                }
            }
            By::Expression(e) => {
                if let Ok(text) = e.eval_text(r) {
                    return Caller::Value(text.into_bytes().into());
                }
            }
        }
        Caller::Address(network(r.client, self.ipv6_prefix))
    }

    /// A cost that cannot be told is 1, a negative one 0.
    fn cost(&self, r: &Asking<'_>) -> u32 {
        let Some(cost) = &self.cost else { return 1 };
        match cost.eval(r) {
            Ok(Value::Number(n)) => n.as_f64().map_or(1, |n| n.ceil().clamp(0.0, f64::from(u32::MAX)) as u32),
            _ => 1,
        }
    }

    /// Adds `"name";r=7;t=12`.
    fn tell(&self, to: &mut String, remaining: u64, reset: Duration) {
        let Some(name) = &self.told else { return };
        if !to.is_empty() {
            to.push_str(", ");
        }
        let seconds = reset.as_secs() + u64::from(reset.subsec_nanos() > 0);
        let _ = write!(to, "{name};r={remaining};t={seconds}");
    }
}

impl Caller<'_> {
    /// As it is stored: values, which may be secrets, by their hash.
    fn stored(&self) -> Vec<u8> {
        let (kind, bytes): (u8, Vec<u8>) = match self {
            Caller::All => (b'*', Vec::new()),
            Caller::Name(name) => (b'p', name.as_bytes().to_vec()),
            Caller::Address(ip) => (b'a', ip.to_string().into_bytes()),
            Caller::Value(v) => (b'v', Sha256::digest(v)[..16].to_vec()),
        };
        let mut out = vec![kind];
        out.extend(bytes);
        out
    }
}

/// The network that an address belongs to: of IPv6 the first bits, because one caller has all the rest.
fn network(ip: IpAddr, prefix: u8) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(prefix.min(128))).unwrap_or(0);
            IpAddr::V6(Ipv6Addr::from(u128::from(v6) & mask))
        }
        v4 => v4,
    }
}

/// A request as expressions see it: `request`, `principal`, `address`.
pub(crate) struct Asking<'r> {
    pub(super) ctx: &'r Context,
    pub(super) client: IpAddr,
    pub(super) head: &'r Parts,
}

impl Scope for Asking<'_> {
    fn value(&self, name: &str) -> Option<Arc<Value>> {
        Some(Arc::new(match name {
            "principal" => match &self.ctx.principal {
                Principal::Named(n) => json!(**n),
                Principal::Anonymous => json!(""),
            },
            "address" => json!(self.client.to_canonical().to_string()),
            "request" => {
                let h = &self.head.headers;
                let text = |v: &HeaderValue| String::from_utf8_lossy(v.as_bytes()).into_owned();
                // The first of several with one name.
                let headers: Map<_, _> =
                    h.keys().filter_map(|k| Some((k.as_str().to_owned(), text(h.get(k)?).into()))).collect();
                let query: Map<_, _> = self.head.uri.query().map(pairs).unwrap_or_default();
                json!({
                    "method": self.head.method.as_str(),
                    "path": self.head.uri.path(),
                    "headers": headers,
                    "query": query,
                })
            }
            _ => return None,
        }))
    }
}

/// The parameters of a query, decoded; the first of several with one name.
fn pairs(query: &str) -> Map<String, Value> {
    let decoded = |s: &str| percent_decode_str(&s.replace('+', " ")).decode_utf8_lossy().into_owned();
    let mut out = Map::new();
    for (k, v) in query.split('&').filter(|p| !p.is_empty()).map(|p| p.split_once('=').unwrap_or((p, ""))) {
        out.entry(decoded(k)).or_insert_with(|| decoded(v).into());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_policy::spec::Rate;

    #[test]
    fn of_ipv6_a_network_is_one_caller_and_a_mapped_v4_address_is_v4() {
        let net = |ip: &str, p| network(ip.parse().unwrap(), p).to_string();
        assert_eq!(net("2001:db8:1:2:3:4:5:6", 64), "2001:db8:1:2::");
        assert_eq!(net("2001:db8:1:2:3:4:5:6", 128), "2001:db8:1:2:3:4:5:6");
        assert_eq!(net("2001:db8:1:2:3:4:5:6", 0), "::");
        assert_eq!(net("::ffff:10.0.0.1", 64), "10.0.0.1");
        assert_eq!(net("10.0.0.1", 64), "10.0.0.1");
    }

    #[test]
    fn callers_are_told_apart_by_what_the_limit_says() {
        let ctx = Context { principal: Principal::Named("ann".into()), ..Context::root() };
        let client = "10.0.0.1".parse().unwrap();
        let (head, ()) = http::Request::get("/a?tenant=t%201&n=3").header("x-key", "k").body(()).unwrap().into_parts();
        let asking = Asking { ctx: &ctx, client, head: &head };
        let stored = |per: RatePer| {
            let c = Counted::compile(&per, 64, None, "x", true).unwrap().caller(&asking);
            match c {
                Caller::Value(v) => String::from_utf8(v.into_owned()).unwrap(),
                other => String::from_utf8(other.stored()).unwrap(),
            }
        };
        assert_eq!(stored(RatePer::All), "*");
        assert_eq!(stored(RatePer::Principal), "pann");
        assert_eq!(stored(RatePer::Address), "a10.0.0.1");
        assert_eq!(stored(RatePer::Header("x-key".into())), "k");
        assert_eq!(stored(RatePer::Header("x-other".into())), "a10.0.0.1");
        assert_eq!(stored(RatePer::Expression("request.query.tenant + principal".into())), "t 1ann");
        assert_eq!(stored(RatePer::Expression("request.headers['none']".into())), "a10.0.0.1");
        let cost = |text: &str| Counted::compile(&RatePer::All, 64, Some(text), "x", true).unwrap().cost(&asking);
        assert_eq!((cost("int(request.query.n)"), cost("request.method == 'GET' ? 0 : 5")), (3, 0));
        assert_eq!((cost("request.query.none"), cost("-4"), cost("1.2")), (1, 0, 2));
        assert!(Counted::compile(&RatePer::Expression("requst.path".into()), 64, None, "x", true).is_err());
    }

    #[test]
    fn the_policy_field_lists_every_limit_that_is_told() {
        let telemetry = Telemetry::new();
        let rate = |name: &str, headers| Rate { name: name.into(), limit: 5, headers, ..Rate::default() };
        let policy = Policy { rate: vec![rate("a", true), rate("b", false), rate("c", true)], ..Policy::default() };
        let limited = Limited::compile(&policy, "r", &telemetry).unwrap().unwrap();
        assert_eq!(limited.policy.unwrap(), "\"a\";q=5;w=1, \"c\";q=5;w=1");
        assert!(Limited::compile(&Policy::default(), "r", &telemetry).unwrap().is_none());
    }
}
