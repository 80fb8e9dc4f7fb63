//! Connections of this thread, by endpoint. Nothing here is shared between threads, so nothing is locked.
//!
//! HTTP/1.1: idle connections are taken last in, first out, so that those not needed grow old and are closed. One that
//! the peer closed is noticed when it is taken or swept, and let go. HTTP/2: a few connections that many requests share.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures_util::FutureExt as _;
use futures_util::future::Shared;
use hashbrown::HashMap;
use tokio::time::Instant;
use weft_core::limits;

use crate::connect::{self, H1, H2};
use crate::endpoint::Endpoint;
use crate::error::Error;
use crate::observe::Meter;

/// Streams that every HTTP/2 connection has open before another connection is made; also what a new one may open before
/// the peer has told its own limit.
pub(crate) const H2_SPREAD: usize = 16;
/// How often idle connections are looked through.
const SWEEP: std::time::Duration = std::time::Duration::from_secs(5);

type Opening = Shared<Pin<Box<dyn Future<Output = Result<H2, Error>> + Send>>>;

struct Pool {
    endpoint: Arc<Endpoint>,
    /// The newest at the back.
    h1: VecDeque<(H1, Instant)>,
    h2: Vec<(H2, Instant)>,
    /// The HTTP/2 connection that is being made, for all who wait for it.
    opening: Option<Opening>,
}

thread_local! {
    static POOLS: RefCell<HashMap<u64, Pool>> = RefCell::new(HashMap::new());
    static SWEEPING: Cell<bool> = const { Cell::new(false) };
}

/// Runs on this thread's pool of an endpoint; `None` while the thread ends.
fn with<T>(endpoint: &Arc<Endpoint>, f: impl FnOnce(&mut Pool) -> T) -> Option<T> {
    POOLS
        .try_with(|pools| {
            let mut pools = pools.borrow_mut();
            let pool = pools.entry(endpoint.id).or_insert_with(|| Pool {
                endpoint: endpoint.clone(),
                h1: VecDeque::new(),
                h2: Vec::new(),
                opening: None,
            });
            f(pool)
        })
        .ok()
}

/// An idle HTTP/1.1 connection, the one used last.
pub(crate) fn take_h1(endpoint: &Arc<Endpoint>) -> Option<H1> {
    with(endpoint, |pool| {
        while let Some((mut conn, since)) = pool.h1.pop_back() {
            if since.elapsed() >= limits::UPSTREAM_IDLE_FOR {
                // What lies below is older still.
                pool.h1.clear();
                return None;
            }
            if conn.is_open() {
                return Some(conn);
            }
        }
        None
    })
    .flatten()
}

/// Takes an HTTP/1.1 connection back, if another exchange may use it.
pub(crate) fn give_h1(endpoint: &Arc<Endpoint>, conn: H1) {
    if !conn.is_idle() || endpoint.is_removed() {
        return;
    }
    with(endpoint, |pool| {
        if pool.h1.len() >= limits::UPSTREAM_IDLE {
            pool.h1.pop_front();
        }
        pool.h1.push_back((conn, Instant::now()));
    });
    sweep_later();
}

/// An HTTP/2 connection with room for a stream: the least used one, a new one while all are well used and there are
/// fewer than [`limits::UPSTREAM_H2_CONNECTIONS`], or, when all are full, the least full, where the stream waits its turn.
/// The flag tells whether it was there already.
pub(crate) async fn take_h2(endpoint: &Arc<Endpoint>, meter: &Arc<Meter>) -> Result<(H2, bool), Error> {
    sweep_later();
    let mut made = None;
    // Many may wait for one connection and find it full when they wake: look again, but not for ever.
    for _ in 0..limits::UPSTREAM_H2_CONNECTIONS {
        let opening = match with(endpoint, |pool| pool.find_h2(meter)) {
            Some(Ok(c)) => return Ok((c, made.is_none())),
            Some(Err(opening)) => opening,
            None => break,
        };
        made = Some(opening.await?);
        with(endpoint, Pool::absorb);
    }
    match made {
        Some(c) => Ok((c, false)),
        None => connect::h2(endpoint, meter).await.map(|c| (c, false)),
    }
}

/// Forgets an HTTP/2 connection that takes no more streams; those on it finish.
pub(crate) fn drop_h2(endpoint: &Arc<Endpoint>, connection: &H2) {
    with(endpoint, |pool| pool.h2.retain(|(c, _)| !Arc::ptr_eq(&c.active, &connection.active)));
}

impl Pool {
    /// A connection to use now, or the one to wait for.
    fn find_h2(&mut self, meter: &Arc<Meter>) -> Result<H2, Opening> {
        self.absorb();
        let load = |c: &H2| c.active.load(Ordering::Relaxed);
        let best = self.h2.iter_mut().min_by_key(|(c, _)| load(c)).map(|(c, used)| {
            *used = Instant::now();
            c.clone()
        });
        let room = best.as_ref().is_some_and(|c| load(c) < c.max_streams.load(Ordering::Relaxed));
        let spread = best.as_ref().is_some_and(|c| load(c) < H2_SPREAD);
        if self.opening.is_none() && !(room && spread) && self.h2.len() < limits::UPSTREAM_H2_CONNECTIONS {
            let (endpoint, meter) = (self.endpoint.clone(), meter.clone());
            let lost = Error::Unsent {
                service: endpoint.service.clone(),
                instance: endpoint.address.clone(),
                reason: "the thread that was connecting ended".into(),
            };
            // In a task, so that it goes on when the first who asked for it gives up.
            let task = tokio::spawn(async move { connect::h2(&endpoint, &meter).await });
            self.opening = Some(async move { task.await.unwrap_or(Err(lost)) }.boxed().shared());
        }
        match (best, &self.opening) {
            (Some(c), _) if room => Ok(c),
            (_, Some(opening)) => Err(opening.clone()),
            (Some(c), None) => Ok(c),
            (None, None) => unreachable!("with no connection, one is being made"),
        }
    }

    /// Takes in the connection that was being made, and lets closed ones go.
    fn absorb(&mut self) {
        self.h2.retain(|(c, _)| !c.sender.is_closed());
        if let Some(opening) = self.opening.take() {
            match opening.clone().now_or_never() {
                None => self.opening = Some(opening),
                Some(Ok(c)) if !c.sender.is_closed() => self.h2.push((c, Instant::now())),
                Some(_) => {}
            }
        }
    }

    /// Lets go of what is old or belongs to a removed endpoint; whether anything is left.
    fn sweep(&mut self, now: Instant) -> bool {
        let old = |since: Instant| now.duration_since(since) >= limits::UPSTREAM_IDLE_FOR;
        self.absorb();
        if self.endpoint.is_removed() {
            // Streams under way hold the connection themselves and finish.
            self.h1.clear();
            self.h2.clear();
        }
        self.h1.retain_mut(|(c, since)| !old(*since) && c.is_open());
        self.h2.retain(|(c, used)| c.active.load(Ordering::Relaxed) > 0 || !old(*used));
        !(self.h1.is_empty() && self.h2.is_empty() && self.opening.is_none())
    }
}

/// Looks through this thread's pools from time to time while there is something in them.
fn sweep_later() {
    struct Stop;
    impl Drop for Stop {
        fn drop(&mut self) {
            // Also when the runtime ends, so that the next one on this thread starts its own.
            let _ = SWEEPING.try_with(|s| s.set(false));
        }
    }
    if SWEEPING.try_with(|s| s.replace(true)).unwrap_or(true) {
        return;
    }
    let Ok(runtime) = tokio::runtime::Handle::try_current() else {
        drop(Stop);
        return;
    };
    let stop = Stop;
    runtime.spawn(async move {
        let _stop = stop;
        loop {
            tokio::time::sleep(SWEEP).await;
            let now = Instant::now();
            let left = POOLS.try_with(|pools| {
                let mut pools = pools.borrow_mut();
                pools.retain(|_, pool| pool.sweep(now));
                !pools.is_empty()
            });
            if !left.unwrap_or(false) {
                return;
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;
    use weft_core::Name;
    use weft_telemetry::Telemetry;

    use super::*;
    use crate::endpoint::test_endpoint;

    /// Idle connections of this thread to an endpoint.
    fn idle(endpoint: &Arc<Endpoint>) -> usize {
        with(endpoint, |pool| pool.h1.len()).unwrap_or_default()
    }

    /// An endpoint that takes connections and says nothing, and so many connections to it that are ready.
    async fn connected(n: usize) -> (Arc<Endpoint>, Vec<H1>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = test_endpoint(&listener.local_addr().unwrap().to_string());
        tokio::spawn(async move {
            let mut open = Vec::new();
            loop {
                open.push(listener.accept().await.unwrap());
            }
        });
        let meter = Meter::new(&Telemetry::new(), &Name::new("test").unwrap());
        let mut all = Vec::new();
        for _ in 0..n {
            all.push(connect::h1(&endpoint, &meter).await.unwrap());
        }
        (endpoint, all)
    }

    #[tokio::test]
    async fn no_more_idle_connections_are_kept_than_the_limit() {
        let (endpoint, all) = connected(limits::UPSTREAM_IDLE + 5).await;
        for conn in all {
            give_h1(&endpoint, conn);
        }
        assert_eq!(idle(&endpoint), limits::UPSTREAM_IDLE);
    }

    #[tokio::test]
    async fn idle_connections_grow_old_and_are_closed() {
        let (endpoint, mut all) = connected(3).await;
        tokio::time::pause();
        give_h1(&endpoint, all.remove(0));
        tokio::time::advance(limits::UPSTREAM_IDLE_FOR / 2).await;
        give_h1(&endpoint, all.remove(0));
        tokio::time::advance(limits::UPSTREAM_IDLE_FOR / 2).await;
        tokio::time::advance(SWEEP).await;
        tokio::task::yield_now().await;
        assert_eq!(idle(&endpoint), 1, "the sweep took the old one");
        tokio::time::advance(limits::UPSTREAM_IDLE_FOR / 2).await;
        assert!(take_h1(&endpoint).is_none(), "too old, swept or not");
        assert_eq!(idle(&endpoint), 0);
        give_h1(&endpoint, all.remove(0));
        assert!(take_h1(&endpoint).is_some());
    }

    #[tokio::test]
    async fn a_removed_endpoint_keeps_no_connection() {
        let (endpoint, mut all) = connected(2).await;
        give_h1(&endpoint, all.remove(0));
        endpoint.remove();
        give_h1(&endpoint, all.remove(0));
        assert_eq!(idle(&endpoint), 1, "the second was not taken");
        // The sweep falls asleep first.
        tokio::task::yield_now().await;
        tokio::time::pause();
        tokio::time::advance(2 * SWEEP).await;
        tokio::task::yield_now().await;
        assert_eq!(POOLS.with(|p| p.borrow().len()), 0, "the sweep took the first, and the pool");
    }
}
