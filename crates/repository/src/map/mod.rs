//! Where each block of each file of a base backup lies: records of files, whose extents name addresses in packs, and the
//! list of packs that those are numbered by. Pure, but for [`read`]'s fetching. docs/FORMAT.md has the bytes.

mod packs;
mod read;
mod record;

pub use packs::{PackInfo, PackTable};
pub use record::{Extent, FileRecord, RecordContents, RecordReader, RecordWriter, blocks_of};

/// An object with records is closed when it has so many bytes of contents.
pub const RECORDS_BYTES: usize = 8 << 20;
/// And no object has more: a record is shorter than what is left.
pub const RECORDS_BYTES_MAX: usize = 32 << 20;
/// No list of packs is longer: 500,000 packs, which are 16 TB as stored.
pub const PACK_TABLE_BYTES_MAX: usize = 32 << 20;

/// The data directory, as a record's root.
pub const ROOT_DATA: u32 = 0;
/// What lies outside it and isn't in a tablespace.
pub const ROOT_OUTSIDE: u32 = 1;
/// The first of the manifest's tablespaces; the others follow.
pub const ROOT_TABLESPACES: u32 = 2;
