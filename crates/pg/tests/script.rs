//! What pg_dumpall really writes, taken apart and run statement by statement on another server, gives the same.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod support;

use std::time::Duration;

use pgkeep_pg::Session;
use pgkeep_pg::programs::{ProgramSearch, RunLimits, find, run};
use pgkeep_pg::script::{Piece, pieces};
use support::{TestServer, binaries, majors};

const OBJECTS: &[&str] = &[
    "CREATE ROLE \"o'neil; \\\" PASSWORD 'it''s; \\'",
    "COMMENT ON ROLE \"o'neil; \\\" IS E'a;\\'\\\\;\n--x /* \n\\connect nowhere'",
    "ALTER ROLE \"o'neil; \\\" SET search_path TO 'a;b', \"c\"\"d\"",
    "CREATE TABLE \"t;'$$\"(\"a;\" text DEFAULT ';''', b int CHECK (b > 0 AND (b < 5)), c text DEFAULT E'\\\\;\n\\\\x')",
    "CREATE FUNCTION f() RETURNS text LANGUAGE plpgsql AS $f$ BEGIN RETURN ';$_$ $$ '';' || E'\\';'; END; $f$",
    "CREATE FUNCTION g(n int) RETURNS int BEGIN ATOMIC SELECT CASE WHEN n > 1 THEN 1 ELSE 2 END; SELECT n + 1; END",
    "CREATE PROCEDURE p() BEGIN ATOMIC INSERT INTO \"t;'$$\" VALUES ('x;', 1); DELETE FROM \"t;'$$\"; END",
    "CREATE RULE r AS ON DELETE TO \"t;'$$\" DO ALSO (INSERT INTO \"t;'$$\" VALUES (';'); NOTIFY x)",
    "CREATE VIEW v AS SELECT ';' AS \"begin;\", $$ /* ; $$::text AS e, 1 -- ;\n AS \"end\"",
    "COMMENT ON VIEW v IS 'begin; case; end'",
    "CREATE TYPE mood AS ENUM ('sad;', 'o''k', E'\\\\')",
    "CREATE OPERATOR @#- (LEFTARG = int, RIGHTARG = int, FUNCTION = int4pl)",
];

#[tokio::test]
async fn what_pg_dumpall_writes_can_be_run_by_statements() {
    for major in majors() {
        let mut source = TestServer::new(major).await;
        source.start(&[]).await;
        for database in ["plain", "my \"db\" o'x; \\"] {
            source
                .admin(&format!("CREATE DATABASE \"{}\"", database.replace('"', "\"\"")))
                .await;
            let target = source.server.target("postgres").with_database(database);
            let mut session = Session::connect(&target).await.unwrap();
            for object in OBJECTS.iter().skip(if database == "plain" { 0 } else { 3 }) {
                session
                    .execute(object)
                    .await
                    .unwrap_or_else(|error| panic!("{object}: {error}"));
            }
        }
        let script = dump(&source, major).await;
        assert!(script.contains("\\connect -reuse-previous=on"));

        let mut copy = TestServer::new(major).await;
        copy.start(&[]).await;
        let mut session = copy.session().await;
        let mut count = 0;
        for piece in pieces(&script) {
            match piece.unwrap() {
                Piece::Connect(database) => {
                    let target = copy.server.target("postgres").with_database(&database);
                    session = Session::connect(&target).await.unwrap();
                }
                // \encoding comes before a \connect and doesn't outlive it.
                Piece::MetaCommand(name, _) => {
                    assert!(["restrict", "unrestrict", "encoding"].contains(&name), "{name}")
                }
                // The superuser exists already.
                Piece::Statement("CREATE ROLE postgres") => {}
                Piece::Statement(statement) => {
                    session
                        .execute(statement)
                        .await
                        .unwrap_or_else(|error| panic!("{statement}: {error}"));
                    count += 1;
                }
            }
        }
        assert!(count > 50, "{count}");
        assert_eq!(without_keys(&dump(&copy, major).await), without_keys(&script));
    }
}

async fn dump(server: &TestServer, major: u32) -> String {
    let program = find(
        "pg_dumpall",
        major,
        &ProgramSearch::only(binaries(major).unwrap()),
    )
    .await
    .unwrap();
    let mut command = program.command(Some(&server.server.target("postgres")));
    // The dump of a verifier would differ by its salt alone if it were set again; it is copied as it is.
    command.arg("--schema-only");
    let limits = RunLimits {
        deadline: Duration::from_secs(60),
        stdout_bytes_max: 10 << 20,
    };
    String::from_utf8(run(command, &limits).await.unwrap().stdout).unwrap()
}

/// `\restrict` has a random key.
fn without_keys(script: &str) -> String {
    script
        .lines()
        .filter(|line| !line.contains("restrict "))
        .collect::<Vec<_>>()
        .join("\n")
}
