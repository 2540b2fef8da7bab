//! What is special about `file://`: modes, durability's traces, what a killed process leaves, a full disk.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use bytes::Bytes;
use pgkeep_base::{Classified, RetryClass};
use pgkeep_store::{PutOutcome, Store, StoreErrorKind, StoreOptions};

async fn open(path: &std::path::Path) -> Store {
    Store::open(&format!("file://{}", path.display()), &StoreOptions::default())
        .await
        .unwrap()
}

#[tokio::test]
async fn files_and_directories_are_private_and_what_is_above_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("above/repository");
    let store = open(&root).await;
    assert!(!root.exists(), "opening makes nothing");
    assert_eq!(
        store.put_new("a/b/c", Bytes::from_static(b"x")).await.unwrap(),
        PutOutcome::Created
    );
    let mode = |path: &str| fs::metadata(root.join(path)).unwrap().permissions().mode() & 0o777;
    assert_eq!(
        (mode(""), mode("a"), mode("a/b"), mode("a/b/c")),
        (0o700, 0o700, 0o700, 0o600)
    );
    let mut writer = store.put_stream("a/stream").await.unwrap();
    writer.write(Bytes::from_static(b"x")).await.unwrap();
    writer.finish().await.unwrap();
    assert_eq!(mode("a/stream"), 0o600);

    store
        .delete_all(vec!["a/b/c".into(), "a/stream".into()])
        .await
        .unwrap();
    assert!(
        root.exists() && !root.join("a").exists(),
        "only what is below the repository is removed when empty"
    );
}

#[tokio::test]
async fn any_directory_will_do() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("Größe 100%25 #1?~ä");
    let escaped = root
        .to_str()
        .unwrap()
        .replace('%', "%25")
        .replace('#', "%23")
        .replace('?', "%3F");
    let store = Store::open(&format!("file://{escaped}"), &StoreOptions::default())
        .await
        .unwrap();
    assert_eq!(
        store.put_new("a/b", Bytes::from_static(b"x")).await.unwrap(),
        PutOutcome::Created
    );
    assert_eq!(fs::read(root.join("a/b")).unwrap(), b"x");
    assert_eq!(store.list("a").await.unwrap()[0].key, "a/b");
    assert_eq!(store.list_directories("").await.unwrap(), ["a"]);
    assert_eq!(store.get("a/b", 1).await.unwrap(), "x");
    let again = Store::open(store.url(), &StoreOptions::default()).await.unwrap();
    again.delete("a/b").await.unwrap();
    assert!(store.list("").await.unwrap().is_empty());
}

#[tokio::test]
async fn what_a_killed_writer_left_is_not_seen_and_can_be_removed() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).await;
    assert_eq!(
        store
            .put_new("dump/one/part", Bytes::from_static(b"x"))
            .await
            .unwrap(),
        PutOutcome::Created
    );
    fs::create_dir_all(directory.path().join("dump/two")).unwrap();
    fs::write(directory.path().join("dump/two/part#123456"), "half").unwrap();
    fs::write(directory.path().join("dump/one/part#99"), "half").unwrap();
    assert_eq!(store.list("").await.unwrap().len(), 1);
    assert_eq!(store.list_directories("dump").await.unwrap(), ["one"]);

    assert_eq!(
        store
            .remove_leftovers("dump", Duration::from_secs(3_600))
            .await
            .unwrap(),
        0
    );
    assert_eq!(store.remove_leftovers("dump", Duration::ZERO).await.unwrap(), 2);
    assert!(!directory.path().join("dump/two").exists());
    assert_eq!(
        fs::read_dir(directory.path().join("dump/one")).unwrap().count(),
        1
    );
}

#[tokio::test]
async fn a_dropped_or_failed_write_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).await;
    assert_eq!(
        store.put_new("a", Bytes::from_static(b"x")).await.unwrap(),
        PutOutcome::Created
    );
    assert_eq!(
        store.put_new("a", Bytes::from_static(b"y")).await.unwrap(),
        PutOutcome::AlreadyExists
    );
    let mut writer = store.put_stream("b").await.unwrap();
    writer.write(Bytes::from_static(b"y")).await.unwrap();
    drop(writer);
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
}

/// A path through a file, and a place where nothing can be made, also by root.
#[tokio::test]
async fn errors_of_the_file_system_are_told_apart() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("file"), "x").unwrap();
    let store = open(&directory.path().join("file")).await;
    let error = store.put_new("a/b", Bytes::from_static(b"x")).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::InvalidKey, "{error}");
    assert_eq!(error.retry_class(), RetryClass::Permanent);

    let store = open("/proc/pgkeep".as_ref()).await;
    let error = store.put_new("a/b", Bytes::from_static(b"x")).await.unwrap_err();
    assert_eq!(error.retry_class(), RetryClass::Permanent, "{error}");
}

/// An interrupted dump sweeps what it has stored: nothing may come after that.
#[test]
fn a_put_that_was_given_up_is_there_at_once_or_never() {
    const ROUNDS: usize = 200;
    // One thread for files: what is queued behind a put begins when the put has ended.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .max_blocking_threads(1)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let directory = tempfile::tempdir().unwrap();
        let store = open(directory.path()).await;
        let mut abandoned = 0;
        for round in 0..ROUNDS {
            let key = format!("object-{round}");
            let put = store.put_new(&key, Bytes::from(vec![7; 64 << 10]));
            // Given up after none, one, two ... turns of the executor.
            let given_up = tokio::select! {
                biased;
                _ = put => false,
                () = turns(round) => true,
            };
            let at_once = directory.path().join(&key).exists();
            tokio::task::spawn_blocking(|| ()).await.unwrap();
            assert_eq!(directory.path().join(&key).exists(), at_once, "{key}");
            abandoned += usize::from(given_up && !at_once);
        }
        assert!(abandoned > 0, "no put was given up in time");
        let left = fs::read_dir(directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name());
        let staged = left.filter(|name| name.to_string_lossy().contains('#')).count();
        assert_eq!(staged, 0, "staged files are left");
    });
}

async fn turns(count: usize) {
    for _ in 0..count {
        tokio::task::yield_now().await;
    }
}
