//! A PostgreSQL server of one's own, from local binaries, for as long as it is needed.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Gid, Pid, Uid, User, chown};
use pgkeep_base::{Classified, Hint, RetryClass};
use tempfile::TempDir;

use crate::programs::{self, Program, ProgramError, ProgramSearch, RunLimits};
use crate::{ConnectReason, PgError, Session, Target};

/// How often a server that starts or stops is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// What is shown of the server's log when it doesn't start.
const LOG_TAIL_BYTES: u64 = 4096;
/// The port was taken by somebody else between choosing and using it: so many times another one is tried.
const PORT_ATTEMPTS: usize = 5;
/// How long a dropped server may take to end before it is killed.
const DROP_LIMIT: Duration = Duration::from_secs(5);
/// A socket's path is at most 107 bytes long; `/.s.PGSQL.12345` and a lock file's suffix come on top.
const SOCKET_DIRECTORY_BYTES_MAX: usize = 80;

/// How a new cluster is made.
#[derive(Debug, Clone)]
pub struct InitdbOptions {
    /// The locale, `C.UTF-8` and the like; `None`: `C`.
    pub locale: Option<String>,
    /// The encoding of its databases.
    pub encoding: String,
    /// Data checksums?
    pub data_checksums: bool,
    /// The name of its superuser.
    pub superuser: String,
    /// How long initdb may take.
    pub deadline: Duration,
    /// Flush everything to disk? Only a server whose data is to be kept needs it.
    pub sync: bool,
}

impl Default for InitdbOptions {
    fn default() -> Self {
        Self {
            locale: None,
            encoding: "UTF8".to_owned(),
            data_checksums: true,
            superuser: "postgres".to_owned(),
            deadline: Duration::from_secs(120),
            sync: false,
        }
    }
}

/// How a server is run.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// The operating-system user of the server when this program runs as root, which PostgreSQL refuses; `None`:
    /// `postgres`.
    pub run_as: Option<String>,
    /// Listen on a free port of 127.0.0.1 too? Otherwise only a socket in a private directory leads to it.
    pub loopback: bool,
    /// How long starting may take.
    pub start_limit: Duration,
    /// How long stopping may take: all that is dirty in memory goes to disk.
    pub stop_limit: Duration,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            run_as: None,
            loopback: false,
            start_limit: Duration::from_secs(60),
            stop_limit: Duration::from_secs(600),
        }
    }
}

/// How a server is stopped (`pg_ctl stop --mode`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopMode {
    /// Waits for all clients to leave.
    Smart,
    /// Disconnects them; shuts down cleanly.
    Fast,
    /// Ends at once; the next start recovers.
    Immediate,
}

impl StopMode {
    fn signal(self) -> Signal {
        match self {
            Self::Smart => Signal::SIGTERM,
            Self::Fast => Signal::SIGINT,
            Self::Immediate => Signal::SIGQUIT,
        }
    }
}

/// A server of one's own doesn't come up, or doesn't go.
#[derive(Debug, thiserror::Error)]
pub enum TemporaryServerError {
    /// A program is missing or failed.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// A directory can't be made or used.
    #[error("{}: {source}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The data directory isn't empty, and wasn't touched.
    #[error("{} is not empty", .0.display())]
    NotEmpty(PathBuf),
    /// There is no user to run it as.
    #[error("PostgreSQL does not run as root, and there is no user '{0}'")]
    NoUser(String),
    /// It ended instead of starting.
    #[error("the server ended while starting ({status}); its log ends with:\n{log}")]
    Ended {
        /// Its exit status.
        status: ExitStatus,
        /// The end of its log.
        log: String,
    },
    /// It wasn't ready in time.
    #[error("the server was not ready within {} s; its log ends with:\n{log}", after.as_secs())]
    StartDeadline {
        /// How long it was waited for.
        after: Duration,
        /// The end of its log.
        log: String,
    },
    /// It didn't stop in time.
    #[error("the server did not stop within {} s", .0.as_secs())]
    StopDeadline(Duration),
    /// It can't be signalled, or its state can't be read.
    #[error("the server's process: {0}")]
    Process(std::io::Error),
    /// It is running already, or isn't.
    #[error("the server is {}", if *.0 { "running already" } else { "not running" })]
    State(bool),
}

impl Classified for TemporaryServerError {
    fn retry_class(&self) -> RetryClass {
        match self {
            Self::Program(error) => error.retry_class(),
            Self::NotEmpty(_) => RetryClass::Refused,
            Self::NoUser(_) => RetryClass::Usage,
            Self::StartDeadline { .. } | Self::StopDeadline(_) => RetryClass::Transient,
            Self::Directory { .. } | Self::Ended { .. } | Self::Process(_) | Self::State(_) => {
                RetryClass::Permanent
            }
        }
    }

    fn hint(&self) -> Option<Hint> {
        match self {
            Self::Program(error) => error.hint(),
            Self::NotEmpty(_) => Some(Hint::new("name a directory that is empty or doesn't exist")),
            Self::NoUser(user) => Some(Hint::new(format!(
                "run: useradd --system {user}; or run pgkeep as another user than root"
            ))),
            _ => None,
        }
    }
}

/// A PostgreSQL server run from local binaries, with a private socket directory. Dropping it stops it: immediately, or, if
/// it was told to stop already, as it was told, and without waiting.
#[derive(Debug)]
pub struct TemporaryServer {
    postgres: Program,
    data: PathBuf,
    socket_directory: TempDir,
    port: u16,
    superuser: String,
    options: ServerOptions,
    /// When this process is root.
    identity: Option<(Uid, Gid)>,
    process: Option<Child>,
    /// It was asked to stop.
    stopping: bool,
}

impl TemporaryServer {
    /// Makes a new cluster in `data`, which must be empty or not exist, by the `initdb` of `search` with at least the
    /// major version `major_min`. Whoever can enter the private socket directory is let in; over TCP a password is
    /// asked for, and there is none yet.
    ///
    /// # Errors
    /// See [`TemporaryServerError`].
    pub async fn initdb(
        data: &Path,
        major_min: u32,
        search: &ProgramSearch,
        initdb: &InitdbOptions,
        options: ServerOptions,
    ) -> Result<Self, TemporaryServerError> {
        let program = programs::find("initdb", major_min, search).await?;
        let data = std::path::absolute(data).map_err(|source| directory_error(data, source))?;
        let identity = identity(&options)?;
        make_data_directory(&data, identity)?;
        let mut command = program.command(None);
        command.arg("--pgdata").arg(&data).args([
            format!("--username={}", initdb.superuser),
            format!("--encoding={}", initdb.encoding),
            format!("--locale={}", initdb.locale.as_deref().unwrap_or("C")),
            "--auth-local=trust".to_owned(),
            "--auth-host=scram-sha-256".to_owned(),
            "--no-instructions".to_owned(),
        ]);
        if initdb.data_checksums {
            command.arg("--data-checksums");
        } else if program.major >= 18 {
            command.arg("--no-data-checksums");
        }
        if !initdb.sync {
            command.arg("--no-sync");
        }
        command.current_dir("/");
        if let Some((user, group)) = identity {
            command.uid(user.as_raw()).gid(group.as_raw());
        }
        let limits = RunLimits {
            deadline: initdb.deadline,
            stdout_bytes_max: 1 << 20,
        };
        programs::run(command, &limits).await?;
        let binaries = program.path.parent().unwrap_or(Path::new("/"));
        Self::prepare(
            &data,
            program.major,
            &ProgramSearch::only(binaries),
            &initdb.superuser,
            options,
        )
        .await
    }

    /// Takes an existing data directory of that major version (another one can't be started). It must not be in use.
    ///
    /// # Errors
    /// See [`TemporaryServerError`].
    pub async fn existing(
        data: &Path,
        major: u32,
        search: &ProgramSearch,
        superuser: &str,
        options: ServerOptions,
    ) -> Result<Self, TemporaryServerError> {
        let data = std::path::absolute(data).map_err(|source| directory_error(data, source))?;
        Self::prepare(&data, major, search, superuser, options).await
    }

    async fn prepare(
        data: &Path,
        major: u32,
        search: &ProgramSearch,
        superuser: &str,
        options: ServerOptions,
    ) -> Result<Self, TemporaryServerError> {
        let postgres = programs::find("postgres", major, search).await?;
        let identity = identity(&options)?;
        let socket_directory = make_socket_directory(identity)?;
        Ok(Self {
            postgres,
            data: data.to_owned(),
            socket_directory,
            port: 5432,
            superuser: superuser.to_owned(),
            options,
            identity,
            process: None,
            stopping: false,
        })
    }

    /// Starts it with settings (`("shared_buffers", "64MB")`) on top of its configuration, and waits until it lets
    /// clients in.
    ///
    /// # Errors
    /// It ends, or isn't ready in time; the error then has the end of its log.
    pub async fn start(&mut self, settings: &[(&str, &str)]) -> Result<(), TemporaryServerError> {
        if self.process.is_some() {
            return Err(TemporaryServerError::State(true));
        }
        let mut attempts = 1;
        loop {
            if self.options.loopback {
                self.port = free_port().map_err(TemporaryServerError::Process)?;
            }
            self.spawn(settings)?;
            match self.wait_until_ready().await {
                Err(TemporaryServerError::Ended { log, .. })
                    if attempts < PORT_ATTEMPTS && log.contains("Address already in use") =>
                {
                    attempts += 1;
                }
                Err(error) => {
                    self.stop_now();
                    return Err(error);
                }
                Ok(()) => return Ok(()),
            }
        }
    }

    fn spawn(&mut self, settings: &[(&str, &str)]) -> Result<(), TemporaryServerError> {
        use std::os::unix::process::CommandExt;
        let mut command = self.postgres.command(None).into_std();
        let listen = if self.options.loopback { "127.0.0.1" } else { "" };
        command
            .arg("-D")
            .arg(&self.data)
            .arg("-k")
            .arg(self.socket_directory.path());
        command.args([
            "-p",
            &self.port.to_string(),
            "-c",
            &format!("listen_addresses={listen}"),
        ]);
        // Its log is this program's business while it is temporary.
        command.args(["-c", "logging_collector=off", "-c", "log_destination=stderr"]);
        for (name, value) in settings {
            command.args(["-c", &format!("{name}={value}")]);
        }
        let log_path = self.log_path();
        let log = File::options().create(true).append(true).open(&log_path);
        let log = log.map_err(|source| directory_error(&log_path, source))?;
        let second = log.try_clone().map_err(TemporaryServerError::Process)?;
        // A process group of its own: an interrupt at the terminal is handled by this program, in its order.
        command
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(second)
            .process_group(0);
        if let Some((user, group)) = self.identity {
            command.uid(user.as_raw()).gid(group.as_raw());
        }
        let child = command.spawn().map_err(|source| ProgramError::Start {
            path: self.postgres.path.clone(),
            source,
        })?;
        self.process = Some(child);
        self.stopping = false;
        Ok(())
    }

    async fn wait_until_ready(&mut self) -> Result<(), TemporaryServerError> {
        let started = Instant::now();
        let target = self.target("postgres");
        loop {
            let process = self.process.as_mut().ok_or(TemporaryServerError::State(false))?;
            if let Some(status) = process.try_wait().map_err(TemporaryServerError::Process)? {
                self.process = None;
                return Err(TemporaryServerError::Ended {
                    status,
                    log: self.log_tail(),
                });
            }
            match Session::connect(&target).await {
                Ok(session) => {
                    session.close().await;
                    return Ok(());
                }
                Err(error) if is_ready_nevertheless(&error) => return Ok(()),
                Err(error) => tracing::trace!(%error, "the server isn't ready yet"),
            }
            if started.elapsed() > self.options.start_limit {
                return Err(TemporaryServerError::StartDeadline {
                    after: self.options.start_limit,
                    log: self.log_tail(),
                });
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Stops it and waits for its end.
    ///
    /// # Errors
    /// It doesn't end in time; it then goes on stopping, also when this is dropped.
    pub async fn stop(&mut self, mode: StopMode) -> Result<(), TemporaryServerError> {
        let started = Instant::now();
        self.signal(mode.signal())?;
        self.stopping = true;
        loop {
            let process = self.process.as_mut().ok_or(TemporaryServerError::State(false))?;
            if process
                .try_wait()
                .map_err(TemporaryServerError::Process)?
                .is_some()
            {
                self.process = None;
                return Ok(());
            }
            if started.elapsed() > self.options.stop_limit {
                return Err(TemporaryServerError::StopDeadline(self.options.stop_limit));
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Makes it read its configuration files again.
    ///
    /// # Errors
    /// It isn't running.
    pub fn reload(&self) -> Result<(), TemporaryServerError> {
        self.signal(Signal::SIGHUP)
    }

    fn signal(&self, signal: Signal) -> Result<(), TemporaryServerError> {
        let id = self.process_id().ok_or(TemporaryServerError::State(false))?;
        let id = i32::try_from(id).map_err(|_| TemporaryServerError::State(false))?;
        kill(Pid::from_raw(id), signal).map_err(|errno| TemporaryServerError::Process(errno.into()))
    }

    /// The process of the postmaster, if it runs.
    pub fn process_id(&self) -> Option<u32> {
        self.process.as_ref().map(Child::id)
    }

    /// The data directory.
    pub fn data_directory(&self) -> &Path {
        &self.data
    }

    /// The private directory of its socket.
    pub fn socket_directory(&self) -> &Path {
        self.socket_directory.path()
    }

    /// Its port: in the socket's name, and on 127.0.0.1 if it listens there.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its program, with the version.
    pub fn program(&self) -> &Program {
        &self.postgres
    }

    /// How to connect to one of its databases as superuser, by its socket.
    pub fn target(&self, database: &str) -> Target {
        Target::for_socket(self.socket_directory.path(), self.port, &self.superuser, database)
    }

    /// The file its log goes to; it is gone with the server.
    pub fn log_path(&self) -> PathBuf {
        self.socket_directory.path().join("server.log")
    }

    /// The end of its log.
    pub fn log_tail(&self) -> String {
        let read = || -> std::io::Result<Vec<u8>> {
            let mut file = File::open(self.log_path())?;
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES)))?;
            let mut bytes = Vec::new();
            file.take(LOG_TAIL_BYTES).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        read()
            .map(|bytes| String::from_utf8_lossy(&bytes).trim().to_owned())
            .unwrap_or_default()
    }

    fn stop_now(&mut self) {
        if self.signal(Signal::SIGQUIT).is_err() {
            return;
        }
        let Some(mut process) = self.process.take() else {
            return;
        };
        let started = Instant::now();
        while started.elapsed() < DROP_LIMIT {
            if !matches!(process.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(POLL_INTERVAL);
        }
        if let Err(error) = process.kill().and_then(|()| process.wait()) {
            tracing::warn!(%error, "the server could not be killed");
        }
    }
}

impl Drop for TemporaryServer {
    fn drop(&mut self) {
        // Killed in the middle of a shutdown, it would have to recover at its next start.
        if !self.stopping {
            self.stop_now();
        } else if let Err(error) = self.signal(StopMode::Fast.signal()) {
            tracing::debug!(%error, "the server has stopped");
        }
    }
}

fn directory_error(path: &Path, source: std::io::Error) -> TemporaryServerError {
    TemporaryServerError::Directory {
        path: path.to_owned(),
        source,
    }
}

/// The server answers, but with an error other than "starting up": a missing role or database isn't its fault.
fn is_ready_nevertheless(error: &PgError) -> bool {
    match error {
        PgError::Authentication(_) => true,
        PgError::Connect { reason, .. } => {
            matches!(reason.as_ref(), ConnectReason::Server(error) if error.sqlstate != "57P03")
        }
        _ => false,
    }
}

/// Whom to run as, if this process is root.
fn identity(options: &ServerOptions) -> Result<Option<(Uid, Gid)>, TemporaryServerError> {
    if !nix::unistd::geteuid().is_root() {
        return Ok(None);
    }
    let name = options.run_as.as_deref().unwrap_or("postgres");
    let user = User::from_name(name).map_err(|errno| TemporaryServerError::Process(errno.into()))?;
    let user = user
        .filter(|user| !user.uid.is_root())
        .ok_or_else(|| TemporaryServerError::NoUser(name.to_owned()))?;
    Ok(Some((user.uid, user.gid)))
}

fn own(path: &Path, identity: Option<(Uid, Gid)>) -> Result<(), TemporaryServerError> {
    let error = |source| directory_error(path, source);
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o700)).map_err(error)?;
    if let Some((user, group)) = identity {
        chown(path, Some(user), Some(group)).map_err(|errno| error(errno.into()))?;
    }
    Ok(())
}

fn make_data_directory(path: &Path, identity: Option<(Uid, Gid)>) -> Result<(), TemporaryServerError> {
    let error = |source| directory_error(path, source);
    std::fs::create_dir_all(path).map_err(error)?;
    if std::fs::read_dir(path).map_err(error)?.next().is_some() {
        return Err(TemporaryServerError::NotEmpty(path.to_owned()));
    }
    own(path, identity)
}

fn make_socket_directory(identity: Option<(Uid, Gid)>) -> Result<TempDir, TemporaryServerError> {
    let mut parent = std::env::temp_dir();
    if parent.as_os_str().len() > SOCKET_DIRECTORY_BYTES_MAX - 20 {
        parent = PathBuf::from("/tmp");
    }
    let directory = tempfile::Builder::new()
        .prefix("pgkeep-server-")
        .tempdir_in(&parent)
        .map_err(|source| directory_error(&parent, source))?;
    own(directory.path(), identity)?;
    Ok(directory)
}

fn free_port() -> std::io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}
