//! Who is at work on a file or directory: its process holds a lock on it (`flock`), which the kernel gives back when the
//! process ends, however it ends. Process ids would say less: they begin anew in each PID namespace, and come again.

use std::fs::{File, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// What lies at a path, as far as locks tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Holder {
    /// A process that lives.
    Alive,
    /// None any more.
    Gone,
    /// The file system has no locks, or the path can't be opened.
    Unknown,
}

/// Locks what is open, for as long as it is. Where the file system has no locks, nobody can tell later.
pub(crate) fn hold(file: &File) {
    if let Err(error) = file.try_lock() {
        tracing::debug!(%error, "what is being written can't be locked");
    }
}

/// Who holds what is at the path.
pub(crate) fn holder(path: &Path) -> Holder {
    let Ok(file) = File::open(path) else {
        return Holder::Unknown;
    };
    match file.try_lock() {
        Ok(()) => Holder::Gone,
        Err(TryLockError::WouldBlock) => Holder::Alive,
        Err(TryLockError::Error(_)) => Holder::Unknown,
    }
}

/// What the names of such directories begin with.
const PREFIX: &str = "pgkeep-restore-";
/// Others may take a new directory for one that was left before it is locked.
const ATTEMPTS_MAX: u32 = 10;
/// What it holds is nobody else's business.
const MODE: u32 = 0o700;

/// A temporary directory that goes with its process: at its end, or, where that was killed, when the next one is made.
#[derive(Debug)]
pub(crate) struct WorkDirectory {
    directory: TempDir,
    _lock: File,
}

impl WorkDirectory {
    /// Makes one in `parent`, and removes those there that this user's processes left when they were killed.
    ///
    /// # Errors
    /// The disk's.
    pub fn make(parent: &Path) -> io::Result<Self> {
        let mut attempts = 0;
        let made = loop {
            let directory = tempfile::Builder::new()
                .prefix(PREFIX)
                .permissions(Permissions::from_mode(MODE))
                .tempdir_in(parent)?;
            let lock = File::open(directory.path())?;
            hold(&lock);
            attempts += 1;
            if is_at(&lock, directory.path()) || attempts == ATTEMPTS_MAX {
                break Self {
                    directory,
                    _lock: lock,
                };
            }
        };
        let uid = made.directory.path().metadata()?.uid();
        for path in left(parent, uid) {
            remove(&path);
        }
        Ok(made)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }
}

/// Directories of that user that may have been left.
fn left(parent: &Path, uid: u32) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(parent) else {
        return Vec::new();
    };
    let is_ours = |entry: &std::fs::DirEntry| {
        entry.file_name().to_string_lossy().starts_with(PREFIX)
            // Of a link itself, not of where it leads.
            && entry.metadata().is_ok_and(|metadata| metadata.is_dir() && metadata.uid() == uid)
    };
    let ours = entries.flatten().filter(is_ours);
    ours.map(|entry| entry.path()).collect()
}

/// Removes it if nobody holds it, and holds it meanwhile.
fn remove(path: &Path) {
    let Ok(lock) = File::open(path) else { return };
    if lock.try_lock().is_err() || !is_at(&lock, path) {
        return;
    }
    match std::fs::remove_dir_all(path) {
        Ok(()) => tracing::info!("removed {}, which a killed process left", path.display()),
        Err(error) => tracing::warn!(%error, "{} was left by a killed process, and stays", path.display()),
    }
}

/// Whether what is open is what the path leads to.
fn is_at(file: &File, path: &Path) -> bool {
    let of = |metadata: io::Result<std::fs::Metadata>| metadata.map(|found| (found.dev(), found.ino())).ok();
    let opened = of(file.metadata());
    opened.is_some() && opened == of(path.symlink_metadata())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::process::{Command, Stdio};

    use super::*;

    /// As a restore leaves it that is killed.
    fn left_by_a_killed_process(parent: &Path) -> PathBuf {
        let path = parent.join(format!("{PREFIX}killed"));
        std::fs::create_dir(&path).unwrap();
        std::fs::write(path.join("archive.dump"), "x").unwrap();
        path
    }

    #[test]
    fn what_killed_processes_left_goes_with_the_next_one() {
        let parent = tempfile::tempdir().unwrap();
        let dead = left_by_a_killed_process(parent.path());
        // By another process.
        let held = parent.path().join(format!("{PREFIX}held"));
        std::fs::create_dir(&held).unwrap();
        let mut holding = Command::new("flock")
            .args(["--no-fork".as_ref(), held.as_os_str(), "cat".as_ref()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (input, output) = (holding.stdin.as_mut().unwrap(), holding.stdout.as_mut().unwrap());
        input.write_all(b"x").unwrap();
        output.read_exact(&mut [0]).unwrap();
        let others = parent.path().join("pgkeep-server-x");
        std::fs::create_dir(&others).unwrap();
        let link = parent.path().join(format!("{PREFIX}link"));
        std::os::unix::fs::symlink(&others, &link).unwrap();

        let first = WorkDirectory::make(parent.path()).unwrap();
        assert!(!dead.exists());
        let second = WorkDirectory::make(parent.path()).unwrap();
        for path in [first.path(), second.path(), &held, &others, &link] {
            assert!(path.exists(), "{}", path.display());
        }
        assert_eq!(first.path().metadata().unwrap().mode() & 0o777, MODE);
        let gone = first.path().to_owned();
        drop(first);
        assert!(!gone.exists());

        holding.kill().unwrap();
        holding.wait().unwrap();
        WorkDirectory::make(parent.path()).unwrap();
        assert!(!held.exists());
    }
}
