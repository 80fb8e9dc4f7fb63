//! The HTTP/1.1 client's side of one connection (RFC 9112): no task of its own, no channel, no copy of the head.
//!
//! Whoever waits for an answer drives the connection: [`Conn::poll_head`] sends while it waits for the head, and
//! [`Conn::poll_frame`] goes on sending while the answer's body is read. A library's connection is a task beside the
//! request's, reached through channels; on the path of a proxied request that was a fifth of the user time. Heads and
//! chunk sizes are parsed by `httparse`; framing is strict, since what two programs read differently is how requests are
//! smuggled: an answer that is ambiguous is an error and ends its connection.

mod decode;
mod encode;
mod io;

use std::future::Future as _;
use std::io::{self as std_io, IoSlice};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf as _, Bytes, BytesMut};
use http::request::Parts;
use http::{HeaderValue, Method, StatusCode};
use http_body::{Body as _, Frame, SizeHint};
use tokio::io::{AsyncRead as _, AsyncReadExt as _, AsyncWrite as _, ReadBuf};

use self::decode::{Decoded, Framing, Head};
use crate::answer::reason;
use crate::body::{Body, BoxError};
use crate::outbound::Overlay;

pub(crate) use self::io::Io;

/// Bytes asked for at first, and at most at once.
const READ: (usize, usize) = (8 << 10, 64 << 10);
/// Heads before the one that counts (100, 103): more are an abuse.
const INTERIM: u32 = 16;

/// A connection, idle or with one exchange on it.
#[derive(Debug)]
pub(crate) struct Conn {
    io: Io,
    received: BytesMut,
    reading: Reading,
    /// Head and chunk sizes that go out before `frame`; `sent` bytes of it did.
    prefix: Vec<u8>,
    sent: usize,
    frame: Bytes,
    /// What is left of the line end after a chunk.
    suffix: &'static [u8],
    sending: Sending,
    /// TLS may hold back some of what was written.
    unflushed: bool,
    method: Method,
    keep: bool,
    wrote: bool,
    interim: u32,
}

#[derive(Debug)]
enum Sending {
    /// All of it is in the buffers, or gone.
    Done,
    /// So many bytes are left to come.
    Length(Body, u64),
    Chunked(Body),
    /// The other side takes no more; what it answers counts.
    Broken,
}

#[derive(Debug)]
enum Reading {
    Head,
    Body(Framing),
    Done,
}

/// Why an exchange failed.
#[derive(Debug)]
pub(crate) enum Failed {
    /// The caller's body.
    Body(BoxError),
    /// The connection was closed, or broke.
    Io(std_io::Error),
    /// The answer is not HTTP/1.1, or ambiguous.
    Malformed(&'static str),
}

impl Failed {
    /// The connection ended, and not by anything either side said wrongly.
    pub(crate) fn is_reset(&self) -> bool {
        use std_io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected, UnexpectedEof};
        match self {
            Failed::Io(e) => {
                matches!(e.kind(), UnexpectedEof | ConnectionReset | BrokenPipe | ConnectionAborted | NotConnected)
            }
            Failed::Body(_) | Failed::Malformed(_) => false,
        }
    }

    pub(crate) fn reason(&self) -> Arc<str> {
        match self {
            Failed::Body(e) => reason(&**e),
            Failed::Io(e) => reason(e),
            Failed::Malformed(what) => (*what).into(),
        }
    }
}

impl From<std_io::Error> for Failed {
    fn from(e: std_io::Error) -> Self {
        Failed::Io(e)
    }
}

impl Conn {
    pub(crate) fn new(io: Io) -> Self {
        Self {
            io,
            received: BytesMut::new(),
            reading: Reading::Done,
            prefix: Vec::with_capacity(512),
            sent: 0,
            frame: Bytes::new(),
            suffix: b"",
            sending: Sending::Done,
            unflushed: false,
            method: Method::GET,
            keep: true,
            wrote: false,
            interim: 0,
        }
    }

    /// Whether an idle connection can be used: the other side neither closed it nor said anything. Asks the runtime's
    /// knowledge of the socket, which is a system call only after something happened.
    pub(crate) fn is_open(&mut self) -> bool {
        let mut byte = [0; 1];
        let mut buf = ReadBuf::new(&mut byte);
        Pin::new(&mut self.io).poll_read(&mut Context::from_waker(Waker::noop()), &mut buf).is_pending()
    }

    /// Begins an exchange on an idle connection. Nothing is sent before [`poll_head`](Self::poll_head).
    pub(crate) fn begin(&mut self, head: &Parts, overlay: &Overlay<'_>, host: &HeaderValue, body: Body) {
        debug_assert!(self.is_idle());
        let hint = body.size_hint().exact();
        self.prefix.clear();
        encode::head(&mut self.prefix, head, overlay, host, &body, hint);
        self.sending = match hint {
            Some(0) => Sending::Done,
            Some(n) => Sending::Length(body, n),
            None => Sending::Chunked(body),
        };
        (self.sent, self.wrote, self.interim) = (0, false, 0);
        self.method.clone_from(&head.method);
        self.reading = Reading::Head;
    }

    /// The body of an exchange of which not one byte went out.
    pub(crate) fn take_back(&mut self) -> Option<Body> {
        if self.wrote {
            return None;
        }
        let frame = std::mem::take(&mut self.frame);
        match std::mem::replace(&mut self.sending, Sending::Broken) {
            Sending::Length(body, _) | Sending::Chunked(body) if frame.is_empty() => Some(body),
            Sending::Length(body, _) | Sending::Chunked(body) => Some(Body::resumed(frame, body)),
            Sending::Done | Sending::Broken => Some(frame.into()),
        }
    }

    /// Sends, and waits for the head of the answer.
    pub(crate) fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<http::response::Parts, Failed>> {
        self.go_on_sending(cx)?;
        loop {
            if !self.received.is_empty()
                && let Some(Head { parts, framing, keep }) = decode::head(&mut self.received, &self.method)?
            {
                if parts.status.is_informational() && parts.status != StatusCode::SWITCHING_PROTOCOLS {
                    self.interim += 1;
                    if self.interim > INTERIM {
                        return Poll::Ready(Err(Failed::Malformed("too many informational answers")));
                    }
                    continue;
                }
                self.keep = keep && parts.status != StatusCode::SWITCHING_PROTOCOLS;
                self.reading = if framing.is_end() { Reading::Done } else { Reading::Body(framing) };
                return Poll::Ready(Ok(parts));
            }
            if ready!(self.poll_read(cx, READ.0))? == 0 {
                return Poll::Ready(Err(closed()));
            }
        }
    }

    /// The next frame of the answer's body.
    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Failed>>> {
        self.go_on_sending(cx)?;
        loop {
            let Reading::Body(framing) = &mut self.reading else { return Poll::Ready(None) };
            match framing.decode(&mut self.received).map_err(Failed::Malformed)? {
                Decoded::Data(data) => {
                    if framing.is_end() {
                        self.reading = Reading::Done;
                    }
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Decoded::End(trailers) => {
                    self.reading = Reading::Done;
                    return Poll::Ready(trailers.map(|t| Ok(Frame::trailers(t))));
                }
                Decoded::More(wanted) => {
                    let until_close = matches!(framing, Framing::UntilClose);
                    let wanted = wanted.clamp(READ.0, READ.1);
                    if ready!(self.poll_read(cx, wanted))? == 0 {
                        self.keep = false;
                        self.reading = Reading::Done;
                        return Poll::Ready(if until_close { None } else { Some(Err(closed())) });
                    }
                }
            }
        }
    }

    /// Whether the answer was read to its end.
    pub(crate) fn has_ended(&self) -> bool {
        matches!(self.reading, Reading::Done)
    }

    /// The socket, and what was read of it already.
    pub(crate) fn into_parts(self) -> (Io, Bytes) {
        (self.io, self.received.freeze())
    }

    /// Whether anything of an answer came, be it not one.
    pub(crate) fn was_answered(&self) -> bool {
        self.interim > 0 || !self.received.is_empty() || !matches!(self.reading, Reading::Head)
    }

    /// What is known of the rest of the answer's body.
    pub(crate) fn size_hint(&self) -> SizeHint {
        match &self.reading {
            Reading::Body(Framing::Length(n)) => SizeHint::with_exact(*n),
            Reading::Body(_) | Reading::Head => SizeHint::default(),
            Reading::Done => SizeHint::with_exact(0),
        }
    }

    /// Whether another exchange may use it: both sides are through with the last one, and nothing more was said.
    pub(crate) fn is_idle(&self) -> bool {
        self.keep
            && self.has_ended()
            && matches!(self.sending, Sending::Done)
            && self.has_left()
            && self.received.is_empty()
    }

    /// Sends what can be sent now. An error of the socket is not the end: the other side may have answered before it
    /// stopped listening.
    fn go_on_sending(&mut self, cx: &mut Context<'_>) -> Result<(), Failed> {
        if matches!(self.sending, Sending::Broken) || (matches!(self.sending, Sending::Done) && self.has_left()) {
            return Ok(());
        }
        match self.poll_send(cx) {
            Poll::Ready(Err(Failed::Io(e))) if self.wrote => {
                tracing::trace!("sending the request: {e}");
                self.sending = Sending::Broken;
                Ok(())
            }
            Poll::Ready(done) => done,
            Poll::Pending => Ok(()),
        }
    }

    /// Whether all that was taken of the request is with the operating system.
    fn has_left(&self) -> bool {
        !self.has_unsent() && !self.unflushed
    }

    fn has_unsent(&self) -> bool {
        self.sent < self.prefix.len() || !self.frame.is_empty() || !self.suffix.is_empty()
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failed>> {
        loop {
            // A small body leaves in the same segment as its head.
            let waits = self.frame.is_empty() && self.suffix.is_empty() && self.poll_body(cx)?.is_pending();
            while self.has_unsent() {
                let parts = [&self.prefix[self.sent..], &self.frame, self.suffix].map(IoSlice::new);
                let one = self.frame.is_empty() && self.suffix.is_empty();
                let n = ready!(if one {
                    Pin::new(&mut self.io).poll_write(cx, &parts[0])
                } else {
                    Pin::new(&mut self.io).poll_write_vectored(cx, &parts)
                })?;
                if n == 0 {
                    return Poll::Ready(Err(std_io::Error::from(std_io::ErrorKind::WriteZero).into()));
                }
                (self.wrote, self.unflushed) = (true, true);
                self.advance(n);
            }
            ready!(Pin::new(&mut self.io).poll_flush(cx))?;
            self.unflushed = false;
            if matches!(self.sending, Sending::Done) {
                return Poll::Ready(Ok(()));
            }
            if waits {
                return Poll::Pending;
            }
        }
    }

    /// `n` bytes went out.
    fn advance(&mut self, mut n: usize) {
        let of_prefix = n.min(self.prefix.len() - self.sent);
        self.sent += of_prefix;
        n -= of_prefix;
        if self.sent == self.prefix.len() {
            self.prefix.clear();
            self.sent = 0;
        }
        let of_frame = n.min(self.frame.len());
        self.frame.advance(of_frame);
        self.suffix = &self.suffix[n - of_frame..];
    }

    /// Takes the body's next frame into the buffers.
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failed>> {
        let body = match &mut self.sending {
            Sending::Done | Sending::Broken => return Poll::Ready(Ok(())),
            Sending::Length(body, _) | Sending::Chunked(body) => body,
        };
        let next = ready!(Pin::new(body).poll_frame(cx)).transpose().map_err(Failed::Body)?;
        let next = next.map(Frame::into_data);
        match (&mut self.sending, next) {
            (Sending::Length(_, left), Some(Ok(data))) => {
                let n = data.len() as u64;
                if n > *left {
                    return Poll::Ready(Err(Failed::Body("it is longer than was announced".into())));
                }
                *left -= n;
                self.frame = data;
                if *left == 0 {
                    self.sending = Sending::Done;
                }
            }
            // Trailers have no place after a body of a known length.
            (Sending::Length(..), Some(Err(_))) => {}
            (Sending::Length(_, left), None) => {
                if *left > 0 {
                    return Poll::Ready(Err(Failed::Body("it is shorter than was announced".into())));
                }
                self.sending = Sending::Done;
            }
            (Sending::Chunked(_), Some(Ok(data))) => {
                if !data.is_empty() {
                    encode::chunk(&mut self.prefix, data.len());
                    (self.frame, self.suffix) = (data, b"\r\n");
                }
            }
            (Sending::Chunked(_), Some(Err(frame))) => {
                encode::end(&mut self.prefix, frame.into_trailers().ok().as_ref());
                self.sending = Sending::Done;
            }
            (Sending::Chunked(_), None) => {
                encode::end(&mut self.prefix, None);
                self.sending = Sending::Done;
            }
            (Sending::Done | Sending::Broken, _) => {}
        }
        Poll::Ready(Ok(()))
    }

    /// Receives; 0 at the end of the stream.
    fn poll_read(&mut self, cx: &mut Context<'_>, wanted: usize) -> Poll<std_io::Result<usize>> {
        if self.received.capacity() - self.received.len() < READ.0 / 4 {
            self.received.reserve(wanted);
        }
        pin!(self.io.read_buf(&mut self.received)).poll(cx)
    }
}

fn closed() -> Failed {
    Failed::Io(std_io::Error::new(std_io::ErrorKind::UnexpectedEof, "the connection was closed"))
}

impl From<&'static str> for Failed {
    fn from(what: &'static str) -> Self {
        Failed::Malformed(what)
    }
}

#[cfg(test)]
mod tests;
