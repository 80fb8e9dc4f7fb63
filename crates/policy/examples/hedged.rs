//! One call in twenty is slow. A hedge after 20 ms cuts the tail, at the price of a few more calls.
//!
//! `cargo run -p weft-policy --features tower --example hedged`

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tower_layer::Layer as _;
use tower_service::Service;
use weft_policy::attempt::Replay;
use weft_policy::outcome::{Outcome, classify_http};
use weft_policy::spec::{Hedge, HedgeAfter};
use weft_policy::tower::PolicyLayer;
use weft_policy::{Instance, Policy};

/// Takes 2 ms, and every twentieth time 200 ms.
#[derive(Clone, Default)]
struct Moody(Arc<AtomicU32>);

impl Service<()> for Moody {
    type Response = u16;
    type Error = std::convert::Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<u16, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, (): ()) -> Self::Future {
        let n = self.0.fetch_add(1, Ordering::Relaxed);
        let takes = Duration::from_millis(if n % 20 == 19 { 200 } else { 2 });
        Box::pin(async move {
            tokio::time::sleep(takes).await;
            Ok(200)
        })
    }
}

async fn worst_of_a_hundred(hedge: Option<Hedge>) -> (Duration, u32) {
    let policy = Instance::new(&Policy { hedge, ..Policy::builtin() });
    let judge = |done: &Result<u16, std::convert::Infallible>| done.map_or(Outcome::SUCCESS, classify_http);
    let moody = Moody::default();
    let mut service = PolicyLayer::new(policy, judge).replay(|(): &()| Replay::Safe).layer(moody.clone());
    let mut worst = Duration::ZERO;
    for _ in 0..100 {
        let began = Instant::now();
        service.call(()).await.expect("it always answers");
        worst = worst.max(began.elapsed());
    }
    (worst, moody.0.load(Ordering::Relaxed))
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let (alone, calls) = worst_of_a_hundred(None).await;
    println!("without hedges: the worst of 100 took {alone:?}, {calls} calls");
    let hedge = Hedge { after: HedgeAfter::Time(Duration::from_millis(20)), max: 1 };
    let (hedged, calls) = worst_of_a_hundred(Some(hedge)).await;
    println!("with hedges:    the worst of 100 took {hedged:?}, {calls} calls");
    assert!(hedged < alone);
}
