//! Copies from folder to folder, interrupted and damaged on purpose.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests")]

mod support;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use pgkeep_base::{BackupId, BackupKind, Classified, RetryClass};
use pgkeep_repository::backups::BackupState;
use pgkeep_repository::copy::{self, CopyError, CopyReport, Original, RepairReport};
use pgkeep_repository::lease::Lease;
use pgkeep_repository::records::Evidence;
use pgkeep_repository::references::References;
use pgkeep_repository::{Repository, RepositoryError};
use support::{Folder, backup, day, incremental, is_whole, record};

const OBJECTS: usize = 12;
/// And `checksums.b3`, and the manifest.
const ALL_OBJECTS: u64 = OBJECTS as u64 + 2;

async fn run(source: &Repository, destination: &Repository, id: &BackupId) -> Result<CopyReport, CopyError> {
    let lease = lease(destination).await;
    let report = match Original::read(source, id).await {
        Ok(original) => copy::copy(&original, destination, &lease, |_| {}).await,
        Err(error) => Err(error),
    };
    lease.release().await.unwrap();
    report
}

async fn repair(
    source: &Repository,
    destination: &Repository,
    id: &BackupId,
) -> Result<RepairReport, CopyError> {
    let lease = lease(destination).await;
    let report = match Original::read(source, id).await {
        Ok(original) => copy::repair(&original, destination, &lease, |_| {}).await,
        Err(error) => Err(error),
    };
    lease.release().await.unwrap();
    report
}

async fn lease(destination: &Repository) -> Lease {
    let lease = Lease::acquire(destination, "pgkeep copy", Duration::from_secs(60)).await;
    lease.unwrap()
}

/// Long after it was made: a copy has no deadline.
async fn two() -> (Folder, Folder, BackupId) {
    let source = Folder::new(day(1)).await;
    let id = backup(&source.repository, OBJECTS).await;
    (source, Folder::new(day(28)).await, id)
}

#[tokio::test]
async fn a_copy_is_the_same_bytes_under_the_same_id_and_is_made_once() {
    let (source, destination, id) = two().await;
    let gets = source.repository.store().requests().gets;
    let report = run(&source.repository, &destination.repository, &id)
        .await
        .unwrap();
    assert_eq!(
        (report.objects_copied, report.objects_present, report.was_complete),
        (ALL_OBJECTS, 0, false)
    );
    // Each object once, `checksums.b3` also to know them, and the manifest to see that it is one.
    assert_eq!(source.repository.store().requests().gets, gets + ALL_OBJECTS + 2);
    assert!(is_whole(&destination.repository, &id).await);
    for name in ["manifest", "checksums.b3", "d1/000003.sql.zst"] {
        let [ours, theirs] =
            [&source, &destination].map(|folder| std::fs::read(folder.file(&id, name)).unwrap());
        assert_eq!(ours, theirs, "{name}");
    }
    let again = run(&source.repository, &destination.repository, &id)
        .await
        .unwrap();
    assert_eq!((again.objects_copied, again.was_complete), (0, true));
}

#[tokio::test]
async fn a_copy_that_broke_off_is_taken_up_where_it_stopped() {
    for stop_after in 1..OBJECTS {
        let (source, destination, id) = two().await;
        let stop = tokio::sync::Notify::new();
        let done = AtomicUsize::new(0);
        let progress = |bytes| {
            if bytes > 0 && done.fetch_add(1, Ordering::Relaxed) + 1 == stop_after {
                stop.notify_one();
            }
        };
        let original = Original::read(&source.repository, &id).await.unwrap();
        let lease = Lease::acquire(&destination.repository, "copy", Duration::from_secs(60))
            .await
            .unwrap();
        tokio::select! {
            biased;
            () = stop.notified() => {}
            report = copy::copy(&original, &destination.repository, &lease, progress) => {
                panic!("it wasn't stopped after {stop_after}: {report:?}");
            }
        }
        lease.release().await.unwrap();
        assert_eq!(
            destination.repository.state(&id).await.unwrap(),
            BackupState::Incomplete
        );

        let report = run(&source.repository, &destination.repository, &id)
            .await
            .unwrap();
        assert!(report.objects_present >= stop_after as u64, "{report:?}");
        assert_eq!(report.objects_copied + report.objects_present, ALL_OBJECTS);
        assert!(is_whole(&destination.repository, &id).await);
    }
}

#[tokio::test]
async fn what_is_damaged_is_not_copied() {
    let (source, destination, id) = two().await;
    let file = source.file(&id, "d1/000005.sql.zst");
    let mut bytes = std::fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let error = run(&source.repository, &destination.repository, &id)
        .await
        .unwrap_err();
    let CopyError::Source { source: cause, .. } = &error else {
        panic!("{error}")
    };
    assert!(
        matches!(cause.as_ref(), RepositoryError::HashMismatch { key, .. } if key.ends_with("000005.sql.zst")),
        "{error}"
    );
    assert_eq!(
        destination.repository.state(&id).await.unwrap(),
        BackupState::Incomplete
    );
}

#[tokio::test]
async fn something_else_at_the_destination_is_not_taken_for_the_copy() {
    let (source, destination, id) = two().await;
    let file = destination.file(&id, "d1/000005.sql.zst");
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(&file, "something else").unwrap();
    let error = run(&source.repository, &destination.repository, &id)
        .await
        .unwrap_err();
    assert!(matches!(&error, CopyError::Differs { .. }), "{error}");
    assert!(error.hint().unwrap().as_str().contains("pgkeep prune"));
    assert_eq!(
        destination.repository.state(&id).await.unwrap(),
        BackupState::Incomplete
    );
}

#[tokio::test]
async fn a_copy_that_was_swept_can_be_made_again() {
    let (source, _, id) = two().await;
    // Within the tombstone's time.
    let destination = Folder::new(day(2)).await;
    destination
        .repository
        .sweep_one(&id, "orphan", &References::default())
        .await
        .unwrap();
    assert_eq!(
        destination.repository.state(&id).await.unwrap(),
        BackupState::Swept
    );
    run(&source.repository, &destination.repository, &id)
        .await
        .unwrap();
    assert!(is_whole(&destination.repository, &id).await);
}

/// The copier was asleep before its manifest, and another process took the copy for an orphan.
#[tokio::test]
async fn a_copy_whose_objects_went_before_its_manifest_came_is_none() {
    let (source, destination, id) = two().await;
    let done = AtomicUsize::new(0);
    let progress = |bytes| {
        if bytes > 0 && done.fetch_add(1, Ordering::Relaxed) + 1 == OBJECTS {
            std::fs::remove_file(destination.file(&id, "d1/000003.sql.zst")).unwrap();
        }
    };
    let original = Original::read(&source.repository, &id).await.unwrap();
    let lease = Lease::acquire(&destination.repository, "copy", Duration::from_secs(60))
        .await
        .unwrap();
    let error = copy::copy(&original, &destination.repository, &lease, progress)
        .await
        .unwrap_err();
    lease.release().await.unwrap();
    let fenced = matches!(&error, CopyError::Destination { source, .. } if matches!(source.as_ref(), RepositoryError::Fenced { .. }));
    assert!(fenced, "{error}");
    assert!(!destination.file(&id, "manifest").exists());
    let report = run(&source.repository, &destination.repository, &id)
        .await
        .unwrap();
    assert!(report.objects_copied >= 2, "{report:?}");
    assert!(is_whole(&destination.repository, &id).await);
}

#[tokio::test]
async fn the_destination_must_be_free_or_the_same_cluster_s() {
    let (source, destination, id) = two().await;
    source.repository.claim_identity(1, false).await.unwrap();
    source.repository.claim_identity(2, true).await.unwrap();
    run(&source.repository, &destination.repository, &id)
        .await
        .unwrap();
    // Both identities came along.
    destination.repository.claim_identity(1, false).await.unwrap();
    destination.repository.claim_identity(2, false).await.unwrap();

    let other = Folder::new(day(28)).await;
    other.repository.claim_identity(3, false).await.unwrap();
    let error = run(&source.repository, &other.repository, &id).await.unwrap_err();
    assert_eq!(error.retry_class(), RetryClass::Refused, "{error}");
    assert_eq!(
        other.repository.state(&id).await.unwrap(),
        BackupState::Incomplete
    );
}

#[tokio::test]
async fn a_repository_is_not_copied_onto_itself_by_another_url() {
    let (source, destination, _) = two().await;
    assert!(copy::check_different(&source.repository, &destination.repository).is_ok());
    let link = tempfile::tempdir().unwrap();
    let path = link.path().join("link");
    std::os::unix::fs::symlink(source.folder.path(), &path).unwrap();
    let same = support::open(&path, day(1)).await;
    let error = copy::check_different(&source.repository, &same).unwrap_err();
    assert_eq!(error.retry_class(), RetryClass::Usage);
}

#[tokio::test]
async fn a_backup_that_is_removed_while_it_is_copied_is_gone_and_not_damaged() {
    let (source, destination, id) = two().await;
    let original = Original::read(&source.repository, &id).await.unwrap();
    let lease = Lease::acquire(&destination.repository, "copy", Duration::from_secs(60))
        .await
        .unwrap();
    let removed = AtomicUsize::new(0);
    let progress = |bytes| {
        if bytes > 0 && removed.fetch_add(1, Ordering::Relaxed) == 0 {
            // As a prune does it: the manifest first.
            std::fs::remove_file(source.file(&id, "manifest")).unwrap();
            std::fs::remove_dir_all(source.file(&id, "d1")).unwrap();
        }
    };
    let error = copy::copy(&original, &destination.repository, &lease, progress)
        .await
        .unwrap_err();
    assert!(error.is_removed() && error.concerns_one_backup(), "{error}");
    assert_eq!(
        destination.repository.state(&id).await.unwrap(),
        BackupState::Incomplete
    );
}

#[tokio::test]
async fn a_damaged_manifest_is_neither_copied_nor_taken_for_a_copy() {
    let (source, destination, id) = two().await;
    std::fs::write(source.file(&id, "manifest"), "").unwrap();
    let error = run(&source.repository, &destination.repository, &id)
        .await
        .unwrap_err();
    assert!(
        matches!(error, CopyError::Source { .. }) && error.concerns_one_backup(),
        "{error}"
    );

    let (source, destination, id) = two().await;
    run(&source.repository, &destination.repository, &id)
        .await
        .unwrap();
    std::fs::write(destination.file(&id, "manifest"), "").unwrap();
    let error = run(&source.repository, &destination.repository, &id)
        .await
        .unwrap_err();
    assert!(
        matches!(error, CopyError::DamagedThere { .. }) && error.concerns_one_backup(),
        "{error}"
    );
}

#[tokio::test]
async fn what_is_damaged_at_the_destination_is_written_anew_if_that_is_asked_for() {
    let (source, destination, id) = two().await;
    let (from, to) = (&source.repository, &destination.repository);
    run(from, to, &id).await.unwrap();
    let file = |name: &str| destination.file(&id, name);
    std::fs::write(file("d1/000003.sql.zst"), "").unwrap();
    std::fs::write(file("d1/000004.sql.zst"), "something else").unwrap();
    std::fs::remove_file(file("d1/000005.sql.zst")).unwrap();
    std::fs::write(file("checksums.b3"), "damaged").unwrap();
    assert!(run(from, to, &id).await.unwrap().was_complete);
    let report = repair(from, to, &id).await.unwrap();
    assert_eq!(
        (report.objects_repaired, report.objects_sound),
        (4, ALL_OBJECTS - 4)
    );
    assert!(is_whole(to, &id).await && !report.evidence_remains);
    for damage in ["", "1 no manifest", "age-encryption.org/v1\nof another"] {
        std::fs::write(file("manifest"), damage).unwrap();
        let report = repair(from, to, &id).await.unwrap();
        assert_eq!(report.objects_repaired, 1, "{damage}");
        assert!(is_whole(to, &id).await);
    }
    assert_eq!(repair(from, to, &id).await.unwrap().objects_repaired, 0);
    // A verification that read contents knows more than a repair, which compares hashes.
    let failed = Evidence {
        at: to.now(),
        depth: "contents".to_owned(),
        objects: ALL_OBJECTS - 1,
        objects_total: ALL_OBJECTS - 1,
        passed: false,
        failures: vec!["x".to_owned()],
    };
    to.record_evidence(&id, &failed).await.unwrap();
    assert!(repair(from, to, &id).await.unwrap().evidence_remains);
}

/// What is damaged at both stays as it is, and keeps nothing else from being repaired.
#[tokio::test]
async fn a_repair_mends_what_it_can_and_says_what_it_cannot() {
    let (source, destination, id) = two().await;
    let (from, to) = (&source.repository, &destination.repository);
    run(from, to, &id).await.unwrap();
    for name in ["d1/000001.sql.zst", "d1/000011.sql.zst", "manifest"] {
        std::fs::write(destination.file(&id, name), "1 damaged").unwrap();
    }
    let whole = std::fs::read(source.file(&id, "d1/000001.sql.zst")).unwrap();
    std::fs::write(source.file(&id, "d1/000001.sql.zst"), "damaged too").unwrap();
    let error = repair(from, to, &id).await.unwrap_err();
    assert!(matches!(error, CopyError::Source { .. }), "{error}");
    assert_eq!(
        std::fs::read(destination.file(&id, "d1/000001.sql.zst")).unwrap(),
        b"1 damaged"
    );
    assert!(!to.evidence_of(&id).await.unwrap().unwrap().passed);
    std::fs::write(source.file(&id, "d1/000001.sql.zst"), whole).unwrap();
    // The other one is repaired already.
    assert_eq!(repair(from, to, &id).await.unwrap().objects_repaired, 2);
    assert!(to.evidence_of(&id).await.unwrap().unwrap().passed);
}

/// A repair in the wrong direction.
#[tokio::test]
async fn a_repair_takes_nothing_from_a_sound_backup() {
    for damage in ["", "1 damaged"] {
        for name in ["d1/000003.sql.zst", "checksums.b3", "manifest"] {
            let (source, destination, id) = two().await;
            let (from, to) = (&source.repository, &destination.repository);
            run(from, to, &id).await.unwrap();
            std::fs::write(source.file(&id, name), damage).unwrap();
            let _ = repair(from, to, &id).await;
            assert!(is_whole(to, &id).await, "{name}: '{damage}'");
            assert!(
                to.evidence_of(&id)
                    .await
                    .unwrap()
                    .is_none_or(|evidence| evidence.passed)
            );
        }
    }
    // One digit of the list is another one.
    let (source, destination, id) = two().await;
    let (from, to) = (&source.repository, &destination.repository);
    run(from, to, &id).await.unwrap();
    let list = std::fs::read_to_string(source.file(&id, "checksums.b3")).unwrap();
    for line in 0..list.lines().count() {
        let flip = |(number, text): (usize, &str)| match number == line {
            true => format!(
                "{}{}\n",
                if text.starts_with('0') { '1' } else { '0' },
                &text[1..]
            ),
            false => format!("{text}\n"),
        };
        let flipped: String = list.lines().enumerate().map(flip).collect();
        std::fs::write(source.file(&id, "checksums.b3"), flipped).unwrap();
        repair(from, to, &id).await.unwrap_err();
        assert!(is_whole(to, &id).await, "{line}");
    }
}

/// Between a manifest that is deleted and the one that is put in its place.
#[tokio::test]
async fn a_repair_that_breaks_off_leaves_a_damaged_backup_and_no_orphan() {
    let (source, destination, id) = two().await;
    let (from, to) = (&source.repository, &destination.repository);
    run(from, to, &id).await.unwrap();
    std::fs::write(destination.file(&id, "manifest"), "1 damaged").unwrap();
    let lease = lease(to).await;
    let original = Original::read(from, &id).await.unwrap();
    let gone = async {
        while destination.file(&id, "manifest").exists() {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        biased;
        () = gone => {}
        // It was quicker: then there is nothing to break off.
        report = copy::repair(&original, to, &lease, |_| {}) => { report.unwrap(); }
    }
    lease.release().await.unwrap();
    to.sweep(BackupKind::Dump).await.unwrap();
    assert!(destination.file(&id, "d1/000003.sql.zst").exists());
    repair(from, to, &id).await.unwrap();
    assert!(is_whole(to, &id).await);
}

/// What another backup needs of it may come before its manifest comes back.
#[tokio::test]
async fn what_has_lost_its_manifest_at_the_destination_is_not_given_up_for_a_copy() {
    let (source, destination, base) = two().await;
    let (from, to) = (&source.repository, &destination.repository);
    let id = incremental(from, 2, &base).await;
    run(from, to, &base).await.unwrap();
    record(to, &base, true).await;
    let manifest = destination.file(&base, "manifest");
    let bytes = std::fs::read(&manifest).unwrap();
    std::fs::remove_file(&manifest).unwrap();

    run(from, to, &id).await.unwrap();
    assert_eq!(to.state(&base).await.unwrap(), BackupState::Incomplete);
    to.sweep(BackupKind::Dump).await.unwrap();
    std::fs::write(&manifest, bytes).unwrap();
    assert!(is_whole(to, &base).await && is_whole(to, &id).await);

    // Also by a copy.
    std::fs::remove_file(&manifest).unwrap();
    assert_eq!(run(from, to, &base).await.unwrap().objects_copied, 1);
    assert!(is_whole(to, &base).await);
}
