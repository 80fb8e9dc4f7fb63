//! Upgraded connections: WebSocket over HTTP/1.1 and HTTP/2 with a real client and server, and other protocols.

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use http::{Method, Request, StatusCode};
use http_body_util::Full;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request as Asked, Response as Answer};
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role};
use tokio_tungstenite::tungstenite::{Error, Message};
use weft_edge::spec::Idle;
use weft_policy::spec::Bulkhead;

use crate::support::*;

/// A WebSocket server that sends back what it gets, chooses the subprotocol `chat`, and refuses `/no`.
async fn echo_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                #[allow(clippy::result_large_err, reason = "the callback's type is the library's")]
                let choose = |asked: &Asked, mut answer: Answer| -> Result<Answer, ErrorResponse> {
                    if asked.uri().path() == "/no" {
                        return Err(http::Response::builder().status(403).body(Some("no".into())).unwrap());
                    }
                    if asked.headers().get("sec-websocket-protocol").is_some_and(|p| p == "chat") {
                        answer.headers_mut().insert("sec-websocket-protocol", "chat".parse().unwrap());
                    }
                    let seen = asked.headers().get("x-forwarded-for").cloned();
                    answer.headers_mut().insert("x-seen", seen.unwrap_or("-".parse().unwrap()));
                    Ok(answer)
                };
                let Ok(mut ws) = tokio_tungstenite::accept_hdr_async(stream, choose).await else { return };
                while let Some(Ok(m)) = ws.next().await {
                    if (m.is_text() || m.is_binary()) && ws.send(m).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

type Client = WebSocketStream<TcpStream>;

async fn connect(w: &World, path: &str) -> Result<(Client, http::Response<Option<Vec<u8>>>), Error> {
    let io = TcpStream::connect(w.address()).await.unwrap();
    let mut r = tokio_tungstenite::tungstenite::client::IntoClientRequest::into_client_request(format!(
        "ws://shop.test{path}"
    ))?;
    r.headers_mut().insert("sec-websocket-protocol", "chat".parse().unwrap());
    tokio_tungstenite::client_async(r, io).await
}

async fn say<S>(ws: &mut WebSocketStream<S>, m: Message) -> Message
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    ws.send(m).await.unwrap();
    tokio::time::timeout(Duration::from_secs(10), ws.next()).await.unwrap().unwrap().unwrap()
}

#[tokio::test]
async fn a_websocket_passes_both_ways_to_its_close() {
    let w = one(echo_server().await, |_| {}).await;
    let (mut ws, answer) = connect(&w, "/chat").await.unwrap();
    assert_eq!(answer.headers()["sec-websocket-protocol"], "chat");
    assert_eq!(answer.headers()["x-seen"], "127.0.0.1", "the request passed as any other does");
    for i in 0..20 {
        let m = Message::text(format!("message {i}"));
        assert_eq!(say(&mut ws, m.clone()).await, m);
    }
    let large = Message::binary(vec![7; 3 << 20]);
    assert_eq!(say(&mut ws, large.clone()).await, large);
    assert!(matches!(say(&mut ws, Message::Ping("p".into())).await, Message::Pong(p) if p == "p"));
    let bye = CloseFrame { code: CloseCode::Normal, reason: "bye".into() };
    assert_eq!(say(&mut ws, Message::Close(Some(bye.clone()))).await, Message::Close(Some(bye)));
    assert!(ws.next().await.is_none_or(|m| m.is_err()));
}

#[tokio::test]
async fn a_refusal_of_the_service_passes_and_the_connection_goes_on() {
    let w = one(echo_server().await, |_| {}).await;
    let Err(Error::Http(answer)) = connect(&w, "/no").await else { panic!("it was refused") };
    let body = answer.body().as_deref().map(String::from_utf8_lossy).unwrap_or_default();
    assert!(answer.status() == StatusCode::FORBIDDEN && body.contains("no"), "{answer:?}");
    // A service that knows no WebSocket answers as to any other request.
    let w = one(echo().await, |_| {}).await;
    let text =
        raw(w.address(), b"GET /x HTTP/1.1\r\nhost: h\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n").await;
    assert!(text.starts_with("HTTP/1.1 200") && text.contains("upgrade: websocket"), "{text}");
}

#[tokio::test]
async fn a_websocket_holds_its_place_and_its_span_until_it_ends() {
    let w = one(echo_server().await, |r| {
        r.policy.bulkhead = Some(Bulkhead { limit: 1, ..Default::default() });
        r.policy.retry = None;
    })
    .await;
    let (mut ws, _) = connect(&w, "/chat").await.unwrap();
    say(&mut ws, Message::text("hello")).await;
    let Err(Error::Http(answer)) = connect(&w, "/chat").await else { panic!("the place is taken") };
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    ws.close(None).await.unwrap();
    while ws.next().await.is_some() {}
    drop(ws);
    let again = async {
        loop {
            if let Ok(c) = connect(&w, "/chat").await {
                return c;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), again).await.expect("its place is free again");
    let text = w.telemetry.metrics().render_prometheus();
    assert!(text.contains(r#"weft_http_requests_total{route="all",code="101"} 1"#), "{text}");
}

#[tokio::test]
async fn the_span_of_a_websocket_counts_the_bytes_of_both_directions() {
    let w = one(echo_server().await, |_| {}).await;
    let caller = weft_core::Trace::root();
    let io = TcpStream::connect(w.address()).await.unwrap();
    let mut r =
        tokio_tungstenite::tungstenite::client::IntoClientRequest::into_client_request("ws://shop.test/chat").unwrap();
    r.headers_mut().insert("traceparent", caller.to_traceparent().parse().unwrap());
    let (mut ws, _) = tokio_tungstenite::client_async(r, io).await.unwrap();
    say(&mut ws, Message::text("hello")).await;
    assert!(w.telemetry.trace(caller.trace_id).is_empty(), "it is still under way");
    ws.close(None).await.unwrap();
    while ws.next().await.is_some() {}
    drop(ws);
    let spans = async {
        loop {
            let spans = w.telemetry.trace(caller.trace_id);
            if spans.len() == 2 {
                return spans;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let spans = tokio::time::timeout(Duration::from_secs(5), spans).await.unwrap();
    let server = spans.iter().find(|s| s.kind == weft_telemetry::SpanKind::Server).unwrap();
    let shown = format!("{:?}", server.attributes);
    // "hello" and an empty close, with two bytes of frame and, from the client, four of mask each.
    assert!(shown.contains("http.request.body.size") && shown.contains("17"), "{shown}");
    assert_eq!(server.status, weft_telemetry::SpanStatus::Ok, "{shown}");
}

#[tokio::test]
async fn silence_ends_an_upgraded_connection_after_the_routes_idle_time() {
    let w = one(echo_server().await, |r| r.protocols.idle = Idle::After(Duration::from_millis(150))).await;
    let (mut ws, _) = connect(&w, "/chat").await.unwrap();
    say(&mut ws, Message::text("hello")).await;
    let end = tokio::time::timeout(Duration::from_secs(5), ws.next()).await.expect("it is ended");
    assert!(end.is_none_or(|m| m.is_err()));
}

#[tokio::test]
async fn only_what_the_route_names_is_upgraded_to() {
    // A protocol of our own: the service says it agrees, then sends back bytes.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut s, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(s.read_u8().await.unwrap());
                }
                let head = String::from_utf8(head).unwrap();
                assert!(head.contains("connection: upgrade\r\n") && head.contains("upgrade: shout\r\n"), "{head}");
                // The first bytes of the new protocol in the same write as the 101.
                s.write_all(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: shout\r\n\r\nHI")
                    .await
                    .unwrap();
                let mut buf = [0; 64];
                while let Ok(n @ 1..) = s.read(&mut buf).await {
                    s.write_all(buf[..n].to_ascii_uppercase().as_slice()).await.unwrap();
                }
            });
        }
    });
    let ask = b"GET /x HTTP/1.1\r\nhost: h\r\nconnection: upgrade\r\nupgrade: shout\r\n\r\nfirst";
    let w = one(address, |_| {}).await;
    let text = raw(w.address(), ask).await;
    assert!(text.starts_with("HTTP/1.1 501") && text.contains("not-implemented"), "{text}");
    let w = one(address, |r| r.protocols.upgrade = vec!["shout".into()]).await;
    let mut s = TcpStream::connect(w.address()).await.unwrap();
    s.write_all(ask).await.unwrap();
    let mut text = String::new();
    while !text.ends_with("HIFIRST") {
        let mut buf = [0; 64];
        let n = tokio::time::timeout(Duration::from_secs(5), s.read(&mut buf)).await.expect(&text).unwrap();
        assert!(n > 0, "{text}");
        text.push_str(std::str::from_utf8(&buf[..n]).unwrap());
    }
    assert!(text.starts_with("HTTP/1.1 101") && text.contains("\r\nupgrade: shout\r\n"), "{text}");
}

#[tokio::test]
async fn a_service_that_switches_protocols_unasked_is_broken() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut s, _)) = listener.accept().await {
            let mut buf = [0; 1024];
            let _ = s.read(&mut buf).await;
            let _ = s.write_all(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n").await;
        }
    });
    let w = one(address, |r| r.policy.retry = None).await;
    let (status, body) = w.get("/x").await;
    assert_eq!((status, json(&body)["code"].as_str()), (StatusCode::BAD_GATEWAY, Some("upstream-broken")));
}

#[tokio::test]
async fn a_websocket_over_http2_is_one_over_http1_to_the_service() {
    let w = one(echo_server().await, |_| {}).await;
    let mut client = h2(w.address()).await;
    // The server's SETTINGS, which allow it (RFC 8441 3), have come when it has answered something.
    client.send_request(Request::get("http://shop.test/no").body(Full::default()).unwrap()).await.unwrap();
    let mut streams = Vec::new();
    for _ in 0..2 {
        let mut r = Request::builder()
            .method(Method::CONNECT)
            .uri("http://shop.test/chat")
            .header("sec-websocket-version", "13")
            .header("sec-websocket-protocol", "chat")
            .body(Full::default())
            .unwrap();
        r.extensions_mut().insert(hyper::ext::Protocol::from_static("websocket"));
        let mut answer = client.send_request(r).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(answer.headers()["sec-websocket-protocol"], "chat");
        for gone in ["sec-websocket-accept", "upgrade", "connection"] {
            assert!(!answer.headers().contains_key(gone), "{:?}", answer.headers());
        }
        let io = TokioIo::new(hyper::upgrade::on(&mut answer).await.unwrap());
        streams.push(WebSocketStream::from_raw_socket(io, Role::Client, None).await);
    }
    for i in 0..20 {
        for ws in &mut streams {
            let m = Message::text(format!("message {i}"));
            assert_eq!(say(ws, m.clone()).await, m);
        }
    }
    let large = Message::binary(vec![7; 1 << 20]);
    assert_eq!(say(&mut streams[0], large.clone()).await, large);
    let closed = say(&mut streams[0], Message::Close(None)).await;
    assert!(closed.is_close());
    let m = Message::text("the other one goes on");
    assert_eq!(say(&mut streams[1], m.clone()).await, m);
}

#[tokio::test]
async fn a_fallback_that_switches_protocols_is_none_because_nobody_would_be_joined() {
    let dead = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let mut r = route("all", "/**", "s");
    r.policy.retry = None;
    r.fallback = Some(weft_edge::spec::Fallback::Service(name("spare")));
    let http = weft_mesh::Protocol::Http;
    let services = [spec_of("s", http, &[dead]), spec_of("spare", http, &[echo_server().await])];
    let w = World::start(gateway(vec![r]), &services).await;
    match connect(&w, "/chat").await {
        Err(Error::Http(answer)) => assert_eq!(answer.status(), StatusCode::BAD_GATEWAY),
        other => panic!("{other:?}"),
    }
}
