use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::ProgramError;
use super::find::LAUNCHED;
use super::messages::without_secrets;

/// How much of the end of standard error is kept.
const STDERR_BYTES_MAX: usize = 16 * 1024;
/// A grandchild may hold standard error open after the program's end; it isn't waited for longer than this.
const STDERR_GRACE: Duration = Duration::from_secs(2);

/// Limits of [`run`].
#[derive(Debug, Clone, Copy)]
pub struct RunLimits {
    /// How long the program may run.
    pub deadline: Duration,
    /// How much it may write to standard output.
    pub stdout_bytes_max: usize,
}

/// A program that ended with success.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    /// What it wrote to standard output, if that was collected.
    pub stdout: Vec<u8>,
    /// The end (16 KiB) of what it wrote to standard error: warnings.
    pub stderr: String,
}

/// Runs a program to its end and collects what it writes.
///
/// # Errors
/// It can't be started, ends with another status than 0, takes too long, or writes too much.
pub async fn run(command: Command, limits: &RunLimits) -> Result<Finished, ProgramError> {
    let mut running = Running::start(command)?;
    let output = running.take_stdout();
    let work = async {
        let mut stdout = Vec::new();
        if let Some(output) = output {
            let limit = u64::try_from(limits.stdout_bytes_max)
                .unwrap_or(u64::MAX)
                .saturating_add(1);
            let read = output.take(limit).read_to_end(&mut stdout).await;
            read.map_err(|source| ProgramError::Pipe {
                program: running.name(),
                source,
            })?;
        }
        if stdout.len() > limits.stdout_bytes_max {
            running.kill().await;
            return Err(ProgramError::OutputTooLarge {
                program: running.name(),
                bytes_max: limits.stdout_bytes_max,
            });
        }
        let status = running.wait().await?;
        Ok((stdout, status))
    };
    match timeout(limits.deadline, work).await {
        Ok(Ok((stdout, status))) => {
            let finished = running.ended(status).await?;
            Ok(Finished { stdout, ..finished })
        }
        Ok(Err(error)) => Err(error),
        Err(_) => Err(running.overdue(limits.deadline).await),
    }
}

/// A program that runs, with pipes to its standard input (if the command says so), output and error. Dropping it kills
/// the program.
#[derive(Debug)]
pub struct Running {
    path: PathBuf,
    /// The program that the launcher at `path` runs.
    launched: Option<String>,
    child: Child,
    stderr: JoinHandle<Vec<u8>>,
}

impl Running {
    /// Starts a command. Standard output is a pipe, and so must be read ([`Running::take_stdout`]); standard error is
    /// collected; standard input is a pipe if the command was given `stdin(Stdio::piped())`.
    ///
    /// # Errors
    /// [`ProgramError::Start`].
    pub fn start(mut command: Command) -> Result<Self, ProgramError> {
        let path = PathBuf::from(command.as_std().get_program());
        let launched = launched(&command);
        command.env_remove(LAUNCHED);
        command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command.spawn().map_err(|source| ProgramError::Start {
            path: path.clone(),
            source,
        })?;
        let pipe = child.stderr.take();
        let stderr = tokio::spawn(async move {
            match pipe {
                Some(pipe) => read_tail(pipe).await,
                None => Vec::new(),
            }
        });
        Ok(Self {
            path,
            launched,
            child,
            stderr,
        })
    }

    fn name(&self) -> String {
        if let Some(name) = &self.launched {
            return name.clone();
        }
        Path::new(&self.path)
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned()
    }

    /// Its standard output, to be read to the end before [`Running::finish`].
    pub fn take_stdout(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    /// Its standard input, if that is a pipe. Drop it to end the input.
    pub fn take_stdin(&mut self) -> Option<ChildStdin> {
        self.child.stdin.take()
    }

    /// The process's id, while it runs.
    pub fn process_id(&self) -> Option<u32> {
        self.child.id()
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// It ends with another status than 0, or not before the deadline.
    pub async fn finish(mut self, deadline: Duration) -> Result<Finished, ProgramError> {
        drop(self.child.stdin.take());
        match timeout(deadline, self.wait()).await {
            Ok(status) => {
                let status = status?;
                self.ended(status).await
            }
            Err(_) => Err(self.overdue(deadline).await),
        }
    }

    /// Kills it and waits for its end.
    pub async fn kill(&mut self) {
        if let Err(error) = self.child.kill().await {
            tracing::debug!(program = %self.path.display(), %error, "the program could not be killed");
        }
    }

    async fn wait(&mut self) -> Result<ExitStatus, ProgramError> {
        let result = self.child.wait().await;
        result.map_err(|source| ProgramError::Pipe {
            program: self.name(),
            source,
        })
    }

    async fn overdue(mut self, after: Duration) -> ProgramError {
        self.kill().await;
        let program = self.name();
        ProgramError::Deadline {
            program,
            after,
            stderr: self.stderr_tail().await,
        }
    }

    async fn ended(self, status: ExitStatus) -> Result<Finished, ProgramError> {
        let program = self.name();
        let is_launched = self.launched.is_some();
        let stderr = self.stderr_tail().await;
        if status.success() {
            return Ok(Finished {
                stdout: Vec::new(),
                stderr,
            });
        }
        if is_launched && let Some((message, hint)) = said_by_launcher(&stderr) {
            return Err(ProgramError::Launcher {
                program,
                message,
                hint,
            });
        }
        Err(ProgramError::Failed {
            program,
            status,
            stderr,
        })
    }

    async fn stderr_tail(mut self) -> String {
        match timeout(STDERR_GRACE, &mut self.stderr).await {
            Ok(Ok(bytes)) => {
                without_secrets(&String::from_utf8_lossy(&bytes), bytes.len() >= STDERR_BYTES_MAX)
            }
            _ => {
                self.stderr.abort();
                String::new()
            }
        }
    }
}

/// The program that a launcher is told to run.
fn launched(command: &Command) -> Option<String> {
    let mut variables = command.as_std().get_envs();
    let (_, value) = variables.find(|(name, _)| *name == LAUNCHED)?;
    value.map(|value| value.to_string_lossy().into_owned())
}

/// A launcher is a command of pgkeep: `error: ...`, and in lines of their own, indented, causes and `hint: ...`. What it runs begins its messages
/// with its own name.
fn said_by_launcher(stderr: &str) -> Option<(String, Option<String>)> {
    let said = stderr.trim().strip_prefix("error: ")?;
    let (message, hint) = match said.split_once("\n  hint: ") {
        Some((message, hint)) => (message, Some(in_one_line(hint, " "))),
        None => (said, None),
    };
    Some((in_one_line(message, ": "), hint))
}

fn in_one_line(text: &str, between: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    lines.join(between)
}

/// Reads to the end and keeps the last bytes.
async fn read_tail(mut pipe: impl AsyncRead + Unpin) -> Vec<u8> {
    let mut tail: VecDeque<u8> = VecDeque::new();
    let mut piece = vec![0; 4096];
    loop {
        match pipe.read(&mut piece).await {
            Ok(0) | Err(_) => return tail.into(),
            Ok(read) => {
                tail.extend(piece.get(..read).unwrap_or_default());
                let excess = tail.len().saturating_sub(STDERR_BYTES_MAX);
                tail.drain(..excess);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_launcher_says_is_told_from_what_it_runs() {
        let said =
            "error: there is no running container 'db'\n  why\n  hint: start it:\n    docker start db\n";
        let (message, hint) = said_by_launcher(said).unwrap();
        assert_eq!(message, "there is no running container 'db': why");
        assert_eq!(hint.as_deref(), Some("start it: docker start db"));
        assert!(said_by_launcher("pg_restore: error: x").is_none());
    }
}
