//! A policy as a tower layer, for any program: whatever a service answers is judged, tried again, hedged, limited and
//! failed fast as the policy says.
//!
//! A call waits for nothing in `poll_ready`: readiness is asked of the service for each attempt, and limits are kept by
//! the policy. Requests are cloned for attempts after the first, so make them cheap to clone.
//!
//! ```
//! use tower_service::Service as _;
//! use tower_layer::Layer as _;
//! use weft_policy::attempt::Replay;
//! use weft_policy::tower::{PolicyLayer, PolicyError};
//! use weft_policy::{Instance, Policy, outcome};
//!
//! # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
//! # #[derive(Clone)] struct Flaky(std::sync::Arc<std::sync::atomic::AtomicU16>);
//! # impl tower_service::Service<&'static str> for Flaky {
//! #     type Response = u16; type Error = std::io::Error;
//! #     type Future = std::future::Ready<Result<u16, std::io::Error>>;
//! #     fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), std::io::Error>> {
//! #         std::task::Poll::Ready(Ok(()))
//! #     }
//! #     fn call(&mut self, _: &'static str) -> Self::Future {
//! #         let n = self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
//! #         std::future::ready(Ok(if n == 0 { 503 } else { 200 }))
//! #     }
//! # }
//! # let flaky = Flaky(Default::default());
//! // `flaky` answers with a status: first 503, then 200.
//! let layer = PolicyLayer::new(Instance::new(&Policy::builtin()), |done: &Result<u16, std::io::Error>| match done {
//!     Ok(status) => outcome::classify_http(*status),
//!     Err(_) => outcome::classify_transport(outcome::Transport::ResetBeforeBytes),
//! });
//! let mut service = layer.replay(|_: &&'static str| Replay::Safe).layer(flaky);
//! assert_eq!(service.call("GET /").await.unwrap(), 200);
//! # });
//! ```

use std::future::{Future, poll_fn};
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};

use tower_layer::Layer;
use tower_service::Service;
use weft_core::Context;

use crate::attempt::{self, Cause, Failure, Replay};
use crate::error::Refused;
use crate::instance::Instance;
use crate::outcome::{Judged, Outcome};

/// Says what an answer or an error means. Closures do.
pub trait Judge<T, E>: Send + Sync + 'static {
    /// What it means.
    fn judge(&self, done: &Result<T, E>) -> Outcome;
}

impl<T, E, F: Fn(&Result<T, E>) -> Outcome + Send + Sync + 'static> Judge<T, E> for F {
    fn judge(&self, done: &Result<T, E>) -> Outcome {
        self(done)
    }
}

/// For answers and errors that judge themselves.
#[derive(Clone, Copy, Debug)]
pub struct ByThemselves;

impl<T: Judged, E: Judged> Judge<T, E> for ByThemselves {
    fn judge(&self, done: &Result<T, E>) -> Outcome {
        match done {
            Ok(answer) => answer.outcome(),
            Err(e) => e.outcome(),
        }
    }
}

type MayReplay<R> = Arc<dyn Fn(&R) -> Replay + Send + Sync>;

/// Puts services under a policy. All services made by one layer, and its clones, share the policy's counters.
pub struct PolicyLayer<R, J> {
    policy: Instance,
    judge: Arc<J>,
    replay: Option<MayReplay<R>>,
}

/// A service under a policy.
pub struct PolicyService<S, R, J> {
    service: S,
    layer: PolicyLayer<R, J>,
    request: PhantomData<fn(R)>,
}

/// Why a call under a policy has no answer.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError<E> {
    /// The last attempt failed.
    #[error("{0}")]
    Service(E),
    /// The policy refused before anything was sent.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The last attempt took longer than `attempt_timeout`, or than was left until the deadline.
    #[error("no answer in time, after {attempts} attempts")]
    Timeout {
        /// Attempts made.
        attempts: u32,
    },
}

impl<R, J> PolicyLayer<R, J> {
    /// A layer that asks `judge` what answers mean. Until [`replay`](Self::replay) says otherwise a request is sent again
    /// only when it is certain that it did not arrive.
    pub fn new<T, E>(policy: Instance, judge: J) -> Self
    where
        J: Judge<T, E>,
    {
        Self { policy, judge: Arc::new(judge), replay: None }
    }

    /// Says of each request whether sending it again is safe.
    pub fn replay(self, may: impl Fn(&R) -> Replay + Send + Sync + 'static) -> Self {
        Self { replay: Some(Arc::new(may)), ..self }
    }

    /// The policy and its counters.
    pub fn policy(&self) -> &Instance {
        &self.policy
    }
}

impl<R, J> Clone for PolicyLayer<R, J> {
    fn clone(&self) -> Self {
        Self { policy: self.policy.clone(), judge: self.judge.clone(), replay: self.replay.clone() }
    }
}

impl<S: Clone, R, J> Clone for PolicyService<S, R, J> {
    fn clone(&self) -> Self {
        Self { service: self.service.clone(), layer: self.layer.clone(), request: PhantomData }
    }
}

impl<S, R, J> Layer<S> for PolicyLayer<R, J> {
    type Service = PolicyService<S, R, J>;

    fn layer(&self, service: S) -> Self::Service {
        PolicyService { service, layer: self.clone(), request: PhantomData }
    }
}

/// An answer or an error with what it means.
struct Told<T>(T, Outcome);

impl<T> Judged for Told<T> {
    fn outcome(&self) -> Outcome {
        self.1
    }
}

impl<S, R, J> Service<R> for PolicyService<S, R, J>
where
    S: Service<R> + Clone + Send + 'static,
    S::Future: Send,
    S::Response: Send,
    S::Error: Send,
    R: Clone + Send + Sync + 'static,
    J: Judge<S::Response, S::Error>,
{
    type Response = S::Response;
    type Error = PolicyError<S::Error>;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut TaskContext<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: R) -> Self::Future {
        let (service, layer) = (self.service.clone(), self.layer.clone());
        Box::pin(async move {
            let policy = &layer.policy;
            policy.check_rate(&())?;
            let ctx = Context { deadline: policy.deadline(weft_core::Deadline::NONE), ..Context::root() };
            let _slot = policy.acquire(ctx.deadline).await?;
            let replay = layer.replay.as_ref().map_or(Replay::OnlyIfUnsent, |may| may(&request));
            // Owned, so that the service need not be `Sync`.
            let judge = layer.judge.clone();
            let done = attempt::run(policy, &ctx, replay, move |_| {
                let (mut service, request, judge) = (service.clone(), request.clone(), judge.clone());
                async move {
                    let ready = poll_fn(|cx| service.poll_ready(cx)).await;
                    let done = match ready {
                        Ok(()) => service.call(request).await,
                        Err(e) => Err(e),
                    };
                    let outcome = judge.judge(&done);
                    match done {
                        Ok(answer) => Ok(Told(answer, outcome)),
                        Err(e) => Err(Told(e, outcome)),
                    }
                }
            });
            match done.await {
                Ok(done) => Ok(done.answer.0),
                Err(Failure { cause: Cause::Attempt(e), .. }) => Err(PolicyError::Service(e.0)),
                Err(Failure { cause: Cause::Refused(r), .. }) => Err(r.into()),
                Err(Failure { cause: Cause::Timeout(_) | Cause::Deadline | Cause::SlowCaller, attempts, .. }) => {
                    Err(PolicyError::Timeout { attempts })
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    use super::*;
    use crate::outcome::{Transport, classify_http, classify_transport};
    use crate::spec::{Breaker, Bulkhead, Policy};

    /// Answers in turn; the request is how long it takes in milliseconds.
    #[derive(Clone)]
    struct Script(Arc<(AtomicU32, Vec<u16>)>);

    impl Script {
        fn new(answers: &[u16]) -> Self {
            Self(Arc::new((AtomicU32::new(0), answers.to_vec())))
        }

        fn calls(&self) -> u32 {
            self.0.0.load(Ordering::SeqCst)
        }
    }

    impl Service<u64> for Script {
        type Response = u16;
        type Error = std::io::Error;
        type Future = Pin<Box<dyn Future<Output = Result<u16, std::io::Error>> + Send>>;

        fn poll_ready(&mut self, _: &mut TaskContext<'_>) -> Poll<Result<(), std::io::Error>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, ms: u64) -> Self::Future {
            let n = self.0.0.fetch_add(1, Ordering::SeqCst) as usize;
            let status = self.0.1[n.min(self.0.1.len() - 1)];
            Box::pin(async move {
                tokio::time::sleep(Duration::from_millis(ms)).await;
                if status == 0 { Err(std::io::Error::other("broken")) } else { Ok(status) }
            })
        }
    }

    fn judge(done: &Result<u16, std::io::Error>) -> Outcome {
        match done {
            Ok(status) => classify_http(*status),
            Err(_) => classify_transport(Transport::ResetBeforeBytes),
        }
    }

    fn under(
        policy: Policy,
        script: &Script,
        replay: Replay,
    ) -> impl Service<u64, Response = u16, Error = PolicyError<std::io::Error>, Future: Send> + Clone + use<> {
        PolicyLayer::new(Instance::new(&policy), judge).replay(move |_: &u64| replay).layer(script.clone())
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_is_tried_again_where_that_is_safe() {
        let script = Script::new(&[503, 0, 200]);
        assert_eq!(under(Policy::builtin(), &script, Replay::Safe).call(0).await.unwrap(), 200);
        assert_eq!(script.calls(), 3);
        let script = Script::new(&[503, 200]);
        assert_eq!(under(Policy::builtin(), &script, Replay::OnlyIfUnsent).call(0).await.unwrap(), 503);
        let script = Script::new(&[0]);
        let e = under(Policy::builtin(), &script, Replay::Safe).call(0).await.unwrap_err();
        assert!(matches!(e, PolicyError::Service(_)) && script.calls() == 3, "{e}");
    }

    #[tokio::test(start_paused = true)]
    async fn too_slow_is_a_timeout_and_too_many_are_refused() {
        let bulkhead = Some(Bulkhead { limit: 1, ..Bulkhead::default() });
        let policy = Policy { bulkhead, retry: None, ..Policy::builtin() };
        let script = Script::new(&[200]);
        let mut service = under(policy, &script, Replay::Safe);
        let mut other = service.clone();
        let slow = tokio::spawn(service.call(60_000));
        tokio::task::yield_now().await;
        assert!(matches!(other.call(0).await, Err(PolicyError::Refused(Refused::BulkheadFull { .. }))));
        assert!(matches!(slow.await.unwrap(), Err(PolicyError::Timeout { attempts: 1 })));
        assert_eq!(other.call(0).await.unwrap(), 200);
    }

    #[tokio::test(start_paused = true)]
    async fn an_open_breaker_calls_nobody() {
        let breaker = Some(Breaker { min_calls: 2, window: 2, ..Breaker::default() });
        let script = Script::new(&[500]);
        let mut service = under(Policy { breaker, retry: None, ..Policy::builtin() }, &script, Replay::Safe);
        for _ in 0..5 {
            let _ = service.call(0).await;
        }
        assert_eq!(script.calls(), 2);
        assert!(matches!(service.call(0).await, Err(PolicyError::Refused(Refused::BreakerOpen { .. }))));
    }
}
