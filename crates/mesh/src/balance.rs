//! Which endpoint takes the next attempt: the healthy ones, in turn or the less busy of two; passed over are those
//! already tried for this request and those that could not be connected to a moment ago. When that leaves none, any is
//! better than failing: first the untried, then all (panic mode).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::endpoint::Endpoint;
use crate::outbound::Tried;
use crate::spec::Balance;

/// The endpoints of a service as of one moment.
#[derive(Debug, Default)]
pub(crate) struct Endpoints {
    pub all: Box<[Arc<Endpoint>]>,
    /// Those whose checks pass; empty = panic mode, all are tried.
    pub healthy: Box<[Arc<Endpoint>]>,
    /// Names of this service are being resolved for the first time.
    pub resolving: bool,
}

impl Endpoints {
    pub(crate) fn new(all: Box<[Arc<Endpoint>]>, resolving: bool) -> Self {
        let healthy = all.iter().filter(|e| e.is_healthy()).cloned().collect();
        Self { all, healthy, resolving }
    }

    /// Whether there is nothing to send to yet, and there may be in a moment.
    pub(crate) fn is_resolving(&self) -> bool {
        self.all.is_empty() && self.resolving
    }

    fn candidates(&self) -> &[Arc<Endpoint>] {
        if self.healthy.is_empty() { &self.all } else { &self.healthy }
    }

    /// Picks one; `None` when there is none at all.
    pub(crate) fn pick(&self, balance: Balance, turn: &AtomicUsize, tried: Tried) -> Option<&Arc<Endpoint>> {
        let list = self.candidates();
        match list {
            [] => return None,
            [only] => return Some(only),
            _ => {}
        }
        let usable = |e: &Endpoint| !tried.has(e.id) && !e.is_ejected();
        if balance == Balance::LeastRequest {
            let r = rand::random::<u64>();
            let a = (r as u32 as usize) % list.len();
            // A second, different one.
            let b = (a + 1 + ((r >> 32) as usize) % (list.len() - 1)) % list.len();
            let (a, b) = (&list[a], &list[b]);
            match (usable(a), usable(b)) {
                (true, true) => return Some(if b.load() < a.load() { b } else { a }),
                (true, false) => return Some(a),
                (false, true) => return Some(b),
                (false, false) => {}
            }
        }
        let start = turn.fetch_add(1, Ordering::Relaxed);
        let in_turn = |list: &'_ [Arc<Endpoint>], ok: &dyn Fn(&Endpoint) -> bool| {
            (0..list.len()).map(|i| (start.wrapping_add(i)) % list.len()).find(|i| ok(&list[*i]))
        };
        if let Some(i) = in_turn(list, &usable) {
            return Some(&list[i]);
        }
        let untried = |e: &Endpoint| !tried.has(e.id);
        if let Some(i) = in_turn(list, &untried) {
            return Some(&list[i]);
        }
        Some(&list[start % list.len()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::test_endpoint;
    use crate::outbound::Outbound;

    fn three() -> Endpoints {
        Endpoints::new((1..=3).map(|p| test_endpoint(&format!("127.0.0.1:{p}"))).collect(), false)
    }

    fn outbound() -> Outbound {
        Outbound::new(http::Request::new(crate::Body::Empty))
    }

    #[tokio::test(start_paused = true)]
    async fn round_robin_takes_each_in_turn() {
        let (e, turn) = (three(), AtomicUsize::new(0));
        let picks: Vec<_> =
            (0..6).map(|_| e.pick(Balance::RoundRobin, &turn, outbound().tried()).unwrap().id).collect();
        assert_eq!(picks[..3], picks[3..]);
        assert_eq!(picks.iter().collect::<std::collections::BTreeSet<_>>().len(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn least_request_leaves_the_busiest_alone_and_spreads_over_the_rest() {
        let (e, turn) = (three(), AtomicUsize::new(0));
        let busy: Vec<_> = (0..100).map(|_| e.all[0].enter()).collect();
        let mut held = Vec::new();
        for _ in 0..150 {
            let picked = e.pick(Balance::LeastRequest, &turn, outbound().tried()).unwrap();
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
        for balance in [Balance::RoundRobin, Balance::LeastRequest] {
            let (e, turn, out) = (three(), AtomicUsize::new(0), outbound());
            out.mark_tried(e.all[0].id);
            e.all[1].eject();
            for _ in 0..20 {
                assert_eq!(e.pick(balance, &turn, out.tried()).unwrap().id, e.all[2].id);
            }
            out.mark_tried(e.all[2].id);
            assert_eq!(e.pick(balance, &turn, out.tried()).unwrap().id, e.all[1].id, "ejected, but untried");
            out.mark_tried(e.all[1].id);
            assert!(e.pick(balance, &turn, out.tried()).is_some(), "all were tried: any");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn unhealthy_endpoints_get_nothing_unless_all_are() {
        let e = three();
        e.all[0].set_healthy(false);
        e.all[1].set_healthy(false);
        let some = Endpoints::new(e.all.clone(), false);
        let turn = AtomicUsize::new(0);
        for _ in 0..20 {
            assert_eq!(some.pick(Balance::LeastRequest, &turn, outbound().tried()).unwrap().id, e.all[2].id);
        }
        e.all[2].set_healthy(false);
        let panic = Endpoints::new(e.all.clone(), false);
        let ids: std::collections::BTreeSet<_> =
            (0..20).map(|_| panic.pick(Balance::RoundRobin, &turn, outbound().tried()).unwrap().id).collect();
        assert_eq!(ids.len(), 3);
    }
}
