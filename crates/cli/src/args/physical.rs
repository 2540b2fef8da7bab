//! Arguments of base backups.

use std::path::PathBuf;

use clap::Args;
use pgkeep_pgformat::Lsn;

use super::{parse_pair, parse_rate};

/// `pgkeep backup`
#[derive(Debug, Default, Args)]
pub struct BackupArgs {
    /// Pieces compressed at the same time [default: by the number of CPUs].
    #[arg(long, short = 'j', value_name = "N", value_parser = clap::value_parser!(u32).range(1..=256))]
    pub jobs: Option<u32>,
    /// zstd level, 1 to 19 [default: 3].
    #[arg(long, value_name = "LEVEL", value_parser = clap::value_parser!(i32).range(1..=19))]
    pub compression_level: Option<i32>,
    /// Average bandwidth of all uploads to the repository together, such as 20MB/s.
    #[arg(long, visible_alias = "limit-upload", value_name = "RATE", value_parser = parse_rate)]
    pub upload_limit: Option<String>,
    /// Let the server make its checkpoint at once, instead of spreading it as it does others.
    #[arg(long)]
    pub fast_checkpoint: bool,
    /// Note to keep with the backup; may be repeated.
    #[arg(long = "annotate", visible_alias = "annotation", value_name = "KEY=VALUE", value_parser = parse_pair)]
    pub annotations: Vec<(String, String)>,
    /// Write under this cluster's name although another database cluster did before.
    #[arg(long)]
    pub accept_new_identity: bool,
}

/// Where recovery of a base backup ends.
#[derive(Debug, Clone, Default, Args)]
pub struct RecoveryArgs {
    /// Of a base backup: recover as far as its WAL goes without a gap [default].
    #[arg(long, group = "recovery_target")]
    pub to_end: bool,
    /// Of a base backup: recover no further than it takes.
    #[arg(long, group = "recovery_target")]
    pub to_backup_end: bool,
    /// Of a base backup: recover all that was written before this position.
    #[arg(long, value_name = "LSN", group = "recovery_target")]
    pub to_lsn: Option<Lsn>,
    /// Of a base backup: recover all that was committed by this time: 2026-11-22T14:05:00Z, or '2026-11-22 14:05[:30][+01:00]'.
    #[arg(long, value_name = "TIME", group = "recovery_target")]
    pub to_time: Option<String>,
    /// Where a tablespace of a base backup goes; may be repeated.
    #[arg(long = "tablespace", value_name = "OID=DIRECTORY", value_parser = parse_tablespace)]
    pub tablespaces: Vec<(u32, PathBuf)>,
}

impl RecoveryArgs {
    /// Whether anything was said that only a base backup has.
    pub fn any(&self) -> bool {
        self.to_end
            || self.to_backup_end
            || self.to_lsn.is_some()
            || self.to_time.is_some()
            || !self.tablespaces.is_empty()
    }
}

fn parse_tablespace(text: &str) -> Result<(u32, PathBuf), String> {
    let parsed = text.split_once('=').and_then(|(oid, path)| {
        let oid = oid.trim().parse().ok().filter(|oid| *oid != 0)?;
        (!path.is_empty()).then(|| (oid, PathBuf::from(path)))
    });
    parsed.ok_or_else(|| "write OID=DIRECTORY, such as 16385=/srv/space".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tablespaces_are_read() {
        assert_eq!(
            parse_tablespace("16385=/srv/a=b"),
            Ok((16385, PathBuf::from("/srv/a=b")))
        );
        for bad in ["", "16385", "16385=", "0=/a", "x=/a", "-1=/a"] {
            assert!(parse_tablespace(bad).is_err(), "{bad}");
        }
    }
}
