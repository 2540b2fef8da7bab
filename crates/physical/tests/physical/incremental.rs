//! Base backups that refer to blocks of earlier ones: little is stored, and each stands on its own.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use pgkeep_base::{BackupId, BackupKind};
use pgkeep_physical::restore::RecoveryTarget;
use pgkeep_physical::{BackupOptions, BackupReport, PhysicalError, ReaderChoice};
use pgkeep_repository::backups::BackupState;
use pgkeep_repository::copy::{Original, copy};
use pgkeep_repository::lease::Lease;
use pgkeep_repository::records::Evidence;
use pgkeep_repository::{Access, Repository, keys, layout};
use pgkeep_store::{PutOutcome, Store, StoreOptions};
use pgkeep_testkit::{Cluster, require, requirements};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::support::{
    LIMIT, backup_options, backup_with, check_pages, contents, repository, restore, secret, server, session,
};

/// More than what a server writes by itself between two backups.
const LITTLE_BYTES: u64 = 1 << 20;
const ROUNDS_LONG: u64 = 20;

const ROWS: &str = "CREATE TABLE a AS SELECT i, md5(i::text) t, 0 n FROM generate_series(1, 100000) i;
    CREATE INDEX ON a (i)";

pub fn with_cache(directory: &Path) -> BackupOptions {
    BackupOptions {
        cache_directory: Some(directory.to_owned()),
        ..backup_options()
    }
}

/// A cluster with some rows, and a repository with a cache beside it.
struct Place {
    cluster: Cluster,
    repository: Repository,
    options: BackupOptions,
    folder: tempfile::TempDir,
}

impl Place {
    async fn new(major: u32, encrypted: bool) -> Result<Self, requirements::Missing> {
        let cluster = Cluster::start(server(major))?;
        cluster.psql("postgres", ROWS);
        let folder = tempfile::tempdir().unwrap();
        Ok(Self {
            cluster,
            repository: repository(&folder.path().join("repository"), encrypted, None).await,
            options: with_cache(&folder.path().join("cache")),
            folder,
        })
    }

    async fn backup(&self) -> BackupReport {
        self.backup_into(&self.repository).await
    }

    async fn backup_into(&self, repository: &Repository) -> BackupReport {
        let report = backup_with(repository, &self.cluster, &self.options)
            .await
            .unwrap();
        assert_eq!(report.attention, Vec::<String>::new());
        println!("{}: {:?} {:?}", report.id, report.manifest.totals, report.notes);
        report
    }

    /// The same with any reader: what the one stored, the other refers to.
    async fn backup_by(&mut self, reader: ReaderChoice) -> BackupReport {
        self.options.reader = reader;
        self.backup().await
    }

    /// The same without the secret key.
    async fn without_key(&self) -> Repository {
        let access = Access {
            identities: Vec::new(),
            encryption: self.repository.access().encryption.clone(),
            ..*self.repository.access()
        };
        let store = self.repository.store().clone();
        Repository::open_or_create(store, "test", access).await.unwrap()
    }

    /// The one file in the cache.
    fn cached(&self) -> PathBuf {
        let mut files = fs::read_dir(self.folder.path().join("cache")).unwrap();
        let file = files.next().unwrap().unwrap().path();
        assert!(files.next().is_none() && file.extension().is_some_and(|end| end == "blocks"));
        file
    }

    /// What a server holds that a backup is restored into, to that backup's end.
    async fn restored(&self, id: &BackupId) -> BTreeMap<String, String> {
        let mut restored = Cluster::unmade(self.cluster.pg_bin(), self.cluster.major());
        let target = RecoveryTarget::BackupEnd;
        restore(
            &self.repository,
            &id.to_string(),
            &restored,
            target,
            BTreeMap::new(),
        )
        .await
        .unwrap();
        restored.start_restored();
        let found = contents(&restored).await;
        check_pages(&mut restored);
        found
    }

    /// Restored, it is what the cluster holds now.
    async fn assert_is_now(&self, report: &BackupReport) {
        assert_eq!(
            self.restored(&report.id).await,
            contents(&self.cluster).await,
            "{}",
            report.id
        );
    }

    async fn failures(&self, id: &BackupId) -> Vec<String> {
        let progress = std::sync::Arc::default();
        let verified = pgkeep_physical::verify::verify(&self.repository, id, 2, &progress).await;
        verified.unwrap().failures
    }

    async fn remove(&self, id: &BackupId) {
        let mut references = self.repository.references(BackupKind::Base).await.unwrap();
        self.repository.remove(id, &mut references).await.unwrap();
        self.repository.sweep(BackupKind::Base).await.unwrap();
    }

    /// All packs that lie in the repository.
    async fn packs(&self) -> BTreeSet<String> {
        let prefix = layout::kind_prefix("test", BackupKind::Base);
        let objects = self.repository.store().list(&prefix).await.unwrap();
        let keys = objects.into_iter().map(|object| object.key);
        keys.filter(|key| key.contains("/packs/")).collect()
    }
}

fn new_bytes(report: &BackupReport) -> u64 {
    report.manifest.totals.stored_bytes - report.manifest.totals.reused_bytes
}

fn reused(report: &BackupReport) -> bool {
    report.manifest.totals.reused_objects > 0
}

/// By the cache, and with the key alone.
#[tokio::test(flavor = "multi_thread")]
async fn what_has_not_changed_is_not_stored_again() {
    for encrypted in [true, false] {
        let mut place = require!(Place::new(17, encrypted).await);
        let first = place.backup().await;
        assert!(!reused(&first) && new_bytes(&first) > 4 * LITTLE_BYTES);
        let cached = place.backup_by(ReaderChoice::Local).await;
        fs::remove_file(place.cached()).unwrap();
        let read = place.backup_by(ReaderChoice::Replication).await;
        for report in [&cached, &read] {
            assert!(reused(report) && new_bytes(report) < LITTLE_BYTES);
            assert!(report.notes.is_empty());
            place.assert_is_now(report).await;
            assert_eq!(place.failures(&report.id).await, Vec::<String>::new());
        }
        assert_eq!(cached.manifest.fingerprint_key, first.manifest.fingerprint_key);
        // What is asked for as a whole refers to nothing, and the next one refers to it.
        let full = BackupOptions {
            full: true,
            ..place.options.clone()
        };
        let full = backup_with(&place.repository, &place.cluster, &full)
            .await
            .unwrap();
        assert!(!reused(&full) && new_bytes(&full) > 4 * LITTLE_BYTES);
        let after = place.backup().await;
        assert!(reused(&after) && new_bytes(&after) < LITTLE_BYTES);
        let packs = place.repository.checksums(&after.id).await.unwrap();
        let owners: BTreeSet<BackupId> = packs
            .iter()
            .filter_map(|pack| layout::reference(&pack.name).map(|(owner, _)| owner))
            .collect();
        assert_eq!(owners, BTreeSet::from([full.id]));
    }
}

/// Changes something as anybody might.
async fn change(place: &Place, random: &mut StdRng, number: u64) {
    let mut session = session(&place.cluster, "postgres").await;
    for _ in 0..random.random_range(1..4) {
        let from = random.random_range(0..100_000);
        let rows = random.random_range(1..30_000);
        let statement = match random.random_range(0..8) {
            0 => format!("UPDATE a SET n = n + 1 WHERE i BETWEEN {from} AND {from} + {rows}"),
            1 => format!("UPDATE a SET n = n + 1 WHERE i % 1000 = {}", from % 1000),
            2 => format!("DELETE FROM a WHERE i BETWEEN {from} AND {from} + {rows}"),
            3 => format!(
                "INSERT INTO a SELECT i, md5(i::text), {number} FROM generate_series({from}, {from} + {rows}) i"
            ),
            4 => "VACUUM a".to_owned(),
            5 => format!("DROP TABLE IF EXISTS c{}", number % 2),
            6 => format!(
                "CREATE TABLE IF NOT EXISTS c{} AS SELECT i, t FROM a WHERE i < {rows}",
                number % 2
            ),
            _ => "VACUUM FULL a".to_owned(),
        };
        session.execute(&statement).await.unwrap();
    }
    session.close().await;
}

async fn round(major: u32, seed: u64) -> Result<(), requirements::Missing> {
    println!("PostgreSQL {major}, seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut place = Place::new(major, seed.is_multiple_of(2)).await?;
    let mut backups = Vec::new();
    for number in 0..4 {
        if number > 0 {
            change(&place, &mut random, number).await;
        }
        if random.random_bool(0.3) {
            let _ = fs::remove_dir_all(place.folder.path().join("cache"));
        }
        let report = place
            .backup_by(match random.random_bool(0.5) {
                true => ReaderChoice::Local,
                false => ReaderChoice::Replication,
            })
            .await;
        assert_eq!(reused(&report), number > 0, "{:?}", report.notes);
        backups.push((report, contents(&place.cluster).await));
    }
    // The first one, and then any.
    let mut gone = 0;
    while backups.len() > 1 {
        let (report, _) = backups.remove(gone);
        place.remove(&report.id).await;
        for (report, expected) in &backups {
            assert_eq!(place.failures(&report.id).await, Vec::<String>::new());
            assert_eq!(&place.restored(&report.id).await, expected, "{}", report.id);
        }
        gone = random.random_range(0..backups.len());
    }
    let (last, _) = backups.remove(0);
    let named = place.repository.checksums(&last.id).await.unwrap();
    let named = named.iter().filter(|checksum| checksum.name.contains("packs/"));
    let needed = named.map(|checksum| layout::backup_object("test", &last.id, &checksum.name));
    assert_eq!(place.packs().await, needed.collect::<BTreeSet<_>>());
    place.remove(&last.id).await;
    assert_eq!(place.packs().await, BTreeSet::new());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn any_backup_can_be_removed_and_the_others_are_whole() {
    let first = pgkeep_testkit::seed();
    let (majors, rounds) = match requirements::long() {
        Ok(()) => (requirements::MAJORS.to_vec(), ROUNDS_LONG),
        Err(_) => (vec![16], 1),
    };
    for major in majors {
        for number in 0..rounds {
            require!(round(major, first.wrapping_add(u64::from(major) + number)).await);
        }
    }
}

/// A host that can't read what it stored.
#[tokio::test(flavor = "multi_thread")]
async fn without_the_key_the_cache_tells_what_there_is_and_never_something_wrong() {
    let place = require!(Place::new(18, true).await);
    let seed = pgkeep_testkit::seed();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let blind = place.without_key().await;
    let first = place.backup_into(&blind).await;
    assert!(!reused(&first) && first.notes.is_empty());
    let of_first = fs::read(place.cached()).unwrap();
    place
        .cluster
        .psql("postgres", "UPDATE a SET n = 1 WHERE i < 20000");
    let second = place.backup_into(&blind).await;
    assert!(reused(&second) && new_bytes(&second) < new_bytes(&first));
    place.assert_is_now(&second).await;

    // Of an earlier backup that is still there: that one's blocks are referred to.
    fs::write(place.cached(), &of_first).unwrap();
    let third = place.backup_into(&blind).await;
    assert!(reused(&third));
    place.assert_is_now(&third).await;

    // Damaged, cut short, empty or missing: everything is stored, and that is told.
    let good = fs::read(place.cached()).unwrap();
    for damage in ["flipped", "short", "empty", "missing"] {
        let path = place.cached();
        let mut bytes = good.clone();
        let at = random.random_range(0..bytes.len());
        match damage {
            "flipped" => bytes[at] ^= 1 << random.random_range(0..8),
            "short" => bytes.truncate(at),
            "empty" => bytes.clear(),
            _ => {}
        }
        fs::write(&path, &bytes).unwrap();
        if damage == "missing" {
            fs::remove_file(&path).unwrap();
        }
        let report = place.backup_into(&blind).await;
        assert!(!reused(&report), "{damage} at {at}");
        assert!(
            report.notes.len() == 1 && report.notes[0].contains("everything was stored"),
            "{damage}: {:?}",
            report.notes
        );
        // With the key it makes no difference.
        fs::write(place.cached(), &bytes).unwrap();
        let report = place.backup().await;
        assert!(reused(&report) && report.notes.is_empty(), "{damage} at {at}");
        if damage == "flipped" {
            place.assert_is_now(&report).await;
        }
    }

    // Of a backup that isn't there any more, though a cached list says so.
    fs::write(place.cached(), &of_first).unwrap();
    place.remove(&first.id).await;
    let last = place.backup_into(&blind).await;
    assert!(
        !reused(&last) && last.notes[0].contains(&first.id.to_string()),
        "{:?}",
        last.notes
    );
    place.assert_is_now(&last).await;
}

/// What a verification found damaged doesn't go on into new backups, and neither does what isn't there.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_damaged_or_gone_is_not_referred_to() {
    let place = require!(Place::new(15, true).await);
    let first = place.backup().await;
    let second = place.backup().await;
    assert!(reused(&second));
    let pack = place.packs().await.into_iter().next().unwrap();
    assert!(pack.contains(&first.id.to_string()), "{pack}");
    let path = place.folder.path().join("repository").join(&pack);
    let whole = fs::read(&path).unwrap();
    // A byte of a frame: nobody sees that who doesn't read it all.
    let mut damaged = whole.clone();
    damaged[whole.len() / 2] ^= 1;
    fs::write(&path, &damaged).unwrap();
    assert_ne!(place.failures(&second.id).await, Vec::<String>::new());
    let third = place.backup().await;
    assert!(!reused(&third), "{:?}", third.manifest.totals);
    place.assert_is_now(&third).await;

    for key in place.packs().await {
        if key.contains(&third.id.to_string()) {
            fs::remove_file(place.folder.path().join("repository").join(key)).unwrap();
        }
    }
    let fourth = place.backup().await;
    assert!(!reused(&fourth), "{:?}", fourth.manifest.totals);
    place.assert_is_now(&fourth).await;
    let evidence: Option<Evidence> = place.repository.backups(BackupKind::Base).await.unwrap()[1]
        .evidence
        .clone();
    assert!(evidence.is_some_and(|evidence| !evidence.passed));
}

/// Another database cluster under the same name has nothing in common with the one before.
#[tokio::test(flavor = "multi_thread")]
async fn another_cluster_refers_to_nothing() {
    let place = require!(Place::new(17, false).await);
    let first = place.backup().await;
    let other = require!(Cluster::start(server(17)));
    let options = BackupOptions {
        accept_new_identity: true,
        ..place.options.clone()
    };
    let second = backup_with(&place.repository, &other, &options).await.unwrap();
    assert!(!reused(&second) && second.notes.is_empty(), "{:?}", second.notes);
    // And the newest that is of the same refers to the newest of its own.
    let third = backup_with(&place.repository, &place.cluster, &options)
        .await
        .unwrap();
    assert!(reused(&third));
    let names = place.repository.checksums(&third.id).await.unwrap();
    let mut owners = names.iter().filter_map(|name| layout::reference(&name.name));
    assert!(owners.all(|(owner, _)| owner == first.id));
    place.assert_is_now(&third).await;
}

/// A copy has all that it needs, also where the backup that stored it isn't copied.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_takes_along_the_packs_of_others() {
    let mut place = require!(Place::new(17, true).await);
    let first = place.backup().await;
    place
        .cluster
        .psql("postgres", "UPDATE a SET n = 1 WHERE i < 20000");
    let second = place.backup().await;
    assert!(reused(&second));
    let expected = contents(&place.cluster).await;
    let url = format!("file://{}", place.folder.path().join("copy").display());
    let store = Store::open(&url, &StoreOptions::default()).await.unwrap();
    let access = place.repository.access();
    let access = Access {
        encryption: access.encryption.clone(),
        identities: keys::parse_identities(&secret(&place.repository), "a test").unwrap(),
        ..*access
    };
    let destination = Repository::open_or_create(store, "test", access).await.unwrap();
    let lease = Lease::acquire(&destination, "pgkeep copy", LIMIT).await.unwrap();
    let original = Original::read(&place.repository, &second.id).await.unwrap();
    copy(&original, &destination, &lease, |_| {}).await.unwrap();
    // The WAL is no part of it.
    for object in place.repository.store().list("test/wal/").await.unwrap() {
        let body = place.repository.store().get(&object.key, u64::MAX).await.unwrap();
        let put = destination.store().put_new(&object.key, body).await.unwrap();
        assert_eq!(put, PutOutcome::Created);
    }
    lease.release().await.unwrap();
    place.repository = destination;
    let there = place.repository.backups(BackupKind::Base).await.unwrap();
    let states = there.iter().map(|entry| (&entry.id, entry.state));
    assert_eq!(
        states.collect::<Vec<_>>(),
        [
            (&first.id, BackupState::Swept),
            (&second.id, BackupState::Complete)
        ]
    );
    place.repository.sweep(BackupKind::Base).await.unwrap();
    assert_eq!(place.failures(&second.id).await, Vec::<String>::new());
    assert_eq!(place.restored(&second.id).await, expected);
    // There, it is what the next one refers to.
    let third = place.backup().await;
    assert!(reused(&third));
    place.assert_is_now(&third).await;
}

/// A server that was restored goes on on a timeline of its own, with the same blocks.
#[tokio::test(flavor = "multi_thread")]
async fn after_a_switch_to_another_timeline_blocks_are_referred_to_as_before() {
    let mut place = require!(Place::new(16, true).await);
    let first = place.backup().await;
    let mut restored = Cluster::unmade(place.cluster.pg_bin(), place.cluster.major());
    let id = first.id.to_string();
    let target = RecoveryTarget::BackupEnd;
    restore(&place.repository, &id, &restored, target, BTreeMap::new())
        .await
        .unwrap();
    restored.start_restored();
    place.cluster = restored;
    place
        .cluster
        .psql("postgres", "UPDATE a SET n = 1 WHERE i < 1000");
    let second = place.backup().await;
    assert!(second.manifest.start_timeline > first.manifest.start_timeline);
    assert!(reused(&second) && new_bytes(&second) < new_bytes(&first) / 2);
    place.assert_is_now(&second).await;
}

/// As a prune would on a host that takes the lease for expired.
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_whose_packs_are_removed_under_it_fails_and_leaves_nothing() {
    let place = require!(Place::new(17, true).await);
    let first = place.backup().await;
    let slow = BackupOptions {
        rate_kib_max: Some(4096),
        ..place.options.clone()
    };
    let removing = async {
        let mut session = session(&place.cluster, "postgres").await;
        let sending = "SELECT 1 FROM pg_stat_progress_basebackup
            WHERE phase = 'streaming database files' AND backup_streamed > 1000000";
        while session.query(sending).await.unwrap().is_empty() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        let mut references = place.repository.references(BackupKind::Base).await.unwrap();
        place.repository.remove(&first.id, &mut references).await.unwrap();
    };
    let (made, ()) = tokio::join!(backup_with(&place.repository, &place.cluster, &slow), removing);
    let error = made.unwrap_err();
    assert!(matches!(error, PhysicalError::PacksMissing { .. }), "{error}");
    let there = place.repository.backups(BackupKind::Base).await.unwrap();
    assert!(there.iter().all(|entry| !entry.state.is_there()), "{there:?}");
    assert_eq!(place.packs().await, BTreeSet::new());
    let next = place.backup().await;
    assert!(!reused(&next));
    place.assert_is_now(&next).await;
}
