//! Durations (`250ms`, `1m30s`), sizes (`64MiB`), percentages (`20%`), counts (`10k`) and rates (`100/s`) as people write them.

use std::time::Duration;

/// Why a unit did not parse.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("'{given}' is not {what}: write it like {example}")]
pub struct InvalidUnit {
    /// What was given.
    pub given: String,
    /// What was expected.
    pub what: &'static str,
    /// How to write it.
    pub example: &'static str,
}

fn bad(given: &str, what: &'static str, example: &'static str) -> InvalidUnit {
    InvalidUnit { given: given.chars().take(40).collect(), what, example }
}

/// Parses `250ms`, `10s`, `1m30s`, `2h`, `7d`; a bare `0` is zero.
pub fn parse_duration(s: &str) -> Result<Duration, InvalidUnit> {
    let err = || bad(s, "a duration", "250ms, 10s, 1m30s, 2h or 7d");
    let mut rest = s.trim();
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    let mut total = 0f64;
    if rest.is_empty() {
        return Err(err());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(err)?;
        let n: f64 = rest[..digits].parse().map_err(|_| err())?;
        rest = &rest[digits..];
        let unit_end = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        total += n * match &rest[..unit_end] {
            "us" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3_600.0,
            "d" => 86_400.0,
            _ => return Err(err()),
        };
        rest = &rest[unit_end..];
    }
    Duration::try_from_secs_f64(total).map_err(|_| err())
}

/// Prints a duration the way [`parse_duration`] reads it.
pub fn format_duration(d: Duration) -> String {
    let ms = d.as_millis();
    if ms == 0 {
        return if d.is_zero() { "0s".into() } else { format!("{}us", d.as_micros()) };
    }
    if !ms.is_multiple_of(1000) {
        return if ms > 10_000 { format!("{:.1}s", ms as f64 / 1000.0) } else { format!("{ms}ms") };
    }
    let s = ms / 1000;
    let parts = [(s / 86_400, "d"), (s / 3_600 % 24, "h"), (s / 60 % 60, "m"), (s % 60, "s")];
    parts.iter().filter(|(n, _)| *n > 0).map(|(n, u)| format!("{n}{u}")).collect()
}

/// Parses `512`, `64KiB`, `64MiB`, `1GiB`, `1kB`, `1MB` into bytes.
pub fn parse_size(s: &str) -> Result<u64, InvalidUnit> {
    let err = || bad(s, "a size", "64KiB, 64MiB or 1GiB");
    let s2 = s.trim();
    let digits = s2.find(|c: char| !c.is_ascii_digit()).unwrap_or(s2.len());
    let n: u64 = s2[..digits].parse().map_err(|_| err())?;
    let unit: u64 = match s2[digits..].trim() {
        "" | "B" => 1,
        "kB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        _ => return Err(err()),
    };
    n.checked_mul(unit).ok_or_else(err)
}

/// Parses `20%` into 0.2; 0 to 100.
pub fn parse_percent(s: &str) -> Result<f64, InvalidUnit> {
    let err = || bad(s, "a percentage", "20%");
    let n: f64 = s.trim().strip_suffix('%').ok_or_else(err)?.trim().parse().map_err(|_| err())?;
    if (0.0..=100.0).contains(&n) { Ok(n / 100.0) } else { Err(err()) }
}

/// Parses `100/s`, `5/m`, `1000/h` into (count, per).
pub fn parse_rate(s: &str) -> Result<(u32, Duration), InvalidUnit> {
    let err = || bad(s, "a rate", "100/s, 60/m or 1000/h");
    let (n, per) = s.trim().split_once('/').ok_or_else(err)?;
    let n: u32 = n.trim().parse().map_err(|_| err())?;
    let per = match per.trim() {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return Err(err()),
    };
    Ok((n, Duration::from_secs(per)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_and_print() {
        for (s, ms) in [
            ("250ms", 250),
            ("10s", 10_000),
            ("1m30s", 90_000),
            ("2h", 7_200_000),
            ("7d", 604_800_000),
            ("1.5s", 1_500),
            ("0", 0),
        ] {
            assert_eq!(parse_duration(s).unwrap(), Duration::from_millis(ms), "{s}");
        }
        for s in ["", "10", "s", "10x", "-1s", "1s2"] {
            assert!(parse_duration(s).is_err(), "{s}");
        }
        assert_eq!(format_duration(Duration::from_secs(90)), "1m30s");
        assert_eq!(format_duration(Duration::from_millis(250)), "250ms");
    }

    #[test]
    fn sizes_percentages_and_rates_read() {
        assert_eq!(parse_size("64MiB").unwrap(), 64 << 20);
        assert_eq!(parse_size("12").unwrap(), 12);
        assert!(parse_size("12Q").is_err());
        assert_eq!(parse_percent("20%").unwrap(), 0.2);
        assert!(parse_percent("120%").is_err());
        assert_eq!(parse_rate("100/s").unwrap(), (100, Duration::from_secs(1)));
        assert!(parse_rate("100").is_err());
    }
}
