//! What PostgreSQL's own programs write: the schema, the globals, large objects.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use pgkeep_pg::programs::{self, Finished, Program, ProgramError, ProgramSearch, RunLimits, Running};
use pgkeep_pg::{PgError, Session, Target};
use pgkeep_repository::destinations::Destinations;
use pgkeep_repository::object::{BLOCK_BYTES, ObjectRef, SealedObject, Sealer};
use pgkeep_repository::{Access, RepositoryError};
use tokio::io::AsyncReadExt;
use tokio::process::{ChildStdout, Command};
use tokio::sync::mpsc;

use crate::error::{Context, DumpError};
use crate::{limits, sql};

/// An object with a program's output is cut at this size, in bytes as stored.
const PART_BYTES_MAX: usize = 16 << 20;
/// What a program prints that writes its result elsewhere.
const MESSAGES_BYTES_MAX: usize = 64 << 20;
/// pg_dumpall reads a few catalogs; it is stuck behind something if it takes longer.
const GLOBALS_DEADLINE: Duration = Duration::from_secs(600);

/// The client programs that fit a server.
pub struct ClientPrograms {
    /// `pg_dump`
    pub pg_dump: Program,
    /// `pg_dumpall`
    pub pg_dumpall: Program,
}

impl ClientPrograms {
    /// Finds programs of at least the server's major version.
    ///
    /// # Errors
    /// None is installed; the error lists what was found.
    pub async fn find(server_version_num: u32, search: &ProgramSearch) -> Result<Self, DumpError> {
        let major = server_version_num / 10_000;
        let context = || format!("looking for the client programs of PostgreSQL {major}");
        Ok(Self {
            pg_dump: programs::find("pg_dump", major, search).await.context(context)?,
            pg_dumpall: programs::find("pg_dumpall", major, search)
                .await
                .context(context)?,
        })
    }
}

/// How long a program that has closed its output may take to end.
pub const ENDING_DEADLINE: Duration = Duration::from_secs(60);
/// Runs a program that works on a server, and gives it up when the server is silent for good: the program itself would wait
/// for ever.
///
/// # Errors
/// The program's in the inner result; [`PgError::Silent`] in the outer.
pub async fn run_on_server(
    command: Command,
    server: &Target,
) -> Result<Result<Finished, ProgramError>, PgError> {
    let limits = RunLimits {
        deadline: PROGRAM_DEADLINE,
        stdout_bytes_max: MESSAGES_BYTES_MAX,
    };
    tokio::select! {
        finished = programs::run(command, &limits) => Ok(finished),
        error = server.until_unreachable() => Err(error),
    }
}

/// How long a dump's or restore's program may run. Building indexes takes hours; a week is a hang.
const PROGRAM_DEADLINE: Duration = Duration::from_secs(7 * 24 * 3600);

/// Runs a program and stores its output as one or several sealed objects, which read one after the other are the
/// output. `name` gives the object's name for its number, from 1; `server` is what the program reads from.
///
/// # Errors
/// The store's; [`DumpError::Program`] when the program fails; PostgreSQL's when the server doesn't answer any more.
pub async fn store_output(
    destinations: &Destinations,
    prefix: &str,
    name: impl Fn(u32) -> String,
    command: Command,
    server: &Target,
) -> Result<Vec<ObjectRef>, DumpError> {
    let (blocks, block_input) = mpsc::channel::<Option<Bytes>>(2);
    let (sealed_output, mut sealed) = mpsc::channel(1);
    let access = destinations.shared_access();
    let sealing = tokio::task::spawn_blocking(move || seal_blocks(&access, block_input, &sealed_output));
    // The receiver moves in: when storing fails it closes, and the stages before notice.
    let storing = async move {
        let mut objects = Vec::new();
        while let Some(object) = sealed.recv().await {
            let number = u32::try_from(objects.len()).unwrap_or(u32::MAX).saturating_add(1);
            objects.push(destinations.put_sealed(prefix, &name(number), object).await?);
        }
        Ok::<_, DumpError>(objects)
    };
    let (stored, ran) = tokio::join!(storing, feed_blocks(command, server, blocks));
    let sealed = sealing
        .await
        .map_err(|error| DumpError::Internal(format!("the sealing thread died: {error}")))?;
    // The cause first: when storing fails, the stages before it only see their output closed.
    let objects = stored?;
    ran?;
    sealed?;
    Ok(objects)
}

/// Runs the program and hands its output on in blocks, and its end when it was a good one.
async fn feed_blocks(
    command: Command,
    server: &Target,
    blocks: mpsc::Sender<Option<Bytes>>,
) -> Result<(), DumpError> {
    let name = command.as_std().get_program().to_string_lossy().into_owned();
    let gone = |_| DumpError::Internal("the sealing thread is gone".to_owned());
    let mut output = ProgramOutput::start(command, Some(server), format!("running {name}"))?;
    while let Some(block) = output.next().await? {
        blocks.send(Some(block)).await.map_err(gone)?;
    }
    blocks.send(None).await.map_err(gone)
}

/// A program that runs, and its output in blocks.
pub struct ProgramOutput {
    running: Option<Running>,
    output: ChildStdout,
    server: Option<Target>,
    context: String,
}

impl ProgramOutput {
    /// Starts a program; `server` is what it works on, if it does on one, and `context` says what for.
    ///
    /// # Errors
    /// It can't be started.
    pub fn start(command: Command, server: Option<&Target>, context: String) -> Result<Self, DumpError> {
        let mut running = Running::start(command).context(|| context.clone())?;
        let piped = || DumpError::Internal("a program's output is not piped".to_owned());
        let output = running.take_stdout().ok_or_else(piped)?;
        Ok(Self {
            running: Some(running),
            output,
            server: server.cloned(),
            context,
        })
    }

    /// The next block; none at the end of a program that ended well.
    ///
    /// # Errors
    /// It failed, or its server doesn't answer any more.
    pub async fn next(&mut self) -> Result<Option<Bytes>, DumpError> {
        let mut block = BytesMut::with_capacity(BLOCK_BYTES);
        while block.len() < BLOCK_BYTES {
            let reading = self.output.read_buf(&mut block);
            let read = match &self.server {
                None => reading.await.context(|| self.context.clone())?,
                Some(server) => tokio::select! {
                    biased;
                    read = reading => read.context(|| self.context.clone())?,
                    error = server.until_unreachable() => return Err(error).context(|| self.context.clone()),
                },
            };
            if read == 0 {
                break;
            }
        }
        if !block.is_empty() {
            return Ok(Some(block.freeze()));
        }
        if let Some(running) = self.running.take() {
            let finished = running
                .finish(ENDING_DEADLINE)
                .await
                .context(|| self.context.clone())?;
            tracing::debug!(messages = finished.stderr, "{} ended well", self.context);
        }
        Ok(None)
    }
}

/// `None` marks the end of the input: a channel that closes without it means that the program's reader gave up.
fn seal_blocks(
    access: &Arc<Access>,
    mut blocks: mpsc::Receiver<Option<Bytes>>,
    sealed: &mpsc::Sender<SealedObject>,
) -> Result<(), RepositoryError> {
    let gone = || RepositoryError::Internal("the storing stage is gone".to_owned());
    let mut sealer = Sealer::new(access)?;
    loop {
        let block = match blocks.blocking_recv() {
            Some(Some(block)) => block,
            Some(None) => break,
            // The program failed, and its reader says why: half an archive is not worth an object.
            None => return Ok(()),
        };
        if sealer.sealed_bytes() >= PART_BYTES_MAX {
            let full = std::mem::replace(&mut sealer, Sealer::new(access)?);
            sealed.blocking_send(full.finish()?).map_err(|_| gone())?;
        }
        sealer.write(&block)?;
    }
    sealed.blocking_send(sealer.finish()?).map_err(|_| gone())
}

/// `pg_dump` on the exported snapshot, in its custom format without compression of its own.
pub fn pg_dump(
    programs: &ClientPrograms,
    target: &Target,
    snapshot_id: &str,
    lock_timeout_ms: u128,
) -> Command {
    let mut command = programs.pg_dump.command(Some(target));
    command
        .arg("--format=custom")
        .arg("--compress=0")
        .arg("--no-password")
        .arg(format!("--snapshot={snapshot_id}"))
        .arg(format!("--lock-wait-timeout={lock_timeout_ms}"));
    command
}

/// Whether the session's role may read password hashes, which pg_dumpall then does.
///
/// # Errors
/// PostgreSQL's.
pub(crate) async fn may_read_passwords(session: &mut Session) -> Result<bool, DumpError> {
    let context = || "asking whether the roles' passwords may be read".to_owned();
    let sql = "SELECT pg_catalog.has_table_privilege('pg_catalog.pg_authid', 'SELECT')";
    let rows = session.query(sql).await.context(context)?;
    let may = rows.first().map(|row| row.get(0)).transpose();
    Ok(may.context(context)?.unwrap_or(false))
}

/// Roles, memberships and tablespaces.
///
/// # Errors
/// `pg_dumpall` fails.
pub async fn globals(
    programs: &ClientPrograms,
    target: &Target,
    with_passwords: bool,
) -> Result<Bytes, DumpError> {
    let limits = RunLimits {
        deadline: GLOBALS_DEADLINE,
        stdout_bytes_max: limits::GLOBALS.size_max(),
    };
    let mut command = programs.pg_dumpall.command(Some(target));
    let database = sql::quote_conninfo(target.database());
    command
        .arg("--globals-only")
        .arg("--no-password")
        .arg(format!("--database={database}"));
    if !with_passwords {
        command.arg("--no-role-passwords");
    }
    let finished = programs::run(command, &limits).await;
    let finished = finished.context(|| "reading roles and other globals".to_owned())?;
    Ok(Bytes::from(finished.stdout))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use pgkeep_pg::Silence;

    use super::*;

    /// What a stopped server looks like from outside: connections are taken up by the kernel, and nobody answers.
    fn stopped_server(directory: &std::path::Path) -> (UnixListener, Target) {
        let listener = UnixListener::bind(directory.join(".s.PGSQL.5432")).unwrap();
        let limit = Duration::from_millis(200);
        let silence = Silence {
            max: limit,
            answer_max: limit,
            ..Silence::default()
        };
        let target = Target::for_socket(directory, 5432, "u", "d").with_silence(silence);
        (listener, target)
    }

    fn is_silent(error: &DumpError) -> bool {
        matches!(
            error,
            DumpError::Pg {
                source: PgError::Silent { .. },
                ..
            }
        )
    }

    #[tokio::test]
    async fn a_program_whose_server_is_stopped_is_given_up() {
        let directory = tempfile::tempdir().unwrap();
        let (_listener, target) = stopped_server(directory.path());
        let silent = || {
            let mut command = Command::new("sh");
            command.args(["-c", "echo x; exec sleep 600"]);
            command
        };
        let work = async {
            let mut output = ProgramOutput::start(silent(), Some(&target), "dumping".to_owned()).unwrap();
            let error = output.next().await.unwrap_err();
            assert!(is_silent(&error), "{error}");
            let error = run_on_server(silent(), &target).await.unwrap_err();
            assert!(matches!(error, PgError::Silent { .. }), "{error}");
        };
        tokio::time::timeout(Duration::from_secs(60), work)
            .await
            .expect("it waits for ever");
    }
}
