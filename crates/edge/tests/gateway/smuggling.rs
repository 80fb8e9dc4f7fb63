//! Request smuggling: hand-made requests against the gateway with an upstream that records every byte it gets.
//!
//! A case passes when the gateway answers 400 (or another refusal of its own) and sends nothing, or when what it sends
//! is exactly one request of the one meaning that RFC 9112 gives it. In no case do the bytes of a client's body, or of
//! what follows a refused request, reach the service as a request of their own.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::support::*;

/// A service that reads strictly, records, and answers; one entry for each request it was sent.
#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<Vec<Seen>>>);

/// One request as it came.
#[derive(Clone, Debug, PartialEq)]
struct Seen {
    head: String,
    body: Vec<u8>,
    /// Whether its body ended where its own head says.
    whole: bool,
}

impl Seen {
    fn line(&self) -> &str {
        self.head.lines().next().unwrap_or_default()
    }

    fn field(&self, name: &str) -> Vec<&str> {
        let fields = self.head.lines().skip(1).filter_map(|l| l.split_once(':'));
        fields.filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.trim()).collect()
    }
}

impl Recorder {
    async fn start() -> (Self, std::net::SocketAddr) {
        let this = Self::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let recorder = this.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(recorder.clone().serve(stream));
            }
        });
        (this, address)
    }

    /// Byte by byte, so that nothing is forgiven: heads end at CRLF CRLF, bodies where the head says.
    async fn serve(self, mut stream: TcpStream) {
        loop {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                match stream.read_u8().await {
                    Ok(b) => head.push(b),
                    Err(_) if head.is_empty() => return,
                    Err(_) => {
                        let head = String::from_utf8_lossy(&head).into_owned();
                        self.0.lock().push(Seen { head, body: Vec::new(), whole: false });
                        return;
                    }
                }
            }
            let mut seen = Seen { head: String::from_utf8_lossy(&head).into_owned(), body: Vec::new(), whole: true };
            let (lengths, codings) = (seen.field("content-length"), seen.field("transfer-encoding"));
            let (lengths, codings): (Vec<String>, Vec<String>) =
                (lengths.iter().map(|s| s.to_string()).collect(), codings.iter().map(|s| s.to_string()).collect());
            let read = match (&lengths[..], &codings[..]) {
                ([], []) => Ok(Vec::new()),
                ([n], []) => {
                    let mut body = vec![0; n.parse().unwrap()];
                    stream.read_exact(&mut body).await.map(|_| body)
                }
                ([], [c]) if c == "chunked" => chunked(&mut stream).await,
                // Framing that two readers could read in two ways must never get here.
                other => panic!("ambiguous framing reached the service: {other:?}"),
            };
            match read {
                Ok(body) => seen.body = body,
                Err(_) => seen.whole = false,
            }
            let whole = seen.whole;
            self.0.lock().push(seen);
            if !whole || stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.is_err() {
                return;
            }
        }
    }

    /// What was recorded since the last time.
    fn take(&self) -> Vec<Seen> {
        std::mem::take(&mut *self.0.lock())
    }
}

async fn chunked(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let size = line(stream).await?;
        assert!(size.bytes().all(|b| b.is_ascii_hexdigit()), "a chunk size of the gateway's own: {size:?}");
        let n = usize::from_str_radix(&size, 16).unwrap();
        if n == 0 {
            while !line(stream).await?.is_empty() {}
            return Ok(body);
        }
        let at = body.len();
        body.resize(at + n, 0);
        stream.read_exact(&mut body[at..]).await?;
        assert_eq!(line(stream).await?, "");
    }
}

async fn line(stream: &mut TcpStream) -> std::io::Result<String> {
    let mut line = Vec::new();
    while !line.ends_with(b"\r\n") {
        line.push(stream.read_u8().await?);
    }
    Ok(String::from_utf8_lossy(&line[..line.len() - 2]).into_owned())
}

/// What a case may end in.
#[derive(Clone, Copy, Debug)]
enum May {
    /// 400 (or 501 for a coding that is not known), and nothing is sent on.
    Refused,
    /// One request with this body, and no second answer that the client's bytes made.
    One(&'static [u8]),
    /// Either of the two.
    RefusedOrOne(&'static [u8]),
}

/// Sends raw bytes, and a request of somebody else after them; checks what the service saw of both.
async fn check(w: &World, recorder: &Recorder, what: &str, bytes: &[u8], may: May) {
    recorder.take();
    let text = exchange(w, bytes).await;
    let seen = recorder.take();
    let about = format!("{what}: {:?}\nanswered {text:?}\nsent on {seen:#?}", String::from_utf8_lossy(bytes));
    for s in &seen {
        assert!(!s.line().contains("/evil"), "a smuggled request: {about}");
        assert!(!s.head.to_ascii_lowercase().contains("smuggled"), "a smuggled field: {about}");
        clean(s, &about);
    }
    let whole: Vec<_> = seen.iter().filter(|s| s.whole).collect();
    let refused = |text: &str| {
        let status = text.split(' ').nth(1).unwrap_or_default();
        matches!(status, "400" | "501" | "431" | "505") || text.is_empty()
    };
    match may {
        // A body that breaks while it streams has reached the service in part: it is never seen whole.
        May::Refused => assert!(whole.is_empty() && !text.contains(" 200 "), "{about}"),
        May::RefusedOrOne(_) if whole.is_empty() => assert!(refused(&text), "{about}"),
        May::One(body) | May::RefusedOrOne(body) => {
            assert_eq!(whole.len(), 1, "{about}");
            assert_eq!(whole[0].body, body, "{about}");
            assert_eq!(text.matches(" 200 OK").count(), 1, "{about}");
        }
    }
    // Somebody else's request, on whatever connection to the service is idle now, is itself.
    let other = exchange(w, b"GET /other HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n").await;
    assert!(other.starts_with("HTTP/1.1 200"), "{about}\nthe next request got {other:?}");
    let after = recorder.take();
    // A request that broke off may be noticed only now; it was never whole.
    let lines: Vec<_> = after.iter().filter(|s| s.whole).map(|s| s.line().to_owned()).collect();
    assert_eq!(lines, ["GET /other HTTP/1.1"], "{about}");
}

/// One connection: writes, ends its side, reads to the end (a kept connection: until it falls silent).
async fn exchange(w: &World, bytes: &[u8]) -> String {
    let mut s = TcpStream::connect(w.address()).await.unwrap();
    // The gateway may refuse and close before all is written.
    let _ = s.write_all(bytes).await;
    let mut out = Vec::new();
    let mut buf = [0; 4096];
    while let Ok(Ok(n)) = tokio::time::timeout(Duration::from_millis(150), s.read(&mut buf)).await {
        if n == 0 {
            break;
        }
        out.extend_from_slice(&buf[..n]);
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// What every request that is sent on must be like.
fn clean(s: &Seen, about: &str) {
    assert!(!s.head.replace("\r\n", "").contains(['\r', '\n', '\0']), "a bare CR, LF or NUL: {about}");
    assert_eq!(s.line().split(' ').count(), 3, "{about}");
    assert_eq!(s.field("host").len(), 1, "{about}");
    assert!(s.field("content-length").len() + s.field("transfer-encoding").len() <= 1, "{about}");
    for l in s.head.lines().skip(1).filter(|l| !l.is_empty()) {
        assert!(!l.starts_with([' ', '\t']), "a folded field: {about}");
        let name = l.split_once(':').unwrap_or_else(|| panic!("no colon in {l:?}: {about}")).0;
        assert!(!name.contains([' ', '\t']), "a blank in a name: {about}");
    }
}

async fn world() -> (World, Recorder) {
    let (recorder, address) = Recorder::start().await;
    (one(address, |_| {}).await, recorder)
}

const EVIL: &str = "GET /evil HTTP/1.1\r\nhost: h\r\nsmuggled: 1\r\n\r\n";

/// A POST with these framing fields, a body, and a request behind it.
fn post(fields: &str, body: &str) -> Vec<u8> {
    format!("POST /a HTTP/1.1\r\nhost: h\r\n{fields}\r\n\r\n{body}").into_bytes()
}

#[tokio::test]
async fn lengths_that_conflict_or_are_no_numbers_are_refused() {
    let (w, r) = world().await;
    for fields in [
        "content-length: 3\r\ncontent-length: 5",
        "content-length: 3, 5",
        "content-length: 5\r\nContent-Length: 3",
        "content-length: +3",
        "content-length: -3",
        "content-length: 0x3",
        "content-length: 3 3",
        "content-length: 3;5",
        "content-length: 1e1",
        "content-length:",
        "content-length: 99999999999999999999999",
        "content-length: \u{0663}",
        "content-length : 3",
        "content-length\t: 3",
        " content-length: 3",
        "content-length\u{b}: 3",
    ] {
        check(&w, &r, "length", &post(fields, &format!("abc{EVIL}")), May::Refused).await;
    }
    // RFC 9112 6.3: the same number twice may be read as one, or refused. No request may come of what follows.
    for fields in ["content-length: 3\r\ncontent-length: 3", "content-length: 3, 3"] {
        let fields = format!("{fields}\r\nconnection: close");
        check(&w, &r, "length twice", &post(&fields, &format!("abc{EVIL}")), May::RefusedOrOne(b"abc")).await;
    }
    check(&w, &r, "length", &post("content-length: 003\r\nconnection: close", "abc"), May::RefusedOrOne(b"abc")).await;
}

#[tokio::test]
async fn a_length_beside_chunked_is_refused_or_dropped_and_the_connection_ends() {
    let (w, r) = world().await;
    for fields in [
        "content-length: 4\r\ntransfer-encoding: chunked",
        "transfer-encoding: chunked\r\ncontent-length: 4",
        "content-length: 0\r\ntransfer-encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 200",
    ] {
        // CL.TE and TE.CL (RFC 9112 6.1): what follows the last chunk is nobody's request.
        let body = format!("3\r\nabc\r\n0\r\n\r\n{EVIL}");
        check(&w, &r, "CL.TE", &post(fields, &body), May::RefusedOrOne(b"abc")).await;
    }
}

#[tokio::test]
async fn transfer_codings_that_only_look_like_chunked_are_refused() {
    let (w, r) = world().await;
    for coding in [
        "xchunked",
        "chunkedx",
        "identity",
        "gzip",
        "chunked, identity",
        "chunked, gzip",
        "identity, xchunked",
        "chunked;q=1",
        "\"chunked\"",
        "chunked\u{b}",
        "chunked\u{c}",
        "chu nked",
        "",
        "chunked\r\ntransfer-encoding: identity",
        "chunked\r\ntransfer-encoding: xchunked",
        "xchunked\r\n chunked",
        "\r\n chunked",
    ] {
        let fields = format!("transfer-encoding: {coding}");
        check(&w, &r, "coding", &post(&fields, &format!("0\r\n\r\n{EVIL}")), May::Refused).await;
    }
    for name in ["transfer-encoding ", "transfer-encoding\t", " transfer-encoding", "transfer\u{b}encoding"] {
        let fields = format!("{name}: chunked");
        check(&w, &r, "coding's name", &post(&fields, &format!("0\r\n\r\n{EVIL}")), May::Refused).await;
    }
    // HTTP/1.0 has no chunked (RFC 9112 6.1).
    let old = format!("POST /a HTTP/1.0\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{EVIL}");
    check(&w, &r, "1.0", old.as_bytes(), May::Refused).await;
    // A name that is not the field, but that a lenient service could take for it, is a field like any other; no case
    // of ours sends it on in the place of the framing.
    for (coding, body) in [("Chunked", &b"abc"[..]), ("\tchunked", b"abc"), ("chunked \t", b"abc"), ("CHUNKED", b"abc")]
    {
        let fields = format!("transfer-encoding: {coding}\r\nconnection: close");
        let body = if body == b"abc" { May::RefusedOrOne(b"abc") } else { May::Refused };
        check(&w, &r, "coding's form", &post(&fields, &format!("3\r\nabc\r\n0\r\n\r\n{EVIL}")), body).await;
    }
    for fields in [
        "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\nconnection: close",
        "transfer-encoding: chunked, chunked\r\nconnection: close",
        "transfer-encoding: identity, chunked\r\nconnection: close",
        "transfer-encoding: gzip, chunked\r\nconnection: close",
        "transfer-encoding: ,chunked\r\nconnection: close",
    ] {
        check(&w, &r, "codings", &post(fields, &format!("3\r\nabc\r\n0\r\n\r\n{EVIL}")), May::RefusedOrOne(b"abc"))
            .await;
    }
}

#[tokio::test]
async fn chunks_are_read_strictly_and_made_anew() {
    let (w, r) = world().await;
    let chunked = "transfer-encoding: chunked\r\nconnection: close";
    for body in [
        "3;ext=1\r\nabc\r\n0\r\n\r\n",
        "3;ext=\"a;b\"\r\nabc\r\n0;last\r\n\r\n",
        "0003\r\nabc\r\n0\r\n\r\n",
        "3 \r\nabc\r\n0\r\n\r\n",
        "3\r\nabc\r\n000\r\n\r\n",
    ] {
        let body = format!("{body}{EVIL}");
        check(&w, &r, "chunks", &post(chunked, &body), May::RefusedOrOne(b"abc")).await;
    }
    for body in [
        "+3\r\nabc\r\n0\r\n\r\n",
        "-3\r\nabc\r\n0\r\n\r\n",
        "0x3\r\nabc\r\n0\r\n\r\n",
        "3_0\r\nabc\r\n0\r\n\r\n",
        "\r\nabc\r\n0\r\n\r\n",
        "g\r\nabc\r\n0\r\n\r\n",
        "ffffffffffffffff3\r\nabc\r\n0\r\n\r\n",
        "10000000000000003\r\nabc\r\n0\r\n\r\n",
        "3\r\nabcd\r\n0\r\n\r\n",
        "3\r\nabc0\r\n\r\n",
        "3\rabc\r\n0\r\n\r\n",
        "3\nabc\n0\n\n",
        "3;a\nb\r\nabc\r\n0\r\n\r\n",
        "3\r\nabc\n0\r\n\r\n",
    ] {
        let body = format!("{body}{EVIL}");
        check(&w, &r, "bad chunks", &post(chunked, &body), May::Refused).await;
    }
    // Trailers do not become fields of the head, and cannot frame anything.
    let body = format!("3\r\nabc\r\n0\r\ncontent-length: 9\r\ntransfer-encoding: chunked\r\nhost: evil\r\n\r\n{EVIL}");
    check(&w, &r, "trailers", &post(chunked, &body), May::RefusedOrOne(b"abc")).await;
}

#[tokio::test]
async fn bare_returns_folds_and_blanks_in_the_head_are_refused() {
    let (w, r) = world().await;
    for head in [
        // obs-fold (RFC 9112 5.2).
        "POST /a HTTP/1.1\r\nhost: h\r\nx: 1\r\n content-length: 3\r\n\r\n",
        "POST /a HTTP/1.1\r\nhost: h\r\nx: 1\r\n\tcontent-length: 3\r\n\r\n",
        "POST /a HTTP/1.1\r\n host: h\r\ncontent-length: 3\r\n\r\n",
        // Bare CR.
        "POST /a HTTP/1.1\r\nhost: h\r\nx: 1\rsmuggled: 1\r\n\r\n",
        "POST /a HTTP/1.1\r\nhost: h\r\nx: 1\r\r\nsmuggled: 1\r\n\r\n",
        "POST /a HTTP/1.1\r\nhost: h\r\rsmuggled: 1\r\n\r\n",
        "POST /a\rHTTP/1.1\r\nhost: h\r\n\r\n",
        // NUL and blanks where none may be.
        "POST /a HTTP/1.1\r\nhost: h\r\nx: a\0b\r\n\r\n",
        "POST /a HTTP/1.1\r\nhost: h\r\nx\0: 1\r\n\r\n",
        "POST /a HTTP/1.1\r\nhost: h\r\nx y: 1\r\n\r\n",
        "POST /a HTTP/1.1\r\nhost: h\r\n: 1\r\n\r\n",
        "POST /a HTTP/1.1\r\nhost: h\r\nsmuggled\r\n\r\n",
        "POST /a smuggled HTTP/1.1\r\nhost: h\r\n\r\n",
        "POST /a\tHTTP/1.1\r\nhost: h\r\n\r\n",
        "POST /a HTTP/1.1 smuggled\r\nhost: h\r\n\r\n",
        "PO ST /a HTTP/1.1\r\nhost: h\r\n\r\n",
        "POST /a HTTP/1.10\r\nhost: h\r\n\r\n",
        "POST /a http/1.1\r\nhost: h\r\n\r\n",
        "POST /a HTTP/2.0\r\nhost: h\r\n\r\n",
    ] {
        check(&w, &r, "head", head.as_bytes(), May::Refused).await;
    }
    // A bare LF may end a line (RFC 9112 2.2) or be refused; what is sent on has none.
    for head in [
        "GET /a HTTP/1.1\nhost: h\nconnection: close\n\n",
        "GET /a HTTP/1.1\r\nhost: h\nconnection: close\r\n\r\n",
        "GET /a HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\n",
    ] {
        check(&w, &r, "bare LF", head.as_bytes(), May::RefusedOrOne(b"")).await;
    }
    // A body with a GET is a body, and not the next request.
    let get =
        format!("GET /a HTTP/1.1\r\nhost: h\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{EVIL}", EVIL.len());
    check(&w, &r, "GET with a body", get.as_bytes(), May::One(EVIL.as_bytes())).await;
}

#[tokio::test]
async fn a_request_has_one_host() {
    let (w, r) = world().await;
    for head in [
        "GET /a HTTP/1.1\r\nhost: h\r\nhost: evil\r\n\r\n",
        "GET /a HTTP/1.1\r\nhost: h\r\nHost: h\r\n\r\n",
        "GET /a HTTP/1.1\r\n\r\n",
        "GET /a HTTP/1.1\r\nhost : h\r\n\r\n",
        "GET /a HTTP/1.1\r\nx: 1\r\n host: h\r\n\r\n",
    ] {
        check(&w, &r, "host", head.as_bytes(), May::Refused).await;
    }
    // An absolute target's authority is the host (RFC 9112 3.2.2), whatever Host says: the route is found by it, and
    // the service is told it.
    r.take();
    let absolute = b"GET http://h/a HTTP/1.1\r\nhost: other\r\nconnection: close\r\n\r\n";
    let text = exchange(&w, absolute).await;
    let seen = r.take();
    assert!(text.starts_with("HTTP/1.1 200") && seen.len() == 1, "{text} {seen:#?}");
    assert!(seen[0].line().starts_with("GET /a ") && seen[0].field("host") == ["h"], "{seen:#?}");
    let named = b"GET http://other@h/a HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n";
    check(&w, &r, "user information", named, May::Refused).await;
}

#[tokio::test]
async fn connection_cannot_name_the_framing_away() {
    let (w, r) = world().await;
    for named in ["content-length", "host", "content-length, host", "transfer-encoding"] {
        let fields = format!("content-length: 3\r\nconnection: close, {named}");
        check(&w, &r, "named by connection", &post(&fields, &format!("abc{EVIL}")), May::RefusedOrOne(b"abc")).await;
        let fields = format!("transfer-encoding: chunked\r\nconnection: close, {named}");
        let body = format!("3\r\nabc\r\n0\r\n\r\n{EVIL}");
        check(&w, &r, "named by connection", &post(&fields, &body), May::RefusedOrOne(b"abc")).await;
    }
}

#[tokio::test]
async fn pipelined_requests_stay_two_and_in_order() {
    let (w, r) = world().await;
    let both = b"POST /1 HTTP/1.1\r\nhost: h\r\ncontent-length: 3\r\n\r\nabcGET /2 HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n";
    let text = exchange(&w, both).await;
    assert_eq!(text.matches("HTTP/1.1 200 OK").count(), 2, "{text}");
    let lines: Vec<_> = r.take().iter().map(|s| (s.line().to_owned(), s.body.clone())).collect();
    assert_eq!(lines, [("POST /1 HTTP/1.1".into(), b"abc".to_vec()), ("GET /2 HTTP/1.1".into(), vec![])]);
}

#[tokio::test]
async fn a_body_that_stops_short_does_not_take_the_next_requests_bytes() {
    let (w, r) = world().await;
    {
        let mut s = TcpStream::connect(w.address()).await.unwrap();
        s.write_all(b"POST /a HTTP/1.1\r\nhost: h\r\ncontent-length: 200\r\n\r\nabc").await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let other = exchange(&w, b"GET /other HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n").await;
    assert!(other.starts_with("HTTP/1.1 200"), "{other}");
    let whole: Vec<_> = r.take().into_iter().filter(|s| s.whole).collect();
    assert_eq!(whole.iter().map(Seen::line).collect::<Vec<_>>(), ["GET /other HTTP/1.1"], "{whole:#?}");
}

/// HTTP/2 by hand: a client library would refuse to send these.
pub mod h2_by_hand {
    use super::*;

    pub async fn ask(w: &World, fields: &[(&[u8], &[u8])], body: Option<&[u8]>) -> Vec<(u8, Vec<u8>)> {
        let mut s = TcpStream::connect(w.address()).await.unwrap();
        let mut out = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        frame(&mut out, 4, 0, 0, &[]);
        let mut block = Vec::new();
        for (name, value) in fields {
            // RFC 7541 6.2.2: a literal field without indexing, name and value as they are.
            block.push(0);
            block.push(name.len() as u8);
            block.extend_from_slice(name);
            block.push(value.len() as u8);
            block.extend_from_slice(value);
        }
        frame(&mut out, 1, if body.is_some() { 4 } else { 5 }, 1, &block);
        if let Some(b) = body {
            frame(&mut out, 0, 1, 1, b);
        }
        s.write_all(&out).await.unwrap();
        let mut got = Vec::new();
        loop {
            let mut head = [0; 9];
            let read = tokio::time::timeout(Duration::from_millis(300), s.read_exact(&mut head)).await;
            let Ok(Ok(_)) = read else { return got };
            let n = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            let mut payload = vec![0; n];
            s.read_exact(&mut payload).await.unwrap();
            got.push((head[3], payload));
        }
    }

    pub fn frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        out.extend_from_slice(&(payload.len() as u32).to_be_bytes()[1..]);
        out.extend_from_slice(&[kind, flags]);
        out.extend_from_slice(&stream.to_be_bytes());
        out.extend_from_slice(payload);
    }
}

#[tokio::test]
async fn what_came_over_http2_cannot_become_two_requests_of_http1() {
    let (w, r) = world().await;
    type Field = (&'static [u8], &'static [u8]);
    const METHOD: Field = (b":method", b"POST");
    const PATH: Field = (b":path", b"/a");
    const SCHEME: Field = (b":scheme", b"http");
    const AUTHORITY: Field = (b":authority", b"h");
    let normal = [METHOD, SCHEME, AUTHORITY, PATH];
    let with = |f: Field| [normal.to_vec(), vec![f]].concat();
    let instead = |f: Field| normal.iter().map(|n| if n.0 == f.0 { f } else { *n }).collect::<Vec<_>>();
    let smuggle: &[u8] = b"abcGET /evil HTTP/1.1\r\nsmuggled: 1\r\n\r\n";
    let cases: Vec<(&str, Vec<Field>, bool)> = vec![
        ("CRLF in a value", with((b"x", b"1\r\nsmuggled: 1")), false),
        ("LF in a value", with((b"x", b"1\nsmuggled: 1")), false),
        ("CR in a value", with((b"x", b"1\rsmuggled: 1")), false),
        ("NUL in a value", with((b"x", b"1\0")), false),
        ("CRLF in a name", with((b"x\r\nsmuggled", b"1")), false),
        ("colon in a name", with((b"smuggled: 1\r\nx", b"1")), false),
        ("blank in a name", with((b"transfer-encoding ", b"chunked")), false),
        ("capital in a name", with((b"Smuggled", b"1")), false),
        ("transfer-encoding", with((b"transfer-encoding", b"chunked")), false),
        ("connection", with((b"connection", b"keep-alive")), false),
        ("upgrade", with((b"upgrade", b"websocket")), false),
        ("a length that is too short", with((b"content-length", b"3")), false),
        ("a length that is no number", with((b"content-length", b"3x")), false),
        (
            "two lengths",
            [normal.to_vec(), vec![(&b"content-length"[..], &b"3"[..]), (b"content-length", b"37")]].concat(),
            false,
        ),
        ("blanks in :path", instead((b":path", b"/a HTTP/1.1\r\nsmuggled: 1\r\n\r\nGET /evil")), false),
        ("a blank in :path", instead((b":path", b"/a HTTP/1.1")), false),
        ("CRLF in :method", instead((b":method", b"POST /evil HTTP/1.1\r\n\r\nPOST")), false),
        ("CRLF in :authority", instead((b":authority", b"h\r\nsmuggled: 1")), false),
        ("a blank in :authority", instead((b":authority", b"h smuggled")), false),
        ("an empty :path", instead((b":path", b"")), false),
        ("two :path", with((b":path", b"/evil")), false),
        ("two :method", with((b":method", b"GET")), false),
        ("an unknown pseudo-field", with((b":smuggled", b"1")), false),
        ("a pseudo-field after a field", vec![METHOD, SCHEME, AUTHORITY, (b"x", b"1"), PATH], false),
        ("nothing wrong", normal.to_vec(), true),
    ];
    for (what, fields, good) in cases {
        r.take();
        let frames = h2_by_hand::ask(&w, &fields, Some(smuggle)).await;
        // The head of an answer with `:status: 200`, which has an index of its own.
        let ok = frames.iter().any(|(kind, p)| *kind == 1 && p.first() == Some(&0x88));
        let seen = r.take();
        let about = format!("{what}: {frames:?}\nsent on {seen:#?}");
        for s in &seen {
            assert!(!s.line().contains("/evil") && !s.head.contains("smuggled"), "{about}");
            clean(s, &about);
        }
        let whole: Vec<_> = seen.iter().filter(|s| s.whole).collect();
        assert_eq!((whole.len(), ok), (usize::from(good), good), "{about}");
        if good {
            assert_eq!(whole[0].body, smuggle, "{about}");
        }
    }
    // A Host beside `:authority` (RFC 9113 8.3.1): the route is found by `:authority`, and the service is told it.
    r.take();
    h2_by_hand::ask(&w, &with((b"host", b"evil")), None).await;
    let seen = r.take();
    assert_eq!(seen.len(), 1, "{seen:#?}");
    clean(&seen[0], "host beside :authority");
    assert_eq!(seen[0].field("host"), ["h"], "{seen:#?}");
}

#[tokio::test]
async fn a_service_cannot_answer_two_requests_with_one() {
    // What a service sends after its answer, or framing it says in two ways, is not the next request's answer.
    for answer in [
        &b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil"[..],
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 6\r\n\r\nokevil",
        b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\nevil",
        b"HTTP/1.1 204 No Content\r\ncontent-length: 4\r\n\r\nevil",
        b"HTTP/1.1 304 Not Modified\r\ncontent-length: 4\r\n\r\nevil",
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut s, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut buf = [0; 4096];
                    let mut first = true;
                    while let Ok(1..) = s.read(&mut buf).await {
                        let bytes = if std::mem::take(&mut first) {
                            answer
                        } else {
                            b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nright"
                        };
                        s.write_all(bytes).await.unwrap();
                    }
                });
            }
        });
        let w = one(address, |r| r.policy.retry = None).await;
        for _ in 0..3 {
            let text = exchange(&w, b"GET /a HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n").await;
            assert!(!text.contains("evil"), "{text:?} for {:?}", String::from_utf8_lossy(answer));
        }
    }
}
