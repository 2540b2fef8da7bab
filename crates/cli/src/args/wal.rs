//! `pgkeep wal`

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// `pgkeep wal`
#[derive(Debug, Args)]
pub struct WalArgs {
    /// What to do.
    #[command(subcommand)]
    pub action: WalAction,
}

/// What to do with WAL.
#[derive(Debug, Subcommand)]
pub enum WalAction {
    /// Receive WAL as the server writes it, in the foreground, until it's told to end.
    Stream(StreamArgs),
    /// Show which WAL is stored, what is missing, and how far the slot lags.
    Status,
    /// Fetch a file of WAL, for restore_command: pgkeep wal fetch %f "%p". Ends with 1 if there is none, and with 255 if that
    /// isn't certain.
    Fetch(FetchArgs),
    /// Store a file of WAL, for archive_command: pgkeep wal push "%p".
    Push(PushArgs),
}

/// `pgkeep wal stream`
#[derive(Debug, Args)]
pub struct StreamArgs {
    /// Let a database cluster write under this name that never has.
    #[arg(long)]
    pub accept_new_identity: bool,
}

/// `pgkeep wal fetch`
#[derive(Debug, Args)]
pub struct FetchArgs {
    /// The file's name (%f).
    pub name: String,
    /// Where to write it (%p).
    pub path: PathBuf,
    /// The data directory [default: the current one, where PostgreSQL runs its commands].
    #[arg(long, value_name = "DIRECTORY")]
    pub data_directory: Option<PathBuf>,
}

/// `pgkeep wal push`
#[derive(Debug, Args)]
pub struct PushArgs {
    /// The file (%p).
    pub path: PathBuf,
    /// The data directory [default: the current one, where PostgreSQL runs its commands].
    #[arg(long, value_name = "DIRECTORY")]
    pub data_directory: Option<PathBuf>,
}
