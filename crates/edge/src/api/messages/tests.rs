//! The handlers against a real broker on the embedded store.

use std::sync::Arc;

use http_body_util::BodyExt as _;
use tower_service::Service as _;
use weft_mesh::Mesh;
use weft_store::{Config, Embedded, Store};
use weft_telemetry::Telemetry;

use super::*;

struct World {
    api: Router,
    broker: Broker,
    store: Arc<dyn Store>,
    dir: tempfile::TempDir,
}

#[derive(Clone)]
struct Part(Broker);

impl FromRef<Part> for Broker {
    fn from_ref(p: &Part) -> Broker {
        p.0.clone()
    }
}

async fn world() -> World {
    open(tempfile::tempdir().unwrap()).await
}

async fn open(dir: tempfile::TempDir) -> World {
    let store: Arc<dyn Store> = Arc::new(Embedded::open(Config::new(dir.path())).unwrap());
    let telemetry = Telemetry::new();
    let mesh = Mesh::new(store.clone(), telemetry.clone());
    let broker = Broker::open(store.clone(), telemetry, mesh).await.unwrap();
    World { api: table().with_state(Part(broker.clone())), broker, store, dir }
}

impl World {
    async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> (u16, Value) {
        let mut r = http::Request::builder().method(method).uri(path);
        for (k, v) in headers {
            r = r.header(*k, *v);
        }
        let answer = self.api.clone().call(r.body(axum::body::Body::from(body.to_owned())).unwrap()).await.unwrap();
        let status = answer.status().as_u16();
        let bytes = answer.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&bytes).unwrap())
    }

    async fn json(&self, method: &str, path: &str, body: Value) -> (u16, Value) {
        self.send(method, path, &[("content-type", "application/json")], &body.to_string()).await
    }

    async fn get(&self, path: &str) -> (u16, Value) {
        self.send("GET", path, &[], "").await
    }

    async fn publish(&self, channel: &str, id: u64) {
        let event = json!({"specversion": "1.0", "id": id.to_string(), "source": "/s", "type": "T"});
        let (status, v) = self.send("POST", &format!("/v1/{channel}/messages"), &STRUCTURED, &event.to_string()).await;
        assert_eq!(status, 201, "{v}");
    }

    /// Ends the broker and the store, and opens both again.
    async fn again(self) -> Self {
        self.broker.close().await;
        self.store.close().await.unwrap();
        let World { dir, api, broker, store } = self;
        drop((api, broker, store));
        open(dir).await
    }
}

const STRUCTURED: [(&str, &str); 1] = [("content-type", "application/cloudevents+json")];

fn leases(v: &Value) -> Vec<String> {
    v["messages"].as_array().unwrap().iter().map(|m| m["lease"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_message_is_published_received_and_acknowledged() {
    let w = world().await;
    let headers = [
        ("ce-specversion", "1.0"),
        ("ce-id", "1"),
        ("ce-source", "/shop"),
        ("ce-type", "Created"),
        ("content-type", "application/json"),
    ];
    let (status, v) = w.send("POST", "/v1/queues/emails/messages", &headers, r#"{"to":"ada"}"#).await;
    assert_eq!((status, &v["receipts"][0]["id"], &v["receipts"][0]["duplicate"]), (201, &json!("1"), &json!(false)));
    let (status, v) = w.json("POST", "/v1/queues/emails/receive", json!({"max": 10, "lease": "1m"})).await;
    let m = &v["messages"][0];
    assert_eq!((status, &m["attempt"], &m["redelivered"]), (200, &json!(1), &json!(false)));
    assert_eq!((&m["event"]["type"], &m["event"]["data"]["to"]), (&json!("Created"), &json!("ada")));
    let held = leases(&v);
    assert_eq!(w.json("POST", "/v1/messages/extend", json!({"leases": held, "lease": "2m"})).await.1["extended"], 1);
    let (_, v) = w.json("POST", "/v1/messages/ack", json!({ "leases": held })).await;
    assert_eq!(v, json!({"acked": 1, "stale": []}));
    let (_, v) = w.json("POST", "/v1/messages/ack", json!({ "leases": held })).await;
    assert_eq!(v, json!({"acked": 0, "stale": held}));
    assert_eq!(w.send("POST", "/v1/queues/emails/receive", &[], "").await.1, json!({"messages": []}));
}

#[tokio::test]
async fn a_batch_and_plain_data_are_published_too() {
    let w = world().await;
    let one = |id: &str| json!({"specversion": "1.0", "id": id, "source": "/s", "type": "T"});
    let batch = [("content-type", "application/cloudevents-batch+json")];
    let (status, v) = w.send("POST", "/v1/queues/q/messages", &batch, &json!([one("1"), one("2")]).to_string()).await;
    assert_eq!((status, v["receipts"].as_array().unwrap().len()), (201, 2));
    assert_eq!(w.send("POST", "/v1/queues/q/messages", &[("content-type", "text/plain")], "hello").await.0, 201);
    let (_, v) = w.json("POST", "/v1/queues/q/receive", json!({"max": 10})).await;
    assert_eq!(v["messages"][2]["event"]["data"], "hello");
    assert_eq!(v["messages"][2]["event"]["source"], "/v1/queues/q/messages");
}

#[tokio::test]
async fn bad_input_is_told_what_is_wrong_with_it() {
    let w = world().await;
    let incomplete = r#"{"specversion":"1.0","id":"1","source":"/s"}"#;
    let (status, v) = w.send("POST", "/v1/topics/t/messages", &STRUCTURED, incomplete).await;
    assert_eq!((status, &v["code"]), (400, &json!("invalid-event")));
    assert!(v["detail"].as_str().unwrap().contains("'type'"), "{v}");
    let (status, v) = w.send("POST", "/v1/topics/t/messages", &STRUCTURED, "{nonsense").await;
    assert_eq!((status, &v["code"], &v["line"]), (400, &json!("invalid-json"), &json!(1)));
    let big =
        json!({"specversion":"1.0","id":"1","source":"/s","type":"T","data":"x".repeat(limits::MESSAGE_BYTES + 1)});
    let (status, v) = w.send("POST", "/v1/queues/q/messages", &STRUCTURED, &big.to_string()).await;
    assert_eq!((status, &v["code"]), (413, &json!("too-large")));
    for (path, body, status, word) in [
        ("/v1/queues/a b/messages".replace(' ', "%20"), json!({}), 400, "invalid-name"),
        ("/v1/queues/q/receive".into(), json!({"max": 0}), 400, "bad-request"),
        ("/v1/queues/q/receive".into(), json!({"wait": "2h"}), 400, "bad-request"),
        ("/v1/queues/q/receive".into(), json!({"lease": "0s"}), 400, "bad-request"),
        ("/v1/queues/q/receive".into(), json!({"mox": 1}), 400, "invalid-json"),
        ("/v1/subscriptions/none/receive".into(), json!({}), 404, "not-found"),
        ("/v1/queues/none/redrive".into(), json!({}), 404, "not-found"),
        ("/v1/messages/ack".into(), json!({"leases": ["nonsense"]}), 400, "lease-unknown"),
        ("/v1/messages/ack".into(), json!({}), 400, "invalid-json"),
    ] {
        let (got, v) = w.json("POST", &path, body).await;
        assert_eq!((got, v["code"].as_str().unwrap()), (status, word), "{path}: {v}");
    }
    let (status, v) = w.send("POST", "/v1/topics/t/messages", &[("weft-delay", "5s")], "x").await;
    assert_eq!((status, &v["code"]), (400, &json!("bad-request")));
    let (status, v) = w.send("POST", "/v1/queues/q/messages", &[("weft-delay", "soon")], "x").await;
    assert_eq!(status, 400);
    assert!(v["detail"].as_str().unwrap().contains("'soon'"), "{v}");
}

#[tokio::test]
async fn a_repeat_is_answered_with_the_first_receipt_also_after_a_restart() {
    let w = world().await;
    let h = [("weft-dedup-id", "order-1"), ("content-type", "text/plain")];
    let (_, first) = w.send("POST", "/v1/queues/q/messages", &h, "a").await;
    let (status, again) = w.send("POST", "/v1/queues/q/messages", &h, "b").await;
    assert_eq!((status, &again["receipts"][0]["duplicate"]), (201, &json!(true)));
    assert_eq!(again["receipts"][0]["position"], first["receipts"][0]["position"]);
    let w = w.again().await;
    let (_, again) = w.send("POST", "/v1/queues/q/messages", &h, "c").await;
    assert_eq!(again["receipts"][0]["id"], first["receipts"][0]["id"]);
    let (_, v) = w.json("POST", "/v1/queues/q/receive", json!({"max": 10})).await;
    assert_eq!(v["messages"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_restart_redelivers_what_was_not_acknowledged_and_keeps_what_was_given_back() {
    let w = world().await;
    for id in 1..=3 {
        w.publish("queues/q", id).await;
    }
    let (_, v) = w.json("POST", "/v1/queues/q/receive", json!({"max": 3})).await;
    let held = leases(&v);
    w.json("POST", "/v1/messages/ack", json!({"leases": held[..1]})).await;
    w.json("POST", "/v1/messages/nack", json!({"leases": held[1..2], "delay": "1h"})).await;
    let w = w.again().await;
    let (_, v) = w.json("POST", "/v1/queues/q/receive", json!({"max": 3})).await;
    let m = v["messages"].as_array().unwrap();
    assert_eq!(m.len(), 1, "{v}");
    assert_eq!((&m[0]["event"]["id"], &m[0]["attempt"], &m[0]["redelivered"]), (&json!("3"), &json!(2), &json!(true)));
    let (_, v) = w.get("/v1/queues/q").await;
    assert_eq!((&v["ready"], &v["in_flight"], &v["delayed"]), (&json!(0), &json!(1), &json!(1)));
}

#[tokio::test]
async fn declared_channels_are_made_changed_listed_and_kept() {
    let w = world().await;
    assert_eq!(w.json("PUT", "/v1/topics/orders", json!({"partitions": 4})).await.0, 201);
    let sub = json!({"topic": "orders", "mode": "key-shared", "filter": "event.type == 'T'"});
    assert_eq!(w.json("PUT", "/v1/subscriptions/s", sub.clone()).await.0, 201);
    assert_eq!(w.json("PUT", "/v1/subscriptions/s", sub).await.0, 200);
    let (status, v) = w.json("PUT", "/v1/subscriptions/x", json!({"topic": "orders", "filter": "event.typo =="})).await;
    assert_eq!((status, &v["code"]), (400, &json!("bad-request")));
    let (status, v) = w.json("PUT", "/v1/queues/q", json!({"leas": "1s"})).await;
    assert_eq!(status, 400);
    assert!(v["detail"].as_str().unwrap().contains("leas"), "{v}");
    for name in ["b", "a", "c"] {
        assert_eq!(w.json("PUT", &format!("/v1/queues/{name}"), json!({})).await.0, 201);
    }
    let w = w.again().await;
    w.publish("topics/orders", 1).await;
    let (_, v) = w.get("/v1/subscriptions/s").await;
    assert_eq!((&v["ready"], &v["mode"], &v["origin"]), (&json!(1), &json!("key-shared"), &json!("runtime")));
    let (_, v) = w.get("/v1/topics").await;
    assert_eq!((&v["items"][0]["partitions"], &v["items"][0]["records"]), (&json!(4), &json!(1)));
    let (_, v) = w.get("/v1/queues?limit=2").await;
    assert_eq!(
        (&v["items"][1]["name"], &v["next"], &v["items"][0]["durability"]),
        (&json!("b"), &json!("b"), &json!("fsync"))
    );
    let (_, v) = w.get("/v1/queues?limit=2&cursor=b").await;
    assert_eq!((&v["items"][0]["name"], &v["next"]), (&json!("c"), &Value::Null));
    assert_eq!(w.get("/v1/queues/none").await.0, 404);
}

#[tokio::test]
async fn the_files_channels_answer_409_to_a_put() {
    let w = world().await;
    w.json("PUT", "/v1/topics/orders", json!({})).await;
    let file = weft_broker::TopicSpec {
        name: Name::new("orders").unwrap(),
        partitions: 1,
        key: None,
        retention: None,
        dedup: weft_broker::spec::Dedup::default(),
        relaxed: true,
    };
    w.broker.apply(&[], &[file], &[]).await.unwrap();
    let (status, v) = w.json("PUT", "/v1/topics/orders", json!({})).await;
    assert_eq!((status, &v["code"]), (409, &json!("owned-by-file")));
    let (_, v) = w.get("/v1/topics/orders").await;
    assert_eq!((&v["origin"], &v["durability"]), (&json!("file"), &json!("relaxed")));
}

#[tokio::test]
async fn a_dead_letter_says_why_and_is_redriven() {
    let w = world().await;
    w.publish("queues/q", 1).await;
    let (_, v) = w.json("POST", "/v1/queues/q/receive", json!({})).await;
    let nack = json!({"leases": leases(&v), "reason": "no such customer", "dead_letter": true});
    assert_eq!(w.json("POST", "/v1/messages/nack", nack).await.1, json!({"nacked": 1, "stale": []}));
    let (_, v) = w.get("/v1/queues/q.dead/messages?limit=10").await;
    let e = &v["items"][0]["event"];
    assert_eq!((&e["weftdeadreason"], &e["weftdeadcount"]), (&json!("no such customer"), &json!("1")));
    assert_eq!((&e["weftdeadorigin"], &v["items"][0]["state"]), (&json!("queue/q"), &json!("ready")));
    assert_eq!(w.get("/v1/queues/q").await.1["dead_letters"], 1);
    assert_eq!(w.send("POST", "/v1/queues/q.dead/redrive", &[], "").await.1, json!({"moved": 1}));
    let (_, v) = w.json("POST", "/v1/queues/q/receive", json!({})).await;
    assert_eq!(v["messages"][0]["event"]["id"], "1");
}

#[tokio::test]
async fn peeking_goes_on_by_cursor_and_takes_nothing() {
    let w = world().await;
    for id in 1..=5 {
        w.publish("queues/q", id).await;
    }
    let (_, v) = w.get("/v1/queues/q/messages?limit=3").await;
    let next = v["next"].as_str().unwrap().to_owned();
    assert_eq!(v["items"].as_array().unwrap().len(), 3);
    let (_, v) = w.get(&format!("/v1/queues/q/messages?limit=3&cursor={next}")).await;
    assert_eq!((v["items"].as_array().unwrap().len(), &v["next"]), (2, &Value::Null));
    assert_eq!(w.get("/v1/queues/q").await.1["ready"], 5);
    assert_eq!(w.get("/v1/queues/none/messages").await.0, 404);
    assert_eq!(w.get("/v1/queues/q/messages?limit=0").await.0, 400);
}
