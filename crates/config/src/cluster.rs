use std::collections::BTreeMap;
use std::path::PathBuf;

use jiff::SignedDuration;
use jiff::tz::TimeZone;
use pgkeep_base::{ByteCount, Secret};

use crate::error::{ConfigError, Origin};
use crate::input::Input;
use crate::repositories::RepositoryInput;
use crate::select::apply;
use crate::settings::setting;

/// All that is configured for one database cluster.
#[derive(Debug, Clone, PartialEq)]
pub struct Cluster {
    /// A connection URI or keywords and values, as libpq has them; may hold a password. Without it libpq's own
    /// variables decide (`PGHOST`, ...).
    pub connection: Option<Secret>,
    /// Where backups go, as URLs without credentials: into each of them.
    pub repository: Vec<String>,
    /// What is set for one repository alone, by its URL: name and value of settings that stand over the cluster's.
    pub(crate) of_repository: BTreeMap<String, Vec<(&'static str, Secret)>>,
    /// Whether what is written is encrypted.
    pub encryption: EncryptionMode,
    /// Public keys to encrypt for, `age1...`.
    pub recipients: Vec<String>,
    /// Where the secret key is, on machines that restore.
    pub identity_file: Option<PathBuf>,
    /// The secret key itself; from the environment only (`PGKEEP_IDENTITY`).
    pub identity: Option<Secret>,
    /// Receive WAL continuously.
    pub stream: bool,
    /// How WAL is received.
    pub wal: Wal,
    /// Base backups.
    pub backup: Backup,
    /// Logical backups.
    pub dump: Dump,
    /// Restore tests.
    pub drill: Drill,
    /// Retention.
    pub keep: Keep,
    /// What the host may be asked for.
    pub limits: Limits,
    /// Where PostgreSQL's programs are, such as `/usr/lib/postgresql/17/bin`.
    pub pg_bin: Option<PathBuf>,
    /// Where what can be lost is kept; unset: where the user's caches are.
    pub cache_directory: Option<PathBuf>,
    /// S3 and compatibles.
    pub s3: S3,
    /// Google Cloud Storage.
    pub gcs: Gcs,
    /// Azure Blob Storage.
    pub azure: Azure,
    /// Of schedules, and of the days that retention counts. UTC unless set: so every machine that reads the repository
    /// plans the same.
    pub timezone: TimeZone,
}

impl Default for Cluster {
    fn default() -> Self {
        Self {
            connection: None,
            repository: Vec::new(),
            of_repository: BTreeMap::new(),
            encryption: EncryptionMode::default(),
            recipients: Vec::new(),
            identity_file: None,
            identity: None,
            stream: false,
            wal: Wal::default(),
            backup: Backup::default(),
            dump: Dump::default(),
            drill: Drill::default(),
            keep: Keep::default(),
            limits: Limits::default(),
            pg_bin: None,
            cache_directory: None,
            s3: S3::default(),
            gcs: Gcs::default(),
            azure: Azure::default(),
            timezone: TimeZone::UTC,
        }
    }
}

impl Cluster {
    /// The repositories, at least one.
    ///
    /// # Errors
    /// None is configured; the error says how to.
    pub fn repositories(&self) -> Result<&[String], ConfigError> {
        if self.repository.is_empty() {
            Err(ConfigError::NoRepository)
        } else {
            Ok(&self.repository)
        }
    }

    /// The settings as they are for one of the repositories, which is then the only one.
    ///
    /// # Errors
    /// [`ConfigError::InvalidValue`]: what stands in the file was checked when it was read.
    pub fn in_repository(&self, url: &str) -> Result<Self, ConfigError> {
        let mut cluster = Self {
            repository: vec![url.to_owned()],
            of_repository: BTreeMap::new(),
            ..self.clone()
        };
        let key = url.trim_end_matches('/');
        for (name, value) in self.of_repository.get(key).into_iter().flatten() {
            if let Some(setting) = setting(name) {
                let origin = Origin::Flag("repository");
                apply(setting, &mut cluster, &Input::Text(value.expose()), origin)?;
            }
        }
        Ok(cluster)
    }

    /// What a repository has of its own in the file stays known where variables or flags name others.
    pub(crate) fn set_repositories(&mut self, repositories: Vec<RepositoryInput>) {
        self.repository = repositories
            .iter()
            .map(|repository| repository.url.clone())
            .collect();
        for RepositoryInput { url, own } in repositories {
            if !own.is_empty() {
                self.of_repository
                    .insert(url.trim_end_matches('/').to_owned(), own);
            }
        }
    }

    /// A setting that a flag gives holds for every repository.
    pub(crate) fn forget_of_repositories(&mut self, name: &str) {
        for own in self.of_repository.values_mut() {
            own.retain(|(own, _)| *own != name);
        }
    }

    /// Whether any value in it is a secret.
    pub(crate) fn holds_secrets(&self) -> bool {
        // A password hides in a URI's user part (user:password@) or behind a keyword. Erring costs a warning.
        let password = self.connection.as_ref().is_some_and(|connection| {
            let text = connection.expose();
            let in_uri = text.split_once("://").and_then(|(_, rest)| rest.split_once('@'));
            text.contains("password") || in_uri.is_some_and(|(user, _)| user.contains(':'))
        });
        let mut of_repository = self.of_repository.values().flatten();
        password
            || of_repository.any(|(name, _)| setting(name).is_some_and(|setting| setting.secret))
            || [
                &self.s3.secret_access_key,
                &self.s3.session_token,
                &self.azure.access_key,
                &self.azure.sas_token,
            ]
            .iter()
            .any(|secret| secret.is_some())
    }
}

/// In which of COPY's formats rows are written into the repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RowFormatChoice {
    /// Chunks and large tables binary, where their types allow it.
    #[default]
    Auto,
    /// Everything as text.
    Text,
}

/// Whether objects are encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EncryptionMode {
    /// In the age format, for the recipients.
    #[default]
    Age,
    /// Not at all.
    None,
}

/// How WAL is received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wal {
    /// The physical replication slot.
    pub slot: String,
    /// What has come is stored after so long, at the latest. Never negative.
    pub flush_after: SignedDuration,
    /// What has come is stored at once, because the server waits for it.
    pub synchronous: bool,
    /// How much the server may keep for the slot.
    pub slot_bytes_max: Option<ByteCount>,
    /// What gives way then.
    pub at_limit: AtLimit,
}

/// What gives way when a server keeps too much WAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AtLimit {
    /// The slot, and with it WAL.
    #[default]
    Release,
    /// The server's disk.
    Hold,
}

impl Default for Wal {
    fn default() -> Self {
        Self {
            slot: "pgkeep".to_owned(),
            flush_after: SignedDuration::from_secs(10),
            synchronous: false,
            slot_bytes_max: None,
            at_limit: AtLimit::default(),
        }
    }
}

/// Base backups.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Backup {
    /// A cron expression.
    pub schedule: Option<String>,
    /// Parallel workers.
    pub jobs: Option<u32>,
    /// zstd level, 1 to 19.
    pub compression_level: Option<i32>,
    /// How files are read.
    pub reader: BackupReader,
    /// Where the data directory is on this host.
    pub data_directory: Option<PathBuf>,
}

/// How the files of a base backup are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BackupReader {
    /// From the data directory where that can be, else by replication.
    #[default]
    Auto,
    /// From the data directory.
    Local,
    /// By replication.
    Replication,
}

/// Logical backups.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Dump {
    /// A cron expression.
    pub schedule: Option<String>,
    /// Which databases.
    pub databases: Databases,
    /// Patterns of databases to leave out.
    pub exclude_databases: Vec<String>,
    /// Patterns of schemas to leave out, as `pg_dump --exclude-schema` has them.
    pub exclude_schemas: Vec<String>,
    /// Patterns of tables to leave out, as `pg_dump --exclude-table` has them.
    pub exclude_tables: Vec<String>,
    /// Patterns of tables whose rows to leave out, as `pg_dump --exclude-table-data` has them.
    pub exclude_table_data: Vec<String>,
    /// Parallel connections.
    pub jobs: Option<u32>,
    /// zstd level, 1 to 19.
    pub compression_level: Option<i32>,
    /// What is written.
    pub format: DumpFormat,
    /// How rows are written into the repository.
    pub row_format: RowFormatChoice,
    /// Whether rows that an earlier dump holds are stored again.
    pub incremental: bool,
    /// Objects stored longer ago aren't taken over; unset: a week.
    pub reuse_max_age: Option<SignedDuration>,
}

/// Which databases are dumped.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Databases {
    /// Every one that takes connections, templates apart.
    #[default]
    All,
    /// These.
    Named(Vec<String>),
}

/// What a dump is written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DumpFormat {
    /// Into the repository.
    #[default]
    Repository,
    /// One compressed SQL script.
    Plain,
    /// One file as `pg_dump --format=custom` writes it.
    Custom,
    /// A directory as `pg_dump --format=directory` writes it.
    Directory,
}

/// Restore tests.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Drill {
    /// A cron expression.
    pub schedule: Option<String>,
}

/// Retention. All empty keeps everything.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Keep {
    /// Keep all that are younger. Never negative.
    pub window: Option<SignedDuration>,
    /// Days of which to keep the newest.
    pub daily: u32,
    /// ISO weeks of which to keep the newest.
    pub weekly: u32,
    /// Months of which to keep the newest.
    pub monthly: u32,
    /// Years of which to keep the newest.
    pub yearly: u32,
}

/// What the host may be asked for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Limits {
    /// Average bandwidth of all uploads together, per second.
    pub upload_bytes_per_second: Option<ByteCount>,
    /// Memory for buffers. It caps how many jobs run at once.
    pub memory: Option<ByteCount>,
}

/// S3 and compatibles. What is not set is taken from `AWS_*`, a profile, or the machine's role.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct S3 {
    /// `https://host[:port]`, without the bucket.
    pub endpoint: Option<String>,
    /// For example `eu-central-1`.
    pub region: Option<String>,
    /// The bucket's name in the path (true) or in the host name (false); unset: as the endpoint suggests.
    pub path_style: Option<bool>,
    /// Permit an endpoint without TLS.
    pub allow_http: bool,
    /// A profile in `~/.aws/config`.
    pub profile: Option<String>,
    /// Static credentials.
    pub access_key_id: Option<Secret>,
    /// Static credentials.
    pub secret_access_key: Option<Secret>,
    /// Goes with temporary static credentials.
    pub session_token: Option<Secret>,
    /// Server-side encryption with this KMS key.
    pub kms_key_id: Option<String>,
}

/// Google Cloud Storage. What is not set is taken from `GOOGLE_*` and the application default credentials.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Gcs {
    /// A service account's JSON key.
    pub service_account_file: Option<PathBuf>,
    /// Another endpoint.
    pub endpoint: Option<String>,
}

/// Azure Blob Storage. What is not set is taken from `AZURE_*` and the machine's identity.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Azure {
    /// The storage account.
    pub account: Option<String>,
    /// The account's key.
    pub access_key: Option<Secret>,
    /// A shared access signature.
    pub sas_token: Option<Secret>,
    /// Another endpoint.
    pub endpoint: Option<String>,
}
