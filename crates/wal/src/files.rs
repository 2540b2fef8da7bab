//! Single files of WAL: what `archive_command` and `restore_command` ask for.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use pgkeep_pgformat::{
    ControlFile, SegmentName, SegmentSize, WAL_HEADER_BYTES, WalFileName, WalHeader, WalHeaderError,
};
use pgkeep_repository::wal::{Stored, WalObject};
use pgkeep_repository::{Repository, RepositoryError};
use tokio::fs::{self, File};
use tokio::io::AsyncReadExt;
use tokio::time::Instant;

use crate::assembly::{PART_BYTES_MAX, WHOLE_BYTES_MAX};
use crate::error::WalError;

/// A history of 100,000 timelines has some 5 MB; no other file but segments is as large.
const FILE_BYTES_MAX: u64 = 16 << 20;
/// A hole may be one because a receiver stores several segments at once: it is looked at again for so long.
const HOLE_WAIT: Duration = Duration::from_secs(10);
/// In between.
const HOLE_PAUSE: Duration = Duration::from_secs(1);
/// A control file that was being written is read again so often.
const CONTROL_ATTEMPTS_MAX: u32 = 5;

/// Which database cluster a file belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct System {
    /// The cluster.
    pub identifier: u64,
    /// The size of its segments.
    pub segment_size: SegmentSize,
}

impl System {
    /// That of a data directory.
    ///
    /// # Errors
    /// There is no control file, or none that can be read.
    pub async fn of_data_directory(directory: &Path) -> Result<Self, WalError> {
        let path = directory.join("global/pg_control");
        let mut attempt = 1;
        loop {
            let contents = fs::read(&path)
                .await
                .map_err(|error| failed("read", &path, error))?;
            match ControlFile::parse(&contents) {
                Ok(control) => {
                    return Ok(Self {
                        identifier: control.system_identifier,
                        segment_size: control.wal_segment_size,
                    });
                }
                Err(pgkeep_pgformat::ControlFileError::Checksum { .. }) if attempt < CONTROL_ATTEMPTS_MAX => {
                    attempt += 1;
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                Err(source) => {
                    let path = path.display().to_string();
                    return Err(WalError::ControlFile { path, source });
                }
            }
        }
    }

    /// That of a data directory if there is one here; else the only one whose WAL is stored.
    ///
    /// # Errors
    /// WAL of several clusters is stored, or of none.
    pub async fn of_directory_or_repository(
        directory: &Path,
        repository: &Repository,
    ) -> Result<Self, WalError> {
        match Self::of_data_directory(directory).await {
            Err(WalError::File { source, .. }) if source.kind() == ErrorKind::NotFound => {}
            found => return found,
        }
        let stored = match repository.wal_systems().await?.as_slice() {
            [only] => repository
                .wal_segment_size(*only)
                .await?
                .map(|segment_size| Self {
                    identifier: *only,
                    segment_size,
                }),
            _ => None,
        };
        stored.ok_or_else(|| {
            let directory = directory.display();
            WalError::WhichSystem(format!(
                "{directory} is no data directory, and WAL of one cluster alone isn't what is stored"
            ))
        })
    }
}

fn failed(doing: &'static str, path: &Path, source: std::io::Error) -> WalError {
    WalError::File {
        doing,
        path: path.display().to_string(),
        source,
    }
}

/// Whether there was a file to fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fetched {
    /// It is written.
    Written,
    /// The store says that there is none, and nothing that would follow it.
    Absent,
}

/// Fetches a file of WAL as recovery asks for it, to a path: whole there, or not at all.
///
/// # Errors
/// Everything else: the store doesn't answer, objects are damaged, [`RepositoryError::WalHole`].
pub async fn fetch(
    repository: &Repository,
    system: System,
    name: &str,
    path: &Path,
) -> Result<Fetched, WalError> {
    let name = WalFileName::parse(name, system.segment_size)?;
    let until = Instant::now() + HOLE_WAIT;
    let contents = loop {
        match repository.fetch_wal_file(system.identifier, name).await {
            Err(RepositoryError::WalHole { .. }) if Instant::now() < until => {
                tokio::time::sleep(HOLE_PAUSE).await;
            }
            result => break result?,
        }
    };
    let Some(contents) = contents else {
        return Ok(Fetched::Absent);
    };
    let mut partial = path.as_os_str().to_owned();
    partial.push(".pgkeep");
    let partial = PathBuf::from(partial);
    let written = async {
        fs::write(&partial, &contents).await?;
        fs::rename(&partial, path).await
    };
    if let Err(error) = written.await {
        let _ = fs::remove_file(&partial).await;
        return Err(failed("write", path, error));
    }
    Ok(Fetched::Written)
}

/// Stores a file of WAL under its name. What is there already with the same contents is as good as stored.
///
/// The system identifier stands in a segment itself; for other files it is that of the data directory.
///
/// # Errors
/// It isn't what its name says; it belongs to another cluster than what is stored; [`WalError::OtherWal`] if the name is taken
/// by other contents.
pub async fn push(repository: &Repository, path: &Path, data_directory: &Path) -> Result<Stored, WalError> {
    let file_name = path.file_name().map(|name| name.to_string_lossy().into_owned());
    let file_name = file_name.unwrap_or_default();
    let mut file = File::open(path)
        .await
        .map_err(|error| failed("open", path, error))?;
    let length = file
        .metadata()
        .await
        .map_err(|error| failed("look at", path, error))?
        .len();
    let is_segment = !file_name.ends_with(".history") && !file_name.ends_with(".backup");
    let (system, head) = if is_segment {
        segment_system(&mut file, path, length).await?
    } else {
        (System::of_data_directory(data_directory).await?, Bytes::new())
    };
    let name = WalFileName::parse(&file_name, system.segment_size)?;
    if let WalFileName::Segment(segment) | WalFileName::Partial(segment) = name {
        check_segment(path, &head, segment)?;
    } else if length > FILE_BYTES_MAX {
        return Err(not_that(path, format!("it has {length} bytes")));
    }
    repository.claim_identity(system.identifier, false).await?;
    repository
        .claim_wal(system.identifier, system.segment_size)
        .await?;
    let mut rest = Reading {
        file,
        path,
        head,
        left: length,
    };
    let in_parts = length > WHOLE_BYTES_MAX;
    let mut outcome = Stored::SameBytes;
    let mut from = 0;
    while from < length || length == 0 {
        let bytes = match in_parts {
            true => rest.next(PART_BYTES_MAX).await?,
            false => rest.next(length).await?,
        };
        let to = from + bytes.len() as u64;
        let object = match name {
            WalFileName::Segment(segment) if in_parts => WalObject::part(segment, from, to)
                .ok_or_else(|| not_that(path, format!("it has no bytes {from} to {to}")))?,
            _ if in_parts => return Err(not_that(path, format!("it has {length} bytes"))),
            name => WalObject::File(name),
        };
        let stored = repository.put_wal_bytes(system.identifier, object, bytes).await?;
        match stored {
            Stored::SameBytes => {}
            Stored::Created => outcome = stored,
            Stored::OtherBytes => {
                return Err(WalError::OtherWal {
                    cluster: repository.cluster().to_owned(),
                    object: object.to_string(),
                });
            }
        }
        from = to;
        if length == 0 {
            break;
        }
    }
    Ok(outcome)
}

/// Whose segment it is, by its header, and the bytes that were read for it.
async fn segment_system(file: &mut File, path: &Path, length: u64) -> Result<(System, Bytes), WalError> {
    let mut head = vec![0; WAL_HEADER_BYTES];
    if let Err(error) = file.read_exact(&mut head).await {
        return Err(match error.kind() {
            ErrorKind::UnexpectedEof => not_that(path, format!("it has {length} bytes")),
            _ => failed("read", path, error),
        });
    }
    let header = WalHeader::parse(&head).map_err(|error| not_that(path, error.to_string()))?;
    if length != header.segment_size.bytes() {
        let expected = header.segment_size.bytes();
        return Err(not_that(
            path,
            format!("it has {length} bytes, and {expected} are right"),
        ));
    }
    let system = System {
        identifier: header.system_identifier,
        segment_size: header.segment_size,
    };
    Ok((system, Bytes::from(head)))
}

fn check_segment(path: &Path, head: &[u8], segment: SegmentName) -> Result<(), WalError> {
    let checked = WalHeader::parse(head).and_then(|header| header.check(segment));
    checked.map_err(|error: WalHeaderError| not_that(path, error.to_string()))
}

fn not_that(path: &Path, reason: String) -> WalError {
    WalError::NotThat {
        path: path.display().to_string(),
        reason,
    }
}

/// A file whose first bytes were read already.
struct Reading<'a> {
    file: File,
    path: &'a Path,
    head: Bytes,
    left: u64,
}

impl Reading<'_> {
    /// The next bytes, all of them if there are as many.
    async fn next(&mut self, bytes_max: u64) -> Result<Bytes, WalError> {
        let length = usize::try_from(self.left.min(bytes_max)).unwrap_or(usize::MAX);
        let mut bytes = BytesMut::zeroed(length);
        let head = self.head.split_to(self.head.len().min(length));
        let (first, rest) = bytes.split_at_mut(head.len());
        first.copy_from_slice(&head);
        self.file
            .read_exact(rest)
            .await
            .map_err(|error| failed("read", self.path, error))?;
        self.left -= length as u64;
        Ok(bytes.freeze())
    }
}
