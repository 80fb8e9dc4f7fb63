//! Active checks against servers that fall ill and recover.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use weft_mesh::spec::{HealthCheck, HealthKind};
use weft_mesh::{Mesh, Protocol};

use crate::support::*;

fn quick(kind: HealthKind) -> HealthCheck {
    HealthCheck {
        kind,
        interval: Duration::from_millis(5),
        timeout: Duration::from_millis(500),
        unhealthy_after: 2,
        healthy_after: 2,
    }
}

fn health(mesh: &Mesh, service: &str, address: &str) -> &'static str {
    let view = mesh.get(service).0.unwrap();
    view.instances.iter().find(|i| &*i.address == address).unwrap().health
}

#[tokio::test]
async fn an_instance_whose_check_fails_gets_no_requests_until_it_recovers() {
    let well = Arc::new(AtomicBool::new(true));
    let state = well.clone();
    let moody = serve(Speaks::H1, move |req| {
        let ok = req.uri().path() != "/healthz" || state.load(Ordering::SeqCst);
        async move { if ok { answer("moody") } else { status(503) } }
    })
    .await;
    let steady = serve(Speaks::H1, async |_| answer("steady")).await;
    let w = world();
    let spec = service("a", Protocol::Http, &[&moody.at(), &steady.at()]);
    w.mesh.apply(&[checked(spec, quick(HealthKind::Http("/healthz".into())))]).unwrap();
    let index = w.mesh.list().1;

    well.store(false, Ordering::SeqCst);
    // A watcher learns of it.
    w.mesh.watch(Some("a"), index, Duration::from_secs(30)).await;
    assert_eq!(health(&w.mesh, "a", &moody.at()), "unhealthy");
    for _ in 0..10 {
        assert_eq!(text(&w.mesh, "a").await.unwrap(), "steady");
    }
    let metrics = w.telemetry.metrics().render_prometheus();
    for line in [r#"{service="a",state="healthy"} 1"#, r#"{service="a",state="unhealthy"} 1"#] {
        assert!(metrics.contains(&format!("weft_instances{line}")), "{metrics}");
    }
    well.store(true, Ordering::SeqCst);
    eventually("it is healthy again", || health(&w.mesh, "a", &moody.at()) == "healthy").await;
    let mut answers = Vec::new();
    for _ in 0..4 {
        answers.push(text(&w.mesh, "a").await.unwrap());
    }
    assert!(answers.contains(&"moody".into()), "{answers:?}");
}

#[tokio::test]
async fn when_no_instance_is_healthy_all_are_tried() {
    let sick = serve(Speaks::H1, async |req| if req.uri().path() == "/" { answer("works") } else { status(500) }).await;
    let w = world();
    let spec = service("a", Protocol::Http, &[&sick.at()]);
    w.mesh.apply(&[checked(spec, quick(HealthKind::Http("/healthz".into())))]).unwrap();
    eventually("it is unhealthy", || health(&w.mesh, "a", &sick.at()) == "unhealthy").await;
    assert_eq!(text(&w.mesh, "a").await.unwrap(), "works");
}

#[tokio::test]
async fn grpc_instances_are_asked_by_the_grpc_health_protocol() {
    let (reporter, service_impl) = tonic_health::server::health_reporter();
    reporter.set_service_status("shop.Orders", tonic_health::ServingStatus::Serving).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap().to_string();
    tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(service_impl)
            .serve_with_incoming(tokio_stream::wrappers::TcpListenerStream::new(listener)),
    );
    let w = world();
    let of =
        |name: &str, asked: &str| checked(service(name, Protocol::Grpc, &[&at]), quick(HealthKind::Grpc(asked.into())));
    w.mesh.apply(&[of("known", "shop.Orders"), of("unknown", "shop.Nothing")]).unwrap();
    eventually("the unknown one is unhealthy", || health(&w.mesh, "unknown", &at) == "unhealthy").await;
    assert_eq!(health(&w.mesh, "known", &at), "healthy");
    reporter.set_service_status("shop.Orders", tonic_health::ServingStatus::NotServing).await;
    eventually("it is unhealthy", || health(&w.mesh, "known", &at) == "unhealthy").await;
    reporter.set_service_status("shop.Orders", tonic_health::ServingStatus::Serving).await;
    eventually("it is healthy again", || health(&w.mesh, "known", &at) == "healthy").await;
}

#[tokio::test]
async fn a_closed_port_fails_a_tcp_check() {
    let server = serve(Speaks::H1, async |_| answer("")).await;
    let closed = closed_port().to_string();
    let w = world();
    w.mesh.apply(&[checked(service("a", Protocol::Http, &[&server.at(), &closed]), quick(HealthKind::Tcp))]).unwrap();
    eventually("the closed one is unhealthy", || health(&w.mesh, "a", &closed) == "unhealthy").await;
    assert_eq!(health(&w.mesh, "a", &server.at()), "healthy");
}

#[tokio::test]
async fn an_instance_that_answers_badly_is_ejected_and_shown_as_such() {
    let sick = serve(Speaks::H1, async |_| status(500)).await;
    let steady = serve(Speaks::H1, async |_| answer("steady")).await;
    let w = world();
    w.mesh.apply(&[service("a", Protocol::Http, &[&sick.at(), &steady.at()])]).unwrap();
    for _ in 0..40 {
        text(&w.mesh, "a").await.unwrap();
    }
    assert_eq!((sick.requests(), health(&w.mesh, "a", &sick.at())), (5, "ejected"));
    assert_eq!(health(&w.mesh, "a", &steady.at()), "healthy");
    let metrics = w.telemetry.metrics().render_prometheus();
    for line in
        [r#"weft_instances{service="a",state="ejected"} 1"#, r#"weft_ejections_total{service="a",reason="errors"} 1"#]
    {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }
}

#[tokio::test]
async fn an_instance_that_hangs_is_ejected_by_the_deadlines_it_misses() {
    let hung = serve(Speaks::H1, async |_| std::future::pending().await).await;
    let steady = serve(Speaks::H1, async |_| answer("steady")).await;
    let w = world();
    w.mesh.apply(&[service("a", Protocol::Http, &[&hung.at(), &steady.at()])]).unwrap();
    let short = Duration::from_millis(20);
    for _ in 0..40 {
        let attempt = weft_policy::attempt::Attempt { number: 1, deadline: weft_core::Deadline::after(short) };
        let (ctx, out) = (weft_core::Context::root(), get("/"));
        let _ = tokio::time::timeout(short + Duration::from_millis(1), w.mesh.send(&ctx, "a", &out, attempt)).await;
    }
    assert_eq!((hung.requests(), health(&w.mesh, "a", &hung.at())), (5, "ejected"));
}

#[tokio::test]
async fn requests_under_way_finish_after_their_instance_deregistered() {
    let go = Arc::new(tokio::sync::Notify::new());
    let wait = go.clone();
    let slow = serve(Speaks::H1, move |_| {
        let wait = wait.clone();
        async move {
            wait.notified().await;
            answer("late")
        }
    })
    .await;
    let w = world();
    w.mesh.register(&name("a"), &name("one"), registration(slow.address, Duration::from_secs(60))).await.unwrap();
    let mesh = w.mesh.clone();
    let under_way = tokio::spawn(async move { text(&mesh, "a").await });
    eventually("it is under way", || slow.requests() == 1).await;
    w.mesh.deregister(&name("a"), &name("one")).await.unwrap();
    assert!(text(&w.mesh, "a").await.is_err(), "no new ones");
    go.notify_one();
    assert_eq!(under_way.await.unwrap().unwrap(), "late");
}
