//! The command line, as clap reads it. What each option means is for the commands; nothing is checked here that a
//! library checks.

mod bucket;
mod physical;
mod restore;
mod wal;

use std::path::PathBuf;

use clap::builder::styling::{Effects, Styles};
use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use pgkeep_base::ByteCount;

pub use bucket::{BucketAction, BucketArgs, WantedArgs};
pub use physical::{BackupArgs, RecoveryArgs, TablespaceArgs};
pub use restore::RestoreArgs;
pub use wal::{FetchArgs, PushArgs, StreamArgs, WalAction, WalArgs};

use crate::output::ACCENT;

/// Headings bold, what is typed in the one accent colour.
const STYLES: Styles = Styles::styled()
    .header(anstyle::Style::new().effects(Effects::BOLD))
    .usage(anstyle::Style::new().effects(Effects::BOLD))
    .literal(ACCENT)
    .valid(ACCENT)
    .placeholder(anstyle::Style::new());

/// How long a dump waits for locks; the default of `--lock-timeout`, too.
const LOCK_TIMEOUT_DEFAULT: std::time::Duration = std::time::Duration::from_secs(60);

const AFTER_HELP: &str = "\
Start with one command, which asks for what it doesn't find; then the others:
  pgkeep init --repository s3://bucket/prefix
  pgkeep dump
  pgkeep restore latest --identity pgkeep.key --into postgres://...

Settings can stand in pgkeep.toml, in PGKEEP_* variables, or on the command line; what comes later wins.
Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 done but something needs attention, 4 refused for safety.";

/// Keeps a PostgreSQL cluster safe: dumps that lose nothing, in any object store, restorable with stock tools.
#[derive(Debug, Parser)]
#[command(name = "pgkeep", version, styles = STYLES, after_help = AFTER_HELP, max_term_width = 110)]
#[command(
    disable_help_subcommand = true,
    subcommand_required = true,
    arg_required_else_help = true
)]
pub struct Cli {
    /// Options of all commands.
    #[command(flatten)]
    pub global: GlobalArgs,
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of all commands.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Global options")]
pub struct GlobalArgs {
    /// Configuration file [default: ./pgkeep.toml, then /etc/pgkeep/pgkeep.toml].
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Cluster to work on, where the configuration has several.
    #[arg(long, global = true, value_name = "NAME")]
    pub cluster: Option<String>,
    /// Repository: file:///directory, s3://bucket/prefix, gs://, az://.
    #[arg(long, global = true, value_name = "URL")]
    pub repository: Vec<String>,
    /// Server: a connection URI, or keywords and values as psql takes them.
    #[arg(long, global = true, value_name = "CONNINFO")]
    pub connection: Option<String>,
    /// Public key to encrypt for (age1...); may be repeated.
    #[arg(long = "recipient", global = true, value_name = "KEY")]
    pub recipients: Vec<String>,
    /// File with the secret key, for reading backups.
    #[arg(long, global = true, value_name = "FILE")]
    pub identity: Option<PathBuf>,
    /// 'age', or 'none' to write backups that anyone can read.
    #[arg(long, global = true, value_name = "MODE")]
    pub encryption: Option<String>,
    /// Directory of pg_dump, pg_restore and the like [default: found on the machine].
    #[arg(long, global = true, value_name = "DIRECTORY")]
    pub pg_bin: Option<PathBuf>,
    /// Endpoint of an S3-compatible store, without the bucket.
    #[arg(long, global = true, value_name = "URL")]
    pub s3_endpoint: Option<String>,
    /// The bucket's region.
    #[arg(long, global = true, value_name = "NAME")]
    pub s3_region: Option<String>,
    /// Any setting by its name in pgkeep.toml, such as s3.path_style=true; may be repeated.
    #[arg(long, global = true, value_name = "NAME=VALUE", value_parser = parse_pair)]
    pub set: Vec<(String, String)>,
    /// One JSON document (or JSON lines) on standard output.
    #[arg(long, global = true)]
    pub json: bool,
    /// Neither progress nor summaries.
    #[arg(long, short, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Say more on standard error; -vv for debugging.
    #[arg(long, short, global = true, action = ArgAction::Count)]
    pub verbose: u8,
}

/// All commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Find the server, write pgkeep.toml and a key, take the first dump and prove it.
    Init(InitArgs),
    /// Dump databases into the repository, or into files.
    Dump(DumpArgs),
    /// Take a base backup: the files of the whole cluster.
    Backup(BackupArgs),
    /// Restore a dump, or parts of one; or a base backup.
    Restore(RestoreArgs),
    /// List the backups in the repository.
    List(ListArgs),
    /// Show one backup.
    Show(ShowArgs),
    /// Check that backups are what was written.
    Verify(VerifyArgs),
    /// Remove backups that the retention settings let go, and debris of unfinished ones.
    Prune(PruneArgs),
    /// Keep a backup from being pruned.
    Pin(PinArgs),
    /// Let a pinned backup be pruned again.
    Unpin(UnpinArgs),
    /// Copy backups to another repository.
    Copy(CopyArgs),
    /// Write a dump as files that psql and pg_restore read.
    Export(ExportArgs),
    /// Dump by schedule, in the foreground, until it's told to end.
    Run(RunArgs),
    /// Receive WAL, show what is stored, fetch and store single files.
    Wal(WalArgs),
    /// Make and show keys.
    Key(KeyArgs),
    /// Check an S3 bucket's settings, or set it up for backups.
    Bucket(BucketArgs),
    /// Check configuration, keys, repository, server and programs.
    Doctor,
    /// Print shell completions.
    Completions(CompletionsArgs),
    /// Print the version.
    Version,
    /// Run a program of the container in which a server runs.
    #[command(hide = true)]
    InContainer(InContainerArgs),
}

/// `pgkeep in-container`
#[derive(Debug, Args)]
pub struct InContainerArgs {
    /// The container.
    pub container: String,
    /// The program and its arguments.
    #[arg(last = true, required = true)]
    pub command: Vec<String>,
}

/// `pgkeep init`
#[derive(Debug, Args)]
pub struct InitArgs {
    /// Container that runs the server, by its name or its Compose service [default: of this folder's Compose project].
    #[arg(long, value_name = "NAME", conflicts_with = "connection")]
    pub container: Option<String>,
    /// File with the secret key: taken if it is there, else made [default: pgkeep.key, or none with --recipient].
    #[arg(long, value_name = "FILE")]
    pub key: Option<PathBuf>,
    /// When 'pgkeep run' dumps [default: 0 2 * * *].
    #[arg(long, value_name = "CRON")]
    pub schedule: Option<String>,
    /// Ask nothing, and take the only server that runs on this machine; without a terminal nothing is asked anyway.
    #[arg(long, short)]
    pub yes: bool,
    /// Leave the first dump for later.
    #[arg(long)]
    pub no_dump: bool,
    /// Take over this cluster's name in the repository, by the first dump, although another database cluster had it.
    #[arg(long, conflicts_with = "no_dump")]
    pub accept_new_identity: bool,
}

/// `pgkeep dump`
#[derive(Debug, Args)]
pub struct DumpArgs {
    /// Database to dump; may be repeated [default: all].
    #[arg(long = "database", short = 'd', value_name = "NAME")]
    pub databases: Vec<String>,
    /// Dump only tables that fit a pattern, as pg_dump has them; may be repeated.
    #[arg(long = "table", short = 't', value_name = "PATTERN")]
    pub tables: Vec<String>,
    /// Leave out tables that fit.
    #[arg(long = "exclude-table", value_name = "PATTERN")]
    pub exclude_tables: Vec<String>,
    /// Dump only schemas that fit.
    #[arg(long = "schema", short = 'n', value_name = "PATTERN")]
    pub schemas: Vec<String>,
    /// Leave out schemas that fit.
    #[arg(long = "exclude-schema", value_name = "PATTERN")]
    pub exclude_schemas: Vec<String>,
    /// Leave out the rows, not the definition, of tables that fit.
    #[arg(long = "exclude-table-data", value_name = "PATTERN")]
    pub exclude_table_data: Vec<String>,
    /// What to write [default: repository].
    #[arg(long, short = 'F', value_enum)]
    pub format: Option<Format>,
    /// File (plain, custom) or directory to write; .gz and .zst compress, .age encrypts; files may be store URLs.
    #[arg(long, short = 'o', value_name = "PATH")]
    pub output: Option<String>,
    /// Tables read at the same time [default: by the number of CPUs].
    #[arg(long, short = 'j', value_name = "N")]
    pub jobs: Option<u32>,
    /// zstd level, 1 to 19 [default: 3].
    #[arg(long, value_name = "LEVEL")]
    pub compression_level: Option<i32>,
    /// Average bandwidth of all uploads to a repository together, such as 20MB/s.
    #[arg(long, visible_alias = "limit-upload", value_name = "RATE", value_parser = parse_rate)]
    pub upload_limit: Option<String>,
    /// How long to wait for the tables' locks.
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = parse_seconds)]
    pub lock_timeout: std::time::Duration,
    /// Note to keep with the dump; may be repeated.
    #[arg(long = "annotate", value_name = "KEY=VALUE", value_parser = parse_pair)]
    pub annotations: Vec<(String, String)>,
    /// Don't store rows again that the dump before holds unchanged (setting: dump.incremental).
    #[arg(long, conflicts_with = "full")]
    pub incremental: bool,
    /// Store everything, whatever the settings say.
    #[arg(long)]
    pub full: bool,
    /// Write under this cluster's name although another database cluster did before.
    #[arg(long)]
    pub accept_new_identity: bool,
}

impl DumpArgs {
    /// A dump as the settings have it.
    pub fn scheduled() -> Self {
        Self {
            databases: Vec::new(),
            tables: Vec::new(),
            exclude_tables: Vec::new(),
            schemas: Vec::new(),
            exclude_schemas: Vec::new(),
            exclude_table_data: Vec::new(),
            format: None,
            output: None,
            jobs: None,
            compression_level: None,
            upload_limit: None,
            lock_timeout: LOCK_TIMEOUT_DEFAULT,
            incremental: false,
            full: false,
            annotations: Vec::new(),
            accept_new_identity: false,
        }
    }
}

/// `pgkeep run`
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Only do what is due now or was missed, and end.
    #[arg(long)]
    pub once: bool,
}

/// What `pgkeep dump` writes. (No documentation comments on the values: with them clap's help takes two lines for every
/// option.)
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    // Into the repository.
    Repository,
    // One compressed SQL script.
    Plain,
    // One file for pg_restore.
    Custom,
    // A directory for pg_restore.
    Directory,
}

/// `pgkeep list`
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Show unfinished ones and those that were given up, too.
    #[arg(long)]
    pub all: bool,
}

/// `pgkeep show`
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// Backup: an id, the beginning of one, or 'latest', the newest that isn't a part (made with --database or --table).
    #[arg(value_name = "ID", default_value = "latest")]
    pub backup: String,
    /// List its tables, too.
    #[arg(long)]
    pub tables: bool,
}

/// `pgkeep verify`
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// Backup: an id, the beginning of one, 'all', or 'latest', the newest that isn't known to be a part (made with
    /// --database or --table), which takes the key.
    #[arg(value_name = "ID", default_value = "latest")]
    pub backup: String,
    /// Read only a part, chosen at random, such as 10%.
    #[arg(long, value_name = "PERCENT", value_parser = parse_percent)]
    pub sample: Option<f64>,
    /// Choose the same part as an earlier run that printed this seed.
    #[arg(long, value_name = "N", requires = "sample")]
    pub seed: Option<u64>,
    /// Compare the hashes of what is stored, without reading the contents; needs no key.
    #[arg(long)]
    pub stored_only: bool,
    /// Objects read at the same time [default: by the number of CPUs].
    #[arg(long, short = 'j', value_name = "N")]
    pub jobs: Option<u32>,
}

/// `pgkeep prune`
#[derive(Debug, Args)]
pub struct PruneArgs {
    /// Only say what would be removed, and why.
    #[arg(long)]
    pub dry_run: bool,
    /// Keep every backup younger than this, such as 30d.
    #[arg(long, value_name = "DURATION")]
    pub keep_window: Option<String>,
    /// Keep the newest of each of that many days.
    #[arg(long, value_name = "N")]
    pub keep_daily: Option<u32>,
    /// Keep the newest of each of that many weeks.
    #[arg(long, value_name = "N")]
    pub keep_weekly: Option<u32>,
    /// Keep the newest of each of that many months.
    #[arg(long, value_name = "N")]
    pub keep_monthly: Option<u32>,
    /// Keep the newest of each of that many years.
    #[arg(long, value_name = "N")]
    pub keep_yearly: Option<u32>,
}

/// `pgkeep pin`
#[derive(Debug, Args)]
pub struct PinArgs {
    /// Backup: an id, the beginning of one, or 'latest', the newest that isn't known to be a part (made with --database or
    /// --table), which takes the key.
    #[arg(value_name = "ID")]
    pub backup: String,
    /// Why, in your own words.
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub reason: String,
}

/// `pgkeep unpin`
#[derive(Debug, Args)]
pub struct UnpinArgs {
    /// Backup: an id, the beginning of one, or 'latest', as 'pgkeep pin' has it.
    #[arg(value_name = "ID")]
    pub backup: String,
}

/// `pgkeep copy`
#[derive(Debug, Args)]
pub struct CopyArgs {
    /// Backup: an id, the beginning of one, 'all', or 'latest', the newest that isn't known to be a part (made with
    /// --database or --table), which takes the key.
    #[arg(value_name = "ID")]
    pub backup: String,
    /// Repository to copy to; made if there is none.
    #[arg(long, value_name = "URL")]
    pub to: String,
    /// Compare what is there already with its hashes, and write anew what is damaged: deletes it first.
    #[arg(long)]
    pub repair: bool,
}

/// `pgkeep export`
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// Backup: an id, the beginning of one, or 'latest', the newest that holds what is asked for.
    #[arg(value_name = "ID", default_value = "latest")]
    pub backup: String,
    /// A folder with a script that restores it, one SQL script, or a base backup as pg_basebackup makes one [default: files,
    /// or basebackup for a base backup].
    #[arg(long, short = 'F', value_enum)]
    pub format: Option<ExportAs>,
    /// Folder (files, basebackup), or file or store URL (plain; .gz and .zst compress, .age encrypts).
    #[arg(long, short = 'o', value_name = "PATH")]
    pub output: String,
    /// Database to write into the script; may be repeated [default: all].
    #[arg(long = "database", short = 'd', value_name = "NAME")]
    pub databases: Vec<String>,
    #[command(flatten)]
    pub tablespaces: TablespaceArgs,
}

/// What `pgkeep export` writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ExportAs {
    // Every object decrypted and decompressed.
    Files,
    // One script.
    Plain,
    // A directory that a server starts from, with a backup_manifest.
    Basebackup,
}

/// `pgkeep key`
#[derive(Debug, Args)]
pub struct KeyArgs {
    /// What to do.
    #[command(subcommand)]
    pub action: KeyAction,
}

/// What to do with keys.
#[derive(Debug, Subcommand)]
pub enum KeyAction {
    /// Make a new pair of keys.
    New {
        /// File for the secret key; must not exist.
        #[arg(long, short = 'o', value_name = "FILE", default_value = "pgkeep.key")]
        output: PathBuf,
    },
    /// Print the public keys that belong to a file of secret ones.
    Show {
        /// File with secret keys.
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
}

/// `pgkeep completions`
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// The shell.
    #[arg(value_enum)]
    pub shell: clap_complete::Shell,
}

fn parse_pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.trim().is_empty() => Ok((name.trim().to_owned(), value.to_owned())),
        _ => Err("write NAME=VALUE".to_owned()),
    }
}

/// `20MB/s`; `20MB` is taken for the same.
fn parse_rate(text: &str) -> Result<String, String> {
    let size = text.trim().trim_end_matches("/s").trim();
    match size.parse::<ByteCount>() {
        Ok(ByteCount(0)) => Err("a rate of 0 would never end".to_owned()),
        Ok(_) => Ok(format!("{size}/s")),
        Err(_) => Err("write a rate such as 20MB/s or 512KiB/s".to_owned()),
    }
}

fn parse_seconds(text: &str) -> Result<std::time::Duration, String> {
    const SECONDS_MAX: u64 = 7 * 24 * 3600;
    let number = text.trim().trim_end_matches('s').trim();
    match number.parse::<u64>() {
        Ok(seconds) if (1..=SECONDS_MAX).contains(&seconds) => Ok(std::time::Duration::from_secs(seconds)),
        _ => Err(format!("write a number of seconds from 1 to {SECONDS_MAX}")),
    }
}

/// A fraction from `10%` (or `10`).
fn parse_percent(text: &str) -> Result<f64, String> {
    match text.trim().trim_end_matches('%').trim().parse::<f64>() {
        Ok(percent) if percent > 0.0 && percent <= 100.0 => Ok(percent / 100.0),
        _ => Err("write a percentage above 0% and up to 100%".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn clap_finds_nothing_wrong_with_the_definition() {
        Cli::command().debug_assert();
    }

    #[test]
    fn scheduled_dumps_are_those_without_flags() {
        let cli = Cli::parse_from(["pgkeep", "dump"]);
        let Command::Dump(args) = cli.command else {
            panic!("{:?}", cli.command);
        };
        assert_eq!(format!("{args:?}"), format!("{:?}", DumpArgs::scheduled()));
    }

    #[test]
    fn percentages_rates_and_seconds_are_read_as_people_write_them() {
        assert_eq!(parse_percent("10%"), Ok(0.1));
        assert_eq!(parse_percent("100"), Ok(1.0));
        assert_eq!(parse_rate("20MB"), Ok("20MB/s".to_owned()));
        assert_eq!(parse_rate("512 KiB/s"), Ok("512 KiB/s".to_owned()));
        assert_eq!(parse_seconds("90s"), Ok(std::time::Duration::from_secs(90)));
        for bad in ["0%", "101%", "-1%", "x", "", "NaN%", "inf"] {
            assert!(parse_percent(bad).is_err(), "{bad}");
        }
        for bad in ["0", "fast", "-1MB/s", ""] {
            assert!(parse_rate(bad).is_err(), "{bad}");
        }
        for bad in ["0", "-1", "1.5", "99999999"] {
            assert!(parse_seconds(bad).is_err(), "{bad}");
        }
    }
}
