//! What a browser sends reaches a gRPC service, and the answer is what a browser can read.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use prost::Message as _;

use crate::grpc::{Text, world};
use crate::support::*;

fn message(text: &str) -> Vec<u8> {
    let inside = Text { text: text.into() }.encode_to_vec();
    let mut out = vec![0];
    out.extend_from_slice(&(inside.len() as u32).to_be_bytes());
    out.extend_from_slice(&inside);
    out
}

/// The messages of a body, and the trailers in its last frame.
fn read(mut body: &[u8]) -> (Vec<String>, String) {
    let (mut messages, mut trailers) = (Vec::new(), String::new());
    while !body.is_empty() {
        let n = u32::from_be_bytes(body[1..5].try_into().unwrap()) as usize;
        let inside = &body[5..5 + n];
        match body[0] {
            0 => messages.push(Text::decode(inside).unwrap().text),
            0x80 => trailers = String::from_utf8(inside.to_vec()).unwrap(),
            other => panic!("a flag of {other}"),
        }
        body = &body[5 + n..];
    }
    (messages, trailers)
}

/// Base64 in pieces, each padded on its own.
fn plain(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for group in text.chunks(4) {
        out.extend(BASE64_STANDARD.decode(group).unwrap());
    }
    out
}

async fn call(w: &World, method: &str, content: &str, body: Vec<u8>) -> Response<Incoming> {
    let r = Request::post(format!("/test.Echo/{method}")).header("host", "h").header("content-type", content);
    w.send(r.body(Full::new(Bytes::from(body))).unwrap()).await
}

#[tokio::test]
async fn calls_in_both_forms_are_answered_in_their_form_with_trailers_as_the_last_frame() {
    let (w, _channel) = world(|r| r.protocols.grpc_web = true).await;
    for (content, answered) in [
        ("application/grpc-web", "application/grpc-web+proto"),
        ("application/grpc-web+proto", "application/grpc-web+proto"),
        ("application/grpc-web-text", "application/grpc-web-text+proto"),
        ("application/grpc-web-text+proto", "application/grpc-web-text+proto"),
    ] {
        let text = content.contains("text");
        let coded = |m: Vec<u8>| if text { BASE64_STANDARD.encode(m).into_bytes() } else { m };
        for (method, told, expected) in
            [("Say", "hello", vec!["hello".to_owned()]), ("Count", "3", ["0", "1", "2"].map(str::to_owned).to_vec())]
        {
            let answer = call(&w, method, content, coded(message(told))).await;
            assert_eq!(answer.status(), 200);
            assert_eq!(answer.headers()["content-type"], answered);
            let body = answer.into_body().collect().await.unwrap();
            assert!(body.trailers().is_none(), "a browser could not read them");
            let body = body.to_bytes();
            let (messages, trailers) = read(&if text { plain(&body) } else { body.to_vec() });
            assert_eq!(messages, expected, "{content}");
            assert!(trailers.contains("grpc-status: 0\r\n"), "{trailers}");
            assert_eq!(trailers.contains("counted: 100\r\n"), method == "Count", "{trailers}");
        }
    }
}

#[tokio::test]
async fn errors_of_the_service_and_of_the_gateway_are_grpc_web() {
    let (w, _channel) = world(|r| {
        r.protocols.grpc_web = true;
        r.policy.deadline = Some(std::time::Duration::from_millis(100));
    })
    .await;
    for (told, status) in [("code 9", "9"), ("hang", "4")] {
        let answer = call(&w, "Say", "application/grpc-web+proto", message(told)).await;
        assert_eq!(answer.headers()["content-type"], "application/grpc-web+proto");
        let in_head = answer.headers().get("grpc-status").cloned();
        let (_, trailers) = read(&answer.into_body().collect().await.unwrap().to_bytes());
        let said = in_head.is_some_and(|s| s == status) || trailers.contains(&format!("grpc-status: {status}\r\n"));
        assert!(said, "{told}: {trailers}");
    }
    let answer = call(&w, "Say", "application/grpc-web-text", b"!!!!".to_vec()).await;
    let status = answer.headers()["grpc-status"].to_str().unwrap();
    assert!(["3", "14"].contains(&status), "what is no base64 is refused, or breaks off the call: {status}");
}

#[tokio::test]
async fn a_route_to_another_service_leaves_grpc_web_alone() {
    let w = one(echo().await, |_| {}).await;
    let answer = call(&w, "Say", "application/grpc-web", message("x")).await;
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    assert!(String::from_utf8_lossy(&body).contains("content-type: application/grpc-web\n"), "{body:?}");
}
