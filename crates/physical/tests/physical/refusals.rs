//! What is refused, and leaves everything as it was.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pgkeep_base::{Classified, RetryClass};
use pgkeep_physical::restore::{self, Existing, RecoveryTarget, RestoreOptions};
use pgkeep_physical::{PhysicalError, verify};
use pgkeep_repository::{Access, Repository, keys};
use pgkeep_testkit::{Cluster, require, server_user};

use super::support::{backup, by_oid, repository, server};

fn options(directory: &Path) -> RestoreOptions {
    RestoreOptions {
        directory: directory.to_owned(),
        tablespaces: BTreeMap::new(),
        target: RecoveryTarget::BackupEnd,
        jobs: 2,
        existing: Existing::Refuse,
    }
}

/// Names and contents of everything below a directory.
fn everything(directory: &Path) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.is_symlink() {
            all.extend(everything(&path));
            all.insert(path, None);
        } else {
            all.insert(path.clone(), fs::read(&path).ok());
        }
    }
    all
}

async fn plan_error(repository: &Repository, options: &RestoreOptions) -> PhysicalError {
    restore::plan(repository, "latest", options).await.unwrap_err()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_place_in_use_a_wrong_key_and_missing_tablespaces_are_refused_before_anything_is_touched() {
    let origin = require!(Cluster::start(server(18)));
    let space = origin.socket_dir().join("space");
    fs::create_dir(&space).unwrap();
    if let Some((user, group)) = server_user() {
        std::os::unix::fs::chown(&space, Some(user.as_raw()), Some(group.as_raw())).unwrap();
    }
    origin.psql(
        "postgres",
        &format!("CREATE TABLESPACE t LOCATION '{}'", space.display()),
    );
    let oid: u32 = origin
        .psql("postgres", "SELECT oid FROM pg_tablespace WHERE spcname = 't'")
        .parse()
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let repository = repository(&folder.path().join("repository"), true, None).await;
    backup(&repository, &origin).await.unwrap();

    // A live server's directory, one with any file, and a file in its place.
    let strange = folder.path().join("strange");
    fs::create_dir(&strange).unwrap();
    fs::write(strange.join("letter.txt"), "dear").unwrap();
    for place in [origin.data_dir(), strange.clone(), strange.join("letter.txt")] {
        let error = plan_error(&repository, &options(&place)).await;
        assert_eq!(error.retry_class(), RetryClass::Refused, "{error}");
        assert!(
            error.to_string().contains(&place.display().to_string()),
            "{error}"
        );
    }
    assert_eq!(everything(&strange).len(), 1);
    assert_eq!(origin.psql("postgres", "SELECT 1"), "1");

    let fresh = folder.path().join("fresh");
    let error = plan_error(&repository, &options(&fresh)).await;
    assert_eq!(error.retry_class(), RetryClass::Usage, "{error}");
    let hint = error.hint().unwrap().to_string();
    assert!(hint.contains(&format!("--tablespace {oid}=")), "{hint}");
    for (tablespaces, said) in [
        (BTreeMap::from([(oid, strange.clone())]), "not empty"),
        (
            BTreeMap::from([(oid, fresh.join("inside"))]),
            "lie in one another",
        ),
        (
            BTreeMap::from([(oid, folder.path().join("t")), (7, folder.path().join("u"))]),
            "no tablespace 7",
        ),
    ] {
        let options = RestoreOptions {
            tablespaces: by_oid(tablespaces),
            ..options(&fresh)
        };
        let error = plan_error(&repository, &options).await;
        assert!(error.to_string().contains(said), "{error}");
    }

    let (other, _) = keys::generate();
    for (identities, said) in [
        (vec![other], "none of the identities"),
        (vec![], "no identity was given"),
    ] {
        let access = Access {
            identities,
            ..repository.access().clone()
        };
        let locked = Repository::open(repository.store().clone(), "test", access)
            .await
            .unwrap();
        let error = plan_error(&locked, &options(&fresh)).await;
        assert!(error.to_string().contains(said) && error.is_locked(), "{error}");
    }
    assert!(!fresh.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_is_named_by_a_verification_and_never_restored() {
    let origin = require!(Cluster::start(server(15)));
    origin.psql(
        "postgres",
        "CREATE TABLE a AS SELECT i, md5(i::text) FROM generate_series(1, 5000) i",
    );
    for encrypted in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        let stored = folder.path().join("repository");
        let repository = repository(&stored, encrypted, None).await;
        let id = backup(&repository, &origin).await.unwrap().id;
        let base = stored.join("test/base").join(id.to_string());
        let sealed: Vec<PathBuf> = everything(&base)
            .into_iter()
            .filter(|(path, contents)| {
                contents.is_some() && !path.ends_with("checksums.b3") && !path.ends_with("summary")
            })
            .map(|(path, _)| path)
            .collect();
        assert!(sealed.len() >= 4, "{sealed:?}");
        for (number, object) in sealed.into_iter().enumerate() {
            let sound = fs::read(&object).unwrap();
            let mut damaged = sound.clone();
            match number % 3 {
                0 => damaged[sound.len() / 2] ^= 1,
                1 => damaged.truncate(sound.len() - 1),
                _ => damaged.clear(),
            }
            let shown = object.display();
            fs::write(&object, &damaged).unwrap();
            let report = verify::verify(&repository, &id, 2, &Arc::default())
                .await
                .unwrap();
            assert!(!report.failures.is_empty(), "{shown}");
            let directory = folder.path().join(format!("restored{number}"));
            match restore::plan(&repository, &id.to_string(), &options(&directory)).await {
                Err(_) => assert!(!directory.exists(), "{shown}"),
                Ok(plan) => {
                    let progress = Arc::default();
                    let restoring = restore::restore(&repository, &plan, &progress, std::future::pending());
                    let error = restoring.await.unwrap_err();
                    assert!(
                        matches!(error, PhysicalError::Unfinished { .. }),
                        "{shown}: {error}"
                    );
                    // No server starts from it, and no other restore takes it.
                    assert!(
                        !directory.join("global/pg_control").exists()
                            && directory.join("pgkeep.restore").exists()
                    );
                    let again = plan_error(&repository, &options(&directory)).await;
                    assert!(again.to_string().contains("stopped half-way"), "{again}");
                }
            }
            fs::write(&object, &sound).unwrap();
        }
        let report = verify::verify(&repository, &id, 2, &Arc::default())
            .await
            .unwrap();
        assert_eq!(report.failures, Vec::<String>::new());
        // Its WAL is part of it.
        fs::remove_dir_all(stored.join("test/wal")).unwrap();
        let report = verify::verify(&repository, &id, 2, &Arc::default())
            .await
            .unwrap();
        assert!(report.failures[0].contains("WAL"), "{:?}", report.failures);
        let error = plan_error(&repository, &options(&folder.path().join("x"))).await;
        assert!(error.to_string().contains("is not all there any more"), "{error}");
    }
}
