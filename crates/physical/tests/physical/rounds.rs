//! Random writes while a backup runs, then the cluster brought back to moments after it: each holds what the primary held.

use std::collections::BTreeMap;
use std::path::PathBuf;

use jiff::Timestamp;
use pgkeep_pg::Session;
use pgkeep_pgformat::Lsn;
use pgkeep_physical::ReaderChoice;
use pgkeep_physical::restore::RecoveryTarget;
use pgkeep_repository::Repository;
use pgkeep_testkit::{Cluster, require, requirements, server_user};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::support::{self, Streaming, check_pages, contents, manifest, repository, restore, session};

/// Rounds of each version: a few in every run, many in the long one.
const ROUNDS: u64 = 1;
const ROUNDS_LONG: u64 = 12;

/// A database whose name needs all quoting there is.
const ODD_DATABASE: &str = "odd \"name\" $d%f 'ü";
const ODD_TABLE: &str = "\"Ünï \"\"quoted\"\" %p\"";

/// A moment of the primary, and what it held.
#[derive(Debug)]
struct Moment {
    lsn: Lsn,
    at: Timestamp,
    contents: BTreeMap<String, String>,
}

struct Primary {
    cluster: Cluster,
    tablespace: (u32, PathBuf),
    main: Session,
    odd: Session,
}

impl Primary {
    async fn start(major: u32) -> Result<Self, requirements::Missing> {
        let cluster = Cluster::start(support::server(major))?;
        let directory = cluster.socket_dir().join("a \\ tablespace");
        std::fs::create_dir(&directory).unwrap();
        if let Some((user, group)) = server_user() {
            std::os::unix::fs::chown(&directory, Some(user.as_raw()), Some(group.as_raw())).unwrap();
        }
        cluster.psql(
            "postgres",
            &format!("CREATE TABLESPACE t LOCATION '{}'", directory.display()),
        );
        let oid = cluster.psql("postgres", "SELECT oid FROM pg_tablespace WHERE spcname = 't'");
        cluster.create_database(ODD_DATABASE);
        let mut main = session(&cluster, "postgres").await;
        let mut odd = session(&cluster, ODD_DATABASE).await;
        for statement in [
            "CREATE TABLE a (id bigint PRIMARY KEY, t text, n int)",
            "CREATE INDEX ON a (n)",
            "CREATE TABLE b (id bigint, t text) TABLESPACE t",
            "CREATE UNLOGGED TABLE u AS SELECT 1 i",
            "INSERT INTO a SELECT i, md5(i::text), i % 17 FROM generate_series(1, 20000) i",
        ] {
            main.execute(statement).await.unwrap();
        }
        let table = format!("CREATE TABLE {ODD_TABLE} (id int, t text)");
        odd.execute(&table).await.unwrap();
        Ok(Self {
            cluster,
            tablespace: (oid.parse().unwrap(), directory),
            main,
            odd,
        })
    }

    /// Something that anybody might do.
    async fn step(&mut self, random: &mut StdRng, number: u64) {
        let rows = random.random_range(1..2000);
        let from = random.random_range(0..20_000);
        let statement = match random.random_range(0..12) {
            0..3 => format!(
                "INSERT INTO a SELECT i, repeat(md5(i::text), 1 + i::int % 5), i % 17 FROM generate_series({from}, {from} + {rows}) i
                 ON CONFLICT (id) DO UPDATE SET n = a.n + 1"
            ),
            3 => format!("UPDATE a SET t = t || 'x', n = n + {number} WHERE id BETWEEN {from} AND {from} + {rows}"),
            4 => format!("DELETE FROM a WHERE id % 7 = {} AND id > {from}", number % 7),
            5 => format!("INSERT INTO b SELECT i, md5((i + {number})::text) FROM generate_series(1, {rows}) i"),
            6 => "TRUNCATE b".to_owned(),
            7 => format!("DROP TABLE IF EXISTS c{}", number % 3),
            8 => format!("CREATE TABLE IF NOT EXISTS c{} AS SELECT id, n FROM a WHERE id < {rows}", number % 3),
            9 => "VACUUM a".to_owned(),
            10 => "CHECKPOINT".to_owned(),
            _ => {
                let insert = format!("INSERT INTO {ODD_TABLE} SELECT i, 'r{number}' FROM generate_series(1, {rows}) i");
                self.odd.execute(&insert).await.unwrap();
                "SELECT pg_switch_wal()".to_owned()
            }
        };
        self.main
            .execute(&statement)
            .await
            .unwrap_or_else(|error| panic!("{statement}: {error}"));
    }

    async fn moment(&mut self) -> Moment {
        let contents = contents(&self.cluster).await;
        let rows = self
            .main
            .query("SELECT pg_current_wal_insert_lsn()::text, to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')")
            .await
            .unwrap();
        let (lsn, at): (String, String) = (rows[0].get(0).unwrap(), rows[0].get(1).unwrap());
        Moment {
            lsn: lsn.parse().unwrap(),
            at: at.parse().unwrap(),
            contents,
        }
    }
}

/// Restores to a target, starts a server, and gives back what it holds.
async fn bring_back(
    repository: &Repository,
    primary: &Primary,
    text: &str,
    target: RecoveryTarget,
) -> BTreeMap<String, String> {
    let mut restored = Cluster::unmade(primary.cluster.pg_bin(), primary.cluster.major());
    let place = restored.socket_dir().join("restored \\ tablespace");
    let tablespaces = BTreeMap::from([(primary.tablespace.0, place.clone())]);
    let report = restore(repository, text, &restored, target, tablespaces)
        .await
        .unwrap();
    assert!(report.attention.is_empty(), "{target}: {:?}", report.attention);
    restored.start_restored();
    let found = contents(&restored).await;
    let found_place = restored.psql(
        "postgres",
        "SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = 't'",
    );
    assert_eq!(found_place, place.display().to_string());
    // It is a server of its own from here on, and archives nowhere.
    restored.psql("postgres", "INSERT INTO a VALUES (-1, 'after')");
    let state = restored.psql(
        "postgres",
        "SELECT pg_is_in_recovery(), current_setting('archive_mode')",
    );
    assert_eq!(state, "f|off");
    check_pages(&mut restored);
    found
}

async fn round(major: u32, seed: u64, reader: ReaderChoice) -> Result<(), requirements::Missing> {
    println!("PostgreSQL {major}, seed {seed}, {reader:?}");
    let mut random = StdRng::seed_from_u64(seed);
    let folder = tempfile::tempdir().unwrap();
    let repository = repository(folder.path(), seed.is_multiple_of(2), None).await;
    let mut primary = Primary::start(major).await?;
    let streaming = Streaming::start(&repository, &primary.cluster).await;
    let mut moments = vec![primary.moment().await];
    let report = {
        let target = support::target(&primary.cluster, "postgres");
        let (repository, mut options) = (repository.clone(), support::backup_options());
        options.reader = reader;
        let backing_up = tokio::spawn(async move {
            let progress = std::sync::Arc::default();
            pgkeep_physical::backup(&repository, &target, &options, &progress, std::future::pending()).await
        });
        let mut number = 0;
        // As long as it runs, and a while longer.
        let mut after = random.random_range(4..8);
        while after > 0 {
            number += 1;
            primary.step(&mut random, number).await;
            if backing_up.is_finished() {
                moments.push(primary.moment().await);
                after -= 1;
            }
        }
        backing_up.await.unwrap().unwrap()
    };
    let id = report.id.to_string();
    assert!(report.attention.is_empty(), "{:?}", report.attention);
    let end = streaming.end(&primary.cluster).await;
    let said = manifest(&repository, &report.id).await;
    assert_eq!(said, report.manifest);
    assert!(said.start_lsn < said.stop_lsn && said.stop_lsn <= end);
    let progress = std::sync::Arc::default();
    let verified = pgkeep_physical::verify::verify(&repository, &report.id, 2, &progress).await;
    assert_eq!(verified.unwrap().failures, Vec::<String>::new());

    let later: Vec<&Moment> = moments
        .iter()
        .filter(|moment| moment.lsn >= said.stop_lsn)
        .collect();
    assert!(later.len() >= 3, "{later:?}");
    let last = later.last().unwrap();
    let by_lsn = later[random.random_range(0..later.len())];
    let found = bring_back(&repository, &primary, &id, RecoveryTarget::Lsn(by_lsn.lsn)).await;
    assert_eq!(
        found, by_lsn.contents,
        "to {} of {major}, seed {seed}",
        by_lsn.lsn
    );
    // Not the last one, after which no transaction needs to have ended.
    let by_time = later[random.random_range(0..later.len() - 2)];
    let found = bring_back(&repository, &primary, "latest", RecoveryTarget::Time(by_time.at)).await;
    assert_eq!(
        found, by_time.contents,
        "to {} of {major}, seed {seed}",
        by_time.at
    );
    let found = bring_back(&repository, &primary, &id, RecoveryTarget::End).await;
    assert_eq!(found, last.contents, "to the end of {major}, seed {seed}");
    // What it holds at the backup's end nobody has seen; its pages and indexes were checked.
    let found = bring_back(&repository, &primary, &id, RecoveryTarget::BackupEnd).await;
    assert!(found.contains_key("postgres a"));
    Ok(())
}

/// Both with encryption and without in a single run.
async fn rounds(major: u32, reader: ReaderChoice) {
    let rounds = match requirements::long() {
        Ok(()) => ROUNDS_LONG,
        Err(_) => ROUNDS,
    };
    let first = pgkeep_testkit::seed();
    for number in 0..rounds {
        let seed = first.wrapping_add(u64::from(major) + number);
        require!(round(major, seed, reader).await);
    }
}

/// A test for each version and reader, so that they run side by side.
macro_rules! rounds_of {
    ($($version:ident $major:literal),*) => { $(
        mod $version {
            use pgkeep_physical::ReaderChoice;

            #[tokio::test(flavor = "multi_thread")]
            async fn what_is_restored_holds_what_the_primary_held_at_that_moment() {
                super::rounds($major, ReaderChoice::Replication).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn what_is_restored_of_a_directory_holds_what_the_primary_held_at_that_moment() {
                super::rounds($major, ReaderChoice::Local).await;
            }
        }
    )* };
}

rounds_of!(postgresql_15 15, postgresql_16 16, postgresql_17 17, postgresql_18 18);
