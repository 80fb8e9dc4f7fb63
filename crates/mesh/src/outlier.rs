//! Takes out instances whose own answers are bad, for a while that grows each time (Envoy's outlier detection).
//!
//! Every answer is noted on its endpoint in a few atomics. The rare rest (to eject, to compare success rates) is done
//! under a lock that all threads share, so that never more are out than may be.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use weft_core::{Class, Name};
use weft_policy::outcome::Outcome;
use weft_telemetry::metrics::Counter;
use weft_telemetry::{Telemetry, names};

use crate::endpoint::Endpoint;
use crate::spec::Outlier;

/// What is known of one endpoint's answers.
#[derive(Debug, Default)]
pub(crate) struct Record {
    /// Failures in a row.
    errors: AtomicU32,
    /// Gateway errors in a row.
    gateway_errors: AtomicU32,
    /// Of this interval: answers (upper half), and good ones (lower).
    counts: AtomicU64,
    /// Ejections not yet forgiven.
    times: AtomicU32,
}

const ONE: u64 = 1 << 32;

/// Whether it says that a gateway, or nobody, answered.
fn is_gateway(o: &Outcome) -> bool {
    o.breaker && o.failure == Some(Class::Retryable)
}

impl Record {
    /// Notes an answer; failures in a row, and gateway errors in a row, when it is a bad one.
    #[inline]
    fn note(&self, outcome: &Outcome, unanswered: bool) -> Option<(u32, u32)> {
        let bad = outcome.breaker;
        self.counts.fetch_add(ONE + u64::from(!bad), Ordering::Relaxed);
        if !bad {
            // Read first: a line that nobody writes stays in every core's cache.
            for n in [&self.errors, &self.gateway_errors] {
                if n.load(Ordering::Relaxed) != 0 {
                    n.store(0, Ordering::Relaxed);
                }
            }
            return None;
        }
        let errors = self.errors.fetch_add(1, Ordering::Relaxed) + 1;
        if unanswered || is_gateway(outcome) {
            Some((errors, self.gateway_errors.fetch_add(1, Ordering::Relaxed) + 1))
        } else {
            self.gateway_errors.store(0, Ordering::Relaxed);
            Some((errors, 0))
        }
    }
}

/// The instances of one service and when to take them out.
#[derive(Debug)]
pub(crate) struct Outliers {
    service: Name,
    pub spec: Outlier,
    hosts: Mutex<Vec<Arc<Endpoint>>>,
    ejections: [Counter; 3],
}

#[derive(Clone, Copy, Debug)]
enum Reason {
    Errors,
    Gateway,
    Rate,
}

const REASONS: [&str; 3] = ["errors", "gateway-errors", "success-rate"];

impl Outliers {
    pub(crate) fn new(service: &Name, spec: Outlier, telemetry: &Telemetry) -> Self {
        let counter = |reason| {
            let labels = [("service", service.as_str()), ("reason", reason)];
            telemetry.metrics().counter(&names::EJECTIONS, &labels)
        };
        Self { service: service.clone(), spec, hosts: Mutex::default(), ejections: REASONS.map(counter) }
    }

    /// Sets the instances there are.
    pub(crate) fn hosts(&self, all: &[Arc<Endpoint>]) {
        *self.hosts.lock() = all.to_vec();
    }

    /// Takes in an answer, or that there was none.
    #[inline]
    pub(crate) fn answered(&self, endpoint: &Endpoint, outcome: &Outcome, unanswered: bool) {
        if let Some((errors, gateway)) = endpoint.record.note(outcome, unanswered) {
            self.failed(endpoint, errors, gateway);
        }
    }

    #[cold]
    fn failed(&self, endpoint: &Endpoint, errors: u32, gateway: u32) {
        let reason = match &self.spec {
            s if s.gateway_errors > 0 && gateway >= s.gateway_errors => Reason::Gateway,
            s if s.errors > 0 && errors >= s.errors => Reason::Errors,
            _ => return,
        };
        self.eject(&self.hosts.lock(), endpoint, reason);
    }

    fn eject(&self, hosts: &[Arc<Endpoint>], endpoint: &Endpoint, reason: Reason) {
        let record = &endpoint.record;
        record.errors.store(0, Ordering::Relaxed);
        record.gateway_errors.store(0, Ordering::Relaxed);
        let out = hosts.iter().filter(|h| h.is_outlier()).count();
        // One always may be out, and one always stays.
        let most = ((hosts.len() as f64 * self.spec.max_ejected) as usize).max(1).min(hosts.len().saturating_sub(1));
        if endpoint.is_outlier() || out >= most {
            return;
        }
        let times = record.times.fetch_add(1, Ordering::Relaxed) + 1;
        let wait = self.spec.ejection.saturating_mul(times).min(self.spec.ejection_max);
        endpoint.eject_outlier(wait);
        let text = REASONS[reason as usize];
        self.ejections[reason as usize].inc();
        tracing::warn!(service = %self.service, instance = %endpoint.address, reason = text, ?wait, "ejected");
    }

    /// What is due once an interval: compares success rates, and forgives.
    pub(crate) fn turn(&self) {
        let hosts = self.hosts.lock();
        let mut rates = Vec::with_capacity(hosts.len());
        for h in hosts.iter() {
            let counts = h.record.counts.swap(0, Ordering::Relaxed);
            let (all, good) = (counts >> 32, counts & (ONE - 1));
            if all >= u64::from(self.spec.min_requests) {
                rates.push((h, good as f64 / all as f64));
            }
        }
        if self.spec.stdev > 0.0 && rates.len() >= self.spec.min_hosts as usize {
            let n = rates.len() as f64;
            let mean = rates.iter().map(|(_, r)| r).sum::<f64>() / n;
            let deviation = (rates.iter().map(|(_, r)| (r - mean).powi(2)).sum::<f64>() / n).sqrt();
            let least = mean - self.spec.stdev * deviation;
            // The worst first, should not all of them be allowed to go.
            rates.sort_by(|a, b| a.1.total_cmp(&b.1));
            for (h, _) in rates.iter().take_while(|(_, r)| *r < least) {
                self.eject(&hosts, h, Reason::Rate);
            }
        }
        for h in hosts.iter().filter(|h| !h.is_outlier()) {
            let _ = h.record.times.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
        }
    }

    /// Does what is due, for as long as the service has these outliers.
    pub(crate) async fn run(self: Arc<Self>) {
        let interval = self.spec.interval.max(Duration::from_millis(1));
        loop {
            tokio::time::sleep(interval).await;
            self.turn();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::test_endpoint;
    use weft_policy::outcome::{classify_grpc, classify_http};

    fn service(n: u16, spec: Outlier) -> (Outliers, Vec<Arc<Endpoint>>) {
        let all: Vec<_> = (1..=n).map(|p| test_endpoint(&format!("127.0.0.1:{p}"))).collect();
        let outliers = Outliers::new(&Name::new("test").unwrap(), spec, &Telemetry::new());
        outliers.hosts(&all);
        (outliers, all)
    }

    fn say(o: &Outliers, e: &Endpoint, statuses: &[u16]) {
        statuses.iter().for_each(|s| o.answered(e, &classify_http(*s), false));
    }

    fn out(all: &[Arc<Endpoint>]) -> usize {
        all.iter().filter(|e| e.is_ejected()).count()
    }

    #[tokio::test(start_paused = true)]
    async fn five_failures_in_a_row_eject_for_longer_each_time() {
        let (o, all) = service(3, Outlier::default());
        say(&o, &all[0], &[500, 500, 500, 500, 200, 500, 500, 500, 500]);
        assert_eq!(out(&all), 0, "a good answer in between");
        say(&o, &all[0], &[404, 500, 500, 500, 500]);
        assert_eq!(out(&all), 0, "a refusal is an answer of a well service");
        say(&o, &all[0], &[500]);
        assert!(all[0].is_ejected());
        tokio::time::advance(Duration::from_secs(30)).await;
        assert!(!all[0].is_ejected());
        say(&o, &all[0], &[500; 5]);
        tokio::time::advance(Duration::from_secs(59)).await;
        assert!(all[0].is_ejected(), "the second time for twice as long");
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(!all[0].is_ejected());
        (0..2).for_each(|_| o.turn());
        say(&o, &all[0], &[500; 5]);
        tokio::time::advance(Duration::from_secs(30)).await;
        assert!(!all[0].is_ejected(), "forgiven");
        for _ in 0..40 {
            say(&o, &all[0], &[500; 5]);
            tokio::time::advance(Duration::from_secs(300)).await;
            assert!(!all[0].is_ejected(), "never longer than the longest");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn gateway_errors_have_a_count_of_their_own() {
        let (o, all) = service(2, Outlier { errors: 0, gateway_errors: 3, ..Outlier::default() });
        say(&o, &all[0], &[503, 503, 500, 503, 503]);
        assert_eq!(out(&all), 0);
        o.answered(&all[0], &classify_grpc(14), false);
        assert_eq!(out(&all), 1, "UNAVAILABLE is one too");
    }

    #[tokio::test(start_paused = true)]
    async fn at_most_a_tenth_are_out_but_one_may_always_be_and_one_always_stays() {
        for (n, most) in [(1, 0), (2, 1), (9, 1), (25, 2)] {
            let (o, all) = service(n, Outlier::default());
            all.iter().for_each(|e| say(&o, e, &[502; 6]));
            assert_eq!(out(&all), most, "of {n}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_instance_far_below_the_others_is_out_by_its_success_rate() {
        let lone = Outlier { errors: 0, gateway_errors: 0, ..Outlier::default() };
        let play = |n: u16, requests: usize| {
            let (o, all) = service(n, lone);
            for (i, e) in all.iter().enumerate() {
                let one = |r| if i == 0 && r % 3 == 0 { 500 } else { 200 };
                (0..requests).for_each(|r| say(&o, e, &[one(r)]));
            }
            o.turn();
            assert!(out(&all[1..]) == 0);
            all[0].is_ejected()
        };
        assert!(play(6, 100));
        assert!(!play(4, 100), "four are too few to compare");
        assert!(!play(6, 99), "too few requests");
    }

    #[tokio::test(start_paused = true)]
    async fn instances_that_are_all_alike_all_stay() {
        let (o, all) = service(6, Outlier { errors: 0, gateway_errors: 0, ..Outlier::default() });
        for e in &all {
            (0..200).for_each(|r| say(&o, e, &[if r % 2 == 0 { 500 } else { 200 }]));
        }
        o.turn();
        assert_eq!(out(&all), 0);
    }
}
