//! Servers for the tests. Binaries: `PGKEEP_TEST_PG`, a directory with 15/ 16/ 17/ 18/, each with bin/; by default the
//! one that scripts/test-setup fills.
#![allow(dead_code, reason = "not every test needs everything")]

pub mod certificates;
pub mod walsender;

use std::path::{Path, PathBuf};
use std::time::Duration;

use pgkeep_pg::programs::ProgramSearch;
use pgkeep_pg::server::{InitdbOptions, ServerOptions, TemporaryServer};
use pgkeep_pg::{Conninfo, Environment, Session, Target};
use tempfile::TempDir;

/// Where the binaries of a major version are, if they are.
pub fn binaries(major: u32) -> Option<PathBuf> {
    let root = std::env::var_os("PGKEEP_TEST_PG")
        .map(PathBuf::from)
        .unwrap_or_else(|| {
            let cache = std::env::var_os("PGKEEP_TEST_CACHE").map(PathBuf::from);
            cache
                .unwrap_or_else(|| Path::new(&std::env::var_os("HOME").unwrap()).join(".cache/pgkeep-test"))
                .join("postgresql")
        });
    let directory = root.join(major.to_string()).join("bin").canonicalize().ok()?;
    directory.join("postgres").exists().then_some(directory)
}

/// The versions that are here. None at all is a failure, not a pass.
pub fn majors() -> Vec<u32> {
    let found: Vec<u32> = [15, 16, 17, 18]
        .into_iter()
        .filter(|major| binaries(*major).is_some())
        .collect();
    assert!(
        !found.is_empty(),
        "no PostgreSQL binaries: run scripts/test-setup, or set PGKEEP_TEST_PG"
    );
    found
}

pub fn major() -> u32 {
    let found = majors();
    if found.contains(&16) { 16 } else { found[0] }
}

/// A server, and the directory that goes with it.
pub struct TestServer {
    pub server: TemporaryServer,
    /// Dropped after the server.
    pub directory: TempDir,
}

pub const FAST: [(&str, &str); 3] = [
    ("fsync", "off"),
    ("shared_buffers", "32MB"),
    ("max_connections", "20"),
];

impl TestServer {
    pub async fn new(major: u32) -> Self {
        let directory = tempfile::Builder::new()
            .prefix("pgkeep-pg-")
            .tempdir_in("/tmp")
            .unwrap();
        // The server's user must get through.
        std::fs::set_permissions(
            directory.path(),
            std::os::unix::fs::PermissionsExt::from_mode(0o755),
        )
        .unwrap();
        let search = ProgramSearch::only(binaries(major).expect("binaries"));
        let options = ServerOptions {
            loopback: true,
            ..ServerOptions::default()
        };
        let server = TemporaryServer::initdb(
            &directory.path().join("data"),
            major,
            &search,
            &InitdbOptions::default(),
            options,
        )
        .await
        .expect("initdb");
        Self { server, directory }
    }

    pub async fn started() -> Self {
        let mut server = Self::new(major()).await;
        server.start(&[]).await;
        server
    }

    pub async fn start(&mut self, settings: &[(&str, &str)]) {
        let settings: Vec<_> = FAST.iter().chain(settings).copied().collect();
        self.server.start(&settings).await.expect("start");
    }

    pub async fn session(&self) -> Session {
        Session::connect(&self.server.target("postgres"))
            .await
            .expect("connect")
    }

    pub async fn admin(&self, sql: &str) {
        self.session().await.execute(sql).await.expect(sql);
    }

    /// Replaces pg_hba.conf, but for the superuser on the socket, and waits until it counts.
    pub async fn hba(&self, lines: &str) {
        let text = format!("local all postgres trust\n{lines}\n");
        let path = self.server.data_directory().join("pg_hba.conf");
        std::fs::write(&path, text).unwrap();
        let mut session = self.session().await;
        let time = "SELECT pg_conf_load_time()::text";
        let before = session.query(time).await.unwrap()[0].get::<String>(0).unwrap();
        self.server.reload().unwrap();
        let reloaded = async {
            while session.query(time).await.unwrap()[0].get::<String>(0).unwrap() == before {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), reloaded)
            .await
            .expect("the configuration is read again");
    }

    /// A target over TCP.
    pub fn tcp(&self, more: &str) -> Target {
        resolve(&format!("host=127.0.0.1 port={} {more}", self.server.port()))
    }
}

/// Resolves without the environment.
pub fn resolve(conninfo: &str) -> Target {
    Conninfo::parse(conninfo)
        .unwrap()
        .resolve(&Environment::empty())
        .unwrap()
}

/// Polls a condition until it holds.
pub async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let limit = Duration::from_secs(30);
    let work = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(limit, work)
        .await
        .unwrap_or_else(|_| panic!("never came true: {what}"));
}
