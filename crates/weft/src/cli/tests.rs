//! The commands against an API that answers from a script.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use clap::{CommandFactory, Parser};
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::{Cli, Command};

#[derive(clap::Args)]
struct NoOptions {}

/// A request as the API saw it: method, path with query, content type, body.
type Seen = Arc<Mutex<Vec<(String, String, Value)>>>;

/// Answers each request with the first script line whose `METHOD path` begins it.
async fn api(script: Vec<(&'static str, u16, Value)>) -> (String, Seen) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let seen = Seen::default();
    let log = seen.clone();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let (script, log) = (script.clone(), log.clone());
            let service = service_fn(move |req: Request<Incoming>| answer(req, script.clone(), log.clone()));
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(tcp), service));
        }
    });
    (address, seen)
}

async fn answer(
    req: Request<Incoming>,
    script: Vec<(&'static str, u16, Value)>,
    log: Seen,
) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let asked = format!("{} {}", req.method(), req.uri());
    let ty = req.headers().get("content-type").map_or("", |v| v.to_str().unwrap()).to_owned();
    let body = req.into_body().collect().await?.to_bytes();
    log.lock().unwrap().push((asked.clone(), ty, serde_json::from_slice(&body).unwrap_or(Value::Null)));
    let line = script.iter().find(|(line, ..)| asked.starts_with(line));
    let (status, body) = line.map_or((599, json!("not in the script")), |(_, status, body)| (*status, body.clone()));
    Ok(Response::builder().status(status).body(Full::new(Bytes::from(body.to_string()))).unwrap())
}

/// Runs `weft ARGS --api ADDRESS`; what it prints, on either channel.
async fn weft(address: &str, args: &str) -> Result<String, String> {
    let words = std::iter::once("weft").chain(args.split(' ')).chain(["--api", address]).map(|w| w.replace('~', " "));
    let cli = Cli::<NoOptions>::try_parse_from(words).map_err(|e| e.to_string())?;
    let Command::Ask(ask) = cli.command else { panic!("'{args}' asks no API") };
    ask.run().await.map_err(|e| e.to_string())
}

#[test]
fn the_command_line_is_well_formed() {
    Cli::<NoOptions>::command().debug_assert();
}

#[tokio::test]
async fn routes_are_a_table_of_match_target_and_what_they_do() {
    let route = json!({"name": "shop", "match": {"methods": ["GET", "PUT"], "path": "/v1/**", "text": "GET,PUT /v1/** [x-beta]"},
        "target": "service shop", "uses": ["cors", "compress"], "policy": ["deadline", "retry"]});
    let (api, _) = api(vec![("GET /v1/routes", 200, json!({"items": [route], "next": null}))]).await;
    assert_eq!(
        weft(&api, "routes").await.unwrap(),
        "\
ROUTE  MATCH                    TARGET        USES            POLICY
shop   GET,PUT /v1/** [x-beta]  service shop  cors, compress  deadline, retry
"
    );
    let raw: Value = serde_json::from_str(&weft(&api, "routes --json").await.unwrap()).unwrap();
    assert_eq!(raw["items"][0]["name"], "shop");
}

#[tokio::test]
async fn services_are_a_table_of_instances() {
    let order = json!({"name": "order", "origin": "file", "protocol": "http", "breaker": "closed", "index": 3, "instances": [
        {"id": "a", "address": "127.0.0.1:7001", "protocol": "http", "origin": "registered", "health": "healthy", "weight": 3, "load": 2}]});
    let stock =
        json!({"name": "stock", "origin": "file", "protocol": "grpc", "breaker": null, "index": 1, "instances": []});
    let (api, _) = api(vec![
        ("GET /v1/services/order", 200, order.clone()),
        ("GET /v1/services", 200, json!({"items": [order, stock], "next": null})),
    ])
    .await;
    let text = weft(&api, "services").await.unwrap();
    assert_eq!(
        text,
        "\
SERVICE  PROTOCOL  INSTANCE         ADDRESS         HEALTH   WEIGHT  LOAD  BREAKER
order    http      a                127.0.0.1:7001  healthy  3       2     closed
stock    grpc      none registered
"
    );
    assert!(weft(&api, "services order").await.unwrap().contains("127.0.0.1:7001"));
    let raw: Value = serde_json::from_str(&weft(&api, "services --json").await.unwrap()).unwrap();
    assert_eq!(raw["items"][1]["name"], "stock");
}

#[tokio::test]
async fn queues_are_listed_looked_into_and_redriven() {
    let queue = json!({"name": "emails", "ready": 3, "in_flight": 1, "delayed": 0, "dead_letters": 2, "oldest_age_ms": 90_000, "durability": "fsync", "origin": "file"});
    let (api, seen) = api(vec![
        ("GET /v1/queues/emails/messages", 200, json!({"items": [{"position": "7", "attempt": 3, "event": {"type": "Mail", "id": "1", "source": "/x", "data": {"to": "a"}, "weftdeadreason": "refused", "weftdeadcount": 3, "weftdeadorigin": "emails"}}]})),
        ("GET /v1/queues/emails", 200, queue.clone()),
        ("GET /v1/queues", 200, json!({"items": [queue], "next": null})),
        ("POST /v1/queues/emails.dead/redrive", 200, json!({"moved": 2})),
    ])
    .await;
    let table = "\
QUEUE   READY  IN FLIGHT  DELAYED  DEAD LETTERS  OLDEST  DURABILITY  ORIGIN
emails  3      1          0        2             1m30s   fsync       file
";
    assert_eq!(weft(&api, "queues").await.unwrap(), table);
    assert_eq!(weft(&api, "queues emails").await.unwrap(), table);
    assert_eq!(
        weft(&api, "queues emails peek --limit 5").await.unwrap(),
        "7  Mail  id=1  source=/x  attempt 3\n  dead: refused (from emails, after 3)\n  {\"to\":\"a\"}\n"
    );
    assert_eq!(
        weft(&api, "queues emails.dead redrive --max 10").await.unwrap(),
        "moved 2 messages back to where they came from\n"
    );
    let seen = seen.lock().unwrap();
    assert_eq!(seen[2].0, "GET /v1/queues/emails/messages?limit=5");
    assert_eq!(seen[3].2, json!({"max": 10}));
}

#[tokio::test]
async fn listings_are_read_to_their_last_page() {
    let page = |name: &str, next: Value| json!({"items": [{"name": name}], "next": next});
    let (api, seen) = api(vec![
        ("GET /v1/queues?cursor=a%2Fb", 200, page("second", Value::Null)),
        ("GET /v1/queues", 200, page("first", json!("a/b"))),
    ])
    .await;
    let table = weft(&api, "queues").await.unwrap();
    assert!(table.contains("first") && table.contains("second"), "{table}");
    let raw: Value = serde_json::from_str(&weft(&api, "queues --json").await.unwrap()).unwrap();
    assert_eq!(raw, json!({"items": [{"name": "first"}, {"name": "second"}], "next": null}));
    assert_eq!(seen.lock().unwrap().len(), 4);
}

#[tokio::test]
async fn topics_show_their_subscriptions() {
    let (api, _) = api(vec![
        ("GET /v1/topics", 200, json!({"items": [{"name": "orders", "partitions": 4, "ready": 12, "durability": "fsync", "origin": "file"}]})),
        ("GET /v1/subscriptions", 200, json!({"items": [{"name": "ship", "topic": "orders", "ready": 1, "in_flight": 0, "delayed": 0, "dead_letters": 0, "push": {"service": "shipping", "path": "/events"}, "origin": "file"}]})),
    ])
    .await;
    let text = weft(&api, "topics").await.unwrap();
    assert!(text.contains("orders  4           12"), "{text}");
    assert!(text.lines().last().unwrap().ends_with("shipping/events  file"), "{text}");
}

#[tokio::test]
async fn publish_sends_a_structured_event_and_receive_can_acknowledge() {
    let (api, seen) = api(vec![
        ("POST /v1/topics/orders/messages", 201, json!({"receipts": [{"id": "e1", "position": "9", "duplicate": true}]})),
        ("POST /v1/queues/emails/receive", 200, json!({"messages": [{"lease": "L", "position": "9", "attempt": 1, "event": {"type": "T", "id": "1", "source": "s", "data": "\u{1b}[2J"}}]})),
        ("POST /v1/messages/ack", 200, json!({"acked": 1, "stale": []})),
    ])
    .await;
    let said = weft(&api, "publish topic orders --type OrderCreated --subject 17 --data {\"a\":~1}").await.unwrap();
    assert_eq!(said, "e1 at 9 (a repeat: it was stored before)\n");
    let said = weft(&api, "receive queue emails --max 5 --wait 1s --ack").await.unwrap();
    assert_eq!(
        said, "9  T  id=1  source=s\n  \u{b7}[2J\nacknowledged 1\n",
        "control characters do not reach the terminal"
    );
    let seen = seen.lock().unwrap();
    let (_, ty, event) = &seen[0];
    assert_eq!(ty, "application/cloudevents+json");
    assert_eq!(
        (&event["type"], &event["subject"], &event["data"]),
        (&json!("OrderCreated"), &json!("17"), &json!({"a": 1}))
    );
    assert_eq!(seen[1].2, json!({"max": 5, "wait": "1s"}));
    assert_eq!(seen[2].2, json!({"leases": ["L"]}));
}

#[tokio::test]
async fn data_comes_from_a_file_and_what_is_no_json_is_said() {
    let (api, seen) =
        api(vec![("POST /v1/queues/q/messages", 201, json!({"receipts": [{"id": "e", "position": "1"}]}))]).await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("data.json");
    std::fs::write(&file, "[1, 2]").unwrap();
    weft(&api, &format!("publish queue q --data @{}", file.display())).await.unwrap();
    assert_eq!(seen.lock().unwrap()[0].2["data"], json!([1, 2]));
    let said = weft(&api, "publish queue q --data hello").await.unwrap_err();
    assert!(said.contains("the data is not JSON") && said.contains("'\"hello\"'"), "{said}");
    let said = weft(&api, "publish queue q --data @/none").await.unwrap_err();
    assert!(said.contains("cannot read /none"), "{said}");
    let said = weft(&api, "publish queue q --delay soon").await.unwrap_err();
    assert!(said.contains("'soon' is not a duration"), "{said}");
    assert_eq!(seen.lock().unwrap().len(), 1, "nothing was sent");
}

#[tokio::test]
async fn sagas_are_listed_shown_started_retried_and_cancelled() {
    let saga = json!({"id": "01", "saga": "place", "key": "k", "status": "compensated", "created": "t0", "updated": "t1", "input": {"a": 1}, "error": "declined",
        "steps": [{"name": "charge", "status": "failed", "attempts": 3, "started": "t0", "ended": "t1", "result": null, "error": "402"},
                  {"name": "create", "status": "done", "attempts": 1, "started": "t0", "ended": "t0", "result": {"id": 1}, "compensation": {"status": "done", "attempts": 1, "error": null}}]});
    let (api, seen) = api(vec![
        ("GET /v1/sagas/01", 200, saga.clone()),
        ("GET /v1/sagas?", 200, json!({"items": [saga], "next": "c"})),
        ("POST /v1/sagas/01/retry", 200, json!({"status": "running"})),
        ("POST /v1/sagas/01/cancel", 200, json!({"status": "compensating"})),
        ("POST /v1/sagas", 202, json!({"id": "02", "status": "running"})),
    ])
    .await;
    let listed = weft(&api, "sagas list --status compensated").await.unwrap();
    assert!(listed.contains("01  place  k    compensated  t0       t1") && listed.contains("--limit"), "{listed}");
    assert_eq!(weft(&api, "sagas").await.unwrap(), listed);
    let shown = weft(&api, "sagas show 01 --wait 5s").await.unwrap();
    assert!(shown.contains("error     declined") && shown.contains("402") && shown.contains("{\"id\":1}"), "{shown}");
    let started = weft(&api, "sagas start place --key k --input {\"a\":1}").await.unwrap();
    assert!(started.starts_with("02 running\n"), "{started}");
    assert_eq!(weft(&api, "sagas retry 01").await.unwrap(), "01 running\n");
    assert_eq!(weft(&api, "sagas cancel 01").await.unwrap(), "01 compensating\n");
    let seen = seen.lock().unwrap();
    assert_eq!(seen[0].0, "GET /v1/sagas?limit=50&status=compensated");
    assert_eq!(seen[2].0, "GET /v1/sagas/01?wait=5s");
    assert_eq!(seen[3].2, json!({"saga": "place", "key": "k", "input": {"a": 1}}));
}

#[tokio::test]
async fn a_trace_is_a_tree() {
    let id = "57c97e98663ee4a637eddb053da1831b";
    let span = |id: &str, parent: Value, name: &str, us: u64| {
        json!({"span_id": id, "parent_id": parent, "name": name, "kind": "server", "service": "gateway",
               "start": "2026-01-01T00:00:00.000Z", "duration_us": us, "status": "ok", "attributes": {}})
    };
    let spans = [
        span("00f067aa0ba902b7", Value::Null, "POST /v1/orders", 9000),
        span("00f067aa0ba902b8", json!("00f067aa0ba902b7"), "saga place", 4000),
    ];
    let (api, _) = api(vec![
        ("GET /v1/traces/57c9", 200, json!({"trace_id": id, "spans": spans})),
        ("GET /v1/traces?", 200, json!({"items": [{"trace_id": id, "name": "POST /v1/orders", "start": "t", "duration_us": 9000, "spans": 2, "errors": 0}]})),
    ])
    .await;
    let tree = weft(&api, &format!("trace {id}")).await.unwrap();
    assert!(tree.contains("POST /v1/orders") && tree.contains("`- saga place"), "{tree}");
    let list = weft(&api, "trace").await.unwrap();
    assert!(list.contains(id) && list.contains("9ms"), "{list}");
}

#[tokio::test]
async fn refusals_show_title_detail_and_what_to_do_next() {
    let problem = json!({"title": "There is nothing here", "status": 404, "code": "not-found", "detail": "no queue named 'nope'"});
    let (api, _) =
        api(vec![("GET /v1/queues/nope", 404, problem), ("GET /v1/topics", 502, json!("bad gateway"))]).await;
    let said = weft(&api, "queues nope").await.unwrap_err();
    assert!(said.contains("There is nothing here (404)\n  no queue named 'nope'\n  See what there is"), "{said}");
    let said = weft(&api, "topics").await.unwrap_err();
    assert!(said.contains("did not answer as Weft does: status 502") && said.contains("not the gateway's"), "{said}");
    let said = weft(&api, "queues").await.unwrap_err();
    assert!(said.contains("status 599"), "{said}");
}

#[tokio::test]
async fn when_nothing_listens_it_says_how_weft_is_started() {
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string();
    let said = weft(&free, "services").await.unwrap_err();
    assert!(said.contains(&free) && said.contains("`weft up`") && said.contains("WEFT_API"), "{said}");
}

#[tokio::test]
async fn keys_are_made_listed_rotated_and_revoked() {
    let key = json!({"id": "0a", "owner": "acme", "scopes": ["a", "b"], "created": "2026-01-01T00:00:00.000Z", "expires": null, "disabled": false, "secrets": [{}]});
    let mut made = key.clone();
    made["key"] = json!("weft_0a_secret");
    let (api, seen) = api(vec![
        ("POST /v1/keys/0a/rotate", 200, made.clone()),
        ("POST /v1/keys/0a/disable", 200, key.clone()),
        ("POST /v1/keys", 201, made),
        ("GET /v1/keys", 200, json!({"items": [key], "next": null})),
        ("DELETE /v1/keys/0a", 200, Value::Null),
    ])
    .await;
    let text = weft(&api, "keys create acme --scope a --scope b --expires 90d").await.unwrap();
    assert_eq!(text.lines().next(), Some("weft_0a_secret"));
    assert!(text.contains("id 0a of acme, scopes a b, does not expire"), "{text}");
    assert!(weft(&api, "keys rotate 0a --overlap 1h").await.unwrap().contains("good for 1h more"));
    assert_eq!(
        weft(&api, "keys").await.unwrap(),
        "\
ID  OWNER  SCOPES  STATE    CREATED                   EXPIRES  SECRETS
0a  acme   a b     enabled  2026-01-01T00:00:00.000Z           1
"
    );
    assert_eq!(weft(&api, "keys disable 0a").await.unwrap(), "key 0a is disabled\n");
    assert_eq!(weft(&api, "keys revoke 0a").await.unwrap(), "key 0a is gone\n");
    let seen = seen.lock().unwrap();
    assert_eq!(seen[0].2, json!({"owner": "acme", "scopes": ["a", "b"], "expires_in": "90d"}));
    assert_eq!(seen[1].2, json!({"overlap": "1h"}));
}
