//! What these tests share: a small upstream, raw bytes, patience.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::Path;
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse;
use axum::routing::any;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use weft_tests::Result;

/// An HTTP service inside the test: `/echo` answers what it got, `/status/{n}` that status, `/slow/{ms}` late.
pub struct Upstream {
    /// Where it listens.
    pub address: SocketAddr,
    hits: Arc<AtomicU64>,
}

impl Upstream {
    /// Starts one on a free port; it ends with the test's runtime.
    pub async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let hits = Arc::new(AtomicU64::new(0));
        let count = hits.clone();
        let app = Router::new()
            .route("/echo", any(echo))
            .route("/status/{code}", any(status))
            .route("/slow/{ms}", any(slow))
            .layer(axum::middleware::from_fn(move |request, next: axum::middleware::Next| {
                count.fetch_add(1, Ordering::SeqCst);
                next.run(request)
            }));
        tokio::spawn(axum::serve(listener, app).into_future());
        Ok(Self { address, hits })
    }

    /// Requests it has seen.
    pub fn hits(&self) -> u64 {
        self.hits.load(Ordering::SeqCst)
    }
}

async fn echo(method: axum::http::Method, headers: HeaderMap, body: axum::body::Bytes) -> impl IntoResponse {
    let headers: serde_json::Map<String, Value> = headers
        .iter()
        .map(|(k, v)| (k.to_string(), Value::String(String::from_utf8_lossy(v.as_bytes()).into_owned())))
        .collect();
    axum::Json(json!({"method": method.as_str(), "headers": headers, "body": String::from_utf8_lossy(&body)}))
}

async fn status(Path(code): Path<u16>) -> impl IntoResponse {
    StatusCode::from_u16(code).unwrap_or(StatusCode::IM_A_TEAPOT)
}

async fn slow(Path(ms): Path<u64>) -> impl IntoResponse {
    tokio::time::sleep(Duration::from_millis(ms)).await;
    "late"
}

/// A configuration with one service `up` at the upstream, routed at `/`, and more YAML behind it.
pub fn routed(upstream: SocketAddr, more: &str) -> String {
    format!(
        "services:\n  up: {{ http: [\"{upstream}\"] }}\ngateway:\n  routes:\n    - {{ name: all, match: {{ path: \"/**\" }}, to: {{ service: up }} }}\n{more}"
    )
}

/// Sends bytes as they are and reads until the other side closes or is silent for a while.
pub async fn raw(to: SocketAddr, bytes: &[u8]) -> Result<String> {
    let mut stream = TcpStream::connect(to).await?;
    // The other side may answer and close before everything is written.
    let _ = stream.write_all(bytes).await;
    let mut out = Vec::new();
    let mut buffer = [0u8; 4096];
    while let Ok(Ok(n)) = tokio::time::timeout(Duration::from_secs(3), stream.read(&mut buffer)).await {
        if n == 0 {
            break;
        }
        out.extend_from_slice(&buffer[..n]);
        if out.windows(4).any(|w| w == b"\r\n\r\n") && out.len() > 64 * 1024 {
            break;
        }
    }
    Ok(String::from_utf8_lossy(&out).into_owned())
}

/// Repeats a probe until it answers something; fails the test after ten seconds.
pub async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, probe: impl Fn() -> F) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = probe().await {
            return found;
        }
        assert!(begun.elapsed() < Duration::from_secs(10), "not within ten seconds: {what}");
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
}

/// The first YAML example of a reference page, with one address in it replaced.
pub fn page_example(page: &str, address: &str, by: SocketAddr) -> String {
    let file = weft_tests::process::workspace().join("docs/reference").join(page);
    let text = std::fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    let example = text.split("```yaml\n").nth(1).and_then(|t| t.split("```").next());
    let example = example.unwrap_or_else(|| panic!("{page} has no example"));
    assert!(example.contains(address), "the example of {page} does not call {address}");
    example.replace(address, &by.to_string())
}
