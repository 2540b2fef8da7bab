use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use super::{ProgramError, RunLimits, run};
use crate::conninfo::Target;

/// `--version` answers at once, or something is wrong.
const VERSION_LIMITS: RunLimits = RunLimits {
    deadline: Duration::from_secs(10),
    stdout_bytes_max: 4096,
};
/// Names the program to whoever starts a launcher, for messages; the launcher doesn't get it.
pub(super) const LAUNCHED: &str = "LAUNCHED_PROGRAM";
/// Directories looked into for one pattern.
const DIRECTORIES_MAX: usize = 200;

/// Where to look for PostgreSQL's programs.
#[derive(Debug, Clone, Default)]
pub struct ProgramSearch {
    /// A directory that comes before all others (the setting `pg_bin`).
    pub directory: Option<PathBuf>,
    /// Directories separated as in `PATH`.
    pub path: Option<OsString>,
    /// Look into the directories where packages install PostgreSQL, too?
    pub standard_directories: bool,
    /// What runs the programs elsewhere, in place of all that: its path and first arguments, to which a program's name and
    /// arguments are added.
    pub launcher: Option<Vec<OsString>>,
}

impl ProgramSearch {
    /// What this process should use: `directory` (from the configuration), `PATH`, the packages' directories.
    pub fn process(directory: Option<PathBuf>) -> Self {
        Self {
            directory,
            path: std::env::var_os("PATH"),
            standard_directories: true,
            launcher: None,
        }
    }

    /// Only that directory.
    pub fn only(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: Some(directory.into()),
            path: None,
            standard_directories: false,
            launcher: None,
        }
    }

    /// Those that a launcher runs: in a container, say.
    pub fn by_launcher(launcher: Vec<OsString>) -> Self {
        Self {
            launcher: Some(launcher),
            ..Self::default()
        }
    }

    fn directories(&self) -> Vec<PathBuf> {
        let mut directories: Vec<PathBuf> = Vec::new();
        if let Some(path) = &self.path {
            directories.extend(std::env::split_paths(path).filter(|directory| directory.is_absolute()));
        }
        if self.standard_directories {
            directories.extend(children("/usr/lib/postgresql", "", "bin"));
            directories.extend(children("/usr", "pgsql-", "bin"));
            directories.extend(children("/opt/homebrew/opt", "postgresql", "bin"));
            directories.extend(children("/usr/local/opt", "postgresql", "bin"));
            directories
                .extend(["/opt/homebrew/bin", "/usr/local/pgsql/bin", "/usr/local/bin"].map(PathBuf::from));
        }
        directories
    }
}

/// `parent/prefix*/suffix`, sorted.
fn children(parent: &str, prefix: &str, suffix: &str) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(parent) else {
        return Vec::new();
    };
    let mut found: Vec<PathBuf> = entries
        .flatten()
        .filter(|entry| {
            entry
                .file_name()
                .to_str()
                .is_some_and(|name| name.starts_with(prefix))
        })
        .map(|entry| entry.path().join(suffix))
        .filter(|path| path.is_dir())
        .take(DIRECTORIES_MAX)
        .collect();
    found.sort();
    found
}

/// One of PostgreSQL's programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// Its name, `pg_dump`.
    pub name: String,
    /// Where it is, without symbolic links; its name alone where a launcher runs it.
    pub path: PathBuf,
    /// See [`ProgramSearch::launcher`].
    pub launcher: Option<Vec<OsString>>,
    /// Its major version, 16.
    pub major: u32,
    /// What it says of itself: `pg_dump (PostgreSQL) 16.15`.
    pub version_text: String,
}

impl Program {
    /// A command that runs it: no `PG*` variable of this process reaches it, only those of `target`; messages are in
    /// English; standard input is empty; the process is killed when its handle is dropped.
    pub fn command(&self, target: Option<&Target>) -> Command {
        launched(&self.path, self.launcher.as_deref(), target)
    }
}

fn launched(path: &Path, launcher: Option<&[OsString]>, target: Option<&Target>) -> Command {
    match launcher {
        Some([program, arguments @ ..]) => {
            let mut command = clean_command(Path::new(program), target);
            command.args(arguments).arg(path).env(LAUNCHED, path);
            command
        }
        _ => clean_command(path, target),
    }
}

pub(crate) fn clean_command(path: &Path, target: Option<&Target>) -> Command {
    let mut command = Command::new(path);
    for (name, _) in std::env::vars_os() {
        // PGKEEP_* too: it may hold keys, and is no business of theirs.
        if name.as_encoded_bytes().starts_with(b"PG") {
            command.env_remove(name);
        }
    }
    if let Some(target) = target {
        for (name, value) in target.libpq_environment() {
            command.env(name, value.expose());
        }
    }
    command.env("LC_ALL", "C").stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// Finds a program (`pg_dump`, `pg_restore`, `pg_dumpall`, `psql`, `initdb`, `postgres`, ...) whose major version is at
/// least `major_min`: that of the directory named first, if it will do; else the lowest version there is, and of equal
/// ones the first on the way: `PATH`, then the packages' directories.
///
/// # Errors
/// [`ProgramError::NotFound`], with all that was found and is too old.
pub async fn find(program: &str, major_min: u32, search: &ProgramSearch) -> Result<Program, ProgramError> {
    if let Some(launcher) = &search.launcher {
        return find_by(launcher, program, major_min).await;
    }
    let mut unsuitable: Vec<(PathBuf, String)> = Vec::new();
    let mut best: Option<Program> = None;
    let mut seen: Vec<PathBuf> = Vec::new();
    let named = search.directory.iter().map(|directory| (true, directory.clone()));
    let others = search
        .directories()
        .into_iter()
        .map(|directory| (false, directory));
    for (is_named, directory) in named.chain(others) {
        let Ok(path) = directory.join(program).canonicalize() else {
            continue;
        };
        if seen.contains(&path) || !path.is_file() {
            continue;
        }
        seen.push(path.clone());
        // Debian's wrapper decides by itself which version runs; the versions themselves are found anyway.
        if path.file_name().is_some_and(|name| name == "pg_wrapper") {
            continue;
        }
        match examine(program, &path, None).await {
            Ok(found) if found.major >= major_min && is_named => return Ok(found),
            Ok(found) if found.major >= major_min => {
                if best.as_ref().is_none_or(|best| found.major < best.major) {
                    best = Some(found);
                }
            }
            Ok(found) => unsuitable.push((path, found.version_text)),
            Err(reason) => unsuitable.push((path, reason)),
        }
    }
    best.ok_or_else(|| ProgramError::NotFound {
        program: program.to_owned(),
        major_min,
        found: unsuitable,
    })
}

async fn find_by(launcher: &[OsString], program: &str, major_min: u32) -> Result<Program, ProgramError> {
    let path = Path::new(program);
    let unsuitable = match examine(program, path, Some(launcher)).await {
        Ok(found) if found.major >= major_min => return Ok(found),
        Ok(found) => found.version_text,
        Err(reason) => reason,
    };
    Err(ProgramError::NotFound {
        program: program.to_owned(),
        major_min,
        found: vec![(path.to_owned(), unsuitable)],
    })
}

async fn examine(program: &str, path: &Path, launcher: Option<&[OsString]>) -> Result<Program, String> {
    let mut command = launched(path, launcher, None);
    command.arg("--version");
    let finished = run(command, &VERSION_LIMITS)
        .await
        .map_err(|error| error.to_string())?;
    let text = String::from_utf8_lossy(&finished.stdout).trim().to_owned();
    let major = major_of(&text).ok_or_else(|| format!("unreadable version '{text}'"))?;
    Ok(Program {
        name: program.to_owned(),
        path: path.to_owned(),
        launcher: launcher.map(<[OsString]>::to_vec),
        major,
        version_text: text,
    })
}

/// The 16 of `pg_dump (PostgreSQL) 16.15 (Debian 16.15-1)`.
fn major_of(text: &str) -> Option<u32> {
    let (_, version) = text.split_once("(PostgreSQL) ")?;
    let end = version
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(version.len());
    version.get(..end)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_major_version_is_read_from_what_programs_say() {
        assert_eq!(
            major_of("pg_dump (PostgreSQL) 16.15 (Debian 16.15-1.pgdg)"),
            Some(16)
        );
        assert_eq!(major_of("postgres (PostgreSQL) 18beta1"), Some(18));
        assert_eq!(major_of("psql 16"), None);
    }

    #[test]
    fn a_command_holds_no_secret_among_its_arguments() {
        let target = crate::Conninfo::parse("host=h user=u password=hunter2 dbname=d")
            .unwrap()
            .resolve(&crate::Environment::empty())
            .unwrap();
        let mut command = clean_command(Path::new("/bin/true"), Some(&target));
        command.arg("--schema-only");
        assert!(
            command
                .as_std()
                .get_args()
                .all(|argument| !argument.to_string_lossy().contains("hunter2"))
        );
        let password = command
            .as_std()
            .get_envs()
            .find(|(name, _)| *name == "PGPASSWORD")
            .and_then(|(_, value)| value);
        assert_eq!(password, Some(std::ffi::OsStr::new("hunter2")));
    }
}
