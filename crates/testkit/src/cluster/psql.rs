//! SQL through `psql`.

use std::{
    io::{Seek, Write},
    process::{Command, Output, Stdio},
};

use super::{Cluster, Session};
use crate::process::clean_command;

impl Cluster {
    /// Runs a script (SQL and psql's own commands) and returns what it prints: unaligned, `|` between columns, no
    /// headings, no last line end. Panics when a statement fails.
    pub fn psql(&self, database: &str, script: &str) -> String {
        self.try_psql(database, script)
            .unwrap_or_else(|error| panic!("psql in {database}: {error}\nthe script:\n{script}"))
    }

    /// The same, with what psql wrote to standard error when a statement fails.
    pub fn try_psql(&self, database: &str, script: &str) -> Result<String, String> {
        let output = run_with_input(self.psql_command(database).args(["-f", "-"]), script.as_bytes());
        let text = String::from_utf8_lossy(&output.stdout)
            .trim_end_matches('\n')
            .to_owned();
        if output.status.success() {
            Ok(text)
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    }

    /// A `psql` of the server's version, quiet, that stops at the first failing statement; the script is its standard
    /// input unless arguments are added.
    pub fn psql_command(&self, database: &str) -> Command {
        let mut command = clean_command(self.bin.join("psql"));
        command.args([
            "-X",
            "-q",
            "-A",
            "-t",
            "-v",
            "ON_ERROR_STOP=1",
            "-d",
            &self.conninfo(database),
        ]);
        command
    }

    /// Any other client program of the server's version (`pg_dump`, `pg_restore`, `pgbench`), with an environment that
    /// leads to this server.
    pub fn client_command(&self, program: &str) -> Command {
        let mut command = clean_command(self.bin.join(program));
        command
            .env("PGHOST", self.socket_dir())
            .env("PGPORT", self.port.to_string())
            .env("PGUSER", super::SUPERUSER);
        command
    }

    /// Creates a database.
    pub fn create_database(&self, name: &str) {
        self.psql(
            "postgres",
            &format!("CREATE DATABASE \"{}\"", name.replace('"', "\"\"")),
        );
    }

    /// Opens a session that stays open between statements, to hold a lock or a transaction.
    pub fn session(&self, database: &str) -> Session {
        Session::open(self.psql_command(database))
    }
}

/// Runs a command on input of any size.
fn run_with_input(command: &mut Command, input: &[u8]) -> Output {
    // A file rather than a pipe: psql may write much before it has read everything.
    let mut file = tempfile::tempfile().expect("makes a temporary file");
    file.write_all(input)
        .and_then(|()| file.rewind())
        .expect("writes a temporary file");
    command.stdin(Stdio::from(file));
    command
        .output()
        .unwrap_or_else(|error| panic!("can't run {command:?}: {error}"))
}
