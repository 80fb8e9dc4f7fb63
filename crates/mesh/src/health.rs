//! Active checks of one endpoint.

use std::future::poll_fn;
use std::sync::Arc;

use bytes::{BufMut as _, Bytes, BytesMut};
use http::header::{CONTENT_TYPE, TE};
use http::{Request, StatusCode, Version};
use http_body_util::{BodyExt as _, Limited};
use prost::Message;

use crate::body::Body;
use crate::connect;
use crate::endpoint::Endpoint;
use crate::observe::Meter;
use crate::outbound::Overlay;
use crate::spec::{HealthCheck, HealthKind};

/// Bytes of an answer to a check.
const ANSWER_BYTES: usize = 64 << 10;

/// grpc.health.v1.HealthCheckRequest.
#[derive(Clone, PartialEq, Message)]
struct CheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

/// grpc.health.v1.HealthCheckResponse; SERVING is 1.
#[derive(Clone, PartialEq, Message)]
struct CheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// Counts results in a row and says when health changes. Pure.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Streak {
    healthy: bool,
    /// Results in a row that contradict `healthy`.
    against: u32,
}

impl Streak {
    pub(crate) fn healthy() -> Self {
        Self { healthy: true, against: 0 }
    }

    /// Takes a result; `Some` when health changed with it.
    pub(crate) fn apply(&mut self, check: &HealthCheck, passed: bool) -> Option<bool> {
        if passed == self.healthy {
            self.against = 0;
            return None;
        }
        self.against += 1;
        let needed = if passed { check.healthy_after } else { check.unhealthy_after };
        if self.against < needed {
            return None;
        }
        *self = Self { healthy: passed, against: 0 };
        Some(passed)
    }
}

/// Checks for ever; `changed` is told when the endpoint's health changes. An endpoint counts as healthy until checks say
/// otherwise.
pub(crate) async fn run(endpoint: Arc<Endpoint>, check: HealthCheck, meter: Arc<Meter>, changed: impl Fn(bool)) {
    let mut streak = Streak::healthy();
    loop {
        let result = match tokio::time::timeout(check.timeout, once(&endpoint, &check.kind, &meter)).await {
            Ok(result) => result,
            Err(_) => Err(format!("no answer within {:?}", check.timeout)),
        };
        if let Some(healthy) = streak.apply(&check, result.is_ok()) {
            match &result {
                Ok(()) => tracing::info!(service = %endpoint.service, instance = %endpoint.address, "healthy again"),
                Err(reason) => {
                    tracing::warn!(service = %endpoint.service, instance = %endpoint.address, reason, "unhealthy");
                }
            }
            endpoint.set_healthy(healthy);
            changed(healthy);
        }
        // Checks of many instances, and of many Wefts, spread out.
        tokio::time::sleep(check.interval.mul_f64(rand::random_range(0.9..1.1))).await;
    }
}

/// One check.
async fn once(endpoint: &Endpoint, kind: &HealthKind, meter: &Meter) -> Result<(), String> {
    match kind {
        HealthKind::Tcp => connect::probe(endpoint).await.map_err(|e| e.to_string()),
        HealthKind::Http(path) => {
            let h2 = endpoint.wanted.protocol.is_h2();
            let builder = Request::get(uri(endpoint, path, h2));
            let request = builder.body(Body::Empty).map_err(|e| e.to_string())?;
            let status = if h2 {
                over_h2(endpoint, meter, request).await?.status()
            } else {
                over_h1(endpoint, meter, request).await?
            };
            if status.is_success() { Ok(()) } else { Err(format!("answered {status}")) }
        }
        HealthKind::Grpc(service) => {
            let message = CheckRequest { service: service.clone() };
            let mut framed = BytesMut::with_capacity(5 + message.encoded_len());
            framed.put_u8(0);
            framed.put_u32(message.encoded_len() as u32);
            message.encode(&mut framed).map_err(|e| e.to_string())?;
            let request = Request::post(uri(endpoint, "/grpc.health.v1.Health/Check", true))
                .header(CONTENT_TYPE, "application/grpc")
                .header(TE, "trailers")
                .body(Body::Bytes(framed.freeze()))
                .map_err(|e| e.to_string())?;
            let response = over_h2(endpoint, meter, request).await?;
            let in_head = crate::answer::grpc_status(response.headers());
            let body = Limited::new(response.into_body(), ANSWER_BYTES).collect().await.map_err(|e| e.to_string())?;
            let code = in_head.or_else(|| body.trailers().and_then(crate::answer::grpc_status));
            match code {
                Some(0) => serving(&body.to_bytes()),
                Some(code) => Err(format!("answered gRPC status {code}")),
                None => Err("answered without a gRPC status".into()),
            }
        }
    }
}

fn serving(framed: &Bytes) -> Result<(), String> {
    let message = framed.get(5..).ok_or("answered without a message")?;
    match CheckResponse::decode(message).map_err(|e| e.to_string())?.status {
        1 => Ok(()),
        other => Err(format!("answered serving status {other}")),
    }
}

fn uri(endpoint: &Endpoint, path: &str, h2: bool) -> String {
    let scheme = if endpoint.wanted.tls.is_some() { "https" } else { "http" };
    if h2 { format!("{scheme}://{}{path}", endpoint.authority) } else { path.to_owned() }
}

/// Sends on a connection of its own, so that a check also proves that new connections are taken.
async fn over_h1(endpoint: &Endpoint, meter: &Meter, request: Request<Body>) -> Result<StatusCode, String> {
    let mut connection = connect::h1(endpoint, meter).await.map_err(|e| e.to_string())?;
    let (head, body) = request.into_parts();
    let overlay = Overlay { traceparent: None, baggage: None, grpc_timeout: None };
    connection.begin(&head, &overlay, &endpoint.host, body);
    let answer = poll_fn(|cx| connection.poll_head(cx)).await;
    answer.map(|parts| parts.status).map_err(|e| e.reason().to_string())
}

/// The same over HTTP/2.
async fn over_h2(
    endpoint: &Endpoint,
    meter: &Meter,
    mut request: Request<Body>,
) -> Result<http::Response<hyper::body::Incoming>, String> {
    *request.version_mut() = Version::HTTP_2;
    let mut connection = connect::h2(endpoint, meter).await.map_err(|e| e.to_string())?;
    connection.sender.send_request(request).await.map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn health_changes_after_so_many_results_in_a_row() {
        let check = HealthCheck { unhealthy_after: 2, healthy_after: 3, ..HealthCheck::default() };
        let mut s = Streak::healthy();
        let seen: Vec<_> = [false, true, false, false, false, true, true, false, true, true, true, true]
            .iter()
            .map(|passed| s.apply(&check, *passed))
            .collect();
        let mut expected = vec![None; 12];
        expected[3] = Some(false);
        expected[10] = Some(true);
        assert_eq!(seen, expected);
    }
}
