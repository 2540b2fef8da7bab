//! A server made for a restore, from local binaries.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pgkeep_base::quote_for_shell;
use pgkeep_dump::manifest::DumpManifest;
use pgkeep_pg::programs::{self, ProgramSearch};
use pgkeep_pg::server::{InitdbOptions, ServerOptions, StopMode, TemporaryServer};
use pgkeep_pg::{Session, Target};

use crate::context::Settings;
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

/// This machine's programs that make a server of at least the dump's version and restore into it.
///
/// # Errors
/// There are none, which shows here before anything is made.
pub async fn programs(settings: &Settings, manifest: &DumpManifest) -> Result<ProgramSearch, Failure> {
    let (container, search) = (settings.container(), settings.own_programs());
    let major_min = manifest.server_version_num / 10_000;
    for program in ["initdb", "pg_restore"] {
        let found = programs::find(program, major_min, &search).await;
        match (found, container) {
            (Ok(_), _) => {}
            (Err(error), None) => return Err(error.into()),
            (Err(error), Some(container)) => {
                return Err(Failure::usage(
                    format!(
                        "a new server is made by programs of this machine, and not by those of the container '{container}': {error}"
                    ),
                    "name the directory that they are in: --pg-bin DIRECTORY; or make the server in Docker: --into image:NAME[:TAG]",
                ));
            }
        }
    }
    Ok(search)
}

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

    /// What starts it when it is the user's, as it is typed: pg_ctl refuses to work for root.
    pub fn start_command(&self) -> String {
        let program = self.server.program().path.with_file_name("pg_ctl");
        let [program, data] = [&program, &self.data].map(|path| quote_for_shell(&path.display().to_string()));
        let command = format!("{program} start -D {data}");
        let owner = std::fs::metadata(&self.data).ok();
        let own = std::fs::metadata("/proc/self").ok();
        match (owner, own) {
            (Some(owner), Some(own)) if owner.uid() != own.uid() => as_user(&owner, &command),
            _ => command,
        }
    }

    /// Stops it; what it holds is durable then.
    pub async fn stop(mut self) -> Result<(), Failure> {
        Ok(self.server.stop(StopMode::Fast).await?)
    }
}

/// The command, to be typed by root, as whoever owns the data directory runs it.
fn as_user(owner: &Metadata, command: &str) -> String {
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    match user_name(&users, owner.uid()) {
        // Whatever its own shell is.
        Some(name) => format!(
            "su {} -s /bin/sh -c {}",
            quote_for_shell(name),
            quote_for_shell(command)
        ),
        None => format!(
            "setpriv --reuid={} --regid={} --clear-groups {command}",
            owner.uid(),
            owner.gid()
        ),
    }
}

/// Of a line `name:password:uid:...`.
fn user_name(users: &str, uid: u32) -> Option<&str> {
    let of_line = |line: &'_ str| {
        let fields: Vec<&str> = line.split(':').collect();
        fields.get(2).and_then(|text| text.parse().ok()) == Some(uid)
    };
    users.lines().find(|line| of_line(line))?.split(':').next()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_owner_of_a_directory_has_a_name() {
        let users = "root:x:0:0:root:/:/bin/sh\n# 101\npostgres:x:101:104::/var/lib/postgresql:/bin/false\n";
        assert_eq!(user_name(users, 101), Some("postgres"));
        assert_eq!(user_name(users, 104), None);
    }
}
