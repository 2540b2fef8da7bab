use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use pgkeep_base::nearest;
use toml::de::{DeTable, DeValue};

use crate::cluster::Cluster;
use crate::error::{ConfigError, Origin, Warning};
use crate::input::Input;
use crate::select::{Config, is_cluster_name};
use crate::settings::{SETTINGS, setting};

/// Where the configuration is looked for when neither `--config` nor `PGKEEP_CONFIG` names it.
pub const SEARCH_PATHS: [&str; 2] = ["./pgkeep.toml", "/etc/pgkeep/pgkeep.toml"];
/// Larger files are something else.
pub(crate) const CONFIG_FILE_BYTES_MAX: u64 = 1 << 20;
const TOP_LEVEL_KEY: &str = "cluster";

/// What was found.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// The file it is from; none was found and none is needed where the environment says everything.
    pub path: Option<PathBuf>,
    /// What to tell the user.
    pub warnings: Vec<Warning>,
}

/// Reads the configuration file, if there is one, and the environment. `environment` gives a variable's value; an empty
/// one counts as not set.
///
/// # Errors
/// A file that was named isn't there, or the file can't be read or is wrong.
pub fn load(
    explicit: Option<&Path>,
    environment: &dyn Fn(&str) -> Option<String>,
) -> Result<Loaded, ConfigError> {
    load_from(explicit, environment, &SEARCH_PATHS.map(PathBuf::from))
}

pub(crate) fn load_from(
    explicit: Option<&Path>,
    environment: &dyn Fn(&str) -> Option<String>,
    search: &[PathBuf],
) -> Result<Loaded, ConfigError> {
    let variable = |name: &str| environment(name).filter(|value| !value.trim().is_empty());
    let by_variable = variable("PGKEEP_CONFIG").map(PathBuf::from);
    let named = match (explicit, by_variable) {
        (Some(path), _) => Some((path.to_owned(), "--config")),
        (None, Some(path)) => Some((path, "PGKEEP_CONFIG")),
        (None, None) => None,
    };
    let mut found = None;
    if let Some((path, named_by)) = named {
        let content = read(&path)?.ok_or(ConfigError::FileMissing {
            path: path.clone(),
            named_by,
        })?;
        found = Some((path, content));
    } else {
        for path in search {
            if let Some(content) = read(path)? {
                found = Some((path.clone(), content));
                break;
            }
        }
    }

    let mut warnings = Vec::new();
    let mut clusters = BTreeMap::new();
    let mut path = None;
    if let Some((found_path, (text, mode))) = found {
        clusters = parse(&text, &found_path)?;
        if mode & 0o004 != 0 && clusters.values().any(Cluster::holds_secrets) {
            warnings.push(Warning::SecretsReadable {
                path: found_path.clone(),
                mode,
            });
        }
        path = Some(found_path);
    }
    Ok(Loaded {
        config: Config::new(clusters, &variable),
        path,
        warnings,
    })
}

/// The file's text and permission bits, or nothing if there is no such file.
fn read(path: &Path) -> Result<Option<(String, u32)>, ConfigError> {
    let failed = |source| ConfigError::FileRead {
        path: path.to_owned(),
        source,
    };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(failed(error)),
    };
    let mode = file.metadata().map_err(failed)?.mode() & 0o777;
    let mut bytes = Vec::new();
    file.take(CONFIG_FILE_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    let not_configuration = |reason| ConfigError::FileNotConfiguration {
        path: path.to_owned(),
        reason,
    };
    if bytes.len() as u64 > CONFIG_FILE_BYTES_MAX {
        return Err(not_configuration("it is too large"));
    }
    let text = String::from_utf8(bytes).map_err(|_| not_configuration("it is not UTF-8 text"))?;
    Ok(Some((text, mode)))
}

/// Parses a configuration file's text.
pub(crate) fn parse(text: &str, path: &Path) -> Result<BTreeMap<String, Cluster>, ConfigError> {
    // Some editors put a mark in front that TOML doesn't know.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut walk = Walk {
        text,
        path,
        problems: Vec::new(),
    };
    let root = DeTable::parse(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start);
        // Only the message: the parser's own display shows the line, which may hold a password.
        ConfigError::Syntax {
            origin: walk.origin(at),
            message: error.message().to_owned(),
        }
    })?;
    let clusters = walk.root(root.get_ref());
    // Tables are sorted by name; what stands first in the file is what the user should mend first.
    match walk.problems.iter().min_by_key(|(at, _)| *at) {
        Some((at, problem)) => Err(walk.error(*at, problem)),
        None => Ok(clusters),
    }
}

/// What is wrong somewhere. Only the first in the file becomes an error: where it stands and what was meant take time to
/// find out, and a file may hold a hundred thousand of them.
enum Problem {
    UnknownAtTop(String),
    /// The names of the tables around it, each with a dot after it, and the key.
    UnknownKey(String, String),
    InvalidValue {
        setting: String,
        problem: String,
    },
    InvalidClusterName(String),
}

struct Walk<'a> {
    text: &'a str,
    path: &'a Path,
    problems: Vec<(usize, Problem)>,
}

impl Walk<'_> {
    fn origin(&self, at: usize) -> Origin {
        let before = self.text.get(..at).unwrap_or(self.text);
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        Origin::File {
            path: self.path.to_owned(),
            line,
            column,
        }
    }

    fn error(&self, at: usize, problem: &Problem) -> ConfigError {
        let origin = self.origin(at);
        match problem {
            Problem::UnknownAtTop(key) => ConfigError::UnknownKey {
                origin,
                key: key.clone(),
                nearest: nearest_at_top(key),
            },
            Problem::UnknownKey(prefix, key) => ConfigError::UnknownKey {
                origin,
                key: format!("{prefix}{key}"),
                nearest: nearest_setting(prefix, key),
            },
            Problem::InvalidValue { setting, problem } => ConfigError::InvalidValue {
                origin,
                setting: setting.clone(),
                problem: problem.clone(),
            },
            Problem::InvalidClusterName(name) => ConfigError::InvalidClusterName {
                origin,
                name: name.clone(),
            },
        }
    }

    fn invalid_value(&mut self, at: usize, setting: String, problem: String) {
        self.problems
            .push((at, Problem::InvalidValue { setting, problem }));
    }

    fn root(&mut self, root: &DeTable<'_>) -> BTreeMap<String, Cluster> {
        let mut clusters = BTreeMap::new();
        for (key, value) in root {
            let at = key.span().start;
            if key.get_ref() != TOP_LEVEL_KEY {
                self.problems
                    .push((at, Problem::UnknownAtTop(key.get_ref().to_string())));
                continue;
            }
            let DeValue::Table(tables) = value.get_ref() else {
                let problem = "must be a table of clusters: write [cluster.NAME]".to_owned();
                self.invalid_value(value.span().start, TOP_LEVEL_KEY.to_owned(), problem);
                continue;
            };
            for (name, value) in tables {
                let at = name.span().start;
                let DeValue::Table(table) = value.get_ref() else {
                    // `connection = ...` right under [cluster]: the name was forgotten.
                    let problem = "must be a table: settings stand under [cluster.NAME]".to_owned();
                    self.invalid_value(at, format!("{TOP_LEVEL_KEY}.{}", name.get_ref()), problem);
                    continue;
                };
                if !is_cluster_name(name.get_ref()) {
                    let problem = Problem::InvalidClusterName(name.get_ref().to_string());
                    self.problems.push((at, problem));
                }
                let mut cluster = Cluster::default();
                self.table(&mut cluster, table, "");
                clusters.insert(name.get_ref().to_string(), cluster);
            }
        }
        clusters
    }

    /// `prefix` is the names of the tables around it, each with a dot after it.
    fn table(&mut self, cluster: &mut Cluster, table: &DeTable<'_>, prefix: &str) {
        for (key, value) in table {
            let name = format!("{prefix}{}", key.get_ref());
            let inner = format!("{name}.");
            if let Some(setting) = setting(&name) {
                if let Err(problem) = setting.apply(cluster, &Input::Value(value.get_ref())) {
                    self.invalid_value(value.span().start, name, problem);
                }
            } else if SETTINGS.iter().any(|setting| setting.name.starts_with(&inner)) {
                match value.get_ref() {
                    DeValue::Table(table) => self.table(cluster, table, &inner),
                    _ => {
                        let keys = keys_in(&inner).join(", ");
                        let problem = format!("must be a table with any of: {keys}");
                        self.invalid_value(value.span().start, name, problem);
                    }
                }
            } else {
                let problem = Problem::UnknownKey(prefix.to_owned(), key.get_ref().to_string());
                self.problems.push((key.span().start, problem));
            }
        }
    }
}

/// The keys of the table of that prefix, tables included.
fn keys_in(prefix: &str) -> Vec<&'static str> {
    let mut keys: Vec<&str> = SETTINGS
        .iter()
        .filter_map(|setting| setting.name.strip_prefix(prefix))
        .filter_map(|rest| rest.split('.').next())
        .collect();
    keys.dedup();
    keys
}

/// The setting that was meant by `key`: one of that very name in another table, one like it in the same, or in another.
pub(crate) fn nearest_setting(prefix: &str, key: &str) -> Option<String> {
    let last = |name: &'static str| name.rsplit('.').next().unwrap_or(name);
    let elsewhere = |key: &str| {
        let mut names = SETTINGS.iter().map(|setting| setting.name);
        names.find(|name| last(name) == key).map(str::to_owned)
    };
    elsewhere(key)
        .or_else(|| nearest(key, keys_in(prefix)).map(|here| format!("{prefix}{here}")))
        .or_else(|| elsewhere(nearest(key, SETTINGS.iter().map(|setting| last(setting.name)))?))
}

/// At the top there is `cluster` alone; a setting there is one that was meant for a cluster.
fn nearest_at_top(key: &str) -> Option<String> {
    if let Some(top) = nearest(key, [TOP_LEVEL_KEY]) {
        return Some(top.to_owned());
    }
    nearest_setting("", key).map(|name| format!("{TOP_LEVEL_KEY}.NAME.{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder_with(names: &[&str]) -> (tempfile::TempDir, Vec<PathBuf>) {
        let folder = tempfile::tempdir().unwrap();
        for name in names {
            let text = format!("[cluster.{name}]\nrepository = \"file:///srv/{name}\"\n");
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        let paths = ["flag", "variable", "here", "etc"]
            .map(|name| folder.path().join(name))
            .to_vec();
        (folder, paths)
    }

    /// `--config`, then `PGKEEP_CONFIG`, then ./pgkeep.toml, then /etc; the first one that is there.
    #[test]
    fn the_search_goes_in_order_and_may_find_nothing() {
        let all = ["flag", "variable", "here", "etc"];
        for first in 0..=all.len() {
            let present: Vec<&str> = all.iter().copied().skip(first).collect();
            let (_folder, paths) = folder_with(&present);
            let flag = present.contains(&"flag").then(|| paths[0].clone());
            let variable = present
                .contains(&"variable")
                .then(|| paths[1].display().to_string());
            let environment = |name: &str| variable.clone().filter(|_| name == "PGKEEP_CONFIG");
            let loaded = load_from(flag.as_deref(), &environment, &paths[2..]).unwrap();
            let clusters: Vec<&str> = loaded.config.clusters().keys().map(String::as_str).collect();
            assert_eq!(clusters, present.first().map_or(Vec::new(), |name| vec![*name]));
            assert_eq!(loaded.path, (first < all.len()).then(|| paths[first].clone()));
        }
    }

    /// Finding out for each where it stands and what was meant took minutes.
    #[test]
    fn a_file_full_of_errors_is_refused_at_once() {
        let mut text = "[cluster.a]\n".to_owned();
        let mut number = 0;
        while (text.len() as u64) < CONFIG_FILE_BYTES_MAX - 20 {
            text += &format!("k{number:x}=1\n");
            number += 1;
        }
        let begun = std::time::Instant::now();
        let error = parse(&text, Path::new("/x")).unwrap_err().to_string();
        assert!(error.starts_with("/x:2:1: there is no setting 'k0'"), "{error}");
        assert!(
            begun.elapsed() < std::time::Duration::from_secs(60),
            "{:?}",
            begun.elapsed()
        );
    }

    #[test]
    fn the_search_paths_are_those_of_the_documentation() {
        assert_eq!(SEARCH_PATHS, ["./pgkeep.toml", "/etc/pgkeep/pgkeep.toml"]);
    }
}
