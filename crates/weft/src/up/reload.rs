//! When to read the configuration again: SIGHUP, or a file of it changed.

use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

/// Editors write a file in several steps; a reload waits until they are quiet for this long.
const QUIET: Duration = Duration::from_millis(100);

/// What asked for a reload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// SIGHUP.
    Signal,
    /// A file changed.
    File,
}

/// Waits for causes to reload.
pub struct Triggers {
    hangup: tokio::signal::unix::Signal,
    changes: mpsc::Receiver<()>,
    watcher: Option<RecommendedWatcher>,
    files: Vec<PathBuf>,
}

impl Triggers {
    /// Listens for SIGHUP and watches the directories of the files: editors replace files, so the name is what counts.
    pub fn new(files: &[PathBuf]) -> std::io::Result<Self> {
        let (tx, changes) = mpsc::channel(1);
        let hangup = signal(SignalKind::hangup())?;
        let notify_of = move |event: notify::Result<notify::Event>| {
            if event.is_ok_and(|e| !e.kind.is_access()) {
                // A full channel already says that something changed.
                let _ = tx.try_send(());
            }
        };
        let watcher = match notify::recommended_watcher(notify_of) {
            Ok(w) => Some(w),
            Err(e) => {
                tracing::warn!(error = %e, "files are not watched; reload with SIGHUP");
                None
            }
        };
        let mut triggers = Self { hangup, changes, watcher, files: Vec::new() };
        triggers.watch(files);
        Ok(triggers)
    }

    /// Watches these files from now on.
    pub fn watch(&mut self, files: &[PathBuf]) {
        let Some(watcher) = &mut self.watcher else { return };
        for file in files.iter().filter(|f| !self.files.contains(f)) {
            let dir = file.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
            if let Err(e) = watcher.watch(dir, RecursiveMode::NonRecursive) {
                tracing::warn!(file = %file.display(), error = %e, "not watched; reload with SIGHUP");
            }
        }
        self.files = files.to_vec();
    }

    /// Resolves at the next cause.
    pub async fn next(&mut self) -> Cause {
        tokio::select! {
            _ = self.hangup.recv() => Cause::Signal,
            _ = self.changes.recv() => {
                while tokio::time::timeout(QUIET, self.changes.recv()).await.is_ok() {}
                Cause::File
            }
        }
    }
}
