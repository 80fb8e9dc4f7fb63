//! THE retry loop: deadline, breaker, send, judge, back off. A proxied request, a push and a saga step all pass
//! through [`run`].
//!
//! - One attempt takes at most `attempt_timeout`, all of it at most the deadline (the caller's or the policy's,
//!   whichever is earlier).
//! - Only what is worth it is tried again: never a refusal ([`Class::Rejected`]), and only where a repetition is safe
//!   ([`Replay`]).
//! - Between attempts it waits: exponential backoff with full jitter, or longer when the other side asks to
//!   (`Retry-After`). When the wait would pass the deadline it does not wait at all.
//! - A policy may hedge: an attempt that takes long gets another beside it, the first good answer counts and the others
//!   are dropped. Only where a repetition is safe at any time ([`Replay::Safe`]).
//! - Every retry is taken from the budget, and passes the breaker like any other call.
//! - An open breaker fails the work at once: it is not waited for.
//! - Our own timeout counts as a breaker failure. A caller's nearer deadline that cuts an attempt short counts only if
//!   the attempt had at least half the time that the policy grants; otherwise nothing was learned about the service.

mod hedge;

use std::future::Future;
use std::time::Duration;

use tokio::time::Instant;
use tokio::time::error::Elapsed;
use weft_core::{Class, Classify, Context, Deadline, Origin, limits};

use crate::breaker::Permit;
use crate::error::Refused;
use crate::instance::Instance;
use crate::outcome::{self, Judged, Outcome, Transport};
use crate::spec::{Policy, Retry};

/// Whether sending again is safe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replay {
    /// The method is idempotent, or the work carries an idempotency key that the other side honours.
    Safe,
    /// Only if it is certain that nothing arrived (a plain POST; a body that can be sent only once).
    OnlyIfUnsent,
    /// Never.
    Never,
}

/// One attempt, as told to the sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// Counts from 1.
    pub number: u32,
    /// When this attempt is given up (for `grpc-timeout` and the like).
    pub deadline: Deadline,
}

/// Why no further attempt was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// It went well.
    Done,
    /// The failure is a refusal: it would be refused again.
    Refusal,
    /// Repeating it is not safe.
    NotSafe,
    /// The policy has no retry, or its attempts are used up.
    Attempts,
    /// The retry budget is used up.
    Budget,
    /// The next attempt would come after the deadline.
    Deadline,
    /// The other side asked for a longer wait than [`limits::RETRY_AFTER`].
    Wait,
    /// The breaker is open, and would still be after the backoff.
    Breaker,
}

/// An answer: a good one, or the last bad one, to be passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done<T> {
    /// The answer.
    pub answer: T,
    /// What it means.
    pub outcome: Outcome,
    /// Attempts made.
    pub attempts: u32,
    /// Why it is the last.
    pub stop: Stop,
    /// Some attempt that was not the good one may have taken effect without anybody having said so
    /// ([`Outcome::in_doubt`]): a refusal then proves nothing.
    pub doubt: bool,
}

/// No answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{cause} (attempts: {attempts})")]
pub struct Failure<E> {
    /// What ended it.
    pub cause: Cause<E>,
    /// Attempts made; 0 when none was sent.
    pub attempts: u32,
    /// Why it is the last.
    pub stop: Stop,
    /// Some attempt may have taken effect without anybody having said so.
    pub doubt: bool,
}

/// What ended work without an answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Cause<E> {
    /// The last attempt failed.
    #[error("{0}")]
    Attempt(E),
    /// The last attempt took longer than `attempt_timeout`.
    #[error("no answer within the attempt timeout of {0:?}")]
    Timeout(Duration),
    /// The deadline passed during an attempt.
    #[error("no answer before the deadline")]
    Deadline,
    /// The time for an attempt passed before the caller had sent all of its request.
    #[error("the request did not arrive in time")]
    SlowCaller,
    /// Policy refused before anything was sent.
    #[error("{0}")]
    Refused(Refused),
}

impl<E: Judged> Judged for Cause<E> {
    fn outcome(&self) -> Outcome {
        match self {
            Cause::Attempt(e) => e.outcome(),
            Cause::Timeout(_) | Cause::Deadline => outcome::classify_transport(Transport::Timeout),
            Cause::SlowCaller => Outcome::failed(Class::Rejected, false),
            Cause::Refused(r) => {
                Outcome { failure: Some(r.class()), breaker: false, unsent: true, retry_after: r.retry_after() }
            }
        }
    }
}

impl<E: Judged> Judged for Failure<E> {
    fn outcome(&self) -> Outcome {
        self.cause.outcome()
    }
}

impl<E: Judged> Classify for Failure<E> {
    fn class(&self) -> Class {
        self.outcome().failure.unwrap_or(Class::Fault)
    }

    fn origin(&self) -> Origin {
        match &self.cause {
            Cause::Refused(r) => r.origin(),
            Cause::SlowCaller => Origin::Downstream,
            _ => Origin::Upstream,
        }
    }
}

/// Sends until it goes well, or until policy says to stop. `send` is called once an attempt and makes its future.
///
/// A bad answer (a 503, say) that is the last one comes back as [`Done`], so that it can be passed on with its body.
/// Allocates nothing itself.
pub async fn run<T, E, F, S>(instance: &Instance, ctx: &Context, replay: Replay, send: S) -> Result<Done<T>, Failure<E>>
where
    T: Judged,
    E: Judged,
    F: Future<Output = Result<T, E>>,
    S: FnMut(Attempt) -> F,
{
    run_for(instance, ctx, replay, || false, send).await
}

/// The same for a caller whose request may still be arriving: while `arriving` says so, an attempt that takes too long
/// says nothing about the other side.
pub async fn run_for<T, E, F, S, A>(
    instance: &Instance,
    ctx: &Context,
    replay: Replay,
    arriving: A,
    mut send: S,
) -> Result<Done<T>, Failure<E>>
where
    T: Judged,
    E: Judged,
    F: Future<Output = Result<T, E>>,
    S: FnMut(Attempt) -> F,
    A: Fn() -> bool,
{
    let policy = instance.policy();
    let mut now = Instant::now();
    let deadline = match policy.deadline {
        Some(d) => ctx.deadline.min(now.checked_add(d).map_or(Deadline::NONE, Deadline::at)),
        None => ctx.deadline,
    };
    if deadline.instant().is_some_and(|at| at <= now) {
        return Err(Failure {
            cause: Cause::Refused(Refused::DeadlinePassed),
            attempts: 0,
            stop: Stop::Deadline,
            doubt: false,
        });
    }
    instance.count_request(now);
    // What the policy itself grants one attempt.
    let granted = match (policy.attempt_timeout, policy.deadline) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    };
    let mut attempts = 0;
    let mut doubt = false;
    loop {
        let permit = match instance.breaker().map(|b| b.admit(instance.nanos(now))) {
            Some(Ok(p)) => Some(p),
            None => None,
            Some(Err(refused)) => {
                return Err(Failure { cause: Cause::Refused(refused), attempts, stop: Stop::Breaker, doubt });
            }
        };
        attempts += 1;
        let until = give_up(policy, now, deadline);
        let sent = send(Attempt { number: attempts, deadline: until });
        let ended = match (policy.hedge, replay) {
            (Some(hedge), Replay::Safe) => {
                let race = hedge::Race { instance, hedge, deadline, attempts: &mut attempts, doubt: &mut doubt };
                // Boxed, so that work without hedges does not carry the room for them.
                Box::pin(race.run(sent, permit, now, &mut send)).await
            }
            _ => {
                let result = match until.instant() {
                    Some(at) => tokio::time::timeout_at(at, sent).await,
                    None => Ok(sent.await),
                };
                Ended { result, permit, began: now, give_up: until }
            }
        };
        let Ended { result: ended, permit, began, give_up } = ended;
        let then = Instant::now();
        let took = then - began;
        instance.timed(took);
        let (result, judged) = match ended {
            Ok(Ok(answer)) => {
                let outcome = answer.outcome();
                if outcome.is_success() {
                    instance.bulkhead().learn(instance.nanos(then), took, false);
                    if let Some(p) = permit {
                        p.judge(instance.nanos(then), false, took);
                    }
                    return Ok(Done { answer, outcome, attempts, stop: Stop::Done, doubt });
                }
                (Ok(Done { answer, outcome, attempts, stop: Stop::Done, doubt }), Some(outcome.breaker))
            }
            Ok(Err(e)) => {
                let breaker = (!e.blames_caller()).then(|| e.outcome().breaker);
                (Err(Failure { cause: Cause::Attempt(e), attempts, stop: Stop::Done, doubt }), breaker)
            }
            Err(_) if arriving() => {
                (Err(Failure { cause: Cause::SlowCaller, attempts, stop: Stop::Done, doubt }), None)
            }
            Err(_) => {
                let cause = match policy.attempt_timeout {
                    Some(t) if give_up != deadline => Cause::Timeout(t),
                    _ => Cause::Deadline,
                };
                let fair = give_up != deadline || granted.is_some_and(|g| took >= g / 2);
                (Err(Failure { cause, attempts, stop: Stop::Done, doubt }), fair.then_some(true))
            }
        };
        if let (Some(p), Some(failed)) = (permit, judged) {
            p.judge(instance.nanos(then), failed, took);
        }
        let outcome = match &result {
            Ok(done) => done.outcome,
            Err(failure) => failure.outcome(),
        };
        if judged.is_some() || is_timeout(&result) {
            let overloaded = outcome.failure == Some(Class::Overloaded) || is_timeout(&result);
            instance.bulkhead().learn(instance.nanos(then), took, overloaded);
        }
        doubt |= outcome.in_doubt();
        match next(instance, policy.retry.as_ref(), replay, attempts, outcome, deadline, then) {
            Err(stop) => {
                return match result {
                    Ok(done) => Ok(Done { stop, doubt, ..done }),
                    Err(failure) => Err(Failure { stop, doubt, ..failure }),
                };
            }
            Ok(wait) => {
                // The old answer's connection is let go before the wait.
                drop(result);
                tokio::time::sleep(wait).await;
                now = Instant::now();
            }
        }
    }
}

/// How an attempt ended, and what it held.
struct Ended<'i, T, E> {
    result: Result<Result<T, E>, Elapsed>,
    permit: Option<Permit<'i>>,
    began: Instant,
    give_up: Deadline,
}

/// When an attempt that begins now is given up.
fn give_up(policy: &Policy, now: Instant, deadline: Deadline) -> Deadline {
    let own = policy.attempt_timeout.and_then(|t| now.checked_add(t));
    own.map_or(deadline, |at| deadline.min(Deadline::at(at)))
}

fn is_timeout<T, E>(result: &Result<Done<T>, Failure<E>>) -> bool {
    matches!(result, Err(Failure { cause: Cause::Timeout(_) | Cause::Deadline, .. }))
}

/// How long to wait before the next attempt, or why there is none.
fn next(
    instance: &Instance,
    retry: Option<&Retry>,
    replay: Replay,
    attempts: u32,
    outcome: Outcome,
    deadline: Deadline,
    now: Instant,
) -> Result<Duration, Stop> {
    if matches!(outcome.failure, None | Some(Class::Rejected)) {
        return Err(Stop::Refusal);
    }
    let safe = match replay {
        Replay::Safe => true,
        Replay::OnlyIfUnsent => outcome.unsent,
        Replay::Never => false,
    };
    if !safe {
        return Err(Stop::NotSafe);
    }
    let Some(retry) = retry.filter(|r| attempts < r.attempts) else { return Err(Stop::Attempts) };
    let asked = outcome.retry_after.unwrap_or_default();
    if asked > limits::RETRY_AFTER {
        return Err(Stop::Wait);
    }
    let wait = backoff(retry, attempts, rand::random()).max(asked);
    if deadline.instant().is_some_and(|at| now.checked_add(wait).is_none_or(|then| then >= at)) {
        return Err(Stop::Deadline);
    }
    if instance.breaker().is_some_and(|b| b.open_at(instance.nanos(now + wait))) {
        return Err(Stop::Breaker);
    }
    if !instance.take_retry(now) {
        return Err(Stop::Budget);
    }
    Ok(wait)
}

/// The backoff after so many attempts (1 = after the first): the first doubled each time, up to the longest; with
/// jitter, a share of it by `random` in 0..1 (full jitter: anything from nothing to all of it).
pub fn backoff(retry: &Retry, attempts: u32, random: f64) -> Duration {
    let doubled = 2u32.checked_pow(attempts.saturating_sub(1)).and_then(|f| retry.backoff_min.checked_mul(f));
    let full = doubled.map_or(retry.backoff_max, |d| d.min(retry.backoff_max));
    if retry.jitter { full.mul_f64(random.clamp(0.0, 1.0)) } else { full }
}

#[cfg(test)]
mod tests;
