//! A route as listings show it.

use serde_json::{Value, json};
use weft_edge::spec::{Host, RouteMatch, RouteSpec, Target, Test};
use weft_policy::Policy;

/// `name`, `match`, `target`, `uses` and `policy` of one route.
pub(super) fn describe(r: &RouteSpec) -> Value {
    let m = &r.matches;
    json!({
        "name": r.name,
        "match": {
            "host": m.host,
            "path": m.path,
            "methods": m.methods,
            "headers": conditions(&m.headers),
            "query": conditions(&m.query),
            "content_types": m.content_types,
            "grpc": m.grpc,
            "when": m.when,
            "text": text(m),
        },
        "priority": r.priority,
        "target": target(&r.to),
        "uses": uses(r),
        "policy": policy(&r.policy),
    })
}

fn conditions(all: &[(String, Test)]) -> Vec<String> {
    all.iter().map(|(n, t)| condition(n, t)).collect()
}

fn condition(name: &str, test: &Test) -> String {
    match test {
        Test::Exact(v) => format!("{name}={v}"),
        Test::Prefix(v) => format!("{name}={v}*"),
        Test::Regex(v) => format!("{name}~{v}"),
        Test::Present => name.to_owned(),
        Test::Absent => format!("!{name}"),
    }
}

fn text(m: &RouteMatch) -> String {
    let mut out = if m.methods.is_empty() { String::new() } else { format!("{} ", m.methods.join(",")) };
    out.push_str(m.host.as_deref().unwrap_or_default());
    out.push_str(&m.path);
    let mut more = conditions(&m.headers);
    more.extend(conditions(&m.query).into_iter().map(|c| format!("?{c}")));
    more.extend(m.content_types.iter().cloned());
    more.extend(m.grpc.then(|| "grpc".to_owned()));
    more.extend(m.when.iter().map(|w| format!("when {w}")));
    if !more.is_empty() {
        out.push_str(&format!(" [{}]", more.join("; ")));
    }
    out
}

fn target(to: &Target) -> String {
    match to {
        Target::Service { service, path } => format!("service {service}{}", path.as_deref().unwrap_or_default()),
        Target::Saga { saga, .. } => format!("saga {saga}"),
        Target::Topic(t) => format!("topic {t}"),
        Target::Queue(q) => format!("queue {q}"),
        Target::Split(shares) => {
            let all: u64 = shares.iter().map(|s| u64::from(s.weight)).sum();
            let one = |s: &weft_edge::spec::Share| format!("{} {}/{all}", s.service, s.weight);
            format!("services {}", shares.iter().map(one).collect::<Vec<_>>().join(", "))
        }
        Target::Redirect(r) => format!("redirect {}", r.status),
        Target::Respond(r) => format!("answer {}", r.status.as_u16()),
    }
}

fn uses(r: &RouteSpec) -> Vec<&'static str> {
    let t = &r.traffic;
    let all = [
        ("sticky", t.sticky.is_some()),
        ("rewrite", t.rewrite.is_some()),
        ("host", t.host != Host::Preserve),
        ("headers", !t.request.is_empty() || !t.response.is_empty()),
        ("mirror", t.mirror.is_some()),
        ("cors", t.cors.is_some()),
        ("compress", t.compress.is_some()),
        ("limits", t.request_limit.is_some() || t.response_limit.is_some()),
        ("buffer", t.buffer.is_some()),
        ("fault", t.fault.is_some()),
        ("depends_on", t.depends_on.is_some()),
        ("fallback", r.fallback.is_some()),
        ("versions", r.versions.is_some()),
        ("client_certificate", r.protocols.client_certificate),
    ];
    all.into_iter().filter(|(_, on)| *on).map(|(name, _)| name).collect()
}

fn policy(p: &Policy) -> Vec<&'static str> {
    let all = [
        ("deadline", p.deadline.is_some()),
        ("attempt_timeout", p.attempt_timeout.is_some()),
        ("retry", p.retry.is_some()),
        ("hedge", p.hedge.is_some()),
        ("breaker", p.breaker.is_some()),
        ("bulkhead", p.bulkhead.is_some()),
        ("rate", !p.rate.is_empty()),
        ("quota", !p.quota.is_empty()),
        ("auth", p.auth.is_some()),
        ("idempotency", p.idempotency.is_some()),
    ];
    all.into_iter().filter(|(_, on)| *on).map(|(name, _)| name).collect()
}
