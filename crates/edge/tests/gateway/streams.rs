//! Streams pass as they come: events, trailers, bodies that are waited for.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use weft_edge::spec::Idle;
use weft_mesh::Protocol;

use crate::support::*;

/// A service of one stream of events: what is sent on the channel goes out, and the `Last-Event-ID` it was asked with.
async fn events() -> (std::net::SocketAddr, mpsc::Sender<String>, Arc<Mutex<String>>) {
    let (send, events) = mpsc::channel::<String>(1);
    let events = Arc::new(Mutex::new(Some(events)));
    let asked = Arc::new(Mutex::new(String::new()));
    let seen = asked.clone();
    let address = service(move |r| {
        let events = events.lock().take();
        let last = r.headers().get("last-event-id").map(|v| v.to_str().unwrap().to_owned());
        *seen.lock() = last.unwrap_or_default();
        async move {
            let Some(events) = events else { return answer(204, "") };
            let stream = futures_util::stream::unfold(events, |mut e| async move {
                let event = e.recv().await?;
                Some((Ok::<_, BoxError>(Frame::data(Bytes::from(event))), e))
            });
            let body = http_body_util::BodyExt::boxed_unsync(StreamBody::new(stream));
            Response::builder().header("content-type", "text/event-stream").body(body).unwrap()
        }
    })
    .await;
    (address, send, asked)
}

#[tokio::test]
async fn each_event_arrives_before_the_next_is_sent_also_past_the_deadline() {
    let (address, send, asked) = events().await;
    let w = one(address, |r| {
        r.policy.deadline = Some(Duration::from_millis(100));
        r.policy.attempt_timeout = Some(Duration::from_millis(100));
    })
    .await;
    let mut r = get("/events");
    r.headers_mut().insert("last-event-id", "41".parse().unwrap());
    r.headers_mut().insert("accept", "text/event-stream".parse().unwrap());
    let answer = w.send(r).await;
    assert_eq!(answer.headers()["content-type"], "text/event-stream");
    assert_eq!(*asked.lock(), "41");
    let mut body = answer.into_body();
    for i in 42..52 {
        let event = format!("id: {i}\ndata: {{}}\n\n");
        send.send(event.clone()).await.unwrap();
        let frame = tokio::time::timeout(Duration::from_secs(5), body.frame()).await.expect("it is not held back");
        assert_eq!(frame.unwrap().unwrap().into_data().unwrap(), event);
        if i == 45 {
            // The deadline is for the head; it has come.
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
    drop(send);
    assert!(body.frame().await.is_none());
}

#[tokio::test]
async fn a_stream_that_is_silent_for_the_routes_idle_time_is_broken_off() {
    let (address, send, _) = events().await;
    let w = one(address, |r| r.protocols.idle = Idle::After(Duration::from_millis(200))).await;
    let mut body = w.send(get("/events")).await.into_body();
    for i in 0..3 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        send.send(format!("data: {i}\n\n")).await.unwrap();
        body.frame().await.unwrap().unwrap();
    }
    let end = tokio::time::timeout(Duration::from_secs(5), body.frame()).await.expect("it ends");
    assert!(end.is_some_and(|f| f.is_err()), "it does not end as if it were whole");
}

/// Answers with trailers, and says which it got.
async fn trailing() -> std::net::SocketAddr {
    service(|r| async move {
        let all = r.into_body().collect().await.unwrap();
        let got: Vec<_> = all.trailers().into_iter().flat_map(HeaderMap::keys).map(|k| k.to_string()).collect();
        let trailers = HeaderMap::from_iter([("x-sum".parse().unwrap(), "42".parse().unwrap())]);
        let said = format!("{}{got:?}", String::from_utf8_lossy(&all.to_bytes()));
        let frames = [Ok::<_, BoxError>(Frame::data(said.into())), Ok(Frame::trailers(trailers))];
        let body = http_body_util::BodyExt::boxed_unsync(StreamBody::new(futures_util::stream::iter(frames)));
        Response::builder().header("trailer", "x-sum").body(body).unwrap()
    })
    .await
}

#[tokio::test]
async fn trailers_of_answers_pass_over_both_versions_and_those_of_requests_are_dropped() {
    let address = trailing().await;
    for (protocol, version) in [(Protocol::Http, 1), (Protocol::Http, 2), (Protocol::H2, 1), (Protocol::H2, 2)] {
        let w = World::start(gateway(vec![route("all", "/**", "s")]), &[spec_of("s", protocol, &[address])]).await;
        let trailers = HeaderMap::from_iter(
            ["x-user", "authorization", "x-forwarded-for"].map(|n| (n.parse().unwrap(), "admin".parse().unwrap())),
        );
        let frames = [Frame::data(Bytes::from_static(b"abc")), Frame::trailers(trailers)];
        let body = StreamBody::new(futures_util::stream::iter(frames.map(Ok::<_, Infallible>)));
        let uri = if version == 1 { "/x" } else { "http://h/x" };
        let mut r = Request::post(uri)
            .header("te", "trailers")
            .header("trailer", "x-user, authorization, x-forwarded-for")
            .body(body)
            .unwrap();
        let answer = if version == 1 {
            r.headers_mut().insert("host", "h".parse().unwrap());
            send(w.address(), r).await
        } else {
            let io = hyper_util::rt::TokioIo::new(TcpStream::connect(w.address()).await.unwrap());
            let executor = hyper_util::rt::TokioExecutor::new();
            let (mut s, c) = hyper::client::conn::http2::handshake(executor, io).await.unwrap();
            tokio::spawn(c);
            s.send_request(r).await.unwrap()
        };
        let all = answer.into_body().collect().await.unwrap();
        assert_eq!(all.trailers().map(|t| &t["x-sum"]), Some(&"42".parse().unwrap()), "{protocol:?}, {version}");
        assert_eq!(all.to_bytes(), "abc[]", "{protocol:?}, {version}");
    }
}

#[tokio::test]
async fn a_client_that_expects_100_continue_is_told_when_the_body_is_wanted_and_only_then() {
    let w = one(echo().await, |r| r.matches.path = "/there".into()).await;
    let ask = async |path: &str| {
        let mut s = TcpStream::connect(w.address()).await.unwrap();
        let head = format!("POST {path} HTTP/1.1\r\nhost: h\r\ncontent-length: 5\r\nexpect: 100-continue\r\n\r\n");
        s.write_all(head.as_bytes()).await.unwrap();
        let mut buf = [0; 64];
        let n = tokio::time::timeout(Duration::from_secs(5), s.read(&mut buf)).await.unwrap().unwrap();
        (s, String::from_utf8_lossy(&buf[..n]).into_owned())
    };
    let (mut s, first) = ask("/there").await;
    assert_eq!(first, "HTTP/1.1 100 Continue\r\n\r\n");
    s.write_all(b"hello").await.unwrap();
    let text = read_all(&mut s).await;
    assert!(text.starts_with("HTTP/1.1 200") && text.contains("\n\nhello") && !text.contains("expect"), "{text}");
    let (_, first) = ask("/elsewhere").await;
    assert!(first.starts_with("HTTP/1.1 404"), "refused before the body is sent: {first}");
}
