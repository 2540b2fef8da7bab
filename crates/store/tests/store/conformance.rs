//! One suite that every store has to pass.

use bytes::Bytes;
use pgkeep_store::{PutOutcome, Store, StoreErrorKind, StoreOptions};
use pgkeep_testkit::require;
use pgkeep_testkit::stores::SeaweedFs;

const MIB: usize = 1024 * 1024;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_conforms() {
    conforms(Store::open("memory://", &StoreOptions::default()).await.unwrap()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_conform() {
    let directory = tempfile::tempdir().unwrap();
    // A repository that isn't there yet, and a blank in its path.
    let url = format!("file://{}/a%20repository/below", directory.path().display());
    conforms(Store::open(&url, &StoreOptions::default()).await.unwrap()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_conforms() {
    let server = require!(SeaweedFs::start());
    let options = super::seaweedfs(&server);
    let bucket = server.bucket("plain");
    conforms(
        Store::open(&format!("{bucket}/some/prefix"), &options)
            .await
            .unwrap(),
    )
    .await;
    let whole = Store::open(&bucket, &options).await.unwrap();
    lists(&whole).await;
    deletes(&whole).await;
    // What a bucket with Object Lock insists on is a checksum with each put.
    let locked = format!("{}/prefix", server.bucket_with_lock("locked"));
    puts(&Store::open(&locked, &options).await.unwrap()).await;
}

async fn conforms(store: Store) {
    // Spawned, because what uses a store in earnest is spawned too.
    tokio::spawn(async move {
        puts(&store).await;
        reads(&store).await;
        races(&store).await;
        lists(&store).await;
        deletes(&store).await;
        streams(&store).await;
        refusals(&store).await;
        let counts = store.requests();
        assert!(
            counts.puts > 20
                && counts.gets > 5
                && counts.lists > 5
                && counts.deletes >= 3
                && counts.heads > 3
        );
        assert!(
            counts.bytes_sent > 100 * MIB as u64 && counts.bytes_received > 100 * MIB as u64,
            "{counts:?}"
        );
        assert_eq!(counts.retries, 0);
    })
    .await
    .unwrap();
}

/// Bytes without a pattern that a mistake in offsets could hide in.
fn noise(length: usize) -> Bytes {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.flatten().take(length).collect::<Vec<u8>>().into()
}

async fn puts(store: &Store) {
    let (first, second) = (Bytes::from_static(b"first"), Bytes::from_static(b"second"));
    assert_eq!(
        store.put_new("puts/a", first.clone()).await.unwrap(),
        PutOutcome::Created
    );
    assert_eq!(
        store.put_new("puts/a", second).await.unwrap(),
        PutOutcome::AlreadyExists
    );
    // Not even the same bytes: it's somebody else's object.
    assert_eq!(
        store.put_new("puts/a", first.clone()).await.unwrap(),
        PutOutcome::AlreadyExists
    );
    assert_eq!(store.get("puts/a", 5).await.unwrap(), first);

    assert_eq!(
        store.put_new("puts/empty", Bytes::new()).await.unwrap(),
        PutOutcome::Created
    );
    assert_eq!(store.get("puts/empty", 0).await.unwrap(), Bytes::new());
    assert_eq!(
        store.put_new("puts/empty", first).await.unwrap(),
        PutOutcome::AlreadyExists
    );

    let whole = noise(40 * MIB + 1);
    let parts = vec![
        whole.slice(..1),
        Bytes::new(),
        whole.slice(1..20 * MIB),
        whole.slice(20 * MIB..),
    ];
    assert_eq!(
        store.put_new_parts("puts/parts", parts).await.unwrap(),
        PutOutcome::Created
    );
    assert!(store.get("puts/parts", u64::MAX).await.unwrap() == whole);
}

async fn reads(store: &Store) {
    let body = noise(3 * MIB + 17);
    let length = body.len() as u64;
    assert_eq!(
        store.put_new("reads/a", body.clone()).await.unwrap(),
        PutOutcome::Created
    );
    let error = store.get("reads/a", length - 1).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::TooLarge, "{error}");
    assert!(store.get("reads/a", length).await.unwrap() == body);

    for range in [
        0..1,
        5..6,
        MIB..2 * MIB + 3,
        3 * MIB..body.len(),
        0..body.len(),
        9..9,
    ] {
        let wanted = range.start as u64..range.end as u64;
        assert!(
            store.get_range("reads/a", wanted).await.unwrap() == body.slice(range.clone()),
            "{range:?}"
        );
    }
    for beyond in [0..length + 1, length..length + 1, length + 5..length + 9] {
        assert!(
            store.get_range("reads/a", beyond.clone()).await.is_err(),
            "{beyond:?}"
        );
    }

    let mut reader = store.get_stream("reads/a").await.unwrap();
    assert_eq!(reader.len(), length);
    let mut read = Vec::new();
    while let Some(bytes) = reader.next().await.unwrap() {
        read.extend_from_slice(&bytes);
    }
    assert!(read == body);
    assert!(reader.next().await.unwrap().is_none());

    let info = store.head("reads/a").await.unwrap().unwrap();
    assert_eq!((info.key.as_str(), info.size), ("reads/a", length));
    let age = jiff::Timestamp::now().duration_since(info.modified_at);
    assert!(age.as_secs().abs() < 120, "{info:?}");
    assert_eq!(store.head("reads/none").await.unwrap(), None);
    assert_eq!(
        store.head("reads").await.unwrap(),
        None,
        "a directory is no object"
    );
    let error = store.get("reads/none", 1).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::NotFound, "{error}");
    assert!(
        error.to_string().contains("reads/none") && error.to_string().contains(store.url()),
        "{error}"
    );
}

async fn races(store: &Store) {
    const WRITERS: usize = 12;
    let tasks: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let store = store.clone();
            let body = Bytes::from(format!("writer {writer} ").repeat(10_000));
            tokio::spawn(async move { (store.put_new("races/a", body.clone()).await.unwrap(), body) })
        })
        .collect();
    let mut winners = Vec::new();
    for task in tasks {
        if let (PutOutcome::Created, body) = task.await.unwrap() {
            winners.push(body);
        }
    }
    assert_eq!(winners.len(), 1);
    assert!(store.get("races/a", u64::MAX).await.unwrap() == winners[0]);
}

async fn lists(store: &Store) {
    for key in [
        "lists/b/2",
        "lists/a",
        "lists/b/1",
        "lists/b-2/x",
        "lists/c/d/e",
        "lists/b.x",
        "listsx",
    ] {
        assert_eq!(
            store.put_new(key, Bytes::from(key)).await.unwrap(),
            PutOutcome::Created
        );
    }
    let keys = async |prefix: &str| -> Vec<String> {
        store
            .list(prefix)
            .await
            .unwrap()
            .into_iter()
            .map(|object| object.key)
            .collect()
    };
    let all = [
        "lists/a",
        "lists/b-2/x",
        "lists/b.x",
        "lists/b/1",
        "lists/b/2",
        "lists/c/d/e",
    ];
    assert_eq!(keys("lists").await, all);
    assert_eq!(keys("lists/").await, all);
    assert_eq!(keys("lists/b").await, ["lists/b/1", "lists/b/2"]);
    assert!(keys("lists/none").await.is_empty());
    assert!(keys("").await.len() > all.len());
    let object = &store.list("lists/c").await.unwrap()[0];
    assert_eq!((object.size, object.key.as_str()), (11, "lists/c/d/e"));

    let mut seen = Vec::new();
    store
        .list_each("lists", |object| {
            seen.push(object.key);
            seen.len() < 3
        })
        .await
        .unwrap();
    assert!(
        seen.len() == 3 && seen.iter().all(|key| all.contains(&key.as_str())),
        "{seen:?}"
    );

    assert_eq!(store.list_directories("lists").await.unwrap(), ["b", "b-2", "c"]);
    assert_eq!(store.list_directories("lists/c/").await.unwrap(), ["d"]);
    assert!(store.list_directories("lists/none").await.unwrap().is_empty());
    assert!(
        store
            .list_directories("")
            .await
            .unwrap()
            .contains(&"lists".to_owned())
    );
}

async fn deletes(store: &Store) {
    assert_eq!(
        store
            .put_new("deletes/a/b", Bytes::from_static(b"x"))
            .await
            .unwrap(),
        PutOutcome::Created
    );
    store.delete("deletes/a/b").await.unwrap();
    store.delete("deletes/a/b").await.unwrap();
    store.delete("deletes/none").await.unwrap();
    assert_eq!(store.head("deletes/a/b").await.unwrap(), None);
    // SeaweedFS keeps the empty directory for a while.
    if !store.url().starts_with("s3:") {
        assert!(
            store.list_directories("deletes").await.unwrap().is_empty(),
            "a directory goes with its last object"
        );
    }
    assert_eq!(
        store
            .put_new("deletes/a/b", Bytes::from_static(b"y"))
            .await
            .unwrap(),
        PutOutcome::Created
    );
    store.delete("deletes/a/b").await.unwrap();

    // More than one bulk request, and some that aren't there.
    let keys: Vec<String> = (0..1_050).map(|n| format!("deletes/many/{n:04}")).collect();
    futures::future::join_all(
        keys.chunks(50)
            .step_by(5)
            .flatten()
            .map(|key| store.put_new(key, Bytes::from_static(b"z"))),
    )
    .await;
    assert!(store.list("deletes").await.unwrap().len() >= 200);
    assert_eq!(store.delete_all(keys).await.unwrap(), 1_050);
    assert!(store.list("deletes").await.unwrap().is_empty());
    assert_eq!(store.delete_all(Vec::new()).await.unwrap(), 0);
}

async fn streams(store: &Store) {
    for (key, length, piece) in [
        ("streams/none", 0, 1),
        ("streams/small", 100_000, 999),
        ("streams/large", 70 * MIB, MIB + 1),
    ] {
        let body = noise(length);
        let mut writer = store.put_stream(key).await.unwrap();
        for start in (0..length).step_by(piece) {
            writer
                .write(body.slice(start..length.min(start + piece)))
                .await
                .unwrap();
        }
        assert!(
            store
                .list("streams")
                .await
                .unwrap()
                .iter()
                .all(|object| object.key != key),
            "visible too early"
        );
        assert_eq!(writer.finish().await.unwrap(), length as u64);
        assert!(store.get(key, u64::MAX).await.unwrap() == body, "{key}");
        let error = store.put_stream(key).await.unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::AlreadyExists, "{error}");
    }

    // Taken while it was being written: what is there stays.
    let mut writer = store.put_stream("streams/taken").await.unwrap();
    writer.write(Bytes::from_static(b"mine")).await.unwrap();
    assert_eq!(
        store
            .put_new("streams/taken", Bytes::from_static(b"theirs"))
            .await
            .unwrap(),
        PutOutcome::Created
    );
    let error = writer.finish().await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::AlreadyExists, "{error}");
    assert_eq!(store.get("streams/taken", 9).await.unwrap(), "theirs");

    let mut writer = store.put_stream("streams/aborted").await.unwrap();
    writer.write(noise(33 * MIB)).await.unwrap();
    writer.abort().await;
    assert_eq!(store.head("streams/aborted").await.unwrap(), None);
}

async fn refusals(store: &Store) {
    for key in [
        "",
        "/a",
        "a/",
        "a//b",
        "a/../b",
        ".",
        "a b",
        "a#1",
        "a%20b",
        "ä",
        "a\nb",
        &"k".repeat(1025),
    ] {
        let error = store.put_new(key, Bytes::new()).await.unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::InvalidKey, "{key}: {error}");
    }
}
