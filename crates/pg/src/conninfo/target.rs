use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use pgkeep_base::Secret;

use super::passfile::{IgnoredPassfile, PassFile, PasswordSource};
use crate::silence::Silence;
use crate::stream::Address;

/// How much TLS is asked for, as libpq's `sslmode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum SslMode {
    Disable,
    Allow,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

impl SslMode {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Disable => "disable",
            Self::Allow => "allow",
            Self::Prefer => "prefer",
            Self::Require => "require",
            Self::VerifyCa => "verify-ca",
            Self::VerifyFull => "verify-full",
        }
    }
}

/// Does TLS begin at once, or after asking the server?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SslNegotiation {
    Postgres,
    Direct,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ChannelBinding {
    Disable,
    Prefer,
    Require,
}

/// Which server of several will do (`target_session_attrs`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SessionAttributes {
    Any,
    ReadWrite,
    ReadOnly,
    Primary,
    Standby,
    PreferStandby,
}

impl SessionAttributes {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Any => "any",
            Self::ReadWrite => "read-write",
            Self::ReadOnly => "read-only",
            Self::Primary => "primary",
            Self::Standby => "standby",
            Self::PreferStandby => "prefer-standby",
        }
    }
}

/// Where the certificates that sign servers' certificates come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RootCertificates {
    /// There are none.
    None,
    /// The operating system's.
    System,
    File(PathBuf),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum TlsVersion {
    V1_2,
    V1_3,
}

impl TlsVersion {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::V1_2 => "TLSv1.2",
            Self::V1_3 => "TLSv1.3",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Keepalives {
    pub(crate) enabled: bool,
    /// `None`: the system's.
    pub(crate) idle: Option<Duration>,
    pub(crate) interval: Option<Duration>,
    pub(crate) count: Option<u32>,
    pub(crate) user_timeout: Option<Duration>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum HostKind {
    /// The directory of a Unix-domain socket (or `@name` for an abstract one).
    Socket(String),
    /// A name or address, and the address to use instead of looking the name up.
    Network { name: String, address: Option<IpAddr> },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Host {
    pub(crate) kind: HostKind,
    pub(crate) port: u16,
}

impl Host {
    pub(crate) fn endpoint(&self) -> String {
        match &self.kind {
            HostKind::Socket(directory) => format!("{directory}/.s.PGSQL.{}", self.port),
            HostKind::Network { name, .. } if name.contains(':') => format!("[{name}]:{}", self.port),
            HostKind::Network { name, .. } => format!("{name}:{}", self.port),
        }
    }

    /// What a password file calls it: sockets in a default directory are `localhost`.
    pub(crate) fn passfile_name(&self) -> &str {
        match &self.kind {
            HostKind::Socket(directory)
                if super::resolve::SOCKET_DIRECTORIES.contains(&directory.as_str()) =>
            {
                "localhost"
            }
            HostKind::Socket(directory) => directory,
            HostKind::Network { name, .. } => name,
        }
    }
}

/// A connection string with everything filled in: where to connect, as whom, and how.
///
/// Neither `Debug` nor `Display` shows a secret.
#[derive(Clone)]
pub struct Target {
    pub(crate) hosts: Vec<Host>,
    pub(crate) user: String,
    pub(crate) database: String,
    pub(crate) password: Option<(Secret, PasswordSource)>,
    pub(crate) passfile: Option<PassFile>,
    pub(crate) passfile_ignored: Option<IgnoredPassfile>,
    pub(crate) sslmode: SslMode,
    pub(crate) sslnegotiation: SslNegotiation,
    pub(crate) sslrootcert: RootCertificates,
    pub(crate) sslcert: Option<PathBuf>,
    pub(crate) sslkey: Option<PathBuf>,
    pub(crate) sslcrl: Option<PathBuf>,
    pub(crate) sslcrldir: Option<PathBuf>,
    pub(crate) sslsni: bool,
    pub(crate) tls_version_min: TlsVersion,
    pub(crate) tls_version_max: TlsVersion,
    pub(crate) channel_binding: ChannelBinding,
    /// `(wanted, methods)`: with `false`, these methods are the forbidden ones.
    pub(crate) require_auth: Option<(bool, Vec<String>)>,
    pub(crate) requirepeer: Option<String>,
    pub(crate) target_session_attrs: SessionAttributes,
    pub(crate) load_balance: bool,
    pub(crate) connect_timeout: Duration,
    pub(crate) application_name: String,
    pub(crate) options: Option<String>,
    pub(crate) keepalives: Keepalives,
    pub(crate) silence: Silence,
    pub(crate) replication: Option<String>,
}

impl Target {
    /// The same server and user, another database.
    #[must_use]
    pub fn with_database(&self, name: &str) -> Self {
        Self {
            database: name.to_owned(),
            ..self.clone()
        }
    }

    /// The same, shown to the server (`pg_stat_activity`) by another `application_name`.
    #[must_use]
    pub fn with_application_name(&self, name: &str) -> Self {
        Self {
            application_name: name.to_owned(),
            ..self.clone()
        }
    }

    /// A server by the directory of its Unix-domain socket, without a password, and without the environment's defaults.
    pub fn for_socket(directory: &Path, port: u16, user: &str, database: &str) -> Self {
        Self {
            hosts: vec![Host {
                kind: HostKind::Socket(directory.display().to_string()),
                port,
            }],
            user: user.to_owned(),
            database: database.to_owned(),
            password: None,
            passfile: None,
            passfile_ignored: None,
            sslmode: SslMode::Prefer,
            sslnegotiation: SslNegotiation::Postgres,
            sslrootcert: RootCertificates::None,
            sslcert: None,
            sslkey: None,
            sslcrl: None,
            sslcrldir: None,
            sslsni: true,
            tls_version_min: TlsVersion::V1_2,
            tls_version_max: TlsVersion::V1_3,
            channel_binding: ChannelBinding::Prefer,
            require_auth: None,
            requirepeer: None,
            target_session_attrs: SessionAttributes::Any,
            load_balance: false,
            connect_timeout: super::resolve::CONNECT_TIMEOUT_DEFAULT,
            application_name: super::resolve::APPLICATION_NAME_DEFAULT.to_owned(),
            options: None,
            keepalives: Keepalives {
                enabled: true,
                idle: None,
                interval: None,
                count: None,
                user_timeout: None,
            },
            silence: Silence::default(),
            replication: None,
        }
    }

    /// The database.
    pub fn database(&self) -> &str {
        &self.database
    }

    /// The role.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// `host:port` or the socket's path, for messages; several are separated by commas.
    pub fn endpoint(&self) -> String {
        self.hosts
            .iter()
            .map(Host::endpoint)
            .collect::<Vec<_>>()
            .join(",")
    }

    /// The same, with only one of its hosts, at the address where it was found: a name may have several, each another
    /// server's. The name stays, for certificates and password files.
    pub(crate) fn pinned(&self, host: &Host, found_at: &Address) -> Self {
        let mut host = host.clone();
        if let (HostKind::Network { address, .. }, Address::Network(found_at)) = (&mut host.kind, found_at) {
            // A link-local address says nothing without its interface, which the name may have.
            let is_scoped = matches!(found_at, SocketAddr::V6(found_at) if found_at.scope_id() != 0);
            *address = Some(found_at.ip()).filter(|_| !is_scoped);
        }
        Self {
            hosts: vec![host],
            ..self.clone()
        }
    }

    /// The password for a host, and where it came from.
    pub(crate) fn password_for(&self, host: &Host) -> Option<(Secret, PasswordSource)> {
        self.password.clone().or_else(|| {
            self.passfile
                .as_ref()?
                .find(host.passfile_name(), host.port, &self.database, &self.user)
        })
    }

    /// The complete `PG*` environment for child processes such as `pg_dump` and `psql`, so that nothing secret is
    /// among their arguments. It must replace all `PG*` variables of the parent.
    pub fn libpq_environment(&self) -> Vec<(String, Secret)> {
        let mut variables: Vec<(&str, String)> = Vec::new();
        let join = |part: &dyn Fn(&Host) -> String| self.hosts.iter().map(part).collect::<Vec<_>>().join(",");
        let host_name = |host: &Host| match &host.kind {
            HostKind::Socket(directory) => directory.clone(),
            HostKind::Network { name, .. } => name.clone(),
        };
        let address = |host: &Host| match &host.kind {
            HostKind::Network {
                address: Some(address),
                ..
            } => address.to_string(),
            _ => String::new(),
        };
        variables.push(("PGHOST", join(&host_name)));
        if self.hosts.iter().any(|host| !address(host).is_empty()) {
            variables.push(("PGHOSTADDR", join(&address)));
        }
        variables.push(("PGPORT", join(&|host: &Host| host.port.to_string())));
        variables.push(("PGUSER", self.user.clone()));
        variables.push(("PGDATABASE", self.database.clone()));
        if let Some((password, _)) = &self.password {
            variables.push(("PGPASSWORD", password.expose().to_owned()));
        }
        // Without a file, libpq would read one of the home directory, which was perhaps not meant. It says nothing of one
        // that isn't there, and warns of one that is no file.
        let passfile = self
            .passfile
            .as_ref()
            .map_or("/dev/null/none".to_owned(), |file| {
                file.path.display().to_string()
            });
        variables.push(("PGPASSFILE", passfile));
        self.tls_environment(&mut variables);
        variables.push(("PGGSSENCMODE", "disable".to_owned()));
        variables.push((
            "PGTARGETSESSIONATTRS",
            self.target_session_attrs.name().to_owned(),
        ));
        variables.push((
            "PGCONNECT_TIMEOUT",
            self.connect_timeout.as_secs().max(1).to_string(),
        ));
        variables.push(("PGAPPNAME", self.application_name.clone()));
        if let Some(options) = &self.options {
            variables.push(("PGOPTIONS", options.clone()));
        }
        variables
            .into_iter()
            .map(|(name, value)| (name.to_owned(), Secret::new(value)))
            .collect()
    }

    fn tls_environment(&self, variables: &mut Vec<(&str, String)>) {
        variables.push(("PGSSLMODE", self.sslmode.name().to_owned()));
        if self.sslnegotiation == SslNegotiation::Direct {
            variables.push(("PGSSLNEGOTIATION", "direct".to_owned()));
        }
        match &self.sslrootcert {
            RootCertificates::None => {}
            RootCertificates::System => variables.push(("PGSSLROOTCERT", "system".to_owned())),
            RootCertificates::File(path) => variables.push(("PGSSLROOTCERT", path.display().to_string())),
        }
        let files = [
            ("PGSSLCERT", &self.sslcert),
            ("PGSSLKEY", &self.sslkey),
            ("PGSSLCRL", &self.sslcrl),
            ("PGSSLCRLDIR", &self.sslcrldir),
        ];
        for (name, path) in files {
            variables.extend(path.as_ref().map(|path| (name, path.display().to_string())));
        }
        if self.sslcert.is_none() {
            variables.push(("PGSSLCERTMODE", "disable".to_owned()));
        }
        if !self.sslsni {
            variables.push(("PGSSLSNI", "0".to_owned()));
        }
        variables.push(("PGSSLMINPROTOCOLVERSION", self.tls_version_min.name().to_owned()));
        if self.tls_version_max == TlsVersion::V1_2 {
            variables.push(("PGSSLMAXPROTOCOLVERSION", self.tls_version_max.name().to_owned()));
        }
        let channel_binding = match self.channel_binding {
            ChannelBinding::Disable => "disable",
            ChannelBinding::Prefer => "prefer",
            ChannelBinding::Require => "require",
        };
        variables.push(("PGCHANNELBINDING", channel_binding.to_owned()));
        if let Some((wanted, methods)) = &self.require_auth {
            let prefix = if *wanted { "" } else { "!" };
            let list = methods
                .iter()
                .map(|method| format!("{prefix}{method}"))
                .collect::<Vec<_>>()
                .join(",");
            variables.push(("PGREQUIREAUTH", list));
        }
        variables.extend(
            self.requirepeer
                .as_ref()
                .map(|peer| ("PGREQUIREPEER", peer.clone())),
        );
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "database '{}' at {} as '{}'",
            self.database,
            self.endpoint(),
            self.user
        )
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Target")
            .field("hosts", &self.hosts)
            .field("user", &self.user)
            .field("database", &self.database)
            .field("password", &self.password)
            .field("sslmode", &self.sslmode)
            .field("sslrootcert", &self.sslrootcert)
            .field("target_session_attrs", &self.target_session_attrs)
            .field("application_name", &self.application_name)
            .finish_non_exhaustive()
    }
}
