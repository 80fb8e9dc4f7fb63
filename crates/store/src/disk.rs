//! The one door to the disk: journal segments, settled files and checkpoints go through [`Disk`], so that a
//! seeded simulated disk can stand in for it.

use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FlockOperation, flock};

use crate::{Error, Result};

/// A flat directory of files. What was written is durable only after [`DiskFile::sync`], and a new or removed
/// name only after [`Disk::sync_dir`].
pub trait Disk: Send + Sync + 'static {
    /// Opens a file that exists.
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;
    /// Makes a file, empty; replaces one of that name.
    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;
    /// Removes a file.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// The names of all files, in no order.
    fn list(&self) -> io::Result<Vec<String>>;
    /// Makes creations and removals durable.
    fn sync_dir(&self) -> io::Result<()>;
    /// Bytes free for new data.
    fn free(&self) -> io::Result<u64>;
}

/// One open file; usable from several threads.
pub trait DiskFile: Send + Sync + 'static {
    /// Writes all bytes at an offset.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Fills the buffer from an offset.
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()>;
    /// Makes everything written so far durable (fdatasync).
    fn sync(&self) -> io::Result<()>;
    /// Its length.
    fn len(&self) -> io::Result<u64>;
    /// Whether it has no bytes.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
}

/// A real directory.
pub struct FileDisk {
    dir: PathBuf,
}

impl FileDisk {
    /// A disk in a directory, which is made when absent.
    pub fn open(dir: &Path) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        Ok(Self { dir: dir.to_owned() })
    }
}

impl Disk for FileDisk {
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(fs::OpenOptions::new().read(true).write(true).open(self.dir.join(name))?))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let file =
            fs::OpenOptions::new().read(true).write(true).create(true).truncate(true).open(self.dir.join(name))?;
        Ok(Arc::new(file))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.dir.join(name))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            if entry.file_type()?.is_file()
                && let Ok(name) = entry.file_name().into_string()
            {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn sync_dir(&self) -> io::Result<()> {
        fs::File::open(&self.dir)?.sync_all()
    }

    fn free(&self) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(&self.dir)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
}

impl DiskFile for fs::File {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(into, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }
}

/// The exclusive lock on a data directory; released when dropped or when the process dies.
pub(crate) struct DirLock {
    _file: fs::File,
}

impl DirLock {
    /// Takes the lock, or names its holder.
    pub(crate) fn take(dir: &Path) -> Result<Self> {
        let io = |e: io::Error| Error::Directory(format!("the data directory {} cannot be used: {e}", dir.display()));
        fs::create_dir_all(dir).map_err(io)?;
        let path = dir.join("lock");
        let file =
            fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).map_err(io)?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            let holder = fs::read_to_string(&path).unwrap_or_default();
            let holder = if holder.is_empty() { "another process" } else { holder.trim() };
            return Err(Error::Directory(format!("the data directory {} is in use by {holder}", dir.display())));
        }
        let name = std::env::args().next().unwrap_or_default();
        let name = Path::new(&name).file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        file.set_len(0).map_err(io)?;
        file.write_all_at(format!("process {} ({name})\n", std::process::id()).as_bytes(), 0).map_err(io)?;
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_lock_is_refused_and_names_the_holder() {
        let dir = tempfile::tempdir().unwrap();
        let first = DirLock::take(dir.path()).unwrap();
        let Err(Error::Directory(message)) = DirLock::take(dir.path()) else { panic!("taken twice") };
        assert!(message.contains(&format!("process {}", std::process::id())), "{message}");
        drop(first);
        DirLock::take(dir.path()).unwrap();
    }

    #[test]
    fn files_are_written_listed_read_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let disk = FileDisk::open(dir.path()).unwrap();
        let file = disk.create("a").unwrap();
        file.write_at(4, b"weft").unwrap();
        file.sync().unwrap();
        disk.sync_dir().unwrap();
        assert_eq!(disk.list().unwrap(), ["a"]);
        let mut read = [1u8; 8];
        disk.open("a").unwrap().read_at(0, &mut read).unwrap();
        assert_eq!(&read, b"\0\0\0\0weft");
        assert!(file.read_at(6, &mut read).is_err());
        assert!(disk.free().unwrap() > 0);
        disk.remove("a").unwrap();
        assert!(disk.open("a").is_err());
    }
}
