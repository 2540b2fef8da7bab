use std::collections::BTreeMap;
use std::path::PathBuf;

use pgkeep_base::{Secret, nearest};

use crate::cluster::{Cluster, EncryptionMode};
use crate::error::{ConfigError, Origin, Warning};
use crate::file::nearest_setting;
use crate::input::Input;
use crate::settings::{GENERAL_VARIABLES, SETTINGS, Setting, setting};

/// The cluster's name where neither file, environment nor flags give one.
pub const DEFAULT_CLUSTER: &str = "main";
const CLUSTER_NAME_BYTES_MAX: usize = 63;

/// Whether it can be a cluster's name: `[a-z0-9][a-z0-9._-]{0,62}`. It is a directory in the repository.
pub(crate) fn is_cluster_name(name: &str) -> bool {
    let small = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    name.starts_with(small)
        && name.len() <= CLUSTER_NAME_BYTES_MAX
        && name.chars().all(|c| small(c) || matches!(c, '.' | '_' | '-'))
}

/// What the command line says. What isn't given is left as the environment and the file have it.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// `--connection`
    pub connection: Option<Secret>,
    /// `--repository`, given once or several times.
    pub repository: Vec<String>,
    /// `--recipient`, given once or several times.
    pub recipients: Vec<String>,
    /// `--encryption`
    pub encryption: Option<String>,
    /// `--identity`
    pub identity_file: Option<PathBuf>,
    /// `--pg-bin`
    pub pg_bin: Option<PathBuf>,
    /// `--jobs`
    pub jobs: Option<u32>,
    /// `--compression-level`
    pub compression_level: Option<i32>,
    /// `--upload-limit`, such as `20MB/s`.
    pub upload_limit: Option<String>,
    /// `--keep-window`
    pub keep_window: Option<String>,
    /// `--keep-daily`
    pub keep_daily: Option<u32>,
    /// `--keep-weekly`
    pub keep_weekly: Option<u32>,
    /// `--keep-monthly`
    pub keep_monthly: Option<u32>,
    /// `--keep-yearly`
    pub keep_yearly: Option<u32>,
    /// `--s3-endpoint`
    pub s3_endpoint: Option<String>,
    /// `--s3-region`
    pub s3_region: Option<String>,
    /// `--set NAME=VALUE`: any setting by its name; some are secrets.
    pub set: Vec<(String, Secret)>,
}

impl Overrides {
    /// Setting, flag and values of each flag that was given; `--set` and paths apart.
    fn flags(&self) -> Vec<(&'static str, &'static str, Vec<String>)> {
        let text = |value: &Option<String>| value.iter().cloned().collect::<Vec<String>>();
        let count = |value: Option<u32>| value.iter().map(ToString::to_string).collect::<Vec<String>>();
        let level: Vec<String> = self.compression_level.iter().map(ToString::to_string).collect();
        let connection = self
            .connection
            .iter()
            .map(|secret| secret.expose().to_owned())
            .collect();
        let all = vec![
            ("connection", "--connection", connection),
            ("repository", "--repository", self.repository.clone()),
            ("recipients", "--recipient", self.recipients.clone()),
            ("encryption", "--encryption", text(&self.encryption)),
            ("dump.jobs", "--jobs", count(self.jobs)),
            ("dump.compression_level", "--compression-level", level),
            (
                "limits.upload_bytes_per_second",
                "--upload-limit",
                text(&self.upload_limit),
            ),
            ("keep.window", "--keep-window", text(&self.keep_window)),
            ("keep.daily", "--keep-daily", count(self.keep_daily)),
            ("keep.weekly", "--keep-weekly", count(self.keep_weekly)),
            ("keep.monthly", "--keep-monthly", count(self.keep_monthly)),
            ("keep.yearly", "--keep-yearly", count(self.keep_yearly)),
            ("s3.endpoint", "--s3-endpoint", text(&self.s3_endpoint)),
            ("s3.region", "--s3-region", text(&self.s3_region)),
        ];
        all.into_iter()
            .filter(|(_, _, values)| !values.is_empty())
            .collect()
    }
}

/// The file's clusters, and what the environment says of the one that will be chosen.
#[derive(Debug, Clone, Default)]
pub struct Config {
    clusters: BTreeMap<String, Cluster>,
    environment: Vec<(&'static Setting, Secret)>,
    environment_cluster: Option<String>,
    environment_identity: Option<Secret>,
}

impl Config {
    pub(crate) fn new(
        clusters: BTreeMap<String, Cluster>,
        variable: &dyn Fn(&str) -> Option<String>,
    ) -> Self {
        let value = |setting: &'static Setting| Some((setting, Secret::new(variable(&setting.variable())?)));
        Self {
            clusters,
            environment: SETTINGS.iter().filter_map(value).collect(),
            environment_cluster: variable("PGKEEP_CLUSTER").map(|name| name.trim().to_owned()),
            environment_identity: variable("PGKEEP_IDENTITY").map(Secret::new),
        }
    }

    /// The clusters of the file, as they stand there.
    pub fn clusters(&self) -> &BTreeMap<String, Cluster> {
        &self.clusters
    }

    /// Chooses a cluster and puts the environment and the flags over what the file says of it. `cluster` (`--cluster`)
    /// and `PGKEEP_CLUSTER` may be left out where the file has one cluster; where it has none, the cluster is
    /// [`DEFAULT_CLUSTER`] and environment and flags say everything.
    ///
    /// # Errors
    /// There is no such cluster, or several and none was chosen; a value of the environment or of a flag is wrong; or
    /// settings contradict each other.
    pub fn select(
        &self,
        cluster: Option<&str>,
        overrides: &Overrides,
    ) -> Result<(String, Cluster), ConfigError> {
        let name = self.choose(cluster)?;
        let mut chosen = self.clusters.get(&name).cloned().unwrap_or_default();
        for (setting, value) in &self.environment {
            apply(
                setting,
                &mut chosen,
                &Input::Text(value.expose()),
                Origin::Environment(setting.variable()),
            )?;
        }
        if let Some(identity) = &self.environment_identity {
            chosen.identity = Some(identity.clone());
        }
        for (name, flag, values) in overrides.flags() {
            if let Some(setting) = setting(name) {
                apply(setting, &mut chosen, &Input::Texts(&values), Origin::Flag(flag))?;
                chosen.forget_of_repositories(name);
            }
        }
        // A key of the environment counts for less than the file that a flag names.
        let names_file = |(name, _): &(String, Secret)| name == "identity_file";
        if overrides.identity_file.is_some() || overrides.set.iter().any(names_file) {
            chosen.identity = None;
        }
        // Not through text: a path needn't be UTF-8.
        chosen.identity_file = overrides.identity_file.clone().or(chosen.identity_file);
        chosen.pg_bin = overrides.pg_bin.clone().or(chosen.pg_bin);
        for (name, value) in &overrides.set {
            let origin = Origin::Flag("--set");
            match setting(name) {
                Some(setting) => {
                    apply(setting, &mut chosen, &Input::Text(value.expose()), origin)?;
                    chosen.forget_of_repositories(name);
                }
                None => {
                    let nearest =
                        nearest(name, SETTINGS.iter().map(|setting| setting.name)).map(str::to_owned);
                    let nearest = nearest.or_else(|| nearest_setting("", name));
                    return Err(ConfigError::UnknownKey {
                        origin,
                        key: name.clone(),
                        nearest,
                    });
                }
            }
        }
        if chosen.encryption == EncryptionMode::None && !chosen.recipients.is_empty() {
            return Err(ConfigError::EncryptionContradiction);
        }
        Ok((name, chosen))
    }

    /// The clusters that something is done for which works on several: the one that `--cluster` or `PGKEEP_CLUSTER`
    /// chooses, or all of the file, or [`DEFAULT_CLUSTER`] where it has none.
    ///
    /// # Errors
    /// There is no such cluster.
    pub fn names(&self, cluster: Option<&str>) -> Result<Vec<String>, ConfigError> {
        match self.choose(cluster) {
            Ok(name) => Ok(vec![name]),
            Err(ConfigError::ClusterNotChosen { known }) => Ok(known),
            Err(error) => Err(error),
        }
    }

    /// Whether the environment sets it, whatever the cluster.
    pub fn is_in_environment(&self, name: &str) -> bool {
        self.environment.iter().any(|(setting, _)| setting.name == name)
    }

    fn choose(&self, flag: Option<&str>) -> Result<String, ConfigError> {
        let known = || self.clusters.keys().cloned().collect::<Vec<String>>();
        let (name, origin) = match (flag, &self.environment_cluster) {
            (Some(name), _) => (name.to_owned(), Origin::Flag("--cluster")),
            (None, Some(name)) => (name.clone(), Origin::Environment("PGKEEP_CLUSTER".to_owned())),
            (None, None) => {
                return match known().as_slice() {
                    [] => Ok(DEFAULT_CLUSTER.to_owned()),
                    [only] => Ok(only.clone()),
                    _ => Err(ConfigError::ClusterNotChosen { known: known() }),
                };
            }
        };
        if !is_cluster_name(&name) {
            return Err(ConfigError::InvalidClusterName { origin, name });
        }
        if self.clusters.is_empty() || self.clusters.contains_key(&name) {
            return Ok(name);
        }
        let nearest = nearest(&name, self.clusters.keys().map(String::as_str)).map(str::to_owned);
        Err(ConfigError::UnknownCluster {
            origin,
            nearest,
            known: known(),
            name,
        })
    }
}

pub(crate) fn apply(
    setting: &Setting,
    cluster: &mut Cluster,
    input: &Input<'_>,
    origin: Origin,
) -> Result<(), ConfigError> {
    let invalid = |problem| ConfigError::InvalidValue {
        origin,
        setting: setting.name.to_owned(),
        problem,
    };
    setting.apply(cluster, input).map_err(invalid)
}

/// A warning for each name that begins with `PGKEEP_` and that nothing reads. `also_known` names variables of the
/// caller's own; those that begin with `PGKEEP_TEST_` are the tests'.
pub fn unknown_variables<'a>(names: impl IntoIterator<Item = &'a str>, also_known: &[&str]) -> Vec<Warning> {
    let mut known: Vec<String> = SETTINGS.iter().map(Setting::variable).collect();
    known.extend(GENERAL_VARIABLES.iter().map(|(name, _)| (*name).to_owned()));
    known.extend(also_known.iter().map(|name| (*name).to_owned()));
    let ours = |name: &&str| name.starts_with("PGKEEP_") && !name.starts_with("PGKEEP_TEST_");
    let mut unknown: Vec<&str> = names
        .into_iter()
        .filter(ours)
        .filter(|name| !known.iter().any(|k| k == name))
        .collect();
    unknown.sort_unstable();
    unknown
        .into_iter()
        .map(|name| {
            // Without the prefix, which would make any two look alike.
            let bare = |text: &str| text.trim_start_matches("PGKEEP_").to_owned();
            let bares: Vec<String> = known.iter().map(|name| bare(name)).collect();
            let nearest =
                nearest(&bare(name), bares.iter().map(String::as_str)).map(|bare| format!("PGKEEP_{bare}"));
            Warning::UnknownVariable {
                name: name.to_owned(),
                nearest,
            }
        })
        .collect()
}
