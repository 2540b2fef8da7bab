//! Who is at work on a file or directory: its process holds a lock on it (`flock`), which the kernel gives back when the
//! process ends, however it ends. Process ids would say less: they begin anew in each PID namespace, and come again.

use std::fs::{DirEntry, File, Metadata, Permissions, TryLockError};
use std::io::{self, ErrorKind};
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
    /// The file system has no locks, the path can't be opened, or it is neither a file nor a directory.
    Unknown,
}

/// Locks what is open, for as long as it is. Whoever only asks who holds it may have it for a moment, and is waited for.
/// Where the file system has no locks, nobody can tell later.
pub(crate) fn hold(file: &File) {
    let locked = loop {
        match file.lock() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            locked => break locked,
        }
    };
    if let Err(error) = locked {
        tracing::debug!(%error, "what is being written can't be locked");
    }
}

/// Who holds what is at the path.
pub(crate) fn holder(path: &Path) -> Holder {
    // Opening anything else may wait for ever (a pipe), or lead elsewhere (a link).
    let is_plain = |metadata: &Metadata| metadata.is_file() || metadata.is_dir();
    if !path.symlink_metadata().is_ok_and(|metadata| is_plain(&metadata)) {
        return Holder::Unknown;
    }
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
/// And how many letters and digits follow.
const SUFFIX_LENGTH: usize = 6;
/// Others may take a new directory for one that was left before it is locked.
const ATTEMPTS_MAX: u32 = 10;
/// What it holds is nobody else's business.
const MODE: u32 = 0o700;
const MODE_BITS: u32 = 0o777;

/// The archive in a work directory.
pub(crate) const ARCHIVE_NAME: &str = "archive.dump";
/// What the names of the lists of its entries begin with.
pub(crate) const LIST_PREFIX: &str = "list-";

/// A temporary directory for an archive and lists of what is in it, which goes with its process: at its end, or, where that
/// was killed, when the next one is made.
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
        let made = Self::new_in(parent)?;
        let uid = made.directory.path().metadata()?.uid();
        for path in left(parent, uid) {
            remove(&path);
        }
        Ok(made)
    }

    fn new_in(parent: &Path) -> io::Result<Self> {
        for _ in 0..ATTEMPTS_MAX {
            let directory = tempfile::Builder::new()
                .prefix(PREFIX)
                .rand_bytes(SUFFIX_LENGTH)
                .permissions(Permissions::from_mode(MODE))
                .tempdir_in(parent)?;
            if let Some(made) = Self::held(directory)? {
                return Ok(made);
            }
        }
        Err(io::Error::other(
            "every new directory was removed by another process before it was locked",
        ))
    }

    /// `None` if somebody removed it before it was locked.
    fn held(directory: TempDir) -> io::Result<Option<Self>> {
        let lock = match File::open(directory.path()) {
            Ok(lock) => lock,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        hold(&lock);
        Ok(is_at(&lock, directory.path()).then_some(Self {
            directory,
            _lock: lock,
        }))
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
    let is_ours = |entry: &DirEntry| {
        is_name(&entry.file_name().to_string_lossy())
            // Of a link itself, not of where it leads.
            && entry.metadata().is_ok_and(|metadata| {
                metadata.is_dir() && metadata.uid() == uid && metadata.mode() & MODE_BITS == MODE
            })
    };
    let ours = entries.flatten().filter(is_ours);
    ours.map(|entry| entry.path()).collect()
}

/// Whether it is a name that [`WorkDirectory::make`] gives.
fn is_name(name: &str) -> bool {
    let suffix = name.strip_prefix(PREFIX);
    suffix.is_some_and(|suffix| {
        suffix.len() == SUFFIX_LENGTH && suffix.bytes().all(|byte| byte.is_ascii_alphanumeric())
    })
}

/// Removes it if nobody holds it, and holds it meanwhile.
fn remove(path: &Path) {
    let Ok(lock) = File::open(path) else { return };
    if lock.try_lock().is_err() || !is_at(&lock, path) {
        return;
    }
    match remove_contents(path) {
        Ok(true) => tracing::info!("removed {}, which a killed process left", path.display()),
        Ok(false) => tracing::debug!("{} holds something else, and stays", path.display()),
        Err(error) => tracing::warn!(%error, "{} was left by a killed process, and stays", path.display()),
    }
}

/// Removes a directory with an archive in it, and lists, and nothing else: anything else of such a name is the user's, even
/// where no process holds it (a server's directory, say). So is an empty one, which takes no room.
fn remove_contents(path: &Path) -> io::Result<bool> {
    let mut lists = Vec::new();
    let mut archive = None;
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if !entry.file_type()?.is_file() {
            return Ok(false);
        } else if name == ARCHIVE_NAME {
            archive = Some(entry.path());
        } else if name.starts_with(LIST_PREFIX) {
            lists.push(entry.path());
        } else {
            return Ok(false);
        }
    }
    let Some(archive) = archive else {
        return Ok(false);
    };
    // By the archive it is known, should this be killed, too.
    for file in lists.iter().chain([&archive]) {
        std::fs::remove_file(file)?;
    }
    std::fs::remove_dir(path)?;
    Ok(true)
}

/// Whether what is open is what the path leads to.
fn is_at(file: &File, path: &Path) -> bool {
    let of = |metadata: io::Result<Metadata>| metadata.map(|found| (found.dev(), found.ino())).ok();
    let opened = of(file.metadata());
    opened.is_some() && opened == of(path.symlink_metadata())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::fs::DirBuilderExt;
    use std::process::{Child, Command, Stdio};
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    /// How long what must wait is watched.
    const WATCHED: Duration = Duration::from_millis(300);

    fn directory(parent: &Path, name: &str, mode: u32, files: &[&str]) -> PathBuf {
        let path = parent.join(name);
        std::fs::DirBuilder::new().mode(mode).create(&path).unwrap();
        for file in files {
            std::fs::create_dir_all(path.join(file).parent().unwrap()).unwrap();
            std::fs::write(path.join(file), "x").unwrap();
        }
        path
    }

    /// As a restore leaves it that is killed.
    fn left_by_a_killed_process(parent: &Path, suffix: &str) -> PathBuf {
        let files = [ARCHIVE_NAME, "list-all", "list-pre-data"];
        directory(parent, &format!("{PREFIX}{suffix}"), MODE, &files)
    }

    /// Another process, which holds a lock until it is killed.
    fn held_by_another(path: &Path) -> Child {
        let mut holding = Command::new("flock")
            .args(["--no-fork".as_ref(), path.as_os_str(), "cat".as_ref()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (input, output) = (holding.stdin.as_mut().unwrap(), holding.stdout.as_mut().unwrap());
        input.write_all(b"x").unwrap();
        output.read_exact(&mut [0]).unwrap();
        holding
    }

    #[test]
    fn what_killed_processes_left_goes_with_the_next_one() {
        let parent = tempfile::tempdir().unwrap();
        let dead = left_by_a_killed_process(parent.path(), "killed");
        let held = left_by_a_killed_process(parent.path(), "held01");
        let mut holding = held_by_another(&held);

        let first = WorkDirectory::make(parent.path()).unwrap();
        assert!(!dead.exists());
        let second = WorkDirectory::make(parent.path()).unwrap();
        for path in [first.path(), second.path(), &held] {
            assert!(path.exists(), "{}", path.display());
        }
        assert_eq!(first.path().metadata().unwrap().mode() & MODE_BITS, MODE);
        // What is made is known again.
        assert!(is_name(first.path().file_name().unwrap().to_str().unwrap()));
        let gone = first.path().to_owned();
        drop(first);
        assert!(!gone.exists());

        holding.kill().unwrap();
        holding.wait().unwrap();
        WorkDirectory::make(parent.path()).unwrap();
        assert!(!held.exists());
    }

    /// The user may name a server's directory so, or what is exported.
    #[test]
    fn what_users_have_under_such_names_stays() {
        let parent = tempfile::tempdir().unwrap();
        let make = |name: &str, mode, files: &[&str]| directory(parent.path(), name, mode, files);
        let theirs = [
            make("pgkeep-restore-test", MODE, &[ARCHIVE_NAME]),
            make("pgkeep-restore-te-st1", MODE, &[ARCHIVE_NAME]),
            make("pgkeep-restore-server", MODE, &["PG_VERSION", "base/1/112"]),
            make(
                "pgkeep-restore-import",
                MODE,
                &[ARCHIVE_NAME, "list-all", "notes"],
            ),
            make("pgkeep-restore-folder", MODE, &[ARCHIVE_NAME, "list-x/file"]),
            make("pgkeep-restore-shared", 0o755, &[ARCHIVE_NAME]),
            make("pgkeep-restore-listed", MODE, &["list-all"]),
            make("pgkeep-restore-empty0", MODE, &[]),
            make("pgkeep-server-x", MODE, &[ARCHIVE_NAME]),
        ];
        let link = parent.path().join(format!("{PREFIX}alinkx"));
        std::os::unix::fs::symlink(&theirs[8], &link).unwrap();
        let files = |path: &PathBuf| std::fs::read_dir(path).unwrap().count();
        let before: Vec<usize> = theirs.iter().map(files).collect();
        WorkDirectory::make(parent.path()).unwrap();
        assert_eq!(theirs.iter().map(files).collect::<Vec<_>>(), before);
        assert!(link.is_symlink() && theirs[4].join("list-x/file").exists());
    }

    /// Whoever cleans up holds a new one for a moment, and removes it; its maker must not go on without a lock.
    #[test]
    fn a_new_one_that_is_being_removed_is_made_again() {
        let parent = tempfile::tempdir().unwrap();
        let made = || tempfile::Builder::new().tempdir_in(parent.path()).unwrap();
        let removed = made();
        std::fs::remove_dir(removed.path()).unwrap();
        assert!(WorkDirectory::held(removed).unwrap().is_none());

        let directory = made();
        let path = directory.path().to_owned();
        let cleaner = File::open(&path).unwrap();
        cleaner.try_lock().unwrap();
        let (done, held) = mpsc::channel();
        let maker = std::thread::spawn(move || {
            done.send(WorkDirectory::held(directory).unwrap().is_some())
                .unwrap();
        });
        assert!(held.recv_timeout(WATCHED).is_err(), "it went on without the lock");
        std::fs::remove_dir(&path).unwrap();
        drop(cleaner);
        assert!(!held.recv().unwrap(), "it took what was removed");
        maker.join().unwrap();
    }

    /// Whoever asks just then keeps the lock from nobody.
    #[test]
    fn what_is_asked_for_in_the_same_moment_is_held_afterwards() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("x.partial");
        std::fs::write(&path, "").unwrap();
        let asker = File::open(&path).unwrap();
        asker.try_lock().unwrap();
        let writer = File::open(&path).unwrap();
        let (done, held) = mpsc::channel();
        let writing = std::thread::spawn(move || {
            hold(&writer);
            done.send(writer).unwrap();
        });
        assert!(held.recv_timeout(WATCHED).is_err(), "it went on without the lock");
        drop(asker);
        let _writer = held.recv().unwrap();
        assert_eq!(holder(&path), Holder::Alive);
        writing.join().unwrap();
    }
}
