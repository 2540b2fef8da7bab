//! Arguments of base backups.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use pgkeep_pgformat::Lsn;
use pgkeep_physical::ReaderChoice;
use pgkeep_physical::restore::TablespaceName;

use super::{parse_pair, parse_rate};

/// How a base backup reads files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Reader {
    /// From the data directory where it is on this host, readable and proven to be the server's; else by replication
    Auto,
    /// From the data directory, or not at all
    Local,
    /// Over the connection
    Replication,
}

impl From<Reader> for ReaderChoice {
    fn from(reader: Reader) -> Self {
        match reader {
            Reader::Auto => Self::Auto,
            Reader::Local => Self::Local,
            Reader::Replication => Self::Replication,
        }
    }
}

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
    /// How files are read [default: auto].
    #[arg(long, value_name = "READER")]
    pub reader: Option<Reader>,
    /// No backup if a page is damaged, instead of one that names it.
    #[arg(long)]
    pub strict: bool,
    /// Let the server make its checkpoint at once, instead of spreading it as it does others.
    #[arg(long)]
    pub fast_checkpoint: bool,
    /// Store everything, instead of referring to what the backup before holds unchanged.
    #[arg(long)]
    pub full: bool,
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
    #[command(flatten)]
    pub tablespaces: TablespaceArgs,
    /// Of a base backup: into a data directory of the same cluster whose server is stopped; only what differs is fetched and
    /// written, and what the backup doesn't have is removed.
    #[arg(long, conflicts_with_all = ["resume", "overwrite"])]
    pub delta: bool,
}

/// Where tablespaces go.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
pub struct TablespaceArgs {
    /// Where a tablespace of a base backup goes, by its OID or by the directory in which it was; may be repeated.
    #[arg(long = "tablespace", value_name = "OID|OLD=DIRECTORY", value_parser = parse_tablespace)]
    pub tablespaces: Vec<(TablespaceName, PathBuf)>,
}

impl TablespaceArgs {
    /// As a restore takes them.
    pub fn places(&self) -> BTreeMap<TablespaceName, PathBuf> {
        self.tablespaces.iter().cloned().collect()
    }
}

impl RecoveryArgs {
    /// Whether anything was said that only a base backup has.
    pub fn any(&self) -> bool {
        self.to_end
            || self.to_backup_end
            || self.to_lsn.is_some()
            || self.to_time.is_some()
            || !self.tablespaces.tablespaces.is_empty()
            || self.delta
    }
}

fn parse_tablespace(text: &str) -> Result<(TablespaceName, PathBuf), String> {
    let parsed = text.split_once('=').and_then(|(name, path)| {
        let name = match name.trim().parse() {
            Ok(0) => None,
            Ok(oid) => Some(TablespaceName::Oid(oid)),
            Err(_) => name
                .starts_with('/')
                .then(|| TablespaceName::Location(name.to_owned())),
        };
        (!path.is_empty()).then(|| Some((name?, PathBuf::from(path))))?
    });
    parsed.ok_or_else(|| "write OID=DIRECTORY or /OLD=DIRECTORY, such as 16385=/srv/space".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tablespaces_are_read() {
        assert_eq!(
            parse_tablespace("16385=/srv/a=b"),
            Ok((TablespaceName::Oid(16385), PathBuf::from("/srv/a=b")))
        );
        assert_eq!(
            parse_tablespace("/old place=new"),
            Ok((
                TablespaceName::Location("/old place".to_owned()),
                PathBuf::from("new")
            ))
        );
        for bad in ["", "16385", "16385=", "0=/a", "x=/a", "-1=/a"] {
            assert!(parse_tablespace(bad).is_err(), "{bad}");
        }
    }
}
