//! Who is there: registrations and their leases, restarts, reloads, Weft's own listeners.

use std::sync::Arc;
use std::time::Duration;

use http_body_util::BodyExt as _;
use tokio::time::{Instant, advance};
use weft_mesh::{Error, Mesh, Protocol, Registered};
use weft_store::{Config, Embedded, Store as _};
use weft_telemetry::Telemetry;

use crate::support::*;

const TTL: Duration = Duration::from_secs(10);

#[tokio::test(start_paused = true)]
async fn a_registration_expires_unless_its_heartbeat_comes() {
    let _clock = hold_the_clock();
    let w = world();
    let (a, one, two) = (name("a"), name("one"), name("two"));
    assert_eq!(w.mesh.register(&a, &one, registration("127.0.0.1:1", TTL)).await.unwrap(), Registered::New);
    w.mesh.register(&a, &two, registration("127.0.0.1:2", TTL)).await.unwrap();
    advance(TTL - Duration::from_secs(1)).await;
    w.mesh.heartbeat(&a, &one).unwrap();
    let index = w.mesh.list().1;
    let watching = {
        let mesh = w.mesh.clone();
        tokio::spawn(async move { mesh.watch(Some("a"), index, Duration::from_secs(60)).await })
    };
    tokio::task::yield_now().await;
    advance(Duration::from_secs(1)).await;
    watching.await.unwrap();
    let left: Vec<_> = w.mesh.get("a").0.unwrap().instances.iter().map(|i| i.id.to_string()).collect();
    assert_eq!(left, ["one"]);
    assert!(matches!(w.mesh.heartbeat(&a, &two), Err(Error::NotRegistered { .. })));
    advance(TTL).await;
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!(w.mesh.get("a").0, None);
    let e = send(&w.mesh, "a", &get("/")).await.unwrap_err();
    assert!(e.to_string().contains("'a'"), "{e}");
}

#[tokio::test(start_paused = true)]
async fn after_a_restart_registrations_are_known_for_one_more_ttl_and_the_deregistered_are_not() {
    let _clock = hold_the_clock();
    let w = world();
    let a = name("a");
    for id in ["one", "two"] {
        let mut r = registration("127.0.0.1:1", TTL);
        r.metadata.insert("zone".into(), "north".into());
        w.mesh.register(&a, &name(id), r).await.unwrap();
    }
    w.mesh.deregister(&a, &name("two")).await.unwrap();
    advance(TTL - Duration::from_secs(1)).await;
    w.store.close().await.unwrap();
    let World { mesh, store, dir, .. } = w;
    drop((mesh, store));
    // The tasks of the old mesh let go of its store.
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    let store = Arc::new(Embedded::open(Config::new(dir.path())).unwrap());
    let restarted = Instant::now();
    let mesh = Mesh::new(store, Telemetry::new());
    assert_eq!(mesh.restore().await.unwrap(), 1);
    let view = mesh.get("a").0.unwrap();
    assert_eq!((&*view.instances[0].id, view.instances[0].metadata["zone"].as_str()), ("one", "north"));
    assert_eq!(view.instances[0].expires_in, Some(TTL), "a fresh TTL");
    advance(TTL - (Instant::now() - restarted)).await;
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!(mesh.get("a").0, None);
}

#[tokio::test]
async fn registered_instances_join_those_of_the_file_and_a_service_may_be_registered_only() {
    let (file, registered) =
        (serve(Speaks::H1, async |_| answer("file")).await, serve(Speaks::H1, async |_| answer("registered")).await);
    let w = world();
    w.mesh.apply(&[service("a", Protocol::Http, &[&file.at()])]).unwrap();
    w.mesh.register(&name("a"), &name("r"), registration(registered.at(), TTL)).await.unwrap();
    w.mesh.register(&name("b"), &name("r"), registration(registered.at(), TTL)).await.unwrap();
    let mut answers = vec![text(&w.mesh, "a").await.unwrap(), text(&w.mesh, "a").await.unwrap()];
    answers.sort();
    assert_eq!(answers, ["file", "registered"]);
    assert_eq!(text(&w.mesh, "b").await.unwrap(), "registered");
    let (all, _) = w.mesh.list();
    assert_eq!(all.iter().map(|s| (s.name.as_str(), s.origin)).collect::<Vec<_>>(), [("a", "file"), ("b", "runtime")]);

    w.mesh.deregister(&name("a"), &name("r")).await.unwrap();
    w.mesh.deregister(&name("b"), &name("r")).await.unwrap();
    for _ in 0..3 {
        assert_eq!(text(&w.mesh, "a").await.unwrap(), "file");
    }
    assert!(matches!(text(&w.mesh, "b").await, Err(Error::NoInstances { known: false, .. })));
    assert!(matches!(w.mesh.deregister(&name("b"), &name("r")).await, Err(Error::NotRegistered { .. })));
}

#[tokio::test]
async fn a_reload_that_changes_nothing_keeps_connections_and_one_that_removes_an_instance_lets_answers_finish() {
    let gate = Arc::new(tokio::sync::Notify::new());
    let held = gate.clone();
    let old = serve(Speaks::H1, move |_| {
        let held = held.clone();
        async move {
            let frames = futures_util::stream::once(async move {
                held.notified().await;
                Ok::<_, weft_mesh::BoxError>(http_body::Frame::data("slow".into()))
            });
            http::Response::new(weft_mesh::Body::stream(http_body_util::StreamBody::new(frames)))
        }
    })
    .await;
    let new = serve(Speaks::H1, async |_| answer("new")).await;
    let w = world();
    w.mesh.apply(&[service("a", Protocol::Http, &[&old.at()])]).unwrap();
    for _ in 0..3 {
        gate.notify_one();
        assert_eq!(text(&w.mesh, "a").await.unwrap(), "slow");
        w.mesh.apply(&[service("a", Protocol::Http, &[&old.at()])]).unwrap();
    }
    assert_eq!(old.connections(), 1);

    let streaming = send(&w.mesh, "a", &get("/")).await.unwrap();
    w.mesh.apply(&[service("a", Protocol::Http, &[&new.at()])]).unwrap();
    for _ in 0..3 {
        assert_eq!(text(&w.mesh, "a").await.unwrap(), "new");
    }
    gate.notify_one();
    assert_eq!(streaming.response.into_body().collect().await.unwrap().to_bytes(), "slow");
    w.mesh.apply(&[]).unwrap();
    assert!(matches!(text(&w.mesh, "a").await, Err(Error::NoInstances { known: false, .. })));
}

#[tokio::test]
async fn wefts_own_listeners_are_no_instances() {
    let own = serve(Speaks::H1, async |_| answer("round and round")).await;
    let w = world();
    let spec = || service("a", Protocol::Http, &[&own.at()]);
    w.mesh.apply(&[spec()]).unwrap();
    assert!(text(&w.mesh, "a").await.is_ok());
    w.mesh.forbid(&[own.address]);
    assert!(matches!(text(&w.mesh, "a").await, Err(Error::NoInstances { known: true, .. })), "taken out at once");
    assert!(matches!(w.mesh.apply(&[spec()]), Err(Error::OwnListener { .. })));
    for at in [own.at(), format!("0.0.0.0:{}", own.address.port())] {
        let r = w.mesh.register(&name("b"), &name("i"), registration(at, TTL)).await;
        assert!(matches!(r, Err(Error::OwnListener { .. })));
    }
    // By name too, though only once it is resolved.
    let by_name = format!("localhost:{}", own.address.port());
    w.mesh.register(&name("c"), &name("i"), registration(by_name, TTL)).await.unwrap();
    assert!(matches!(text(&w.mesh, "c").await, Err(Error::NoInstances { .. })));
    let elsewhere = format!("127.0.0.1:{}", closed_port().port());
    assert!(w.mesh.register(&name("b"), &name("i"), registration(elsewhere, TTL)).await.is_ok());
}
