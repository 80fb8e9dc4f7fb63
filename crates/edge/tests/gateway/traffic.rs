//! Splits, rewriting, header fields, mirrors, CORS, compression, limits, faults, buffering.

use std::io::Read as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt as _, Full, StreamBody};
use weft_edge::spec::*;
use weft_mesh::Protocol;

use crate::support::*;

fn with(path: &str, fields: &[(&str, &str)]) -> Request<Full<Bytes>> {
    let mut r = Request::get(path).header("host", "shop.test:8080");
    for (k, v) in fields {
        r = r.header(*k, *v);
    }
    r.body(Full::default()).unwrap()
}

async fn text(r: Response<hyper::body::Incoming>) -> String {
    String::from_utf8(r.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

async fn named(name: &'static str) -> std::net::SocketAddr {
    service(move |_| async move { answer(200, name) }).await
}

#[tokio::test]
async fn a_split_follows_its_weights_and_a_sticky_caller_stays() {
    let mut r = route("all", "/**", "a");
    let share = |service: &str, weight| Share { service: name(service), path: None, weight };
    r.to = Target::Split(vec![share("a", 3), share("b", 1)]);
    r.traffic.sticky = Some(Sticky::Cookie("user".into()));
    let services =
        [spec_of("a", Protocol::Http, &[named("a").await]), spec_of("b", Protocol::Http, &[named("b").await])];
    let w = World::start(gateway(vec![r]), &services).await;
    let mut client = h2(w.address()).await;
    let mut ask = async |cookie: Option<String>| {
        let mut r = Request::get("http://shop.test/x");
        if let Some(c) = cookie {
            r = r.header("cookie", c);
        }
        text(client.send_request(r.body(Full::default()).unwrap()).await.unwrap()).await
    };
    let mut b = 0;
    for _ in 0..400 {
        b += usize::from(ask(None).await == "b");
    }
    assert!((60..140).contains(&b), "{b} of 400 for a share of a quarter");
    let mut seen = std::collections::HashSet::new();
    for user in 0..20 {
        let first = ask(Some(format!("user={user}"))).await;
        for _ in 0..5 {
            assert_eq!(ask(Some(format!("x=1; user={user}"))).await, first, "user {user} moved");
        }
        seen.insert(first);
    }
    assert_eq!(seen.len(), 2, "both shares have callers");
}

#[tokio::test]
async fn host_and_path_are_rewritten() {
    let address = echo().await;
    for (host, rewrite, path, line, asked) in [
        (Host::Service, Rewrite::Prefix("/v1".into(), "/".into()), "/v1/a?x=1", "GET /a?x=1", address.to_string()),
        (
            Host::Name("inner.test".into()),
            Rewrite::Prefix("/v1/".into(), "/api".into()),
            "/v1",
            "GET /api",
            "inner.test".into(),
        ),
        (
            Host::Preserve,
            Rewrite::Regex("^/v([0-9]+)/".into(), "/api/$1-".into()),
            "/v12/a",
            "GET /api/12-a",
            "shop.test".into(),
        ),
        (Host::Preserve, Rewrite::Prefix("/v1".into(), "/x".into()), "/v12/a", "GET /v12/a", "shop.test".into()),
    ] {
        let w = one(address, |r| {
            r.traffic.host = host;
            r.traffic.rewrite = Some(rewrite);
        })
        .await;
        let said = text(w.send(get(path)).await).await;
        assert_eq!(said.lines().next(), Some(line));
        assert!(said.contains(&format!("\nhost: {asked}\n")), "{said}");
        let mut client = h2(w.address()).await;
        let r = Request::get(format!("http://shop.test{path}")).body(Full::default()).unwrap();
        let said = text(client.send_request(r).await.unwrap()).await;
        assert!(said.contains(&format!("\nhost: {asked}\n")), "over HTTP/2: {said}");
    }
}

#[tokio::test]
async fn redirects_rewrite_scheme_host_path_and_query_with_captures() {
    let redirect = || Redirect { status: 308, scheme: None, host: None, port: None, path: None, query: None };
    for (change, want) in [
        (Redirect { scheme: Some("https".into()), ..redirect() }, "https://shop.test/old/7?a=b"),
        (Redirect { host: Some("new.test".into()), status: 301, ..redirect() }, "http://new.test/old/7?a=b"),
        (Redirect { path: Some("/new/{id}".into()), status: 302, ..redirect() }, "/new/7?a=b"),
        (Redirect { path: Some("/n".into()), query: Some("was={id}".into()), status: 303, ..redirect() }, "/n?was=7"),
        (
            Redirect { query: Some(String::new()), port: Some(8443), status: 307, ..redirect() },
            "http://shop.test:8443/old/7",
        ),
    ] {
        let status = change.status;
        let mut r = route("old", "/old/{id}", "s");
        r.to = Target::Redirect(change);
        let w = World::start(gateway(vec![r]), &[]).await;
        let got = w.send(with("/old/7?a=b", &[])).await;
        assert_eq!((got.status().as_u16(), got.headers()["location"].to_str().unwrap()), (status, want));
    }
    let mut r = route("all", "/go/**", "s");
    r.to = Target::Redirect(Redirect { path: Some("/{**}".into()), ..redirect() });
    let w = World::start(gateway(vec![r]), &[]).await;
    let got = w.send(with("/go//evil.test/x", &[])).await;
    assert_eq!((got.status().as_u16(), got.headers().get("location")), (400, None), "never a place on another host");
}

#[tokio::test]
async fn a_fixed_answer_needs_no_service() {
    let mut r = route("fixed", "/robots.txt", "s");
    let headers = vec![("X-A".to_owned(), "1".to_owned())];
    r.to = Target::Respond(Respond { status: StatusCode::GONE, body: "gone".into(), headers });
    let w = World::start(gateway(vec![r]), &[]).await;
    let got = w.send(get("/robots.txt")).await;
    assert_eq!((got.status().as_u16(), &got.headers()["x-a"]), (410, &"1".parse().unwrap()));
    assert_eq!(got.headers()["content-type"], "text/plain; charset=utf-8");
    assert_eq!(text(got).await, "gone");
}

#[tokio::test]
async fn header_fields_are_set_added_and_removed_both_ways() {
    let w = one(echo().await, |r| {
        r.matches.path = "/u/{id}/**".into();
        r.traffic.request = vec![
            FieldRule::Remove("X-Secret".into()),
            FieldRule::Set("X-User".into(), "{id} from {client.address} at {request.host}".into()),
            FieldRule::Add("X-Many".into(), "2".into()),
        ];
        r.traffic.response =
            vec![FieldRule::Set("X-Route".into(), "{route.name} {trace.id}".into()), FieldRule::Remove("Via".into())];
    })
    .await;
    let trace = "0af7651916cd43dd8448eb211c80319c";
    let tp = format!("00-{trace}-b7ad6b7169203331-01");
    let got =
        w.send(with("/u/7/x", &[("x-secret", "1"), ("x-many", "1"), ("x-user", "me"), ("traceparent", &tp)])).await;
    assert_eq!(got.headers()["x-route"], format!("all {trace}"));
    assert!(!got.headers().contains_key("via"));
    let said = text(got).await;
    for line in ["x-user: 7 from 127.0.0.1 at shop.test:8080", "x-many: 1", "x-many: 2"] {
        assert!(said.lines().any(|l| l == line), "{line} is not in\n{said}");
    }
    assert!(!said.contains("x-secret") && !said.contains("x-user: me"), "{said}");
}

async fn counted(w: &World, line: &str) {
    let seen = || w.telemetry.metrics().render_prometheus();
    for _ in 0..400 {
        if seen().contains(line) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("{line} is not in\n{}", seen().lines().filter(|l| l.contains("mirror")).collect::<Vec<_>>().join("\n"));
}

#[tokio::test]
async fn a_mirror_gets_copies_and_differences_are_counted_and_the_caller_never_waits() {
    let copies = Arc::new(AtomicUsize::new(0));
    let seen = copies.clone();
    let mirror = service(move |r: Request<hyper::body::Incoming>| {
        let seen = seen.clone();
        async move {
            assert_eq!(r.headers()["weft-mirrored"], "true");
            let path = r.uri().path().to_owned();
            let body = r.into_body().collect().await.unwrap().to_bytes();
            seen.fetch_add(1, Ordering::SeqCst);
            match path.as_str() {
                "/slow" => std::future::pending().await,
                "/status" => answer(500, body),
                "/body" => answer(200, "other"),
                _ => answer(200, body),
            }
        }
    })
    .await;
    let main = service(|r| async move {
        let body = r.into_body().collect().await.unwrap().to_bytes();
        answer(200, body)
    })
    .await;
    let mut r = route("all", "/**", "s");
    r.protocols.upgrade = vec!["websocket".into()];
    r.traffic.mirror = Some(Mirror { service: name("m"), share: 1.0, bodies: true });
    let services = [spec_of("s", Protocol::Http, &[main]), spec_of("m", Protocol::Http, &[mirror])];
    let w = World::start(gateway(vec![r]), &services).await;
    let post = |path: &str, body: Bytes| {
        let stream = StreamBody::new(futures_util::stream::iter(
            body.chunks(64 << 10)
                .map(|c| Ok::<_, BoxError>(Frame::data(Bytes::copy_from_slice(c))))
                .collect::<Vec<_>>(),
        ));
        Request::post(path).header("host", "h").body(stream).unwrap()
    };
    for path in ["/same", "/status", "/body", "/slow"] {
        let got = send(w.address(), post(path, Bytes::from_static(b"hello"))).await;
        assert_eq!(text(got).await, "hello", "{path}");
    }
    counted(&w, r#"weft_mirrored_total{route="all",result="same"} 1"#).await;
    counted(&w, r#"weft_mirrored_total{route="all",result="different"} 2"#).await;
    let large = Bytes::from(vec![b'x'; (1 << 20) + 1]);
    let got = send(w.address(), post("/same", large.clone())).await.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(got, large);
    counted(&w, r#"weft_mirrored_total{route="all",result="skipped"} 1"#).await;
    let upgrade = [("connection", "upgrade"), ("upgrade", "websocket"), ("sec-websocket-key", "x")];
    assert_eq!(w.send(with("/same", &upgrade)).await.status(), 200, "the service did not agree");
    counted(&w, r#"weft_mirrored_total{route="all",result="skipped"} 2"#).await;
    assert_eq!(copies.load(Ordering::SeqCst), 4);
}

#[tokio::test]
async fn preflights_are_answered_here_and_answers_say_who_may_read_them() {
    let hits = Arc::new(AtomicUsize::new(0));
    let count = hits.clone();
    let address = service(move |_| {
        count.fetch_add(1, Ordering::SeqCst);
        async {
            let mut r = answer(200, "x");
            r.headers_mut().insert("access-control-allow-origin", "*".parse().unwrap());
            r
        }
    })
    .await;
    let w = one(address, |r| {
        r.matches.path = "/a".into();
        r.matches.methods = vec!["PUT".into(), "GET".into()];
        r.traffic.cors = Some(Cors {
            origins: vec!["https://*.shop.test".into()],
            expose: vec!["X-Total".into()],
            credentials: true,
            max_age: Some(Duration::from_secs(600)),
            ..Cors::default()
        });
    })
    .await;
    let preflight = |origin: &str, method: &str| {
        let r = Request::options("/a").header("host", "h").header("origin", origin);
        let r = r.header("access-control-request-method", method).header("access-control-request-headers", "x-a, x-b");
        r.body(Full::default()).unwrap()
    };
    let got = w.send(preflight("https://web.shop.test", "PUT")).await;
    let h = |name: &str| got.headers()[name].to_str().unwrap();
    assert_eq!(got.status(), 204);
    assert_eq!(h("access-control-allow-origin"), "https://web.shop.test");
    assert_eq!(h("access-control-allow-methods"), "PUT, GET");
    assert_eq!(h("access-control-allow-headers"), "x-a, x-b");
    assert_eq!((h("access-control-allow-credentials"), h("access-control-max-age")), ("true", "600"));
    let vary: Vec<_> = got.headers().get_all("vary").iter().map(|v| v.to_str().unwrap()).collect();
    assert_eq!(vary, ["access-control-request-method", "access-control-request-headers", "origin"]);
    assert_eq!(w.send(preflight("https://evil.test", "PUT")).await.status(), 403);
    assert_eq!(w.send(preflight("https://web.shop.test", "DELETE")).await.status(), 405, "no route takes it");
    assert_eq!(hits.load(Ordering::SeqCst), 0, "no preflight reached the service");

    let got = w.send(with("/a", &[("origin", "https://web.shop.test")])).await;
    assert_eq!(got.headers()["access-control-allow-origin"], "https://web.shop.test");
    assert_eq!(got.headers()["access-control-expose-headers"], "X-Total");
    for fields in [&[("origin", "https://evil.test")][..], &[]] {
        let got = w.send(with("/a", fields)).await;
        assert!(!got.headers().contains_key("access-control-allow-origin"), "the service's own field is replaced");
        assert_eq!(got.headers()["vary"], "origin");
    }
}

fn compressed() -> Compress {
    Compress { codings: vec![Coding::Zstd, Coding::Brotli, Coding::Gzip], min_size: 64, types: vec![] }
}

fn decoded(coding: &str, data: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    match coding {
        "gzip" => drop(flate2::read::GzDecoder::new(data).read_to_end(&mut out).unwrap()),
        "br" => drop(brotli::Decompressor::new(data, 4096).read_to_end(&mut out).unwrap()),
        "zstd" => out = zstd::stream::decode_all(data).unwrap(),
        other => panic!("{other}"),
    }
    out
}

#[tokio::test]
async fn answers_are_compressed_as_the_client_likes_and_read_back_the_same() {
    let page: String = (0..20_000).map(|i| format!("line {i}\n")).collect();
    let sent = page.clone();
    let address = service(move |_| {
        let mut r = answer(200, sent.clone());
        r.headers_mut().insert("content-type", "text/plain".parse().unwrap());
        r.headers_mut().insert("etag", "\"v1\"".parse().unwrap());
        async { r }
    })
    .await;
    let w = one(address, |r| r.traffic.compress = Some(compressed())).await;
    for (accept, coding) in [("gzip", "gzip"), ("gzip;q=0.5, br", "br"), ("gzip, br, zstd", "zstd")] {
        let got = w.send(with("/", &[("accept-encoding", accept)])).await;
        let h = got.headers();
        assert_eq!(
            (&h["content-encoding"], &h["etag"], &h["vary"]),
            (&coding.parse().unwrap(), &"W/\"v1\"".parse().unwrap(), &"accept-encoding".parse().unwrap())
        );
        assert!(!h.contains_key("content-length"));
        let data = got.into_body().collect().await.unwrap().to_bytes();
        assert!(data.len() < page.len() / 3, "{coding}: {} of {}", data.len(), page.len());
        assert!(decoded(coding, &data) == page.as_bytes(), "{coding}");
    }
    let plain = w.send(with("/", &[])).await;
    assert_eq!(
        (plain.headers()["etag"].to_str().unwrap(), plain.headers()["vary"].to_str().unwrap()),
        ("\"v1\"", "accept-encoding")
    );
    assert_eq!(text(plain).await, page);
}

#[tokio::test]
async fn what_a_service_said_before_a_pause_is_flushed_through_the_compressor() {
    for coding in ["gzip", "br", "zstd"] {
        let (tx, rx) = tokio::sync::mpsc::unbounded_channel::<Bytes>();
        let rx = Arc::new(std::sync::Mutex::new(Some(rx)));
        let address = service(move |_| {
            let mut rx = rx.lock().unwrap().take().unwrap();
            let stream = futures_util::stream::poll_fn(move |cx| {
                rx.poll_recv(cx).map(|o| o.map(|b| Ok::<_, BoxError>(Frame::data(b))))
            });
            let mut r = Response::new(StreamBody::new(stream).boxed_unsync());
            r.headers_mut().insert("content-type", "application/x-ndjson".parse().unwrap());
            async { r }
        })
        .await;
        let w = one(address, |r| r.traffic.compress = Some(compressed())).await;
        let mut got = w.send(with("/", &[("accept-encoding", coding)])).await;
        tx.send(Bytes::from_static(b"{\"first\":1}\n")).unwrap();
        let first =
            tokio::time::timeout(Duration::from_secs(5), got.frame()).await.expect("it is flushed").unwrap().unwrap();
        let mut all = first.into_data().unwrap().to_vec();
        tx.send(Bytes::from_static(b"{\"second\":2}\n")).unwrap();
        drop(tx);
        all.extend_from_slice(&got.into_body().collect().await.unwrap().to_bytes());
        assert_eq!(decoded(coding, &all), b"{\"first\":1}\n{\"second\":2}\n", "{coding}");
    }
}

#[tokio::test]
async fn bodies_over_a_routes_limits_are_refused_or_cut() {
    let hits = Arc::new(AtomicUsize::new(0));
    let count = hits.clone();
    let address = service(move |r: Request<hyper::body::Incoming>| {
        count.fetch_add(1, Ordering::SeqCst);
        async move {
            let large = r.uri().path().starts_with("/large");
            let chunked = r.uri().path() == "/large/chunked";
            let n: usize = r.uri().query().and_then(|q| q.parse().ok()).unwrap_or(0);
            let Ok(body) = r.into_body().collect().await else { return answer(400, "") };
            match (large, chunked) {
                (true, true) => {
                    let frames = (0..n).map(|_| Ok::<_, BoxError>(Frame::data(Bytes::from_static(b"12345"))));
                    Response::new(
                        StreamBody::new(futures_util::stream::iter(frames.collect::<Vec<_>>())).boxed_unsync(),
                    )
                }
                (true, false) => answer(200, "12345678901"),
                _ => answer(200, body.to_bytes()),
            }
        }
    })
    .await;
    let w = one(address, |r| {
        r.traffic.request_limit = Some(10);
        r.traffic.response_limit = Some(10);
    })
    .await;
    let post = |body: &'static str| {
        Request::post("/x").header("host", "h").body(Full::new(Bytes::from_static(body.as_bytes()))).unwrap()
    };
    assert_eq!(text(w.send(post("1234567890")).await).await, "1234567890");
    let before = hits.load(Ordering::SeqCst);
    assert_eq!(w.send(post("12345678901")).await.status(), 413);
    assert_eq!(hits.load(Ordering::SeqCst), before, "it was refused before anything was sent on");
    let frames: Vec<_> = (0..3).map(|_| Ok::<_, BoxError>(Frame::data(Bytes::from_static(b"12345")))).collect();
    let r = Request::post("/x").header("host", "h").body(StreamBody::new(futures_util::stream::iter(frames))).unwrap();
    let got = send(w.address(), r).await;
    assert_eq!(got.status(), 413);
    assert_eq!(json(text(got).await.as_bytes())["limit"], 10);

    let got = w.get("/large").await;
    assert_eq!((got.0.as_u16(), json(&got.1)["code"].as_str()), (502, Some("answer-too-large")));
    assert_eq!(text(w.send(get("/large/chunked?2")).await).await, "1234512345");
    let cut = raw(w.address(), b"GET /large/chunked?4 HTTP/1.1\r\nhost: h\r\n\r\n").await;
    assert!(!cut.ends_with("0\r\n\r\n"), "an answer over the limit does not end as if it were whole: {cut}");
    assert!(cut.matches("12345").count() <= 2, "{cut}");
}

#[tokio::test]
async fn faults_strike_those_who_ask_for_them() {
    let w = one(echo().await, |r| {
        r.traffic.fault = Some(Fault {
            delay: None,
            abort: Some((StatusCode::BAD_GATEWAY, 1.0)),
            header: Some(("x-fault".into(), None)),
        });
    })
    .await;
    assert_eq!(w.get("/").await.0, 200);
    let got = w.send(with("/", &[("x-fault", "1")])).await;
    assert_eq!(got.status(), 502);
    assert_eq!(json(text(got).await.as_bytes())["code"], "fault-injected");
}

#[tokio::test]
async fn a_buffered_request_arrives_whole_with_its_length_and_can_be_sent_again() {
    let tries = Arc::new(AtomicUsize::new(0));
    let count = tries.clone();
    let address = service(move |r: Request<hyper::body::Incoming>| {
        let n = count.fetch_add(1, Ordering::SeqCst);
        async move {
            let length = r.headers().get("content-length").map(|v| v.to_str().unwrap().to_owned());
            let body = r.into_body().collect().await.unwrap().to_bytes();
            if n == 0 { answer(503, "") } else { answer(200, format!("{length:?} {}", body.len())) }
        }
    })
    .await;
    let w = one(address, |r| r.traffic.buffer = Some(16)).await;
    let put = |chunks: usize| {
        let frames: Vec<_> =
            (0..chunks).map(|_| Ok::<_, BoxError>(Frame::data(Bytes::from_static(b"12345678")))).collect();
        Request::put("/x").header("host", "h").body(StreamBody::new(futures_util::stream::iter(frames))).unwrap()
    };
    let got = send(w.address(), put(2)).await;
    assert_eq!(text(got).await, "Some(\"16\") 16");
    assert_eq!(tries.load(Ordering::SeqCst), 2, "the first answer was 503");
    assert_eq!(send(w.address(), put(3)).await.status(), 413);
}

#[tokio::test]
async fn a_route_refuses_while_its_queue_is_behind() {
    let mut main = route("all", "/**", "s");
    main.traffic.depends_on = Some(DependsOn { queue: name("q"), max_lag: Lag::Messages(1) });
    let mut fill = route("fill", "/fill", "s");
    fill.to = Target::Queue(name("q"));
    let w = World::start(gateway(vec![main, fill]), &[spec_of("s", Protocol::Http, &[echo().await])]).await;
    w.broker.declare_queue(name("q"), &serde_json::json!({})).await.unwrap();
    assert_eq!(w.get("/x").await.0, 200);
    for _ in 0..2 {
        let r = Request::post("/fill").header("host", "h").body(Full::new(Bytes::from_static(b"m"))).unwrap();
        assert_eq!(w.send(r).await.status(), 202);
    }
    let mut got = w.send(get("/x")).await;
    for _ in 0..60 {
        if got.status() != 200 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        got = w.send(get("/x")).await;
    }
    assert_eq!((got.status().as_u16(), &got.headers()["retry-after"]), (503, &"5".parse().unwrap()));
    assert_eq!(json(text(got).await.as_bytes())["code"], "queue-behind");
}

#[tokio::test]
async fn trusted_proxies_say_who_the_client_is_and_the_access_log_writes_it() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("access.log");
    let mut spec = gateway(vec![route("all", "/**", "s")]);
    spec.trusted_proxies = Some(vec!["127.0.0.0/8".parse().unwrap(), "10.0.0.0/8".parse().unwrap()]);
    spec.forwarded = true;
    spec.access_log = Some(AccessLog { file: Some(file.clone()), sample: 1.0 });
    let w = World::start(spec.clone(), &[spec_of("s", Protocol::Http, &[echo().await])]).await;
    let fields =
        [("x-forwarded-for", "6.6.6.6, 9.9.9.9, 10.1.1.1"), ("user-agent", "test"), ("forwarded", "for=9.9.9.9")];
    let said = text(w.send(with("/a?b=c", &fields)).await).await;
    for line in [
        "x-forwarded-for: 6.6.6.6, 9.9.9.9, 10.1.1.1, 127.0.0.1",
        "forwarded: for=127.0.0.1;host=\"shop.test:8080\";proto=http",
        "forwarded: for=9.9.9.9",
    ] {
        assert!(said.lines().any(|l| l == line), "{line} is not in\n{said}");
    }
    let mut lines = String::new();
    for _ in 0..400 {
        lines = std::fs::read_to_string(&file).unwrap();
        if lines.ends_with('\n') {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let line = json(lines.as_bytes());
    let of = |k: &str| line[k].as_str().unwrap_or_default().to_owned();
    assert_eq!(
        (of("client"), of("method"), of("path"), of("query")),
        ("9.9.9.9".into(), "GET".into(), "/a".into(), "b=c".into())
    );
    assert_eq!((line["status"].as_u64(), of("route"), of("user_agent")), (Some(200), "all".into(), "test".into()));
    assert_eq!((of("host"), of("trace").len()), ("shop.test:8080".into(), 32));
    assert!(weft_core::Timestamp::parse(&of("time")).is_some(), "{line}");

    spec.trusted_proxies = Some(vec!["10.0.0.0/8".parse().unwrap()]);
    w.gateway.swap(&spec).unwrap();
    let said = text(w.send(with("/a", &fields)).await).await;
    assert!(said.contains("\nx-forwarded-for: 127.0.0.1\n") && !said.contains("9.9.9.9"), "{said}");
}

#[tokio::test]
async fn a_collected_body_is_held_to_the_routes_limit_too() {
    let mut routes: Vec<_> = ["keyed", "buffered", "queued", "mapped"]
        .map(|n| {
            let mut r = route(n, &format!("/{n}"), "s");
            r.traffic.request_limit = Some(10);
            r
        })
        .into();
    let public = weft_policy::spec::Idempotency { public: true, ..Default::default() };
    routes[0].policy.idempotency = Some(public);
    routes[1].traffic.buffer = Some(100);
    routes[2].to = Target::Queue(name("q"));
    routes[3].versions = Some(versioned(Some(serde_json::json!("body")), None));
    let w = World::start(gateway(routes), &[spec_of("s", Protocol::Http, &[echo().await])]).await;
    w.broker.declare_queue(name("q"), &serde_json::json!({})).await.unwrap();
    for path in ["/keyed", "/buffered", "/queued", "/mapped"] {
        for (chunks, refused) in [(2, false), (3, true)] {
            let frames = (0..chunks).map(|_| Ok::<_, BoxError>(Frame::data(Bytes::from_static(b"12345"))));
            let body = StreamBody::new(futures_util::stream::iter(frames.collect::<Vec<_>>()));
            let r = Request::post(path).header("host", "h").header("content-type", "application/json");
            let got = send(w.address(), r.header("idempotency-key", path).body(body).unwrap()).await;
            assert_eq!(got.status() == 413, refused, "{path}: {chunks} chunks are {}", got.status());
            if refused {
                assert_eq!(json(text(got).await.as_bytes())["limit"], 10);
            }
        }
    }
}

fn versioned(request: Option<serde_json::Value>, response: Option<serde_json::Value>) -> VersionsSpec {
    let named = |n: &str| weft_policy::version::Version { name: n.into(), deprecated: None, sunset: None };
    VersionsSpec {
        from: vec![VersionFrom::Header("x-version".into())],
        default: Some("1".into()),
        known: vec![
            VersionSpec { version: named("1"), request, response, ..VersionSpec::default() },
            VersionSpec { version: named("2"), ..VersionSpec::default() },
        ],
    }
}

/// A route to a service that never answers, with one place, which is taken; its fallback is the service `spare`.
async fn full(change: impl FnOnce(&mut RouteSpec)) -> World {
    let mut r = route("all", "/**", "s");
    r.policy.bulkhead = Some(weft_policy::spec::Bulkhead { limit: 1, ..Default::default() });
    r.fallback = Some(Fallback::Service(name("spare")));
    change(&mut r);
    let slow = service(|_| std::future::pending()).await;
    let services = [spec_of("s", Protocol::Http, &[slow]), spec_of("spare", Protocol::Http, &[echo().await])];
    let w = World::start(gateway(vec![r]), &services).await;
    let to = w.address();
    tokio::spawn(async move { send(to, get("/first")).await });
    while w.gateway.policy("all").unwrap().bulkhead().load().0 == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    w
}

#[tokio::test]
async fn the_fallback_of_a_full_bulkhead_gets_what_the_routes_rules_make_of_a_request() {
    let w = full(|r| {
        r.traffic.host = Host::Name("inner.test".into());
        r.traffic.request = vec![FieldRule::Set("X-Tier".into(), "gold".into()), FieldRule::Remove("X-Secret".into())];
        r.traffic.request_limit = Some(20);
        r.versions = Some(versioned(Some(serde_json::json!({"title": "body.name"})), None));
    })
    .await;
    let post = |body: &'static str, n: usize| {
        let frames = (0..n).map(|_| Ok::<_, BoxError>(Frame::data(Bytes::from_static(body.as_bytes()))));
        let body = StreamBody::new(futures_util::stream::iter(frames.collect::<Vec<_>>()));
        let r = Request::post("/x").header("host", "h").header("content-type", "application/json");
        send(w.address(), r.header("x-secret", "1").body(body).unwrap())
    };
    let got = post("{\"name\":\"tea\"}", 1).await;
    assert_eq!(got.headers().get("weft-fallback").map(|v| v.as_bytes()), Some(&b"service"[..]));
    let said = text(got).await;
    assert!(said.contains("\nhost: inner.test\n") && said.contains("\nx-tier: gold\n"), "{said}");
    assert!(!said.contains("x-secret") && said.ends_with("\n{\"title\":\"tea\"}"), "{said}");
    assert_eq!(post("{\"name\":\"tea\"}", 2).await.status(), 413);
}

#[tokio::test]
async fn a_fallbacks_answer_is_not_mapped_from_a_version_it_does_not_have() {
    let dead = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let w = one(dead, |r| {
        r.policy.retry = None;
        r.versions = Some(versioned(None, Some(serde_json::json!({"title": "body.name"}))));
        let headers = http::HeaderMap::from_iter([(http::header::CONTENT_TYPE, "application/json".parse().unwrap())]);
        r.fallback = Some(Fallback::Respond { status: StatusCode::OK, headers, body: "[]".into() });
    })
    .await;
    assert_eq!(w.get("/x").await, (StatusCode::OK, Bytes::from_static(b"[]")));
}

#[tokio::test]
async fn faults_wait_no_longer_than_the_deadline_and_count_as_any_request() {
    let w = one(echo().await, |r| {
        r.policy.deadline = Some(Duration::from_millis(50));
        r.policy.rate = vec![weft_policy::spec::Rate {
            limit: 1,
            period: Duration::from_secs(3600),
            algorithm: weft_policy::spec::Algorithm::Sliding,
            ..Default::default()
        }];
        r.traffic.fault = Some(Fault { delay: Some((Duration::from_secs(3600), 1.0)), abort: None, header: None });
    })
    .await;
    let late = tokio::time::timeout(Duration::from_secs(20), w.get("/")).await.expect("the deadline ends it");
    assert_eq!((late.0.as_u16(), json(&late.1)["code"].as_str()), (504, Some("deadline-exceeded")));
    assert_eq!(w.get("/").await.0, 429, "the first one counted");

    let w = one(echo().await, |r| {
        r.policy.deadline = None;
        r.policy.bulkhead = Some(weft_policy::spec::Bulkhead { limit: 1, ..Default::default() });
        r.traffic.fault = Some(Fault {
            delay: Some((Duration::from_secs(3600), 1.0)),
            abort: None,
            header: Some(("x-fault".into(), None)),
        });
    })
    .await;
    let (to, waits) = (w.address(), with("/", &[("x-fault", "1")]));
    tokio::spawn(async move { send(to, waits).await });
    let holds = || async { w.gateway.policy("all").unwrap().stats().under_way == 1 };
    tokio::time::timeout(Duration::from_secs(5), w.until(holds)).await.expect("one that waits on purpose has a place");
    assert_eq!(w.get("/").await.0, 503);
}
