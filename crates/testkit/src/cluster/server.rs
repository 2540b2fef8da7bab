//! Making, starting and stopping a server.

use std::{
    fs::{self, OpenOptions},
    hash::{DefaultHasher, Hash, Hasher},
    io::Write,
    net::TcpListener,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{
    Cluster, ClusterOptions, SUPERUSER, directory::ClusterDirectory, directory::give_to_server_user,
};
use crate::{
    process::{clean_command, run, server_command, server_user, wait_until},
    requirements,
};

/// A start takes 0.2 s; a machine that runs many tests at once may take longer.
const START_LIMIT: Duration = Duration::from_secs(60);
const STOP_LIMIT: Duration = Duration::from_secs(60);
/// How many ports are tried. A port is free when it is chosen, but another test may be quicker.
const PORTS_MAX: u32 = 20;
/// Below the range from which Linux takes the ports of outgoing connections.
const PORT_RANGE: std::ops::Range<u16> = 12_000..30_000;

/// How a server is stopped (`pg_ctl stop --mode`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopMode {
    /// Waits for all sessions to end.
    Smart,
    /// Ends the sessions and writes a checkpoint.
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

impl Cluster {
    /// Makes and starts a server with the programs in `bin`.
    pub fn start_with(bin: &Path, options: &ClusterOptions) -> Self {
        let directory = ClusterDirectory::create();
        let mut cluster = Self {
            bin: bin.to_owned(),
            major: options.major,
            port: 0,
            postmaster: None,
            directory,
        };
        cluster.create_data_dir(options);
        cluster.configure(options);
        for _ in 0..PORTS_MAX {
            cluster.port = free_port();
            if cluster.try_start() {
                return cluster;
            }
        }
        panic!("no port is free after {PORTS_MAX} tries:\n{}", cluster.log());
    }

    /// A place for a server whose data directory somebody else makes, such as a restore: it isn't there yet. What is written
    /// there must belong to [`server_user`].
    pub fn unmade(bin: &Path, major: u32) -> Self {
        let cluster = Self {
            bin: bin.to_owned(),
            major,
            port: 0,
            postmaster: None,
            directory: ClusterDirectory::create(),
        };
        cluster.create_socket_dir();
        cluster
    }

    /// Starts a server that was restored into the data directory, and waits until it accepts writes. Settings of the origin
    /// that lead to its place are replaced.
    pub fn start_restored(&mut self) {
        let socket_dir = self.socket_dir().to_string_lossy().into_owned();
        self.append(
            "postgresql.conf",
            &setting_line("unix_socket_directories", &socket_dir),
        );
        for _ in 0..PORTS_MAX {
            self.port = free_port();
            if self.try_start() {
                self.wait_for_promotion();
                return;
            }
        }
        panic!("no port is free after {PORTS_MAX} tries:\n{}", self.log());
    }

    /// While it recovers, it may let readers in already.
    fn wait_for_promotion(&mut self) {
        let mut ended = false;
        let promoted = wait_until(START_LIMIT, || {
            let postmaster = self.postmaster.as_mut();
            ended = postmaster.is_none_or(|postmaster| matches!(postmaster.try_wait(), Ok(Some(_))));
            let in_recovery = || self.try_psql("postgres", "SELECT pg_is_in_recovery()");
            ended || in_recovery().is_ok_and(|answer| answer == "f")
        });
        assert!(
            promoted && !ended,
            "recovery doesn't come to its end:\n{}",
            self.log()
        );
    }

    fn create_socket_dir(&self) -> PathBuf {
        let socket_dir = self.socket_dir();
        fs::create_dir(&socket_dir).expect("makes the socket directory");
        give_to_server_user(&socket_dir);
        socket_dir
    }

    fn create_data_dir(&self, options: &ClusterOptions) {
        let data_dir = self.data_dir();
        let template = template(&self.bin, &options.initdb_args);
        run(clean_command("cp")
            .args(["-a", "--reflink=auto"])
            .arg(&template.path)
            .arg(&data_dir));
        if template.temporary {
            let _ = fs::remove_dir_all(&template.path);
        }
        // A copy is the same cluster to everything that looks at the system identifier. pg_resetwal takes over whatever
        // identifier the control file begins with, and writes WAL that agrees.
        let control = OpenOptions::new()
            .write(true)
            .open(data_dir.join("global/pg_control"));
        let identifier = u64::from(rand::random::<u32>()) << 32 | u64::from(rand::random::<u32>());
        control
            .and_then(|mut file| file.write_all(&(identifier >> 1).to_ne_bytes()))
            .expect("writes pg_control");
        run(server_command(self.bin.join("pg_resetwal"))
            .arg("-f")
            .arg("-D")
            .arg(&data_dir)
            .current_dir("/"));
    }

    fn configure(&self, options: &ClusterOptions) {
        let socket_dir = self.create_socket_dir();
        let mut settings = vec![
            ("listen_addresses", "127.0.0.1".to_owned()),
            (
                "unix_socket_directories",
                socket_dir.to_string_lossy().into_owned(),
            ),
            ("fsync", "off".to_owned()),
            ("shared_buffers", "32MB".to_owned()),
            ("max_wal_size", "1GB".to_owned()),
            ("timezone", "UTC".to_owned()),
            ("log_timezone", "UTC".to_owned()),
            ("log_line_prefix", "%m [%p] %q%a %u@%d ".to_owned()),
        ];
        if options.timescaledb {
            settings.push(("shared_preload_libraries", "timescaledb".to_owned()));
            settings.push(("max_worker_processes", "32".to_owned()));
        }
        let mut text: String = settings
            .iter()
            .map(|(name, value)| setting_line(name, value))
            .collect();
        text.extend(
            options
                .settings
                .iter()
                .map(|(name, value)| setting_line(name, value)),
        );
        self.append("postgresql.conf", &text);
        let hba: String = options.hba_lines.iter().map(|line| format!("{line}\n")).collect();
        let default_hba = "local all all trust\nhost all all 127.0.0.1/32 trust\n\
            local replication all trust\nhost replication all 127.0.0.1/32 trust\n";
        self.write_file("pg_hba.conf", &format!("{hba}{default_hba}"));
    }

    /// Adds settings to `postgresql.conf`; they count from the next [`Cluster::restart`] or `pg_reload_conf()` on.
    pub fn set(&self, name: &str, value: &str) {
        self.append("postgresql.conf", &setting_line(name, value));
    }

    /// Writes a file into the data directory as PostgreSQL wants it: owned by the server's user, readable by it alone.
    pub fn write_file(&self, name: &str, contents: &str) {
        let path = self.data_dir().join(name);
        fs::write(&path, contents).expect("writes a file of the data directory");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("sets the file's mode");
        give_to_server_user(&path);
    }

    fn append(&self, name: &str, text: &str) {
        let path = self.data_dir().join(name);
        let mut file = OpenOptions::new()
            .append(true)
            .open(path)
            .expect("opens a file of the data directory");
        file.write_all(text.as_bytes())
            .expect("writes a file of the data directory");
    }

    /// Starts the server after [`Cluster::stop`] or [`Cluster::kill9`], on the port it had.
    pub fn start_again(&mut self) {
        assert!(self.postmaster.is_none(), "the server runs already");
        let started = wait_until(START_LIMIT, || self.try_start());
        assert!(started, "port {} stays taken:\n{}", self.port, self.log());
    }

    /// Stops the server and starts it again on the same port.
    pub fn restart(&mut self, mode: StopMode) {
        self.stop(mode);
        self.start_again();
    }

    /// Stops the server and waits until it has ended.
    pub fn stop(&mut self, mode: StopMode) {
        let Some(mut postmaster) = self.postmaster.take() else {
            return;
        };
        // Fails only when the server has ended already, which is what is wanted.
        let _ = kill(pid_of(postmaster.id()), mode.signal());
        if !wait_until(STOP_LIMIT, || matches!(postmaster.try_wait(), Ok(Some(_)))) {
            let _ = postmaster.kill();
            let _ = postmaster.wait();
            if !std::thread::panicking() {
                panic!("the server doesn't stop ({mode:?}):\n{}", self.log());
            }
        }
    }

    /// Kills every process of the server (SIGKILL), as a crash of the machine would, and waits until all have ended.
    pub fn kill9(&mut self) {
        let Some(mut postmaster) = self.postmaster.take() else {
            return;
        };
        let pid = postmaster.id();
        // The postmaster first, stopped: otherwise it would restart what is killed, or end it more gently.
        let _ = kill(pid_of(pid), Signal::SIGSTOP);
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        let children: Vec<u32> = children
            .split_whitespace()
            .filter_map(|pid| pid.parse().ok())
            .collect();
        let _ = postmaster.kill();
        postmaster.wait().expect("waits for the postmaster");
        for child in &children {
            let _ = kill(pid_of(*child), Signal::SIGKILL);
        }
        let all_ended = wait_until(STOP_LIMIT, || !children.iter().any(|child| runs(*child)));
        assert!(all_ended, "the server's processes don't end");
    }

    /// Starts the postmaster and waits until it accepts connections. `false`: the port was taken.
    fn try_start(&mut self) -> bool {
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log_path())
            .expect("opens the server's log");
        let logged_before = log.metadata().map_or(0, |metadata| metadata.len());
        let log_too = log.try_clone().expect("duplicates the log's descriptor");
        let mut postmaster = server_command(self.bin.join("postgres"))
            .arg("-D")
            .arg(self.data_dir())
            .args(["-p", &self.port.to_string()])
            .current_dir(self.directory.path())
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(log_too)
            // Ctrl-C at the test's terminal is the test's affair; the watchdog ends the server.
            .process_group(0)
            .spawn()
            .expect("starts postgres");
        let pid_file = self.data_dir().join("postmaster.pid");
        let mut ended = false;
        let ready = wait_until(START_LIMIT, || {
            ended = matches!(postmaster.try_wait(), Ok(Some(_)));
            ended || is_ready(&pid_file, postmaster.id())
        });
        if ready && !ended {
            self.postmaster = Some(postmaster);
            return true;
        }
        let _ = postmaster.kill();
        let _ = postmaster.wait();
        let log = fs::read(self.log_path()).unwrap_or_default();
        let log = String::from_utf8_lossy(
            log.get(usize::try_from(logged_before).unwrap_or(0)..)
                .unwrap_or(&[]),
        )
        .into_owned();
        assert!(
            log.contains("Address already in use") || log.contains("lock file"),
            "the server doesn't start:\n{log}"
        );
        false
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop(StopMode::Immediate);
    }
}

fn setting_line(name: &str, value: &str) -> String {
    format!("{name} = '{}'\n", value.replace('\\', "\\\\").replace('\'', "''"))
}

/// The eighth line of `postmaster.pid` says how far the server is; pg_ctl looks there too.
fn is_ready(pid_file: &Path, pid: u32) -> bool {
    let text = fs::read_to_string(pid_file).unwrap_or_default();
    let mut lines = text.lines();
    lines.next() == Some(pid.to_string().as_str())
        && lines.nth(6).is_some_and(|status| status.trim() == "ready")
}

fn pid_of(id: u32) -> Pid {
    Pid::from_raw(i32::try_from(id).expect("a process id fits"))
}

/// Whether a process runs; one that has ended and only waits to be reaped doesn't.
fn runs(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ")
        .is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

fn free_port() -> u16 {
    for _ in 0..1000 {
        let port = rand::random_range(PORT_RANGE);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no free port in {PORT_RANGE:?}");
}

struct Template {
    path: PathBuf,
    temporary: bool,
}

/// A data directory fresh from `initdb`, which takes 1 s, kept for every further cluster of the same programs and
/// arguments.
fn template(bin: &Path, initdb_args: &[String]) -> Template {
    let mut hasher = DefaultHasher::new();
    let postgres = bin.join("postgres");
    let modified = fs::metadata(&postgres)
        .and_then(|metadata| metadata.modified())
        .expect("finds postgres");
    (
        &postgres,
        modified,
        initdb_args,
        server_user().map(|(uid, _)| uid.as_raw()),
    )
        .hash(&mut hasher);
    nix::unistd::Uid::effective().as_raw().hash(&mut hasher);
    let name = format!("{:016x}", hasher.finish());
    let templates = requirements::cache().join("templates");
    let keep = fs::create_dir_all(&templates).is_ok();
    let path = templates.join(&name);
    if keep && path.exists() {
        return Template {
            path: path.join("data"),
            temporary: false,
        };
    }
    // Made aside and renamed: another test may make the same one at the same time, and either will do.
    let parent = if keep { templates } else { std::env::temp_dir() };
    let aside = tempfile::Builder::new()
        .prefix("making-")
        .tempdir_in(parent)
        .expect("makes a directory")
        .keep();
    fs::set_permissions(&aside, fs::Permissions::from_mode(0o755)).expect("sets the directory's mode");
    give_to_server_user(&aside);
    run(server_command(bin.join("initdb"))
        .arg("-D")
        .arg(aside.join("data"))
        .args([
            "-U",
            SUPERUSER,
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--locale=C.UTF-8",
            "--no-sync",
        ])
        .args(initdb_args)
        .current_dir("/"));
    if !keep {
        return Template {
            path: aside.join("data"),
            temporary: true,
        };
    }
    if fs::rename(&aside, &path).is_err() {
        let _ = fs::remove_dir_all(&aside);
    }
    assert!(path.exists(), "the template {} vanished", path.display());
    Template {
        path: path.join("data"),
        temporary: false,
    }
}
