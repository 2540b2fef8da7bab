//! The disk under a directory.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::statvfs::statvfs;

use crate::{Store, StoreUrl};

/// A file system, as far as a directory on it tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disk {
    /// Files of the same number are on the same file system.
    pub device: u64,
    /// What this user may still write, in bytes.
    pub free_bytes: u64,
    /// Its size.
    pub total_bytes: u64,
}

impl Disk {
    /// The file system of a path, or of the nearest directory above it that exists.
    pub fn of(path: &Path) -> Option<Self> {
        let (existing, metadata) = path
            .ancestors()
            .find_map(|path| Some((path, std::fs::metadata(path).ok()?)))?;
        let found = statvfs(existing).ok()?;
        let bytes = |blocks: u64| blocks.saturating_mul(found.fragment_size());
        Some(Self {
            device: metadata.dev(),
            free_bytes: bytes(found.blocks_available()),
            total_bytes: bytes(found.blocks()),
        })
    }
}

impl Store {
    /// The directory that it is, if it is one of this machine.
    pub fn directory(&self) -> Option<PathBuf> {
        match StoreUrl::parse(self.url()) {
            Ok(StoreUrl::File { path }) => Some(path),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_yet_will_be_on_the_disk_of_what_is() {
        let directory = tempfile::tempdir().unwrap();
        let disk = Disk::of(directory.path()).unwrap();
        let later = Disk::of(&directory.path().join("a/b")).unwrap();
        assert_eq!(later.device, disk.device);
        assert!(disk.total_bytes >= disk.free_bytes && disk.total_bytes > 0);
    }
}
