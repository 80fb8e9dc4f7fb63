//! Telling every open connection, once, that it should end after what it is doing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Waker};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use hashbrown::HashMap;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};

/// A switch that turns on once, and the connections that watch it. Cheaper to watch than a channel: a connection looks at
/// it every time it is polled.
#[derive(Clone, Debug)]
pub struct Drain {
    shared: Arc<Shared>,
    /// Lives in every watch; when the last is gone the receiver sees the end.
    _alive: mpsc::Sender<()>,
}

#[derive(Debug, Default)]
struct Shared {
    on: AtomicBool,
    turned_on: Notify,
    wakers: Mutex<(u64, HashMap<u64, Arc<AtomicWaker>>)>,
}

/// The other end: waits until all connections are gone.
#[derive(Debug)]
pub struct Drained(mpsc::Receiver<()>);

impl Drain {
    /// A switch that is off, and the end that waits for its connections.
    pub fn new() -> (Self, Drained) {
        let (alive, gone) = mpsc::channel(1);
        (Self { shared: Arc::default(), _alive: alive }, Drained(gone))
    }

    /// Turns it on and wakes every connection.
    pub fn start(&self) {
        self.shared.on.store(true, Ordering::SeqCst);
        self.shared.turned_on.notify_waiters();
        for w in self.shared.wakers.lock().1.values() {
            w.wake();
        }
    }

    /// Whether it is on.
    pub fn is_on(&self) -> bool {
        self.shared.on.load(Ordering::SeqCst)
    }

    /// Resolves when it turns on.
    pub async fn started(&self) {
        let on = self.shared.turned_on.notified();
        let mut on = std::pin::pin!(on);
        // Registered before the look, so that a start between the two is not missed.
        on.as_mut().enable();
        if !self.is_on() {
            on.await;
        }
    }

    /// Registers one connection.
    pub(super) fn watch(&self) -> Watch {
        let waker = Arc::new(AtomicWaker::new());
        let mut w = self.shared.wakers.lock();
        w.0 += 1;
        let id = w.0;
        w.1.insert(id, waker.clone());
        drop(w);
        Watch { id, waker, drain: self.clone(), registered: None }
    }
}

/// One connection's view of the switch.
#[derive(Debug)]
pub(super) struct Watch {
    id: u64,
    waker: Arc<AtomicWaker>,
    drain: Drain,
    registered: Option<Waker>,
}

impl Watch {
    /// Whether the switch is on; if not, the task is woken when it turns on.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> bool {
        if self.registered.as_ref().is_none_or(|w| !w.will_wake(cx.waker())) {
            self.waker.register(cx.waker());
            self.registered = Some(cx.waker().clone());
        }
        self.drain.is_on()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.drain.shared.wakers.lock().1.remove(&self.id);
    }
}

impl Drained {
    /// Resolves when every connection is gone, `false` when the time was up first. Every [`Drain`] of the pair must have
    /// been dropped.
    pub async fn wait(mut self, limit: Duration) -> bool {
        tokio::time::timeout(limit, async { while self.0.recv().await.is_some() {} }).await.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn connections_are_woken_and_waited_for() {
        let (drain, drained) = Drain::new();
        let mut watch = drain.watch();
        let told = tokio::spawn(async move {
            std::future::poll_fn(
                |cx| if watch.poll(cx) { std::task::Poll::Ready(()) } else { std::task::Poll::Pending },
            )
            .await;
            tokio::time::sleep(Duration::from_secs(3)).await;
        });
        tokio::task::yield_now().await;
        assert!(!told.is_finished());
        drain.start();
        drain.started().await;
        drop(drain);
        assert!(drained.wait(Duration::from_secs(10)).await);
        assert!(told.is_finished());
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_ends_at_the_limit() {
        let (drain, drained) = Drain::new();
        let _stuck = drain.watch();
        drain.start();
        drop(drain);
        assert!(!drained.wait(Duration::from_secs(1)).await);
    }
}
