//! Named tasks and one way to stop: a [`Shutdown`] token every task watches.

use std::future::Future;

use tokio::sync::watch;
use tokio::task::JoinHandle;

/// A clonable signal that turns on once.
#[derive(Clone, Debug)]
pub struct Shutdown {
    tx: std::sync::Arc<watch::Sender<bool>>,
    rx: watch::Receiver<bool>,
}

impl Default for Shutdown {
    fn default() -> Self {
        Self::new()
    }
}

impl Shutdown {
    /// A token nobody has triggered.
    pub fn new() -> Self {
        let (tx, rx) = watch::channel(false);
        Self { tx: std::sync::Arc::new(tx), rx }
    }

    /// Turns it on for every clone.
    pub fn trigger(&self) {
        self.tx.send_replace(true);
    }

    /// Whether it is on.
    pub fn is_triggered(&self) -> bool {
        *self.rx.borrow()
    }

    /// Resolves when it turns on.
    pub async fn triggered(&self) {
        let mut rx = self.rx.clone();
        // The sender lives in `self`, so the channel cannot close while this waits.
        let _ = rx.wait_for(|on| *on).await;
    }
}

/// Spawns a task on the current runtime; a panic in it is a bug and is printed with the task's name.
pub fn spawn<F>(name: &'static str, future: F) -> JoinHandle<()>
where
    F: Future<Output = ()> + Send + 'static,
{
    tokio::spawn(async move {
        let inner = tokio::spawn(future);
        if let Err(e) = inner.await
            && e.is_panic()
        {
            eprintln!("weft: task '{name}' panicked; this is a bug, please report it: {e}");
        }
    })
}
