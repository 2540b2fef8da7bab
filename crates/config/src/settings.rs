use crate::cluster::{AtLimit, BackupReader, Cluster, DumpFormat, EncryptionMode, RowFormatChoice};
use crate::input::Input;

/// One setting.
#[derive(Clone, Copy)]
pub struct Setting {
    /// Its name in a cluster's table, such as `keep.window`.
    pub name: &'static str,
    /// What its value looks like.
    pub form: &'static str,
    /// What holds where it isn't set.
    pub default: &'static str,
    /// What it is for, in a line.
    pub doc: &'static str,
    /// Whether its value must not be shown.
    pub secret: bool,
    apply: fn(&mut Cluster, &Input<'_>) -> Result<(), String>,
}

impl Setting {
    /// The variable that sets it: `PGKEEP_KEEP__WINDOW` for `keep.window`.
    pub fn variable(&self) -> String {
        format!("PGKEEP_{}", self.name.to_uppercase().replace('.', "__"))
    }

    /// Reads and checks the value. The error completes "the setting ...".
    pub(crate) fn apply(&self, cluster: &mut Cluster, input: &Input<'_>) -> Result<(), String> {
        (self.apply)(cluster, input)
    }
}

impl std::fmt::Debug for Setting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Setting({})", self.name)
    }
}

/// The setting of that name.
pub(crate) fn setting(name: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.name == name)
}

/// Variables that are no settings of a cluster: name and what they are for.
pub const GENERAL_VARIABLES: &[(&str, &str)] = &[
    ("PGKEEP_CONFIG", "The configuration file; as the flag `--config`."),
    (
        "PGKEEP_CLUSTER",
        "The cluster to work on; as the flag `--cluster`.",
    ),
    (
        "PGKEEP_IDENTITY",
        "A secret key itself (`AGE-SECRET-KEY-1...`), for machines where a file is harder to come by. There is no such \
         setting in the file.",
    ),
];

macro_rules! setting {
    ($name:literal, $form:literal, $default:literal, $doc:literal, |$cluster:ident, $input:ident| $apply:expr) => {
        setting!($name, $form, $default, $doc, false, |$cluster, $input| $apply)
    };
    (secret $name:literal, $form:literal, $default:literal, $doc:literal, |$cluster:ident, $input:ident| $apply:expr) => {
        setting!($name, $form, $default, $doc, true, |$cluster, $input| $apply)
    };
    ($name:literal, $form:literal, $default:literal, $doc:literal, $secret:literal,
        |$cluster:ident, $input:ident| $apply:expr) => {
        Setting {
            name: $name,
            form: $form,
            default: $default,
            doc: $doc,
            secret: $secret,
            apply: |$cluster, $input| {
                $apply;
                Ok(())
            },
        }
    };
}

const ENCRYPTION: &[(&str, EncryptionMode)] = &[("age", EncryptionMode::Age), ("none", EncryptionMode::None)];
const ROW_FORMATS: &[(&str, RowFormatChoice)] =
    &[("auto", RowFormatChoice::Auto), ("text", RowFormatChoice::Text)];
const FORMATS: &[(&str, DumpFormat)] = &[
    ("repository", DumpFormat::Repository),
    ("plain", DumpFormat::Plain),
    ("custom", DumpFormat::Custom),
    ("directory", DumpFormat::Directory),
];
const READERS: &[(&str, BackupReader)] = &[
    ("auto", BackupReader::Auto),
    ("local", BackupReader::Local),
    ("replication", BackupReader::Replication),
];
const JOBS_MAX: u32 = 256;
const KEEP_MAX: u32 = 100_000;

/// Every setting of a cluster, in the order of the documentation.
pub const SETTINGS: &[Setting] = &[
    // The essentials.
    setting!(secret "connection", "connection string", "libpq's variables",
        "The database server, as a URI or as keywords and values; service files, `.pgpass` and `PG*` variables work too.",
        |cluster, input| cluster.connection = Some(input.secret()?)),
    setting!(
        "repository",
        "URL, or list of URLs or tables",
        "none",
        "Where backups go: `s3://bucket/prefix`, `gs://`, `az://` or `file:///directory`; several are written from one read ([how](#several-repositories)).",
        |cluster, input| cluster.set_repositories(input.repositories()?)
    ),
    setting!(
        "recipients",
        "list",
        "none",
        "Public keys to encrypt for; whoever has the secret key of any one of them can restore. `pgkeep key new` makes a pair.",
        |cluster, input| cluster.recipients = input.recipients()?
    ),
    setting!(
        "encryption",
        "`age` or `none`",
        "`age`",
        "With `age` nothing is written until there are recipients; `none` writes in the clear.",
        |cluster, input| cluster.encryption = input.choice(ENCRYPTION)?
    ),
    setting!(
        "identity_file",
        "path",
        "none",
        "The file with the secret key. Only restoring, verifying contents, pruning and showing details need it.",
        |cluster, input| cluster.identity_file = Some(input.path()?)
    ),
    setting!(
        "pg_bin",
        "path",
        "found on the machine",
        "The directory of PostgreSQL's programs (`pg_dump`, `pg_restore`, ...); `container:NAME` for those of the container in which the server runs.",
        |cluster, input| cluster.pg_bin = Some(input.path()?)
    ),
    setting!(
        "cache_directory",
        "path",
        "`$XDG_CACHE_HOME/pgkeep` or `~/.cache/pgkeep`",
        "Where the last dump's manifest is kept for the next incremental one, and what the last base backup holds: 0.2 % of the cluster's size, twice that while one runs. It may be deleted at any time.",
        |cluster, input| cluster.cache_directory = Some(input.path()?)
    ),
    setting!(
        "timezone",
        "time zone",
        "`UTC`",
        "The time zone of schedules, and of the days that retention counts.",
        |cluster, input| cluster.timezone = input.time_zone()?
    ),
    // Dumps.
    setting!(
        "dump.schedule",
        "cron expression",
        "none",
        "When `pgkeep run` dumps ([scheduling](scheduling.md)).",
        |cluster, input| cluster.dump.schedule = Some(input.schedule()?)
    ),
    setting!(
        "dump.databases",
        "`all` or list",
        "`all`",
        "The databases to dump.",
        |cluster, input| cluster.dump.databases = input.databases()?
    ),
    setting!(
        "dump.exclude_databases",
        "list of patterns",
        "none",
        "Databases to leave out. Refused for now: name those to dump by `dump.databases`.",
        |cluster, input| cluster.dump.exclude_databases = input.list()?
    ),
    setting!(
        "dump.exclude_schemas",
        "list of patterns",
        "none",
        "Schemas to leave out.",
        |cluster, input| cluster.dump.exclude_schemas = input.list()?
    ),
    setting!(
        "dump.exclude_tables",
        "list of patterns",
        "none",
        "Tables to leave out.",
        |cluster, input| cluster.dump.exclude_tables = input.list()?
    ),
    setting!(
        "dump.exclude_table_data",
        "list of patterns",
        "none",
        "Tables of which only the definition is dumped.",
        |cluster, input| cluster.dump.exclude_table_data = input.list()?
    ),
    setting!(
        "dump.jobs",
        "1 to 256",
        "by the number of CPUs",
        "Connections that read at the same time.",
        |cluster, input| cluster.dump.jobs = Some(input.count(1, JOBS_MAX)?)
    ),
    setting!(
        "dump.compression_level",
        "1 to 19",
        "3",
        "zstd's level. Where level 1 compresses as well, as it does what hardly repeats, it is used in its stead.",
        |cluster, input| cluster.dump.compression_level = Some(input.compression_level()?)
    ),
    setting!(
        "dump.format",
        "`repository`, `plain`, `custom` or `directory`",
        "`repository`",
        "What a dump is written as.",
        |cluster, input| cluster.dump.format = input.choice(FORMATS)?
    ),
    setting!(
        "dump.row_format",
        "`auto` or `text`",
        "`auto`",
        "`auto`: chunks and large tables in COPY's binary format, which loads in half the time. `text`: everything as SQL scripts.",
        |cluster, input| cluster.dump.row_format = input.choice(ROW_FORMATS)?
    ),
    setting!(
        "dump.incremental",
        "`true` or `false`",
        "`false`",
        "Chunks and large tables whose rows haven't changed since the dump before aren't stored again ([how](design-incremental.md)).",
        |cluster, input| cluster.dump.incremental = input.boolean()?
    ),
    setting!(
        "dump.reuse_max_age",
        "duration",
        "`7d`",
        "Objects stored longer ago are stored anew. Rules that delete by age must leave objects for `keep.window` and this time together.",
        |cluster, input| cluster.dump.reuse_max_age = Some(input.duration()?)
    ),
    // Base backups, WAL, drills.
    setting!(
        "stream",
        "`true` or `false`",
        "`false`",
        "Receive WAL continuously in `pgkeep run`, as `pgkeep wal stream` does by itself.",
        |cluster, input| cluster.stream = input.boolean()?
    ),
    setting!(
        "wal.slot",
        "name",
        "`pgkeep`",
        "The physical replication slot that `pgkeep wal stream` receives WAL by; it is made where there is none, and holds WAL on the server until it is stored.",
        |cluster, input| cluster.wal.slot = input.slot()?
    ),
    setting!(
        "wal.flush_after",
        "duration",
        "`10s`",
        "WAL that has come is stored after so long, at the latest: so much can be lost with the server. Each time costs a request.",
        |cluster, input| cluster.wal.flush_after = input.duration()?
    ),
    setting!(
        "wal.synchronous",
        "`true` or `false`",
        "`false`",
        "WAL is stored as soon as it comes, for a server that waits for it: name the slot in its `synchronous_standby_names`. A commit then takes a request, and waits while the store is away.",
        |cluster, input| cluster.wal.synchronous = input.boolean()?
    ),
    setting!(
        "wal.slot_bytes_max",
        "size",
        "the least of 8 GiB, a quarter of the server's free disk where that is seen, and its `max_slot_wal_keep_size`",
        "So much WAL may the server keep for the slot. Told at 50 and 80 %; at the limit counts `wal.at_limit`.",
        |cluster, input| cluster.wal.slot_bytes_max = Some(input.bytes()?)
    ),
    setting!(
        "wal.at_limit",
        "`release` or `hold`",
        "`release`",
        "What gives way when the server keeps too much, because the store is away or too slow. `release`: the slot is dropped and made anew, the server goes on, and WAL that it removes meanwhile is lost. `hold`: nothing; its disk may run full.",
        |cluster, input| cluster.wal.at_limit =
            input.choice(&[("release", AtLimit::Release), ("hold", AtLimit::Hold)])?
    ),
    setting!(
        "backup.schedule",
        "cron expression",
        "none",
        "When `pgkeep run` takes base backups.",
        |cluster, input| cluster.backup.schedule = Some(input.schedule()?)
    ),
    setting!(
        "backup.jobs",
        "1 to 256",
        "by the number of CPUs",
        "Pieces of a base backup that are compressed at once.",
        |cluster, input| cluster.backup.jobs = Some(input.count(1, JOBS_MAX)?)
    ),
    setting!(
        "backup.compression_level",
        "1 to 19",
        "3",
        "zstd's level for base backups and their WAL. What a faster way compresses as well, as most pages, goes that way.",
        |cluster, input| cluster.backup.compression_level = Some(input.compression_level()?)
    ),
    setting!(
        "backup.reader",
        "`auto`, `local` or `replication`",
        "`auto`",
        "How a base backup reads files: `local` from the data directory on this host, `replication` over the connection. `auto`: `local` where the directory is readable and proven to be the server's.",
        |cluster, input| cluster.backup.reader = input.choice(READERS)?
    ),
    setting!(
        "backup.data_directory",
        "path",
        "what the server says",
        "Where the server's data directory is on this host, such as the mount point of a container's volume.",
        |cluster, input| cluster.backup.data_directory = Some(input.path()?)
    ),
    setting!(
        "drill.schedule",
        "cron expression",
        "none",
        "When a restore is tested. Does nothing yet.",
        |cluster, input| cluster.drill.schedule = Some(input.schedule()?)
    ),
    // Retention.
    setting!(
        "keep.window",
        "duration, such as `30d`",
        "none",
        "Keep every backup that is younger. Without any `keep` setting everything is kept.",
        |cluster, input| cluster.keep.window = Some(input.duration()?)
    ),
    setting!(
        "keep.daily",
        "number",
        "0",
        "Keep the newest good backup of each of that many days that have one.",
        |cluster, input| cluster.keep.daily = input.count(0, KEEP_MAX)?
    ),
    setting!(
        "keep.weekly",
        "number",
        "0",
        "The same for ISO weeks.",
        |cluster, input| cluster.keep.weekly = input.count(0, KEEP_MAX)?
    ),
    setting!(
        "keep.monthly",
        "number",
        "0",
        "The same for months.",
        |cluster, input| cluster.keep.monthly = input.count(0, KEEP_MAX)?
    ),
    setting!(
        "keep.yearly",
        "number",
        "0",
        "The same for years.",
        |cluster, input| cluster.keep.yearly = input.count(0, KEEP_MAX)?
    ),
    // Limits.
    setting!(
        "limits.upload_bytes_per_second",
        "rate, such as `20MB/s`",
        "none",
        "Average bandwidth of all uploads to a repository together.",
        |cluster, input| cluster.limits.upload_bytes_per_second = Some(input.bytes_per_second()?)
    ),
    setting!(
        "limits.memory",
        "size, such as `256MiB`",
        "`192MiB`",
        "Memory for buffers. It caps how many jobs run at once.",
        |cluster, input| cluster.limits.memory = Some(input.bytes()?)
    ),
    // Stores.
    setting!(
        "s3.endpoint",
        "URL",
        "AWS",
        "Of an S3-compatible store, without the bucket.",
        |cluster, input| cluster.s3.endpoint = Some(input.string()?)
    ),
    setting!(
        "s3.region",
        "name",
        "`AWS_REGION`, the profile, or found out",
        "The bucket's region.",
        |cluster, input| cluster.s3.region = Some(input.string()?)
    ),
    setting!(
        "s3.path_style",
        "`true` or `false`",
        "as the endpoint suggests",
        "The bucket's name in the path, not in the host name.",
        |cluster, input| cluster.s3.path_style = Some(input.boolean()?)
    ),
    setting!(
        "s3.allow_http",
        "`true` or `false`",
        "`false`",
        "Permit an endpoint without TLS. On this machine itself it always is.",
        |cluster, input| cluster.s3.allow_http = input.boolean()?
    ),
    setting!(
        "s3.profile",
        "name",
        "`AWS_PROFILE`",
        "A profile in `~/.aws/config`, SSO included.",
        |cluster, input| cluster.s3.profile = Some(input.string()?)
    ),
    setting!(secret "s3.access_key_id", "text", "`AWS_*`, the profile, or the machine's role", "Static credentials.",
        |cluster, input| cluster.s3.access_key_id = Some(input.secret()?)),
    setting!(secret "s3.secret_access_key", "text", "as above", "Static credentials.",
        |cluster, input| cluster.s3.secret_access_key = Some(input.secret()?)),
    setting!(secret "s3.session_token", "text", "as above", "Goes with temporary static credentials.",
        |cluster, input| cluster.s3.session_token = Some(input.secret()?)),
    setting!(
        "s3.kms_key_id",
        "text",
        "none",
        "Let the store encrypt with this KMS key as well.",
        |cluster, input| cluster.s3.kms_key_id = Some(input.string()?)
    ),
    setting!(
        "gcs.service_account_file",
        "path",
        "`GOOGLE_*`, application default credentials",
        "A service account's JSON key.",
        |cluster, input| cluster.gcs.service_account_file = Some(input.path()?)
    ),
    setting!(
        "gcs.endpoint",
        "URL",
        "Google's",
        "Another endpoint.",
        |cluster, input| cluster.gcs.endpoint = Some(input.string()?)
    ),
    setting!(
        "azure.account",
        "name",
        "`AZURE_STORAGE_ACCOUNT_NAME`",
        "The storage account.",
        |cluster, input| cluster.azure.account = Some(input.string()?)
    ),
    setting!(secret "azure.access_key", "text", "`AZURE_*`, the machine's identity", "The account's key.",
        |cluster, input| cluster.azure.access_key = Some(input.secret()?)),
    setting!(secret "azure.sas_token", "text", "as above", "A shared access signature.",
        |cluster, input| cluster.azure.sas_token = Some(input.secret()?)),
    setting!(
        "azure.endpoint",
        "URL",
        "Azure's",
        "Another endpoint.",
        |cluster, input| cluster.azure.endpoint = Some(input.string()?)
    ),
];
