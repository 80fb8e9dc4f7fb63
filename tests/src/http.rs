//! One HTTP/1.1 request on a connection of its own: slow, simple, and nothing is shared between tests.

use std::net::SocketAddr;
use std::time::Duration;

use ::http::{HeaderMap, Method, StatusCode};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

use crate::Result;

/// How long a request may take before the test gives up on it.
const PATIENCE: Duration = Duration::from_secs(70);

/// A request about to be sent.
pub struct Request {
    to: SocketAddr,
    parts: ::http::request::Builder,
    body: Bytes,
}

/// What came back.
#[derive(Debug)]
pub struct Answer {
    /// Status.
    pub status: StatusCode,
    /// Header fields.
    pub headers: HeaderMap,
    /// The whole body.
    pub body: Bytes,
}

impl Request {
    /// A request to an address; `path` with its query.
    pub fn new(method: Method, to: SocketAddr, path: &str) -> Self {
        let parts = ::http::Request::builder().method(method).uri(path).header("host", to.to_string());
        Self { to, parts, body: Bytes::new() }
    }

    /// GET.
    pub fn get(to: SocketAddr, path: &str) -> Self {
        Self::new(Method::GET, to, path)
    }

    /// POST.
    pub fn post(to: SocketAddr, path: &str) -> Self {
        Self::new(Method::POST, to, path)
    }

    /// PUT.
    pub fn put(to: SocketAddr, path: &str) -> Self {
        Self::new(Method::PUT, to, path)
    }

    /// Adds a header field.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.parts = self.parts.header(name, value);
        self
    }

    /// Sets a JSON body.
    pub fn json(self, body: &Value) -> Self {
        self.header("content-type", "application/json").body(body.to_string())
    }

    /// Sets the body.
    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }

    /// Sends it and collects the answer.
    pub async fn send(self) -> Result<Answer> {
        tokio::time::timeout(PATIENCE, self.exchange()).await.map_err(|_| "no answer in 70 s")?
    }

    async fn exchange(self) -> Result<Answer> {
        let io = TokioIo::new(TcpStream::connect(self.to).await?);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await?;
        let connection = tokio::spawn(connection);
        let answer = sender.send_request(self.parts.body(Full::new(self.body))?).await?;
        let (parts, body) = answer.into_parts();
        let body = body.collect().await?.to_bytes();
        connection.abort();
        Ok(Answer { status: parts.status, headers: parts.headers, body })
    }
}

impl Answer {
    /// The body as JSON; null when it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// A header field as text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|v| v.to_str().ok())
    }

    /// This answer if it has the status, else an error that shows it.
    pub fn expect(self, status: u16) -> Result<Self> {
        if self.status.as_u16() == status {
            return Ok(self);
        }
        Err(format!("expected {status}, got {}: {}", self.status, self.text()).into())
    }
}
