//! What is exported is a base backup to PostgreSQL's own programs, which know nothing of pgkeep.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use pgkeep_base::Classified;
use pgkeep_physical::PhysicalError;
use pgkeep_physical::export::{ExportReport, export};
use pgkeep_physical::restore::{self, Existing, RecoveryTarget, RestoreOptions, TablespaceName};
use pgkeep_repository::Repository;
use pgkeep_testkit::{Cluster, require, requirements, server_user};

use super::incremental::with_cache;
use super::support::{LIMIT, backup, backup_with, check_pages, contents, repository, server};

async fn export_to(
    repository: &Repository,
    directory: PathBuf,
    tablespaces: BTreeMap<TablespaceName, PathBuf>,
) -> Result<ExportReport, PhysicalError> {
    let options = RestoreOptions {
        directory,
        tablespaces,
        target: RecoveryTarget::BackupEnd,
        jobs: 2,
        existing: Existing::Refuse,
    };
    let plan = restore::plan(repository, "latest", &options).await?;
    let progress = Arc::default();
    let exporting = export(repository, &plan, &progress, std::future::pending());
    tokio::time::timeout(LIMIT, exporting)
        .await
        .expect("the export comes to an end")
}

/// Whether the server's own program takes it for whole, and what it says.
fn verify(cluster: &Cluster) -> (bool, String) {
    let mut command = cluster.client_command("pg_verifybackup");
    let done = command.arg(cluster.data_dir()).output().unwrap();
    let told = [done.stdout, done.stderr].concat();
    (done.status.success(), String::from_utf8_lossy(&told).into_owned())
}

/// A server with something in a tablespace, and where that is.
fn origin(major: u32) -> Result<(Cluster, PathBuf), requirements::Missing> {
    let origin = Cluster::start(server(major))?;
    let place = origin.socket_dir().join("a tablespace");
    std::fs::create_dir(&place).unwrap();
    if let Some((user, group)) = server_user() {
        std::os::unix::fs::chown(&place, Some(user.as_raw()), Some(group.as_raw())).unwrap();
    }
    origin.psql(
        "postgres",
        &format!("CREATE TABLESPACE t LOCATION '{}'", place.display()),
    );
    let database = "odd \"name\" ü";
    origin.create_database(database);
    origin.psql(
        database,
        "CREATE TABLE a (i int PRIMARY KEY, t text) TABLESPACE t; CREATE UNLOGGED TABLE u AS SELECT 1;
         INSERT INTO a SELECT i, md5(i::text) FROM generate_series(1, 20000) i; CREATE TABLE b AS TABLE a",
    );
    Ok((origin, place))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_is_verified_and_started_without_pgkeep() {
    for major in requirements::MAJORS {
        let (origin, place) = require!(origin(major));
        let folder = tempfile::tempdir().unwrap();
        let repository = repository(folder.path(), major % 2 == 0, None).await;
        // One that refers to another one's packs.
        let options = with_cache(&folder.path().join("cache"));
        backup_with(&repository, &origin, &options).await.unwrap();
        origin.psql("postgres", "CREATE TABLE later AS SELECT 1 i");
        let report = backup_with(&repository, &origin, &options).await.unwrap();
        assert!(report.manifest.totals.reused_objects > 0);
        let expected = contents(&origin).await;

        let mut exported = Cluster::unmade(origin.pg_bin(), origin.major());
        let moved = exported.socket_dir().join("moved");
        let by_location = TablespaceName::Location(place.display().to_string());
        let tablespaces = BTreeMap::from([(by_location.clone(), moved.clone())]);
        let report = export_to(&repository, exported.data_dir(), tablespaces.clone())
            .await
            .unwrap();
        assert!(
            report.attention.is_empty() && report.segments > 0 && report.files > 900,
            "{report:?}"
        );
        let (good, told) = verify(&exported);
        assert!(good, "{major}: {told}");

        // It is told where somebody changes something, in a tablespace too.
        let file = moved.read_dir().unwrap().next().unwrap().unwrap().path();
        let file = walk(file)
            .into_iter()
            .find(|path| path.metadata().unwrap().len() > 8192)
            .unwrap();
        let handle = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(&file)
            .unwrap();
        let mut byte = [0];
        handle.read_exact_at(&mut byte, 5000).unwrap();
        handle.write_all_at(&[byte[0] ^ 1], 5000).unwrap();
        let (good, told) = verify(&exported);
        assert!(!good && told.contains("pg_tblspc/"), "{told}");
        handle.write_all_at(&byte, 5000).unwrap();

        // A place that is taken is refused, and stays as it is.
        let refused = export_to(&repository, exported.data_dir(), tablespaces)
            .await
            .unwrap_err();
        assert!(
            matches!(refused, PhysicalError::Refused { .. }) && refused.hint().is_some(),
            "{refused}"
        );
        assert!(verify(&exported).0);

        let names: Vec<String> = exported
            .data_dir()
            .read_dir()
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        assert!(
            !names
                .iter()
                .any(|name| name.contains("pgkeep") || name.contains("recovery")),
            "{names:?}"
        );
        exported.start_restored();
        assert_eq!(contents(&exported).await, expected, "{major}");
        check_pages(&mut exported);
    }
}

fn walk(path: PathBuf) -> Vec<PathBuf> {
    if !path.is_dir() {
        return vec![path];
    }
    path.read_dir()
        .unwrap()
        .flat_map(|entry| walk(entry.unwrap().path()))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tablespace_goes_to_one_place() {
    let origin = require!(Cluster::start(server(16)));
    let folder = tempfile::tempdir().unwrap();
    let repository = repository(folder.path(), false, None).await;
    backup(&repository, &origin).await.unwrap();
    let into = Cluster::unmade(origin.pg_bin(), origin.major());
    let unknown = BTreeMap::from([(
        TablespaceName::Location("/nowhere".to_owned()),
        into.socket_dir().join("a"),
    )]);
    let refused = export_to(&repository, into.data_dir(), unknown)
        .await
        .unwrap_err();
    assert!(matches!(refused, PhysicalError::Usage { .. }), "{refused}");
    assert!(
        refused.to_string().contains("/nowhere") && !into.data_dir().exists(),
        "{refused}"
    );
}
