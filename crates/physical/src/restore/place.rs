//! The directories that a restore writes into: paths, owners, the mark, durability. All of it blocks.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown, lchown};
use std::path::{Path, PathBuf};

use pgkeep_repository::map::ROOT_DATA;

use super::MARK;
use super::delta::{self, Existing};
use crate::error::{Context, PhysicalError};

/// What the server wants of its data directory.
const DIRECTORY_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;

/// Where all is written to.
#[derive(Debug)]
pub struct Place {
    roots: BTreeMap<u32, PathBuf>,
    /// To whom all is given, where this process may do that and it isn't its own user.
    owner: Option<(u32, u32)>,
    /// One handle for each root, opened before the first byte is written: what can't be written back since is told by its
    /// `syncfs`.
    handles: Vec<File>,
    existing: Existing,
    /// The marks in all roots, as far as they are held: their locks say that this process lives.
    marks: Vec<(PathBuf, File)>,
}

impl Place {
    /// Makes the directories, and marks the data directory; `spaces` are the tablespaces' by their OIDs. From then on nobody else restores into it.
    pub fn claim(
        roots: &BTreeMap<u32, PathBuf>,
        spaces: &BTreeMap<u32, PathBuf>,
        id: &str,
        existing: Existing,
    ) -> Result<Self, PhysicalError> {
        let data = roots
            .get(&ROOT_DATA)
            .ok_or_else(|| PhysicalError::internal("there is no data directory"))?;
        let owner = owner_of(data)?;
        let mut place = Self {
            roots: roots.clone(),
            owner,
            handles: Vec::new(),
            existing,
            marks: Vec::new(),
        };
        for path in roots.values() {
            let making = || format!("making {}", path.display());
            // One that is gone on with has the owner and the permissions that somebody gave it.
            let is_new = !path.exists();
            if is_new {
                fs::create_dir_all(path).context(making)?;
            }
            if is_new || existing == Existing::Refuse {
                place.give(path)?;
                fs::set_permissions(path, fs::Permissions::from_mode(DIRECTORY_MODE)).context(making)?;
            }
            if let Err(error) = place.hold(path) {
                place.unmark()?;
                return Err(error);
            }
            place.handles.push(File::open(path).context(making)?);
        }
        place.mark(id, spaces)?;
        if existing == Existing::Refuse {
            place.check_empty()?;
        } else {
            delta::begin(&place)?;
        }
        Ok(place)
    }

    /// Somebody may have been quicker than the mark.
    fn check_empty(&self) -> Result<(), PhysicalError> {
        for path in self.roots.values() {
            let mut entries = fs::read_dir(path).context(|| format!("looking into {}", path.display()))?;
            let stranger = entries.find_map(|entry| {
                let name = entry.ok()?.file_name();
                (name != MARK).then_some(name)
            });
            if let Some(name) = stranger {
                self.unmark()?;
                return Err(PhysicalError::Refused {
                    message: format!(
                        "{} is not empty any more: it holds {}",
                        path.display(),
                        name.display()
                    ),
                    hint: "choose a directory that nobody else writes to".to_owned(),
                });
            }
        }
        Ok(())
    }

    /// Makes a directory's mark, or takes the one that is there, and locks it.
    fn hold(&mut self, directory: &Path) -> Result<(), PhysicalError> {
        let path = directory.join(MARK);
        let marking = || format!("marking {}", directory.display());
        let busy = || PhysicalError::Refused {
            message: format!("another restore is writing to {}", directory.display()),
            hint: "wait for it, or choose another directory".to_owned(),
        };
        let mut options = OpenOptions::new();
        options.write(true).mode(FILE_MODE);
        match self.existing {
            Existing::Refuse => options.create_new(true),
            Existing::Resume | Existing::Replace => options.create(true).truncate(false),
        };
        let file = match options.open(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => return Err(busy()),
            opened => opened.context(marking)?,
        };
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => return Err(busy()),
            // A file system without locks can't tell; then nobody is kept out.
            Ok(()) | Err(TryLockError::Error(_)) => {}
        }
        self.marks.push((path, file));
        Ok(())
    }

    /// Writes the marks, when all are held: what the data directory's says of tablespaces is its own.
    fn mark(&self, id: &str, spaces: &BTreeMap<u32, PathBuf>) -> Result<(), PhysicalError> {
        // What earlier restores have used stays theirs, whatever becomes of this one.
        let mut known = delta::marked_spaces(self.data());
        known.extend(spaces.iter().map(|(oid, path)| (*oid, path.clone())));
        for (place, (path, mut file)) in self.marks.iter().map(|(path, file)| (path, file)).enumerate() {
            let marking = || format!("writing {}", path.display());
            let text = match place {
                0 => delta::mark_text(id, &known),
                _ => delta::mark_text(id, &BTreeMap::new()),
            };
            file.set_len(0).context(marking)?;
            file.write_all(text.as_bytes()).context(marking)?;
            file.sync_all().context(marking)?;
            sync_directory(path.parent().unwrap_or(path))?;
        }
        Ok(())
    }

    /// Removes all that was made in directories that had been empty.
    pub fn clear(&self) -> Result<(), PhysicalError> {
        for path in self.roots.values() {
            let clearing = || format!("emptying {}", path.display());
            for entry in fs::read_dir(path).context(clearing)? {
                let entry = entry.context(clearing)?;
                if entry.file_name() != MARK {
                    delta::remove(&entry.path())?;
                }
            }
        }
        self.unmark()
    }

    /// Takes the marks away, the data directory's last: all is there and durable, or nothing was made.
    pub fn unmark(&self) -> Result<(), PhysicalError> {
        for (path, _) in self.marks.iter().rev() {
            fs::remove_file(path).context(|| format!("removing {}", path.display()))?;
            sync_directory(path.parent().unwrap_or(path))?;
        }
        Ok(())
    }

    /// The data directory.
    pub fn data(&self) -> &Path {
        self.roots.get(&ROOT_DATA).map_or(Path::new(""), PathBuf::as_path)
    }

    /// The owner that all is given to, if it isn't this process's own.
    pub fn owner(&self) -> Option<(u32, u32)> {
        self.owner
    }

    /// Where a record's path lies. Its parts were checked when it was read.
    pub fn path(&self, root: u32, path: &[u8]) -> Result<PathBuf, PhysicalError> {
        let root = self.roots.get(&root);
        let root = root.ok_or_else(|| PhysicalError::internal("a file belongs to an unknown root"))?;
        Ok(root.join(std::ffi::OsStr::from_bytes(path)))
    }

    /// Makes a directory, with those above it.
    pub fn directory(&self, path: &Path, mode: u32) -> Result<(), PhysicalError> {
        let making = || format!("making {}", path.display());
        self.parents(path)?;
        let is_in_the_way = || fs::metadata(path).is_ok_and(|found| !found.is_dir());
        if self.existing != Existing::Refuse && is_in_the_way() {
            delta::remove(path)?;
        }
        match fs::create_dir(path) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists && path.is_dir() => {}
            made => made.context(making)?,
        }
        fs::set_permissions(path, fs::Permissions::from_mode(mode & 0o777)).context(making)?;
        self.give(path)
    }

    fn parents(&self, path: &Path) -> Result<(), PhysicalError> {
        match path.parent() {
            Some(parent) if !parent.exists() => self.directory(parent, DIRECTORY_MODE),
            _ => Ok(()),
        }
    }

    /// Makes a file of a size: what is new is a hole. It must not be there, or, where what is there is replaced, keeps what it
    /// holds, so many bytes, if it is a file that has no other name: a copy may have been made by links.
    pub fn file_over(&self, path: &Path, mode: u32, size: u64) -> Result<u64, PhysicalError> {
        let making = || format!("making {}", path.display());
        match fs::symlink_metadata(path) {
            Ok(found) if self.existing != Existing::Refuse && found.is_file() && found.nlink() == 1 => {
                let file = OpenOptions::new().write(true).open(path).context(making)?;
                if found.len() != size {
                    file.set_len(size).context(making)?;
                }
                file.set_permissions(fs::Permissions::from_mode(mode & 0o777))
                    .context(making)?;
                self.give(path)?;
                Ok(found.len().min(size))
            }
            Ok(_) if self.existing != Existing::Refuse => {
                delta::remove(path)?;
                self.file(path, mode, size).map(|_| 0)
            }
            _ => self.file(path, mode, size).map(|_| 0),
        }
    }

    /// What becomes of what is there.
    pub fn existing(&self) -> Existing {
        self.existing
    }

    /// Makes a file of a size, all of it a hole. It must not be there.
    pub fn file(&self, path: &Path, mode: u32, size: u64) -> Result<File, PhysicalError> {
        let making = || format!("making {}", path.display());
        self.parents(path)?;
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(FILE_MODE)
            .open(path)
            .context(making)?;
        file.set_len(size).context(making)?;
        file.set_permissions(fs::Permissions::from_mode(mode & 0o777))
            .context(making)?;
        self.give(path)?;
        Ok(file)
    }

    /// Makes a symbolic link. Nothing must be there.
    pub fn link(&self, path: &Path, target: &Path) -> Result<(), PhysicalError> {
        let making = || format!("making {}", path.display());
        self.parents(path)?;
        std::os::unix::fs::symlink(target, path).context(making)?;
        match self.owner {
            None => Ok(()),
            Some((user, group)) => lchown(path, Some(user), Some(group)).context(making),
        }
    }

    /// Writes a whole file, which may be there.
    pub fn write(&self, path: &Path, contents: &[u8]) -> Result<(), PhysicalError> {
        let writing = || format!("writing {}", path.display());
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(FILE_MODE)
            .open(path)
            .context(writing)?;
        file.write_all(contents).context(writing)?;
        file.sync_all().context(writing)?;
        self.give(path)
    }

    fn give(&self, path: &Path) -> Result<(), PhysicalError> {
        match self.owner {
            None => Ok(()),
            Some((user, group)) => chown(path, Some(user), Some(group))
                .context(|| format!("changing the owner of {}", path.display())),
        }
    }

    /// Makes all that was written durable.
    pub fn sync(&self) -> Result<(), PhysicalError> {
        for (handle, path) in self.handles.iter().zip(self.roots.values()) {
            nix::unistd::syncfs(handle)
                .map_err(std::io::Error::from)
                .context(|| format!("making {} durable", path.display()))?;
        }
        Ok(())
    }
}

/// Makes the names in a directory durable.
pub fn sync_directory(path: &Path) -> Result<(), PhysicalError> {
    let directory = File::open(path).and_then(|directory| directory.sync_all());
    directory.context(|| format!("making {} durable", path.display()))
}

/// Whose the directory is, or will be: where this process is root, which no server runs as, what it writes is given to the
/// owner of the directory, or of the one above it.
fn owner_of(data: &Path) -> Result<Option<(u32, u32)>, PhysicalError> {
    if !nix::unistd::geteuid().is_root() {
        return Ok(None);
    }
    let existing = data
        .ancestors()
        .find(|path| path.exists())
        .unwrap_or(Path::new("/"));
    let metadata = fs::metadata(existing).context(|| format!("looking at {}", existing.display()))?;
    Ok((metadata.uid() != 0).then(|| (metadata.uid(), metadata.gid())))
}
