//! Throwaway PostgreSQL servers.
//!
//! Each has its own data directory, socket directory and loopback port. Its directory belongs to a watchdog process that
//! waits for the end of the test's process, however it comes, then stops what still runs and removes everything.

mod directory;
mod psql;
mod server;
mod session;

use std::{
    path::{Path, PathBuf},
    process::Child,
};

use crate::requirements::{self, Missing};
use directory::ClusterDirectory;

pub use server::StopMode;
pub use session::Session;

/// The superuser that every cluster is made with.
pub const SUPERUSER: &str = "postgres";

/// What a throwaway server should be.
#[derive(Debug, Clone)]
pub struct ClusterOptions {
    /// PostgreSQL's major version.
    pub major: u32,
    /// Whether it has TimescaleDB (Apache edition) preloaded.
    pub timescaledb: bool,
    /// Settings for `postgresql.conf`, after the defaults and therefore stronger.
    pub settings: Vec<(String, String)>,
    /// Further arguments for `initdb`.
    pub initdb_args: Vec<String>,
    /// Lines that go before the default ones of `pg_hba.conf`, which trust everyone who connects locally.
    pub hba_lines: Vec<String>,
}

impl ClusterOptions {
    /// A plain server.
    pub fn new(major: u32) -> Self {
        Self {
            major,
            timescaledb: false,
            settings: Vec::new(),
            initdb_args: Vec::new(),
            hba_lines: Vec::new(),
        }
    }

    /// The same with TimescaleDB preloaded; `CREATE EXTENSION` is left to the test.
    #[must_use]
    pub fn timescaledb(mut self) -> Self {
        self.timescaledb = true;
        self
    }

    /// The same with a setting in `postgresql.conf`.
    #[must_use]
    pub fn setting(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The same with an argument for `initdb`.
    #[must_use]
    pub fn initdb_arg(mut self, argument: &str) -> Self {
        self.initdb_args.push(argument.to_owned());
        self
    }

    /// The same with a line before the default ones of `pg_hba.conf`.
    #[must_use]
    pub fn hba_line(mut self, line: &str) -> Self {
        self.hba_lines.push(line.to_owned());
        self
    }
}

impl Default for ClusterOptions {
    fn default() -> Self {
        Self::new(requirements::DEFAULT_MAJOR)
    }
}

/// A running (or stopped) throwaway server; dropped, it is stopped at once and its directory removed.
#[derive(Debug)]
pub struct Cluster {
    bin: PathBuf,
    major: u32,
    port: u16,
    postmaster: Option<Child>,
    // Dropped last: its watchdog removes the directory.
    directory: ClusterDirectory,
}

impl Cluster {
    /// Makes and starts a server, or says what isn't there for it. Panics, with the server's log, when it doesn't start.
    pub fn start(options: ClusterOptions) -> Result<Self, Missing> {
        let bin = if options.timescaledb {
            requirements::timescaledb(options.major)?
        } else {
            requirements::postgresql(options.major)?
        };
        Ok(Self::start_with(&bin, &options))
    }

    /// Starts the first of the servers with TimescaleDB's Community edition ([`requirements::community`]), of this major
    /// version or of any.
    pub fn start_community(major: Option<u32>) -> Result<Self, Missing> {
        let server = requirements::community(major)?.swap_remove(0);
        Ok(Self::start_with(
            &server.bin,
            &ClusterOptions::new(server.major).timescaledb(),
        ))
    }

    /// The directory of the server's programs.
    pub fn pg_bin(&self) -> &Path {
        &self.bin
    }

    /// PostgreSQL's major version.
    pub fn major(&self) -> u32 {
        self.major
    }

    /// The port on 127.0.0.1, which is also part of the socket's name.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The directory of the server's socket.
    pub fn socket_dir(&self) -> PathBuf {
        self.directory.path().join("s")
    }

    /// The data directory.
    pub fn data_dir(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// Where the server logs.
    pub fn log_path(&self) -> PathBuf {
        self.directory.path().join("server.log")
    }

    /// What the server has logged since it was made.
    pub fn log(&self) -> String {
        let bytes = std::fs::read(self.log_path()).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// A connection string (key=value) for the superuser, by socket.
    pub fn conninfo(&self, database: &str) -> String {
        let socket_dir = self.socket_dir();
        self.conninfo_at(&socket_dir.to_string_lossy(), database)
    }

    /// A connection string (key=value) for the superuser, by TCP.
    pub fn tcp_conninfo(&self, database: &str) -> String {
        self.conninfo_at("127.0.0.1", database)
    }

    fn conninfo_at(&self, host: &str, database: &str) -> String {
        let database = database.replace('\\', "\\\\").replace('\'', "\\'");
        format!(
            "host={host} port={} user={SUPERUSER} dbname='{database}'",
            self.port
        )
    }

    /// A connection URI for the superuser, by TCP.
    pub fn uri(&self, database: &str) -> String {
        let mut encoded = String::new();
        for byte in database.bytes() {
            if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
                encoded.push(char::from(byte));
            } else {
                encoded.push_str(&format!("%{byte:02X}"));
            }
        }
        format!("postgresql://{SUPERUSER}@127.0.0.1:{}/{encoded}", self.port)
    }
}
