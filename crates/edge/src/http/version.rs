//! Versions of an API on one route: where a request says which it means, what is answered when that is unknown or gone,
//! and what answers of an old one say (`Deprecation`, RFC 9745; `Sunset`, RFC 8594; `Link`, RFC 8288 and RFC 5829).

use std::sync::Arc;

use http::request::Parts;
use http::{HeaderName, HeaderValue, StatusCode, Uri, header};
use percent_encoding::percent_decode_str;
use weft_core::{Clock as _, Principal, SystemClock};
use weft_policy::version::{self, Refusal, Version};

use super::record::Exchange;
use super::secrets::Secrets;
use crate::api::problem::{Problem, code};
use crate::gateway::Route;
use crate::route::{Pattern, Segment, Template, normal};
use crate::spec::{Successor, VersionFrom, VersionsSpec};
use crate::versions::{Usage, Used};

const DEPRECATION: HeaderName = HeaderName::from_static("deprecation");
const SUNSET: HeaderName = HeaderName::from_static("sunset");

/// The versions of one route, compiled.
#[derive(Debug)]
pub(crate) struct Versions {
    from: Vec<From>,
    default: Option<usize>,
    known: Vec<Version>,
    served: Vec<Served>,
    /// The fields that decide, for caches.
    vary: Option<HeaderValue>,
    /// What of the query is a credential, and does not go on.
    secrets: Secrets,
}

#[derive(Debug)]
enum From {
    /// The segment of the path at this place.
    Path(usize),
    Header(HeaderName),
    /// A media type without its version: `application/vnd.shop`.
    Accept(String),
    Query(String),
}

/// What serves a version.
#[derive(Debug)]
pub(crate) struct Served {
    /// The same route with this version's target and mappings.
    pub(crate) route: Arc<Route>,
    name: Arc<str>,
    rewrite: Option<(Template, Pattern)>,
    fields: Vec<(HeaderName, HeaderValue)>,
    successor: Option<Successor>,
    used: Arc<Used>,
}

impl Versions {
    /// Compiles; `route` makes the route of a version from its index.
    pub(crate) fn compile(
        spec: &VersionsSpec,
        path: &str,
        name: &str,
        usage: &Usage,
        mut route: impl FnMut(usize) -> Result<Arc<Route>, String>,
    ) -> Result<Self, String> {
        let pattern = Pattern::parse(path)?;
        let mut from = Vec::new();
        let mut vary = Vec::new();
        for f in &spec.from {
            from.push(match f {
                VersionFrom::Path => From::Path(place(&pattern).ok_or("the match's path captures no {version}")?),
                VersionFrom::Header(h) => {
                    let h: HeaderName = h.parse().map_err(|_| format!("'{h}' is not the name of a header"))?;
                    vary.push(h.as_str().to_owned());
                    From::Header(h)
                }
                VersionFrom::Accept(t) => {
                    vary.push("accept".to_owned());
                    From::Accept(t.to_ascii_lowercase())
                }
                VersionFrom::Query(q) => From::Query(q.clone()),
            });
        }
        let default = match &spec.default {
            Some(d) => Some(find(spec, d).ok_or_else(|| format!("the default '{d}' is not among the versions"))?),
            None => None,
        };
        let mut served = Vec::new();
        for (i, v) in spec.known.iter().enumerate() {
            let rewrite = match &v.path {
                Some(t) => Some((Template::parse(t, &pattern)?, pattern.clone())),
                None => None,
            };
            let mut fields = Vec::new();
            if let Some(at) = v.version.deprecated {
                let value = HeaderValue::try_from(format!("@{}", at.0 / 1000)).expect("a number is a field value");
                fields.push((DEPRECATION, value));
            }
            if let Some(at) = v.version.sunset {
                fields.push((SUNSET, HeaderValue::try_from(at.http_date()).expect("a date is a field value")));
            }
            if let Some(link) = &v.link {
                for (has, rel) in [(v.version.deprecated, "deprecation"), (v.version.sunset, "sunset")] {
                    if has.is_some() {
                        fields.push((header::LINK, linked(link, rel)?));
                    }
                }
            }
            if let Some(Successor::Link(link)) = &v.successor {
                fields.push((header::LINK, linked(link, "successor-version")?));
            }
            served.push(Served {
                route: route(i)?,
                name: v.version.name.as_str().into(),
                rewrite,
                fields,
                successor: v.successor.clone(),
                used: usage.of(name, &v.version),
            });
        }
        let vary = if vary.is_empty() { None } else { HeaderValue::try_from(vary.join(", ")).ok() };
        let known = spec.known.iter().map(|v| v.version.clone()).collect();
        Ok(Self { from, default, known, served, vary, secrets: Secrets::default() })
    }

    /// Keeps credentials out of what is sent and of links.
    pub(crate) fn hide(&mut self, secrets: Secrets) {
        self.secrets = secrets;
    }

    /// The versions, each with its use.
    pub(crate) fn used(&self) -> impl Iterator<Item = (&str, &Arc<Used>)> {
        self.served.iter().map(|s| (&*s.name, &s.used))
    }

    /// The version a request means. What answers are to say goes on this one; where it sends, into the head. `asked` is
    /// what the client asked for.
    pub(crate) fn choose(
        &self,
        asked: &Uri,
        principal: &Principal,
        head: &mut Parts,
        record: &mut Exchange,
    ) -> Result<(&Arc<Route>, Arc<str>), Problem> {
        if let Some(vary) = &self.vary {
            record.field(header::VARY, vary.clone());
        }
        let said = self.from.iter().find_map(|f| f.read(asked, head).map(|v| (f, v)));
        let named = said.as_ref().map(|(_, v)| v.as_str());
        match version::select(&self.known, self.default, named, || SystemClock.now()) {
            Ok(i) => {
                let served = &self.served[i];
                self.announce(i, asked, record);
                served.used.count(principal);
                record.version(served.name.clone());
                if let Some((template, pattern)) = &served.rewrite {
                    let path = normal(asked.path()).unwrap_or(asked.path().into());
                    // With the credential, by which limits may count, until the guard takes it out.
                    let query = head.uri.query().map(str::to_owned);
                    head.uri = super::exchange::sent_to(&head.uri, &template.fill(pattern, &path), query.as_deref())?;
                }
                Ok((&served.route, served.name.clone()))
            }
            Err(Refusal::Missing) => {
                let ways: Vec<_> = self.from.iter().map(From::spoken).collect();
                let detail = format!("say which version you mean, {}; there are {}", ways.join(" or "), self.names());
                Err(self.naming(Problem::new(code::VERSION_MISSING, detail)))
            }
            Err(Refusal::Unknown) => {
                let (from, value) = said.expect("only what was said is unknown");
                let detail = format!("there is no version '{value}'; there are {}", self.names());
                let status = match from {
                    From::Path(_) => StatusCode::NOT_FOUND,
                    From::Accept(_) => StatusCode::NOT_ACCEPTABLE,
                    From::Header(_) | From::Query(_) => StatusCode::BAD_REQUEST,
                };
                Err(self.naming(Problem::new(code::VERSION_UNKNOWN, detail).with_status(status)))
            }
            Err(Refusal::Gone(i)) => {
                let served = &self.served[i];
                self.announce(i, asked, record);
                served.used.count_gone();
                let until = self.known[i].sunset.map(|t| t.to_string()).unwrap_or_default();
                let mut detail = format!("version {} was served until {until}", served.name);
                let mut p = Problem::new(code::VERSION_GONE, "");
                match &served.successor {
                    Some(Successor::Version(v)) => {
                        detail.push_str(&format!("; use version {v}"));
                        p = p.with("successor", v.clone());
                        if let Some(path) = self.path_of(v, asked) {
                            detail.push_str(&format!(" at {path}"));
                        }
                    }
                    Some(Successor::Link(l)) => {
                        detail.push_str(&format!("; go to {l}"));
                        p = p.with("successor", l.clone());
                    }
                    None => detail.push_str(&format!("; there are {}", self.names())),
                }
                Err(self.naming(p.with_detail(detail)))
            }
        }
    }

    /// Adds what an old version says of itself.
    fn announce(&self, i: usize, asked: &Uri, record: &mut Exchange) {
        for (name, value) in &self.served[i].fields {
            record.field(name.clone(), value.clone());
        }
        if let Some(Successor::Version(v)) = &self.served[i].successor
            && let Some(path) = self.path_of(v, asked)
            && let Ok(link) = linked(&path, "successor-version")
        {
            record.field(header::LINK, link);
        }
    }

    /// What was asked for in another version, where the path or the query says the version.
    fn path_of(&self, version: &str, asked: &Uri) -> Option<String> {
        let query = asked.query().and_then(|q| self.secrets.without(q)).map(|q| format!("?{q}")).unwrap_or_default();
        self.from.iter().find_map(|f| match f {
            From::Path(place) => {
                let mut segments: Vec<_> = asked.path().split('/').map(str::to_owned).collect();
                let segment = segments.get_mut(place + 1)?;
                let v = if segment.starts_with(['v', 'V']) { "v" } else { "" };
                *segment = format!("{v}{}", version.trim_start_matches(['v', 'V']));
                Some(format!("{}{query}", segments.join("/")))
            }
            From::Query(name) => {
                asked.query()?;
                f.read_query(asked, name)?;
                Some(format!("{}?{name}={version}", asked.path()))
            }
            _ => None,
        })
    }

    fn names(&self) -> String {
        self.known.iter().map(|v| v.name.as_str()).collect::<Vec<_>>().join(", ")
    }

    fn naming(&self, p: Problem) -> Problem {
        p.with("versions", self.known.iter().map(|v| v.name.clone()).collect::<Vec<_>>())
    }
}

impl From {
    fn read(&self, asked: &Uri, head: &Parts) -> Option<String> {
        match self {
            From::Path(place) => asked.path().split('/').nth(place + 1).map(str::to_owned),
            From::Header(name) => head.headers.get(name)?.to_str().ok().map(|v| v.trim().to_owned()),
            From::Accept(of) => {
                let all = head.headers.get_all(header::ACCEPT).iter().filter_map(|v| v.to_str().ok());
                accepted(all, of)
            }
            From::Query(name) => self.read_query(asked, name),
        }
    }

    fn read_query(&self, asked: &Uri, name: &str) -> Option<String> {
        let mut pairs = asked.query()?.split('&').map(|p| p.split_once('=').unwrap_or((p, "")));
        let decoded = |text| percent_decode_str(text).decode_utf8_lossy();
        let (_, value) = pairs.find(|(k, _)| decoded(k) == name)?;
        Some(decoded(value).into_owned())
    }

    fn spoken(&self) -> String {
        match self {
            From::Path(_) => "in the path".to_owned(),
            From::Header(h) => format!("in the header '{h}'"),
            From::Accept(t) => format!("in 'Accept: {t}.v1+json'"),
            From::Query(q) => format!("in the query parameter '{q}'"),
        }
    }
}

/// The version that the best of the accepted media types names: `application/vnd.shop.v2+json`, or a parameter
/// `version=2` of `application/vnd.shop+json`, `application/json` or `*/*`.
fn accepted<'h>(fields: impl Iterator<Item = &'h str>, of: &str) -> Option<String> {
    let mut best: Option<(f32, String)> = None;
    for range in fields.flat_map(|f| f.split(',')) {
        let mut parts = range.split(';').map(str::trim);
        let essence = parts.next().unwrap_or("").to_ascii_lowercase();
        let (mut quality, mut parameter) = (1.0, None);
        for (name, value) in parts.filter_map(|p| p.split_once('=')) {
            match name.trim().to_ascii_lowercase().as_str() {
                "q" => quality = value.trim().parse().unwrap_or(0.0),
                "version" | "v" => parameter = Some(value.trim().trim_matches('"').to_owned()),
                _ => {}
            }
        }
        let base = essence.split('+').next().unwrap_or("");
        let named = base.strip_prefix(of).and_then(|rest| rest.strip_prefix(".v")).map(str::to_owned);
        let ours = base == of || matches!(essence.as_str(), "application/json" | "application/*" | "*/*");
        let version = named.filter(|v| !v.is_empty()).or(parameter.filter(|_| ours));
        if let Some(version) = version
            && quality > 0.0
            && best.as_ref().is_none_or(|(q, _)| quality > *q)
        {
            best = Some((quality, version));
        }
    }
    best.map(|(_, v)| v)
}

/// Where `{version}` stands among the segments of a path.
pub(crate) fn place(pattern: &Pattern) -> Option<usize> {
    let Pattern::Segments { segments, .. } = pattern else { return None };
    segments.iter().position(|s| matches!(s, Segment::Param(p) if p == "version"))
}

fn find(spec: &VersionsSpec, name: &str) -> Option<usize> {
    spec.known.iter().position(|v| version::same(&v.version.name, name))
}

fn linked(to: &str, rel: &str) -> Result<HeaderValue, String> {
    let bad = to.contains(['<', '>', '"']) || to.contains(char::is_whitespace);
    let value = HeaderValue::try_from(format!("<{to}>; rel=\"{rel}\"")).ok().filter(|_| !bad);
    value.ok_or_else(|| format!("'{to}' cannot stand in a Link field"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_accepted_media_type_that_names_a_version_decides() {
        let of = |fields: &[&str]| accepted(fields.iter().copied(), "application/vnd.shop");
        assert_eq!(of(&["application/vnd.shop.v2+json"]).as_deref(), Some("2"));
        assert_eq!(
            of(&["application/vnd.shop.v1+json;q=0.5, application/vnd.shop.v2+json;q=0.9"]).as_deref(),
            Some("2")
        );
        assert_eq!(of(&["text/html, application/json; version=\"3\""]).as_deref(), Some("3"));
        assert_eq!(of(&["text/html", "Application/Vnd.Shop+json;Version=1"]).as_deref(), Some("1"));
        assert_eq!(of(&["*/*;v=2024-05-01"]).as_deref(), Some("2024-05-01"));
        for nothing in [
            "application/json",
            "application/vnd.other.v2+json",
            "text/html;version=5",
            "application/vnd.shop.v1+json;q=0",
            "application/vnd.shop.v+json",
            "",
        ] {
            assert_eq!(of(&[nothing]), None, "{nothing}");
        }
    }

    #[test]
    fn links_hold_no_character_that_ends_them() {
        assert_eq!(linked("/v2/x?y=1", "sunset").unwrap(), "</v2/x?y=1>; rel=\"sunset\"");
        for bad in ["/a>b", "/a b", "/a\"b", "/a\nb"] {
            assert!(linked(bad, "sunset").is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_query_names_the_version_however_it_is_spelled() {
        let v = From::Query("v".into());
        let of = |uri: &str| v.read_query(&uri.parse().unwrap(), "v");
        assert_eq!(of("/?a=1&v=2&v=3").as_deref(), Some("2"));
        assert_eq!(of("/?%76=2").as_deref(), Some("2"));
        assert_eq!(of("/?%76=%32").as_deref(), Some("2"));
        assert_eq!(of("/?w=2"), None);
    }
}
