//! A server made for a restore, from local binaries.

use std::path::{Path, PathBuf};
use std::time::Duration;

use pgkeep_dump::manifest::DumpManifest;
use pgkeep_pg::programs::ProgramSearch;
use pgkeep_pg::server::{InitdbOptions, ServerOptions, StopMode, TemporaryServer};
use pgkeep_pg::{Session, Target};

use crate::exit::Failure;

/// Loading is faster with these, and loses nothing: the server is stopped cleanly before anybody uses it.
pub const SETTINGS: [(&str, &str); 4] = [
    ("wal_level", "minimal"),
    ("max_wal_senders", "0"),
    ("synchronous_commit", "off"),
    ("max_wal_size", "4GB"),
];
/// One that was left without a shutdown has to replay what its log holds.
const RECOVERY_LIMIT: Duration = Duration::from_secs(3600);
const SUPERUSER: &str = "postgres";
const MAINTENANCE_DATABASE: &str = "postgres";

/// The server, running.
pub struct NewServer {
    server: TemporaryServer,
    data: PathBuf,
}

impl NewServer {
    /// Makes and starts it; with `resume` an earlier one in the same place is started again.
    pub async fn start(
        path: &Path,
        manifest: &DumpManifest,
        programs: &ProgramSearch,
        resume: bool,
    ) -> Result<Self, Failure> {
        let mut options = ServerOptions::default();
        let mut server = match (resume, std::fs::read_to_string(path.join("PG_VERSION"))) {
            (true, Ok(version)) => {
                let major = version.trim().parse().map_err(|error: std::num::ParseIntError| {
                    Failure::failed(format!("{} is not a data directory", path.display()), &error)
                })?;
                options.start_limit = RECOVERY_LIMIT;
                TemporaryServer::existing(path, major, programs, SUPERUSER, options).await?
            }
            _ => {
                let initdb = InitdbOptions {
                    superuser: SUPERUSER.to_owned(),
                    sync: true,
                    ..InitdbOptions::default()
                };
                let major_min = manifest.server_version_num / 10_000;
                TemporaryServer::initdb(path, major_min, programs, &initdb, options).await?
            }
        };
        let timescaledb = needs_timescaledb(manifest);
        let mut settings = SETTINGS.to_vec();
        if timescaledb {
            settings.push(("shared_preload_libraries", "timescaledb"));
        }
        server.start(&settings).await?;
        if timescaledb {
            preload_timescaledb(&server.target(MAINTENANCE_DATABASE)).await?;
        }
        let data = server.data_directory().to_owned();
        Ok(Self { server, data })
    }

    /// How to connect to it.
    pub fn target(&self) -> Target {
        self.server.target(MAINTENANCE_DATABASE)
    }

    /// What starts it when it is the user's.
    pub fn start_command(&self) -> String {
        let program = self.server.program().path.with_file_name("pg_ctl");
        format!("{} start -D {}", program.display(), self.data.display())
    }

    /// Stops it; what it holds is durable then.
    pub async fn stop(mut self) -> Result<(), Failure> {
        Ok(self.server.stop(StopMode::Fast).await?)
    }
}

/// Whether the server needs TimescaleDB's library preloaded.
pub fn needs_timescaledb(manifest: &DumpManifest) -> bool {
    manifest
        .databases
        .iter()
        .any(|database| database.timescaledb.is_some())
}

/// Without it the server would not start with TimescaleDB the next time.
async fn preload_timescaledb(target: &Target) -> Result<(), Failure> {
    let Some(statement) = pgkeep_timescale::preload_statement("") else {
        return Ok(());
    };
    let mut session = Session::connect(target).await?;
    session.execute(&statement).await?;
    session.close().await;
    Ok(())
}
