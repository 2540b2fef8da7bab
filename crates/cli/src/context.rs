//! From settings to things: the store, the repository, the server.

mod limits;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pgkeep_base::{Secret, quote_for_shell};
use pgkeep_config::{Cluster, EncryptionMode, Loaded, Overrides, SETTINGS};
use pgkeep_pg::programs::ProgramSearch;
use pgkeep_pg::{Conninfo, Environment, Target};
use pgkeep_repository::encryption::Encryption;
use pgkeep_repository::keys::{self, Identity};
use pgkeep_repository::lease::LEASE_DURATION_DEFAULT;
use pgkeep_repository::{Access, Repository, RepositoryError};
use pgkeep_store::{AzureOptions, GcsOptions, S3Addressing, S3Options, Store, StoreOptions};

use crate::args::GlobalArgs;
use crate::exit::Failure;
use crate::output::Output;
use crate::progress::Shown;
use crate::signals::Cancellation;

/// How long a store that never answered is asked again, by those who don't wait for it.
const FIRST_CONTACT_MAX: Duration = Duration::from_secs(10);

/// What asks for an encrypted file.
const ENCRYPTED_SUFFIX: &str = ".age";

/// The setting that says where the server is.
const CONNECTION: &str = "connection";

/// A configuration file that says nothing.
const NO_FILE: &str = "/dev/null";

/// Variables that are read, and aren't settings.
const OTHER_VARIABLES: [&str; 0] = [];

/// What a command stands on.
pub struct Context {
    /// Where results and notes go.
    pub output: Output,
    /// How progress is shown.
    pub shown: Shown,
    /// Whether the user wants the work to end.
    pub cancellation: Cancellation,
    global: GlobalArgs,
}

/// One cluster's settings, with flags and environment on top.
#[derive(Clone)]
pub struct Settings {
    /// The cluster's name.
    pub name: String,
    /// The settings.
    pub cluster: Cluster,
    /// What the configuration was read from.
    pub loaded: Loaded,
    /// The cluster's other repositories, where these are the settings for one of several.
    pub others: Vec<String>,
}

/// What for the repository is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyUse {
    /// Contents are not read.
    None,
    /// Contents are read where there is a key; one that is configured and can't be read is warned of, and done without.
    IfThere,
    /// Contents are read where a key is configured; that it can't be read is an error.
    IfConfigured,
    /// Without a key there is nothing to be done, if the repository is encrypted.
    Needed,
}

impl Context {
    /// What all commands stand on.
    pub fn new(output: Output, global: GlobalArgs, cancellation: Cancellation) -> Self {
        let shown = Shown::by(global.quiet, global.verbose);
        Self {
            output,
            shown,
            cancellation,
            global,
        }
    }

    /// Reads the settings. `overrides` are the command's own flags.
    pub fn settings(&self, overrides: Overrides) -> Result<Settings, Failure> {
        let loaded = self.load()?;
        let overrides = self.overrides(overrides);
        let (name, cluster) = loaded.config.select(self.global.cluster.as_deref(), &overrides)?;
        Ok(Settings {
            name,
            cluster,
            loaded,
            others: Vec::new(),
        })
    }

    /// Reads the settings of the cluster that is chosen, or of all where none is.
    pub fn settings_of_all(&self) -> Result<Vec<Settings>, Failure> {
        let loaded = self.load()?;
        let overrides = self.overrides(Overrides::default());
        let names = loaded.config.names(self.global.cluster.as_deref())?;
        let by_flag =
            overrides.connection.is_some() || overrides.set.iter().any(|(name, _)| name == CONNECTION);
        if names.len() > 1 && (by_flag || loaded.config.is_in_environment(CONNECTION)) {
            // Each of them would be dumped from that one server.
            return Err(Failure::usage(
                format!(
                    "--connection or PGKEEP_CONNECTION names one server, and there are several clusters: {}",
                    names.join(", ")
                ),
                "choose one with --cluster NAME, or let the file say where each of them is",
            ));
        }
        let select = |name: String| {
            let (name, cluster) = loaded.config.select(Some(&name), &overrides)?;
            Ok(Settings {
                name,
                cluster,
                loaded: loaded.clone(),
                others: Vec::new(),
            })
        };
        names.into_iter().map(select).collect()
    }

    /// The cluster's name and what flags and variables alone say of it, whatever file there is.
    pub fn settings_given(&self, overrides: Overrides) -> Result<(String, Cluster), Failure> {
        let loaded = pgkeep_config::load(Some(Path::new(NO_FILE)), &|name| std::env::var(name).ok())?;
        let overrides = self.overrides(overrides);
        Ok(loaded.config.select(self.global.cluster.as_deref(), &overrides)?)
    }

    /// One file's settings of a cluster, without the flags.
    pub fn settings_of_file(
        &self,
        path: &Path,
        cluster: &str,
        overrides: &Overrides,
    ) -> Result<Settings, Failure> {
        let loaded = pgkeep_config::load(Some(path), &|name| std::env::var(name).ok())?;
        let (name, cluster) = loaded.config.select(Some(cluster), overrides)?;
        Ok(Settings {
            name,
            cluster,
            loaded,
            others: Vec::new(),
        })
    }

    /// The file that `--config` or its variable names.
    pub fn config_path(&self) -> Option<PathBuf> {
        let variable = || std::env::var_os("PGKEEP_CONFIG").filter(|path| !path.is_empty());
        self.global
            .config
            .clone()
            .or_else(|| variable().map(PathBuf::from))
    }

    /// The flags by which this place was named, for a command that shall find it again.
    pub fn place_flags(&self) -> Vec<String> {
        let global = &self.global;
        let config = global.config.as_ref().map(|path| path.display().to_string());
        let single = [
            ("--config", config.as_ref()),
            ("--cluster", global.cluster.as_ref()),
            ("--s3-endpoint", global.s3_endpoint.as_ref()),
            ("--s3-region", global.s3_region.as_ref()),
        ];
        let single = single
            .into_iter()
            .filter_map(|(flag, value)| Some((flag, value?)));
        let repositories = global.repository.iter().map(|url| ("--repository", url));
        let flag = |(flag, value): (&str, &String)| format!("{flag} {}", quote_for_shell(value));
        // Secrets are for nobody's screen.
        let is_shown = |name: &str| SETTINGS.iter().any(|known| known.name == name && !known.secret);
        let set = global.set.iter().filter(|(name, _)| is_shown(name));
        let set = set.map(|(name, value)| format!("--set {}", quote_for_shell(&format!("{name}={value}"))));
        repositories.chain(single).map(flag).chain(set).collect()
    }

    /// What `--set` says of settings, and the flags that stand for one of those.
    pub fn further_settings(&self) -> Vec<(String, String)> {
        let global = &self.global;
        let pg_bin = global.pg_bin.as_ref().map(|path| path.display().to_string());
        let flags = [
            ("pg_bin", pg_bin),
            ("s3.endpoint", global.s3_endpoint.clone()),
            ("s3.region", global.s3_region.clone()),
        ];
        let flags = flags
            .into_iter()
            .filter_map(|(name, value)| Some((name.to_owned(), value?)));
        flags.chain(global.set.iter().cloned()).collect()
    }

    fn load(&self) -> Result<Loaded, Failure> {
        let loaded = pgkeep_config::load(self.global.config.as_deref(), &|name| std::env::var(name).ok())?;
        let names: Vec<String> = std::env::vars_os()
            .filter_map(|(name, _)| name.into_string().ok())
            .collect();
        let unknown = pgkeep_config::unknown_variables(names.iter().map(String::as_str), &OTHER_VARIABLES);
        for warning in loaded.warnings.iter().chain(&unknown) {
            tracing::warn!("{warning}");
        }
        Ok(loaded)
    }

    /// The global flags, and the command's own.
    fn overrides(&self, overrides: Overrides) -> Overrides {
        Overrides {
            connection: self.global.connection.clone().map(Secret::new),
            repository: self.global.repository.clone(),
            recipients: self.global.recipients.clone(),
            encryption: self.global.encryption.clone(),
            identity_file: self.global.identity.clone(),
            pg_bin: self.global.pg_bin.clone(),
            s3_endpoint: self.global.s3_endpoint.clone(),
            s3_region: self.global.s3_region.clone(),
            set: self
                .global
                .set
                .iter()
                .map(|(name, value)| (name.clone(), Secret::new(value)))
                .collect(),
            ..overrides
        }
    }

    /// Opens the repository that is read from; none where it isn't made yet. One of several isn't waited for as long as
    /// usual.
    pub async fn repository_if_there(
        &self,
        settings: &Settings,
        keys: KeyUse,
    ) -> Result<Option<Repository>, Failure> {
        let url = settings.repository_url()?;
        let store = match settings.others.is_empty() {
            true => settings.store(url).await?,
            false => settings.store_soon(url).await?,
        };
        match Repository::open(store, &settings.name, settings.access(keys)?).await {
            Ok(repository) => Ok(Some(repository)),
            Err(RepositoryError::NotARepository { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Opens the repository that is read from, which needn't be waited for as long as usual.
    pub async fn repository_soon(&self, settings: &Settings, keys: KeyUse) -> Result<Repository, Failure> {
        let store = settings.store_soon(settings.repository_url()?).await?;
        Ok(Repository::open(store, &settings.name, settings.access(keys)?).await?)
    }

    /// Opens the repository that is read from.
    pub async fn repository(&self, settings: &Settings, keys: KeyUse) -> Result<Repository, Failure> {
        let store = settings.store(settings.repository_url()?).await?;
        Ok(Repository::open(store, &settings.name, settings.access(keys)?).await?)
    }
}

impl Settings {
    /// The one repository, for what works on one.
    pub fn repository_url(&self) -> Result<&str, Failure> {
        match self.cluster.repositories()? {
            [only] => Ok(only),
            several => Err(Failure::usage(
                format!(
                    "the setting 'repository' names {} places, and this works on one",
                    several.len()
                ),
                "name one with --repository URL",
            )),
        }
    }

    /// The settings as they are for each of the repositories, at least one.
    pub fn in_each_repository(&self) -> Result<Vec<Self>, Failure> {
        let urls = self.cluster.repositories()?;
        let in_one = |url: &String| {
            let others = urls.iter().filter(|other| *other != url);
            Ok(Self {
                others: others.cloned().collect(),
                ..self.in_repository(url)?
            })
        };
        urls.iter().map(in_one).collect()
    }

    /// The settings as they are for a repository, be it one of the cluster's or another.
    pub fn in_repository(&self, url: &str) -> Result<Self, Failure> {
        Ok(Self {
            name: self.name.clone(),
            cluster: self.cluster.in_repository(url)?,
            loaded: self.loaded.clone(),
            others: Vec::new(),
        })
    }

    /// A command for the user, which names the cluster where the configuration has several.
    pub fn command(&self, arguments: &str) -> String {
        match self.loaded.config.names(None).as_deref() {
            Ok([_, _, ..]) => format!("pgkeep --cluster {} {arguments}", quote_for_shell(&self.name)),
            _ => format!("pgkeep {arguments}"),
        }
    }

    /// The command that brings to a repository what it lacks.
    pub fn copy_command(&self, what: &str, to: &str) -> String {
        self.command(&format!("copy {what} --to {}", quote_for_shell(to)))
    }

    /// The command that makes a damaged dump of this repository good from another one, where there is one.
    pub fn repair_command(&self, id: &str) -> Option<String> {
        let (url, from) = (self.repository_url().ok()?, self.others.first()?);
        Some(self.repair_from(id, from, url))
    }

    /// The same from a repository that has it sound.
    pub fn repair_from(&self, id: &str, from: &str, to: &str) -> String {
        let [from, to] = [from, to].map(quote_for_shell);
        self.command(&format!("copy {id} --repository {from} --to {to} --repair"))
    }

    /// The same without one of several repositories.
    pub fn beside(&self, url: &str) -> Self {
        let mut beside = self.clone();
        if beside.cluster.repository.len() > 1 {
            beside
                .cluster
                .repository
                .retain(|other| other.trim_end_matches('/') != url.trim_end_matches('/'));
        }
        beside
    }

    /// Settings that are given and do nothing in this version, which must not go unnoticed.
    pub fn without_effect(&self) -> Vec<&'static str> {
        let cluster = &self.cluster;
        let all = [("drill.schedule", cluster.drill.schedule.is_some())];
        all.into_iter()
            .filter(|(_, is_set)| *is_set)
            .map(|(name, _)| name)
            .collect()
    }

    /// Opens the store at a URL.
    pub async fn store(&self, url: &str) -> Result<Store, Failure> {
        Ok(Store::open(url, &self.store_options()).await?)
    }

    /// The same for somebody who asks what is wrong, and doesn't wait as long as a dump does.
    pub async fn store_soon(&self, url: &str) -> Result<Store, Failure> {
        let mut options = self.store_options();
        options.retry.first_contact_elapsed_max = FIRST_CONTACT_MAX;
        Ok(Store::open(url, &options).await?)
    }

    /// Opens the repository that is written to, or makes it.
    pub async fn repository_to_write(&self, keys: KeyUse) -> Result<Repository, Failure> {
        let url = self.repository_url()?;
        let access = self.access(keys)?;
        access.encryption.check_writable()?;
        let store = self.store(url).await?;
        Ok(Repository::open_or_create(store, &self.name, access).await?)
    }

    /// How stores are reached.
    pub fn store_options(&self) -> StoreOptions {
        store_options(&self.cluster)
    }

    /// How objects are sealed and opened.
    pub fn access(&self, keys: KeyUse) -> Result<Access, Failure> {
        let encryption = match self.cluster.encryption {
            EncryptionMode::None => Encryption::None,
            EncryptionMode::Age if self.cluster.recipients.is_empty() => Encryption::Age {
                recipients: Vec::new(),
            },
            EncryptionMode::Age => Encryption::Age {
                recipients: keys::parse_recipients(&self.cluster.recipients)?,
            },
        };
        let identities = match keys {
            KeyUse::None => Vec::new(),
            KeyUse::Needed | KeyUse::IfConfigured => self.identities()?,
            // What takes no key is done all the same, and whoever gave one learns why it is of no use.
            KeyUse::IfThere => self.identities().unwrap_or_else(|failure| {
                let mend = failure.hint().map(|hint| format!("; {hint}")).unwrap_or_default();
                tracing::warn!("going on without a secret key: {}{mend}", failure.text());
                Vec::new()
            }),
        };
        Ok(Access {
            encryption,
            identities,
            compression_level: self.compression_level(),
        })
    }

    /// How a file outside the repository is sealed: encrypted when its name says so, for most are asked for to be read
    /// by other tools.
    pub fn file_encryption(&self, path: &str) -> Result<Encryption, Failure> {
        let encryption = match path.ends_with(ENCRYPTED_SUFFIX) {
            true => self.access(KeyUse::None)?.encryption,
            false => Encryption::None,
        };
        encryption.check_writable()?;
        Ok(encryption)
    }

    /// The secret keys that are configured; none where none is.
    pub fn identities(&self) -> Result<Vec<Identity>, Failure> {
        if let Some(identity) = &self.cluster.identity {
            return Ok(keys::parse_identities(identity.expose(), "PGKEEP_IDENTITY")?);
        }
        let Some(path) = &self.cluster.identity_file else {
            return Ok(Vec::new());
        };
        let file = keys::read_identity_file(path)?;
        for warning in &file.warnings {
            tracing::warn!("{warning}");
        }
        Ok(file.identities)
    }

    /// The server, as the settings and libpq's variables have it.
    pub fn target(&self) -> Result<Target, Failure> {
        let text = self.cluster.connection.as_ref().map_or("", Secret::expose);
        target(text)
    }

    /// Where PostgreSQL's programs are looked for.
    pub fn programs(&self) -> ProgramSearch {
        match self.container() {
            Some(container) => programs_in(container),
            None => self.own_programs(),
        }
    }

    /// The same on this machine: where the setting names a container, as if it named nothing.
    pub fn own_programs(&self) -> ProgramSearch {
        let pg_bin = self.cluster.pg_bin.clone();
        ProgramSearch::process(pg_bin.filter(|_| self.container().is_none()))
    }

    /// The container that the setting `pg_bin` names.
    pub fn container(&self) -> Option<&str> {
        let pg_bin = self.cluster.pg_bin.as_deref().and_then(Path::to_str)?;
        pg_bin.strip_prefix(CONTAINER_PREFIX)
    }

    /// Where what can be lost is kept; none on a host where nobody has a home.
    pub fn cache_directory(&self) -> Option<PathBuf> {
        let absolute = |path: PathBuf| path.is_absolute().then_some(path);
        let caches = std::env::var_os("XDG_CACHE_HOME")
            .map(PathBuf::from)
            .and_then(absolute);
        let caches = caches.or_else(|| Some(std::env::home_dir().and_then(absolute)?.join(".cache")));
        self.cluster
            .cache_directory
            .clone()
            .or_else(|| Some(caches?.join("pgkeep")))
    }
}

/// What `pg_bin` begins with where it names a container.
pub const CONTAINER_PREFIX: &str = "container:";

/// How long leases last.
pub const LEASE_DURATION: Duration = LEASE_DURATION_DEFAULT;

/// A container's own programs, for the server in it.
pub fn programs_in(container: &str) -> ProgramSearch {
    // By its own path: it may be in none of PATH's directories.
    let own = std::env::current_exe().unwrap_or_else(|_| PathBuf::from(env!("CARGO_PKG_NAME")));
    let launcher = [
        own.as_os_str(),
        "in-container".as_ref(),
        container.as_ref(),
        "--".as_ref(),
    ];
    ProgramSearch::by_launcher(launcher.map(OsStr::to_owned).to_vec())
}

/// Reads a connection string.
pub fn target(text: &str) -> Result<Target, Failure> {
    Ok(Conninfo::parse(text)?.resolve(&Environment::process())?)
}

fn store_options(cluster: &Cluster) -> StoreOptions {
    let addressing = match cluster.s3.path_style {
        None => S3Addressing::Automatic,
        Some(true) => S3Addressing::Path,
        Some(false) => S3Addressing::VirtualHosted,
    };
    StoreOptions {
        upload_bytes_per_second_max: cluster.limits.upload_bytes_per_second.map(|bytes| bytes.0),
        s3: S3Options {
            endpoint: cluster.s3.endpoint.clone(),
            region: cluster.s3.region.clone(),
            addressing,
            allow_http: cluster.s3.allow_http,
            profile: cluster.s3.profile.clone(),
            access_key_id: cluster.s3.access_key_id.clone(),
            secret_access_key: cluster.s3.secret_access_key.clone(),
            session_token: cluster.s3.session_token.clone(),
            kms_key_id: cluster.s3.kms_key_id.clone(),
            ..S3Options::default()
        },
        gcs: GcsOptions {
            service_account_path: cluster.gcs.service_account_file.clone(),
            endpoint: cluster.gcs.endpoint.clone(),
        },
        azure: AzureOptions {
            account: cluster.azure.account.clone(),
            access_key: cluster.azure.access_key.clone(),
            sas_token: cluster.azure.sas_token.clone(),
            endpoint: cluster.azure.endpoint.clone(),
        },
        ..StoreOptions::default()
    }
}

#[cfg(test)]
mod tests {
    use pgkeep_config::SETTINGS;

    use super::*;

    fn settings(set: &[(&str, &str)]) -> Result<Settings, Failure> {
        // Nothing of this machine's own.
        let loaded = pgkeep_config::load(Some("/dev/null".as_ref()), &|_| None)?;
        let set = set.iter();
        let overrides = Overrides {
            set: set
                .map(|(name, value)| ((*name).to_owned(), Secret::new(*value)))
                .collect(),
            ..Overrides::default()
        };
        let (name, cluster) = loaded.config.select(None, &overrides)?;
        Ok(Settings {
            name,
            cluster,
            loaded,
            others: Vec::new(),
        })
    }

    #[test]
    fn what_the_documentation_says_does_nothing_is_told() {
        let idle = SETTINGS
            .iter()
            .filter(|setting| setting.doc.contains("Does nothing yet"));
        for setting in idle {
            let values = ["true", "7", "0 3 * * *"];
            let given = values
                .into_iter()
                .find_map(|value| settings(&[(setting.name, value)]).ok());
            assert_eq!(given.unwrap().without_effect(), [setting.name]);
        }
        assert!(
            settings(&[("dump.jobs", "7")])
                .unwrap()
                .without_effect()
                .is_empty()
        );
    }

    #[test]
    fn a_key_that_cannot_be_read_is_not_taken_for_none() {
        let none = settings(&[]).unwrap();
        let missing = settings(&[("identity_file", "/nowhere/pgkeep.key")]).unwrap();
        for keys in [KeyUse::IfThere, KeyUse::IfConfigured] {
            assert!(none.access(keys).unwrap().identities.is_empty());
        }
        assert!(missing.access(KeyUse::IfThere).unwrap().identities.is_empty());
        let failure = missing.access(KeyUse::IfConfigured).err().unwrap();
        assert!(failure.text().contains("/nowhere/pgkeep.key"), "{failure:?}");
    }
}
