//! Routes that answer by themselves: redirects (RFC 9110 15.4) and fixed answers.

use bytes::Bytes;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::{Response, StatusCode, header};

use super::Bad;
use super::fields::{Facts, Text};
use crate::api::problem::{Problem, code};
use crate::http::body::Body;
use crate::route::Pattern;
use crate::spec::{Redirect, Target};

#[derive(Debug)]
pub(super) enum Fixed {
    Redirect { to: Redirect, status: StatusCode, path: Option<Text>, query: Option<Text> },
    Respond { status: StatusCode, headers: HeaderMap, body: Bytes },
}

pub(super) fn compile(to: &Target, pattern: &Pattern, bad: &mut Vec<Bad>) -> Option<Fixed> {
    match to {
        Target::Redirect(r) => {
            let mut text = |t: &Option<String>, path: bool| {
                let t = t.as_ref()?;
                let wrong = (path && !t.starts_with('/')).then(|| "must start with '/'".to_owned());
                match wrong.map_or_else(|| Text::parse(t, pattern), Err) {
                    Ok(parsed) => Some(parsed),
                    Err(e) => {
                        bad.push(("redirect", t.clone(), e));
                        None
                    }
                }
            };
            let (path, query) = (text(&r.path, true), text(&r.query, false));
            let status =
                StatusCode::from_u16(r.status).ok().filter(|s| [301, 302, 303, 307, 308].contains(&s.as_u16()));
            if status.is_none() {
                let reason = "is not a redirect: write one of 301, 302, 303, 307 and 308".to_owned();
                bad.push(("redirect", r.status.to_string(), reason));
            }
            if let Some(h) = &r.host
                && (h.parse::<http::uri::Authority>().is_err() || h.contains('@'))
            {
                bad.push(("redirect", h.clone(), "is not a host".to_owned()));
            }
            Some(Fixed::Redirect { to: r.clone(), status: status?, path, query })
        }
        Target::Respond(r) => {
            let mut headers = HeaderMap::new();
            for (name, value) in &r.headers {
                match (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_str(value)) {
                    (Ok(n), Ok(v)) if n != header::CONTENT_LENGTH && n != header::TRANSFER_ENCODING => {
                        headers.append(n, v);
                    }
                    _ => bad.push(("respond", name.clone(), "is not a header field of an answer".to_owned())),
                }
            }
            if !r.body.is_empty() {
                let plain = HeaderValue::from_static("text/plain; charset=utf-8");
                headers.entry(header::CONTENT_TYPE).or_insert(plain);
            }
            Some(Fixed::Respond { status: r.status, headers, body: Bytes::from(r.body.clone()) })
        }
        _ => None,
    }
}

impl Fixed {
    pub(super) fn sees_facts(&self) -> bool {
        matches!(self, Fixed::Redirect { .. })
    }

    pub(super) fn answer(&self, pattern: &Pattern, facts: Option<&Facts>) -> Result<Response<Body>, Problem> {
        match self {
            Fixed::Respond { status, headers, body } => {
                let mut r = Response::new(Body::from(body.clone()));
                *r.status_mut() = *status;
                r.headers_mut().clone_from(headers);
                Ok(r)
            }
            Fixed::Redirect { to, status, path, query } => {
                let facts = facts.expect("a redirect asked for the facts: compiled with it");
                let at = location(to, path.as_ref(), query.as_ref(), pattern, facts);
                let mut r = Response::new(Body::from(Bytes::new()));
                *r.status_mut() = *status;
                let at = HeaderValue::try_from(at)
                    .map_err(|e| Problem::new(code::INVALID_PATH, format!("the place to go to: {e}")))?;
                r.headers_mut().insert(header::LOCATION, at);
                Ok(r)
            }
        }
    }
}

fn location(to: &Redirect, path: Option<&Text>, query: Option<&Text>, pattern: &Pattern, f: &Facts) -> String {
    let mut out = String::new();
    if to.scheme.is_some() || to.host.is_some() || to.port.is_some() {
        let asked = if f.https { "https" } else { "http" };
        let scheme = to.scheme.as_deref().unwrap_or(asked);
        let (name, port) = match f.host.rsplit_once(':') {
            Some((n, p)) if p.bytes().all(|b| b.is_ascii_digit()) => (n, p.parse().ok()),
            _ => (f.host.as_str(), None),
        };
        // Another host or scheme has its own default port.
        let kept = port.filter(|_| to.host.is_none() && scheme == asked);
        let port = to.port.or(kept).filter(|p| *p != if scheme == "https" { 443 } else { 80 });
        out.push_str(&format!("{scheme}://{}", to.host.as_deref().unwrap_or(name)));
        if let Some(p) = port {
            out.push_str(&format!(":{p}"));
        }
    }
    let filled = path.map(|t| t.fill(pattern, Some(f)));
    let to_path = filled.as_deref().unwrap_or(&f.path);
    // `//evil.example` would be another host (RFC 3986 4.2), and browsers take `\` for `/`.
    if out.is_empty() && (to_path.starts_with("//") || to_path.starts_with("/\\")) {
        out.push('/');
        out.push_str(to_path.trim_start_matches(['/', '\\']));
    } else {
        out.push_str(to_path);
    }
    let query = match query {
        Some(t) => Some(t.fill(pattern, Some(f))),
        None => f.query.clone(),
    };
    if let Some(q) = query.filter(|q| !q.is_empty()) {
        out.push(if out.contains('?') { '&' } else { '?' });
        out.push_str(&q);
    }
    out
}
