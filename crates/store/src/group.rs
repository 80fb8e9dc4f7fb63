//! Segments and commit groups as bytes.
//!
//! A segment starts with a block that gives this life of the file a generation and a random nonce. Groups follow,
//! each on a 4 KiB boundary, none sharing a block with another or spanning segments: a header, a directory of the
//! batches' entries, their bodies, zeros to the next boundary. The header's checksum is seeded with the nonce, so
//! neither an earlier life of the file nor bytes inside a payload can pass for a group.
//!
//! `chain` names a group by its content and all groups before it. It does not depend on the segment, so a group
//! that recovery copies keeps its name.

use bytes::Bytes;
use weft_core::Timestamp;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::entry::{Encoded, Entry};
use crate::wire::Reader;
use crate::{Error, Position, Result};

/// Groups start on multiples of this.
pub(crate) const BLOCK: usize = 4096;
/// The format this binary writes.
pub(crate) const VERSION: u16 = 1;
/// Bytes of a group's header.
pub(crate) const HEADER: usize = 112;

const SEGMENT_MAGIC: &[u8; 8] = b"weft-seg";
const GROUP_MAGIC: &[u8; 4] = b"wgrp";
const SEGMENT_HEADER: usize = 56;

/// Flag: the store was closed in order behind this group.
pub(crate) const CLEAN_CLOSE: u16 = 1;

/// Rounds up to whole blocks.
pub(crate) fn blocks(bytes: usize) -> usize {
    bytes.div_ceil(BLOCK) * BLOCK
}

/// The first block of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    /// Which life of which segment; increases with each use.
    pub(crate) generation: u64,
    /// Which opening of the store took it into use.
    pub(crate) epoch: u64,
    /// Seeds the groups' checksums.
    pub(crate) nonce: u64,
    /// The key its groups are encrypted with; 0 = not encrypted.
    pub(crate) key_id: u32,
}

impl SegmentHeader {
    pub(crate) fn encode(&self) -> [u8; BLOCK] {
        let mut b = [0; BLOCK];
        b[..8].copy_from_slice(SEGMENT_MAGIC);
        b[8..10].copy_from_slice(&VERSION.to_le_bytes());
        b[12..16].copy_from_slice(&self.key_id.to_le_bytes());
        b[16..24].copy_from_slice(&self.generation.to_le_bytes());
        b[24..32].copy_from_slice(&self.epoch.to_le_bytes());
        b[32..40].copy_from_slice(&self.nonce.to_le_bytes());
        let sum = xxh3_64(&b[..SEGMENT_HEADER - 8]);
        b[SEGMENT_HEADER - 8..SEGMENT_HEADER].copy_from_slice(&sum.to_le_bytes());
        b
    }

    /// `None` when these bytes are no segment header; an error when a newer binary wrote it.
    pub(crate) fn decode(b: &[u8]) -> Result<Option<Self>> {
        let Some(b) = b.get(..SEGMENT_HEADER) else { return Ok(None) };
        if &b[..8] != SEGMENT_MAGIC {
            return Ok(None);
        }
        let (head, sum) = b.split_at(SEGMENT_HEADER - 8);
        if Reader(sum).u64() != Some(xxh3_64(head)) {
            return Ok(None);
        }
        let mut r = Reader(&b[8..]);
        check_version("journal", r.u16().unwrap_or(0))?;
        let mut field = || -> Option<Self> {
            r.u16()?;
            let key_id = r.u32()?;
            Some(Self { key_id, generation: r.u64()?, epoch: r.u64()?, nonce: r.u64()? })
        };
        Ok(field())
    }
}

/// Refuses a format this binary does not know, before anything is touched.
pub(crate) fn check_version(what: &str, version: u16) -> Result<()> {
    if version == VERSION {
        return Ok(());
    }
    Err(Error::Directory(format!(
        "the {what} has format {version}, this binary reads format {VERSION}: open it with the Weft that wrote it, or a newer one"
    )))
}

/// A group's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct GroupHeader {
    pub(crate) flags: u16,
    /// The segment's generation.
    pub(crate) generation: u64,
    /// Which opening of the store wrote it.
    pub(crate) epoch: u64,
    /// Groups are numbered without gaps.
    pub(crate) sequence: u64,
    /// The highest sequence known durable when this one was written.
    pub(crate) durable: u64,
    /// The first batch's position; the others follow one by one.
    pub(crate) base: Position,
    pub(crate) time: Timestamp,
    pub(crate) batches: u32,
    pub(crate) dir_len: u32,
    pub(crate) dir_sum: u64,
    pub(crate) body_len: u32,
    /// The previous group's `chain`.
    pub(crate) prev: u64,
}

impl GroupHeader {
    /// Names the content and everything before it.
    pub(crate) fn chain(&self) -> u64 {
        let mut b = [0u8; 48];
        for (slot, v) in b.chunks_exact_mut(8).zip([
            self.sequence,
            self.base,
            self.time.0,
            u64::from(self.batches) << 32 | u64::from(self.dir_len),
            self.dir_sum,
            self.prev,
        ]) {
            slot.copy_from_slice(&v.to_le_bytes());
        }
        xxh3_64(&b)
    }

    /// Bytes on disk, padding included.
    pub(crate) fn disk_len(&self) -> usize {
        blocks(HEADER + self.dir_len as usize + self.body_len as usize)
    }

    /// The position after the last batch's.
    pub(crate) fn end(&self) -> Position {
        self.base + u64::from(self.batches)
    }

    pub(crate) fn encode(&self, nonce: u64, out: &mut [u8]) {
        out[..4].copy_from_slice(GROUP_MAGIC);
        out[4..6].copy_from_slice(&VERSION.to_le_bytes());
        out[6..8].copy_from_slice(&self.flags.to_le_bytes());
        let words = [self.generation, self.epoch, self.sequence, self.durable, self.base, self.time.0];
        let mut at = 8;
        let mut put = |bytes: &[u8]| {
            out[at..at + bytes.len()].copy_from_slice(bytes);
            at += bytes.len();
        };
        for w in words {
            put(&w.to_le_bytes());
        }
        put(&self.batches.to_le_bytes());
        put(&self.dir_len.to_le_bytes());
        put(&self.dir_sum.to_le_bytes());
        put(&self.body_len.to_le_bytes());
        put(&[0; 4]);
        put(&self.prev.to_le_bytes());
        put(&[0; 16]);
        let sum = xxh3_64_with_seed(&out[..HEADER - 8], nonce);
        out[HEADER - 8..HEADER].copy_from_slice(&sum.to_le_bytes());
    }

    /// `None` when these bytes are no header of this life of the segment.
    pub(crate) fn decode(b: &[u8], nonce: u64) -> Option<Self> {
        let b = b.get(..HEADER)?;
        if &b[..4] != GROUP_MAGIC {
            return None;
        }
        let (head, sum) = b.split_at(HEADER - 8);
        if Reader(sum).u64()? != xxh3_64_with_seed(head, nonce) {
            return None;
        }
        let mut r = Reader(&b[6..]);
        Some(Self {
            flags: r.u16()?,
            generation: r.u64()?,
            epoch: r.u64()?,
            sequence: r.u64()?,
            durable: r.u64()?,
            base: r.u64()?,
            time: Timestamp(r.u64()?),
            batches: r.u32()?,
            dir_len: r.u32()?,
            dir_sum: r.u64()?,
            body_len: r.u32()?,
            prev: {
                r.u32()?;
                r.u64()?
            },
        })
    }
}

/// A group in memory.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    pub(crate) header: GroupHeader,
    /// The entries.
    pub(crate) dir: Bytes,
    /// The bodies.
    pub(crate) body: Bytes,
    /// Batches whose body failed its checksum, by index.
    pub(crate) damaged: Vec<u32>,
}

/// One batch of a group in memory.
pub(crate) struct BatchRef<'a> {
    pub(crate) index: u32,
    pub(crate) position: Position,
    pub(crate) entry: Entry<'a>,
    /// Where its body starts in the group's.
    pub(crate) body_at: usize,
    /// Whether its body failed its checksum.
    pub(crate) damaged: bool,
}

impl Group {
    /// Its batches in order.
    pub(crate) fn batches(&self) -> impl Iterator<Item = BatchRef<'_>> {
        let mut dir: &[u8] = &self.dir;
        let (mut index, mut body_at) = (0, 0);
        std::iter::from_fn(move || {
            let entry = Entry::split(&mut dir)?;
            let batch = BatchRef {
                index,
                position: self.header.base + u64::from(index),
                entry,
                body_at,
                damaged: self.damaged.contains(&index),
            };
            body_at += entry.body_len;
            index += 1;
            Some(batch)
        })
    }

    /// Splits a group's bytes behind its header and checks them: `None` when the directory does not fit, else the
    /// group with its damaged batches marked.
    pub(crate) fn check(header: GroupHeader, bytes: &Bytes) -> Option<Self> {
        let dir_end = header.dir_len as usize;
        let body_end = dir_end + header.body_len as usize;
        if bytes.len() < body_end || xxh3_64(&bytes[..dir_end]) != header.dir_sum {
            return None;
        }
        let mut group =
            Self { header, dir: bytes.slice(..dir_end), body: bytes.slice(dir_end..body_end), damaged: Vec::new() };
        let mut damaged = Vec::new();
        for batch in group.batches() {
            let body = group.body.get(batch.body_at..batch.body_at + batch.entry.body_len);
            if !body.is_some_and(|b| batch.entry.fits(b)) {
                damaged.push(batch.index);
            }
        }
        group.damaged = damaged;
        Some(group)
    }

    /// Lays batches out behind a header; the header's lengths, count and checksum are filled in.
    pub(crate) fn build(mut header: GroupHeader, batches: &[Encoded], nonce: u64) -> (Vec<u8>, GroupHeader) {
        let dir_len: usize = batches.iter().map(|b| b.entry.len()).sum();
        let body_len: usize = batches.iter().map(|b| b.body.len()).sum();
        let mut out = Vec::with_capacity(blocks(HEADER + dir_len + body_len));
        out.resize(HEADER, 0);
        for b in batches {
            out.extend_from_slice(&b.entry);
        }
        header.batches = batches.len() as u32;
        header.dir_len = dir_len as u32;
        header.dir_sum = xxh3_64(&out[HEADER..]);
        header.body_len = body_len as u32;
        for b in batches {
            out.extend_from_slice(&b.body);
        }
        out.resize(blocks(out.len()), 0);
        header.encode(nonce, &mut out);
        (out, header)
    }

    /// Takes bytes that [`Group::build`] laid out, without checking them again.
    pub(crate) fn trusted(header: GroupHeader, bytes: Bytes) -> Self {
        let dir_end = HEADER + header.dir_len as usize;
        let body_end = dir_end + header.body_len as usize;
        Self { header, dir: bytes.slice(HEADER..dir_end), body: bytes.slice(dir_end..body_end), damaged: Vec::new() }
    }

    /// The same group as bytes for another segment.
    pub(crate) fn rebuild(&self, generation: u64, epoch: u64, durable: u64, nonce: u64) -> (Vec<u8>, GroupHeader) {
        let header = GroupHeader { generation, epoch, durable, ..self.header };
        let mut out = Vec::with_capacity(header.disk_len());
        out.resize(HEADER, 0);
        out.extend_from_slice(&self.dir);
        out.extend_from_slice(&self.body);
        out.resize(header.disk_len(), 0);
        header.encode(nonce, &mut out);
        (out, header)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::Batch;

    /// A group of batches as if it had been read back.
    pub(crate) fn group(sequence: u64, base: Position, batches: &[Encoded]) -> Group {
        let (bytes, h) = Group::build(GroupHeader { sequence, base, ..header() }, batches, 1);
        Group::trusted(h, Bytes::from(bytes))
    }

    fn header() -> GroupHeader {
        GroupHeader {
            flags: CLEAN_CLOSE,
            generation: 2,
            epoch: 3,
            sequence: 4,
            durable: 3,
            base: 50,
            time: Timestamp(6),
            batches: 0,
            dir_len: 0,
            dir_sum: 0,
            body_len: 0,
            prev: 11,
        }
    }

    #[test]
    fn a_segment_header_round_trips_and_a_newer_format_is_refused_by_name() {
        let h = SegmentHeader { generation: 7, epoch: 8, nonce: 9, key_id: 0 };
        let mut b = h.encode();
        assert_eq!(SegmentHeader::decode(&b).unwrap(), Some(h));
        b[20] ^= 1;
        assert_eq!(SegmentHeader::decode(&b).unwrap(), None);
        assert_eq!(SegmentHeader::decode(&[0; BLOCK]).unwrap(), None);
        let mut newer = h.encode();
        newer[8] = 9;
        let sum = xxh3_64(&newer[..SEGMENT_HEADER - 8]);
        newer[SEGMENT_HEADER - 8..SEGMENT_HEADER].copy_from_slice(&sum.to_le_bytes());
        let Err(Error::Directory(message)) = SegmentHeader::decode(&newer) else { panic!("read a newer format") };
        assert!(message.contains("format 9"), "{message}");
    }

    #[test]
    fn a_group_round_trips_and_passes_only_under_its_own_nonce() {
        let batches = [Encoded::new(&Batch::new().append("s", "a")), Encoded::new(&Batch::new().put("k", "x", "yz"))];
        let (bytes, h) = Group::build(header(), &batches, 99);
        assert_eq!(bytes.len(), BLOCK);
        assert_eq!(GroupHeader::decode(&bytes, 99), Some(h));
        assert_eq!(GroupHeader::decode(&bytes, 98), None);
        let group = Group::check(h, &Bytes::from(bytes).slice(HEADER..)).unwrap();
        assert!(group.damaged.is_empty());
        let positions: Vec<_> = group.batches().map(|b| (b.position, b.body_at)).collect();
        assert_eq!(positions, [(50, 0), (51, 1)]);
        let (copy, h2) = group.rebuild(5, 6, 3, 77);
        assert_eq!(GroupHeader::decode(&copy, 77), Some(h2));
        assert_eq!(h.chain(), h2.chain());
    }

    #[test]
    fn a_flipped_bit_marks_its_batch_or_loses_the_directory() {
        let batches = [Encoded::new(&Batch::new().append("s", "aaaa")), Encoded::new(&Batch::new().append("s", "bb"))];
        let (bytes, h) = Group::build(header(), &batches, 1);
        let mut body = bytes.clone();
        body[HEADER + h.dir_len as usize + 1] ^= 4;
        assert_eq!(Group::check(h, &Bytes::from(body).slice(HEADER..)).unwrap().damaged, [0]);
        let mut dir = bytes;
        dir[HEADER + 18] ^= 4;
        assert!(Group::check(h, &Bytes::from(dir).slice(HEADER..)).is_none());
    }
}
