//! The stored form of a message in a queue's or topic's stream: a small header before the envelope, so that order and
//! delay are known without reading the event.
//!
//! Layout: format (1 byte), flags (1), key hash (8, little endian), not-before in milliseconds (8), the envelope.

use bytes::{BufMut, Bytes, BytesMut};
use weft_core::envelope::InvalidEnvelope;
use weft_core::{Envelope, Timestamp};
use xxhash_rust::xxh3::xxh3_64;

const FORMAT: u8 = 1;
const HEADER: usize = 18;
const KEYED: u8 = 1;

/// A message as it lies in its stream.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Record {
    /// Hash of the ordering key; `None` = no order asked.
    pub key: Option<u64>,
    /// Not to be delivered before this instant; zero = at once.
    pub not_before: Timestamp,
    /// The envelope's stored form.
    pub envelope: Bytes,
}

/// The hash that decides partition and order.
pub(crate) fn key_hash(key: &str) -> u64 {
    xxh3_64(key.as_bytes())
}

pub(crate) fn encode(key: Option<u64>, not_before: Timestamp, envelope: &Envelope) -> Bytes {
    let body = envelope.encode();
    let mut out = BytesMut::with_capacity(HEADER + body.len());
    out.put_u8(FORMAT);
    out.put_u8(if key.is_some() { KEYED } else { 0 });
    out.put_u64_le(key.unwrap_or(0));
    out.put_u64_le(not_before.0);
    out.put_slice(&body);
    out.freeze()
}

pub(crate) fn decode(payload: &Bytes) -> Result<Record, InvalidEnvelope> {
    let bad = |what: String| InvalidEnvelope::Stored(what);
    let Some((head, _)) = payload.split_at_checked(HEADER) else {
        return Err(bad(format!("a message of {} bytes is too short", payload.len())));
    };
    if head[0] != FORMAT {
        return Err(bad(format!("message format {}, this binary reads {FORMAT}", head[0])));
    }
    let word = |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().expect("eight bytes of a header of 18"));
    Ok(Record {
        key: (head[1] & KEYED != 0).then(|| word(2)),
        not_before: Timestamp(word(10)),
        envelope: payload.slice(HEADER..),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_record_reads_back_with_its_key_and_delay() {
        let e = Envelope::json("/s", "T", &json!({"a": 1}));
        for (key, at) in [(None, 0), (Some(7), 0), (Some(u64::MAX), 1_700_000_000_123)] {
            let r = decode(&encode(key, Timestamp(at), &e)).unwrap();
            assert_eq!((r.key, r.not_before), (key, Timestamp(at)));
            assert_eq!(Envelope::decode(r.envelope).unwrap(), e);
        }
    }

    #[test]
    fn a_short_or_foreign_record_is_an_error_that_says_so() {
        assert!(decode(&Bytes::from_static(b"short")).is_err());
        let mut bytes = encode(None, Timestamp(0), &Envelope::json("/s", "T", &json!(1))).to_vec();
        bytes[0] = 9;
        assert!(decode(&bytes.into()).unwrap_err().to_string().contains("format 9"));
    }
}
