//! Two repositories of one dump: what happens to one is no matter of the other's.

use std::path::Path;
use std::time::Duration;

use pgkeep_base::BackupKind;
use pgkeep_dump::{DumpError, DumpReport};
use pgkeep_repository::destinations::Destinations;
use pgkeep_repository::lease::Lease;
use pgkeep_repository::{Repository, RepositoryError};
use pgkeep_store::StoreOptions;
use pgkeep_testkit::{Cluster, require, requirements};

use crate::common::{self, dump_options, repository_through, whole_dumps};
use crate::store::{FAILED_MAX, impatient};
use crate::{assert_no_orphans, compare, files, overwriting, plan, remove_dumps, servers, source};

async fn dump_into(repositories: &[&Repository], source: &Cluster) -> Result<DumpReport, DumpError> {
    let opened = repositories
        .iter()
        .map(|repository| (repository.store().url().to_owned(), Ok((*repository).clone())));
    let destinations = Destinations::new(opened.collect()).unwrap();
    common::dump_into(destinations, source, &dump_options(source)).await
}

async fn sound(folder: &Path) -> Repository {
    repository_through(folder, StoreOptions::default()).await
}

/// This process is alive, so its lease isn't broken: it runs out, or is taken away here.
fn remove_leases(folder: &Path) {
    for lease in files(&folder.join("test/lease")) {
        std::fs::remove_file(lease).unwrap();
    }
}

/// One goes away at every seventh request (in the long test: at every one), be it the first or the second of the two.
#[tokio::test(flavor = "multi_thread")]
async fn one_of_two_goes_away_at_any_request_and_the_other_has_the_dump() {
    let (source, destination) = require!(servers());
    let (good, bad) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (good_one, once_more) = (sound(good.path()).await, sound(bad.path()).await);
    let mut after = 3;
    let mut left_out = 0;
    let both = loop {
        let faults = impatient(plan(&format!("outage={after}:600s")));
        let faulty = repository_through(bad.path(), faults).await;
        let order = match after % 2 {
            1 => [&good_one, &faulty],
            _ => [&faulty, &good_one],
        };
        let before = whole_dumps(&once_more).await;
        let report = dump_into(&order, &source).await.unwrap();
        assert_eq!(whole_dumps(&good_one).await.last(), Some(&report.id));
        if report.left_out.is_empty() {
            assert_eq!(report.stored_in.len(), 2);
            break report;
        }
        assert_eq!(whole_dumps(&once_more).await, before, "after {after} requests");
        assert_eq!(report.stored_in, [good_one.store().url()]);
        assert_eq!(report.left_out[0].url, once_more.store().url());
        left_out += 1;
        remove_leases(bad.path());
        if left_out % FAILED_MAX == 0 {
            remove_dumps(bad.path());
        }
        after += if requirements::long().is_ok() { 1 } else { 7 };
    };
    assert!(left_out >= 3, "only {left_out} of the dumps left one out");
    assert_eq!(whole_dumps(&once_more).await, std::slice::from_ref(&both.id));
    // What was left there is swept by the dump that got through.
    assert_no_orphans(bad.path());
    for repository in [&good_one, &once_more] {
        common::restore(repository, &both.id, &destination, &overwriting(&destination))
            .await
            .unwrap();
        compare(&source, &destination);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dump_that_gets_into_neither_fails_and_leaves_nothing() {
    let source = require!(source());
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for (after, of_the_other) in [(12, 12), (9, 20), (25, 14)] {
        let faulty = async |folder: &Path, after| {
            repository_through(folder, impatient(plan(&format!("outage={after}:600s")))).await
        };
        let (a, b) = (
            faulty(one.path(), after).await,
            faulty(other.path(), of_the_other).await,
        );
        let error = dump_into(&[&a, &b], &source).await.unwrap_err();
        assert!(
            matches!(error, DumpError::Repository(RepositoryError::Store(_))),
            "{error}"
        );
        for folder in [one.path(), other.path()] {
            assert!(whole_dumps(&sound(folder).await).await.is_empty());
            remove_leases(folder);
        }
    }
    let (a, b) = (sound(one.path()).await, sound(other.path()).await);
    dump_into(&[&a, &b], &source).await.unwrap();
    assert_no_orphans(one.path());
    assert_no_orphans(other.path());
}

/// Two dumps into the same repositories: one does it all, the other nothing. Where only the second repository is taken, by a
/// prune from elsewhere say, it is left out.
#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_is_held_keeps_out_of_its_repository_or_of_all() {
    let source = require!(source());
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    // The lease of the one whose own name comes first is asked for first.
    let mut both = [sound(one.path()).await, sound(other.path()).await];
    both.sort_by(|a, b| a.marker().repository.cmp(&b.marker().repository));
    let [a, b] = both;
    let hour = Duration::from_secs(3600);

    let lease = Lease::acquire(&a, "a test", hour).await.unwrap();
    let refused = dump_into(&[&a, &b], &source).await.unwrap_err();
    assert!(
        matches!(refused, DumpError::Repository(RepositoryError::LeaseHeld { .. })),
        "{refused}"
    );
    assert!(whole_dumps(&b).await.is_empty());
    lease.release().await.unwrap();
    // The refused one holds no lease of the other.
    Lease::acquire(&b, "a test", hour)
        .await
        .unwrap()
        .release()
        .await
        .unwrap();

    let lease = Lease::acquire(&b, "a test", hour).await.unwrap();
    let report = dump_into(&[&a, &b], &source).await.unwrap();
    assert_eq!(report.stored_in, [a.store().url()]);
    assert!(matches!(
        report.left_out[0].error,
        DumpError::Repository(RepositoryError::LeaseHeld { .. })
    ));
    assert!(b.ids(BackupKind::Dump).await.unwrap().is_empty());
    lease.release().await.unwrap();
    let report = dump_into(&[&a, &b], &source).await.unwrap();
    assert_eq!(report.stored_in.len(), 2);
}
