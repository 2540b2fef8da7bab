//! A server that crashes or ends sessions in the middle.

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::Duration;

use pgkeep_base::{Classified, RetryClass};
use pgkeep_dump::restore::RestoreOptions;
use pgkeep_dump::{DumpError, DumpOptions};
use pgkeep_pg::programs::ProgramSearch;
use pgkeep_pg::{Conninfo, Environment, PgError, Silence};
use pgkeep_repository::destinations::Destinations;
use pgkeep_store::StoreOptions;
use pgkeep_testkit::{Cluster, Session, StopMode, poll_until, require};

use crate::common::{
    self, PATIENCE, begin_dump, begin_restore, dump_options, repository_through, wait_for_waiter, whole_dumps,
};
use crate::{DATABASE, assert_no_orphans, compare, overwriting, servers, slow, source, wait_for_tables};

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_crashes_in_the_middle_leaves_no_dump() {
    let (mut source, destination) = require!(servers());
    let folder = tempfile::tempdir().unwrap();
    let blocker = blocking(&source);
    let dump = begin_dump(&slow(folder.path()).await, &source, &dump_options(&source));
    wait_for_waiter(&source, DATABASE, "large", "AccessShareLock");
    source.restart(StopMode::Immediate);
    drop(blocker);
    let error = dump.await.unwrap().unwrap_err();
    assert!(matches!(error, DumpError::Pg { .. }), "{error}");
    let sound = repository_through(folder.path(), StoreOptions::default()).await;
    assert!(whole_dumps(&sound).await.is_empty());
    let report = common::dump(&sound, &source, &dump_options(&source))
        .await
        .unwrap();
    assert_no_orphans(folder.path());
    assert_eq!(whole_dumps(&sound).await, std::slice::from_ref(&report.id));
    common::restore(&sound, &report.id, &destination, &overwriting(&destination))
        .await
        .unwrap();
    compare(&source, &destination);
}

/// Ctrl-C ends also a dump that waits for its first connection.
#[tokio::test]
async fn a_dump_is_interrupted_while_it_connects() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let target = Conninfo::parse(&format!("host=127.0.0.1 port={port} user=nobody dbname=postgres"))
        .unwrap()
        .resolve(&Environment::empty())
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let repository = repository_through(folder.path(), StoreOptions::default()).await;
    let options = DumpOptions {
        programs: ProgramSearch::only(folder.path()),
        ..common::options()
    };
    // A server that takes connections and never answers.
    let mut taken = None;
    let connected = async { taken = listener.accept().await.ok() };
    let progress = Arc::default();
    let destinations = Arc::new(Destinations::from(repository));
    let dump = pgkeep_dump::dump(&destinations, &target, &options, &progress, connected);
    let ended = tokio::time::timeout(Duration::from_secs(5), dump).await;
    assert!(matches!(ended, Ok(Err(DumpError::Interrupted))), "{ended:?}");
}

/// Any one of the dump's sessions may be ended by an administrator.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_is_terminated_fails_the_dump() {
    let source = require!(source());
    source.psql(
        DATABASE,
        "CREATE TABLE wide AS SELECT repeat(md5(i::text), 60) AS t FROM generate_series(1, 30000) i",
    );
    let waiting = "wait_event_type = 'Lock'";
    let reading = "state = 'active' AND query LIKE 'COPY%'";
    for (which, blocked) in [(waiting, true), (reading, false)] {
        let error = dump_of_a_terminated_session(&source, which, blocked).await;
        assert!(matches!(error, DumpError::Pg { .. }), "{error}");
        let text = error.to_string();
        // A backend that is blocked in sending goes without a word (postgres.c, ProcessClientWriteInterrupt).
        let is_told = text.contains("terminating connection")
            || (!blocked && text.contains("closed the connection unexpectedly"));
        assert!(is_told, "{error}");
    }
}

/// Dumps until such a session was met.
async fn dump_of_a_terminated_session(source: &Cluster, which: &str, blocked: bool) -> DumpError {
    const ATTEMPTS_MAX: u32 = 50;
    let terminate = format!(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
         WHERE datname = '{DATABASE}' AND application_name = 'pgkeep' AND pid <> pg_backend_pid() AND {which}"
    );
    for _ in 0..ATTEMPTS_MAX {
        let folder = tempfile::tempdir().unwrap();
        let sound = repository_through(folder.path(), StoreOptions::default()).await;
        let blocker = blocked.then(|| blocking(source));
        let dump = begin_dump(&sound, source, &dump_options(source));
        let mut terminated = false;
        poll_until("a session to terminate", PATIENCE, || {
            terminated = source.psql(DATABASE, &terminate) != "0";
            terminated || dump.is_finished()
        });
        let done = dump.await.unwrap();
        drop(blocker);
        if terminated {
            assert!(whole_dumps(&sound).await.is_empty());
            return done.expect_err("the dump of a terminated session");
        }
    }
    panic!("no such session was met: {which}");
}

/// A session that keeps the dump waiting for its locks.
fn blocking(source: &Cluster) -> Session {
    let mut session = source.session(DATABASE);
    session.run("BEGIN; LOCK TABLE large IN ACCESS EXCLUSIVE MODE;");
    session
}

/// The kernel of a machine whose server is stopped or paused goes on taking up connections and answering keepalives;
/// nobody else does.
#[tokio::test(flavor = "multi_thread")]
async fn a_dump_of_a_server_that_is_stopped_comes_to_an_end() {
    let source = require!(source());
    let folder = tempfile::tempdir().unwrap();
    let sound = repository_through(folder.path(), StoreOptions::default()).await;
    let blocker = blocking(&source);
    let silence = Silence {
        max: Duration::from_millis(300),
        answer_max: Duration::from_secs(3),
        ..Silence::default()
    };
    let target = common::target(&source, "postgres").with_silence(silence);
    let options = DumpOptions {
        lock_timeout: Duration::from_secs(3600),
        ..dump_options(&source)
    };
    let dumping = tokio::spawn(async move {
        let progress = Arc::default();
        let destinations = Arc::new(Destinations::from(sound));
        pgkeep_dump::dump(
            &destinations,
            &target,
            &options,
            &progress,
            std::future::pending(),
        )
        .await
    });
    wait_for_waiter(&source, DATABASE, "large", "AccessShareLock");
    let file = std::fs::read_to_string(source.data_dir().join("postmaster.pid")).unwrap();
    let postmaster = file.lines().next().unwrap().to_owned();
    let signal = |name: &str| {
        let sent = std::process::Command::new("kill")
            .args(["-s", name, &postmaster])
            .status();
        assert!(sent.unwrap().success());
    };
    signal("STOP");
    let ended = tokio::time::timeout(PATIENCE, dumping).await;
    signal("CONT");
    drop(blocker);
    let error = ended.expect("it waits for ever").unwrap().unwrap_err();
    let silent = matches!(
        &error,
        DumpError::Pg {
            source: PgError::Silent { .. },
            ..
        }
    );
    assert!(silent && error.retry_class() == RetryClass::Transient, "{error}");
    assert_no_orphans(folder.path());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_into_a_server_that_crashes_goes_on_afterwards() {
    let (source, mut destination) = require!(servers());
    let folder = tempfile::tempdir().unwrap();
    let sound = repository_through(folder.path(), StoreOptions::default()).await;
    let report = common::dump(&sound, &source, &dump_options(&source))
        .await
        .unwrap();
    let options = common::restore_options(&destination);
    let restoring = begin_restore(&slow(folder.path()).await, &report.id, &destination, &options);
    wait_for_tables(&destination);
    destination.restart(StopMode::Immediate);
    let error = restoring.await.unwrap().unwrap_err();
    assert!(matches!(error, DumpError::Unfinished { .. }), "{error}");
    assert!(error.hint().unwrap().as_str().contains("--resume"));
    // Half of a database is no database: a dump of it is refused. So is one of all, as what is complete already belongs to
    // the unfinished restore.
    let elsewhere = tempfile::tempdir().unwrap();
    let other = repository_through(elsewhere.path(), StoreOptions::default()).await;
    let named = DumpOptions {
        databases: vec![DATABASE.to_owned()],
        ..dump_options(&destination)
    };
    let half = common::dump(&other, &destination, &named).await.unwrap_err();
    assert_eq!(half.retry_class(), RetryClass::Refused, "{half}");
    let hint = half.hint().unwrap();
    assert!(
        half.to_string().contains("unfinished restore") && hint.as_str().contains("--resume"),
        "{half}: {hint}"
    );
    assert!(whole_dumps(&other).await.is_empty());
    let all = common::dump(&other, &destination, &dump_options(&destination)).await;
    let all = all.unwrap_err();
    assert_eq!(all.retry_class(), RetryClass::Refused, "{all}");
    assert!(all.hint().unwrap().as_str().contains("--resume"), "{all}");
    let again = common::restore(&sound, &report.id, &destination, &options).await;
    let refused = again.unwrap_err();
    assert_eq!(refused.retry_class(), RetryClass::Refused, "{refused}");
    let resuming = RestoreOptions {
        resume: true,
        ..options
    };
    common::restore(&sound, &report.id, &destination, &resuming)
        .await
        .unwrap();
    compare(&source, &destination);
    let whole = common::dump(&other, &destination, &dump_options(&destination))
        .await
        .unwrap();
    assert_eq!(whole.attention, Vec::<String>::new());
}

/// Where passwords may be read, a failure of pg_dumpall is one, and not taken for a lack of rights.
#[tokio::test(flavor = "multi_thread")]
async fn globals_that_fail_are_not_dumped_without_passwords() {
    let source = require!(source());
    let programs = tempfile::tempdir().unwrap();
    let link = |name: &str| {
        std::os::unix::fs::symlink(source.pg_bin().join(name), programs.path().join(name)).unwrap();
    };
    link("pg_dump");
    link("pg_restore");
    let path = programs.path().join("pg_dumpall");
    let script = format!(
        "#!/bin/sh\ncase \"$*\" in *--no-role-passwords*|*--version*) exec '{}/pg_dumpall' \"$@\" ;; esac\n\
         echo 'pg_dumpall: error: something else' >&2; exit 1\n",
        source.pg_bin().display()
    );
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let repository = repository_through(folder.path(), StoreOptions::default()).await;
    let options = DumpOptions {
        programs: ProgramSearch::only(programs.path()),
        ..dump_options(&source)
    };
    let error = common::dump(&repository, &source, &options).await.unwrap_err();
    assert!(error.to_string().contains("something else"), "{error}");
}

/// What can't be looked into may hold something.
#[tokio::test(flavor = "multi_thread")]
async fn a_template_that_cannot_be_looked_into_is_named() {
    let source = require!(source());
    source.psql("postgres", "ALTER DATABASE template1 ALLOW_CONNECTIONS false");
    let folder = tempfile::tempdir().unwrap();
    let repository = repository_through(folder.path(), StoreOptions::default()).await;
    let report = common::dump(&repository, &source, &dump_options(&source))
        .await
        .unwrap();
    let named = |text: &String| text.contains("template1") && text.contains("can't be looked into");
    assert!(report.attention.iter().any(named), "{:?}", report.attention);
}

/// One that goes before it is its turn is left out of a dump of everything; one that goes while it is read ends the dump, and
/// nobody is sent to look for a crash of the server.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_dropped_meanwhile_is_told_as_such() {
    let source = require!(source());
    let folder = tempfile::tempdir().unwrap();
    let sound = repository_through(folder.path(), StoreOptions::default()).await;
    source.create_database("zz");
    let blocker = blocking(&source);
    let dump = begin_dump(&sound, &source, &dump_options(&source));
    wait_for_waiter(&source, DATABASE, "large", "AccessShareLock");
    source.psql("postgres", "DROP DATABASE zz");
    drop(blocker);
    let report = dump.await.unwrap().unwrap();
    let told = report.manifest.omissions.join("\n");
    assert!(
        told.contains("database 'zz', which was dropped or renamed"),
        "{told}"
    );
    assert_eq!(whole_dumps(&sound).await, std::slice::from_ref(&report.id));

    let _blocker = blocking(&source);
    let dump = begin_dump(&sound, &source, &dump_options(&source));
    wait_for_waiter(&source, DATABASE, "large", "AccessShareLock");
    source.psql("postgres", &format!("DROP DATABASE {DATABASE} WITH (FORCE)"));
    let error = dump.await.unwrap().unwrap_err();
    assert!(matches!(error, DumpError::DatabaseGone { .. }), "{error}");
    assert_eq!(error.retry_class(), RetryClass::Transient);
    let hint = error.hint().unwrap().to_string();
    assert!(hint.contains("run it again") && !hint.contains("crash"), "{hint}");
    assert_eq!(whole_dumps(&sound).await, [report.id]);
}
