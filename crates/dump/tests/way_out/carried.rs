//! A dump's folder, and its script with stock tools alone.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use pgkeep_dump::{DumpError, DumpOptions, DumpReport, ExportFormat, ExportOptions, Progress};
use pgkeep_pg::programs::ProgramSearch;
use pgkeep_repository::Repository;
use pgkeep_repository::encryption::Encryption;
use pgkeep_store::StoreOptions;
use pgkeep_testkit::Cluster;
use pgkeep_testkit::fixtures::DATABASES;
use pgkeep_testkit::requirements::{self, Missing};

use crate::common;

/// What any Unix has; the rest comes from PostgreSQL, age and zstd.
const UNIX_TOOLS: [&str; 16] = [
    "sh",
    "dirname",
    "find",
    "head",
    "cat",
    "rm",
    "mktemp",
    "awk",
    "grep",
    "sed",
    "xargs",
    "bash",
    "dash",
    "wc",
    "ln",
    "sha256sum",
];

/// A dump's folder, away from the repository, and the key on its own.
pub struct Carried {
    place: tempfile::TempDir,
    /// What opens its objects.
    tools: &'static [&'static str],
}

impl Carried {
    pub async fn new(cluster: &Cluster, encrypted: bool) -> Self {
        Self::by(cluster, encrypted, &common::dump_options(cluster)).await
    }

    pub async fn by(cluster: &Cluster, encrypted: bool, options: &DumpOptions) -> Self {
        let carried = Self::nowhere(if encrypted { &["age", "zstd"] } else { &["zstd"] });
        let (repository, report) = carried.dump(cluster, encrypted, options).await;
        let stored = carried.repository().join(format!("test/dump/{}", report.id));
        let copied = Command::new("cp")
            .arg("-r")
            .arg(stored)
            .arg(carried.folder())
            .status()
            .unwrap();
        assert!(copied.success());
        carried.write_key(&repository);
        std::fs::remove_dir_all(carried.repository()).unwrap();
        carried
    }

    /// Of the second of two dumps, which refers to the first one's folder: all folders are carried away.
    pub async fn incremental(cluster: &Cluster, change: impl Fn()) -> Self {
        let carried = Self::nowhere(&["age", "zstd"]);
        let mut options = common::dump_options(cluster);
        options.reuse = Some(pgkeep_dump::ReuseOptions {
            takes_over: true,
            max_age: jiff::SignedDuration::from_hours(1),
            cache_directory: None,
        });
        let (repository, _) = carried.dump(cluster, true, &options).await;
        change();
        let report = common::dump(&repository, cluster, &options).await.unwrap();
        assert!(report.manifest.totals.reused_objects > 0);
        carried.write_key(&repository);
        let folders = carried.place.path().join("carried");
        std::fs::rename(carried.repository().join("test/dump"), &folders).unwrap();
        std::os::unix::fs::symlink(folders.join(report.id.to_string()), carried.folder()).unwrap();
        carried
    }

    /// A folder of opened files.
    pub async fn exported(cluster: &Cluster, encrypted: bool, options: &DumpOptions) -> Self {
        let carried = Self::nowhere(&[]);
        let (repository, report) = carried.dump(cluster, encrypted, options).await;
        let options = export_options(cluster, ExportFormat::Files, &carried.folder());
        let bytes = export(&repository, &report, &options, std::future::pending())
            .await
            .unwrap();
        assert!(bytes > report.manifest.totals.plain_bytes / 2, "{bytes}");
        std::fs::remove_dir_all(carried.repository()).unwrap();
        carried
    }

    fn nowhere(tools: &'static [&'static str]) -> Self {
        Self {
            place: tempfile::tempdir().unwrap(),
            tools,
        }
    }

    async fn dump(
        &self,
        cluster: &Cluster,
        encrypted: bool,
        options: &DumpOptions,
    ) -> (Repository, DumpReport) {
        let repository = common::repository(&self.repository(), encrypted).await;
        let report = common::dump(&repository, cluster, options).await.unwrap();
        (repository, report)
    }

    fn repository(&self) -> PathBuf {
        self.place.path().join("repository")
    }

    fn write_key(&self, repository: &Repository) {
        let secret = repository.access().identities[0].to_secret();
        std::fs::write(self.key(), format!("# a comment\n{}\n", secret.expose())).unwrap();
    }

    /// With a space and a quote, as folders of people have.
    pub fn folder(&self) -> PathBuf {
        self.place.path().join("the dump's folder [1]")
    }

    pub fn key(&self) -> PathBuf {
        self.place.path().join("my key.txt")
    }

    /// The first object whose name begins so.
    pub fn object(&self, start: &str) -> PathBuf {
        let (directory, name) = start.rsplit_once('/').unwrap_or((".", start));
        let mut found: Vec<PathBuf> = std::fs::read_dir(self.folder().join(directory))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.file_name().unwrap().to_string_lossy().starts_with(name))
            .collect();
        found.sort();
        found
            .into_iter()
            .next()
            .unwrap_or_else(|| panic!("no object {start}"))
    }
}

/// How the script is run.
pub struct Way<'a> {
    pub shell: &'a str,
    /// Tools that are not installed.
    pub hidden: &'a [&'a str],
    pub arguments: &'a [&'a str],
    /// Where psql and pg_restore are; those of the server's version for none.
    pub programs: Option<&'a Path>,
}

pub const DASH: Way = Way {
    shell: "dash",
    hidden: &["b3sum"],
    arguments: &["-j", "2"],
    programs: None,
};

pub const BASH: Way = Way {
    shell: "bash",
    hidden: &[],
    arguments: &["-j", "3"],
    programs: None,
};

/// Runs `restore.sh` with these tools alone.
pub fn restore(carried: &Carried, destination: &Cluster, way: &Way<'_>) -> Result<Output, Missing> {
    let tools = tempfile::tempdir().unwrap();
    let link = |program: &Path, name: &str| {
        std::os::unix::fs::symlink(program, tools.path().join(name)).unwrap();
    };
    for name in UNIX_TOOLS.iter().filter(|name| !way.hidden.contains(name)) {
        let found = ["/usr/bin", "/bin"].map(|directory| Path::new(directory).join(name));
        if let Some(program) = found.iter().find(|path| path.exists()) {
            link(program, name);
        }
    }
    for name in ["psql", "pg_restore"] {
        link(&way.programs.unwrap_or(destination.pg_bin()).join(name), name);
    }
    for name in carried.tools.iter().chain(&["b3sum"]) {
        if !way.hidden.contains(name) {
            link(&requirements::tool(name)?, name);
        }
    }
    if !tools.path().join(way.shell).exists() {
        return Err(Missing(format!("the shell {}", way.shell)));
    }
    // The children are run with `sh`: it has to be the same shell.
    std::fs::remove_file(tools.path().join("sh")).unwrap();
    let shell = tools.path().join(way.shell).canonicalize().unwrap();
    link(&shell, "sh");
    let scratch = tempfile::tempdir().unwrap();
    let mut command = Command::new(tools.path().join("sh"));
    command
        .env_clear()
        .env("PATH", tools.path())
        .env("TMPDIR", scratch.path())
        .env("PGHOST", destination.socket_dir())
        .env("PGPORT", destination.port().to_string())
        .env("PGUSER", "postgres")
        .arg(carried.folder().join("restore.sh"))
        .args(way.arguments);
    if carried.tools.contains(&"age") {
        command.arg("-i").arg(carried.key());
    }
    let output = command.output().unwrap();
    let left: Vec<_> = std::fs::read_dir(scratch.path()).unwrap().collect();
    assert!(left.is_empty(), "it leaves {left:?}");
    Ok(output)
}

pub fn messages(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub fn assert_restores(carried: &Carried, destination: &Cluster, way: &Way<'_>) -> Result<(), Missing> {
    let output = restore(carried, destination, way)?;
    assert!(
        output.status.success(),
        "{}: {}",
        output.status,
        messages(&output)
    );
    Ok(())
}

/// The last command must be a failure with a reason, and with nothing that looks restored.
pub fn assert_fails(
    carried: &Carried,
    destination: &Cluster,
    way: &Way<'_>,
    reasons: &[&str],
) -> Result<(), Missing> {
    let output = restore(carried, destination, way)?;
    let text = messages(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    for reason in reasons {
        assert!(text.contains(reason), "no '{reason}' in: {text}");
    }
    assert!(!text.contains("done"), "{text}");
    Ok(())
}

pub fn drop_databases(destination: &Cluster) {
    for name in DATABASES {
        destination.psql("postgres", &format!("DROP DATABASE IF EXISTS {name}"));
    }
}

pub fn export_options(cluster: &Cluster, format: ExportFormat, output: &Path) -> ExportOptions {
    ExportOptions {
        format,
        output: output.display().to_string(),
        databases: Vec::new(),
        encryption: Encryption::None,
        store: StoreOptions::default(),
        programs: ProgramSearch::only(cluster.pg_bin()),
    }
}

pub async fn export(
    repository: &Repository,
    report: &DumpReport,
    options: &ExportOptions,
    cancelled: impl Future<Output = ()>,
) -> Result<u64, DumpError> {
    let progress = Arc::new(Progress::default());
    pgkeep_dump::export(
        repository,
        &report.id,
        &report.manifest,
        options,
        &progress,
        cancelled,
    )
    .await
}
