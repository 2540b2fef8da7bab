//! What the store takes from its surroundings: a private authority, profiles, a disk that's full. Where that needs an
//! environment of its own, the test runs itself again in a child process.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use bytes::Bytes;
use pgkeep_base::{Classified, Secret};
use pgkeep_store::{PutOutcome, Store, StoreErrorKind, StoreOptions};
use pgkeep_testkit::require;
use pgkeep_testkit::requirements::Missing;
use pgkeep_testkit::stores::{RcloneS3, SeaweedFs};

/// Names what the child process is to work on.
const CHILD: &str = "PGKEEP_TEST_STORE_CHILD";

fn child() -> Option<String> {
    std::env::var(CHILD).ok()
}

/// This test's program and the arguments that make it run `test` only.
fn itself(test: &str) -> (String, [String; 3]) {
    let program = std::env::current_exe().unwrap().to_str().unwrap().to_owned();
    (
        program,
        [test.to_owned(), "--exact".to_owned(), "--nocapture".to_owned()],
    )
}

fn passes(command: &mut Command) {
    let output = command.output().unwrap();
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
    assert!(!text.contains("hunter2"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_private_authority_is_trusted_when_named_and_refused_else() {
    let certified = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let pem = certified.cert.pem();
    let server = require!(RcloneS3::start_with_tls(
        &pem,
        &certified.signing_key.serialize_pem()
    ));
    let bucket = server.bucket("bucket");
    let mut options = super::s3(&server.endpoint, &server.access_key, &server.secret_key);

    let started = std::time::Instant::now();
    let error = Store::open(&bucket, &options)
        .await
        .unwrap()
        .get("a", 1)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("certificate was refused"), "{error}");
    assert!(
        started.elapsed() < Duration::from_secs(30),
        "trying again is no use"
    );

    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), &pem).unwrap();
    options.ca_certificates_path = Some(file.path().to_owned());
    let store = Store::open(&bucket, &options).await.unwrap();
    assert_eq!(
        store.put_new("a", Bytes::from_static(b"x")).await.unwrap(),
        PutOutcome::Created
    );
    assert_eq!(store.get("a", 1).await.unwrap(), "x");

    fs::write(file.path(), "no certificate").unwrap();
    let error = Store::open(&bucket, &options).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::InvalidUrl, "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_profile_gives_credentials_and_region() {
    if let Some(endpoint) = child() {
        return use_profiles(&endpoint).await;
    }
    let server = require!(SeaweedFs::start());
    server.bucket("bucket");
    let directory = tempfile::tempdir().unwrap();
    let (config, credentials) = (
        directory.path().join("config"),
        directory.path().join("credentials"),
    );
    fs::write(
        &config,
        "[profile work]\nregion = eu-central-1\n[profile typo]\nregion = x\n",
    )
    .unwrap();
    let keys = format!(
        "aws_access_key_id = {}\naws_secret_access_key = {}\n",
        server.access_key, server.secret_key
    );
    fs::write(&credentials, format!("[work]\n{keys}[default]\n{keys}")).unwrap();
    let (program, arguments) = itself("surroundings::a_profile_gives_credentials_and_region");
    let mut command = Command::new(program);
    command.args(arguments).env(CHILD, &server.endpoint);
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("AWS_")) {
        command.env_remove(name);
    }
    command
        .env("AWS_CONFIG_FILE", config)
        .env("AWS_SHARED_CREDENTIALS_FILE", credentials);
    passes(&mut command);
}

async fn use_profiles(endpoint: &str) {
    let mut options = StoreOptions::default();
    options.s3.endpoint = Some(endpoint.to_owned());
    for (n, profile) in [Some("work"), None].into_iter().enumerate() {
        options.s3.profile = profile.map(str::to_owned);
        let store = Store::open("s3://bucket", &options).await.unwrap();
        let outcome = store
            .put_new(&format!("by-profile-{n}"), Bytes::from_static(b"x"))
            .await
            .unwrap();
        assert_eq!(outcome, PutOutcome::Created);
    }
    for missing in ["none", "typo"] {
        options.s3.profile = Some(missing.to_owned());
        let error = Store::open("s3://bucket", &options).await.unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::AuthenticationFailed);
        assert!(error.to_string().contains(&format!("'{missing}'")), "{error}");
    }
}

/// Google and Azure can't run here: that their stores open, and say what is missing, can be tried.
#[tokio::test]
async fn the_other_clouds_open_or_say_what_is_missing() {
    let mut options = StoreOptions::default();
    options.azure.access_key = Some(Secret::new("aHVudGVyMg=="));
    let store = Store::open("az://container@account/prefix", &options)
        .await
        .unwrap();
    assert_eq!(store.url(), "az://container@account/prefix");
    let error = Store::open("az://container/prefix", &options).await.unwrap_err();
    assert!(
        error.to_string().contains("az://container@account/prefix"),
        "{error}"
    );
    options.gcs.service_account_path = Some("/nonexistent/key.json".into());
    let error = Store::open("gs://bucket/prefix", &options).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::InvalidUrl);
    assert!(error.to_string().contains("gs://bucket/prefix"), "{error}");

    options.s3.endpoint = Some("http://example.com".to_owned());
    let error = Store::open("s3://bucket", &options).await.unwrap_err();
    assert!(error.to_string().contains("allow_http"), "{error}");
    options.s3.endpoint = Some("https://user:hunter2@example.com".to_owned());
    let error = Store::open("s3://bucket", &options).await.unwrap_err();
    assert!(!error.to_string().contains("hunter2"), "{error}");
    options.s3.endpoint = None;
    options.s3.access_key_id = Some(Secret::new("a"));
    let error = Store::open("s3://bucket", &options).await.unwrap_err();
    assert!(error.to_string().contains("go together"), "{error}");
}

#[tokio::test]
async fn a_full_disk_is_said_and_leaves_nothing() {
    if let Some(directory) = child() {
        return fill_disk(Path::new(&directory)).await;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_str().unwrap();
    // A mount namespace of its own: the small file system is gone with the child.
    let unshare = |script: &str| {
        let mut command = Command::new("unshare");
        command
            .args(["--map-root-user", "--mount", "sh", "-c", script, "sh", path])
            .env(CHILD, path);
        command
    };
    let mount = "mount -t tmpfs -o size=512k tmpfs \"$1\"";
    if !unshare(mount)
        .output()
        .is_ok_and(|output| output.status.success())
    {
        pgkeep_testkit::skip(&Missing(
            "a mount namespace (unshare --map-root-user --mount)".to_owned(),
        ));
        return;
    }
    let (program, arguments) = itself("surroundings::a_full_disk_is_said_and_leaves_nothing");
    passes(
        unshare(&format!("{mount} && shift && exec \"$@\""))
            .arg(program)
            .args(arguments),
    );
}

async fn fill_disk(directory: &Path) {
    let store = Store::open(
        &format!("file://{}", directory.display()),
        &StoreOptions::default(),
    )
    .await
    .unwrap();
    assert_eq!(
        store.put_new("fits", vec![1; 1000].into()).await.unwrap(),
        PutOutcome::Created
    );
    let error = store
        .put_new("large/object", vec![1; 1_000_000].into())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::NoSpace, "{error}");
    assert!(
        error
            .hint()
            .is_some_and(|hint| hint.as_str().contains("free space")),
        "{error}"
    );
    let mut writer = store.put_stream("stream").await.unwrap();
    let error = writer.write(vec![1; 1_000_000].into()).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::NoSpace, "{error}");
    assert!(writer.write(Bytes::from_static(b"more")).await.is_err());
    assert!(writer.finish().await.is_err());
    // The room that the failed writes took is there again.
    assert_eq!(
        store.put_new("more", vec![1; 300_000].into()).await.unwrap(),
        PutOutcome::Created
    );
    let names: Vec<_> = store
        .list("")
        .await
        .unwrap()
        .into_iter()
        .map(|object| object.key)
        .collect();
    assert_eq!(names, ["fits", "more"]);
    assert_eq!(store.remove_leftovers("", Duration::ZERO).await.unwrap(), 0);
}
