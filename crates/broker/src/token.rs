//! Lease tokens: what a receiver hands back to settle a delivery. Opaque text to clients.
//!
//! The token carries all that settling needs, the trace of the delivery included, so that nothing about a delivery
//! has to be remembered for as long as a slow consumer takes.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use weft_core::trace::{SpanId, TraceId};
use weft_core::{Name, Trace};
use weft_store::Seq;
use xxhash_rust::xxh3::xxh3_64;

use crate::Source;

const FORMAT: u8 = 1;
const FIXED: usize = 1 + 1 + 4 + 8 + 8 + 4 + 16 + 8 + 1;
const CHECK: usize = 4;

/// One delivery: which message, under which lease.
#[derive(Clone, Debug, PartialEq)]
pub struct Lease {
    /// Where it was received from.
    pub source: Source,
    /// Which of the source's streams.
    pub lane: u32,
    /// The opening of the broker that gave it out; leases end with it.
    pub epoch: u64,
    /// The message's place in its stream.
    pub seq: Seq,
    /// Which delivery of the message.
    pub attempt: u32,
    /// The delivery's span.
    pub trace: Trace,
}

impl Lease {
    /// The text handed to the receiver.
    pub fn encode(&self) -> String {
        let (kind, name) = match &self.source {
            Source::Queue(n) => (0, n),
            Source::Subscription(n) => (1, n),
        };
        let mut b = Vec::with_capacity(FIXED + name.len() + CHECK);
        b.push(FORMAT);
        b.push(kind);
        b.extend_from_slice(&self.lane.to_le_bytes());
        b.extend_from_slice(&self.epoch.to_le_bytes());
        b.extend_from_slice(&self.seq.to_le_bytes());
        b.extend_from_slice(&self.attempt.to_le_bytes());
        b.extend_from_slice(&self.trace.trace_id.0.to_le_bytes());
        b.extend_from_slice(&self.trace.span_id.0.to_le_bytes());
        b.push(u8::from(self.trace.sampled));
        b.extend_from_slice(name.as_bytes());
        let check = xxh3_64(&b) as u32;
        b.extend_from_slice(&check.to_le_bytes());
        BASE64.encode(b)
    }

    /// Reads a token; `None` for anything that [`encode`](Self::encode) did not make.
    pub fn decode(text: &str) -> Option<Self> {
        let all = BASE64.decode(text).ok()?;
        let (b, check) = all.split_at_checked(all.len().checked_sub(CHECK)?)?;
        if b.len() <= FIXED || b[0] != FORMAT || check != (xxh3_64(b) as u32).to_le_bytes() {
            return None;
        }
        let u32_at = |at: usize| u32::from_le_bytes(b[at..at + 4].try_into().expect("length was checked"));
        let u64_at = |at: usize| u64::from_le_bytes(b[at..at + 8].try_into().expect("length was checked"));
        let name = Name::new(std::str::from_utf8(&b[FIXED..]).ok()?).ok()?;
        let trace_id = u128::from_le_bytes(b[26..42].try_into().expect("length was checked"));
        Some(Self {
            source: match b[1] {
                0 => Source::Queue(name),
                1 => Source::Subscription(name),
                _ => return None,
            },
            lane: u32_at(2),
            epoch: u64_at(6),
            seq: u64_at(14),
            attempt: u32_at(22),
            trace: Trace {
                trace_id: TraceId(trace_id),
                span_id: SpanId(u64_at(42)),
                parent: None,
                sampled: b[50] & 1 == 1,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease() -> Lease {
        Lease {
            source: Source::Subscription(Name::new("payment").unwrap()),
            lane: 3,
            epoch: u64::MAX - 5,
            seq: 42,
            attempt: 2,
            trace: Trace::root(),
        }
    }

    #[test]
    fn a_token_reads_back() {
        let l = lease();
        assert_eq!(Lease::decode(&l.encode()), Some(l));
    }

    #[test]
    fn a_changed_cut_or_foreign_token_is_refused() {
        let text = lease().encode();
        for i in 0..text.len() {
            let mut changed = text.clone().into_bytes();
            changed[i] = if changed[i] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(changed).unwrap();
            if let Some(l) = Lease::decode(&changed) {
                assert_eq!(l, lease(), "only the unused bits of the last digit may differ");
            }
            assert_eq!(Lease::decode(&text[..i]), None, "cut at {i}");
        }
        for bad in ["", "x", "not a token", "////"] {
            assert_eq!(Lease::decode(bad), None, "{bad}");
        }
    }
}
