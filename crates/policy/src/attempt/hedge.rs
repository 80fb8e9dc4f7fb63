//! Hedging: when an attempt has not ended after a while, another goes out beside it, and the first good answer counts
//! (Dean and Barroso, "The Tail at Scale", CACM 2013). Only where sending again is safe; each hedge is taken from the
//! retry budget and passes the breaker.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;

use tokio::time::Instant;
use tokio::time::error::Elapsed;
use weft_core::{Class, Deadline};

use super::{Attempt, Ended, give_up};
use crate::breaker::Permit;
use crate::instance::Instance;
use crate::outcome::Judged;
use crate::spec::Hedge;

/// An attempt under way.
struct Racer<'i, F> {
    future: Pin<Box<F>>,
    permit: Option<Permit<'i>>,
    began: Instant,
    give_up: Deadline,
    hedge: bool,
}

/// One round: the attempt that began it, and the hedges beside it.
pub(super) struct Race<'i, 'a> {
    pub instance: &'i Instance,
    pub hedge: Hedge,
    pub deadline: Deadline,
    pub attempts: &'a mut u32,
    pub doubt: &'a mut bool,
}

/// The future, until it is given up.
async fn limited<F: Future>(give_up: Deadline, future: F) -> Result<F::Output, Elapsed> {
    match give_up.instant() {
        Some(at) => tokio::time::timeout_at(at, future).await,
        None => Ok(future.await),
    }
}

/// The first of them to end.
async fn any<F: Future>(racers: &mut [Racer<'_, F>]) -> (usize, F::Output) {
    poll_fn(|cx| {
        for (i, r) in racers.iter_mut().enumerate() {
            if let Poll::Ready(done) = r.future.as_mut().poll(cx) {
                return Poll::Ready((i, done));
            }
        }
        Poll::Pending
    })
    .await
}

impl<'i> Race<'i, '_> {
    /// Runs it to the first answer that settles it, or to the end of the last attempt.
    pub(super) async fn run<T, E, F, S>(
        self,
        sent: F,
        permit: Option<Permit<'i>>,
        began: Instant,
        send: &mut S,
    ) -> Ended<'i, T, E>
    where
        T: Judged,
        E: Judged,
        F: Future<Output = Result<T, E>>,
        S: FnMut(Attempt) -> F,
    {
        let instance = self.instance;
        let first = give_up(instance.policy(), began, self.deadline);
        let mut racers = Vec::with_capacity(1 + self.hedge.max as usize);
        racers.push(Racer { future: Box::pin(limited(first, sent)), permit, began, give_up: first, hedge: false });
        let mut left = self.hedge.max;
        let delay = instance.hedge_delay();
        let mut due = delay.and_then(|d| began.checked_add(d)).filter(|_| left > 0);
        loop {
            let ended = match due {
                None => Some(any(&mut racers).await),
                Some(at) => tokio::select! {
                    biased;
                    ended = any(&mut racers) => Some(ended),
                    () = tokio::time::sleep_until(at) => None,
                },
            };
            let Some((i, result)) = ended else {
                let now = Instant::now();
                left -= 1;
                due = delay.and_then(|d| now.checked_add(d)).filter(|_| left > 0);
                let Ok(permit) = instance.breaker().map(|b| b.admit(instance.nanos(now))).transpose() else {
                    due = None;
                    continue;
                };
                if !instance.take_hedge(now) {
                    due = None;
                    continue;
                }
                *self.attempts += 1;
                let give_up = give_up(instance.policy(), now, self.deadline);
                let sent = send(Attempt { number: *self.attempts, deadline: give_up });
                let future = Box::pin(limited(give_up, sent));
                racers.push(Racer { future, permit, began: now, give_up, hedge: true });
                continue;
            };
            let Racer { permit, began, give_up, hedge, .. } = racers.swap_remove(i);
            let outcome = match &result {
                Ok(Ok(answer)) => Some(answer.outcome()),
                Ok(Err(e)) => Some(e.outcome()),
                Err(_) => None,
            };
            let settles = outcome.is_some_and(|o| matches!(o.failure, None | Some(Class::Rejected)));
            if settles || racers.is_empty() {
                let now = Instant::now();
                for other in &racers {
                    // It may take effect although nobody waits for it; and it was slower than this at least.
                    *self.doubt = true;
                    instance.timed(now - other.began);
                }
                if settles && hedge {
                    instance.hedge_won();
                }
                return Ended { result, permit, began, give_up };
            }
            // The others go on; this one only counts.
            let now = Instant::now();
            *self.doubt |= outcome.is_none_or(|o| o.in_doubt());
            if let Some(p) = permit {
                p.judge(instance.nanos(now), outcome.is_none_or(|o| o.breaker), now - began);
            }
        }
    }
}
