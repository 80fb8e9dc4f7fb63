//! A small client of the API: one connection, one request, one answer.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use weft_core::limits;

/// Time for an answer beyond what a call itself asks to wait.
const ANSWER: Duration = Duration::from_secs(30);
/// Bytes of an answer.
const ANSWER_BYTES: usize = 64 << 20;

/// Pages of one listing; what is left after them stays behind `next`.
const PAGES: usize = 100;

/// The API of one Weft.
pub(super) struct Client {
    authority: String,
    /// Whether answers are printed as they came.
    pub json: bool,
}

/// Why a command failed; printed as it is.
#[derive(Debug)]
pub(super) enum Error {
    /// The address is none.
    Address(String),
    /// Nothing listens.
    Connect {
        /// Where.
        authority: String,
        /// Why.
        reason: String,
    },
    /// The connection broke, or what answered is no Weft.
    Broken {
        /// Where.
        authority: String,
        /// Why.
        reason: String,
    },
    /// The API refused.
    Problem {
        /// HTTP status.
        status: u16,
        /// The problem.
        problem: Value,
    },
    /// The arguments make no sense together, or an input cannot be read.
    Input(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Address(a) => {
                writeln!(f, "weft: '{a}' is not the address of an API: write it like http://127.0.0.1:8081")
            }
            Error::Connect { authority, reason } => writeln!(
                f,
                "weft: nothing answers at {authority}: {reason}\n  Is weft up? It is started with `weft up`. If its API listens elsewhere, name it with --api URL or WEFT_API."
            ),
            Error::Broken { authority, reason } => {
                writeln!(
                    f,
                    "weft: {authority} did not answer as Weft does: {reason}\n  Is that the API's address, and not the gateway's?"
                )
            }
            Error::Problem { status, problem } => {
                let text = |key: &str| problem[key].as_str().filter(|t| !t.is_empty());
                writeln!(f, "weft: {} ({status})", text("title").unwrap_or("the API refused"))?;
                if let Some(detail) = text("detail") {
                    writeln!(f, "  {}", super::table::clean(detail))?;
                }
                match next(text("code").unwrap_or_default()) {
                    Some(next) => writeln!(f, "  {next}"),
                    None => Ok(()),
                }
            }
            Error::Input(e) => writeln!(f, "weft: {e}"),
        }
    }
}

/// What to do about a problem.
fn next(code: &str) -> Option<&'static str> {
    Some(match code {
        "not-found" => "See what there is: weft services, weft queues, weft topics, weft keys, weft sagas.",
        "owned-by-file" => "Change the configuration file; Weft reads it again when it changes.",
        "lease-stale" => "The lease ran out: receive the message again.",
        "misdirected-request" => "Call it by an IP address or localhost, or add the name to api.hosts.",
        "no-instance" => "See which instances are registered: weft services.",
        "store-unavailable" | "insufficient-storage" => "Look at the log of weft up and the space on its disk.",
        "overloaded" | "rate-limited" | "not-ready" | "breaker-open" | "bulkhead-full" => "Try again in a moment.",
        "internal" => "The log of weft up says more.",
        _ => return None,
    })
}

impl Client {
    /// Of the API that the options name.
    pub fn new(remote: &super::Remote) -> Result<Self, Error> {
        Self::at(&remote.api, remote.json)
    }

    fn at(url: &str, json: bool) -> Result<Self, Error> {
        let bad = || Error::Address(url.to_owned());
        let full = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
        let uri: Uri = full.parse().map_err(|_| bad())?;
        let authority = uri.authority().filter(|a| !a.as_str().contains('@')).ok_or_else(bad)?;
        if uri.scheme_str() != Some("http") || !matches!(uri.path(), "" | "/") {
            return Err(bad());
        }
        let authority = match authority.port() {
            Some(_) => authority.to_string(),
            None => format!("{authority}:8081"),
        };
        Ok(Self { authority, json })
    }

    /// GET.
    pub async fn get(&self, path: &str) -> Result<Value, Error> {
        self.call(Method::GET, path, None, &[], Duration::ZERO).await
    }

    /// GET of a whole listing, page by page.
    pub async fn all(&self, path: &str) -> Result<Value, Error> {
        let mut items = Vec::new();
        let mut answer = self.get(path).await?;
        for _ in 1..PAGES {
            let Some(cursor) = answer["next"].as_str().map(escape) else { break };
            items.append(answer["items"].as_array_mut().unwrap_or(&mut Vec::new()));
            answer = self.get(&format!("{path}?cursor={cursor}")).await?;
        }
        if let Some(last) = answer["items"].as_array_mut() {
            items.append(last);
            *last = items;
        }
        Ok(answer)
    }

    /// POST of JSON.
    pub async fn post(&self, path: &str, body: &Value, wait: Duration) -> Result<Value, Error> {
        let bytes = Bytes::from(body.to_string());
        self.call(Method::POST, path, Some(bytes), &[("content-type", "application/json")], wait).await
    }

    /// One request; its answer as JSON, or the problem.
    pub async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<Bytes>,
        headers: &[(&str, &str)],
        wait: Duration,
    ) -> Result<Value, Error> {
        let asked = self.exchange(method, path, body, headers);
        let (status, bytes) = tokio::time::timeout(ANSWER + wait, asked)
            .await
            .map_err(|_| self.broken(format!("no answer within {} s", (ANSWER + wait).as_secs())))??;
        if status.is_success() {
            if bytes.is_empty() {
                return Ok(Value::Null);
            }
            return serde_json::from_slice(&bytes).map_err(|e| self.broken(format!("not JSON: {e}")));
        }
        match serde_json::from_slice::<Value>(&bytes) {
            Ok(problem) if problem.get("title").is_some() => Err(Error::Problem { status: status.as_u16(), problem }),
            _ => Err(self.broken(format!("status {status}"))),
        }
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Option<Bytes>,
        headers: &[(&str, &str)],
    ) -> Result<(http::StatusCode, Bytes), Error> {
        let refused = |reason: String| Error::Connect { authority: self.authority.clone(), reason };
        let tcp = tokio::time::timeout(limits::CONNECT_TIMEOUT, TcpStream::connect(&self.authority))
            .await
            .map_err(|_| refused("no connection in time".to_owned()))?
            .map_err(|e| refused(e.to_string()))?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(tcp)).await.map_err(|e| self.broken(e.to_string()))?;
        let driver = tokio::spawn(connection);
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, &self.authority)
            .header(header::USER_AGENT, concat!("weft/", env!("CARGO_PKG_VERSION")));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request
            .body(Full::new(body.unwrap_or_default()))
            .map_err(|e| Error::Input(format!("this cannot be sent: {e}")))?;
        let answer = sender.send_request(request).await.map_err(|e| self.broken(e.to_string()))?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), ANSWER_BYTES).collect().await;
        driver.abort();
        Ok((status, body.map_err(|e| self.broken(e.to_string()))?.to_bytes()))
    }

    fn broken(&self, reason: String) -> Error {
        Error::Broken { authority: self.authority.clone(), reason }
    }
}

/// The whole answer as JSON text.
pub(super) fn pretty(answer: &Value) -> String {
    format!("{answer:#}\n")
}

/// A path from segments, each escaped.
pub(super) fn path(segments: &[&str]) -> String {
    segments.iter().fold(String::new(), |out, s| out + "/" + &escape(s))
}

/// Escapes what does not stand for itself in a path segment or a query value (RFC 3986 2.3).
pub(super) fn escape(text: &str) -> String {
    let mut out = String::new();
    for b in text.bytes() {
        if b.is_ascii_alphanumeric() || b"-._~".contains(&b) {
            out.push(char::from(b));
        } else {
            out += &format!("%{b:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn addresses_are_taken_as_people_write_them() {
        for (given, authority) in [
            ("http://127.0.0.1:8081", "127.0.0.1:8081"),
            ("http://localhost:9000/", "localhost:9000"),
            ("127.0.0.1:8081", "127.0.0.1:8081"),
            ("http://[::1]:8081", "[::1]:8081"),
            ("weft.local", "weft.local:8081"),
        ] {
            assert_eq!(Client::at(given, false).map(|c| c.authority).unwrap(), authority);
        }
        for bad in ["https://x:1", "http://", "http://a:1/path", "http://u@h:1", "", "http://a b"] {
            assert!(matches!(Client::at(bad, false), Err(Error::Address(_))), "{bad:?}");
        }
    }

    #[test]
    fn problems_say_title_detail_and_what_to_do_next() {
        let problem = json!({"title": "There is nothing here", "detail": "no queue named 'x'", "code": "not-found"});
        let text = Error::Problem { status: 404, problem }.to_string();
        assert_eq!(
            text,
            "weft: There is nothing here (404)\n  no queue named 'x'\n  See what there is: weft services, weft queues, weft topics, weft keys, weft sagas.\n"
        );
    }

    #[test]
    fn names_are_escaped_in_paths() {
        assert_eq!(path(&["v1", "queues", "a b/c"]), "/v1/queues/a%20b%2Fc");
    }
}
