//! Wall-clock instants. Durations inside the process use `tokio::time::Instant` (monotonic, and
//! pausable in tests); what is stored uses [`Timestamp`].

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// Milliseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// This instant plus a duration; saturates.
    pub fn plus(self, d: Duration) -> Self {
        Self(self.0.saturating_add(d.as_millis().min(u128::from(u64::MAX)) as u64))
    }

    /// How long until `later`; zero when it has passed.
    pub fn until(self, later: Timestamp) -> Duration {
        Duration::from_millis(later.0.saturating_sub(self.0))
    }

    /// The next midnight of UTC.
    pub fn day_end(self) -> Timestamp {
        const DAY: u64 = 24 * 3600 * 1000;
        Self((self.0 / DAY + 1).saturating_mul(DAY))
    }

    /// The first instant of the next month of UTC.
    pub fn month_end(self) -> Timestamp {
        let end = jiff::Timestamp::from_millisecond(i64::try_from(self.0).unwrap_or(i64::MAX)).ok().and_then(|t| {
            let date = t.to_zoned(jiff::tz::TimeZone::UTC).date();
            let next = date.last_of_month().tomorrow().ok()?;
            let at = next.to_zoned(jiff::tz::TimeZone::UTC).ok()?;
            u64::try_from(at.timestamp().as_millisecond()).ok()
        });
        end.map_or(Self(u64::MAX), Self)
    }

    /// As HTTP writes dates (RFC 9110 5.6.7): `Sun, 06 Nov 1994 08:49:37 GMT`.
    pub fn http_date(self) -> String {
        match jiff::Timestamp::from_millisecond(self.0 as i64) {
            Ok(t) => t.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string(),
            Err(_) => "Fri, 31 Dec 9999 23:59:59 GMT".to_owned(),
        }
    }

    /// Parses an RFC 3339 instant.
    pub fn parse(s: &str) -> Option<Self> {
        let t: jiff::Timestamp = s.parse().ok()?;
        u64::try_from(t.as_millisecond()).ok().map(Self)
    }
}

/// RFC 3339 in UTC with milliseconds, as CloudEvents `time` wants it.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_millisecond(self.0 as i64) {
            Ok(t) => write!(f, "{t:.3}"),
            Err(_) => write!(f, "{}ms", self.0),
        }
    }
}

/// The source of stored instants, so that a simulation can own time.
pub trait Clock: Send + Sync + 'static {
    /// The wall clock now.
    fn now(&self) -> Timestamp;
}

/// The operating system's wall clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp(since.as_millis() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_of_http_is_in_gmt_with_english_names() {
        assert_eq!(Timestamp(784_111_777_123).http_date(), "Sun, 06 Nov 1994 08:49:37 GMT");
    }

    #[test]
    fn days_and_months_end_where_utc_says() {
        let at = |s: &str| Timestamp::parse(s).unwrap();
        assert_eq!(at("2024-02-28T23:59:59.999Z").day_end(), at("2024-02-29T00:00:00Z"));
        assert_eq!(at("2024-02-29T00:00:00Z").day_end(), at("2024-03-01T00:00:00Z"));
        assert_eq!(at("2024-02-01T00:00:00Z").month_end(), at("2024-03-01T00:00:00Z"));
        assert_eq!(at("2023-12-31T23:59:59.999Z").month_end(), at("2024-01-01T00:00:00Z"));
        assert_eq!(Timestamp(u64::MAX).month_end(), Timestamp(u64::MAX));
    }

    #[test]
    fn a_timestamp_prints_as_rfc3339_and_reads_back() {
        let t = Timestamp(1_700_000_000_123);
        assert_eq!(t.to_string(), "2023-11-14T22:13:20.123Z");
        assert_eq!(Timestamp::parse(&t.to_string()), Some(t));
    }
}
