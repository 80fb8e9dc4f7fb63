//! Settled files: records that outlived their journal segment, in order of stream, written once.
//!
//! Layout: a header block (format, key id, file id, nonce), blocks of records each under a checksum seeded with the
//! nonce, an index (per stream the ranges it settled and its blocks) and a trailer that locates the index. A file
//! counts only once the journal says so.

use std::sync::Arc;

use bytes::Bytes;
use hashbrown::HashMap;
use weft_core::Timestamp;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::disk::{Disk, DiskFile};
use crate::group::{BLOCK, VERSION, check_version};
use crate::recover::io;
use crate::wire::{Reader, put_bytes, put_uint};
use crate::{Damaged, Error, Record, Result, Seq, StreamName};

const MAGIC: &[u8; 8] = b"weft-set";
const HEADER: usize = 48;
const TRAILER: usize = 40;
/// Bytes of records a block holds before the next begins.
const BLOCK_BYTES: usize = 64 << 10;
/// Bytes written at once, so that a commit's sync never waits behind more.
const CHUNK: usize = 1 << 20;

/// The file name of a settled file.
pub(crate) fn name(id: u64) -> String {
    format!("set-{id:012}")
}

/// The id in a settled file's name.
pub(crate) fn id_of(name: &str) -> Option<u64> {
    name.strip_prefix("set-")?.parse().ok()
}

/// What one stream settles: whole ranges, and their live records in order.
pub(crate) struct Input {
    pub(crate) stream: StreamName,
    pub(crate) ranges: Vec<(Seq, Seq)>,
    pub(crate) records: Vec<Record>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct BlockAt {
    first: Seq,
    last: Seq,
    offset: u64,
    len: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct StreamIndex {
    ranges: Vec<(Seq, Seq)>,
    blocks: Vec<BlockAt>,
}

/// An open settled file.
pub(crate) struct Settled {
    nonce: u64,
    file: Arc<dyn DiskFile>,
    index: HashMap<StreamName, StreamIndex>,
}

/// Writes a settled file and syncs it, and its name.
pub(crate) fn write(disk: &dyn Disk, id: u64, nonce: u64, inputs: Vec<Input>) -> Result<Settled> {
    let file = disk.create(&name(id)).map_err(io("making a settled file"))?;
    let mut out = Out { file: &*file, buffer: header(id, nonce), flushed: 0 };
    let mut index: HashMap<StreamName, StreamIndex> = HashMap::new();
    for input in inputs {
        let mut entry = StreamIndex { ranges: input.ranges, blocks: Vec::new() };
        let mut records = input.records.as_slice();
        while !records.is_empty() {
            let mut bytes = 0;
            let fits = |r: &&Record| {
                let before = bytes;
                bytes += r.payload.as_ref().map_or(0, Bytes::len) + 16;
                before == 0 || bytes <= BLOCK_BYTES
            };
            let n = records.iter().take_while(fits).count();
            let (block, rest) = records.split_at(n);
            let (offset, len) = out.block(block, nonce)?;
            entry.blocks.push(BlockAt { first: block[0].seq, last: block[n - 1].seq, offset, len });
            records = rest;
        }
        index.insert(input.stream, entry);
    }
    out.finish(&index, nonce)?;
    file.sync().map_err(io("syncing a settled file"))?;
    disk.sync_dir().map_err(io("syncing the directory"))?;
    Ok(Settled { nonce, file, index })
}

fn header(id: u64, nonce: u64) -> Vec<u8> {
    let mut b = Vec::with_capacity(CHUNK * 2);
    b.extend_from_slice(MAGIC);
    b.extend_from_slice(&VERSION.to_le_bytes());
    b.extend_from_slice(&[0; 2]);
    // No key: not encrypted.
    b.extend_from_slice(&0u32.to_le_bytes());
    b.extend_from_slice(&id.to_le_bytes());
    b.extend_from_slice(&nonce.to_le_bytes());
    b.resize(HEADER - 8, 0);
    let sum = xxh3_64(&b);
    b.extend_from_slice(&sum.to_le_bytes());
    b.resize(BLOCK, 0);
    b
}

struct Out<'a> {
    file: &'a dyn DiskFile,
    buffer: Vec<u8>,
    flushed: u64,
}

impl Out<'_> {
    fn at(&self) -> u64 {
        self.flushed + self.buffer.len() as u64
    }

    fn block(&mut self, records: &[Record], nonce: u64) -> Result<(u64, u32)> {
        let offset = self.at();
        let start = self.buffer.len();
        self.buffer.extend_from_slice(&[0; 8]);
        put_uint(&mut self.buffer, records.len() as u64);
        for r in records {
            put_uint(&mut self.buffer, r.seq);
            put_uint(&mut self.buffer, r.position);
            put_uint(&mut self.buffer, r.time.0);
            match &r.payload {
                Ok(payload) => {
                    self.buffer.push(0);
                    put_bytes(&mut self.buffer, payload);
                }
                Err(Damaged) => self.buffer.push(1),
            }
        }
        let sum = xxh3_64_with_seed(&self.buffer[start + 8..], nonce ^ offset);
        self.buffer[start..start + 8].copy_from_slice(&sum.to_le_bytes());
        let len = (self.buffer.len() - start) as u32;
        if self.buffer.len() >= CHUNK {
            self.flush()?;
        }
        Ok((offset, len))
    }

    fn flush(&mut self) -> Result<()> {
        for chunk in self.buffer.chunks(CHUNK) {
            self.file.write_at(self.flushed, chunk).map_err(io("writing a settled file"))?;
            self.flushed += chunk.len() as u64;
        }
        self.buffer.clear();
        Ok(())
    }

    fn finish(&mut self, index: &HashMap<StreamName, StreamIndex>, nonce: u64) -> Result<()> {
        let at = self.at();
        let mut bytes = Vec::new();
        put_uint(&mut bytes, index.len() as u64);
        for (stream, entry) in index {
            put_bytes(&mut bytes, stream.as_bytes());
            put_uint(&mut bytes, entry.ranges.len() as u64);
            for (first, last) in &entry.ranges {
                put_uint(&mut bytes, *first);
                put_uint(&mut bytes, last - first);
            }
            put_uint(&mut bytes, entry.blocks.len() as u64);
            for b in &entry.blocks {
                put_uint(&mut bytes, b.first);
                put_uint(&mut bytes, b.last - b.first);
                put_uint(&mut bytes, b.offset);
                put_uint(&mut bytes, u64::from(b.len));
            }
        }
        let mut trailer = Vec::with_capacity(TRAILER);
        trailer.extend_from_slice(&at.to_le_bytes());
        trailer.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
        trailer.extend_from_slice(&xxh3_64_with_seed(&bytes, nonce).to_le_bytes());
        trailer.extend_from_slice(MAGIC);
        let sum = xxh3_64_with_seed(&trailer, nonce);
        trailer.extend_from_slice(&sum.to_le_bytes());
        self.buffer.extend_from_slice(&bytes);
        self.buffer.extend_from_slice(&trailer);
        self.flush()
    }
}

impl Settled {
    /// Opens a file by its footer; an error where it is damaged.
    pub(crate) fn open(disk: &dyn Disk, id: u64) -> Result<Self> {
        let broken = || Error::Io { action: "opening a settled file", reason: format!("{} is damaged", name(id)) };
        let file = disk.open(&name(id)).map_err(io("opening a settled file"))?;
        let len = file.len().map_err(io("opening a settled file"))?;
        if len < (BLOCK + TRAILER) as u64 {
            return Err(broken());
        }
        let mut head = [0; HEADER];
        file.read_at(0, &mut head).map_err(io("opening a settled file"))?;
        let (fields, sum) = head.split_at(HEADER - 8);
        if &fields[..8] != MAGIC || Reader(sum).u64() != Some(xxh3_64(fields)) {
            return Err(broken());
        }
        let mut r = Reader(&fields[8..]);
        check_version("settled file", r.u16().unwrap_or(0))?;
        let nonce = (|| {
            r.take(6)?;
            (r.u64()? == id).then(|| r.u64())?
        })()
        .ok_or_else(broken)?;
        let mut trailer = [0; TRAILER];
        file.read_at(len - TRAILER as u64, &mut trailer).map_err(io("opening a settled file"))?;
        let (fields, sum) = trailer.split_at(TRAILER - 8);
        if Reader(sum).u64() != Some(xxh3_64_with_seed(fields, nonce)) {
            return Err(broken());
        }
        let mut r = Reader(fields);
        let (Some(at), Some(size), Some(sum)) = (r.u64(), r.u64(), r.u64()) else { return Err(broken()) };
        let mut bytes = vec![0; size as usize];
        file.read_at(at, &mut bytes).map_err(io("opening a settled file"))?;
        if xxh3_64_with_seed(&bytes, nonce) != sum {
            return Err(broken());
        }
        let index = read_index(&bytes).ok_or_else(broken)?;
        Ok(Self { nonce, file, index })
    }

    /// The streams it settled, each with its ranges.
    pub(crate) fn streams(&self) -> impl Iterator<Item = (&StreamName, &[(Seq, Seq)])> {
        self.index.iter().map(|(s, e)| (s, e.ranges.as_slice()))
    }

    /// Reads the records of a stream within an inclusive range, all of them live; damage reads as such.
    pub(crate) fn read(&self, stream: &str, first: Seq, last: Seq, max_bytes: usize) -> Result<Vec<Record>> {
        let mut out = Vec::new();
        let mut bytes = 0;
        let Some(entry) = self.index.get(stream) else { return Ok(out) };
        let start = entry.blocks.partition_point(|b| b.last < first);
        for at in entry.blocks[start..].iter().take_while(|b| b.first <= last) {
            let mut block = vec![0; at.len as usize];
            let read = self.file.read_at(at.offset, &mut block);
            let records = read.ok().and_then(|()| read_block(Bytes::from(block), self.nonce ^ at.offset));
            let records = records.unwrap_or_else(|| damaged(at));
            for r in records.into_iter().filter(|r| (first..=last).contains(&r.seq)) {
                bytes += r.payload.as_ref().map_or(0, Bytes::len);
                out.push(r);
            }
            if bytes > max_bytes {
                break;
            }
        }
        Ok(out)
    }
}

/// What a block that fails its checksum reads as.
fn damaged(at: &BlockAt) -> Vec<Record> {
    let of = |seq| Record { seq, position: 0, time: Timestamp(0), payload: Err(Damaged) };
    (at.first..=at.last).map(of).collect()
}

fn read_block(bytes: Bytes, seed: u64) -> Option<Vec<Record>> {
    let mut r = Reader(&bytes);
    let sum = r.u64()?;
    if xxh3_64_with_seed(r.0, seed) != sum {
        return None;
    }
    let mut out = Vec::new();
    for _ in 0..r.uint()? {
        let (seq, position, time) = (r.uint()?, r.uint()?, Timestamp(r.uint()?));
        let payload = match r.u8()? {
            0 => Ok(bytes.slice_ref(r.bytes()?)),
            _ => Err(Damaged),
        };
        out.push(Record { seq, position, time, payload });
    }
    Some(out)
}

fn read_index(bytes: &[u8]) -> Option<HashMap<StreamName, StreamIndex>> {
    let mut r = Reader(bytes);
    let mut index = HashMap::new();
    for _ in 0..r.uint()? {
        let stream: StreamName = r.str()?.into();
        let mut entry = StreamIndex::default();
        for _ in 0..r.uint()? {
            let first = r.uint()?;
            entry.ranges.push((first, first + r.uint()?));
        }
        for _ in 0..r.uint()? {
            let first = r.uint()?;
            let last = first + r.uint()?;
            entry.blocks.push(BlockAt { first, last, offset: r.uint()?, len: r.uint()? as u32 });
        }
        index.insert(stream, entry);
    }
    Some(index)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::FileDisk;

    fn record(seq: Seq, len: usize) -> Record {
        let payload = Ok(Bytes::from(vec![seq as u8; len]));
        Record { seq, position: seq * 2, time: Timestamp(seq * 3), payload }
    }

    fn sample(disk: &dyn Disk) -> Vec<Record> {
        let mut records: Vec<Record> = (10..200).filter(|s| s % 7 != 0).map(|s| record(s, 3_000)).collect();
        records[5].payload = Err(Damaged);
        let ranges = vec![(10, 120), (130, 199)];
        let inputs = vec![
            Input { stream: "a".into(), ranges, records: records.clone() },
            Input { stream: "b".into(), ranges: vec![(1, 1)], records: vec![record(1, 200_000)] },
        ];
        write(disk, 7, 99, inputs).unwrap();
        records
    }

    #[test]
    fn a_file_reads_back_by_stream_and_range_after_opening() {
        let dir = tempfile::tempdir().unwrap();
        let disk = FileDisk::open(dir.path()).unwrap();
        let records = sample(&disk);
        let s = Settled::open(&disk, 7).unwrap();
        assert_eq!(s.read("a", 1, 999, usize::MAX).unwrap(), records);
        let some: Vec<Seq> = s.read("a", 50, 60, usize::MAX).unwrap().iter().map(|r| r.seq).collect();
        assert_eq!(some, [50, 51, 52, 53, 54, 55, 57, 58, 59, 60]);
        assert_eq!(s.read("b", 1, 1, 1).unwrap()[0], record(1, 200_000));
        assert!(s.read("c", 1, 1, 1).unwrap().is_empty());
        let mut streams: Vec<_> = s.streams().map(|(n, r)| (n.to_string(), r.to_vec())).collect();
        streams.sort();
        assert_eq!(streams, [("a".into(), vec![(10, 120), (130, 199)]), ("b".into(), vec![(1, 1)])]);
        assert_eq!(id_of(&name(7)), Some(7));
    }

    #[test]
    fn damage_in_a_block_reads_as_damaged_and_in_the_index_refuses_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let disk = FileDisk::open(dir.path()).unwrap();
        sample(&disk);
        let file = disk.open(&name(7)).unwrap();
        file.write_at(BLOCK as u64 + 100, b"garbage").unwrap();
        let s = Settled::open(&disk, 7).unwrap();
        let read = s.read("a", 1, 999, usize::MAX).unwrap();
        assert!(read[0].payload.is_err() && read.last().unwrap().payload.is_ok());
        file.write_at(file.len().unwrap() - TRAILER as u64 - 3, b"xyz").unwrap();
        assert!(Settled::open(&disk, 7).is_err());
    }
}
