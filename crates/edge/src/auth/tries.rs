//! Wrong passwords, counted by the address they come from: to check one is slow, and who sends many would keep others from
//! being checked.

use std::net::{IpAddr, Ipv6Addr};

use tokio::time::{Duration, Instant};
use weft_core::limits;
use weft_policy::net;
use weft_policy::rate::{Ask, RateLimits};
use weft_policy::spec::{Algorithm, Rate, RatePer};

/// The tries of one provider. Their number has the bounds of rate limits.
#[derive(Debug)]
pub(super) struct Tries {
    wrong: RateLimits,
    began: Instant,
}

/// A try under way. It counts as wrong, unless it is forgiven: also when nobody waits for it any more.
#[must_use]
pub(super) struct Try<'t> {
    tries: &'t Tries,
    asked: Ask,
    taken: u64,
}

impl Tries {
    pub(super) fn new() -> Self {
        let wrong = Rate {
            name: "wrong-passwords".to_owned(),
            limit: 1,
            period: limits::WRONG_PASSWORD_EVERY,
            algorithm: Algorithm::Gcra,
            burst: limits::WRONG_PASSWORDS - 1,
            per: RatePer::Address,
            ipv6_prefix: 64,
            cost: None,
            headers: false,
        };
        Self { wrong: RateLimits::new(&[wrong]), began: Instant::now() }
    }

    /// Begins a try from an address, or says how long until it has one again.
    pub(super) fn begin(&self, from: IpAddr) -> Result<Try<'_>, Duration> {
        let network = match net::plain(from) {
            // One caller has all of a network.
            IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from(u128::from(v6) & !u128::from(u64::MAX))),
            v4 => v4,
        };
        let asked = Ask { key: self.wrong.hash(0, &network), cost: 1 };
        let taken = self.began.elapsed().as_nanos() as u64;
        self.wrong.check(taken, |_, _| asked, |_, _| ()).map_err(|e| e.retry_after)?;
        Ok(Try { tries: self, asked, taken })
    }
}

impl Try<'_> {
    /// It was right, or was not looked at.
    pub(super) fn forgive(self) {
        self.tries.wrong.give_back(0, self.asked, self.taken);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_address_has_some_wrong_tries_at_once_and_then_one_after_another() {
        let tries = Tries::new();
        let ip = |s: &str| s.parse::<IpAddr>().unwrap();
        for _ in 0..100 {
            tries.begin(ip("10.0.0.1")).ok().unwrap().forgive();
        }
        for _ in 0..limits::WRONG_PASSWORDS {
            assert!(tries.begin(ip("10.0.0.1")).is_ok());
        }
        assert_eq!(tries.begin(ip("::ffff:10.0.0.1")).err(), Some(limits::WRONG_PASSWORD_EVERY));
        assert!(tries.begin(ip("10.0.0.2")).is_ok(), "others have theirs");
        tokio::time::advance(limits::WRONG_PASSWORD_EVERY).await;
        assert!(tries.begin(ip("10.0.0.1")).is_ok());
        assert!(tries.begin(ip("10.0.0.1")).is_err());
        for i in 0..limits::WRONG_PASSWORDS {
            assert!(tries.begin(ip(&format!("2001:db8::{i}"))).is_ok());
        }
        assert!(tries.begin(ip("2001:db8::ffff")).is_err() && tries.begin(ip("2001:db8:0:1::")).is_ok());
    }
}
