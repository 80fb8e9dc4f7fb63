//! Which endpoint takes the next attempt. Passed over are those already tried for this request, those that could not
//! be connected to a moment ago and those ejected for their answers. When that leaves none, any is better than failing:
//! first the untried, then all.
//!
//! The choice is made from the healthy ones; when fewer than the panic threshold are, checks are not believed and all
//! take part. Of these, instances of the own zone come first, as long as half of that zone is well.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use http::header;
use xxhash_rust::xxh3::xxh3_64;

use crate::endpoint::Endpoint;
use crate::outbound::Outbound;
use crate::ring::Table;
use crate::spec::{Balance, HashBy, Picking};

/// How a service's instances are picked.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Choice {
    pub balance: Balance,
    pub picking: Picking,
}

impl Choice {
    /// The key of a request, if it has what it is known by.
    fn key(&self, out: &Outbound) -> Option<u64> {
        self.picking.hash.iter().find_map(|by| match by {
            HashBy::Header(name) => out.head.headers.get(name).map(|v| xxh3_64(v.as_bytes())),
            HashBy::Cookie(name) => {
                let lines = out.head.headers.get_all(header::COOKIE).iter();
                let mut pairs = lines.flat_map(|v| v.as_bytes().split(|b| *b == b';'));
                pairs.find_map(|p| p.trim_ascii().strip_prefix(name.as_bytes())?.strip_prefix(b"=")).map(xxh3_64)
            }
            HashBy::Query(name) => {
                let mut pairs = out.head.uri.query()?.split('&');
                pairs.find_map(|p| p.strip_prefix(name.as_str())?.strip_prefix('=')).map(|v| xxh3_64(v.as_bytes()))
            }
            HashBy::Path => Some(xxh3_64(out.head.uri.path().as_bytes())),
            HashBy::Address => out.source().map(|a| match a {
                std::net::IpAddr::V4(a) => xxh3_64(&a.octets()),
                std::net::IpAddr::V6(a) => xxh3_64(&a.octets()),
            }),
        })
    }
}

/// The endpoints of a service as of one moment.
#[derive(Debug, Default)]
pub(crate) struct Endpoints {
    pub all: Box<[Arc<Endpoint>]>,
    /// Names of this service are being resolved for the first time.
    pub resolving: bool,
    /// Those of the own zone, where they are preferred.
    near: Option<Group>,
    /// The healthy ones; all in panic.
    wide: Group,
    /// Too few are healthy to believe the checks.
    panic: bool,
    table: Option<Arc<Table>>,
}

/// Some endpoints to choose from.
#[derive(Debug, Default)]
struct Group {
    list: Box<[Arc<Endpoint>]>,
    /// Weights added up; empty when all weigh the same.
    sums: Box<[u64]>,
    /// What they weigh in the mean.
    mean: f64,
}

impl Endpoints {
    pub(crate) fn new(all: Box<[Arc<Endpoint>]>, resolving: bool, choice: &Choice) -> Self {
        let table = Table::new(choice.balance, &all).map(Arc::new);
        Self::with_table(all, resolving, choice, table)
    }

    /// Whether there is nothing to send to yet, and there may be in a moment.
    pub(crate) fn is_resolving(&self) -> bool {
        self.all.is_empty() && self.resolving
    }

    /// The same endpoints, some of whose health changed.
    pub(crate) fn rechecked(&self, choice: &Choice) -> Self {
        Self::with_table(self.all.clone(), self.resolving, choice, self.table.clone())
    }

    fn with_table(all: Box<[Arc<Endpoint>]>, resolving: bool, choice: &Choice, table: Option<Arc<Table>>) -> Self {
        let healthy: Vec<_> = all.iter().filter(|e| e.is_healthy()).cloned().collect();
        let panic = healthy.is_empty() || (healthy.len() as f64) < choice.picking.panic * all.len() as f64;
        let near = choice.picking.zone.as_ref().filter(|_| !panic).and_then(|zone| {
            let here = |e: &&Arc<Endpoint>| e.wanted.zone.as_ref() == Some(zone);
            let well: Vec<_> = healthy.iter().filter(here).cloned().collect();
            let enough = !well.is_empty() && well.len() * 2 >= all.iter().filter(here).count();
            enough.then(|| Group::new(well.into()))
        });
        let wide = Group::new(if panic { all.clone() } else { healthy.into() });
        Self { all, resolving, near, wide, panic, table }
    }

    /// Picks one; `None` when there is none at all.
    pub(crate) fn pick(&self, choice: &Choice, turn: &AtomicUsize, out: &Outbound) -> Option<&Arc<Endpoint>> {
        match &*self.all {
            [] => return None,
            [only] => return Some(only),
            _ => {}
        }
        let tried = out.tried();
        let usable = |e: &Endpoint| !tried.has(e.id) && !e.is_ejected();
        if let Some(table) = &self.table
            && let Some(key) = choice.key(out)
        {
            let mut owners = table.walk(key).map(|i| &self.all[i]);
            if let Some(e) = owners.find(|e| (self.panic || e.is_healthy()) && usable(e)) {
                return Some(e);
            }
        }
        let mut groups = self.near.iter().chain([&self.wide]);
        if let Some(e) = groups.find_map(|g| g.pick(choice, turn, &usable)) {
            return Some(e);
        }
        let start = turn.fetch_add(1, Ordering::Relaxed);
        self.wide.scan(start, &|e: &Endpoint| !tried.has(e.id)).or_else(|| self.wide.scan(start, &|_| true))
    }
}

impl Group {
    fn new(list: Box<[Arc<Endpoint>]>) -> Self {
        let mut sum = 0;
        let uneven = list.windows(2).any(|w| w[0].weight() != w[1].weight());
        let add = |e: &Arc<Endpoint>| {
            sum += u64::from(e.weight());
            sum
        };
        let sums = if uneven { list.iter().map(add).collect() } else { Box::default() };
        let total: u64 = list.iter().map(|e| u64::from(e.weight())).sum();
        let mean = total as f64 / list.len().max(1) as f64;
        Self { list, sums, mean }
    }

    /// The endpoint at a point that stands for a share of all weight (0 to 2^64).
    fn at(&self, point: u64) -> usize {
        let share = |total: u64| ((u128::from(point) * u128::from(total)) >> 64) as u64;
        match self.sums.last() {
            None => share(self.list.len() as u64) as usize,
            Some(total) => {
                let at = share(*total);
                self.sums.partition_point(|sum| *sum <= at)
            }
        }
    }

    /// The first from a place on that is `ok`.
    fn scan(&self, start: usize, ok: &dyn Fn(&Endpoint) -> bool) -> Option<&Arc<Endpoint>> {
        let n = self.list.len();
        (0..n).map(|i| &self.list[start.wrapping_add(i) % n]).find(|e| ok(e))
    }

    fn pick(&self, choice: &Choice, turn: &AtomicUsize, usable: &dyn Fn(&Endpoint) -> bool) -> Option<&Arc<Endpoint>> {
        match &*self.list {
            [] => return None,
            [only] => return usable(only).then_some(only),
            _ => {}
        }
        let slow = choice.picking.slow_start;
        // One that is warming up is passed over as often as its share is short.
        let cold = |e: &Endpoint| slow.is_some_and(|window| e.warmth(window) < rand::random::<f64>());
        match choice.balance {
            Balance::LeastRequest | Balance::PeakEwma => {
                let sample = || {
                    let mut at = self.at(rand::random());
                    for _ in 0..3 {
                        if !cold(&self.list[at]) {
                            break;
                        }
                        at = self.at(rand::random());
                    }
                    at
                };
                let (a, mut b) = (sample(), sample());
                if a == b {
                    b = (a + 1 + rand::random::<u32>() as usize % (self.list.len() - 1)) % self.list.len();
                    if cold(&self.list[b]) {
                        b = a;
                    }
                }
                let (a, b) = (&self.list[a], &self.list[b]);
                match (usable(a), usable(b)) {
                    (true, true) => {
                        let less = match choice.balance {
                            // Hardly different is the same: else a hair would decide all.
                            Balance::PeakEwma => b.expected_wait(self.mean) * 1.01 < a.expected_wait(self.mean),
                            // Sampled by weight, so at rest the first one has it.
                            _ => {
                                let (a_load, b_load) = (u64::from(a.load()), u64::from(b.load()));
                                b_load * u64::from(a.weight()) < a_load * u64::from(b.weight())
                            }
                        };
                        Some(if less { b } else { a })
                    }
                    (true, false) => Some(a),
                    (false, true) => Some(b),
                    (false, false) => self.scan(turn.fetch_add(1, Ordering::Relaxed), usable),
                }
            }
            Balance::RoundRobin | Balance::RingHash | Balance::Maglev => {
                let mut spare = None;
                let n = self.list.len();
                let mut start = 0;
                for i in 0..n {
                    // Those passed over for being cold are passed over for good, so that their turn is not given to
                    // the same neighbour each time.
                    if i == 0 || slow.is_some() {
                        start = turn.fetch_add(1, Ordering::Relaxed);
                    } else {
                        start = start.wrapping_add(1);
                    }
                    let at = if self.sums.is_empty() {
                        start % n
                    } else {
                        // Multiples of the golden ratio spread evenly over the weights (a low-discrepancy sequence).
                        self.at((start as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15))
                    };
                    let e = &self.list[at];
                    if usable(e) {
                        if !cold(e) {
                            return Some(e);
                        }
                        spare = spare.or(Some(e));
                    }
                }
                spare.or_else(|| self.scan(start, usable))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::{test_endpoint, test_endpoint_in};
    use crate::outbound::Outbound;

    fn some(n: u16) -> Box<[Arc<Endpoint>]> {
        (1..=n).map(|p| test_endpoint(&format!("127.0.0.1:{p}"))).collect()
    }

    fn three() -> Endpoints {
        Endpoints::new(some(3), false, &Choice::default())
    }

    fn by(balance: Balance) -> Choice {
        Choice { balance, ..Choice::default() }
    }

    /// How often each is picked.
    fn picks(e: &Endpoints, choice: &Choice, n: usize) -> Vec<usize> {
        let turn = AtomicUsize::new(0);
        let mut got = vec![0; e.all.len()];
        for _ in 0..n {
            let picked = e.pick(choice, &turn, &outbound()).unwrap().id;
            got[e.all.iter().position(|e| e.id == picked).unwrap()] += 1;
        }
        got
    }

    fn outbound() -> Outbound {
        Outbound::new(http::Request::new(crate::Body::Empty))
    }

    #[tokio::test(start_paused = true)]
    async fn round_robin_takes_each_in_turn() {
        let (e, turn) = (three(), AtomicUsize::new(0));
        let picks: Vec<_> = (0..6).map(|_| e.pick(&by(Balance::RoundRobin), &turn, &outbound()).unwrap().id).collect();
        assert_eq!(picks[..3], picks[3..]);
        assert_eq!(picks.iter().collect::<std::collections::BTreeSet<_>>().len(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn least_request_leaves_the_busiest_alone_and_spreads_over_the_rest() {
        let (e, turn) = (three(), AtomicUsize::new(0));
        let busy: Vec<_> = (0..100).map(|_| e.all[0].enter()).collect();
        let mut held = Vec::new();
        for _ in 0..150 {
            let picked = e.pick(&by(Balance::LeastRequest), &turn, &outbound()).unwrap();
            held.push(picked.enter());
        }
        assert_eq!(e.all[0].load(), 100, "of any two, the other one is less busy");
        let (b, c) = (e.all[1].load(), e.all[2].load());
        assert!(b.abs_diff(c) <= 20, "{b} and {c} are about even");
        drop((busy, held));
        assert_eq!(e.all.iter().map(|e| e.load()).sum::<u32>(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_tried_or_ejected_endpoint_is_passed_over_while_there_is_another() {
        for balance in [Balance::RoundRobin, Balance::LeastRequest, Balance::PeakEwma] {
            let (e, turn, out) = (three(), AtomicUsize::new(0), outbound());
            out.mark_tried(e.all[0].id);
            e.all[1].eject();
            for _ in 0..20 {
                assert_eq!(e.pick(&by(balance), &turn, &out).unwrap().id, e.all[2].id);
            }
            out.mark_tried(e.all[2].id);
            assert_eq!(e.pick(&by(balance), &turn, &out).unwrap().id, e.all[1].id, "ejected, but untried");
            out.mark_tried(e.all[1].id);
            assert!(e.pick(&by(balance), &turn, &out).is_some(), "all were tried: any");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn unhealthy_endpoints_get_nothing_until_fewer_than_the_panic_threshold_are_well() {
        let e = three();
        e.all[0].set_healthy(false);
        let choice = by(Balance::LeastRequest);
        let some = e.rechecked(&choice);
        assert_eq!(picks(&some, &choice, 40)[0], 0, "two of three are well");
        e.all[1].set_healthy(false);
        let panic = e.rechecked(&choice);
        assert!(picks(&panic, &choice, 200).iter().all(|n| *n > 0), "one of three is well: all are tried");
        let brave = Choice { picking: Picking { panic: 0.0, ..Picking::default() }, ..choice };
        assert_eq!(picks(&e.rechecked(&brave), &brave, 40), [0, 0, 40]);
        e.all[2].set_healthy(false);
        assert!(picks(&e.rechecked(&brave), &brave, 200).iter().all(|n| *n > 0), "none is well");
    }

    #[tokio::test(start_paused = true)]
    async fn each_gets_its_weight_of_the_requests() {
        for balance in [Balance::RoundRobin, Balance::LeastRequest, Balance::PeakEwma] {
            let all = some(3);
            all[1].set_weight(2);
            all[2].set_weight(5);
            let choice = by(balance);
            let got = picks(&Endpoints::new(all, false, &choice), &choice, 8_000);
            let (near, exact) = (balance != Balance::RoundRobin, [1_000usize, 2_000, 5_000]);
            for (got, fair) in got.iter().zip(exact) {
                // Two different ones are compared, which favours the lighter a little.
                let slack = if near { fair * 9 / 10 } else { 5 };
                assert!(got.abs_diff(fair) <= slack, "{balance:?}: {got} of {fair}");
            }
            assert!(got[0] < got[1] && got[1] < got[2], "{balance:?}: {got:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn peak_ewma_flees_a_slow_instance_at_once_and_comes_back_slowly() {
        let e = three();
        let choice = by(Balance::PeakEwma);
        let ms = std::time::Duration::from_millis;
        e.all.iter().for_each(|e| e.took(ms(10)));
        e.all[0].took(ms(1_000));
        assert_eq!(picks(&e, &choice, 300)[0], 0, "one slow answer is enough");
        tokio::time::advance(ms(1_000)).await;
        assert_eq!(picks(&e, &choice, 300)[0], 0);
        for _ in 0..20 {
            tokio::time::advance(ms(10_000)).await;
            e.all.iter().for_each(|e| e.took(ms(10)));
        }
        assert!(picks(&e, &choice, 300)[0] > 30, "it was fast for a while");
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_instance_gets_its_share_little_by_little() {
        let second = std::time::Duration::from_secs(1);
        for balance in [Balance::RoundRobin, Balance::LeastRequest] {
            let picking = Picking { slow_start: Some(30 * second), ..Picking::default() };
            let choice = Choice { balance, picking };
            let old = some(2);
            tokio::time::advance(60 * second).await;
            let all: Box<[_]> = old.iter().cloned().chain([test_endpoint("127.0.0.1:9")]).collect();
            let e = Endpoints::new(all, false, &choice);
            let mut shares = Vec::new();
            for _ in 0..4 {
                shares.push(picks(&e, &choice, 3_000)[2]);
                tokio::time::advance(10 * second).await;
            }
            assert!(shares[0] < 400, "{balance:?}: {shares:?}");
            assert!(shares.windows(2).all(|w| w[0] < w[1]), "{balance:?}: {shares:?}");
            assert!((900..1_100).contains(&shares[3]), "{balance:?}: {shares:?}");
            e.all[2].set_healthy(false);
            e.all[2].set_healthy(true);
            assert!(picks(&e, &choice, 3_000)[2] < 400, "{balance:?}: a recovered one begins anew");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_own_zone_comes_first_while_half_of_it_is_well() {
        let all: Box<[_]> =
            (1..=4).map(|p| test_endpoint_in(&format!("127.0.0.1:{p}"), if p < 3 { "a" } else { "b" })).collect();
        let choice = Choice { picking: Picking { zone: Some("a".into()), ..Picking::default() }, ..Choice::default() };
        let e = Endpoints::new(all, false, &choice);
        assert_eq!(picks(&e, &choice, 100)[2..], [0, 0]);
        e.all[0].set_healthy(false);
        assert_eq!(picks(&e.rechecked(&choice), &choice, 100), [0, 100, 0, 0]);
        e.all[1].eject();
        assert_eq!(picks(&e.rechecked(&choice), &choice, 100)[1], 0, "elsewhere is better than nowhere");
        e.all[1].set_healthy(false);
        let got = picks(&e.rechecked(&choice), &choice, 100);
        assert_eq!((got[0], got[1]), (0, 0), "{got:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_stays_with_its_instance_and_goes_elsewhere_only_while_that_is_away() {
        let request = |user: &str| {
            let r = http::Request::get("/p?u=1&user=q").header("x-user", user).header("cookie", "a=b; id=7; c=d");
            Outbound::new(r.body(crate::Body::Empty).unwrap()).asked_by([127, 0, 0, 1].into())
        };
        let turn = AtomicUsize::new(0);
        for balance in [Balance::RingHash, Balance::Maglev] {
            let hash = vec![HashBy::Header(http::HeaderName::from_static("x-user"))];
            let choice = Choice { balance, picking: Picking { hash, ..Picking::default() } };
            let e = Endpoints::new(some(10), false, &choice);
            let of = |u: &str| e.pick(&choice, &turn, &request(u)).unwrap().clone();
            let users: Vec<String> = (0..50).map(|u| format!("user-{u}")).collect();
            let homes: Vec<_> = users.iter().map(|u| of(u)).collect();
            assert!(homes.iter().map(|h| h.id).collect::<std::collections::BTreeSet<_>>().len() > 5);
            let gone = &homes[0];
            gone.eject();
            for (u, home) in users.iter().zip(&homes) {
                assert_eq!(of(u).id == home.id, home.id != gone.id, "{balance:?}: {u}");
            }
            gone.reached();
            assert!(users.iter().zip(&homes).all(|(u, home)| of(u).id == home.id));
        }
        let key = |by: HashBy| {
            let picking = Picking { hash: vec![by], ..Picking::default() };
            Choice { balance: Balance::Maglev, picking }.key(&request("ann"))
        };
        assert_eq!(key(HashBy::Cookie("id".into())), Some(xxh3_64(b"7")));
        assert_eq!(key(HashBy::Query("user".into())), Some(xxh3_64(b"q")));
        assert_eq!(key(HashBy::Path), Some(xxh3_64(b"/p")));
        assert_eq!(key(HashBy::Address), Some(xxh3_64(&[127, 0, 0, 1])));
        assert_eq!((key(HashBy::Cookie("i".into())), key(HashBy::Query("us".into()))), (None, None));
    }
}
