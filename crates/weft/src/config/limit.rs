//! Rates and quotas: what they may say, and what they come to.

use weft_core::limits;
use weft_core::units::format_duration;
use weft_edge::spec::REQUEST_NAMES;
use weft_flow::expr::Expr;
use weft_policy::spec;

use super::expr::{Cel, complain};
use super::keys::policy::{self as keys, Policy};
use super::layer::Resolver;
use super::report::Mistake;
use super::source::At;
use super::value::{Cx, Switch};

/// What a rate and a quota have in common.
struct By<'k> {
    per: Option<(&'static str, Option<&'k At<keys::RatePer>>, keys::RatePer)>,
    header: Option<&'k At<String>>,
    key: Option<&'k At<Cel>>,
    prefix: &'k At<u32>,
    cost: Option<&'k At<Cel>>,
}

impl<'k> From<&'k keys::Rate> for By<'k> {
    fn from(r: &'k keys::Rate) -> Self {
        let per = r.per.as_ref().map(|p| ("per", Some(p), p.value));
        Self { per, header: r.header.as_ref(), key: r.key.as_ref(), prefix: &r.ipv6_prefix, cost: r.cost.as_ref() }
    }
}

impl<'k> From<&'k keys::Quota> for By<'k> {
    fn from(q: &'k keys::Quota) -> Self {
        let written = q.by.span.map(|_| &q.by);
        let per = Some(("by", written, q.by.value));
        Self { per, header: q.header.as_ref(), key: q.key.as_ref(), prefix: &q.ipv6_prefix, cost: q.cost.as_ref() }
    }
}

/// Checks the rates and quotas of one policy.
pub(super) fn check(p: &Policy, cx: &mut Cx<'_>) {
    if let Some(At { value: Switch::On(rates), span }) = &p.rate {
        many("rates", rates.0.len(), *span, cx);
        for r in rates.0.iter().map(|r| &r.value) {
            check_by(&r.into(), cx);
            if r.algorithm.value == keys::Algorithm::Sliding && r.burst.span.is_some() {
                let message = "'burst' has no meaning with 'algorithm: sliding'";
                cx.say(Mistake::new(r.burst.span, message).help("leave it out: the whole limit may come at once"));
            }
        }
        let named: Vec<_> = rates.0.iter().filter_map(|r| r.value.name.as_ref()).collect();
        twice("rates", &named, cx);
    }
    if let Some(At { value: Switch::On(quotas), span }) = &p.quota {
        many("quotas", quotas.0.len(), *span, cx);
        quotas.0.iter().for_each(|q| check_by(&(&q.value).into(), cx));
        let named: Vec<_> = quotas.0.iter().filter_map(|q| q.value.name.as_ref()).collect();
        twice("quotas", &named, cx);
    }
}

fn many(what: &str, n: usize, at: Option<super::source::Span>, cx: &mut Cx<'_>) {
    if n > limits::RATES {
        let message = format!("{n} {what} on one thing; there may be {}", limits::RATES);
        cx.say(Mistake::new(at, message).help("keep the tightest"));
    }
}

fn twice(what: &str, named: &[&At<weft_core::Name>], cx: &mut Cx<'_>) {
    for (i, name) in named.iter().enumerate() {
        if let Some(first) = named[..i].iter().find(|n| n.value == name.value) {
            let mistake = Mistake::new(name.span, format!("two {what} are named '{}'", name.value));
            cx.say(mistake.help("rename one of them").also(first.span, "first here"));
        }
    }
}

fn check_by(by: &By<'_>, cx: &mut Cx<'_>) {
    let word = by.per.and_then(|(word, written, _)| written.map(|w| (word, w.span)));
    let given: Vec<_> =
        [word, by.header.map(|h| ("header", h.span)), by.key.map(|k| ("key", k.span))].into_iter().flatten().collect();
    if let [first, second, ..] = given[..] {
        let message = format!("'{}' and '{}' both say what is counted apart", first.0, second.0);
        cx.say(Mistake::new(second.1, message).help("keep one of them").also(first.1, "the other one"));
    }
    if let Some(header) = by.header
        && http::HeaderName::try_from(&header.value).is_err()
    {
        let message = format!("'{}' is not the name of a header", header.value);
        cx.say(Mistake::new(header.span, message).help("use letters, digits and '-'"));
    }
    if !(1..=128).contains(&by.prefix.value) {
        let message = format!("an IPv6 address has no prefix of {} bits", by.prefix.value);
        cx.say(Mistake::new(by.prefix.span, message).help("write 1 to 128"));
    }
    for cel in [by.key, by.cost].into_iter().flatten() {
        let Some(span) = cel.span else { continue };
        for mistake in Expr::compile(&cel.value.text, &REQUEST_NAMES).err().unwrap_or_default() {
            complain(&mistake, &cel.value.text, span, cel.value.verbatim, cx);
        }
    }
}

impl Resolver<'_> {
    /// What rates come to.
    pub(super) fn rates(&mut self, all: &[At<keys::Rate>]) -> Vec<spec::Rate> {
        let mut out: Vec<spec::Rate> = Vec::with_capacity(all.len());
        for (i, k) in all.iter().map(|k| &k.value).enumerate() {
            let key = if all.len() == 1 { "rate".to_owned() } else { format!("rate[{i}]") };
            let super::value::PerTime(limit, period) = k.limit.value;
            let time = match format_duration(period).as_str() {
                "1s" => "s".to_owned(),
                "1m" => "m".to_owned(),
                "1h" => "h".to_owned(),
                "1d" => "d".to_owned(),
                other => other.to_owned(),
            };
            self.row(&format!("{key}.limit"), format!("{limit}/{time}"), k.limit.span);
            let (algorithm, word) = match k.algorithm.value {
                keys::Algorithm::Gcra => (spec::Algorithm::Gcra, "gcra"),
                keys::Algorithm::Sliding => (spec::Algorithm::Sliding, "sliding"),
            };
            self.row(&format!("{key}.algorithm"), word, k.algorithm.span);
            if algorithm == spec::Algorithm::Gcra {
                self.row(&format!("{key}.burst"), k.burst.value, k.burst.span);
            }
            let (per, word) = self.by(&key, "per", &k.into());
            let plain = if all.len() == 1 { "default" } else { word };
            let name = k
                .name
                .as_ref()
                .map_or_else(|| free(plain, |n| out.iter().any(|r| r.name == n)), |n| n.value.to_string());
            out.push(spec::Rate {
                name,
                limit,
                period,
                algorithm,
                burst: k.burst.value,
                per,
                ipv6_prefix: k.ipv6_prefix.value as u8,
                cost: k.cost.as_ref().map(|c| c.value.text.clone()),
                headers: k.headers.value,
            });
        }
        out
    }

    /// What quotas come to.
    pub(super) fn quotas(&mut self, all: &[At<keys::Quota>]) -> Vec<spec::Quota> {
        let mut out: Vec<spec::Quota> = Vec::with_capacity(all.len());
        for (i, k) in all.iter().map(|k| &k.value).enumerate() {
            let key = if all.len() == 1 { "quota".to_owned() } else { format!("quota[{i}]") };
            self.row(&format!("{key}.limit"), k.limit.value.0, k.limit.span);
            let (period, word) = match k.per.value {
                keys::Calendar::Day => (spec::Calendar::Day, "day"),
                keys::Calendar::Month => (spec::Calendar::Month, "month"),
            };
            self.row(&format!("{key}.per"), word, k.per.span);
            let (per, _) = self.by(&key, "by", &k.into());
            let name = k
                .name
                .as_ref()
                .map_or_else(|| free(word, |n| out.iter().any(|q| q.name == n)), |n| n.value.to_string());
            out.push(spec::Quota {
                name,
                limit: k.limit.value.0,
                period,
                per,
                ipv6_prefix: k.ipv6_prefix.value as u8,
                cost: k.cost.as_ref().map(|c| c.value.text.clone()),
                headers: k.headers.value,
            });
        }
        out
    }

    /// Whom it counts for, and a word for that.
    fn by(&mut self, key: &str, word: &str, by: &By<'_>) -> (spec::RatePer, &'static str) {
        let (per, name) = match (by.header, by.key, by.per) {
            (Some(h), ..) => {
                self.row(&format!("{key}.header"), &h.value, h.span);
                (spec::RatePer::Header(h.value.to_ascii_lowercase()), "header")
            }
            (_, Some(k), _) => {
                self.row(&format!("{key}.key"), &k.value.text, k.span);
                (spec::RatePer::Expression(k.value.text.clone()), "key")
            }
            (.., per) => {
                let (at, value) = per.map_or((None, keys::RatePer::All), |(_, at, value)| (at, value));
                let (per, name) = match value {
                    keys::RatePer::All => (spec::RatePer::All, "all"),
                    keys::RatePer::Principal => (spec::RatePer::Principal, "principal"),
                    keys::RatePer::Address => (spec::RatePer::Address, "address"),
                    keys::RatePer::ApiKey => (spec::RatePer::Header("x-api-key".to_owned()), "api_key"),
                };
                self.row(&format!("{key}.{word}"), name, at.and_then(|a| a.span));
                (per, name)
            }
        };
        if let Some(cost) = by.cost {
            self.row(&format!("{key}.cost"), &cost.value.text, cost.span);
        }
        (per, name)
    }
}

/// A name that is not taken.
fn free(word: &str, taken: impl Fn(&str) -> bool) -> String {
    if !taken(word) {
        return word.to_owned();
    }
    (2..).map(|n| format!("{word}-{n}")).find(|n| !taken(n)).expect("there are more numbers than rates")
}
