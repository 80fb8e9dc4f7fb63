//! A set of sequences as inclusive ranges.

use std::collections::BTreeMap;

use weft_store::Seq;

/// Sequences above a moving lower bound.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ranges(BTreeMap<Seq, Seq>);

impl Ranges {
    pub fn insert(&mut self, seq: Seq) {
        self.insert_range(seq, seq);
    }

    pub fn insert_range(&mut self, mut from: Seq, mut to: Seq) {
        if let Some((f, t)) = self.0.range(..=from).next_back().map(|(f, t)| (*f, *t))
            && t.saturating_add(1) >= from
        {
            from = f;
            to = to.max(t);
        }
        while let Some((f, t)) = self.0.range(from..).next().map(|(f, t)| (*f, *t))
            && f <= to.saturating_add(1)
        {
            self.0.remove(&f);
            to = to.max(t);
        }
        self.0.insert(from, to);
    }

    pub fn contains(&self, seq: Seq) -> bool {
        self.0.range(..=seq).next_back().is_some_and(|(_, t)| *t >= seq)
    }

    /// How many of its sequences are at least `from`.
    pub fn count_from(&self, from: Seq) -> u64 {
        let cut = self.0.range(..from).next_back().map_or(0, |(_, t)| (t + 1).saturating_sub(from));
        cut + self.0.range(from..).map(|(f, t)| t - f + 1).sum::<u64>()
    }

    /// Forgets what is below `from`.
    pub fn forget_below(&mut self, from: Seq) {
        while let Some((f, t)) = self.0.first_key_value().map(|(f, t)| (*f, *t))
            && f < from
        {
            self.0.remove(&f);
            if t >= from {
                self.0.insert(from, t);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn ranges_answer_like_a_plain_set(ops in prop::collection::vec((1u64..60, 0u64..8), 0..40), below in 0u64..70) {
            let (mut r, mut s) = (Ranges::default(), BTreeSet::new());
            for (from, len) in ops {
                r.insert_range(from, from + len);
                s.extend(from..=from + len);
            }
            for n in 0..80 {
                prop_assert_eq!(r.contains(n), s.contains(&n));
                prop_assert_eq!(r.count_from(n), s.range(n..).count() as u64);
            }
            r.forget_below(below);
            for n in 0..80 {
                prop_assert_eq!(r.contains(n), n >= below && s.contains(&n));
            }
        }
    }
}
