//! Requests that fail, answers that get lost, stalls, outages and cut downloads: every operation ends right, or with a
//! clean error, and nobody is told that he wrote what somebody else did. Time is paused where no socket is involved.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use pgkeep_base::{Classified, RetryClass};
use pgkeep_store::fault::FaultPlan;
use pgkeep_store::{PutOutcome, RetryOptions, Store, StoreErrorKind, StoreOptions};
use pgkeep_testkit::require;
use pgkeep_testkit::stores::SeaweedFs;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::time::Instant;

const SECOND: Duration = Duration::from_secs(1);

fn plans(seed: u64) -> Vec<FaultPlan> {
    let plan = FaultPlan {
        seed,
        ..FaultPlan::default()
    };
    vec![
        FaultPlan {
            fail_one_in: 5,
            ..plan.clone()
        },
        FaultPlan {
            lose_ack_one_in: 2,
            ..plan.clone()
        },
        // Longer than any request may take.
        FaultPlan {
            stall: Some((20, 10_000 * SECOND)),
            ..plan.clone()
        },
        FaultPlan {
            outage: Some((10, 60 * SECOND)),
            ..plan.clone()
        },
        FaultPlan {
            cut_reads_one_in: 2,
            truncate_reads_one_in: 2,
            ..plan.clone()
        },
        FaultPlan {
            fail_one_in: 5,
            lose_ack_one_in: 5,
            stall: Some((20, 10_000 * SECOND)),
            outage: Some((30, 60 * SECOND)),
            cut_reads_one_in: 3,
            truncate_reads_one_in: 3,
            ..plan
        },
    ]
}

fn with_faults(options: &StoreOptions, plan: &FaultPlan) -> StoreOptions {
    StoreOptions {
        faults: Some(plan.clone()),
        ..options.clone()
    }
}

#[tokio::test(start_paused = true)]
async fn in_memory_everything_ends_right_in_spite_of_faults() {
    for seed in 0..12 {
        for (n, plan) in plans(seed).iter().enumerate() {
            let url = format!("memory://faults-{seed}-{n}");
            let options = StoreOptions::default();
            let clean = Store::open(&url, &options).await.unwrap();
            let faulty = Store::open(&url, &with_faults(&options, plan)).await.unwrap();
            works(&clean, &faulty, plan).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn in_files_everything_ends_right_in_spite_of_faults() {
    for seed in 0..4 {
        for plan in plans(seed) {
            let directory = tempfile::tempdir().unwrap();
            let url = format!("file://{}", directory.path().display());
            let options = StoreOptions::default();
            let clean = Store::open(&url, &options).await.unwrap();
            let faulty = Store::open(&url, &with_faults(&options, &plan)).await.unwrap();
            works(&clean, &faulty, &plan).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_s3_everything_ends_right_in_spite_of_faults() {
    let server = require!(SeaweedFs::start());
    // Real time, so nothing that waits long.
    let mut options = super::seaweedfs(&server);
    options.retry.backoff_base = Duration::from_millis(5);
    options.retry.backoff_max = Duration::from_millis(50);
    for seed in 0..2 {
        let plan = FaultPlan {
            seed,
            fail_one_in: 5,
            lose_ack_one_in: 5,
            outage: Some((30, SECOND)),
            cut_reads_one_in: 3,
            truncate_reads_one_in: 3,
            ..FaultPlan::default()
        };
        let bucket = server.bucket(&format!("faults-{seed}"));
        let clean = Store::open(&bucket, &options).await.unwrap();
        let faulty = Store::open(&bucket, &with_faults(&options, &plan)).await.unwrap();
        works(&clean, &faulty, &plan).await;
    }
}

/// What a backup does with a store, checked through a store without faults.
async fn works(clean: &Store, faulty: &Store, plan: &FaultPlan) {
    let mut random = StdRng::seed_from_u64(plan.seed);
    let mut expected = BTreeMap::new();
    for n in 0..12 {
        let key = format!("put/{n:02}");
        let body = unique(&mut random);
        let theirs = unique(&mut random);
        // Somebody else was there before.
        let taken = random.random_ratio(1, 3);
        if taken {
            assert_eq!(
                clean.put_new(&key, theirs.clone()).await.unwrap(),
                PutOutcome::Created
            );
        }
        let outcome = faulty
            .put_new(&key, body.clone())
            .await
            .unwrap_or_else(|error| panic!("{plan:?}: {error}"));
        let wanted = if taken {
            PutOutcome::AlreadyExists
        } else {
            PutOutcome::Created
        };
        assert_eq!(outcome, wanted, "{plan:?} {key}");
        expected.insert(key, if taken { theirs } else { body });
    }
    for (key, body) in &expected {
        assert!(clean.get(key, u64::MAX).await.unwrap() == body, "{plan:?} {key}");
        assert!(faulty.get(key, u64::MAX).await.unwrap() == body, "{plan:?} {key}");
        let middle = body.len() / 3..body.len() / 2;
        let range = middle.start as u64..middle.end as u64;
        assert!(
            faulty.get_range(key, range).await.unwrap() == body.slice(middle),
            "{plan:?} {key}"
        );
        assert_eq!(
            faulty.head(key).await.unwrap().map(|object| object.size),
            Some(body.len() as u64)
        );
    }
    let keys = |objects: Vec<pgkeep_store::ObjectInfo>| {
        objects.into_iter().map(|object| object.key).collect::<Vec<_>>()
    };
    let listed = keys(
        faulty
            .list("put")
            .await
            .unwrap_or_else(|error| panic!("{plan:?}: {error}")),
    );
    assert_eq!(listed, expected.keys().cloned().collect::<Vec<_>>(), "{plan:?}");
    assert_eq!(faulty.list_directories("").await.unwrap(), ["put"], "{plan:?}");

    races(clean, faulty, plan, &mut random).await;

    let (gone, kept) = listed.split_at(6);
    faulty.delete_all(gone.to_vec()).await.unwrap();
    faulty.delete(&kept[0]).await.unwrap();
    assert_eq!(keys(clean.list("put").await.unwrap()), kept[1..], "{plan:?}");
}

/// Several writers of one name, all with faults: one winner at most, and his bytes.
async fn races(clean: &Store, faulty: &Store, plan: &FaultPlan, random: &mut StdRng) {
    for race in 0..3 {
        let key = format!("race/{race}");
        let bodies: Vec<_> = (0..4).map(|_| unique(random)).collect();
        let puts = bodies.iter().map(|body| faulty.put_new(&key, body.clone()));
        let outcomes = futures::future::join_all(puts).await;
        let found = clean.get(&key, u64::MAX).await.unwrap();
        for (outcome, body) in outcomes.into_iter().zip(&bodies) {
            let outcome = outcome.unwrap_or_else(|error| panic!("{plan:?}: {error}"));
            assert_eq!(outcome == PutOutcome::Created, *body == found, "{plan:?} {key}");
        }
    }
}

/// Never the same twice, and often of the same length: only the bytes tell them apart.
fn unique(random: &mut StdRng) -> Bytes {
    let length = if random.random() {
        10_000
    } else {
        random.random_range(16..30_000)
    };
    let mut bytes = vec![0; length];
    random.fill(&mut bytes[..]);
    bytes.into()
}

#[tokio::test(start_paused = true)]
async fn a_minute_without_the_store_is_waited_out() {
    for seed in 0..20 {
        let plan = FaultPlan {
            seed,
            outage: Some((0, 60 * SECOND)),
            ..FaultPlan::default()
        };
        let options = with_faults(&StoreOptions::default(), &plan);
        let store = Store::open("memory://", &options).await.unwrap();
        let started = Instant::now();
        assert_eq!(
            store.put_new("a", Bytes::from_static(b"x")).await.unwrap(),
            PutOutcome::Created
        );
        let elapsed = started.elapsed();
        assert!(elapsed >= 60 * SECOND && elapsed < 75 * SECOND, "{elapsed:?}");
        assert!(store.requests().retries > 3);
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_stays_away_is_given_up_within_the_budget() {
    let plan = FaultPlan {
        outage: Some((1, 86_400 * SECOND)),
        ..FaultPlan::default()
    };
    let options = with_faults(&StoreOptions::default(), &plan);
    let store = Store::open("memory://", &options).await.unwrap();
    // It was there once, so it gets the whole budget.
    assert_eq!(
        store.put_new("a", Bytes::from_static(b"x")).await.unwrap(),
        PutOutcome::Created
    );
    let started = Instant::now();
    let error = store.put_new("b", Bytes::from_static(b"x")).await.unwrap_err();
    let elapsed = started.elapsed();
    assert!(elapsed > 60 * SECOND && elapsed <= 300 * SECOND, "{elapsed:?}");
    assert_eq!(
        (error.kind(), error.retry_class()),
        (StoreErrorKind::Unreachable, RetryClass::Transient)
    );
    assert!(!error.may_have_happened(), "every connection was refused");
    let text = error.to_string();
    assert!(
        text.contains("object 'b'") && text.contains("memory://") && text.contains("attempts in"),
        "{text}"
    );
    assert!(store.get("a", 1).await.is_err());
    assert!(store.list("").await.is_err());
    assert!(store.delete("a").await.is_err());
    assert!(store.head("a").await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_store_that_never_answers_is_given_up_sooner() {
    let plan = FaultPlan {
        outage: Some((0, 86_400 * SECOND)),
        ..FaultPlan::default()
    };
    let store = Store::open("memory://", &with_faults(&StoreOptions::default(), &plan))
        .await
        .unwrap();
    let started = Instant::now();
    store.head("a").await.unwrap_err();
    assert!(started.elapsed() <= 90 * SECOND, "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn every_attempt_has_a_deadline() {
    let plan = FaultPlan {
        stall: Some((1, 1_000_000 * SECOND)),
        ..FaultPlan::default()
    };
    let options = StoreOptions {
        retry: RetryOptions {
            attempts_max: 2,
            ..RetryOptions::default()
        },
        ..with_faults(&StoreOptions::default(), &plan)
    };
    let store = Store::open("memory://", &options).await.unwrap();
    for bytes in [1, 64 * 1024 * 1024] {
        let started = Instant::now();
        let error = store.put_new("a", vec![0; bytes].into()).await.unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::Timeout, "{error}");
        assert!(error.may_have_happened());
        // A minute and a second for each 64 KiB, but no second attempt behind the budget.
        let deadline = 60 + bytes as u64 / (64 * 1024);
        assert!(
            started.elapsed() <= Duration::from_secs(2 * deadline + 1),
            "{:?}",
            started.elapsed()
        );
    }
    assert_eq!(
        store.get("a", 1).await.unwrap_err().kind(),
        StoreErrorKind::Timeout
    );
    assert_eq!(store.list("").await.unwrap_err().kind(), StoreErrorKind::Timeout);
    assert_eq!(
        store.delete("a").await.unwrap_err().kind(),
        StoreErrorKind::Timeout
    );
}

#[tokio::test(start_paused = true)]
async fn a_body_that_always_ends_early_is_an_error() {
    let clean = Store::open("memory://short", &StoreOptions::default())
        .await
        .unwrap();
    assert_eq!(
        clean.put_new("a", Bytes::from_static(b"x")).await.unwrap(),
        PutOutcome::Created
    );
    let plan = FaultPlan {
        truncate_reads_one_in: 1,
        ..FaultPlan::default()
    };
    let store = Store::open("memory://short", &with_faults(&StoreOptions::default(), &plan))
        .await
        .unwrap();
    let error = store.get("a", 1).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::ShortBody, "{error}");
}

#[tokio::test(start_paused = true)]
async fn an_object_of_unknown_size_is_whole_in_spite_of_faults() {
    for seed in 0..12 {
        let plan = FaultPlan {
            seed,
            fail_one_in: 4,
            lose_ack_one_in: 4,
            ..FaultPlan::default()
        };
        let url = format!("memory://stream-{seed}");
        let clean = Store::open(&url, &StoreOptions::default()).await.unwrap();
        let store = Store::open(&url, &with_faults(&StoreOptions::default(), &plan))
            .await
            .unwrap();
        let piece = Bytes::from(vec![u8::try_from(seed).unwrap(); 1024 * 1024 + 1]);
        let mut writer = store.put_stream("a").await.unwrap();
        for _ in 0..70 {
            writer.write(piece.clone()).await.unwrap();
        }
        let written = writer
            .finish()
            .await
            .unwrap_or_else(|error| panic!("{plan:?}: {error}"));
        assert_eq!(written, 70 * piece.len() as u64);
        let body = clean.get("a", u64::MAX).await.unwrap();
        assert!(
            body.len() as u64 == written && body.chunks(piece.len()).all(|chunk| chunk == piece),
            "{plan:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn uploads_keep_to_their_bandwidth() {
    let options = StoreOptions {
        upload_bytes_per_second_max: Some(100_000),
        ..StoreOptions::default()
    };
    let store = Store::open("memory://", &options).await.unwrap();
    let started = Instant::now();
    let names: Vec<_> = (0..11).map(|n| format!("{n}")).collect();
    let puts = names
        .iter()
        .map(|name| store.put_new(name, vec![0; 100_000].into()));
    for outcome in futures::future::join_all(puts).await {
        assert_eq!(outcome.unwrap(), PutOutcome::Created);
    }
    let elapsed = started.elapsed();
    assert!(elapsed >= 10 * SECOND && elapsed < 11 * SECOND, "{elapsed:?}");
}
