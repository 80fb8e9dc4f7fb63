//! The same key to the same instance: a ring of points (as ketama) and Maglev's table (Eisenbud et al., "Maglev: A Fast
//! and Reliable Software Network Load Balancer", NSDI 2016, 3.4).
//!
//! Both are built over all instances of a service, healthy or not, and walked past those that cannot take the request:
//! an instance that falls ill moves its own keys alone, and gets them back when it recovers.

use std::sync::Arc;

use weft_core::limits;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::endpoint::Endpoint;
use crate::spec::Balance;

/// Points on the ring for each unit of weight, as ketama has them.
const POINTS: u64 = 160;
/// Slots of Maglev's table: a prime well above the number of instances.
const SLOTS: usize = 65_537;

/// Where keys belong.
#[derive(Debug)]
pub(crate) enum Table {
    /// Points in order, each with its instance's index.
    Ring(Box<[(u64, u32)]>),
    /// Slots with their instance's index.
    Maglev(Box<[u32]>),
}

impl Table {
    /// The table of these instances; `None` where there is nothing to choose.
    pub(crate) fn new(balance: Balance, all: &[Arc<Endpoint>]) -> Option<Self> {
        if all.len() < 2 {
            return None;
        }
        match balance {
            Balance::RingHash => Some(Self::ring(all)),
            Balance::Maglev => Some(Self::maglev(all)),
            Balance::RoundRobin | Balance::LeastRequest | Balance::PeakEwma => None,
        }
    }

    fn ring(all: &[Arc<Endpoint>]) -> Self {
        let wanted: u64 = all.iter().map(|e| u64::from(e.weight()) * POINTS).sum();
        // A whole divisor, so that the points of those that stay stay where they are when others come and go.
        let thin = wanted.div_ceil(limits::RING_POINTS as u64).max(1);
        let mut points = Vec::with_capacity((wanted / thin) as usize + all.len());
        for (i, e) in (0u32..).zip(all) {
            let n = (u64::from(e.weight()) * POINTS / thin).max(1);
            points.extend((0..n).map(|p| (xxh3_64_with_seed(e.address().as_bytes(), p), i)));
        }
        points.sort_unstable();
        Self::Ring(points.into())
    }

    fn maglev(all: &[Arc<Endpoint>]) -> Self {
        struct Turn {
            at: u64,
            skip: u64,
            weight: f64,
            due: f64,
        }
        let heaviest = all.iter().map(|e| e.weight()).max().unwrap_or(1).max(1);
        let m = SLOTS as u64;
        let mut turns: Vec<Turn> = (all.iter())
            .map(|e| Turn {
                at: xxh3_64_with_seed(e.address().as_bytes(), 1) % m,
                skip: xxh3_64_with_seed(e.address().as_bytes(), 2) % (m - 1) + 1,
                weight: f64::from(e.weight()) / f64::from(heaviest),
                due: 0.0,
            })
            .collect();
        let mut slots = vec![u32::MAX; SLOTS];
        let mut left = SLOTS;
        while left > 0 {
            for (i, turn) in (0u32..).zip(&mut turns) {
                // The heaviest takes one slot a round, the others as their weight falls due.
                turn.due += turn.weight;
                if turn.due < 1.0 || left == 0 {
                    continue;
                }
                turn.due -= 1.0;
                while slots[turn.at as usize] != u32::MAX {
                    turn.at = (turn.at + turn.skip) % m;
                }
                slots[turn.at as usize] = i;
                left -= 1;
            }
        }
        Self::Maglev(slots.into())
    }

    /// The indexes of instances in the order in which they may take a key; instances repeat.
    pub(crate) fn walk(&self, key: u64) -> impl Iterator<Item = usize> {
        let (at, len) = match self {
            Self::Ring(points) => (points.partition_point(|(p, _)| *p < key), points.len()),
            Self::Maglev(slots) => ((key % slots.len() as u64) as usize, slots.len()),
        };
        (0..len).map(move |i| match self {
            Self::Ring(points) => points[(at + i) % len].1 as usize,
            Self::Maglev(slots) => slots[(at + i) % len] as usize,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::test_endpoint;

    fn some(ports: std::ops::Range<u16>) -> Vec<Arc<Endpoint>> {
        ports.map(|p| test_endpoint(&format!("127.0.0.1:{p}"))).collect()
    }

    /// Which address each of so many keys belongs to.
    fn owners(balance: Balance, all: &[Arc<Endpoint>], keys: u64) -> Vec<Arc<str>> {
        let table = Table::new(balance, all).unwrap();
        let key = |k: u64| xxh3_64_with_seed(&k.to_le_bytes(), 0);
        (0..keys).map(|k| all[table.walk(key(k)).next().unwrap()].address().clone()).collect()
    }

    #[test]
    fn keys_spread_by_weight() {
        for (balance, within) in [(Balance::RingHash, 0.25), (Balance::Maglev, 0.05)] {
            let all = some(1..6);
            all[0].set_weight(3);
            let owners = owners(balance, &all, 70_000);
            for (i, e) in all.iter().enumerate() {
                let got = owners.iter().filter(|o| *o == e.address()).count() as f64;
                let fair = if i == 0 { 30_000.0 } else { 10_000.0 };
                assert!((got - fair).abs() < fair * within, "{balance:?}: {got} of {fair}");
            }
        }
    }

    #[test]
    fn an_instance_that_leaves_moves_its_own_keys_and_few_others() {
        for (balance, most) in [(Balance::RingHash, 0), (Balance::Maglev, 600)] {
            let all = some(1..11);
            let before = owners(balance, &all, 10_000);
            let after = owners(balance, &all[..9], 10_000);
            let gone = all[9].address();
            let moved = before.iter().zip(&after).filter(|(b, a)| *b != gone && a != b).count();
            assert!(moved <= most, "{balance:?}: {moved} keys of those that stayed moved");
        }
    }

    #[test]
    fn a_ring_of_many_instances_stays_within_its_limit() {
        let all = some(1..1_001);
        all.iter().for_each(|e| e.set_weight(limits::WEIGHT));
        let Some(Table::Ring(points)) = Table::new(Balance::RingHash, &all) else { panic!() };
        assert!(points.len() <= limits::RING_POINTS + all.len(), "{}", points.len());
    }

    #[test]
    fn a_walk_meets_every_instance() {
        for balance in [Balance::RingHash, Balance::Maglev] {
            let all = some(1..6);
            let table = Table::new(balance, &all).unwrap();
            let met: std::collections::BTreeSet<usize> = table.walk(u64::MAX).collect();
            assert_eq!(met.len(), 5);
        }
    }
}
