//! Segment files: those in use, and a pool of free ones.
//!
//! Free segments are written with zeros in the background, or have been used before, so that a commit only
//! overwrites blocks the file system has already placed. Nothing is made or unlinked on the commit path while the
//! pool has one.

use std::sync::Arc;

use parking_lot::Mutex;
use rand::Rng;

use crate::disk::{Disk, DiskFile};
use crate::group::{BLOCK, SegmentHeader};
use crate::recover::{io, segment_name};
use crate::{Error, Result};

/// Free segments kept ready.
const READY: usize = 2;
/// Free segments beyond this are removed.
const SPARE: usize = 6;
/// Bytes written at once when a segment is prepared.
const CHUNK: usize = 1 << 20;

/// A segment in use.
pub(crate) struct Segment {
    pub(crate) id: u32,
    pub(crate) header: SegmentHeader,
    pub(crate) file: Arc<dyn DiskFile>,
}

impl Segment {
    /// Takes a file into use under a new generation. The header becomes durable with the first group's sync.
    pub(crate) fn begin(id: u32, file: Arc<dyn DiskFile>, generation: u64, epoch: u64) -> Result<Self> {
        let header = SegmentHeader { generation, epoch, nonce: rand::rng().next_u64(), key_id: 0 };
        file.write_at(0, &header.encode()).map_err(io("writing the journal"))?;
        Ok(Self { id, header, file })
    }
}

#[derive(Default)]
struct Inner {
    free: Vec<(u32, Arc<dyn DiskFile>)>,
    next_id: u32,
}

/// Free segments.
pub(crate) struct Pool {
    inner: Mutex<Inner>,
    bytes: u64,
}

impl Pool {
    pub(crate) fn new(segment_bytes: u64) -> Self {
        Self { inner: Mutex::default(), bytes: segment_bytes }
    }

    /// Starts over with what an opening found.
    pub(crate) fn reset(&self, disk: &dyn Disk, free: &[u32], next_id: u32) -> Result<()> {
        let mut ready = Vec::new();
        for id in free {
            let file = disk.open(&segment_name(*id)).map_err(io("opening a segment"))?;
            if file.len().map_err(io("opening a segment"))? >= self.bytes {
                ready.push((*id, file));
            } else {
                drop(file);
                disk.remove(&segment_name(*id)).map_err(io("removing a segment"))?;
            }
        }
        *self.inner.lock() = Inner { free: ready, next_id };
        Ok(())
    }

    /// A free segment; one that grows as it is written when none is ready.
    pub(crate) fn take(&self, disk: &dyn Disk) -> Result<(u32, Arc<dyn DiskFile>)> {
        let id = {
            let mut inner = self.inner.lock();
            if let Some(ready) = inner.free.pop() {
                return Ok(ready);
            }
            inner.next_id += 1;
            inner.next_id - 1
        };
        let file = disk.create(&segment_name(id)).map_err(io("making a segment"))?;
        disk.sync_dir().map_err(io("syncing the directory"))?;
        Ok((id, file))
    }

    /// How many are ready.
    pub(crate) fn ready(&self) -> usize {
        self.inner.lock().free.len()
    }

    /// Prepares segments until enough are ready.
    pub(crate) fn fill(&self, disk: &dyn Disk) -> Result<()> {
        while self.ready() < READY {
            let id = {
                let mut inner = self.inner.lock();
                inner.next_id += 1;
                inner.next_id - 1
            };
            let file = disk.create(&segment_name(id)).map_err(io("making a segment"))?;
            if let Err(e) = self.zero(&*file, 0).and_then(|()| disk.sync_dir().map_err(io("syncing the directory"))) {
                // A half-written one only takes the space that is missing.
                let _ = disk.remove(&segment_name(id));
                return Err(e);
            }
            self.inner.lock().free.push((id, file));
        }
        Ok(())
    }

    /// Takes a segment back that nothing needs any more.
    pub(crate) fn give_back(&self, disk: &dyn Disk, id: u32, file: Arc<dyn DiskFile>) -> Result<()> {
        if self.ready() >= SPARE {
            drop(file);
            return disk.remove(&segment_name(id)).map_err(io("removing a segment"));
        }
        let len = file.len().map_err(io("recycling a segment"))?;
        if len < self.bytes {
            self.zero(&*file, len / BLOCK as u64 * BLOCK as u64)?;
        }
        self.inner.lock().free.push((id, file));
        Ok(())
    }

    fn zero(&self, file: &dyn DiskFile, from: u64) -> Result<()> {
        let zeros = vec![0; CHUNK.min(self.bytes as usize)];
        let mut at = from;
        while at < self.bytes {
            let n = zeros.len().min((self.bytes - at) as usize);
            file.write_at(at, &zeros[..n]).map_err(io("preparing a segment"))?;
            at += n as u64;
            // Synced in bites: a commit's sync never waits behind a whole segment of zeros.
            if at.is_multiple_of(4 * CHUNK as u64) {
                file.sync().map_err(io("preparing a segment"))?;
            }
        }
        file.sync().map_err(io("preparing a segment"))
    }
}

/// A group that does not fit any segment.
pub(crate) fn too_large(bytes: usize, segment_bytes: u64) -> Error {
    Error::TooLarge { bytes, limit: segment_bytes as usize }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::FileDisk;

    #[test]
    fn prepared_segments_are_full_length_and_recycled_ones_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let disk = FileDisk::open(dir.path()).unwrap();
        let pool = Pool::new(64 << 10);
        pool.reset(&disk, &[], 1).unwrap();
        pool.fill(&disk).unwrap();
        assert_eq!(pool.ready(), READY);
        let (id, file) = pool.take(&disk).unwrap();
        assert_eq!(file.len().unwrap(), 64 << 10);
        pool.give_back(&disk, id, file).unwrap();
        assert_eq!(pool.take(&disk).unwrap().0, id);
        pool.take(&disk).unwrap();
        let (grown, file) = pool.take(&disk).unwrap();
        assert_eq!(file.len().unwrap(), 0);
        file.write_at(0, &[1; 5000]).unwrap();
        pool.give_back(&disk, grown, file.clone()).unwrap();
        assert_eq!(file.len().unwrap(), 64 << 10);
        for i in 0..10 {
            pool.give_back(&disk, 100 + i, disk.create(&segment_name(100 + i)).unwrap()).unwrap();
        }
        assert_eq!(pool.ready(), SPARE);
    }
}
