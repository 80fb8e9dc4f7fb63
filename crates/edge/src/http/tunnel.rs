//! An upgraded connection: bytes both ways until one side ends, both are silent for too long, or Weft stops.
//!
//! The place in the bulkhead, the place among the listener's connections and the span last as long as it does.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::Instant;
use weft_core::limits;
use weft_mesh::Incoming;

use super::record::Exchange;
use crate::listener::{Drain, Peer};

/// Both ends, before they are there.
#[derive(Debug)]
pub(crate) struct Tunnel {
    pub(super) client: OnUpgrade,
    pub(super) service: Incoming,
    /// `None`: silence has no limit.
    pub(super) idle: Option<Duration>,
    pub(super) drain: Drain,
    pub(super) peer: Arc<Peer>,
}

impl Tunnel {
    /// Goes on in a task of this thread.
    pub(super) fn start(self, record: Box<Exchange>) {
        // Not `core::task::spawn`: one for each connection, on the thread that has it.
        tokio::spawn(self.run(record));
    }

    async fn run(self, mut record: Box<Exchange>) {
        let Tunnel { client, service, idle, drain, peer } = self;
        // A client that is gone, or never took the answer: the record says so when it is dropped.
        let Ok(Ok(client)) = tokio::time::timeout(limits::TUNNEL_OPEN, client).await else { return };
        let Some(service) = service.upgraded() else { return };
        let moved = Moved::new();
        let ended = tokio::select! {
            e = both(TokioIo::new(client), service, &moved) => e,
            e = silence(idle, &moved) => e,
            e = stopping(&drain) => e,
        };
        record.sent(moved.to_client.load(Ordering::Relaxed) as usize);
        record.received(moved.to_service.load(Ordering::Relaxed));
        match ended {
            End::Complete => record.finished(),
            End::Broken(e) => record.broke_off(&e),
            End::Silent(limit) => record.cut("idle-timeout", &format!("nothing was sent either way for {limit:?}")),
            End::Stopping => record.cut("shutting-down", "Weft stopped"),
        }
        drop(peer);
    }
}

enum End {
    Complete,
    Broken(io::Error),
    Silent(Duration),
    Stopping,
}

/// What went through.
struct Moved {
    began: Instant,
    /// Milliseconds after `began` when something last moved.
    last: AtomicU64,
    half: AtomicBool,
    to_client: AtomicU64,
    to_service: AtomicU64,
}

impl Moved {
    fn new() -> Self {
        Self {
            began: Instant::now(),
            last: AtomicU64::new(0),
            half: AtomicBool::new(false),
            to_client: AtomicU64::new(0),
            to_service: AtomicU64::new(0),
        }
    }

    fn now(&self) {
        self.last.store(self.began.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    fn last(&self) -> Instant {
        self.began + Duration::from_millis(self.last.load(Ordering::Relaxed))
    }
}

async fn both<A, B>(client: A, service: B, moved: &Moved) -> End
where
    A: AsyncRead + AsyncWrite,
    B: AsyncRead + AsyncWrite,
{
    let ((cr, cw), (sr, sw)) = (tokio::io::split(client), tokio::io::split(service));
    match tokio::try_join!(pump(cr, sw, &moved.to_service, moved), pump(sr, cw, &moved.to_client, moved)) {
        Ok(_) => End::Complete,
        Err(e) => End::Broken(e),
    }
}

/// One direction, to its end.
async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    bytes: &AtomicU64,
    moved: &Moved,
) -> io::Result<()> {
    let mut buf = vec![0; limits::TUNNEL_BUFFER];
    loop {
        let n = from.read(&mut buf).await?;
        moved.now();
        if n == 0 {
            moved.half.store(true, Ordering::Relaxed);
            return to.shutdown().await;
        }
        to.write_all(&buf[..n]).await?;
        to.flush().await?;
        bytes.fetch_add(n as u64, Ordering::Relaxed);
        moved.now();
    }
}

/// Resolves when nothing moved for too long; sooner once one side has ended.
async fn silence(idle: Option<Duration>, moved: &Moved) -> End {
    loop {
        let limit = match (idle, moved.half.load(Ordering::Relaxed)) {
            (Some(i), true) => i.min(limits::TUNNEL_HALF_CLOSED),
            (None, true) => limits::TUNNEL_HALF_CLOSED,
            (Some(i), false) => i,
            (None, false) => Duration::MAX,
        };
        let until = moved.last().checked_add(limit);
        if until.is_some_and(|u| u <= Instant::now()) {
            return if moved.half.load(Ordering::Relaxed) { End::Complete } else { End::Silent(limit) };
        }
        // Looked at again now and then: that one side ended shortens the time.
        let again = Instant::now() + limits::TUNNEL_HALF_CLOSED;
        tokio::time::sleep_until(until.map_or(again, |u| u.min(again))).await;
    }
}

async fn stopping(drain: &Drain) -> End {
    drain.started().await;
    tokio::time::sleep(limits::TUNNEL_DRAIN).await;
    End::Stopping
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future;
    use tokio::io::duplex;

    fn within<T>(f: impl Future<Output = T>) -> impl Future<Output = Result<T, tokio::time::error::Elapsed>> {
        tokio::time::timeout(Duration::from_secs(3_600), f)
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_it_and_a_byte_either_way_begins_the_time_again() {
        let ((client, mut c), (service, mut s)) = (duplex(64), duplex(64));
        let moved = Moved::new();
        let idle = Duration::from_secs(60);
        let traffic = async {
            for _ in 0..4 {
                tokio::time::sleep(Duration::from_secs(50)).await;
                c.write_all(b"x").await.unwrap();
                tokio::time::sleep(Duration::from_secs(50)).await;
                s.write_all(b"yy").await.unwrap();
            }
            std::future::pending::<()>().await;
        };
        let end = tokio::select! {
            e = both(client, service, &moved) => e,
            e = silence(Some(idle), &moved) => e,
            () = traffic => unreachable!(),
        };
        assert!(matches!(end, End::Silent(d) if d == idle));
        assert_eq!(moved.began.elapsed().as_secs(), 8 * 50 + 60);
        assert_eq!((moved.to_service.load(Ordering::Relaxed), moved.to_client.load(Ordering::Relaxed)), (4, 8));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_on_its_way_arrives_after_the_other_side_has_ended_and_then_not_much_is_waited_for() {
        let ((client, mut c), (service, mut s)) = (duplex(64), duplex(64));
        let moved = Moved::new();
        c.write_all(b"last words").await.unwrap();
        c.shutdown().await.unwrap();
        let service_side = async {
            let mut all = String::new();
            s.read_to_string(&mut all).await.unwrap();
            assert_eq!(all, "last words");
            s.write_all(b"bye").await.unwrap();
            let mut got = [0; 3];
            c.read_exact(&mut got).await.unwrap();
            assert_eq!(&got, b"bye");
            std::future::pending::<()>().await;
        };
        let end = within(async {
            tokio::select! {
                e = both(client, service, &moved) => e,
                e = silence(None, &moved) => e,
                () = service_side => unreachable!(),
            }
        });
        assert!(matches!(end.await.unwrap(), End::Complete));
        assert!(moved.began.elapsed() <= 2 * limits::TUNNEL_HALF_CLOSED);
    }

    #[tokio::test(start_paused = true)]
    async fn it_goes_on_for_a_while_when_weft_stops() {
        let (drain, _drained) = Drain::new();
        let began = Instant::now();
        drain.start();
        assert!(matches!(within(stopping(&drain)).await.unwrap(), End::Stopping));
        assert_eq!(began.elapsed(), limits::TUNNEL_DRAIN);
    }
}
