//! What a test needs of its surroundings, and how it is reported when that isn't there.
//!
//! Rust's test harness knows no "skipped" at run time, so a test that can't run says so on standard error and appends a
//! line `test<TAB>reason` to the file named by `PGKEEP_TEST_SKIPS`; `scripts/test` takes those tests out of its count of
//! passed ones.

use std::{
    collections::BTreeSet,
    env, fmt,
    fs::OpenOptions,
    io::Write,
    path::{Path, PathBuf},
    sync::Mutex,
    thread,
};

use crate::process::{clean_command, run};

/// The major version that every test may count on. Its absence is a failure, never a skip.
pub const DEFAULT_MAJOR: u32 = 16;

/// Every major version that is tested.
pub const MAJORS: [u32; 4] = [15, 16, 17, 18];

/// Every major version with an Apache-edition TimescaleDB.
pub const TIMESCALEDB_MAJORS: [u32; 3] = [16, 17, 18];

/// Something a test needs and that isn't there; its text says what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing(pub String);

impl fmt::Display for Missing {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for Missing {}

/// What a skipped test returns: `()` or `Ok(())`.
pub trait TestEnd {
    /// The value.
    fn end() -> Self;
}

impl TestEnd for () {
    fn end() -> Self {}
}

impl<E> TestEnd for Result<(), E> {
    fn end() -> Self {
        Ok(())
    }
}

/// Unwraps a `Result<T, Missing>`, or reports the test as skipped and returns from it.
///
/// ```no_run
/// # fn test() {
/// use pgkeep_testkit::{Cluster, ClusterOptions, require};
/// let cluster = require!(Cluster::start(ClusterOptions::new(18).timescaledb()));
/// # }
/// ```
#[macro_export]
macro_rules! require {
    ($requirement:expr) => {
        match $requirement {
            Ok(value) => value,
            Err(missing) => {
                $crate::skip(&missing);
                return $crate::TestEnd::end();
            }
        }
    };
}

/// Reports the running test as skipped. The test should end right after; [`require!`] does both.
pub fn skip(missing: &Missing) {
    // A test is counted once, whatever number of reasons it has.
    static REPORTED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let test = test_name();
    eprintln!("skipped: {test}: {missing}");
    if !REPORTED.lock().unwrap().insert(test.clone()) {
        return;
    }
    if let Some(path) = env::var_os("PGKEEP_TEST_SKIPS") {
        let line = format!("{test}\t{}\n", missing.0.replace(['\n', '\t'], " "));
        // One write in append mode, because many test processes share the file.
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .expect("opens PGKEEP_TEST_SKIPS");
        file.write_all(line.as_bytes()).expect("writes PGKEEP_TEST_SKIPS");
    }
}

fn test_name() -> String {
    let binary = env::var("NEXTEST_BINARY_ID").ok().or_else(|| {
        let program = env::current_exe().ok()?;
        Some(program.file_stem()?.to_string_lossy().into_owned())
    });
    let name = env::var("NEXTEST_TEST_NAME")
        .ok()
        .or_else(|| thread::current().name().map(str::to_owned));
    format!("{} {}", binary.unwrap_or_default(), name.unwrap_or_default())
}

/// The cache that `scripts/test-setup` fills.
pub fn cache() -> PathBuf {
    let path = env::var_os("PGKEEP_TEST_CACHE").map_or_else(
        || {
            PathBuf::from(env::var_os("HOME").expect("HOME or PGKEEP_TEST_CACHE is set"))
                .join(".cache/pgkeep-test")
        },
        PathBuf::from,
    );
    // Resolved, because the servers' user may be unable to pass through the link's directory.
    path.canonicalize().unwrap_or(path)
}

/// Where the programs of a plain PostgreSQL of this major version are.
pub fn postgresql(major: u32) -> Result<PathBuf, Missing> {
    let bin = cache().join(format!("postgresql/{major}/bin"));
    let found = program_in(&bin, "postgres", &format!("PostgreSQL {major}"));
    assert!(
        major != DEFAULT_MAJOR || found.is_ok(),
        "PostgreSQL {DEFAULT_MAJOR} is not in {}: run scripts/test-setup",
        bin.display()
    );
    found.map(|_| bin)
}

/// Where the programs of a PostgreSQL of this major version with TimescaleDB, Apache edition, are.
pub fn timescaledb(major: u32) -> Result<PathBuf, Missing> {
    let bin = cache().join(format!("postgresql-ts/{major}/bin"));
    // Through the link: an installation directory is found relative to the real place of its programs.
    program_in(&bin, "postgres", &format!("TimescaleDB on PostgreSQL {major}"))?;
    Ok(bin.canonicalize().unwrap_or(bin))
}

/// A program of the stock tools: `age`, `age-keygen`, `zstd`, `b3sum`.
pub fn tool(name: &str) -> Result<PathBuf, Missing> {
    program_in(&cache().join("tools/bin"), name, name)
}

/// An object store's program: `weed` or `rclone`.
pub fn store(name: &str) -> Result<PathBuf, Missing> {
    program_in(&cache().join("stores/bin"), name, name)
}

/// The Python packages that stand in for AWS: moto and what it needs.
pub fn moto() -> Result<PathBuf, Missing> {
    let packages = cache().join("infra/python");
    program_in(&packages.join("moto"), "server.py", "moto")?;
    Ok(packages)
}

/// A container image that `scripts/test-setup` made, by its name: `postgresql` or `timescaledb`.
pub fn image(name: &str) -> Result<String, Missing> {
    let image = format!("pgkeep-test/{name}:17");
    let missing = || {
        Missing(format!(
            "the image {image} (Docker and root are needed to make it)"
        ))
    };
    let found = clean_command("docker")
        .args(["image", "inspect", "--format", "{{.Id}}", &image])
        .output()
        .map_err(|_| missing())?;
    if found.status.success() {
        Ok(image)
    } else {
        Err(missing())
    }
}

/// Whether the tests run as root.
pub fn root() -> Result<(), Missing> {
    if nix::unistd::Uid::effective().is_root() {
        Ok(())
    } else {
        Err(Missing("needs root".to_owned()))
    }
}

/// `unshare` with the arguments that give a command namespaces of its own, in which it is root. Needs root, or a kernel
/// that lets everybody have user namespaces.
pub fn unshare(namespaces: &[&str]) -> Result<Vec<String>, Missing> {
    let mut arguments = vec!["unshare".to_owned()];
    if root().is_err() {
        arguments.push("--map-root-user".to_owned());
    }
    arguments.extend(namespaces.iter().map(|argument| (*argument).to_owned()));
    let tried = clean_command("unshare")
        .args(&arguments[1..])
        .arg("true")
        .output();
    match tried {
        Ok(output) if output.status.success() => Ok(arguments),
        _ => Err(Missing(format!(
            "namespaces of one's own ({})",
            arguments.join(" ")
        ))),
    }
}

/// Whether long tests were asked for (`PGKEEP_TEST_LONG=1`, as `make test-long` sets it).
pub fn long() -> Result<(), Missing> {
    if env::var("PGKEEP_TEST_LONG").is_ok_and(|value| value == "1") {
        Ok(())
    } else {
        Err(Missing("a long test: make test-long runs it".to_owned()))
    }
}

/// A server with TimescaleDB's Community edition.
#[derive(Debug, Clone)]
pub struct CommunityServer {
    /// PostgreSQL's major version.
    pub major: u32,
    /// Where its programs are.
    pub bin: PathBuf,
}

/// The servers with TimescaleDB's Community edition: `PGKEEP_TEST_TIMESCALE_COMMUNITY` names the `pg_config` of each,
/// separated by commas. No registry has that edition.
pub fn community(major: Option<u32>) -> Result<Vec<CommunityServer>, Missing> {
    let named = env::var("PGKEEP_TEST_TIMESCALE_COMMUNITY").unwrap_or_default();
    let mut servers = Vec::new();
    for pg_config in named.split(',').map(str::trim).filter(|path| !path.is_empty()) {
        let bin = PathBuf::from(run(clean_command(pg_config).arg("--bindir")).trim());
        servers.push(CommunityServer {
            major: major_of(&bin),
            bin,
        });
    }
    servers.retain(|server| major.is_none_or(|wanted| wanted == server.major));
    if servers.is_empty() {
        let on = major.map_or_else(String::new, |major| format!(" on PostgreSQL {major}"));
        return Err(Missing(format!(
            "TimescaleDB's Community edition{on}: name its pg_config in PGKEEP_TEST_TIMESCALE_COMMUNITY"
        )));
    }
    Ok(servers)
}

/// The major version of the programs in `bin`.
pub fn major_of(bin: &Path) -> u32 {
    let version = run(clean_command(bin.join("postgres")).arg("--version"));
    let number: String = version
        .trim_start_matches(|character: char| !character.is_ascii_digit())
        .chars()
        .take_while(char::is_ascii_digit)
        .collect();
    number
        .parse()
        .unwrap_or_else(|_| panic!("{} has no version: {version}", bin.display()))
}

fn program_in(directory: &Path, program: &str, what: &str) -> Result<PathBuf, Missing> {
    let path = directory.join(program);
    if path.is_file() {
        Ok(path)
    } else {
        Err(Missing(format!("{what} (not installed by scripts/test-setup)")))
    }
}
