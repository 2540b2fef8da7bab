//! `file://`: reading and listing by `object_store`, writing and deleting by our own hand.
//!
//! `LocalFileSystem::with_fsync(true)` flushes files and directories on a put, but its deletes are not durable (a
//! manifest that comes back after a power cut would name objects that don't), it can't be told file modes, its
//! multipart uploads overwrite, and it removes empty directories above the repository. So a write here is: a staging
//! file `key#<random digits>`, mode 0600, which listings pass over; fsync; a rename that fails if the name is taken;
//! fsync of the directory.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path as FilePath, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMode,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use rand::Rng;

use crate::durable::{parent, rename_new, sync_directory};

/// Files with this between name and digits are writes under way, or what a killed process left of one.
const STAGING_MARK: char = '#';
const DIRECTORY_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;

/// The files below one directory as an object store.
#[derive(Debug, Clone)]
pub(crate) struct LocalDisk {
    /// Rooted at `/`, so that a repository which doesn't exist yet can be opened.
    files: LocalFileSystem,
    /// The repository. Directories up to here are never removed.
    root: Arc<PathBuf>,
    /// Makes a directory's names durable; it fails in tests.
    sync: SyncDirectory,
}

type SyncDirectory = fn(&FilePath) -> io::Result<()>;

impl LocalDisk {
    pub(crate) fn new(root: PathBuf) -> Self {
        Self {
            files: LocalFileSystem::new(),
            root: Arc::new(root),
            sync: sync_directory,
        }
    }

    /// A disk that can't make a new name durable.
    #[cfg(test)]
    pub(crate) fn failing(self) -> Self {
        Self {
            sync: |_| Err(io::Error::other("not durable on purpose")),
            ..self
        }
    }

    fn path(&self, location: &Path) -> Result<PathBuf> {
        self.files.path_to_filesystem(location)
    }

    /// Begins a file that becomes `location` in the end.
    pub(crate) fn stage(&self, location: &Path) -> io::Result<Staged> {
        let target = self.path(location).map_err(io::Error::other)?;
        Staged::create(target, &self.root, self.sync)
    }

    /// Makes an object durable that another write, of which nothing more is known, gave its name.
    pub(crate) fn make_durable(&self, location: &Path) -> io::Result<()> {
        let path = self.path(location).map_err(io::Error::other)?;
        File::open(&path)?.sync_all()?;
        (self.sync)(parent(&path))
    }

    /// Names of the directories below `location` that hold at least one object: like in an object store, a directory
    /// without one doesn't exist.
    pub(crate) fn directories(&self, location: &Path) -> io::Result<Vec<String>> {
        let directory = FilePath::new("/").join(location.as_ref());
        let mut names = Vec::new();
        for entry in read_dir_or_empty(&directory)? {
            let entry = entry?;
            if let (true, Ok(name)) = (entry.path().is_dir(), entry.file_name().into_string())
                && holds_an_object(&entry.path())?
            {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Removes staging files below `location` that nobody has written to for `idle`, and directories left empty.
    pub(crate) fn remove_leftovers(&self, location: &Path, idle: Duration) -> io::Result<u64> {
        let directory = FilePath::new("/").join(location.as_ref());
        let oldest = SystemTime::now()
            .checked_sub(idle)
            .unwrap_or(SystemTime::UNIX_EPOCH);
        let mut removed = 0;
        let mut pending = vec![directory];
        while let Some(directory) = pending.pop() {
            for entry in read_dir_or_empty(&directory)? {
                let entry = entry?;
                let metadata = match entry.metadata() {
                    Ok(metadata) => metadata,
                    Err(error) if error.kind() == ErrorKind::NotFound => continue,
                    Err(error) => return Err(error),
                };
                if metadata.is_dir() {
                    pending.push(entry.path());
                } else if is_staging(&entry.path()) && metadata.modified()? <= oldest {
                    match remove(&entry.path(), &self.root) {
                        Ok(()) => removed += 1,
                        // Its writer ended after all, or another sweep was faster.
                        Err(error) if error.kind() == ErrorKind::NotFound => {}
                        Err(error) => return Err(error),
                    }
                }
            }
        }
        Ok(removed)
    }
}

fn read_dir_or_empty(
    directory: &FilePath,
) -> io::Result<Box<dyn Iterator<Item = io::Result<std::fs::DirEntry>>>> {
    match std::fs::read_dir(directory) {
        Ok(entries) => Ok(Box::new(entries)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Box::new(std::iter::empty())),
        Err(error) => Err(error),
    }
}

fn holds_an_object(directory: &FilePath) -> io::Result<bool> {
    let mut pending = vec![directory.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in read_dir_or_empty(&directory)? {
            let path = entry?.path();
            if path.is_dir() {
                pending.push(path);
            } else if !is_staging(&path) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

fn is_staging(path: &FilePath) -> bool {
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    name.rsplit_once(STAGING_MARK)
        .is_some_and(|(_, digits)| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()))
}

/// A file under way. Dropped before it's published, it's removed.
#[derive(Debug)]
pub(crate) struct Staged {
    file: File,
    staging: PathBuf,
    target: PathBuf,
    published: bool,
    sync: SyncDirectory,
}

impl Staged {
    fn create(target: PathBuf, root: &FilePath, sync: SyncDirectory) -> io::Result<Self> {
        // Another process' delete may remove the directory, now empty, between its making and its use.
        const ATTEMPTS_MAX: usize = 100;
        let mut last = io::Error::from(ErrorKind::NotFound);
        for _ in 0..ATTEMPTS_MAX {
            let suffix: u64 = rand::rng().random();
            let mut staging = target.clone().into_os_string();
            staging.push(format!("{STAGING_MARK}{suffix}"));
            let staging = PathBuf::from(staging);
            let mut options = OpenOptions::new();
            match options
                .write(true)
                .create_new(true)
                .mode(FILE_MODE)
                .open(&staging)
            {
                Ok(file) => {
                    return Ok(Self {
                        file,
                        staging,
                        target,
                        published: false,
                        sync,
                    });
                }
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    make_directory(parent(&target), root)?;
                    last = error;
                }
                Err(error) if error.kind() == ErrorKind::AlreadyExists => last = error,
                Err(error) => return Err(error),
            }
        }
        Err(last)
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)
    }

    /// Makes the file durable under its name, or fails with `AlreadyExists` if the name is taken.
    pub(crate) fn publish(self) -> io::Result<()> {
        self.publish_unless(&Mutex::new(false))
    }

    /// As [`Staged::publish`], unless it was given up meanwhile. The lock is held over the renaming alone: whoever gives
    /// up must not wait for a slow disk.
    fn publish_unless(mut self, given_up: &Mutex<bool>) -> io::Result<()> {
        self.file.sync_all()?;
        let lock = || given_up.lock().unwrap_or_else(PoisonError::into_inner);
        let gone = lock();
        if *gone {
            return Err(io::Error::other("nobody waits for it any more"));
        }
        rename_new(&self.staging, &self.target)?;
        self.published = true;
        drop(gone);
        let synced = (self.sync)(parent(&self.target));
        // Its writer is told that it failed, so it must not be there. Whoever was given up has no say any more: the next
        // attempt may have found the object, and made it durable.
        let gone = lock();
        if synced.is_err() && !*gone {
            let _ = std::fs::remove_file(&self.target);
        }
        synced
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if !self.published {
            let _ = std::fs::remove_file(&self.staging);
        }
    }
}

/// Makes `directory` and what is missing above it, durably. What is above the repository keeps the usual mode.
fn make_directory(directory: &FilePath, root: &FilePath) -> io::Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    let above = parent(directory);
    make_directory(above, root)?;
    let mut builder = DirBuilder::new();
    if directory.starts_with(root) {
        builder.mode(DIRECTORY_MODE);
    }
    match builder.create(directory) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        // What is above it was removed again, by somebody's delete: the caller tries anew.
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    }
    match sync_directory(above) {
        // Removed again by somebody's delete: the caller tries anew.
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Removes a file durably, and the directories below the repository that it leaves empty.
fn remove(path: &FilePath, root: &FilePath) -> io::Result<()> {
    std::fs::remove_file(path)?;
    let mut directory = parent(path);
    while directory != root && directory.starts_with(root) && std::fs::remove_dir(directory).is_ok() {
        directory = parent(directory);
    }
    match sync_directory(directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

fn failed(location: &Path, error: io::Error) -> object_store::Error {
    match error.kind() {
        ErrorKind::NotFound => object_store::Error::NotFound {
            path: location.to_string(),
            source: Box::new(error),
        },
        ErrorKind::AlreadyExists => object_store::Error::AlreadyExists {
            path: location.to_string(),
            source: Box::new(error),
        },
        _ => object_store::Error::Generic {
            store: "file",
            source: Box::new(error),
        },
    }
}

/// A put whose caller has gone must not make its object appear later, under whoever cleans up: once this is dropped, the
/// object is there already or never will be.
#[derive(Default)]
struct GivesUp(Arc<Mutex<bool>>);

impl Drop for GivesUp {
    fn drop(&mut self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
    }
}

/// Runs blocking file work where it doesn't hold up the sockets.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(io::Error::other(error)))
}

impl std::fmt::Display for LocalDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "LocalDisk({})", self.root.display())
    }
}

#[async_trait]
impl ObjectStore for LocalDisk {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        if !matches!(options.mode, PutMode::Create) {
            return Err(unsupported("a put that may overwrite"));
        }
        let (target, root, sync) = (self.path(location)?, Arc::clone(&self.root), self.sync);
        let giving_up = GivesUp::default();
        let given_up = Arc::clone(&giving_up.0);
        let written = blocking(move || {
            let mut staged = Staged::create(target, &root, sync)?;
            payload.iter().try_for_each(|bytes| staged.write(bytes))?;
            staged.publish_unless(&given_up)
        });
        written.await.map_err(|error| failed(location, error))?;
        Ok(PutResult {
            e_tag: None,
            version: None,
            extensions: Default::default(),
        })
    }

    async fn put_multipart_opts(&self, _: &Path, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        Err(unsupported("multipart uploads"))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.files.get_opts(location, options).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[std::ops::Range<u64>]) -> Result<Vec<Bytes>> {
        self.files.get_ranges(location, ranges).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        /// Deletes in flight: fsync waits, and several waits may be one.
        const CONCURRENCY: usize = 8;
        let disk = self.clone();
        let deleted = locations.map(move |location| {
            let disk = disk.clone();
            async move {
                let location = location?;
                let (path, root) = (disk.path(&location)?, Arc::clone(&disk.root));
                blocking(move || remove(&path, &root))
                    .await
                    .map_err(|error| failed(&location, error))?;
                Ok(location)
            }
        });
        deleted.buffered(CONCURRENCY).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.files.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.files.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, _: &Path, _: &Path, _: CopyOptions) -> Result<()> {
        Err(unsupported("copies"))
    }
}

fn unsupported(what: &str) -> object_store::Error {
    object_store::Error::NotImplemented {
        operation: what.to_owned(),
        implementer: "file://".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(disk: &LocalDisk, location: &Path, given_up: &Mutex<bool>) -> io::Result<()> {
        let mut staged = disk.stage(location)?;
        staged.write(b"x")?;
        staged.publish_unless(given_up)
    }

    #[test]
    fn what_is_not_durable_is_not_there() {
        let folder = tempfile::tempdir().unwrap();
        let sound = LocalDisk::new(folder.path().to_owned());
        let failing = sound.clone().failing();
        let path = folder.path().join("a/object");
        let location = Path::from_absolute_path(&path).unwrap();
        let nobody = Mutex::new(false);
        assert!(put(&failing, &location, &nobody).is_err());
        assert!(!path.exists());
        put(&sound, &location, &nobody).unwrap();
        // Another's object isn't touched.
        assert_eq!(
            put(&failing, &location, &nobody).unwrap_err().kind(),
            ErrorKind::AlreadyExists
        );
        assert!(path.exists());
        assert!(failing.make_durable(&location).is_err());
        sound.make_durable(&location).unwrap();
    }
}
