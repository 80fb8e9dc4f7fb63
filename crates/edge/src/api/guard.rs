//! Refuses calls a web page could have made: unknown `Host` (DNS rebinding), foreign `Origin`, cross-site fetches.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::header;

use super::problem::{Problem, code};

/// Host names an API listener answers for, besides `localhost` and IP addresses (which no rebinding can fake).
#[derive(Clone, Debug, Default)]
pub struct Hosts(Arc<[String]>);

impl Hosts {
    /// These names too; without port, case does not matter.
    pub fn new(names: impl IntoIterator<Item = String>) -> Self {
        Self(names.into_iter().map(|n| n.to_ascii_lowercase()).collect())
    }

    /// Whether a `Host` value (with or without port) is known.
    pub fn knows(&self, host: &str) -> bool {
        let name = without_port(host).to_ascii_lowercase();
        name == "localhost"
            || name.ends_with(".localhost")
            || name.parse::<IpAddr>().is_ok()
            || name.strip_prefix('[').and_then(|n| n.strip_suffix(']')).is_some_and(|n| n.parse::<IpAddr>().is_ok())
            || self.0.contains(&name)
    }
}

pub(super) async fn check(State(hosts): State<Hosts>, req: Request, next: Next) -> Response {
    match examine(&hosts, &req) {
        Ok(()) => next.run(req).await,
        Err(p) => p.into_response(),
    }
}

fn examine<B>(hosts: &Hosts, req: &http::Request<B>) -> Result<(), Problem> {
    let mut fields = req.headers().get_all(header::HOST).iter();
    let field = fields.next().map(|v| v.to_str().unwrap_or(""));
    if fields.next().is_some() {
        return Err(Problem::new(code::BAD_REQUEST, "the request has more than one Host"));
    }
    let Some(host) = req.uri().authority().map(|a| a.as_str()).or(field) else {
        return Err(Problem::new(code::BAD_REQUEST, "the request has no Host"));
    };
    if !hosts.knows(host) {
        return Err(Problem::new(code::MISDIRECTED, format!("this API does not answer for the host '{host}'")));
    }
    if let Some(origin) = req.headers().get(header::ORIGIN) {
        let same =
            origin.to_str().ok().and_then(|o| o.split_once("://")).is_some_and(|(_, o)| o.eq_ignore_ascii_case(host));
        if !same {
            return Err(Problem::new(code::FORBIDDEN_ORIGIN, format!("the origin {origin:?} is not this host")));
        }
    }
    // Browsers send it where they leave `Origin` out (a GET from another site's page).
    if req.headers().get("sec-fetch-site").is_some_and(|v| v == "cross-site")
        && req.headers().get("sec-fetch-mode").is_none_or(|m| m != "navigate")
    {
        return Err(Problem::new(code::FORBIDDEN_ORIGIN, "cross-site calls are refused"));
    }
    Ok(())
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !name.ends_with(':') => name,
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_localhost_are_known_and_foreign_names_are_not() {
        let h = Hosts::new(["weft.example.com".to_owned()]);
        for ok in [
            "localhost",
            "LOCALHOST:8081",
            "127.0.0.1:8081",
            "[::1]:8081",
            "[::1]",
            "weft.example.com:1",
            "a.localhost",
        ] {
            assert!(h.knows(ok), "{ok}");
        }
        for bad in ["evil.example", "localhost.evil.example:8081", "", "127.0.0.1.nip.io"] {
            assert!(!h.knows(bad), "{bad}");
        }
    }

    #[test]
    fn a_foreign_origin_is_refused_and_the_own_one_is_not() {
        let req = |name: &str, v: &str| {
            http::Request::get("/v1/queues").header("host", "localhost:8081").header(name, v).body(()).unwrap()
        };
        let h = Hosts::default();
        assert!(examine(&h, &req("origin", "http://localhost:8081")).is_ok());
        for (name, bad) in [
            ("origin", "http://evil.example"),
            ("origin", "null"),
            ("origin", "http://localhost:9"),
            ("sec-fetch-site", "cross-site"),
        ] {
            assert_eq!(examine(&h, &req(name, bad)).unwrap_err().code(), code::FORBIDDEN_ORIGIN, "{bad}");
        }
    }
}
