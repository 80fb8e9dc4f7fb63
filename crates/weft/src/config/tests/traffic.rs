//! Mistakes in what a route says of matching, targets and traffic.

use super::*;

/// The mistakes of one route to service `a`, written as flow YAML; columns are those of the route's line.
fn route(rest: &str) -> Vec<String> {
    mistakes(&format!("services: {{ a: , b: }}\nqueues: {{ q: }}\ngateway:\n  routes:\n    - {rest}\n"))
}

fn says(rest: &str, expected: &[&str]) {
    assert_eq!(route(rest), expected, "in: {rest}");
}

#[test]
fn mistakes_in_a_match_are_named_with_their_place() {
    says(
        "{ match: { path: /x, headers: { x-v: { regex: \"(\" } } }, to: { service: a } }",
        &["5:39 header 'x-v' has a value that is not a regular expression | unclosed group"],
    );
    says(
        "{ match: { path: /x, query: { v: { regex: \"(\" } } }, to: { service: a } }",
        &["5:37 query parameter 'v' has a value that is not a regular expression | unclosed group"],
    );
    says(
        "{ match: { path: /x, headers: { x-v: { exact: a, prefix: b } } }, to: { service: a } }",
        &[
            "5:39 a condition is one of exact, prefix, regex and present | keep one of them; two names make two conditions",
        ],
    );
    says(
        "{ match: { path: /x, content_type: json }, to: { service: a } }",
        &[
            "5:42 content type 'json' is not a media type | write it like application/json or image/*, without parameters",
        ],
    );
    says(
        "{ match: { path: /x, when: \"reqest.method == 'GET'\" }, to: { service: a } }",
        &["5:35 unknown name 'reqest' | write request or source"],
    );
    says(
        "{ match: { path: /x, grpc: shop.Orders }, to: { service: a } }",
        &["5:24 a match on gRPC has a path already | leave 'path' out: service and method say it"],
    );
    says(
        "{ match: { grpc: { service: shop/Orders, method: Get } }, to: { service: a } }",
        &["5:35 'shop/Orders' is not a gRPC service | write it with its package, as shop.v1.Orders"],
    );
}

#[test]
fn mistakes_in_targets_are_named_with_their_place() {
    says(
        "{ match: { path: /x }, to: [{ service: a, weight: 1 }, { queue: q, weight: 1 }, { service: b }] }",
        &[
            "5:62 a route can be split over services only | write {service: NAME, weight: N}",
            "5:87 the share of service 'b' has no weight | add 'weight:'",
        ],
    );
    says(
        "{ match: { path: /x }, to: { service: a, weight: 5 } }",
        &["5:56 a single target has no weight | write 'to' as a list of services with weights, or leave it out"],
    );
    says(
        "{ match: { path: /x }, to: { service: a }, sticky: { cookie: u } }",
        &[
            "5:50 'sticky' has no meaning without a split | leave it out, or write 'to' as a list of services with weights",
        ],
    );
    says(
        "{ match: { path: /x }, to: { redirect: { status: 305 } } }",
        &["5:56 redirect '305' is not a redirect | write one of 301, 302, 303, 307 and 308"],
    );
    says(
        "{ match: { path: \"/x/{id}\" }, to: { redirect: { path: \"/y/{no}\" } } }",
        &[
            "5:61 redirect '/y/{no}' uses '{no}', which is not known | write what the path captures, or client.address, route.name, trace.id, request.host, request.method, request.path, request.query, request.scheme",
        ],
    );
    says(
        "{ match: { path: /x }, to: { respond: 99 } }",
        &["5:45 99 is not a status to answer with | write one from 200 to 599"],
    );
    says(
        "{ match: { path: /x }, to: { respond: 204 }, mirror: { service: a }, policy: { retry: off } }",
        &[
            "5:52 'mirror' has no meaning on a route without a service | leave it out",
            "5:93 'retry' has no meaning on a route that answers by itself | what has one: rate",
        ],
    );
    says(
        "{ match: { path: /x }, to: { service: a, path: /y }, rewrite: { prefix: /x, with: / } }",
        &["5:60 the path is rewritten twice | keep 'rewrite' or the target's 'path'"],
    );
    says(
        "{ match: { path: /x }, to: { service: a }, rewrite: { regex: \"(\", with: / } }",
        &["5:68 rewrite '(' is not a regular expression | unclosed group"],
    );
    says(
        "{ match: { path: /x }, to: { service: a }, host: \"a b\" }",
        &["5:56 host rewrite 'a b' is not a host | write preserve, service or a name"],
    );
}

#[test]
fn mistakes_in_traffic_are_named_with_their_place() {
    says(
        "{ match: { path: /x }, to: { service: a }, headers: { request: { set: { Host: x }, remove: \"a b\" } } }",
        &[
            "5:79 request header 'Host' belongs to the connection | write 'host:' on the route",
            "5:98 request header 'a b' is not a header field name | use letters, digits and '-'",
        ],
    );
    says(
        "{ match: { path: /x }, to: { service: a }, mirror: { service: c, percent: 5 } }",
        &["5:69 unknown service 'c' | did you mean 'a'?", "5:81 '5' is not a percentage | write '5%'"],
    );
    says(
        "{ match: { path: /x }, to: { service: a }, cors: { origins: \"*\", credentials: true } }",
        &["5:67 cors '*' does not go with credentials | name the origins"],
    );
    says(
        "{ match: { path: /x }, to: { service: a }, cors: shop.test }",
        &["5:56 cors 'shop.test' is not an origin | write it like https://shop.example, without a path"],
    );
    says(
        "{ match: { path: /x }, to: { service: a }, compress: [gzip, deflate] }",
        &["5:67 'deflate' is not one of zstd, br, gzip | write one of zstd, br, gzip"],
    );
    says(
        "{ match: { path: /x }, to: { service: a }, limits: { request: 5 apples } }",
        &["5:69 '5 apples' is not a size | write it like 64KiB or 10MiB"],
    );
    says(
        "{ match: { path: /x }, to: { service: a }, buffer: { request: 1GiB } }",
        &["5:50 a body this large is not collected | write at most 64MiB, or let it stream"],
    );
    says(
        "{ match: { path: /x }, to: { service: a }, fault: { abort: 200 } }",
        &["5:66 200 is not a status to answer with | write one from 400 to 599"],
    );
    says(
        "{ match: { path: /x }, to: { service: a }, depends_on: { queue: p, max_lag: soon } }",
        &["5:83 'soon' is neither a number of messages nor an age | write it like 10k or 30s"],
    );
    for good in ["compress: gzip", "compress: [br, gzip]", "compress:", "cors: [\"https://a.test\"]", "buffer: request"]
    {
        let text = format!(
            "services: {{ a: }}\ngateway:\n  routes:\n    - match: {{ path: /x }}\n      to: {{ service: a }}\n      {good}\n"
        );
        load_text(&text).unwrap_or_else(|r| panic!("{good}: {r}"));
    }
    assert_eq!(
        mistakes("gateway: { trusted_proxies: [10.0.0.0/33] }"),
        ["1:30 '10.0.0.0/33' is not a network | write it like 10.0.0.0/8 or ::1"]
    );
}
