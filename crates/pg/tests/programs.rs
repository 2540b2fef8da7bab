//! Finding and running PostgreSQL's programs, and servers of one's own.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod support;

use std::time::{Duration, Instant};

use pgkeep_base::{Classified, RetryClass};
use pgkeep_pg::programs::{ProgramError, ProgramSearch, RunLimits, Running, find, run};
use pgkeep_pg::server::{InitdbOptions, ServerOptions, StopMode, TemporaryServer, TemporaryServerError};
use pgkeep_pg::{Conninfo, Environment, Session};
use support::{TestServer, binaries, major, majors};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

const LIMITS: RunLimits = RunLimits {
    deadline: Duration::from_secs(30),
    stdout_bytes_max: 1 << 20,
};

fn path_of(majors: &[u32]) -> ProgramSearch {
    let path = std::env::join_paths(majors.iter().map(|major| binaries(*major).unwrap())).unwrap();
    ProgramSearch {
        directory: None,
        path: Some(path),
        standard_directories: false,
        launcher: None,
    }
}

#[tokio::test]
async fn the_lowest_version_that_will_do_is_taken() {
    let majors = majors();
    let mut reversed = majors.clone();
    reversed.reverse();
    for wanted in &majors {
        let found = find("pg_dump", *wanted, &path_of(&reversed)).await.unwrap();
        assert_eq!(found.major, *wanted);
        assert!(found.version_text.starts_with("pg_dump (PostgreSQL) "));
    }
    // The named directory comes first, if it will do.
    let highest = *majors.last().unwrap();
    let search = ProgramSearch {
        directory: binaries(highest),
        ..path_of(&majors)
    };
    assert_eq!(find("psql", majors[0], &search).await.unwrap().major, highest);
    let search = ProgramSearch {
        directory: binaries(majors[0]),
        ..path_of(&majors)
    };
    assert_eq!(find("psql", highest, &search).await.unwrap().major, highest);
}

#[tokio::test]
async fn what_is_missing_is_named_with_what_there_is() {
    let error = find("pg_dump", 99, &path_of(&[major()])).await.unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("no pg_dump of PostgreSQL 99") && text.contains(&format!("(PostgreSQL) {}", major())),
        "{text}"
    );
    assert!(
        error
            .hint()
            .unwrap()
            .as_str()
            .contains("apt-get install postgresql-client-99")
    );
    let error = find("initdb", 16, &ProgramSearch::only("/nonexistent"))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("none at all"));
    assert!(
        error
            .hint()
            .unwrap()
            .as_str()
            .contains("apt-get install postgresql-16,")
    );
}

fn shell(script: &str) -> Command {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script]);
    command
}

#[tokio::test]
async fn how_a_program_ends_is_told() {
    let finished = run(shell("echo out; echo warning >&2"), &LIMITS).await.unwrap();
    assert_eq!(
        (finished.stdout.as_slice(), finished.stderr.as_str()),
        (&b"out\n"[..], "warning")
    );
    let error = run(shell("echo why >&2; exit 3"), &LIMITS).await.unwrap_err();
    assert_eq!(error.to_string(), "sh failed (exit status 3): why");
    let error = run(shell("kill -9 $$"), &LIMITS).await.unwrap_err();
    assert_eq!(error.to_string(), "sh failed (killed by signal 9)");
    let started = Instant::now();
    let limits = RunLimits {
        deadline: Duration::from_millis(300),
        ..LIMITS
    };
    let error = run(shell("echo before >&2; exec sleep 60"), &limits)
        .await
        .unwrap_err();
    assert!(
        matches!(&error, ProgramError::Deadline { stderr, .. } if stderr == "before"),
        "{error}"
    );
    assert!(started.elapsed() < Duration::from_secs(10) && error.retry_class() == RetryClass::Transient);
    let limits = RunLimits {
        stdout_bytes_max: 1000,
        ..LIMITS
    };
    let error = run(shell("yes"), &limits).await.unwrap_err();
    assert!(
        matches!(error, ProgramError::OutputTooLarge { bytes_max: 1000, .. }),
        "{error}"
    );
    let error = run(
        shell("i=0; while [ $i -lt 5000 ]; do echo pg_shell: line $i >&2; i=$((i+1)); done; exit 1"),
        &LIMITS,
    )
    .await;
    let Err(ProgramError::Failed { stderr, .. }) = error else {
        panic!()
    };
    assert!(stderr.ends_with("line 4999") && stderr.len() <= 16 * 1024);
}

#[tokio::test]
async fn data_streams_through_a_program() {
    let mut command = shell("cat");
    command.stdin(std::process::Stdio::piped());
    let mut running = Running::start(command).unwrap();
    let (mut stdin, mut stdout) = (running.take_stdin().unwrap(), running.take_stdout().unwrap());
    let writer = async move {
        for _ in 0..100 {
            stdin.write_all(&[b'x'; 100_000]).await.unwrap();
        }
    };
    let mut sink = tokio::io::sink();
    let (_, copied) = tokio::join!(writer, tokio::io::copy(&mut stdout, &mut sink));
    assert_eq!(copied.unwrap(), 10_000_000);
    running.finish(Duration::from_secs(10)).await.unwrap();
}

#[tokio::test]
async fn libpq_programs_connect_with_the_targets_environment() {
    let server = TestServer::started().await;
    server
        .admin("CREATE ROLE \"joe o'x\" LOGIN PASSWORD 'p w\\'''")
        .await;
    server.admin("CREATE DATABASE \"my db\"").await;
    server.hba("host all all 127.0.0.1/32 scram-sha-256").await;
    let conninfo = format!(
        "host=127.0.0.1 port={} user='joe o\\'x' password='p w\\\\\\'' dbname='my db' application_name=a options='-c work_mem=1234kB'",
        server.server.port()
    );
    let target = Conninfo::parse(&conninfo)
        .unwrap()
        .resolve(&Environment::empty())
        .unwrap();
    Session::connect(&target).await.unwrap().close().await;
    let psql = find("psql", major(), &path_of(&[major()])).await.unwrap();
    let mut command = psql.command(Some(&target));
    command.args(["-XAtc", "SELECT current_user, current_database(), current_setting('application_name'), current_setting('work_mem')"]);
    let finished = run(command, &LIMITS).await.unwrap();
    assert_eq!(
        String::from_utf8(finished.stdout).unwrap(),
        "joe o'x|my db|a|1234kB\n"
    );
    assert_eq!(finished.stderr, "", "libpq warns of a password file that is none");
    let mut command = psql.command(Some(&server.server.target("postgres")));
    command.args(["-XAtc", "SELECT current_user"]);
    assert_eq!(run(command, &LIMITS).await.unwrap().stdout, b"postgres\n");
}

#[tokio::test]
async fn a_data_directory_outlives_its_server_and_is_never_overwritten() {
    let mut server = TestServer::started().await;
    server
        .admin("CREATE TABLE kept(i int); INSERT INTO kept VALUES (1)")
        .await;
    let data = server.server.data_directory().to_owned();
    let pid = server.server.process_id().unwrap();
    server.server.stop(StopMode::Fast).await.unwrap();
    assert!(matches!(
        server.server.stop(StopMode::Fast).await,
        Err(TemporaryServerError::State(false))
    ));
    let search = ProgramSearch::only(binaries(major()).unwrap());
    let again = TemporaryServer::initdb(
        &data,
        major(),
        &search,
        &InitdbOptions::default(),
        ServerOptions::default(),
    )
    .await;
    let error = again.unwrap_err();
    assert!(matches!(error, TemporaryServerError::NotEmpty(_)) && error.retry_class() == RetryClass::Refused);
    let mut second = TemporaryServer::existing(&data, major(), &search, "postgres", ServerOptions::default())
        .await
        .unwrap();
    second.start(&support::FAST).await.unwrap();
    assert_ne!(second.process_id(), Some(pid));
    let mut session = Session::connect(&second.target("postgres")).await.unwrap();
    assert_eq!(session.query("TABLE kept").await.unwrap().len(), 1);
    // Dropped, it is gone with its sockets.
    let sockets = second.socket_directory().to_owned();
    let pid = second.process_id().unwrap();
    drop(second);
    assert!(!sockets.exists() && !std::path::Path::new(&format!("/proc/{pid}")).exists());
}

#[tokio::test]
async fn a_server_that_cant_start_says_why() {
    let mut server = TestServer::new(major()).await;
    let error = server
        .server
        .start(&[("shared_buffers", "nonsense")])
        .await
        .unwrap_err();
    let text = error.to_string();
    assert!(
        matches!(error, TemporaryServerError::Ended { .. }) && text.contains("shared_buffers"),
        "{text}"
    );
    server.start(&[]).await;
    assert!(matches!(
        server.server.start(&[]).await,
        Err(TemporaryServerError::State(true))
    ));
}
