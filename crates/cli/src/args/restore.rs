use clap::Args;
use pgkeep_dump::restore::RangeBound;

use super::RecoveryArgs;

/// `pgkeep restore`
#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// Backup to restore: an id, the beginning of one, or 'latest', the newest that holds what is asked for.
    #[arg(value_name = "ID", default_value = "latest")]
    pub backup: String,
    /// Where to: a connection string; a new server by server:DIRECTORY or, in Docker, image:NAME[:TAG]; files:DIRECTORY; of a
    /// base backup, a path such as /srv/data.
    #[arg(long, value_name = "TARGET", required_unless_present = "dry_run")]
    pub into: Option<String>,
    /// Name of the container and volume that image: makes [default: pgkeep- and the cluster's name].
    #[arg(long, value_name = "NAME")]
    pub container: Option<String>,
    /// Port of 127.0.0.1 that leads to the container [default: the first free one from 5432 on].
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub port: Option<u16>,
    /// Database to restore; may be repeated [default: all].
    #[arg(long = "database", short = 'd', value_name = "NAME")]
    pub databases: Vec<String>,
    /// Restore only tables that fit a pattern; may be repeated.
    #[arg(long = "table", short = 't', value_name = "PATTERN")]
    pub tables: Vec<String>,
    /// Restore only this hypertable.
    #[arg(long, value_name = "NAME", conflicts_with = "tables")]
    pub hypertable: Option<String>,
    /// The hypertable's rows from this time on: 2026-11-01, 2026-11-01T02:00:00+01:00 (without an offset UTC), or a number.
    #[arg(
        long,
        value_name = "TIME",
        requires = "hypertable",
        conflicts_with = "tables",
        allow_negative_numbers = true
    )]
    pub from: Option<RangeBound>,
    /// The hypertable's rows before this time, as absolute as --from.
    #[arg(
        long,
        value_name = "TIME",
        requires = "hypertable",
        conflicts_with = "tables",
        allow_negative_numbers = true
    )]
    pub to: Option<RangeBound>,
    /// Name of the database in the target, where one is restored.
    #[arg(long, value_name = "NAME")]
    pub target_database: Option<String>,
    /// Drop what is in the way in the target.
    #[arg(long, conflicts_with = "resume")]
    pub overwrite: bool,
    /// Go on with a restore that stopped half-way.
    #[arg(long)]
    pub resume: bool,
    /// Where recovery of a base backup ends.
    #[command(flatten)]
    pub recovery: RecoveryArgs,
    /// Only say what would be done.
    #[arg(long)]
    pub dry_run: bool,
    /// Tables loaded and indexes built at the same time [default: by the number of CPUs].
    #[arg(long, short = 'j', value_name = "N")]
    pub jobs: Option<u32>,
    /// Don't make roles that are missing.
    #[arg(long)]
    pub no_roles: bool,
    /// Make all missing roles of the dump, also those that the databases of --database don't use.
    #[arg(long, conflicts_with = "no_roles")]
    pub all_roles: bool,
    /// Let everything belong to the connecting role.
    #[arg(long)]
    pub no_owner: bool,
    /// Don't grant privileges.
    #[arg(long)]
    pub no_privileges: bool,
    /// Don't collect the planner's statistics at the end.
    #[arg(long)]
    pub no_analyze: bool,
    /// Turn TimescaleDB's jobs on even if they are about to delete what was restored.
    #[arg(long)]
    pub enable_jobs: bool,
    /// Update TimescaleDB to the target's version when everything is restored.
    #[arg(long)]
    pub update_extensions: bool,
}
