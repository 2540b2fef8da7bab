//! The probe: what it says of stores that are good, of one that isn't, and of credentials that may do only a part.

use bytes::Bytes;
use pgkeep_base::{Classified, Severity};
use pgkeep_store::fault::FaultPlan;
use pgkeep_store::{ProbeReport, PutOutcome, Store, StoreErrorKind, StoreOptions};
use pgkeep_testkit::require;
use pgkeep_testkit::stores::{RcloneS3, SeaweedFs};

fn severity_of(report: &ProbeReport, check: &str) -> Severity {
    let finding = report.findings.iter().find(|finding| finding.check == check);
    finding.unwrap_or_else(|| panic!("{check}: {report:?}")).severity
}

async fn probe_and_expect_nothing_left(store: &Store) -> ProbeReport {
    let report = store.probe("doctor").await.unwrap();
    assert!(
        store.list("doctor").await.unwrap().is_empty(),
        "the probe cleans up"
    );
    report
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn good_stores_pass() {
    let directory = tempfile::tempdir().unwrap();
    let url = format!("file://{}", directory.path().display());
    for url in ["memory://", &url] {
        let store = Store::open(url, &StoreOptions::default()).await.unwrap();
        let report = probe_and_expect_nothing_left(&store).await;
        assert_eq!(report.severity(), Severity::Ok, "{report:?}");
        assert_eq!(report.capabilities.create_only_put, Some(true));
        assert_eq!(report.capabilities.delete_allowed, Some(true));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn seaweedfs_passes_and_its_buckets_settings_are_seen() {
    let server = require!(SeaweedFs::start());
    let options = super::seaweedfs(&server);
    let plain = Store::open(&server.bucket("plain"), &options).await.unwrap();
    let report = probe_and_expect_nothing_left(&plain).await;
    assert!(report.severity() <= Severity::Info, "{report:?}");
    let capabilities = report.capabilities;
    assert_eq!(capabilities.create_only_put, Some(true));
    assert_eq!(
        (capabilities.versioning, capabilities.object_lock),
        (Some(false), Some(false))
    );
    assert!(capabilities.clock_ahead_seconds.unwrap().abs() <= 2);

    let locked = Store::open(&server.bucket_with_lock("locked"), &options)
        .await
        .unwrap();
    let report = probe_and_expect_nothing_left(&locked).await;
    assert_eq!(
        (report.capabilities.versioning, report.capabilities.object_lock),
        (Some(true), Some(true)),
        "{report:?}"
    );

    let writer = super::s3(
        &server.endpoint,
        &server.write_only_access_key,
        &server.write_only_secret_key,
    );
    let writer = Store::open("s3://plain", &writer).await.unwrap();
    let report = writer.probe("doctor").await.unwrap();
    assert_eq!(report.capabilities.write_allowed, Some(true), "{report:?}");
    assert_eq!(report.capabilities.read_allowed, Some(false), "{report:?}");
    assert_eq!(report.capabilities.create_only_put, Some(true), "{report:?}");
    assert_eq!(severity_of(&report, "read"), Severity::Info);

    // What is refused is named as a policy would name it.
    let error = writer.get("doctor/object", 10).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::PermissionDenied, "{error}");
    assert!(
        error
            .to_string()
            .ends_with("(it takes the permission s3:GetObject)"),
        "{error}"
    );
    let hint = error.hint().unwrap();
    assert!(
        hint.as_str().contains("s3:GetObject on arn:aws:s3:::plain/*"),
        "{hint}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_ignores_conditional_puts_is_noticed() {
    let server = require!(RcloneS3::start());
    let options = super::s3(&server.endpoint, &server.access_key, &server.secret_key);
    let store = Store::open(&server.bucket("bucket"), &options).await.unwrap();
    let report = store.probe("doctor").await.unwrap();
    assert_eq!(report.capabilities.create_only_put, Some(false));
    assert_eq!(severity_of(&report, "create-only-put"), Severity::Error);
    assert_eq!(severity_of(&report, "read"), Severity::Ok);
    let findings: Vec<_> = report
        .findings
        .iter()
        .filter(|finding| finding.check == "create-only-put")
        .collect();
    assert_eq!(findings.len(), 1);
    assert!(
        findings[0]
            .mend
            .as_ref()
            .is_some_and(|mend| mend.contains("conditional writes")),
        "{findings:?}"
    );

    // SeaweedFS would make the bucket.
    let error = Store::open("s3://missing", &options)
        .await
        .unwrap()
        .probe("")
        .await
        .unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::NoSuchBucket, "{error}");
    assert!(error.to_string().contains("s3://missing"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_reached_or_entered_is_an_error_with_its_mend() {
    let server = require!(SeaweedFs::start());
    let bucket = server.bucket("bucket");
    let with_keys = |access: &str, secret: &str| super::s3(&server.endpoint, access, secret);
    let kind = StoreErrorKind::AuthenticationFailed;
    for (options, says, mend) in [
        (
            with_keys("nobody", "hunter2"),
            "InvalidAccessKeyId",
            "doesn't know this access key",
        ),
        (
            with_keys(&server.access_key, "hunter2"),
            "SignatureDoesNotMatch",
            "isn't the one of this access key",
        ),
    ] {
        let store = Store::open(&bucket, &options).await.unwrap();
        let error = store.probe("").await.unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(says), "{error}");
        assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
        let hint = error.hint().unwrap().to_string();
        assert!(
            hint.contains(mend) && hint.contains("s3.secret_access_key"),
            "{hint}"
        );
        let error = store.get("pgkeep.json", 1000).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
    }
    // Nobody listens on port 1.
    let mut options = super::s3("http://127.0.0.1:1", "a", "b");
    options.retry.first_contact_elapsed_max = std::time::Duration::from_millis(500);
    let store = Store::open("s3://bucket", &options).await.unwrap();
    let error = store.probe("").await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Unreachable, "{error}");
}

/// A write-only host whose answers are lost can't say whose object is there; it must not guess.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_only_host_does_not_claim_what_it_cannot_read() {
    let server = require!(SeaweedFs::start());
    let bucket = server.bucket("bucket");
    let mut options = super::s3(
        &server.endpoint,
        &server.write_only_access_key,
        &server.write_only_secret_key,
    );
    options.faults = Some(FaultPlan {
        seed: 1,
        lose_ack_one_in: 1,
        ..FaultPlan::default()
    });
    let store = Store::open(&bucket, &options).await.unwrap();
    let error = store.put_new("a", Bytes::from_static(b"x")).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Unconfirmed, "{error}");
    assert!(error.may_have_happened());
    let reader = Store::open(&bucket, &super::seaweedfs(&server)).await.unwrap();
    assert_eq!(reader.get("a", 9).await.unwrap(), "x");
    assert_eq!(
        reader.put_new("a", Bytes::from_static(b"x")).await.unwrap(),
        PutOutcome::AlreadyExists
    );
}
