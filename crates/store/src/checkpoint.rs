//! Checkpoints: the stream view, the manifest of settled files and the place in the journal from which replay goes
//! on, as of one durable group.
//!
//! A checkpoint is written twice in its file, each copy under its own checksum; the newest file with a whole copy
//! counts, and older ones are removed only after it is durable.

use xxhash_rust::xxh3::xxh3_64;

use crate::cursor::State;
use crate::disk::Disk;
use crate::group::{BLOCK, VERSION, check_version};
use crate::recover::io;
use crate::streams::{Extent, Place, Stream, Streams};
use crate::wire::{Reader, put_bytes, put_uint};
use crate::{Attempt, Cursor, Position, Result, StreamName};
use weft_core::Timestamp;

const MAGIC: &[u8; 8] = b"weft-chk";
/// Magic, version, reserved, key id, length, checksum.
const HEADER: usize = 32;

/// Where a group lies in the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Location {
    pub(crate) sequence: u64,
    pub(crate) segment: u32,
    pub(crate) offset: u64,
}

/// A segment that is still needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentRef {
    pub(crate) id: u32,
    pub(crate) generation: u64,
    pub(crate) nonce: u64,
}

/// What a checkpoint holds besides the streams.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Head {
    /// The last group it includes, and that group's chain.
    pub(crate) sequence: u64,
    pub(crate) chain: u64,
    /// The position after the last it includes.
    pub(crate) next: Position,
    pub(crate) time: Timestamp,
    /// The generation of the segment that holds the last group.
    pub(crate) generation: u64,
    /// The highest epoch so far.
    pub(crate) epoch: u64,
    /// The next settled file's id.
    pub(crate) next_file: u64,
    pub(crate) segments: Vec<SegmentRef>,
    pub(crate) locations: Vec<Location>,
}

/// The file name of a checkpoint.
pub(crate) fn name(number: u64) -> String {
    format!("chk-{number:012}")
}

/// The number in a checkpoint's name.
pub(crate) fn number_of(name: &str) -> Option<u64> {
    name.strip_prefix("chk-")?.parse().ok()
}

/// Lays a checkpoint out.
pub(crate) fn encode(head: &Head, streams: &Streams) -> Vec<u8> {
    let mut out = Vec::new();
    for v in [head.sequence, head.chain, head.next, head.time.0, head.generation, head.epoch, head.next_file] {
        put_uint(&mut out, v);
    }
    put_uint(&mut out, head.segments.len() as u64);
    for s in &head.segments {
        put_uint(&mut out, u64::from(s.id));
        put_uint(&mut out, s.generation);
        put_uint(&mut out, s.nonce);
    }
    put_uint(&mut out, head.locations.len() as u64);
    for l in &head.locations {
        put_uint(&mut out, l.sequence);
        put_uint(&mut out, u64::from(l.segment));
        put_uint(&mut out, l.offset / BLOCK as u64);
    }
    put_uint(&mut out, streams.map.len() as u64);
    for (name, s) in &streams.map {
        stream(&mut out, name, s);
    }
    out
}

fn stream(out: &mut Vec<u8>, name: &StreamName, s: &Stream) {
    put_bytes(out, name.as_bytes());
    put_uint(out, s.last);
    put_uint(out, s.trimmed);
    put_uint(out, s.extents.len() as u64);
    for e in &s.extents {
        put_uint(out, e.first);
        put_uint(out, e.last - e.first);
        match e.place {
            Place::Journal { sequence, batch } => {
                out.push(0);
                put_uint(out, sequence);
                put_uint(out, u64::from(batch));
            }
            Place::File(id) => {
                out.push(1);
                put_uint(out, id);
            }
            Place::Damaged => out.push(2),
        }
    }
    put_uint(out, s.cursors.len() as u64);
    for (name, state) in &s.cursors {
        let c = state.export();
        put_bytes(out, name.as_bytes());
        put_uint(out, c.floor);
        put_uint(out, c.acked.len() as u64);
        for (first, last) in c.acked {
            put_uint(out, first);
            put_uint(out, last - first);
        }
        put_uint(out, c.attempts.len() as u64);
        for (seq, a) in c.attempts {
            put_uint(out, seq);
            put_uint(out, u64::from(a.count));
            put_uint(out, a.not_before.0);
        }
    }
}

fn decode(bytes: &[u8]) -> Option<(Head, Streams)> {
    let mut r = Reader(bytes);
    let mut head = Head {
        sequence: r.uint()?,
        chain: r.uint()?,
        next: r.uint()?,
        time: Timestamp(r.uint()?),
        generation: r.uint()?,
        epoch: r.uint()?,
        next_file: r.uint()?,
        ..Head::default()
    };
    for _ in 0..r.uint()? {
        head.segments.push(SegmentRef { id: r.uint()? as u32, generation: r.uint()?, nonce: r.uint()? });
    }
    for _ in 0..r.uint()? {
        let (sequence, segment, block) = (r.uint()?, r.uint()? as u32, r.uint()?);
        head.locations.push(Location { sequence, segment, offset: block * BLOCK as u64 });
    }
    let mut streams = Streams::default();
    for _ in 0..r.uint()? {
        let name = r.str()?;
        let s = streams.entry(name);
        s.last = r.uint()?;
        s.trimmed = r.uint()?;
        for _ in 0..r.uint()? {
            let first = r.uint()?;
            let last = first + r.uint()?;
            let place = match r.u8()? {
                0 => Place::Journal { sequence: r.uint()?, batch: r.uint()? as u32 },
                1 => Place::File(r.uint()?),
                2 => Place::Damaged,
                _ => return None,
            };
            s.extents.push_back(Extent { first, last, place });
        }
        for _ in 0..r.uint()? {
            let name = r.str()?;
            let mut c = Cursor { floor: r.uint()?, ..Cursor::default() };
            for _ in 0..r.uint()? {
                let first = r.uint()?;
                c.acked.push((first, first + r.uint()?));
            }
            for _ in 0..r.uint()? {
                let seq = r.uint()?;
                c.attempts.push((seq, Attempt { count: r.uint()? as u32, not_before: Timestamp(r.uint()?) }));
            }
            s.cursors.insert(name.into(), State::import(c));
        }
    }
    Some((head, streams))
}

/// Writes a checkpoint file and makes it durable.
pub(crate) fn write(disk: &dyn Disk, number: u64, content: &[u8]) -> Result<()> {
    let mut copy = Vec::with_capacity(HEADER + content.len() + BLOCK);
    copy.extend_from_slice(MAGIC);
    copy.extend_from_slice(&VERSION.to_le_bytes());
    copy.extend_from_slice(&[0; 2]);
    copy.extend_from_slice(&0u32.to_le_bytes());
    copy.extend_from_slice(&(content.len() as u64).to_le_bytes());
    copy.extend_from_slice(&xxh3_64(content).to_le_bytes());
    copy.extend_from_slice(content);
    copy.resize(copy.len().div_ceil(BLOCK) * BLOCK, 0);
    let file = disk.create(&name(number)).map_err(io("making a checkpoint"))?;
    file.write_at(0, &copy).map_err(io("writing a checkpoint"))?;
    file.write_at(copy.len() as u64, &copy).map_err(io("writing a checkpoint"))?;
    file.sync().map_err(io("syncing a checkpoint"))?;
    disk.sync_dir().map_err(io("syncing the directory"))
}

/// Writes a checkpoint that was read once more, in place. Its sync may have failed while the page cache shows it
/// whole; now it is durable for sure, before anything older is let go of.
pub(crate) fn confirm(disk: &dyn Disk, number: u64) -> Result<()> {
    let file = disk.open(&name(number)).map_err(io("opening a checkpoint"))?;
    let mut bytes = vec![0; file.len().map_err(io("opening a checkpoint"))? as usize];
    file.read_at(0, &mut bytes).map_err(io("reading a checkpoint"))?;
    file.write_at(0, &bytes).map_err(io("writing a checkpoint"))?;
    file.sync().map_err(io("syncing a checkpoint"))?;
    disk.sync_dir().map_err(io("syncing the directory"))
}

/// Reads a checkpoint file; `None` when neither copy is whole.
pub(crate) fn read(disk: &dyn Disk, number: u64) -> Result<Option<(Head, Streams)>> {
    let file = disk.open(&name(number)).map_err(io("opening a checkpoint"))?;
    let len = file.len().map_err(io("opening a checkpoint"))? as usize;
    let mut bytes = vec![0; len];
    file.read_at(0, &mut bytes).map_err(io("reading a checkpoint"))?;
    for copy in [&bytes[..], &bytes[(len / 2).min(len)..]] {
        let mut r = Reader(copy);
        let Some(magic) = r.take(8) else { continue };
        let (Some(version), Some(_), Some(size), Some(sum)) = (r.u16(), r.take(6), r.u64(), r.u64()) else { continue };
        let Some(content) = usize::try_from(size).ok().and_then(|n| r.take(n)) else { continue };
        if magic != MAGIC || xxh3_64(content) != sum {
            continue;
        }
        check_version("checkpoint", version)?;
        if let Some(read) = decode(content) {
            return Ok(Some(read));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::FileDisk;

    fn sample() -> (Head, Streams) {
        let head = Head {
            sequence: 9,
            chain: u64::MAX,
            next: 100,
            time: Timestamp(5),
            generation: 3,
            epoch: 2,
            next_file: 8,
            segments: vec![SegmentRef { id: 4, generation: 3, nonce: 77 }],
            locations: vec![Location { sequence: 8, segment: 4, offset: 8192 }],
        };
        let mut streams = Streams::default();
        let s = streams.entry("q");
        (s.last, s.trimmed) = (30, 2);
        for (first, last, place) in
            [(3, 9, Place::File(7)), (10, 12, Place::Damaged), (13, 30, Place::Journal { sequence: 8, batch: 5 })]
        {
            s.extents.push_back(Extent { first, last, place });
        }
        let mut c = State::at(4);
        c.ack(7, 9);
        c.attempt(11, Attempt { count: 3, not_before: Timestamp(44) });
        s.cursors.insert("c".into(), c);
        streams.entry("empty");
        (head, streams)
    }

    #[test]
    fn a_checkpoint_reads_back_whole_and_from_its_second_copy() {
        let dir = tempfile::tempdir().unwrap();
        let disk = FileDisk::open(dir.path()).unwrap();
        let (head, streams) = sample();
        write(&disk, 3, &encode(&head, &streams)).unwrap();
        for damage in [None, Some(40), Some(0)] {
            if let Some(at) = damage {
                disk.open(&name(3)).unwrap().write_at(at, b"garbage").unwrap();
            }
            let (read, back) = read(&disk, 3).unwrap().unwrap();
            assert_eq!(read, head);
            assert_eq!(format!("{:?}", back.map.get("q")), format!("{:?}", streams.map.get("q")));
            assert_eq!(back.names(""), streams.names(""));
        }
        disk.open(&name(3)).unwrap().write_at(BLOCK as u64 + 40, b"garbage").unwrap();
        assert!(super::read(&disk, 3).unwrap().is_none());
        assert_eq!(number_of(&name(3)), Some(3));
    }
}
