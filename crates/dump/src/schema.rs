//! What PostgreSQL's own programs write: the schema, the globals, large objects.

use std::process::Stdio;
use std::sync::Arc;

use bytes::Bytes;
use pgkeep_pg::Target;
use pgkeep_pg::programs::{self, Program, ProgramSearch};
use pgkeep_repository::object::{BLOCK_BYTES, ObjectRef, SealedObject, Sealer};
use pgkeep_repository::{Access, Repository, RepositoryError};
use tokio::io::AsyncReadExt;
use tokio::process::Command;
use tokio::sync::mpsc;

use crate::error::{Context, DumpError};

/// An object with a program's output is cut at this size, in bytes as stored.
const PART_BYTES_MAX: usize = 16 << 20;
/// What is kept of a program's messages, in bytes.
const MESSAGES_BYTES_MAX: usize = 64 << 10;
/// The globals of a cluster with a hundred thousand roles.
const GLOBALS_BYTES_MAX: usize = 64 << 20;

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
            pg_dumpall: programs::find("pg_dumpall", major, search).await.context(context)?,
        })
    }
}

/// A program that failed.
#[derive(Debug)]
pub struct ProgramFailure {
    /// What it said last.
    pub messages: String,
    /// How it ended.
    pub status: String,
}

impl ProgramFailure {
    /// As an error, with what was being done.
    pub fn into_error(self, context: String) -> DumpError {
        let messages = self.messages.trim();
        let reason = if messages.is_empty() { self.status } else { messages.to_owned() };
        DumpError::Target { message: format!("{context}: {reason}"), hint: None }
    }
}

/// Runs a program to its end and hands its output on in blocks.
///
/// # Errors
/// Outside: it could not be run, or `sink` failed. Inside: it failed itself.
pub async fn run_program<F, O>(mut command: Command, mut sink: F) -> Result<Result<String, ProgramFailure>, DumpError>
where
    F: FnMut(Bytes) -> O,
    O: Future<Output = Result<(), DumpError>>,
{
    let name = command.as_std().get_program().to_string_lossy().into_owned();
    let context = || format!("running {name}");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().context(context)?;
    let piped = || DumpError::Internal("a program's output is not piped".to_owned());
    let mut stdout = child.stdout.take().ok_or_else(piped)?;
    let stderr = child.stderr.take().ok_or_else(piped)?;
    let messages = tokio::spawn(collect_messages(stderr));
    loop {
        let mut block = bytes::BytesMut::with_capacity(BLOCK_BYTES);
        while block.len() < BLOCK_BYTES {
            if stdout.read_buf(&mut block).await.context(context)? == 0 {
                break;
            }
        }
        if block.is_empty() {
            break;
        }
        sink(block.freeze()).await?;
    }
    let status = child.wait().await.context(context)?;
    let messages = messages.await.unwrap_or_default();
    if status.success() {
        return Ok(Ok(messages));
    }
    Ok(Err(ProgramFailure { messages, status: format!("{name} ended with {status}") }))
}

/// The last messages; earlier ones give way.
async fn collect_messages(mut stderr: impl tokio::io::AsyncRead + Unpin) -> String {
    let mut kept = Vec::new();
    let mut block = vec![0; 8 << 10];
    while let Ok(length) = stderr.read(&mut block).await {
        if length == 0 {
            break;
        }
        kept.extend_from_slice(block.get(..length).unwrap_or_default());
        let excess = kept.len().saturating_sub(MESSAGES_BYTES_MAX);
        kept.drain(..excess);
    }
    String::from_utf8_lossy(&kept).into_owned()
}

/// Runs a program and stores its output as one or several sealed objects, which read one after the other are the
/// output. `name` gives the object's name for its number, from 1.
///
/// # Errors
/// As [`run_program`].
pub async fn store_output(
    repository: &Repository,
    prefix: &str,
    name: impl Fn(u32) -> String,
    command: Command,
) -> Result<Result<Vec<ObjectRef>, ProgramFailure>, DumpError> {
    let (blocks, block_input) = mpsc::channel::<Option<Bytes>>(2);
    let (sealed_output, mut sealed) = mpsc::channel(1);
    let access = repository.shared_access();
    let sealing = tokio::task::spawn_blocking(move || seal_blocks(&access, block_input, &sealed_output));
    let storing = async {
        let mut objects = Vec::new();
        while let Some(object) = sealed.recv().await {
            let number = u32::try_from(objects.len()).unwrap_or(u32::MAX).saturating_add(1);
            objects.push(repository.put_sealed(prefix, &name(number), object).await?);
        }
        Ok::<_, DumpError>(objects)
    };
    let running = async {
        let gone = || DumpError::Internal("the sealing thread is gone".to_owned());
        let ended = run_program(command, |block| {
            let blocks = blocks.clone();
            async move { blocks.send(Some(block)).await.map_err(|_| gone()) }
        })
        .await?;
        blocks.send(None).await.map_err(|_| gone())?;
        Ok::<_, DumpError>(ended)
    };
    let (stored, ended) = tokio::join!(storing, running);
    sealing.await.map_err(|error| DumpError::Internal(format!("the sealing thread died: {error}")))??;
    let objects = stored?;
    Ok(ended?.map(|_| objects))
}

/// `None` marks the end of the input: a channel that closes without it means that the program's reader gave up.
fn seal_blocks(
    access: &Arc<Access>,
    mut blocks: mpsc::Receiver<Option<Bytes>>,
    sealed: &mpsc::Sender<SealedObject>,
) -> Result<(), RepositoryError> {
    let gone = || RepositoryError::Internal("the storing stage is gone".to_owned());
    let mut sealer = Sealer::new(access)?;
    while let Some(Some(block)) = blocks.blocking_recv() {
        if sealer.sealed_bytes() >= PART_BYTES_MAX {
            let full = std::mem::replace(&mut sealer, Sealer::new(access)?);
            sealed.blocking_send(full.finish()?).map_err(|_| gone())?;
        }
        sealer.write(&block)?;
    }
    sealed.blocking_send(sealer.finish()?).map_err(|_| gone())
}

/// `pg_dump` on the exported snapshot, in its custom format without compression of its own.
pub fn pg_dump(programs: &ClientPrograms, target: &Target, snapshot_id: &str, lock_timeout_ms: u128) -> Command {
    let mut command = programs.pg_dump.command(Some(target));
    command
        .arg("--format=custom")
        .arg("--compress=0")
        .arg("--no-password")
        .arg(format!("--snapshot={snapshot_id}"))
        .arg(format!("--lock-wait-timeout={lock_timeout_ms}"));
    command
}

/// Roles, memberships and tablespaces. Without the right to read password hashes they are left out, which the second
/// value says.
///
/// # Errors
/// `pg_dumpall` fails even so.
pub async fn globals(programs: &ClientPrograms, target: &Target) -> Result<(Bytes, bool), DumpError> {
    let context = || "reading roles and other globals".to_owned();
    let mut failure = None;
    for with_passwords in [true, false] {
        let mut command = programs.pg_dumpall.command(Some(target));
        command.arg("--globals-only").arg("--no-password").arg(format!("--database={}", quote_conninfo(target.database())));
        if !with_passwords {
            command.arg("--no-role-passwords");
        }
        let collected = std::sync::Mutex::new(Vec::new());
        let ended = run_program(command, |block| {
            let mut collected = collected.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            collected.extend_from_slice(&block);
            let large = collected.len() > GLOBALS_BYTES_MAX;
            std::future::ready(if large {
                Err(DumpError::Internal(format!("the globals are larger than {GLOBALS_BYTES_MAX} bytes")))
            } else {
                Ok(())
            })
        })
        .await?;
        match ended {
            Ok(_) => {
                let text = collected.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
                return Ok((Bytes::from(text), with_passwords));
            }
            Err(failed) => failure = failure.or(Some(failed)),
        }
    }
    let failure = failure.ok_or_else(|| DumpError::Internal("pg_dumpall was never run".to_owned()))?;
    Err(failure.into_error(context()))
}

/// A database's name as a connection string: pg_dumpall and pg_restore take a bare name with an equals sign for one.
pub fn quote_conninfo(database: &str) -> String {
    format!("dbname='{}'", database.replace('\\', "\\\\").replace('\'', "\\'"))
}
