//! The machine against a model of participants that keep the contract: an action is idempotent by its key, a
//! compensation may come before or without its action and makes a later action a no-op.
//!
//! A [`Script`] decides everything that can differ: outcomes, order, crashes, late deliveries. The exhaustive tests try
//! every script of small sagas; the property test tries random ones of larger sagas. Once a script is used up all goes
//! well, so that every run must end.

use super::*;
use proptest::prelude::*;
use serde_json::json;

/// Decisions: `pick(n)` answers below `n`. Remembers how many options there were, to enumerate all scripts.
struct Script {
    picks: Vec<usize>,
    options: Vec<usize>,
    at: usize,
}

impl Script {
    fn new(picks: Vec<usize>) -> Self {
        Self { picks, options: Vec::new(), at: 0 }
    }

    /// `None` once used up.
    fn pick(&mut self, n: usize) -> Option<usize> {
        let p = self.picks.get(self.at)? % n;
        self.options.push(n);
        self.at += 1;
        Some(p)
    }

    /// The next script of the same length, like an odometer; `None` after the last.
    fn next(mut self) -> Option<Vec<usize>> {
        self.picks.truncate(self.options.len());
        let len = self.picks.len();
        for i in (0..len).rev() {
            if self.picks[i] + 1 < self.options[i] {
                self.picks[i] += 1;
                self.picks[i + 1..].fill(0);
                return Some(self.picks);
            }
        }
        None
    }
}

#[derive(Clone, Default)]
struct Participant {
    effect: bool,
    undone: bool,
    /// An attempt was made that was not proved to have had no effect.
    possible: bool,
    /// An attempt ended without anybody knowing how.
    doubt: bool,
    sent: u32,
    /// Attempts that were proved not done, or asked for by an operator.
    excused: u32,
}

impl Participant {
    fn deliver(&mut self, undo: bool) {
        if undo {
            self.effect = false;
            self.undone = true;
        } else if !self.undone {
            self.effect = true;
        }
    }
}

struct World<'a> {
    plan: &'a Plan,
    state: State,
    durable: State,
    in_flight: Vec<WorkId>,
    timers: Vec<WorkId>,
    /// Requests that a crash left on the wire: they may still arrive.
    ghosts: Vec<WorkId>,
    parties: Vec<Participant>,
    clock: u64,
    deadlines: u32,
    aborts: u32,
    crashes: u32,
}

const CALL_OUTCOMES: usize = 6;

impl<'a> World<'a> {
    fn new(plan: &'a Plan) -> Self {
        let state = State::new(plan);
        let durable = state.clone();
        let parties = vec![Participant::default(); plan.steps.len()];
        Self {
            plan,
            state,
            durable,
            in_flight: vec![],
            timers: vec![],
            ghosts: vec![],
            parties,
            clock: 0,
            deadlines: 0,
            aborts: 0,
            crashes: 0,
        }
    }

    /// A transition: applied, made durable, carried out.
    fn event(&mut self, e: Event) {
        self.clock += 1;
        if e == Event::Retry {
            self.parties.iter_mut().for_each(|p| p.excused += 1);
        }
        let actions = apply(self.plan, &mut self.state, e, Timestamp(self.clock));
        self.durable.clone_from(&self.state);
        for a in actions {
            match a {
                Action::Begin(id) => self.send(id),
                Action::Later(id, _) => self.timers.push(id),
            }
        }
        self.check();
    }

    fn send(&mut self, id: WorkId) {
        let p = &mut self.parties[id.step];
        if id.undo {
            assert!(p.possible, "compensation of step {} without an attempted action", id.step);
            let stage = self.stage_of(id.step);
            for later in self.plan.stages[stage + 1..].iter().cloned().flatten() {
                let undo = self.state.steps[later].undo.status;
                let owed = self.parties[later].possible && self.plan.steps[later].undoable;
                assert!(!owed || undo == Status::Done, "step {} undone before later step {later}", id.step);
            }
        } else {
            p.possible = true;
            p.sent += 1;
            if !self.plan.steps[id.step].repeatable {
                assert!(p.sent <= 1 + p.excused, "a step that may not be repeated was");
            }
        }
        self.in_flight.push(id);
    }

    fn stage_of(&self, step: usize) -> usize {
        self.plan.stages.iter().position(|r| r.contains(&step)).unwrap()
    }

    fn check(&self) {
        let s = &self.state;
        match s.phase {
            Phase::Forward | Phase::Compensating => {
                assert!(!self.in_flight.is_empty() || !self.timers.is_empty(), "nothing will ever move it: {s:?}");
            }
            Phase::ParkedForward | Phase::ParkedCompensating => {
                assert!(s.parked.as_ref().is_some_and(|p| !p.is_empty()), "parked without a reason: {s:?}");
                assert!(self.in_flight.is_empty(), "parked with work under way: {s:?}");
            }
            Phase::Completed => {
                assert!(s.steps.iter().all(|s| matches!(s.action.status, Status::Done | Status::Skipped)), "{s:?}");
                assert!(s.steps.iter().all(|s| s.undo.status == Status::Pending), "{s:?}");
            }
            Phase::Compensated => {
                assert!(s.cause.is_some());
                for (i, p) in self.parties.iter().enumerate() {
                    if p.possible && self.plan.steps[i].undoable {
                        assert_eq!(s.steps[i].undo.status, Status::Done, "step {i} may have taken effect: {s:?}");
                    }
                }
            }
        }
    }

    /// The process dies: what was in memory is gone, what was sent may still arrive.
    fn crash(&mut self, sent: bool) {
        let lost = std::mem::take(&mut self.in_flight);
        lost.iter().filter(|id| !id.undo).for_each(|id| self.parties[id.step].doubt = true);
        if sent {
            self.ghosts.extend(lost);
        }
        self.timers.clear();
        let stored = serde_json::to_string(&self.durable).unwrap();
        self.state = serde_json::from_str(&stored).unwrap();
        self.crashes += 1;
        self.event(Event::Run);
    }

    fn answer(&mut self, id: WorkId, outcome: usize) {
        self.in_flight.retain(|w| *w != id);
        let p = &mut self.parties[id.step];
        p.doubt |= outcome > 2 && !id.undo;
        // Refused at last, after a try inside the attempt that did take effect.
        let doubt = outcome == 5;
        let outcome = match outcome {
            0 => {
                p.deliver(id.undo);
                Outcome::Done(Arc::new(json!(id.step)))
            }
            1 => Outcome::Refused("refused".into()),
            2 => Outcome::NotDone("busy".into()),
            3 => Outcome::Unknown("timeout".into()),
            4 => {
                p.deliver(id.undo);
                Outcome::Unknown("timeout".into())
            }
            _ => {
                p.deliver(id.undo);
                Outcome::Refused("in progress".into())
            }
        };
        let proved = matches!(outcome, Outcome::Refused(_) | Outcome::NotDone(_));
        if proved && !id.undo {
            p.excused += 1;
            // Only when no earlier attempt is in doubt does a refusal prove that nothing happened.
            p.possible = p.doubt;
        }
        self.event(Event::Answered(id, outcome, doubt));
    }

    /// One scripted turn; false when the script is used up or nothing is left to decide.
    fn turn(&mut self, script: &mut Script) -> bool {
        let mut moves: Vec<Move> = Vec::new();
        for id in &self.in_flight {
            moves.extend((0..CALL_OUTCOMES).map(|o| Move::Answer(*id, o)));
        }
        moves.extend(self.timers.iter().map(|t| Move::Wake(*t)));
        moves.extend(self.ghosts.iter().map(|g| Move::Ghost(*g)));
        if self.state.phase.is_active() {
            if self.deadlines == 0 {
                moves.push(Move::Deadline);
            }
            if self.aborts == 0 {
                moves.push(Move::Abort);
            }
            if self.crashes < 2 {
                moves.extend([Move::Crash(false), Move::Crash(true)]);
                // The answer came, and the process died before it was written down.
                moves.extend(self.in_flight.iter().map(|id| Move::AnswerThenCrash(*id)));
            }
        } else if self.state.phase.is_parked() {
            moves.extend([Move::Retry, Move::Abort]);
        }
        if moves.is_empty() {
            return false;
        }
        let Some(pick) = script.pick(moves.len()) else { return false };
        self.go(moves[pick]);
        true
    }

    fn go(&mut self, m: Move) {
        match m {
            Move::Answer(id, o) => self.answer(id, o),
            Move::AnswerThenCrash(id) => {
                self.parties[id.step].deliver(id.undo);
                self.crash(false);
            }
            Move::Wake(id) => {
                self.timers.retain(|t| *t != id);
                self.event(Event::Wake(id));
            }
            Move::Ghost(id) => {
                self.ghosts.retain(|g| *g != id);
                self.parties[id.step].deliver(id.undo);
            }
            Move::Deadline => {
                self.deadlines += 1;
                self.event(Event::Deadline);
            }
            Move::Abort => {
                self.aborts += 1;
                self.event(Event::Abort("cancelled".into()));
            }
            Move::Retry => self.event(Event::Retry),
            Move::Crash(sent) => self.crash(sent),
        }
    }

    /// All goes well from here, an operator lets parked instances go on, and what is on the wire arrives last.
    fn finish(&mut self) {
        for _ in 0..10_000 {
            if let Some(id) = self.in_flight.first().copied() {
                self.answer(id, 0);
            } else if let Some(t) = self.timers.first().copied() {
                self.go(Move::Wake(t));
            } else if self.state.phase.is_parked() {
                self.event(Event::Retry);
            } else {
                break;
            }
        }
        assert!(self.state.phase.is_ended(), "it did not end: {:?}", self.state);
        while let Some(g) = self.ghosts.pop() {
            self.parties[g.step].deliver(g.undo);
        }
        for (i, p) in self.parties.iter().enumerate() {
            let (s, undoable) = (&self.state.steps[i], self.plan.steps[i].undoable);
            match self.state.phase {
                Phase::Completed => assert_eq!(p.effect, s.action.status == Status::Done, "step {i}"),
                _ if undoable => assert!(!p.effect, "step {i} left its effect behind: {:?}", self.state),
                _ => {}
            }
        }
    }
}

#[derive(Clone, Copy)]
enum Move {
    Answer(WorkId, usize),
    AnswerThenCrash(WorkId),
    Wake(WorkId),
    Ghost(WorkId),
    Deadline,
    Abort,
    Retry,
    Crash(bool),
}

const STEP: StepPlan = StepPlan { undoable: true, repeatable: true, undo_repeatable: true };

fn plan(stages: &[&[StepPlan]]) -> Plan {
    let mut p = Plan::default();
    for s in stages {
        let from = p.steps.len();
        p.steps.extend_from_slice(s);
        p.stages.push(from..p.steps.len());
    }
    p
}

fn run(plan: &Plan, mut script: Script) -> (State, Script) {
    let mut w = World::new(plan);
    w.event(Event::Run);
    while w.turn(&mut script) {}
    w.finish();
    (w.state, script)
}

/// Every script of a length, over every decision there is.
fn exhaust(plan: &Plan, depth: usize) -> usize {
    let (mut picks, mut runs) = (vec![0; depth], 0);
    loop {
        let (_, script) = run(plan, Script::new(picks));
        runs += 1;
        match script.next() {
            Some(mut p) => {
                p.resize(depth, 0);
                picks = p;
            }
            None => return runs,
        }
    }
}

#[test]
fn all_goes_well_and_it_completes_in_order() {
    let p = plan(&[&[STEP], &[STEP, STEP], &[STEP]]);
    let mut s = State::new(&p);
    let now = Timestamp(1);
    let done = |i| Event::Answered(WorkId::action(i), Outcome::Done(Arc::new(json!(i))), false);
    assert_eq!(apply(&p, &mut s, Event::Run, now), [Action::Begin(WorkId::action(0))]);
    let both = [Action::Begin(WorkId::action(1)), Action::Begin(WorkId::action(2))];
    assert_eq!(apply(&p, &mut s, done(0), now), both);
    assert_eq!(apply(&p, &mut s, done(2), now), []);
    assert_eq!(apply(&p, &mut s, done(1), now), [Action::Begin(WorkId::action(3))]);
    assert_eq!(apply(&p, &mut s, done(3), now), []);
    assert_eq!(s.phase, Phase::Completed);
    assert_eq!(s.steps[2].result, Some(Arc::new(json!(2))));
}

#[test]
fn failing_every_step_in_turn_compensates_those_before_it_last_first() {
    for failing in 0..5 {
        let p = plan(&[&[STEP], &[STEP], &[STEP, STEP], &[STEP]]);
        let mut w = World::new(&p);
        w.event(Event::Run);
        let mut undone = Vec::new();
        while let Some(id) = w.in_flight.first().copied() {
            if id.undo {
                undone.push(id.step);
            }
            w.answer(id, usize::from(id.step == failing && !id.undo));
        }
        assert_eq!(w.state.phase, Phase::Compensated, "failing {failing}");
        assert_eq!(w.state.cause.as_deref(), Some("refused"));
        let expect: &[usize] = match failing {
            0 => &[],
            1 => &[0],
            2 => &[3, 1, 0],
            3 => &[2, 1, 0],
            _ => &[2, 3, 1, 0],
        };
        assert_eq!(undone, expect, "failing {failing}");
        w.finish();
    }
}

#[test]
fn repeating_every_step_takes_effect_once() {
    for repeated in 0..4 {
        let p = plan(&[&[STEP], &[STEP, STEP], &[STEP]]);
        let mut w = World::new(&p);
        w.event(Event::Run);
        let mut repeats = 0;
        loop {
            if let Some(id) = w.in_flight.first().copied() {
                let again = id.step == repeated && repeats < 3;
                repeats += u32::from(again);
                w.answer(id, if again { 4 } else { 0 });
            } else if let Some(t) = w.timers.first().copied() {
                w.go(Move::Wake(t));
            } else {
                break;
            }
        }
        assert_eq!(w.state.phase, Phase::Completed);
        assert_eq!(w.state.steps[repeated].action.attempts, 4);
        w.finish();
    }
}

#[test]
fn a_crash_after_any_transition_ends_like_no_crash() {
    let p = plan(&[&[STEP], &[STEP, STEP], &[STEP]]);
    for failing in 0..=4 {
        for crash_at in 0..16 {
            for sent in [false, true] {
                let mut w = World::new(&p);
                w.event(Event::Run);
                let mut transitions = 0;
                loop {
                    transitions += 1;
                    if transitions == crash_at && w.state.phase.is_active() {
                        w.crash(sent);
                    }
                    if let Some(id) = w.in_flight.first().copied() {
                        w.answer(id, usize::from(id.step == failing && !id.undo));
                    } else if let Some(t) = w.timers.first().copied() {
                        w.go(Move::Wake(t));
                    } else {
                        break;
                    }
                }
                let want = if failing == 4 { Phase::Completed } else { Phase::Compensated };
                assert_eq!(w.state.phase, want, "failing {failing}, crash at {crash_at}");
                w.finish();
            }
        }
    }
}

#[test]
fn every_script_of_small_sagas_keeps_the_invariants() {
    let once = StepPlan { repeatable: false, ..STEP };
    let undo_once = StepPlan { undo_repeatable: false, ..STEP };
    let no_undo = StepPlan { undoable: false, ..STEP };
    let mut runs = 0;
    runs += exhaust(&plan(&[&[STEP]]), 5);
    for p in [
        plan(&[&[STEP], &[STEP]]),
        plan(&[&[STEP], &[once]]),
        plan(&[&[undo_once], &[STEP]]),
        plan(&[&[no_undo], &[STEP]]),
        plan(&[&[STEP, STEP]]),
        plan(&[&[STEP, once]]),
        plan(&[&[once, undo_once]]),
    ] {
        runs += exhaust(&p, 4);
    }
    assert!(runs > 50_000, "only {runs} scripts: the enumeration is broken");
}

#[test]
fn an_unknown_outcome_is_retried_until_the_deadline_and_then_compensated() {
    let p = plan(&[&[STEP]]);
    let mut w = World::new(&p);
    w.event(Event::Run);
    for _ in 0..20 {
        w.answer(WorkId::action(0), 3);
        w.go(Move::Wake(WorkId::action(0)));
    }
    w.answer(WorkId::action(0), 3);
    w.go(Move::Deadline);
    assert_eq!(w.state.steps[0].action.status, Status::Unknown);
    assert_eq!(w.in_flight, [WorkId::undo(0)]);
    w.answer(WorkId::undo(0), 0);
    assert_eq!(w.state.phase, Phase::Compensated);
    assert_eq!(w.state.cause.as_deref(), Some("the saga's deadline passed"));
}

#[test]
fn a_refusal_after_an_attempt_in_doubt_is_compensated() {
    let p = plan(&[&[STEP]]);
    let mut w = World::new(&p);
    w.event(Event::Run);
    w.answer(WorkId::action(0), 3);
    w.go(Move::Wake(WorkId::action(0)));
    w.answer(WorkId::action(0), 1);
    assert_eq!(w.in_flight, [WorkId::undo(0)], "the first attempt may still take effect");
}

#[test]
fn a_step_never_sent_until_the_deadline_is_not_compensated() {
    let p = plan(&[&[STEP], &[STEP]]);
    let mut w = World::new(&p);
    w.event(Event::Run);
    w.answer(WorkId::action(0), 0);
    w.answer(WorkId::action(1), 2);
    w.go(Move::Deadline);
    assert_eq!(w.state.steps[1].action.status, Status::Failed);
    assert_eq!(w.in_flight, [WorkId::undo(0)]);
}

#[test]
fn an_unknown_outcome_that_may_not_be_repeated_parks_and_an_operator_decides() {
    let p = plan(&[&[STEP], &[StepPlan { repeatable: false, ..STEP }]]);
    for cancel in [false, true] {
        let mut w = World::new(&p);
        w.event(Event::Run);
        w.answer(WorkId::action(0), 0);
        w.answer(WorkId::action(1), 4);
        assert_eq!(w.state.phase, Phase::ParkedForward);
        assert!(w.state.parked.as_ref().unwrap().contains("timeout"));
        w.event(if cancel { Event::Abort("cancelled".into()) } else { Event::Retry });
        let next = if cancel { WorkId::undo(1) } else { WorkId::action(1) };
        assert_eq!(w.in_flight, [next]);
        w.finish();
        assert_eq!(w.state.phase, if cancel { Phase::Compensated } else { Phase::Completed });
    }
}

#[test]
fn a_compensation_that_keeps_failing_parks_after_its_rounds_and_goes_on_when_retried() {
    let p = plan(&[&[STEP], &[STEP]]);
    let mut w = World::new(&p);
    w.event(Event::Run);
    w.answer(WorkId::action(0), 0);
    w.answer(WorkId::action(1), 1);
    for round in 1..=limits::SAGA_COMPENSATION_ROUNDS {
        assert_eq!(w.state.phase, Phase::Compensating, "round {round}");
        w.answer(WorkId::undo(0), 2);
        if round < limits::SAGA_COMPENSATION_ROUNDS {
            w.go(Move::Wake(WorkId::undo(0)));
        }
    }
    assert_eq!(w.state.phase, Phase::ParkedCompensating);
    assert_eq!(w.state.parked.as_deref(), Some("a compensation failed: busy"));
    w.event(Event::Retry);
    w.answer(WorkId::undo(0), 0);
    assert_eq!(w.state.phase, Phase::Compensated);
    assert_eq!(w.state.cause.as_deref(), Some("refused"), "parking does not hide why it compensates");
}

#[test]
fn cancelling_awaits_what_is_under_way_and_then_compensates() {
    let p = plan(&[&[STEP], &[STEP]]);
    let mut w = World::new(&p);
    w.event(Event::Run);
    w.answer(WorkId::action(0), 0);
    w.go(Move::Abort);
    assert_eq!(w.in_flight, [WorkId::action(1)]);
    w.answer(WorkId::action(1), 0);
    assert_eq!(w.in_flight, [WorkId::undo(1)]);
    w.finish();
    assert_eq!(w.state.phase, Phase::Compensated);
}

#[test]
fn skipped_steps_are_neither_done_nor_undone() {
    let p = plan(&[&[STEP], &[STEP]]);
    let mut s = State::new(&p);
    apply(&p, &mut s, Event::Run, Timestamp(1));
    let out = apply(&p, &mut s, Event::Skipped(0), Timestamp(1));
    assert_eq!(out, [Action::Begin(WorkId::action(1))]);
    let out = apply(&p, &mut s, Event::Answered(WorkId::action(1), Outcome::Refused("no".into()), false), Timestamp(1));
    assert_eq!(out, []);
    assert_eq!(s.phase, Phase::Compensated);
    assert_eq!(s.steps[0].undo.status, Status::Skipped);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3_000, ..ProptestConfig::default() })]
    #[test]
    fn random_orders_of_events_keep_the_invariants(
        shape in prop::collection::vec(prop::collection::vec((any::<bool>(), 0..4u8, 0..4u8), 1..4), 1..5),
        picks in prop::collection::vec(0..1_000usize, 0..60),
    ) {
        let stages: Vec<Vec<StepPlan>> = shape
            .iter()
            .map(|s| s.iter().map(|(u, r, c)| StepPlan { undoable: *u, repeatable: *r > 0, undo_repeatable: *c > 0 }).collect())
            .collect();
        let refs: Vec<&[StepPlan]> = stages.iter().map(Vec::as_slice).collect();
        run(&plan(&refs), Script::new(picks));
    }
}
