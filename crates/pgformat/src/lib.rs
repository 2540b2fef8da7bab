//! PostgreSQL's formats on disk and in the replication protocol, as far as physical backups need them: positions in the
//! WAL and the names of its files, histories of timelines, `pg_control`, page checksums, `backup_label` and
//! `tablespace_map`, of the versions 15 to 18.
//!
//! Pure: no I/O, no async runtime. Each item names the source of PostgreSQL that it follows. Integers are little-endian:
//! every platform that PostgreSQL 15 to 18 is packaged for has it so, and `pg_control` tells when one has not.

mod backup_label;
mod control_file;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
mod history;
mod lsn;
mod page;
mod relation_file;
mod segment;
mod tablespace_map;
mod wal_header;
mod wal_records;

pub use backup_label::{BackupLabel, BackupLabelError, BackupMethod, BackupSource};
pub use control_file::{CONTROL_FILE_BYTES, ControlFile, ControlFileError, DatabaseState};
pub use history::{HistoryEntry, TimelineHistory, TimelineHistoryError};
pub use lsn::{Lsn, ParseLsnError, ParseTimelineError, Timeline};
pub use page::{PageBytesError, PageHeader, PageVerdict, page_checksum, verify_page};
pub use relation_file::{Fork, RelationFileName};
pub use segment::{SegmentName, SegmentSize, SegmentSizeError, WalFileName, WalFileNameError};
pub use tablespace_map::{MappedTablespace, TablespaceMap, TablespaceMapError};
pub use wal_header::{WAL_HEADER_BYTES, WalHeader, WalHeaderError};
pub use wal_records::{RestorePointName, WalRecord, WalWalker};
