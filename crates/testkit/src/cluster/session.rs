//! A session that stays open.

use std::{
    io::{BufRead, BufReader, Read, Write},
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
    time::{Duration, Instant},
};

const ANSWER_LIMIT: Duration = Duration::from_secs(60);

/// An open `psql`: for tests in which two sessions stand in each other's way. Dropped, its connection is closed, which
/// rolls back what it had open.
#[derive(Debug)]
pub struct Session {
    psql: Child,
    input: Option<ChildStdin>,
    lines: Receiver<String>,
    answers_expected: u64,
    backend_pid: u32,
}

impl Session {
    pub(super) fn open(mut psql: Command) -> Self {
        let mut psql = psql
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("can't run {psql:?}: {error}"));
        let input = psql.stdin.take().expect("psql's standard input is a pipe");
        let output = BufReader::new(psql.stdout.take().expect("psql's standard output is a pipe"));
        let (sender, lines) = channel();
        thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let mut session = Self {
            psql,
            input: Some(input),
            lines,
            answers_expected: 0,
            backend_pid: 0,
        };
        session.backend_pid = session
            .run("SELECT pg_backend_pid();")
            .parse()
            .expect("a process id");
        session
    }

    /// The process id of the session's backend (`pg_stat_activity.pid`).
    pub fn backend_pid(&self) -> u32 {
        self.backend_pid
    }

    /// Runs statements, each ended by `;`, waits for them and returns what they print. Panics when one fails.
    pub fn run(&mut self, statements: &str) -> String {
        self.begin(statements);
        self.finish()
    }

    /// Sends statements, each ended by `;`, without waiting; the next [`Session::finish`] does.
    pub fn begin(&mut self, statements: &str) {
        self.answers_expected += 1;
        let script = format!("{statements}\n\\echo end-of-answer-{}\n", self.answers_expected);
        let input = self.input.as_mut().expect("the session is open");
        input
            .write_all(script.as_bytes())
            .and_then(|()| input.flush())
            .expect("writes to psql");
    }

    /// Waits for the statements sent by [`Session::begin`] and returns what they print.
    pub fn finish(&mut self) -> String {
        let deadline = Instant::now() + ANSWER_LIMIT;
        let end = format!("end-of-answer-{}", self.answers_expected);
        let mut answer = Vec::new();
        loop {
            match self
                .lines
                .recv_timeout(deadline.saturating_duration_since(Instant::now()))
            {
                Ok(line) if line == end => return answer.join("\n"),
                Ok(line) => answer.push(line),
                Err(RecvTimeoutError::Timeout) => panic!("psql hasn't answered within {ANSWER_LIMIT:?}"),
                Err(RecvTimeoutError::Disconnected) => panic!("psql has ended: {}", self.complaint()),
            }
        }
    }

    fn complaint(&mut self) -> String {
        let mut text = String::new();
        if let Some(mut stderr) = self.psql.stderr.take() {
            let _ = stderr.read_to_string(&mut text);
        }
        text
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        drop(self.input.take());
        // A statement may still be waiting for a lock: the connection is closed under it.
        let _ = self.psql.kill();
        let _ = self.psql.wait();
    }
}
