//! A connection that became something else (101 Switching Protocols): bytes both ways from here on.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf as _, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::http1::Io;
use crate::observe::Attempted;

/// The service's end of an upgraded connection. The attempt that made it lasts as long as it does.
#[derive(Debug)]
pub struct Upgraded {
    /// What came with the answer's head.
    read: Bytes,
    io: Io,
    attempted: Option<Attempted>,
}

impl Upgraded {
    pub(crate) fn new((io, read): (Io, Bytes), attempted: Attempted) -> Self {
        Self { read, io, attempted: Some(attempted) }
    }
}

impl Drop for Upgraded {
    fn drop(&mut self) {
        if let Some(attempted) = self.attempted.take() {
            attempted.ended(None);
        }
    }
}

impl AsyncRead for Upgraded {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.read.is_empty() {
            return Pin::new(&mut self.io).poll_read(cx, buf);
        }
        let n = self.read.len().min(buf.remaining());
        buf.put_slice(&self.read[..n]);
        self.read.advance(n);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Upgraded {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
