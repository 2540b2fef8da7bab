use crate::pack::BlockAddress;
use crate::varint::{Broken, Fields, from_zigzag, put, zigzag};

/// The longest path or target of a link, in bytes (`PATH_MAX`).
const PATH_BYTES_MAX: usize = 4096;

const KIND_FILE: u64 = 0;
const KIND_DIRECTORY: u64 = 1;
const KIND_LINK: u64 = 2;

const TAG_ZEROS: u64 = 0;
const TAG_NEXT: u64 = 1;
const TAG_ADDRESS: u64 = 2;
const TAG_BITS: u32 = 2;

/// A run of a file's blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// So many blocks of zeros.
    Zeros(u64),
    /// Blocks that lie one after another in a pack.
    Stored {
        /// The first one.
        at: BlockAddress,
        /// How many.
        blocks: u32,
    },
}

impl Extent {
    /// How many blocks it has.
    pub fn blocks(&self) -> u64 {
        match self {
            Self::Zeros(blocks) => *blocks,
            Self::Stored { blocks, .. } => u64::from(*blocks),
        }
    }
}

/// What a record's path leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecordContents {
    /// A file.
    File {
        /// Its size, in bytes.
        size: u64,
        /// When it was last changed, in seconds since 1970.
        modified_at: u64,
        /// Its blocks in order, all of them; the last one ends with the file.
        extents: Vec<Extent>,
    },
    /// A directory.
    Directory,
    /// A symbolic link.
    Link {
        /// Where it leads.
        target: Vec<u8>,
    },
}

/// One entry of the data directory, or of a tablespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileRecord {
    /// What its path is relative to: [`super::ROOT_DATA`] and the like.
    pub root: u32,
    /// Its path below that: bytes in any encoding, parts separated by `/`, none empty, `.` or `..`.
    pub path: Vec<u8>,
    /// Its permissions, as `chmod` has them.
    pub mode: u32,
    /// What it is.
    pub contents: RecordContents,
}

/// How many blocks a file has.
pub fn blocks_of(size: u64, block_bytes: u32) -> u64 {
    size.div_ceil(u64::from(block_bytes.max(1)))
}

/// Writes records one after another.
#[derive(Debug, Default)]
pub struct RecordWriter {
    /// Where the next block would be, if it lay behind the last.
    next: BlockAddress,
}

impl RecordWriter {
    /// Appends a record to an object's contents. A new object begins with a new writer.
    ///
    /// # Errors
    /// It is one that no reader takes.
    pub fn append(
        &mut self,
        record: &FileRecord,
        block_bytes: u32,
        output: &mut Vec<u8>,
    ) -> Result<(), Broken> {
        check(record, block_bytes)?;
        let kind = match record.contents {
            RecordContents::File { .. } => KIND_FILE,
            RecordContents::Directory => KIND_DIRECTORY,
            RecordContents::Link { .. } => KIND_LINK,
        };
        put(output, kind);
        put(output, u64::from(record.root));
        put(output, record.path.len() as u64);
        output.extend_from_slice(&record.path);
        put(output, u64::from(record.mode));
        match &record.contents {
            RecordContents::Directory => {}
            RecordContents::Link { target } => {
                put(output, target.len() as u64);
                output.extend_from_slice(target);
            }
            RecordContents::File {
                size,
                modified_at,
                extents,
            } => {
                put(output, *size);
                put(output, *modified_at);
                extents.iter().for_each(|extent| self.put_extent(extent, output));
            }
        }
        Ok(())
    }

    fn put_extent(&mut self, extent: &Extent, output: &mut Vec<u8>) {
        let number = |tag| extent.blocks() << TAG_BITS | tag;
        match extent {
            Extent::Zeros(_) => put(output, number(TAG_ZEROS)),
            Extent::Stored { at, .. } if *at == self.next => put(output, number(TAG_NEXT)),
            Extent::Stored { at, .. } => {
                put(output, number(TAG_ADDRESS));
                put(output, zigzag(i64::from(at.pack) - i64::from(self.next.pack)));
                put(output, u64::from(at.block));
            }
        }
        if let Extent::Stored { at, blocks } = extent {
            self.next = BlockAddress {
                pack: at.pack,
                block: at.block.saturating_add(*blocks),
            };
        }
    }
}

/// Reads the records of one object; ends after the first error.
#[derive(Debug)]
pub struct RecordReader<'a> {
    fields: Fields<'a>,
    block_bytes: u32,
    next: BlockAddress,
}

impl<'a> RecordReader<'a> {
    /// Of an object's contents, with the manifest's size of blocks.
    pub fn new(contents: &'a [u8], block_bytes: u32) -> Self {
        Self {
            fields: Fields(contents),
            block_bytes,
            next: BlockAddress::default(),
        }
    }

    fn record(&mut self) -> Result<FileRecord, Broken> {
        let kind = self.fields.varint()?;
        let root = self.fields.varint32()?;
        let path = self.bytes()?;
        let mode = self.fields.varint32()?;
        let contents = match kind {
            KIND_FILE => self.file()?,
            KIND_DIRECTORY => RecordContents::Directory,
            KIND_LINK => RecordContents::Link {
                target: self.bytes()?,
            },
            _ => return Err(Broken("a record is of an unknown kind")),
        };
        let record = FileRecord {
            root,
            path,
            mode,
            contents,
        };
        check(&record, self.block_bytes)?;
        Ok(record)
    }

    fn bytes(&mut self) -> Result<Vec<u8>, Broken> {
        let length = self.fields.count(1)?;
        Ok(self.fields.take(length)?.to_vec())
    }

    fn file(&mut self) -> Result<RecordContents, Broken> {
        let size = self.fields.varint()?;
        let modified_at = self.fields.varint()?;
        let mut left = blocks_of(size, self.block_bytes);
        let mut extents = Vec::new();
        while left > 0 {
            let extent = self.extent()?;
            left = match (extent.blocks(), left.checked_sub(extent.blocks())) {
                (1.., Some(left)) => left,
                _ => return Err(Broken("the extents of a file don't add up to its size")),
            };
            extents.push(extent);
        }
        Ok(RecordContents::File {
            size,
            modified_at,
            extents,
        })
    }

    fn extent(&mut self) -> Result<Extent, Broken> {
        let number = self.fields.varint()?;
        let (blocks, tag) = (number >> TAG_BITS, number & ((1 << TAG_BITS) - 1));
        if tag == TAG_ZEROS {
            return Ok(Extent::Zeros(blocks));
        }
        let at = match tag {
            TAG_NEXT => self.next,
            TAG_ADDRESS => {
                let difference = from_zigzag(self.fields.varint()?);
                let pack = i64::from(self.next.pack).checked_add(difference);
                BlockAddress {
                    pack: pack
                        .and_then(|pack| u32::try_from(pack).ok())
                        .ok_or(Broken("a pack's number is none"))?,
                    block: self.fields.varint32()?,
                }
            }
            _ => return Err(Broken("an extent is of an unknown kind")),
        };
        let too_large = Broken("an extent is longer than a pack");
        let blocks = u32::try_from(blocks).map_err(|_| too_large)?;
        self.next = BlockAddress {
            pack: at.pack,
            block: at.block.checked_add(blocks).ok_or(too_large)?,
        };
        Ok(Extent::Stored { at, blocks })
    }
}

impl Iterator for RecordReader<'_> {
    type Item = Result<FileRecord, Broken>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.fields.is_empty() {
            return None;
        }
        let record = self.record();
        if record.is_err() {
            self.fields = Fields(&[]);
        }
        Some(record)
    }
}

/// Refuses what leads out of its root or has blocks that don't make its size.
fn check(record: &FileRecord, block_bytes: u32) -> Result<(), Broken> {
    let inside = record
        .path
        .split(|byte| *byte == b'/')
        .all(|part| !matches!(part, b"" | b"." | b".."));
    if !inside || record.path.len() > PATH_BYTES_MAX || record.path.contains(&0) {
        return Err(Broken("a path leads out of its directory, or can't be"));
    }
    match &record.contents {
        RecordContents::Directory => Ok(()),
        RecordContents::Link { target } => match target.len() {
            1..=PATH_BYTES_MAX if !target.contains(&0) => Ok(()),
            _ => Err(Broken("the target of a link can't be")),
        },
        RecordContents::File { size, extents, .. } => {
            let sum = extents
                .iter()
                .try_fold(0_u64, |sum, extent| match extent.blocks() {
                    0 => None,
                    blocks => sum.checked_add(blocks),
                });
            match sum == Some(blocks_of(*size, block_bytes)) {
                true => Ok(()),
                false => Err(Broken("the extents of a file don't add up to its size")),
            }
        }
    }
}
