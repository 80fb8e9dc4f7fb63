use std::future::poll_fn;

use http::Request;
use http_body_util::{BodyExt as _, StreamBody};
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;

use super::*;

/// A connection and the server's end of it.
fn pair() -> (Conn, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (Conn::new(Io::Unix(ours)), theirs)
}

fn begin(conn: &mut Conn, request: Request<Body>) {
    let (head, body) = request.into_parts();
    let overlay = Overlay { traceparent: None, baggage: None, grpc_timeout: None };
    conn.begin(&head, &overlay, &HeaderValue::from_static("instance:80"), body);
}

async fn head(conn: &mut Conn) -> Result<http::response::Parts, Failed> {
    poll_fn(|cx| conn.poll_head(cx)).await
}

/// What one answer is, to its end: status, body, trailers.
async fn answer(method: &str, bytes: &[u8]) -> Result<(u16, Vec<u8>, Option<http::HeaderMap>, bool), Failed> {
    let (mut conn, mut server) = pair();
    begin(&mut conn, Request::builder().method(method).uri("/").body(Body::Empty).unwrap());
    let bytes = bytes.to_vec();
    let served = tokio::spawn(async move {
        // Broken off when the client has read enough.
        let _ = server.write_all(&bytes).await;
        let _ = server.shutdown().await;
        server
    });
    tokio::task::yield_now().await;
    let status = head(&mut conn).await?.status.as_u16();
    let (mut body, mut trailers) = (Vec::new(), None);
    while let Some(frame) = poll_fn(|cx| conn.poll_frame(cx)).await.transpose()? {
        match frame.into_data() {
            Ok(data) => body.extend_from_slice(&data),
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
    }
    served.abort();
    Ok((status, body, trailers, conn.is_idle()))
}

async fn malformed(bytes: &str) -> &'static str {
    match answer("GET", bytes.as_bytes()).await {
        Err(Failed::Malformed(what)) => what,
        other => panic!("{bytes:.200?} gave {other:.200?}"),
    }
}

/// What goes out for a request, up to the answer.
async fn sent(request: Request<Body>) -> String {
    let (mut conn, mut server) = pair();
    begin(&mut conn, request);
    let read = async {
        let mut all = Vec::new();
        let mut buf = [0; 1024];
        while !all.ends_with(b"\r\n\r\n") && !all.ends_with(b"body") {
            let n = server.read(&mut buf).await.unwrap();
            all.extend_from_slice(&buf[..n]);
        }
        server.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
        String::from_utf8(all).unwrap()
    };
    let (answered, all) = tokio::join!(head(&mut conn), read);
    assert_eq!(answered.unwrap().status, 204);
    assert!(conn.is_idle());
    all
}

fn stream(frames: &'static [&'static str]) -> Body {
    let frames = frames.iter().map(|f| Ok::<_, BoxError>(Frame::data(Bytes::from_static(f.as_bytes()))));
    Body::stream(StreamBody::new(futures_util::stream::iter(frames)))
}

#[tokio::test]
async fn a_request_is_written_once_with_its_own_framing() {
    let r = Request::get("/a?b=c").header("host", "h").header("x-a", "1").body(Body::Empty).unwrap();
    assert_eq!(sent(r).await, "GET /a?b=c HTTP/1.1\r\nhost: h\r\nx-a: 1\r\n\r\n");
    let r = Request::post("http://other?q").body(Body::Empty).unwrap();
    assert_eq!(sent(r).await, "POST /?q HTTP/1.1\r\nhost: other\r\ncontent-length: 0\r\n\r\n");
    let r = Request::options("*").header("content-length", "7").header("transfer-encoding", "gzip");
    assert_eq!(sent(r.body(Body::Empty).unwrap()).await, "OPTIONS * HTTP/1.1\r\nhost: instance:80\r\n\r\n");
    let r = Request::put("/").body(Body::Bytes(Bytes::from_static(b"body"))).unwrap();
    assert_eq!(sent(r).await, "PUT / HTTP/1.1\r\nhost: instance:80\r\ncontent-length: 4\r\n\r\nbody");
    let r = Request::put("/").body(stream(&["0123456789abcdef", "", "x"])).unwrap();
    let chunked = "PUT / HTTP/1.1\r\nhost: instance:80\r\ntransfer-encoding: chunked\r\n\r\n";
    // The head alone ends with an empty line too: what follows is read by the next test.
    assert!(sent(r).await.starts_with(chunked));
}

#[tokio::test]
async fn chunks_and_trailers_go_out_as_they_come() {
    let (mut conn, mut server) = pair();
    let mut trailers = http::HeaderMap::new();
    trailers.insert("x-end", HeaderValue::from_static("1"));
    trailers.insert("content-length", HeaderValue::from_static("9"));
    let body = stream(&["0123456789abcdef", "", "x"]).with_trailers(async { Some(Ok(trailers)) });
    begin(&mut conn, Request::put("/").body(Body::stream(body)).unwrap());
    let read = async {
        let mut all = Vec::new();
        while !all.ends_with(b"x-end: 1\r\n\r\n") {
            let mut buf = [0; 64];
            let n = server.read(&mut buf).await.unwrap();
            all.extend_from_slice(&buf[..n]);
        }
        server.write_all(b"HTTP/1.1 204 x\r\n\r\n").await.unwrap();
        String::from_utf8(all).unwrap()
    };
    let (answered, all) = tokio::join!(head(&mut conn), read);
    answered.unwrap();
    let body = all.split_once("\r\n\r\n").unwrap().1;
    assert_eq!(body, "10\r\n0123456789abcdef\r\n1\r\nx\r\n0\r\nx-end: 1\r\n\r\n");
}

#[tokio::test]
async fn a_body_that_is_not_as_long_as_announced_is_the_callers_fault() {
    for frames in [&["ab"][..], &["abcd"]] {
        let (mut conn, _server) = pair();
        begin(&mut conn, Request::put("/").body(Body::Empty).unwrap());
        conn.sending = Sending::Length(stream(frames), 3);
        assert!(matches!(head(&mut conn).await, Err(Failed::Body(_))), "{frames:?}");
    }
}

#[tokio::test]
async fn every_framing_is_read_to_its_end() {
    let ok = |r: Result<(u16, Vec<u8>, Option<http::HeaderMap>, bool), Failed>| {
        let (status, body, trailers, _) = r.unwrap();
        (status, String::from_utf8(body).unwrap(), trailers.map(|t| t["x-end"].clone()))
    };
    let length = b"HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\ncontent-length: 5\r\n\r\nhello";
    assert_eq!(ok(answer("GET", length).await), (200, "hello".into(), None));
    let chunked =
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n3;a=b\r\nhel\r\n02\r\nlo\r\n0\r\nX-End: 1\r\n\r\n";
    assert_eq!(ok(answer("GET", chunked).await), (200, "hello".into(), Some(HeaderValue::from_static("1"))));
    let until_close = b"HTTP/1.0 200 OK\r\n\r\nhello";
    assert_eq!(ok(answer("GET", until_close).await), (200, "hello".into(), None));
    let of_head = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n";
    assert_eq!(ok(answer("HEAD", of_head).await), (200, String::new(), None));
    let unchanged = b"HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n";
    assert_eq!(ok(answer("GET", unchanged).await), (304, String::new(), None));
    let interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 200\r\ncontent-length: 2\r\n\r\nok";
    assert_eq!(ok(answer("GET", interim).await), (200, "ok".into(), None));
}

#[tokio::test]
async fn an_answer_arrives_byte_by_byte() {
    let (mut conn, mut server) = pair();
    begin(&mut conn, Request::get("/").body(Body::Empty).unwrap());
    tokio::spawn(async move {
        let bytes =
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\na\r\n0123456789\r\n1\r\nx\r\n0\r\nx-end: 1\r\n\r\n";
        for b in bytes {
            server.write_all(&[*b]).await.unwrap();
            tokio::task::yield_now().await;
        }
    });
    assert_eq!(head(&mut conn).await.unwrap().status, 200);
    let mut body = Vec::new();
    while let Some(frame) = poll_fn(|cx| conn.poll_frame(cx)).await {
        body.extend_from_slice(frame.unwrap().data_ref().unwrap_or(&Bytes::new()));
    }
    assert_eq!(body, b"0123456789x");
    assert!(conn.is_idle());
}

#[tokio::test]
async fn what_two_programs_could_read_differently_is_refused() {
    let with = |fields: &str| format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\nhello");
    for fields in [
        "content-length: 5\r\ncontent-length: 6",
        "content-length: 5, 6",
        "content-length: +5",
        "content-length: 0x5",
        "content-length: -1",
        "content-length: ",
        "content-length: 99999999999999999999",
        "content-length: 5\r\ntransfer-encoding: chunked",
        "transfer-encoding: gzip, chunked",
        "transfer-encoding: chunked\r\ntransfer-encoding: chunked",
        "transfer-encoding: xchunked",
        "transfer-encoding: identity",
        "transfer-encoding : chunked",
        "x: a\r\n folded",
        "x\u{0}: a",
    ] {
        malformed(&with(fields)).await;
    }
    malformed("HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n").await;
    malformed("HTTP/1.1 20 OK\r\n\r\n").await;
    malformed("HTTP/2.0 200 OK\r\n\r\n").await;
    malformed("220 mail.example ESMTP\r\n").await;
    malformed("HTTP/1.1 200 OK\n\nhello\r\n\r\n").await;
    for chunks in ["5\r\nhelloX0\r\n\r\n", "-1\r\n", "g\r\n", "11111111111111111\r\n", " 5\r\nhello\r\n", "\r\n"] {
        let what = malformed(&format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{chunks}")).await;
        assert!(what.contains("chunk"), "{chunks:?}: {what}");
    }
}

#[tokio::test]
async fn heads_trailers_and_chunk_lines_have_limits() {
    let long = "x".repeat(weft_core::limits::HEADER_BYTES);
    assert!(malformed(&format!("HTTP/1.1 200 OK\r\nx: {long}\r\n\r\n")).await.contains("too large"));
    let many = "x: y\r\n".repeat(weft_core::limits::HEADER_COUNT + 1);
    assert!(malformed(&format!("HTTP/1.1 200 OK\r\n{many}\r\n")).await.contains("too many"));
    let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    malformed(&format!("{chunked}0\r\nx: {long}\r\n")).await;
    malformed(&format!("{chunked}1;{}", "e".repeat(8 << 10))).await;
    malformed(&"HTTP/1.1 100 Continue\r\n\r\n".repeat(17)).await;
}

#[tokio::test]
async fn a_stream_that_ends_early_is_an_error_and_not_a_short_body() {
    for bytes in [
        "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhell",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
        "HTTP/1.1 200 OK\r\n",
        "",
    ] {
        let e = answer("GET", bytes.as_bytes()).await.unwrap_err();
        assert!(e.is_reset(), "{bytes:?}: {e:?}");
    }
}

#[tokio::test]
async fn a_connection_is_used_again_only_when_both_sides_agree_and_nothing_is_left() {
    for (answered, again) in [
        ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", true),
        ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: x, Close\r\n\r\nok", false),
        ("HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok", false),
        ("HTTP/1.0 200 OK\r\ncontent-length: 2\r\nconnection: Keep-Alive\r\n\r\nok", true),
        ("HTTP/1.1 200 OK\r\n\r\nok", false),
        // More than the answer: whose would it be?
        ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 200 OK\r\n\r\n", false),
        ("HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n", false),
    ] {
        assert_eq!(answer("GET", answered.as_bytes()).await.unwrap().3, again, "{answered:?}");
    }
}

#[tokio::test]
async fn an_idle_connection_tells_when_the_other_side_closed_it_or_spoke_out_of_turn() {
    let (mut conn, server) = pair();
    assert!(conn.is_open());
    drop(server);
    tokio::task::yield_now().await;
    assert!(!conn.is_open());
    let (mut conn, mut server) = pair();
    server.write_all(b"HTTP/1.1 408 Request Timeout\r\n\r\n").await.unwrap();
    tokio::task::yield_now().await;
    assert!(!conn.is_open());
}

#[tokio::test]
async fn an_early_answer_counts_though_the_body_is_still_going_out() {
    let (mut conn, mut server) = pair();
    let frames = futures_util::stream::repeat_with(|| Ok::<_, BoxError>(Frame::data(Bytes::from(vec![0; 64 << 10]))));
    begin(&mut conn, Request::put("/").body(Body::stream(StreamBody::new(frames))).unwrap());
    let serve = async {
        let mut buf = [0; 1024];
        server.read_exact(&mut buf).await.unwrap();
        server.write_all(b"HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\n\r\n").await.unwrap();
        drop(server);
    };
    let (parts, ()) = tokio::join!(head(&mut conn), serve);
    assert_eq!(parts.unwrap().status, 413);
    assert!(!conn.is_idle(), "the rest of the request can never go out");
}

#[tokio::test]
async fn a_request_of_which_nothing_went_out_gives_its_body_back() {
    let (mut conn, server) = pair();
    drop(server);
    begin(&mut conn, Request::put("/").body(stream(&["ab", "cd"])).unwrap());
    let e = head(&mut conn).await.unwrap_err();
    assert!(e.is_reset(), "{e:?}");
    let body = conn.take_back().unwrap();
    assert_eq!(body.collect().await.unwrap().to_bytes(), "abcd");
}

/// Any bytes at all: no panic, and never more body than there was.
pub(crate) fn any_answer(bytes: &[u8]) {
    let mut buf = BytesMut::from(bytes);
    let Ok(Some(mut head)) = decode::head(&mut buf, &Method::GET) else { return };
    let left = buf.len();
    let mut got = 0;
    while !head.framing.is_end() {
        match head.framing.decode(&mut buf) {
            Ok(Decoded::Data(d)) => {
                assert!(!d.is_empty());
                got += d.len();
            }
            Ok(Decoded::End(_) | Decoded::More(_)) | Err(_) => break,
        }
    }
    assert!(got <= left);
}

proptest::proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..400)) {
        any_answer(&bytes);
    }

    #[test]
    fn no_mutation_of_an_answer_makes_it_panic(at in 0usize..110, to in proptest::num::u8::ANY, cut in 0usize..110) {
        let mut bytes = b"HTTP/1.1 200 OK\r\ncontent-type: a\r\ntransfer-encoding: chunked\r\n\r\n3;a=b\r\nhel\r\n02\r\nlo\r\n0\r\nX-End: 1\r\n\r\n".to_vec();
        let n = bytes.len();
        bytes[at % n] = to;
        bytes.truncate(n - cut % n);
        any_answer(&bytes);
    }
}
