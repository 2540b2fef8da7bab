//! Files and directories that are written under another name until they are whole: nobody takes a half of one for all of
//! it, and nothing stays of one that failed or was interrupted.

use std::ffi::OsString;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use pgkeep_store::durable::{parent, rename_new, sync_directory};

use crate::claim::{self, Holder};
use crate::error::{Context, DumpError};

/// A dump holds everything: nobody but its owner may read it.
pub(crate) const FILE_MODE: u32 = 0o600;
pub(crate) const DIRECTORY_MODE: u32 = 0o700;

/// A program that was killed may finish a last file while its directory is removed.
const REMOVALS_MAX: u32 = 5;

/// `NAME.partial`, which becomes `NAME` by [`Partial::finish`]. Dropped before, it is removed.
pub(crate) struct Partial {
    path: PathBuf,
    partial: PathBuf,
    is_named: bool,
    /// Tells others that it is being written.
    _lock: Option<File>,
}

impl Partial {
    /// Begins a file.
    ///
    /// # Errors
    /// It exists, or its partial one does; the disk's.
    pub fn file(path: &Path) -> Result<(Self, File), DumpError> {
        let (path, partial) = names(path)?;
        refuse_missing_folder(&path)?;
        let mut open = OpenOptions::new();
        open.write(true).create_new(true).mode(FILE_MODE);
        let file = open
            .open(&partial)
            .context(|| format!("creating {}", partial.display()))?;
        let lock = file.try_clone().ok();
        Ok((Self::begun(path, partial, lock), file))
    }

    /// Begins a directory, and makes those above it.
    ///
    /// # Errors
    /// As [`Partial::file`].
    pub fn directory(path: &Path) -> Result<Self, DumpError> {
        let (path, partial) = names(path)?;
        let context = || format!("creating {}", partial.display());
        std::fs::create_dir_all(parent(&path)).context(context)?;
        DirBuilder::new()
            .mode(DIRECTORY_MODE)
            .create(&partial)
            .context(context)?;
        let lock = File::open(&partial).ok();
        Ok(Self::begun(path, partial, lock))
    }

    fn begun(path: PathBuf, partial: PathBuf, lock: Option<File>) -> Self {
        lock.iter().for_each(claim::hold);
        Self {
            path,
            partial,
            is_named: false,
            _lock: lock,
        }
    }

    /// Where it is written.
    pub fn place(&self) -> &Path {
        &self.partial
    }

    /// Makes it durable, then gives it its name. Returns its size in bytes.
    ///
    /// # Errors
    /// The disk's; something of its name came in the meantime.
    pub async fn finish(mut self) -> Result<u64, DumpError> {
        let partial = self.partial.clone();
        let synced = tokio::task::spawn_blocking(move || sync_all(&partial)).await;
        let bytes = synced
            .map_err(|error| DumpError::Internal(format!("a thread died: {error}")))?
            .context(|| format!("making {} durable", self.partial.display()))?;
        // Whoever interrupts does so before this or after it: there is no waiting between.
        name(&self.partial, &self.path)
            .context(|| format!("naming what is finished {}", self.path.display()))?;
        self.is_named = true;
        let folder = parent(&self.path);
        sync_directory(folder).context(|| format!("making {} durable", folder.display()))?;
        Ok(bytes)
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if self.is_named {
            return;
        }
        let mut removed = remove(&self.partial);
        for _ in 1..REMOVALS_MAX {
            if removed.is_ok() {
                return;
            }
            removed = remove(&self.partial);
        }
        if let Err(error) = removed {
            tracing::warn!(%error, "{} is unfinished, and stays", self.partial.display());
        }
    }
}

/// Something must not be written over what is there.
pub(crate) fn refuse_existing(path: &Path) -> Result<(), DumpError> {
    if path.symlink_metadata().is_ok() {
        return Err(DumpError::Refused {
            message: format!("{} exists already", path.display()),
            hint: "choose another place, or move the old one away".to_owned(),
        });
    }
    Ok(())
}

/// A file goes where somebody has a place for it; a mistyped one isn't made.
fn refuse_missing_folder(path: &Path) -> Result<(), DumpError> {
    let folder = parent(path);
    match folder.metadata() {
        Err(error) if error.kind() == ErrorKind::NotFound => Err(DumpError::Usage {
            message: format!(
                "{} can't be written: there is no folder {}",
                path.display(),
                folder.display()
            ),
            hint: Some(format!(
                "make it (mkdir -p {}), or name another place",
                shell_word(folder)
            )),
        }),
        _ => Ok(()),
    }
}

/// A path as a shell takes it.
fn shell_word(path: &Path) -> String {
    let text = path.display().to_string();
    let is_plain = |c: char| c.is_alphanumeric() || "_-./+,:@".contains(c);
    if text.chars().all(is_plain) {
        return text;
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}

fn names(path: &Path) -> Result<(PathBuf, PathBuf), DumpError> {
    // Without a slash at the end.
    let path: PathBuf = path.components().collect();
    refuse_existing(&path)?;
    let mut name = path.file_name().map(OsString::from).unwrap_or_default();
    name.push(".partial");
    let partial = path.with_file_name(name);
    if partial.symlink_metadata().is_ok() {
        return Err(refused(&partial));
    }
    Ok((path, partial))
}

/// It may be somebody else's of that name: nobody but the user removes it.
fn refused(partial: &Path) -> DumpError {
    // Of a link itself, not of where it leads.
    let is_directory = partial.symlink_metadata().is_ok_and(|found| found.is_dir());
    let option = if is_directory { " -r" } else { "" };
    let mend = format!("rm{option} {}", shell_word(partial));
    let (what, hint) = match claim::holder(partial) {
        Holder::Alive => (
            "is being written by another pgkeep",
            "wait for it to end, or choose another place".to_owned(),
        ),
        Holder::Gone => (
            "exists already, and nobody is writing it",
            format!("if a pgkeep that was killed left it, remove it: {mend}"),
        ),
        Holder::Unknown => (
            "exists already",
            format!("another pgkeep is writing it; or one was killed while it did, then remove it: {mend}"),
        ),
    };
    DumpError::Refused {
        message: format!("{} {what}", partial.display()),
        hint,
    }
}

/// Never over what came in the meantime; where a file system can't promise that, as well as it goes. (A directory that
/// isn't empty is never replaced.)
fn name(from: &Path, to: &Path) -> io::Result<()> {
    match rename_new(from, to) {
        Err(error) if error.kind() == ErrorKind::Unsupported => {
            if to.symlink_metadata().is_ok() {
                return Err(ErrorKind::AlreadyExists.into());
            }
            std::fs::rename(from, to)
        }
        renamed => renamed,
    }
}

fn remove(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        std::fs::remove_dir_all(path)
    } else {
        std::fs::remove_file(path)
    }
}

/// A file, or a directory with all that is in it. Returns the files' size.
fn sync_all(path: &Path) -> io::Result<u64> {
    if !path.is_dir() {
        let file = File::open(path)?;
        file.sync_all()?;
        return Ok(file.metadata()?.len());
    }
    let mut bytes = 0;
    for entry in std::fs::read_dir(path)? {
        bytes += sync_all(&entry?.path())?;
    }
    sync_directory(path)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(folder: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(folder).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[tokio::test]
    async fn what_is_finished_gets_its_name_and_the_rest_goes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a file");
        let (partial, _) = Partial::file(&path).unwrap();
        std::fs::write(partial.place(), "half").unwrap();
        drop(partial);
        assert!(listed(folder.path()).is_empty());
        let (partial, _) = Partial::file(&path).unwrap();
        std::fs::write(partial.place(), "whole").unwrap();
        assert_eq!(partial.finish().await.unwrap(), 5);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "whole");

        // A slash at the end, and nothing above it.
        let path = folder.path().join("above/a directory/");
        let write = |partial: &Partial| {
            std::fs::create_dir(partial.place().join("d1")).unwrap();
            std::fs::write(partial.place().join("d1/rows"), "12").unwrap();
            std::fs::write(partial.place().join("index"), "3").unwrap();
        };
        let partial = Partial::directory(&path).unwrap();
        write(&partial);
        drop(partial);
        assert!(listed(&folder.path().join("above")).is_empty());
        let partial = Partial::directory(&path).unwrap();
        write(&partial);
        assert_eq!(partial.finish().await.unwrap(), 3);
        assert_eq!(listed(&path), ["d1", "index"]);
        assert_eq!(listed(folder.path()), ["a file", "above"]);
    }

    #[test]
    fn a_missing_folder_is_told_with_what_makes_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("no such/x.sql");
        let Err(error) = Partial::file(&path) else {
            panic!("it was begun");
        };
        let hint = pgkeep_base::Classified::hint(&error).unwrap().to_string();
        assert!(matches!(error, DumpError::Usage { .. }), "{error}");
        assert!(error.to_string().contains("there is no folder"), "{error}");
        assert!(
            hint.contains(&format!("mkdir -p '{}/no such'", folder.path().display())),
            "{hint}"
        );
        assert!(listed(folder.path()).is_empty());
    }

    #[test]
    fn a_full_disk_is_told_with_its_mend() {
        let full: Result<(), DumpError> =
            Err(io::Error::from(ErrorKind::StorageFull)).context(|| "writing x.sql.partial".to_owned());
        let error = full.unwrap_err();
        let hint = pgkeep_base::Classified::hint(&error).unwrap().to_string();
        assert!(
            error.to_string().starts_with("writing x.sql.partial: "),
            "{error}"
        );
        assert!(hint.contains("the disk is full: free some space"), "{hint}");
    }

    /// Whether somebody writes it makes the difference between waiting and removing.
    #[test]
    fn whether_a_partial_one_is_being_written_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let told = |refused: Result<(), DumpError>| {
            let error = refused.unwrap_err();
            let hint = pgkeep_base::Classified::hint(&error).unwrap();
            format!("{error}: {hint}")
        };
        for (name, is_directory) in [("file", false), ("a directory", true)] {
            let path = folder.path().join(name);
            let begin = || match is_directory {
                true => Partial::directory(&path),
                false => Partial::file(&path).map(|(partial, _)| partial),
            };
            let begun = begin().unwrap();
            let living = told(begin().map(drop));
            assert!(living.contains("is being written by another pgkeep"), "{living}");
            drop(begun);
            // As a killed process leaves it.
            let partial = folder.path().join(format!("{name}.partial"));
            let mend = match is_directory {
                true => {
                    std::fs::create_dir(&partial).unwrap();
                    format!("remove it: rm -r '{}'", partial.display())
                }
                false => {
                    std::fs::write(&partial, "half").unwrap();
                    format!("remove it: rm {}", partial.display())
                }
            };
            let dead = told(begin().map(drop));
            assert!(
                dead.contains("nobody is writing it") && dead.contains(&mend),
                "{dead}"
            );
        }
    }

    /// In a folder for everybody it may be another user's: waiting for whoever writes into a pipe would take for ever, and
    /// where a link leads nothing is to be removed.
    #[test]
    fn what_is_neither_a_file_nor_a_directory_is_refused_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let made = std::process::Command::new("mkfifo")
            .arg(folder.path().join("pipe.partial"))
            .status()
            .unwrap();
        assert!(made.success());
        std::os::unix::fs::symlink(folder.path(), folder.path().join("link.partial")).unwrap();
        for name in ["pipe", "link"] {
            let path = folder.path().join(name);
            let (told, refused) = std::sync::mpsc::channel();
            std::thread::spawn(move || told.send(Partial::directory(&path).map(drop)));
            let wait = std::time::Duration::from_secs(10);
            let error = refused.recv_timeout(wait).expect("it waits").unwrap_err();
            let hint = pgkeep_base::Classified::hint(&error).unwrap().to_string();
            let mend = format!("rm {}/{name}.partial", folder.path().display());
            assert!(hint.contains(&mend), "{hint}");
        }
    }

    /// What is there already, or comes in the meantime, is neither replaced nor removed.
    #[tokio::test]
    async fn what_belongs_to_others_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out");
        let refused =
            |result: Result<(), DumpError>| assert!(matches!(result, Err(DumpError::Refused { .. })));
        let (first, _) = Partial::file(&path).unwrap();
        refused(Partial::file(&path).map(drop));
        refused(Partial::directory(&path).map(drop));
        std::fs::write(&path, "another").unwrap();
        refused(Partial::file(&path).map(drop));
        assert!(first.finish().await.is_err());
        assert_eq!(listed(folder.path()), ["out"]);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "another");

        let path = folder.path().join("directory");
        let partial = Partial::directory(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        std::fs::write(path.join("another"), "").unwrap();
        assert!(partial.finish().await.is_err());
        assert_eq!(listed(folder.path()), ["directory", "out"]);
        assert_eq!(listed(&path), ["another"]);
    }
}
