//! A limit on work at once that finds itself: it grows while answers come as fast as they use to, and shrinks when
//! they take longer or the other side says that it is overloaded (the gradient of Netflix's concurrency-limits; Envoy's
//! adaptive concurrency is its sibling).
//!
//! Pure: instants are handed in, in nanoseconds since any fixed instant.

use crate::spec::Adaptive;

/// Answers are looked at together over at least so long ...
const WINDOW: u64 = 100_000_000;
/// ... and at least so many.
const SAMPLES: u32 = 10;
/// Windows over which the usual latency is averaged.
const LONG: f64 = 600.0;
/// What the limit may grow by in one window, before smoothing: work that waits at the other side, so that there is
/// something to find out.
const GROWTH: f64 = 4.0;
/// How much of a change is made at once.
const SMOOTHING: f64 = 0.2;
/// What is left of the limit when the other side is overloaded.
const BACKOFF: f64 = 0.9;

/// The limit and what it goes by.
#[derive(Clone, Debug)]
pub struct Gradient {
    spec: Adaptive,
    limit: f64,
    /// The usual latency in nanoseconds; 0 before the first window.
    usual: f64,
    began: u64,
    samples: u32,
    overloaded: u32,
    sum: f64,
    most: u32,
}

impl Gradient {
    /// Begins at a limit.
    pub fn new(spec: Adaptive, initial: u32) -> Self {
        let limit = f64::from(initial.clamp(spec.min, spec.max));
        Self { spec, limit, usual: 0.0, began: 0, samples: 0, overloaded: 0, sum: 0.0, most: 0 }
    }

    /// The limit now.
    pub fn limit(&self) -> u32 {
        self.limit as u32
    }

    /// Takes in one answer: how long it took (nanoseconds), how many were under way, and whether it says that the other
    /// side is overloaded (or did not come at all). The limit, when a window ended with it.
    pub fn sample(&mut self, now: u64, took: u64, under_way: u32, overloaded: bool) -> Option<u32> {
        if self.samples == 0 {
            self.began = now;
        }
        self.samples += 1;
        self.overloaded += u32::from(overloaded);
        self.sum += took as f64;
        self.most = self.most.max(under_way);
        if now - self.began.min(now) < WINDOW || self.samples < SAMPLES {
            return None;
        }
        let recent = (self.sum / f64::from(self.samples)).max(1.0);
        let (most, overloaded) = (f64::from(self.most), self.overloaded * 10 >= self.samples);
        (self.samples, self.overloaded, self.sum, self.most) = (0, 0, 0.0, 0);
        if self.usual == 0.0 {
            self.usual = recent;
        } else {
            self.usual += (recent - self.usual) * 2.0 / (LONG + 1.0);
            // After a long overload the usual is far too high: it comes down faster than it rose.
            if self.usual > 2.0 * recent {
                self.usual *= 0.95;
            }
        }
        let limit = if overloaded {
            self.limit * BACKOFF
        } else if most * 2.0 < self.limit {
            // Nobody asked for more than half of it: nothing was learned about the rest.
            return None;
        } else {
            let gradient = (self.spec.tolerance * self.usual / recent).clamp(0.5, 1.0);
            self.limit * (1.0 - SMOOTHING) + (self.limit * gradient + GROWTH) * SMOOTHING
        };
        self.limit = limit.clamp(f64::from(self.spec.min), f64::from(self.spec.max));
        Some(self.limit())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn gradient() -> Gradient {
        Gradient::new(Adaptive { min: 5, max: 200, tolerance: 1.5 }, 20)
    }

    /// Plays so many windows of answers.
    fn play(g: &mut Gradient, now: &mut u64, windows: usize, took: impl Fn(u32) -> u64, busy: bool, overloaded: bool) {
        for _ in 0..windows {
            for _ in 0..SAMPLES + 1 {
                let under_way = if busy { g.limit() } else { 1 };
                g.sample(*now, took(under_way), under_way, overloaded);
                *now += WINDOW / u64::from(SAMPLES);
            }
        }
    }

    #[test]
    fn it_grows_while_answers_come_as_fast_as_ever_and_it_is_used() {
        let (mut g, mut now) = (gradient(), 0);
        play(&mut g, &mut now, 50, |_| 10 * MS, false, false);
        assert_eq!(g.limit(), 20, "nobody uses what there is");
        play(&mut g, &mut now, 20, |_| 10 * MS, true, false);
        assert!(g.limit() > 30, "{}", g.limit());
        play(&mut g, &mut now, 2_000, |_| 10 * MS, true, false);
        assert_eq!(g.limit(), 200, "and no further than the most");
    }

    #[test]
    fn it_settles_where_a_server_of_forty_places_begins_to_queue() {
        let (mut g, mut now) = (gradient(), 0);
        let server = |under_way: u32| 10 * MS * u64::from(under_way.max(40)) / 40;
        play(&mut g, &mut now, 150, server, true, false);
        assert!((40..100).contains(&g.limit()), "{}", g.limit());
    }

    #[test]
    fn it_shrinks_when_answers_slow_down_or_the_other_side_is_overloaded() {
        let (mut g, mut now) = (gradient(), 0);
        play(&mut g, &mut now, 100, |_| 10 * MS, true, false);
        let before = g.limit();
        play(&mut g, &mut now, 20, |_| 100 * MS, true, false);
        assert!(g.limit() < before / 2, "{} of {before}", g.limit());
        play(&mut g, &mut now, 40, |_| 10 * MS, true, true);
        assert_eq!(g.limit(), 5, "no smaller than the least");
    }
}
