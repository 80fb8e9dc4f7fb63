//! The machine by itself: each transition, then any sequence of them against a model.

use proptest::prelude::*;

use super::*;

const T0: Timestamp = Timestamp(1_000_000);
const LEASE: Duration = Duration::from_secs(30);

struct Bench {
    state: State,
    now: Timestamp,
}

fn bench(mode: SubscriptionMode, attempts: u32) -> Bench {
    let redelivery =
        Redelivery { attempts, backoff_min: Duration::from_millis(100), backoff_max: Duration::from_secs(1) };
    Bench { state: State::new(Rules { mode, redelivery }), now: T0 }
}

fn shared() -> Bench {
    bench(SubscriptionMode::Shared, 3)
}

impl Bench {
    fn apply(&mut self, e: Event) -> (bool, Vec<Action>) {
        let mut out = Vec::new();
        let did = self.state.apply(self.now, e, &mut out);
        (did, out)
    }

    fn load(&mut self, seq: Seq, key: Option<u64>) {
        assert!(self.apply(Event::Load { seq, key, attempts: 0, not_before: Timestamp(0) }).0);
    }

    fn take(&mut self, max: usize) -> Vec<(Seq, u32)> {
        self.deliveries(Event::Take { max, lease: LEASE })
    }

    fn deliveries(&mut self, e: Event) -> Vec<(Seq, u32)> {
        let (_, actions) = self.apply(e);
        actions
            .into_iter()
            .filter_map(|a| match a {
                Action::Deliver { seq, attempt } => Some((seq, attempt)),
                _ => None,
            })
            .collect()
    }

    fn settle(&mut self, seq: Seq) {
        assert!(self.apply(Event::Settle { seq }).0);
        assert!(self.apply(Event::Settled { seq }).0);
    }

    fn nack(&mut self, seq: Seq, attempt: u32) -> (bool, Vec<Action>) {
        self.apply(Event::Nack { seq, attempt, delay: None, reason: None, dead: false })
    }

    fn wait(&mut self, d: Duration) -> Vec<Action> {
        self.now = self.now.plus(d);
        self.apply(Event::Tick).1
    }
}

#[test]
fn messages_are_delivered_in_order_and_each_delivery_is_journalled() {
    let mut b = shared();
    (1..=3).for_each(|s| b.load(s, None));
    let (_, actions) = b.apply(Event::Take { max: 2, lease: LEASE });
    let none = Timestamp(0);
    assert_eq!(
        actions,
        [
            Action::Journal { seq: 1, attempts: 1, not_before: none },
            Action::Deliver { seq: 1, attempt: 1 },
            Action::Journal { seq: 2, attempts: 1, not_before: none },
            Action::Deliver { seq: 2, attempt: 1 },
        ]
    );
    assert_eq!(b.state.counts(), Counts { ready: 1, in_flight: 2, delayed: 0 });
}

#[test]
fn a_record_loaded_twice_is_there_once() {
    let mut b = shared();
    b.load(1, None);
    assert!(!b.apply(Event::Load { seq: 1, key: None, attempts: 0, not_before: Timestamp(0) }).0);
    assert_eq!(b.take(10), [(1, 1)]);
}

#[test]
fn an_ended_lease_delivers_again_and_the_last_one_buries() {
    let mut b = shared();
    b.load(1, None);
    for attempt in 1..=3 {
        assert_eq!(b.take(1), [(1, attempt)]);
        assert_eq!(b.state.next_timer(), Some(b.now.plus(LEASE)));
        let actions = b.wait(LEASE);
        assert_eq!(actions.is_empty(), attempt < 3);
        if attempt == 3 {
            assert!(matches!(&actions[..], [Action::Bury { seq: 1, attempts: 3, .. }]));
        }
    }
    assert!(b.take(1).is_empty(), "it is on its way to the dead-letter queue");
    assert_eq!(b.state.counts().in_flight, 1);
    assert!(b.apply(Event::Settled { seq: 1 }).0);
    assert_eq!(b.state.counts(), Counts::default());
}

#[test]
fn a_burial_that_failed_is_tried_again() {
    let mut b = bench(SubscriptionMode::Shared, 1);
    b.load(1, None);
    b.take(1);
    assert!(matches!(&b.nack(1, 1).1[..], [Action::Bury { seq: 1, .. }]));
    assert!(b.apply(Event::Unsettled { seq: 1 }).0);
    assert!(b.take(1).is_empty(), "its attempts are used up");
    assert!(matches!(&b.wait(Duration::from_secs(1))[..], [Action::Bury { seq: 1, attempts: 1, .. }]));
}

#[test]
fn a_nack_backs_off_exponentially_and_only_under_its_own_lease() {
    let mut b = bench(SubscriptionMode::Shared, 9);
    b.load(1, None);
    for (attempt, ms) in [(1, 100), (2, 200), (3, 400), (4, 800), (5, 1000), (6, 1000)] {
        assert_eq!(b.take(1), [(1, attempt)]);
        assert!(!b.nack(1, attempt + 1).0);
        let (did, actions) = b.nack(1, attempt);
        let not_before = b.now.plus(Duration::from_millis(ms));
        assert!(did);
        assert_eq!(actions, [Action::Journal { seq: 1, attempts: attempt, not_before }]);
        assert!(!b.nack(1, attempt).0, "given back already");
        b.wait(Duration::from_millis(ms - 1));
        assert!(b.take(1).is_empty());
        b.wait(Duration::from_millis(1));
    }
}

#[test]
fn backoff_never_overflows() {
    let r = Redelivery { attempts: 1, backoff_min: Duration::from_secs(1 << 40), backoff_max: Duration::MAX };
    for attempts in [0, 1, 2, 31, 32, 33, 64, u32::MAX] {
        assert!(backoff(&r, attempts) >= r.backoff_min);
    }
}

#[test]
fn a_released_delivery_counts_no_attempt() {
    let mut b = shared();
    b.load(1, None);
    b.take(1);
    let (did, actions) = b.apply(Event::Release { seq: 1, attempt: 1 });
    assert_eq!((did, actions), (true, vec![Action::Journal { seq: 1, attempts: 0, not_before: Timestamp(0) }]));
    assert!(!b.apply(Event::Release { seq: 1, attempt: 1 }).0);
    assert_eq!(b.take(1), [(1, 1)]);
}

#[test]
fn an_extended_lease_ends_later_and_an_ended_one_cannot_be_extended() {
    let mut b = shared();
    b.load(1, None);
    b.take(1);
    b.wait(LEASE - Duration::from_millis(1));
    assert!(b.apply(Event::Extend { seq: 1, attempt: 1, lease: LEASE }).0);
    b.wait(LEASE - Duration::from_millis(1));
    assert_eq!(b.state.standing(b.now, 1, 1), Standing::Current);
    b.now = b.now.plus(Duration::from_millis(1));
    assert_eq!(b.state.standing(b.now, 1, 1), Standing::Unsettled, "also before the tick");
    assert!(!b.apply(Event::Extend { seq: 1, attempt: 1, lease: LEASE }).0);
}

#[test]
fn what_is_being_settled_is_neither_delivered_nor_settled_twice() {
    let mut b = shared();
    b.load(1, None);
    b.take(1);
    assert!(b.apply(Event::Settle { seq: 1 }).0);
    assert!(!b.apply(Event::Settle { seq: 1 }).0);
    assert_eq!(b.state.standing(b.now, 1, 1), Standing::Settling);
    assert!(b.wait(LEASE * 2).is_empty());
    assert!(b.take(1).is_empty());
    assert!(b.apply(Event::Unsettled { seq: 1 }).0);
    b.wait(Duration::ZERO);
    assert_eq!(b.take(1), [(1, 2)], "its lease ended meanwhile");
}

#[test]
fn a_message_acknowledged_while_it_waits_for_its_key_lines_up_again_when_that_fails() {
    let mut b = bench(SubscriptionMode::KeyShared, 3);
    (1..=3).for_each(|s| b.load(s, Some(7)));
    assert_eq!(b.take(9), [(1, 1)]);
    assert!(b.apply(Event::Settle { seq: 3 }).0);
    b.settle(1);
    assert!(b.take(9).is_empty(), "3 is out");
    assert!(b.apply(Event::Unsettled { seq: 3 }).0);
    assert_eq!(b.take(9), [(2, 1)]);
    b.settle(2);
    assert_eq!(b.take(9), [(3, 1)]);
}

#[test]
fn keys_are_delivered_one_at_a_time_and_messages_without_a_key_freely() {
    let mut b = bench(SubscriptionMode::KeyShared, 3);
    for (seq, key) in [(1, Some(1)), (2, Some(1)), (3, None), (4, None), (5, Some(2))] {
        b.load(seq, key);
    }
    assert_eq!(b.take(9), [(1, 1), (3, 1), (4, 1), (5, 1)]);
    b.nack(1, 1);
    b.settle(5);
    assert!(b.take(9).is_empty(), "2 waits behind the backoff of 1");
    b.wait(Duration::from_millis(100));
    assert_eq!(b.take(9), [(1, 2)]);
    b.settle(1);
    assert_eq!(b.take(9), [(2, 1)]);
}

#[test]
fn exclusive_has_one_receiver_and_orders_messages_without_a_key_too() {
    let mut b = bench(SubscriptionMode::Exclusive, 3);
    for (seq, key) in [(1, None), (2, None), (3, Some(9))] {
        b.load(seq, key);
    }
    assert_eq!(b.take(9), [(1, 1), (3, 1)]);
    b.settle(1);
    assert!(b.take(9).is_empty());
    b.settle(3);
    assert_eq!(b.take(9), [(2, 1)]);
}

#[test]
fn a_delay_from_before_a_restart_holds_also_for_one_that_waited_for_its_key() {
    let mut b = bench(SubscriptionMode::KeyShared, 3);
    b.load(1, Some(1));
    let not_before = T0.plus(Duration::from_secs(5));
    b.apply(Event::Load { seq: 2, key: Some(1), attempts: 1, not_before });
    b.take(9);
    b.settle(1);
    assert!(b.take(9).is_empty());
    b.wait(Duration::from_secs(5));
    assert_eq!(b.take(9), [(2, 2)]);
}

#[test]
fn retention_takes_everything_below_wherever_it_is() {
    let mut b = bench(SubscriptionMode::KeyShared, 3);
    (1..=6).for_each(|s| b.load(s, Some(s % 2)));
    assert_eq!(b.take(1), [(1, 1)]);
    b.nack(1, 1);
    assert!(b.apply(Event::Trim { through: 4 }).0);
    assert!(!b.apply(Event::Trim { through: 4 }).0);
    assert_eq!(b.state.first(), Some(5));
    assert_eq!(b.take(9), [(5, 1), (6, 1)]);
    assert_eq!(b.state.counts(), Counts { ready: 0, in_flight: 2, delayed: 0 });
}

#[test]
fn deliveries_in_flight_stop_at_their_limit() {
    let mut b = shared();
    for seq in 1..=limits::DELIVERIES_IN_FLIGHT as u64 + 1 {
        b.load(seq, None);
    }
    assert_eq!(b.state.room(), 0);
    assert_eq!(b.take(usize::MAX).len(), limits::DELIVERIES_IN_FLIGHT);
    assert!(!b.state.is_deliverable());
    assert!(b.take(1).is_empty());
    b.settle(1);
    assert_eq!(b.take(10).len(), 1);
}

#[test]
fn delayed_messages_stop_the_loading_at_their_limit() {
    let mut b = shared();
    let not_before = T0.plus(LEASE);
    for seq in 1..=limits::DELAYED_MESSAGES as u64 {
        b.apply(Event::Load { seq, key: None, attempts: 0, not_before });
    }
    assert_eq!((b.state.room(), b.state.counts().delayed), (0, limits::DELAYED_MESSAGES));
}

#[test]
fn a_mode_that_changes_orders_what_is_not_out() {
    let mut b = shared();
    (1..=4).for_each(|s| b.load(s, Some(1)));
    assert_eq!(b.take(2), [(1, 1), (2, 1)]);
    b.state.set_rules(Rules { mode: SubscriptionMode::KeyShared, ..b.state.rules });
    assert!(b.take(9).is_empty(), "two of the key are out");
    b.settle(1);
    assert!(b.take(9).is_empty());
    b.settle(2);
    assert_eq!(b.take(9), [(3, 1)]);
    b.state.set_rules(Rules { mode: SubscriptionMode::Shared, ..b.state.rules });
    assert_eq!(b.take(9), [(4, 1)]);
}

/// One step of the property test; the numbers pick among what there is.
#[derive(Clone, Debug)]
enum Step {
    Load { key: Option<u64>, delay: u64 },
    Take(usize),
    Settle { pick: usize, works: bool },
    Begin(usize),
    End { pick: usize, works: bool },
    Nack { pick: usize, delay: Option<u64>, dead: bool },
    Release(usize),
    Extend(usize),
    Wait(u64),
    Trim(usize),
    Stale(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let pick = 0usize..64;
    prop_oneof![
        6 => (prop::option::weighted(0.8, 0u64..3), prop_oneof![4 => Just(0u64), 1 => 1u64..5_000])
            .prop_map(|(key, delay)| Step::Load { key, delay }),
        5 => (1usize..5).prop_map(Step::Take),
        3 => (pick.clone(), any::<bool>()).prop_map(|(pick, works)| Step::Settle { pick, works }),
        2 => pick.clone().prop_map(Step::Begin),
        2 => (pick.clone(), any::<bool>()).prop_map(|(pick, works)| Step::End { pick, works }),
        3 => (pick.clone(), prop::option::of(0u64..3_000), prop::bool::weighted(0.1))
            .prop_map(|(pick, delay, dead)| Step::Nack { pick, delay, dead }),
        1 => pick.clone().prop_map(Step::Release),
        1 => pick.clone().prop_map(Step::Extend),
        3 => (1u64..40_000).prop_map(Step::Wait),
        1 => pick.clone().prop_map(Step::Trim),
        1 => pick.prop_map(Step::Stale),
    ]
}

/// What must be true, worked out the slow way.
#[derive(Clone, Debug)]
struct Truth {
    key: Option<u64>,
    attempts: u32,
    not_before: Timestamp,
    leased_until: Option<Timestamp>,
    settling: bool,
    /// Settling because it is being buried.
    burying: bool,
    doomed: bool,
}

struct Model {
    b: Bench,
    live: BTreeMap<Seq, Truth>,
    last: Seq,
    mode: SubscriptionMode,
    max_attempts: u32,
    gone: u64,
}

impl Model {
    fn ordering(&self, key: Option<u64>) -> Option<u64> {
        match self.mode {
            SubscriptionMode::Shared => None,
            SubscriptionMode::KeyShared => key,
            SubscriptionMode::Exclusive => Some(key.unwrap_or(0)),
        }
    }

    fn is_out(&self, t: &Truth) -> bool {
        t.settling || t.doomed || t.leased_until.is_some_and(|u| u > self.b.now)
    }

    fn event(&mut self, e: Event) -> bool {
        let (did, actions) = self.b.apply(e);
        let taken_before: Vec<Seq> = self.live.iter().filter(|(_, t)| self.is_out(t)).map(|(s, _)| *s).collect();
        for a in actions {
            match a {
                Action::Deliver { seq, attempt } => self.delivered(seq, attempt, &taken_before),
                Action::Journal { seq, attempts, not_before } => {
                    let t = self.live.get_mut(&seq).expect("journals what is there");
                    assert!(attempts <= self.max_attempts);
                    t.attempts = attempts;
                    t.not_before = not_before;
                }
                Action::Bury { seq, attempts, .. } => {
                    let t = self.live.get_mut(&seq).expect("buries what is there");
                    assert_eq!(attempts, t.attempts);
                    assert!(!t.settling, "buried twice");
                    (t.settling, t.burying, t.doomed, t.leased_until) = (true, true, true, None);
                }
            }
        }
        did
    }

    fn delivered(&mut self, seq: Seq, attempt: u32, out_before: &[Seq]) {
        let t = self.live[&seq].clone();
        assert!(!t.settling && !t.doomed, "{seq} was on its way to disk");
        assert!(t.leased_until.is_none_or(|u| u <= self.b.now), "{seq} was leased");
        assert!(t.not_before <= self.b.now, "{seq} came before its instant");
        // The journal entry of this delivery came just before.
        assert_eq!(attempt, t.attempts, "attempts go up by one");
        if self.mode == SubscriptionMode::Exclusive {
            // One whose burial waits for its next try is in nobody's hands.
            let held = out_before.iter().filter(|o| !self.live[*o].doomed || self.live[*o].settling).count();
            assert_eq!(held, 0, "one receiver at a time");
        }
        if let Some(key) = self.ordering(t.key) {
            for (other, o) in self.live.range(..seq) {
                assert!(self.ordering(o.key) != Some(key), "{seq} overtook {other} of its key");
            }
            for other in out_before {
                // A later one that is acknowledged out of turn, late, is out but is in nobody's hands.
                let o = &self.live[other];
                let idle = o.settling && !o.burying && o.leased_until.is_none_or(|u| u <= self.b.now);
                assert!(idle || self.ordering(o.key) != Some(key), "{other} of the key is out");
            }
        }
        let until = self.b.now.plus(LEASE);
        self.live.get_mut(&seq).expect("just seen").leased_until = Some(until);
    }

    fn pick(&self, n: usize, what: impl Fn(&Truth) -> bool) -> Option<Seq> {
        let all: Vec<Seq> = self.live.iter().filter(|(_, t)| what(t)).map(|(s, _)| *s).collect();
        (!all.is_empty()).then(|| all[n % all.len()])
    }

    fn current(&self, n: usize) -> Option<(Seq, u32)> {
        let seq = self.pick(n, |t| !t.settling && t.leased_until.is_some_and(|u| u > self.b.now))?;
        Some((seq, self.live[&seq].attempts))
    }

    fn begin(&mut self, seq: Seq) {
        assert!(self.event(Event::Settle { seq }));
        self.live.get_mut(&seq).expect("picked").settling = true;
    }

    fn end(&mut self, seq: Seq, works: bool) {
        if works {
            assert!(self.event(Event::Settled { seq }));
            self.live.remove(&seq);
            self.gone += 1;
        } else {
            assert!(self.event(Event::Unsettled { seq }));
            let t = self.live.get_mut(&seq).expect("picked");
            (t.settling, t.burying) = (false, false);
        }
    }

    fn step(&mut self, s: Step) {
        match s {
            Step::Load { key, delay } => {
                self.last += 1;
                let not_before = if delay == 0 { Timestamp(0) } else { Timestamp(self.b.now.0 + delay) };
                let seq = self.last;
                let truth = Truth {
                    key,
                    attempts: 0,
                    not_before,
                    leased_until: None,
                    settling: false,
                    burying: false,
                    doomed: false,
                };
                self.live.insert(seq, truth);
                assert!(self.event(Event::Load { seq, key, attempts: 0, not_before }));
            }
            Step::Take(max) => {
                self.event(Event::Take { max, lease: LEASE });
            }
            Step::Settle { pick, works } => {
                if let Some(seq) = self.pick(pick, |t| !t.settling) {
                    self.begin(seq);
                    self.end(seq, works);
                }
            }
            Step::Begin(n) => {
                if let Some(seq) = self.pick(n, |t| !t.settling) {
                    self.begin(seq);
                }
            }
            Step::End { pick, works } => {
                if let Some(seq) = self.pick(pick, |t| t.settling) {
                    self.end(seq, works);
                }
            }
            Step::Nack { pick, delay, dead } => {
                if let Some((seq, attempt)) = self.current(pick) {
                    let delay = delay.map(Duration::from_millis);
                    assert!(self.event(Event::Nack { seq, attempt, delay, reason: None, dead }));
                    self.live.get_mut(&seq).expect("picked").leased_until = None;
                }
            }
            Step::Release(n) => {
                if let Some((seq, attempt)) = self.current(n) {
                    assert!(self.event(Event::Release { seq, attempt }));
                    self.live.get_mut(&seq).expect("picked").leased_until = None;
                }
            }
            Step::Extend(n) => {
                if let Some((seq, attempt)) = self.current(n) {
                    assert!(self.event(Event::Extend { seq, attempt, lease: LEASE }));
                    let until = self.b.now.plus(LEASE);
                    self.live.get_mut(&seq).expect("picked").leased_until = Some(until);
                }
            }
            Step::Wait(ms) => {
                self.b.now = Timestamp(self.b.now.0 + ms);
                self.event(Event::Tick);
            }
            Step::Trim(n) => {
                // Rarely more than the first few.
                let Some(through) = self.live.keys().nth(n % 4).copied() else { return };
                let keep = self.live.split_off(&(through + 1));
                self.gone += self.live.len() as u64;
                self.live = keep;
                assert!(self.event(Event::Trim { through }));
            }
            Step::Stale(n) => {
                let Some(seq) = self.pick(n, |_| true) else { return };
                let attempt = self.live[&seq].attempts + 1;
                assert!(!self.event(Event::Nack { seq, attempt, delay: None, reason: None, dead: true }));
                assert!(!self.event(Event::Release { seq, attempt }));
                assert!(!self.event(Event::Extend { seq, attempt, lease: LEASE }));
                assert!(
                    !self.event(Event::Settled { seq: self.last + 1 })
                        && !self.event(Event::Settle { seq: self.last + 1 })
                );
            }
        }
        self.agree();
    }

    /// The machine's indexes say what the model says.
    fn agree(&self) {
        let c = self.b.state.counts();
        assert_eq!(c.ready + c.in_flight + c.delayed, self.live.len(), "nothing is lost or doubled");
        assert_eq!(self.b.state.first(), self.live.keys().next().copied());
        for (seq, t) in &self.live {
            let standing = self.b.state.standing(self.b.now, *seq, t.attempts);
            let want = match t {
                t if t.settling => Standing::Settling,
                t if !t.doomed && t.leased_until.is_some_and(|u| u > self.b.now) => Standing::Current,
                _ => Standing::Unsettled,
            };
            assert_eq!(standing, want, "{seq}: {t:?}");
        }
    }

    /// Everything that is left is delivered or buried in the end.
    fn drain(&mut self) {
        for round in 0.. {
            assert!(round < 10_000, "stuck with {:?}", self.live);
            while let Some(seq) = self.pick(0, |t| t.settling) {
                self.end(seq, true);
            }
            if self.live.is_empty() {
                break;
            }
            self.event(Event::Take { max: 3, lease: LEASE });
            match self.current(0) {
                Some((seq, _)) => self.begin(seq),
                None => {
                    self.b.now = Timestamp(self.b.now.0 + 60_000);
                    self.event(Event::Tick);
                }
            }
            self.agree();
        }
        assert_eq!(self.gone, self.last);
        assert_eq!(self.b.state.counts(), Counts::default());
        assert!(self.b.state.keys.is_empty() && self.b.state.timers.is_empty() && self.b.state.ready.is_empty());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn any_course_of_events_keeps_leases_order_and_every_message(
        mode in prop_oneof![
            Just(SubscriptionMode::Shared),
            Just(SubscriptionMode::KeyShared),
            Just(SubscriptionMode::Exclusive)
        ],
        max_attempts in 1u32..5,
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let b = bench(mode, max_attempts);
        let mut m = Model { b, live: BTreeMap::new(), last: 0, mode, max_attempts, gone: 0 };
        for s in steps {
            m.step(s);
        }
        m.drain();
    }
}
