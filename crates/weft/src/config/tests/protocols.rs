//! The examples of the page on protocols, and what the keys behind them become.

use std::time::Duration;

use weft_edge::spec::Idle;

use super::mistakes::made;
use super::*;

#[test]
fn every_example_of_the_page_on_protocols_loads_and_becomes_what_it_says() {
    let page = include_str!("../../../../../docs/reference/protocols.md");
    let dir = tempfile::tempdir().unwrap();
    let (cert, key) = made();
    for file in ["shop.pem", "wild.pem", "clients.pem", "ca.pem"] {
        std::fs::write(dir.path().join(file), &cert).unwrap();
    }
    for file in ["shop.key", "wild.key"] {
        std::fs::write(dir.path().join(file), &key).unwrap();
    }
    let at = dir.path().join("weft.yaml");
    let examples = page.split("```yaml\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    let loaded: Vec<_> = examples
        .map(|text| {
            std::fs::write(&at, text).unwrap();
            load(&at).unwrap_or_else(|r| panic!("{r}")).snapshot
        })
        .collect();
    assert_eq!(loaded.len(), 6);
    let tls = |i: usize| loaded[i].gateway.listen[0].tls.as_ref().unwrap();
    assert_eq!((tls(0).certificates.len(), &tls(0).client), (2, &None));
    assert!(tls(1).client.as_ref().is_some_and(|c| !c.required));
    let routes = |i: usize| loaded[i].gateway.routes.iter().map(|r| &r.protocols).collect::<Vec<_>>();
    assert_eq!(routes(1).iter().map(|p| p.client_certificate).collect::<Vec<_>>(), [false, true]);
    let upgrades: Vec<_> = routes(3).iter().map(|p| p.upgrade.join(",")).collect();
    assert_eq!(upgrades, ["websocket", "websocket,mqtt", ""]);
    assert_eq!(routes(3)[0].idle, Idle::After(Duration::from_secs(600)));
    assert_eq!(routes(4)[0].idle, Idle::After(Duration::from_secs(300)));
    assert!(routes(5)[0].grpc_web && !routes(4)[0].grpc_web);
}

#[test]
fn mistakes_in_what_a_route_says_of_protocols_are_named_with_their_place() {
    let says = |text: &str, expected: &[&str]| assert_eq!(mistakes(text), expected, "in:\n{text}");
    says(
        "services: { a: { grpc: '127.0.0.1:1' } }\ngateway: { routes: [{ match: {}, upgrade: websocket, to: { service: a } }] }",
        &[
            "2:43 a service that speaks grpc has no connections to upgrade | leave it out, or let the service speak http",
        ],
    );
    says(
        "services: { a: }\ngateway: { routes: [{ match: {}, upgrade: [h2c, 'a b'], to: { service: a } }] }",
        &[
            "2:44 'h2c' is nothing to upgrade to | HTTP/2 is spoken without being asked: clients begin with it",
            "2:49 'a b' is nothing to upgrade to | write a protocol's name, as in websocket",
        ],
    );
    says(
        "queues: { q: }\ngateway: { routes: [{ match: {}, idle: 5m, to: { queue: q } }] }",
        &[
            "2:40 'idle' has no meaning on this route | leave it out: only a service's answers stream and go on with another protocol",
        ],
    );
    let off = load_text(
        "services: { a: }\ngateway: { routes: [{ match: {}, upgrade: off, idle: off, to: { service: a } }] }",
    );
    let p = &off.unwrap().snapshot.gateway.routes[0].protocols;
    assert_eq!((p.upgrade.len(), p.idle), (0, Idle::Off));
}
