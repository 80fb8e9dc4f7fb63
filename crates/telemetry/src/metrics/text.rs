//! The Prometheus text format 0.0.4 (prometheus.io, "Exposition formats").

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use super::{BUCKETS, Cell, Def, FIRST_BUCKET, Family, Histogram, Kind, Samples};

pub(super) fn render(families: &BTreeMap<&'static str, Family>, samples: &Samples) -> String {
    let mut out = String::with_capacity(16 << 10);
    let names: BTreeSet<_> = families.keys().chain(samples.found.keys()).collect();
    for name in names {
        let (held, told) = (families.get(*name), samples.found.get(*name));
        let Some(def) = held.map(|f| f.def).or(told.map(|t| t.0)) else { continue };
        head(&mut out, def);
        for (labels, cell) in held.into_iter().flat_map(|f| &f.series) {
            match cell {
                Cell::Counter(c) => line(&mut out, def.name, "", labels, None, c.value() as f64),
                Cell::Gauge(g) => line(&mut out, def.name, "", labels, None, g.value() as f64),
                Cell::Histogram(h) => histogram(&mut out, def.name, labels, h),
            }
        }
        // A series that is both held and told is told by its handle alone: a name with the same labels twice would
        // make the scrape fail.
        for (labels, value) in told.into_iter().flat_map(|t| &t.1) {
            if held.is_none_or(|f| !f.series.contains_key(labels)) {
                line(&mut out, def.name, "", labels, None, *value);
            }
        }
    }
    out
}

fn head(out: &mut String, def: &Def) {
    out.push_str("# HELP ");
    out.push_str(def.name);
    out.push(' ');
    // In HELP only backslash and line feed are escaped.
    for c in def.help.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            c => out.push(c),
        }
    }
    let kind = match def.kind {
        Kind::Counter => "counter",
        Kind::Gauge => "gauge",
        Kind::Histogram => "histogram",
    };
    // Writing to a String cannot fail.
    let _ = write!(out, "\n# TYPE {} {kind}\n", def.name);
}

fn histogram(out: &mut String, name: &str, labels: &[(&'static str, Box<str>)], h: &Histogram) {
    let (counts, sum) = h.read();
    let mut total = 0;
    for (i, n) in counts.iter().enumerate() {
        total += n;
        let le = if i == BUCKETS - 1 { "+Inf".to_owned() } else { seconds(FIRST_BUCKET << i) };
        line(out, name, "_bucket", labels, Some(&le), total as f64);
    }
    line(out, name, "_sum", labels, None, sum as f64 / 1e9);
    line(out, name, "_count", labels, None, total as f64);
}

fn seconds(nanos: u64) -> String {
    (nanos as f64 / 1e9).to_string()
}

fn line(out: &mut String, name: &str, suffix: &str, labels: &[(&'static str, Box<str>)], le: Option<&str>, value: f64) {
    out.push_str(name);
    out.push_str(suffix);
    let all = labels.iter().map(|(k, v)| (*k, &**v)).chain(le.map(|v| ("le", v)));
    let mut open = false;
    for (key, value) in all {
        out.push_str(if open { "," } else { "{" });
        open = true;
        out.push_str(key);
        out.push_str("=\"");
        for c in value.chars() {
            match c {
                '\\' => out.push_str("\\\\"),
                '"' => out.push_str("\\\""),
                '\n' => out.push_str("\\n"),
                c => out.push(c),
            }
        }
        out.push('"');
    }
    if open {
        out.push('}');
    }
    let _ = if value.is_infinite() {
        writeln!(out, " {}Inf", if value > 0.0 { "+" } else { "-" })
    } else {
        writeln!(out, " {value}")
    };
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::Metrics;
    use crate::names;

    /// name, labels, value
    type Sample = (String, Vec<(String, String)>, f64);

    /// A strict reader of the format, written from its specification.
    fn parse(text: &str) -> Result<Vec<Sample>, String> {
        let (mut out, mut family, mut typed) = (Vec::new(), String::new(), std::collections::HashSet::new());
        assert!(text.ends_with('\n'), "the last line ends with a line feed");
        for l in text.lines() {
            if let Some(rest) = l.strip_prefix("# HELP ") {
                family = rest.split(' ').next().unwrap_or_default().to_owned();
                continue;
            }
            if let Some(rest) = l.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').ok_or(l)?;
                if name != family || !["counter", "gauge", "histogram"].contains(&kind) {
                    return Err(format!("TYPE without its HELP: {l}"));
                }
                if !typed.insert(name.to_owned()) {
                    return Err(format!("a second group of {name}"));
                }
                continue;
            }
            let end = l.find(['{', ' ']).ok_or(l)?;
            let name = &l[..end];
            let valid = |n: &str| {
                !n.is_empty()
                    && !n.as_bytes()[0].is_ascii_digit()
                    && n.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b':')
            };
            let base = ["_bucket", "_sum", "_count"].iter().find_map(|s| name.strip_suffix(s)).unwrap_or(name);
            if !valid(name) || (name != family && base != family) {
                return Err(format!("{name} outside its group {family}"));
            }
            let mut labels = Vec::new();
            let mut rest = &l[end..];
            if let Some(inner) = rest.strip_prefix('{') {
                rest = inner;
                loop {
                    let (key, after) = rest.split_once("=\"").ok_or(l)?;
                    if !valid(key) {
                        return Err(format!("label {key}"));
                    }
                    let (mut value, mut chars) = (String::new(), after.char_indices());
                    let close = loop {
                        match chars.next().ok_or(l)? {
                            (at, '"') => break at,
                            (_, '\\') => value.push(match chars.next().ok_or(l)?.1 {
                                'n' => '\n',
                                c @ ('"' | '\\') => c,
                                c => return Err(format!("escape \\{c}")),
                            }),
                            (_, c) => value.push(c),
                        }
                    };
                    labels.push((key.to_owned(), value));
                    rest = &after[close + 1..];
                    match rest.strip_prefix(',') {
                        Some(more) => rest = more,
                        None => break,
                    }
                }
                rest = rest.strip_prefix('}').ok_or(l)?;
            }
            let value = rest.strip_prefix(' ').ok_or(l)?.parse().map_err(|e| format!("{l}: {e}"))?;
            out.push((name.to_owned(), labels, value));
        }
        Ok(out)
    }

    #[test]
    fn what_is_rendered_is_read_back_by_a_parser_of_the_format() {
        let m = Metrics::new();
        let nasty = "a\"b\\c\nd,}=é";
        m.counter(&names::HTTP_REQUESTS, &[("route", nasty), ("code", "200")]).add(7);
        m.gauge(&names::HTTP_REQUESTS_IN_FLIGHT, &[]).add(-3);
        let h = m.histogram(&names::HTTP_REQUEST_DURATION, &[("route", "x")]);
        for ms in [0, 1, 5, 70, 1_000_000] {
            h.observe(Duration::from_millis(ms));
        }
        let _c = m.collect(|out| out.gauge(&names::BREAKER_STATE, &[("policy", "p")], f64::INFINITY));
        let got = parse(&m.render_prometheus()).unwrap();
        let find = |name: &str| got.iter().filter(|s| s.0 == name).collect::<Vec<_>>();

        let requests = find("weft_http_requests_total");
        assert_eq!(requests[0].1, [("route".into(), nasty.into()), ("code".into(), "200".into())]);
        assert_eq!(requests[0].2, 7.0);
        assert_eq!(find("weft_http_requests_in_flight")[0].2, -3.0);
        assert_eq!(find("weft_breaker_state")[0].2, f64::INFINITY);

        let buckets = find("weft_http_request_duration_seconds_bucket");
        let bounds: Vec<f64> = buckets.iter().map(|b| b.1.last().unwrap().1.parse().unwrap()).collect();
        assert!(bounds.is_sorted() && bounds[0] == 0.0001 && *bounds.last().unwrap() == f64::INFINITY);
        assert!(buckets.is_sorted_by_key(|b| b.2 as u64), "buckets are cumulative");
        assert_eq!(buckets.last().unwrap().2, 5.0);
        assert_eq!(find("weft_http_request_duration_seconds_count")[0].2, 5.0);
        assert!((find("weft_http_request_duration_seconds_sum")[0].2 - 1_000.076).abs() < 1e-6);
    }

    #[test]
    fn a_series_both_held_and_collected_appears_once() {
        let m = Metrics::new();
        m.gauge(&names::BREAKER_STATE, &[("policy", "p")]).set(1);
        let _c = m.collect(|out| {
            out.gauge(&names::BREAKER_STATE, &[("policy", "p")], 2.0);
            out.gauge(&names::BREAKER_STATE, &[("policy", "q")], 2.0);
        });
        let got = parse(&m.render_prometheus()).unwrap();
        assert_eq!(got.iter().filter(|s| s.0 == "weft_breaker_state").count(), 2);
    }
}
