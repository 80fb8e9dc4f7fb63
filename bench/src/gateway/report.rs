//! Medians, extremes and ratios; as a Markdown table for people, as JSON lines for programs.

use std::fs;
use std::io::Write as _;
use std::path::Path;

use serde_json::json;

use super::Result;

/// One subject in one round.
pub struct Sample {
    pub case: &'static str,
    pub subject: &'static str,
    /// CPU microseconds of the proxy per request.
    pub cpu_us: f64,
    /// Requests a second.
    pub per_second: f64,
    /// Resident after the round.
    pub memory_mib: f64,
}

/// Median, smallest, largest.
#[derive(Clone, Copy)]
struct Spread {
    median: f64,
    min: f64,
    max: f64,
}

fn spread(mut v: Vec<f64>) -> Spread {
    v.sort_by(f64::total_cmp);
    let n = v.len();
    let median = if n % 2 == 1 { v[n / 2] } else { f64::midpoint(v[n / 2 - 1], v[n / 2]) };
    Spread { median, min: v[0], max: v[n - 1] }
}

type Metric = (&'static str, &'static str, fn(&Sample) -> f64);

const METRICS: [Metric; 3] = [
    ("cpu_per_request", "us", |s| s.cpu_us),
    ("requests", "1/s", |s| s.per_second),
    ("memory", "MiB", |s| s.memory_mib),
];

fn of(samples: &[Sample], case: &str, subject: &str, f: fn(&Sample) -> f64) -> Option<Spread> {
    let v: Vec<_> = samples.iter().filter(|s| s.case == case && s.subject == subject).map(f).collect();
    (!v.is_empty()).then(|| spread(v))
}

fn distinct(samples: &[Sample], f: fn(&Sample) -> &'static str) -> Vec<&'static str> {
    let mut all = Vec::new();
    for s in samples {
        if !all.contains(&f(s)) {
            all.push(f(s));
        }
    }
    all
}

/// Prints the tables.
pub fn print(samples: &[Sample], rounds: usize) {
    for case in distinct(samples, |s| s.case) {
        println!("\n### {case}: CPU of the proxy per request, {rounds} rounds\n");
        println!("| proxy | us median | min | max | to nginx | requests/s | MiB |");
        println!("|---|---|---|---|---|---|---|");
        let nginx = of(samples, case, "nginx", METRICS[0].2);
        let mut subjects = distinct(samples, |s| s.subject);
        subjects.sort_by_key(|s| super::peers::Peer::ALL.iter().position(|p| p.name() == *s));
        for subject in subjects {
            let Some(cpu) = of(samples, case, subject, METRICS[0].2) else { continue };
            let rate = of(samples, case, subject, METRICS[1].2).map_or(0.0, |s| s.median);
            let memory = of(samples, case, subject, METRICS[2].2).map_or(0.0, |s| s.median);
            let ratio = nginx.map_or("-".into(), |n| format!("{:.2}", cpu.median / n.median));
            println!(
                "| {subject} | {:.1} | {:.1} | {:.1} | {ratio} | {rate:.0} | {memory:.0} |",
                cpu.median, cpu.min, cpu.max
            );
        }
        let median = |subject| of(samples, case, subject, METRICS[0].2).map(|s| s.median);
        if let (Some(a), Some(b)) = (median("nginx"), median("nginx-2")) {
            println!("\nnoise: the two nginx are {:.1} % apart", (a / b - 1.0).abs() * 100.0);
        }
        for bar in BARS.iter().filter(|b| b.case == case) {
            if let (Some(weft), Some(peer)) = (median("weft"), median(bar.peer)) {
                let ratio = weft / peer;
                println!(
                    "bar: weft at most {:.2}x {}: {ratio:.2}x, {}",
                    bar.most,
                    bar.peer,
                    verdict(ratio <= bar.most)
                );
            }
        }
    }
}

/// CPU per request of Weft, at most so many times a peer's.
struct Bar {
    case: &'static str,
    peer: &'static str,
    most: f64,
}

const fn bar(case: &'static str, peer: &'static str, most: f64) -> Bar {
    Bar { case, peer, most }
}

const BARS: [Bar; 11] = [
    bar("http1-128B", "nginx", 1.15),
    bar("http1-128B", "envoy", 1.0 / 3.0),
    bar("http1-16KiB", "nginx", 1.1),
    bar("http1-16KiB", "envoy", 0.5),
    bar("http1-1MiB", "nginx", 0.85),
    bar("http1-1MiB", "envoy", 1.0 / 1.6),
    bar("tls-128B", "nginx", 1.15),
    bar("tls-128B", "envoy", 0.5),
    bar("h2c-128B", "haproxy", 1.9),
    bar("h2c-128B", "nginx", 0.45),
    bar("h2c-128B", "envoy", 0.4),
];

fn verdict(met: bool) -> &'static str {
    if met { "met" } else { "NOT met" }
}

/// One object a line: `{bench, case, subject, metric, unit, median, min, max, rounds}`.
pub fn write_json(path: &Path, samples: &[Sample], rounds: usize) -> Result<()> {
    let mut out = fs::File::create(path)?;
    for case in distinct(samples, |s| s.case) {
        for subject in distinct(samples, |s| s.subject) {
            for (metric, unit, f) in METRICS {
                let Some(s) = of(samples, case, subject, f) else { continue };
                let line = json!({
                    "bench": "gateway", "case": case, "subject": subject, "metric": metric, "unit": unit,
                    "median": s.median, "min": s.min, "max": s.max, "rounds": rounds,
                });
                writeln!(out, "{line}")?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_count_lies_between_the_middle_two() {
        let s = spread(vec![4.0, 1.0, 3.0, 10.0]);
        assert_eq!((s.median, s.min, s.max), (3.5, 1.0, 10.0));
        assert_eq!(spread(vec![2.0, 1.0, 9.0]).median, 2.0);
    }
}
