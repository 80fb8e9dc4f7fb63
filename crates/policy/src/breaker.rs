//! The circuit breaker: closed, open, half-open over a window of calls.
//!
//! [`Machine`] is the pure state machine: `apply(now, event) -> effect`, no clock, no lock. [`Breaker`] wraps it for
//! many threads: while it is closed, admission is one atomic load; judging takes a lock for some nanoseconds.
//!
//! Rules:
//! - Closed: opens when at least `min_calls` of the last `window` calls, or of the calls of the last `window_time`, are judged and the share of failures reaches
//!   `failure_rate`, or the share of slow calls reaches `slow_rate`.
//! - Open: refuses until `open_for` has passed.
//! - Half-open: lets `half_open_calls` trials through and refuses the rest; when all are judged it closes with an
//!   empty window, or opens again by the same two rates. A trial given up by its caller is handed to the next one; a
//!   trial that has not answered in [`limits::BREAKER_TRIAL`] counts as failed.
//! - A call is judged only by the state that admitted it: late answers from before count nowhere.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use weft_core::limits;

use crate::error::Refused;
use crate::pad::Padded;
use crate::spec;

/// What happens to a breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Somebody asks to call.
    Admit,
    /// A call admitted in `generation` ended.
    Judge {
        /// Which state admitted it.
        generation: u64,
        /// It failed.
        failed: bool,
        /// It took longer than `slow_call`.
        slow: bool,
    },
    /// A call admitted in `generation` was given up by its caller; nothing was learned.
    Abandon {
        /// Which state admitted it.
        generation: u64,
    },
}

/// What follows from an [`Event`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The call may go.
    Admitted {
        /// To be given back with the verdict.
        generation: u64,
    },
    /// The call may not go; nanoseconds until it is worth asking again.
    Refused {
        /// Nanoseconds.
        retry_after: u64,
    },
    /// Noted.
    Noted,
}

/// Which of the three states, with what it waits for. Instants are nanoseconds since any fixed instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Calls pass and are counted in the window.
    Closed,
    /// Calls are refused until then.
    Open {
        /// When trials begin.
        until: u64,
    },
    /// Trials pass.
    HalfOpen {
        /// When unanswered trials count as failed.
        until: u64,
        /// Trials let through and not given up.
        admitted: u32,
        /// Trials judged.
        judged: u32,
        /// Of these, failed.
        failed: u32,
        /// Of these, slow.
        slow: u32,
    },
}

const FAILED: u8 = 1;
const SLOW: u8 = 2;

/// What is remembered of the calls that count.
#[derive(Clone, Debug)]
enum Window {
    /// The last calls' marks; a ring once it is full.
    Calls { ring: Box<[u8]>, next: usize },
    /// What happened in each tenth of the time.
    Time { width: u64, slots: Box<[Slot; SLOTS]> },
}

/// A tenth of the time.
#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    /// Which, counted from instant 0.
    number: u64,
    calls: u32,
    failed: u32,
    slow: u32,
}

const SLOTS: usize = 10;

/// The pure state machine.
#[derive(Clone, Debug)]
pub struct Machine {
    spec: spec::Breaker,
    state: State,
    /// Counts state changes, so that a verdict finds the state that admitted its call.
    generation: u64,
    window: Window,
    filled: u32,
    failed: u32,
    slow: u32,
}

impl Machine {
    /// A closed breaker with an empty window.
    pub fn new(spec: spec::Breaker) -> Self {
        let window = match spec.window_time {
            None => {
                let calls = spec.window.clamp(1, limits::BREAKER_WINDOW) as usize;
                Window::Calls { ring: vec![0; calls].into_boxed_slice(), next: 0 }
            }
            Some(time) => {
                let width = (time.as_nanos() / SLOTS as u128).clamp(1, u128::from(u64::MAX)) as u64;
                Window::Time { width, slots: Default::default() }
            }
        };
        Self { spec, state: State::Closed, generation: 0, window, filled: 0, failed: 0, slow: 0 }
    }

    /// The state now.
    pub fn state(&self) -> State {
        self.state
    }

    /// The number of state changes so far.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Calls in the window, and how many of them failed and were slow.
    pub fn window(&self) -> (u32, u32, u32) {
        (self.filled, self.failed, self.slow)
    }

    /// Takes one event at an instant; instants never go back.
    pub fn apply(&mut self, now: u64, event: Event) -> Effect {
        match event {
            Event::Admit => self.admit(now),
            Event::Judge { generation, failed, slow } if generation == self.generation => {
                self.judge(now, failed, slow);
                Effect::Noted
            }
            Event::Abandon { generation } if generation == self.generation => {
                if let State::HalfOpen { admitted, .. } = &mut self.state {
                    *admitted -= 1;
                }
                Effect::Noted
            }
            Event::Judge { .. } | Event::Abandon { .. } => Effect::Noted,
        }
    }

    fn admit(&mut self, now: u64) -> Effect {
        match &mut self.state {
            State::Closed => Effect::Admitted { generation: self.generation },
            State::Open { until } if now < *until => Effect::Refused { retry_after: *until - now },
            State::Open { .. } => {
                let until = now.saturating_add(limits::BREAKER_TRIAL.as_nanos() as u64);
                self.turn(State::HalfOpen { until, admitted: 1, judged: 0, failed: 0, slow: 0 });
                Effect::Admitted { generation: self.generation }
            }
            State::HalfOpen { admitted, .. } if *admitted < self.spec.half_open_calls.max(1) => {
                *admitted += 1;
                Effect::Admitted { generation: self.generation }
            }
            State::HalfOpen { until, .. } if now < *until => {
                // The trials may be judged at any moment; ask again soon, but not in a busy loop.
                let wait = (*until - now).min(self.open_for() / 10).max(1_000_000);
                Effect::Refused { retry_after: wait }
            }
            State::HalfOpen { .. } => {
                self.open(now);
                Effect::Refused { retry_after: self.open_for() }
            }
        }
    }

    fn judge(&mut self, now: u64, call_failed: bool, call_slow: bool) {
        let slow_call = call_slow && self.spec.slow_call.is_some();
        match &mut self.state {
            State::Closed => {
                let mark = (FAILED * u8::from(call_failed)) | (SLOW * u8::from(slow_call));
                let most = self.remember(now, mark);
                let enough = self.filled >= self.spec.min_calls.clamp(1, most);
                if mark != 0 && enough && self.too_bad(self.filled, self.failed, self.slow) {
                    self.open(now);
                }
            }
            State::HalfOpen { judged, failed, slow, .. } => {
                *judged += 1;
                *failed += u32::from(call_failed);
                *slow += u32::from(slow_call);
                let (judged, failed, slow) = (*judged, *failed, *slow);
                if judged >= self.spec.half_open_calls.max(1) {
                    if self.too_bad(judged, failed, slow) { self.open(now) } else { self.turn(State::Closed) }
                }
            }
            // Nothing is admitted while open, so no verdict carries its generation.
            State::Open { .. } => {}
        }
    }

    /// Takes a call into the window and lets old ones go; how many the window can hold.
    fn remember(&mut self, now: u64, mark: u8) -> u32 {
        let (failed, slow) = (u32::from(mark & FAILED != 0), u32::from(mark & SLOW != 0));
        match &mut self.window {
            Window::Calls { ring, next } => {
                let old = std::mem::replace(&mut ring[*next], mark);
                *next = (*next + 1) % ring.len();
                if (self.filled as usize) < ring.len() {
                    self.filled += 1;
                } else {
                    self.failed -= u32::from(old & FAILED != 0);
                    self.slow -= u32::from(old & SLOW != 0);
                }
                self.failed += failed;
                self.slow += slow;
                ring.len() as u32
            }
            Window::Time { width, slots } => {
                let number = now / *width;
                for s in slots.iter_mut().filter(|s| number.saturating_sub(s.number) >= SLOTS as u64) {
                    *s = Slot::default();
                }
                let slot = &mut slots[(number % SLOTS as u64) as usize];
                slot.number = number;
                slot.calls = slot.calls.saturating_add(1);
                slot.failed += failed;
                slot.slow += slow;
                let sum = |of: fn(&Slot) -> u32| slots.iter().map(of).fold(0, u32::saturating_add);
                (self.filled, self.failed, self.slow) = (sum(|s| s.calls), sum(|s| s.failed), sum(|s| s.slow));
                u32::MAX
            }
        }
    }

    fn too_bad(&self, calls: u32, failed: u32, slow: u32) -> bool {
        let reaches = |n: u32, rate: f64| n > 0 && f64::from(n) >= rate * f64::from(calls);
        reaches(failed, self.spec.failure_rate) || (self.spec.slow_call.is_some() && reaches(slow, self.spec.slow_rate))
    }

    fn open(&mut self, now: u64) {
        self.turn(State::Open { until: now.saturating_add(self.open_for()) });
    }

    fn open_for(&self) -> u64 {
        self.spec.open_for.as_nanos().min(u128::from(u64::MAX)) as u64
    }

    fn turn(&mut self, state: State) {
        self.state = state;
        self.generation += 1;
        (self.filled, self.failed, self.slow) = (0, 0, 0);
        match &mut self.window {
            Window::Calls { next, .. } => *next = 0,
            Window::Time { slots, .. } => **slots = Default::default(),
        }
    }
}

/// A [`Machine`] for many threads.
#[derive(Debug)]
pub struct Breaker {
    slow_call: Option<Duration>,
    /// `generation * 2 + 1` while closed, `generation * 2` otherwise; written under the lock.
    gate: Padded<AtomicU64>,
    machine: Padded<Mutex<Machine>>,
    opened: AtomicU64,
    refused: AtomicU64,
    #[cfg(feature = "telemetry")]
    name: std::sync::OnceLock<String>,
}

/// A call that was let through. Dropped without a verdict, it counts as given up by its caller.
#[derive(Debug)]
#[must_use = "a permit that is dropped at once judges nothing"]
pub struct Permit<'a> {
    breaker: &'a Breaker,
    generation: u64,
    /// Closed when it was admitted: giving up needs no telling.
    closed: bool,
    judged: bool,
}

/// What a person wants to know about a breaker.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Status {
    /// Which state.
    pub state: Name,
    /// How long it stays open; zero in the other states.
    pub open_for: Duration,
    /// Calls in the window, or trials judged.
    pub calls: u32,
    /// Of these, failed.
    pub failed: u32,
    /// Of these, slow.
    pub slow: u32,
    /// Times it opened.
    pub opened: u64,
    /// Calls it refused.
    pub refused: u64,
}

/// A state's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Name {
    /// Calls pass.
    Closed,
    /// Calls are refused.
    Open,
    /// Trials pass.
    HalfOpen,
}

impl Name {
    /// `closed`, `open`, `half-open`.
    pub fn as_str(self) -> &'static str {
        match self {
            Name::Closed => "closed",
            Name::Open => "open",
            Name::HalfOpen => "half-open",
        }
    }
}

impl Breaker {
    /// A closed breaker.
    pub fn new(spec: spec::Breaker) -> Self {
        Self {
            slow_call: spec.slow_call,
            gate: Padded(AtomicU64::new(1)),
            machine: Padded(Mutex::new(Machine::new(spec))),
            opened: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            #[cfg(feature = "telemetry")]
            name: std::sync::OnceLock::new(),
        }
    }

    /// Names it in the log, once; a breaker without a name keeps silent.
    #[cfg(feature = "telemetry")]
    pub(crate) fn name(&self, name: &str) {
        self.name.get_or_init(|| name.to_owned());
    }

    #[cfg(feature = "telemetry")]
    fn log(&self, state: State) {
        let Some(policy) = self.name.get() else { return };
        match state {
            State::Open { .. } => tracing::warn!(policy, "the circuit breaker opened: calls fail fast"),
            State::HalfOpen { .. } => {
                tracing::info!(policy, "the circuit breaker is half-open: trial calls go through")
            }
            State::Closed => tracing::info!(policy, "the circuit breaker closed"),
        }
    }

    #[cfg(not(feature = "telemetry"))]
    fn log(&self, _: State) {}

    /// Asks to make a call, `now` in nanoseconds since any fixed instant.
    #[inline]
    pub fn admit(&self, now: u64) -> Result<Permit<'_>, Refused> {
        let gate = self.gate.load(Ordering::Acquire);
        if gate & 1 == 1 {
            return Ok(Permit { breaker: self, generation: gate >> 1, closed: true, judged: false });
        }
        self.admit_slowly(now)
    }

    #[cold]
    fn admit_slowly(&self, now: u64) -> Result<Permit<'_>, Refused> {
        let (effect, closed) = self.apply(now, Event::Admit);
        match effect {
            Effect::Admitted { generation } => Ok(Permit { breaker: self, generation, closed, judged: false }),
            Effect::Refused { retry_after } => {
                self.refused.fetch_add(1, Ordering::Relaxed);
                Err(Refused::BreakerOpen { retry_after: Duration::from_nanos(retry_after) })
            }
            Effect::Noted => unreachable!("asking to call is answered with yes or no"),
        }
    }

    /// Whether it is open now and will be at that instant.
    #[inline]
    pub fn open_at(&self, at: u64) -> bool {
        self.gate.load(Ordering::Acquire) & 1 == 0
            && matches!(self.machine.lock().state(), State::Open { until } if at < until)
    }

    /// The state in words and numbers.
    pub fn status(&self, now: u64) -> Status {
        let machine = self.machine.lock();
        let (calls, failed, slow) = machine.window();
        let (opened, refused) = (self.opened.load(Ordering::Relaxed), self.refused.load(Ordering::Relaxed));
        let closed = Status { state: Name::Closed, open_for: Duration::ZERO, calls, failed, slow, opened, refused };
        match machine.state() {
            State::Closed => closed,
            State::Open { until } => {
                Status { state: Name::Open, open_for: Duration::from_nanos(until.saturating_sub(now)), ..closed }
            }
            State::HalfOpen { judged: calls, failed, slow, .. } => {
                Status { state: Name::HalfOpen, calls, failed, slow, ..closed }
            }
        }
    }

    fn apply(&self, now: u64, event: Event) -> (Effect, bool) {
        let mut machine = self.machine.lock();
        let before = machine.generation();
        let effect = machine.apply(now, event);
        let state = machine.state();
        let closed = state == State::Closed;
        if machine.generation() != before {
            self.gate.store(machine.generation() << 1 | u64::from(closed), Ordering::Release);
            drop(machine);
            self.opened.fetch_add(u64::from(matches!(state, State::Open { .. })), Ordering::Relaxed);
            self.log(state);
        }
        (effect, closed)
    }
}

impl Permit<'_> {
    /// Says how the call went and how long it took.
    #[inline]
    pub fn judge(mut self, now: u64, failed: bool, took: Duration) {
        self.judged = true;
        let slow = self.breaker.slow_call.is_some_and(|limit| took > limit);
        self.breaker.apply(now, Event::Judge { generation: self.generation, failed, slow });
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        if !self.judged && !self.closed {
            // Giving back a trial never looks at the clock.
            self.breaker.apply(0, Event::Abandon { generation: self.generation });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: u64 = 1_000_000;

    fn spec() -> spec::Breaker {
        spec::Breaker {
            failure_rate: 0.5,
            slow_call: Some(Duration::from_millis(100)),
            slow_rate: 0.8,
            window: 10,
            window_time: None,
            min_calls: 4,
            open_for: Duration::from_millis(1_000),
            half_open_calls: 3,
        }
    }

    fn call(b: &Breaker, now: u64, failed: bool, took_ms: u64) -> Result<(), Refused> {
        b.admit(now).map(|p| p.judge(now, failed, Duration::from_millis(took_ms)))
    }

    fn state(b: &Breaker) -> Name {
        b.status(0).state
    }

    #[test]
    fn it_opens_at_the_failure_rate_once_enough_calls_are_judged() {
        let b = Breaker::new(spec());
        for _ in 0..3 {
            call(&b, 0, true, 1).unwrap();
        }
        assert_eq!(state(&b), Name::Closed, "three calls are too few to judge");
        call(&b, 0, false, 1).unwrap();
        assert_eq!(state(&b), Name::Closed, "a success never opens it");
        call(&b, 0, true, 1).unwrap();
        assert_eq!(state(&b), Name::Open);
        assert_eq!(b.admit(400 * MS).unwrap_err(), Refused::BreakerOpen { retry_after: Duration::from_millis(600) });
        let s = b.status(400 * MS);
        assert_eq!((s.opened, s.refused, s.open_for), (1, 1, Duration::from_millis(600)));
    }

    #[test]
    fn old_calls_leave_the_window() {
        let b = Breaker::new(spec());
        for _ in 0..4 {
            call(&b, 0, false, 1).unwrap();
        }
        for _ in 0..3 {
            call(&b, 0, true, 1).unwrap();
        }
        for _ in 0..10 {
            call(&b, 0, false, 1).unwrap();
        }
        assert_eq!((b.status(0).calls, b.status(0).failed), (10, 0));
        for _ in 0..4 {
            call(&b, 0, true, 1).unwrap();
        }
        assert_eq!(state(&b), Name::Closed, "4 of 10 failed");
        call(&b, 0, true, 1).unwrap();
        assert_eq!(state(&b), Name::Open, "5 of 10 failed");
    }

    #[test]
    fn a_window_of_time_counts_all_calls_of_that_time_and_no_older() {
        let b = Breaker::new(spec::Breaker { window_time: Some(Duration::from_secs(10)), ..spec() });
        for _ in 0..50 {
            call(&b, 0, false, 1).unwrap();
        }
        for _ in 0..49 {
            call(&b, 5_000 * MS, true, 1).unwrap();
        }
        assert_eq!(
            (state(&b), b.status(0).calls, b.status(0).failed),
            (Name::Closed, 99, 49),
            "more than window calls"
        );
        call(&b, 9_999 * MS, false, 1).unwrap();
        assert_eq!(b.status(0).calls, 100);
        call(&b, 10_000 * MS, true, 1).unwrap();
        assert_eq!(state(&b), Name::Open, "the good calls of 10 s ago are forgotten: 50 of 51 failed");
        let b = Breaker::new(spec::Breaker { window_time: Some(Duration::from_secs(10)), ..spec() });
        for i in 0..100 {
            call(&b, i * 5_000 * MS, i % 2 == 0, 1).unwrap();
        }
        assert_eq!((state(&b), b.status(0).calls), (Name::Closed, 2), "never four calls in the window");
    }

    #[test]
    fn slow_calls_open_it_too_unless_slowness_does_not_count() {
        let b = Breaker::new(spec());
        for _ in 0..4 {
            call(&b, 0, false, 101).unwrap();
        }
        assert_eq!(state(&b), Name::Open);
        let patient = Breaker::new(spec::Breaker { slow_call: None, slow_rate: 0.0, ..spec() });
        for _ in 0..100 {
            call(&patient, 0, false, 10_000).unwrap();
        }
        assert_eq!(state(&patient), Name::Closed);
    }

    fn opened() -> Breaker {
        let b = Breaker::new(spec());
        for _ in 0..4 {
            call(&b, 0, true, 1).unwrap();
        }
        assert_eq!(state(&b), Name::Open);
        b
    }

    #[test]
    fn half_open_takes_its_trials_judges_all_and_closes() {
        let b = opened();
        let t = 1_000 * MS;
        let trials: Vec<_> = (0..3).map(|_| b.admit(t).unwrap()).collect();
        assert_eq!(state(&b), Name::HalfOpen);
        assert!(b.admit(t).is_err(), "a fourth trial is one too many");
        for (i, p) in trials.into_iter().enumerate() {
            assert_eq!(state(&b), Name::HalfOpen);
            p.judge(t, i == 0, Duration::ZERO);
        }
        assert_eq!(state(&b), Name::Closed, "one of three failed");
        assert_eq!(b.status(t).calls, 0, "with an empty window");
    }

    #[test]
    fn failed_trials_open_it_again() {
        let b = opened();
        let t = 1_000 * MS;
        for failed in [true, false, true] {
            call(&b, t, failed, 1).unwrap();
        }
        assert_eq!((state(&b), b.status(t).opened), (Name::Open, 2));
        assert!(b.admit(t + 999 * MS).is_err());
        assert!(b.admit(t + 1_000 * MS).is_ok());
    }

    #[test]
    fn a_trial_given_up_is_handed_to_the_next_caller() {
        let b = opened();
        let t = 1_000 * MS;
        let trials: Vec<_> = (0..3).map(|_| b.admit(t).unwrap()).collect();
        drop(trials);
        assert_eq!(state(&b), Name::HalfOpen);
        for _ in 0..3 {
            call(&b, t, false, 1).unwrap();
        }
        assert_eq!(state(&b), Name::Closed);
    }

    #[test]
    fn trials_that_never_answer_do_not_hold_it_half_open_for_ever() {
        let b = opened();
        let t = 1_000 * MS;
        let _hung: Vec<_> = (0..3).map(|_| b.admit(t).unwrap()).collect();
        let later = t + limits::BREAKER_TRIAL.as_nanos() as u64;
        assert!(b.admit(later).is_err());
        assert_eq!(state(&b), Name::Open);
        assert!(b.admit(later + 1_000 * MS).is_ok());
    }

    #[test]
    fn late_answers_from_before_it_opened_count_nowhere() {
        let b = Breaker::new(spec());
        let late: Vec<_> = (0..5).map(|_| b.admit(0).unwrap()).collect();
        for _ in 0..4 {
            call(&b, 0, true, 1).unwrap();
        }
        let t = 1_000 * MS;
        let trial = b.admit(t).unwrap();
        for p in late {
            p.judge(t, true, Duration::ZERO);
        }
        assert_eq!((state(&b), b.status(t).calls), (Name::HalfOpen, 0));
        trial.judge(t, false, Duration::ZERO);
        assert_eq!(b.status(t).calls, 1);
    }

    #[test]
    fn many_threads_never_exceed_the_trials_and_lose_no_verdict() {
        let b = Breaker::new(spec::Breaker { window: 1_000, min_calls: 1_000, ..spec() });
        std::thread::scope(|s| {
            for _ in 0..4 {
                s.spawn(|| (0..250).for_each(|i| call(&b, 0, i % 5 == 0, 1).unwrap()));
            }
        });
        let s = b.status(0);
        assert_eq!((s.calls, s.failed, s.state), (1_000, 200, Name::Closed));

        let b = opened();
        let admitted: usize = std::thread::scope(|s| {
            let t: Vec<_> = (0..4)
                .map(|_| s.spawn(|| (0..100).filter_map(|_| b.admit(1_000 * MS).ok()).map(std::mem::forget).count()))
                .collect();
            t.into_iter().map(|t| t.join().unwrap()).sum()
        });
        assert_eq!(admitted, 3);
    }

    #[derive(Clone, Debug)]
    enum Do {
        Wait(u64),
        Admit,
        Judge(usize, bool, bool),
        Abandon(usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Do>> {
        let one = prop_oneof![
            1 => (0..1_500 * MS).prop_map(Do::Wait),
            4 => Just(Do::Admit),
            4 => (any::<usize>(), any::<bool>(), any::<bool>()).prop_map(|(i, f, s)| Do::Judge(i, f, s)),
            1 => any::<usize>().prop_map(Do::Abandon),
        ];
        proptest::collection::vec(one, 0..400)
    }

    proptest! {
        /// Against a model that keeps every verdict of the current state in a list.
        #[test]
        fn the_machine_keeps_its_rules_under_any_history(steps in steps()) {
            let spec = spec();
            let mut m = Machine::new(spec);
            let (mut now, mut flight, mut seen) = (0u64, Vec::<u64>::new(), Vec::<(bool, bool)>::new());
            for step in steps {
                let (before, generation) = (m.state(), m.generation());
                match step {
                    Do::Wait(d) => now += d,
                    Do::Admit => match m.apply(now, Event::Admit) {
                        Effect::Admitted { generation } => {
                            prop_assert_eq!(generation, m.generation());
                            if let State::Open { until } = before {
                                prop_assert!(now >= until, "let through while open");
                            }
                            flight.push(generation);
                        }
                        Effect::Refused { retry_after } => {
                            prop_assert!(retry_after > 0);
                            prop_assert!(!matches!(before, State::Closed), "refused while closed");
                        }
                        Effect::Noted => prop_assert!(false, "an admission was not answered"),
                    },
                    Do::Judge(i, failed, slow) if !flight.is_empty() => {
                        let g = flight.swap_remove(i % flight.len());
                        m.apply(now, Event::Judge { generation: g, failed, slow });
                        if g == generation {
                            seen.push((failed, slow));
                            let last = &seen[seen.len().saturating_sub(spec.window as usize)..];
                            let share = |n: usize| n as f64 / last.len() as f64;
                            let bad = share(last.iter().filter(|s| s.0).count()) >= spec.failure_rate
                                || share(last.iter().filter(|s| s.1).count()) >= spec.slow_rate;
                            let expected = match before {
                                State::Closed if last.len() < spec.min_calls as usize => Name::Closed,
                                State::Closed if bad && (failed || slow) => Name::Open,
                                State::Closed => Name::Closed,
                                State::HalfOpen { .. } if last.len() < spec.half_open_calls as usize => Name::HalfOpen,
                                State::HalfOpen { .. } if bad => Name::Open,
                                State::HalfOpen { .. } => Name::Closed,
                                State::Open { .. } => Name::Open,
                            };
                            let got = match m.state() {
                                State::Closed => Name::Closed,
                                State::Open { .. } => Name::Open,
                                State::HalfOpen { .. } => Name::HalfOpen,
                            };
                            prop_assert_eq!(got, expected);
                        } else {
                            prop_assert_eq!(m.state(), before, "a late verdict changed something");
                        }
                    }
                    Do::Abandon(i) if !flight.is_empty() => {
                        let g = flight.swap_remove(i % flight.len());
                        m.apply(now, Event::Abandon { generation: g });
                    }
                    Do::Judge(..) | Do::Abandon(..) => {}
                }
                if m.generation() != generation {
                    seen.clear();
                }
                if let State::HalfOpen { admitted, judged, failed, slow, .. } = m.state() {
                    let here = flight.iter().filter(|g| **g == m.generation()).count() as u32;
                    prop_assert_eq!(admitted, here + judged, "a trial was lost");
                    prop_assert!(admitted <= spec.half_open_calls);
                    prop_assert!(judged < spec.half_open_calls && failed <= judged && slow <= judged);
                }
                let (calls, failed, slow) = m.window();
                prop_assert!(calls <= spec.window && failed <= calls && slow <= calls);
            }
        }
    }
}
