use std::convert::Infallible;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use http::uri::PathAndQuery;
use tonic::codegen::Service;
use tonic::server::{
    ClientStreamingService, Grpc as Server, NamedService, ServerStreamingService, StreamingService, UnaryService,
};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;
use weft_core::Trace;
use weft_mesh::Protocol;
use weft_policy::spec::Breaker;

use crate::support::*;

#[derive(Clone, PartialEq, prost::Message)]
pub struct Text {
    #[prost(string, tag = "1")]
    pub text: String,
}

fn text(s: &str) -> Text {
    Text { text: s.into() }
}

/// `test.Echo`: `Say` answers what it is told, or fails with the code it is told (`code 9`); `Chat` echoes a stream.
#[derive(Clone)]
struct Echo;

impl NamedService for Echo {
    const NAME: &'static str = "test.Echo";
}

impl UnaryService<Text> for Echo {
    type Response = Text;
    type Future = BoxFuture<'static, Result<Response<Text>, Status>>;
    fn call(&mut self, request: Request<Text>) -> Self::Future {
        Box::pin(async move {
            let meta = request.metadata();
            let seen = |k: &str| meta.get(k).and_then(|v| v.to_str().ok()).unwrap_or("-").to_owned();
            let (timeout, trace, te) = (seen("grpc-timeout"), seen("traceparent"), seen("te"));
            let told = request.into_inner().text;
            if told == "hang" {
                std::future::pending::<()>().await;
            }
            if let Some(code) = told.strip_prefix("code ") {
                return Err(Status::new(Code::from_i32(code.parse().unwrap()), "as told"));
            }
            let mut r = Response::new(text(&told));
            for (k, v) in [("seen-timeout", timeout), ("seen-traceparent", trace), ("seen-te", te)] {
                r.metadata_mut().insert(k, v.parse().unwrap());
            }
            Ok(r)
        })
    }
}

impl StreamingService<Text> for Echo {
    type Response = Text;
    type ResponseStream = BoxStream<'static, Result<Text, Status>>;
    type Future = BoxFuture<'static, Result<Response<Self::ResponseStream>, Status>>;
    fn call(&mut self, request: Request<Streaming<Text>>) -> Self::Future {
        let told = request.into_inner().map(|m| match m {
            Ok(m) if m.text == "fail" => Err(Status::data_loss("in the middle")),
            other => other,
        });
        Box::pin(async move { Ok(Response::new(told.boxed())) })
    }
}

impl ClientStreamingService<Text> for Echo {
    type Response = Text;
    type Future = BoxFuture<'static, Result<Response<Text>, Status>>;
    fn call(&mut self, request: Request<Streaming<Text>>) -> Self::Future {
        Box::pin(async move {
            let n = request.into_inner().filter(|m| std::future::ready(m.is_ok())).count().await;
            Ok(Response::new(text(&format!("{n} messages"))))
        })
    }
}

impl ServerStreamingService<Text> for Echo {
    type Response = Text;
    type ResponseStream = BoxStream<'static, Result<Text, Status>>;
    type Future = BoxFuture<'static, Result<Response<Self::ResponseStream>, Status>>;
    fn call(&mut self, request: Request<Text>) -> Self::Future {
        Box::pin(async move {
            let n: usize = request.into_inner().text.parse().unwrap();
            let all = futures_util::stream::iter((0..n).map(|i| Ok(text(&format!("{i}")))));
            Ok(Response::new(all.boxed()))
        })
    }
}

/// Adds a trailer of the service's own.
fn counted(answer: http::Response<tonic::body::Body>) -> http::Response<tonic::body::Body> {
    use http_body_util::BodyExt as _;
    answer.map(|b| {
        tonic::body::Body::new(b.map_frame(|f| match f.into_trailers() {
            Ok(mut t) => {
                t.insert("counted", "100".parse().unwrap());
                http_body::Frame::trailers(t)
            }
            Err(f) => f,
        }))
    })
}

impl Service<http::Request<tonic::body::Body>> for Echo {
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }
    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        Box::pin(async move {
            let mut server = Server::new(ProstCodec::<Text, Text>::default());
            Ok(match request.uri().path() {
                "/test.Echo/Chat" => server.streaming(Echo, request).await,
                "/test.Echo/Gather" => server.client_streaming(Echo, request).await,
                "/test.Echo/Count" => counted(server.server_streaming(Echo, request).await),
                _ => server.unary(Echo, request).await,
            })
        })
    }
}

pub async fn world(change: impl FnOnce(&mut weft_edge::spec::RouteSpec)) -> (World, Channel) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let incoming =
        futures_util::stream::unfold(listener, |l| async move { Some((l.accept().await.map(|(s, _)| s), l)) });
    tokio::spawn(tonic::transport::Server::builder().add_service(Echo).serve_with_incoming(incoming));
    let mut r = route("echo", "/test.Echo/**", "s");
    r.policy.retry = None;
    change(&mut r);
    let w = World::start(gateway(vec![r]), &[spec_of("s", Protocol::Grpc, &[address])]).await;
    let channel = Endpoint::try_from(format!("http://{}", w.address())).unwrap().connect().await.unwrap();
    (w, channel)
}

async fn say(channel: &Channel, request: Request<Text>) -> Result<Response<Text>, Status> {
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await.unwrap();
    client.unary(request, PathAndQuery::from_static("/test.Echo/Say"), ProstCodec::<Text, Text>::default()).await
}

#[tokio::test]
async fn a_unary_call_passes_with_deadline_and_trace() {
    let (_w, channel) = world(|_| {}).await;
    let mut r = Request::new(text("hello"));
    r.set_timeout(Duration::from_secs(3));
    let caller = Trace::root();
    r.metadata_mut().insert("traceparent", caller.to_traceparent().parse().unwrap());
    let answer = say(&channel, r).await.unwrap();
    let seen = |k: &str| answer.metadata().get(k).unwrap().to_str().unwrap().to_owned();
    assert_eq!(seen("seen-te"), "trailers");
    let micros: u64 = seen("seen-timeout").strip_suffix('u').unwrap().parse().unwrap();
    assert!(micros <= 3_000_000, "the caller's deadline narrows the attempt's: {micros}");
    let sent = Trace::parse(&seen("seen-traceparent")).unwrap();
    assert!(sent.trace_id == caller.trace_id && sent.span_id != caller.span_id);
    assert_eq!(answer.into_inner(), text("hello"));
}

#[tokio::test]
async fn a_services_own_error_passes_with_code_and_message() {
    let (_w, channel) = world(|_| {}).await;
    for code in [3, 5, 9, 13, 14, 16] {
        let status = say(&channel, Request::new(text(&format!("code {code}")))).await.unwrap_err();
        assert_eq!((status.code() as i32, status.message()), (code, "as told"));
    }
}

#[tokio::test]
async fn a_stream_passes_message_by_message_both_ways_and_its_trailers_after_it() {
    let (_w, channel) = world(|_| {}).await;
    let (tell, told) = tokio::sync::mpsc::channel::<Text>(1);
    let out = futures_util::stream::unfold(told, |mut t| async move { t.recv().await.map(|m| (m, t)) });
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.unwrap();
    let path = PathAndQuery::from_static("/test.Echo/Chat");
    let call = client.streaming(Request::new(out), path, ProstCodec::<Text, Text>::default());
    let mut heard = call.await.unwrap().into_inner();
    for i in 0..50 {
        // Each is answered before the next is sent: nothing is held back.
        tell.send(text(&format!("{i}"))).await.unwrap();
        assert_eq!(heard.message().await.unwrap().unwrap(), text(&format!("{i}")));
    }
    tell.send(text("fail")).await.unwrap();
    let status = heard.message().await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::DataLoss, "in the middle"));
}

#[tokio::test]
async fn what_the_gateway_refuses_is_answered_as_grpc() {
    let (w, channel) = world(|r| {
        r.policy.breaker =
            Some(Breaker { min_calls: 2, window: 4, open_for: Duration::from_secs(9), ..Default::default() });
    })
    .await;
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await.unwrap();
    let path = PathAndQuery::from_static("/other.Service/Call");
    let r = client.unary::<Text, Text, _>(Request::new(text("x")), path, ProstCodec::default()).await;
    assert_eq!(r.unwrap_err().code(), Code::Unimplemented);

    let mut r = Request::new(text("hang"));
    r.set_timeout(Duration::from_millis(50));
    let status = say(&channel, r).await.unwrap_err();
    assert!(matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled), "{status:?}");

    for _ in 0..2 {
        say(&channel, Request::new(text("code 14"))).await.unwrap_err();
    }
    let status = say(&channel, Request::new(text("x"))).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("breaker"), "{status:?}");
    assert_eq!(status.metadata().get("retry-after").unwrap(), "9");
    drop(w);
}

/// One call by hand, of a client that does not watch the time itself.
#[tokio::test]
async fn the_gateway_enforces_the_callers_grpc_timeout() {
    let (w, _channel) = world(|_| {}).await;
    let mut message = vec![0];
    let inside = prost::Message::encode_to_vec(&text("hang"));
    message.extend_from_slice(&(inside.len() as u32).to_be_bytes());
    message.extend_from_slice(&inside);
    let r = http::Request::post("http://shop.test/test.Echo/Say")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("grpc-timeout", "80m")
        .body(http_body_util::Full::new(bytes::Bytes::from(message)))
        .unwrap();
    let began = std::time::Instant::now();
    let answer = h2(w.address()).await.send_request(r).await.unwrap();
    assert_eq!((answer.status().as_u16(), &answer.headers()["grpc-status"]), (200, &"4".parse().unwrap()));
    assert!(began.elapsed() >= Duration::from_millis(80) && began.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn a_client_stream_and_a_server_stream_pass() {
    let (_w, channel) = world(|_| {}).await;
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.unwrap();
    let many = futures_util::stream::iter((0..100).map(|i| text(&format!("{i}"))));
    let path = PathAndQuery::from_static("/test.Echo/Gather");
    let answer = client.client_streaming(Request::new(many), path, ProstCodec::<Text, Text>::default()).await.unwrap();
    assert_eq!(answer.into_inner(), text("100 messages"));
    client.ready().await.unwrap();
    let path = PathAndQuery::from_static("/test.Echo/Count");
    let call = client.server_streaming(Request::new(text("100")), path, ProstCodec::<Text, Text>::default());
    let mut heard = call.await.unwrap().into_inner();
    for i in 0..100 {
        assert_eq!(heard.message().await.unwrap().unwrap(), text(&format!("{i}")));
    }
    assert_eq!(heard.message().await.unwrap(), None);
    assert_eq!(heard.trailers().await.unwrap().unwrap().get("counted").unwrap(), "100");
}
