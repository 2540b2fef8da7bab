use std::fmt;

use crc_fast::{CrcAlgorithm, checksum};
use pgkeep_base::{Classified, Hint, RetryClass};

use crate::{Lsn, SegmentSize, SegmentSizeError, Timeline};

/// The size of the file (`PG_CONTROL_FILE_SIZE`); only its first 300 bytes say anything.
pub const CONTROL_FILE_BYTES: usize = 8192;

/// Offsets in `ControlFileData` (`catalog/pg_control.h`), with the alignment that 64-bit platforms give it. They are the
/// same in 15 to 18: what 17 has more (`CheckPoint.wal_level`) lies where there was padding.
mod at {
    pub(super) const SYSTEM_IDENTIFIER: usize = 0;
    pub(super) const CONTROL_VERSION: usize = 8;
    pub(super) const CATALOG_VERSION: usize = 12;
    pub(super) const STATE: usize = 16;
    pub(super) const CHECKPOINT: usize = 32;
    pub(super) const REDO: usize = 40;
    pub(super) const TIMELINE: usize = 48;
    pub(super) const CHECKPOINT_TIME: usize = 104;
    pub(super) const MIN_RECOVERY_POINT: usize = 136;
    pub(super) const MIN_RECOVERY_TIMELINE: usize = 144;
    pub(super) const BACKUP_START_POINT: usize = 152;
    pub(super) const BACKUP_END_POINT: usize = 160;
    pub(super) const BACKUP_END_REQUIRED: usize = 168;
    pub(super) const FLOAT_FORMAT: usize = 208;
    pub(super) const BLOCK_BYTES: usize = 216;
    pub(super) const RELATION_SEGMENT_BLOCKS: usize = 220;
    pub(super) const WAL_BLOCK_BYTES: usize = 224;
    pub(super) const WAL_SEGMENT_BYTES: usize = 228;
    pub(super) const DATA_CHECKSUM_VERSION: usize = 252;
}

/// `FLOATFORMAT_VALUE`: another platform would have written it with other bytes.
const FLOAT_FORMAT: f64 = 1_234_567.0;

/// What a cluster was about when its control file was written (`DBState`, `catalog/pg_control.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DatabaseState {
    /// Starting up.
    StartingUp,
    /// Shut down.
    ShutDown,
    /// Shut down in recovery: a standby.
    ShutDownInRecovery,
    /// Shutting down.
    ShuttingDown,
    /// Recovering from a crash.
    InCrashRecovery,
    /// Recovering from an archive, or a standby.
    InArchiveRecovery,
    /// Running, or crashed while it ran.
    InProduction,
}

impl DatabaseState {
    fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::StartingUp,
            1 => Self::ShutDown,
            2 => Self::ShutDownInRecovery,
            3 => Self::ShuttingDown,
            4 => Self::InCrashRecovery,
            5 => Self::InArchiveRecovery,
            6 => Self::InProduction,
            _ => return None,
        })
    }

    /// Is, or was, it a standby or a recovery from an archive?
    pub fn is_recovery(self) -> bool {
        matches!(self, Self::ShutDownInRecovery | Self::InArchiveRecovery)
    }
}

impl fmt::Display for DatabaseState {
    /// As `pg_controldata` says it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::StartingUp => "starting up",
            Self::ShutDown => "shut down",
            Self::ShutDownInRecovery => "shut down in recovery",
            Self::ShuttingDown => "shutting down",
            Self::InCrashRecovery => "in crash recovery",
            Self::InArchiveRecovery => "in archive recovery",
            Self::InProduction => "in production",
        })
    }
}

/// What `global/pg_control` says (`ControlFileData`, `catalog/pg_control.h`), of PostgreSQL 15 to 18.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlFile {
    /// Which cluster it is; copies have the same.
    pub system_identifier: u64,
    /// The file's own format: 1300 for PostgreSQL 15 and 16, 1700, 1800.
    pub control_version: u32,
    /// The catalog's format; a server starts only on its own.
    pub catalog_version: u32,
    /// What the cluster was about.
    pub state: DatabaseState,
    /// The record of the last checkpoint.
    pub checkpoint: Lsn,
    /// Where recovery from that checkpoint begins.
    pub checkpoint_redo: Lsn,
    /// The checkpoint's timeline.
    pub checkpoint_timeline: Timeline,
    /// When it was, in seconds since 1970.
    pub checkpoint_time: i64,
    /// What recovery must reach before the cluster is consistent; [`Lsn::INVALID`] outside recovery.
    pub min_recovery_point: Lsn,
    /// The timeline of that position.
    pub min_recovery_timeline: Option<Timeline>,
    /// Of a restored backup whose end hasn't been reached: where it began.
    pub backup_start_point: Lsn,
    /// And where it ends, if it was taken from a standby.
    pub backup_end_point: Lsn,
    /// Recovery must find the record of the backup's end.
    pub backup_end_required: bool,
    /// The size of pages.
    pub block_bytes: u32,
    /// How many pages a file of a relation has at most.
    pub relation_segment_blocks: u32,
    /// The size of the WAL's pages.
    pub wal_block_bytes: u32,
    /// The size of the WAL's files.
    pub wal_segment_size: SegmentSize,
    /// 0: pages have no checksums; 1: they have those of [`page_checksum`](crate::page_checksum).
    pub data_checksum_version: u32,
}

/// The bytes are no control file that can be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ControlFileError {
    /// It ends too early.
    #[error("pg_control has {0} bytes, which is too short")]
    TooShort(usize),
    /// Written by another version of PostgreSQL, or on a platform of other byte order.
    #[error("pg_control has the format {0}, which no PostgreSQL from 15 to 18 writes")]
    Version(u32),
    /// Torn by a write at the same time, or damaged.
    #[error("pg_control has the checksum {stored:08X}, but its contents have {reckoned:08X}")]
    Checksum {
        /// What stands in the file.
        stored: u32,
        /// What its contents give.
        reckoned: u32,
    },
    /// The checksum is right, but no server can have written this.
    #[error("pg_control is not one of a server: {0}")]
    Contents(&'static str),
    /// The WAL's segments have a size that can't be.
    #[error("pg_control is not one of a server: {0}")]
    SegmentSize(#[from] SegmentSizeError),
}

impl Classified for ControlFileError {
    fn retry_class(&self) -> RetryClass {
        match self {
            // The server writes it in place: whoever reads at that moment may see half of it.
            Self::Checksum { .. } => RetryClass::Transient,
            _ => RetryClass::Permanent,
        }
    }

    fn hint(&self) -> Option<Hint> {
        Some(Hint::new(match self {
            Self::Version(_) => "use a server of PostgreSQL 15 to 18",
            _ => "see what PostgreSQL's own program says of it: pg_controldata DIRECTORY",
        }))
    }
}

impl ControlFile {
    /// Reads the contents of `global/pg_control`, as `get_controlfile` (`common/controldata_utils.c`) and
    /// `ReadControlFile` (`access/transam/xlog.c`) do.
    ///
    /// # Errors
    /// It is of another version, or damaged, or was being written.
    pub fn parse(contents: &[u8]) -> Result<Self, ControlFileError> {
        let fields = Fields(contents);
        let control_version = fields.u32(at::CONTROL_VERSION)?;
        // Where the structure's last field, the checksum of all before it, lies.
        let checksum_at = match control_version {
            1300 | 1700 => 288,
            1800 => 292,
            other => return Err(ControlFileError::Version(other)),
        };
        let stored = fields.u32(checksum_at)?;
        let reckoned = crc_32c(contents.get(..checksum_at).unwrap_or_default());
        if stored != reckoned {
            return Err(ControlFileError::Checksum { stored, reckoned });
        }
        if fields.u64(at::FLOAT_FORMAT)? != FLOAT_FORMAT.to_bits() {
            return Err(ControlFileError::Contents(
                "its platform writes numbers in another way",
            ));
        }
        let block_bytes = |offset| match fields.u32(offset)? {
            size if size.is_power_of_two() && (1024..=65_536).contains(&size) => Ok(size),
            _ => Err(ControlFileError::Contents("its pages have a size that can't be")),
        };
        Ok(Self {
            system_identifier: fields.u64(at::SYSTEM_IDENTIFIER)?,
            control_version,
            catalog_version: fields.u32(at::CATALOG_VERSION)?,
            state: DatabaseState::from_number(fields.u32(at::STATE)?)
                .ok_or(ControlFileError::Contents("its state is none"))?,
            checkpoint: fields.lsn(at::CHECKPOINT)?,
            checkpoint_redo: fields.lsn(at::REDO)?,
            checkpoint_timeline: Timeline::new(fields.u32(at::TIMELINE)?)
                .ok_or(ControlFileError::Contents("its timeline is 0"))?,
            checkpoint_time: fields.u64(at::CHECKPOINT_TIME)?.cast_signed(),
            min_recovery_point: fields.lsn(at::MIN_RECOVERY_POINT)?,
            min_recovery_timeline: Timeline::new(fields.u32(at::MIN_RECOVERY_TIMELINE)?),
            backup_start_point: fields.lsn(at::BACKUP_START_POINT)?,
            backup_end_point: fields.lsn(at::BACKUP_END_POINT)?,
            backup_end_required: fields.bytes::<1>(at::BACKUP_END_REQUIRED)? != [0],
            block_bytes: block_bytes(at::BLOCK_BYTES)?,
            relation_segment_blocks: fields.u32(at::RELATION_SEGMENT_BLOCKS)?,
            wal_block_bytes: block_bytes(at::WAL_BLOCK_BYTES)?,
            wal_segment_size: SegmentSize::new(u64::from(fields.u32(at::WAL_SEGMENT_BYTES)?))?,
            data_checksum_version: fields.u32(at::DATA_CHECKSUM_VERSION)?,
        })
    }
}

/// CRC-32C (Castagnoli), as `port/pg_crc32c.h` has it.
fn crc_32c(bytes: &[u8]) -> u32 {
    // The algorithm has 32 bits; the crate returns every one as 64.
    u32::try_from(checksum(CrcAlgorithm::Crc32Iscsi, bytes)).unwrap_or_default()
}

struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn bytes<const N: usize>(&self, offset: usize) -> Result<[u8; N], ControlFileError> {
        self.0
            .get(offset..)
            .and_then(<[u8]>::first_chunk)
            .copied()
            .ok_or(ControlFileError::TooShort(self.0.len()))
    }

    fn u32(&self, offset: usize) -> Result<u32, ControlFileError> {
        self.bytes(offset).map(u32::from_le_bytes)
    }

    fn u64(&self, offset: usize) -> Result<u64, ControlFileError> {
        self.bytes(offset).map(u64::from_le_bytes)
    }

    fn lsn(&self, offset: usize) -> Result<Lsn, ControlFileError> {
        self.u64(offset).map(Lsn::new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 3720, appendix B.4.
    #[test]
    fn the_checksum_is_castagnolis() {
        assert_eq!(crc_32c(&[0; 32]), 0x8A91_36AA);
        assert_eq!(crc_32c(b"123456789"), 0xE306_9283);
    }

    /// A file as a server would write it, its checksum right.
    fn file(version: u32, change: impl Fn(&mut [u8])) -> Vec<u8> {
        let mut file = vec![0; CONTROL_FILE_BYTES];
        let mut put = |offset: usize, bytes: &[u8]| file[offset..offset + bytes.len()].copy_from_slice(bytes);
        put(at::SYSTEM_IDENTIFIER, &7_u64.to_le_bytes());
        put(at::CONTROL_VERSION, &version.to_le_bytes());
        put(at::STATE, &[6]);
        put(at::TIMELINE, &[1]);
        put(at::FLOAT_FORMAT, &FLOAT_FORMAT.to_le_bytes());
        put(at::BLOCK_BYTES, &8192_u32.to_le_bytes());
        put(at::WAL_BLOCK_BYTES, &8192_u32.to_le_bytes());
        put(at::WAL_SEGMENT_BYTES, &(16_u32 << 20).to_le_bytes());
        change(&mut file);
        let end = if version == 1800 { 292 } else { 288 };
        let crc = crc_32c(&file[..end]).to_le_bytes();
        file[end..end + 4].copy_from_slice(&crc);
        file
    }

    #[test]
    fn each_flipped_bit_is_found() {
        for version in [1300, 1700, 1800] {
            let file = file(version, |_| {});
            assert_eq!(ControlFile::parse(&file).unwrap().system_identifier, 7);
            let end = if version == 1800 { 296 } else { 292 };
            for bit in 0..end * 8 {
                let mut flipped = file.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                assert!(ControlFile::parse(&flipped).is_err(), "{version}: bit {bit}");
            }
            for bytes in 0..end {
                assert!(
                    matches!(
                        ControlFile::parse(&file[..bytes]),
                        Err(ControlFileError::TooShort(_))
                    ),
                    "{version}: {bytes} bytes"
                );
            }
        }
    }

    #[test]
    fn what_no_server_writes_is_refused_though_its_checksum_is_right() {
        assert_eq!(
            ControlFile::parse(&file(1900, |_| {})),
            Err(ControlFileError::Version(1900))
        );
        let refused = |offset: usize, value: u8| {
            let error = ControlFile::parse(&file(1800, |file| file[offset] = value)).unwrap_err();
            assert!(
                error.to_string().starts_with("pg_control is not one of a server"),
                "{error}"
            );
            assert_eq!(error.retry_class(), RetryClass::Permanent);
        };
        refused(at::STATE, 7);
        refused(at::TIMELINE, 0);
        refused(at::BLOCK_BYTES, 1);
        refused(at::WAL_SEGMENT_BYTES, 1);
        refused(at::FLOAT_FORMAT, 1);
    }
}
