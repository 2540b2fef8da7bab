//! COPY in both directions on real servers, with errors, cancellation and death in the middle.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod support;

use std::time::Duration;

use pgkeep_base::{Classified, RetryClass};
use pgkeep_pg::server::StopMode;
use pgkeep_pg::{PgError, Session};
use support::TestServer;

const ROWS: u64 = 1_000_000;
/// What the session may have read ahead.
const INPUT_AHEAD_BYTES: usize = 640 << 10;

async fn read_all(session: &mut Session, sql: &str, bytes_min: usize) -> Result<(Vec<u8>, u64), PgError> {
    let mut copy = session.copy_out(sql).await?;
    let (mut all, mut buffer) = (Vec::new(), Vec::new());
    loop {
        let more = copy.read_into(&mut buffer, bytes_min).await?;
        let whole = buffer.is_empty() || buffer.ends_with(b"\n");
        assert!(
            whole || buffer.len() >= bytes_min,
            "a row is cut only to bound the buffer"
        );
        // Whatever the size of the rows.
        assert!(buffer.len() <= bytes_min.saturating_add(INPUT_AHEAD_BYTES));
        all.append(&mut buffer);
        if !more {
            return Ok((all, copy.finish().await?));
        }
    }
}

async fn write_all(session: &mut Session, sql: &str, data: &[u8], piece: usize) -> Result<u64, PgError> {
    let mut copy = session.copy_in(sql).await?;
    for part in data.chunks(piece) {
        copy.send(part).await?;
    }
    copy.finish().await
}

#[tokio::test]
async fn a_million_rows_out_and_in_are_the_same() {
    let server = TestServer::started().await;
    let mut session = server.session().await;
    session
        .execute(&format!(
            "CREATE TABLE a AS SELECT i AS id, md5(i::text) AS text, CASE WHEN i % 7 = 0 THEN NULL ELSE i * 1.5 END AS n
             FROM generate_series(1, {ROWS}) i; CREATE TABLE b (LIKE a); CREATE TABLE c (LIKE a)"
        ))
        .await
        .unwrap();
    let (data, rows) = read_all(&mut session, "COPY a TO STDOUT", 1 << 20).await.unwrap();
    assert_eq!(rows, ROWS);
    assert_eq!(data.iter().filter(|byte| **byte == b'\n').count() as u64, ROWS);
    // Both paths: gathered small pieces, and large blocks that go straight to the socket.
    assert_eq!(
        write_all(&mut session, "COPY b FROM STDIN", &data, 1 << 20)
            .await
            .unwrap(),
        ROWS
    );
    assert_eq!(
        write_all(&mut session, "COPY c FROM STDIN", &data, 1001)
            .await
            .unwrap(),
        ROWS
    );
    let hash = |table: &str| format!("SELECT count(*), sum(hashtextextended({table}::text, 0)) FROM {table}");
    let expected = session.query(&hash("a")).await.unwrap();
    assert_eq!(expected[0].get::<u64>(0).unwrap(), ROWS);
    for table in ["b", "c"] {
        let found = session.query(&hash(table)).await.unwrap();
        assert_eq!(
            (found[0].text(0), found[0].text(1)),
            (expected[0].text(0), expected[0].text(1))
        );
    }
}

#[tokio::test]
async fn rows_larger_than_every_buffer() {
    let server = TestServer::started().await;
    let mut session = server.session().await;
    session
        .execute("CREATE TABLE a(t text); ALTER TABLE a ALTER t SET STORAGE EXTERNAL; CREATE TABLE b(t text)")
        .await
        .unwrap();
    session
        .execute("INSERT INTO a SELECT repeat(chr(97 + i), (ARRAY[1, 131060, 131072, 600000, 5000000, 0, 40000000, 3])[i]) FROM generate_series(1, 8) i")
        .await
        .unwrap();
    for bytes_min in [1, 1 << 20, 1 << 30] {
        let (data, rows) = read_all(&mut session, "COPY a TO STDOUT", bytes_min)
            .await
            .unwrap();
        assert_eq!(
            (rows, data.len()),
            (
                8,
                1 + 131_060 + 131_072 + 600_000 + 5_000_000 + 40_000_000 + 3 + 8
            )
        );
        session.execute("TRUNCATE b").await.unwrap();
        assert_eq!(
            write_all(&mut session, "COPY b FROM STDIN", &data, 7_000_001)
                .await
                .unwrap(),
            8
        );
        let same =
            "SELECT NOT EXISTS (TABLE a EXCEPT ALL TABLE b) AND NOT EXISTS (TABLE b EXCEPT ALL TABLE a)";
        assert_eq!(session.query(same).await.unwrap()[0].text(0), Some("t"));
    }
    // As one value of a query, too.
    let rows = session.query("SELECT t FROM a ORDER BY length(t)").await.unwrap();
    assert_eq!(rows[7].text(0).unwrap().len(), 40_000_000);
    assert_eq!(session.query("SELECT 1").await.unwrap().len(), 1);
}

#[tokio::test]
async fn an_empty_table_and_a_finish_before_the_end() {
    let server = TestServer::started().await;
    let mut session = server.session().await;
    session.execute("CREATE TABLE a(i int)").await.unwrap();
    assert_eq!(
        read_all(&mut session, "COPY a TO STDOUT", 10).await.unwrap(),
        (Vec::new(), 0)
    );
    assert_eq!(
        session
            .copy_in("COPY a FROM STDIN")
            .await
            .unwrap()
            .finish()
            .await
            .unwrap(),
        0
    );
    let rows = session
        .copy_out("COPY (SELECT generate_series(1, 300000)) TO STDOUT")
        .await
        .unwrap()
        .finish()
        .await;
    assert_eq!(rows.unwrap(), 300_000);
    assert_eq!(session.query("SELECT 1").await.unwrap().len(), 1);
}

#[tokio::test]
async fn an_error_in_the_middle_leaves_the_session_usable() {
    let server = TestServer::started().await;
    let mut session = server.session().await;
    let error = read_all(
        &mut session,
        "COPY (SELECT 1/(500000 - i) FROM generate_series(1, 1000000) i) TO STDOUT",
        1 << 16,
    )
    .await
    .unwrap_err();
    assert_eq!(error.sqlstate(), Some("22012"), "{error}");
    assert!(!session.is_broken());

    session
        .execute("CREATE TABLE a(i int PRIMARY KEY)")
        .await
        .unwrap();
    // The server refuses the second row; the client notices long before it has sent all.
    let mut copy = session.copy_in("COPY a FROM STDIN").await.unwrap();
    copy.send(b"1\nx\n").await.unwrap();
    let block = b"2\n".repeat(1 << 18);
    let mut sent = 0;
    let error = loop {
        match copy.send(&block).await {
            Ok(()) => sent += block.len(),
            Err(error) => break error,
        }
        assert!(sent < 1 << 30, "the error is never noticed");
    };
    let PgError::Server(server_error) = &error else {
        panic!("{error}")
    };
    assert_eq!(server_error.sqlstate, "22P02");
    assert!(
        server_error.context.as_ref().unwrap().contains("line 2"),
        "{error}"
    );
    drop(copy);
    assert!(!session.is_broken());
    // At the very end, too.
    let error = write_all(&mut session, "COPY a FROM STDIN", b"1\n1\n", 100)
        .await
        .unwrap_err();
    assert_eq!(error.sqlstate(), Some("23505"));
    assert_eq!(
        session.query("SELECT count(*) FROM a").await.unwrap()[0]
            .get::<i64>(0)
            .unwrap(),
        0
    );
}

#[tokio::test]
async fn an_aborted_copy_leaves_nothing() {
    let server = TestServer::started().await;
    let mut session = server.session().await;
    session.execute("CREATE TABLE a(i int)").await.unwrap();
    let mut copy = session.copy_in("COPY a FROM STDIN").await.unwrap();
    copy.send(&b"1\n".repeat(100_000)).await.unwrap();
    copy.abort("no more").await.unwrap();
    assert_eq!(
        session.query("SELECT count(*) FROM a").await.unwrap()[0]
            .get::<i64>(0)
            .unwrap(),
        0
    );
    let mut copy = session.copy_in("COPY a FROM STDIN").await.unwrap();
    copy.send(b"1\n").await.unwrap();
    drop(copy);
    assert!(session.is_broken());
    let mut other = server.session().await;
    drop(session);
    support::eventually("the dropped copy is rolled back", async || {
        let others = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'";
        other.query(others).await.unwrap()[0].text(0) == Some("1")
    })
    .await;
    assert_eq!(
        other.query("SELECT count(*) FROM a").await.unwrap()[0]
            .get::<i64>(0)
            .unwrap(),
        0
    );
}

#[tokio::test]
async fn what_is_no_copy_is_refused_and_the_session_goes_on() {
    let server = TestServer::started().await;
    let mut session = server.session().await;
    assert!(matches!(
        session.copy_out("SELECT 1").await.unwrap_err(),
        PgError::Protocol(_)
    ));
    assert_eq!(
        session
            .copy_out("COPY missing TO STDOUT")
            .await
            .unwrap_err()
            .sqlstate(),
        Some("42P01")
    );
    session.execute("CREATE TABLE a(i int)").await.unwrap();
    let error = session.execute("COPY a FROM STDIN").await.unwrap_err();
    assert_eq!(error.sqlstate(), Some("57014"));
    assert!(matches!(
        session.execute("COPY a TO STDOUT").await.unwrap_err(),
        PgError::Protocol(_)
    ));
    assert_eq!(session.query("SELECT 1").await.unwrap().len(), 1);
    assert!(session.copy_in("COPY a TO STDOUT").await.is_err());
    assert!(session.is_broken());
}

#[tokio::test]
async fn many_notices_during_a_copy_block_neither_side() {
    let server = TestServer::started().await;
    let mut session = server.session().await;
    session
        .execute(
            "CREATE TABLE a(i int);
             CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN RAISE NOTICE '%', repeat('n', 1000); RETURN new; END $$;
             CREATE TRIGGER t BEFORE INSERT ON a FOR EACH ROW EXECUTE FUNCTION f()",
        )
        .await
        .unwrap();
    let data = b"1\n".repeat(100_000);
    let work = write_all(&mut session, "COPY a FROM STDIN", &data, 1 << 20);
    let rows = tokio::time::timeout(Duration::from_secs(120), work)
        .await
        .expect("no deadlock")
        .unwrap();
    assert_eq!(rows, 100_000);
    let sql = "COPY (SELECT f FROM generate_series(1, 20000) i, LATERAL (SELECT g(i)) AS x(f)) TO STDOUT";
    session
        .execute("CREATE FUNCTION g(i int) RETURNS int LANGUAGE plpgsql AS $$ BEGIN RAISE NOTICE 'x'; RETURN i; END $$")
        .await
        .unwrap();
    assert_eq!(read_all(&mut session, sql, 1 << 16).await.unwrap().1, 20_000);
}

#[tokio::test]
async fn a_server_that_dies_in_the_middle_is_a_passing_fault() {
    let mut server = TestServer::started().await;
    for out in [true, false] {
        let mut session = server.session().await;
        session
            .execute("CREATE TABLE IF NOT EXISTS a(t text)")
            .await
            .unwrap();
        let work = async {
            if out {
                let sql = "COPY (SELECT repeat('x', 1000) FROM generate_series(1, 100000000)) TO STDOUT";
                let mut copy = session.copy_out(sql).await?;
                let mut buffer = Vec::new();
                copy.read_into(&mut buffer, 1 << 20).await?;
                server.server.stop(StopMode::Immediate).await.unwrap();
                loop {
                    buffer.clear();
                    copy.read_into(&mut buffer, 1 << 20).await?;
                }
            } else {
                let mut copy = session.copy_in("COPY a FROM STDIN").await?;
                let block = b"xxxxxxxxxxxxxxx\n".repeat(1 << 14);
                copy.send(&block).await?;
                server.server.stop(StopMode::Immediate).await.unwrap();
                loop {
                    copy.send(&block).await?;
                }
            }
        };
        let result: Result<(), PgError> = tokio::time::timeout(Duration::from_secs(30), work)
            .await
            .expect("no hang");
        let error = result.unwrap_err();
        assert_eq!(error.retry_class(), RetryClass::Transient, "{error}");
        assert!(session.is_broken());
        if out {
            server.start(&[]).await;
        }
    }
}

#[tokio::test]
async fn a_backend_killed_in_the_middle_is_a_passing_fault() {
    let server = TestServer::started().await;
    let mut session = server.session().await;
    let mut other = server.session().await;
    let pid = session.backend_pid();
    let sql = "COPY (SELECT repeat('x', 1000) FROM generate_series(1, 100000000)) TO STDOUT";
    let mut copy = session.copy_out(sql).await.unwrap();
    other
        .execute(&format!("SELECT pg_terminate_backend({pid})"))
        .await
        .unwrap();
    let mut buffer = Vec::new();
    let error = loop {
        buffer.clear();
        if let Err(error) = copy.read_into(&mut buffer, 1 << 20).await {
            break error;
        }
    };
    // The server may have no room left to say why.
    assert!(matches!(error.sqlstate(), Some("57P01") | None), "{error}");
    assert_eq!(error.retry_class(), RetryClass::Transient, "{error}");
}

#[tokio::test]
async fn a_copy_on_an_exported_snapshot_sees_what_the_holder_sees() {
    let server = TestServer::started().await;
    let mut holder = server.session().await;
    holder
        .execute("CREATE TABLE a AS SELECT generate_series(1, 10) AS i")
        .await
        .unwrap();
    holder
        .execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        .await
        .unwrap();
    let snapshot: String = holder.query("SELECT pg_export_snapshot()").await.unwrap()[0]
        .get(0)
        .unwrap();
    server.admin("DELETE FROM a").await;
    let mut worker = Session::connect(holder.target()).await.unwrap();
    let begin =
        format!("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT '{snapshot}'");
    worker.execute(&begin).await.unwrap();
    assert_eq!(read_all(&mut worker, "COPY a TO STDOUT", 1).await.unwrap().1, 10);
    assert_eq!(worker.transaction_status(), b'T');
}
