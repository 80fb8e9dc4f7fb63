//! A cursor's state: an acknowledged floor, a sparse set above it, and the attempts of what is left.

use std::collections::BTreeMap;

use crate::{Attempt, Cursor, Seq};

/// Floor, sparse set and attempts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) floor: Seq,
    /// Acknowledged above the floor: first to last, disjoint, not touching.
    acked: BTreeMap<Seq, Seq>,
    attempts: BTreeMap<Seq, Attempt>,
}

impl State {
    pub(crate) fn at(floor: Seq) -> Self {
        Self { floor, ..Self::default() }
    }

    /// Rebuilds a state from what [`State::export`] said.
    pub(crate) fn import(c: Cursor) -> Self {
        Self { floor: c.floor, acked: c.acked.into_iter().collect(), attempts: c.attempts.into_iter().collect() }
    }

    pub(crate) fn export(&self) -> Cursor {
        Cursor {
            floor: self.floor,
            acked: self.acked.iter().map(|(a, b)| (*a, *b)).collect(),
            attempts: self.attempts.iter().map(|(s, a)| (*s, *a)).collect(),
        }
    }

    /// Acknowledges an inclusive range; repeats are no-ops.
    pub(crate) fn ack(&mut self, first: Seq, last: Seq) {
        let (mut first, mut last) = (first.max(self.floor + 1), last);
        if first > last {
            return;
        }
        self.forget_attempts(first, last);
        if let Some((&a, &b)) = self.acked.range(..=first).next_back()
            && b + 1 >= first
        {
            first = a;
            last = last.max(b);
        }
        while let Some((&a, &b)) = self.acked.range(first..=last.saturating_add(1)).next() {
            last = last.max(b);
            self.acked.remove(&a);
        }
        if first == self.floor + 1 {
            self.floor = last;
        } else {
            self.acked.insert(first, last);
        }
    }

    /// Everything up to and with `seq` is gone: the floor jumps.
    pub(crate) fn jump(&mut self, seq: Seq) {
        self.ack(self.floor + 1, seq);
    }

    /// Notes a delivery attempt of a record that is not acknowledged.
    pub(crate) fn attempt(&mut self, seq: Seq, attempt: Attempt) {
        if !self.is_acked(seq) {
            self.attempts.insert(seq, attempt);
        }
    }

    pub(crate) fn is_acked(&self, seq: Seq) -> bool {
        seq <= self.floor || self.acked.range(..=seq).next_back().is_some_and(|(_, last)| *last >= seq)
    }

    /// The first inclusive range within `from..=to` that is not acknowledged.
    pub(crate) fn open_from(&self, from: Seq, to: Seq) -> Option<(Seq, Seq)> {
        let mut first = from.max(self.floor + 1);
        if let Some((_, &last)) = self.acked.range(..=first).next_back()
            && last >= first
        {
            first = last + 1;
        }
        if first > to {
            return None;
        }
        let next = self.acked.range(first..).next().map_or(Seq::MAX, |(a, _)| *a);
        Some((first, to.min(next - 1)))
    }

    fn forget_attempts(&mut self, first: Seq, last: Seq) {
        if self.attempts.is_empty() {
            return;
        }
        let gone: Vec<Seq> = self.attempts.range(first..=last).map(|(s, _)| *s).collect();
        for s in gone {
            self.attempts.remove(&s);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acknowledgements_join_and_lift_the_floor() {
        let mut c = State::default();
        for (a, b) in [(5, 5), (3, 3), (7, 9), (4, 4), (4, 4)] {
            c.ack(a, b);
        }
        assert_eq!(c.export().acked, [(3, 5), (7, 9)]);
        c.ack(1, 1);
        c.ack(2, 2);
        assert_eq!((c.floor, c.export().acked), (5, vec![(7, 9)]));
        c.ack(6, 20);
        assert_eq!((c.floor, c.export().acked.len()), (20, 0));
    }

    #[test]
    fn an_acknowledgement_erases_attempts() {
        let mut c = State::default();
        let a = Attempt { count: 1, ..Attempt::default() };
        c.attempt(2, a);
        c.attempt(3, a);
        c.ack(2, 2);
        c.attempt(2, a);
        assert_eq!(c.export().attempts, [(3, a)]);
        c.jump(10);
        assert_eq!(c.export(), Cursor { floor: 10, ..Cursor::default() });
    }

    #[test]
    fn open_ranges_skip_what_is_acknowledged() {
        let mut c = State::at(2);
        c.ack(5, 6);
        c.ack(9, 9);
        assert_eq!(c.open_from(1, 20), Some((3, 4)));
        assert_eq!(c.open_from(5, 20), Some((7, 8)));
        assert_eq!(c.open_from(9, 9), None);
        assert_eq!(c.open_from(10, 12), Some((10, 12)));
        assert!(c.is_acked(2) && c.is_acked(6) && !c.is_acked(7));
    }

    #[test]
    fn the_sparse_set_agrees_with_a_plain_set() {
        use rand::{RngExt, SeedableRng};
        let mut rng = rand::rngs::StdRng::seed_from_u64(7);
        for _ in 0..200 {
            let (mut c, mut plain) = (State::default(), std::collections::BTreeSet::new());
            for _ in 0..40 {
                let a = rng.random_range(1..40);
                let b = a + rng.random_range(0..5);
                c.ack(a, b);
                plain.extend(a..=b);
                for s in 1..50 {
                    assert_eq!(c.is_acked(s), plain.contains(&s), "{s} {c:?}");
                }
            }
            assert_eq!(State::import(c.export()), c);
        }
    }
}
