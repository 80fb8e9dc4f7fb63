//! Takes durable groups into the key-value view, on a thread of its own.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::embedded::Shared;
use crate::group::Group;
use crate::{Error, Result};

/// How long the applier waits before it tries a failed group again.
const RETRY: Duration = Duration::from_secs(1);

#[derive(Default)]
struct Inner {
    groups: VecDeque<Arc<Group>>,
    busy: bool,
    failed: Option<Error>,
    ended: bool,
}

/// Durable groups on their way to the key-value view.
#[derive(Default)]
pub(crate) struct Applier {
    inner: Mutex<Inner>,
    /// Something came, or the end.
    wake: Condvar,
    /// A group was taken in.
    done: Condvar,
}

impl Applier {
    /// Hands over a durable group.
    pub(crate) fn push(&self, group: Arc<Group>) {
        self.inner.lock().groups.push_back(group);
        self.wake.notify_one();
    }

    /// Waits until everything up to and with a sequence is taken in.
    pub(crate) fn wait_through(&self, sequence: u64) -> Result<()> {
        let mut q = self.inner.lock();
        while q.groups.front().is_some_and(|g| g.header.sequence <= sequence) {
            if let Some(e) = &q.failed {
                return Err(e.clone());
            }
            self.done.wait(&mut q);
        }
        Ok(())
    }

    /// Forgets what waits, once no group is being taken in: recovery replays it.
    pub(crate) fn reset(&self) {
        let mut q = self.inner.lock();
        while q.busy {
            self.done.wait(&mut q);
        }
        q.groups.clear();
        q.failed = None;
    }

    /// Ends the thread once the queue is empty, or cannot be emptied.
    pub(crate) fn end(&self) {
        self.inner.lock().ended = true;
        self.wake.notify_one();
    }
}

/// Takes one group in.
pub(crate) fn apply(shared: &Shared, group: &Group) -> Result<()> {
    shared.kv.apply(group)?;
    let mut views = shared.views.write();
    views.overlay.release(group);
    shared.note_crowding(&views);
    Ok(())
}

/// The thread.
pub(crate) fn run(shared: &Shared) {
    let applier = &shared.applier;
    loop {
        let group = {
            let mut q = applier.inner.lock();
            loop {
                if let Some(group) = q.groups.front() {
                    let group = group.clone();
                    q.busy = true;
                    break group;
                }
                if q.ended {
                    return;
                }
                applier.wake.wait(&mut q);
            }
        };
        let outcome = apply(shared, &group);
        let mut q = applier.inner.lock();
        q.busy = false;
        q.failed = outcome.err();
        match &q.failed {
            None => drop(q.groups.pop_front()),
            Some(e) => {
                tracing::error!(error = %e, "the key-value view does not take a group in; trying again");
                applier.done.notify_all();
                if q.ended {
                    return;
                }
                applier.wake.wait_for(&mut q, RETRY);
            }
        }
        applier.done.notify_all();
    }
}
