//! Incremental dumps: what is unchanged isn't stored again, no change is ever missed, and no dump stands in another's way.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "helpers of tests are tests"
)]

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use jiff::SignedDuration;
use pgkeep_base::{BackupId, BackupKind};
use pgkeep_dump::manifest::Relation;
use pgkeep_dump::verify::{self, VerifyDepth, VerifyOptions};
use pgkeep_dump::{DumpError, DumpOptions, DumpReport, Progress, ReuseOptions, read_manifest};
use pgkeep_repository::backups::BackupState;
use pgkeep_repository::destinations::Destinations;
use pgkeep_repository::encryption::Encryption;
use pgkeep_repository::lease::Lease;
use pgkeep_repository::{Access, Repository, copy, keys, layout};
use pgkeep_store::{Store, StoreOptions};
use pgkeep_testkit::compare::{Inventory, InventoryOptions, assert_same};
use pgkeep_testkit::seed;
use pgkeep_testkit::{Cluster, ClusterOptions, require};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const CHUNKS: usize = 100;
const LEASE: Duration = Duration::from_secs(60);

/// A hypertable with a chunk for each of a hundred days, and a table of more than 8 MiB.
const SCHEMA: &str = "
    CREATE EXTENSION timescaledb;
    CREATE TABLE events (at timestamptz NOT NULL, player int, score numeric DEFAULT 1, note text);
    SELECT create_hypertable('events', 'at', chunk_time_interval => interval '1 day') \\g /dev/null
    INSERT INTO events SELECT '2026-01-01 00:00+00'::timestamptz + i * interval '1 hour', i % 7, i, repeat('x', i % 40)
      FROM generate_series(0, 2399) i;
    CREATE TABLE large AS SELECT n, repeat(md5(n::text), 10) AS text FROM generate_series(1, 30000) n;
    CREATE TABLE small AS SELECT n FROM generate_series(1, 10) n";

fn start() -> Result<Cluster, pgkeep_testkit::requirements::Missing> {
    let cluster = Cluster::start(ClusterOptions::default().timescaledb())?;
    cluster.create_database("app");
    cluster.psql("app", SCHEMA);
    Ok(cluster)
}

fn options(cluster: &Cluster) -> DumpOptions {
    DumpOptions {
        databases: vec!["app".to_owned()],
        reuse: Some(ReuseOptions {
            takes_over: true,
            max_age: SignedDuration::from_hours(24),
            cache_directory: None,
        }),
        ..common::dump_options(cluster)
    }
}

async fn dump(repository: &Repository, cluster: &Cluster) -> DumpReport {
    common::dump(repository, cluster, &options(cluster))
        .await
        .unwrap()
}

fn relations(report: &DumpReport) -> BTreeMap<String, &Relation> {
    let relations = &report.manifest.databases[0].relations;
    relations
        .iter()
        .map(|relation| (relation.name.to_string(), relation))
        .collect()
}

/// The tables whose rows were stored again, small ones apart.
fn stored_anew(report: &DumpReport) -> Vec<String> {
    let database = &report.manifest.databases[0];
    let own = database
        .data
        .iter()
        .filter(|data| data.segments.len() == 1 && layout::reference(&data.object.name).is_none());
    let relation = |place: u32| &database.relations[place as usize];
    own.map(|data| relation(data.segments[0].relation))
        .filter(|relation| relation.disk_bytes.is_some())
        .map(|relation| relation.name.to_string())
        .collect()
}

async fn assert_whole(repository: &Repository, ids: &[&BackupId]) {
    let whole = common::whole_dumps(repository).await;
    assert_eq!(whole.iter().collect::<Vec<_>>(), ids);
}

async fn remove(repository: &Repository, id: &BackupId) {
    let mut references = repository.references(BackupKind::Dump).await.unwrap();
    repository.remove(id, &mut references).await.unwrap();
}

fn inventory(cluster: &Cluster) -> Inventory {
    Inventory::of_database(cluster, "app", &InventoryOptions::default())
}

async fn assert_restores(repository: &Repository, id: &BackupId, source: &Cluster, destination: &Cluster) {
    let options = common::restore_options(destination);
    common::restore(repository, id, destination, &options)
        .await
        .unwrap();
    assert_same(&inventory(source), &inventory(destination));
}

/// An object is taken over only if every repository of the dump has it.
#[tokio::test(flavor = "multi_thread")]
async fn several_repositories_take_over_what_all_of_them_have() {
    let cluster = require!(start());
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (a, b) = (
        common::repository(one.path(), false).await,
        common::repository(other.path(), false).await,
    );
    let into_both = async || {
        let opened = [&a, &b].map(|repository| (repository.store().url().to_owned(), Ok(repository.clone())));
        common::dump_into(
            Destinations::new(opened.into()).unwrap(),
            &cluster,
            &options(&cluster),
        )
        .await
        .unwrap()
    };
    let all = CHUNKS as u64 + 1;
    let only_here = dump(&a, &cluster).await;
    let first = into_both().await;
    assert_eq!(
        first.manifest.totals.reused_objects, 0,
        "the second has nothing yet"
    );
    let second = into_both().await;
    assert_eq!(second.manifest.totals.reused_objects, all);
    // Newer, and not in both: nothing is taken over from it, nor given up for it.
    let newer = dump(&a, &cluster).await;
    let third = into_both().await;
    assert_eq!(third.manifest.totals.reused_objects, all);
    assert_whole(&a, &[&only_here.id, &first.id, &second.id, &newer.id, &third.id]).await;
    assert_whole(&b, &[&first.id, &second.id, &third.id]).await;
    remove(&a, &first.id).await;
    remove(&b, &first.id).await;
    let destination = require!(Cluster::start(ClusterOptions::default().timescaledb()));
    assert_restores(&b, &third.id, &cluster, &destination).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_hundred_chunks_of_which_two_have_changed_two_are_stored() {
    let cluster = require!(start());
    let folder = tempfile::tempdir().unwrap();
    let repository = common::repository(folder.path(), true).await;
    let first = dump(&repository, &cluster).await;
    assert_eq!(first.manifest.totals.reused_objects, 0);
    cluster.psql(
        "app",
        "INSERT INTO events VALUES ('2026-04-10 12:00+00', 1, 1, 'late');
         UPDATE events SET score = score + 1 WHERE at >= '2026-02-01 00:00+00' AND at < '2026-02-02 00:00+00'",
    );
    let second = dump(&repository, &cluster).await;
    let totals = second.manifest.totals;
    let chunks = relations(&second)
        .keys()
        .filter(|name| name.starts_with("_timescaledb_internal._hyper"))
        .count();
    assert_eq!(chunks, CHUNKS);
    assert_eq!(stored_anew(&second).len(), 2, "{:?}", stored_anew(&second));
    // The large table, too.
    assert_eq!(totals.reused_objects, CHUNKS as u64 - 2 + 1);
    assert!(totals.stored_bytes - totals.reused_bytes < first.manifest.totals.stored_bytes / 3);
    // Objects of the first, not of the second by way of it.
    let third = dump(&repository, &cluster).await;
    let owners = third.manifest.databases[0]
        .data
        .iter()
        .filter_map(|data| layout::reference(&data.object.name).map(|(owner, _)| owner));
    assert_eq!(owners.filter(|owner| *owner == first.id).count(), CHUNKS - 2 + 1);
    assert_eq!(stored_anew(&third), Vec::<String>::new());
    assert_whole(&repository, &[&first.id, &second.id, &third.id]).await;

    let destination = require!(Cluster::start(ClusterOptions::default().timescaledb()));
    assert_restores(&repository, &third.id, &cluster, &destination).await;
}

/// Any dump goes without harm to the others, and with the last that needs them its objects go, too.
#[tokio::test(flavor = "multi_thread")]
async fn what_others_need_of_a_removed_dump_stays_until_they_go() {
    let cluster = require!(start());
    let folder = tempfile::tempdir().unwrap();
    let repository = common::repository(folder.path(), false).await;
    let first = dump(&repository, &cluster).await.id;
    let second = dump(&repository, &cluster).await.id;
    cluster.psql(
        "app",
        "UPDATE events SET score = 0 WHERE at < '2026-01-02 00:00+00'",
    );
    let third = dump(&repository, &cluster).await.id;
    let objects = async |id: &BackupId| {
        let stored = repository.store().list(&format!("test/dump/{id}/")).await;
        stored.unwrap().len()
    };
    let before = objects(&first).await;
    remove(&repository, &first).await;
    assert_eq!(repository.state(&first).await.unwrap(), BackupState::Swept);
    // Its manifest, lists and scripts, its schema and its small tables have gone.
    let left = objects(&first).await;
    assert!(left < before - 5 && left > CHUNKS, "{left} of {before}");
    assert_whole(&repository, &[&second, &third]).await;
    // As a prune that was killed between the manifest and the tombstone leaves it.
    let tombstone = folder.path().join(format!("test/dump/{first}/manifest"));
    std::fs::remove_file(&tombstone).unwrap();
    for _ in 0..2 {
        repository.sweep(BackupKind::Dump).await.unwrap();
        assert!(tombstone.exists());
        assert_eq!(objects(&first).await, left);
    }
    assert_whole(&repository, &[&second, &third]).await;
    remove(&repository, &second).await;
    repository.sweep(BackupKind::Dump).await.unwrap();
    assert_eq!(objects(&second).await, 0);
    // The chunk that was updated isn't needed by the third.
    assert_eq!(objects(&first).await, left - 1);
    assert_whole(&repository, &[&third]).await;
    remove(&repository, &third).await;
    repository.sweep(BackupKind::Dump).await.unwrap();
    assert_eq!(objects(&first).await, 1, "the tombstone alone");
}

/// A dump whose list can't be read may need anything that is older.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_damaged_dump_may_need_stays() {
    let cluster = require!(start());
    let folder = tempfile::tempdir().unwrap();
    let repository = common::repository(folder.path(), false).await;
    let first = dump(&repository, &cluster).await.id;
    let second = dump(&repository, &cluster).await.id;
    let list = folder.path().join(format!("test/dump/{second}/checksums.b3"));
    let text = std::fs::read(&list).unwrap();
    std::fs::write(&list, "damaged").unwrap();
    remove(&repository, &first).await;
    repository.sweep(BackupKind::Dump).await.unwrap();
    std::fs::write(&list, text).unwrap();
    assert_whole(&repository, &[&second]).await;
}

async fn take_copy(source: &Repository, destination: &Repository, id: &BackupId) {
    let lease = Lease::acquire(destination, "copy", LEASE).await.unwrap();
    let original = copy::Original::read(source, id).await.unwrap();
    copy::copy(&original, destination, &lease, |_| {}).await.unwrap();
    lease.release().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_takes_along_what_lies_in_other_folders() {
    let cluster = require!(start());
    let folders = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let source = common::repository(folders[0].path(), false).await;
    let destination = common::repository(folders[1].path(), false).await;
    let first = dump(&source, &cluster).await.id;
    let second = dump(&source, &cluster).await.id;
    take_copy(&source, &destination, &second).await;
    // No unfinished dump, and nothing to be swept.
    assert_eq!(destination.state(&first).await.unwrap(), BackupState::Swept);
    assert_eq!(destination.sweep(BackupKind::Dump).await.unwrap().backups, []);
    assert_whole(&destination, &[&second]).await;
    take_copy(&source, &destination, &first).await;
    assert_whole(&destination, &[&first, &second]).await;
    remove(&destination, &first).await;
    assert_whole(&destination, &[&second]).await;
}

/// A prune that holds the lease for expired removes the dump before while this one takes its objects over.
#[tokio::test(flavor = "multi_thread")]
async fn a_dump_whose_base_is_removed_under_it_fails_and_leaves_nothing() {
    let cluster = require!(start());
    let folder = tempfile::tempdir().unwrap();
    let repository = common::repository(folder.path(), false).await;
    let first = dump(&repository, &cluster).await.id;
    let mut holder = cluster.session("app");
    holder.run("BEGIN; LOCK TABLE small IN ACCESS EXCLUSIVE MODE;");
    let running = common::begin_dump(&repository, &cluster, &options(&cluster));
    common::wait_for_waiter(&cluster, "app", "small", "AccessShareLock");
    remove(&repository, &first).await;
    holder.run("COMMIT;");
    let error = running.await.unwrap().unwrap_err();
    assert!(matches!(error, DumpError::ObjectsMissing { .. }), "{error}");
    assert_whole(&repository, &[]).await;
    let third = dump(&repository, &cluster).await;
    assert_eq!(third.manifest.totals.reused_objects, 0);
    assert_whole(&repository, &[&third.id]).await;
}

async fn write_only(folder: &Path, recipient: &keys::Recipient) -> Repository {
    let url = format!("file://{}", folder.display());
    let store = Store::open(&url, &StoreOptions::default()).await.unwrap();
    let access = Access {
        encryption: Encryption::Age {
            recipients: vec![recipient.clone()],
        },
        identities: Vec::new(),
        compression_level: 3,
    };
    Repository::open_or_create(store, "test", access).await.unwrap()
}

/// A host without the private key knows the last manifest from its cache, which may be deleted.
#[tokio::test(flavor = "multi_thread")]
async fn without_the_key_the_cache_tells_and_other_keys_get_objects_of_their_own() {
    let cluster = require!(start());
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("cache");
    let (_, recipient) = keys::generate();
    let repository = write_only(&folder.path().join("repository"), &recipient).await;
    let mut options = options(&cluster);
    let reuse = options.reuse.as_mut().unwrap();
    reuse.cache_directory = Some(cache.clone());
    let reused = async |repository: &Repository, options: &DumpOptions| {
        let report = common::dump(repository, &cluster, options).await.unwrap();
        report.manifest.totals.reused_objects
    };
    assert_eq!(reused(&repository, &options).await, 0);
    assert!(reused(&repository, &options).await > 0);
    for file in common::names_in(&cache) {
        std::fs::write(cache.join(file), "{").unwrap();
    }
    assert_eq!(reused(&repository, &options).await, 0, "the cache is damaged");
    assert!(reused(&repository, &options).await > 0);
    std::fs::remove_dir_all(&cache).unwrap();
    assert_eq!(reused(&repository, &options).await, 0, "the cache is gone");
    let (_, other) = keys::generate();
    let repository = write_only(&folder.path().join("repository"), &other).await;
    assert_eq!(reused(&repository, &options).await, 0, "for somebody else");
    assert!(reused(&repository, &options).await > 0);
    let mut partial = options.clone();
    partial.filters.tables = vec!["small".to_owned()];
    reused(&repository, &partial).await;
    assert!(
        reused(&repository, &options).await > 0,
        "each has a file of its own"
    );
    // A full dump is one that the next takes objects over from.
    options.reuse.as_mut().unwrap().takes_over = false;
    let full = common::dump(&repository, &cluster, &options).await.unwrap();
    assert_eq!(full.manifest.totals.reused_objects, 0);
    options.reuse.as_mut().unwrap().takes_over = true;
    let after = common::dump(&repository, &cluster, &options).await.unwrap();
    let data = after.manifest.databases[0].data.iter();
    let mut owners = data.filter_map(|data| layout::reference(&data.object.name));
    assert!(owners.all(|(owner, _)| owner == full.id));
    assert!(after.manifest.totals.reused_objects > 0);
    options.reuse.as_mut().unwrap().max_age = SignedDuration::ZERO;
    assert_eq!(reused(&repository, &options).await, 0, "all is too old");
}

/// An object of the right size and with other bytes is found by a verification alone; from then on nothing of its dump, nor
/// of those that the dump refers to, goes into new ones.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_verification_found_damaged_is_stored_anew() {
    let cluster = require!(start());
    let folder = tempfile::tempdir().unwrap();
    let repository = common::repository(folder.path(), false).await;
    let first = dump(&repository, &cluster).await;
    let second = dump(&repository, &cluster).await.id;
    let mut objects = first.manifest.databases[0]
        .data
        .iter()
        .map(|data| &data.object.name);
    let object = objects.find(|name| name.contains(".copy")).unwrap();
    let file = folder.path().join(format!("test/dump/{}/{object}", first.id));
    let mut bytes = std::fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let stored = VerifyOptions {
        depth: VerifyDepth::Stored,
        sample: None,
        jobs: 2,
    };
    let verify = async |id: &BackupId| {
        let report = verify::verify(&repository, id, &stored, &Progress::default()).await;
        report.unwrap().passed()
    };
    assert!(!verify(&second).await);
    let third = dump(&repository, &cluster).await;
    assert_eq!(third.manifest.totals.reused_objects, 0);
    assert!(verify(&third.id).await);
    let fourth = dump(&repository, &cluster).await;
    assert!(fourth.manifest.totals.reused_objects > 0);
    assert!(verify(&fourth.id).await);
    // A host that may not read which objects the damaged dump refers to dumps all the same: it trusts nothing older.
    let list = folder.path().join(format!("test/dump/{second}/checksums.b3"));
    std::fs::remove_file(&list).unwrap();
    std::os::unix::fs::symlink("checksums.b3", &list).unwrap();
    let fifth = dump(&repository, &cluster).await;
    assert!(fifth.manifest.totals.reused_objects > 0);
}

/// What SQL can do to a chunk or a table. `{}` is a day from 0 to 99.
const CHANGES: [&str; 16] = [
    "INSERT INTO events SELECT '2026-01-01 00:30+00'::timestamptz + {} * interval '1 day', 1, 1, 'new'",
    "UPDATE events SET score = score + 1 WHERE at = '2026-01-01 05:00+00'::timestamptz + {} * interval '1 day'",
    "DELETE FROM events WHERE at = '2026-01-01 06:00+00'::timestamptz + {} * interval '1 day'",
    "BEGIN; DELETE FROM events WHERE at = '2026-01-01 07:00+00'::timestamptz + {} * interval '1 day';
     INSERT INTO events VALUES ('2026-01-01 07:00+00'::timestamptz + {} * interval '1 day', 3, 3, 'swapped'); COMMIT",
    "SELECT format('TRUNCATE %s', show_chunks) FROM show_chunks('events') OFFSET {} % 50 LIMIT 1 \\gexec",
    "SELECT format('VACUUM FULL %s', show_chunks) FROM show_chunks('events') OFFSET {} % 50 LIMIT 1 \\gexec",
    "SELECT format('CLUSTER %s USING %I', c.oid::regclass, i.relname) FROM show_chunks('events') AS s(oid)
       JOIN pg_class c USING (oid) JOIN pg_index x ON x.indrelid = c.oid JOIN pg_class i ON i.oid = x.indexrelid
       OFFSET {} % 50 LIMIT 1 \\gexec",
    "ALTER TABLE events ADD COLUMN added_{} int DEFAULT {}",
    "ALTER TABLE events ALTER COLUMN score SET DEFAULT {}",
    "ALTER TABLE events ALTER COLUMN score TYPE double precision",
    "ALTER TABLE events ALTER COLUMN score TYPE numeric",
    "ALTER TABLE events RENAME COLUMN note TO note_{}",
    "SELECT format('ALTER TABLE %s RENAME TO renamed_%s', show_chunks, {}) FROM show_chunks('events')
       OFFSET {} % 50 LIMIT 1 \\gexec",
    "UPDATE large SET text = reverse(text) WHERE n = 100 + {}",
    "ALTER TABLE large ALTER COLUMN text TYPE varchar",
    "SELECT drop_chunks('events', '2026-01-01 00:00+00'::timestamptz + {} % 5 * interval '1 day') \\g /dev/null",
];

/// And to compressed ones.
const COMMUNITY_CHANGES: [&str; 4] = [
    "SELECT compress_chunk(show_chunks, true) FROM show_chunks('events') OFFSET {} % 50 LIMIT 1 \\g /dev/null",
    "SELECT decompress_chunk(show_chunks, true) FROM show_chunks('events') OFFSET {} % 50 LIMIT 1 \\g /dev/null",
    "DELETE FROM events WHERE player = {} % 7 AND at >= '2026-01-10 00:00+00' AND at < '2026-01-20 00:00+00'",
    "UPDATE events SET score = 7 WHERE at = '2026-01-01 09:00+00'::timestamptz + {} * interval '1 day'",
];

/// Ten dumps with changes between: each holds, relation by relation, just what a full dump holds, and is whole. The tenth
/// restores.
async fn no_change_is_missed(cluster: &Cluster, destination: &Cluster, changes: &[&str]) {
    let seed = seed();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let folders = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let incremental = common::repository(folders[0].path(), false).await;
    let full = common::repository(folders[1].path(), false).await;
    let mut ids = vec![dump(&incremental, cluster).await.id];
    let mut reused = 0;
    for round in 0..9 {
        let mut made = Vec::new();
        for _ in 0..random.random_range(1..6) {
            let change = changes[random.random_range(0..changes.len())];
            let change = change.replace("{}", &random.random_range(0..100).to_string());
            // Not everything goes with everything: what is refused changes nothing.
            made.push(cluster.try_psql("app", &change).map(|_| change));
        }
        let ours = dump(&incremental, cluster).await;
        let mut without = options(cluster);
        without.reuse = None;
        let theirs = common::dump(&full, cluster, &without).await.unwrap();
        let (ours_by_name, theirs_by_name) = (relations(&ours), relations(&theirs));
        assert!(ours_by_name.keys().eq(theirs_by_name.keys()), "seed {seed}");
        for (name, relation) in &ours_by_name {
            let expected = theirs_by_name[name];
            assert_eq!(
                (&relation.hash, relation.rows, &relation.columns),
                (&expected.hash, expected.rows, &expected.columns),
                "seed {seed}, round {round}: {name} after {made:#?}"
            );
        }
        reused += ours.manifest.totals.reused_objects;
        ids.push(ours.id);
    }
    assert!(reused > 0, "seed {seed}: nothing was ever taken over");
    assert_whole(&incremental, &ids.iter().collect::<Vec<_>>()).await;
    for id in &ids[..9] {
        remove(&incremental, id).await;
    }
    assert_whole(&incremental, &[&ids[9]]).await;
    assert_restores(&incremental, &ids[9], cluster, destination).await;
    let manifest = read_manifest(&incremental, &ids[9]).await.unwrap();
    println!("the tenth refers to {} objects", manifest.totals.reused_objects);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_change_is_ever_missed() {
    let cluster = require!(start());
    let destination = require!(Cluster::start(ClusterOptions::default().timescaledb()));
    no_change_is_missed(&cluster, &destination, &CHANGES).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_change_of_compressed_chunks_is_ever_missed() {
    for server in require!(pgkeep_testkit::requirements::community(None)) {
        let start = || Cluster::start_with(&server.bin, &ClusterOptions::new(server.major).timescaledb());
        let (cluster, destination) = (start(), start());
        cluster.create_database("app");
        cluster.psql("app", SCHEMA);
        cluster.psql(
            "app",
            "ALTER TABLE events SET (timescaledb.compress, timescaledb.compress_segmentby = 'player')",
        );
        let changes: Vec<&str> = CHANGES[..4].iter().chain(&COMMUNITY_CHANGES).copied().collect();
        no_change_is_missed(&cluster, &destination, &changes).await;
    }
}
