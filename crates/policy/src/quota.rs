//! Work per day or month of the calendar: a count that ends with its period, without knowing where it is kept.

use std::time::Duration;

use weft_core::Timestamp;

use crate::spec::Calendar;

/// What was counted of one key in one period.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count {
    /// The end of the period.
    pub until: Timestamp,
    /// Counted so far.
    pub used: u64,
}

/// How a key stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// How many are left.
    pub remaining: u64,
    /// Until the period ends.
    pub reset: Duration,
}

/// The end of the period that an instant lies in.
pub fn until(period: Calendar, now: Timestamp) -> Timestamp {
    match period {
        Calendar::Day => now.day_end(),
        Calendar::Month => now.month_end(),
    }
}

impl Count {
    /// Nothing counted in the period of `now`.
    pub fn fresh(period: Calendar, now: Timestamp) -> Self {
        Self { until: until(period, now), used: 0 }
    }

    /// Takes `cost`, or nothing. A period that ended begins anew; a clock that went back stays in the one it was in.
    pub fn take(&mut self, period: Calendar, limit: u64, cost: u64, now: Timestamp) -> Result<Standing, Standing> {
        if self.until <= now {
            *self = Self::fresh(period, now);
        }
        let stands = |used: u64| Standing { remaining: limit.saturating_sub(used), reset: now.until(self.until) };
        match self.used.checked_add(cost) {
            Some(used) if used <= limit => {
                self.used = used;
                Ok(stands(used))
            }
            _ => Err(stands(self.used)),
        }
    }

    /// Gives back what was taken in the period that ends at `until`.
    pub fn give_back(&mut self, until: Timestamp, cost: u64) {
        if self.until == until {
            self.used = self.used.saturating_sub(cost);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(s: &str) -> Timestamp {
        Timestamp::parse(s).unwrap()
    }

    #[test]
    fn a_quota_holds_to_the_end_of_its_period_and_begins_anew() {
        let noon = at("2024-02-29T12:00:00Z");
        let mut c = Count::fresh(Calendar::Day, noon);
        assert_eq!(c.take(Calendar::Day, 2, 1, noon).unwrap().remaining, 1);
        assert_eq!(c.take(Calendar::Day, 2, 2, noon).unwrap_err().remaining, 1, "nothing was taken");
        assert_eq!(c.take(Calendar::Day, 2, 1, noon).unwrap().remaining, 0);
        let full = c.take(Calendar::Day, 2, 1, noon).unwrap_err();
        assert_eq!((full.remaining, full.reset), (0, Duration::from_secs(12 * 3600)));
        assert!(c.take(Calendar::Day, 2, 1, at("2024-02-29T23:59:59.999Z")).is_err());
        assert_eq!(c.take(Calendar::Day, 2, 1, at("2024-03-01T00:00:00Z")).unwrap().remaining, 1);
        // The clock goes back over midnight: the day that began goes on.
        assert_eq!(c.take(Calendar::Day, 2, 1, noon).unwrap().remaining, 0);
        assert!(c.take(Calendar::Day, 2, 1, noon).is_err());
    }

    #[test]
    fn what_is_given_back_can_be_taken_again_unless_the_period_ended() {
        let now = at("2024-01-15T00:00:00Z");
        let mut c = Count::fresh(Calendar::Month, now);
        c.take(Calendar::Month, 1, 1, now).unwrap();
        c.give_back(c.until, 1);
        c.take(Calendar::Month, 1, 1, now).unwrap();
        let ended = c.until;
        c.take(Calendar::Month, 1, 1, at("2024-02-01T00:00:00Z")).unwrap();
        c.give_back(ended, 1);
        assert_eq!(c.used, 1);
    }
}
