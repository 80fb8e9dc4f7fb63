//! Cross-origin requests as the Fetch standard has them (3.2, CORS protocol): preflights are answered here, answers get
//! the fields that let a page read them. A service behind such a route needs to know nothing of it.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use http::{Method, Response, StatusCode};
use regex::Regex;

use super::Bad;
use crate::api::problem::{Problem, code};
use crate::http::body::Body;
use crate::spec;

#[derive(Debug)]
pub(crate) struct Cors {
    any: bool,
    exact: Vec<String>,
    /// What stands before and after the one label or more of a `*`.
    wildcard: Vec<(String, String)>,
    regex: Vec<Regex>,
    methods: Option<HeaderValue>,
    headers: Option<HeaderValue>,
    expose: Option<HeaderValue>,
    max_age: Option<HeaderValue>,
    credentials: bool,
}

/// The method a preflight asks for.
pub(crate) fn asks(head: &Parts) -> Option<Method> {
    if head.method != Method::OPTIONS || !head.headers.contains_key(header::ORIGIN) {
        return None;
    }
    Method::from_bytes(head.headers.get(header::ACCESS_CONTROL_REQUEST_METHOD)?.as_bytes()).ok()
}

impl Cors {
    pub(super) fn compile(c: &spec::Cors, route_methods: &[String], bad: &mut Vec<Bad>) -> Option<Self> {
        let mut out = Self {
            any: false,
            exact: Vec::new(),
            wildcard: Vec::new(),
            regex: Vec::new(),
            methods: None,
            headers: list(&c.headers, bad),
            expose: list(&c.expose, bad),
            max_age: c.max_age.map(|d| HeaderValue::from(d.as_secs())),
            credentials: c.credentials,
        };
        let methods = if c.methods.is_empty() { route_methods } else { &c.methods };
        out.methods = list(methods, bad);
        for o in &c.origins {
            if o == "*" {
                out.any = true;
            } else if let Some(re) = o.strip_prefix('~') {
                match Regex::new(&format!("^(?:{re})$")) {
                    Ok(re) => out.regex.push(re),
                    Err(e) => {
                        let text = e.to_string();
                        let last = text.lines().last().unwrap_or_default().trim();
                        bad.push(("cors", o.clone(), format!("is not a regular expression: {last}")));
                    }
                }
            } else if !o.split_once("://").is_some_and(|(s, h)| !s.is_empty() && !h.is_empty() && !h.contains('/')) {
                let reason = "is not an origin: write it like https://shop.example, without a path".to_owned();
                bad.push(("cors", o.clone(), reason));
            } else if let Some((before, after)) = o.split_once('*') {
                if !before.ends_with("://") || !after.starts_with('.') || after.contains('*') {
                    let reason = "has its '*' in the wrong place: write it like https://*.shop.example".to_owned();
                    bad.push(("cors", o.clone(), reason));
                }
                out.wildcard.push((before.to_ascii_lowercase(), after.to_ascii_lowercase()));
            } else {
                out.exact.push(o.to_ascii_lowercase());
            }
        }
        if out.any && out.credentials {
            // Fetch 3.2.5: `*` is never enough for credentials, and reflecting every origin would let every site act as
            // the user.
            let reason = "does not go with credentials: name the origins".to_owned();
            bad.push(("cors", "*".to_owned(), reason));
        }
        bad.is_empty().then_some(out)
    }

    fn allows(&self, origin: &HeaderValue) -> bool {
        if self.any {
            return true;
        }
        let Ok(o) = origin.to_str() else { return false };
        self.exact.iter().any(|e| e == o)
            || self.wildcard.iter().any(|(before, after)| {
                let label = o.strip_prefix(before.as_str()).and_then(|x| x.strip_suffix(after.as_str()));
                label.is_some_and(|l| {
                    !l.is_empty() && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.')
                })
            })
            || self.regex.iter().any(|re| re.is_match(o))
    }

    /// Puts the fields on an answer in place of the service's own.
    pub(super) fn answer(&self, origin: Option<&HeaderValue>, h: &mut HeaderMap) {
        for name in [
            header::ACCESS_CONTROL_ALLOW_ORIGIN,
            header::ACCESS_CONTROL_ALLOW_CREDENTIALS,
            header::ACCESS_CONTROL_EXPOSE_HEADERS,
        ] {
            h.remove(name);
        }
        let always_same = self.any && !self.credentials;
        if !always_same {
            // Also where there is no Origin, or a cache would give that answer to one that has.
            vary(h, header::ORIGIN);
        }
        let Some(origin) = origin.filter(|o| self.allows(o)) else { return };
        let value = if always_same { HeaderValue::from_static("*") } else { origin.clone() };
        h.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, value);
        if self.credentials {
            h.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        }
        if let Some(e) = &self.expose {
            h.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, e.clone());
        }
    }

    /// The answer to a preflight, but for what [`answer`](Self::answer) adds.
    pub(crate) fn preflight(&self, head: &Parts) -> Result<Response<Body>, Problem> {
        let origin = head.headers.get(header::ORIGIN);
        if !origin.is_some_and(|o| self.allows(o)) {
            let detail = format!("pages of {} may not call this route", origin.map_or("no origin".into(), said));
            return Err(Problem::new(code::FORBIDDEN_ORIGIN, detail));
        }
        let mut r = Response::new(Body::from(bytes::Bytes::new()));
        *r.status_mut() = StatusCode::NO_CONTENT;
        let h = r.headers_mut();
        let asked = |name: HeaderName| head.headers.get(name).cloned();
        if let Some(m) = self.methods.clone().or_else(|| asked(header::ACCESS_CONTROL_REQUEST_METHOD)) {
            h.insert(header::ACCESS_CONTROL_ALLOW_METHODS, m);
        }
        if let Some(f) = self.headers.clone().or_else(|| asked(header::ACCESS_CONTROL_REQUEST_HEADERS)) {
            h.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, f);
        }
        if let Some(age) = &self.max_age {
            h.insert(header::ACCESS_CONTROL_MAX_AGE, age.clone());
        }
        vary(h, header::ACCESS_CONTROL_REQUEST_METHOD);
        vary(h, header::ACCESS_CONTROL_REQUEST_HEADERS);
        Ok(r)
    }
}

fn said(v: &HeaderValue) -> String {
    String::from_utf8_lossy(v.as_bytes()).into_owned()
}

fn list(words: &[String], bad: &mut Vec<Bad>) -> Option<HeaderValue> {
    if words.is_empty() {
        return None;
    }
    for w in words.iter().filter(|w| HeaderName::from_bytes(w.as_bytes()).is_err()) {
        bad.push(("cors", w.clone(), "is neither a method nor a header field name".to_owned()));
    }
    HeaderValue::from_str(&words.join(", ")).ok()
}

/// Adds a name to `Vary` unless it is there.
pub(super) fn vary(h: &mut HeaderMap, name: HeaderName) {
    let there = h.get_all(header::VARY).iter().any(|v| {
        v.to_str().is_ok_and(|v| v.split(',').any(|n| n.trim() == "*" || n.trim().eq_ignore_ascii_case(name.as_str())))
    });
    if !there {
        h.append(header::VARY, HeaderValue::from_name(name));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cors(origins: &[&str], credentials: bool) -> Result<Cors, Vec<Bad>> {
        let mut bad = Vec::new();
        let origins = origins.iter().map(|o| (*o).to_owned()).collect();
        let made = Cors::compile(&spec::Cors { origins, credentials, ..Default::default() }, &[], &mut bad);
        made.ok_or(bad)
    }

    #[test]
    fn origins_are_exact_or_a_subdomain_or_a_whole_match() {
        let c = cors(&["https://shop.test", "https://*.shop.test", "~https://pr-[0-9]+[.]test"], true).unwrap();
        for (origin, want) in [
            ("https://shop.test", true),
            ("https://a.shop.test", true),
            ("https://a.b.shop.test", true),
            ("https://.shop.test", true),
            ("https://evilshop.test", false),
            ("https://evil.test/.shop.test", false),
            ("https://a.shop.test.evil.test", false),
            ("http://shop.test", false),
            ("https://shop.test:444", false),
            ("https://pr-12.test", true),
            ("https://pr-12.test.evil", false),
            ("null", false),
        ] {
            let want = want && origin != "https://.shop.test";
            assert_eq!(c.allows(&HeaderValue::from_static(origin)), want, "{origin}");
        }
    }

    #[test]
    fn a_star_does_not_go_with_credentials_and_origins_have_no_path() {
        assert!(cors(&["*"], true).is_err());
        assert!(cors(&["*"], false).unwrap().allows(&HeaderValue::from_static("null")));
        for bad in ["shop.test", "https://shop.test/", "https://a*.test", "~("] {
            assert!(cors(&[bad], false).is_err(), "{bad}");
        }
    }
}
