//! What docs/FORMAT.md says of base backups is true and enough: a reader in another language, written from it alone, gets the
//! same files out as a restore.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use pgkeep_physical::BackupReport;
use pgkeep_physical::restore::RecoveryTarget;
use pgkeep_repository::Repository;
use pgkeep_testkit::requirements::tool;
use pgkeep_testkit::{Cluster, require, run, server_user};

use super::incremental::with_cache;
use super::support::{backup_with, repository, restore, secret, server};

const READER: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../tests/reader/pgkeep_base_reader.py"
);

/// What a restore adds or changes, and what the reader doesn't make.
const OF_A_RESTORE: [&str; 4] = [
    "pgkeep_wal",
    "postgresql.auto.conf",
    "recovery.signal",
    "tablespace_map",
];

/// Every file and directory: mode and a hash of the contents.
fn files(root: &Path, below: &Path, found: &mut BTreeMap<PathBuf, (u32, Option<blake3::Hash>)>) {
    for entry in fs::read_dir(below).unwrap() {
        let path = entry.unwrap().path();
        let name = path.strip_prefix(root).unwrap().to_owned();
        if OF_A_RESTORE.iter().any(|known| name.starts_with(known)) {
            continue;
        }
        let metadata = fs::metadata(&path).unwrap();
        let hash = metadata
            .is_file()
            .then(|| blake3::hash(&fs::read(&path).unwrap()));
        if metadata.is_dir() {
            files(root, &path, found);
        }
        // The label comes from the manifest, with no mode of its own.
        let mode = match name.ends_with("backup_label") {
            true => 0,
            false => metadata.permissions().mode() & 0o777,
        };
        found.insert(name, (mode, hash));
    }
}

fn all_files(root: &Path) -> BTreeMap<PathBuf, (u32, Option<blake3::Hash>)> {
    let mut found = BTreeMap::new();
    files(root, root, &mut found);
    found
}

/// Runs the reader, with the programs in a directory.
fn read(tools: &str, arguments: &[&Path], key: &Path) {
    let path = format!("{tools}:{}", std::env::var("PATH").unwrap());
    run(Command::new("python3")
        .args(["-B", READER])
        .args(arguments)
        .arg("--identity")
        .arg(key)
        .env("PATH", path));
}

/// A backup that refers to another one's packs.
async fn second(repository: &Repository, origin: &Cluster, folder: &Path) -> BackupReport {
    let options = with_cache(&folder.join("cache"));
    backup_with(repository, origin, &options).await.unwrap();
    origin.psql(
        "postgres",
        "UPDATE a SET i = -i WHERE i % 1000 = 0; CREATE TABLE c AS SELECT 2 i",
    );
    let report = backup_with(repository, origin, &options).await.unwrap();
    assert!(report.manifest.totals.reused_objects > 0);
    report
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_in_another_language_gets_every_file_out() {
    let tools = require!(tool("age")).parent().unwrap().display().to_string();
    let _ = (require!(tool("zstd")), require!(tool("b3sum")));
    for encrypted in [true, false] {
        let origin = require!(Cluster::start(server(if encrypted { 16 } else { 18 })));
        let space = origin.socket_dir().join("space");
        fs::create_dir(&space).unwrap();
        if let Some((user, group)) = server_user() {
            chown(&space, Some(user.as_raw()), Some(group.as_raw())).unwrap();
        }
        origin.psql(
            "postgres",
            &format!("CREATE TABLESPACE t LOCATION '{}'", space.display()),
        );
        origin.psql(
            "postgres",
            "CREATE TABLE a TABLESPACE t AS SELECT i, md5(i::text) FROM generate_series(1, 30000) i;
             CREATE TABLE b AS SELECT 1 i; CREATE TABLE sparse AS SELECT repeat('x', 100) FROM generate_series(1, 90000)",
        );
        // Pages of zeros, as a crash leaves them.
        origin.psql(
            "postgres",
            "DELETE FROM sparse; VACUUM (TRUNCATE false) sparse; CHECKPOINT",
        );
        let oid: u32 = origin
            .psql("postgres", "SELECT oid FROM pg_tablespace WHERE spcname = 't'")
            .parse()
            .unwrap();
        let folder = tempfile::tempdir().unwrap();
        let stored = folder.path().join("repository");
        let repository = repository(&stored, encrypted, None).await;
        let key = folder.path().join("key");
        fs::write(&key, secret(&repository)).unwrap();
        let report = second(&repository, &origin, folder.path()).await;
        let id = report.id.to_string();

        let out = folder.path().join("out");
        read(
            &tools,
            &[
                &stored,
                Path::new("extract"),
                Path::new(&id),
                Path::new("--into"),
                &out,
            ],
            &key,
        );

        let restored = Cluster::unmade(origin.pg_bin(), origin.major());
        let place = restored.socket_dir().join("space");
        let tablespaces = BTreeMap::from([(oid, place.clone())]);
        restore(
            &repository,
            &id,
            &restored,
            RecoveryTarget::BackupEnd,
            tablespaces,
        )
        .await
        .unwrap();
        let expected = all_files(&restored.data_dir());
        assert!(expected.len() > 900, "{}", expected.len());
        assert_eq!(all_files(&out.join("data")), expected);
        let expected = all_files(&place);
        assert!(expected.len() >= 3, "{expected:?}");
        assert_eq!(
            all_files(&out.join("tablespaces").join(oid.to_string())),
            expected
        );
    }
}
