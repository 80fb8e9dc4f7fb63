//! HTTP/1.1 or HTTP/2 on a plain connection: a client that speaks HTTP/2 with prior knowledge (RFC 9113 3.3) begins
//! with the preface, which no HTTP/1.1 request can begin with.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};

const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Bytes up to which what is written in several pieces is written in one.
const GATHERED: usize = 1024;

/// A stream that first gives back what was read to look at it.
#[derive(Debug)]
pub(super) struct Prefixed<S> {
    seen: [u8; PREFACE.len()],
    from: u8,
    to: u8,
    io: S,
}

/// Reads until it is clear what the client speaks. `true` = HTTP/2; an end of the stream is HTTP/1.1's to handle.
pub(super) async fn is_h2<S: AsyncRead + Unpin>(mut io: S) -> io::Result<(bool, Prefixed<S>)> {
    let mut seen = [0; PREFACE.len()];
    let mut n = 0;
    loop {
        let got = io.read(&mut seen[n..]).await?;
        n += got;
        let h2 = seen[..n] == PREFACE[..n];
        if got == 0 || !h2 || n == PREFACE.len() {
            return Ok((h2 && n == PREFACE.len(), Prefixed { seen, from: 0, to: n as u8, io }));
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Prefixed<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.from < self.to {
            let left = &self.seen[self.from as usize..self.to as usize];
            let n = left.len().min(buf.remaining());
            buf.put_slice(&left[..n]);
            self.from += n as u8;
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Prefixed<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        // A small answer, head and body, costs less in one piece than as a vector that the kernel has to import.
        let mut gathered = [0; GATHERED];
        let mut n = 0;
        for buf in bufs {
            let Some(room) = gathered.get_mut(n..n + buf.len()) else {
                return Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
            };
            room.copy_from_slice(buf);
            n += buf.len();
        }
        Pin::new(&mut self.io).poll_write(cx, &gathered[..n])
    }
    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt as _;

    async fn sniff(chunks: &[&[u8]]) -> (bool, Vec<u8>) {
        let (mut client, server) = tokio::io::duplex(64);
        let write = async {
            for c in chunks {
                client.write_all(c).await.unwrap();
                tokio::task::yield_now().await;
            }
            drop(client);
        };
        let read = async {
            let (h2, mut io) = is_h2(server).await.unwrap();
            let mut all = Vec::new();
            io.read_to_end(&mut all).await.unwrap();
            (h2, all)
        };
        tokio::join!(write, read).1
    }

    #[tokio::test]
    async fn the_preface_is_recognised_in_pieces_and_given_back() {
        let (h2, all) = sniff(&[b"PRI * HT", b"TP/2.0\r\n\r\nSM\r\n\r\n", b"frames"]).await;
        assert!(h2);
        assert_eq!(all, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nframes");
    }

    #[tokio::test]
    async fn anything_else_is_http1_from_its_first_different_byte() {
        for text in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"P", b"PRI * HTTP/1.1\r\n", b"PUT / HTTP/1.1\r\n\r\n"] {
            let (h2, all) = sniff(&[text]).await;
            assert!(!h2);
            assert_eq!(all, text);
        }
    }
}
