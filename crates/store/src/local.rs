//! `file://`: reading and listing by `object_store`, writing and deleting by our own hand.
//!
//! `LocalFileSystem::with_fsync(true)` flushes files and directories on a put, but its deletes are not durable (a
//! manifest that comes back after a power cut would name objects that don't), it can't be told file modes, its
//! multipart uploads overwrite, and it removes empty directories above the repository. So a write here is: a staging
//! file `key#<random digits>`, mode 0600, which listings pass over; fsync; a rename that fails if the name is taken;
//! fsync of the directory.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
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
}

impl LocalDisk {
    pub(crate) fn new(root: PathBuf) -> Self {
        Self {
            files: LocalFileSystem::new(),
            root: Arc::new(root),
        }
    }

    fn path(&self, location: &Path) -> Result<PathBuf> {
        self.files.path_to_filesystem(location)
    }

    /// Begins a file that becomes `location` in the end.
    pub(crate) fn stage(&self, location: &Path) -> io::Result<Staged> {
        let target = self.path(location).map_err(io::Error::other)?;
        Staged::create(target, &self.root)
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
}

impl Staged {
    fn create(target: PathBuf, root: &FilePath) -> io::Result<Self> {
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
        let given_up = given_up.lock().unwrap_or_else(PoisonError::into_inner);
        if *given_up {
            return Err(io::Error::other("nobody waits for it any more"));
        }
        rename_new(&self.staging, &self.target, &self.file)?;
        self.published = true;
        drop(given_up);
        sync_directory(parent(&self.target))
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if !self.published {
            let _ = std::fs::remove_file(&self.staging);
        }
    }
}

/// Renames without ever replacing: `renameat2(RENAME_NOREPLACE)`, and where the file system lacks it (NFS, some FUSE) a
/// hard link, which fails just so when the name is taken.
fn rename_new(from: &FilePath, to: &FilePath, file: &File) -> io::Result<()> {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        use nix::errno::Errno;
        use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
        match renameat2(AT_FDCWD, from, AT_FDCWD, to, RenameFlags::RENAME_NOREPLACE) {
            Ok(()) => return Ok(()),
            Err(Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP) => {}
            Err(errno) => return Err(io::Error::from(errno)),
        }
    }
    match std::fs::hard_link(from, to) {
        // An NFS server's lost answer makes the client ask twice, and the second time fails: two names mean success.
        Err(error) if error.kind() == ErrorKind::AlreadyExists && file.metadata()?.nlink() < 2 => Err(error),
        Err(error)
            if error.kind() == ErrorKind::PermissionDenied || error.kind() == ErrorKind::Unsupported =>
        {
            let why = "this file system can neither rename without replacing nor link, so two writers can't be kept apart";
            Err(io::Error::new(ErrorKind::Unsupported, format!("{why} ({error})")))
        }
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error),
        _ => {
            let _ = std::fs::remove_file(from);
            Ok(())
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
        Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
        _ => {}
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

fn parent(path: &FilePath) -> &FilePath {
    path.parent().unwrap_or(FilePath::new("/"))
}

fn sync_directory(directory: &FilePath) -> io::Result<()> {
    match File::open(directory)?.sync_all() {
        // Some FUSE and network file systems can't; there's nothing more to be had from them.
        Err(error) if matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported) => Ok(()),
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
        let (target, root) = (self.path(location)?, Arc::clone(&self.root));
        let giving_up = GivesUp::default();
        let given_up = Arc::clone(&giving_up.0);
        let written = blocking(move || {
            let mut staged = Staged::create(target, &root)?;
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
