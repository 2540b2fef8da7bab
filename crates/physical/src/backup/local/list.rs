//! What belongs to a backup of a data directory: the files and directories that `backup/basebackup.c` sends, and no others.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::Metadata;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use pgkeep_pgformat::{Fork, RelationFileName};
use pgkeep_repository::map::{FileRecord, ROOT_DATA, ROOT_TABLESPACES, RecordContents};

use crate::backup::collect::{CONTROL_FILE, Captured};
use crate::backup::source::in_place;
use crate::error::{Context, PhysicalError};
use crate::manifest::DAMAGE_REPORTS_MAX;
use crate::restore::is_of_a_restore;

/// Of these only the directory itself belongs to a backup (`excludeDirContents`).
const EMPTY_DIRECTORIES: [&str; 7] = [
    "pg_stat_tmp",
    "pg_replslot",
    "pg_dynshmem",
    "pg_notify",
    "pg_serial",
    "pg_snapshots",
    "pg_subtrans",
];
/// Files that belong to none (`excludeFiles`).
const EXCLUDED_FILES: [&str; 7] = [
    "postgresql.auto.conf.tmp",
    "current_logfiles.tmp",
    "backup_label",
    "tablespace_map",
    "backup_manifest",
    "postmaster.pid",
    "postmaster.opts",
];
/// Nor do those whose names begin so (`excludeFiles`, `PG_TEMP_FILE_PREFIX`).
const EXCLUDED_PREFIXES: [&str; 2] = ["pg_internal.init", "pgsql_tmp"];
const WAL: &[u8] = b"pg_wal";
const TABLESPACES: &[u8] = b"pg_tblspc";
/// What a directory gets that is a link at the server (`pg_dir_create_mode`).
const DIRECTORY_MODE: u32 = 0o700;
/// Of a mode, what `chmod` takes.
const MODE_BITS: u32 = 0o7777;

/// A directory that a backup reads below.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root {
    /// Its number in records of files.
    pub number: u32,
    pub path: PathBuf,
}

/// A tablespace as its link says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    pub oid: u32,
    pub target: PathBuf,
}

/// A file that is to be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedFile {
    /// The place of its directory in [`Listing::directories`].
    pub directory: u32,
    pub name: Box<[u8]>,
    /// When it was listed, in bytes.
    pub size: u64,
}

/// A directory with files that are to be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedDirectory {
    /// The place of its root in [`Listing::roots`].
    pub root: usize,
    /// Relative to it; empty: the root itself.
    pub path: Vec<u8>,
    /// Its files hold relations' pages, if their names say so.
    pub has_relations: bool,
}

/// All that a backup reads.
#[derive(Debug, Default)]
pub struct Listing {
    pub roots: Vec<Root>,
    pub directories: Vec<ListedDirectory>,
    pub files: Vec<ListedFile>,
    /// Directories, as they are recorded.
    pub records: Vec<FileRecord>,
    /// What is neither a file nor a directory.
    pub omitted: Vec<String>,
}

impl Listing {
    /// The directory that a file lies in.
    pub fn directory(&self, file: &ListedFile) -> Option<(&ListedDirectory, &Root)> {
        let directory = self.directories.get(file.directory as usize)?;
        Some((directory, self.roots.get(directory.root)?))
    }
}

/// The links in `pg_tblspc`.
pub fn links(data: &Path) -> Result<Vec<Link>, PhysicalError> {
    let folder = data.join(OsStr::from_bytes(TABLESPACES));
    let mut links = Vec::new();
    for name in names(&folder)? {
        let Some(oid) = std::str::from_utf8(&name).ok().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let path = folder.join(OsStr::from_bytes(&name));
        let Some(found) = found(path.symlink_metadata(), &path)? else {
            continue;
        };
        if found.is_dir() {
            return Err(in_place(oid));
        }
        if let Some(target) = self::found(std::fs::read_link(&path), &path)? {
            links.push(Link { oid, target });
        }
    }
    links.sort_by_key(|link| link.oid);
    Ok(links)
}

/// Lists the data directory, and of each tablespace the directory `version` (`PG_16_202307071`).
pub fn list(data: &Path, links: &[Link], major: u32, version: &str) -> Result<Listing, PhysicalError> {
    let mut walk = Walk {
        listing: Listing::default(),
        // A tablespace inside the data directory is read as a tablespace alone.
        inside: links
            .iter()
            .filter_map(|link| inside(data, &link.target))
            .collect(),
        major,
    };
    walk.listing.roots.push(Root {
        number: ROOT_DATA,
        path: data.to_owned(),
    });
    walk.directory(0, Vec::new())?;
    for (link, number) in links.iter().zip(ROOT_TABLESPACES..) {
        let root = walk.listing.roots.len();
        walk.listing.roots.push(Root {
            number,
            path: link.target.clone(),
        });
        let path = link.target.join(version);
        match found(path.symlink_metadata(), &path)? {
            Some(of_version) => {
                walk.record(root, version.as_bytes().to_vec(), &of_version);
                walk.directory(root, version.as_bytes().to_vec())?;
            }
            // One that goes meanwhile is no error, one that isn't mounted here would be lost.
            None if data
                .join("pg_tblspc")
                .join(link.oid.to_string())
                .symlink_metadata()
                .is_ok() =>
            {
                return Err(PhysicalError::Server {
                    message: format!(
                        "tablespace {} isn't here: there is no {}",
                        link.oid,
                        path.display()
                    ),
                    hint: Some("take it by --reader replication".to_owned()),
                });
            }
            None => {}
        }
    }
    Ok(walk.listing)
}

struct Walk {
    listing: Listing,
    inside: Vec<Vec<u8>>,
    major: u32,
}

impl Walk {
    /// Lists what is in a directory and below it.
    fn directory(&mut self, root: usize, path: Vec<u8>) -> Result<(), PhysicalError> {
        let Some(folder) = self.listing.roots.get(root).map(|root| root.path.clone()) else {
            return Ok(());
        };
        let folder = folder.join(OsStr::from_bytes(&path));
        let databases = is_database(root, &path);
        let names = names(&folder)?;
        let unlogged = if databases {
            unlogged(&names)
        } else {
            BTreeSet::new()
        };
        let number = u32::try_from(self.listing.directories.len()).unwrap_or(u32::MAX);
        self.listing.directories.push(ListedDirectory {
            root,
            has_relations: databases || (root == 0 && path == b"global"),
            path: path.clone(),
        });
        for name in &names {
            let below = match path.is_empty() {
                true => name.clone(),
                false => [path.as_slice(), b"/", name].concat(),
            };
            let is_data = root == 0;
            if is_excluded(name)
                || (databases && is_left_to_recovery(name, &unlogged))
                || (is_data && (below == CONTROL_FILE || is_of_a_restore(&below)))
            {
                continue;
            }
            let at = folder.join(OsStr::from_bytes(name));
            let Some(metadata) = found(at.symlink_metadata(), &at)? else {
                continue;
            };
            if EMPTY_DIRECTORIES.iter().any(|empty| name == empty.as_bytes()) {
                self.record(root, below, &metadata);
            } else if is_data && below == WAL {
                self.wal(&metadata);
            } else if metadata.is_dir() {
                let is_a_tablespace = is_data && (below == TABLESPACES || self.inside.contains(&below));
                self.record(root, below.clone(), &metadata);
                if !is_a_tablespace {
                    self.directory(root, below)?;
                }
            } else if metadata.is_file() {
                self.listing.files.push(ListedFile {
                    directory: number,
                    name: name.clone().into_boxed_slice(),
                    size: metadata.len(),
                });
            } else if self.listing.omitted.len() < DAMAGE_REPORTS_MAX {
                let what = if metadata.is_symlink() {
                    "a link"
                } else {
                    "no file"
                };
                self.listing
                    .omitted
                    .push(format!("{}: it is {what}", at.display()));
            }
        }
        Ok(())
    }

    /// `pg_wal`, and in it what the server expects, all empty.
    fn wal(&mut self, metadata: &Metadata) {
        self.record(0, WAL.to_vec(), metadata);
        self.record(0, b"pg_wal/archive_status".to_vec(), metadata);
        if self.major >= 17 {
            self.record(0, b"pg_wal/summaries".to_vec(), metadata);
        }
    }

    fn record(&mut self, root: usize, path: Vec<u8>, metadata: &Metadata) {
        let number = self.listing.roots.get(root).map_or(ROOT_DATA, |root| root.number);
        self.listing.records.push(FileRecord {
            root: number,
            path,
            mode: match metadata.is_dir() {
                true => metadata.mode() & MODE_BITS,
                false => DIRECTORY_MODE,
            },
            contents: RecordContents::Directory,
        });
    }
}

/// What the files at a data directory's top are for the manifest.
pub fn captured(listing: &Listing) -> Captured {
    let mut captured = Captured::default();
    for file in listing.files.iter().filter(|file| file.directory == 0) {
        captured.found(&file.name);
    }
    captured
}

/// Names in order, so that two backups of the same files read them in the same one.
fn names(folder: &Path) -> Result<Vec<Vec<u8>>, PhysicalError> {
    let listing = || format!("listing {}", folder.display());
    let mut names = Vec::new();
    let Some(entries) = found(std::fs::read_dir(folder), folder)? else {
        return Ok(names);
    };
    for entry in entries {
        names.push(entry.context(listing)?.file_name().as_bytes().to_vec());
    }
    names.sort_unstable();
    Ok(names)
}

/// What is gone meanwhile is no error.
fn found<T>(result: std::io::Result<T>, path: &Path) -> Result<Option<T>, PhysicalError> {
    match result {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some).context(|| format!("reading {}", path.display())),
    }
}

/// Where in the data directory a tablespace lies, if it does.
fn inside(data: &Path, target: &Path) -> Option<Vec<u8>> {
    let inside = target.strip_prefix(data).ok()?;
    Some(inside.as_os_str().as_bytes().to_vec())
}

/// `base/5`, `PG_16_202307071/5`: the directory of a database.
fn is_database(root: usize, path: &[u8]) -> bool {
    let mut parts = path.split(|byte| *byte == b'/');
    let (Some(first), Some(second), None) = (parts.next(), parts.next(), parts.next()) else {
        return false;
    };
    (root > 0 || first == b"base") && !second.is_empty() && second.iter().all(u8::is_ascii_digit)
}

fn is_excluded(name: &[u8]) -> bool {
    EXCLUDED_FILES.iter().any(|file| name == file.as_bytes())
        || EXCLUDED_PREFIXES
            .iter()
            .any(|prefix| name.starts_with(prefix.as_bytes()))
}

/// The numbers of relations that have a file to be made anew of.
fn unlogged(names: &[Vec<u8>]) -> BTreeSet<String> {
    let parsed = names.iter().filter_map(|name| RelationFileName::parse(name));
    parsed
        .filter(|name| name.fork == Fork::Init && !name.is_temporary)
        .map(|name| name.number.to_owned())
        .collect()
}

/// Temporary relations, and unlogged ones but for what they are made anew of.
fn is_left_to_recovery(name: &[u8], unlogged: &BTreeSet<String>) -> bool {
    RelationFileName::parse(name)
        .is_some_and(|name| name.is_temporary || (name.fork != Fork::Init && unlogged.contains(name.number)))
}
