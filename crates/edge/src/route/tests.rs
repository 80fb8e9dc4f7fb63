use super::*;
use crate::spec::{RouteMatch, Test};
use http::HeaderName;
use proptest::prelude::*;
use weft_core::Name;
use weft_policy::Policy;

fn spec(path: &str) -> RouteSpec {
    RouteSpec {
        name: Name::new("r").unwrap(),
        matches: RouteMatch { path: path.into(), ..RouteMatch::default() },
        priority: 0,
        to: Target::Queue(Name::new("q").unwrap()),
        versions: None,
        policy: Policy::default(),
        protocols: Default::default(),
        fallback: None,
        traffic: Default::default(),
    }
}

fn with(path: &str, f: impl FnOnce(&mut RouteSpec)) -> RouteSpec {
    let mut s = spec(path);
    f(&mut s);
    s
}

fn ask(t: &Table, method: &str, host: &str, target: &str) -> Found {
    let (path, query) = target.split_once('?').map_or((target, None), |(p, q)| (p, Some(q)));
    let method = Method::from_bytes(method.as_bytes()).unwrap();
    t.find(&Asked { host, path, query, method: &method, headers: &HeaderMap::new(), source: None })
}

fn get(t: &Table, target: &str) -> Found {
    ask(t, "GET", "h", target)
}

#[test]
fn literal_beats_parameter_beats_rest_beats_regex_segment_by_segment() {
    let t = Table::compile(&[
        spec("~/a/.*"),
        spec("/**"),
        spec("/a/**"),
        spec("/a/{x}/c"),
        spec("/a/{x}/{y}"),
        spec("/a/b/**"),
        spec("/a/b/c"),
    ])
    .unwrap();
    for (path, want) in [("/a/b/c", 6), ("/a/b/d", 5), ("/a/x/c", 3), ("/a/x/d", 4), ("/a/x", 2), ("/a", 2), ("/z", 1)]
    {
        assert_eq!(get(&t, path), Found::Route(want), "{path}");
    }
    let t = Table::compile(&[spec("~/a/.*"), spec("/b")]).unwrap();
    assert_eq!(get(&t, "/a/1"), Found::Route(0));
    assert_eq!(get(&t, "/c"), Found::Nothing);
}

#[test]
fn host_comes_before_path_and_exact_before_wildcard() {
    let host = |h: &str| with("/**", |s| s.matches.host = Some(h.into()));
    let t = Table::compile(&[spec("/a"), host("*.example.com"), host("*.eu.example.com"), host("API.example.com")])
        .unwrap();
    for (h, want) in [
        ("api.example.com", 3),
        ("API.EXAMPLE.com:8080", 3),
        ("api.example.com.", 3),
        ("x.example.com", 1),
        ("x.eu.example.com", 2),
        ("example.com", 0),
        ("other", 0),
    ] {
        assert_eq!(ask(&t, "GET", h, "/a"), Found::Route(want), "{h}");
    }
}

#[test]
fn a_host_whose_routes_do_not_match_falls_back_to_less_specific_hosts() {
    let t = Table::compile(&[spec("/a"), with("/b", |s| s.matches.host = Some("h".into()))]).unwrap();
    assert_eq!(ask(&t, "GET", "h", "/a"), Found::Route(0));
}

#[test]
fn more_conditions_win_then_priority_then_file_order() {
    let t = Table::compile(&[
        spec("/o"),
        with("/o", |s| s.matches.methods = vec!["POST".into()]),
        with("/o", |s| {
            s.matches.methods = vec!["POST".into()];
            s.matches.query = vec![("flow".into(), Test::Exact("a b".into()))];
        }),
        with("/p", |s| s.matches.query = vec![("a".into(), Test::Present)]),
        with("/p", |s| s.matches.query = vec![("b".into(), Test::Present)]),
        with("/p", |s| {
            s.matches.query = vec![("c".into(), Test::Present)];
            s.priority = 1;
        }),
    ])
    .unwrap();
    assert_eq!(ask(&t, "POST", "h", "/o?x=1&flow=a+b"), Found::Route(2));
    assert_eq!(ask(&t, "POST", "h", "/o?flow=a%20b"), Found::Route(2));
    assert_eq!(ask(&t, "POST", "h", "/o?flow=b"), Found::Route(1));
    assert_eq!(ask(&t, "GET", "h", "/o"), Found::Route(0));
    assert_eq!(get(&t, "/p?a&b&c"), Found::Route(5));
    assert_eq!(get(&t, "/p?b&a"), Found::Route(3));
}

#[test]
fn header_conditions_hold_by_presence_or_exact_value() {
    let t = Table::compile(&[
        with("/a", |s| s.matches.headers = vec![("X-Beta".into(), Test::Exact("1".into()))]),
        with("/a", |s| s.matches.headers = vec![("x-any".into(), Test::Present)]),
    ])
    .unwrap();
    let find = |name: &'static str, value: &str| {
        let headers = HeaderMap::from_iter([(HeaderName::from_static(name), value.parse().unwrap())]);
        t.find(&Asked { host: "h", path: "/a", query: None, method: &Method::GET, headers: &headers, source: None })
    };
    assert_eq!(find("x-beta", "1"), Found::Route(0));
    assert_eq!(find("x-beta", "2"), Found::Nothing);
    assert_eq!(find("x-any", ""), Found::Route(1));
}

#[test]
fn another_method_is_told_from_nothing_and_head_follows_get() {
    let m = |m: &str| with("/a", |s| s.matches.methods = vec![m.into()]);
    let t = Table::compile(&[m("GET"), m("PUT")]).unwrap();
    assert_eq!(ask(&t, "POST", "h", "/a"), Found::OtherMethods(vec![Method::GET, Method::PUT]));
    assert_eq!(ask(&t, "HEAD", "h", "/a"), Found::Route(0));
    assert_eq!(ask(&t, "POST", "h", "/b"), Found::Nothing);
}

#[test]
fn two_equal_routes_are_an_error_that_names_both() {
    let e = Table::compile(&[spec("/a/{x}"), spec("/b"), spec("/a/{other}")]).unwrap_err();
    assert!(matches!(e[..], [RouteError::Equal { route: 2, other: 0, .. }]), "{e:?}");
    assert!(Table::compile(&[spec("/a/{x}"), with("/a/{y}", |s| s.priority = 1)]).is_ok());
}

#[test]
fn all_mistakes_are_reported_at_once() {
    let e = Table::compile(&[
        spec("a"),
        with("/a", |s| {
            s.matches.host = Some("a:80".into());
            s.matches.methods = vec!["G T".into()];
            s.matches.headers = vec![("a b".into(), Test::Present)];
        }),
        with("/a/**", |s| s.to = Target::Service { service: Name::new("s").unwrap(), path: Some("/{x}".into()) }),
    ])
    .unwrap_err();
    assert_eq!(e.iter().map(RouteError::route).collect::<Vec<_>>(), [0, 1, 1, 1, 2]);
}

/// The rules of the module's head, written down as a key to sort by and a list to go through.
fn by_the_rules(specs: &[RouteSpec], host: &str, path: &str, method: &Method) -> Option<usize> {
    let key = |i: &usize| {
        let s = &specs[*i];
        let host = match s.matches.host.as_deref() {
            Some(h) if !h.starts_with('*') => (0, 0),
            Some(h) => (1, -(h.len() as i64)),
            None => (2, 0),
        };
        let path = match Pattern::parse(&s.matches.path).unwrap() {
            Pattern::Regex(_) => vec![9],
            Pattern::Segments { segments, rest } => {
                let mut v: Vec<_> = segments.iter().map(|s| i32::from(matches!(s, Segment::Param(_))) + 1).collect();
                if rest {
                    v.push(3);
                }
                v
            }
        };
        (host, path, -(!s.matches.methods.is_empty() as i32), -s.priority, *i)
    };
    let mut order: Vec<usize> = (0..specs.len()).collect();
    order.sort_by_key(key);
    order.into_iter().find(|i| {
        let m = &specs[*i].matches;
        let host_ok = match m.host.as_deref() {
            None => true,
            Some(h) => h.strip_prefix('*').map_or(h == host, |s| host.ends_with(s) && host.len() > s.len()),
        };
        let method_ok = m.methods.is_empty() || m.methods.iter().any(|x| x == method.as_str());
        host_ok && method_ok && Pattern::parse(&m.path).unwrap().matches(path)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn the_table_answers_as_the_rules_read(
        routes in prop::collection::vec((
            prop::sample::select(vec![None, Some("h.x"), Some("g.x"), Some("*.x")]),
            prop::collection::vec(prop::sample::select(vec!["a", "b", "{p}", "{q}"]), 0..4),
            prop::sample::select(vec!["", "", "/**"]),
            prop::sample::select(vec![None, Some("GET"), Some("PUT")]),
            0..2i32,
        ), 0..12),
        asks in prop::collection::vec((
            prop::sample::select(vec!["h.x", "g.x", "k.x", "x", "y"]),
            prop::collection::vec(prop::sample::select(vec!["a", "b", "c", ""]), 0..5),
            prop::sample::select(vec![Method::GET, Method::PUT]),
        ), 1..20),
    ) {
        let mut specs: Vec<RouteSpec> = Vec::new();
        for (host, segments, tail, method, priority) in routes {
            let mut path: String = segments.iter().enumerate().map(|(i, s)| match *s {
                s if s.starts_with('{') => format!("/{{{}{i}}}", &s[1..2]),
                s => format!("/{s}"),
            }).collect();
            path.push_str(tail);
            if path.is_empty() {
                path.push('/');
            }
            let mut next = specs.clone();
            next.push(with(&path, |s| {
                s.matches.host = host.map(str::to_owned);
                s.matches.methods = method.map(str::to_owned).into_iter().collect();
                s.priority = priority;
            }));
            // Equal routes are refused; such a one is left out.
            if Table::compile(&next).is_ok() {
                specs = next;
            }
        }
        let table = Table::compile(&specs).unwrap();
        for (host, segments, method) in asks {
            let path = if segments.is_empty() { "/".to_owned() } else { segments.iter().map(|s| format!("/{s}")).collect() };
            let got = match table.find(&Asked { host, path: &path, query: None, method: &method, headers: &HeaderMap::new(), source: None }) {
                Found::Route(i) => Some(i),
                _ => None,
            };
            prop_assert_eq!(got, by_the_rules(&specs, host, &path, &method), "{} {}", host, path);
        }
    }
}

fn asks(t: &Table, target: &str, fields: &[(&'static str, &str)], source: Option<&str>) -> Found {
    let (path, query) = target.split_once('?').map_or((target, None), |(p, q)| (p, Some(q)));
    let mut headers = HeaderMap::new();
    for (k, v) in fields {
        headers.append(*k, v.parse().unwrap());
    }
    let source = source.map(|s| s.parse().unwrap());
    t.find(&Asked { host: "Shop.test:80", path, query, method: &Method::POST, headers: &headers, source })
}

#[test]
fn header_and_query_conditions_test_prefix_regex_presence_and_absence() {
    let header = |t: Test| with("/h", |s| s.matches.headers = vec![("X-V".into(), t)]);
    for (test, yes, no) in [
        (Test::Prefix("beta".into()), &["beta-2", "beta"][..], &["", "alpha beta"][..]),
        (Test::Regex("v[0-9]+".into()), &["v12"], &["v", "v1x", "xv1"]),
        (Test::Present, &["", "x"], &[]),
        (Test::Exact("x".into()), &["x"], &["X", "xx"]),
    ] {
        let t = Table::compile(&[header(test.clone())]).unwrap();
        for v in yes {
            assert_eq!(asks(&t, "/h", &[("x-v", v)], None), Found::Route(0), "{test:?} {v}");
        }
        for v in no {
            assert_eq!(asks(&t, "/h", &[("x-v", v)], None), Found::Nothing, "{test:?} {v}");
        }
        assert_eq!(asks(&t, "/h", &[], None), Found::Nothing, "{test:?}");
    }
    let t = Table::compile(&[header(Test::Absent)]).unwrap();
    assert_eq!(asks(&t, "/h", &[], None), Found::Route(0));
    assert_eq!(asks(&t, "/h", &[("x-v", "1")], None), Found::Nothing);
    let query = |t: Test| Table::compile(&[with("/q", |s| s.matches.query = vec![("a b".into(), t)])]).unwrap();
    let t = query(Test::Regex("x y[0-9]".into()));
    assert_eq!(asks(&t, "/q?a+b=x%20y1", &[], None), Found::Route(0));
    assert_eq!(asks(&t, "/q?a+b=x%20y", &[], None), Found::Nothing);
    assert_eq!(asks(&query(Test::Prefix("x y".into())), "/q?c&a%20b=x+yz", &[], None), Found::Route(0));
    assert_eq!(asks(&query(Test::Absent), "/q?a=b", &[], None), Found::Route(0));
    assert_eq!(asks(&query(Test::Absent), "/q?a+b", &[], None), Found::Nothing);
}

#[test]
fn content_type_grpc_and_expressions_are_conditions_and_each_counts_for_specificity() {
    let t = Table::compile(&[
        spec("/x"),
        with("/x", |s| s.matches.content_types = vec!["Application/JSON".into(), "image/*".into()]),
        with("/x", |s| s.matches.grpc = true),
        with("/x", |s| s.matches.when = Some("request.query.n == '7' && source.address.startsWith('10.')".into())),
        with("/x", |s| {
            s.matches.when = Some("request.headers['x-v'] == 'a, b' && request.host == 'shop.test'".into());
            s.priority = 1;
        }),
    ])
    .unwrap();
    assert!(t.sees_source());
    for (target, fields, want) in [
        ("/x", &[][..], 0),
        ("/x", &[("content-type", "application/json; charset=utf-8")], 1),
        ("/x", &[("content-type", "IMAGE/png")], 1),
        ("/x", &[("content-type", "application/jsonp")], 0),
        ("/x", &[("content-type", "application/grpc+proto")], 2),
        ("/x?n=7", &[], 3),
        ("/x?n=8", &[], 0),
        ("/x", &[("x-v", "a"), ("x-v", "b")], 4),
    ] {
        assert_eq!(asks(&t, target, fields, Some("10.1.2.3")), Found::Route(want), "{target} {fields:?}");
    }
    assert_eq!(asks(&t, "/x?n=7", &[], Some("11.1.2.3")), Found::Route(0));
}

#[test]
fn conditions_that_cannot_hold_are_errors_that_name_their_member() {
    for (change, member) in [
        (
            Box::new(|s: &mut RouteSpec| s.matches.headers = vec![("x".into(), Test::Regex("(".into()))])
                as Box<dyn Fn(&mut RouteSpec)>,
            "header",
        ),
        (Box::new(|s: &mut RouteSpec| s.matches.query = vec![("x".into(), Test::Regex("(".into()))]), "query"),
        (Box::new(|s: &mut RouteSpec| s.matches.content_types = vec!["json".into()]), "content_type"),
        (Box::new(|s: &mut RouteSpec| s.matches.when = Some("reqest.path == '/'".into())), "when"),
        (Box::new(|s: &mut RouteSpec| s.matches.when = Some("request.path ==".into())), "when"),
    ] {
        let e = Table::compile(&[with("/a", |s| change(s))]).unwrap_err();
        assert!(matches!(&e[..], [RouteError::Member { member: m, .. }] if *m == member), "{e:?}");
    }
}
