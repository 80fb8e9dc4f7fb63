//! The saga machine: `apply(plan, state, event) -> actions`. Pure: no clock, no I/O, no randomness.
//!
//! The caller makes the new state durable BEFORE it carries out the actions; then a crash at any moment loses nothing:
//! the state read back says what may have been sent, and [`Event::Run`] goes on from there.
//!
//! ```text
//! forward ──all stages done──▶ completed
//!    │  a step refused, the deadline, cancel
//!    ▼
//! compensating ──every attempted step undone, last first──▶ compensated
//!    both ──an outcome unknown that may not be repeated, or a compensation that fails for good──▶ parked ──retry──▶ back
//! ```
//!
//! Invariants: a compensation begins only for an action that began and was not proved undone; a stage begins only when
//! the one before it is settled; an ended instance is completed, or all its attempted steps with a compensation are
//! compensated; parked says why.

use std::ops::Range;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use weft_core::{Timestamp, limits};

/// What the machine knows of a definition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Groups of steps that run at once, in order.
    pub stages: Vec<Range<usize>>,
    /// By step.
    pub steps: Vec<StepPlan>,
}

/// What the machine knows of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepPlan {
    /// It has a compensation.
    pub undoable: bool,
    /// Its action may be sent again when its outcome is unknown.
    pub repeatable: bool,
    /// Its compensation may be sent again when its outcome is unknown.
    pub undo_repeatable: bool,
}

/// Where an instance stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Its phase.
    pub phase: Phase,
    /// The stage that runs, or that is being compensated.
    pub stage: usize,
    /// By step.
    pub steps: Vec<StepState>,
    /// Why it compensates.
    pub cause: Option<String>,
    /// What kind of reason that is.
    pub turned: Option<Turned>,
    /// Why it is parked.
    pub parked: Option<String>,
}

/// Why an instance turned from forward to compensating.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Turned {
    /// A step was refused: the request itself is not acceptable.
    Rejected,
    /// The time for the forward path was over.
    Deadline,
    /// Somebody, or a limit, ended it.
    Cancelled,
}

/// The phase of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Steps run.
    Forward,
    /// Steps are undone, last first.
    Compensating,
    /// All steps done.
    Completed,
    /// All attempted steps undone.
    Compensated,
    /// Stopped on the way forward; somebody must look.
    ParkedForward,
    /// Stopped while compensating; somebody must look.
    ParkedCompensating,
}

impl Phase {
    /// As the API says it: running, compensating, completed, compensated, parked.
    pub fn status(self) -> &'static str {
        match self {
            Phase::Forward => "running",
            Phase::Compensating => "compensating",
            Phase::Completed => "completed",
            Phase::Compensated => "compensated",
            Phase::ParkedForward | Phase::ParkedCompensating => "parked",
        }
    }

    /// Completed or compensated.
    pub fn is_ended(self) -> bool {
        matches!(self, Phase::Completed | Phase::Compensated)
    }

    /// Waiting for an operator.
    pub fn is_parked(self) -> bool {
        matches!(self, Phase::ParkedForward | Phase::ParkedCompensating)
    }

    /// Something is to be done without anybody asking.
    pub fn is_active(self) -> bool {
        matches!(self, Phase::Forward | Phase::Compensating)
    }
}

/// A step of an instance.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StepState {
    /// Forward.
    pub action: Work,
    /// Backward.
    pub undo: Work,
    /// Some attempt of the action may have taken effect without anybody having said so.
    pub uncertain: bool,
    /// An operator accepted that an action of unknown outcome is compensated.
    pub accepted: bool,
    /// The action's answer.
    pub result: Option<Arc<Value>>,
}

impl StepState {
    /// Whether the action took effect or may have.
    pub fn attempted(&self) -> bool {
        matches!(self.action.status, Status::Done | Status::Unknown)
    }
}

/// An action or a compensation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Work {
    /// Where it stands.
    pub status: Status,
    /// Times it was begun; a policy's own retries inside one are not counted.
    pub attempts: u32,
    /// First begun.
    pub started: Option<Timestamp>,
    /// Settled.
    pub ended: Option<Timestamp>,
    /// What the last attempt met.
    pub error: Option<String>,
}

/// Where an action or compensation stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Not begun.
    #[default]
    Pending,
    /// Not needed.
    Skipped,
    /// Its intent is recorded; it may be under way.
    Running,
    /// Between attempts.
    Waiting,
    /// Took effect.
    Done,
    /// Proved not to have taken effect; of a compensation: given up.
    Failed,
    /// Whether it took effect is not known.
    Unknown,
}

/// One action or compensation of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WorkId {
    /// Index of the step.
    pub step: usize,
    /// Its compensation, not its action.
    pub undo: bool,
}

impl WorkId {
    /// A step's action.
    pub fn action(step: usize) -> Self {
        Self { step, undo: false }
    }
    /// A step's compensation.
    pub fn undo(step: usize) -> Self {
        Self { step, undo: true }
    }
}

/// What happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// Start, or go on after the process ended: whatever was under way may or may not have been sent.
    Run,
    /// The step's condition is false.
    Skipped(usize),
    /// An attempt ended; whether some try inside it may have taken effect although the last one did not.
    Answered(WorkId, Outcome, bool),
    /// The backoff of a waiting attempt is over.
    Wake(WorkId),
    /// The time for the forward path is over.
    Deadline,
    /// Give up and compensate, for this reason.
    Abort(String),
    /// An operator lets a parked instance go on.
    Retry,
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// It took effect.
    Done(Arc<Value>),
    /// It did not, and will not when asked again.
    Refused(String),
    /// It did not (never sent, or the other side asks for less), but may when asked again.
    NotDone(String),
    /// Nobody knows.
    Unknown(String),
}

/// What to do once the state is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Carry it out.
    Begin(WorkId),
    /// Wait, then [`Event::Wake`]; the round says how long.
    Later(WorkId, u32),
}

impl State {
    /// A fresh instance; [`Event::Run`] starts it.
    pub fn new(plan: &Plan) -> Self {
        Self {
            phase: Phase::Forward,
            stage: 0,
            steps: vec![StepState::default(); plan.steps.len()],
            cause: None,
            turned: None,
            parked: None,
        }
    }

    fn work(&mut self, id: WorkId) -> &mut Work {
        let s = &mut self.steps[id.step];
        if id.undo { &mut s.undo } else { &mut s.action }
    }
}

/// Applies an event. Events that no longer matter change nothing.
pub fn apply(plan: &Plan, state: &mut State, event: Event, now: Timestamp) -> Vec<Action> {
    let mut m = Machine { plan, state, now, out: Vec::new() };
    match event {
        Event::Run => m.run(),
        Event::Skipped(step) => m.skipped(step),
        Event::Answered(id, outcome, doubt) => {
            if m.state.work(id).status == Status::Running {
                m.state.steps[id.step].uncertain |= doubt && !id.undo;
                m.answered(id, outcome);
            }
        }
        Event::Wake(id) => {
            if m.state.work(id).status == Status::Waiting {
                m.begin(id);
            }
        }
        Event::Deadline => {
            if m.state.phase == Phase::Forward {
                m.turn(Turned::Deadline, "the saga's deadline passed".into());
            }
        }
        Event::Abort(reason) => m.abort(reason),
        Event::Retry => m.retry(),
    }
    m.advance();
    m.out
}

struct Machine<'a> {
    plan: &'a Plan,
    state: &'a mut State,
    now: Timestamp,
    out: Vec<Action>,
}

impl Machine<'_> {
    fn begin(&mut self, id: WorkId) {
        let now = self.now;
        let w = self.state.work(id);
        w.status = Status::Running;
        w.attempts = w.attempts.saturating_add(1);
        w.started.get_or_insert(now);
        w.ended = None;
        self.out.push(Action::Begin(id));
    }

    fn settle(&mut self, id: WorkId, status: Status, error: Option<String>) {
        let now = self.now;
        let w = self.state.work(id);
        w.status = status;
        w.ended = Some(now);
        if error.is_some() || status == Status::Done {
            w.error = error;
        }
    }

    fn wait(&mut self, id: WorkId, reason: String) {
        let w = self.state.work(id);
        w.status = Status::Waiting;
        w.error = Some(reason);
        let round = w.attempts;
        self.out.push(Action::Later(id, round));
    }

    /// An action that will not be tried again: proved not done, or not known.
    fn give_up(&mut self, step: usize, error: Option<String>) {
        let status = if self.state.steps[step].uncertain { Status::Unknown } else { Status::Failed };
        self.settle(WorkId::action(step), status, error);
    }

    fn answered(&mut self, id: WorkId, outcome: Outcome) {
        let plan = self.plan.steps[id.step];
        match (id.undo, outcome) {
            (_, Outcome::Done(v)) => {
                self.settle(id, Status::Done, None);
                if !id.undo {
                    self.state.steps[id.step].result = Some(v);
                }
            }
            (false, Outcome::Refused(r)) => self.give_up(id.step, Some(r)),
            (false, Outcome::NotDone(r)) => self.again(id, r),
            (false, Outcome::Unknown(r)) => {
                self.state.steps[id.step].uncertain = true;
                if plan.repeatable { self.again(id, r) } else { self.settle(id, Status::Unknown, Some(r)) }
            }
            (true, Outcome::Unknown(r)) if !plan.undo_repeatable => self.settle(id, Status::Unknown, Some(r)),
            (true, Outcome::Refused(r)) => self.settle(id, Status::Failed, Some(r)),
            (true, Outcome::NotDone(r) | Outcome::Unknown(r)) => {
                if self.state.work(id).attempts >= limits::SAGA_COMPENSATION_ROUNDS {
                    self.settle(id, Status::Failed, Some(r));
                } else {
                    self.wait(id, r);
                }
            }
        }
    }

    /// An action is tried again while the saga goes forward and its stage has not failed.
    fn again(&mut self, id: WorkId, reason: String) {
        if self.state.phase == Phase::Forward && !self.stage_failed() {
            self.wait(id, reason);
        } else {
            self.give_up(id.step, Some(reason));
        }
    }

    fn skipped(&mut self, step: usize) {
        let w = &mut self.state.steps[step].action;
        if w.status == Status::Running {
            w.status = Status::Skipped;
            w.attempts = 0;
            w.started = None;
        }
    }

    /// From forward to compensating. What waits is not tried again; what is under way is awaited.
    fn turn(&mut self, turned: Turned, reason: String) {
        self.state.phase = Phase::Compensating;
        self.state.turned = Some(turned);
        self.state.cause = Some(reason);
        self.state.parked = None;
        for step in 0..self.state.steps.len() {
            if self.state.steps[step].action.status == Status::Waiting {
                self.give_up(step, None);
            }
        }
    }

    fn run(&mut self) {
        const GONE: &str = "the process ended while it was under way";
        if !self.state.phase.is_active() {
            return;
        }
        let forward = self.state.phase == Phase::Forward;
        for step in 0..self.state.steps.len() {
            let id = WorkId::action(step);
            let plan = self.plan.steps[step];
            match self.state.steps[step].action.status {
                Status::Running => {
                    self.state.steps[step].uncertain = true;
                    if forward && plan.repeatable {
                        self.begin(id);
                    } else {
                        self.settle(id, Status::Unknown, Some(GONE.into()));
                    }
                }
                Status::Waiting => self.out.push(Action::Later(id, self.state.steps[step].action.attempts)),
                Status::Pending if forward && self.plan.stages[self.state.stage].contains(&step) => self.begin(id),
                _ => {}
            }
            let id = WorkId::undo(step);
            match self.state.steps[step].undo.status {
                Status::Running if plan.undo_repeatable => self.begin(id),
                Status::Running => self.settle(id, Status::Unknown, Some(GONE.into())),
                Status::Waiting => self.out.push(Action::Later(id, self.state.steps[step].undo.attempts)),
                _ => {}
            }
        }
    }

    fn abort(&mut self, reason: String) {
        match self.state.phase {
            Phase::Forward => self.turn(Turned::Cancelled, reason),
            Phase::ParkedForward => {
                self.turn(Turned::Cancelled, reason);
                self.accept();
            }
            // It compensates already: cancelling means going on.
            Phase::ParkedCompensating => self.retry(),
            Phase::Compensating | Phase::Completed | Phase::Compensated => {}
        }
    }

    fn retry(&mut self) {
        match self.state.phase {
            Phase::ParkedForward => {
                self.state.phase = Phase::Forward;
                self.state.parked = None;
                for step in self.plan.stages[self.state.stage].clone() {
                    if self.state.steps[step].action.status == Status::Unknown {
                        self.begin(WorkId::action(step));
                    }
                }
            }
            Phase::ParkedCompensating => {
                self.state.phase = Phase::Compensating;
                self.state.parked = None;
                self.accept();
                for step in self.plan.stages[self.state.stage].clone() {
                    let undo = &mut self.state.steps[step].undo;
                    if matches!(undo.status, Status::Failed | Status::Unknown) {
                        undo.attempts = 0;
                        self.begin(WorkId::undo(step));
                    }
                }
            }
            _ => {}
        }
    }

    fn accept(&mut self) {
        for s in &mut self.state.steps {
            if s.action.status == Status::Unknown {
                s.accepted = true;
            }
        }
    }

    fn has(&self, test: impl Fn(usize, &StepState) -> bool) -> bool {
        self.plan.stages[self.state.stage].clone().any(|i| test(i, &self.state.steps[i]))
    }

    /// A step of the stage was refused. An unknown outcome of a repeatable action is one that was refused after an
    /// attempt of which nobody knows.
    fn stage_failed(&self) -> bool {
        self.has(|i, s| match s.action.status {
            Status::Failed => true,
            Status::Unknown => self.plan.steps[i].repeatable,
            _ => false,
        })
    }

    fn advance(&mut self) {
        loop {
            let went_on = match self.state.phase {
                Phase::Forward => self.advance_forward(),
                Phase::Compensating => self.advance_compensating(),
                _ => false,
            };
            if !went_on {
                return;
            }
        }
    }

    fn advance_forward(&mut self) -> bool {
        if self.stage_failed() {
            let reason = self.plan.stages[self.state.stage].clone().find_map(|i| {
                let a = &self.state.steps[i].action;
                let failed = matches!(a.status, Status::Failed | Status::Unknown) && self.plan.steps[i].repeatable
                    || a.status == Status::Failed;
                a.error.clone().filter(|_| failed)
            });
            self.turn(Turned::Rejected, reason.unwrap_or_else(|| "a step failed".into()));
            return true;
        }
        if self.has(|_, s| matches!(s.action.status, Status::Pending | Status::Running | Status::Waiting)) {
            return false;
        }
        if self.has(|_, s| s.action.status == Status::Unknown) {
            self.park(Phase::ParkedForward, false, "the outcome of a step that may not be repeated is unknown");
            return false;
        }
        if self.state.stage + 1 == self.plan.stages.len() {
            self.state.phase = Phase::Completed;
            return false;
        }
        self.state.stage += 1;
        for step in self.plan.stages[self.state.stage].clone() {
            self.begin(WorkId::action(step));
        }
        true
    }

    fn advance_compensating(&mut self) -> bool {
        // What was under way when the saga turned is awaited: its outcome decides what is undone.
        if self.has(|_, s| s.action.status == Status::Running) {
            return false;
        }
        if self.has(|i, s| s.action.status == Status::Unknown && !self.plan.steps[i].repeatable && !s.accepted) {
            let why = "the outcome of a step that may not be repeated is unknown; retry compensates it";
            self.park(Phase::ParkedCompensating, false, why);
            return false;
        }
        for step in self.plan.stages[self.state.stage].clone() {
            let s = &mut self.state.steps[step];
            if s.undo.status == Status::Pending {
                if s.attempted() && self.plan.steps[step].undoable {
                    self.begin(WorkId::undo(step));
                } else {
                    s.undo.status = Status::Skipped;
                }
            }
        }
        if self.has(|_, s| matches!(s.undo.status, Status::Running | Status::Waiting)) {
            return false;
        }
        if self.has(|_, s| matches!(s.undo.status, Status::Failed | Status::Unknown)) {
            self.park(Phase::ParkedCompensating, true, "a compensation failed");
            return false;
        }
        if self.state.stage == 0 {
            self.state.phase = Phase::Compensated;
            return false;
        }
        self.state.stage -= 1;
        true
    }

    fn park(&mut self, phase: Phase, undo: bool, why: &str) {
        let detail = self.plan.stages[self.state.stage].clone().find_map(|i| {
            let s = &self.state.steps[i];
            let w = if undo { &s.undo } else { &s.action };
            w.error.clone().filter(|_| matches!(w.status, Status::Failed | Status::Unknown))
        });
        self.state.phase = phase;
        self.state.parked = Some(format!("{why}: {}", detail.unwrap_or_default()));
    }
}

#[cfg(test)]
mod tests;
