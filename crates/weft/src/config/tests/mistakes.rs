//! Every mistake the loader knows, with its place and what it says to write instead.

use super::*;

/// Checks that a text has exactly these mistakes.
fn says(text: &str, expected: &[&str]) {
    assert_eq!(mistakes(text), expected, "in:\n{text}");
}

#[test]
fn ten_mistakes_are_ten_pictures_with_line_column_caret_and_suggestion() {
    let report = load_text(include_str!("ten.yaml")).unwrap_err();
    assert_eq!(report.mistakes().len(), 10);
    let drawn = report.render(false);
    assert!(drawn == include_str!("ten.txt"), "this is drawn now:\n{drawn}");
}

#[test]
fn many_mistakes_are_counted_and_the_first_are_drawn() {
    let text: String = (0..80).map(|i| format!("x{i}: 1\n")).collect();
    let report = load_text(&text).unwrap_err();
    let drawn = report.render(false);
    assert_eq!(drawn.matches("unknown key").count(), 50);
    assert!(drawn.ends_with("... and 30 more\n80 mistakes\n"));
}

#[test]
fn mistakes_in_the_choice_of_instances_are_named_with_their_place() {
    says(
        "services: { a: { balance: maglev } }",
        &[
            "1:27 what is a request known by? ring_hash and maglev need 'hash' | write 'balance: { by: maglev, hash: header x-user }'",
        ],
    );
    says(
        "services: { a: { balance: { hash: path } } }",
        &[
            "1:35 'hash' has no meaning without ring_hash or maglev | leave it out, or write 'by: ring_hash' or 'by: maglev'",
        ],
    );
    says(
        "services: { a: { balance: { by: ring_hash, hash: [header, cookie a=b] } } }",
        &[
            "1:51 'header' is not what a request is known by | write 'header NAME', 'cookie NAME', 'query NAME', 'path' or 'address'",
            "1:59 'cookie a=b' is not what a request is known by | write 'header NAME', 'cookie NAME', 'query NAME', 'path' or 'address'",
        ],
    );
    says(
        "services: { a: { http: [{ address: '127.0.0.1:1', weight: 20000 }] } }",
        &["1:59 a weight of 20000 is too much | make it at most 10000"],
    );
    says("services: { a: { outlier: { stdev: -1 } } }", &["1:36 '-1' is not a number | write it like 1.9"]);
}

#[test]
fn mistakes_in_hedges_windows_and_limits_are_named_with_their_place() {
    let says = |policy: &str, expected: &str| says(&format!("policies: {{ p: {{ {policy} }} }}"), &[expected]);
    says("hedge: p100", "1:25 'p100' is not a percentile | write it like p95, from p1 to p99.9");
    says("hedge: 50", "1:25 '50' has no unit | write '50s' or '50ms'");
    says("hedge: { max: 9 }", "1:32 9 hedges are more than go out beside one attempt | make it at most 8");
    says(
        "breaker: { window: 0s }",
        "1:37 a window of no time holds no calls | write how many calls, or how long: '100' or '60s'",
    );
    says("bulkhead: { queue: 1 }", "1:18 bulkhead needs 'limit' | add 'limit:'");
    says(
        "bulkhead: { adaptive: { min: 9, max: 3 } }",
        "1:47 the least, 9, is more than the most, 3 | make 'min' at most 'max'",
    );
}

#[test]
fn mistakes_in_fallbacks_are_named_with_their_place() {
    let says = |fallback: &str, expected: &[&str]| {
        let text = format!(
            "services: {{ a: }}\ngateway:\n  routes:\n    - match: {{ path: /a }}\n      to: {{ service: a }}\n      fallback: {fallback}\n"
        );
        says(&text, expected);
    };
    says(
        "{}",
        &[
            "6:7 a fallback is one of respond and service | write 'respond: { status: 200, body: ... }' or 'service: NAME'",
        ],
    );
    says("{ service: b }", &["6:28 unknown service 'b' | did you mean 'a'?"]);
    says("{ respond: { status: 99 } }", &["6:38 99 is not the status of an answer | write one from 200 to 599"]);
    says(
        "{ respond: { headers: { 'a b': c } } }",
        &["6:41 'a b: c' is not a header field | names have letters, digits and '-', values visible characters"],
    );
    super::mistakes("topics: { t: }\ngateway: { routes: [{ match: { path: /a }, to: { topic: t }, policy: { bulkhead: adaptive } }] }")
        .iter()
        .find(|m| m.contains("goes by attempts, and a route to a queue or topic makes none"))
        .expect("nothing is learned there");
    super::mistakes(
        "topics: { t: }\ngateway: { routes: [{ match: { path: /a }, to: { topic: t }, fallback: { service: x } }] }",
    )
    .iter()
    .find(|m| m.contains("'fallback' has no meaning on a route that is not to a service"))
    .expect("a topic has no fallback");
}

#[test]
fn mistakes_in_services_are_named_with_their_place() {
    says(
        r#"services: { a: { http: "127.0.0.1" } }"#,
        &["1:24 '127.0.0.1' is not an address | write host:port, [ipv6]:port or unix:/path"],
    );
    says(
        r#"services: { a: { http: "127.0.0.1:1", grpc: "127.0.0.1:2" } }"#,
        &["1:24 'http' addresses in a service that speaks grpc | a service speaks one protocol"],
    );
    says("services: { a: { protocol: htpt } }", &["1:28 'htpt' is not one of http, h2, grpc | did you mean 'http'?"]);
    says(
        "services: { a: { health: { http: healthz, tcp: true } } }",
        &[
            "1:18 a health check is one of http, grpc and tcp | keep one of them",
            "1:34 a health check's path starts with '/' | write '/healthz'",
        ],
    );
    says(
        "services: { a: { tls: { cert: none.pem } } }",
        &[
            "1:31 'cert' without its 'key' | add 'key:'",
            "1:31 there is no file none.pem | paths are seen from the file they are written in",
        ],
    );
    says(
        "services: { a: { proto: none.proto } }",
        &["1:25 there is no file none.proto | paths are seen from the file they are written in"],
    );
    says(
        "services: { -a: }",
        &[
            "1:13 '-a' is not a name | use 1 to 128 of letters, digits, '.', '_' and '-', starting with a letter or digit",
        ],
    );
    says(
        r##"services: { a: { policy: patiant } }
policies: { patient: { deadline: 1s } }"##,
        &["1:26 unknown policy 'patiant' | did you mean 'patient'?"],
    );
    says(
        "services: { a: { policy: { idempotency: optional } } }",
        &[
            "1:41 'idempotency' has no meaning on a service | what has one: deadline, attempt_timeout, retry, hedge, breaker, bulkhead, rate",
        ],
    );
    says("services: 5", &["1:11 expected a map from names, found '5' | "]);
    says(
        "services: { a: [x] }",
        &["1:16 service is a map, found a list | its keys: protocol, http, h2, grpc, proto, balance, ..."],
    );
    says(
        "services: { a: { balance: round-robin } }",
        &[
            "1:27 'round-robin' is not one of least_request, round_robin, peak_ewma, ring_hash, maglev | did you mean 'round_robin'?",
        ],
    );
    says(
        "services: { a: { health: { interval: 0.5 } } }",
        &["1:38 '0.5' is not a duration | write it like 250ms, 10s, 1m30s, 2h or 7d"],
    );
}

#[test]
fn mistakes_in_policies_are_named_with_their_place() {
    says(
        "policies: { p: { deadline: 10sec } }",
        &["1:28 '10sec' is not a duration | write it like 250ms, 10s, 1m30s, 2h or 7d"],
    );
    says("policies: { p: { deadline: 0s } }", &["1:28 deadline of 0 leaves no time at all | write 'off' for no limit"]);
    says("policies: { p: { retry: { attempts: 0 } } }", &["1:37 0 is too small | write 1 or more"]);
    says(
        "policies: { p: { retry: { attempts: three } } }",
        &["1:37 'three' is not a whole number | write digits alone"],
    );
    says(
        "policies: { p: { retry: { backoff: 2s..1s } } }",
        &["1:36 '2s..1s' goes backwards | write the shorter first"],
    );
    says("policies: { p: { retry: { backoff: fast } } }", &["1:36 'fast' is not a backoff | write it like 50ms..2s"]);
    says(
        "policies: { p: { retry: { jitter: half } } }",
        &["1:35 'half' is not one of full, none | write one of full, none"],
    );
    says("policies: { p: { retry: { budget: 120% } } }", &["1:35 '120%' is not a percentage | write it like 20%"]);
    says("policies: { p: { retry: { budget: 0.2 } } }", &["1:35 '0.2' is not a percentage | write '20%'"]);
    says(
        "policies: { p: { retry: 3 } }",
        &["1:25 retry is a map, found a single value | its keys: attempts, backoff, jitter, budget, budget_min"],
    );
    says(
        "policies: { p: { retry: [] } }",
        &["1:25 retry is a map, found a list | its keys: attempts, backoff, jitter, budget, budget_min"],
    );
    says(
        "policies: { p: { breaker: { window: 10 } } }",
        &[
            "1:37 the breaker would never open: min_calls 20 is more than the window of 10 calls | make min_calls at most the window",
        ],
    );
    says("policies: { p: { bulkhead: { queue: 4 } } }", &["1:18 bulkhead needs 'limit' | add 'limit:'"]);
    says("policies: { p: { bulkhead: many } }", &["1:28 'many' is not a whole number | write digits alone"]);
    says("policies: { p: { rate: 100 } }", &["1:24 '100' is not a rate | write it like 100/s, 60/m or 1000/h"]);
    says("policies: { p: { rate: 0/s } }", &["1:24 a rate of 0 lets nothing through | write at least 1/s"]);
    says(
        "policies: { p: { rate: { limit: 5/s, per: user } } }",
        &["1:43 'user' is not one of all, principal, address, api_key | write one of all, principal, address, api_key"],
    );
    says(
        "policies: { p: { idempotency: always } }",
        &["1:31 expected required, optional, off or a map, found 'always' | "],
    );
    says(
        "policies: { p: { cahce: {} } }",
        &[
            "1:18 unknown key 'cahce' in policy | known keys: deadline, attempt_timeout, retry, hedge, breaker, bulkhead, rate, quota, idempotency, auth",
        ],
    );
}

#[test]
fn mistakes_in_the_gateway_are_named_with_their_place() {
    says(r#"gateway: { listen: ":8080" }"#, &["1:20 ':8080' is not an address to listen on | write '127.0.0.1:8080'"]);
    says(
        r#"gateway: { listen: "localhost:8080" }"#,
        &["1:20 'localhost:8080' is not an address to listen on | write '127.0.0.1:8080'"],
    );
    says("gateway: { listen: { tls: { cert: c.pem } } }", &["1:12 listen needs 'address' | add 'address:'"]);
    says(
        r#"gateway: { listen: ["[::]:80", "127.0.0.1:1"] }"#,
        &[
            "1:21 [::]:80 can be reached from other machines, without TLS | listen on 127.0.0.1, or write 'insecure: true' in gateway",
        ],
    );
    says("gateway: { routes: { a: 1 } }", &["1:20 expected a list of routes, found a map | "]);
    says(
        r##"gateway:
  routes:
    - { match: { path: v1 }, to: { topic: t } }
    - { match: { path: "/v1/{a}/{a}" }, to: { topic: t } }
    - { match: { path: "/v1/x{a}" }, to: { topic: t } }
    - { match: { path: "/**/v1" }, to: { topic: t } }
    - { match: { path: "~[" }, to: { topic: t } }
    - { match: { path: "/v1/../a" }, to: { topic: t } }
    - { match: { path: "/{}" }, to: { topic: t } }
topics: { t: }"##,
        &[
            "3:24 path 'v1' must start with '/' (or '~' for a regular expression) | write '/v1'",
            "4:24 path '/v1/{a}/{a}' uses the parameter 'a' twice | rename one of the two",
            "5:24 path '/v1/x{a}' 'x{a}' mixes text with a parameter | '{name}' and '**' are whole segments, '**' the last",
            "6:24 path '/**/v1' '**' mixes text with a parameter | '{name}' and '**' are whole segments, '**' the last",
            "7:24 path '~[' is not a regular expression | unclosed character class",
            "8:24 path '/v1/../a' is not in normal form | no '.', '..' or empty segments, and only reserved characters percent-encoded",
            "9:24 path '/{}' '{}' is not a parameter | name it with letters, digits and '_'",
        ],
    );
    says(
        r##"gateway:
  routes:
    - { match: { host: "http://a.b" }, to: { topic: t } }
    - { match: { method: GTE }, to: { topic: t } }
    - { match: { method: get }, to: { topic: t } }
    - { match: { headers: { "x y": 1 } }, to: { topic: t } }
    - { match: { headers: [a] }, to: { topic: t } }
topics: { t: }"##,
        &[
            "3:24 host 'http://a.b' is not a host | must be a name like 'api.example.com' or '*.example.com', without port",
            "4:26 'GTE' is not an HTTP method | did you mean 'GET'?",
            "5:26 'get' is not an HTTP method | did you mean 'GET'?",
            "6:29 header 'x y' is not a header field name | use letters, digits and '-'",
            "7:27 expected a map from name to value, found a list | ",
        ],
    );
    says(
        r##"gateway:
  routes:
    - { match: { path: /a }, to: { service: s, topic: t } }
    - { match: { path: /b }, to: {} }
    - { match: { path: /c } }
    - { to: { topic: t } }
    - { match: { path: /d }, to: { topic: t, path: /x } }
    - { match: { path: /e }, to: { topic: t }, reply: accepted }
    - { match: { path: /f }, to: { queue: nope } }
    - { match: { path: /g }, to: { topic: tt } }
    - { match: { path: /h }, to: { saga: nope } }
    - { match: { path: /i }, to: { service: s }, priority: high }
    - { match: { path: /j }, to: { service: s, path: x } }
    - { match: { path: /k }, to: { service: s, path: "/{**}" } }
    - { match: { path: /l }, to: { service: s, path: "/{x" } }
    - { match: { path: /m }, to: { topic: t }, policy: { retry: off } }
    - { match: { path: /n }, to: { topic: t }, policy: [p, 5s, [x]] }
services: { s: }
topics: { t: }
policies: { p: { breaker: off } }"##,
        &[
            "3:30 a route has one target, found service and topic | write one of service, saga, queue, topic, redirect and respond",
            "4:30 a route needs a target | write one of service, saga, queue, topic, redirect and respond",
            "5:7 route needs 'to' | add 'to:'",
            "6:7 route needs 'match' | add 'match:'",
            "7:52 'path' has no meaning on a route to a topic | leave it out: only a service is asked for a path",
            "8:55 'reply' has no meaning on a route to a topic | leave it out: only a route to a saga chooses when to answer",
            "9:43 unknown queue 'nope' | no queue is declared",
            "10:43 unknown topic 'tt' | did you mean 't'?",
            "11:42 unknown saga 'nope' | no saga is declared",
            "12:60 'high' is not a whole number | write digits alone",
            "13:54 path 'x' must start with '/' | write '/x'",
            "14:54 path '/{**}' uses '{**}', which the route's path does not capture | the match's path captures nothing: capture with {name} or /**",
            "15:54 path '/{x' has a '{' without its '}' | write {name} for a segment, /** for the rest",
            "16:65 'retry' has no meaning on a route to a queue or topic | what has one: deadline, bulkhead, rate, quota, idempotency, auth",
            "17:57 policy 'p' sets 'breaker', which has no meaning on a route to a queue or topic | what has one: deadline, bulkhead, rate, quota, idempotency, auth",
            "17:60 unknown policy '5s' | known policies: p",
            "17:64 expected the name of a policy, or a policy, found a list | ",
        ],
    );
    says(
        r##"gateway:
  routes:
    - { name: x, match: { path: "/a/{id}", method: [GET, PUT] }, to: { topic: t } }
    - { name: x, match: { path: "/a/{key}", method: [PUT, GET] }, to: { topic: t } }
    - { match: { path: "/a/{key}", method: [PUT, GET] }, to: { topic: t }, priority: 1 }
topics: { t: }"##,
        &[
            "4:7 route 'x' takes the same requests as 'x' | change the match, or give one of them a 'priority'",
            "4:15 two routes are named 'x' | rename one of them",
        ],
    );
}

#[test]
fn mistakes_in_queues_are_named_with_their_place() {
    says("queues: { q: { lease: 30 } }", &["1:23 '30' has no unit | write '30s' or '30ms'"]);
    says(
        "queues: { q: { retry: { attempts: 3, budget: 20% } } }",
        &["1:38 unknown key 'budget' in redelivery | known keys: attempts, backoff"],
    );
    says(
        "queues: { q: { dead_letter: q } }",
        &["1:29 'q' cannot be its own dead letter queue | write another name, like 'q.dead'"],
    );
    says(
        r#"queues: { q: { dedup: "event.id +" } }"#,
        &["1:34 'event.id +' is not a CEL expression, at its column 11 | the expression ends where more is expected"],
    );
    says(
        "queues: { q: { dedup: { by: evnt.id, window: x } } }",
        &[
            "1:29 unknown name 'evnt' | did you mean 'event'?; known here: event",
            "1:46 'x' is not a duration | write it like 250ms, 10s, 1m30s, 2h or 7d",
        ],
    );
    says("queues: { q: { max_messages: -1 } }", &["1:30 -1 is too small | write 0 or more"]);
    says(
        "queues: { q: { durability: fast } }",
        &["1:28 'fast' is not one of fsync, relaxed | write one of fsync, relaxed"],
    );
}

#[test]
fn mistakes_in_topics_are_named_with_their_place() {
    says("topics: { t: { partitions: 0 } }", &["1:28 0 is too small | write 1 or more"]);
    says(r#"topics: { t: { key: "subject" } }"#, &["1:22 unknown name 'subject' | known here: event"]);
    says(r#"topics: { t: { key: "sise(event.subject)" } }"#, &["1:22 unknown function 'sise' | did you mean 'size'?"]);
    says(
        "topics: { t: { retention: forever } }",
        &["1:27 'forever' is not a duration | write it like 250ms, 10s, 1m30s, 2h or 7d"],
    );
}

#[test]
fn mistakes_in_subscriptions_are_named_with_their_place() {
    says("subscriptions: { s: { topic: t } }", &["1:30 unknown topic 't' | no topic is declared"]);
    says("subscriptions: { s: }", &["1:18 subscription needs 'topic' | add 'topic:'"]);
    says(
        r##"subscriptions: { s: { topic: t, filter: "event.type = 'x'" } }
topics: { t: }"##,
        &["1:53 'event.type = 'x'' is not a CEL expression, at its column 12 | compare with '=='"],
    );
    says(
        r##"subscriptions: { s: { topic: t, push: { path: /x } } }
topics: { t: }"##,
        &["1:33 push needs 'service' | add 'service:'"],
    );
    says(
        r##"subscriptions: { s: { topic: t, push: { service: a, path: x } } }
topics: { t: }"##,
        &["1:50 unknown service 'a' | no service is declared", "1:59 the path of a push starts with '/' | write '/x'"],
    );
    says(
        r##"subscriptions: { s: { topic: t, policy: { deadline: 1s } } }
topics: { t: }"##,
        &["1:53 'deadline' has no meaning on a queue or a subscription without push | what has one: retry"],
    );
}

#[test]
fn mistakes_in_sagas_are_named_with_their_place() {
    says("sagas: { s: }", &["1:10 saga needs 'steps' | add 'steps:'"]);
    says("sagas: { s: { steps: [] } }", &["1:15 a saga has at least one step | write '- name: { call: ... }'"]);
    says("sagas: { s: { steps: { a: 1 } } }", &["1:15 steps are a list, found a map | write '- name: { call: ... }'"]);
    says("sagas: { s: { steps: [ a ] } }", &["1:24 a step is one name with its step | write '- name: { call: ... }'"]);
    says(
        r##"sagas:
  s:
    steps:
      - a: { call: "POST" }
      - b: { call: "PSOT order/x" }
      - c: { call: "POST bad name/x" }
      - d: { call: "POST order/{a" }
      - e: { call: "POST order/}" }
      - f: { call: "POST order/{1 +}" }
      - g: { call: order/Bad-Method }
      - h: { call: order/Get }
      - i: { call: POST stock/x }
      - j: { call: POST ordr/x }
      - k: {}
      - l: { call: POST order/x, publish: { topic: t, type: T } }
      - m: { publish: { topic: t, type: T }, with: { a: 1 }, policy: p }
      - n: { publish: { type: T } }
      - o: { publish: { topic: t, queue: q, type: T } }
      - p: { publish: { topic: nope, type: T, subject: "a b" } }
      - q: { publish: { queue: nope, type: T } }
      - a: { call: POST order/x }
      - input: { call: POST order/x }
      - r: { parallel: [ { r1: { call: POST order/x } } ], call: POST order/x }
      - s: { parallel: [ { s1: { parallel: [] } } ] }
      - t: { call: POST order/x, idempotent: maybe }
      - u: { call: POST order/x, when: "inptu.a" }
      - v: { call: POST order/x, with: { a: [ { b: "jj.id" } ] }, compensate: { call: "POST order/{result.id}/{u.id}/{saga.idd}" } }
      - w: { call: GET order/x, with: { a: 1 } }
      - "x y": { call: POST order/x }
      - y: { compensate: { call: POST order/x }, call: POST order/x, policy: { idempotency: off } }
    result: { id: "nope.id" }
services: { order: { protocol: http }, stock: { protocol: grpc } }
topics: { t: }
policies: { p: {} }"##,
        &[
            "4:20 'POST' is not a call | write 'POST service/path' for HTTP or 'service/Method' for gRPC",
            "5:20 'PSOT' is not an HTTP method | did you mean 'POST'?",
            "6:20 'bad name' is not the name of a service | write 'POST service/path' for HTTP or 'service/Method' for gRPC",
            "7:32 '{' without '}' | write {expression}",
            "8:32 '}' without '{' | write {expression}",
            "9:36 '1 +' is not a CEL expression, at its column 4 | the expression ends where more is expected",
            "10:20 'order/Bad-Method' is not a call | write 'POST service/path' for HTTP or 'service/Method' for gRPC",
            "11:20 service 'order' speaks http, this call is gRPC | write 'POST order/path', or 'protocol: grpc' in the service",
            "12:20 service 'stock' speaks grpc, this call is HTTP | write 'stock/Method'",
            "13:20 unknown service 'ordr' | did you mean 'order'?",
            "14:9 this does nothing | add 'call:' or 'publish:'",
            "15:34 a step does one thing, found call and publish | make two steps of it",
            "16:46 'with' has no meaning beside 'publish' | the data of an event is 'publish.data'",
            "16:70 'policy' has no meaning beside 'publish' | leave it out",
            "17:14 publish to what? | add 'topic:' or 'queue:'",
            "18:42 an event is published to one of topic and queue | keep one of the two",
            "19:32 unknown topic 'nope' | known topics: t",
            "19:59 'a b' is not a CEL expression, at its column 3 | extraneous input 'b'",
            "20:32 unknown queue 'nope' | no queue is declared",
            "21:9 two steps of saga 's' are named 'a' | rename one of them",
            "22:9 a step cannot be named 'input' | expressions use that name already: write another",
            "23:66 'call' has no meaning beside 'parallel' | write it in the steps inside",
            "24:34 a parallel group cannot stand in a parallel group | put its steps into one",
            "25:46 'maybe' is not one of key, natural, no | write one of key, natural, no",
            "26:41 unknown name 'inptu' | did you mean 'input'?; known here: input, saga, a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, a, input, r1, s1, t",
            "27:53 unknown name 'jj' | did you mean 'j'?; known here: input, saga, a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, a, input, r1, s1, t, u",
            "27:119 'saga' has no 'idd' | it has id, key, name",
            "28:33 a GET carries no body | put values into the path or query",
            "29:9 'x y' is not a name | use letters, digits, '.', '_' and '-'",
            "30:93 'idempotency' has no meaning on a saga step | what has one: deadline, attempt_timeout, retry, hedge, breaker, bulkhead, rate",
            "31:20 unknown name 'nope' | known here: input, saga, a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, a, input, r1, s1, t, u, v, w, y",
        ],
    );
}

#[test]
fn mistakes_at_the_top_are_named_with_their_place() {
    says(
        r#"api: { listen: "0.0.0.0:1" }"#,
        &[
            "1:16 0.0.0.0:1 can be reached from other machines, without TLS | listen on 127.0.0.1, or write 'insecure: true' in api",
        ],
    );
    says(
        "api: { listen: x, insecure: yes }",
        &[
            "1:16 'x' is not an address to listen on | write it like 127.0.0.1:8080",
            "1:29 'yes' is neither true nor false | write true or false",
        ],
    );
    says("store: postgres", &["1:8 'postgres' is not 'embedded' | write 'embedded', the only one there is"]);
    says("broker: kafka", &["1:9 'kafka' is not 'embedded' | write 'embedded', the only one there is"]);
    says("threads: 0", &["1:10 0 is too small | write 1 or more"]);
    says("logs: xml", &["1:7 'xml' is not one of human, json | write one of human, json"]);
    says(
        "colour: red",
        &[
            "1:1 unknown key 'colour' in configuration | known keys: include, services, policies, auth, gateway, queues, topics, subscriptions, sagas, api, store, broker, logs, zone, threads",
        ],
    );
}

#[test]
fn protos_that_do_not_compile_and_methods_they_do_not_have_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    write("bad.proto", "syntax = \"proto3\";\nmessage A { strin g = 1; }\n");
    write(
        "stock.proto",
        "syntax = \"proto3\"; package shop; message Q { string key = 1; }\nservice Stock { rpc Reserve(Q) returns (Q); rpc Watch(Q) returns (stream Q); }\n",
    );
    write(
        "weft.yaml",
        "services:
  bad: { protocol: grpc, proto: bad.proto }
  stock: { protocol: grpc, proto: stock.proto }
sagas:
  s:
    steps:
      - a: { call: stock/Reserv }
      - b: { call: stock/Watch }
      - c: { call: stock/shop.Stock/Reserve, with: { kee: saga.id } }
      - d: { call: bad/Whatever }
",
    );
    let report = load(&dir.path().join("weft.yaml")).unwrap_err();
    let said: Vec<_> = report.lines().into_iter().map(|m| (m.at.unwrap(), m.message, m.help.unwrap())).collect();
    let places: Vec<_> = said.iter().map(|(p, ..)| (p.line, p.column)).collect();
    assert_eq!(places, [(2, 33), (7, 26), (8, 20), (9, 54)], "{said:?}");
    assert!(said[0].1.contains("'bad' do not compile") && said[0].2.contains("strin"), "{said:?}");
    assert!(said[1].2.contains("did you mean 'Reserve'?"), "{said:?}");
    assert!(said[2].1.contains("stream"), "{said:?}");
    assert!(said[3].1.contains("no field 'kee'") && said[3].2.contains("did you mean 'key'?"), "{said:?}");
}

#[test]
fn what_refers_to_something_broken_is_not_reported_again() {
    says(
        "services: { a: { protocol: tcp } }
topics: { t: { partitions: x } }
queues: { q: { lease: x } }
sagas: { s: { steps: [ { one: { call: POST a/x } } ], deadline: x } }
policies: { p: { deadline: x } }
gateway:
  routes:
    - { match: { path: /1 }, to: { service: a }, policy: p }
    - { match: { path: /2 }, to: { topic: t } }
    - { match: { path: /3 }, to: { queue: q } }
    - { match: { path: /4 }, to: { saga: s } }
subscriptions: { s: { topic: t, push: { service: a } } }
",
        &[
            "1:28 'tcp' is not one of http, h2, grpc | write one of http, h2, grpc",
            "2:28 'x' is not a whole number | write digits alone",
            "3:23 'x' is not a duration | write it like 250ms, 10s, 1m30s, 2h or 7d",
            "4:65 'x' is not a duration | write it like 250ms, 10s, 1m30s, 2h or 7d",
            "5:28 'x' is not a duration | write it like 250ms, 10s, 1m30s, 2h or 7d",
        ],
    );
}

#[test]
fn limits_are_mistakes_when_they_are_hit() {
    let long = format!("topics: {{ t: {{ key: \"'{}'\" }} }}", "x".repeat(20_000));
    assert!(mistakes(&long)[0].contains("an expression of more than 16384 bytes"));
    let steps: String =
        (0..=weft_core::limits::SAGA_STEPS).map(|i| format!("    - s{i}: {{ call: POST a/x }}\n")).collect();
    let many = format!("services: {{ a: }}\nsagas:\n  s:\n   steps:\n{steps}");
    assert_eq!(mistakes(&many), ["3:3 1001 steps are more than 1000 | split the saga"]);
    let files: Vec<_> = (0..70).map(|i| (format!("f{i}.yaml"), format!("include: f{}.yaml\n", i + 1))).collect();
    let mut texts: Vec<_> = files.iter().map(|(p, t)| (p.as_str(), t.as_str())).collect();
    texts.push(("weft.yaml", "include: f0.yaml\n"));
    assert!(lines(&load_texts(&texts, &[]).unwrap_err())[0].contains("more than 64 files"));
}

#[test]
fn mistakes_in_tls_of_listeners_are_named_with_their_place() {
    says(
        "gateway: { listen: { address: '127.0.0.1:1', tls: {} } }",
        &["1:46 TLS needs a certificate | write 'cert:' and 'key:', or a list of both"],
    );
    says(
        "gateway: { listen: { address: '127.0.0.1:1', tls: { cert: none.pem } } }",
        &["1:59 'cert' without its 'key' | add 'key:'"],
    );
    says(
        "gateway: { listen: { address: '127.0.0.1:1', tls: [{ cert: none.pem }] } }",
        &["1:52 certificate needs 'key' | add 'key:'"],
    );
    says(
        "gateway: { listen: { address: '127.0.0.1:1', tls: [{ cert: none.pem, key: none.key }] } }",
        &[
            "1:60 there is no file none.pem | paths are seen from the file they are written in",
            "1:75 there is no file none.key | paths are seen from the file they are written in",
        ],
    );
    says(
        "gateway: { listen: { address: '127.0.0.1:1', tls: { certificates: [], client: sometimes } } }",
        &["1:79 'sometimes' is not one of required, optional | write one of required, optional"],
    );
    says(
        "gateway: { listen: { address: '127.0.0.1:1', tls: { certificates: [], client: optional } } }",
        &[
            "1:46 TLS needs a certificate | write 'cert:' and 'key:', or a list of both",
            "1:79 'client' without its 'client_ca' | add 'client_ca:', the file of who vouches for them",
        ],
    );
    says(
        r#"services: { a: }
gateway: { routes: [{ match: { path: / }, client_certificate: required, to: { service: a } }] }"#,
        &[
            "2:63 no listener asks clients for a certificate | add 'client: optional' and 'client_ca:' to the 'tls' of a listener",
        ],
    );
}

#[test]
fn a_certificate_that_cannot_be_used_is_a_mistake_before_anything_starts() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let (one, other) = (made(), made());
    for (file, text) in
        [("one.pem", &one.0), ("one.key", &one.1), ("other.key", &other.1), ("junk.pem", &"junk".to_owned())]
    {
        std::fs::write(at(file), text).unwrap();
    }
    let listen = |cert: &str, key: &str| {
        format!("gateway:\n  listen: {{ address: 127.0.0.1:1, tls: {{ cert: {}, key: {} }} }}\n", at(cert), at(key))
    };
    load_text(&listen("one.pem", "one.key")).unwrap();
    let list = format!(
        "gateway:\n  listen: {{ address: 127.0.0.1:1, tls: [{{ cert: {0}, key: {1} }}, {{ cert: {0}, key: {1} }}] }}\n",
        at("one.pem"),
        at("one.key")
    );
    let loaded = load_text(&list).unwrap();
    assert_eq!(loaded.snapshot.gateway.listen[0].tls.as_ref().unwrap().certificates.len(), 2);
    for (cert, key, said) in [
        ("junk.pem", "one.key", "certificate chain"),
        ("one.pem", "other.key", "private key"),
        ("one.pem", "junk.pem", "private key"),
    ] {
        let all = mistakes(&listen(cert, key));
        assert!(all.len() == 1 && all[0].starts_with("2:48 the ") && all[0].contains(said), "{all:?}");
    }
}

/// A certificate and its key.
pub(super) fn made() -> (String, String) {
    let made = rcgen::generate_simple_self_signed(vec!["shop.test".into()]).unwrap();
    (made.cert.pem(), made.signing_key.serialize_pem())
}

#[test]
fn mistakes_in_rates_and_quotas_are_named_with_their_place() {
    let policy = |text: &str| format!("policies: {{ p: {{ {text} }} }}");
    says(
        &policy("rate: { limit: 5/s, per: all, header: x }"),
        &["1:56 'per' and 'header' both say what is counted apart | keep one of them"],
    );
    says(
        &policy("rate: [ { limit: 5/s, algorithm: sliding, burst: 3 }, { limit: 1/h, header: 'a b' } ]"),
        &[
            "1:67 'burst' has no meaning with 'algorithm: sliding' | leave it out: the whole limit may come at once",
            "1:94 'a b' is not the name of a header | use letters, digits and '-'",
        ],
    );
    says(
        &policy("rate: { limit: 5/s, key: requst.path, ipv6_prefix: 129 }"),
        &[
            "1:43 unknown name 'requst' | did you mean 'request'?; known here: request, principal, address",
            "1:69 an IPv6 address has no prefix of 129 bits | write 1 to 128",
        ],
    );
    says(
        &policy("quota: [ { limit: 10x, per: day }, { limit: 1, per: week } ]"),
        &[
            "1:36 '10x' is not a number | write it like 500, 10k or 5M",
            "1:70 'week' is not one of day, month | write one of day, month",
        ],
    );
    says(
        &policy("quota: [ { limit: 1, per: day, name: q }, { limit: 1, per: month, name: q } ]"),
        &["1:90 two quotas are named 'q' | rename one of them"],
    );
    let many = ["1/s"; 9].join(", ");
    says(&policy(&format!("rate: [ {many} ]")), &["1:18 9 rates on one thing; there may be 8 | keep the tightest"]);
    says(
        "services: { a: { policy: { quota: { limit: 1, per: day } } } }",
        &[
            "1:28 'quota' has no meaning on a service | what has one: deadline, attempt_timeout, retry, hedge, breaker, bulkhead, rate",
        ],
    );
}

#[test]
fn rates_and_quotas_come_to_what_they_say() {
    use weft_policy::spec::{Algorithm, Calendar, RatePer};
    let loaded = load_text(
        "services: { a: }\ngateway: { routes: [ { match: {}, to: { service: a }, policy: {\n rate: [ { limit: 5/m, algorithm: sliding, per: api_key }, { limit: 1/s, per: api_key, burst: 4 }, { limit: 2/s, key: address, cost: '3', name: n } ],\n quota: { limit: 10k, per: month, by: principal } } } ] }",
    )
    .unwrap_or_else(|r| panic!("{r}"));
    let policy = &loaded.snapshot.gateway.routes[0].policy;
    let names: Vec<_> = policy.rate.iter().map(|r| r.name.as_str()).collect();
    assert_eq!(names, ["api_key", "api_key-2", "n"]);
    assert_eq!((policy.rate[0].algorithm, policy.rate[1].burst), (Algorithm::Sliding, 4));
    assert_eq!(policy.rate[0].per, RatePer::Header("x-api-key".into()));
    assert_eq!(policy.rate[2].per, RatePer::Expression("address".into()));
    assert_eq!(policy.rate[2].cost.as_deref(), Some("3"));
    let q = &policy.quota[0];
    assert_eq!((q.name.as_str(), q.limit, q.period, &q.per), ("month", 10_000, Calendar::Month, &RatePer::Principal));
}

#[test]
fn mistakes_in_versions_are_named_with_their_place() {
    let route = |path: &str, versions: &str| {
        format!(
            "services: {{ a: }}\ngateway:\n  routes:\n    - match: {{ path: {path} }}\n      to: {{ service: a }}\n      versions:\n        {versions}\n"
        )
    };
    says(
        &route("/x", "{ from: path, known: { '1': {} } }"),
        &["7:17 the match's path captures no {version} | match a path such as '/{version}/orders/**'"],
    );
    says(
        &route("/x", "{ from: { header: A, query: b }, default: '3', known: { '1': {}, v1: {} } }"),
        &[
            "7:17 a version is said in exactly one place each | write path, or one of header, accept and query",
            "7:51 unknown version '3' | did you mean '1'?",
            "7:74 '1' and 'v1' name the same version | rename one of them",
        ],
    );
    says(
        &route(
            "/x",
            "{ from: { accept: application/json+x }, known: { '1': { deprecated: 2026-02-01, sunset: 2026-01-01 } } }",
        ),
        &[
            "7:27 'application/json+x' is not a media type without version | write it like 'application/vnd.shop'",
            "7:97 version '1' ends before it is deprecated | RFC 8594 and RFC 9745 want 'deprecated' first",
        ],
    );
    says(
        &route(
            "/x",
            "{ from: { query: v }, known: { '1': { successor: '7', sunset: soon, request: { a: bdy.x } }, '2': { to: { path: '/{id}', service: b } } } }",
        ),
        &[
            "7:58 '7' is no other version | did you mean '2'?",
            "7:71 'soon' is not a date | write it like 2026-03-31 or 2026-03-31T12:00:00Z",
            "7:77 unknown name 'bdy' | did you mean 'body'?; known here: body, request, principal, address",
            "7:121 path '/{id}' uses '{id}', which the route's path does not capture | write {name} for what the match captures",
            "7:139 unknown service 'b' | did you mean 'a'?",
        ],
    );
    says(&route("/x", "nope"), &["7:9 unknown version 'nope' | no version is declared"]);
}
