//! PostgreSQL's programs of a running container, run there for the server there.
//!
//! A host that has nothing but Docker has no `pg_dump` of the server's version; the server's own container has.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bollard::container::LogOutput;
use bollard::exec::{StartExecOptions, StartExecResults};
use bollard::models::ExecConfig;
use bytes::Bytes;
use futures::{Stream, StreamExt};
use pgkeep_base::Secret;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::engine::{Engine, REQUEST_LIMIT};
use crate::found::PORT_DEFAULT;
use crate::{ContainerState, DockerError};

/// The size of tar's blocks, in bytes.
const TAR_BLOCK_BYTES: u64 = 512;
const PIECE_BYTES: usize = 256 << 10;
/// A file of an archive of large objects may be large.
const UPLOAD_LIMIT: Duration = Duration::from_secs(3600);

/// Reads the program's variables from standard input, where no list of processes and no `docker inspect` shows them.
///
/// The program takes the shell's place, and nothing runs beside it: a process that outlives its parent becomes a child of the
/// container's first process, which is the postmaster, and when such a child ends by a signal the postmaster takes it for a
/// crashed backend and restarts the server (`CleanupBackend` in postmaster.c). So nothing watches whether this process is still
/// there: a program that nobody waits for any more goes on to its end.
const SCRIPT: &str =
    r#"while IFS= read -r line && [ -n "$line" ]; do export "$line"; done; exec "$@" </dev/null"#;

/// What to run.
pub struct ContainerProgram {
    /// The container's name.
    pub container: String,
    /// The program and its arguments. Files of this machine that arguments name by their whole path are copied there.
    pub command: Vec<String>,
    /// Its variables. A server that they name must be the container's own.
    pub variables: Vec<(String, Secret)>,
}

impl Engine {
    /// Runs a program in a container to its end, and writes what it writes: this process has nothing else to do. Returns its
    /// exit code.
    ///
    /// # Errors
    /// [`DockerError::OtherServer`]; the engine's; whatever keeps its output from being written.
    pub async fn run_program(
        &self,
        program: &ContainerProgram,
        mut stdout: impl Write,
        mut stderr: impl Write,
    ) -> Result<i64, DockerError> {
        let ContainerProgram {
            container,
            command,
            variables,
        } = program;
        let doing = format!(
            "running {} in the container '{container}'",
            command.first().map_or("a program", String::as_str)
        );
        let failed = |error: io::Error| DockerError::here(&error, &doing);
        let variables = self.inside(container, variables).await?;
        let files: Vec<&Path> = command.iter().filter_map(|text| file_named(text)).collect();
        for path in &files {
            self.upload(container, path).await?;
        }
        let shell = ["sh", "-c", SCRIPT, "sh"].map(str::to_owned);
        let config = ExecConfig {
            attach_stdin: Some(true),
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            cmd: Some(shell.into_iter().chain(command.iter().cloned()).collect()),
            ..ExecConfig::default()
        };
        let made = self.docker.create_exec(container, config);
        let made = self.call(&doing, REQUEST_LIMIT, made).await?;
        let options = StartExecOptions {
            output_capacity: Some(PIECE_BYTES),
            ..StartExecOptions::default()
        };
        let started = self.docker.start_exec(&made.id, Some(options));
        let StartExecResults::Attached {
            mut output,
            mut input,
        } = self.call(&doing, REQUEST_LIMIT, started).await?
        else {
            return Err(failed(io::Error::other("it runs without an output")));
        };
        input
            .write_all(lines(&variables).map_err(failed)?.expose().as_bytes())
            .await
            .map_err(failed)?;
        input.flush().await.map_err(failed)?;
        while let Some(piece) = output.next().await {
            let piece =
                piece.map_err(|error| DockerError::of(&error, &doing, &self.address, REQUEST_LIMIT))?;
            match piece {
                LogOutput::StdErr { message } => stderr.write_all(&message),
                LogOutput::StdOut { message } | LogOutput::Console { message } => stdout.write_all(&message),
                LogOutput::StdIn { .. } => Ok(()),
            }
            .map_err(failed)?;
        }
        stdout.flush().map_err(failed)?;
        let inspecting = self.docker.inspect_exec(&made.id);
        let ended = self.call(&doing, REQUEST_LIMIT, inspecting).await?;
        ended
            .exit_code
            .ok_or_else(|| failed(io::Error::other("its exit code is not known")))
    }

    /// Whether the container runs, and the server that the variables name is its own, so that its programs reach it.
    ///
    /// # Errors
    /// [`DockerError::NotRunning`], [`DockerError::OtherServer`]; the engine's.
    pub async fn require_own_server(
        &self,
        container: &str,
        variables: &[(String, Secret)],
    ) -> Result<(), DockerError> {
        self.inside(container, variables).await.map(drop)
    }

    /// The variables as they have to be in the container.
    async fn inside(
        &self,
        container: &str,
        variables: &[(String, Secret)],
    ) -> Result<Vec<(String, Secret)>, DockerError> {
        let state = self.container(container).await?.filter(|state| state.running);
        let state = state.ok_or_else(|| DockerError::NotRunning(container.to_owned()))?;
        of_the_containers_own(container, &state, variables)
    }

    /// Copies a file of this machine to the same path in the container.
    async fn upload(&self, container: &str, path: &Path) -> Result<(), DockerError> {
        let doing = format!("copying {} into the container '{container}'", path.display());
        let archive = tar_of(path).await;
        let archive = archive.map_err(|error| DockerError::here(&error, &doing))?;
        self.unpack(container, archive, &doing, UPLOAD_LIMIT).await
    }
}

/// The file that an argument names, alone or behind `--option=`.
fn file_named(argument: &str) -> Option<&Path> {
    let (_, value) = argument
        .split_once('=')
        .filter(|_| argument.starts_with("--"))
        .unwrap_or(("", argument));
    let path = Path::new(value);
    (path.is_absolute() && path.is_file()).then_some(path)
}

/// The variables as they have to be in the container. Its server is another address there than here; a server that isn't its own
/// must never be taken for it.
fn of_the_containers_own(
    container: &str,
    state: &ContainerState,
    variables: &[(String, Secret)],
) -> Result<Vec<(String, Secret)>, DockerError> {
    let value = |name: &str| {
        let found = variables.iter().find(|(other, _)| other == name);
        found.map(|(_, value)| value.expose().to_owned())
    };
    let Some(host) = value("PGHOSTADDR").or_else(|| value("PGHOST")) else {
        return Ok(variables.to_vec());
    };
    let port = value("PGPORT")
        .and_then(|port| port.parse().ok())
        .unwrap_or(PORT_DEFAULT);
    let here = ["127.0.0.1", "localhost", "::1"].contains(&host.as_str());
    let published = state.ports.iter().find(|(_, outside)| here && **outside == port);
    let inside = match published {
        Some((inside, _)) => *inside,
        None if state.addresses.contains(&host) => port,
        None => {
            return Err(DockerError::OtherServer {
                container: container.to_owned(),
                server: format!("{host}:{port}"),
            });
        }
    };
    let replaced = ["PGHOST", "PGHOSTADDR", "PGPORT"];
    let others = variables
        .iter()
        .filter(|(name, _)| !replaced.contains(&name.as_str()))
        .cloned();
    let own = [("PGHOST", "127.0.0.1".to_owned()), ("PGPORT", inside.to_string())];
    let own = own.map(|(name, value)| (name.to_owned(), Secret::new(value)));
    Ok(others.chain(own).collect())
}

/// `NAME=value`, each in a line, and an empty line at the end.
fn lines(variables: &[(String, Secret)]) -> io::Result<Secret> {
    let mut text = String::new();
    for (name, value) in variables {
        if value.expose().contains('\n') {
            return Err(io::Error::other(format!(
                "the value of {name} has more than one line"
            )));
        }
        text += &format!("{name}={}\n", value.expose());
    }
    text.push('\n');
    Ok(Secret::new(text))
}

/// A tar archive with one file, as a stream.
async fn tar_of(path: &Path) -> io::Result<impl Stream<Item = Bytes> + Send + 'static> {
    let file = tokio::fs::File::open(path).await?;
    let size = file.metadata().await?.len();
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o644);
    header.set_size(size);
    let inside: PathBuf = path.components().skip(1).collect();
    let mut builder = tar::Builder::new(Vec::new());
    // The header alone: what it says of the size is streamed behind it.
    builder.append_data(&mut header, inside, io::empty())?;
    let head = builder.get_ref().clone();
    let padding = size.next_multiple_of(TAR_BLOCK_BYTES) - size + 2 * TAR_BLOCK_BYTES;
    let end = vec![0; usize::try_from(padding).unwrap_or_default()];
    let pieces = futures::stream::unfold(file.take(size), |mut file| async move {
        let mut piece = vec![0; PIECE_BYTES];
        // A file that can't be read ends early, and the engine refuses an archive that is cut off.
        let read = file.read(&mut piece).await.ok().filter(|read| *read > 0)?;
        piece.truncate(read);
        Some((Bytes::from(piece), file))
    });
    let once = |bytes: Vec<u8>| futures::stream::iter([Bytes::from(bytes)]);
    Ok(once(head).chain(pieces).chain(once(end)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(server: &[(&str, &str)]) -> Vec<(String, Secret)> {
        let all = server.iter().chain(&[("PGPASSWORD", "hunter2")]);
        all.map(|(name, value)| ((*name).to_owned(), Secret::new(*value)))
            .collect()
    }

    #[test]
    fn only_the_containers_own_server_is_reached_there() {
        let state = ContainerState {
            ports: [(5432, 15432)].into(),
            addresses: vec!["172.17.0.2".to_owned()],
            ..ContainerState::default()
        };
        let inside = |server: &[(&str, &str)]| {
            let own = of_the_containers_own("db", &state, &named(server)).ok()?;
            let value = |name: &str| {
                let found = own.iter().find(|(other, _)| other == name);
                found.map(|(_, value)| value.expose().to_owned())
            };
            assert_eq!(value("PGPASSWORD").as_deref(), Some("hunter2"));
            assert_eq!(value("PGHOSTADDR"), None);
            Some((value("PGHOST"), value("PGPORT")))
        };
        let own = Some((Some("127.0.0.1".to_owned()), Some("5432".to_owned())));
        assert_eq!(inside(&[("PGHOST", "localhost"), ("PGPORT", "15432")]), own);
        assert_eq!(
            inside(&[("PGHOST", "db"), ("PGHOSTADDR", "127.0.0.1"), ("PGPORT", "15432")]),
            own
        );
        assert_eq!(inside(&[("PGHOST", "172.17.0.2")]), own);
        // Another server on this machine's own port 5432 isn't the one behind that port in the container.
        assert_eq!(inside(&[("PGHOST", "127.0.0.1"), ("PGPORT", "5432")]), None);
        assert_eq!(inside(&[("PGHOST", "/var/run/postgresql")]), None);
        assert_eq!(inside(&[("PGHOST", "db.example.com"), ("PGPORT", "15432")]), None);
        assert_eq!(inside(&[]), Some((None, None)));
    }

    #[test]
    fn variables_are_lines_and_nothing_else() {
        let text = lines(&named(&[("PGUSER", "a b")])).unwrap();
        assert_eq!(text.expose(), "PGUSER=a b\nPGPASSWORD=hunter2\n\n");
        assert!(lines(&named(&[("PGUSER", "a\nPATH=/x")])).is_err());
    }

    #[tokio::test]
    async fn a_file_of_any_size_makes_a_whole_archive() {
        let folder = tempfile::tempdir().unwrap();
        let long = folder.path().join("x".repeat(150));
        for size in [0, 1, 511, 512, 513, PIECE_BYTES, PIECE_BYTES * 2 + 7] {
            let contents: Vec<u8> = (0..size).map(|byte| (byte % 251) as u8).collect();
            std::fs::write(&long, &contents).unwrap();
            let pieces: Vec<Bytes> = tar_of(&long).await.unwrap().collect().await;
            let archive = pieces.concat();
            let mut archive = tar::Archive::new(&archive[..]);
            let mut entries = archive.entries().unwrap();
            let mut entry = entries.next().unwrap().unwrap();
            assert_eq!(Path::new("/").join(entry.path().unwrap()), long);
            let mut found = Vec::new();
            io::Read::read_to_end(&mut entry, &mut found).unwrap();
            assert!(found == contents, "{size}");
        }
    }
}
