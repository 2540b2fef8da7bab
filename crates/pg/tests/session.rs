//! Queries, notices, cancellation, deadlines and death of the server, on real servers.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod support;

use std::time::{Duration, Instant};

use pgkeep_base::{Classified, RetryClass};
use pgkeep_pg::programs::ProgramSearch;
use pgkeep_pg::server::{ServerOptions, StopMode, TemporaryServer, TemporaryServerError};
use pgkeep_pg::{PgError, Session, Silence};
use support::{TestServer, binaries, eventually, major, majors, resolve};

#[tokio::test]
async fn every_version_answers() {
    for major in majors() {
        let mut server = TestServer::new(major).await;
        server.start(&[]).await;
        let mut session = server.session().await;
        assert_eq!(session.server_version_num() / 10_000, major);
        assert_eq!(session.parameter("client_encoding"), Some("UTF8"));
        let rows = session
            .query("SELECT 1::int2, 2::int4, -3::int8, 4::oid, 1.5::float8, 'Größe\n', NULL::text, true, pg_backend_pid()")
            .await
            .unwrap();
        let row = &rows[0];
        assert_eq!((rows.len(), row.len()), (1, 9));
        assert_eq!(row.get::<i16>(0).unwrap(), 1);
        assert_eq!(row.get::<i32>(1).unwrap(), 2);
        assert_eq!(row.get::<i64>(2).unwrap(), -3);
        assert_eq!(row.get::<u32>(3).unwrap(), 4);
        assert_eq!(row.get::<f64>(4).unwrap(), 1.5);
        assert_eq!(row.get::<String>(5).unwrap(), "Größe\n");
        assert_eq!(row.get::<Option<String>>(6).unwrap(), None);
        assert!(row.get::<bool>(7).unwrap());
        assert_eq!(row.get::<i32>(8).unwrap(), session.backend_pid());
        let error = row.get::<i32>(5).unwrap_err();
        assert_eq!(error.to_string(), "column 5 (?column?) is not an integer");
        assert!(row.get::<String>(6).is_err() && row.get::<String>(9).is_err());
        session.close().await;
        server.server.stop(StopMode::Fast).await.unwrap();
        assert!(!server.server.data_directory().join("postmaster.pid").exists());
    }
}

#[tokio::test]
#[allow(clippy::too_many_lines, reason = "one session seen through its whole life")]
async fn statements_transactions_and_notices() {
    let server = TestServer::started().await;
    let mut session = server.session().await;
    assert_eq!(
        session
            .execute("CREATE TABLE t(a int); INSERT INTO t SELECT generate_series(1, 7)")
            .await
            .unwrap(),
        7
    );
    assert_eq!(session.execute("BEGIN").await.unwrap(), 0);
    assert_eq!(session.transaction_status(), b'T');
    let error = session.execute("SELECT 1/0").await.unwrap_err();
    assert_eq!(error.sqlstate(), Some("22012"));
    assert_eq!(error.retry_class(), RetryClass::Permanent);
    assert_eq!(session.transaction_status(), b'E');
    session.execute("ROLLBACK").await.unwrap();
    assert_eq!(session.transaction_status(), b'I');

    session
        .execute("DO $$ BEGIN RAISE NOTICE 'one'; RAISE WARNING 'two' USING HINT = 'h'; END $$")
        .await
        .unwrap();
    let notices = session.take_notices();
    assert_eq!(
        notices
            .iter()
            .map(|notice| notice.message.as_str())
            .collect::<Vec<_>>(),
        ["one", "two"]
    );
    assert_eq!(
        (notices[1].severity.as_str(), notices[1].hint.as_deref()),
        ("WARNING", Some("h"))
    );
    session
        .execute("DO $$ BEGIN FOR i IN 1..1000 LOOP RAISE NOTICE 'n%', i; END LOOP; END $$")
        .await
        .unwrap();
    let notices = session.take_notices();
    assert_eq!(
        (notices.len(), notices.last().unwrap().message.as_str()),
        (256, "n1000")
    );

    let rows = session
        .query_params(
            "SELECT $1::text || '!', $2::int + 1, $3::text",
            &[Some("it's \\ \"x\""), Some("41"), None],
        )
        .await
        .unwrap();
    assert_eq!(rows[0].text(0), Some("it's \\ \"x\"!"));
    assert_eq!((rows[0].text(1), rows[0].text(2)), (Some("42"), None));
    let error = session
        .query_params("SELECT $1::int", &[Some("x")])
        .await
        .unwrap_err();
    assert_eq!(error.sqlstate(), Some("22P02"));
    assert_eq!(session.query("SELECT 1").await.unwrap().len(), 1);

    // What doesn't fit into a message isn't sent, and harms nothing.
    for result in [
        session.query("SELECT '\0'").await,
        session.query_params("SELECT '\0'", &[]).await,
    ] {
        assert!(matches!(result, Err(PgError::Statement(_))));
    }
    let many = vec![None; 70_000];
    assert!(matches!(
        session.query_params("SELECT 1", &many).await,
        Err(PgError::Statement(_))
    ));
    assert!(!session.is_broken());

    // A changed parameter is noticed.
    session.execute("SET application_name = 'other'").await.unwrap();
    assert_eq!(session.parameter("application_name"), Some("other"));
}

#[tokio::test]
async fn rows_stream_and_a_callers_error_leaves_the_session_usable() {
    let server = TestServer::started().await;
    let mut session = server.session().await;
    let mut sum = 0_i64;
    let rows = session
        .query_each(
            "SELECT i, repeat('x', 100) FROM generate_series(1, 200000) i",
            |row| {
                sum += row.get::<i64>(0)?;
                Ok::<(), PgError>(())
            },
        )
        .await
        .unwrap();
    assert_eq!((rows, sum), (200_000, 200_000 * 200_001 / 2));
    let mut seen = 0;
    let error = session
        .query_each("SELECT generate_series(1, 100000)", |_| {
            seen += 1;
            if seen == 3 {
                Err(PgError::TooLarge(3))
            } else {
                Ok(())
            }
        })
        .await
        .unwrap_err();
    assert!(matches!(error, PgError::TooLarge(3)) && seen == 3);
    assert!(!session.is_broken());
    assert_eq!(
        session.query("SELECT 5").await.unwrap()[0].get::<i32>(0).unwrap(),
        5
    );
}

#[tokio::test]
async fn a_dropped_call_leaves_the_session_broken() {
    let server = TestServer::started().await;
    let mut session = server.session().await;
    let slept = tokio::time::timeout(Duration::from_millis(100), session.query("SELECT pg_sleep(60)")).await;
    assert!(slept.is_err() && session.is_broken());
    assert!(matches!(session.query("SELECT 1").await, Err(PgError::Broken)));
}

#[tokio::test]
async fn a_statement_is_cancelled_from_elsewhere() {
    let server = TestServer::started().await;
    let mut session = server.session().await;
    let handle = session.cancel_handle();
    let pid = session.backend_pid();
    let sleeper = tokio::spawn(async move {
        let result = session.query("SELECT pg_sleep(600)").await;
        (session, result)
    });
    let mut observer = server.session().await;
    let sql = format!("SELECT wait_event = 'PgSleep' FROM pg_stat_activity WHERE pid = {pid}");
    eventually("the statement runs", async || {
        observer.query(&sql).await.unwrap()[0].text(0) == Some("t")
    })
    .await;
    handle.cancel().await.unwrap();
    let (mut session, result) = sleeper.await.unwrap();
    assert_eq!(result.unwrap_err().sqlstate(), Some("57014"));
    assert_eq!(session.query("SELECT 1").await.unwrap().len(), 1);
}

#[tokio::test]
async fn silence_beyond_the_deadline_is_cancelled() {
    let server = TestServer::started().await;
    let mut session = server.session().await;
    session.set_statement_deadline(Some(Duration::from_millis(300)));
    let started = Instant::now();
    let error = session.query("SELECT pg_sleep(600)").await.unwrap_err();
    assert!(
        matches!(error, PgError::Deadline { cancelled: true, .. }),
        "{error}"
    );
    assert_eq!(error.retry_class(), RetryClass::Transient);
    assert!(started.elapsed() < Duration::from_secs(5));
    // It goes on, and what isn't silent isn't cut off: many rows over a longer time.
    session.set_statement_deadline(Some(Duration::from_millis(400)));
    let rows = session
        .query("SELECT pg_sleep(0.2) FROM generate_series(1, 1); SELECT 2")
        .await
        .unwrap();
    assert_eq!(rows.len(), 2);
    session.execute("CREATE TABLE l(a int)").await.unwrap();
    let mut other = server.session().await;
    other
        .execute("BEGIN; LOCK TABLE l IN ACCESS EXCLUSIVE MODE")
        .await
        .unwrap();
    let error = session.copy_out("COPY l TO STDOUT").await.unwrap_err();
    assert!(
        matches!(error, PgError::Deadline { cancelled: true, .. }),
        "{error}"
    );
    other.execute("ROLLBACK").await.unwrap();
    assert_eq!(session.query("TABLE l").await.unwrap().len(), 0);
}

#[tokio::test]
async fn a_silent_server_is_waited_for_as_long_as_it_answers() {
    let mut server = TestServer::started().await;
    let limit = Duration::from_millis(200);
    let silence = Silence {
        max: limit,
        answer_max: Duration::from_secs(2),
        ..Silence::default()
    };
    let target = server.server.target("postgres").with_silence(silence);
    let mut session = Session::connect(&target).await.unwrap();
    // Silent for much longer than the limit, and nothing wrong.
    assert_eq!(session.query("SELECT pg_sleep(1.5)").await.unwrap().len(), 1);
    // But not for ever.
    let total_max = Duration::from_millis(500);
    let hasty = target.with_silence(Silence { total_max, ..silence });
    let mut impatient = Session::connect(&hasty).await.unwrap();
    let error = impatient.query("SELECT pg_sleep(600)").await.unwrap_err();
    assert!(error.to_string().contains("though it answers"), "{error}");
    // Nobody else is let in, and that is an answer, too.
    session.close().await;
    server.server.stop(StopMode::Fast).await.unwrap();
    let few = [
        ("max_connections", "4"),
        ("superuser_reserved_connections", "0"),
        ("max_wal_senders", "0"),
    ];
    server.server.start(&few).await.unwrap();
    let target = server.server.target("postgres").with_silence(silence);
    let mut sessions = Vec::new();
    while let Ok(session) = Session::connect(&target).await {
        sessions.push(session);
    }
    let mut session = sessions.pop().unwrap();
    assert_eq!(session.query("SELECT pg_sleep(1)").await.unwrap().len(), 1);
    // The postmaster is stopped, and the kernel goes on taking up connections for it.
    let postmaster = i32::try_from(server.server.process_id().unwrap()).unwrap();
    let stopped = Stopped::new(postmaster);
    let statements = async {
        let silent = session.query("SELECT pg_sleep(600)").await;
        let error = silent.unwrap_err();
        assert!(matches!(error, PgError::Silent { .. }), "{error}");
        assert_eq!(error.retry_class(), RetryClass::Transient);
        assert!(error.hint().is_some() && session.is_broken());
        let mut session = sessions.pop().unwrap();
        let silent = session.copy_out("COPY (SELECT pg_sleep(600)) TO STDOUT").await;
        assert!(matches!(silent.unwrap_err(), PgError::Silent { .. }));
    };
    tokio::time::timeout(Duration::from_secs(60), statements)
        .await
        .expect("it waits for ever");
    drop(stopped);
}

/// A process that doesn't run while this lives.
struct Stopped(nix::unistd::Pid);

impl Stopped {
    fn new(process: i32) -> Self {
        let process = nix::unistd::Pid::from_raw(process);
        nix::sys::signal::kill(process, nix::sys::signal::Signal::SIGSTOP).unwrap();
        Self(process)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = nix::sys::signal::kill(self.0, nix::sys::signal::Signal::SIGCONT);
    }
}

/// A name may have several addresses, each another server's: whoever works on the same snapshot must reach the same.
#[tokio::test]
async fn a_session_is_pinned_to_the_address_that_answered() {
    let server = TestServer::started().await;
    server.hba("host all all 127.0.0.1/32 trust").await;
    let port = server.server.port();
    let target = resolve(&format!(
        "host=localhost port={port} user=postgres dbname=postgres"
    ));
    let session = Session::connect(&target).await.unwrap();
    let environment = session.target().libpq_environment();
    let value = |name: &str| {
        let found = environment.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.expose().to_owned())
    };
    assert_eq!(value("PGHOSTADDR").as_deref(), Some("127.0.0.1"));
    // By the name certificates are verified, and passwords found.
    assert_eq!(value("PGHOST").as_deref(), Some("localhost"));
    assert_eq!(session.target().endpoint(), format!("localhost:{port}"));
}

/// Whoever waited long enough for a shutdown leaves it alone: killed in the middle, the server would have to recover.
#[tokio::test]
async fn a_server_that_is_still_stopping_is_left_to_it() {
    let mut server = TestServer::new(major()).await;
    server.server = {
        let search = ProgramSearch::only(binaries(major()).unwrap());
        let options = ServerOptions {
            stop_limit: Duration::from_millis(300),
            ..ServerOptions::default()
        };
        let data = server.server.data_directory().to_owned();
        TemporaryServer::existing(&data, major(), &search, "postgres", options)
            .await
            .unwrap()
    };
    server.start(&[]).await;
    let process = i32::try_from(server.server.process_id().unwrap()).unwrap();
    let stopped = Stopped::new(process);
    let error = server.server.stop(StopMode::Fast).await.unwrap_err();
    assert!(matches!(error, TemporaryServerError::StopDeadline(_)), "{error}");
    let data = server.server.data_directory().to_owned();
    let TestServer { server, directory } = server;
    drop(server);
    drop(stopped);
    let status = tokio::task::spawn_blocking(move || {
        nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(process), None).unwrap()
    });
    let status = status.await.unwrap();
    assert!(
        matches!(status, nix::sys::wait::WaitStatus::Exited(_, 0)),
        "{status:?}"
    );
    assert!(!data.join("postmaster.pid").exists());
    drop(directory);
}

#[tokio::test]
async fn a_terminated_session_says_why_and_may_be_retried() {
    let server = TestServer::started().await;
    let mut session = server.session().await;
    let mut other = server.session().await;
    other
        .execute(&format!(
            "SELECT pg_terminate_backend({}, 10000)",
            session.backend_pid()
        ))
        .await
        .unwrap();
    let error = session.query("SELECT 1").await.unwrap_err();
    assert_eq!(error.sqlstate(), Some("57P01"), "{error}");
    assert_eq!(error.retry_class(), RetryClass::Transient);
    assert!(session.is_broken());
}

#[tokio::test]
async fn two_databases_and_the_wrong_names() {
    let server = TestServer::started().await;
    server.admin("CREATE DATABASE \"my db\"").await;
    let target = server.server.target("postgres").with_database("my db");
    let mut session = Session::connect(&target).await.unwrap();
    assert_eq!(
        session.query("SELECT current_database()").await.unwrap()[0].text(0),
        Some("my db")
    );
    let error = Session::connect(&target.with_database("missing"))
        .await
        .unwrap_err();
    assert_eq!(error.sqlstate(), Some("3D000"));
    assert!(error.hint().unwrap().as_str().contains("psql -l"), "{error}");
    assert_eq!(error.retry_class(), RetryClass::Permanent);
}

#[tokio::test]
async fn nobody_listens() {
    let error = Session::connect(&resolve("host=127.0.0.1 port=1 user=u"))
        .await
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot connect to 127.0.0.1:1: connection refused"
    );
    assert!(error.hint().is_some() && error.retry_class() == RetryClass::Transient);
    let error = Session::connect(&resolve("host=/nonexistent user=u"))
        .await
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot connect to /nonexistent/.s.PGSQL.5432: there is no such socket"
    );
    let error = Session::connect(&resolve("host=nowhere.invalid user=u"))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("could not be resolved"), "{error}");
}

#[tokio::test]
async fn a_server_that_says_nothing_runs_into_connect_timeout() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let target = resolve(&format!(
        "host=127.0.0.1 port={port} user=u sslmode=disable connect_timeout=2"
    ));
    let started = Instant::now();
    let error = Session::connect(&target).await.unwrap_err();
    assert!(error.to_string().contains("no answer within 2 s"), "{error}");
    assert!(started.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn something_else_than_postgresql_is_told_as_such() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut scrap = [0; 64];
            let _ = stream.read(&mut scrap).await;
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    });
    for mode in ["disable", "prefer"] {
        let target = resolve(&format!("host=127.0.0.1 port={port} user=u sslmode={mode}"));
        let error = Session::connect(&target).await.unwrap_err();
        assert!(matches!(error, PgError::Protocol(_)), "{error}");
    }
}

#[tokio::test]
async fn several_hosts_and_the_kind_of_server() {
    let server = TestServer::started().await;
    server.hba("host all all 127.0.0.1/32 trust").await;
    let port = server.server.port();
    let target = resolve(&format!("host=127.0.0.1,127.0.0.1 port=1,{port} user=postgres"));
    let session = Session::connect(&target).await.unwrap();
    assert_eq!(session.target().endpoint(), format!("127.0.0.1:{port}"));
    session.close().await;
    let target = |attributes: &str| {
        resolve(&format!(
            "host=127.0.0.1 port={port} user=postgres target_session_attrs={attributes}"
        ))
    };
    for attributes in ["any", "read-write", "primary", "prefer-standby"] {
        Session::connect(&target(attributes)).await.unwrap().close().await;
    }
    for attributes in ["read-only", "standby"] {
        let error = Session::connect(&target(attributes)).await.unwrap_err();
        assert!(error.to_string().contains("target_session_attrs"), "{error}");
    }
    let target = resolve("host=127.0.0.1,127.0.0.1 port=1,2 user=u");
    let error = Session::connect(&target).await.unwrap_err().to_string();
    assert!(
        error.contains("127.0.0.1:1: connection refused; 127.0.0.1:2: connection refused"),
        "{error}"
    );
}
