//! Spreads threads over a few cells, so that what each of them counts stays on its own core.

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};

/// On cache lines of its own (128: adjacent lines are fetched in pairs).
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Padded<T>(pub(crate) T);

impl<T> std::ops::Deref for Padded<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.0
    }
}

static NEXT: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static MINE: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// How many cells a sharded thing has on this machine: a power of two, 2 to 16.
pub(crate) fn count() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    // One more for the thread that runs broker and flow.
    (cores + 1).next_power_of_two().clamp(2, 16)
}

/// This thread's cell among `count`, a power of two.
#[inline]
pub(crate) fn mine(count: usize) -> usize {
    MINE.with(|m| {
        let mut i = m.get();
        if i == usize::MAX {
            i = NEXT.fetch_add(1, Ordering::Relaxed);
            m.set(i);
        }
        i & (count - 1)
    })
}
