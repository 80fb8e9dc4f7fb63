//! On the paused clock: every duration below is exact.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use super::*;
use crate::breaker;
use crate::outcome::{classify_http, classify_transport};
use crate::spec::{Breaker, Hedge, HedgeAfter, Policy};

#[derive(Clone, Copy, Debug, PartialEq)]
struct Answer(u16, Option<u64>);
#[derive(Clone, Copy, Debug, PartialEq)]
struct Broken(Transport);

impl Judged for Answer {
    fn outcome(&self) -> Outcome {
        classify_http(self.0).with_retry_after(self.1.map(Duration::from_secs))
    }
}
impl Judged for Broken {
    fn outcome(&self) -> Outcome {
        classify_transport(self.0)
    }
}
impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

type Script = Vec<(u64, Result<Answer, Broken>)>;

fn ok(status: u16) -> Result<Answer, Broken> {
    Ok(Answer(status, None))
}
fn broken(t: Transport) -> Result<Answer, Broken> {
    Err(Broken(t))
}
fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// 3 attempts, 10 ms then 20 ms apart, no jitter; an attempt has 100 ms, all of it 1 s; no breaker.
fn policy() -> Policy {
    Policy {
        deadline: Some(ms(1_000)),
        attempt_timeout: Some(ms(100)),
        retry: Some(Retry {
            attempts: 3,
            backoff_min: ms(10),
            backoff_max: ms(1_000),
            jitter: false,
            budget: 1.0,
            budget_min: 100,
        }),
        hedge: None,
        breaker: None,
        bulkhead: None,
        rate: Vec::new(),
        quota: Vec::new(),
        idempotency: None,
        auth: None,
    }
}

fn breaker() -> Breaker {
    Breaker { window: 10, min_calls: 2, open_for: ms(500), half_open_calls: 1, ..Breaker::default() }
}

/// Plays answers, each after so many ms; says what came and when each attempt began.
async fn play(
    instance: &Instance,
    ctx: &Context,
    replay: Replay,
    script: Script,
) -> (Result<Done<Answer>, Failure<Broken>>, Vec<u64>) {
    let start = Instant::now();
    let began = Rc::new(RefCell::new(Vec::new()));
    let script = Rc::new(script);
    let got = run(instance, ctx, replay, |a| {
        let (began, script) = (began.clone(), script.clone());
        async move {
            began.borrow_mut().push(start.elapsed().as_millis() as u64);
            let (after, what) = script[a.number as usize - 1];
            tokio::time::sleep(ms(after)).await;
            what
        }
    })
    .await;
    let began = began.borrow().clone();
    (got, began)
}

#[tokio::test(start_paused = true)]
async fn a_good_answer_is_one_attempt() {
    let (got, began) = play(&Instance::new(&policy()), &Context::root(), Replay::Never, vec![(5, ok(200))]).await;
    let done = got.unwrap();
    assert_eq!((done.answer, done.attempts, done.stop), (Answer(200, None), 1, Stop::Done));
    assert_eq!(began, [0]);
}

#[tokio::test(start_paused = true)]
async fn passing_failures_are_tried_again_with_growing_backoff() {
    let i = Instance::new(&policy());
    let script = vec![(0, ok(503)), (0, broken(Transport::ResetBeforeBytes)), (0, ok(200))];
    let (got, began) = play(&i, &Context::root(), Replay::Safe, script).await;
    assert_eq!(got.unwrap().attempts, 3);
    assert_eq!(began, [0, 10, 30]);
    assert_eq!(i.stats().retries, 2);
}

#[tokio::test(start_paused = true)]
async fn attempts_count_the_first_try_and_the_last_bad_answer_is_passed_on() {
    let script = vec![(0, ok(503)), (0, ok(502)), (0, ok(504))];
    let (got, began) = play(&Instance::new(&policy()), &Context::root(), Replay::Safe, script).await;
    let done = got.unwrap();
    assert_eq!((done.answer.0, done.attempts, done.stop, began.len()), (504, 3, Stop::Attempts, 3));
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_never_tried_again() {
    for status in [400, 404, 409, 422, 501] {
        let (got, _) = play(&Instance::new(&policy()), &Context::root(), Replay::Safe, vec![(0, ok(status))]).await;
        let done = got.unwrap();
        assert_eq!((done.attempts, done.stop), (1, Stop::Refusal), "{status}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_may_have_arrived_is_repeated_only_when_that_is_safe() {
    let i = Instance::new(&policy());
    let ctx = Context::root();
    for what in [ok(503), ok(500), broken(Transport::ResetBeforeBytes), broken(Transport::ResetAfterBytes)] {
        let script = vec![(0, what), (0, ok(200))];
        let (got, began) = play(&i, &ctx, Replay::OnlyIfUnsent, script.clone()).await;
        assert_eq!(got.map_or_else(|f| f.stop, |d| d.stop), Stop::NotSafe, "{what:?}");
        assert_eq!(began.len(), 1);
        assert_eq!(play(&i, &ctx, Replay::Safe, script).await.0.unwrap().attempts, 2, "{what:?}");
    }
    let unsent = vec![(0, broken(Transport::NeverSent)), (0, ok(200))];
    assert_eq!(play(&i, &ctx, Replay::OnlyIfUnsent, unsent.clone()).await.0.unwrap().attempts, 2);
    assert_eq!(play(&i, &ctx, Replay::Never, unsent).await.0.unwrap_err().stop, Stop::NotSafe);
}

#[tokio::test(start_paused = true)]
async fn an_attempt_ends_at_its_timeout_and_another_may_follow() {
    let script = vec![(60_000, ok(200)), (5, ok(200))];
    let i = Instance::new(&policy());
    let (got, began) = play(&i, &Context::root(), Replay::Safe, script.clone()).await;
    assert_eq!(got.unwrap().attempts, 2);
    assert_eq!(began, [0, 110]);
    let failure = play(&i, &Context::root(), Replay::OnlyIfUnsent, script).await.0.unwrap_err();
    assert_eq!((failure.cause.clone(), failure.stop), (Cause::Timeout(ms(100)), Stop::NotSafe));
    assert_eq!(failure.class(), Class::Fault, "nobody knows whether the work was done");
}

#[tokio::test(start_paused = true)]
async fn retry_stops_at_the_deadline() {
    let p = Policy { deadline: Some(ms(105)), ..policy() };
    let start = Instant::now();
    let (got, began) = play(&Instance::new(&p), &Context::root(), Replay::Safe, vec![(60_000, ok(200)); 3]).await;
    assert_eq!(got.unwrap_err().stop, Stop::Deadline);
    assert_eq!((began.len(), start.elapsed()), (1, ms(100)), "it does not wait for a retry it cannot make");
}

#[tokio::test(start_paused = true)]
async fn the_callers_nearer_deadline_wins_and_is_told_to_the_attempt() {
    let mut ctx = Context::root();
    ctx.deadline = Deadline::after(ms(30));
    let start = Instant::now();
    let seen = Cell::new(None);
    let got = run(&Instance::new(&policy()), &ctx, Replay::Safe, |a| {
        seen.set(a.deadline.remaining());
        async {
            tokio::time::sleep(ms(60_000)).await;
            ok(200)
        }
    })
    .await;
    assert_eq!(got.unwrap_err().cause, Cause::Deadline);
    assert_eq!((start.elapsed(), seen.get()), (ms(30), Some(ms(30))));
}

#[tokio::test(start_paused = true)]
async fn past_the_deadline_nothing_is_sent() {
    let mut ctx = Context::root();
    ctx.deadline = Deadline::after(Duration::ZERO);
    let (got, began) = play(&Instance::new(&policy()), &ctx, Replay::Safe, vec![(0, ok(200))]).await;
    assert_eq!(got.unwrap_err().cause, Cause::Refused(Refused::DeadlinePassed));
    assert!(began.is_empty());
}

#[tokio::test(start_paused = true)]
async fn retry_after_is_honoured_when_it_fits() {
    let i = Instance::new(&Policy { deadline: Some(ms(5_000)), ..policy() });
    let busy = |s| Ok(Answer(429, Some(s)));
    let (got, began) = play(&i, &Context::root(), Replay::Safe, vec![(0, busy(2)), (0, ok(200))]).await;
    assert_eq!((got.unwrap().attempts, began), (2, vec![0, 2_000]));
    let (got, _) = play(&i, &Context::root(), Replay::Safe, vec![(0, busy(6)), (0, ok(200))]).await;
    let done = got.unwrap();
    assert_eq!((done.answer.0, done.stop), (429, Stop::Deadline), "passed on at once");

    let patient = Instance::new(&Policy { deadline: None, ..policy() });
    let (got, _) = play(&patient, &Context::root(), Replay::Safe, vec![(0, busy(61)), (0, ok(200))]).await;
    assert_eq!(got.unwrap().stop, Stop::Wait, "limits::RETRY_AFTER");
}

#[tokio::test(start_paused = true)]
async fn a_spent_budget_stops_retries_and_not_first_tries() {
    let mut p = policy();
    p.retry = p.retry.map(|r| Retry { budget: 0.1, budget_min: 0, ..r });
    let i = Instance::new(&p);
    let mut attempts = 0;
    for _ in 0..100 {
        let (got, began) = play(&i, &Context::root(), Replay::Safe, vec![(0, ok(503)); 3]).await;
        attempts += began.len();
        assert_eq!(got.unwrap().answer.0, 503);
    }
    assert_eq!(attempts, 110);
    assert_eq!(i.stats().retries, 10);
    assert!(i.stats().budget_spent >= 90);
}

#[tokio::test(start_paused = true)]
async fn the_breaker_opens_fails_fast_and_closes_after_a_good_trial() {
    let i = Instance::new(&Policy { breaker: Some(breaker()), ..policy() });
    let ctx = Context::root();
    let (got, began) = play(&i, &ctx, Replay::Safe, vec![(0, ok(503)); 3]).await;
    let done = got.unwrap();
    assert_eq!((done.answer.0, done.stop, began.len()), (503, Stop::Breaker, 2), "the second failure opened it");
    let (got, began) = play(&i, &ctx, Replay::Safe, vec![(0, ok(200))]).await;
    let failure = got.unwrap_err();
    assert!(matches!(failure.cause, Cause::Refused(Refused::BreakerOpen { .. })), "{failure:?}");
    assert_eq!((failure.attempts, failure.class(), began.len()), (0, Class::Retryable, 0));
    assert!(failure.outcome().unsent && !failure.outcome().breaker);
    tokio::time::sleep(ms(500)).await;
    assert!(play(&i, &ctx, Replay::Safe, vec![(0, ok(200))]).await.0.is_ok());
    assert_eq!(i.breaker_status().unwrap().state, breaker::Name::Closed);
}

#[tokio::test(start_paused = true)]
async fn refusals_and_overload_never_open_the_breaker() {
    let i = Instance::new(&Policy { breaker: Some(breaker()), ..policy() });
    for status in [400, 404, 429, 409].repeat(10) {
        play(&i, &Context::root(), Replay::Never, vec![(0, ok(status))]).await.0.unwrap();
    }
    assert_eq!(i.breaker_status().unwrap().state, breaker::Name::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_callers_tiny_deadline_says_nothing_about_the_service() {
    let i = Instance::new(&Policy { breaker: Some(breaker()), ..policy() });
    let hurry = |n| Context { deadline: Deadline::after(ms(n)), ..Context::root() };
    for _ in 0..20 {
        play(&i, &hurry(10), Replay::Never, vec![(50, ok(200))]).await.0.unwrap_err();
    }
    assert_eq!(i.breaker_status().unwrap().calls, 0);
    for _ in 0..2 {
        play(&i, &hurry(60), Replay::Never, vec![(99, ok(200))]).await.0.unwrap_err();
    }
    assert_eq!(i.breaker_status().unwrap().state, breaker::Name::Open, "they had more than half of the time");
}

#[tokio::test(start_paused = true)]
async fn work_that_is_dropped_gives_its_trial_back() {
    let i = Instance::new(&Policy { breaker: Some(breaker()), ..policy() });
    let ctx = Context::root();
    play(&i, &ctx, Replay::Safe, vec![(0, ok(503)); 3]).await.0.unwrap();
    tokio::time::sleep(ms(500)).await;
    {
        let hung = play(&i, &ctx, Replay::Safe, vec![(90, ok(200))]);
        assert!(tokio::time::timeout(ms(10), hung).await.is_err());
    }
    assert!(play(&i, &ctx, Replay::Safe, vec![(0, ok(200))]).await.0.is_ok(), "its place was free again");
}

#[test]
fn full_jitter_spreads_from_nothing_to_the_whole_backoff() {
    let r = Retry { backoff_min: ms(50), backoff_max: ms(1_000), jitter: true, ..Retry::default() };
    assert_eq!(backoff(&r, 1, 0.0), Duration::ZERO);
    assert_eq!(backoff(&r, 1, 0.5), ms(25));
    assert_eq!(backoff(&r, 3, 1.0), ms(200));
    assert_eq!(backoff(&r, 30, 1.0), ms(1_000));
    assert_eq!(backoff(&r, u32::MAX, 1.0), ms(1_000));
    assert_eq!(backoff(&Retry { jitter: false, ..r }, 2, 0.0), ms(100));
}

#[test]
fn the_loop_is_send_when_what_it_sends_is() {
    fn is_send<T: Send>(_: &T) {}
    let (i, ctx) = (Instance::new(&policy()), Context::root());
    is_send(&run(&i, &ctx, Replay::Safe, |_| async { ok(200) }));
}

#[tokio::test(start_paused = true)]
async fn a_refusal_after_an_attempt_that_may_have_taken_effect_is_in_doubt() {
    let never = || broken(Transport::NeverSent);
    for (script, doubt) in [
        (vec![(0, ok(409))], false),
        (vec![(0, never()), (0, ok(409))], false),
        (vec![(0, ok(429)), (0, ok(409))], false),
        (vec![(0, broken(Transport::ResetBeforeBytes)), (0, ok(409))], true),
        (vec![(150, ok(200)), (0, ok(409))], true),
        (vec![(0, ok(503)), (0, ok(429)), (0, ok(422))], true),
    ] {
        let (got, _) = play(&Instance::new(&policy()), &Context::root(), Replay::Safe, script.clone()).await;
        assert_eq!(got.unwrap().doubt, doubt, "{script:?}");
    }
    for (script, doubt) in [
        (vec![(0, never()), (0, never()), (0, never())], false),
        (vec![(150, ok(200)), (0, never()), (0, never())], true),
    ] {
        let (got, _) = play(&Instance::new(&policy()), &Context::root(), Replay::Safe, script.clone()).await;
        assert_eq!(got.unwrap_err().doubt, doubt, "{script:?}");
    }
}

/// Hedges after 30 ms.
fn hedging() -> Policy {
    Policy { hedge: Some(Hedge { after: HedgeAfter::Time(ms(30)), max: 1 }), ..policy() }
}

#[tokio::test(start_paused = true)]
async fn a_slow_attempt_gets_another_beside_it_and_the_first_good_answer_counts() {
    let i = Instance::new(&hedging());
    let start = Instant::now();
    let (got, began) = play(&i, &Context::root(), Replay::Safe, vec![(90, ok(200)), (10, ok(201))]).await;
    let done = got.unwrap();
    assert_eq!((done.answer.0, done.attempts, began), (201, 2, vec![0, 30]));
    assert_eq!(start.elapsed(), ms(40));
    assert!(done.doubt, "the slow one may have done it too");
    let (got, began) = play(&i, &Context::root(), Replay::Safe, vec![(50, ok(200)), (90, ok(201))]).await;
    assert_eq!((got.unwrap().answer.0, began.len()), (200, 2), "the first was faster after all");
    let (got, began) = play(&i, &Context::root(), Replay::Safe, vec![(29, ok(200))]).await;
    assert_eq!((got.unwrap().doubt, began.len()), (false, 1), "fast enough");
    assert_eq!((i.stats().hedges, i.stats().hedges_won, i.stats().retries), (2, 1, 0));
}

#[tokio::test(start_paused = true)]
async fn no_hedge_goes_out_where_sending_again_is_not_safe() {
    let i = Instance::new(&hedging());
    for replay in [Replay::OnlyIfUnsent, Replay::Never] {
        let (got, began) = play(&i, &Context::root(), replay, vec![(90, ok(200))]).await;
        assert_eq!((got.unwrap().answer.0, began.len()), (200, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn a_bad_answer_waits_for_the_other_attempt_and_when_both_are_bad_the_round_is_tried_again() {
    let i = Instance::new(&hedging());
    let (got, _) = play(&i, &Context::root(), Replay::Safe, vec![(40, ok(503)), (50, ok(200))]).await;
    assert_eq!((got.unwrap().answer.0, i.stats().retries), (200, 0));
    let script = vec![(40, ok(503)), (20, ok(503)), (0, ok(200))];
    let (got, began) = play(&i, &Context::root(), Replay::Safe, script).await;
    let done = got.unwrap();
    assert_eq!((done.answer.0, done.attempts, began), (200, 3, vec![0, 30, 70]), "backoff after two attempts: 20 ms");
    let (got, began) = play(&i, &Context::root(), Replay::Safe, vec![(40, ok(404)), (50, ok(200))]).await;
    assert_eq!((got.unwrap().answer.0, began.len()), (404, 2), "a refusal settles it");
}

#[tokio::test(start_paused = true)]
async fn each_of_a_rounds_attempts_has_its_own_timeout() {
    let (got, began) =
        play(&Instance::new(&hedging()), &Context::root(), Replay::Safe, vec![(500, ok(200)), (90, ok(201))]).await;
    assert_eq!(
        (got.unwrap().answer.0, began),
        (201, vec![0, 30]),
        "the first timed out at 100, the second came at 120"
    );
}

#[tokio::test(start_paused = true)]
async fn hedges_are_taken_from_the_retry_budget() {
    let mut p = hedging();
    p.retry = p.retry.map(|r| Retry { budget: 0.1, budget_min: 0, ..r });
    let i = Instance::new(&p);
    let mut attempts = 0;
    for _ in 0..100 {
        let (got, began) = play(&i, &Context::root(), Replay::Safe, vec![(40, ok(200)); 2]).await;
        attempts += began.len();
        assert_eq!(got.unwrap().answer.0, 200);
    }
    assert_eq!((attempts, i.stats().hedges), (110, 10));
}

#[tokio::test(start_paused = true)]
async fn a_hedge_by_percentile_waits_until_latencies_are_known() {
    let hedge = Some(Hedge { after: HedgeAfter::Share(0.9), max: 1 });
    let i = Instance::new(&Policy { hedge, ..policy() });
    let ctx = Context::root();
    for n in 0..1_000 {
        let (_, began) = play(&i, &ctx, Replay::Safe, vec![(10, ok(200))]).await;
        assert_eq!(began.len(), 1, "call {n}");
    }
    let (got, began) = play(&i, &ctx, Replay::Safe, vec![(90, ok(200)), (0, ok(201))]).await;
    assert_eq!(got.unwrap().answer.0, 201);
    assert!((10..=15).contains(&began[1]), "{began:?}");
}

#[tokio::test(start_paused = true)]
async fn an_adaptive_bulkhead_learns_from_attempts() {
    let adaptive = Some(crate::spec::Adaptive::default());
    let bulkhead = Some(crate::spec::Bulkhead { limit: 20, adaptive, ..Default::default() });
    let i = Instance::new(&Policy { bulkhead, retry: None, ..policy() });
    for _ in 0..200 {
        play(&i, &Context::root(), Replay::Safe, vec![(5, ok(429))]).await.0.unwrap();
    }
    assert!(i.bulkhead().limit().unwrap() < 10, "{:?}", i.bulkhead().limit());
}

#[tokio::test(start_paused = true)]
async fn work_without_hedges_does_not_carry_the_room_for_them() {
    let (i, ctx) = (Instance::new(&policy()), Context::root());
    let big = |_| async {
        let room = [0u8; 4_096];
        tokio::task::yield_now().await;
        std::hint::black_box(&room);
        ok(200)
    };
    let size = std::mem::size_of_val(&run(&i, &ctx, Replay::Safe, big));
    // The future that was made, and the one that is awaited under its timeout.
    assert!(size < 2 * 4_096 + 2_048, "{size}");
}
