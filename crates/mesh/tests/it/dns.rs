//! Names: every address an instance, asked again when the records end, the old answer kept when nobody answers.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use hickory_resolver::proto::op::{Message, OpCode, ResponseCode};
use hickory_resolver::proto::rr::rdata::A;
use hickory_resolver::proto::rr::{RData, Record, RecordType};
use tokio::net::UdpSocket;
use weft_mesh::{Dns, Mesh, Protocol};

use crate::support::*;

/// What the name server says; `None` = it fails.
type Zone = Arc<Mutex<Option<Vec<Ipv4Addr>>>>;

/// A name server that knows `order.test` only, for one second at a time.
async fn name_server(zone: Zone) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 1500];
        loop {
            let (n, from) = socket.recv_from(&mut buffer).await.unwrap();
            let asked = Message::from_vec(&buffer[..n]).unwrap();
            let query = asked.queries[0].clone();
            let mut answer = Message::response(asked.metadata.id, OpCode::Query);
            answer.add_query(query.clone());
            let known = query.name().to_ascii() == "order.test.";
            match zone.lock().unwrap().as_ref() {
                None => answer.metadata.response_code = ResponseCode::ServFail,
                Some(_) if !known => answer.metadata.response_code = ResponseCode::NXDomain,
                Some(all) if query.query_type() == RecordType::A => {
                    for ip in all {
                        answer.add_answer(Record::from_rdata(query.name().clone(), 1, RData::A(A(*ip))));
                    }
                }
                Some(_) => {}
            }
            socket.send_to(&answer.to_vec().unwrap(), from).await.unwrap();
        }
    });
    address
}

fn addresses(mesh: &Mesh) -> Vec<String> {
    mesh.get("a").0.unwrap().instances.iter().map(|i| i.address.to_string()).collect()
}

#[tokio::test]
async fn every_address_of_a_name_is_an_instance_and_changes_are_followed() {
    let zone: Zone = Arc::new(Mutex::new(Some(vec![Ipv4Addr::new(127, 0, 0, 1), Ipv4Addr::new(127, 0, 0, 2)])));
    let dns = Dns::servers(vec![name_server(zone.clone()).await]);
    let server = serve(Speaks::H1, async |req| answer(req.headers()["host"].to_str().unwrap().to_owned())).await;
    let port = server.address.port();
    let w = world_in(tempfile::tempdir().unwrap(), dns);
    w.mesh.apply(&[service("a", Protocol::Http, &[&format!("order.test:{port}")])]).unwrap();
    // The first request waits for the name; 127.0.0.1 listens, 127.0.0.2 does not.
    let mut host = None;
    for _ in 0..2 {
        host = text(&w.mesh, "a").await.ok().or(host);
    }
    assert_eq!(host.unwrap(), format!("order.test:{port}"), "the name is what the request says");
    assert_eq!(addresses(&w.mesh), [format!("127.0.0.1:{port}"), format!("127.0.0.2:{port}")]);

    *zone.lock().unwrap() = Some(vec![Ipv4Addr::new(127, 0, 0, 1)]);
    eventually("the change is seen", || addresses(&w.mesh) == [format!("127.0.0.1:{port}")]).await;
    assert!(text(&w.mesh, "a").await.is_ok());

    // An answer that fails changes nothing, for longer than the records would have lived.
    *zone.lock().unwrap() = None;
    tokio::time::sleep(std::time::Duration::from_millis(2_500)).await;
    assert!(text(&w.mesh, "a").await.is_ok());
    *zone.lock().unwrap() = Some(vec![Ipv4Addr::new(127, 0, 0, 3)]);
    eventually("it is asked again", || addresses(&w.mesh) == [format!("127.0.0.3:{port}")]).await;
}

#[tokio::test]
async fn localhost_is_a_name_like_any_other() {
    let server = serve(Speaks::H1, async |_| answer("here")).await;
    let w = world();
    w.mesh.apply(&[service("a", Protocol::Http, &[&format!("localhost:{}", server.address.port())])]).unwrap();
    assert_eq!(text(&w.mesh, "a").await.unwrap(), "here");
}
