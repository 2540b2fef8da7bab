//! A server, a folder with configuration and key, and the binary.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use pgkeep_testkit::{Cluster, ClusterOptions};
use serde_json::Value;
use tempfile::TempDir;

/// Given wherever a password is asked for, so that its appearance anywhere is a finding.
pub const PASSWORD: &str = "hunter2-is-secret";
/// Rows of the table `players`.
pub const PLAYERS: u64 = 3000;

const SCHEMA: &str = "
    CREATE TABLE players (id bigint PRIMARY KEY, name text NOT NULL, joined timestamptz NOT NULL);
    INSERT INTO players SELECT i, 'player ' || i, '2026-01-01'::timestamptz + i * interval '1 minute'
      FROM generate_series(1, 3000) i;
    CREATE TABLE scores (player bigint REFERENCES players, score int, note text);
    INSERT INTO scores SELECT i % 3000 + 1, i, E'tab\\t, line\\n, back\\\\slash ' || md5(i::text) FROM generate_series(1, 5000) i;
    CREATE TABLE nothing ();
    CREATE TABLE empty (id int);
    CREATE MATERIALIZED VIEW top AS SELECT player, sum(score) FROM scores GROUP BY player;
    CREATE SEQUENCE tickets START 42;";

/// What a command did.
#[derive(Debug)]
pub struct Done {
    /// The exit code.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Done {
    /// Expects an exit code and returns it all.
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(
            self.code, code,
            "stdout:\n{}\nstderr:\n{}",
            self.stdout, self.stderr
        );
        self
    }

    /// Standard output as JSON lines.
    #[track_caller]
    pub fn json_lines(&self) -> Vec<Value> {
        let parse = |line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        self.stdout.lines().map(parse).collect()
    }

    /// Standard output as one JSON document.
    #[track_caller]
    pub fn json(&self) -> Value {
        let mut lines = self.json_lines();
        assert_eq!(lines.len(), 1, "{}", self.stdout);
        lines.remove(0)
    }
}

/// A folder with everything in it.
pub struct Place {
    /// Gone at the end.
    pub folder: TempDir,
    /// Variables for the binary.
    pub environment: Vec<(String, String)>,
}

impl Place {
    /// A folder with a key, and without any configuration.
    pub fn new() -> Self {
        Self::in_folder(tempfile::tempdir().unwrap())
    }

    /// The same in memory where there is such a file system: for tests with hundreds of writes, each of which would wait
    /// for the disk.
    pub fn in_memory() -> Self {
        let memory = tempfile::tempdir_in("/dev/shm");
        Self::in_folder(memory.unwrap_or_else(|_| tempfile::tempdir().unwrap()))
    }

    fn in_folder(folder: TempDir) -> Self {
        let place = Self {
            folder,
            environment: Vec::new(),
        };
        place.run(&["key", "new", "--output", "pgkeep.key"]).expect(0);
        place
    }

    /// One whose configuration leads to the server and to a repository in it. `encryption` is a line of pgkeep.toml.
    pub fn with(cluster: &Cluster, encryption: Option<&str>) -> Self {
        let place = Self::new();
        place.configure(cluster, &place.repository_url(), encryption);
        place
    }

    /// Writes the configuration.
    pub fn configure(&self, cluster: &Cluster, repository: &str, encryption: Option<&str>) {
        let recipients = format!("recipients = [\"{}\"]", self.recipient());
        let text = format!(
            "[cluster.main]\nconnection = \"{}\"\nrepository = \"{repository}\"\n{}\nidentity_file = \"pgkeep.key\"\n\
             pg_bin = \"{}\"\n",
            cluster.tcp_conninfo("postgres"),
            encryption.unwrap_or(&recipients),
            cluster.pg_bin().display(),
        );
        std::fs::write(self.path("pgkeep.toml"), text).unwrap();
    }

    /// The public key.
    pub fn recipient(&self) -> String {
        self.run(&["key", "show", "pgkeep.key"])
            .expect(0)
            .stdout
            .trim()
            .to_owned()
    }

    /// A path in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The repository in the folder.
    pub fn repository_url(&self) -> String {
        format!("file://{}", self.path("repository").display())
    }

    /// The only file of the repository whose path ends so.
    pub fn object(&self, end: &str) -> PathBuf {
        let mut found: Vec<PathBuf> = files(&self.path("repository"))
            .into_iter()
            .filter(|path| path.to_string_lossy().ends_with(end))
            .collect();
        assert_eq!(found.len(), 1, "files that end with {end}: {found:?}");
        found.remove(0)
    }

    /// The binary with a bare environment.
    pub fn command(&self, args: &[&str]) -> Command {
        self.command_of(Path::new(env!("CARGO_BIN_EXE_pgkeep")), args)
    }

    /// A program with the environment that the binary would have.
    pub fn command_of(&self, program: &Path, args: &[&str]) -> Command {
        let mut command = Command::new(program);
        command
            .args(args)
            .current_dir(self.folder.path())
            .env_clear()
            .env("HOME", self.folder.path())
            .env("PATH", "/usr/bin:/bin")
            .env("TZ", "UTC")
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null());
        command
    }

    /// Runs it to its end. Whatever it does, it doesn't panic, and prints no secret.
    #[track_caller]
    pub fn run(&self, args: &[&str]) -> Done {
        self.done(self.command(args).output().unwrap())
    }

    /// What came of it.
    #[track_caller]
    pub fn done(&self, output: Output) -> Done {
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        let (stdout, stderr) = (text(output.stdout), text(output.stderr));
        for text in [&stdout, &stderr] {
            assert!(!text.contains("panicked"), "{text}");
            assert!(!text.contains(PASSWORD), "a password is printed: {text}");
            assert!(
                !text.contains("AGE-SECRET-KEY-1"),
                "a secret key is printed: {text}"
            );
        }
        Done {
            code: output.status.code().unwrap_or(-1),
            stdout,
            stderr,
        }
    }

    /// A dump; its id.
    #[track_caller]
    pub fn dump(&self) -> String {
        self.run(&["dump", "--quiet"]).expect(0).stdout.trim().to_owned()
    }
}

/// A server with a database `app`.
pub fn server() -> Cluster {
    server_with(ClusterOptions::default())
}

/// The same, with options.
pub fn server_with(options: ClusterOptions) -> Cluster {
    let cluster = Cluster::start(options).unwrap();
    cluster.create_database("app");
    cluster.psql("app", SCHEMA);
    cluster
}

/// Every file below a folder.
pub fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let Ok(entries) = std::fs::read_dir(folder) else {
        return found;
    };
    for entry in entries.flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => found.extend(files(&entry.path())),
            _ => found.push(entry.path()),
        }
    }
    found.sort();
    found
}
