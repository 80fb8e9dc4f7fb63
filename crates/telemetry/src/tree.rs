//! A trace as a tree of text, for `weft trace ID`.
//!
//! ```text
//! trace 57c97e98663ee4a637eddb053da1831b: 5 spans, 3 services, 100.0ms, 1 failed
//! POST /v1/orders             gateway       +0us   100.0ms  [####################]  http.response.status_code=409
//! `- saga place-order         flow        +1.0ms    95.0ms  [################### ]
//!    |- step create           flow        +5.0ms    10.0ms  [ ##                 ]
//!    |  `- POST order/orders  order       +6.0ms     8.0ms  [ #                  ]
//!    `- step charge           flow       +20.0ms    60.0ms  [    ############    ]  FAILED error.type=breaker-open
//! ```

use std::collections::{HashMap, HashSet};
use std::fmt::Write;

use weft_core::trace::SpanId;

use crate::span::{SpanRecord, SpanStatus};

const BAR: usize = 20;
const NAME_WIDTH: usize = 60;

/// The tree of one trace's spans. A span whose parent is not among them stands at the top.
pub fn render(spans: &[SpanRecord]) -> String {
    let Some(first) = spans.first() else { return "no spans\n".into() };
    let lines = lines(spans);
    let begin = spans.iter().map(|s| s.start.0 * 1_000).min().unwrap_or(0);
    let end = spans.iter().map(|s| s.start.0 * 1_000 + micros(s)).max().unwrap_or(0);
    let total = end - begin;
    let services: HashSet<&str> = spans.iter().map(|s| s.service.as_str()).collect();
    let failed = spans.iter().filter(|s| s.status == SpanStatus::Error).count();

    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = write!(
        out,
        "trace {}: {}, {}, {}",
        first.trace.trace_id,
        count(spans.len(), "span"),
        count(services.len(), "service"),
        time(total)
    );
    let _ = if failed > 0 { writeln!(out, ", {failed} failed") } else { writeln!(out) };

    let labels: Vec<String> =
        lines.iter().map(|l| format!("{}{}", l.branch, cut(&printable(&spans[l.at].name), NAME_WIDTH))).collect();
    let label_width = labels.iter().map(|l| l.chars().count()).max().unwrap_or(0);
    let service_width = services.iter().map(|s| printable(s).chars().count()).max().unwrap_or(0);
    for (line, label) in lines.iter().zip(&labels) {
        let s = &spans[line.at];
        let offset = s.start.0 * 1_000 - begin;
        let _ = write!(
            out,
            "{label:label_width$}  {:service_width$}  {:>9}  {:>8}  [{}]",
            printable(&s.service),
            format!("+{}", time(offset)),
            time(micros(s)),
            bar(offset, micros(s), total),
        );
        if s.status == SpanStatus::Error {
            out.push_str("  FAILED");
        }
        for (i, (k, v)) in s.attributes.iter().enumerate() {
            let lead = if i == 0 && s.status == SpanStatus::Ok { "  " } else { " " };
            let _ = write!(out, "{lead}{}={}", printable(k), cut(&printable(&v.to_string()), 120));
        }
        out.push('\n');
    }
    out
}

struct Line {
    branch: String,
    at: usize,
}

/// Every span once, parents before children, siblings by start. Works on any input: unknown parents and cycles too.
fn lines(spans: &[SpanRecord]) -> Vec<Line> {
    let known: HashSet<SpanId> = spans.iter().map(|s| s.trace.span_id).collect();
    let mut children: HashMap<Option<SpanId>, Vec<usize>> = HashMap::new();
    for (at, s) in spans.iter().enumerate() {
        children.entry(s.trace.parent.filter(|p| known.contains(p))).or_default().push(at);
    }
    for c in children.values_mut() {
        c.sort_by_key(|at| spans[*at].start);
    }
    let mut out = Vec::with_capacity(spans.len());
    let mut seen = HashSet::new();
    let roots = children.remove(&None).unwrap_or_default();
    // Spans in a cycle hang from no root; they come last, each cycle from its earliest span.
    let mut rest: Vec<usize> = (0..spans.len()).collect();
    rest.sort_by_key(|at| spans[*at].start);
    for top in roots.into_iter().chain(rest) {
        // (span, its branch, what its children's branches begin with)
        let mut stack = vec![(top, String::new(), String::new())];
        while let Some((at, branch, indent)) = stack.pop() {
            if !seen.insert(at) {
                continue;
            }
            out.push(Line { branch, at });
            let below = children.remove(&Some(spans[at].trace.span_id)).unwrap_or_default();
            let last = below.len().saturating_sub(1);
            for (i, child) in below.into_iter().enumerate().rev() {
                let (mark, space) = if i == last { ("`- ", "   ") } else { ("|- ", "|  ") };
                stack.push((child, format!("{indent}{mark}"), format!("{indent}{space}")));
            }
        }
    }
    out
}

fn micros(s: &SpanRecord) -> u64 {
    s.duration.as_micros().min(u128::from(u64::MAX / 4)) as u64
}

fn time(us: u64) -> String {
    match us {
        0..=999 => format!("{us}us"),
        1_000..=9_999_999 => format!("{:.1}ms", us as f64 / 1e3),
        _ => format!("{:.1}s", us as f64 / 1e6),
    }
}

fn bar(offset: u64, took: u64, total: u64) -> String {
    let cell = |us: u64| ((us as u128 * BAR as u128) / u128::from(total.max(1))) as usize;
    let from = cell(offset).min(BAR - 1);
    let to = cell(offset + took).clamp(from + 1, BAR);
    format!("{}{}{}", " ".repeat(from), "#".repeat(to - from), " ".repeat(BAR - to))
}

fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// Without control characters: names come from the network, and a terminal obeys them.
fn printable(s: &str) -> String {
    s.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

fn cut(s: &str, width: usize) -> String {
    if s.chars().count() <= width { s.to_owned() } else { s.chars().take(width - 3).chain("...".chars()).collect() }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use weft_core::{Timestamp, Trace};

    use super::*;
    use crate::span::{SpanKind, TraceView};

    fn span(trace: Trace, name: &str, service: &'static str, start: u64, ms: u64) -> SpanRecord {
        SpanRecord {
            trace,
            name: name.to_owned().into(),
            kind: SpanKind::Internal,
            service: service.into(),
            start: Timestamp(1_000_000 + start),
            duration: Duration::from_millis(ms),
            status: SpanStatus::Ok,
            attributes: Vec::new(),
        }
    }

    fn shape(text: &str) -> Vec<&str> {
        text.lines().skip(1).map(|l| l.split("  ").next().unwrap_or_default().trim_end()).collect()
    }

    #[test]
    fn children_stand_under_their_parents_by_start() {
        let root = Trace::root();
        let saga = root.child();
        let mut failed = span(saga.child(), "step charge", "flow", 20, 60);
        failed.status = SpanStatus::Error;
        failed.set("error.type", "breaker-open");
        let create = saga.child();
        let mut top = span(root, "POST /v1/orders", "gateway", 0, 100);
        top.set("http.response.status_code", 409);
        let spans = [
            span(create.child(), "POST order/orders", "order", 6, 8),
            failed,
            span(create, "step create", "flow", 5, 10),
            span(saga, "saga place-order", "flow", 1, 95),
            top,
        ];
        let text = render(&spans);
        assert!(
            text.starts_with(&format!("trace {}: 5 spans, 3 services, 100.0ms, 1 failed\n", root.trace_id)),
            "{text}"
        );
        let tree: Vec<String> = text.lines().skip(1).map(|l| l[..26].trim_end().to_owned()).collect();
        assert_eq!(
            tree,
            [
                "POST /v1/orders",
                "`- saga place-order",
                "   |- step create",
                "   |  `- POST order/orders",
                "   `- step charge",
            ],
            "{text}"
        );
        assert!(text.contains("[####################]  http.response.status_code=409"), "{text}");
        assert!(text.contains("FAILED error.type=breaker-open"), "{text}");

        // The same from the API's JSON.
        let view = TraceView { trace_id: root.trace_id, spans: spans.to_vec() };
        let back: TraceView = serde_json::from_str(&serde_json::to_string(&view).unwrap()).unwrap();
        assert_eq!(render(&back.spans), text);
    }

    #[test]
    fn every_span_is_shown_once_whatever_the_parents_say() {
        let (a, b) = (Trace::root(), Trace::root());
        let cycle_a = Trace { parent: Some(b.span_id), ..a };
        let cycle_b = Trace { parent: Some(a.span_id), ..b };
        let lost = Trace::root().child();
        let own = Trace::root();
        let own = Trace { parent: Some(own.span_id), ..own };
        let spans = [
            span(cycle_a, "a", "s", 1, 1),
            span(cycle_b, "b", "s", 2, 1),
            span(lost, "lost", "s", 0, 1),
            span(own, "own", "s", 3, 1),
            span(own, "own again", "s", 4, 1),
        ];
        let text = render(&spans);
        assert_eq!(text.lines().count(), 1 + spans.len(), "{text}");
        assert_eq!(shape(&text)[0], "lost");
        assert_eq!(render(&[]), "no spans\n");
    }

    #[test]
    fn names_from_the_network_cannot_command_the_terminal() {
        let text = render(&[span(Trace::root(), "\u{1b}[2Jgone\nline", "s", 0, 1)]);
        assert!(!text.contains('\u{1b}'));
        assert_eq!(text.lines().count(), 2);
        let long = render(&[span(Trace::root(), &"x".repeat(500), "s", 0, 1)]);
        assert!(long.lines().nth(1).unwrap().len() < 150);
    }

    #[test]
    fn a_deep_trace_does_not_exhaust_the_stack() {
        let mut t = Trace::root();
        let spans: Vec<_> = (0..2_000)
            .map(|i| {
                t = t.child();
                span(t, "deep", "s", i, 1)
            })
            .collect();
        assert_eq!(render(&spans).lines().count(), 2_001);
    }
}
