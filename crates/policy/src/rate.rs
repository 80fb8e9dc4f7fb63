//! Work per time, counted apart by key: the generic cell rate algorithm (ITU-T I.371) or a sliding window.
//!
//! *GCRA*: `limit` per `period` is the steady rate; `burst` is how many may come at once above it, so a key that was
//! idle may send `1 + burst` at once. *Sliding*: `limit` in any `period`, estimated from the count of this window and
//! the one before, weighted by how much of it still lies within the period.
//!
//! Keys are hashed with a secret seed; a key that is idle long enough is the same as one never seen, so it is
//! forgotten. The table holds [`limits::RATE_KEYS`] busy keys; when it is full of busy keys, new ones share one count
//! until places come free: memory stays bounded and the limit still holds.
//!
//! Several limits on one thing must all pass. They are taken in order; what the first ones gave is given back when a
//! later one refuses. Until then (well under a microsecond) others see it taken.

use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use weft_core::limits;

use crate::pad::Padded;
use crate::spec::{Algorithm, Rate, RatePer};

const SHARDS: usize = 16;

/// The rate limits of one thing. Without any it takes everything.
#[derive(Debug)]
pub struct RateLimits(Box<[Limiter]>);

/// What one piece of work asks of one limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ask {
    /// The hash of its key, by [`RateLimits::hash`]; not looked at when everything is counted together.
    pub key: u64,
    /// How much it takes; more than could ever be there at once is cut to that.
    pub cost: u32,
}

/// How a key stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// How many more would be taken now.
    pub remaining: u32,
    /// Until all of it is there again, when nothing more comes.
    pub reset: Duration,
}

/// Over a limit. Nothing was taken from any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exceeded {
    /// Which limit.
    pub index: usize,
    /// Until this would be taken.
    pub retry_after: Duration,
    /// How the key stands.
    pub standing: Standing,
}

#[derive(Debug)]
struct Limiter {
    spec: Rate,
    rule: Rule,
    /// The count for all, and for keys that found no place.
    shared: Padded<Shared>,
    seed: RandomState,
    /// Empty when everything is counted together.
    shards: Vec<Padded<Mutex<Shard>>>,
    crowded: AtomicU64,
    refused: AtomicU64,
}

#[derive(Clone, Copy, Debug)]
enum Rule {
    /// Nanoseconds between two at the steady rate, and how many may come at once.
    Cell { interval: u64, capacity: u32 },
    /// How many in this many nanoseconds.
    Window { limit: u32, period: u64 },
}

/// What is known of a key.
#[derive(Clone, Copy, Debug, Default)]
struct State {
    /// Cell: the theoretical arrival time of the next. Window: which window `current` counts.
    at: u64,
    /// Counted in the window before.
    previous: u32,
    /// Counted in this window.
    current: u32,
}

#[derive(Debug)]
enum Shared {
    /// A cell is one number.
    Cell(AtomicU64),
    Window(Mutex<State>),
}

#[derive(Debug)]
struct Shard {
    keys: std::collections::HashMap<u64, State>,
    places: usize,
    /// Before this instant a sweep finds nothing to forget.
    sweep_at: u64,
}

impl Rule {
    fn of(s: &Rate) -> Self {
        let period = s.period.as_nanos().clamp(1, u128::from(u64::MAX / 8)) as u64;
        match s.algorithm {
            Algorithm::Gcra => {
                let interval = (period / u64::from(s.limit.max(1))).max(1);
                Rule::Cell { interval, capacity: s.burst.saturating_add(1) }
            }
            Algorithm::Sliding => Rule::Window { limit: s.limit, period },
        }
    }

    /// Takes `cost`, or says how long until it could be taken.
    #[inline]
    fn take(self, s: &mut State, cost: u32, now: u64) -> Result<(), Duration> {
        if cost == 0 {
            return Ok(());
        }
        match self {
            Rule::Cell { interval, capacity } => {
                let cost = cost.min(capacity);
                let next = s.at.max(now).saturating_add(interval.saturating_mul(cost.into()));
                let latest = now.saturating_add(interval.saturating_mul(capacity.into()));
                if next > latest {
                    return Err(Duration::from_nanos(next - latest));
                }
                s.at = next;
                Ok(())
            }
            Rule::Window { limit, period } => {
                let cost = cost.min(limit);
                let into = s.roll(now, period);
                let room = limit - cost;
                let lasts = u128::from(s.previous) * u128::from(period - into);
                if lasts + u128::from(s.current) * u128::from(period) <= u128::from(room) * u128::from(period) {
                    s.current += cost;
                    return Ok(());
                }
                // When the part of the earlier window that still counts is small enough.
                let falls =
                    |count: u32, to: u32| (u128::from(count - to) * u128::from(period)).div_ceil(count.into()) as u64;
                let wait = match room.checked_sub(s.current) {
                    Some(left) => falls(s.previous, left).saturating_sub(into),
                    None => period - into + falls(s.current, room),
                };
                Err(Duration::from_nanos(wait.max(1)))
            }
        }
    }

    fn give_back(self, s: &mut State, cost: u32, taken: u64) {
        match self {
            Rule::Cell { interval, capacity } => {
                s.at = s.at.saturating_sub(interval.saturating_mul(cost.min(capacity).into()));
            }
            Rule::Window { limit, period } => {
                let cost = cost.min(limit);
                if s.at <= taken / period {
                    s.current = s.current.saturating_sub(cost);
                } else {
                    s.previous = s.previous.saturating_sub(cost);
                }
            }
        }
    }

    fn standing(self, mut s: State, now: u64) -> Standing {
        match self {
            Rule::Cell { interval, capacity } => {
                let ahead = s.at.saturating_sub(now);
                let room = interval.saturating_mul(capacity.into()).saturating_sub(ahead);
                Standing { remaining: (room / interval) as u32, reset: Duration::from_nanos(ahead) }
            }
            Rule::Window { limit, period } => {
                let into = s.roll(now, period);
                let lasts = (u128::from(s.previous) * u128::from(period - into)).div_ceil(u128::from(period)) as u32;
                let reset = match (s.previous, s.current) {
                    (0, 0) => 0,
                    (_, 0) => period - into,
                    _ => 2 * period - into,
                };
                let remaining = limit.saturating_sub(s.current).saturating_sub(lasts);
                Standing { remaining, reset: Duration::from_nanos(reset) }
            }
        }
    }

    /// From when on the key is as good as new.
    fn idle_at(self, s: &State) -> u64 {
        match self {
            Rule::Cell { .. } => s.at,
            Rule::Window { period, .. } => (s.at + if s.current > 0 { 2 } else { 1 }).saturating_mul(period),
        }
    }
}

impl State {
    /// Moves on to the window of `now`; how far into it that is. A clock read a moment earlier counts as its start.
    fn roll(&mut self, now: u64, period: u64) -> u64 {
        let window = now / period;
        if window > self.at {
            self.previous = if window == self.at + 1 { self.current } else { 0 };
            (self.current, self.at) = (0, window);
        }
        if window < self.at { 0 } else { now % period }
    }
}

impl RateLimits {
    /// Limits with these specs.
    pub fn new(specs: &[Rate]) -> Self {
        Self::with_keys(specs, limits::RATE_KEYS)
    }

    fn with_keys(specs: &[Rate], keys: usize) -> Self {
        let limiter = |s: &Rate| {
            let rule = Rule::of(s);
            let shards = if s.per == RatePer::All { 0 } else { SHARDS };
            let shard = || Shard { keys: Default::default(), places: (keys / SHARDS).max(1), sweep_at: 0 };
            Limiter {
                spec: s.clone(),
                rule,
                shared: Padded(match rule {
                    Rule::Cell { .. } => Shared::Cell(AtomicU64::new(0)),
                    Rule::Window { .. } => Shared::Window(Mutex::default()),
                }),
                seed: RandomState::new(),
                shards: (0..shards).map(|_| Padded(Mutex::new(shard()))).collect(),
                crowded: AtomicU64::new(0),
                refused: AtomicU64::new(0),
            }
        };
        Self(specs.iter().map(limiter).collect())
    }

    /// Whether there is none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Times a key found no place in a table and was counted together with others.
    pub fn crowded(&self) -> u64 {
        self.0.iter().map(|l| l.crowded.load(Ordering::Relaxed)).sum()
    }

    /// How many were over a rate.
    pub fn refused(&self) -> u64 {
        self.0.iter().map(|l| l.refused.load(Ordering::Relaxed)).sum()
    }

    /// A key as a limit counts it.
    #[inline]
    pub fn hash<K: Hash + ?Sized>(&self, index: usize, key: &K) -> u64 {
        self.0[index].seed.hash_one(key)
    }

    /// Takes one piece of work from every limit, or from none. `now` is in nanoseconds since any fixed instant; `ask`
    /// says what it asks of each, `seen` hears how each key stands after.
    #[inline]
    pub fn check(
        &self,
        now: u64,
        mut ask: impl FnMut(usize, &Rate) -> Ask,
        mut seen: impl FnMut(usize, Standing),
    ) -> Result<(), Exceeded> {
        let mut taken = [Ask { key: 0, cost: 0 }; limits::RATES];
        for (index, l) in self.0.iter().enumerate() {
            let asked = ask(index, &l.spec);
            match l.take(asked, now) {
                Ok(standing) => seen(index, standing),
                Err((retry_after, standing)) => {
                    for (before, asked) in self.0[..index].iter().zip(&taken) {
                        before.give_back(*asked, now);
                    }
                    l.refused.fetch_add(1, Ordering::Relaxed);
                    return Err(Exceeded { index, retry_after, standing });
                }
            }
            if let Some(place) = taken.get_mut(index) {
                *place = asked;
            }
        }
        Ok(())
    }

    /// Gives back what [`check`](Self::check) took at `taken` from one limit.
    pub fn give_back(&self, index: usize, asked: Ask, taken: u64) {
        self.0[index].give_back(asked, taken);
    }
}

impl Limiter {
    /// Calls `f` with the state of a key, again if it changed meanwhile.
    fn with<R>(&self, key: u64, now: u64, mut f: impl FnMut(&mut State) -> R) -> R {
        if !self.shards.is_empty() {
            // The map takes the low bits.
            let mut shard = self.shards[(key >> 60) as usize % SHARDS].lock();
            if let Some(state) = shard.keys.get_mut(&key) {
                return f(state);
            }
            if shard.keys.len() < shard.places || shard.sweep(now, self.rule) {
                return f(shard.keys.entry(key).or_default());
            }
            drop(shard);
            self.crowded.fetch_add(1, Ordering::Relaxed);
        }
        match &self.shared.0 {
            Shared::Window(state) => f(&mut state.lock()),
            Shared::Cell(at) => {
                let mut seen = at.load(Ordering::Relaxed);
                loop {
                    let mut state = State { at: seen, ..State::default() };
                    let result = f(&mut state);
                    match at.compare_exchange_weak(seen, state.at, Ordering::Relaxed, Ordering::Relaxed) {
                        Ok(_) => return result,
                        Err(other) => seen = other,
                    }
                }
            }
        }
    }

    fn take(&self, asked: Ask, now: u64) -> Result<Standing, (Duration, Standing)> {
        self.with(asked.key, now, |state| {
            let taken = self.rule.take(state, asked.cost, now);
            let standing = self.rule.standing(*state, now);
            taken.map(|()| standing).map_err(|wait| (wait, standing))
        })
    }

    fn give_back(&self, asked: Ask, now: u64) {
        self.with(asked.key, now, |state| self.rule.give_back(state, asked.cost, now));
    }
}

impl Shard {
    /// Forgets idle keys; whether there is a place now.
    fn sweep(&mut self, now: u64, rule: Rule) -> bool {
        if now < self.sweep_at {
            return false;
        }
        self.keys.retain(|_, state| rule.idle_at(state) > now);
        self.sweep_at = self.keys.values().map(|s| rule.idle_at(s)).min().unwrap_or(0);
        self.keys.len() < self.places
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Barrier;
    use std::sync::atomic::AtomicUsize;

    const SECOND: u64 = 1_000_000_000;

    fn rate(limit: u32, burst: u32, per: RatePer) -> Rate {
        Rate { limit, burst, per, ..Rate::default() }
    }

    fn sliding(limit: u32, per: RatePer) -> Rate {
        Rate { algorithm: Algorithm::Sliding, ..rate(limit, 0, per) }
    }

    fn take(r: &RateLimits, key: &str, cost: u32, now: u64) -> Result<(), Exceeded> {
        r.check(now, |i, _| Ask { key: r.hash(i, key), cost }, |_, _| {})
    }

    fn taken(r: &RateLimits, key: &str, now: u64) -> usize {
        (0..100_000).take_while(|_| take(r, key, 1, now).is_ok()).count()
    }

    #[test]
    fn an_idle_key_may_send_the_burst_and_then_the_steady_rate() {
        let r = RateLimits::new(&[rate(10, 4, RatePer::Principal)]);
        assert_eq!(taken(&r, "ann", 0), 5);
        assert_eq!(take(&r, "ann", 1, 0).unwrap_err().retry_after, Duration::from_millis(100));
        assert!(take(&r, "ann", 1, 100_000_000 - 1).is_err(), "a nanosecond early");
        assert_eq!(taken(&r, "ann", 100_000_000), 1);
        assert_eq!(taken(&r, "bob", 100_000_000), 5, "keys do not share");
        let over_ten_seconds: usize = (1..=100).map(|i| taken(&r, "ann", SECOND + i * SECOND / 10)).sum();
        assert_eq!(over_ten_seconds, 5 + 99);
    }

    #[test]
    fn a_sliding_window_takes_its_limit_at_once_and_as_much_again_as_the_window_slides() {
        let r = RateLimits::new(&[sliding(10, RatePer::Principal)]);
        assert_eq!(taken(&r, "ann", 0), 10);
        assert_eq!(taken(&r, "ann", SECOND - 1), 0, "all of it lies within the last second");
        let wait = take(&r, "ann", 1, 0).unwrap_err().retry_after;
        assert_eq!(wait, Duration::from_millis(1100), "a tenth of the earlier window has left");
        assert_eq!(taken(&r, "ann", SECOND + SECOND / 10 - 1), 0);
        assert_eq!(taken(&r, "ann", SECOND + SECOND / 10), 1, "and what it promised holds");
        assert_eq!(taken(&r, "ann", SECOND + SECOND / 2), 4);
        assert_eq!(taken(&r, "ann", 5 * SECOND), 10, "an idle key is as good as new");
    }

    #[test]
    fn what_retry_after_says_is_taken_then_and_not_a_moment_before() {
        for spec in [rate(7, 3, RatePer::Principal), sliding(7, RatePer::Principal)] {
            let r = RateLimits::new(std::slice::from_ref(&spec));
            let mut now = 3;
            for i in 0..200 {
                let cost = 1 + i % 3;
                if let Err(e) = take(&r, "ann", cost, now) {
                    let wait = e.retry_after.as_nanos() as u64;
                    assert!(take(&r, "ann", cost, now + wait - 1).is_err(), "{spec:?} {i}");
                    now += wait;
                    take(&r, "ann", cost, now).unwrap_or_else(|e| panic!("{spec:?} {i}: {e:?}"));
                }
            }
        }
    }

    /// Every thread asks as much as it can while the clock, which they share, goes on in steps of a millisecond.
    fn admitted(r: &RateLimits, threads: usize, seconds: u64) -> usize {
        let (clock, admitted) = (AtomicU64::new(0), AtomicUsize::new(0));
        let barrier = Barrier::new(threads);
        std::thread::scope(|s| {
            for t in 0..threads {
                let (clock, admitted, barrier) = (&clock, &admitted, &barrier);
                s.spawn(move || {
                    for step in 0..seconds * 1_000 {
                        if t == 0 {
                            clock.store(step * 1_000_000, Ordering::Relaxed);
                        }
                        barrier.wait();
                        for _ in 0..4 {
                            if take(r, "ann", 1, clock.load(Ordering::Relaxed)).is_ok() {
                                admitted.fetch_add(1, Ordering::Relaxed);
                            }
                        }
                        barrier.wait();
                    }
                });
            }
        });
        admitted.into_inner()
    }

    #[test]
    fn a_hundred_a_second_admits_a_hundred_a_second_on_1_2_and_8_threads() {
        for per in [RatePer::All, RatePer::Principal] {
            for threads in [1, 2, 8] {
                let n = admitted(&RateLimits::new(&[rate(100, 0, per.clone())]), threads, 1);
                assert!((98..=102).contains(&n), "{n} in a second on {threads} threads, GCRA {per:?}");
                let n = admitted(&RateLimits::new(&[sliding(100, per.clone())]), threads, 1);
                assert!((98..=102).contains(&n), "{n} in a second on {threads} threads, sliding {per:?}");
            }
        }
        let n = admitted(&RateLimits::new(&[sliding(100, RatePer::All)]), 2, 3);
        assert!((298..=302).contains(&n), "{n} in three seconds, sliding");
    }

    #[test]
    fn one_count_for_all_ignores_the_key_and_holds_under_many_threads() {
        let r = RateLimits::new(&[rate(10, 99, RatePer::All)]);
        let got: usize = std::thread::scope(|s| {
            let t: Vec<_> = (0..4)
                .map(|i| {
                    s.spawn({
                        let r = &r;
                        move || taken(r, &i.to_string(), 0)
                    })
                })
                .collect();
            t.into_iter().map(|t| t.join().unwrap()).sum()
        });
        assert_eq!(got, 100);
    }

    #[test]
    fn of_several_limits_all_must_pass_and_a_refused_one_takes_nothing_from_the_others() {
        let limits = [rate(1, 99, RatePer::All), sliding(50, RatePer::All), rate(1, 2, RatePer::Principal)];
        let r = RateLimits::new(&limits);
        assert_eq!(taken(&r, "ann", 0), 3);
        for _ in 0..1_000 {
            assert_eq!(take(&r, "ann", 1, 0).unwrap_err().index, 2);
        }
        let mut left = Vec::new();
        r.check(0, |i, _| Ask { key: r.hash(i, "bob"), cost: 1 }, |_, s| left.push(s.remaining)).unwrap();
        assert_eq!(left, [96, 46, 2], "four were taken, though a thousand were refused");
    }

    #[test]
    fn what_costs_more_takes_more_and_never_more_than_there_can_be() {
        for spec in [rate(10, 9, RatePer::Principal), sliding(10, RatePer::Principal)] {
            let r = RateLimits::new(&[spec]);
            take(&r, "ann", 6, 0).unwrap();
            assert_eq!(take(&r, "ann", 6, 0).unwrap_err().standing.remaining, 4);
            take(&r, "ann", 4, 0).unwrap();
            take(&r, "ann", 0, 0).unwrap();
            take(&r, "bob", 1_000, 0).unwrap();
            assert!(take(&r, "bob", 1, 0).is_err(), "it took all there was");
        }
    }

    #[test]
    fn a_key_is_told_how_many_are_left_and_when_all_are_there_again() {
        let r = RateLimits::new(&[rate(10, 4, RatePer::All), sliding(10, RatePer::All)]);
        let stands = |now| {
            let mut all = Vec::new();
            r.check(now, |_, _| Ask { key: 0, cost: 2 }, |_, s| all.push((s.remaining, s.reset.as_millis()))).unwrap();
            all
        };
        assert_eq!(stands(0), [(3, 200), (8, 2_000)]);
        assert_eq!(stands(SECOND / 10), [(2, 300), (6, 1_900)]);
        assert_eq!(stands(10 * SECOND), [(3, 200), (8, 2_000)]);
    }

    #[test]
    fn without_a_limit_everything_passes() {
        let r = RateLimits::new(&[]);
        assert!(r.is_empty());
        assert_eq!(taken(&r, "x", 0), 100_000);
    }

    #[test]
    fn the_table_is_bounded_and_crowded_keys_share_one_count() {
        for spec in [rate(1, 0, RatePer::Address), sliding(1, RatePer::Address)] {
            let r = RateLimits::with_keys(&[spec], 160);
            let passed = (0..10_000).filter(|i: &u32| take(&r, &i.to_string(), 1, 0).is_ok()).count();
            assert!((17..=161).contains(&passed), "{passed} keys passed: one a place, and one for the rest");
            assert!(r.0[0].shards.iter().all(|s| s.lock().keys.len() <= 10));
            assert!(r.crowded() > 9_000);
            // Later the places are free again.
            assert!(take(&r, "late", 1, 2 * SECOND).is_ok());
            assert!(take(&r, "late", 1, 2 * SECOND).is_err());
        }
    }
}
