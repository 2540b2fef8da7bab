//! A tar archive taken apart while it comes: pure, any bytes in pieces of any size. Headers are those that the server writes
//! (`src/port/tar.c`, ustar).

use crate::error::PhysicalError;

const RECORD_BYTES: usize = 512;
/// Where a header has its checksum.
const CHECKSUM_RANGE: std::ops::Range<usize> = 148..156;
/// A file in the archive is never larger: what is more is no size (base-256 numbers can be anything).
const FILE_BYTES_MAX: u64 = 1 << 50;

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    /// A file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Link {
        /// Where it leads.
        target: Vec<u8>,
    },
}

/// The header of one entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its path, without a slash at the end.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: EntryKind,
    /// Its permissions.
    pub mode: u32,
    /// The size of its contents, in bytes.
    pub size: u64,
    /// In seconds since 1970.
    pub modified_at: u64,
}

/// What comes next in an archive.
#[derive(Debug, PartialEq, Eq)]
pub enum TarEvent<'a> {
    /// An entry begins.
    Entry(Entry),
    /// The next bytes of a file.
    Data(&'a [u8]),
    /// The file has ended.
    FileEnd,
}

#[derive(Debug)]
enum Stage {
    /// Collecting a header.
    Header,
    /// So many bytes of the file are still to come.
    Contents(u64),
    /// And so many that fill the record up.
    Padding(usize),
    /// A header of zeros: nothing more but such.
    End,
}

/// Takes one archive apart.
#[derive(Debug)]
pub struct TarSplitter {
    header: Vec<u8>,
    stage: Stage,
    /// What the file's end leaves to fill its last record up.
    padding: usize,
}

impl TarSplitter {
    pub fn new() -> Self {
        Self {
            header: Vec::with_capacity(RECORD_BYTES),
            stage: Stage::Header,
            padding: 0,
        }
    }

    /// Takes the next event off the input; `None` if that is used up.
    ///
    /// # Errors
    /// It is no archive that PostgreSQL writes.
    pub fn next<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<TarEvent<'a>>, PhysicalError> {
        loop {
            match self.stage {
                Stage::Contents(0) => {
                    self.stage = Stage::Padding(self.padding);
                    return Ok(Some(TarEvent::FileEnd));
                }
                Stage::Contents(left) => {
                    let length = usize::try_from(left).unwrap_or(usize::MAX).min(input.len());
                    let data = take(input, length);
                    if data.is_empty() {
                        return Ok(None);
                    }
                    self.stage = Stage::Contents(left - data.len() as u64);
                    return Ok(Some(TarEvent::Data(data)));
                }
                Stage::Padding(0) => self.stage = Stage::Header,
                Stage::Padding(left) => {
                    let skipped = take(input, left.min(input.len()));
                    if skipped.is_empty() {
                        return Ok(None);
                    }
                    self.stage = Stage::Padding(left - skipped.len());
                }
                Stage::End if input.iter().all(|byte| *byte == 0) => {
                    *input = &[];
                    return Ok(None);
                }
                Stage::End => return Err(PhysicalError::Archive("something follows its end")),
                Stage::Header => {
                    let missing = RECORD_BYTES - self.header.len();
                    self.header
                        .extend_from_slice(take(input, missing.min(input.len())));
                    if self.header.len() < RECORD_BYTES {
                        return Ok(None);
                    }
                    let header = std::mem::replace(&mut self.header, Vec::with_capacity(RECORD_BYTES));
                    if let Some(entry) = self.begin(&header)? {
                        return Ok(Some(TarEvent::Entry(entry)));
                    }
                }
            }
        }
    }

    fn begin(&mut self, header: &[u8]) -> Result<Option<Entry>, PhysicalError> {
        if header.iter().all(|byte| *byte == 0) {
            self.stage = Stage::End;
            return Ok(None);
        }
        let entry = parse(header)?;
        if entry.kind == EntryKind::File {
            let last = usize::try_from(entry.size % RECORD_BYTES as u64).unwrap_or(0);
            self.padding = (RECORD_BYTES - last) % RECORD_BYTES;
            self.stage = Stage::Contents(entry.size);
        }
        Ok(Some(entry))
    }

    /// Whether the archive may end here: at the end of an entry, or after the zeros that mark its end.
    ///
    /// # Errors
    /// It was cut off.
    pub fn finish(&self) -> Result<(), PhysicalError> {
        match self.stage {
            Stage::Header if self.header.is_empty() => Ok(()),
            Stage::End | Stage::Padding(0) => Ok(()),
            _ => Err(PhysicalError::Archive("it was cut off")),
        }
    }
}

fn take<'a>(input: &mut &'a [u8], length: usize) -> &'a [u8] {
    let (taken, rest) = input.split_at_checked(length).unwrap_or((&[], input));
    *input = rest;
    taken
}

fn parse(bytes: &[u8]) -> Result<Entry, PhysicalError> {
    let broken = |_| PhysicalError::Archive("a header is broken");
    if bytes.len() != RECORD_BYTES {
        return Err(PhysicalError::Archive("a header is broken"));
    }
    let header = tar::Header::from_byte_slice(bytes);
    let sum: u32 = bytes
        .iter()
        .enumerate()
        .map(|(place, byte)| match CHECKSUM_RANGE.contains(&place) {
            true => u32::from(b' '),
            false => u32::from(*byte),
        })
        .sum();
    if header.cksum().map_err(broken)? != sum {
        return Err(PhysicalError::Archive("the checksum of a header is wrong"));
    }
    let kind = match header.entry_type() {
        tar::EntryType::Regular => EntryKind::File,
        tar::EntryType::Directory => EntryKind::Directory,
        tar::EntryType::Symlink => EntryKind::Link {
            target: header.link_name_bytes().unwrap_or_default().into_owned(),
        },
        _ => return Err(PhysicalError::Archive("an entry is of an unknown kind")),
    };
    let path = header.path_bytes();
    let path = path.strip_suffix(b"/").unwrap_or(&path);
    // So the server writes pg_wal/archive_status, and no other.
    let path = path.strip_prefix(b"./").unwrap_or(path).to_vec();
    let size = match kind {
        EntryKind::File => header.size().map_err(broken)?,
        _ => 0,
    };
    if size > FILE_BYTES_MAX {
        return Err(PhysicalError::Archive("a file is larger than any can be"));
    }
    Ok(Entry {
        path,
        kind,
        mode: header.mode().map_err(broken)? & 0o7777,
        size,
        modified_at: header.mtime().map_err(broken)?,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn archive(files: &[(String, Vec<u8>)]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, contents) in files {
            let mut header = tar::Header::new_ustar();
            header.set_size(contents.len() as u64);
            header.set_mode(0o600);
            header.set_mtime(1_700_000_000);
            builder
                .append_data(&mut header, path, contents.as_slice())
                .unwrap();
        }
        builder.into_inner().unwrap()
    }

    /// Paths and contents, from an archive that comes in pieces of a size.
    fn split(archive: &[u8], piece: usize) -> Result<Vec<(String, Vec<u8>)>, PhysicalError> {
        let (mut splitter, mut files) = (TarSplitter::new(), Vec::<(String, Vec<u8>)>::new());
        let mut ended = 0;
        for mut piece in archive.chunks(piece.max(1)) {
            while let Some(event) = splitter.next(&mut piece)? {
                match event {
                    TarEvent::Entry(entry) => {
                        files.push((String::from_utf8_lossy(&entry.path).into_owned(), Vec::new()));
                    }
                    TarEvent::Data(bytes) => files.last_mut().unwrap().1.extend_from_slice(bytes),
                    TarEvent::FileEnd => ended += 1,
                }
            }
        }
        splitter.finish()?;
        assert_eq!(ended, files.len());
        Ok(files)
    }

    proptest! {
        #[test]
        fn archives_come_apart_however_they_are_cut(
            sizes in proptest::collection::vec(0_usize..3000, 0..8),
            piece in 1_usize..2000,
            cut in 0.0..1.0_f64,
        ) {
            let files: Vec<_> = sizes.iter().enumerate()
                .map(|(number, size)| (format!("base/{number}"), vec![u8::try_from(number).unwrap() + 1; *size]))
                .collect();
            let archive = archive(&files);
            prop_assert_eq!(split(&archive, piece).unwrap(), files.clone());
            // Cut off, it is either refused or has the first of its files whole.
            let cut = (archive.len() as f64 * cut) as usize;
            if let Ok(found) = split(&archive[..cut], piece) {
                prop_assert_eq!(&files[..found.len()], found.as_slice());
            }
        }

        #[test]
        fn any_bytes_are_an_archive_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let _ = split(&bytes, 100);
        }
    }

    #[test]
    fn a_broken_header_is_refused() {
        let mut archive = archive(&[("a".to_owned(), b"x".to_vec())]);
        archive[0] ^= 1;
        assert!(split(&archive, 512).is_err());
        assert!(split(&[&[0_u8; 1024][..], b"x"].concat(), 512).is_err());
    }
}
