//! WAL in the repository: names that are taken, parts and wholes, holes, coverage; stock age and zstd as referees.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests")]

use std::path::Path;
use std::process::Command;

use bytes::Bytes;
use pgkeep_base::{Classified, RetryClass};
use pgkeep_pgformat::{Lsn, SegmentName, SegmentSize, Timeline, WalFileName};
use pgkeep_repository::encryption::Encryption;
use pgkeep_repository::keys::{self, Identity, Recipient};
use pgkeep_repository::wal::{Covered, Stored, WalObject};
use pgkeep_repository::{Access, Repository, RepositoryError};
use pgkeep_store::fault::FaultPlan;
use pgkeep_store::{Store, StoreOptions};
use pgkeep_testkit::requirements::tool;
use pgkeep_testkit::{require, run};

const SYSTEM: u64 = 7_345_678_901_234_567_890;
const MIB: usize = 1 << 20;

fn size() -> SegmentSize {
    SegmentSize::new(MIB as u64).unwrap()
}

fn segment(number: u64) -> SegmentName {
    SegmentName::holding(Timeline::FIRST, Lsn::new(number << 20), size())
}

fn lsn(at: u64) -> Lsn {
    Lsn::new(at)
}

/// The contents of a segment.
fn contents(number: u64) -> Bytes {
    let mut state = number * 2 + 1;
    let bytes = (0..MIB).map(|at| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(at as u64);
        (state >> 60) as u8
    });
    bytes.collect()
}

async fn open(folder: &Path, encryption: Encryption, identities: Vec<Identity>) -> Repository {
    open_with(folder, encryption, identities, &StoreOptions::default()).await
}

async fn open_with(
    folder: &Path,
    encryption: Encryption,
    identities: Vec<Identity>,
    options: &StoreOptions,
) -> Repository {
    let url = format!("file://{}", folder.display());
    let store = Store::open(&url, options).await.unwrap();
    let access = Access {
        encryption,
        identities,
        compression_level: 1,
    };
    let repository = Repository::open_or_create(store, "main", access).await.unwrap();
    repository.claim_wal(SYSTEM, size()).await.unwrap();
    repository
}

async fn plain(folder: &Path) -> Repository {
    open(folder, Encryption::None, Vec::new()).await
}

fn sealed(recipients: &[Recipient]) -> Encryption {
    Encryption::Age {
        recipients: recipients.to_vec(),
    }
}

/// A repository of each kind, the second with the public key alone.
async fn both(first: &Path, second: &Path) -> [Repository; 2] {
    let (_, recipient) = keys::generate();
    [
        plain(first).await,
        open(second, sealed(&[recipient]), Vec::new()).await,
    ]
}

#[tokio::test]
async fn a_name_that_is_taken_tells_the_same_bytes_from_others_without_a_key() {
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for repository in both(first.path(), second.path()).await {
        let name = segment(3);
        let put = |bytes: Bytes| repository.put_wal_segment(SYSTEM, &name, bytes);
        assert_eq!(put(contents(3)).await.unwrap(), Stored::Created);
        assert_eq!(put(contents(3)).await.unwrap(), Stored::SameBytes);
        assert_eq!(put(contents(4)).await.unwrap(), Stored::OtherBytes);
        let part = |bytes: Bytes| repository.put_wal_part(SYSTEM, &name, 16, bytes);
        assert_eq!(part(contents(3).slice(16..99)).await.unwrap(), Stored::Created);
        assert_eq!(part(contents(3).slice(16..99)).await.unwrap(), Stored::SameBytes);
        assert_eq!(
            part(contents(3).slice(17..100)).await.unwrap(),
            Stored::OtherBytes
        );
        let history = Bytes::from_static(b"1\t0/3000158\tno recovery target specified\n");
        let two = Timeline::new(2).unwrap();
        for (bytes, expected) in [
            (history.clone(), Stored::Created),
            (history, Stored::SameBytes),
            (Bytes::from_static(b"1\t0/4\tx\n"), Stored::OtherBytes),
        ] {
            assert_eq!(
                repository.put_wal_history(SYSTEM, two, bytes).await.unwrap(),
                expected
            );
        }
    }
}

#[tokio::test]
async fn what_has_the_wrong_size_is_not_put() {
    let folder = tempfile::tempdir().unwrap();
    let repository = plain(folder.path()).await;
    let short = contents(1).slice(1..);
    assert!(
        repository
            .put_wal_segment(SYSTEM, &segment(1), short.clone())
            .await
            .is_err()
    );
    assert!(
        repository
            .put_wal_part(SYSTEM, &segment(1), 2, short)
            .await
            .is_err()
    );
    assert!(
        repository
            .put_wal_part(SYSTEM, &segment(1), 2, Bytes::new())
            .await
            .is_err()
    );
    assert_eq!(
        repository.wal_coverage(SYSTEM, Timeline::FIRST).await.unwrap(),
        []
    );
}

#[tokio::test]
async fn another_size_of_segments_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let repository = plain(folder.path()).await;
    repository.claim_wal(SYSTEM, size()).await.unwrap();
    let error = repository
        .claim_wal(SYSTEM, SegmentSize::DEFAULT)
        .await
        .unwrap_err();
    assert_eq!(error.retry_class(), RetryClass::Refused, "{error}");
    repository
        .claim_wal(SYSTEM + 1, SegmentSize::DEFAULT)
        .await
        .unwrap();
    assert_eq!(repository.wal_systems().await.unwrap(), [SYSTEM, SYSTEM + 1]);
}

#[tokio::test]
async fn parts_are_a_segment_filled_up_with_zeros() {
    let (identity, recipient) = keys::generate();
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for repository in [
        plain(first.path()).await,
        open(second.path(), sealed(&[recipient]), vec![identity]).await,
    ] {
        let (name, all) = (segment(5), contents(5));
        assert_eq!(repository.fetch_wal(SYSTEM, &name).await.unwrap(), None);
        for (from, to) in [(0, 100), (100, 5000), (4000, 9000), (200, 300)] {
            let put = repository.put_wal_part(SYSTEM, &name, from, all.slice(from as usize..to));
            assert_eq!(put.await.unwrap(), Stored::Created);
        }
        let mut expected = all[..9000].to_vec();
        expected.resize(MIB, 0);
        let fetched = repository.fetch_wal(SYSTEM, &name).await.unwrap();
        assert!(fetched.is_some_and(|fetched| fetched == expected));
        let covered = Covered {
            start: name.start(),
            end: lsn(name.start().as_u64() + 9000),
        };
        assert_eq!(
            repository.wal_coverage(SYSTEM, Timeline::FIRST).await.unwrap(),
            [covered]
        );
        // The whole one counts, whatever parts there are.
        assert_eq!(
            repository
                .put_wal_segment(SYSTEM, &name, all.clone())
                .await
                .unwrap(),
            Stored::Created
        );
        let fetched = repository.fetch_wal(SYSTEM, &name).await.unwrap();
        assert!(fetched.is_some_and(|fetched| fetched == all));
    }
}

#[tokio::test]
async fn a_hole_is_an_error_and_never_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let repository = plain(folder.path()).await;
    let hole = async |number: u64| match repository.fetch_wal(SYSTEM, &segment(number)).await {
        Err(RepositoryError::WalHole { .. }) => true,
        Err(error) => panic!("{error}"),
        Ok(_) => false,
    };
    let part = async |number: u64, from: usize, to: usize| {
        let bytes = contents(number).slice(from..to);
        let name = segment(number);
        let put = repository.put_wal_part(SYSTEM, &name, from as u32, bytes);
        assert_eq!(put.await.unwrap(), Stored::Created);
    };
    let whole = async |number: u64| {
        let name = segment(number);
        let put = repository.put_wal_segment(SYSTEM, &name, contents(number));
        assert_eq!(put.await.unwrap(), Stored::Created);
    };
    // Within a segment, or before its first part.
    part(4095, 50, 100).await;
    assert!(hole(4095).await);
    part(4095, 0, 50).await;
    assert!(!hole(4095).await, "it is the last one");
    part(4095, 120, 130).await;
    assert!(hole(4095).await);
    part(4095, 100, 120).await;
    // In another folder: 4096 segments of a megabyte have one.
    whole(4097).await;
    assert!(hole(4095).await, "it isn't whole, and another follows");
    assert!(hole(4096).await);
    assert!(!hole(4098).await, "behind all of them");
    assert!(!hole(4094).await, "before all of them");
    assert!(!hole(17).await, "before all of them, in another folder");
    whole(4095).await;
    whole(4096).await;
    for number in 4095..4098 {
        assert!(!hole(number).await);
    }
    let coverage = repository.wal_coverage(SYSTEM, Timeline::FIRST).await.unwrap();
    let (start, end) = (lsn(4095 << 20), lsn(4098 << 20));
    assert_eq!(coverage, [Covered { start, end }]);
    // Another timeline's WAL is none of this one's.
    let other = segment(4098).on(Timeline::new(2).unwrap());
    let put = repository.put_wal_segment(SYSTEM, &other, contents(1));
    assert_eq!(put.await.unwrap(), Stored::Created);
    assert!(!hole(4098).await);
    assert_eq!(repository.wal_timelines(SYSTEM).await.unwrap().len(), 2);
}

#[tokio::test]
async fn files_that_recovery_does_not_ask_for_are_kept_as_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let repository = plain(folder.path()).await;
    let files = [
        (WalFileName::Partial(segment(1)), contents(1)),
        (
            WalFileName::Backup {
                segment: segment(1),
                offset: 40,
            },
            Bytes::from_static(b"START WAL LOCATION: ..."),
        ),
    ];
    for (name, bytes) in files {
        let put = repository.put_wal_bytes(SYSTEM, WalObject::File(name), bytes.clone());
        assert_eq!(put.await.unwrap(), Stored::Created);
        let found = repository.fetch_wal_file(SYSTEM, name).await.unwrap();
        assert!(found.is_some_and(|found| found == bytes), "{name}");
    }
    assert_eq!(
        repository.wal_coverage(SYSTEM, Timeline::FIRST).await.unwrap(),
        []
    );
    assert_eq!(repository.fetch_wal(SYSTEM, &segment(1)).await.unwrap(), None);
}

/// A put whose answer was lost is the put's own; one that another process made has the same bytes or others.
#[tokio::test]
async fn a_store_that_fails_and_loses_answers_changes_no_outcome() {
    for seed in 0..8 {
        let folder = tempfile::tempdir().unwrap();
        let faults = FaultPlan {
            seed,
            fail_one_in: 4,
            lose_ack_one_in: 4,
            truncate_reads_one_in: 5,
            ..FaultPlan::default()
        };
        let mut options = StoreOptions {
            faults: Some(faults),
            ..StoreOptions::default()
        };
        options.retry.backoff_base = std::time::Duration::from_millis(1);
        options.retry.backoff_max = std::time::Duration::from_millis(2);
        let (identity, recipient) = keys::generate();
        let repository = open_with(folder.path(), sealed(&[recipient]), vec![identity], &options).await;
        for number in 1..4 {
            let name = segment(number);
            for expected in [Stored::Created, Stored::SameBytes] {
                let put = repository.put_wal_segment(SYSTEM, &name, contents(number));
                assert_eq!(put.await.unwrap(), expected, "seed {seed}");
            }
            let put = repository.put_wal_segment(SYSTEM, &name, contents(9));
            assert_eq!(put.await.unwrap(), Stored::OtherBytes, "seed {seed}");
            let fetched = repository.fetch_wal(SYSTEM, &segment(number)).await.unwrap();
            assert!(fetched.is_some_and(|fetched| fetched == contents(number)));
        }
    }
}

#[tokio::test]
async fn an_object_that_was_altered_or_cut_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let (identity, recipient) = keys::generate();
    let repository = open(folder.path(), sealed(&[recipient]), vec![identity]).await;
    let name = segment(1);
    let put = repository.put_wal_segment(SYSTEM, &name, contents(1));
    assert_eq!(put.await.unwrap(), Stored::Created);
    let key = format!("main/wal/{SYSTEM}/00000001/00000000/000000010000000000000001.zst.age");
    let path = folder.path().join(key);
    let sound = std::fs::read(&path).unwrap();
    // The hash's digit too: age authenticates its whole header.
    for at in [60, 150, 300, sound.len() / 2, sound.len() - 1] {
        let mut broken = sound.clone();
        broken[at] ^= 1;
        std::fs::write(&path, &broken).unwrap();
        let fetched = repository.fetch_wal(SYSTEM, &segment(1)).await;
        assert!(fetched.is_err(), "byte {at}");
    }
    for length in [0, 40, 200, sound.len() - 1] {
        std::fs::write(&path, &sound[..length]).unwrap();
        assert!(
            repository.fetch_wal(SYSTEM, &segment(1)).await.is_err(),
            "{length} bytes"
        );
    }
}

#[tokio::test]
async fn stock_age_and_zstd_open_wal_for_one_and_for_several_recipients() {
    let (age, zstd) = (require!(tool("age")), require!(tool("zstd")));
    let pairs: Vec<_> = (0..3).map(|_| keys::generate()).collect();
    let recipients: Vec<Recipient> = pairs.iter().map(|(_, recipient)| recipient.clone()).collect();
    for count in [1, 3] {
        let folder = tempfile::tempdir().unwrap();
        let repository = open(folder.path(), sealed(&recipients[..count]), Vec::new()).await;
        let name = segment(0x1_0002);
        let put = repository.put_wal_segment(SYSTEM, &name, contents(2));
        assert_eq!(put.await.unwrap(), Stored::Created);
        let key = format!("main/wal/{SYSTEM}/00000001/00000010/000000010000001000000002.zst.age");
        let object = folder.path().join(key);
        for (identity, _) in &pairs[..count] {
            let key_file = folder.path().join("key.txt");
            std::fs::write(&key_file, identity.to_secret().expose()).unwrap();
            let compressed = folder.path().join("segment.zst");
            run(Command::new(&age)
                .args(["-d", "-i"])
                .arg(&key_file)
                .arg("-o")
                .arg(&compressed)
                .arg(&object));
            let found = Command::new(&zstd).arg("-dc").arg(&compressed).output().unwrap();
            assert!(found.status.success() && found.stdout == contents(2));
        }
    }
}
