//! W3C Trace Context (Recommendation, 23 November 2021): ids, parsing and printing of `traceparent`.

use std::fmt;

/// 16 bytes, never zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TraceId(pub u128);
/// 8 bytes, never zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpanId(pub u64);

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}
impl fmt::Debug for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}
impl fmt::Debug for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl TraceId {
    /// Reads 32 lowercase hex digits.
    pub fn parse(s: &str) -> Option<Self> {
        if s.len() != 32 {
            return None;
        }
        hex(s.as_bytes()).filter(|v| *v != 0).map(Self)
    }
}

impl SpanId {
    /// Reads 16 lowercase hex digits.
    pub fn parse(s: &str) -> Option<Self> {
        if s.len() != 16 {
            return None;
        }
        hex(s.as_bytes()).filter(|v| *v != 0).map(|v| Self(v as u64))
    }
}

/// A span's place in a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trace {
    /// The trace.
    pub trace_id: TraceId,
    /// This span.
    pub span_id: SpanId,
    /// The span that caused it.
    pub parent: Option<SpanId>,
    /// Whether the trace is to be kept.
    pub sampled: bool,
}

impl Trace {
    /// The first span of a new trace.
    pub fn root() -> Self {
        Self { trace_id: TraceId(rand::random::<u128>().max(1)), span_id: new_span(), parent: None, sampled: true }
    }

    /// A new span caused by this one.
    pub fn child(&self) -> Self {
        Self { span_id: new_span(), parent: Some(self.span_id), ..*self }
    }

    /// Reads a `traceparent` field value; the result IS the remote span, so work here is its [`child`](Self::child).
    /// `None` when the value is malformed: section 3.2.2.3 asks to start a new trace then.
    pub fn parse(value: &str) -> Option<Self> {
        let b = value.as_bytes();
        if b.len() < 55 || b[2] != b'-' || b[35] != b'-' || b[52] != b'-' {
            return None;
        }
        let version = hex(&b[..2])? as u8;
        if version == 0xff || (version == 0 && b.len() != 55) || (b.len() > 55 && b[55] != b'-') {
            return None;
        }
        let trace = hex(&b[3..35])?;
        let span = hex(&b[36..52])? as u64;
        let flags = hex(&b[53..55])? as u8;
        if trace == 0 || span == 0 {
            return None;
        }
        Some(Self { trace_id: TraceId(trace), span_id: SpanId(span), parent: None, sampled: flags & 1 == 1 })
    }

    /// The `traceparent` field value that names this span as the parent; 55 ASCII bytes.
    pub fn traceparent(&self) -> [u8; 55] {
        let mut out = *b"00-00000000000000000000000000000000-0000000000000000-00";
        put_hex(&mut out[3..35], self.trace_id.0);
        put_hex(&mut out[36..52], u128::from(self.span_id.0));
        out[54] = b'0' + u8::from(self.sampled);
        out
    }

    /// [`traceparent`](Self::traceparent) as a string.
    pub fn to_traceparent(&self) -> String {
        String::from_utf8_lossy(&self.traceparent()).into_owned()
    }
}

fn new_span() -> SpanId {
    SpanId(rand::random::<u64>().max(1))
}

fn hex(b: &[u8]) -> Option<u128> {
    b.iter().try_fold(0u128, |acc, c| {
        let d = match c {
            b'0'..=b'9' => c - b'0',
            b'a'..=b'f' => c - b'a' + 10,
            _ => return None,
        };
        Some(acc << 4 | u128::from(d))
    })
}

fn put_hex(out: &mut [u8], mut v: u128) {
    for slot in out.iter_mut().rev() {
        *slot = b"0123456789abcdef"[(v & 15) as usize];
        v >>= 4;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_traceparent_reads_and_prints_the_same() {
        let t = Trace::parse(EXAMPLE).unwrap();
        assert!(t.sampled);
        assert_eq!(t.to_traceparent(), EXAMPLE);
        let c = t.child();
        assert_eq!((c.trace_id, c.parent), (t.trace_id, Some(t.span_id)));
    }

    #[test]
    fn malformed_traceparents_are_refused() {
        for bad in [
            "",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x",
        ] {
            assert_eq!(Trace::parse(bad), None, "{bad}");
        }
        assert!(Trace::parse(&format!("01{}-more", &EXAMPLE[2..])).is_some(), "a later version may be longer");
    }
}
