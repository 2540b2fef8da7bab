//! Plans carried out on real folders.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests")]

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use pgkeep_base::{BackupId, BackupKind, Classified, ManualClock, RetryClass};
use pgkeep_repository::backups::BackupState;
use pgkeep_repository::lease::Lease;
use pgkeep_repository::prune::{self, Known, PruneError, PruneInput, PruneReport};
use pgkeep_repository::retention::{Policy, Reason};
use pgkeep_repository::{Repository, RepositoryError};
use support::{Folder, REUSED, backup, day, incremental, is_whole, record, unfinished};

const LEASE: Duration = Duration::from_secs(60);

fn window_of_days(days: i64) -> Policy {
    Policy {
        window: Some(SignedDuration::from_hours(24 * days)),
        ..Policy::default()
    }
}

/// The same repository on another day.
fn on(repository: &Repository, number: u32) -> Repository {
    repository
        .clone()
        .with_clock(Arc::new(ManualClock::new(day(number))))
}

async fn execute(
    repository: &Repository,
    policy: &Policy,
    input: &PruneInput,
) -> Result<PruneReport, PruneError> {
    let input = async { Ok(input.clone()) };
    prune::execute(repository, policy, input, LEASE, |_| {}, std::future::pending()).await
}

async fn complete(repository: &Repository) -> Vec<BackupId> {
    let entries = repository.backups(BackupKind::Dump).await.unwrap();
    entries
        .into_iter()
        .filter(|entry| entry.state == BackupState::Complete)
        .map(|entry| entry.id)
        .collect()
}

#[tokio::test]
async fn what_the_window_lets_go_goes_with_all_its_objects() {
    let folder = Folder::new(day(1)).await;
    let old = backup(&folder.repository, 3).await;
    folder.repository.set_pin(&old, true, "look").await.unwrap();
    folder.repository.set_pin(&old, false, "").await.unwrap();
    let debris = unfinished(&on(&folder.repository, 2), 4).await;
    let new = backup(&on(&folder.repository, 20), 3).await;
    let today = on(&folder.repository, 21);

    let plan = prune::plan(&today, &window_of_days(7), &PruneInput::default(), today.now())
        .await
        .unwrap();
    let before = folder.files();
    assert_eq!(
        plan.removed().map(|decision| &decision.id).collect::<Vec<_>>(),
        [&old]
    );
    assert_eq!(plan.incomplete.iter().collect::<Vec<_>>(), [&debris]);
    assert_eq!(before, folder.files(), "a plan changes nothing");

    let report = execute(&today, &window_of_days(7), &PruneInput::default())
        .await
        .unwrap();
    assert_eq!(
        report.removed.iter().map(|(id, _)| id).collect::<Vec<_>>(),
        [&old]
    );
    assert_eq!(report.swept.backups.iter().collect::<Vec<_>>(), [&debris]);
    assert_eq!(report.failures().count(), 0);
    assert_eq!(complete(&today).await, [new]);
    let (old, debris) = (old.to_string(), format!("{debris}/d1"));
    let left: Vec<String> = folder
        .files()
        .into_iter()
        .filter(|name| name.contains(&old) || name.contains(&debris))
        .collect();
    assert!(left.is_empty(), "still there: {left:?}");
}

/// Somebody's hand or a lifecycle rule: what pins and evidence know as a backup is nobody's debris.
#[tokio::test]
async fn what_has_lost_its_manifest_is_told_and_stays() {
    let folder = Folder::new(day(1)).await;
    let verified = backup(&folder.repository, 3).await;
    record(&folder.repository, &verified, true).await;
    // What was written there is nobody's matter.
    std::fs::write(said(&folder, "verify", &verified).join("000001"), "{").unwrap();
    let pinned = backup(&on(&folder.repository, 2), 3).await;
    folder.repository.set_pin(&pinned, true, "why").await.unwrap();
    // Its prune was killed after the manifest.
    let removed = backup(&on(&folder.repository, 3), 3).await;
    record(&folder.repository, &removed, true).await;
    prune_killed_after_the_manifest(&folder, &removed);
    let debris = unfinished(&on(&folder.repository, 4), 4).await;
    for id in [&verified, &pinned] {
        std::fs::remove_file(folder.file(id, "manifest")).unwrap();
    }
    let new = incremental(&on(&folder.repository, 20), 3, &verified).await;
    let today = on(&folder.repository, 21);
    let states = || async {
        let entries = today.backups(BackupKind::Dump).await.unwrap().into_iter();
        let states = entries.map(|entry| (entry.id, entry.state, entry.has_lost_manifest));
        states.collect::<Vec<_>>()
    };
    let gone = |id: &BackupId| (id.clone(), BackupState::Incomplete, true);
    let incomplete = |id: &BackupId| (id.clone(), BackupState::Incomplete, false);
    let whole = (new.clone(), BackupState::Complete, false);
    let before = [
        gone(&verified),
        gone(&pinned),
        incomplete(&removed),
        incomplete(&debris),
        whole.clone(),
    ];
    assert_eq!(states().await, before);

    // A dump's sweep first, then a prune.
    let swept = today.sweep(BackupKind::Dump).await.unwrap();
    assert_eq!(swept.backups, [removed.clone(), debris.clone()]);
    let report = execute(&today, &window_of_days(7), &PruneInput::default())
        .await
        .unwrap();
    let kept: Vec<_> = report
        .plan
        .kept()
        .map(|decision| (&decision.id, &decision.reasons[0]))
        .collect();
    assert_eq!(
        kept[..2],
        [
            (&verified, &Reason::ManifestGone),
            (&pinned, &Reason::ManifestGone)
        ]
    );
    assert!(report.removed.is_empty() && report.swept.backups.is_empty());
    let after = states().await;
    assert_eq!(after[..2], before[..2]);
    for id in [&verified, &pinned] {
        assert!(folder.file(id, "d1/000001.sql.zst").exists());
    }
    // Whoever gives it up removes what says that it was one; what others need stays.
    std::fs::remove_dir_all(said(&folder, "verify", &verified)).unwrap();
    let report = execute(&today, &window_of_days(7), &PruneInput::default())
        .await
        .unwrap();
    assert_eq!(report.swept.backups, std::slice::from_ref(&verified));
    let left: Vec<String> = folder
        .files()
        .into_iter()
        .filter(|name| name.contains(&verified.to_string()))
        .collect();
    let of_it = |name: &str| format!("main/dump/{verified}/{name}");
    assert_eq!(left, [of_it(REUSED), of_it("manifest")]);
    assert_eq!(today.state(&verified).await.unwrap(), BackupState::Swept);
    assert!(is_whole(&today, &new).await);
}

/// With its manifest it is a backup again, and needs what it needed.
#[tokio::test]
async fn what_a_backup_without_its_manifest_needs_of_others_stays() {
    for list_is_readable in [true, false] {
        let folder = Folder::new(day(1)).await;
        let base = backup(&folder.repository, 3).await;
        let lost = incremental(&on(&folder.repository, 2), 2, &base).await;
        let today = on(&folder.repository, 21);
        record(&today, &lost, true).await;
        backup(&on(&folder.repository, 20), 1).await;
        let [manifest, list] = ["manifest", "checksums.b3"].map(|name| folder.file(&lost, name));
        let [whole, listed] = [&manifest, &list].map(|file| std::fs::read(file).unwrap());
        std::fs::remove_file(&manifest).unwrap();
        if !list_is_readable {
            std::fs::remove_file(&list).unwrap();
        }

        let report = execute(&today, &window_of_days(7), &PruneInput::default())
            .await
            .unwrap();
        let removed: Vec<_> = report.removed.iter().map(|(id, _)| id).collect();
        assert_eq!(removed, [&base]);
        assert_eq!(
            folder.file(&base, "d1/000002.sql.zst").exists(),
            !list_is_readable,
            "nobody knows whether it is needed"
        );
        std::fs::write(&manifest, whole).unwrap();
        std::fs::write(&list, listed).unwrap();
        assert!(is_whole(&today, &lost).await);
    }
}

/// The folder of what is said about a backup.
fn said(folder: &Folder, what: &str, id: &BackupId) -> std::path::PathBuf {
    folder.folder.path().join(format!("main/{what}/{id}"))
}

/// A dump's host need not be allowed to read what is said about dumps. It leaves what it can't tell of, and nothing else.
#[tokio::test]
async fn what_may_not_be_read_keeps_only_what_it_is_about() {
    let folder = Folder::new(day(1)).await;
    let pinned = backup(&folder.repository, 3).await;
    folder.repository.set_pin(&pinned, true, "why").await.unwrap();
    std::fs::remove_file(folder.file(&pinned, "manifest")).unwrap();
    let debris = unfinished(&on(&folder.repository, 4), 4).await;
    let swept = |host: Repository| async move { host.sweep(BackupKind::Dump).await.unwrap().backups };

    // That something was verified is told by names, which it may not list either.
    for denied in ["/pin", "/verify"] {
        let before = folder.files();
        let host = support::open_denied(folder.folder.path(), day(20), denied).await;
        assert!(swept(host).await.is_empty(), "{denied}");
        assert_eq!(folder.files(), before, "{denied}");
    }
    // What nothing is said about needs no reading.
    let pin = format!("/pin/{pinned}/");
    let host = support::open_denied(folder.folder.path(), day(20), &pin).await;
    assert_eq!(swept(host).await, [debris]);
    let state = folder.repository.state(&pinned).await.unwrap();
    assert_eq!(state, BackupState::Incomplete);
}

/// It had claimed the removal, and got no further.
fn prune_killed_after_the_manifest(folder: &Folder, id: &BackupId) {
    let claim = said(folder, "pin", id).join("000001");
    std::fs::create_dir_all(claim.parent().unwrap()).unwrap();
    let text = r#"{"pinned":false,"reason":"","at":"2026-11-22T02:00:00Z","removing":true}"#;
    std::fs::write(&claim, text).unwrap();
    std::fs::remove_file(folder.file(id, "manifest")).unwrap();
}

#[tokio::test]
async fn the_last_good_one_stays_when_a_later_one_failed_its_verification() {
    let folder = Folder::new(day(1)).await;
    let good = backup(&folder.repository, 1).await;
    let bad = backup(&on(&folder.repository, 2), 1).await;
    let today = on(&folder.repository, 25);
    record(&today, &good, true).await;
    record(&today, &bad, false).await;
    execute(&today, &window_of_days(1), &PruneInput::default())
        .await
        .unwrap();
    assert_eq!(complete(&today).await, [good]);
}

#[tokio::test]
async fn a_backup_of_one_table_is_no_reason_to_let_go_of_the_last_whole_one() {
    let folder = Folder::new(day(1)).await;
    let whole = backup(&folder.repository, 1).await;
    let part = backup(&on(&folder.repository, 2), 1).await;
    let today = on(&folder.repository, 25);
    let known = |scope: &str| Known {
        system_identifier: Some(7),
        scope: scope.to_owned(),
        base: None,
    };
    let input = PruneInput {
        known: BTreeMap::from([(whole.clone(), known("")), (part.clone(), known("app"))]),
        ..PruneInput::default()
    };
    execute(&today, &window_of_days(1), &input).await.unwrap();
    assert_eq!(complete(&today).await, [whole, part]);
}

#[tokio::test]
async fn while_another_process_writes_nothing_is_pruned() {
    let folder = Folder::new(day(1)).await;
    backup(&folder.repository, 1).await;
    let debris = unfinished(&folder.repository, 2).await;
    let today = on(&folder.repository, 25);
    let lease = Lease::acquire(&today, "pgkeep dump", LEASE).await.unwrap();
    let error = execute(&today, &window_of_days(1), &PruneInput::default())
        .await
        .unwrap_err();
    assert!(
        matches!(error, PruneError::Repository(RepositoryError::LeaseHeld { .. })),
        "{error}"
    );
    assert_eq!(error.retry_class(), RetryClass::Transient);
    assert!(folder.file(&debris, "d1/000000.sql.zst").exists());
    lease.release().await.unwrap();
    execute(&today, &window_of_days(1), &PruneInput::default())
        .await
        .unwrap();
    assert!(!folder.file(&debris, "d1/000000.sql.zst").exists());
}

#[tokio::test]
async fn an_interrupted_prune_gives_its_lease_back_and_leaves_whole_backups() {
    let folder = Folder::new(day(1)).await;
    for number in 1..=5 {
        backup(&on(&folder.repository, number), 2).await;
    }
    let today = on(&folder.repository, 25);
    let first = tokio::sync::Notify::new();
    let (policy, input) = (window_of_days(1), async { Ok(PruneInput::default()) });
    let error: Result<_, PruneError> = prune::execute(
        &today,
        &policy,
        input,
        LEASE,
        |_| first.notify_one(),
        first.notified(),
    )
    .await;
    assert!(matches!(error, Err(PruneError::Interrupted)));
    // Whoever comes next needn't wait, and finds whole backups only.
    let lease = Lease::acquire(&today, "pgkeep dump", LEASE).await.unwrap();
    lease.release().await.unwrap();
    for id in complete(&today).await {
        let checksums = today.checksums(&id).await.unwrap();
        assert_eq!(today.verify_stored(&id, &checksums, |_| {}).await.unwrap(), []);
    }
    execute(&today, &window_of_days(1), &PruneInput::default())
        .await
        .unwrap();
    assert_eq!(complete(&today).await.len(), 1);
}

/// Pinned after the plan was made, and before its turn came.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_pinned_while_a_prune_runs_stays() {
    let folder = Folder::new(day(1)).await;
    let mut ids = Vec::new();
    for number in 1..=4 {
        ids.push(backup(&on(&folder.repository, number), 2).await);
    }
    let today = on(&folder.repository, 25);
    let pin = |id: &BackupId| {
        // The plan lets the first three go; this is said before each of them is looked at.
        if *id == ids[0] {
            let pinned = today.set_pin(&ids[1], true, "before the migration");
            tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(pinned)).unwrap();
        }
    };
    let (policy, input) = (window_of_days(1), async { Ok(PruneInput::default()) });
    let report: Result<_, PruneError> =
        prune::execute(&today, &policy, input, LEASE, pin, std::future::pending()).await;
    let report = report.unwrap();
    assert_eq!(complete(&today).await, [ids[1].clone(), ids[3].clone()]);
    let removed: Vec<_> = report.removed.iter().map(|(id, _)| id).collect();
    assert_eq!(removed, [&ids[0], &ids[2]]);
    let decision = report
        .plan
        .decisions
        .iter()
        .find(|decision| decision.id == ids[1]);
    assert_eq!(
        decision.unwrap().to_string(),
        "kept: pinned: before the migration"
    );
}

#[tokio::test]
async fn a_manifest_that_is_none_is_the_damage_of_its_backup_alone() {
    for contents in [&b""[..], b"\0\0\0\0", b"garbage"] {
        let folder = Folder::new(day(1)).await;
        let good = backup(&folder.repository, 2).await;
        let damaged = backup(&on(&folder.repository, 2), 2).await;
        std::fs::write(folder.file(&damaged, "manifest"), contents).unwrap();
        let today = on(&folder.repository, 25);
        let entries = today.backups(BackupKind::Dump).await.unwrap();
        let states: Vec<_> = entries.iter().map(|entry| (&entry.id, entry.state)).collect();
        assert_eq!(
            states,
            [(&good, BackupState::Complete), (&damaged, BackupState::Damaged)]
        );
        // It is the newest, and that isn't hidden from whoever asks for it.
        assert_eq!(today.find(BackupKind::Dump, "latest").await.unwrap(), damaged);
        // It is no orphan, and no reason to let go of the good one.
        assert_eq!(today.sweep(BackupKind::Dump).await.unwrap().backups, []);
        let report = execute(&today, &window_of_days(1), &PruneInput::default())
            .await
            .unwrap();
        let removed: Vec<_> = report.removed.iter().map(|(id, _)| id).collect();
        assert_eq!(removed, [&damaged]);
        assert_eq!(complete(&today).await, [good]);
    }
}

#[tokio::test]
async fn a_backup_whose_summary_is_damaged_pushes_none_out() {
    let folder = Folder::new(day(1)).await;
    let good = backup(&folder.repository, 1).await;
    let newer = backup(&on(&folder.repository, 2), 1).await;
    let today = on(&folder.repository, 25);
    let input = PruneInput {
        damaged: [newer.clone()].into(),
        ..PruneInput::default()
    };
    execute(&today, &window_of_days(1), &input).await.unwrap();
    assert_eq!(complete(&today).await, [good]);
}

#[tokio::test]
async fn what_is_said_about_backups_that_are_gone_goes_with_the_next_prune() {
    let folder = Folder::new(day(1)).await;
    let gone = backup(&folder.repository, 1).await;
    let stays = backup(&on(&folder.repository, 24), 1).await;
    let today = on(&folder.repository, 25);
    for id in [&gone, &stays] {
        today.set_pin(id, true, "").await.unwrap();
        record(&today, id, true).await;
    }
    // As if these had come just after a prune removed the rest.
    std::fs::remove_dir_all(folder.file(&gone, "")).unwrap();
    execute(&today, &Policy::default(), &PruneInput::default())
        .await
        .unwrap();
    let said: Vec<String> = folder
        .files()
        .into_iter()
        .filter(|name| name.starts_with("main/pin/") || name.starts_with("main/verify/"))
        .collect();
    assert_eq!(
        said,
        [
            format!("main/pin/{stays}/000001"),
            format!("main/verify/{stays}/000001")
        ]
    );
}

/// Emptied by a crash of the disk, say: it must hold up nobody for ever, and not be taken for free too early.
#[tokio::test]
async fn a_lease_that_cannot_be_read_runs_out_like_any_other() {
    let folder = Folder::new(Timestamp::now()).await;
    let lease = folder.folder.path().join("main/lease/0000000001-000000");
    std::fs::create_dir_all(lease.parent().unwrap()).unwrap();
    std::fs::write(&lease, "").unwrap();
    let held = Lease::acquire(&folder.repository, "pgkeep dump", LEASE).await;
    assert!(
        matches!(held, Err(RepositoryError::LeaseHeld { .. })),
        "taken at once"
    );
    let later = Timestamp::now() + SignedDuration::from_mins(6);
    let later = folder
        .repository
        .clone()
        .with_clock(Arc::new(ManualClock::new(later)));
    let lease = Lease::acquire(&later, "pgkeep dump", LEASE).await.unwrap();
    lease.release().await.unwrap();
}

/// What is known of the backups is read when nobody else can add one.
#[tokio::test]
async fn what_backups_hold_is_read_under_the_lease() {
    let folder = Folder::new(day(1)).await;
    backup(&folder.repository, 1).await;
    let today = on(&folder.repository, 25);
    let policy = window_of_days(1);
    let input = async {
        let other = Lease::acquire(&today, "pgkeep dump", LEASE).await;
        assert!(matches!(other, Err(RepositoryError::LeaseHeld { .. })));
        Err(PruneError::Interrupted)
    };
    let pruned = prune::execute(&today, &policy, input, LEASE, |_| {}, std::future::pending()).await;
    assert!(matches!(pruned, Err(PruneError::Interrupted)));
    // And the lease is given back although that failed.
    let lease = Lease::acquire(&today, "pgkeep dump", LEASE).await.unwrap();
    lease.release().await.unwrap();
    assert_eq!(complete(&today).await.len(), 1);
}

/// Nobody else had a hand in it, and the same again would end the same.
#[tokio::test]
async fn a_backup_that_took_too_long_is_told_so() {
    let folder = Folder::new(day(1)).await;
    let id = unfinished(&folder.repository, 2).await;
    let later = on(&folder.repository, 5);
    let manifest = later.seal(Bytes::from_static(b"{}")).await.unwrap();
    let error = later.commit(&id, manifest).await.unwrap_err();
    assert!(matches!(error, RepositoryError::TooLate { .. }), "{error}");
    assert_eq!(error.retry_class(), RetryClass::Permanent);
    assert!(error.hint().unwrap().as_str().contains("--jobs"), "{error}");
    assert!(complete(&later).await.is_empty());
}
